//! What entries are to the pipeline, and what their traffic costs.

use std::collections::BTreeMap;

use event_persister_actors::delivery::Content;
use event_persister_actors::source::{Body, EventSource as _, More, Permit};
use redis::Value;
use tokio::time::Instant;

use super::{acknowledge, consume_all, numbered, raws, read_num, source, until};
use crate::support::redis::{RedisServer, TestStream};

/// Adds one entry with these fields; returns its id.
fn add(stream: &TestStream, fields: &[(&[u8], &[u8])]) -> String {
    let mut command = redis::cmd("XADD");
    command.arg(stream.name()).arg("*");
    for (field, value) in fields {
        command.arg(*field).arg(*value);
    }
    command.query(&mut stream.connect()).unwrap()
}

#[actix_web::test]
async fn every_kind_of_entry_is_handed_out_for_what_it_is() {
    let server = RedisServer::start();
    let stream = server.stream();
    let ids = [
        add(&stream, &[(b"data", b"{}"), (b"attributes", b"{}")]),
        add(&stream, &[(b"data", b"{}"), (b"attributes", b"not JSON")]),
        add(&stream, &[(b"data", b"\xff\xfe")]),
        add(&stream, &[(b"data", b""), (b"attributes", b"{}")]),
        add(&stream, &[(b"attributes", b"{\"id\": 1}"), (b"x", b"\xff")]),
    ];
    let source = source(stream.settings());
    let messages = read_num(&source, 5).await;
    let mut positions = Vec::new();
    let mut data = Vec::new();
    for message in &messages[..4] {
        let Body::Raw { position, data: d } = &message.body else {
            panic!("data is there: {message:?}");
        };
        positions.push(position.as_str().to_owned());
        data.push(d.clone());
    }
    assert_eq!(positions, ids[..4]);
    assert_eq!(data, [&b"{}"[..], b"{}", b"\xff\xfe", b""]);
    let Body::Entry(entry) = &messages[4].body else {
        panic!("a rejection: {:?}", messages[4]);
    };
    assert_eq!(entry.position.as_str(), ids[4]);
    assert_eq!(
        entry.raw(),
        br#"[["attributes","{\"id\": 1}"],["x",{"hex":"ff"}]]"#
    );
    assert!(matches!(&entry.content, Content::Rejected(r) if r.reason.contains("no field `data`")));
    acknowledge(&source, &messages).await;
    assert_eq!(stream.num_pending(), 0);
}

#[actix_web::test]
async fn asks_for_as_many_entries_as_the_bytes_allow() {
    let server = RedisServer::start();
    let stream = server.stream();
    let large: Vec<String> = (10..50).map(|n| n.to_string().repeat(50_000)).collect();
    stream.publish(&large);
    let source = source(stream.settings());
    let permit = Permit {
        max_messages: 1000,
        max_bytes: 500_000,
    };
    let mut num_read = 0;
    while num_read < large.len() {
        let chunk = source.read(permit).await.unwrap();
        assert!(chunk.messages.len() <= 5, "{}", chunk.messages.len());
        num_read += chunk.messages.len();
        // What was taken beyond the permit would be memory that nobody accounts for.
        assert!(stream.num_pending() <= num_read, "{num_read}");
        if num_read < large.len() {
            assert_eq!(chunk.more, More::Ready);
        }
    }
}

/// What does not fit is pending for the reader then, and comes in its turn.
#[actix_web::test]
async fn large_entries_behind_small_ones_exceed_no_permit_and_keep_their_place() {
    let server = RedisServer::start();
    let stream = server.stream();
    let small = |number: usize| format!("{number:04}");
    let large = |number: usize| small(number).repeat(40_000);
    let all: Vec<String> = (0..1000)
        .map(|number| match number {
            400..430 | 990.. => large(number),
            _ => small(number),
        })
        .collect();
    stream.publish(&all);
    let source = source(stream.settings());
    let permit = Permit {
        max_messages: 300,
        max_bytes: 1_000_000,
    };
    let mut read = Vec::new();
    while read.len() < all.len() {
        let chunk = source.read(permit).await.unwrap();
        let raws = raws(&chunk.messages);
        let num_bytes: usize = raws.iter().map(String::len).sum();
        assert!(
            raws.len() == 1 || num_bytes <= permit.max_bytes,
            "{num_bytes}"
        );
        read.extend(raws);
        acknowledge(&source, &chunk.messages).await;
    }
    assert!(read == all, "everything once, in its order");
    assert_eq!(stream.num_pending(), 0);
    assert_eq!(source.stats().status().num_lost, 0);
}

/// Calls by command, of those that a client sends.
fn calls(stream: &TestStream) -> BTreeMap<String, u64> {
    let Value::BulkString(info) = stream.command("INFO commandstats") else {
        panic!("a text");
    };
    String::from_utf8(info)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let (name, stats) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), stats.split_once(',')?.0.parse().ok()?))
        })
        .collect()
}

