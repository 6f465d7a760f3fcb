//! Every metric of the document, with the value that a fault predicts.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::json;
use tokio_postgres::NoTls;

use super::scrape::Numbers;
use crate::support::bus::Bus;
use crate::support::events::{event_with, events, ids, list, texts};
use crate::support::postgres;
use crate::support::server::Server;

const DOCUMENT: &str = include_str!("../../../deploy/METRICS.md");

fn documented() -> BTreeSet<String> {
    let lines = DOCUMENT.lines();
    lines
        .filter_map(|line| line.strip_prefix("| `event_persister_")?.split('`').next())
        .map(str::to_owned)
        .collect()
}

/// The seconds of a stream's id.
fn seconds(id: &str) -> f64 {
    let (millis, _) = id.split_once('-').unwrap();
    millis.parse::<f64>().unwrap() / 1000.0
}

/// Good ones, one of them twice, and each kind of bad one; some are beyond their retention.
async fn load_with_poison(bus: &Bus, numbers: &Numbers<'_>) {
    let good = events(60);
    let mut old: Vec<_> = (0..5).map(|_| event_with(0)).collect();
    for event in &mut old {
        event["occurred"] = "2020-01-01T00:00:00Z".into();
    }
    let mut poison = event_with(0);
    poison["payload"] = json!({"text": "\u{0}"});
    let mut all = texts(&good);
    all.extend(texts(&[good[0].clone(), poison]));
    all.extend(texts(&old));
    all.extend(["no event".to_owned(), String::new()]);
    bus.stream.publish(&all);
    bus.until_settled(numbers.server).await;
    numbers
        .are(&[
            ("received_total", 69.0),
            ("redelivered_total", 0.0),
            ("stored_total", 65.0),
            ("duplicates_total", 1.0),
            ("dead_lettered_total{stage=\"parse\"}", 1.0),
            ("dead_lettered_total{stage=\"store\"}", 1.0),
            ("refused_by_store_total{reason=\"invalid_data\"}", 1.0),
            ("refused_by_store_total", 1.0),
            ("ignored_total", 1.0),
            ("released_total", 0.0),
            ("in_flight", 0.0),
            ("in_flight_bytes", 0.0),
            ("writers_busy", 0.0),
            ("oldest_unflushed_seconds", 0.0),
            // The empty one is in no batch.
            ("batch_events_sum", 68.0),
            ("generation", 1.0),
            ("ready", 1.0),
            ("reading_paused", 0.0),
            ("component_up{component=\"store\"}", 1.0),
            ("component_up{component=\"source.redis\"}", 1.0),
            ("component_up", 5.0),
            ("build_info", 1.0),
            ("retries_total", 0.0),
        ])
        .await;
    numbers
        .are_above_zero(&[
            "batches_total",
            "batch_bytes_sum",
            "flush_seconds_sum",
            "commit_age_seconds_sum",
        ])
        .await;
    of_the_stream(bus, numbers).await;
    // Each has one resource.
    numbers
        .are(&[
            ("trimmed_events_total", 5.0),
            ("trimmed_resources_total", 5.0),
            ("trimmed_partitions_total", 0.0),
            ("trim_passes_total{outcome=\"failed\"}", 0.0),
        ])
        .await;
    numbers
        .are_above_zero(&[
            "trim_passes_total{outcome=\"done\"}",
            "trim_seconds_count",
            "older_than_retention_total",
        ])
        .await;
}

/// The stream is settled, and shorter than the alarm allows.
async fn of_the_stream(bus: &Bus, numbers: &Numbers<'_>) {
    // It is moved every second.
    numbers
        .until("redis_guard_age_seconds", |age| age <= 1.0)
        .await;
    numbers
        .are(&[
            ("redis_stream_length", 69.0),
            ("redis_own_pending", 0.0),
            ("redis_group_pending", 0.0),
            ("redis_lag", 0.0),
            ("redis_lag_seconds", 0.0),
            ("redis_guard", 1.0),
            ("redis_guard_position_seconds", seconds(&bus.last_id())),
            ("redis_guard_max_entries", 100.0),
            ("redis_guard_alarm", 0.0),
            ("redis_lost_total", 0.0),
            ("redis_claimed_total", 0.0),
            ("redis_rejoined_total", 0.0),
        ])
        .await;
}

async fn requests_are_refused(numbers: &Numbers<'_>) {
    let server = numbers.server;
    assert_eq!(server.post_status("[null]").await, 422);
    assert_eq!(server.post_status("[null]").await, 422);
    assert_eq!(server.post_status("no JSON").await, 400);
    assert_eq!(server.get("/nothing").await.status(), 404);
    numbers
        .are(&[
            ("http_refused_total{status=\"400\"}", 1.0),
            ("http_refused_total{status=\"404\"}", 1.0),
            ("http_refused_total{status=\"422\"}", 2.0),
            ("http_refused_total", 4.0),
        ])
        .await;
}

