//! Trimming follows indexes, one trimmer at a time.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::clock::Clock;
use event_persister_actors::status::error_chain;
use event_persister_actors::store::operator::HalfEvents;
use event_persister_actors::store::{Cutoffs, EventStore as _, TrimStep, Trimmed};
use event_persister_actors::trim::run_pass;

use super::*;

fn cutoffs(default: DateTime<Utc>) -> Cutoffs {
    Cutoffs {
        default,
        overrides: BTreeMap::new(),
    }
}

fn aged(days: i64) -> ReceivedEvent {
    EventFixture {
        occurred: SystemClock.now() - TimeDelta::days(days),
        ..EventFixture::default()
    }
    .build()
}

const MAX: NonZeroUsize = NonZeroUsize::new(500).unwrap();

#[actix::test]
async fn one_trimmer_at_a_time() {
    let (database, store) = migrated().await;
    store.write(of_events([aged(9)])).await.unwrap();
    let (client, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    actix::spawn(connection);
    let lock =
        "BEGIN; SELECT pg_try_advisory_xact_lock(1953655149, hashoid('events'::regclass::oid))";
    client.batch_execute(lock).await.unwrap();
    let cutoffs = cutoffs(SystemClock.now() - TimeDelta::days(7));
    let step = store.trim(&cutoffs, MAX).await.unwrap();
    assert_eq!(step, TrimStep::TakenByAnother);
    client.batch_execute("COMMIT").await.unwrap();
    let step = store.trim(&cutoffs, MAX).await.unwrap();
    assert!(matches!(step, TrimStep::Removed(_)), "{step:?}");
}

#[actix::test]
async fn events_of_other_machines_tell_the_time_where_no_pass_is_known() {
    let (database, store) = migrated().await;
    store.write(of_events([aged(9), aged(0)])).await.unwrap();
    database.execute("UPDATE events SET recorded = '2020-01-02', updated = '2020-01-02'");
    let last = store.last_pass(SystemClock.now()).await.unwrap();
    assert!(!last.is_noted);
    let age = last.now - last.at.unwrap();
    assert!(age.abs() < TimeDelta::minutes(1), "{last:?}");
    // What is yet to occur tells nothing.
    database.execute("UPDATE events SET occurred = '2999-01-02'");
    let last = store.last_pass(SystemClock.now()).await.unwrap();
    assert_eq!(last.at, Some("2020-01-02T00:00:00Z".parse().unwrap()));
}

#[actix::test]
async fn two_trimmers_remove_everything_once() {
    let (database, _) = migrated().await;
    let [one, two] = [(); 2].map(|()| store(database.settings()));
    one.write(of_events((0..300).map(|_| aged(9))))
        .await
        .unwrap();
    let cutoffs = cutoffs(SystemClock.now() - TimeDelta::days(7));
    let trim = async |store: &PostgresStore| {
        let mut total = Trimmed::default();
        loop {
            match store
                .trim(&cutoffs, NonZeroUsize::new(10).unwrap())
                .await
                .unwrap()
            {
                TrimStep::Removed(removed) => total += removed.rows,
                TrimStep::TakenByAnother => {
                    actix::clock::sleep(TimeDelta::milliseconds(1).to_std().unwrap()).await
                }
                TrimStep::Finished => return total,
            }
        }
    };
    let (mut total, other) = tokio::join!(trim(&one), trim(&two));
    total += other;
    assert_eq!((total.events, total.resources), (300, 600));
}

/// A clock that runs ahead of the server's.
struct Ahead(TimeDelta);

impl Clock for Ahead {
    fn now(&self) -> DateTime<Utc> {
        SystemClock.now() + self.0
    }
}

#[actix::test]
async fn rows_that_a_deletion_leaves_are_an_error_and_nothing_is_halved() {
    let (database, store) = migrated().await;
    store.write(of_events([aged(9), aged(8)])).await.unwrap();
    database.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    );
    let count =
        "SELECT (SELECT count(*) FROM events) || ' ' || (SELECT count(*) FROM event_resources)";
    let before = database.value(count);
    let mut cutoffs = cutoffs(SystemClock.now() - TimeDelta::days(7));
    for table in ["events", "event_resources"] {
        database.execute(&format!(
            "CREATE TRIGGER keep BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION keep()"
        ));
        for longer in [None, Some(TimeDelta::days(30))] {
            let kept = longer.map(|longer| ("kept".to_owned(), SystemClock.now() - longer));
            cutoffs.overrides = kept.into_iter().collect();
            let error = store.trim(&cutoffs, MAX).await.unwrap_err().to_string();
            assert!(error.contains("does not leave the tables"), "{error}");
            assert_eq!(database.value(count), before);
        }
        database.execute(&format!("DROP TRIGGER keep ON {table}"));
    }
    let step = store.trim(&cutoffs, MAX).await.unwrap();
    assert!(matches!(step, TrimStep::Removed(_)), "{step:?}");
    assert_eq!(database.value(count), "0 0");
}

