//! What those who read may cost: memory, and the time of others.

use std::ops::Range;
use std::time::Duration;

use event_persister_actors::clock::{Clock as _, SystemClock};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::support::binary::Folder;
use super::support::server::Server;
use super::support::socket::{self, Socket};

const MIB: usize = 1 << 20;

fn large(number: usize, num_bytes: usize) -> Value {
    json!({
        "id": uuid::Uuid::from_u128(number as u128 + 1), "event": "large",
        "occurred": format!("2026-01-01T00:{:02}:{:02}Z", number / 60, number % 60),
        "resource": { "prefect.resource.id": format!("large.{number}") },
        "payload": { "text": "x".repeat(num_bytes) },
    })
}

/// All pages of everything that ever was, by HTTP; how many events each has.
async fn pages(server: &Server) -> Vec<usize> {
    let client = crate::support::client::client();
    let all = json!({ "filter": { "occurred": { "since": "2020-01-01T00:00:00Z" } } });
    let mut request = client.post(server.url("/api/events/filter")).json(&all);
    let mut lengths = Vec::new();
    loop {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let page: Value = answer.json().await.unwrap();
        lengths.push(page["events"].as_array().unwrap().len());
        let Some(next) = page["next_page"].as_str() else {
            return lengths;
        };
        request = client.get(next);
    }
}

#[tokio::test]
async fn pages_of_large_events_take_little_memory() {
    const NUM: usize = 60;
    let folder = Folder::new();
    let events: Vec<_> = (0..NUM)
        .map(|number| large(number, MIB).to_string())
        .collect();
    folder.write("events.jsonl", events.join("\n"));
    folder.run(&["import", "events.jsonl"]).exits(0);
    let server = Server::start(&folder, &[]).ready().await;
    let before = server.memory();
    let all = join_all((0..6).map(|_| pages(&server))).await;
    for lengths in all {
        assert_eq!(lengths.iter().sum::<usize>(), NUM);
        assert!(lengths.iter().all(|length| *length <= 4), "{lengths:?}");
    }
    // Rows and their JSON of two answers, 16 MiB of answers that are being sent, and what SQLite keeps.
    let grown = server.peak_memory() - before;
    assert!(grown < 72, "{grown} MiB more than {before}");
}

#[tokio::test]
async fn a_large_dead_letter_is_shown_in_little_memory() {
    const NUM_BYTES: usize = 32 * MIB;
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let mut socket = socket::connect(server.address(), Some("prefect"))
        .await
        .unwrap();
    socket::authenticate(&mut socket, Value::Null).await;
    socket::send(&mut socket, Message::text("x".repeat(NUM_BYTES))).await;
    socket::ping(&mut socket, "now").await;
    drop(server);
    // Another one, which has not had it in memory yet.
    let server = Server::start(&folder, &[]).ready().await;
    let before = server.memory();
    let client = crate::support::client::client();
    let shown = (0..16).map(|_| client.get(server.url("/api/dead-letters/1")).send());
    for answer in join_all(shown).await {
        let letter: Value = answer.unwrap().json().await.unwrap();
        assert_eq!(letter["bytes"], NUM_BYTES);
        assert_eq!(letter["message"]["is_cut"], true);
    }
    let grown = server.peak_memory() - before;
    assert!(grown < 120, "{grown} MiB more than {before}");
}

async fn subscribed(server: &Server, wants: Value) -> Socket {
    let connected = socket::connect_to(server.address(), "/api/events/out", Some("prefect"), &[]);
    let mut socket = connected.await.unwrap();
    socket::authenticate(&mut socket, Value::Null).await;
    let mut filter = json!({ "type": "filter", "backfill": false, "filter": {} });
    for (key, value) in wants.as_object().unwrap() {
        filter[key] = value.clone();
    }
    socket::send(&mut socket, filter.to_string().into()).await;
    socket::ping(&mut socket, "now").await;
    socket
}

async fn next_text(subscriber: &mut Socket) -> String {
    loop {
        // Pings come between.
        if let Message::Text(text) = socket::next(subscriber).await {
            return text.to_string();
        }
    }
}

