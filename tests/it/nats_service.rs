//! The binary with NATS as its bus, as an operator runs it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::binary::{Folder, Ran};
use crate::support::bus::{NatsBus, TestBus};
use crate::support::events;
use crate::support::nats::NatsServer;
use crate::support::server::Server;
use crate::support::wait::PATIENCE;

/// Where nobody writes, the second look of `verify` need not wait.
const NOBODY_WRITES: (&str, &str) = ("FAILPOINTS", "verify::nobody-writes=return");

fn run(bus: &NatsBus, arguments: &[&str]) -> Ran {
    let mut variables = bus.variables();
    variables.push(NOBODY_WRITES);
    bus.folder.run_with(arguments, &variables)
}

/// The ids of what was found, and how bad it is.
fn found(checked: &Ran) -> Vec<(String, String)> {
    let document = checked.json();
    let findings = document["findings"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    findings
        .map(|finding| (text(&finding["id"]), text(&finding["severity"])))
        .filter(|(id, severity)| id.starts_with("nats.") && severity != "ok")
        .collect()
}

#[tokio::test]
async fn events_are_stored_and_what_is_none_becomes_a_letter() {
    let bus = NatsBus::into_sqlite();
    let events = events::events(50);
    let mut client = bus.stream.connect().unwrap();
    for event in &events {
        // Twice, as a publisher does that was not sure; the stream takes it once.
        let header = format!("Nats-Msg-Id: {}", events::id(event));
        for _ in 0..2 {
            client
                .send("events.orders", &header, event.to_string().as_bytes())
                .unwrap();
            client.answer().unwrap();
        }
    }
    bus.stream.publish(&["no event", "", "\u{0}\u{1}"]);
    bus.stream.publish(&[b"\xff\xfe{\"broken".to_vec()]);
    let server = bus.start().ready().await;
    bus.until_settled(&server).await;
    assert_eq!(
        server.database().complete_events(),
        events::ids(&events).into_iter().collect()
    );
    let letters = bus.folder.dead_letters();
    let mut positions: Vec<_> = letters
        .iter()
        .map(|letter| {
            format!(
                "{}:{}",
                letter["source"].as_str().unwrap(),
                letter["position"].as_str().unwrap()
            )
        })
        .collect();
    positions.sort();
    assert_eq!(positions, ["nats:51", "nats:53", "nats:54"]);

    let (_, ready) = server.readiness().await;
    assert!(ready.to_string().contains("source.nats"), "{ready}");
    let metrics = server.metrics().await;
    assert_eq!(metrics.count("ignored_total"), 1);
    server
        .until("its numbers are those of the end", || {
            bus.stream.is_settled() == Some(true)
        })
        .await;
    let status: Value = server.get("/api/status").await.json().await.unwrap();
    assert_eq!(status["stream"]["kind"], "nats");
    assert_eq!(status["stream"]["group"], "event-persister");
    assert_eq!(status["guard"], Value::Null);
    let ended = server.terminate().in_good_order();
    assert_eq!(ended.ledger()("stored"), 50);
}

#[tokio::test]
async fn verify_finds_what_is_missing_and_says_how_to_have_it_read_again() {
    let bus = NatsBus::into_sqlite();
    let events = events::events(1500);
    bus.stream.publish(&events::texts(&events));
    let server = bus.start().ready().await;
    bus.until_settled(&server).await;
    let well = run(&bus, &["verify", "--json"]).exits(0).json();
    assert_eq!(well["stream"]["checked"], 1500);
    assert_eq!(well["stream"]["stored"], 1500);
    assert_eq!(well["stream"]["pending"], 0);

    let id = events::id(&events[7]);
    server.database().execute(&format!(
        "DELETE FROM event_resources WHERE event_id = '{id}'"
    ));
    server
        .database()
        .execute(&format!("DELETE FROM events WHERE id = '{id}'"));
    let bad = run(&bus, &["verify", "--json"]).exits(1).json();
    assert_eq!(bad["missing"], 1);
    assert_eq!(bad["findings"][0]["stream_id"], "8");
    assert_eq!(
        bad["read_again"],
        "nats consumer rm events event-persister --force"
    );

    bus.stream.delete_consumer();
    server
        .until("stored again", || server.database().num_events() == 1500)
        .await;
    bus.until_settled(&server).await;
    run(&bus, &["verify"]).exits(0).prints(&["all is well"]);
    // Its own readers are gone.
    assert_eq!(bus.stream.info()["state"]["consumer_count"], 1);
}

#[tokio::test]
async fn verify_compares_what_the_consumer_was_to_read() {
    let bus = NatsBus::into_sqlite();
    bus.stream.publish(&events::texts(&events::events(5)));
    bus.stream
        .create_consumer(&json!({ "deliver_policy": "new" }));
    bus.stream.publish(&events::texts(&events::events(5)));
    let server = bus.start().ready().await;
    bus.until_settled(&server).await;
    let well = run(&bus, &["verify", "--json"]).exits(0).json();
    assert_eq!(well["stream"]["checked"], 5);

    bus.stream.delete();
    bus.stream.create(&json!({ "retention": "workqueue" }));
    bus.stream.publish(&events::texts(&events::events(5)));
    bus.until_settled(&server).await;
    run(&bus, &["verify"])
        .exits(0)
        .prints(&["all is well", "nothing of it was compared"]);
}

/// The numbers of NATS, as the next scrapes tell them.
async fn until_numbers(server: &Server, are_right: impl Fn(&dyn Fn(&str) -> f64) -> bool) {
    let started = Instant::now();
    loop {
        let metrics = server.metrics().await;
        let of = |name: &str| metrics.value(&format!("nats_{name}")).unwrap();
        if are_right(&of) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{}", metrics.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn every_number_of_nats_says_what_has_happened() {
    let mut bus = NatsBus::into_sqlite();
    // So that some of what comes is not even read while the database is locked.
    bus.set("EVENT_PERSISTER_BATCH_MAX_EVENTS", "10");
    let server = bus.start().ready().await;
    bus.stream.publish(&events::texts(&events::events(5)));
    until_numbers(&server, |of| {
        of("stream_messages") == 5.0 && of("stream_bytes") > 500.0 && of("own_pending") == 0.0
    })
    .await;
    let lock = server.database().lock();
    bus.stream.publish(&events::texts(&events::events(500)));
    until_numbers(&server, |of| {
        of("own_pending") > 0.0
            && of("consumer_pending") == of("own_pending")
            && of("lag") == 500.0 - of("consumer_pending")
            && of("lag_seconds") > 1.0
    })
    .await;
    server.kill_9();
    lock.release();
    let server = bus.start().ready().await;
    until_numbers(&server, |of| {
        of("lag") == 0.0
            && of("consumer_pending") == 0.0
            && of("lag_seconds") == 0.0
            && of("redelivered_total") > 0.0
            && of("rejoined_total") == 0.0
    })
    .await;
    bus.stream.delete_consumer();
    until_numbers(&server, |of| of("rejoined_total") == 1.0).await;
    bus.until_settled(&server).await;
    until_numbers(&server, |of| {
        of("own_pending") == 0.0 && of("lost_total") == 0.0
    })
    .await;
    server.signal("STOP");
    bus.stream.publish(&events::texts(&events::events(100)));
    bus.stream.api("STREAM.PURGE.events", &json!({}));
    server.signal("CONT");
    // A request that was under way has taken at most as many as are let in flight.
    until_numbers(&server, |of| of("lost_total") >= 60.0).await;
    bus.until_settled(&server).await;
    let lost = server.metrics().await.count("nats_lost_total");
    assert_eq!(server.database().num_events() as u64 + lost, 605);
}

#[test]
fn check_says_what_is_there_and_what_hurts() {
    let server = NatsServer::start();
    let folder = Folder::new();
    let stream = server.stream();
    let url = server.url();
    let variables = [
        ("EVENT_PERSISTER_NATS_URL", url.as_str()),
        ("EVENT_PERSISTER_LISTEN", "off"),
    ];
    let check = || folder.run_with(&["check", "--json"], &variables);

    let missing = check().exits(1);
    assert_eq!(
        found(&missing),
        [("nats.stream".to_owned(), "error".to_owned())]
    );
    let text = folder.run_with(&["check"], &variables).stdout;
    assert!(
        text.contains("nats stream add events --subjects events"),
        "{text}"
    );

    stream.create(&json!({ "max_age": 600_000_000_000_u64 }));
    stream.publish(&["one"]);
    let fresh = check().exits(0);
    assert_eq!(found(&fresh), []);
    let document = fresh.json();
    assert_eq!(document["nats"]["found"]["messages"], 1);
    assert_eq!(document["nats"]["found"]["consumer_state"], Value::Null);
    assert_eq!(document["redis"], Value::Null);
    assert!(stream.consumer()["error"].is_object(), "it changes nothing");

    stream.create_consumer(&json!({ "max_deliver": 5, "filter_subject": "events.a" }));
    let bad = check().exits(1);
    let ids = [
        ("nats.max_deliver", "error"),
        ("nats.filter", "warning"),
        ("nats.max_ack_pending", "warning"),
    ];
    let ids = ids.map(|(id, severity)| (id.to_owned(), severity.to_owned()));
    assert_eq!(found(&bad), ids);

    drop(server);
    let away = check().exits(1);
    assert_eq!(
        found(&away),
        [("nats.reachable".to_owned(), "error".to_owned())]
    );
}

/// The same bus, empty; what is published to it ends up in the file of its folder.
async fn publishes_a_file(bus: &impl TestBus, to: &str) {
    let events = events::events(1200);
    let file = format!("{}no event\n", events::lines(&events));
    bus.folder().write("events.jsonl", file);
    let import = ["import", "events.jsonl", "--to", to, "--json"];
    let summary = bus.folder().run(&import).exits(1).json();
    assert_eq!(
        (&summary["stored"], &summary["dead_letters"]),
        (&json!(1200), &json!(1))
    );
    // Nothing was stored here.
    assert!(!bus.folder().database_path().exists());
    let server = bus.start().ready().await;
    bus.until_settled(&server).await;
    server.database().has_all(&events::ids(&events));
    assert_eq!(server.database().num_events(), 1200);
    server.terminate().in_good_order();
}

#[tokio::test]
async fn a_file_is_published_to_nats_as_often_as_somebody_says_so() {
    let bus = NatsBus::into_sqlite();
    publishes_a_file(&bus, bus.stream.url()).await;
    let again = ["import", "events.jsonl", "--to", "bus"];
    let ran = run(&bus, &again).exits(1);
    assert!(ran.stdout.contains("published 1200, refused 1"), "{ran:?}");
    // The ids are within the stream's window, and a purge may have removed what it had.
    assert_eq!(bus.stream.info()["state"]["last_seq"], 2400);
    let folder = Folder::new();
    folder.write("events.jsonl", events::lines(&events::events(1)));
    let away = [
        "import",
        "events.jsonl",
        "--to",
        "nats://127.0.0.1:1",
        "--wait",
        "100ms",
    ];
    folder
        .run(&away)
        .exits(1)
        .complains(&["without the bus", "NATS at 127.0.0.1:1"]);
    let wrong = ["import", "events.jsonl", "--to", "kafka://host"];
    folder.run(&wrong).exits(2).complains(&["nats://"]);
    let none = ["import", "events.jsonl", "--to", "bus"];
    folder
        .run(&none)
        .exits(2)
        .complains(&["no bus is configured"]);
}

/// The client drops the connection at headers that it cannot parse.
#[tokio::test]
async fn verify_reads_past_messages_whose_headers_cannot_be_read() {
    let bus = NatsBus::into_sqlite();
    let events = events::events(40);
    let texts = events::texts(&events);
    let mut client = bus.stream.connect().unwrap();
    for (number, text) in texts.iter().enumerate() {
        let headers: &[u8] = match number {
            0 | 17 | 18 | 39 => b"NATS/1.0\r\nBroken header\r\n\r\n",
            _ => b"",
        };
        client
            .send_with("events.orders", headers, text.as_bytes())
            .unwrap();
        client.answer().unwrap();
    }
    let server = bus.start().ready().await;
    bus.until_settled(&server).await;
    let well = run(&bus, &["verify", "--json"]).exits(0).json();
    assert_eq!(well["stream"]["checked"], 40);
    assert_eq!(well["stream"]["stored"], 40);
    let id = events::id(&events[18]);
    for (table, column) in [("event_resources", "event_id"), ("events", "id")] {
        let delete = format!("DELETE FROM {table} WHERE {column} = '{id}'");
        server.database().execute(&delete);
    }
    let bad = run(&bus, &["verify", "--json"]).exits(1).json();
    assert_eq!(bad["missing"], 1);
    assert_eq!(bad["findings"][0]["stream_id"], "19");
    // Only the service's own consumer is left.
    assert_eq!(bus.stream.info()["state"]["consumer_count"], 1);
}

/// The stream has seen the id, and would drop what comes under it within its window.
#[tokio::test]
async fn an_event_that_was_mended_is_published_and_stored() {
    let bus = NatsBus::into_sqlite();
    let event = events::events(1).remove(0);
    let mut broken = event.clone();
    broken.as_object_mut().unwrap().remove("occurred");
    let mut client = bus.stream.connect().unwrap();
    let header = format!("Nats-Msg-Id: {}", events::id(&event));
    client
        .send("events.orders", &header, broken.to_string().as_bytes())
        .unwrap();
    client.answer().unwrap();
    let server = bus.start().ready().await;
    bus.until_settled(&server).await;
    assert_eq!(bus.folder.dead_letters().len(), 1);
    let file = events::lines(std::slice::from_ref(&event));
    bus.folder.write("mended.jsonl", file);
    run(&bus, &["import", "mended.jsonl", "--to", "bus"]).exits(0);
    bus.until_settled(&server).await;
    let stored = server.database().complete_events();
    assert_eq!(stored.into_iter().collect::<Vec<_>>(), [events::id(&event)]);
    server.terminate().in_good_order();
}

/// What was read and is not stored is nowhere else once the stream has removed it.
#[tokio::test]
async fn what_the_stream_removes_before_it_is_stored_is_warned_of_and_told_when_the_process_ends() {
    let mut bus = NatsBus::into_sqlite();
    bus.set("EVENT_PERSISTER_PIPELINE_DRAIN_TIMEOUT", "500ms");
    let events = events::events(20);
    let (first, rest) = events.split_at(1);
    bus.stream.publish(&events::texts(first));
    let server = bus.start().ready().await;
    bus.until_settled(&server).await;
    let lock = server.database().lock();
    bus.stream.publish(&events::texts(rest));
    server
        .until("all are read", || bus.stream.num_pending() == 19)
        .await;
    bus.stream.api("STREAM.PURGE.events", &json!({}));
    server.logged("has removed messages that are read and not yet stored");
    let ended = server.terminate();
    assert!(ended.log.contains("num_lost=19"), "{}", ended.log);
    lock.release();
}

#[tokio::test]
async fn what_a_stream_does_not_take_is_refused_alone() {
    let bus = NatsBus::into_sqlite();
    let mut events = events::events(20);
    events[3]["payload"]["text"] = events::incompressible(1 << 20).into();
    bus.folder.write("events.jsonl", events::lines(&events));
    let ran = run(&bus, &["import", "events.jsonl", "--to", "bus"]).exits(1);
    assert!(ran.stdout.contains("published 19, refused 1"), "{ran:?}");
    assert!(
        ran.stderr.contains("larger than the server takes"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn a_file_is_published_to_redis_in_prefects_own_form() {
    let bus = crate::support::bus::Bus::into_sqlite();
    publishes_a_file(&bus, &bus.redis.url()).await;
    let first: ::redis::Value = bus.stream.command("XRANGE events - + COUNT 1");
    let text = format!("{first:?}");
    assert!(
        text.contains("attributes") && text.contains("data"),
        "{text}"
    );
}

#[test]
fn two_buses_are_refused_by_name() {
    let folder = Folder::new();
    let both = [
        ("EVENT_PERSISTER_NATS_URL", "nats://me:hunter2@n"),
        ("EVENT_PERSISTER_REDIS_URL", "redis://r"),
    ];
    folder
        .run_with(&["serve"], &both)
        .exits(2)
        .complains(&["redis.url", "nats.url", "reads one"]);
    let shown = folder.run_with(&["config", "show"], &both[..1]).exits(0);
    assert!(
        shown.stdout.contains("nats://me:***@n:4222"),
        "{}",
        shown.stdout
    );
    assert!(!shown.stdout.contains("hunter2"));
    folder
        .run_with(&["guard", "show"], &both[..1])
        .exits(2)
        .complains(&["--redis-url"]);
}
