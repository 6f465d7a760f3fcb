//! Tables that are partitioned by time: how they become so, what is written to them, and how retention
//! empties them.

use std::num::NonZeroUsize;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::delivery::{Batch, BatchId};
use event_persister_actors::event::ReceivedEvent;
use event_persister_actors::store::operator::StoreOperator as _;
use event_persister_actors::store::postgres::{PostgresSettings, PostgresStore};
use event_persister_actors::store::{Cutoffs, EventStore as _, Outcome, Period, TrimStep, Trimmed};
use event_persister_actors::testing::{EventFixture, event_entry};
use uuid::Uuid;

use crate::support::postgres::{Database, Server};

mod kills;
mod migration;
mod retention;
mod writing;

fn store(database: &Database) -> PostgresStore {
    PostgresStore::new(database.settings(), Arc::new(SystemClock))
}

/// A database whose tables are partitioned, and a store of it.
async fn partitioned(period: Period) -> (Database, PostgresStore) {
    let database = Server::shared().database();
    let store = store(&database);
    store.partition(period).await.unwrap();
    (database, store)
}

/// A database whose tables are as Prefect makes them, and a store of it.
async fn plain() -> (Database, PostgresStore) {
    let database = Server::shared().database();
    let store = store(&database);
    store.migrate().await.unwrap();
    (database, store)
}

/// Columns that somebody else has added to both tables.
fn add_generated_columns(database: &Database) {
    database.execute(
        "ALTER TABLE events ADD COLUMN kind text GENERATED ALWAYS AS (lower(event)) STORED; \
         ALTER TABLE event_resources ADD COLUMN kind text GENERATED ALWAYS AS (lower(resource_id)) STORED",
    );
}

fn batch(events: &[ReceivedEvent]) -> Arc<Batch> {
    let entries = events.iter().cloned().map(event_entry).collect();
    Arc::new(Batch::new(BatchId(0), entries))
}

/// The beginning of the day that is so many days ago, so that tests do not meet its end.
fn days_ago(days: i64) -> DateTime<Utc> {
    let day = SystemClock.now().date_naive() - TimeDelta::days(days);
    day.and_hms_opt(12, 0, 0).unwrap().and_utc()
}

fn occurred(at: DateTime<Utc>) -> EventFixture {
    EventFixture {
        occurred: at,
        ..EventFixture::default()
    }
}

/// The names of the partitions of a table, each with its estimated bounds as the server tells them.
fn partitions_of(database: &Database, table: &str) -> Vec<String> {
    let rows = database.execute(&format!(
        "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
         WHERE inhparent = '{table}'::regclass ORDER BY 1"
    ));
    rows.into_iter().flatten().flatten().collect()
}

/// The name of the partition of a day.
fn of_day(table: &str, at: DateTime<Utc>) -> String {
    format!("{table}_p{}", at.format("%Y%m%d"))
}

/// All rows of both tables, whatever tables they are in.
fn rows(database: &Database) -> [Vec<String>; 2] {
    ["events", "event_resources"].map(|table| {
        let rows = database.execute(&format!("SELECT r::text FROM {table} AS r ORDER BY 1"));
        rows.into_iter().flatten().flatten().collect()
    })
}

/// Ids and moments of all events, in their order.
fn ids(database: &Database) -> Vec<String> {
    let rows = database.execute("SELECT id || ' ' || occurred FROM events ORDER BY 1");
    rows.into_iter().flatten().flatten().collect()
}

/// One pass of retention; what it removed.
async fn pass(store: &PostgresStore, cutoffs: &Cutoffs, max_events: usize) -> Trimmed {
    let mut total = Trimmed::default();
    for _ in 0..10_000 {
        let max_events = NonZeroUsize::new(max_events).unwrap();
        match store.trim(cutoffs, max_events).await.unwrap() {
            TrimStep::Removed(removed) => total += removed.rows,
            TrimStep::Finished => return total,
            TrimStep::TakenByAnother => {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await
            }
        }
    }
    panic!("it never ends");
}
