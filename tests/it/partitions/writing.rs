//! Writing to partitioned tables, and the meaning of an id there.

use std::collections::BTreeSet;

use super::*;
use crate::support::binary::Folder;

fn dated(events: &[ReceivedEvent]) -> Vec<String> {
    let mut dated: Vec<String> = events
        .iter()
        .map(|event| {
            let occurred = event.occurred.format("%Y-%m-%d %H:%M:%S+00");
            format!("{} {occurred}", event.id)
        })
        .collect();
    dated.sort();
    dated
}

#[actix::test]
async fn an_id_is_a_duplicate_only_with_its_moment() {
    let (database, store) = partitioned(Period::Day).await;
    let id = Uuid::new_v4();
    let at = |days| {
        EventFixture {
            id,
            ..occurred(days_ago(days))
        }
        .build()
    };
    let [one, two, three] = [0, 1, 2].map(at);
    assert_eq!(
        store
            .write(batch(std::slice::from_ref(&one)))
            .await
            .unwrap(),
        [Outcome::Stored]
    );
    let events = [
        one.clone(),
        two.clone(),
        one.clone(),
        three.clone(),
        two.clone(),
    ];
    let outcomes = store.write(batch(&events)).await.unwrap();
    let (stored, duplicate) = (Outcome::Stored, Outcome::Duplicate);
    let expected = [&duplicate, &stored, &duplicate, &stored, &duplicate];
    assert_eq!(outcomes.iter().collect::<Vec<_>>(), expected);
    assert_eq!(ids(&database), dated(&[one, two, three]));
    assert_eq!(database.value("SELECT count(*) FROM event_resources"), "6");
    let variables = [
        ("EVENT_PERSISTER_DATABASE_URL", database.url.as_str()),
        ("FAILPOINTS", "verify::nobody-writes=return"),
    ];
    Folder::new().run_with(&["verify"], &variables).exits(0);
}

#[actix::test]
async fn large_batches_are_copied_and_told_apart_in_the_same_way() {
    let (database, store) = partitioned(Period::Day).await;
    let events: Vec<_> = (0..600)
        .map(|n| occurred(days_ago(n % 3)).build())
        .collect();
    let outcomes = store.write(batch(&events)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Stored));
    assert_eq!(ids(&database), dated(&events));
    for days in 0..3 {
        let partition = of_day("events", days_ago(days));
        let count = format!("SELECT count(*) FROM {partition}");
        assert_eq!(database.value(&count), "200", "{partition}");
    }
    let outcomes = store.write(batch(&events)).await.unwrap();
    assert!(
        outcomes
            .iter()
            .all(|outcome| *outcome == Outcome::Duplicate)
    );
    assert_eq!(
        database.value("SELECT count(*) FROM event_resources"),
        "1200"
    );
}

#[actix::test]
async fn missing_partitions_are_made_within_bounds_and_a_few_at_a_time() {
    let (database, store) = partitioned(Period::Day).await;
    let late = [1, 2, 3, 10, 20, 99];
    let beyond = [101, 300, -4, -400];
    let events: Vec<_> = (late.into_iter().chain(beyond))
        .map(|days| occurred(days_ago(days)).build())
        .collect();
    store.write(batch(&events)).await.unwrap();
    let made = |days: &[i64]| -> Vec<String> {
        let days = days.iter();
        days.map(|days| of_day("events", days_ago(*days))).collect()
    };
    let there = || {
        partitions_of(&database, "events")
            .into_iter()
            .collect::<BTreeSet<_>>()
    };
    let mut expected: BTreeSet<_> = made(&[0, -1, -2, -3, 1, 2, 3, 10]).into_iter().collect();
    expected.insert("events_default".to_owned());
    assert_eq!(there(), expected, "the newest four");
    // The others stand in the default partition, out of which they move when theirs is made.
    let in_default = "SELECT count(*) FROM events_default";
    assert_eq!(database.value(in_default), "6");
    let others = [20, 99].map(|days| occurred(days_ago(days)).build());
    store.write(batch(&others)).await.unwrap();
    expected.extend(made(&[20, 99]));
    assert_eq!(there(), expected);
    assert_eq!(database.value(in_default), "4");
    assert_eq!(
        database.value("SELECT count(*) FROM event_resources_default"),
        "8"
    );
    assert_eq!(ids(&database), dated(&[events, others.to_vec()].concat()));
}