/// The database is away; 50 events wait in the stream and 3 in the intake.
async fn the_database_is_away(bus: &Bus, numbers: &Numbers<'_>) {
    let published = bus.stream.publish(&texts(&events(50)));
    let waiting = list(&events(3));
    let mut post = std::pin::pin!(numbers.server.post(waiting).send());
    let seen = async {
        numbers
            .are(&[
                ("intake_events", 3.0),
                ("in_flight", 53.0),
                ("redis_own_pending", 50.0),
                ("redis_group_pending", 50.0),
                ("redis_guard_position_seconds", seconds(&published[0])),
                // 69 before.
                ("redis_stream_length", 119.0),
                ("redis_guard_alarm", 1.0),
                ("ready", 0.0),
                ("component_up{component=\"store\"}", 0.0),
                ("component_up{component=\"trim\"}", 0.0),
                ("component_up{component=\"source.redis\"}", 1.0),
                ("stored_total", 65.0),
            ])
            .await;
        numbers
            .are_above_zero(&[
                "intake_bytes",
                "in_flight_bytes",
                "oldest_unflushed_seconds",
                "redis_lag_seconds",
                "retries_total{kind=\"unavailable\"}",
                "trim_passes_total{outcome=\"failed\"}",
            ])
            .await;
        let (_, readiness) = numbers.server.readiness().await;
        let warning = readiness["warnings"][0].as_str().unwrap_or_default();
        let told = warning.starts_with("source.redis: the stream has 119 entries");
        assert!(told, "{readiness}");
        // They grow for as long as it lasts.
        let is_old = |seconds| seconds > 1.5;
        numbers.until("oldest_unflushed_seconds", is_old).await;
        numbers.until("redis_lag_seconds", is_old).await;
        // Questions about health are no refusals.
        assert_eq!(numbers.server.readiness().await.0, 503);
        numbers.are(&[("http_refused_total", 4.0)]).await;
    };
    tokio::select! {
        biased;
        _ = &mut post => panic!("answered although nothing can be committed"),
        () = seen => {}
    }
}

async fn a_successor_takes_over(numbers: &Numbers<'_>) {
    numbers
        .are(&[
            ("redis_claimed_total", 50.0),
            ("redelivered_total", 50.0),
            ("stored_total", 50.0),
            ("redis_group_pending", 0.0),
            ("redis_lag_seconds", 0.0),
            ("intake_events", 0.0),
        ])
        .await;
}

async fn redis_is_away(bus: &mut Bus, numbers: &Numbers<'_>) {
    bus.redis.kill();
    numbers
        .are(&[
            ("component_up{component=\"source.redis\"}", 0.0),
            ("component_up{component=\"store\"}", 1.0),
            ("ready", 0.0),
        ])
        .await;
    numbers
        .are_above_zero(&["retries_total{kind=\"read\"}"])
        .await;
    bus.redis.launch();
    let up = ("component_up{component=\"source.redis\"}", 1.0);
    numbers.are(&[up, ("ready", 1.0)]).await;
}

async fn the_stream_is_deleted(bus: &Bus, numbers: &Numbers<'_>) {
    numbers.are(&[("redis_lost_total", 10.0)]).await;
    bus.stream.command::<()>("FLUSHALL");
    numbers.are(&[("redis_rejoined_total", 1.0)]).await;
}

async fn the_database_refuses_everything(database: &postgres::Database, numbers: &Numbers<'_>) {
    database.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'not today'; END $$; \
         CREATE TRIGGER no BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION no()",
    );
    assert_eq!(numbers.server.post_status(list(&events(600))).await, 204);
    numbers
        .are(&[
            ("refused_by_store_total{reason=\"raised\"}", 600.0),
            ("dead_lettered_total{stage=\"store\"}", 600.0),
            ("reading_paused", 1.0),
            ("component_up{component=\"store.refusals\"}", 0.0),
            ("component_up{component=\"store\"}", 1.0),
            ("ready", 0.0),
        ])
        .await;
    database.execute("DROP TRIGGER no ON events");
    assert_eq!(numbers.server.post_status(list(&events(3))).await, 204);
    numbers
        .are(&[("reading_paused", 0.0), ("ready", 1.0)])
        .await;
}

