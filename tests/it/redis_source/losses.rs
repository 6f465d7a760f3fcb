//! What was trimmed unread is counted, and nothing else, also after Redis was killed.

use event_persister_actors::source::redis::{RedisSettings, RedisSource};
use redis::Value;

use super::{GROUP, consume_all, join, numbered, source, until};
use crate::support::redis::{RedisServer, ServerOptions, TestStream};

/// A server that knows after a kill what it knew before, as far as Redis writes it down.
fn durable() -> RedisServer {
    RedisServer::start_with(ServerOptions {
        durable: true,
        ..ServerOptions::default()
    })
}

/// Without a guard, so that nothing else sets a group.
fn unguarded(stream: &TestStream) -> RedisSource {
    source(RedisSettings {
        guard: false,
        ..stream.settings()
    })
}

fn kill_and_launch(server: &mut RedisServer) {
    server.kill();
    server.launch();
}

/// How often a group was set.
fn num_set(stream: &TestStream) -> u64 {
    let stats: String = stream.command("INFO commandstats");
    let calls = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_xgroup|setid:calls="));
    let calls = calls.and_then(|calls| calls.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

async fn loses_ten_of_thirty(stream: &TestStream) {
    stream.publish(&numbered(1000..1010));
    stream.command::<u64>("XTRIM events MAXLEN 0");
    let last = numbered(1010..1030);
    stream.publish(&last);
    let second = unguarded(stream);
    consume_all(&second, &last).await;
    assert_eq!(second.stats().status().num_lost, 10);
}

#[actix_web::test]
async fn what_was_read_before_a_kill_of_the_server_is_not_counted() {
    let mut server = durable();
    let stream = server.stream();
    if !stream.counts_entries() {
        return;
    }
    let first = unguarded(&stream);
    let events = numbered(0..119);
    stream.publish(&events);
    consume_all(&first, &events).await;
    drop(first);
    kill_and_launch(&mut server);
    assert_eq!(stream.entries_read(GROUP), Some(119));
    loses_ten_of_thirty(&stream).await;
}

#[actix_web::test]
async fn what_was_read_one_by_one_before_a_kill_of_the_server_is_not_counted() {
    let mut server = durable();
    let stream = server.stream();
    if !stream.counts_entries() {
        return;
    }
    let first = unguarded(&stream);
    join(&first).await;
    for event in numbered(0..3) {
        let before = num_set(&stream);
        let event = std::slice::from_ref(&event);
        stream.publish(event);
        // A read that waits in Redis takes it.
        consume_all(&first, event).await;
        until("it is written down", || num_set(&stream) > before).await;
    }
    drop(first);
    kill_and_launch(&mut server);
    assert_eq!(stream.entries_read(GROUP), Some(3));
    loses_ten_of_thirty(&stream).await;
}

/// As Redis is after a restart, when nobody had written down what was read.
fn forget_what_was_read(stream: &TestStream) {
    let last = stream.last_delivered(GROUP).unwrap();
    stream.command::<()>(&format!("XGROUP SETID events {GROUP} {last} ENTRIESREAD 0"));
}

#[actix_web::test]
async fn a_group_that_was_given_everything_has_lost_nothing() {
    let server = RedisServer::start();
    let stream = server.stream();
    if !stream.counts_entries() {
        return;
    }
    let first = unguarded(&stream);
    let events = numbered(0..50);
    stream.publish(&events);
    consume_all(&first, &events).await;
    drop(first);
    forget_what_was_read(&stream);
    stream.command::<u64>("XTRIM events MAXLEN 0");
    let second = unguarded(&stream);
    join(&second).await;
    assert_eq!(second.stats().status().num_lost, 0);
}

#[actix_web::test]
async fn what_redis_forgot_is_put_right_once_everything_is_read() {
    let server = RedisServer::start();
    let stream = server.stream();
    if !stream.counts_entries() {
        return;
    }
    let reader = unguarded(&stream);
    let events = numbered(0..50);
    stream.publish(&events);
    consume_all(&reader, &events).await;
    forget_what_was_read(&stream);
    stream.command::<Value>("CLIENT KILL TYPE normal SKIPME yes");
    let more = numbered(50..60);
    stream.publish(&more);
    consume_all(&reader, &more).await;
    until("it is known again", || {
        stream.entries_read(GROUP) == Some(60)
    })
    .await;
    assert_eq!(reader.stats().status().num_lost, 0);
}

#[actix_web::test]
async fn what_is_removed_between_two_reads_is_counted() {
    let server = RedisServer::start();
    let stream = server.stream();
    if !stream.counts_entries() {
        return;
    }
    let reader = unguarded(&stream);
    join(&reader).await;
    let before = num_set(&stream);
    let events = numbered(0..50);
    stream.publish(&events);
    consume_all(&reader, &events).await;
    until("it is written down", || num_set(&stream) > before + 1).await;
    // In one step, so that nobody can read what is removed.
    let mut at_once = redis::pipe();
    at_once.atomic();
    for event in numbered(50..57) {
        at_once
            .cmd("XADD")
            .arg("events")
            .arg("*")
            .arg("data")
            .arg(event);
    }
    at_once.cmd("XTRIM").arg("events").arg("MAXLEN").arg(0);
    at_once
        .cmd("XADD")
        .arg("events")
        .arg("*")
        .arg("data")
        .arg("message 57");
    at_once.query::<Value>(&mut stream.connect()).unwrap();
    consume_all(&reader, &numbered(57..58)).await;
    until("they are counted", || reader.stats().status().num_lost > 0).await;
    assert_eq!(reader.stats().status().num_lost, 7);
    assert_eq!(stream.entries_read(GROUP), Some(58));
}