#[actix::test]
async fn writers_that_make_the_same_partitions_do_not_get_in_each_others_way() {
    for round in 0..5 {
        let (database, _) = partitioned(Period::Day).await;
        let stores = [(); 4].map(|()| store(&database));
        let events: Vec<Vec<_>> = (0..stores.len())
            .map(|_| {
                (1..=4)
                    .map(|days| occurred(days_ago(days)).build())
                    .collect()
            })
            .collect();
        let batches = stores.iter().zip(&events);
        let writes = batches.map(|(store, events)| store.write(batch(events)));
        for outcomes in futures_util::future::join_all(writes).await {
            assert_eq!(
                outcomes.unwrap(),
                [(); 4].map(|()| Outcome::Stored),
                "{round}"
            );
        }
        assert_eq!(ids(&database), dated(&events.concat()));
        let letters = "SELECT count(*) FROM event_persister_dead_letters";
        assert_eq!(database.value(letters), "0");
        // A writer that had to wait too long for another has left its events to the default partition.
        let events: Vec<_> = (1..=4)
            .map(|days| occurred(days_ago(days)).build())
            .collect();
        let latest = store(&database);
        latest.write(batch(&events)).await.unwrap();
        assert_eq!(database.value("SELECT count(*) FROM events_default"), "0");
        assert_eq!(partitions_of(&database, "events").len(), 9);
        assert_eq!(partitions_of(&database, "event_resources").len(), 9);
    }
}

#[actix::test]
async fn a_writer_does_not_wait_for_a_reader_of_the_whole_table() {
    let (database, store) = partitioned(Period::Day).await;
    let (client, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    actix::spawn(connection);
    client
        .batch_execute("BEGIN; SELECT count(*) FROM events; SELECT count(*) FROM event_resources")
        .await
        .unwrap();
    let event = occurred(days_ago(50)).build();
    let began = tokio::time::Instant::now();
    let outcomes = store
        .write(batch(std::slice::from_ref(&event)))
        .await
        .unwrap();
    assert_eq!(outcomes, [Outcome::Stored]);
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(3), "{took:?}");
    assert_eq!(database.value("SELECT count(*) FROM events_default"), "1");
    client.batch_execute("COMMIT").await.unwrap();
    // `migrate` makes it, as a writer would after a while.
    store.partition(Period::Day).await.unwrap();
    assert_eq!(database.value("SELECT count(*) FROM events_default"), "0");
    let partition = of_day("events", days_ago(50));
    let moved = format!("SELECT id FROM {partition}");
    assert_eq!(database.value(&moved), event.id.to_string());
}

/// Events of a day without a partition.
fn insert_into_default(database: &Database, days: i64, num_events: usize) {
    database.execute(&format!(
        "INSERT INTO events (occurred, event, resource_id, resource, payload, received, recorded) \
         SELECT '{}', 'e', 'r', '{{}}', '{{}}', now(), now() FROM generate_series(1, {num_events})",
        days_ago(days)
    ));
}

#[actix::test]
async fn too_many_events_in_the_default_partition_are_left_to_migrate() {
    let (database, _) = partitioned(Period::Day).await;
    insert_into_default(&database, 20, 20_001);
    let events = [20, 10].map(|days| occurred(days_ago(days)).build());
    let writer = store(&database);
    writer.write(batch(&events)).await.unwrap();
    let in_default = "SELECT count(*) FROM events_default";
    assert_eq!(database.value(in_default), "20002");
    // They keep nobody from making others.
    let has_made = |days| {
        let name = of_day("events", days_ago(days));
        partitions_of(&database, "events").contains(&name)
    };
    assert!(has_made(10) && !has_made(20));
    let later = [20, 11].map(|days| occurred(days_ago(days)).build());
    writer.write(batch(&later)).await.unwrap();
    assert!(has_made(11) && !has_made(20));
    writer.partition(Period::Day).await.unwrap();
    assert!(has_made(20));
    assert_eq!(database.value(in_default), "0");
}

