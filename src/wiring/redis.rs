//! Where events come from besides HTTP: a stream of Redis.

use std::sync::Arc;

use anyhow::Context as _;
use event_persister_actors::finding::Finding;
use event_persister_actors::source::EventSource;
pub(crate) use event_persister_actors::source::operator::{BusOperator, GuardReport, StreamShadow};
use event_persister_actors::source::redis::{
    RedisOperator, RedisSettings, RedisSettingsError, RedisSource, consumer_name,
};
pub(crate) use event_persister_actors::source::redis::{
    RedisStats, RedisStatus, SOURCE_NAME as BUS_NAME,
};

use crate::config::{Config, DatabaseUrl};

pub(crate) struct Bus {
    pub(crate) source: Arc<dyn EventSource>,
    pub(crate) stats: RedisStats,
}

/// The configured stream, if any. Connects when it is first read.
pub(crate) fn bus(config: &Config) -> anyhow::Result<Option<Bus>> {
    let source = with_settings(config, RedisSource::new)?;
    Ok(source.map(|source| Bus {
        stats: source.stats(),
        source: Arc::new(source),
    }))
}

/// The configured stream for its operator, if any. Connects when it is first used.
pub(crate) fn bus_operator(config: &Config) -> anyhow::Result<Option<Box<dyn BusOperator>>> {
    let operator = with_settings(config, RedisOperator::new)?;
    Ok(operator.map(|operator| Box::new(operator) as _))
}

/// Has a command use the server that the replicas write to, as they have agreed on it. Where nobody can say that,
/// the command uses the one that it finds.
pub(crate) async fn follow_the_replicas(config: &Config) {
    let (Some(redis), DatabaseUrl::Postgres { .. }) = (&config.redis, &config.database.url) else {
        return;
    };
    let asked = async {
        let Some(bus) = bus_operator(config)? else {
            return Ok(None);
        };
        bus.primary().await.map_err(anyhow::Error::from)
    };
    match asked.await {
        Ok(Some(primary)) => redis.primary.agree(primary),
        Ok(None) => {}
        Err(error) => log::debug!("nobody says which server the replicas write to error={error:#}"),
    }
}

pub(crate) async fn inspect_bus(config: &Config) -> Vec<Finding> {
    match bus_operator(config) {
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

/// The position before an entry's: a group that is set to it is given that entry next.
pub(crate) fn position_before(position: &str) -> Option<String> {
    RedisOperator::position_before(position)
}

/// Of the configured stream, if any, under a name that no other process has.
fn with_settings<T>(
    config: &Config,
    make: impl FnOnce(RedisSettings) -> Result<T, RedisSettingsError>,
) -> anyhow::Result<Option<T>> {
    let Some(redis) = &config.redis else {
        return Ok(None);
    };
    let settings = RedisSettings {
        consumer_name: consumer_name(&host_name()),
        ..redis.clone()
    };
    make(settings).map(Some).context("redis")
}

/// Only for people who look at the consumers of the group: the name is unique without it.
fn host_name() -> String {
    ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|file| std::fs::read_to_string(file).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_lose_events_is_refused() {
        let config = Config::of_variables(&[
            ("EVENT_PERSISTER_REDIS_URL", "redis://r"),
            ("EVENT_PERSISTER_REDIS_GUARD", "off"),
            ("EVENT_PERSISTER_REDIS_TRIM_STREAM", "on"),
        ])
        .unwrap();
        assert!(bus(&config).is_err());
    }
}
