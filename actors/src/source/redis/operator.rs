//! The operator's tools of a Redis stream: inspection, trim guard, audit and shadow.
//!
//! They use the connections, commands and reader of the path; the path uses nothing of theirs.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use redis::RedisResult;

use crate::finding::Finding;
use crate::primary::Primary;
use crate::source::SourceError;
use crate::source::operator::{
    BusOperator, BusReport, GroupProgress, GuardReport, ReadAgain, StreamShadow, StreamWalk,
    TrimGuard,
};

use super::SOURCE_NAME;
use super::connection::Connections;
use super::failure;
use super::position::GroupAhead;
use super::settings::{RedisSettings, RedisSettingsError};
use super::stream_id::StreamId;

mod audit;
mod commands;
mod inspection;
mod shadow;

/// The operator's side of the stream of a source. Connects when it is first used.
pub struct RedisOperator {
    connections: Connections,
}

impl RedisOperator {
    /// For a source with these settings; an error says why they cannot work.
    pub fn new(settings: RedisSettings) -> Result<Self, RedisSettingsError> {
        settings.check()?;
        let connections = Connections::new(settings);
        Ok(Self { connections })
    }

    fn settings(&self) -> &RedisSettings {
        &self.connections.settings
    }

    async fn server_version(&self) -> RedisResult<Option<String>> {
        self.connections.commands().await?.server_version().await
    }

    async fn guard_report(&self) -> RedisResult<GuardReport> {
        let settings = self.settings();
        let mut commands = self.connections.commands().await?;
        let mut report = GuardReport {
            stream: settings.stream.clone(),
            stream_length: None,
            guard_group: settings.guard_group.clone(),
            guard_position: None,
            last_id: None,
            misplaced: None,
            group: settings.group.clone(),
            group_progress: None,
        };
        let Some(snapshot) = commands.look_from_outside().await? else {
            return Ok(report);
        };
        let ahead = GroupAhead::of(&snapshot, settings);
        let guard = snapshot.group(&settings.guard_group);
        let group = snapshot.group(&settings.group);
        report.stream_length = Some(snapshot.length);
        report.misplaced = ahead.map(|ahead| ahead.what_and_remedy(settings));
        report.last_id = snapshot.end.map(|id| id.to_string());
        report.guard_position = guard.map(|guard| guard.last_delivered.to_string());
        report.group_progress = group.map(|group| GroupProgress {
            last_delivered: group.last_delivered.to_string(),
            smallest_pending: snapshot.pending.smallest.map(|id| id.to_string()),
            num_pending: snapshot.pending.num,
            num_consumers: group.num_consumers,
            lag: group.lag,
        });
        Ok(report)
    }

    async fn destroy_guard(&self) -> RedisResult<bool> {
        let mut commands = self.connections.commands().await?;
        commands.destroy_group(&self.settings().guard_group).await
    }

    fn done<T>(&self, doing: &str, result: RedisResult<T>) -> Result<T, SourceError> {
        result.map_err(|error| self.connections.failed(doing, error))
    }
}

/// A word of a shell's command line.
fn quoted(word: &str) -> String {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "-_.:/".contains(char);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

impl TrimGuard for RedisOperator {
    fn show(&self) -> LocalBoxFuture<'_, Result<GuardReport, SourceError>> {
        Box::pin(async move { self.done("looking at the groups", self.guard_report().await) })
    }

    fn remove(&self) -> LocalBoxFuture<'_, Result<bool, SourceError>> {
        Box::pin(async move { self.done("removing the trim guard", self.destroy_guard().await) })
    }
}

impl BusOperator for RedisOperator {
    fn name(&self) -> &'static str {
        SOURCE_NAME
    }

    fn stream(&self) -> &str {
        &self.settings().stream
    }

    fn group(&self) -> &str {
        &self.settings().group
    }

    fn inspect(&self, retention: Option<Duration>) -> LocalBoxFuture<'_, Vec<Finding>> {
        Box::pin(self.look_for_trouble(retention))
    }

    fn server_version(&self) -> LocalBoxFuture<'_, Result<Option<String>, SourceError>> {
        Box::pin(async move {
            match self.server_version().await {
                Err(error) if failure::is_answer(&error) => Ok(None),
                version => self.done("asking for the version", version),
            }
        })
    }

    fn report(&self) -> LocalBoxFuture<'_, Result<BusReport, SourceError>> {
        Box::pin(async move { self.show().await.map(BusReport::Groups) })
    }

    fn primary(&self) -> LocalBoxFuture<'_, Result<Option<Primary>, SourceError>> {
        Box::pin(async move {
            let asked = async { self.connections.commands().await?.agree(None).await };
            self.done("asking for the primary of the database", asked.await)
        })
    }

    fn guard(&self) -> Option<&dyn TrimGuard> {
        Some(self)
    }

    fn walk(&self) -> LocalBoxFuture<'_, Result<Box<dyn StreamWalk + '_>, SourceError>> {
        Box::pin(async move {
            let walk = self.done("looking at the groups", self.begin_walk().await)?;
            Ok(Box::new(walk) as Box<dyn StreamWalk + '_>)
        })
    }

    /// A group that is set to the position before an entry's is given that entry next.
    fn read_again(&self, position: &str) -> Option<ReadAgain> {
        let id: StreamId = position.parse().ok()?;
        Some(ReadAgain {
            command: format!(
                "redis-cli XGROUP SETID {} {} {}",
                quoted(self.stream()),
                quoted(self.group()),
                id.previous()
            ),
            while_there: "until Prefect trims it, within a minute or so",
            does: "(with -h, -p, -n and -a as for your Redis) while event-persister serves. It reads everything \
                   from the first missing entry on once more",
        })
    }

    fn shadow(&self) -> Option<Box<dyn StreamShadow>> {
        Some(Box::new(shadow::RedisShadow::new(self.settings().clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_read_again_from_the_entry_on() {
        let operator = RedisOperator::new(RedisSettings {
            stream: "{message:events}:stream".to_owned(),
            ..RedisSettings::default()
        });
        let again = operator.unwrap().read_again("1795523643304-0").unwrap();
        let command = "redis-cli XGROUP SETID '{message:events}:stream' event-persister \
                       1795523643303-18446744073709551615";
        assert_eq!(again.command, command);
    }
}