/// The owner of the tables runs it with the settings of the service.
#[actix::test]
async fn migrate_takes_its_time_where_a_statement_may_not() {
    let (database, _) = partitioned(Period::Day).await;
    insert_into_default(&database, 20, 1);
    // It is slow to move.
    database.execute(
        "CREATE FUNCTION slow() RETURNS boolean LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_sleep(3); RETURN true; END'; \
         ALTER TABLE events ADD CONSTRAINT slow CHECK (slow()) NOT VALID",
    );
    let settings = PostgresSettings {
        statement_timeout: std::time::Duration::from_secs(2),
        ..database.settings()
    };
    let hurried = PostgresStore::new(settings, Arc::new(SystemClock));
    hurried.partition(Period::Day).await.unwrap();
    assert_eq!(database.value("SELECT count(*) FROM events_default"), "0");
}

#[actix::test]
async fn a_role_that_may_not_make_partitions_writes_to_the_default_one() {
    let (database, _) = partitioned(Period::Day).await;
    let (_, url) = database.for_a_role();
    let store = store(&database.at(url));
    let events = [0, 9].map(|days| occurred(days_ago(days)).build());
    store.write(batch(&events)).await.unwrap();
    assert_eq!(ids(&database), dated(&events));
    assert_eq!(database.value("SELECT count(*) FROM events_default"), "1");
    let cutoffs = Cutoffs {
        default: days_ago(5),
        overrides: Default::default(),
    };
    let removed = pass(&store, &cutoffs, 10).await;
    assert_eq!(
        removed,
        Trimmed {
            events: 1,
            resources: 2
        }
    );
}

#[actix::test]
async fn an_event_is_refused_by_name_as_ever() {
    let (database, store) = partitioned(Period::Day).await;
    database.execute("ALTER TABLE events ADD CONSTRAINT ours CHECK (event <> 'bad')");
    let bad = EventFixture {
        event: "bad".to_owned(),
        ..occurred(days_ago(0))
    };
    let events = [
        occurred(days_ago(0)).build(),
        bad.build(),
        occurred(days_ago(1)).build(),
    ];
    let outcomes = store.write(batch(&events)).await.unwrap();
    assert!(
        matches!(outcomes[1], Outcome::RefusedByStore(_)),
        "{outcomes:?}"
    );
    assert_eq!([&outcomes[0], &outcomes[2]], [&Outcome::Stored; 2]);
    assert_eq!(database.value("SELECT count(*) FROM events"), "2");
}

#[actix::test]
async fn plans_look_into_the_partitions_of_the_time_that_is_asked_for() {
    use event_persister_actors::reader::EventFilter;
    use event_persister_actors::store::postgres::PostgresReader;

    let (database, store) = partitioned(Period::Day).await;
    for days in 0..12 {
        store
            .write(batch(&[occurred(days_ago(days)).build()]))
            .await
            .unwrap();
    }
    let reader = PostgresReader::new(database.settings());
    let mut filter = EventFilter::all(SystemClock.now());
    filter.occurred.since = days_ago(4) - TimeDelta::hours(1);
    filter.occurred.until = days_ago(3) + TimeDelta::hours(1);
    filter.resource.id = vec!["test.resource".to_owned()];
    for plan in reader.plans(&filter, None).await.unwrap() {
        // A partition that is left out only once the values of other rows are known is named, and not read.
        let read: Vec<&str> = (plan.lines())
            .filter(|line| !line.contains("never executed"))
            .collect();
        let plan = read.join("\n");
        for days in 0..12 {
            let is_wanted = (3..=4).contains(&days);
            for table in ["events", "event_resources"] {
                let partition = format!(" {} ", of_day(table, days_ago(days)));
                let is_read = plan.contains(&partition);
                assert_eq!(is_read, is_wanted, "{partition} in\n{plan}");
            }
        }
        assert!(!plan.contains("_default"), "{plan}");
    }
}
