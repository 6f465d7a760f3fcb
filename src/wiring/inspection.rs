//! What would stop or hurt the service, as each adapter sees it.

use event_persister_actors::finding::Finding;
use event_persister_actors::store::postgres::{Needs, PostgresStore};
use event_persister_actors::store::sqlite::SqliteStore;

use super::stores::{Missing, Settings};
use super::{clock, redis};
use crate::config::Config;

/// Looks at the configured database as `serve` would use it, and makes nothing.
pub(crate) async fn inspect_store(config: &Config) -> Vec<Finding> {
    match Settings::new(config, Missing::Create) {
        Settings::Sqlite(settings) => {
            let inspected = SqliteStore::new(settings, clock()).inspect().await;
            inspected.unwrap_or_else(|error| vec![Finding::of_error("sqlite.file", &error)])
        }
        Settings::Postgres(settings) => {
            let needs = Needs {
                writers: config.pipeline.writers.get(),
                trims: config.trim.every.is_some(),
            };
            PostgresStore::new(*settings, clock()).inspect(needs).await
        }
    }
}

/// Looks at the configured stream, if any.
pub(crate) async fn inspect_bus(config: &Config) -> Vec<Finding> {
    match redis::bus_operator(config) {
        Ok(None) => vec![Finding::ok("redis.reachable", "Redis is no source")],
        Ok(Some(bus)) => {
            let retention = config.trim.every.map(|_| config.trim.retention);
            bus.inspect(retention).await
        }
        Err(error) => vec![Finding::error(
            "redis.settings",
            format!("{error:#}"),
            "correct the setting",
        )],
    }
}
