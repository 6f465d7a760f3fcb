//! An outage is one line at its beginning and one at its end, however often is tried meanwhile.

use std::cell::RefCell;

use serde_json::{Value, json};

use super::scrape::Numbers;
use crate::support::bus::{Bus, Publisher};
use crate::support::events::event_with;
use crate::support::postgres;
use crate::support::redis::ServerOptions;
use crate::support::server::Server;

/// Failures that there must have been before the outage ends: each could have been a line.
const ENOUGH_FAILURES: f64 = 8.0;
/// Warnings and errors that an outage may cost: each part that notices it may say so, once.
const A_HANDFUL: usize = 3;

/// What stands in an event's payload.
const PAYLOAD: &str = "nobody-may-read-this";
const PASSWORD: &str = "nobody-may-know-this";

async fn until_tried_often(server: &Server, kind: &str) {
    let asked = RefCell::default();
    let numbers = Numbers {
        server,
        asked: &asked,
    };
    let name = format!("retries_total{{kind=\"{kind}\"}}");
    let often = |failures| failures >= ENOUGH_FAILURES;
    numbers.until(&name, often).await;
}

/// What is said of messages that became dead letters.
const REFUSED: &str = "messages were refused and are kept as dead letters";

/// The warnings and errors but that one, whatever the format.
fn complaints(log: &str) -> Vec<&str> {
    let is_one = |line: &&str| {
        ["WARN", "ERROR"].iter().any(|level| {
            line.contains(&format!(" {level} ")) || line.contains(&format!("\"level\":\"{level}\""))
        })
    };
    let of_the_outage = |line: &&str| !line.contains(REFUSED);
    log.lines().filter(is_one).filter(of_the_outage).collect()
}

#[track_caller]
fn has_one_line_at_the_end(log: &str, what: &str) {
    let ends: Vec<_> = log
        .lines()
        .filter(|line| line.contains(" is back ") || line.contains(" again "))
        .collect();
    assert_eq!(ends.len(), 1, "{ends:?}\n{log}");
    assert!(ends[0].contains(what), "{ends:?}");
    let (_, failures) = ends[0].split_once("failures=").unwrap();
    let digits: String = failures
        .chars()
        .take_while(|c| c.is_ascii_digit())
        .collect();
    assert!(
        digits.parse::<f64>().unwrap() >= ENOUGH_FAILURES,
        "{ends:?}"
    );
}

#[track_caller]
fn has_a_handful_of_complaints(log: &str, about: &str) {
    let complaints = complaints(log);
    assert!(!complaints.is_empty(), "{log}");
    assert!(complaints.len() <= A_HANDFUL, "{complaints:#?}");
    assert!(complaints[0].contains(about), "{complaints:#?}");
}

fn publish_a_payload(bus: &Bus) {
    let mut event = event_with(1);
    event["payload"] = json!({ "text": PAYLOAD });
    let mut wrong = event.clone();
    wrong["resource"] = json!({});
    bus.stream.publish(&[event.to_string(), wrong.to_string()]);
}

#[tokio::test]
async fn an_outage_of_the_database_is_two_lines() {
    let postgres = postgres::Server::start("fsync = off\n");
    let database = postgres.database();
    let bus = Bus::into_postgres(&database);
    let server = bus.start().ready().await;
    let publisher = Publisher::start(&bus.stream, 1);
    publish_a_payload(&bus);
    assert_eq!(complaints(&server.log()), [""; 0]);
    postgres.stop("fast");
    until_tried_often(&server, "unavailable").await;
    assert_eq!(server.readiness().await.0, 503);
    postgres.start_again();
    server.until_ready_is(200).await;
    publisher.stop();
    bus.until_settled(&server).await;
    let log = server.terminate().in_good_order().log;
    has_a_handful_of_complaints(&log, "127.0.0.1");
    has_one_line_at_the_end(&log, "the store is back");
    assert!(!log.contains(PAYLOAD), "{log}");
    assert_eq!(log.matches(REFUSED).count(), 1, "{log}");
    let started: Vec<_> = log.lines().filter(|l| l.contains(" started ")).collect();
    let [started] = started[..] else {
        panic!("{started:?}");
    };
    for part in [
        concat!("event-persister ", env!("CARGO_PKG_VERSION")),
        "sources=redis,http",
        "store=postgresql://",
        "writers=2",
        "guard=on",
    ] {
        assert!(started.contains(part), "{part}: {started}");
    }
}

#[tokio::test]
async fn an_outage_of_redis_is_two_lines_for_machines_too() {
    let mut bus = Bus::of(ServerOptions {
        durable: true,
        password: Some(PASSWORD.to_owned()),
        ..ServerOptions::default()
    });
    bus.set("EVENT_PERSISTER_LOG_FORMAT", "json");
    let server = bus.start().ready().await;
    publish_a_payload(&bus);
    bus.until_settled(&server).await;
    assert_eq!(complaints(&server.log()), [""; 0]);
    bus.redis.kill();
    until_tried_often(&server, "read").await;
    bus.redis.launch();
    server.until_ready_is(200).await;
    publish_a_payload(&bus);
    bus.until_settled(&server).await;
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    let log = ended.log;
    has_a_handful_of_complaints(&log, "Redis at 127.0.0.1");
    has_one_line_at_the_end(&log, "the source is back");
    for secret in [PAYLOAD, PASSWORD] {
        assert!(!log.contains(secret), "{log}");
    }
    for line in log.lines() {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for field in ["timestamp", "level", "target", "message"] {
            assert!(object[field].is_string(), "{field}: {line}");
        }
    }
}

#[tokio::test]
async fn a_service_that_read_nothing_speaks_of_no_pending_entries() {
    let bus = Bus::into_sqlite();
    let server = bus.start().ready().await;
    let log = server.terminate().in_good_order().log;
    assert!(!log.contains("stay pending"), "{log}");
}
