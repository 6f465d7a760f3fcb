//! The binary between a Redis and a database, as an operator runs it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::binary::Folder;
use super::events;
use super::postgres::{Database, TextRows};
use super::redis::{RedisServer, ServerOptions, TestStream};
use super::server::Server;
use super::wait::PATIENCE;

/// The tables as Prefect's own migrations leave them.
const PREFECTS_TABLES: &str = include_str!("../../data/prefect-schema-postgres.sql");

/// A Redis, and what the binary needs to know to read it.
pub(crate) struct Bus {
    pub(crate) redis: RedisServer,
    pub(crate) stream: TestStream,
    pub(crate) folder: Folder,
    variables: Vec<(&'static str, String)>,
}

impl Bus {
    /// What comes over it ends up in Prefect's tables of this database, which must be empty.
    pub(crate) fn into_postgres(database: &Database) -> Self {
        let mut bus = Self::into_sqlite();
        bus.write_to(database);
        bus
    }

    /// What comes over it ends up in the file `event-persister.db` of its folder.
    pub(crate) fn into_sqlite() -> Self {
        // It survives a kill, as a Redis does that matters to somebody.
        Self::of(ServerOptions {
            durable: true,
            ..ServerOptions::default()
        })
    }

    /// With a Redis of this kind, into the file of its folder.
    pub(crate) fn of(options: ServerOptions) -> Self {
        let redis = RedisServer::start_with(options);
        Self {
            stream: redis.stream(),
            folder: Folder::new(),
            variables: vec![
                ("EVENT_PERSISTER_REDIS_URL", redis.url()),
                ("EVENT_PERSISTER_TRIM_EVERY", "off".to_owned()),
                // The least that it takes.
                ("EVENT_PERSISTER_REDIS_CLAIM_IDLE", "4s".to_owned()),
            ],
            redis,
        }
    }

    /// What comes over it ends up in Prefect's tables of this database, which must be empty.
    pub(crate) fn write_to(&mut self, database: &Database) {
        database.execute(PREFECTS_TABLES);
        self.set("EVENT_PERSISTER_DATABASE_URL", database.url.clone());
    }

    /// Sets a variable for the replicas that are started from now on.
    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.push((name, value.into()));
    }

    /// What the binary needs to know.
    pub(crate) fn variables(&self) -> Vec<(&str, &str)> {
        let variables = self.variables.iter();
        variables
            .map(|(name, value)| (*name, value.as_str()))
            .collect()
    }

    /// Starts a replica; returns once it listens.
    pub(crate) fn start(&self) -> Server {
        Server::start(&self.folder, &self.variables())
    }

    /// Starts a replica that has one more variable.
    pub(crate) fn start_with(&self, name: &str, value: &str) -> Server {
        let mut variables = self.variables();
        variables.push((name, value));
        Server::start(&self.folder, &variables)
    }

