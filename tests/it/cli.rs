//! The real binary: usage, configuration, commands, exit codes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which the setting for tests does not reach"
)]

use std::net::TcpListener;
use std::process::Stdio;

use uuid::Uuid;

use super::support::binary::{Folder, Ran};
use super::support::server::Server;

pub(crate) fn event(occurred: &str) -> String {
    let id = Uuid::new_v4();
    format!(
        r#"{{"id":"{id}","occurred":"{occurred}","event":"it","resource":{{"prefect.resource.id":"r"}}}}"#
    )
}

#[test]
fn help_shows_the_variables_and_not_what_is_in_them() {
    let folder = Folder::new();
    let url = (
        "EVENT_PERSISTER_DATABASE_URL",
        "postgresql://u:hunter2@db/x",
    );
    let ran = folder.run_with(&["--help"], &[url]).exits(0).prints(&[
        "EVENT_PERSISTER_DATABASE_URL",
        "EVENT_PERSISTER_LISTEN",
        "EVENT_PERSISTER_WRITERS",
        "EVENT_PERSISTER_CONFIG",
        "dead-letters",
        "Examples:",
    ]);
    assert!(!ran.stdout.contains("hunter2"), "{ran:?}");
    folder
        .run(&["--version"])
        .exits(0)
        .prints(&["event-persister 0."]);
}

#[test]
fn wrong_usage_exits_with_2() {
    let folder = Folder::new();
    for arguments in [
        &["nonsense"][..],
        &["--nonsense"],
        &["import"],
        &["dead-letters"],
        &["dead-letters", "list", "--limit", "0"],
        &["dead-letters", "show", "seven"],
    ] {
        folder.run(arguments).exits(2);
    }
    assert!(folder.is_empty());
}

#[test]
fn wrong_configuration_exits_with_2_and_says_what_would_be_right() {
    let folder = Folder::new();
    folder.write(
        "p.toml",
        "[batch]\nmax_evnts = 5\n\n[trim]\nretention = \"7\"\n",
    );
    folder
        .run(&["check", "--config", "p.toml"])
        .exits(2)
        .complains(&["p.toml:2", "max_evnts", "did you mean \"max_events\"?"]);
    folder.write("p.toml", "[trim]\nretention = \"7\"\n");
    folder
        .run_with(&["check"], &[("EVENT_PERSISTER_CONFIG", "p.toml")])
        .exits(2)
        .complains(&["p.toml:2", "trim.retention", "\"7d\""]);
    folder
        .run_with(&["check"], &[("EVENT_PERSISTER_WRITERZ", "2")])
        .exits(2)
        .complains(&["EVENT_PERSISTER_WRITERZ", "EVENT_PERSISTER_WRITERS?"]);
    folder
        .run(&["check", "--config", "missing.toml"])
        .exits(2)
        .complains(&["missing.toml"]);
    folder
        .run(&["--writers", "-1", "check"])
        .exits(2)
        .complains(&["--writers", "pipeline.writers", "at least 1"]);
}

#[test]
fn what_is_not_built_in_yet_is_refused_without_showing_passwords() {
    let folder = Folder::new();
    let url = "redis+sentinel://:hunter2@a:26379,b:26379";
    let ran = folder
        .run(&["--redis-url", url])
        .exits(2)
        .complains(&["--redis-url", "the name of the service is missing"]);
    assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
}

#[test]
fn settings_that_cannot_work_together_exit_with_2() {
    let folder = Folder::new();
    let variables = [
        ("EVENT_PERSISTER_REDIS_URL", "redis://127.0.0.1:1"),
        ("EVENT_PERSISTER_REDIS_GUARD_GROUP", "ephemeral-guard"),
    ];
    folder
        .run_with(&["check"], &variables)
        .exits(2)
        .complains(&["ephemeral-guard"]);
    folder
        .run(&[
            "check",
            "--database-url",
            "postgresql://h/d?keepalives_idle=x",
        ])
        .exits(2)
        .complains(&["database.url"]);
}

#[test]
fn the_example_is_a_configuration_that_changes_nothing() {
    let folder = Folder::new();
    let example = folder.run(&["config", "example"]).exits(0).stdout;
    folder.write("p.toml", &example);
    let of_example = folder.run(&["config", "show", "--json", "--config", "p.toml"]);
    let of_defaults = folder.run(&["config", "show", "--json"]);
    assert_eq!(of_example.exits(0).json(), of_defaults.exits(0).json());
    let wrong = example.replace("#linger = \"5ms\"", "linger = 5");
    folder.write("p.toml", &wrong);
    folder
        .run(&["config", "show", "--config", "p.toml"])
        .exits(2)
        .complains(&["p.toml:", "5 is not right for batch.linger", "\"5s\""]);
    // What needs no configuration is printed whatever that is.
    folder
        .run(&["config", "example", "--config", "p.toml"])
        .exits(0)
        .prints(&["[trim]", "#retention = \"7d\""]);
}

