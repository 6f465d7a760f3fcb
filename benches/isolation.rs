//! What events that the database refuses cost their neighbours: a batch of 1,000 with no, 1, 7 and
//! 100 of them, written to PostgreSQL and to SQLite, in turns. The reference is the batch with none.
//!
//! `cargo bench --features service-tests --bench isolation`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::sync::Arc;
use std::time::Duration;

use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::delivery::{Batch, BatchId, Entry, Position};
use event_persister_actors::event::{EventLimits, Received};
use event_persister_actors::store::operator::StoreOperator as _;
use event_persister_actors::store::sqlite::{SqliteSettings, SqliteStore};
use event_persister_actors::store::{EventStore, Outcome, postgres::PostgresStore};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

#[path = "../tests/it/support/ports.rs"]
mod ports;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/postgres.rs"]
mod postgres;

const CULPRITS: [usize; 4] = [0, 1, 7, 100];
const ROUNDS: usize = 15;
const EVENTS: usize = 1_000;

/// Both databases refuse the events of this name.
const REFUSED: &str = "refused";

fn entry(number: usize, is_culprit: bool) -> Arc<Entry> {
    let event = json!({
        "id": Uuid::new_v4(),
        "occurred": "2026-11-24T03:04:05.678Z",
        "event": if is_culprit { REFUSED } else { "test.happened" },
        "resource": {"prefect.resource.id": format!("test.{number}"), "name": "a resource"},
        "related": [
            {"prefect.resource.id": "related.1", "prefect.resource.role": "flow"},
            {"prefect.resource.id": "related.2", "prefect.resource.role": "tag"},
        ],
        "payload": {"text": "x".repeat(1_000), "number": number},
    });
    Arc::new(Entry::parse(
        "bench".into(),
        Position::new(number.to_string()),
        event.to_string().into(),
        &EventLimits::default(),
        Received::FromText {
            default: SystemClock.now(),
        },
    ))
}

/// A batch with its culprits spread evenly.
fn batch(num_culprits: usize) -> Arc<Batch> {
    let is_culprit = |number: usize| number * num_culprits % EVENTS < num_culprits;
    let entries = (0..EVENTS).map(|number| entry(number, num_culprits > 0 && is_culprit(number)));
    Arc::new(Batch::new(BatchId(1), entries.collect()))
}

async fn measure(name: &str, store: &dyn EventStore) {
    let mut times = CULPRITS.map(|_| Vec::new());
    for round in 0..=ROUNDS {
        for (index, num_culprits) in CULPRITS.into_iter().enumerate() {
            let batch = batch(num_culprits);
            let started = Instant::now();
            let outcomes = store.write(batch).await.unwrap();
            let took = started.elapsed();
            let refused = |outcome: &&Outcome| matches!(outcome, Outcome::RefusedByStore(_));
            assert_eq!(outcomes.iter().filter(refused).count(), num_culprits);
            // The first round warms up.
            if round > 0 {
                times[index].push(took);
            }
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let reference = median(&mut times[0]);
    for (num_culprits, times) in CULPRITS.into_iter().zip(&mut times) {
        let median = median(times);
        println!(
            "{name:<12} {num_culprits:>8} {:>8.1} ms {:>8.1} ms {:>8.1} ms {:>6.2}",
            times[0].as_secs_f64() * 1e3,
            median.as_secs_f64() * 1e3,
            times[times.len() - 1].as_secs_f64() * 1e3,
            median.as_secs_f64() / reference.as_secs_f64(),
        );
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("database     culprits      min      median         max     ratio");
    let folder = tempfile::tempdir().unwrap();
    let settings = SqliteSettings::new(folder.path().join("events.db"));
    let sqlite = SqliteStore::new(settings.clone(), Arc::new(SystemClock));
    sqlite.migrate().await.unwrap();
    sqlite_refuses(&settings);
    let server = postgres::Server::start("");
    let database = server.database();
    let store = PostgresStore::new(database.settings(), Arc::new(SystemClock));
    store.migrate().await.unwrap();
    database.execute(&format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'refused'; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW \
         WHEN (NEW.event = '{REFUSED}') EXECUTE FUNCTION refuse()"
    ));
    measure("PostgreSQL", &store).await;
    measure("SQLite", &sqlite).await;
}

fn sqlite_refuses(settings: &SqliteSettings) {
    use diesel::connection::{Connection as _, SimpleConnection as _};
    let path = settings.path.to_str().unwrap();
    let mut connection = diesel::SqliteConnection::establish(path).unwrap();
    let trigger = format!(
        "CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.event = '{REFUSED}' \
         BEGIN SELECT RAISE(ABORT, 'refused'); END"
    );
    connection.batch_execute(&trigger).unwrap();
}
