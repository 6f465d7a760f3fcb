//! The clock of Redis is set: what the dead leave is found all the same, and nobody who lives is robbed.

use std::collections::BTreeSet;
use std::time::Duration;

use event_persister_actors::source::EventSource as _;
use event_persister_actors::source::redis::RedisSettings;
use tokio::time::{Instant, timeout};

use super::{WIDE, acknowledge, numbered, raws, read_num, source};
use crate::support::redis::{RedisServer, ServerOptions, TestStream};

const CLAIM_IDLE: Duration = Duration::from_secs(6);

fn settings(stream: &TestStream) -> RedisSettings {
    RedisSettings {
        claim_idle: CLAIM_IDLE,
        heartbeat_every: Duration::from_secs(1),
        ..stream.settings()
    }
}

/// Three replicas: one holds what it was given, one has died, and one looks what is left.
async fn is_claimed_in_time(step: i64) {
    let server = RedisServer::start_with(ServerOptions {
        own_clock: true,
        ..ServerOptions::default()
    });
    let stream = server.stream();
    let [live, dead, heir] = [(); 3].map(|()| source(settings(&stream)));
    stream.publish(&numbered(0..20));
    let held = read_num(&live, 20).await;
    stream.publish(&numbered(20..50));
    let left = raws(&read_num(&dead, 30).await);
    // It has looked at both while they lived.
    let looked = timeout(Duration::from_secs(2), read_num(&heir, 1)).await;
    assert!(looked.is_err(), "taken from the living");
    drop(dead);
    let died = Instant::now();
    server.set_clock(step);
    let taken = raws(&read_num(&heir, 30).await);
    let limit = CLAIM_IDLE + Duration::from_secs(10);
    assert!(died.elapsed() < limit, "{:?}", died.elapsed());
    let sorted = |texts: Vec<String>| texts.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(sorted(taken), sorted(left));
    let more = timeout(2 * CLAIM_IDLE, read_num(&heir, 1)).await;
    assert!(more.is_err(), "taken from the living");
    acknowledge(&live, &held).await;
    live.close().await.unwrap();
    assert_eq!(stream.num_pending(), 30, "those of the heir");
    assert!(heir.read(WIDE).await.unwrap().messages.is_empty());
}

#[actix_web::test]
async fn a_minute_back() {
    is_claimed_in_time(-60).await;
}

#[actix_web::test]
async fn an_hour_back() {
    is_claimed_in_time(-3600).await;
}

#[actix_web::test]
async fn a_minute_forward() {
    is_claimed_in_time(60).await;
}

#[actix_web::test]
async fn an_hour_forward() {
    is_claimed_in_time(3600).await;
}
