use super::*;
use crate::cli::Flags;
use crate::config::Config;
use crate::config::tests::{effective, load};

mod sections;

type Pairs<'a> = &'a [(&'a str, &'a str)];

const PG: &str = "postgresql+asyncpg://prefect:s3cret@db:5432/prefect";
const TLS: &str = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_";

fn config(pairs: Pairs<'_>) -> Config {
    load(&Flags::default(), pairs).unwrap_or_else(|error| panic!("{pairs:?}: {error}"))
}

fn error(pairs: Pairs<'_>) -> String {
    match load(&Flags::default(), pairs) {
        Ok(_) => panic!("{pairs:?} was taken"),
        Err(error) => error,
    }
}

/// The value of a setting, and where it came from.
#[track_caller]
fn shown(pairs: Pairs<'_>, setting: &str) -> (String, String) {
    let config = config(pairs);
    let shown = effective(&config, setting);
    (
        shown.value.clone().unwrap_or_default(),
        shown.origin.to_string(),
    )
}

#[track_caller]
fn reason(pairs: Pairs<'_>, variable: &str) -> String {
    let config = config(pairs);
    config
        .prefect
        .not_taken_over
        .iter()
        .find(|seen| seen.variable == variable)
        .unwrap_or_else(|| panic!("{variable} was not seen in {:?}", config.prefect))
        .reason
        .clone()
}

fn warnings(pairs: Pairs<'_>) -> String {
    let texts: Vec<String> = config(pairs).prefect.warning_lines().collect();
    texts.join("\n")
}

#[test]
fn every_variable_and_alias_sets_its_setting() {
    for (variable, value, setting, expected) in [
        (
            "PREFECT_SERVER_DATABASE_CONNECTION_URL",
            PG,
            "database.url",
            "postgresql+asyncpg://prefect:***@db:5432/prefect",
        ),
        (
            "PREFECT_API_DATABASE_CONNECTION_URL",
            "sqlite+aiosqlite:////p/prefect.db",
            "database.url",
            "sqlite+aiosqlite:////p/prefect.db",
        ),
        (
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_SEARCH_PATH",
            "mine, public",
            "database.search_path",
            "mine, public",
        ),
        (
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_STATEMENT_CACHE_SIZE",
            "0",
            "database.prepared_statements",
            "off",
        ),
        (
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_PREPARED_STATEMENT_CACHE_SIZE",
            "0",
            "database.prepared_statements",
            "off",
        ),
        (
            "PREFECT_REDIS_MESSAGING_URL",
            "redis://:s3cret@r/1",
            "redis.url",
            "redis://:***@r:6379/1",
        ),
        (
            "PREFECT_REDIS_MESSAGING_HOST",
            "r",
            "redis.url",
            "redis://r:6379/0",
        ),
        (
            "PREFECT_MESSAGING_BROKER",
            "prefect_redis.messaging",
            "redis.url",
            "redis://localhost:6379/0",
        ),
        (
            "PREFECT_SERVER_EVENTS_MESSAGING_BROKER",
            "prefect_redis.messaging",
            "redis.url",
            "redis://localhost:6379/0",
        ),
        (
            "PREFECT_SERVER_EVENTS_RETENTION_PERIOD",
            "2d",
            "trim.retention",
            "2d",
        ),
        (
            "PREFECT_EVENTS_RETENTION_PERIOD",
            "P14D",
            "trim.retention",
            "14d",
        ),
        (
            "PREFECT_SERVER_SERVICES_DB_VACUUM_EVENT_RETENTION_OVERRIDES",
            r#"{"a": 3600, "b.c": "2d"}"#,
            "trim.overrides",
            "a=1h,b.c=2d",
        ),
        (
            "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS",
            "60",
            "trim.every",
            "1m",
        ),
        (
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED",
            "flow_runs",
            "trim.every",
            "off",
        ),
        (
            "PREFECT_SERVER_EVENTS_MAXIMUM_LABELS_PER_RESOURCE",
            "50",
            "events.max_labels_per_resource",
            "50",
        ),
        (
            "PREFECT_EVENTS_MAXIMUM_LABELS_PER_RESOURCE",
            "50",
            "events.max_labels_per_resource",
            "50",
        ),
        (
            "PREFECT_SERVER_EVENTS_MAXIMUM_RELATED_RESOURCES",
            "1_000",
            "events.max_related_resources",
            "1000",
        ),
        (
            "PREFECT_EVENTS_MAXIMUM_RELATED_RESOURCES",
            "10",
            "events.max_related_resources",
            "10",
        ),
        (
            "PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES",
            "1500000",
            "http.max_event_bytes",
            "1500000",
        ),
        (
            "PREFECT_EVENTS_MAXIMUM_SIZE_BYTES",
            "1024",
            "http.max_event_bytes",
            "1KiB",
        ),
        (
            "PREFECT_SERVER_EVENTS_MAXIMUM_EVENT_NAME_LENGTH",
            "200",
            "events.max_event_name_length",
            "200",
        ),
        (
            "PREFECT_SERVER_API_AUTH_STRING",
            "admin:s3cret",
            "http.auth_string",
            "***",
        ),
    ] {
        let (value, origin) = shown(&[(variable, value)], setting);
        assert_eq!((value.as_str(), origin.as_str()), (expected, variable));
        // Prefect takes any case, and an empty variable is unset.
        let lower = variable.to_ascii_lowercase();
        assert_eq!(shown(&[(&lower, "")], setting).1, "default", "{variable}");
    }
    let lower = [("prefect_events_retention_period", "2d")];
    assert_eq!(shown(&lower, "trim.retention").0, "2d");
}

