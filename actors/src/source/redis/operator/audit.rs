//! Reads the stream as it stands, for whoever compares it with the database: takes nothing and
//! changes nothing.
//!
//! # Why the order matters
//!
//! How far the group was given entries is asked first, and what of them is pending together with each
//! page. So an entry of a page that is not pending was acknowledged, hence committed, before the page
//! is here: whoever looks at the database afterwards must find it. The other way round, an entry that
//! is delivered and committed between the two questions would be missed.

use std::collections::HashSet;

use redis::RedisResult;

use crate::source::{Body, SourceError};

use super::commands::Commands;
use super::connection::Connections;
use super::position::Ahead;
use super::settings::{RedisSettings, RedisSettingsError};
use super::stream_id::StreamId;
use super::{entries, failure, guard};

/// Bytes of one page, and of a single entry that is larger: what is held at once.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// The stream for somebody who only looks.
pub struct RedisAudit {
    settings: RedisSettings,
    connections: Connections,
}

/// A way through the stream, up to the entry that the group was given last when it began.
pub struct StreamWalk<'a> {
    audit: &'a RedisAudit,
    behind: StreamId,
    last: StreamId,
    length: u64,
    num_seen: u64,
    misplaced: Option<String>,
}

/// Some consecutive entries.
#[derive(Debug, Default)]
pub struct StreamPage {
    /// Those that are acknowledged.
    pub acknowledged: Vec<Body>,
    /// Those that are not.
    pub pending: Vec<Body>,
}

impl RedisAudit {
    /// For the stream and the group of a source with these settings.
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

    /// The stream's name.
    pub fn stream(&self) -> &str {
        &self.settings.stream
    }

    /// The consumer group's name.
    pub fn group(&self) -> &str {
        &self.settings.group
    }

    /// The position before an entry's: a group that is set to it is given that entry next.
    pub fn before(position: &str) -> Option<String> {
        let id: StreamId = position.parse().ok()?;
        Some(id.previous().to_string())
    }

    /// Begins at the oldest entry. A stream or a group that is not there has nothing acknowledged.
    ///
    /// # Errors
    ///
    /// Redis cannot be reached or refuses.
    pub async fn walk(&self) -> Result<StreamWalk<'_>, SourceError> {
        let (last, length, misplaced) = self
            .look()
            .await
            .map_err(|error| self.failed("looking at the groups", error))?;
        Ok(StreamWalk {
            audit: self,
            behind: StreamId::ZERO,
            last,
            length,
            num_seen: 0,
            misplaced,
        })
    }

    async fn look(&self) -> RedisResult<(StreamId, u64, Option<String>)> {
        let mut commands = self.commands().await?;
        if !commands.stream_exists().await? {
            return Ok((StreamId::ZERO, 0, None));
        }
        let settings = &self.settings;
        let groups = commands.all_groups().await?;
        if guard::find(&groups, &settings.group).is_none() {
            return Ok((StreamId::ZERO, commands.length().await?, None));
        }
        let sight = commands.look(None).await?;
        let group = guard::find(&sight.groups, &settings.group);
        let last = group.map_or(StreamId::ZERO, |group| group.last_delivered);
        let ahead = (sight.end).and_then(|end| Ahead::of(&sight, end, settings));
        let misplaced =
            ahead.map(|ahead| format!("{}; {}", ahead.what(settings), ahead.remedy(settings)));
        Ok((last, sight.length, misplaced))
    }

    async fn commands(&self) -> RedisResult<Commands<'_>> {
        Ok(Commands {
            connection: self.connections.commands().await?,
            settings: &self.settings,
        })
    }

    fn failed(&self, doing: &str, error: redis::RedisError) -> SourceError {
        self.connections.reset();
        failure::unavailable(&self.settings.url.to_string(), doing, error)
    }
}

impl StreamWalk<'_> {
    /// The next entries; `None` at the end.
    ///
    /// # Errors
    ///
    /// Redis cannot be reached or refuses.
    pub async fn next_page(&mut self) -> Result<Option<StreamPage>, SourceError> {
        if self.behind >= self.last {
            return Ok(None);
        }
        let read = async {
            let mut commands = self.audit.commands().await?;
            commands.read_page(self.behind, self.last, PAGE_BYTES).await
        };
        let (entries, pending) = read
            .await
            .map_err(|error| self.audit.failed("reading the stream", error))?;
        let Some(newest) = entries.last() else {
            return Ok(None);
        };
        self.behind = newest.id;
        self.num_seen += entries.len() as u64;
        let pending: HashSet<StreamId> = pending.into_iter().collect();
        let mut page = StreamPage::default();
        for entry in entries {
            let fields = entry.fields.unwrap_or_default();
            let body = entries::fetched(entry.id, fields).body;
            if pending.contains(&entry.id) {
                page.pending.push(body);
            } else {
                page.acknowledged.push(body);
            }
        }
        Ok(Some(page))
    }

    /// What was wrong with the group's position when the walk began, and what to do about it: then
    /// entries pass for acknowledged that nobody was given.
    pub fn misplaced(&self) -> Option<&str> {
        self.misplaced.as_deref()
    }

    /// Entries that the group had not been given when the walk began; too many by those that others
    /// trimmed from the stream before the walk came to them.
    pub fn num_unread(&self) -> u64 {
        self.length.saturating_sub(self.num_seen)
    }
}
