//! What the product is compared with: the same rows by `COPY`, in transactions of the same size, on
//! connections that are ready before the clock starts, each on a thread of its own.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::clock::{Clock as _, SystemClock};
use futures_util::SinkExt as _;
use tokio::time::Instant;
use tokio_postgres::{Client, NoTls, Statement, Transaction};

use super::copy::{self, CopyBatch, EVENTS, RESOURCES};
use super::load::Message;
use super::postgres::Database;

/// How the rows get into the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Straight into them, in a session as the server gives it.
    Copy,
    /// Straight into them, with the one session setting that the product uses.
    CopyLz4,
    /// Into temporary tables, and from there whatever is not there yet: as safe to repeat as what the
    /// product does.
    Staged,
}

impl Way {
    const fn session(self) -> &'static str {
        match self {
            Self::Copy => "",
            Self::CopyLz4 => "SET default_toast_compression = 'lz4'",
            Self::Staged => {
                "CREATE TEMP TABLE staged_events (LIKE events) ON COMMIT DELETE ROWS; \
                 CREATE TEMP TABLE staged_resources (LIKE event_resources) ON COMMIT DELETE ROWS"
            }
        }
    }

    const fn tables(self) -> [&'static str; 2] {
        match self {
            Self::Copy | Self::CopyLz4 => ["events", "event_resources"],
            Self::Staged => ["staged_events", "staged_resources"],
        }
    }
}

const MOVE: &str = "WITH new AS ( \
         INSERT INTO events SELECT * FROM staged_events ON CONFLICT (id) DO NOTHING RETURNING id \
     ) INSERT INTO event_resources \
     SELECT staged.* FROM staged_resources AS staged JOIN new ON new.id = staged.event_id";

/// A connection that only has to be told what to write.
struct Connection {
    client: Client,
    copies: [Statement; 2],
    insert: Option<Statement>,
}

impl Connection {
    async fn open(url: &str, way: Way) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(way.session()).await.unwrap();
        let [events, resources] = way.tables();
        let copy =
            |table: &str, columns| format!("COPY {table} ({columns}) FROM STDIN (FORMAT binary)");
        let copies = [
            client.prepare(&copy(events, EVENTS)).await.unwrap(),
            client.prepare(&copy(resources, RESOURCES)).await.unwrap(),
        ];
        let insert = match way {
            Way::Copy | Way::CopyLz4 => None,
            Way::Staged => Some(client.prepare(MOVE).await.unwrap()),
        };
        Self {
            client,
            copies,
            insert,
        }
    }

    async fn write(&mut self, batch: &CopyBatch) {
        let transaction = self.client.transaction().await.unwrap();
        let [events, resources] = &self.copies;
        copy_in(&transaction, events, &batch.events).await;
        copy_in(&transaction, resources, &batch.resources).await;
        if let Some(insert) = &self.insert {
            transaction.execute(insert, &[]).await.unwrap();
        }
        transaction.commit().await.unwrap();
    }
}

async fn copy_in(transaction: &Transaction<'_>, statement: &Statement, rows: &Bytes) {
    let sink = transaction.copy_in::<_, Bytes>(statement).await.unwrap();
    let mut sink = pin!(sink);
    sink.send(rows.clone()).await.unwrap();
    sink.finish().await.unwrap();
}

/// From the first transaction's start to the last one's commit.
pub(crate) fn run(
    database: &Database,
    way: Way,
    num_connections: usize,
    batches: &[CopyBatch],
) -> Duration {
    let next = AtomicUsize::new(0);
    let ready = Barrier::new(num_connections + 1);
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let mut connection = Connection::open(&database.url, way).await;
            ready.wait();
            while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                connection.write(batch).await;
            }
        });
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_connections).map(|_| scope.spawn(work)).collect();
        ready.wait();
        let started = Instant::now();
        for thread in threads {
            thread.join().unwrap();
        }
        started.elapsed()
    })
}

/// How often it is looked which events are due.
const TICK: Duration = Duration::from_millis(1);

/// Copies events at a rate, whenever a connection is free all that are due by then; when each was due, by its id.
pub(crate) fn run_at_rate(
    database: &Database,
    num_connections: usize,
    rate: usize,
    messages: &[Message],
) -> HashMap<String, DateTime<Utc>> {
    let rate = rate as f64;
    let next = Mutex::new(0);
    let ready = Barrier::new(num_connections + 1);
    let started = Mutex::new(Instant::now());
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let mut connection = Connection::open(&database.url, Way::Copy).await;
            ready.wait();
            let started = *started.lock().unwrap();
            loop {
                let due = {
                    let mut next = next.lock().unwrap();
                    let first: usize = *next;
                    let num_due = (started.elapsed().as_secs_f64() * rate) as usize + 1;
                    *next = num_due.clamp(first, messages.len());
                    &messages[first..*next]
                };
                for batch in copy::encode(due) {
                    connection.write(&batch).await;
                }
                let is_all = *next.lock().unwrap() == messages.len();
                if is_all {
                    break;
                }
                if due.is_empty() {
                    tokio::time::sleep(TICK).await;
                }
            }
        });
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_connections).map(|_| scope.spawn(work)).collect();
        // Held until its time is known.
        let mut guard = started.lock().unwrap();
        ready.wait();
        let began = SystemClock.now();
        *guard = Instant::now();
        drop(guard);
        for thread in threads {
            thread.join().unwrap();
        }
        let due = |number: usize| TimeDelta::microseconds((number as f64 / rate * 1e6) as i64);
        let ids = messages.iter().map(|message| message.id.clone());
        ids.enumerate()
            .map(|(number, id)| (id, began + due(number)))
            .collect()
    })
}
