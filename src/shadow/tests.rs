use super::*;

#[test]
fn a_shadow_needs_a_stream() {
    let config = Config::of_defaults().unwrap();
    let flags = ServeFlags {
        shadow: true,
        ..ServeFlags::default()
    };
    let error = validate(&Command::Serve(flags), &config).unwrap_err();
    assert!(error.to_string().contains("--redis-url"), "{error}");
    assert!(validate(&Command::default(), &config).is_ok());
}

#[test]
fn waits_for_as_long_as_prefect_may_hold_an_event() {
    let delay = |variables: &[(&str, &str)]| {
        let redis = ("EVENT_PERSISTER_REDIS_URL", "redis://localhost");
        let variables: Vec<_> = variables.iter().copied().chain([redis]).collect();
        let config = Config::of_variables(&variables).unwrap();
        Shadow::new(&config, &ServeFlags::default()).unwrap().delay
    };
    let name = "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL";
    assert_eq!(delay(&[]), Duration::from_secs(10));
    assert_eq!(delay(&[(name, "0.5")]), Duration::from_millis(5_500));
    assert_eq!(delay(&[(name, "60")]), Duration::from_secs(65));
    let older = "PREFECT_API_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL";
    assert_eq!(delay(&[(older, "1"), (name, "2")]), Duration::from_secs(7));
}
