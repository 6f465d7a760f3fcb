//! What would stop or hurt the service, as each adapter sees it.

use event_persister_actors::finding::Finding;
use event_persister_actors::source::redis::RedisInspection;
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
    match operator(config, Missing::Create) {
        Ok(operator) => operator.inspect(needs).await,
        Err(error) => vec![wrong_settings("store.settings", &error)],
    }
}

/// Looks at the configured stream, if any.
pub(crate) async fn inspect_bus(config: &Config) -> Vec<Finding> {
    let Some(redis) = &config.redis else {
        return vec![Finding::ok("redis.reachable", "Redis is no source")];
    };
    let inspection =
        redis::settings(redis).and_then(|settings| Ok(RedisInspection::new(settings)?));
    match inspection {
        Ok(inspection) => {
            let retention = config.trim.every.map(|_| config.trim.retention);
            inspection.inspect(retention).await
        }
        Err(error) => vec![wrong_settings("redis.settings", &error)],
    }
}

fn wrong_settings(id: &'static str, error: &anyhow::Error) -> Finding {
    Finding::error(id, format!("{error:#}"), "correct the setting")
}
