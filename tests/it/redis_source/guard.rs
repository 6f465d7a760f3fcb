//! The trim guard, against the rules by which Prefect's consumers trim.

use std::time::Duration;

use event_persister_actors::source::EventSource as _;
use event_persister_actors::source::operator::{BusOperator as _, TrimGuard as _};
use event_persister_actors::source::redis::{RedisOperator, RedisSettings, RedisSource};
use redis::Value;
use tokio::time::sleep;

use super::{
    GROUP, GUARD, acknowledge, consume_all, guard_position, join, numbered, raws, read_num, source,
    until, until_the_guard_is_at,
};
use crate::support::logs;
use crate::support::redis::{RedisServer, TestStream};

/// Groups all of whose consumers are idle for longer than this do not count for the trimmer.
const THRESHOLD: Duration = Duration::from_millis(700);

/// Another group of the same stream, read to its end, and the trimming that its consumers do.
struct PrefectTrimmer {
    stream: TestStream,
}

impl PrefectTrimmer {
    fn new(stream: &TestStream) -> Self {
        stream.command::<()>("XGROUP CREATE events reactive-triggers 0 MKSTREAM");
        Self {
            stream: stream.clone(),
        }
    }

    /// Reads all that is there, and trims behind the smallest id that any group was given. Ids
    /// are compared as texts, and groups that only idle consumers have are passed over.
    fn read_and_trim(&self) {
        // The second read keeps this group's consumer from counting as idle.
        for from in [">", "0"] {
            self.stream.command::<Value>(&format!(
                "XREADGROUP GROUP reactive-triggers t COUNT 100000 NOACK STREAMS events {from}"
            ));
        }
        let groups: Vec<Vec<Value>> = self.stream.command("XINFO GROUPS events");
        let mut delivered = Vec::new();
        for group in groups {
            let Value::BulkString(name) = &group[1] else {
                panic!("a name");
            };
            let name = String::from_utf8(name.clone()).unwrap();
            let last = self.stream.last_delivered(&name).unwrap();
            let consumers = self.stream.consumers(&name);
            let threshold = THRESHOLD.as_millis() as u64;
            let all_idle = consumers.iter().all(|(_, _, idle)| *idle > threshold);
            if last != "0-0" && (consumers.is_empty() || !all_idle) {
                delivered.push(last);
            }
        }
        if let Some(lowest) = delivered.iter().min() {
            self.stream
                .command::<()>(&format!("XTRIM events MINID {lowest}"));
        }
    }

    /// Twice as long as it takes for a group to be passed over.
    async fn trim_for_long(&self) {
        let end = tokio::time::Instant::now() + 2 * THRESHOLD;
        while tokio::time::Instant::now() < end {
            self.read_and_trim();
            sleep(Duration::from_millis(100)).await;
        }
    }
}

fn settings(stream: &TestStream) -> RedisSettings {
    RedisSettings {
        claim_idle: Duration::from_millis(500),
        claim_every: Duration::from_millis(100),
        heartbeat_every: Duration::from_millis(100),
        ..stream.settings()
    }
}

/// As a killed process leaves it: nothing is said to Redis.
fn crash(source: RedisSource) {
    drop(source);
}

#[actix_web::test]
async fn nothing_is_lost_before_the_first_read() {
    let server = RedisServer::start();
    let stream = server.stream();
    let trimmer = PrefectTrimmer::new(&stream);
    let first = source(settings(&stream));
    join(&first).await;
    crash(first);
    let events = numbered(0..100);
    stream.publish(&events);
    trimmer.trim_for_long().await;
    let late = source(settings(&stream));
    assert_eq!(consume_all(&late, &events).await, 100);
    assert_eq!(late.stats().status().num_lost, 0);
}

