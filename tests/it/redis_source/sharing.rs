//! One group, several consumers: replicas, peers of Prefect, and the dead.

use std::collections::BTreeSet;
use std::time::Duration;

use event_persister_actors::source::redis::RedisSettings;
use event_persister_actors::source::{EventSource as _, Permit};
use redis::Value;
use tokio::time::{Instant, sleep, timeout};

use super::{
    PATIENCE, WIDE, acknowledge, consume_all, join, numbered, raw, raws, read_num, source, until,
};
use crate::support::redis::{RedisServer, TestStream};

/// Prefect's consumers take what has been idle for so long.
const PREFECTS_PATIENCE: Duration = Duration::from_secs(5);

/// A source and Prefect's patience, both faster by this much than they are by themselves.
fn faster(stream: &TestStream, times: u32) -> (RedisSettings, Duration) {
    let settings = stream.settings();
    let settings = RedisSettings {
        heartbeat_every: settings.heartbeat_every / times,
        ..settings
    };
    (settings, PREFECTS_PATIENCE / times)
}

fn impatient(stream: &TestStream) -> RedisSettings {
    RedisSettings {
        claim_idle: Duration::from_millis(500),
        claim_every: Duration::from_millis(100),
        heartbeat_every: Duration::from_millis(100),
        ..stream.settings()
    }
}

#[actix_web::test]
async fn replicas_share_without_doubling() {
    let server = RedisServer::start();
    let stream = server.stream();
    let replicas = [0, 1, 2].map(|_| source(stream.settings()));
    let all = numbered(0..6000);
    let mut seen = Vec::new();
    for part in all.chunks(1000) {
        stream.publish(part);
        let (a, b, c) = tokio::join!(
            replicas[0].read(WIDE),
            replicas[1].read(WIDE),
            replicas[2].read(WIDE)
        );
        for (replica, chunk) in replicas.iter().zip([a, b, c]) {
            let messages = chunk.unwrap().messages;
            seen.extend(messages.iter().map(raw));
            acknowledge(replica, &messages).await;
        }
    }
    while seen.len() < all.len() {
        let messages = replicas[0].read(WIDE).await.unwrap().messages;
        seen.extend(messages.iter().map(raw));
        acknowledge(&replicas[0], &messages).await;
        if messages.is_empty() {
            let messages = replicas[1].read(WIDE).await.unwrap().messages;
            seen.extend(messages.iter().map(raw));
            acknowledge(&replicas[1], &messages).await;
        }
    }
    let distinct: BTreeSet<&String> = seen.iter().collect();
    assert_eq!((seen.len(), distinct.len()), (6000, 6000));
    assert_eq!(stream.num_pending(), 0);
}

#[actix_web::test]
async fn what_is_held_is_not_taken_by_a_peer() {
    let server = RedisServer::start();
    let stream = server.stream();
    let (settings, patience) = faster(&stream, 4);
    let source = source(settings);
    stream.publish(&numbered(0..2500));
    let held = read_num(&source, 2500).await;
    // Nobody reads: the pipeline is full, and a peer of Prefect looks for idle entries.
    let claim = format!(
        "XAUTOCLAIM events event-persister prefect {} 0-0 COUNT 100",
        patience.as_millis()
    );
    let end = Instant::now() + patience * 12 / 5;
    while Instant::now() < end {
        let reply: Vec<Value> = stream.command(&claim);
        assert_eq!(reply[1], Value::Array(Vec::new()), "a peer took some");
        sleep(patience / 20).await;
    }
    acknowledge(&source, &held).await;
    assert_eq!(stream.num_pending(), 0);
}

#[actix_web::test]
async fn nothing_that_is_held_is_idle_for_nearly_two_beats() {
    let server = RedisServer::start();
    let stream = server.stream();
    let (settings, patience) = faster(&stream, 2);
    let beat = settings.heartbeat_every;
    let nearly_two_beats = beat * 9 / 5;
    assert!(nearly_two_beats < patience, "a peer of Prefect takes it");
    let source = source(settings);
    let idle = format!(
        "XPENDING events event-persister IDLE {} - + 10",
        nearly_two_beats.as_millis()
    );
    // Taken at any time between two beats.
    let end = Instant::now() + 4 * beat;
    let mut num_held = 0;
    while Instant::now() < end {
        stream.publish(&numbered(num_held..num_held + 1));
        read_num(&source, 1).await;
        num_held += 1;
        let idle: Vec<Value> = stream.command(&idle);
        assert_eq!(idle, Vec::new());
        sleep(beat / 20).await;
    }
}

