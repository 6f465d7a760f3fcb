//! Retention drops a partition once all that it holds is expired.

use std::collections::BTreeMap;
use std::time::Duration;

use event_persister_actors::store::operator::HalfEvents;
use tokio::time::Instant;

use super::*;

const NAMES: [&str; 4] = ["plain", "other", "short", "long"];

fn named(name: &str, at: DateTime<Utc>) -> ReceivedEvent {
    EventFixture {
        event: name.to_owned(),
        ..occurred(at)
    }
    .build()
}

fn cutoffs(default: i64, overrides: &[(&str, i64)]) -> Cutoffs {
    let overrides = overrides.iter();
    Cutoffs {
        default: days_ago(default),
        overrides: overrides
            .map(|(name, days)| ((*name).to_owned(), days_ago(*days)))
            .collect(),
    }
}

/// The partitions of `events` but for the default one and those ahead.
fn past(database: &Database) -> Vec<String> {
    let today = of_day("events", SystemClock.now());
    let mut partitions = partitions_of(database, "events");
    partitions.retain(|name| *name != "events_default" && (*name < today || name.contains("kept")));
    partitions
}

#[actix::test]
async fn a_partition_goes_whole_with_all_that_it_holds() {
    let (database, store) = partitioned(Period::Day).await;
    let events: Vec<_> = (1..=9)
        .flat_map(|days| [(); 5].map(|()| named("plain", days_ago(days))))
        .collect();
    for events in events.chunks(15) {
        store.write(batch(events)).await.unwrap();
    }
    let before = database.value("SELECT oid FROM pg_class WHERE relname = 'events'");
    let cutoffs = cutoffs(5, &[]);
    let counted = store.count_expired(&cutoffs).await.unwrap();
    // The day of the cutoff is in part expired: its rows are all of noon, which is not.
    assert_eq!(
        counted,
        Trimmed {
            events: 20,
            resources: 40
        }
    );
    let step = store.trim(&cutoffs, NonZeroUsize::MIN).await.unwrap();
    let TrimStep::Removed(removed) = step else {
        panic!("{step:?}");
    };
    assert!(removed.with_their_table);
    assert_eq!(
        removed.rows,
        Trimmed {
            events: 5,
            resources: 10
        },
        "the oldest first"
    );
    let removed = pass(&store, &cutoffs, 1).await;
    assert_eq!(
        removed,
        Trimmed {
            events: 15,
            resources: 30
        }
    );
    let left = (1..=5).rev().map(|days| of_day("events", days_ago(days)));
    assert_eq!(past(&database), left.collect::<Vec<_>>());
    assert_eq!(database.value("SELECT count(*) FROM events"), "25");
    assert_eq!(
        store.half_events().await.unwrap(),
        Some(HalfEvents::default())
    );
    let after = database.value("SELECT oid FROM pg_class WHERE relname = 'events'");
    assert_eq!(after, before);
}

#[actix::test]
async fn names_that_are_kept_longer_stay_in_a_partition_that_takes_its_place() {
    let (database, store) = partitioned(Period::Day).await;
    let mut events = Vec::new();
    for days in [8, 9] {
        events.extend((0..10).map(|_| named("plain", days_ago(days))));
        events.extend((0..3).map(|_| named("long", days_ago(days))));
    }
    store.write(batch(&events)).await.unwrap();
    let day = |days| format!("events_kept_p{}", days_ago(days).format("%Y%m%d"));
    let kept = cutoffs(5, &[("long", 30)]);
    let removed = pass(&store, &kept, 2).await;
    assert_eq!(
        removed,
        Trimmed {
            events: 20,
            resources: 40
        }
    );
    assert_eq!(past(&database), [day(9), day(8)]);
    let left = "SELECT string_agg(DISTINCT event, ' ') || count(*) FROM events";
    assert_eq!(database.value(left), "long6");
    assert_eq!(
        store.half_events().await.unwrap(),
        Some(HalfEvents::default())
    );
    let constraints =
        "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'event_persister_kept%'";
    assert_eq!(database.value(constraints), "0");
    // Writing goes on as ever, late events included; the next pass deletes those one by one.
    let late = [named("plain", days_ago(8)), named("long", days_ago(8))];
    store.write(batch(&late)).await.unwrap();
    let count = format!("SELECT count(*) FROM {}", day(8));
    assert_eq!(database.value(&count), "5");
    let removed = pass(&store, &kept, 2).await;
    assert_eq!(
        removed,
        Trimmed {
            events: 1,
            resources: 2
        }
    );
    // Once nothing of it is kept any more, it goes whole.
    let removed = pass(&store, &cutoffs(5, &[("long", 7)]), 2).await;
    assert_eq!(
        removed,
        Trimmed {
            events: 7,
            resources: 14
        }
    );
    assert_eq!(past(&database), [""; 0]);
}