/// A pass would end well each time, and leave them for ever.
#[actix::test]
async fn resources_that_a_deletion_leaves_are_an_error_at_the_end_of_a_pass() {
    let (database, store) = migrated().await;
    store.write(of_events([aged(9)])).await.unwrap();
    database.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RETURN CASE WHEN OLD.resource_role <> '' THEN OLD END; END $$; \
         UPDATE event_resources SET resource_role = '' \
         WHERE id = (SELECT id FROM event_resources LIMIT 1); \
         CREATE TRIGGER keep BEFORE DELETE ON event_resources FOR EACH ROW EXECUTE FUNCTION keep()",
    );
    let cutoffs = cutoffs(SystemClock.now() - TimeDelta::days(7));
    let pass = run_pass(&store, &cutoffs, MAX, |_| {});
    let error = error_chain(&pass.await.unwrap_err());
    assert!(error.contains("does not leave the tables"), "{error}");
    database.execute("DROP TRIGGER keep ON event_resources");
    let removed = run_pass(&store, &cutoffs, MAX, |_| {}).await.unwrap();
    assert_eq!((removed.events, removed.resources), (0, 1));
}

#[actix::test]
async fn a_step_that_takes_longer_than_a_statement_may_is_made_smaller() {
    let database = Server::shared().database();
    let mut settings = database.settings();
    settings.statement_timeout = Duration::from_secs(1);
    let store = store(settings);
    store.migrate().await.unwrap();
    store
        .write(of_events((0..4).map(|_| aged(9))))
        .await
        .unwrap();
    database.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF (SELECT count(*) FROM old_rows) > 2 THEN PERFORM pg_sleep(60); END IF; \
         RETURN NULL; END $$; \
         CREATE TRIGGER slow AFTER DELETE ON events REFERENCING OLD TABLE AS old_rows \
         FOR EACH STATEMENT EXECUTE FUNCTION slow()",
    );
    let cutoffs = cutoffs(SystemClock.now() - TimeDelta::days(7));
    let error = store.trim(&cutoffs, MAX).await.unwrap_err();
    assert!(matches!(error, StoreError::TooSlow { .. }), "{error:?}");
    let removed = run_pass(&store, &cutoffs, NonZeroUsize::new(4).unwrap(), |_| {});
    assert_eq!(removed.await.unwrap().events, 4);
}

#[actix::test]
async fn a_clock_that_runs_ahead_removes_nothing_too_early() {
    let (database, _) = migrated().await;
    let clock = Ahead(TimeDelta::days(5));
    let now = clock.now();
    let store = PostgresStore::new(database.settings(), Arc::new(clock));
    let old = aged(8);
    store.write(of_events([aged(6), old])).await.unwrap();
    // Seven days by a clock that is five days ahead are two days.
    let cutoffs_ = cutoffs(now - TimeDelta::days(7));
    let counted = store.count_expired(&cutoffs_).await.unwrap();
    assert_eq!(counted.events, 1);
    let step = store.trim(&cutoffs_, MAX).await.unwrap();
    assert!(
        matches!(step, TrimStep::Removed(removed) if removed.rows.events == 1),
        "{step:?}"
    );
    assert_eq!(
        store.trim(&cutoffs_, MAX).await.unwrap(),
        TrimStep::Finished
    );
    let future = cutoffs(now + TimeDelta::days(1));
    let error = store.trim(&future, MAX).await.unwrap_err().to_string();
    assert!(error.contains("in the future"), "{error}");
}

#[actix::test]
async fn the_first_moment_of_all_is_trimmed_too() {
    let (database, store) = migrated().await;
    let first = EventFixture {
        occurred: "0001-01-01T00:00:00Z".parse().unwrap(),
        ..EventFixture::default()
    };
    store.write(of_events([first.build()])).await.unwrap();
    let cutoffs = cutoffs(SystemClock.now() - TimeDelta::days(7));
    let step = store.trim(&cutoffs, MAX).await.unwrap();
    assert!(matches!(step, TrimStep::Removed(_)), "{step:?}");
    assert_eq!(database.value("SELECT count(*) FROM events"), "0");
}

#[actix::test]
async fn half_events_are_counted_and_removed_on_request() {
    let (database, store) = migrated().await;
    let [whole, headless, bare] = [(); 3].map(|()| any_event());
    let ids = [&headless, &bare].map(|event| event.id);
    store
        .write(of_events([whole, headless, bare]))
        .await
        .unwrap();
    database.execute(&format!("DELETE FROM events WHERE id = '{}'", ids[0]));
    database.execute(&format!(
        "DELETE FROM event_resources WHERE event_id = '{}'",
        ids[1]
    ));
    let halves = HalfEvents {
        events: 1,
        resources: 2,
    };
    assert_eq!(store.half_events().await.unwrap(), Some(halves));
    assert_eq!(store.remove_half_events().await.unwrap(), Some(halves));
    assert_eq!(
        store.half_events().await.unwrap(),
        Some(HalfEvents::default())
    );
    let left = "SELECT (SELECT count(*) FROM events) || ' ' || count(*) FROM event_resources";
    assert_eq!(database.value(left), "1 2");
}