#[actix_web::test]
async fn takes_few_commands_for_an_event() {
    let server = RedisServer::start();
    let stream = server.stream();
    let events = numbered(0..30_000);
    stream.publish(&events);
    let source = source(stream.settings());
    stream.command::<()>("CONFIG RESETSTAT");
    let mut num_read = 0;
    while num_read < events.len() {
        let chunk = source.read(super::WIDE).await.unwrap();
        num_read += chunk.messages.len();
        acknowledge(&source, &chunk.messages).await;
    }
    let calls = calls(&stream);
    let others = ["info", "config|resetstat", "ping", "client|setinfo"];
    let num: u64 = calls
        .iter()
        .filter(|(name, _)| !others.contains(&name.as_str()))
        .map(|(_, calls)| calls)
        .sum();
    let each = num as f64 / events.len() as f64;
    assert!(each <= 0.02, "{each} commands an event: {calls:?}");
    println!("{each:.4} commands an event: {calls:?}");
}

#[actix_web::test]
async fn what_is_read_many_at_once_was_delivered_once_and_counts_as_read() {
    let server = RedisServer::start();
    let stream = server.stream();
    let settings = stream.settings();
    let name = settings.consumer_name.clone();
    let source = source(settings);
    stream.publish(&numbered(0..500));
    let held = read_num(&source, 500).await;
    let pending: Vec<(String, String, u64, u64)> =
        stream.command("XPENDING events event-persister - + 1000");
    assert_eq!(pending.len(), 500);
    assert!(
        pending
            .iter()
            .all(|(_, consumer, _, times)| *consumer == name && *times == 1),
        "{pending:?}"
    );
    let last = pending.last().map(|(id, ..)| id.clone());
    assert_eq!(stream.last_delivered("event-persister"), last);
    if stream.counts_entries() {
        assert_eq!(stream.entries_read("event-persister"), Some(500));
    }
    acknowledge(&source, &held).await;
}

#[actix_web::test]
async fn a_stream_that_vanishes_between_two_reads_fails_none() {
    let server = RedisServer::start();
    let stream = server.stream();
    let source = source(stream.settings());
    stream.publish(&numbered(0..1500));
    let held = read_num(&source, 1000).await;
    stream.command::<u64>("DEL events");
    stream.publish(&numbered(2000..2100));
    let mut num_read = 0;
    while num_read < 100 {
        let chunk = source.read(super::WIDE).await.unwrap();
        num_read += chunk.messages.len();
        acknowledge(&source, &chunk.messages).await;
    }
    acknowledge(&source, &held).await;
    if stream.counts_entries() {
        assert_eq!(stream.entries_read("event-persister"), Some(100));
    }
}

#[actix_web::test]
async fn it_is_known_again_how_much_was_read_once_all_was() {
    let server = RedisServer::start();
    let stream = server.stream();
    if !stream.counts_entries() {
        return;
    }
    let source = source(stream.settings());
    stream.publish(&numbered(0..300));
    consume_all(&source, &numbered(0..300)).await;
    // As an operator has everything read again; what was read is unknown then.
    stream.publish(&numbered(300..600));
    stream.command::<()>("XGROUP SETID events event-persister 0-1");
    assert_eq!(stream.entries_read("event-persister"), None);
    consume_all(&source, &numbered(0..600)).await;
    until("it is known again", || {
        stream.entries_read("event-persister") == Some(600)
    })
    .await;
    assert_eq!(source.stats().status().num_lost, 0);
}

#[actix_web::test]
async fn takes_few_commands_when_events_trickle_in() {
    let server = RedisServer::start();
    let stream = server.stream();
    let source = source(stream.settings());
    super::join(&source).await;
    stream.command::<()>("CONFIG RESETSTAT");
    let begun = Instant::now();
    let publisher = stream.clone();
    let publishing = std::thread::spawn(move || {
        for number in 0..400 {
            publisher.publish(&numbered(number * 10..number * 10 + 10));
        }
    });
    let all = numbered(0..4000);
    assert_eq!(consume_all(&source, &all).await, 4000);
    publishing.join().unwrap();
    let calls = calls(&stream);
    let (reads, acks) = (calls["xreadgroup"], calls["xack"]);
    // They are 5 ms apart. What a read brings is handed out as it arrives, in two parts for the most, and a part
    // is acknowledged at once.
    let took = begun.elapsed();
    let most = u64::try_from(took.as_millis() / 5).unwrap() + 10;
    assert!(
        reads <= most && acks <= 2 * most,
        "the reads were paced: {reads} reads and {acks} acknowledgements in {took:?}"
    );
}

#[actix_web::test]
async fn hands_out_in_the_order_of_the_stream() {
    let server = RedisServer::start();
    let stream = server.stream();
    let all = numbered(0..3000);
    stream.publish(&all);
    let source = source(stream.settings());
    assert_eq!(raws(&read_num(&source, 3000).await), all);
}