#[test]
fn the_schema_of_the_configuration_knows_every_key() {
    let folder = Folder::new();
    let schema = folder.run(&["config", "schema"]).exits(0).json();
    let settings = folder.run(&["config", "show", "--json"]).exits(0).json();
    for setting in settings.as_array().unwrap() {
        let (section, key) = setting["name"].as_str().unwrap().split_once('.').unwrap();
        let described = &schema["properties"][section]["properties"][key];
        assert_eq!(described["description"], setting["help"], "{section}.{key}");
    }
}

#[test]
fn what_is_in_effect_is_shown_without_secrets() {
    let folder = Folder::new();
    folder.write("secret", "redis://:hunter2@127.0.0.1:1\n");
    let variables = [
        ("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:hunter2"),
        ("EVENT_PERSISTER_REDIS_URL_FILE", "secret"),
        (
            "EVENT_PERSISTER_DATABASE_URL",
            "postgresql://u:hunter2@db/x?sslmode=require",
        ),
    ];
    for arguments in [&["config", "show"][..], &["config", "show", "--json"]] {
        let ran = folder.run_with(arguments, &variables).exits(0).prints(&[
            "postgresql://u:***@db/x",
            "redis://:***@127.0.0.1:1/0",
            "EVENT_PERSISTER_REDIS_URL_FILE (secret)",
            "require",
        ]);
        assert!(!ran.stdout.contains("hunter2"), "{ran:?}");
    }
}

#[test]
fn check_shows_values_and_where_they_came_from() {
    let folder = Folder::new();
    folder.write("p.toml", "[batch]\nmax_events = 5\n");
    let variables = [
        ("EVENT_PERSISTER_CONFIG", "p.toml"),
        ("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:hunter2"),
        ("EVENT_PERSISTER_LISTEN", ""),
        ("EVENT_PERSISTER_SERVICE_HOST", "10.0.0.1"),
        ("EVENT_PERSISTER_PORT", "tcp://10.0.0.1:4280"),
    ];
    let ran = folder
        .run_with(&["check", "--json", "--writers", "3"], &variables)
        .exits(0);
    assert!(!ran.stdout.contains("hunter2"), "{ran:?}");
    let document = ran.json();
    assert_eq!(document["ok"], true);
    let setting = |name: &str| {
        let settings = document["settings"].as_array().unwrap();
        let found = settings.iter().find(|setting| setting["name"] == name);
        let found = found.unwrap();
        (found["value"].clone(), found["from"].clone())
    };
    assert_eq!(setting("batch.max_events"), ("5".into(), "p.toml:2".into()));
    assert_eq!(
        setting("pipeline.writers"),
        ("3".into(), "--writers".into())
    );
    assert_eq!(
        setting("http.listen"),
        ("127.0.0.1:4280".into(), "default".into())
    );
    assert_eq!(
        setting("http.auth_string"),
        ("***".into(), "EVENT_PERSISTER_HTTP_AUTH_STRING".into())
    );
}

#[test]
fn check_makes_nothing_and_fails_where_nothing_could_be_made() {
    let folder = Folder::new();
    folder.run(&["check"]).exits(0).prints(&["not there yet"]);
    assert!(folder.is_empty());
    folder
        .run(&["check", "--database-url", "sqlite://missing/x.db"])
        .exits(1)
        .prints(&["missing"]);
    folder.write(
        "text.db",
        "this is no database, and was never meant to be one\n",
    );
    folder
        .run(&["check", "--database-url", "sqlite://text.db"])
        .exits(1);
}

#[test]
fn migrate_says_what_it_did_and_can_be_repeated() {
    let folder = Folder::new();
    folder.run(&["migrate"]).exits(0).prints(&["ran "]);
    folder
        .run(&["migrate"])
        .exits(0)
        .prints(&["nothing was changed"]);
    assert_eq!(
        folder.run(&["migrate", "--json"]).exits(0).json(),
        serde_json::json!({ "migrations": [] })
    );
    folder
        .run(&["check"])
        .exits(0)
        .prints(&["its tables are right"]);
}

#[test]
fn import_counts_every_line_and_again_changes_nothing() {
    let folder = Folder::new();
    let lines = [event("2026-01-01T00:00:00Z"), event("2026-01-02T00:00:00Z")];
    folder.write("events.jsonl", lines.join("\n"));
    let ran = folder.run(&["import", "events.jsonl"]).exits(0);
    assert!(
        ran.stdout
            .starts_with("read 2, stored 2, duplicates 0, dead letters 0, "),
        "{ran:?}"
    );
    assert_eq!(ran.stdout.lines().count(), 1);
    let again = folder
        .run(&["import", "events.jsonl", "--json"])
        .exits(0)
        .json();
    assert_eq!(again["read"], 2);
    assert_eq!(again["duplicates"], 2);
}

