//! Replicas agree on the primary of their database.

use std::time::Duration;

use event_persister_actors::primary::Primary;
use event_persister_actors::source::EventSource as _;
use event_persister_actors::source::redis::RedisSettings;

use super::{acknowledge, numbered, raws, read_num, source, until};
use crate::support::redis::{RedisServer, TestStream};

fn on(stream: &TestStream, system: u64, timeline: u32) -> RedisSettings {
    let settings = stream.settings();
    let met = settings.primary.meet(Primary { system, timeline });
    met.unwrap();
    settings
}

fn record(system: u64, timeline: u32) -> String {
    format!("event-persister-primary:{system}:{timeline}")
}

#[actix_web::test]
async fn nothing_is_acknowledged_that_may_be_on_the_old_one_alone() {
    let server = RedisServer::start();
    let stream = server.stream();
    let settings = on(&stream, 7, 9);
    let known = settings.primary.clone();
    let old = source(settings);
    stream.publish(&numbered(0..5));
    let messages = read_num(&old, 5).await;
    acknowledge(&old, &messages[..2]).await;
    assert_eq!(stream.num_pending(), 3);
    // It counts for nothing where others trim.
    assert_eq!(stream.last_delivered(&record(7, 9)).unwrap(), "0-0");
    let settings = on(&stream, 7, 10);
    let new = source(settings);
    let joined = new.read(super::WIDE).await.unwrap();
    assert!(joined.messages.is_empty());
    assert!(stream.last_delivered(&record(7, 10)).is_some());
    assert!(stream.last_delivered(&record(7, 9)).is_none());
    acknowledge(&old, &messages[2..]).await;
    assert_eq!(stream.num_pending(), 3);
    let latest = Primary {
        system: 7,
        timeline: 10,
    };
    assert_eq!(known.get(), Some(latest));
    let again = read_num(&old, 3).await;
    assert_eq!(raws(&again), numbered(2..5));
    acknowledge(&old, &again).await;
    assert_eq!(stream.num_pending(), 0);
}

#[actix_web::test]
async fn the_keeper_hears_of_it_although_nothing_is_read() {
    let server = RedisServer::start();
    let stream = server.stream();
    let settings = on(&stream, 7, 1);
    let known = settings.primary.clone();
    let old = source(settings);
    stream.publish(&numbered(0..1));
    let _held = read_num(&old, 1).await;
    let made: String = stream.command(&format!("XGROUP CREATE events {} 0-0", record(7, 2)));
    assert_eq!(made, "OK");
    until("heard of", || known.get().unwrap().timeline == 2).await;
    until("one record is left", || {
        stream.last_delivered(&record(7, 1)).is_none()
    })
    .await;
}

#[actix_web::test]
async fn a_database_of_another_system_is_not_agreed_on() {
    let server = RedisServer::start();
    let stream = server.stream();
    let first = source(on(&stream, 7, 3));
    assert!(first.read(super::WIDE).await.unwrap().messages.is_empty());
    let settings = on(&stream, 8, 9);
    let known = settings.primary.clone();
    let other = source(settings);
    assert!(other.read(super::WIDE).await.unwrap().messages.is_empty());
    assert_eq!(known.get().unwrap().system, 7);
    let block = stream.settings().block;
    tokio::time::sleep(block + Duration::from_secs(1)).await;
    assert!(stream.last_delivered(&record(7, 3)).is_some());
    assert!(stream.last_delivered(&record(8, 9)).is_none());
}
