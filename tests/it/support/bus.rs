//! The binary between a Redis and a database, as an operator runs it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::binary::Folder;
use super::postgres::Database;
use super::redis::{RedisServer, ServerOptions, TestStream};
use super::server::Server;

/// The tables as Prefect's own migrations leave them.
const PREFECTS_TABLES: &str = include_str!("../../data/prefect-schema-postgres.sql");

/// Nothing here takes longer, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Redis, and what the binary needs to know to read it.
pub(crate) struct Bus {
    _redis: RedisServer,
    pub(crate) stream: TestStream,
    pub(crate) folder: Folder,
    variables: Vec<(&'static str, String)>,
}

impl Bus {
    /// What comes over it ends up in Prefect's tables of this database, which must be empty.
    pub(crate) fn into_postgres(database: &Database) -> Self {
        database.execute(PREFECTS_TABLES);
        let mut bus = Self::into_sqlite();
        bus.variables
            .push(("EVENT_PERSISTER_DATABASE_URL", database.url.clone()));
        bus
    }

    /// What comes over it ends up in the file `event-persister.db` of its folder.
    pub(crate) fn into_sqlite() -> Self {
        // It survives a kill, as a Redis does that matters to somebody.
        let redis = RedisServer::start_with(ServerOptions {
            durable: true,
            ..ServerOptions::default()
        });
        Self {
            stream: redis.stream(),
            folder: Folder::new(),
            variables: vec![
                ("EVENT_PERSISTER_REDIS_URL", redis.url()),
                ("EVENT_PERSISTER_TRIM_EVERY", "off".to_owned()),
                // The least that it takes.
                ("EVENT_PERSISTER_REDIS_CLAIM_IDLE", "4s".to_owned()),
            ],
            _redis: redis,
        }
    }

    /// Starts a replica; returns once it listens.
    pub(crate) fn start(&self) -> Server {
        let variables: Vec<_> = (self.variables.iter())
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        Server::start(&self.folder, &variables)
    }

    /// Waits until all entries were delivered and acknowledged.
    pub(crate) async fn until_settled(&self, server: &Server) {
        let started = Instant::now();
        while !self.is_settled() {
            let rest = self.stream.num_pending();
            assert!(
                started.elapsed() < PATIENCE,
                "{rest} pending: {}",
                server.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn is_settled(&self) -> bool {
        let info: Vec<redis::Value> = self.stream.command("XINFO STREAM events");
        let mut last = info.iter().skip_while(
            |field| !matches!(field, redis::Value::BulkString(name) if name == b"last-generated-id"),
        );
        let last: String = redis::from_redis_value(last.nth(1).unwrap().clone()).unwrap();
        self.stream.last_delivered("event-persister").as_ref() == Some(&last)
            && self.stream.num_pending() == 0
    }
}

/// The `attributes` that Prefect's publisher adds to an event.
pub(crate) fn attributes(event: &Value) -> String {
    json!({"id": event["id"], "event": event["event"]}).to_string()
}
