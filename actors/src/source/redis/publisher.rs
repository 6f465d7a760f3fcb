//! Publishes events to the stream of a source, in the form of Prefect's own messages.

use futures_util::future::LocalBoxFuture;
use redis::RedisResult;

use crate::delivery::Entry;
use crate::publisher::EventPublisher;
use crate::source::SourceError;

use super::connection::Connections;
use super::failure;
use super::settings::{RedisSettings, RedisSettingsError};

/// How often a batch is published at most, while the master changes.
const MAX_TURNS: usize = 3;

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

    /// Publishes to the master. One that was replaced takes entries too, until it is told, and then loses them. So the
    /// sentinels are asked behind the replies: what went to another is published again. Sentinels that do not agree
    /// for long are waited for as any other failure is.
    async fn publish_all(&self, entries: &[&Entry]) -> Result<(), SourceError> {
        let failed = |error| self.connections.failed("publishing", error);
        for _ in 0..MAX_TURNS {
            let mut commands = self.connections.commands().await.map_err(failed)?;
            let added = commands.add(entries).await;
            added.map_err(|error| self.connections.not_sent("publishing", error))?;
            let master = self.connections.follow().await.map_err(failed)?;
            if commands.epoch() == master {
                return Ok(());
            }
        }
        Err(failed(failure::another_master()))
    }

    async fn look(&self) -> RedisResult<()> {
        self.connections.follow().await?;
        self.connections.commands().await?.may_add().await
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
            self.publish_all(entries).await?;
            Ok(vec![Ok(()); entries.len()])
        })
    }

    /// A stream is made by the first entry.
    fn check(&self) -> LocalBoxFuture<'_, Result<Option<usize>, SourceError>> {
        Box::pin(async move {
            let looked = self.look().await;
            looked.map_err(|error| {
                self.connections
                    .failed("asking whether it takes events", error)
            })?;
            Ok(None)
        })
    }
}