#[actix::test]
async fn resources_of_no_event_go_in_the_same_pass() {
    let (database, store) = migrated().await;
    let mut cutoffs_ = cutoffs(SystemClock.now() - TimeDelta::days(7));
    let thirty = SystemClock.now() - TimeDelta::days(30);
    for overridden in [None, Some("long")] {
        cutoffs_
            .overrides
            .extend(overridden.map(|name| (name.to_owned(), thirty)));
        // Older, among and younger than events that go as well.
        let halves = [50, 33, 31].map(aged);
        let ids = halves.each_ref().map(|half| format!("'{}'", half.id));
        let whole = [40, 35, 32].map(aged);
        store
            .write(of_events(halves.into_iter().chain(whole).chain([aged(6)])))
            .await
            .unwrap();
        let of_halves = format!("DELETE FROM events WHERE id IN ({})", ids.join(", "));
        database.execute(&of_halves);
        let expected = Trimmed {
            events: 3,
            resources: 12,
        };
        assert_eq!(store.count_expired(&cutoffs_).await.unwrap(), expected);
        let mut total = Trimmed::default();
        let two = NonZeroUsize::new(2).unwrap();
        while let TrimStep::Removed(removed) = store.trim(&cutoffs_, two).await.unwrap() {
            total += removed.rows;
        }
        assert_eq!(total, expected, "{overridden:?}");
        assert_eq!(
            store.half_events().await.unwrap(),
            Some(HalfEvents::default())
        );
    }
}

#[actix::test]
async fn what_comes_late_goes_in_the_same_pass_with_halves_that_were_there() {
    let (database, store) = migrated().await;
    let cutoffs_ = cutoffs(SystemClock.now() - TimeDelta::days(7));
    let half = aged(20);
    let of_half = format!("DELETE FROM events WHERE id = '{}'", half.id);
    store
        .write(of_events([half, aged(10), aged(9)]))
        .await
        .unwrap();
    database.execute(&of_half);
    let one = NonZeroUsize::MIN;
    let step = store.trim(&cutoffs_, one).await.unwrap();
    assert!(matches!(step, TrimStep::Removed(_)), "{step:?}");
    store.write(of_events([aged(50)])).await.unwrap();
    while let TrimStep::Removed(_) = store.trim(&cutoffs_, one).await.unwrap() {}
    let left = "SELECT (SELECT count(*) FROM events) || ' ' || count(*) FROM event_resources";
    assert_eq!(database.value(left), "0 0");
}

/// Blocks of the two tables and their indexes that the store's session read.
fn blocks(database: &Database) -> u64 {
    let blocks = database.value(
        "SELECT (sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit))::text \
         FROM pg_statio_user_tables WHERE relname IN ('events', 'event_resources')",
    );
    blocks.parse().unwrap()
}

#[actix::test]
async fn a_step_costs_the_same_whatever_is_kept() {
    let mut costs = Vec::new();
    for num_kept in [1_000, 50_000] {
        let (database, store) = migrated().await;
        // Names with and without a cutoff of their own, and old rows that are kept for longer.
        database.execute(&format!(
            "INSERT INTO events (occurred, event, resource_id, resource, payload, received, recorded) \
             SELECT now() - n * interval '1 second' - CASE WHEN n % 2 = 0 THEN interval '20 days' \
             ELSE interval '0' END, CASE WHEN n % 2 = 0 THEN 'long' ELSE 'plain' END, 'r', '{{}}', \
             '{{}}', now(), now() FROM generate_series(1, {num_kept}) AS n; \
             INSERT INTO event_resources (occurred, resource_id, resource_role, resource, event_id) \
             SELECT occurred, 'r', '', '{{}}', id FROM events; ANALYZE"
        ));
        store
            .write(of_events((0..40).map(|_| aged(9))))
            .await
            .unwrap();
        let mut cutoffs = cutoffs(SystemClock.now() - TimeDelta::days(7));
        let thirty = SystemClock.now() - TimeDelta::days(30);
        cutoffs.overrides.insert("long".to_owned(), thirty);
        // The first step passes over what is kept for longer; it is told apart from the others.
        let ten = NonZeroUsize::new(10).unwrap();
        store.trim(&cutoffs, ten).await.unwrap();
        store.close().await.unwrap();
        let before = settled_blocks(&database).await;
        for _ in 0..2 {
            let step = store.trim(&cutoffs, ten).await.unwrap();
            assert!(matches!(step, TrimStep::Removed(_)), "{step:?}");
        }
        store.close().await.unwrap();
        costs.push(settled_blocks(&database).await - before);
    }
    assert!(costs[1] < costs[0] * 2 + 200, "{costs:?}");
}

/// After all sessions have reported.
async fn settled_blocks(database: &Database) -> u64 {
    let others = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE {ARE_OF_OTHERS} AND backend_type = 'client backend'"
    );
    while database.value(&others) != "0" {
        // The connection's task closes it on this very thread.
        tokio::task::yield_now().await;
    }
    blocks(database)
}