#[actix_web::test]
async fn nothing_is_lost_in_a_long_downtime() {
    let server = RedisServer::start();
    let stream = server.stream();
    let trimmer = PrefectTrimmer::new(&stream);
    let first = source(settings(&stream));
    let before = numbered(0..100);
    stream.publish(&before);
    consume_all(&first, &before).await;
    crash(first);
    let events = numbered(100..300);
    stream.publish(&events);
    trimmer.trim_for_long().await;
    let second = source(settings(&stream));
    assert_eq!(consume_all(&second, &events).await, 200);
    assert_eq!(second.stats().status().num_lost, 0);
    // Now that all is committed, the others may trim it.
    let last = stream.last_delivered(GROUP).unwrap();
    until_the_guard_is_at(&stream, &last).await;
    let position = guard_position(&last);
    // Redis knows it first.
    until("its position is told", || {
        second.stats().status().guard_position.as_ref() == Some(&position)
    })
    .await;
    trimmer.read_and_trim();
    assert!(stream.len() < 300, "{} are left", stream.len());
}

#[actix_web::test]
async fn nothing_is_lost_in_a_crash_with_unacknowledged_entries() {
    let server = RedisServer::start();
    let stream = server.stream();
    let trimmer = PrefectTrimmer::new(&stream);
    let first = source(settings(&stream));
    let events = numbered(0..100);
    stream.publish(&events[..50]);
    // Another millisecond: the guard does not tell apart what is within one.
    sleep(Duration::from_millis(5)).await;
    stream.publish(&events[50..]);
    let taken = read_num(&first, 100).await;
    acknowledge(&first, &taken[50..]).await;
    // Long enough for the guard to have moved, had it been wrong.
    sleep(Duration::from_millis(1500)).await;
    crash(first);
    trimmer.trim_for_long().await;
    let second = source(settings(&stream));
    let again = read_num(&second, 50).await;
    assert_eq!(raws(&again), events[..50]);
    assert!(again.iter().all(|message| message.redelivered));
    assert_eq!(second.stats().status().num_claimed, 50);
    assert_eq!(second.stats().status().num_lost, 0);
}

#[actix_web::test]
async fn nothing_is_lost_in_a_long_outage_of_the_database() {
    let server = RedisServer::start();
    let stream = server.stream();
    let trimmer = PrefectTrimmer::new(&stream);
    let source = source(settings(&stream));
    stream.publish(&numbered(0..50));
    let held = read_num(&source, 50).await;
    // The pipeline is full: nobody reads any more.
    let waiting = numbered(50..200);
    stream.publish(&waiting);
    trimmer.trim_for_long().await;
    assert_eq!(stream.len(), 200);
    acknowledge(&source, &held).await;
    assert_eq!(consume_all(&source, &waiting).await, 150);
    assert_eq!(source.stats().status().num_lost, 0);
}

#[actix_web::test]
async fn without_a_guard_what_is_trimmed_unread_is_counted() {
    let server = RedisServer::start();
    let stream = server.stream();
    let unguarded = RedisSettings {
        guard: false,
        ..settings(&stream)
    };
    logs::capture();
    let trimmer = PrefectTrimmer::new(&stream);
    let first = source(unguarded.clone());
    let before = numbered(0..100);
    stream.publish(&before);
    consume_all(&first, &before).await;
    crash(first);
    stream.publish(&numbered(100..188));
    trimmer.trim_for_long().await;
    assert_eq!(stream.len(), 1, "all but the last of 88 are gone");
    let second = source(unguarded.clone());
    let last = numbered(187..188);
    assert_eq!(consume_all(&second, &last).await, 1);
    if !stream.counts_entries() {
        return;
    }
    assert_eq!(second.stats().status().num_lost, 87);
    let line = logs::find(&["events are lost", "num_lost=87 ", &stream.server()]);
    assert!(line.contains("before they were read"), "{line}");
    // And once only, whoever looks.
    let third = source(unguarded);
    join(&third).await;
    assert_eq!(third.stats().status().num_lost, 0);
}

#[actix_web::test]
async fn without_a_guard_what_is_trimmed_unacknowledged_is_counted() {
    let server = RedisServer::start();
    let stream = server.stream();
    let unguarded = RedisSettings {
        guard: false,
        ..settings(&stream)
    };
    let trimmer = PrefectTrimmer::new(&stream);
    let first = source(unguarded.clone());
    stream.publish(&numbered(0..30));
    read_num(&first, 30).await;
    crash(first);
    stream.publish(&numbered(30..31));
    trimmer.trim_for_long().await;
    let second = source(unguarded);
    consume_all(&second, &numbered(30..31)).await;
    until("the pending ones are counted", || {
        second.stats().status().num_lost >= 30
    })
    .await;
    assert_eq!(second.stats().status().num_lost, 30);
    until("nothing stays pending", || stream.num_pending() == 0).await;
}

