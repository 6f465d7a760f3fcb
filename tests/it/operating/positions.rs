//! A group or a guard that somebody set ahead of the stream: told everywhere, with the way back, on
//! which nothing is lost.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::Value;

use super::scrape::Numbers;
use crate::support::binary::Ran;
use crate::support::bus::Bus;
use crate::support::events::{events, ids, texts};
use crate::support::server::Server;

const GROUP: &str = "event-persister";
const FAR: &str = "99999999999999-0";

/// A replica that has written some events, and their ids.
async fn settled(bus: &Bus) -> (Server, Vec<String>) {
    let server = bus.start().ready().await;
    let published = publish(bus, 5);
    bus.until_settled(&server).await;
    (server, published)
}

fn publish(bus: &Bus, num: usize) -> Vec<String> {
    let events = events(num);
    bus.stream.publish(&texts(&events));
    ids(&events)
}

fn set(bus: &Bus, id: &str) {
    let _: redis::Value = bus
        .stream
        .command(&format!("XGROUP SETID events {GROUP} {id}"));
}

fn run(bus: &Bus, arguments: &[&str]) -> Ran {
    bus.folder.run_with(arguments, &bus.variables())
}

/// What a remedy says to run.
fn command_in(text: &str) -> &str {
    let (_, rest) = text.split_once("`redis-cli ").unwrap();
    rest.split('`').next().unwrap()
}

/// Why it is not ready, once that is so.
async fn reason_with(server: &Server, part: &str) -> String {
    let reason = |body: &Value| body["reason"].as_str().unwrap_or_default().to_owned();
    let body = server
        .until_readiness(|_, body| reason(body).contains(part))
        .await;
    reason(&body)
}

fn stored(server: &Server) -> BTreeSet<String> {
    server.database().complete_events()
}

fn lines_with<'a>(log: &'a str, part: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(part)).collect()
}

#[tokio::test]
async fn a_group_ahead_of_its_stream_is_told_everywhere_and_the_way_back_loses_nothing() {
    let bus = Bus::into_sqlite();
    let (server, mut published) = settled(&bus).await;
    set(&bus, FAR);
    published.extend(publish(&bus, 20));
    let status = server.until_ready_is(503).await;
    let reason = status["reason"].as_str().unwrap();
    let wrong = format!("stands at {FAR}, ahead of the stream's last id");
    assert!(reason.contains(&wrong), "{reason}");
    let remedy = command_in(reason);

    // Others trim nothing of it meanwhile.
    bus.trim_as_prefect_does();
    let asked = RefCell::default();
    let numbers = Numbers {
        server: &server,
        asked: &asked,
    };
    numbers.until("redis_lag_seconds", |lag| lag > 0.0).await;
    numbers
        .are(&[("redis_lost_total", 0.0), ("ready", 0.0)])
        .await;

    let checked = run(&bus, &["check", "--json"]).exits(1).json();
    let findings = checked["findings"].as_array().unwrap();
    let of_group = findings.iter().find(|found| found["id"] == "redis.group");
    assert!(
        of_group.unwrap()["remedy"]
            .as_str()
            .unwrap()
            .contains(remedy)
    );
    run(&bus, &["guard", "show"])
        .exits(0)
        .prints(&[&wrong, remedy]);
    run(&bus, &["verify"]).exits(1).prints(&[&wrong, remedy]);
    assert_eq!(stored(&server).len(), 5);

    let _: redis::Value = bus.stream.command(remedy);
    server.until_ready_is(200).await;
    bus.until_settled(&server).await;
    assert_eq!(stored(&server), published.into_iter().collect());
    run(&bus, &["verify"]).exits(0).prints(&["all is well"]);
    numbers.are(&[("redis_lost_total", 0.0)]).await;
    let log = server.terminate().in_good_order().log;
    assert_eq!(lines_with(&log, &wrong).len(), 1, "{log}");
    assert_eq!(lines_with(&log, "the source is back").len(), 1, "{log}");
}

#[tokio::test]
async fn a_start_on_a_group_that_is_ahead_reads_nothing_and_says_why() {
    let bus = Bus::into_sqlite();
    let (server, mut published) = settled(&bus).await;
    server.terminate().in_good_order();
    set(&bus, FAR);
    published.extend(publish(&bus, 3));
    let server = bus.start();
    let reason = reason_with(&server, "ahead of the stream's last id").await;
    let _: redis::Value = bus.stream.command(command_in(&reason));
    server.until_ready_is(200).await;
    bus.until_settled(&server).await;
    assert_eq!(stored(&server), published.into_iter().collect());
}

#[tokio::test]
async fn ids_that_reach_the_group_do_not_hide_what_was_passed_over() {
    let bus = Bus::into_sqlite();
    let (server, published) = settled(&bus).await;
    let last = bus.last_id();
    let millis: u64 = last.split_once('-').unwrap().0.parse().unwrap();
    let later = millis + 3_600_000;
    set(&bus, &format!("{later}-0"));
    publish(&bus, 7);
    server.until_ready_is(503).await;
    // As an hour later.
    for number in 1..4 {
        let _: String = bus
            .stream
            .command(&format!("XADD events {later}-{number} data {{}}"));
    }
    let reason = reason_with(&server, "have reached it meanwhile").await;
    bus.trim_as_prefect_does();
    // Somebody decides to go on from here all the same.
    set(&bus, "$");
    server.until_ready_is(200).await;
    let asked = RefCell::default();
    let numbers = Numbers {
        server: &server,
        asked: &asked,
    };
    numbers.are(&[("redis_lost_total", 10.0)]).await;
    let told = server.logged("events were passed over");
    assert!(told.contains("num_lost=10"), "{told}");
    assert_eq!(stored(&server), published.into_iter().collect());
    // Or thinks better of it.
    let _: redis::Value = bus.stream.command(command_in(&reason));
    server
        .until("all stored", || stored(&server).len() >= 12)
        .await;
}

#[tokio::test]
async fn a_source_that_never_came_back_is_not_said_to_be_back_at_the_end() {
    let mut bus = Bus::into_sqlite();
    let (server, _) = settled(&bus).await;
    bus.redis.kill();
    server.until_ready_is(503).await;
    let log = server.terminate().in_good_order().log;
    assert!(!log.contains("is back"), "{log}");
}
