//! The trim guard: a second group that keeps others from trimming what is not committed.
//!
//! Prefect's consumers trim the stream behind the smallest id that was *delivered* in each group,
//! committed or not, and pass over groups whose consumers were idle for too long. A group without
//! consumers they never pass over. This one stands where nothing uncommitted is behind it, and any
//! replica moves it: what was true when it looked stays true, so it needs no leader.

use redis::RedisResult;

use crate::source::SourceError;

use super::commands::Commands;
use super::connection::Connections;
use super::failure;
use super::position::Ahead;
use super::replies::{Group, Pending, Sight};
use super::settings::{RedisSettings, RedisSettingsError};
use super::stream_id::StreamId;

/// Behind this nothing is uncommitted; `None` if the group is not there.
pub(super) fn safe_id(sight: &Sight, settings: &RedisSettings) -> Option<StreamId> {
    let group = find(&sight.groups, &settings.group)?;
    Some(sight.pending.smallest.unwrap_or(group.last_delivered))
}

/// Where the guard stands for a safe id: at the start of its millisecond.
///
/// Prefect compares ids as texts, where `…-10` is smaller than `…-2`. Only `…-0` is the smallest
/// of its millisecond there too. A group at `0-0` counts for nothing.
pub(super) fn position(safe: StreamId) -> StreamId {
    StreamId {
        number: u64::from(safe.millis == 0),
        ..safe
    }
}

pub(super) fn find<'a>(groups: &'a [Group], name: &str) -> Option<&'a Group> {
    groups.iter().find(|group| group.name == name)
}

/// The trim guard for people: where it stands, and the way back.
pub struct RedisGuard {
    settings: RedisSettings,
    connections: Connections,
}

/// What holds the stream, and how much it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardReport {
    /// The stream.
    pub stream: String,
    /// Entries in it; `None` if there is no such stream.
    pub stream_length: Option<u64>,
    /// The guard's group.
    pub guard_group: String,
    /// Where the guard stands; `None` if there is none.
    pub guard_position: Option<String>,
    /// The last id of the stream; `None` if there is no such stream.
    pub last_id: Option<String>,
    /// What is wrong with the group's position, and what to do about it; `None` if it can be right.
    pub misplaced: Option<String>,
    /// The consumer group.
    pub group: String,
    /// What is known of it; `None` if there is none.
    pub group_state: Option<GroupState>,
}

/// How far the consumer group is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupState {
    /// The last entry that was given to anyone.
    pub last_delivered: String,
    /// The first entry that is not acknowledged.
    pub smallest_pending: Option<String>,
    /// Entries that are not acknowledged.
    pub num_pending: u64,
    /// Consumers, alive or dead.
    pub num_consumers: u64,
    /// Entries that nobody was given yet, where Redis knows.
    pub lag: Option<u64>,
}

impl RedisGuard {
    /// The guard of a source with these settings.
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

    /// Where it stands.
    ///
    /// # Errors
    ///
    /// Redis cannot be reached or refuses.
    pub async fn show(&self) -> Result<GuardReport, SourceError> {
        self.look()
            .await
            .map_err(|error| self.failed("looking at the groups", error))
    }

    /// The version of the server that was reached; `None` if it does not say, or not to us.
    ///
    /// # Errors
    ///
    /// Redis cannot be reached.
    pub async fn server_version(&self) -> Result<Option<String>, SourceError> {
        let asked = async { self.commands().await?.server_version().await };
        match asked.await {
            Err(error) if failure::is_answer(&error) => Ok(None),
            asked => asked.map_err(|error| self.failed("asking for the version", error)),
        }
    }

    /// Removes it, so that others trim as they did without us. Returns whether it was there.
    ///
    /// A source that still runs with the guard on makes it again.
    ///
    /// # Errors
    ///
    /// Redis cannot be reached or refuses.
    pub async fn remove(&self) -> Result<bool, SourceError> {
        let removed = async {
            let mut commands = self.commands().await?;
            if commands.stream_exists().await? {
                commands.destroy_group(&self.settings.guard_group).await
            } else {
                Ok(false)
            }
        };
        removed
            .await
            .map_err(|error| self.failed("removing the trim guard", error))
    }

    async fn commands(&self) -> RedisResult<Commands<'_>> {
        Ok(Commands {
            connection: self.connections.commands().await?,
            settings: &self.settings,
        })
    }

    async fn look(&self) -> RedisResult<GuardReport> {
        let mut commands = self.commands().await?;
        let mut report = GuardReport {
            stream: self.settings.stream.clone(),
            stream_length: None,
            guard_group: self.settings.guard_group.clone(),
            guard_position: None,
            last_id: None,
            misplaced: None,
            group: self.settings.group.clone(),
            group_state: None,
        };
        if !commands.stream_exists().await? {
            return Ok(report);
        }
        report.stream_length = Some(commands.length().await?);
        let mut groups = commands.all_groups().await?;
        report.last_id = commands.last_id().await?.map(|id| id.to_string());
        let mut pending = Pending::default();
        if find(&groups, &self.settings.group).is_some() {
            let sight = commands.look(None).await?;
            let ahead = (sight.end).and_then(|end| Ahead::of(&sight, end, &self.settings));
            report.misplaced = ahead.map(|ahead| {
                let what = ahead.what(&self.settings);
                format!("{what}; {}", ahead.remedy(&self.settings))
            });
            report.last_id = sight.end.map(|id| id.to_string());
            (groups, pending) = (sight.groups, sight.pending);
        }
        report.guard_position =
            find(&groups, &self.settings.guard_group).map(|guard| guard.last_delivered.to_string());
        if let Some(group) = find(&groups, &self.settings.group) {
            report.group_state = Some(GroupState {
                last_delivered: group.last_delivered.to_string(),
                smallest_pending: pending.smallest.map(|id| id.to_string()),
                num_pending: pending.num,
                num_consumers: group.consumers,
                lag: group.lag,
            });
        }
        Ok(report)
    }

    fn failed(&self, doing: &str, error: redis::RedisError) -> SourceError {
        self.connections.reset();
        failure::unavailable(&self.settings.url.to_string(), doing, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> StreamId {
        text.parse().unwrap()
    }

    fn sight(last_delivered: &str, smallest: Option<&str>) -> Sight {
        Sight {
            groups: vec![Group {
                name: "event-persister".to_owned(),
                consumers: 1,
                pending: 0,
                last_delivered: id(last_delivered),
                lag: None,
            }],
            pending: Pending {
                smallest: smallest.map(id),
                ..Pending::default()
            },
            length: 0,
            end: None,
        }
    }

    #[test]
    fn stays_behind_everything_that_is_not_committed() {
        let settings = RedisSettings::default();
        let safe = |last, smallest| safe_id(&sight(last, smallest), &settings).unwrap();
        assert_eq!(safe("9-3", None), id("9-3"));
        assert_eq!(safe("9-3", Some("5-1")), id("5-1"));
        let other = RedisSettings {
            group: "other".to_owned(),
            ..RedisSettings::default()
        };
        assert_eq!(safe_id(&sight("9-3", None), &other), None);
    }

    #[test]
    fn stands_before_its_whole_millisecond_also_as_a_text() {
        assert_eq!(position(id("1700000000000-12")), id("1700000000000-0"));
        assert_eq!(position(id("0-7")), id("0-1"), "0-0 would not count");
        let guard = position(id("1700000000000-2")).to_string();
        for number in 0..200 {
            assert!(guard <= format!("1700000000000-{number}"));
        }
    }
}
