//! No secret in anything that is printed, logged or answered, whatever is broken.

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::support::binary::{Folder, Ran};
use super::support::events::event;
use super::support::server::Server;
use super::support::socket;

/// In every secret of these tests, as it is and as a URL has it.
const SECRET: &str = "hunter2";

/// Nothing listens at port 1.
const VARIABLES: [(&str, &str); 4] = [
    (
        "EVENT_PERSISTER_DATABASE_URL",
        "postgresql://ann:hunter2%40@127.0.0.1:1/events?sslmode=disable",
    ),
    (
        "EVENT_PERSISTER_REDIS_URL",
        "redis://bob:hunter2%40@127.0.0.1:1/0",
    ),
    ("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:hunter2@"),
    ("EVENT_PERSISTER_LOG_LEVEL", "trace"),
];

/// The same by the names of Prefect.
const PREFECTS: [(&str, &str); 5] = [
    (
        "PREFECT_SERVER_DATABASE_CONNECTION_URL",
        "postgresql+asyncpg://ann:hunter2%40@127.0.0.1:1/prefect",
    ),
    ("PREFECT_MESSAGING_BROKER", "prefect_redis.messaging"),
    (
        "PREFECT_REDIS_MESSAGING_URL",
        "redis://bob:hunter2%40@127.0.0.1:1/0",
    ),
    ("PREFECT_SERVER_API_AUTH_STRING", "admin:hunter2@"),
    ("EVENT_PERSISTER_LOG_LEVEL", "trace"),
];

#[track_caller]
fn keeps_the_secret(text: &str) {
    let line = text.lines().find(|line| line.contains(SECRET));
    assert_eq!(line, None);
}

fn keep_the_secret(ran: &Ran) {
    keeps_the_secret(&ran.stdout);
    keeps_the_secret(&ran.stderr);
}

#[test]
fn commands_that_reach_neither_redis_nor_the_database_name_no_secret() {
    let folder = Folder::new();
    folder.write("events", event().to_string());
    for variables in [&VARIABLES[..], &PREFECTS] {
        for arguments in [
            &["check"][..],
            &["check", "--json"],
            &["migrate"],
            &["trim", "--dry-run"],
            &["guard", "show"],
            &["verify"],
            &["dead-letters", "list"],
        ] {
            let ran = folder.run_with(arguments, variables);
            assert_ne!(ran.code, Some(0), "{arguments:?}");
            assert!(!ran.stdout.is_empty() || !ran.stderr.is_empty());
            keep_the_secret(&ran);
        }
    }
}

#[test]
fn values_that_are_wrong_are_refused_without_their_secrets() {
    let folder = Folder::new();
    for (name, value) in [
        (
            "EVENT_PERSISTER_DATABASE_URL",
            "postgresql://ann:hunter2@host:port/x",
        ),
        ("EVENT_PERSISTER_DATABASE_URL", "mysql://ann:hunter2@host/x"),
        (
            "EVENT_PERSISTER_DATABASE_URL",
            "postgresql://ann:hunter2@host/x?nonsense=1",
        ),
        (
            "EVENT_PERSISTER_REDIS_URL",
            "redis://bob:hunter2@host:port/0",
        ),
        (
            "EVENT_PERSISTER_REDIS_URL",
            "redis://bob:hunter2@host/0?nonsense=1",
        ),
        ("EVENT_PERSISTER_REDIS_URL", "http://bob:hunter2@host/0"),
        ("EVENT_PERSISTER_REDIS_URL", "hunter2"),
    ] {
        let ran = folder.run_with(&["check"], &[(name, value)]).exits(2);
        keep_the_secret(&ran.complains(&[name]));
    }
}

#[tokio::test]
async fn a_service_that_reaches_nothing_and_is_sent_nonsense_says_no_secret_and_no_payload() {
    let folder = Folder::new();
    let server = Server::start(&folder, &VARIABLES);
    let (status, body) = server.readiness().await;
    assert_eq!(status, 503);
    keeps_the_secret(&body.to_string());
    let right = |body: String| server.post(body).basic_auth("admin", Some("hunter2@"));
    let mut wrong = event();
    wrong["resource"] = json!({"password": SECRET});
    for request in [
        right(format!("[{{\"password\": \"{SECRET}\"")),
        right(json!([wrong]).to_string()),
        server.post("[]").basic_auth("admin", Some("hunter2")),
        server.post("[]").bearer_auth("hunter2@"),
    ] {
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_client_error());
        keeps_the_secret(&answer.text().await.unwrap());
    }
    let mut client = server.connect().await;
    socket::send_auth(&mut client, json!("admin:hunter2")).await;
    keeps_the_secret(&socket::closed(&mut client).await.reason);
    let mut client = server.connect().await;
    socket::authenticate(&mut client, json!("admin:hunter2@")).await;
    let nonsense = Message::text(format!("{SECRET}, which is no event"));
    futures_util::SinkExt::send(&mut client, nonsense)
        .await
        .unwrap();
    drop(client);
    // Both were tried, and in vain.
    server.logged("store");
    server.logged("Redis at 127.0.0.1:1");
    let ended = server.terminate();
    keeps_the_secret(&ended.log);
}
