//! Values that hurt.

use super::*;

#[test]
fn defaults_are_good() {
    finds_nothing(&check(&Folder::new(), &[]));
}

#[test]
fn a_shutdown_that_supervisors_cut_short() {
    let slow = ("EVENT_PERSISTER_PIPELINE_DRAIN_TIMEOUT", "2m");
    let ran = check(&Folder::new(), &[slow]);
    finds_only(
        &ran,
        "config.drain_timeout",
        "warning",
        "pipeline.drain_timeout",
    );
}

#[test]
fn retention_that_keeps_nothing_or_everything() {
    for retention in ["10m", "10000d"] {
        let variable = ("EVENT_PERSISTER_TRIM_RETENTION", retention);
        let overrides = ("EVENT_PERSISTER_TRIM_OVERRIDES", "a=1d");
        let ran = check(&Folder::new(), &[variable, overrides]);
        finds_only(&ran, "config.retention", "warning", "trim.retention");
    }
    let none = ("EVENT_PERSISTER_TRIM_RETENTION", "0s");
    check(&Folder::new(), &[none])
        .exits(2)
        .complains(&["trim.retention"]);
}

#[test]
fn a_password_that_everyone_can_read() {
    let url = "redis://:hunter2@127.0.0.1:1/0";
    let ran = check_with(&Folder::new(), &["--redis-url", url], &[]);
    finds(
        &ran,
        "config.secret_in_flag",
        "warning",
        "EVENT_PERSISTER_REDIS_URL_FILE",
    );
    assert!(!ran.stdout.contains("hunter2"), "{ran:?}");
    let by_variable = check(&Folder::new(), &[("EVENT_PERSISTER_REDIS_URL", url)]);
    assert!(!by_variable.stdout.contains("config.secret_in_flag"));
}

#[test]
fn prefects_persister_that_is_still_on() {
    let broker = ("PREFECT_MESSAGING_BROKER", "prefect_redis.messaging");
    let off = ("EVENT_PERSISTER_REDIS_URL", "off");
    let ran = check(&Folder::new(), &[broker, off]);
    let remedy = "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED=false";
    finds_only(&ran, "prefect.persister", "warning", remedy);
}

#[test]
fn people_read_a_table_with_what_to_do_beneath_what_is_wrong() {
    let folder = Folder::new();
    let slow = ("EVENT_PERSISTER_PIPELINE_DRAIN_TIMEOUT", "2m");
    let listen = ("EVENT_PERSISTER_LISTEN", "127.0.0.1:0");
    folder
        .run_with(&["check"], &[slow, listen])
        .exits(0)
        .prints(&[
            "RESULT   CHECK",
            "warning  config.drain_timeout",
            "-> lower pipeline.drain_timeout",
            "errors: 0, warnings: ",
        ]);
}
