//! A PostgreSQL, a Redis and perhaps another bus for one benchmark, and what a piece of work costs the former.

use std::time::Duration;

use super::bus::{self, Bus};
use super::copy::CopyBatch;
use super::load::Message;
use super::postgres::{Database, Server};
use super::redis::{RedisServer, TestStream};
use super::reference::{self, Way};
use super::{persister, settings, usage};

/// The servers; they end with the benchmark.
pub(crate) struct Servers {
    postgres: Server,
    pub(crate) redis: RedisServer,
    other_bus: Option<Box<dyn Bus>>,
}

/// What a piece of work cost PostgreSQL.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Of all its processes.
    pub(crate) processor: Duration,
    pub(crate) wal_bytes: f64,
}

impl Servers {
    /// Plain servers, but for where they listen; see the head of `kit.rs`.
    pub(crate) fn start() -> Self {
        Self {
            postgres: Server::start(""),
            redis: RedisServer::start(),
            other_bus: None,
        }
    }

    /// The same with the bus that `BENCH_BUS` names.
    pub(crate) fn with_chosen_bus() -> Self {
        let name = settings::text("BENCH_BUS").filter(|name| name != "redis");
        Self {
            other_bus: name.as_deref().map(bus::named),
            ..Self::start()
        }
    }

    /// What feeds the product.
    pub(crate) fn bus(&self) -> &dyn Bus {
        self.other_bus.as_deref().unwrap_or(&self.redis)
    }

    /// A database of this name with Prefect's tables and all of their indexes, and nothing in them.
    pub(crate) fn fresh_database(&self, name: &str) -> Database {
        let database = self.postgres.database_named(name);
        persister::migrate(&database);
        database
    }

    /// Writes these rows once, into a database that is made anew afterwards. The files of the log are made
    /// then, which the first turn would else do, and the later ones only use again.
    pub(crate) fn warm_up(&self, name: &str, batches: &[CopyBatch]) {
        let database = self.fresh_database(name);
        reference::run(&database, Way::Copy, 1, batches);
        database.execute("CHECKPOINT");
    }

    /// Whether values can be compressed with lz4.
    pub(crate) fn knows_lz4(&self, database: &Database) -> bool {
        let query = "SELECT count(*) FROM pg_settings \
             WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)";
        database.value(query) == "1"
    }

    /// What it does on this database costs; a checkpoint before makes all begin alike.
    pub(crate) fn cost<T>(&self, database: &Database, work: impl FnOnce() -> T) -> (T, Cost) {
        until_alone(database);
        database.execute("CHECKPOINT");
        let wal = || -> f64 {
            let query = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')";
            database.value(query).parse().unwrap()
        };
        let (wal_before, processor_before) = (wal(), self.processor());
        let done = work();
        // What a connection's process has used counts for its parent only once it has ended.
        until_alone(database);
        let cost = Cost {
            processor: self.processor() - processor_before,
            wal_bytes: wal() - wal_before,
        };
        (done, cost)
    }

    fn processor(&self) -> Duration {
        let file = self
            .postgres
            .directory()
            .unwrap()
            .join("data/postmaster.pid");
        let text = std::fs::read_to_string(file).unwrap();
        usage::of_tree(text.lines().next().unwrap().parse().unwrap())
    }

    /// A stream with these events in it, and nothing else in Redis.
    pub(crate) fn filled_stream(&self, messages: &[Message]) -> TestStream {
        self.redis.fill(messages);
        self.redis.stream()
    }
}

/// Waits until nobody else is connected.
fn until_alone(database: &Database) {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
         AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    while database.value(query) != "0" {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A digest of everything that the events themselves say, of both tables: equal where the rows are.
pub(crate) fn digest(database: &Database) -> Vec<Option<String>> {
    let of = |table: &str, columns: &str| {
        format!("SELECT sum(hashtextextended(({columns})::text, 0)) FROM {table}")
    };
    let events = of(
        "events",
        "id, occurred, received, event, resource_id, resource, related, related_resource_ids, \
         payload, follows",
    );
    let resources = of(
        "event_resources",
        "event_id, occurred, resource_id, resource_role, resource::text",
    );
    let rows = database.execute(&format!(
        "SELECT ({events}), ({resources}), (SELECT count(*) FROM events), \
         (SELECT count(*) FROM event_resources)"
    ));
    rows[0].clone()
}
