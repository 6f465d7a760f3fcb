//! What would stop or hurt the service, as each adapter sees it.

use event_persister_actors::finding::Finding;
use event_persister_actors::store::operator::Needs;

use super::redis;
use super::stores::{Missing, operator};
use crate::config::Config;

/// Looks at the configured database as `serve` would use it, and makes nothing.
pub(crate) async fn inspect_store(config: &Config) -> Vec<Finding> {
    let needs = Needs {
        writers: config.pipeline.writers.get(),
        trims: config.trim.every.is_some(),
    };
    operator(config, Missing::Create).inspect(needs).await
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