#[test]
fn retention_reads_all_that_prefect_reads() {
    for (text, expected) in [
        ("2d", "2d"),
        ("7 days", "7d"),
        ("P7D", "7d"),
        ("PT12H", "12h"),
        ("1:00:00", "1h"),
        ("1d 12:00:00", "36h"),
        ("P1W", "7d"),
        ("999999999d", "36600d"),
    ] {
        let pairs = [("PREFECT_EVENTS_RETENTION_PERIOD", text)];
        assert_eq!(shown(&pairs, "trim.retention").0, expected, "{text}");
    }
    for text in ["3600", "12h", "1w", "soon"] {
        let pairs = [("PREFECT_EVENTS_RETENTION_PERIOD", text)];
        let error = error(&pairs);
        assert!(error.contains("PREFECT_EVENTS_RETENTION_PERIOD"), "{error}");
    }
    // Prefect takes it and then deletes everything.
    let pairs = [("PREFECT_EVENTS_RETENTION_PERIOD", "-2d")];
    assert_eq!(shown(&pairs, "trim.retention").0, "7d");
    assert!(reason(&pairs, "PREFECT_EVENTS_RETENTION_PERIOD").contains("default"));
}

#[test]
fn a_shorter_retention_holds_for_the_default_override_too() {
    let pairs = [("PREFECT_EVENTS_RETENTION_PERIOD", "2d")];
    let config = config(&pairs);
    let heartbeat = config.trim.overrides.get("prefect.flow-run.heartbeat");
    assert_eq!(heartbeat, Some(&config.trim.retention));
    let shown = effective(&config, "trim.overrides");
    assert_eq!(
        shown.value.as_deref(),
        Some("prefect.flow-run.heartbeat=2d")
    );
}

