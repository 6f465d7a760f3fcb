//! The operator's tools of a Redis stream: inspection, trim guard, audit and shadow.
//!
//! They stand beside the path of an event. They use its connections, commands and reader; the path uses
//! nothing of theirs.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use redis::{RedisError, RedisResult};

use crate::finding::Finding;
use crate::source::SourceError;
use crate::source::operator::{BusOperator, GuardReport, StreamShadow, StreamWalk};

use super::commands::Commands;
use super::connection::Connections;
use super::failure;
use super::settings::{RedisSettings, RedisSettingsError};
use super::stream_id::StreamId;

mod audit;
mod commands;
mod guard;
mod inspection;
mod shadow;

/// The operator's side of the stream of a source. Connects when it is first used.
pub struct RedisOperator {
    settings: RedisSettings,
    connections: Connections,
}

impl RedisOperator {
    /// For a source with these settings.
    ///
    /// # Errors
    ///
    /// The settings cannot work.
    pub fn new(settings: RedisSettings) -> Result<Self, RedisSettingsError> {
        settings.check()?;
        let connections = Connections::new(&settings);
        Ok(Self {
            settings,
            connections,
        })
    }

    /// The position before an entry's: a group that is set to it is given that entry next.
    pub fn position_before(position: &str) -> Option<String> {
        let id: StreamId = position.parse().ok()?;
        Some(id.previous().to_string())
    }

    async fn commands(&self) -> RedisResult<Commands<'_>> {
        Ok(Commands {
            connection: self.connections.commands().await?,
            settings: &self.settings,
        })
    }

    fn failed(&self, doing: &str, error: RedisError) -> SourceError {
        self.connections.reset();
        failure::unavailable(&self.settings.url.to_string(), doing, error)
    }
}

impl BusOperator for RedisOperator {
    fn stream(&self) -> &str {
        &self.settings.stream
    }

    fn group(&self) -> &str {
        &self.settings.group
    }

    fn inspect(&self, retention: Option<Duration>) -> LocalBoxFuture<'_, Vec<Finding>> {
        Box::pin(self.look_for_trouble(retention))
    }

    fn server_version(&self) -> LocalBoxFuture<'_, Result<Option<String>, SourceError>> {
        Box::pin(async move {
            let asked = async { self.commands().await?.server_version().await };
            match asked.await {
                Err(error) if failure::is_answer(&error) => Ok(None),
                asked => asked.map_err(|error| self.failed("asking for the version", error)),
            }
        })
    }

    fn show_guard(&self) -> LocalBoxFuture<'_, Result<GuardReport, SourceError>> {
        Box::pin(async move {
            let report = self.guard_report().await;
            report.map_err(|error| self.failed("looking at the groups", error))
        })
    }

    fn remove_guard(&self) -> LocalBoxFuture<'_, Result<bool, SourceError>> {
        Box::pin(async move {
            let removed = async {
                let mut commands = self.commands().await?;
                commands.destroy_group(&self.settings.guard_group).await
            };
            removed
                .await
                .map_err(|error| self.failed("removing the trim guard", error))
        })
    }

    fn walk(&self) -> LocalBoxFuture<'_, Result<Box<dyn StreamWalk + '_>, SourceError>> {
        Box::pin(async move {
            let walk = self.begin_walk().await;
            let walk = walk.map_err(|error| self.failed("looking at the groups", error))?;
            Ok(Box::new(walk) as Box<dyn StreamWalk + '_>)
        })
    }

    fn shadow(&self) -> Box<dyn StreamShadow> {
        Box::new(shadow::RedisShadow::new(self.settings.clone()))
    }
}
