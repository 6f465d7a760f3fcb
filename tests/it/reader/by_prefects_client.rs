//! Prefect's own client in Python, against a service: `PREFECT_PYTHON` is the Python of an environment with Prefect 3.9.

use std::process::Command;

use chrono::TimeDelta;
use event_persister_actors::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

use crate::support::binary::{Folder, Ran};
use crate::support::server::Server;

#[tokio::test]
async fn it_reads_counts_and_is_told() {
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let Some(python) = std::env::var_os("PREFECT_PYTHON") else {
        eprintln!("skipped: PREFECT_PYTHON names no Python with Prefect");
        return;
    };
    let folder = Folder::new();
    let auth = ("EVENT_PERSISTER_HTTP_AUTH_STRING", "ada:hush");
    let server = Server::start(&folder, &[auth]);
    let event = |number: u32| {
        json!({
            "id": uuid::Uuid::from_u128(number.into()),
            "occurred": SystemClock.now() - TimeDelta::minutes(30 - i64::from(number)),
            "event": if number.is_multiple_of(2) { "even" } else { "odd" },
            "resource": { "prefect.resource.id": format!("number.{number}") },
            "payload": { "number": number },
        })
    };
    let events: Vec<_> = (0..24).map(event).collect();
    let sent = server.post(json!(events).to_string());
    let sent = sent.basic_auth("ada", Some("hush")).send().await.unwrap();
    assert_eq!(sent.status(), 204);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/filters/client.py");
    let mut command = Command::new(python);
    command
        .arg(script)
        .env_clear()
        .env("PREFECT_HOME", folder.path().join("prefect"))
        .env("PREFECT_API_URL", server.url("/api"))
        .env("PREFECT_API_AUTH_STRING", "ada:hush")
        .env("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        .env("PREFECT_LOGGING_LEVEL", "CRITICAL")
        .env("DO_NOT_TRACK", "1");
    let output = tokio::task::spawn_blocking(move || command.output());
    let found = Ran::new(output.await.unwrap().unwrap()).exits(0).json();
    let ids: Vec<_> = (0..24)
        .step_by(2)
        .map(|number| json!(uuid::Uuid::from_u128(number)))
        .collect();
    let pages: Vec<_> = ids.chunks(5).map(|page| json!(page)).collect();
    assert_eq!(found["pages"], json!(pages));
    assert_eq!(
        (&found["total"], &found["counts"], &found["payload"]),
        (
            &json!(12),
            &json!([12, 12, 12, 12]),
            &json!({ "number": 0 })
        )
    );
    let mut told: Vec<Value> = found["told"].as_array().unwrap().clone();
    told.sort_by_key(|told| told[1].as_u64());
    let expected: Vec<_> = (0..20).map(|number| json!(["told", number])).collect();
    assert_eq!(told, expected);
}