/// A client that looks back.
async fn looking_back(server: &Server) -> Socket {
    let connected = socket::connect_to(server.address(), "/api/events/out", Some("prefect"), &[]);
    let mut socket = connected.await.unwrap();
    socket::authenticate(&mut socket, Value::Null).await;
    socket::send(&mut socket, r#"{"type":"filter","filter":{}}"#.into()).await;
    socket
}

/// More than is kept, and than fits into the buffers of two sockets.
const NUM_FAST: usize = 200;

/// A client that reads nothing for longer is cut off.
const PATIENT: (&str, &str) = ("EVENT_PERSISTER_HTTP_REQUEST_TIMEOUT", "10m");

async fn send_too_many(server: &Server) {
    send_large(server, 0..NUM_FAST).await;
}

async fn send_large(server: &Server, numbers: Range<usize>) {
    for first in numbers.step_by(10) {
        let mut events: Vec<_> = (first..first + 10)
            .map(|number| large(number, MIB / 8))
            .collect();
        for event in &mut events {
            event["occurred"] = json!(SystemClock.now());
        }
        assert_eq!(server.post_status(json!(events).to_string()).await, 204);
    }
}

#[tokio::test]
async fn a_subscriber_that_cannot_keep_up_is_told_how_many_it_missed() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[PATIENT]).ready().await;
    let mut subscriber = subscribed(&server, json!({ "missed": true })).await;
    send_too_many(&server).await;
    let (mut told, mut missed) = (0, 0);
    while told + missed < NUM_FAST as u64 {
        let message: Value = serde_json::from_str(&next_text(&mut subscriber).await).unwrap();
        match message["type"].as_str() {
            Some("event") => told += 1,
            Some("missed") => missed += message["count"].as_u64().unwrap(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told + missed, NUM_FAST as u64);
    assert!(missed > 0 && told > 0, "{told} {missed}");
    // It goes on.
    let mut last = large(NUM_FAST, 1);
    last["occurred"] = json!(SystemClock.now());
    assert_eq!(server.post_status(json!([last]).to_string()).await, 204);
    assert!(next_text(&mut subscriber).await.contains("large.200"));
}

/// Those who do not read hold a few pieces each, of what is told live and of what they look back for.
#[tokio::test]
async fn subscribers_that_do_not_read_take_little_memory() {
    const NUM: usize = 60;
    let folder = Folder::new();
    let server = Server::start(&folder, &[PATIENT]).ready().await;
    let mut subscribers = Vec::new();
    for _ in 0..NUM {
        subscribers.push(subscribed(&server, json!({})).await);
    }
    let mut subscriber = subscribed(&server, json!({})).await;
    let before = server.memory();
    for number in 0..6 {
        let mut event = large(number, 2 * MIB);
        event["occurred"] = json!(SystemClock.now());
        assert_eq!(server.post_status(json!([event]).to_string()).await, 204);
        // Events are large, and nothing of them is lost in their frames.
        let told: Value = serde_json::from_str(&next_text(&mut subscriber).await).unwrap();
        assert_eq!(told["event"]["payload"], event["payload"]);
    }
    for _ in 0..NUM {
        subscribers.push(looking_back(&server).await);
    }
    // One of them that reads has its turn.
    let mut reads = looking_back(&server).await;
    let first = next_text(&mut reads).await;
    assert!(first.contains(r#""large.0""#));
    // What is kept, pages, pieces, and what a body of 2 MiB takes on its way in; each for each would be 720 MiB.
    let grown = server.peak_memory() - before;
    assert!(grown < 150, "{grown} MiB more than {before}");
}

#[tokio::test]
async fn a_subscriber_is_told_no_more_than_it_asks_for() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let mut subscriber = subscribed(&server, json!({ "missed": true, "at_most": 20 })).await;
    let sent: Vec<_> = (0..100)
        .map(|number| {
            let mut event = large(number, 1);
            event["occurred"] = json!(SystemClock.now());
            event
        })
        .collect();
    assert_eq!(server.post_status(json!(sent).to_string()).await, 204);
    let mut told = Vec::new();
    let mut missed = 0;
    while told.len() as u64 + missed < 100 {
        let message: Value = serde_json::from_str(&next_text(&mut subscriber).await).unwrap();
        match message["type"].as_str() {
            Some("event") => told.push(message["event"]["resource"]["prefect.resource.id"].clone()),
            _ => missed += message["count"].as_u64().unwrap(),
        }
    }
    // The first of this second, and of the next the newest. They may have been committed in two pieces.
    assert_eq!(told.len() as u64 + missed, 100);
    assert!((20..=60).contains(&missed), "{missed}");
    assert_eq!(told[0], "large.0");
    assert_eq!(told.last().unwrap(), "large.99");
}

#[tokio::test]
async fn a_subscriber_that_knows_no_such_message_is_sent_away_to_look_back() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[PATIENT]).ready().await;
    let mut subscriber = subscribed(&server, json!({})).await;
    send_too_many(&server).await;
    let mut told = 0;
    let closed = loop {
        match socket::next(&mut subscriber).await {
            Message::Text(text) => {
                assert!(text.starts_with(r#"{"type":"event""#));
                told += 1;
            }
            Message::Close(frame) => break frame.unwrap(),
            _ => {}
        }
    };
    assert_eq!(u16::from(closed.code), 1013);
    assert!(closed.reason.contains("were missed"), "{}", closed.reason);
    assert!(told < NUM_FAST);
}

/// Prefect's client looks back each time that it was sent away.
#[tokio::test]
async fn a_subscriber_is_told_all_though_more_comes_than_is_kept_while_it_looks_back() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[PATIENT]).ready().await;
    send_large(&server, 0..NUM_FAST).await;
    let mut subscriber = looking_back(&server).await;
    let mut told = vec![next_text(&mut subscriber).await];
    // It reads no more until these are there.
    const NUM: usize = NUM_FAST + 100;
    send_large(&server, NUM_FAST..NUM).await;
    while told.len() < NUM {
        told.push(next_text(&mut subscriber).await);
    }
    send_large(&server, NUM..NUM + 10).await;
    while told.len() < NUM + 10 {
        told.push(next_text(&mut subscriber).await);
    }
    for (number, told) in told.iter().enumerate() {
        assert!(told.contains(&format!(r#""large.{number}""#)), "{number}");
    }
}

#[tokio::test]
async fn a_ping_is_answered_while_a_subscriber_looks_back() {
    const NUM: usize = NUM_FAST;
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    // More than its socket holds.
    send_large(&server, 0..NUM).await;
    let mut subscriber = looking_back(&server).await;
    socket::send_ping(&mut subscriber, "now").await;
    let mut num_told = 0;
    while socket::next(&mut subscriber).await != Message::Pong("now".into()) {
        num_told += 1;
    }
    assert!(num_told < NUM, "it had to wait for all of them");
}

/// Puts a view in the place of the table of resources that asks this for each row, and so is never read to its end.
async fn gives_up(server: &Server, endless: &str, execute: impl Fn(&str)) {
    let mut event = large(0, 1);
    event["occurred"] = json!(SystemClock.now());
    assert_eq!(server.post_status(json!([event]).to_string()).await, 204);
    execute(&format!(
        "ALTER TABLE event_resources RENAME TO table_of_resources; \
         CREATE VIEW event_resources AS SELECT * FROM table_of_resources WHERE ({endless}) = 1"
    ));
    let filter = json!({ "filter": { "any_resource": { "id": ["large.0"] } } });
    let client = crate::support::client::client();
    let asked = client.post(server.url("/api/events/filter")).json(&filter);
    let answer = asked.send().await.unwrap();
    assert_eq!(answer.status(), 504);
    assert!(!answer.headers().contains_key("retry-after"));
    let said: Value = answer.json().await.unwrap();
    assert_eq!(
        said["exception_message"],
        "the database took longer than 10 s to find that; ask for a shorter time or for less"
    );
    execute("DROP VIEW event_resources; ALTER TABLE table_of_resources RENAME TO event_resources");
    // Nobody has suffered.
    let again = client.post(server.url("/api/events/filter")).json(&filter);
    let again = again.timeout(Duration::from_secs(10)).send().await.unwrap();
    assert_eq!(again.status(), 200);
}

#[tokio::test]
async fn a_question_that_takes_sqlite_too_long_is_given_up() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let endless =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT 1 FROM n) SELECT count(*) FROM n";
    gives_up(&server, endless, |sql| server.database().execute(sql)).await;
}

#[cfg(feature = "service-tests")]
#[tokio::test]
async fn a_question_that_takes_postgresql_too_long_is_given_up() {
    let database = super::support::postgres::Server::shared().database();
    let folder = Folder::new();
    let url = ("EVENT_PERSISTER_DATABASE_URL", database.url.as_str());
    folder.run_with(&["migrate"], &[url]).exits(0);
    let server = Server::start(&folder, &[url]).ready().await;
    let endless = "SELECT count(*) FROM pg_sleep(30)";
    gives_up(&server, endless, |sql| drop(database.execute(sql))).await;
}
