//! The NATS source against real servers, mostly with the test in the consumer's place.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use event_persister_actors::delivery::{Entry, Receipt};
use event_persister_actors::primary::Primary;
use event_persister_actors::publisher::EventPublisher as _;
use event_persister_actors::source::nats::{NatsPublisher, NatsSettings, NatsSource};
use event_persister_actors::source::{Body, EventSource as _, Message, More, Permit, SourceError};
use event_persister_actors::status::error_chain;
use event_persister_actors::testing::rejected_entry;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::support::nats::{Credentials, NatsOptions, NatsServer, NatsStream};
use crate::support::wait::{PATIENCE, in_time, until};

const WIDE: Permit = Permit {
    max_messages: 1000,
    max_bytes: 8 << 20,
};

fn source(settings: NatsSettings) -> NatsSource {
    NatsSource::new(settings).expect("settings that work")
}

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("message {number}")).collect()
}

fn raws(messages: &[Message]) -> Vec<String> {
    let text = |message: &Message| match &message.body {
        Body::Raw { data, .. } => String::from_utf8_lossy(data).into_owned(),
        Body::Entry(_) => panic!("the source does not parse"),
    };
    messages.iter().map(text).collect()
}

fn receipts(messages: &[Message]) -> Vec<Receipt> {
    messages.iter().map(|message| message.receipt).collect()
}

