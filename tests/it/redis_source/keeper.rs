//! What is done beside the reads: one duty that fails keeps no other from its turn.

use std::time::Duration;

use event_persister_actors::source::EventSource as _;
use event_persister_actors::source::redis::RedisSettings;

use super::{acknowledge, numbered, read_num, source, until, until_the_guard_is_at};
use crate::support::logs;
use crate::support::redis::{RedisServer, TestStream};

/// Settings of a user who may do everything but one command.
fn without(stream: &TestStream, forbidden: &str) -> RedisSettings {
    stream.command::<()>(&format!(
        "ACL SETUSER half on >half ~* &* +@all -{forbidden}"
    ));
    let settings = stream.settings();
    RedisSettings {
        url: format!("redis://half:half@{}", stream.server())
            .parse()
            .unwrap(),
        heartbeat_every: Duration::from_millis(100),
        ..settings
    }
}

#[actix_web::test]
async fn the_guard_is_moved_although_nothing_can_be_kept() {
    let server = RedisServer::start();
    let stream = server.stream();
    logs::capture();
    let source = source(without(&stream, "xclaim"));
    let ids = stream.publish(&numbered(0..10));
    let held = read_num(&source, 10).await;
    until_the_guard_is_at(&stream, &ids[0]).await;
    until("it is said", || {
        logs::has(&["keeping what is held failed", &stream.server()])
    })
    .await;
    // Another millisecond: the guard does not tell apart what is within one.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let last = stream.publish(&numbered(10..11)).remove(0);
    let more = read_num(&source, 1).await;
    acknowledge(&source, &held).await;
    until_the_guard_is_at(&stream, &last).await;
    acknowledge(&source, &more).await;
    assert_eq!(source.warnings(), Vec::<String>::new());
}

#[actix_web::test]
async fn the_stream_is_watched_although_the_guard_cannot_be_moved() {
    let server = RedisServer::start();
    let stream = server.stream();
    if !stream.counts_entries() {
        return; // Nor does it tell apart the forms of a command.
    }
    logs::capture();
    let source = source(without(&stream, "xgroup|setid"));
    stream.command::<()>("XGROUP CREATE events event-persister 0-1 MKSTREAM ENTRIESREAD 0");
    let ids = stream.publish(&numbered(0..10));
    let held = read_num(&source, 10).await;
    // What may not be set is counted by Redis itself.
    assert_eq!(stream.entries_read("event-persister"), Some(10));
    until("it is said", || {
        logs::has(&["moving the trim guard failed", &stream.server()])
    })
    .await;
    let oldest = ids[0].split_once('-').unwrap().0.parse().ok();
    until("the oldest is known", || {
        source.stats().status().oldest_millis == oldest
    })
    .await;
    acknowledge(&source, &held).await;
    until("nothing is left", || {
        source.stats().status().oldest_millis.is_none()
    })
    .await;
}

#[actix_web::test]
async fn a_stream_that_is_too_long_is_told_of() {
    let server = RedisServer::start();
    let stream = server.stream();
    let source = source(RedisSettings {
        guard_max_entries: std::num::NonZeroU64::new(10).unwrap(),
        ..stream.settings()
    });
    stream.publish(&numbered(0..20));
    read_num(&source, 20).await;
    until("it is told of", || {
        source.warnings().iter().any(|w| w.contains("20 entries"))
    })
    .await;
    stream.command::<u64>("XTRIM events MAXLEN 5");
    until("it is over", || source.warnings().is_empty()).await;
}
