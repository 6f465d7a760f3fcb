//! The binary between a bus and a database, as an operator runs it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::binary::Folder;
use super::events;
#[cfg(feature = "nats")]
use super::nats::{NatsCluster, NatsServer, NatsStream};
#[cfg(feature = "nats")]
use super::network::Network;
use super::postgres::{Database, TextRows};
use super::redis::{RedisServer, ServerOptions, TestStream};
use super::server::Server;
use super::wait::PATIENCE;

/// The tables as Prefect's own migrations leave them.
const PREFECTS_TABLES: &str = include_str!("../../data/prefect-schema-postgres.sql");

/// What a case asks of a bus, whichever it is.
pub(crate) trait TestBus {
    /// Where the binary runs.
    fn folder(&self) -> &Folder;

    /// What the binary needs to know.
    fn variables(&self) -> Vec<(&str, &str)>;

    fn stream(&self) -> Box<dyn Publish>;

    /// How far it is, in a form of its own, and whether all was delivered and acknowledged.
    fn progress(&self) -> (String, bool);

    /// Starts a replica; returns once it listens.
    fn start(&self) -> Server {
        Server::start(self.folder(), &self.variables())
    }

    /// Waits until all entries were delivered and acknowledged, for as long as there is progress.
    async fn until_settled(&self, server: &Server) {
        let mut last = (Instant::now(), String::new());
        loop {
            let (now, is_settled) = self.progress();
            if is_settled {
                return;
            }
            if last.1 != now {
                last = (Instant::now(), now);
            }
            let (since, now) = &last;
            assert!(since.elapsed() < PATIENCE, "still {now}: {}", server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A stream that is published to.
pub(crate) trait Publish: Send {
    /// Publishes texts, each with the `attributes` that go with it where the bus has such; an error if one was
    /// not confirmed.
    fn try_publish(&self, entries: &[(Vec<u8>, String)]) -> Result<(), String>;
}

impl Publish for TestStream {
    fn try_publish(&self, entries: &[(Vec<u8>, String)]) -> Result<(), String> {
        Self::try_publish(self, entries)
            .map(drop)
            .map_err(|error| error.to_string())
    }
}

#[cfg(feature = "nats")]
impl Publish for NatsStream {
    fn try_publish(&self, entries: &[(Vec<u8>, String)]) -> Result<(), String> {
        let texts: Vec<&[u8]> = entries.iter().map(|(text, _)| &text[..]).collect();
        Self::try_publish(self, &texts).map_err(|error| error.to_string())
    }
}

/// NATS servers, and what the binary needs to know to read them.
#[cfg(feature = "nats")]
pub(crate) struct NatsBus {
    pub(crate) servers: NatsCluster,
    pub(crate) stream: NatsStream,
    pub(crate) folder: Folder,
    variables: Vec<(&'static str, String)>,
}

#[cfg(feature = "nats")]
impl NatsBus {
    /// One server; what comes over it ends up in Prefect's tables of this database, which must be empty.
    pub(crate) fn into_postgres(database: &Database) -> Self {
        let server = NatsServer::start();
        server.with_stream();
        Self::of(NatsCluster::of_one(server), database)
    }

    /// One server; what comes over it ends up in the file `event-persister.db` of its folder.
    pub(crate) fn into_sqlite() -> Self {
        let server = NatsServer::start();
        server.with_stream();
        Self::reading(NatsCluster::of_one(server))
    }

    /// The same with three servers, which keep the stream three times.
    pub(crate) fn of_three_into_postgres(database: &Database) -> Self {
        Self::of(NatsCluster::start(), database)
    }

    /// The same on hosts that can be cut off.
    pub(crate) fn of_three_on(network: Network, database: &Database) -> Self {
        Self::of(NatsCluster::start_on(Some(network)), database)
    }

    fn of(servers: NatsCluster, database: &Database) -> Self {
        database.execute(PREFECTS_TABLES);
        let mut bus = Self::reading(servers);
        bus.set("EVENT_PERSISTER_DATABASE_URL", database.url.clone());
        bus
    }

    fn reading(servers: NatsCluster) -> Self {
        let stream = servers.stream();
        Self {
            variables: vec![
                ("EVENT_PERSISTER_NATS_URL", stream.url().to_owned()),
                ("EVENT_PERSISTER_TRIM_EVERY", "off".to_owned()),
                ("EVENT_PERSISTER_NATS_ACK_WAIT", "4s".to_owned()),
            ],
            servers,
            stream,
            folder: Folder::new(),
        }
    }

    /// Sets a variable for the replicas that are started from now on.
    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.push((name, value.into()));
    }
}

#[cfg(feature = "nats")]
impl TestBus for NatsBus {
    fn folder(&self) -> &Folder {
        &self.folder
    }

    fn variables(&self) -> Vec<(&str, &str)> {
        shown(&self.variables)
    }

    fn stream(&self) -> Box<dyn Publish> {
        Box::new(self.stream.clone())
    }

    fn progress(&self) -> (String, bool) {
        let what = "CONSUMER.INFO.events.event-persister";
        let asked = self.stream.try_api(what, &Value::Null);
        let consumer = asked.unwrap_or_default();
        let now = ["delivered", "ack_floor", "num_ack_pending", "num_pending"]
            .map(|key| consumer[key].to_string());
        let is_settled = consumer["num_pending"] == 0 && consumer["num_ack_pending"] == 0;
        (now.join(" "), is_settled)
    }
}

fn shown<'a>(variables: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    let variables = variables.iter();
    variables
        .map(|(name, value)| (*name, value.as_str()))
        .collect()
}

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
        shown(&self.variables)
    }

    /// Starts a replica; returns once it listens.
    pub(crate) fn start(&self) -> Server {
        TestBus::start(self)
    }

    /// Waits until all entries were delivered and acknowledged, for as long as there is progress.
    pub(crate) async fn until_settled(&self, server: &Server) {
        TestBus::until_settled(self, server).await;
    }

    /// Starts a replica that has one more variable.
    pub(crate) fn start_with(&self, name: &str, value: &str) -> Server {
        let mut variables = self.variables();
        variables.push((name, value));
        Server::start(&self.folder, &variables)
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
}

impl TestBus for Bus {
    fn folder(&self) -> &Folder {
        &self.folder
    }

    fn variables(&self) -> Vec<(&str, &str)> {
        self.variables()
    }

    fn stream(&self) -> Box<dyn Publish> {
        Box::new(self.stream.clone())
    }

    fn progress(&self) -> (String, bool) {
        let delivered = self.stream.last_delivered("event-persister");
        let num_pending = self.stream.num_pending();
        let is_settled = num_pending == 0 && delivered.as_ref() == Some(&self.last_id());
        (format!("{num_pending} pending, {delivered:?}"), is_settled)
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
    num_published: std::sync::Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Publisher {
    /// Publishes 50 every 50 ms, each this often; what is not confirmed is published again.
    pub(crate) fn start(stream: &TestStream, num_copies: usize) -> Self {
        Self::to(Box::new(stream.clone()), num_copies, 50)
    }

    /// The same to any stream, with this many every 50 ms.
    pub(crate) fn to(stream: Box<dyn Publish>, num_copies: usize, num_events: usize) -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let num_published = std::sync::Arc::<AtomicUsize>::default();
        let published = std::sync::Arc::clone(&num_published);
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
                published.store(ids.len(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
            ids
        });
        Self {
            stop,
            num_published,
            thread,
        }
    }

    pub(crate) fn num_published(&self) -> usize {
        self.num_published.load(Ordering::Relaxed)
    }

    /// The ids of all that it published.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