#[actix_web::test]
async fn own_entries_that_were_trimmed_while_held_are_not_lost() {
    let server = RedisServer::start();
    let stream = server.stream();
    let source = source(settings(&stream));
    stream.publish(&numbered(0..10));
    let held = read_num(&source, 10).await;
    stream.command::<()>("XTRIM events MAXLEN 0");
    // One that was rewound has to be read again, and is no more.
    source.rewind().await.unwrap();
    acknowledge(&source, &held[1..]).await;
    until("it is found out", || {
        source.stats().status().num_lost > 0 || {
            futures_util::FutureExt::now_or_never(source.read(super::WIDE));
            false
        }
    })
    .await;
    assert_eq!(source.stats().status().num_lost, 1);
    assert_eq!(stream.num_pending(), 0);
}

#[actix_web::test]
async fn is_shown_and_removed_on_request() {
    let server = RedisServer::start();
    let stream = server.stream();
    let bus = RedisOperator::new(settings(&stream)).unwrap();
    let report = bus.show().await.unwrap();
    assert_eq!((report.stream_length, report.guard_position), (None, None));
    assert!(!bus.remove().await.unwrap());
    let source = source(settings(&stream));
    let ids = stream.publish(&numbered(0..3));
    let held = read_num(&source, 3).await;
    acknowledge(&source, &held[..1]).await;
    until("the guard has moved", || {
        source
            .stats()
            .status()
            .guard_position
            .is_some_and(|at| at != "0-1")
    })
    .await;
    let report = bus.show().await.unwrap();
    assert_eq!(report.stream_length, Some(3));
    assert!(report.guard_position.unwrap().ends_with("-0"));
    let group = report.group_progress.unwrap();
    assert_eq!(group.last_delivered, ids[2]);
    assert_eq!(group.smallest_pending.as_ref(), Some(&ids[1]));
    assert_eq!((group.num_pending, group.num_consumers), (2, 1));
    drop(source);
    assert!(bus.remove().await.unwrap());
    assert!(!bus.remove().await.unwrap());
    assert_eq!(stream.last_delivered(GUARD), None);
}

#[actix_web::test]
async fn names_that_are_no_text_stop_no_look() {
    let server = RedisServer::start();
    let stream = server.stream();
    let settings = RedisSettings {
        consumer_idle_removal: Duration::from_millis(500),
        ..settings(&stream)
    };
    let bus = RedisOperator::new(settings.clone()).unwrap();
    let source = source(settings);
    join(&source).await;
    stream.publish(&numbered(0..1));
    let (other, holder, idle) = (&b"group-\xff"[..], &b"holder-\xff"[..], &b"idle-\xff"[..]);
    let run = |words: &[&[u8]]| {
        let mut command = redis::cmd(std::str::from_utf8(words[0]).unwrap());
        command.arg(&words[1..]);
        command.query::<Value>(&mut stream.connect()).unwrap()
    };
    let (key, group) = (stream.name().as_bytes().to_vec(), GROUP.as_bytes());
    run(&[b"XGROUP", b"CREATE", &key, other, b"0"]);
    run(&[b"XGROUP", b"CREATECONSUMER", &key, group, idle]);
    run(&[
        b"XREADGROUP",
        b"GROUP",
        group,
        holder,
        b"STREAMS",
        &key,
        b">",
    ]);
    until("what they hold is seen", || {
        source.stats().status().group_pending == 1
    })
    .await;
    until("who is gone is removed", || {
        let consumers: Vec<Value> = stream.command("XINFO CONSUMERS events event-persister");
        consumers.len() == 2
    })
    .await;
    let report = bus.show().await.unwrap();
    assert_eq!(report.group_progress.unwrap().num_pending, 1);
    let findings = bus.inspect(None).await;
    assert!(
        findings
            .iter()
            .any(|finding| finding.id == "redis.consumers"),
        "{findings:?}"
    );
    assert!(
        bus.shadow()
            .unwrap()
            .work_from("0-1")
            .await
            .unwrap()
            .is_some()
    );
}