#[test]
fn a_line_that_is_no_event_becomes_a_dead_letter_that_can_be_looked_at() {
    let folder = Folder::new();
    let mut text = format!("{}\n{{\"a\": 1}}\n", event("2026-01-01T00:00:00Z")).into_bytes();
    text.extend_from_slice(b"\xff\xfe\n");
    std::fs::write(folder.path().join("events.jsonl"), text).unwrap();
    folder
        .run(&["import", "events.jsonl"])
        .exits(1)
        .prints(&["stored 1, duplicates 0, dead letters 2"])
        .complains(&["dead-letters list"]);

    let listed = folder
        .run(&["dead-letters", "list", "--json"])
        .exits(0)
        .json();
    let letters = listed.as_array().unwrap();
    assert_eq!(letters.len(), 2);
    let place = folder.path().canonicalize().unwrap().join("events.jsonl");
    let place = |line: u32| format!("{}:{line}", place.display());
    assert_eq!(letters[0]["position"], place(3));
    assert_eq!(letters[1]["position"], place(2));
    let id = |index: usize| letters[index]["id"].to_string();

    folder
        .run(&["dead-letters", "list", "--limit", "1"])
        .exits(0)
        .prints(&["events.jsonl:3", &format!("--before {}", id(0))]);
    folder
        .run(&["dead-letters", "list", "--before", &id(0)])
        .exits(0)
        .prints(&["events.jsonl:2"]);
    folder
        .run(&["dead-letters", "show", &id(1)])
        .exits(0)
        .prints(&["{\"a\": 1}", "occurred"]);
    let shown = folder
        .run(&["dead-letters", "show", &id(0), "--json"])
        .exits(0)
        .json();
    assert_eq!(shown["raw_hex"], "fffe");
    folder
        .run(&["dead-letters", "show", "999"])
        .exits(1)
        .complains(&["no dead letter 999"]);
}

#[test]
fn import_reads_standard_input() {
    let line = format!("{}\n", event("2026-01-01T00:00:00Z"));
    Folder::new()
        .run_on(&["import", "-"], line.as_bytes())
        .exits(0)
        .prints(&["read 1, stored 1"]);
}

#[test]
fn a_file_that_cannot_be_read_is_a_failure_that_names_it() {
    let folder = Folder::new();
    folder
        .run(&["import", "missing.jsonl"])
        .exits(1)
        .complains(&["missing.jsonl"]);
    folder
        .run(&["import", "."])
        .exits(1)
        .complains(&["directory"]);
}

