//! Where events come from besides HTTP: a stream of Redis or of NATS, at most one of them.

use std::sync::Arc;

use anyhow::Context as _;
use event_persister_actors::finding::Finding;
use event_persister_actors::publisher::EventPublisher;
use event_persister_actors::source::EventSource;
#[cfg(feature = "nats")]
use event_persister_actors::source::nats::{NatsOperator, NatsPublisher, NatsSource};
#[cfg(feature = "nats")]
pub(crate) use event_persister_actors::source::nats::{NatsStats, NatsStatus};
pub(crate) use event_persister_actors::source::operator::{
    BusOperator, BusReport, ConsumerReport, GuardReport, ReadAgain, StreamShadow,
};
use event_persister_actors::source::redis::{
    RedisOperator, RedisPublisher, RedisSettings, RedisSource, consumer_name,
};
pub(crate) use event_persister_actors::source::redis::{RedisStats, RedisStatus};
use event_persister_actors::status::error_chain;
use event_persister_actors::store::publishing::PublishingStore;
use event_persister_actors::store::{EventStore, OpenStore};

use crate::config::{Config, DatabaseUrl, NatsSettings};

pub(crate) const NO_BUS: &str = "no bus is configured";

pub(crate) struct Bus {
    pub(crate) source: Arc<dyn EventSource>,
    pub(crate) stats: BusStats,
}

#[derive(Clone)]
pub(crate) enum BusStats {
    Redis(RedisStats),
    #[cfg(feature = "nats")]
    Nats(NatsStats),
}

/// The configured stream, if any. Connects when it is first read.
pub(crate) fn bus(config: &Config) -> anyhow::Result<Option<Bus>> {
    if let Some(redis) = &config.redis {
        let source = RedisSource::new(of_this_process(redis)).context("redis")?;
        return Ok(Some(Bus {
            stats: BusStats::Redis(source.stats()),
            source: Arc::new(source),
        }));
    }
    config.nats.as_ref().map(of_nats).transpose()
}

/// The configured stream for its operator, if any. Connects when it is first used.
pub(crate) fn bus_operator(config: &Config) -> anyhow::Result<Option<Box<dyn BusOperator>>> {
    if let Some(redis) = &config.redis {
        let operator = RedisOperator::new(of_this_process(redis)).context("redis")?;
        return Ok(Some(Box::new(operator)));
    }
    config.nats.as_ref().map(nats_operator).transpose()
}

#[cfg(feature = "nats")]
fn of_nats(settings: &NatsSettings) -> anyhow::Result<Bus> {
    let source = NatsSource::new(named(settings)).context("nats")?;
    Ok(Bus {
        stats: BusStats::Nats(source.stats()),
        source: Arc::new(source),
    })
}

#[cfg(feature = "nats")]
fn nats_operator(settings: &NatsSettings) -> anyhow::Result<Box<dyn BusOperator>> {
    let operator = NatsOperator::new(named(settings)).context("nats")?;
    Ok(Box::new(operator))
}

/// For people who look at the connections of a server.
#[cfg(feature = "nats")]
fn named(settings: &NatsSettings) -> NatsSettings {
    NatsSettings {
        name: format!("event-persister {}", host_name()),
        ..settings.clone()
    }
}

#[cfg(not(feature = "nats"))]
fn of_nats(settings: &NatsSettings) -> anyhow::Result<Bus> {
    match *settings {}
}

#[cfg(not(feature = "nats"))]
fn nats_operator(settings: &NatsSettings) -> anyhow::Result<Box<dyn BusOperator>> {
    match *settings {}
}

/// To the configured stream, if there is one. Connects when it is first used.
fn publisher(config: &Config) -> anyhow::Result<Arc<dyn EventPublisher>> {
    if let Some(redis) = &config.redis {
        let publisher = RedisPublisher::new(of_this_process(redis)).context("redis")?;
        return Ok(Arc::new(publisher));
    }
    nats_publisher(config.nats.as_ref().context(NO_BUS)?)
}