#[actix::test]
async fn columns_that_the_server_generates_are_left_to_it() {
    let (database, store) = partitioned(Period::Day).await;
    add_generated_columns(&database);
    let mut events: Vec<_> = (0..10).map(|_| named("plain", days_ago(8))).collect();
    events.push(named("LONG", days_ago(8)));
    store.write(batch(&events)).await.unwrap();
    pass(&store, &cutoffs(5, &[("LONG", 20)]), 100).await;
    let kept = format!("events_kept_p{}", days_ago(8).format("%Y%m%d"));
    let kinds = format!("SELECT string_agg(kind, ',') FROM {kept}");
    assert_eq!(database.value(&kinds), "long");
    let kinds = "SELECT count(kind) FROM event_resources";
    assert_eq!(database.value(kinds), "2");
}

#[actix::test]
async fn a_partition_that_keeps_more_than_it_loses_is_left_where_it_is() {
    let (database, store) = partitioned(Period::Day).await;
    let names = ["plain", "long", "long"];
    let events: Vec<_> = names.map(|name| named(name, days_ago(8))).to_vec();
    store.write(batch(&events)).await.unwrap();
    let removed = pass(&store, &cutoffs(5, &[("long", 30)]), 2).await;
    assert_eq!(
        removed,
        Trimmed {
            events: 1,
            resources: 2
        }
    );
    assert_eq!(past(&database), [of_day("events", days_ago(8))]);
}

#[actix::test]
async fn the_table_as_it_was_before_goes_once_its_end_is_expired() {
    let (database, store) = plain().await;
    let events: Vec<_> = (1..=20)
        .map(|days| named("plain", days_ago(days)))
        .collect();
    store.write(batch(&events)).await.unwrap();
    store.partition(Period::Day).await.unwrap();
    let removed = pass(&store, &cutoffs(10, &[]), 3).await;
    assert_eq!(
        removed,
        Trimmed {
            events: 10,
            resources: 20
        }
    );
    assert!(partitions_of(&database, "events").contains(&"events_before".to_owned()));
    // Its end lies ahead. As if some days had passed:
    database.execute(
        "ALTER TABLE events DETACH PARTITION events_before; \
         ALTER TABLE event_resources DETACH PARTITION event_resources_before; \
         UPDATE events_before SET occurred = occurred - interval '20 days'; \
         UPDATE event_resources_before SET occurred = occurred - interval '20 days'",
    );
    let until = days_ago(15).format("%Y-%m-%d 00:00:00+00");
    for table in ["events", "event_resources"] {
        database.execute(&format!(
            "ALTER TABLE {table} ATTACH PARTITION {table}_before FOR VALUES FROM (MINVALUE) TO ('{until}')"
        ));
    }
    let removed = pass(&store, &cutoffs(10, &[]), 3).await;
    assert_eq!(
        removed,
        Trimmed {
            events: 10,
            resources: 20
        }
    );
    assert!(!partitions_of(&database, "events").contains(&"events_before".to_owned()));
}