#[actix_web::test]
async fn trims_behind_the_guard_when_told_to() {
    let server = RedisServer::start();
    let stream = server.stream();
    let source = source(RedisSettings {
        trim_stream: true,
        ..settings(&stream)
    });
    stream.publish(&numbered(0..990));
    sleep(Duration::from_millis(5)).await;
    stream.publish(&numbered(990..1000));
    let held = read_num(&source, 1000).await;
    acknowledge(&source, &held[..990]).await;
    until("most of it is gone", || stream.len() < 200).await;
    assert!(stream.len() >= 10, "what is held stays");
}

#[actix_web::test]
async fn a_group_that_prefect_made_is_moved_where_trimming_respects_it() {
    let server = RedisServer::start();
    let stream = server.stream();
    stream.command::<()>("XGROUP CREATE events event-persister 0 MKSTREAM");
    let source = source(settings(&stream));
    join(&source).await;
    assert_eq!(stream.last_delivered(GROUP).unwrap(), "0-1");
    assert_eq!(stream.last_delivered(GUARD).unwrap(), "0-1");
}

#[actix_web::test]
async fn a_stream_that_grows_too_long_raises_an_alarm_and_loses_nothing() {
    let server = RedisServer::start();
    let stream = server.stream();
    let source = source(RedisSettings {
        guard_max_entries: std::num::NonZeroU64::new(10).unwrap(),
        ..settings(&stream)
    });
    join(&source).await;
    let events = numbered(0..20);
    stream.publish(&events);
    until("the alarm", || source.stats().status().alarm).await;
    assert_eq!(consume_all(&source, &events).await, 20);
    stream.command::<()>("XTRIM events MAXLEN 5");
    until("its end", || !source.stats().status().alarm).await;
}

/// Memory is full: nothing that may need more is allowed. Returns the id of the last entry.
fn fill(stream: &TestStream, events: &[String]) -> String {
    let last = stream.publish(events).pop().unwrap();
    stream.command::<()>("CONFIG SET maxmemory 1");
    let refused = stream
        .try_command::<Value>("XADD events * data x")
        .unwrap_err();
    assert_eq!(refused.code(), Some("OOM"));
    last
}

#[actix_web::test]
async fn is_made_and_moved_although_memory_is_full() {
    let server = RedisServer::start();
    let stream = server.stream();
    let last = fill(&stream, &numbered(0..1000));
    let reader = source(settings(&stream));
    consume_all(&reader, &numbered(0..1000)).await;
    until_the_guard_is_at(&stream, &last).await;
    assert_eq!(stream.num_pending(), 0);
    assert_eq!(reader.stats().status().num_lost, 0);
    reader.close().await.unwrap();
    assert_eq!(stream.consumers("event-persister"), [], "it has left");
}

#[actix_web::test]
async fn moves_on_after_a_failure_although_memory_is_full() {
    let server = RedisServer::start();
    let stream = server.stream();
    let reader = source(settings(&stream));
    join(&reader).await;
    let other = PrefectTrimmer::new(&stream);
    stream.publish(&numbered(0..1));
    // The guard goes by milliseconds of Redis's clock, so another one has to begin.
    sleep(Duration::from_millis(2)).await;
    let last = fill(&stream, &numbered(1..1000));
    // Everything is looked for anew behind a broken connection.
    stream.command::<Value>("CLIENT KILL TYPE normal SKIPME yes");
    consume_all(&reader, &numbered(0..1000)).await;
    until_the_guard_is_at(&stream, &last).await;
    assert_eq!(stream.num_pending(), 0);
    // What is committed can be trimmed, and memory is free again.
    other.read_and_trim();
    assert!(stream.len() < 1000);
    assert!(
        reader.stats().status().guard_age.is_some(),
        "when it moved is known"
    );
}
