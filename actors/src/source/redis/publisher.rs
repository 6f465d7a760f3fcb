//! Publishes events to the stream of a source, in the form of Prefect's own messages.

use futures_util::future::LocalBoxFuture;

use crate::delivery::Entry;
use crate::publisher::EventPublisher;
use crate::source::SourceError;

use super::connection::Connections;
use super::settings::{RedisSettings, RedisSettingsError};

/// Publishes as `prefect-redis` does: the fields `data` and `attributes`.
pub struct RedisPublisher {
    connections: Connections,
}

impl RedisPublisher {
    /// To the stream of these settings; an error says why they cannot work.
    pub fn new(settings: RedisSettings) -> Result<Self, RedisSettingsError> {
        settings.check()?;
        let connections = Connections::new(settings);
        Ok(Self { connections })
    }
}

impl EventPublisher for RedisPublisher {
    fn place(&self) -> String {
        let RedisSettings { url, stream, .. } = &self.connections.settings;
        format!("the stream {stream} of Redis at {url}")
    }

    fn publish<'a>(
        &'a self,
        entries: &'a [&'a Entry],
    ) -> LocalBoxFuture<'a, Result<Vec<Result<(), String>>, SourceError>> {
        Box::pin(async move {
            let published = async { self.connections.commands().await?.add(entries).await };
            match published.await {
                Ok(()) => Ok(vec![Ok(()); entries.len()]),
                Err(error) => Err(self.connections.failed("publishing", error)),
            }
        })
    }

    /// A stream is made by the first entry.
    fn check(&self) -> LocalBoxFuture<'_, Result<Option<usize>, SourceError>> {
        Box::pin(async move {
            let asked = self.connections.commands().await;
            asked
                .map(|_| None)
                .map_err(|error| self.connections.failed("connecting", error))
        })
    }
}