#[test]
fn overrides_are_seconds_by_name() {
    let variable = "PREFECT_SERVER_SERVICES_DB_VACUUM_EVENT_RETENTION_OVERRIDES";
    let read = |text| shown(&[(variable, text)], "trim.overrides").0;
    assert_eq!(
        read(r#"{"a.b": 604800, "c,d=e": "5.5"}"#),
        "a.b=7d,c,d=e=5500ms"
    );
    assert_eq!(read("{}"), "{}");
    assert_eq!(read("null"), "prefect.flow-run.heartbeat=7d");
    for text in [
        "x",
        "[]",
        r#"{"a": 0}"#,
        r#"{"a": -1}"#,
        r#"{"a": null}"#,
        r#"{"a": 1e30}"#,
    ] {
        assert!(error(&[(variable, text)]).contains(variable), "{text}");
    }
}

#[test]
fn trimming_is_off_where_prefect_keeps_its_events() {
    let variable = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED";
    let every = |text| shown(&[(variable, text)], "trim.every").0;
    assert_eq!(every("orphans,flow_runs"), "off");
    assert_eq!(every("events, flow_runs"), "15m");
    for text in ["true", "FALSE", "0"] {
        assert_eq!(every(text), "15m", "{text}");
    }
    for text in ["[\"flow_runs\"]", "[]", "\"orphans\""] {
        assert_eq!(every(text), "off", "{text}");
    }
    for text in ["[\"events\"]", "null", "1"] {
        assert_eq!(every(text), "15m", "{text}");
    }
    for text in ["evnts", "[\"evnts\"]", "[1]", "{}", "5"] {
        assert!(error(&[(variable, text)]).contains(variable), "{text}");
    }
    let with_loop = [
        (variable, "flow_runs"),
        ("PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS", "60"),
    ];
    assert_eq!(shown(&with_loop, "trim.every").0, "off");
}

#[test]
fn limits_that_refuse_everything_are_not_taken_over() {
    for text in ["0", "-5"] {
        let pairs = [("PREFECT_EVENTS_MAXIMUM_RELATED_RESOURCES", text)];
        assert_eq!(shown(&pairs, "events.max_related_resources").0, "100");
        assert!(reason(&pairs, pairs[0].0).contains("default"));
    }
    let huge = [(
        "PREFECT_EVENTS_MAXIMUM_RELATED_RESOURCES",
        "99999999999999999999999999",
    )];
    assert!(shown(&huge, "events.max_related_resources").0.len() > 10);
    assert!(error(&[("PREFECT_SERVER_EVENTS_MAXIMUM_EVENT_NAME_LENGTH", "0")]).contains("above 0"));
    assert!(error(&[("PREFECT_EVENTS_MAXIMUM_SIZE_BYTES", "1MB")]).contains("\"1MB\""));
}

#[test]
fn the_name_with_server_comes_before_its_alias() {
    let pairs = [
        ("PREFECT_EVENTS_RETENTION_PERIOD", "2d"),
        ("PREFECT_SERVER_EVENTS_RETENTION_PERIOD", "3d"),
    ];
    assert_eq!(
        shown(&pairs, "trim.retention"),
        (
            "3d".to_owned(),
            "PREFECT_SERVER_EVENTS_RETENTION_PERIOD".to_owned()
        )
    );
    assert!(reason(&pairs, "PREFECT_EVENTS_RETENTION_PERIOD").contains("comes before it"));
}

#[test]
fn our_own_settings_come_first_and_then_prefects_need_not_even_be_right() {
    let pairs = [
        ("EVENT_PERSISTER_TRIM_RETENTION", "30d"),
        ("EVENT_PERSISTER_DATABASE_URL", "sqlite://own.db"),
        ("EVENT_PERSISTER_REDIS_URL", "redis://own"),
        ("PREFECT_EVENTS_RETENTION_PERIOD", "soon"),
        (
            "PREFECT_SERVER_DATABASE_CONNECTION_URL",
            "sqlite+aiosqlite:///:memory:",
        ),
        ("PREFECT_REDIS_MESSAGING_PORT", "x"),
    ];
    assert_eq!(
        shown(&pairs, "trim.retention"),
        (
            "30d".to_owned(),
            "EVENT_PERSISTER_TRIM_RETENTION".to_owned()
        )
    );
    assert_eq!(shown(&pairs, "redis.url").0, "redis://own:6379/0");
    let config = config(&pairs);
    assert!(!config.database.is_prefects);
    assert_eq!(
        reason(&pairs, "PREFECT_SERVER_DATABASE_CONNECTION_URL"),
        "database.url is set by EVENT_PERSISTER_DATABASE_URL"
    );
}

#[test]
fn the_database_of_prefect_is_known_as_such() {
    let prefects = config(&[(
        "PREFECT_API_DATABASE_CONNECTION_URL",
        "sqlite+aiosqlite:///p.db",
    )]);
    assert!(prefects.database.is_prefects);
    assert!(!config(&[]).database.is_prefects);
    let memory = "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false";
    let error = error(&[("PREFECT_API_DATABASE_CONNECTION_URL", memory)]);
    assert!(
        error.contains("PREFECT_API_DATABASE_CONNECTION_URL"),
        "{error}"
    );
}

#[test]
fn the_password_may_stand_in_a_variable_of_its_own() {
    for name in [
        "PREFECT_API_DATABASE_PASSWORD",
        "PREFECT_SERVER_DATABASE_PASSWORD",
    ] {
        let url = format!("postgresql+asyncpg://u:${{{name}}}@db/x");
        let pairs = [
            ("PREFECT_SERVER_DATABASE_CONNECTION_URL", url.as_str()),
            (name, "p/w@rd"),
        ];
        let config = config(&pairs);
        let crate::config::DatabaseUrl::Postgres { url, .. } = &config.database.url else {
            panic!("not PostgreSQL");
        };
        assert_eq!(**url, "postgresql://u:p%2Fw%40rd@db/x".parse().unwrap());
        assert!(error(&pairs[..1]).contains("not set"));
        assert!(config.prefect.not_taken_over.is_empty());
    }
}

#[test]
fn a_database_may_be_named_part_by_part() {
    let parts = [
        ("PREFECT_SERVER_DATABASE_DRIVER", "postgresql+asyncpg"),
        ("PREFECT_API_DATABASE_HOST", "db"),
        ("PREFECT_SERVER_DATABASE_PORT", "6432"),
        ("PREFECT_SERVER_DATABASE_USER", "u"),
        ("PREFECT_SERVER_DATABASE_PASSWORD", "p@ss"),
        ("PREFECT_SERVER_DATABASE_NAME", "prefect"),
    ];
    let (url, origin) = shown(&parts, "database.url");
    assert_eq!(url, "postgresql+asyncpg://u:***@db:6432/prefect");
    assert!(origin.contains("PREFECT_SERVER_DATABASE_DRIVER, PREFECT_API_DATABASE_HOST"));
    assert!(error(&parts[..2]).contains("PREFECT_SERVER_DATABASE_USER"));
    // Without a driver Prefect does not look at them.
    assert_eq!(shown(&parts[1..], "database.url").1, "default");
    assert!(reason(&parts[1..], "PREFECT_API_DATABASE_HOST").contains("DRIVER"));

    let sqlite = [
        ("PREFECT_SERVER_DATABASE_DRIVER", "sqlite+aiosqlite"),
        ("HOME", "/home/ada"),
    ];
    assert_eq!(
        shown(&sqlite, "database.url").0,
        "sqlite+aiosqlite:////home/ada/.prefect/prefect.db"
    );
}

#[test]
fn tls_is_taken_over_when_it_is_enabled() {
    let name = |part: &str| format!("{TLS}{part}");
    let (enabled, ca) = (name("ENABLED"), name("CA_FILE"));
    let (cert, key) = (name("CERT_FILE"), name("KEY_FILE"));
    let check = name("CHECK_HOSTNAME");
    let mut pairs = vec![
        (ca.as_str(), "/ca.pem"),
        (cert.as_str(), "/cert.pem"),
        (key.as_str(), "/key.pem"),
        (check.as_str(), "no"),
    ];
    assert_eq!(shown(&pairs, "database.tls").0, "prefer");
    assert!(reason(&pairs, &ca).contains("TLS_ENABLED"));
    pairs.push((enabled.as_str(), "on"));
    for (setting, expected) in [
        ("database.tls", "verify-full"),
        ("database.tls_check_hostname", "off"),
        ("database.tls_ca_file", "/ca.pem"),
        ("database.tls_cert_file", "/cert.pem"),
        ("database.tls_key_file", "/key.pem"),
    ] {
        assert_eq!(shown(&pairs, setting).0, expected);
    }
    let without_key = [pairs[1], pairs[4]];
    assert_eq!(shown(&without_key, "database.tls_cert_file").0, "");
    assert!(reason(&without_key, &cert).contains("together"));
    assert!(error(&[(enabled.as_str(), "maybe")]).contains(&enabled));
}

#[test]
fn redis_is_built_of_its_parts() {
    let pairs = [
        ("PREFECT_MESSAGING_BROKER", "prefect_redis.messaging"),
        ("PREFECT_REDIS_MESSAGING_HOST", "r"),
        ("PREFECT_REDIS_MESSAGING_PORT", "6380"),
        ("PREFECT_REDIS_MESSAGING_DB", "2"),
        ("PREFECT_REDIS_MESSAGING_USERNAME", "ada"),
        ("PREFECT_REDIS_MESSAGING_PASSWORD", "p@ss"),
        ("PREFECT_REDIS_MESSAGING_SSL", "true"),
    ];
    let config = config(&pairs);
    let redis = config.redis.as_ref().unwrap();
    assert_eq!(redis.url, "rediss://ada:p%40ss@r:6380/2".parse().unwrap());
    let (shown_url, origin) = shown(&pairs, "redis.url");
    assert!(!shown_url.contains("p%40ss"), "{shown_url}");
    for (variable, _) in pairs {
        assert!(origin.contains(variable), "{origin}");
    }
    // The URL comes before all of its parts, and without a host or a broker they mean nothing.
    let mut with_url = pairs.to_vec();
    with_url.push(("PREFECT_REDIS_MESSAGING_URL", "redis://other"));
    assert_eq!(shown(&with_url, "redis.url").0, "redis://other:6379/0");
    assert!(reason(&with_url, "PREFECT_REDIS_MESSAGING_HOST").contains("URL"));
    assert_eq!(shown(&pairs[2..], "redis.url").1, "default");
    assert!(reason(&pairs[2..], "PREFECT_REDIS_MESSAGING_PORT").contains("BROKER"));
    let user = &pairs[5..6];
    let with_default_user = [user[0], pairs[1]];
    let config = self::config(&with_default_user);
    let redis = config.redis.as_ref().unwrap();
    assert_eq!(
        redis.url,
        "redis://default:p%40ss@r:6379/0".parse().unwrap()
    );
}

#[test]
fn wrong_parts_of_redis_are_named() {
    let host = ("PREFECT_REDIS_MESSAGING_HOST", "r");
    for (variable, value) in [
        ("PREFECT_REDIS_MESSAGING_PORT", "x"),
        ("PREFECT_REDIS_MESSAGING_PORT", "65536"),
        ("PREFECT_REDIS_MESSAGING_DB", "-1"),
        ("PREFECT_REDIS_MESSAGING_SSL", "maybe"),
    ] {
        let error = error(&[host, (variable, value)]);
        assert!(error.contains(variable) && error.contains(value), "{error}");
    }
    let sentinel = "redis+sentinel://:s3cret@a:26379,b:26379";
    let error = error(&[("PREFECT_REDIS_MESSAGING_URL", sentinel)]);
    assert!(error.contains("PREFECT_REDIS_MESSAGING_URL"), "{error}");
    assert!(error.contains("the name of the service"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}

#[test]
fn redis_can_be_switched_off_against_prefects_environment() {
    let pairs = [
        ("PREFECT_MESSAGING_BROKER", "prefect_redis.messaging"),
        ("EVENT_PERSISTER_REDIS_URL", "off"),
    ];
    assert!(config(&pairs).redis.is_none());
}

#[test]
fn what_was_chosen_for_another_program_is_seen_with_a_reason() {
    let variables: Vec<&str> = not_taken_over::variables().collect();
    for variable in [
        "PREFECT_API_SERVICES_EVENT_PERSISTER_BATCH_SIZE",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_MAX_FLUSH_RETRIES",
        "PREFECT_REDIS_MESSAGING_CONSUMER_MIN_IDLE_TIME",
        "PREFECT_REDIS_MESSAGING_CONSUMER_STARTING_MESSAGE_ID",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_BATCH_SIZE",
    ] {
        assert!(variables.contains(&variable), "{variable}");
    }
    for variable in variables {
        let pairs = [(variable, "12345")];
        assert!(!reason(&pairs, variable).is_empty());
        let config = config(&pairs);
        let taken = |effective: &&crate::config::Effective| effective.origin != Origin::Default;
        assert_eq!(config.effective.iter().find(taken), None, "{variable}");
    }
}

#[test]
fn prefects_persister_is_warned_of_unless_it_is_off() {
    let name = "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED";
    let redis = ("PREFECT_MESSAGING_BROKER", "prefect_redis.messaging");
    assert!(warnings(&[redis]).contains(&format!("{name}=false")));
    assert!(warnings(&[redis, (name, "on")]).contains("is on"));
    for off in [name, "PREFECT_API_SERVICES_EVENT_PERSISTER_ENABLED"] {
        assert_eq!(warnings(&[redis, (off, "False")]), "");
    }
    // A client's environment says nothing about a server.
    assert_eq!(
        warnings(&[("PREFECT_API_URL", "http://p/api"), ("PREFECT_HOME", "/p")]),
        ""
    );
    assert!(error(&[(name, "maybe")]).contains(name));
}

#[test]
fn a_bus_that_prefect_does_not_use_is_warned_of() {
    let off = ("PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED", "0");
    let host = ("PREFECT_REDIS_MESSAGING_HOST", "r");
    let memory = (
        "PREFECT_MESSAGING_BROKER",
        "prefect.server.utilities.messaging.memory",
    );
    assert!(warnings(&[off, host]).contains("the default is memory"));
    assert!(warnings(&[off, host, memory]).contains("publishes no events to Redis"));
    let url = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", PG);
    assert!(warnings(&[off, url]).contains("cannot be read by another process"));
}

#[test]
fn secrets_of_prefect_stay_secret() {
    let pairs = [
        ("PREFECT_SERVER_DATABASE_CONNECTION_URL", PG),
        ("PREFECT_REDIS_MESSAGING_HOST", "r"),
        ("PREFECT_REDIS_MESSAGING_PASSWORD", "s3cret"),
        ("PREFECT_SERVER_API_AUTH_STRING", "admin:s3cret"),
    ];
    assert!(!format!("{:?}", config(&pairs)).contains("s3cret"));
}