/// Somebody else has begun to write one of them, and does not come to an end.
async fn an_event_is_held_up(bus: &Bus, database: &postgres::Database, numbers: &Numbers<'_>) {
    let (client, connection) = tokio_postgres::connect(&database.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let events = events(3);
    let id = ids(&events)[1].clone();
    let insert = format!(
        "BEGIN; INSERT INTO events (id, occurred, event, resource_id, resource, related, payload, received, \
         recorded) VALUES ('{id}', now(), 'e', 'r', '{{}}', '[]', '{{}}', now(), now())"
    );
    client.batch_execute(&insert).await.unwrap();
    bus.stream.publish(&texts(&events));
    numbers.are(&[("degraded", 1.0), ("ready", 1.0)]).await;
    let (status, ready) = numbers.server.readiness().await;
    assert_eq!(status, 200);
    assert!(ready["degraded"].as_str().unwrap().contains(&id), "{ready}");
    client.batch_execute("ROLLBACK").await.unwrap();
    numbers.are(&[("degraded", 0.0), ("in_flight", 0.0)]).await;
}

async fn a_consumer_dies(bus: &Bus, numbers: &Numbers<'_>) {
    bus.stream.publish(&texts(&events(400)));
    numbers.are(&[("generation", 2.0)]).await;
    bus.until_settled(numbers.server).await;
    numbers.are(&[("in_flight", 0.0), ("ready", 1.0)]).await;
    let metrics = numbers.server.metrics().await;
    let value = |name| metrics.value(name).unwrap();
    // What was released came again, and what was stored and not acknowledged.
    assert!(value("redelivered_total") >= value("released_total"));
    assert!(value("redelivered_total") > 0.0, "{}", metrics.text());
    // What a writer commits while its generation is retired, the next one finds as duplicates.
    assert!(value("stored_total") <= 400.0, "{}", metrics.text());
    assert!(value("stored_total") + value("duplicates_total") >= 400.0);
}

/// A service that is asked for numbers while `what` happens to it.
async fn during(
    server: &Server,
    asked: &RefCell<BTreeSet<String>>,
    what: impl AsyncFnOnce(&Numbers<'_>),
) {
    what(&Numbers { server, asked }).await;
}

#[tokio::test]
async fn every_number_says_what_has_happened() {
    let postgres = postgres::Server::start("fsync = off\n");
    let database = postgres.database();
    let mut bus = Bus::into_postgres(&database);
    for (name, value) in [
        ("EVENT_PERSISTER_TRIM_EVERY", "200ms"),
        ("EVENT_PERSISTER_REDIS_GUARD_MAX_ENTRIES", "100"),
        ("EVENT_PERSISTER_HTTP_REQUEST_TIMEOUT", "120s"),
        ("EVENT_PERSISTER_BATCH_MAX_EVENTS", "700"),
    ] {
        bus.set(name, value);
    }
    let asked = RefCell::default();
    let server = bus.start().ready().await;
    during(&server, &asked, async |numbers| {
        load_with_poison(&bus, numbers).await;
        requests_are_refused(numbers).await;
        postgres.stop("fast");
        the_database_is_away(&bus, numbers).await;
    })
    .await;
    server.kill_9();
    postgres.start_again();

    let server = bus.start().ready().await;
    during(&server, &asked, async |numbers| {
        a_successor_takes_over(numbers).await;
    })
    .await;
    server.terminate().in_good_order();
    // Somebody trims what nobody has read.
    bus.stream.publish(&texts(&events(10)));
    bus.stream.command::<u64>("XTRIM events MAXLEN 0");

    let server = bus.start().ready().await;
    during(&server, &asked, async |numbers| {
        the_stream_is_deleted(&bus, numbers).await;
        an_event_is_held_up(&bus, &database, numbers).await;
        the_database_refuses_everything(&database, numbers).await;
    })
    .await;
    server.terminate().in_good_order();

    bus.set("EVENT_PERSISTER_BATCH_MAX_EVENTS", "50");
    let panics = "consumer::before-acknowledge=1*panic(on purpose)";
    let server = bus.start_with("FAILPOINTS", panics).ready().await;
    during(&server, &asked, async |numbers| {
        a_consumer_dies(&bus, numbers).await;
        // Last, since a Redis that comes back no longer knows how much a group has read.
        redis_is_away(&mut bus, numbers).await;
    })
    .await;
    server.terminate().in_good_order();
    let asked = asked.into_inner();
    let mut documented = documented();
    // Those of another bus, of the bridge and of the archive have tests of their own.
    let others = ["nats_", "bridge_", "archive_"];
    documented.retain(|name| !others.iter().any(|other| name.starts_with(other)));
    let not_asked: Vec<_> = documented.difference(&asked).cloned().collect();
    assert!(not_asked.is_empty(), "{not_asked:?}");
}