#[actix::test]
async fn a_reader_holds_a_partition_back_and_nobody_waits_for_it() {
    let (database, store) = partitioned(Period::Day).await;
    let events = [9, 10, 0].map(|days| named("plain", days_ago(days)));
    store.write(batch(&events)).await.unwrap();
    let (client, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    actix::spawn(connection);
    client
        .batch_execute("BEGIN; SELECT count(*) FROM events")
        .await
        .unwrap();
    let writer = self::store(&database);
    let writing = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..40 {
            let began = Instant::now();
            writer
                .write(batch(&[named("plain", days_ago(0))]))
                .await
                .unwrap();
            slowest = slowest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        slowest
    };
    let cutoffs = cutoffs(5, &[]);
    let trimming = pass(&store, &cutoffs, 10);
    let (slowest, removed) = tokio::join!(writing, trimming);
    assert_eq!(removed, Trimmed::default(), "left to the next pass");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_eq!(past(&database).len(), 2);
    client.batch_execute("COMMIT").await.unwrap();
    let removed = pass(&store, &cutoffs, 10).await;
    assert_eq!(
        removed,
        Trimmed {
            events: 2,
            resources: 4
        }
    );
    assert_eq!(past(&database), [""; 0]);
}

/// Draws as many as it takes to have rows on every side of every cutoff.
fn drawn(num: usize) -> Vec<ReceivedEvent> {
    let draw = |_| {
        let name = NAMES[fastrand::usize(..NAMES.len())];
        let age = TimeDelta::minutes(fastrand::i64(-5_000..40 * 1_440));
        EventFixture {
            related: vec![("r".to_owned(), "role".to_owned()); fastrand::usize(..3)],
            ..EventFixture {
                event: name.to_owned(),
                ..occurred(SystemClock.now() - age)
            }
        }
        .build()
    };
    (0..num).map(draw).collect()
}

/// Ids of the events, and of the events of the resources.
fn left(database: &Database) -> [Vec<String>; 2] {
    ["id FROM events", "event_id FROM event_resources"].map(|what| {
        let rows = database.execute(&format!("SELECT {what} ORDER BY 1"));
        rows.into_iter().flatten().flatten().collect()
    })
}

/// Exactly the events go that a plain delete would remove, whatever the cutoffs are, and pass after pass.
#[actix::test]
async fn what_is_dropped_is_what_would_be_deleted() {
    for (round, period) in [Period::Day, Period::Week, Period::Month, Period::Day]
        .into_iter()
        .enumerate()
    {
        let (of_parts, parts) = partitioned(period).await;
        let (of_plain, plain) = plain().await;
        let mut cutoffs_ = cutoffs(38, &[]);
        for pass_number in 0..6 {
            // In small batches, so that partitions are made for all of them.
            for events in drawn(120).chunks(6) {
                for store in [&parts, &plain] {
                    store.write(batch(events)).await.unwrap();
                }
            }
            let mut overrides = BTreeMap::new();
            for name in &NAMES[1..] {
                if fastrand::bool() {
                    let days = TimeDelta::minutes(fastrand::i64(0..40 * 1_440));
                    overrides.insert((*name).to_owned(), SystemClock.now() - days);
                }
            }
            let days = TimeDelta::minutes(fastrand::i64(0..20 * 1_440));
            cutoffs_.default = cutoffs_
                .default
                .max(SystemClock.now() - days - TimeDelta::days(15));
            cutoffs_.overrides = overrides;
            let seen = format!("{round} {period:?} {pass_number} {cutoffs_:?}");
            let expected = plain.count_expired(&cutoffs_).await.unwrap();
            assert_eq!(
                parts.count_expired(&cutoffs_).await.unwrap(),
                expected,
                "{seen}"
            );
            let max_events = [1, 7, 100][fastrand::usize(..3)];
            assert_eq!(
                pass(&plain, &cutoffs_, max_events).await,
                expected,
                "{seen}"
            );
            assert_eq!(
                pass(&parts, &cutoffs_, max_events).await,
                expected,
                "{seen}"
            );
            assert_eq!(left(&of_parts), left(&of_plain), "{seen}");
            let copies = "SELECT count(*) FROM pg_class WHERE relname LIKE 'events\\_kept\\_%' \
                AND relkind = 'r' AND NOT relispartition";
            assert_eq!(of_parts.value(copies), "0", "{seen}");
        }
    }
}

#[actix::test]
async fn halves_and_what_is_outside_of_all_partitions_go_one_by_one() {
    let (database, store) = partitioned(Period::Day).await;
    let events = [400, 300, 200].map(|days| named("plain", days_ago(days)));
    store.write(batch(&events)).await.unwrap();
    let of_half = format!("DELETE FROM events WHERE id = '{}'", events[1].id);
    database.execute(&of_half);
    let cutoffs = cutoffs(5, &[]);
    let expected = Trimmed {
        events: 2,
        resources: 6,
    };
    assert_eq!(store.count_expired(&cutoffs).await.unwrap(), expected);
    assert_eq!(pass(&store, &cutoffs, 1).await, expected);
    assert_eq!(left(&database), [vec![], Vec::<String>::new()]);
}