#[actix_web::test]
async fn takes_over_from_the_dead_and_in_time_removes_them() {
    let server = RedisServer::start();
    let stream = server.stream();
    stream.command::<()>("XGROUP CREATE events event-persister 0-1 MKSTREAM");
    let all = numbered(0..1200);
    stream.publish(&all);
    stream.command::<Value>("XREADGROUP GROUP event-persister dead COUNT 1200 STREAMS events >");
    let source = source(RedisSettings {
        consumer_idle_removal: Duration::from_millis(600),
        ..impatient(&stream)
    });
    assert_eq!(consume_all(&source, &all).await, 1200, "each once");
    assert_eq!(source.stats().status().num_claimed, 1200);
    until("the dead consumer is removed", || {
        let names = stream.consumers("event-persister");
        names.iter().all(|(name, _, _)| name != "dead")
    })
    .await;
}

#[actix_web::test]
async fn what_a_dead_consumer_left_exceeds_no_permit() {
    let server = RedisServer::start();
    let stream = server.stream();
    stream.command::<()>("XGROUP CREATE events event-persister 0-1 MKSTREAM");
    let all: Vec<String> = (0..30)
        .map(|number| format!("{number:02}").repeat(100_000))
        .collect();
    stream.publish(&all);
    stream.command::<Value>("XREADGROUP GROUP event-persister dead COUNT 30 STREAMS events >");
    let source = source(impatient(&stream));
    let permit = Permit {
        max_messages: 100,
        max_bytes: 1_000_000,
    };
    let mut read = Vec::new();
    let reading = async {
        while read.len() < all.len() {
            let chunk = source.read(permit).await.unwrap();
            let num_bytes: usize = chunk.messages.iter().map(|one| one.body.num_bytes()).sum();
            assert!(num_bytes <= permit.max_bytes, "{num_bytes}");
            assert!(chunk.messages.iter().all(|message| message.redelivered));
            read.extend(raws(&chunk.messages));
            acknowledge(&source, &chunk.messages).await;
        }
    };
    timeout(PATIENCE, reading).await.expect("all are claimed");
    assert!(read == all, "each once, in its order");
    assert_eq!(source.stats().status().num_claimed, 30);
    assert_eq!(stream.num_pending(), 0);
}

