//! What the reader, the keeper and the callers of the source share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use redis::{RedisError, RedisResult};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::source::{More, SourceError};

use super::commands::Commands;
use super::connection::Connections;
use super::failure;
use super::settings::RedisSettings;
use super::sizes::Sizes;
use super::stats::RedisStats;
use super::stream_id::StreamId;
use super::taken::{Run, Taken};

pub(super) struct Shared {
    pub(super) settings: RedisSettings,
    /// Host, port and database, for errors and logs.
    pub(super) server: String,
    pub(super) stats: RedisStats,
    pub(super) connections: Connections,
    /// Something has changed for the one reader.
    pub(super) changed: Notify,
    /// Never locked across an await.
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) taken: Taken,
    pub(super) sizes: Sizes,
    /// What the last fetch came to, for the next read.
    pub(super) outcome: Option<Result<Outcome, SourceError>>,
    /// What to expect behind what waits.
    pub(super) more: More,
    pub(super) fetching: bool,
    /// Nothing more is to be taken from the stream.
    pub(super) stopping: bool,
    /// The last fetch failed; whoever reads says so.
    pub(super) fetch_failed: bool,
    pub(super) closed: bool,
    pub(super) recovery: Recovery,
    pub(super) claims: Claims,
    /// The groups were found or made on the present connections.
    pub(super) joined: bool,
    /// They were found or made before: if they have to be made again, something happened.
    pub(super) joined_before: bool,
    /// Whether losses have to be counted before anything new is read.
    pub(super) count_losses: bool,
    pub(super) recorded: Recorded,
    pub(super) last_new_read: Instant,
    /// The last read of new entries brought some, and left none.
    pub(super) last_was_short: bool,
}

/// What a fetch brought besides entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Some,
    Nothing,
}

/// What is written down of how many entries the group has read; nothing after anything that may have
/// undone it, such as a restart of Redis.
#[derive(Default)]
pub(super) struct Recorded {
    /// Up to which entry.
    pub(super) last: Option<StreamId>,
    /// Whether the number was known beyond doubt, so that Redis counts on from it rightly.
    pub(super) is_exact: bool,
}

/// When own pending entries are read again, and which.
pub(super) struct Recovery {
    pub(super) due: bool,
    pub(super) due_at: Instant,
    pub(super) runs: Option<std::collections::VecDeque<Run>>,
}

/// Where the search for entries of the dead stands.
pub(super) struct Claims {
    pub(super) due_at: Instant,
    pub(super) cursor: Option<StreamId>,
}

impl Shared {
    pub(super) fn new(settings: RedisSettings) -> Self {
        let now = Instant::now();
        Self {
            server: settings.url.to_string(),
            stats: RedisStats::default(),
            connections: Connections::new(&settings),
            changed: Notify::new(),
            state: Mutex::new(State {
                taken: Taken::default(),
                sizes: Sizes::new(now),
                outcome: None,
                more: More::Later,
                fetching: false,
                stopping: false,
                fetch_failed: false,
                closed: false,
                recovery: Recovery {
                    due: true,
                    due_at: now,
                    runs: None,
                },
                claims: Claims {
                    due_at: now,
                    cursor: None,
                },
                joined: false,
                joined_before: false,
                count_losses: true,
                recorded: Recorded::default(),
                last_new_read: now,
                last_was_short: false,
            }),
            settings,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commands on their connection, opened if need be.
    pub(super) async fn commands(&self) -> RedisResult<Commands<'_>> {
        Ok(Commands {
            connection: self.connections.commands().await?,
            settings: &self.settings,
        })
    }

    /// Makes stream and groups where they are missing.
    pub(super) async fn join(&self, commands: &mut Commands<'_>) -> RedisResult<()> {
        let made = commands.make_groups().await?;
        let mut state = self.lock();
        state.joined = true;
        if made.guard || (self.settings.guard && !state.joined_before) {
            self.stats.kept_guard();
        }
        let again = std::mem::replace(&mut state.joined_before, true);
        if made.group {
            state.recorded = Recorded::default();
        }
        if made.group && again {
            // What was in flight is pending no more. Ids may be used again by a new stream, so
            // nothing may be known by its id; what is left in the stream comes again.
            state.taken.clear();
            state.more = More::Later;
            // If the keeper made it, the reader may have taken of it before this was known.
            state.recovery.due = true;
            state.recovery.runs = None;
            self.stats.rejoined();
        }
        drop(state);
        self.log_made(made.group, made.guard, made.moved, again);
        Ok(())
    }

    fn log_made(&self, group: bool, guard: bool, moved: bool, again: bool) {
        let RedisSettings {
            stream,
            group: name,
            guard_group,
            ..
        } = &self.settings;
        let server = &self.server;
        if group && again {
            log::warn!(
                "the consumer group had vanished and was made again; everything that is still in \
                 the stream is read once more redis.server={server} redis.stream={stream} \
                 redis.group={name}"
            );
        } else if group {
            log::info!(
                "made the consumer group redis.server={server} redis.stream={stream} \
                 redis.group={name}"
            );
        }
        if guard && again && !group {
            log::warn!(
                "the trim guard had vanished and was made again; what others trimmed meanwhile \
                 may be lost redis.server={server} redis.stream={stream} redis.guard={guard_group}"
            );
        }
        if moved {
            log::info!(
                "moved the consumer group from 0-0 to 0-1, where trimming by others respects it \
                 redis.server={server} redis.stream={stream} redis.group={name}"
            );
        }
    }

    /// After any failure: new connections, unless the server answered on sound ones, and nothing
    /// is taken for granted.
    pub(super) fn failed(&self, doing: &str, error: RedisError) -> SourceError {
        if !failure::leaves_connections_sound(&error) {
            self.connections.reset();
        }
        let mut state = self.lock();
        state.joined = false;
        state.count_losses = true;
        state.recorded = Recorded::default();
        state.recovery.due = true;
        state.recovery.runs = None;
        state.claims.cursor = None;
        drop(state);
        failure::unavailable(&self.server, doing, error)
    }

    /// Sends what is committed, one command for all of it unless that is huge.
    pub(super) async fn acknowledge(
        &self,
        commands: &mut Commands<'_>,
        ids: &[StreamId],
    ) -> RedisResult<()> {
        let mut rest = ids;
        while !rest.is_empty() {
            let num = commands.acknowledge(rest).await?;
            let (confirmed, behind) = rest.split_at(num);
            self.lock().taken.confirm(confirmed);
            rest = behind;
        }
        Ok(())
    }

    /// Entries that are gone and were never read: counted, and said once.
    pub(super) fn note_lost(&self, num: usize, how: &str) {
        if num == 0 {
            return;
        }
        self.stats.lost(num);
        let RedisSettings { stream, group, .. } = &self.settings;
        log::error!(
            "events are lost: entries were removed from the stream {how}; see who trims it, and \
             keep the trim guard on num_lost={num} redis.server={} redis.stream={stream} \
             redis.group={group}",
            self.server
        );
    }
}