/// Reads until it has that many, or more: a read ends with what has come by then, or with an error.
async fn read_num(source: &NatsSource, num: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    let reading = async {
        while messages.len() < num {
            match source.read(WIDE).await {
                Ok(chunk) => messages.extend(chunk.messages),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    if timeout(PATIENCE, reading).await.is_err() {
        panic!("{} of {num} came", messages.len());
    }
    messages
}

/// Tries until it works, as the consumer does.
async fn acknowledge(source: &NatsSource, messages: &[Message]) {
    let receipts = receipts(messages);
    let acknowledging = async {
        while source.acknowledge(&receipts).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    in_time("acknowledged", acknowledging).await;
}

async fn next_error(source: &NatsSource) -> SourceError {
    let failing = async {
        loop {
            if let Err(error) = source.read(WIDE).await {
                return error;
            }
        }
    };
    in_time("an error", failing).await
}

fn anywhere() -> (NatsServer, NatsStream) {
    let server = NatsServer::start();
    let stream = server.with_stream();
    (server, stream)
}

#[actix_web::test]
async fn an_acknowledgement_is_confirmed_when_it_returns() {
    let (_server, stream) = anywhere();
    stream.publish(&numbered(0..2500));
    let source = source(stream.settings());
    let messages = read_num(&source, 2500).await;
    assert_eq!(raws(&messages), numbered(0..2500));
    source.acknowledge(&receipts(&messages)).await.unwrap();
    let consumer = stream.consumer();
    assert_eq!(consumer["num_ack_pending"], 0);
    assert_eq!(consumer["ack_floor"]["stream_seq"], 2500);
    let chunk = source.read(WIDE).await.unwrap();
    assert_eq!((chunk.messages.len(), chunk.more), (0, More::Later));
}

#[actix_web::test]
async fn the_consumer_is_made_so_that_nothing_is_lost() {
    let (_server, stream) = anywhere();
    stream.publish(&numbered(0..1));
    let source = source(stream.settings());
    read_num(&source, 1).await;
    let config = &stream.consumer()["config"];
    assert_eq!(config["ack_policy"], "explicit");
    assert_eq!(config["deliver_policy"], "all");
    assert_eq!(config["max_deliver"], -1);
    assert_eq!(config["max_ack_pending"], -1);
    assert_eq!(config["ack_wait"], 4_000_000_000_u64);
}

#[actix_web::test]
async fn what_is_held_for_long_stays_ours() {
    let (_server, stream) = anywhere();
    stream.publish(&numbered(0..5));
    let (ours, other) = (source(stream.settings()), source(stream.settings()));
    let held = read_num(&ours, 5).await;
    // Longer than the server waits for a word.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(7) {
        let chunk = other.read(WIDE).await.unwrap();
        assert!(chunk.messages.is_empty(), "{:?}", raws(&chunk.messages));
    }
    acknowledge(&ours, &held).await;
    assert_eq!(stream.num_pending(), 0);
    assert_eq!(ours.stats().status().num_redelivered, 0);
}

#[actix_web::test]
async fn what_a_dead_replica_held_comes_to_another() {
    let (_server, stream) = anywhere();
    stream.publish(&numbered(0..5));
    let dying = source(stream.settings());
    let held = read_num(&dying, 5).await;
    acknowledge(&dying, &held[..2]).await;
    drop(dying);
    let heir = source(stream.settings());
    let again = read_num(&heir, 3).await;
    assert_eq!(raws(&again), numbered(2..5));
    assert!(again.iter().all(|message| message.redelivered));
    acknowledge(&heir, &again).await;
    assert_eq!(stream.num_pending(), 0);
    assert_eq!(heir.stats().status().num_redelivered, 3);
}

#[actix_web::test]
async fn what_is_left_at_the_end_comes_to_another_at_once() {
    let (_server, stream) = anywhere();
    stream.publish(&numbered(0..5));
    let leaving = source(stream.settings());
    let held = read_num(&leaving, 5).await;
    acknowledge(&leaving, &held[..2]).await;
    leaving.close().await.unwrap();
    let began = Instant::now();
    let heir = source(stream.settings());
    let again = read_num(&heir, 3).await;
    assert_eq!(raws(&again), numbered(2..5));
    // Sooner than the server would take it for dead.
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}

#[actix_web::test]
async fn a_large_message_comes_alone_and_others_within_the_permit() {
    let (_server, stream) = anywhere();
    let mut texts = numbered(0..50);
    texts[20] = "x".repeat(500_000);
    stream.publish(&texts);
    let source = source(stream.settings());
    let permit = Permit {
        max_messages: 10,
        max_bytes: 2_000,
    };
    let mut seen = Vec::new();
    while seen.len() < texts.len() {
        let chunk = source.read(permit).await.unwrap();
        let size: usize = chunk
            .messages
            .iter()
            .map(|message| message.body.num_bytes())
            .sum();
        assert!(
            size <= permit.max_bytes || chunk.messages.len() == 1,
            "{size}"
        );
        assert!(chunk.messages.len() <= permit.max_messages);
        seen.extend(raws(&chunk.messages));
    }
    assert_eq!(seen, texts);
}

#[actix_web::test]
async fn what_comes_is_handed_out_though_the_consumer_lets_no_more_be_in_flight() {
    let (_server, stream) = anywhere();
    stream.create_consumer(&json!({ "max_ack_pending": 3 }));
    stream.publish(&numbered(0..10));
    let source = source(stream.settings());
    let mut seen = Vec::new();
    while seen.len() < 10 {
        let messages = read_num(&source, 1).await;
        seen.extend(raws(&messages));
        acknowledge(&source, &messages).await;
    }
    assert_eq!(seen, numbered(0..10));
    let warnings = source.warnings();
    assert!(
        warnings[0].contains("3 messages be in flight"),
        "{warnings:?}"
    );
}

#[actix_web::test]
async fn a_consumer_that_vanishes_is_made_again() {
    let (_server, stream) = anywhere();
    stream.publish(&numbered(0..6));
    let source = source(stream.settings());
    let held = read_num(&source, 6).await;
    acknowledge(&source, &held[..4]).await;
    stream.delete_consumer();
    stream.publish(&numbered(6..7));
    // All that is in the stream comes again, but for what is held.
    let again = read_num(&source, 5).await;
    let mut texts = raws(&again);
    texts.sort();
    let expected = [&numbered(0..4)[..], &numbered(6..7)].concat();
    assert_eq!(texts, expected);
    acknowledge(&source, &held[4..]).await;
    acknowledge(&source, &again).await;
    until("all is acknowledged", || stream.is_settled() == Some(true)).await;
    assert_eq!(source.stats().status().num_rejoined, 1);
}

#[actix_web::test]
async fn a_missing_stream_is_not_made_and_read_once_it_is_there() {
    let server = NatsServer::start();
    let stream = server.stream();
    let source = source(stream.settings());
    let error = error_chain(&next_error(&source).await);
    assert!(error.contains("nats stream add events"), "{error}");
    assert!(error.ends_with("stream not found (code 10059)"), "{error}");
    stream.create(&json!({}));
    stream.publish(&numbered(0..3));
    assert_eq!(raws(&read_num(&source, 3).await), numbered(0..3));
}

/// Numbers begin anew in a stream that is made anew: an old receipt must not acknowledge a new message.
#[actix_web::test]
async fn receipts_of_a_stream_that_was_deleted_are_void() {
    let (_server, stream) = anywhere();
    stream.publish(&numbered(0..5));
    let source = source(stream.settings());
    let old = read_num(&source, 5).await;
    stream.delete();
    stream.create(&json!({}));
    stream.publish(&numbered(10..15));
    let new = read_num(&source, 5).await;
    assert_eq!(raws(&new), numbered(10..15));
    acknowledge(&source, &old).await;
    assert_eq!(stream.num_pending(), 5, "the new ones are not acknowledged");
    acknowledge(&source, &new).await;
    assert_eq!(stream.num_pending(), 0);
}

#[actix_web::test]
async fn what_the_limits_remove_unread_is_counted() {
    let server = NatsServer::start();
    let stream = server.stream();
    stream.create(&json!({ "max_msgs": 10 }));
    stream.publish(&numbered(0..5));
    let first = source(stream.settings());
    let read = read_num(&first, 5).await;
    acknowledge(&first, &read).await;
    assert_eq!(first.stats().status().num_lost, 0);
    first.close().await.unwrap();
    stream.publish(&numbered(5..25));
    let second = source(stream.settings());
    let read = read_num(&second, 10).await;
    assert_eq!(raws(&read), numbered(15..25));
    assert_eq!(second.stats().status().num_lost, 10);
    // What is lost is counted once.
    acknowledge(&second, &read).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(second.stats().status().num_lost, 10);
}

/// A stream of the retention interest has dropped what the consumer alone had waited for.
#[actix_web::test]
async fn what_goes_with_a_consumer_is_counted_and_another_keeps_it() {
    for is_kept in [false, true] {
        let server = NatsServer::start();
        let stream = server.stream();
        stream.create(&json!({ "retention": "interest" }));
        let source = source(stream.settings());
        let chunk = source.read(WIDE).await.unwrap();
        assert!(chunk.messages.is_empty());
        stream.publish(&numbered(0..3));
        let read = read_num(&source, 3).await;
        acknowledge(&source, &read).await;
        stream.publish(&numbered(3..13));
        let stats = source.stats();
        until("they are unread", || stats.status().lag == 10).await;
        if is_kept {
            let config = json!({ "durable_name": "third", "ack_policy": "explicit" });
            let body = json!({ "stream_name": "events", "config": config });
            let made = stream.api("CONSUMER.DURABLE.CREATE.events.third", &body);
            assert!(made["error"].is_null(), "{made}");
        }
        stream.delete_consumer();
        until("the consumer is back", || stats.status().num_rejoined == 1).await;
        if is_kept {
            assert_eq!(raws(&read_num(&source, 10).await), numbered(3..13));
        }
        let num_lost = if is_kept { 0 } else { 10 };
        until("the loss is counted", || {
            stats.status().num_lost == num_lost
        })
        .await;
    }
}

/// Has messages 1 to 10 read, and the stream lose the last five of them.
async fn lose_the_end(server: &mut NatsServer, stream: &NatsStream, source: &NatsSource) {
    stream.publish(&numbered(0..5));
    let first = read_num(source, 5).await;
    acknowledge(source, &first).await;
    server.terminate();
    let messages = server.messages();
    server.launch();
    stream.publish(&numbered(5..10));
    let second = read_num(source, 5).await;
    acknowledge(source, &second).await;
    server.terminate();
    server.lose_messages_since(&messages);
    server.launch();
}

/// Reads until it is refused for that reason, with the remedy.
async fn refused(source: &NatsSource, why: &str) {
    let telling = async {
        loop {
            let error = error_chain(&next_error(source).await);
            if error.contains(why) {
                assert!(error.contains("nats consumer rm"), "{error}");
                return;
            }
        }
    };
    in_time(why, telling).await;
}

/// What is left of the first messages, and those that have the numbers of the others by now.
async fn reads_all_with_another_consumer(stream: &NatsStream, source: &NatsSource) {
    stream.delete_consumer();
    let mut all = raws(&read_num(source, 15).await);
    all.sort();
    let mut expected = [numbered(0..5), numbered(20..30)].concat();
    expected.sort();
    assert_eq!(all, expected);
}

#[actix_web::test]
async fn a_stream_that_lost_its_end_is_not_read_on() {
    let (mut server, stream) = anywhere();
    let source = source(stream.settings());
    lose_the_end(&mut server, &stream, &source).await;
    refused(&source, "the stream events ends at 5").await;
    // Their numbers are those of messages that were read.
    stream.publish(&numbered(20..30));
    refused(&source, "message 10 is another one by now").await;
    reads_all_with_another_consumer(&stream, &source).await;
}

/// It was given nothing that it could compare, and goes by when the new messages were stored.
#[actix_web::test]
async fn a_stream_that_lost_its_end_is_not_read_on_by_a_new_process_either() {
    let (mut server, stream) = anywhere();
    let before = source(stream.settings());
    lose_the_end(&mut server, &stream, &before).await;
    drop(before);
    let source = source(stream.settings());
    refused(&source, "the stream events ends at 5").await;
    stream.publish(&numbered(20..30));
    for _ in 0..2 {
        refused(&source, "message 6 is another one by now").await;
    }
    reads_all_with_another_consumer(&stream, &source).await;
}

/// The client drops the connection at such headers, and what is behind them goes with it.
#[actix_web::test]
async fn messages_whose_headers_cannot_be_read_come_with_all_others() {
    let (_server, stream) = anywhere();
    stream.publish(&numbered(0..3));
    let mut client = stream.connect().unwrap();
    let broken: [&[u8]; 4] = [
        b"NATS/1.0\r\nof two words: x\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\nname: \xff\r\n\r\n",
        // This one is read, and looks like the end of a request.
        b"NATS/1.0 404 No Messages\r\n\r\n",
    ];
    for (headers, text) in broken.into_iter().zip(numbered(3..7)) {
        client
            .send_with("events", headers, text.as_bytes())
            .unwrap();
        client.answer().unwrap();
    }
    stream.publish(&numbered(7..10));
    let source = source(stream.settings());
    let messages = read_num(&source, 10).await;
    let mut texts = raws(&messages);
    texts.sort();
    assert_eq!(texts, numbered(0..10));
    acknowledge(&source, &messages).await;
    until("all is acknowledged", || stream.is_settled() == Some(true)).await;
}

/// A stream on a server, and settings of a user who may not publish there.
fn without_permission_for(subject: &str) -> (NatsServer, NatsStream, NatsSettings) {
    let server = NatsServer::start_with(NatsOptions {
        more: format!(
            "no_auth_user: all\nauthorization {{ users: [\n\
             {{ user: all, password: p }}\n\
             {{ user: few, password: p, permissions: {{ publish: {{ deny: \"{subject}\" }} }} }}\n\
             ] }}\n"
        ),
        ..NatsOptions::default()
    });
    let stream = server.with_stream();
    let url = server.url().replace("nats://", "nats://few:p@");
    let settings = NatsSettings::from_url(&url).unwrap();
    (server, stream, settings)
}

#[actix_web::test]
async fn requests_that_nobody_answers_are_an_error_that_says_why() {
    let (_server, stream, settings) = without_permission_for("$JS.API.CONSUMER.MSG.NEXT.>");
    stream.publish(&numbered(0..1));
    let error = error_chain(&next_error(&source(settings)).await);
    assert!(error.contains("allow the user to publish"), "{error}");
    assert!(error.contains("Permissions Violation"), "{error}");
}

#[actix_web::test]
async fn an_age_that_nobody_tells_is_told_as_unknown() {
    let (_server, stream, settings) = without_permission_for("$JS.API.STREAM.MSG.GET.>");
    stream.publish(&numbered(0..1));
    // Whoever holds the message knows its age.
    let holder = source(stream.settings());
    read_num(&holder, 1).await;
    stream.publish(&numbered(1..2));
    let source = source(settings);
    read_num(&source, 1).await;
    until("the age is unknown", || {
        source.stats().status().is_oldest_unknown
    })
    .await;
    let warnings = source.warnings().join(" ");
    assert!(warnings.contains("allow the user to publish"), "{warnings}");
}

/// Fewer messages at once would not help.
#[actix_web::test]
async fn a_publisher_that_learns_no_subject_does_not_blame_the_number_of_messages() {
    let (_server, _stream, settings) = without_permission_for("$JS.API.STREAM.INFO.>");
    let publisher = NatsPublisher::new(settings).unwrap();
    let entry = rejected_entry("1", b"x", "no event");
    let error = publisher.publish(&[&entry]).await.unwrap_err();
    assert!(
        matches!(error, SourceError::Unavailable { .. }),
        "{error:?}"
    );
    let error = error_chain(&error);
    assert!(error.contains("allow the user to publish"), "{error}");
}

#[actix_web::test]
async fn requests_that_end_at_once_are_made_now_and_then() {
    let (_server, stream) = anywhere();
    stream.create_consumer(&json!({ "max_ack_pending": 3 }));
    stream.publish(&numbered(0..10));
    let (ours, other) = (source(stream.settings()), source(stream.settings()));
    let _held = read_num(&ours, 3).await;
    let mut num_reads = 0;
    let reading = async {
        loop {
            other.read(WIDE).await.unwrap();
            num_reads += 1;
        }
    };
    timeout(Duration::from_secs(1), reading).await.ok();
    assert!((1..=15).contains(&num_reads), "{num_reads}");
}

/// Leads to that port, and lets 160 KiB a second through, in either direction.
fn slow_line_to(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own_port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                return;
            };
            let copies = [(&client, &server), (&server, &client)];
            for (mut from, mut to) in copies.map(|(from, to)| {
                let clone = |stream: &TcpStream| stream.try_clone().unwrap();
                (clone(from), clone(to))
            }) {
                std::thread::spawn(move || {
                    let mut buffer = [0; 16 << 10];
                    while let Ok(num @ 1..) = from.read(&mut buffer) {
                        std::thread::sleep(Duration::from_millis(100) * num as u32 / (16 << 10));
                        if to.write_all(&buffer[..num]).is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    own_port
}

#[actix_web::test]
async fn a_message_on_a_slow_line_is_waited_for() {
    let (server, stream) = anywhere();
    let large = "x".repeat(600_000);
    stream.publish(&[&large]);
    let port = slow_line_to(server.port());
    let settings = NatsSettings::from_url(&format!("nats://127.0.0.1:{port}")).unwrap();
    let source = source(settings);
    assert_eq!(raws(&read_num(&source, 1).await), [large]);
    assert_eq!(source.stats().status().num_redelivered, 0);
}

#[actix_web::test]
async fn what_is_published_on_a_slow_line_is_waited_for_as_long_as_answers_come() {
    let (server, stream) = anywhere();
    let port = slow_line_to(server.port());
    let settings = NatsSettings::from_url(&format!("nats://127.0.0.1:{port}")).unwrap();
    let publisher = NatsPublisher::new(settings).unwrap();
    let text = vec![b'x'; 100_000];
    let entries: Vec<_> = (0..10)
        .map(|_| rejected_entry("1", &text, "no event"))
        .collect();
    let entries: Vec<&Entry> = entries.iter().map(|entry| &**entry).collect();
    let published = publisher.publish(&entries).await.unwrap();
    assert!(published.iter().all(Result::is_ok), "{published:?}");
    assert_eq!(stream.info()["state"]["messages"], 10);
}

#[actix_web::test]
async fn a_consumer_that_would_lose_events_is_refused() {
    for (with, what) in [
        (json!({ "ack_policy": "none" }), "ack policy none"),
        (json!({ "max_deliver": 3 }), "after 3 deliveries"),
        (json!({ "headers_only": true }), "headers alone"),
        (
            json!({ "deliver_subject": "pushed" }),
            "pushes its messages",
        ),
    ] {
        let (_server, stream) = anywhere();
        stream.publish(&numbered(0..1));
        stream.create_consumer(&with);
        let source = source(stream.settings());
        let error = error_chain(&next_error(&source).await);
        assert!(error.contains(what), "{error}");
    }
}

#[actix_web::test]
async fn the_state_of_the_stream_is_told() {
    let (_server, stream) = anywhere();
    stream.publish(&numbered(0..10));
    let source = source(stream.settings());
    let held = read_num(&source, 10).await;
    stream.publish(&numbered(10..30));
    let stats = source.stats();
    // A look that began before may have seen less.
    until("all of it was seen", || {
        let status = stats.status();
        let held = (status.own_pending, status.consumer_pending);
        (held, status.lag, status.stream_messages) == ((10, 10), 20, 30)
    })
    .await;
    let status = stats.status();
    assert!(status.stream_bytes > 0);
    assert!(status.oldest_millis.is_some());
    acknowledge(&source, &held).await;
    let rest = read_num(&source, 20).await;
    acknowledge(&source, &rest).await;
    until("nothing is old, or left", || {
        let status = stats.status();
        (status.oldest_millis, status.lag) == (None, 0)
    })
    .await;
}

#[actix_web::test]
async fn a_server_that_is_killed_or_hangs_costs_nothing() {
    let (mut server, stream) = anywhere();
    let source = source(stream.settings());
    stream.publish(&numbered(0..20));
    let first = read_num(&source, 20).await;
    server.kill();
    let error = next_error(&source).await;
    assert!(
        error.to_string().starts_with("NATS at 127.0.0.1:"),
        "{error}"
    );
    assert!(source.acknowledge(&receipts(&first)).await.is_err());
    server.launch();
    acknowledge(&source, &first).await;
    stream.publish(&numbered(20..30));
    let second = read_num(&source, 10).await;
    server.stall();
    assert!(source.acknowledge(&receipts(&second)).await.is_err());
    server.resume();
    acknowledge(&source, &second).await;
    until("all is acknowledged", || stream.is_settled() == Some(true)).await;
}

#[actix_web::test]
async fn a_consumer_that_has_forgotten_what_it_gave_gives_it_again() {
    let (mut server, stream) = anywhere();
    let source = source(stream.settings());
    stream.publish(&numbered(0..5));
    let first = read_num(&source, 5).await;
    acknowledge(&source, &first).await;
    server.terminate();
    let state = server.consumer_state();
    server.launch();
    stream.publish(&numbered(5..25));
    let read = read_num(&source, 20).await;
    let (committed, held) = read.split_at(10);
    server.kill_back_to(&state);
    assert!(source.acknowledge(&receipts(committed)).await.is_err());
    server.launch();
    assert_eq!(stream.consumer()["delivered"]["stream_seq"], 5);
    // There is nothing to be confirmed, though nothing was read meanwhile.
    acknowledge(&source, committed).await;
    let again = read_num(&source, 10).await;
    assert_eq!(raws(&again), numbered(5..15), "what is held comes once");
    acknowledge(&source, &again).await;
    acknowledge(&source, held).await;
    until("all is acknowledged", || stream.is_settled() == Some(true)).await;
    until("nothing is pending", || {
        source.stats().status().own_pending == 0
    })
    .await;
    assert_eq!(source.stats().status().num_lost, 0);
}

/// The other has been given what was forgotten: it is the other's to acknowledge.
#[actix_web::test]
async fn what_was_forgotten_and_given_to_another_is_nobodys_burden() {
    let (mut server, stream) = anywhere();
    let (ours, other) = (source(stream.settings()), source(stream.settings()));
    stream.publish(&numbered(0..1));
    let first = read_num(&ours, 1).await;
    acknowledge(&ours, &first).await;
    server.terminate();
    let state = server.consumer_state();
    server.launch();
    stream.publish(&numbered(1..6));
    let held = read_num(&ours, 5).await;
    server.kill_back_to(&state);
    server.launch();
    let again = read_num(&other, 5).await;
    assert_eq!(raws(&again), raws(&held));
    acknowledge(&other, &again).await;
    acknowledge(&ours, &held).await;
    until("nothing is pending", || {
        let num_held = |source: &NatsSource| source.stats().status().own_pending;
        num_held(&ours) == 0 && num_held(&other) == 0
    })
    .await;
    assert_eq!(stream.is_settled(), Some(true));
}

#[actix_web::test]
async fn nothing_is_acknowledged_that_another_primary_may_lack() {
    let (_server, stream) = anywhere();
    stream.publish(&numbered(0..4));
    let settings = stream.settings();
    let primary = settings.primary.clone();
    let on = |timeline| Primary {
        system: 7,
        timeline,
    };
    let source = source(settings);
    let held = read_num(&source, 4).await;
    primary.meet(on(1)).unwrap();
    acknowledge(&source, &held[..1]).await;
    primary.meet(on(2)).unwrap();
    acknowledge(&source, &held[1..]).await;
    let again = read_num(&source, 3).await;
    assert_eq!(raws(&again), numbered(1..4));
    acknowledge(&source, &again).await;
    assert_eq!(stream.num_pending(), 0);
}

/// Nobody brings receipts any more: what is not confirmed is sent once more by the source itself.
#[actix_web::test]
async fn what_waits_for_a_server_is_not_acknowledged_after_the_primary_has_changed() {
    let (mut server, stream) = anywhere();
    stream.publish(&numbered(0..2));
    let settings = stream.settings();
    let primary = settings.primary.clone();
    let on = |timeline| Primary {
        system: 7,
        timeline,
    };
    primary.meet(on(1)).unwrap();
    let source = source(settings);
    let held = read_num(&source, 2).await;
    server.terminate();
    assert!(source.acknowledge(&receipts(&held)).await.is_err());
    primary.meet(on(2)).unwrap();
    server.launch();
    let again = read_num(&source, 2).await;
    assert_eq!(raws(&again), numbered(0..2));
    acknowledge(&source, &again).await;
    assert_eq!(stream.num_pending(), 0);
}

#[actix_web::test]
async fn logins_are_used_and_wrong_ones_told_without_the_password() {
    for options in [
        NatsOptions {
            user_and_password: Some(("me", "s3cret")),
            ..NatsOptions::default()
        },
        NatsOptions {
            token: Some("s3cret"),
            ..NatsOptions::default()
        },
    ] {
        let server = NatsServer::start_with(options);
        let stream = server.with_stream();
        stream.publish(&numbered(0..1));
        let right = source(stream.settings());
        assert_eq!(read_num(&right, 1).await.len(), 1);
        let url = server.url().replace("s3cret", "wr0ng");
        let wrong = source(NatsSettings::from_url(&url).unwrap());
        let error = error_chain(&next_error(&wrong).await);
        assert!(error.contains("are wrong: correct nats.url"), "{error}");
        assert!(!error.contains("wr0ng"), "{error}");
    }
}

#[actix_web::test]
async fn a_credentials_file_lets_in_and_another_does_not() {
    let ours = Credentials::new();
    let server = NatsServer::start_with(NatsOptions {
        credentials: Some(ours.clone()),
        ..NatsOptions::default()
    });
    let stream = server.with_stream();
    stream.publish(&numbered(0..1));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("user.creds");
    let settings = NatsSettings {
        creds_file: Some(file.clone()),
        ..stream.settings()
    };
    let error = error_chain(&next_error(&source(settings.clone())).await);
    assert!(error.contains("user.creds"), "{error}");
    std::fs::write(&file, Credentials::new().file()).unwrap();
    let reading = source(settings);
    let error = error_chain(&next_error(&reading).await);
    assert!(
        error.contains("are wrong: correct nats.url or nats.creds_file"),
        "{error}"
    );
    // A file that is put right counts with the next connection.
    std::fs::write(&file, ours.file()).unwrap();
    assert_eq!(read_num(&reading, 1).await.len(), 1);
}

#[actix_web::test]
async fn tls_is_spoken_and_a_stranger_is_not_trusted() {
    let server = NatsServer::start_with(NatsOptions {
        tls: true,
        ..NatsOptions::default()
    });
    let settings = NatsSettings {
        ca_file: Some(server.ca_file()),
        ..NatsSettings::from_url(&server.url()).unwrap()
    };
    // It answers, and has no stream.
    let error = error_chain(&next_error(&source(settings.clone())).await);
    assert!(error.contains("nats stream add"), "{error}");
    let stranger = NatsSettings {
        ca_file: None,
        url: server.url().replace("nats:", "tls:").parse().unwrap(),
        ..settings
    };
    let error = error_chain(&next_error(&source(stranger)).await);
    assert!(!error.contains("nats stream add"), "{error}");
    assert!(
        error.contains("TLS") || error.contains("certificate"),
        "{error}"
    );
}