    /// Waits until all entries were delivered and acknowledged, for as long as there is progress.
    pub(crate) async fn until_settled(&self, server: &Server) {
        let mut progress = (Instant::now(), None);
        while !self.is_settled() {
            let now = Some((
                self.stream.num_pending(),
                self.stream.last_delivered("event-persister"),
            ));
            if progress.1 != now {
                progress = (Instant::now(), now);
            }
            let (since, now) = &progress;
            assert!(
                since.elapsed() < PATIENCE,
                "still {now:?}: {}",
                server.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until what has been published by now was acknowledged.
    pub(crate) async fn until_settled_now(&self) {
        let last = self.last_id();
        let started = Instant::now();
        loop {
            let delivered = self.stream.last_delivered("event-persister");
            let pending: (u64, redis::Value, redis::Value, redis::Value) =
                self.stream.command("XPENDING events event-persister");
            let first: Option<String> = redis::from_redis_value(pending.1).unwrap();
            let past =
                |id: &Option<String>| id.as_ref().is_none_or(|id| parsed(id) > parsed(&last));
            let reached = delivered.is_some_and(|id| parsed(&id) >= parsed(&last));
            if reached && past(&first) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "not acknowledged: {last}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Removes what all groups have been given, the guard included, as Prefect's consumers do.
    pub(crate) fn trim_as_prefect_does(&self) {
        let guard = self.stream.last_delivered("event-persister-guard");
        let main = self.stream.last_delivered("event-persister");
        if let (Some(guard), Some(main)) = (guard, main) {
            let least = if parsed(&guard) < parsed(&main) {
                guard
            } else {
                main
            };
            let _: u64 = self.stream.command(&format!("XTRIM events MINID {least}"));
        }
    }

    /// The id of what was published last.
    pub(crate) fn last_id(&self) -> String {
        let info: Vec<redis::Value> = self.stream.command("XINFO STREAM events");
        let mut last = info.iter().skip_while(
            |field| !matches!(field, redis::Value::BulkString(name) if name == b"last-generated-id"),
        );
        redis::from_redis_value(last.nth(1).unwrap().clone()).unwrap()
    }

    fn is_settled(&self) -> bool {
        let last = self.last_id();
        self.stream.last_delivered("event-persister").as_ref() == Some(&last)
            && self.stream.num_pending() == 0
    }
}

/// A stream id as numbers, which sort as the entries do.
fn parsed(id: &str) -> (u64, u64) {
    let (time, number) = id.split_once('-').unwrap();
    (time.parse().unwrap(), number.parse().unwrap())
}

/// The `attributes` that Prefect's publisher adds to an event.
pub(crate) fn attributes(event: &Value) -> String {
    json!({"id": event["id"], "event": event["event"]}).to_string()
}

/// Every event that was published is there once, with all of its resources and nothing else.
#[track_caller]
pub(crate) fn has_exactly(database: &Database, ids: &[String]) {
    has_exactly_beside_letters(database, ids);
    let letters = database.execute("SELECT reason FROM event_persister_dead_letters");
    assert_eq!(letters, TextRows::new());
}

/// As [`has_exactly`], whatever else became a dead letter.
#[track_caller]
pub(crate) fn has_exactly_beside_letters(database: &Database, ids: &[String]) {
    database.execute("CREATE TABLE published (id uuid PRIMARY KEY)");
    for ids in ids.chunks(1000) {
        let values: Vec<_> = ids.iter().map(|id| format!("('{id}')")).collect();
        database.execute(&format!(
            "INSERT INTO published VALUES {}",
            values.join(",")
        ));
    }
    let none = TextRows::new();
    let wrong = database.execute(
        "SELECT 'event missing', id FROM (SELECT id FROM published EXCEPT ALL SELECT id FROM events) a \
         UNION ALL \
         SELECT 'event too much', id FROM (SELECT id FROM events EXCEPT ALL SELECT id FROM published) b \
         UNION ALL \
         SELECT 'half an event', e.id FROM events AS e WHERE jsonb_array_length(e.related::jsonb) + 1 \
             != (SELECT count(*) FROM event_resources AS r WHERE r.event_id = e.id) \
         UNION ALL \
         SELECT 'resource without event', event_id FROM event_resources AS r \
             WHERE NOT EXISTS (SELECT FROM events AS e WHERE e.id = r.event_id)",
    );
    database.execute("DROP TABLE published");
    assert_eq!(wrong, none);
}

/// Somebody who publishes events until told to stop.
pub(crate) struct Publisher {
    stop: std::sync::Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl Publisher {
    /// Publishes 50 every 50 ms, each this often; what Redis does not confirm is published again.
    pub(crate) fn start(stream: &TestStream, num_copies: usize) -> Self {
        Self::start_with(stream, num_copies, 50)
    }

    /// The same with this many every 50 ms.
    pub(crate) fn start_with(stream: &TestStream, num_copies: usize, num_events: usize) -> Self {
        let (stream, stop) = (stream.clone(), std::sync::Arc::new(AtomicBool::new(false)));
        let stopped = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut ids = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let events = events::events(num_events);
                let mut entries: Vec<_> = (events.iter())
                    .map(|event| (event.to_string().into_bytes(), attributes(event)))
                    .collect();
                for _ in 0..num_copies {
                    while stream.try_publish(&entries).is_err() {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    // The copies come the other way round, so that replicas that wrote in the order
                    // of arrival would wait for each other.
                    entries.reverse();
                }
                ids.extend(events::ids(&events));
                std::thread::sleep(Duration::from_millis(50));
            }
            ids
        });
        Self { stop, thread }
    }

    /// The ids of all that it published.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