/// A store that publishes the events of an import.
pub(crate) fn open_publisher(config: &Config) -> anyhow::Result<OpenStore> {
    Ok(shared(PublishingStore::new(publisher(config)?)))
}

/// A store that publishes what comes in by HTTP.
pub(crate) fn open_bridge(config: &Config) -> anyhow::Result<OpenStore> {
    Ok(shared(PublishingStore::bridge(publisher(config)?)))
}

/// All writers use one connection.
fn shared(store: PublishingStore) -> OpenStore {
    let store: Arc<dyn EventStore> = Arc::new(store);
    Arc::new(move || Arc::clone(&store))
}

/// Whether what comes in by HTTP can be published.
pub(crate) async fn inspect_bridge(config: &Config) -> Finding {
    const ID: &str = "http.publish";
    let checked = match publisher(config) {
        Ok(publisher) => {
            let checked = publisher.check().await;
            let place = publisher.place();
            checked
                .map(|limit| (limit, place))
                .map_err(|error| error_chain(&error))
        }
        Err(error) => Err(format!("{error:#}")),
    };
    let largest = config.http.routes.max_event_bytes.get();
    match checked {
        Err(error) => Finding::error(ID, error, "requests get 503 until that is mended"),
        Ok((Some(limit), place)) if limit < largest => Finding::warning(
            ID,
            format!(
                "what comes in by HTTP is published to {place}, which takes no event larger than {limit} bytes"
            ),
            format!(
                "set http.max_event_bytes to {limit}, so that clients are told which event is too large, or let the \
                 bus take more"
            ),
        ),
        Ok((_, place)) => Finding::ok(ID, format!("what comes in by HTTP is published to {place}")),
    }
}

#[cfg(feature = "nats")]
fn nats_publisher(settings: &NatsSettings) -> anyhow::Result<Arc<dyn EventPublisher>> {
    let publisher = NatsPublisher::new(named(settings)).context("nats")?;
    Ok(Arc::new(publisher))
}

#[cfg(not(feature = "nats"))]
fn nats_publisher(settings: &NatsSettings) -> anyhow::Result<Arc<dyn EventPublisher>> {
    match *settings {}
}

/// The NATS servers for the log, secrets masked; `None` where NATS is no source.
#[cfg(feature = "nats")]
pub(crate) fn nats_servers(config: &Config) -> Option<String> {
    config.nats.as_ref().map(|nats| nats.url.masked())
}

#[cfg(not(feature = "nats"))]
pub(crate) fn nats_servers(_: &Config) -> Option<String> {
    None
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
        Err(error) => {
            let id = match config.redis {
                Some(_) => "redis.settings",
                None => "nats.settings",
            };
            let remedy = "correct the setting";
            vec![Finding::error(id, format!("{error:#}"), remedy)]
        }
    }
}

/// Under a name that no other process has.
fn of_this_process(redis: &RedisSettings) -> RedisSettings {
    RedisSettings {
        consumer_name: consumer_name(&host_name()),
        ..redis.clone()
    }
}

/// Only for people: the name of a consumer is unique without it.
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

    #[cfg(feature = "nats")]
    #[test]
    fn a_service_reads_one_bus() {
        let both = [
            ("EVENT_PERSISTER_REDIS_URL", "redis://r"),
            ("EVENT_PERSISTER_NATS_URL", "nats://n"),
        ];
        let error = Config::of_variables(&both).unwrap_err().to_string();
        assert_eq!(
            error,
            "redis.url (EVENT_PERSISTER_REDIS_URL) and nats.url (EVENT_PERSISTER_NATS_URL) both name a bus, and a \
             service reads one; remove one of them, or set it to off"
        );
        let config = Config::of_variables(&both[1..]).unwrap();
        assert_eq!(bus(&config).unwrap().unwrap().source.name(), "nats");
        let wrong = ("EVENT_PERSISTER_NATS_STREAM", "a.b");
        let config = Config::of_variables(&[both[1], wrong]).unwrap();
        assert!(bus(&config).is_err());
    }
}