#[actix_web::test]
async fn a_dead_replica_leaves_soon_and_neither_the_living_nor_prefects_consumers_do() {
    const DEAD: &str = "event-persister:host:1:0000dead";
    const PREFECTS: &str = "event-persister-host-1-0000beef";
    let server = RedisServer::start();
    let stream = server.stream();
    stream.command::<()>("XGROUP CREATE events event-persister 0-1 MKSTREAM");
    let all = numbered(0..1200);
    stream.publish(&all);
    stream.command::<Value>(&format!(
        "XREADGROUP GROUP event-persister {DEAD} COUNT 1200 STREAMS events >"
    ));
    stream.command::<Value>(&format!(
        "XGROUP CREATECONSUMER events event-persister {PREFECTS}"
    ));
    let settings = [impatient(&stream), impatient(&stream)];
    let names = settings.clone().map(|settings| settings.consumer_name);
    let claim_idle = settings[0].claim_idle;
    let replicas = settings.map(source);
    assert_eq!(consume_all(&replicas[0], &all).await, 1200, "each once");
    // It has nothing to read, and is there from its first read on.
    join(&replicas[1]).await;
    stream.publish(&numbered(1200..1201));
    let last = tokio::select! {
        last = read_num(&replicas[0], 1) => (0, last),
        last = read_num(&replicas[1], 1) => (1, last),
    };
    acknowledge(&replicas[last.0], &last.1).await;
    let there = || {
        let consumers = stream.consumers("event-persister");
        consumers
            .into_iter()
            .map(|(name, _, _)| name)
            .collect::<BTreeSet<_>>()
    };
    until("the dead replica has left", || !there().contains(DEAD)).await;
    let living: BTreeSet<_> = there()
        .into_iter()
        .filter(|name| names.contains(name))
        .collect();
    assert!(!living.is_empty());
    let until = Instant::now() + 6 * claim_idle;
    while Instant::now() < until {
        let there = there();
        assert!(there.is_superset(&living), "{living:?} of {there:?}");
        assert!(there.contains(PREFECTS), "{there:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[actix_web::test]
async fn a_replica_whose_consumer_is_removed_while_it_waits_loses_nothing() {
    let server = RedisServer::start();
    let stream = server.stream();
    let settings = stream.settings();
    let name = settings.consumer_name.clone();
    let source = source(settings);
    join(&source).await;
    for round in 0..20 {
        stream.command::<Value>(&format!("XGROUP DELCONSUMER events event-persister {name}"));
        let sent = numbered(round..round + 1);
        let (read, ()) = tokio::join!(read_num(&source, 1), async {
            // While it waits, or at any other moment.
            sleep(Duration::from_millis(fastrand::u64(0..50))).await;
            stream.command::<Value>(&format!("XGROUP DELCONSUMER events event-persister {name}"));
            stream.publish(&sent);
        });
        assert_eq!(raws(&read), sent);
        assert_eq!(stream.num_pending(), 1);
        acknowledge(&source, &read).await;
        assert_eq!(stream.num_pending(), 0);
    }
}

#[actix_web::test]
async fn a_dead_consumer_with_entries_is_not_removed() {
    let server = RedisServer::start();
    let stream = server.stream();
    stream.command::<()>("XGROUP CREATE events event-persister 0-1 MKSTREAM");
    stream.publish(&numbered(0..3));
    stream.command::<Value>("XREADGROUP GROUP event-persister dead COUNT 3 STREAMS events >");
    stream.command::<Value>("XGROUP CREATECONSUMER events event-persister empty");
    let source = source(RedisSettings {
        // Long enough that nothing is claimed here.
        claim_idle: Duration::from_secs(100),
        consumer_idle_removal: Duration::from_millis(100),
        ..stream.settings()
    });
    join(&source).await;
    until("the empty one is removed", || {
        let consumers = stream.consumers("event-persister");
        consumers.iter().all(|(name, _, _)| name != "empty")
    })
    .await;
    assert_eq!(stream.num_pending(), 3);
}

#[actix_web::test]
async fn leaves_the_group_if_nothing_is_pending() {
    let server = RedisServer::start();
    let stream = server.stream();
    let leaving = source(stream.settings());
    stream.publish(&numbered(0..10));
    let messages = read_num(&leaving, 10).await;
    acknowledge(&leaving, &messages).await;
    assert_eq!(stream.consumers("event-persister").len(), 1);
    leaving.close().await.unwrap();
    assert_eq!(stream.consumers("event-persister").len(), 0);

    let staying = source(impatient(&stream));
    stream.publish(&numbered(10..20));
    let messages = read_num(&staying, 10).await;
    acknowledge(&staying, &messages[..4]).await;
    staying.close().await.unwrap();
    assert_eq!(stream.num_pending(), 6, "what was not acknowledged stays");
    let heir = source(impatient(&stream));
    assert_eq!(raws(&read_num(&heir, 6).await), numbered(14..20));
}

#[actix_web::test]
async fn no_read_takes_entries_after_the_source_has_left() {
    let server = RedisServer::start();
    let stream = server.stream();
    let leaving = source(stream.settings());
    join(&leaving).await;
    // A read is dropped while it waits in Redis, as at a shutdown.
    tokio::time::timeout(Duration::from_millis(20), leaving.read(WIDE))
        .await
        .unwrap_err();
    leaving.close().await.unwrap();
    stream.publish(&numbered(0..10));
    sleep(Duration::from_millis(300)).await;
    assert_eq!(stream.num_pending(), 0);
    assert!(stream.consumers("event-persister").is_empty());
}

#[actix_web::test]
async fn nothing_runs_on_when_the_source_is_dropped() {
    let server = RedisServer::start();
    let stream = server.stream();
    let dropped = source(impatient(&stream));
    stream.publish(&numbered(0..5));
    read_num(&dropped, 5).await;
    let num_clients = || {
        let clients: String = stream.command("CLIENT LIST");
        clients
            .lines()
            .filter(|client| {
                client.contains("lib-name=event-persister") || client.contains("cmd=x")
            })
            .count()
    };
    until("the task beside the reads runs", || num_clients() >= 1).await;
    drop(dropped);
    until("its connections are closed", || num_clients() == 0).await;
    let heir = source(impatient(&stream));
    assert_eq!(read_num(&heir, 5).await.len(), 5, "nobody keeps them");
}
