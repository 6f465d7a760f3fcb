//! Where events come from besides HTTP: a stream of Redis.

use std::sync::Arc;

use anyhow::Context as _;
use event_persister_actors::source::EventSource;
pub(crate) use event_persister_actors::source::operator::{BusOperator, GuardReport, StreamShadow};
use event_persister_actors::source::redis::{
    RedisIdentity, RedisOperator, RedisSettings, RedisSource, RedisTls, consumer_name,
};
pub(crate) use event_persister_actors::source::redis::{RedisStats, SOURCE_NAME as BUS_NAME};

use crate::config::{Config, Redis};

/// The stream as a source, and what is known about it.
pub(crate) struct Bus {
    pub(crate) source: Arc<dyn EventSource>,
    pub(crate) stats: RedisStats,
}

/// The configured stream, if any. Connects when it is first read.
pub(crate) fn bus(config: &Config) -> anyhow::Result<Option<Bus>> {
    let Some(redis) = &config.redis else {
        return Ok(None);
    };
    let source = RedisSource::new(settings(redis)?).context("redis")?;
    Ok(Some(Bus {
        stats: source.stats(),
        source: Arc::new(source),
    }))
}

/// The configured stream for its operator, if any. Connects when it is first used.
pub(crate) fn bus_operator(config: &Config) -> anyhow::Result<Option<Box<dyn BusOperator>>> {
    let Some(redis) = &config.redis else {
        return Ok(None);
    };
    let operator = RedisOperator::new(settings(redis)?).context("redis")?;
    Ok(Some(Box::new(operator)))
}

/// The position before an entry's: a group that is set to it is given that entry next.
pub(crate) fn position_before(position: &str) -> Option<String> {
    RedisOperator::position_before(position)
}

pub(super) fn settings(redis: &Redis) -> anyhow::Result<RedisSettings> {
    Ok(RedisSettings {
        url: redis.address.reveal().parse().context("redis.url")?,
        tls: RedisTls {
            ca_file: redis.ca_file.clone(),
            identity: redis.certificate.clone().map(|files| RedisIdentity {
                cert_file: files.cert,
                key_file: files.key,
            }),
            ..RedisTls::default()
        },
        stream: redis.stream.clone(),
        group: redis.group.clone(),
        consumer_name: consumer_name(&host_name()),
        claim_idle: redis.claim_idle,
        guard: redis.guard,
        guard_group: redis.guard_group.clone(),
        guard_max_entries: redis.guard_max_entries,
        trim_stream: redis.trim_stream,
        ..RedisSettings::default()
    })
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
    fn the_defaults_are_those_of_the_library() {
        let config =
            Config::of_variables(&[("EVENT_PERSISTER_REDIS_URL", "redis://localhost")]).unwrap();
        let settings = settings(config.redis.as_ref().unwrap()).unwrap();
        let defaults = RedisSettings {
            consumer_name: settings.consumer_name.clone(),
            ..RedisSettings::default()
        };
        assert_eq!(settings, defaults);
    }

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