#[test]
fn trim_deletes_what_is_old_and_a_dry_run_only_counts() {
    let folder = Folder::new();
    let lines = [event("2020-01-01T00:00:00Z"), event("2999-01-01T00:00:00Z")];
    folder.write("events.jsonl", lines.join("\n"));
    folder.run(&["import", "events.jsonl"]).exits(0);
    for _ in 0..2 {
        folder
            .run(&["trim", "--dry-run"])
            .exits(0)
            .prints(&["would delete 1 events and 1 resources"]);
    }
    let trimmed = folder.run(&["trim", "--json"]).exits(0).json();
    assert_eq!(trimmed["events"], 1);
    folder
        .run(&["trim"])
        .exits(0)
        .prints(&["deleted 0 events and 0 resources"]);
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let folder = Folder::new();
    let mut child = folder
        .command(&["check"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    Ran::new(child.wait_with_output().unwrap()).exits(0);
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = Folder::new();
    folder
        .run(&["--listen", &address])
        .exits(1)
        .complains(&[&address, "--listen"]);
    assert!(folder.is_empty());
}

#[tokio::test]
async fn a_service_says_how_it_is_and_ends_in_good_order() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    assert_eq!(server.get("/api/health").await.status(), 200);
    let server = server.ready().await;
    let metrics = server.get("/metrics").await.text().await.unwrap();
    assert!(
        metrics.contains("event_persister_received_total"),
        "{metrics}"
    );
    let ended = server.terminate().in_good_order();
    assert_eq!(ended.ledger()("received"), 0);
}

#[tokio::test]
async fn a_service_without_its_store_is_alive_and_says_why_it_is_not_ready() {
    let folder = Folder::new();
    let url = ("EVENT_PERSISTER_DATABASE_URL", "sqlite://missing/x.db");
    let server = Server::start(&folder, &[url]);
    assert_eq!(server.get("/api/health").await.status(), 200);
    assert_eq!(server.readiness().await.0, 503);
    let ended = server.terminate().in_good_order();
    assert!(ended.log.contains("missing"), "{}", ended.log);
}

#[tokio::test]
async fn beyond_loopback_without_an_auth_string_only_health_is_served() {
    let folder = Folder::new();
    let everywhere = ("EVENT_PERSISTER_LISTEN", "0.0.0.0:0");
    let server = Server::start(&folder, &[everywhere]).ready().await;
    assert_eq!(server.get("/api/health").await.status(), 200);
    assert_eq!(server.get("/metrics").await.status(), 404);
    assert_eq!(server.get("/api/events").await.status(), 404);
    let ended = server.terminate().in_good_order();
    let log = ended.log;
    assert!(log.contains("EVENT_PERSISTER_HTTP_AUTH_STRING"), "{log}");
}

#[tokio::test]
async fn an_auth_string_guards_all_but_health() {
    let folder = Folder::new();
    let secret = ("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:hunter2");
    let server = Server::start(&folder, &[secret]).ready().await;
    assert_eq!(server.get("/api/health").await.status(), 200);
    let refused = server.get("/metrics").await;
    assert_eq!(refused.status(), 401);
    assert_eq!(
        refused.text().await.unwrap(),
        r#"{"exception_message":"Unauthorized"}"#
    );
    server.terminate().in_good_order();
}

#[test]
fn an_address_that_cannot_be_bound_ends_it_with_the_reason() {
    let folder = Folder::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (address, parts) in [
        (
            taken.as_str(),
            ["another process listens there", "--listen"],
        ),
        ("192.0.2.1:4280", ["no such address", "of this machine"]),
        (
            "no-such-host.invalid:4280",
            ["cannot look up", "no-such-host.invalid"],
        ),
    ] {
        let ran = folder.run(&["--listen", address]).exits(1);
        let ran = ran.complains(&parts);
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
        assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{ran:?}");
    }
    assert!(folder.is_empty(), "the database was touched");
}

#[test]
fn what_nothing_can_come_into_is_no_service() {
    let folder = Folder::new();
    let ran = folder.run(&["--listen", "off"]).exits(2);
    ran.complains(&["the listener is off, and no bus is named", "--redis-url"]);
    let ran = folder.run(&["check", "--listen", "off"]).exits(1);
    ran.prints(&["the listener is off, and no bus is named", "--redis-url"]);
    assert!(folder.is_empty());
}

#[test]
fn an_auth_string_is_a_name_and_a_password() {
    let folder = Folder::new();
    let ours = ("EVENT_PERSISTER_HTTP_AUTH_STRING", "hunter2");
    let ran = folder.run_with(&["check"], &[ours]).exits(2);
    let ran = ran.complains(&["http.auth_string", "`user:password`"]);
    assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    // With Prefect's own server it works, so it does here.
    let prefects = ("PREFECT_SERVER_API_AUTH_STRING", "hunter2");
    folder.run_with(&["check"], &[prefects]).exits(0);
}

#[tokio::test]
async fn once_it_is_ready_the_log_says_so_once_with_the_address() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let line = server.logged("ready: ");
    assert!(
        line.contains(&format!("listen=http://{}", server.address())),
        "{line}"
    );
    let log = server.terminate().in_good_order().log;
    assert_eq!(log.matches("ready: events").count(), 1, "{log}");
}

#[tokio::test]
async fn a_method_that_means_nothing_is_told_what_does() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let client = crate::support::client::client();
    for (method, path, allow, part) in [
        ("GET", "/api/events", "POST", "with POST"),
        ("POST", "/api/events/in", "GET", "open a WebSocket"),
        ("POST", "/api/ready", "GET, HEAD", "with GET"),
        ("DELETE", "/api/health", "GET, HEAD", "with GET"),
        ("PUT", "/metrics", "GET, HEAD", "with GET"),
    ] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let answer = client
            .request(method, server.url(path))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 405, "{path}");
        assert_eq!(answer.headers()["allow"], allow, "{path}");
        let body: serde_json::Value = answer.json().await.unwrap();
        let told = body["detail"]
            .as_str()
            .or(body["exception_message"].as_str());
        assert!(told.unwrap().contains(part), "{body}");
    }
    // Somebody who looks at the WebSocket's address with a browser.
    let answer = server.get("/api/events/in").await;
    assert_eq!(answer.status(), 400);
    let body: serde_json::Value = answer.json().await.unwrap();
    assert!(
        body["detail"].as_str().unwrap().contains("open one"),
        "{body}"
    );
    server.terminate().in_good_order();
}
