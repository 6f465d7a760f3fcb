//! The real binary in the environment of a Prefect server.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which the setting for tests does not reach"
)]

use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, SqliteConnection};
use serde_json::{Value, json};

use crate::support::binary::Folder;

#[cfg(feature = "service-tests")]
mod addresses;
#[cfg(feature = "service-tests")]
mod with_servers;

/// Nobody listens there.
const NO_REDIS: (&str, &str) = (
    "PREFECT_REDIS_MESSAGING_URL",
    "redis://:s3cret@127.0.0.1:1/0",
);
const BROKER: (&str, &str) = ("PREFECT_MESSAGING_BROKER", "prefect_redis.messaging");
const DATABASE: (&str, &str) = (
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "sqlite+aiosqlite:///prefect.db",
);
const PERSISTER_OFF: (&str, &str) = ("PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED", "false");

/// A file as Prefect's migrations leave it.
fn prefects_database(folder: &Folder) {
    let path = folder.path().join("prefect.db");
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    connection
        .batch_execute(include_str!("../data/prefect-schema-sqlite.sql"))
        .unwrap();
    connection
        .batch_execute(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL);
             INSERT INTO alembic_version VALUES ('f416ea180ae1')",
        )
        .unwrap();
}

fn setting<'a>(document: &'a Value, name: &str) -> &'a Value {
    let settings = document["settings"].as_array().unwrap();
    settings
        .iter()
        .find(|setting| setting["name"] == name)
        .unwrap()
}

#[test]
fn check_tells_what_comes_from_prefect_and_what_does_not() {
    let folder = Folder::new();
    prefects_database(&folder);
    let variables = [
        DATABASE,
        PERSISTER_OFF,
        ("PREFECT_SERVER_EVENTS_RETENTION_PERIOD", "P3D"),
        ("PREFECT_SERVER_API_AUTH_STRING", "admin:s3cret"),
        ("PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE", "20"),
        ("PREFECT_REDIS_MESSAGING_CONSUMER_MIN_IDLE_TIME", "5"),
        ("EVENT_PERSISTER_HTTP_AUTH_STRING", ""),
    ];
    let ran = folder.run_with(&["check", "--json"], &variables).exits(0);
    assert!(!ran.stdout.contains("s3cret"), "{ran:?}");
    let document = ran.json();
    let retention = setting(&document, "trim.retention");
    assert_eq!(retention["value"], "3d");
    assert_eq!(retention["from"], "PREFECT_SERVER_EVENTS_RETENTION_PERIOD");
    assert_eq!(retention["from_prefect"], true);
    assert_eq!(setting(&document, "http.auth_string")["value"], "***");
    assert_eq!(setting(&document, "http.listen")["from_prefect"], false);
    let seen: Vec<&str> = document["not_taken_over"]
        .as_array()
        .unwrap()
        .iter()
        .map(|seen| seen["variable"].as_str().unwrap())
        .collect();
    assert_eq!(
        seen,
        [
            "PREFECT_REDIS_MESSAGING_CONSUMER_MIN_IDLE_TIME",
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE",
        ]
    );
    assert_eq!(document["prefect_schema"]["revision"], "f416ea180ae1");
    assert_eq!(document["redis"], Value::Null);

    folder.run_with(&["check"], &variables).exits(0).prints(&[
        "PREFECT_API_DATABASE_CONNECTION_URL",
        "SEEN, NOT TAKEN OVER",
        "batch.max_events",
        "revision f416ea180ae1, which this version was tested with",
        "redis: not a source",
    ]);
}

#[test]
fn check_warns_of_prefects_persister_until_it_is_switched_off() {
    let folder = Folder::new();
    prefects_database(&folder);
    let off = "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED=false";
    folder
        .run_with(
            &["check"],
            &[DATABASE, BROKER, ("EVENT_PERSISTER_REDIS_URL", "off")],
        )
        .exits(0)
        .prints(&[
            "warning  prefect.persister",
            "Prefect's own persister is enabled",
            off,
        ]);
    let quiet = folder
        .run_with(
            &["check"],
            &[
                DATABASE,
                BROKER,
                PERSISTER_OFF,
                ("EVENT_PERSISTER_REDIS_URL", "off"),
            ],
        )
        .exits(0);
    assert!(!quiet.stdout.contains("prefect.persister"), "{quiet:?}");
}

#[test]
fn check_fails_when_redis_cannot_be_reached_and_shows_no_password() {
    let folder = Folder::new();
    let ran = folder
        .run_with(&["check"], &[BROKER, NO_REDIS, PERSISTER_OFF])
        .exits(1)
        .prints(&["redis://:***@127.0.0.1:1/0", "redis: ", "127.0.0.1:1"]);
    assert!(!ran.stdout.contains("s3cret"), "{ran:?}");
    let document = folder
        .run_with(&["check", "--json"], &[NO_REDIS, PERSISTER_OFF])
        .exits(1)
        .json();
    assert_eq!(document["ok"], false);
    assert_eq!(document["redis"]["ok"], false);
    assert_eq!(document["store"]["ok"], true);
}

#[test]
fn what_prefect_refuses_is_refused_with_its_variable() {
    let folder = Folder::new();
    folder
        .run_with(&["check"], &[("PREFECT_EVENTS_RETENTION_PERIOD", "a week")])
        .exits(2)
        .complains(&["PREFECT_EVENTS_RETENTION_PERIOD", "\"a week\"", "7d"]);
    assert!(folder.is_empty());
}

#[test]
fn prefects_database_is_waited_for_and_never_made() {
    let folder = Folder::new();
    folder
        .run_with(&["check"], &[DATABASE, PERSISTER_OFF])
        .exits(1)
        .prints(&["waiting for Prefect's migrations"]);
    folder
        .run_with(&["migrate"], &[DATABASE])
        .exits(1)
        .complains(&["Prefect's", "--database-url"]);
    assert!(folder.is_empty());
}

#[test]
fn the_guards_commands_need_redis() {
    let folder = Folder::new();
    for command in ["show", "remove"] {
        folder
            .run(&["guard", command])
            .exits(2)
            .complains(&["no Redis is configured", "--redis-url"]);
        let ran = folder
            .run_with(&["guard", command, "--json"], &[NO_REDIS])
            .exits(1)
            .complains(&["the guard", "127.0.0.1:1"]);
        assert!(!ran.stderr.contains("s3cret"), "{ran:?}");
        assert_eq!(ran.stdout, "");
    }
    folder.run(&["guard"]).exits(2);
}

#[test]
fn half_events_are_not_looked_for_in_a_file() {
    let folder = Folder::new();
    folder.run(&["migrate"]).exits(0);
    let document = folder
        .run(&["trim", "--remove-half-events", "--json"])
        .exits(0)
        .json();
    assert_eq!(document["events"], json!(0));
    assert_eq!(document["half_events"], Value::Null);
}
