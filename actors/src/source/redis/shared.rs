//! What the reader, the keeper and the callers of the source share.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{RedisError, RedisResult};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::rate_limited_log::RateLimitedLog;
use crate::source::{More, SourceError};

use super::commands::Commands;
use super::connection::Connections;
use super::failure;
use super::position::{Ahead, News, Positions};
use super::replies::Sight;
use super::settings::RedisSettings;
use super::sizes::Sizes;
use super::stats::RedisStats;
use super::stream_id::StreamId;
use super::taken::{Run, Taken};

/// Where the stream ends may go back without any group being set; to ask costs what its first and
/// last entries are large.
const ASK_END_EVERY: Duration = Duration::from_secs(10);

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
    pub(super) positions: Positions,
    /// When it was last asked for where the stream ends.
    end_asked_at: Option<Instant>,
    takeovers: RateLimitedLog,
    /// By how they came about.
    losses: BTreeMap<&'static str, RateLimitedLog>,
    pub(super) last_new_read: Instant,
    /// The last read of new entries brought some, and left none.
    pub(super) last_was_short: bool,
}

/// What a fetch brought besides entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Some,
    Nothing,
    /// Nothing new may be read, for the group stands where it cannot be right; with what to do.
    Misplaced(String),
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
                positions: Positions::default(),
                end_asked_at: None,
                takeovers: RateLimitedLog::default(),
                losses: BTreeMap::new(),
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
            // Another stream, with ids of its own.
            state.positions = Positions::default();
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
        state.end_asked_at = None;
        state.recovery.due = true;
        state.recovery.runs = None;
        state.claims.cursor = None;
        drop(state);
        failure::unavailable(&self.server, doing, error)
    }

    /// Looks at the stream and its groups, and takes in where they stand.
    pub(super) async fn sight(&self, commands: &mut Commands<'_>) -> RedisResult<Sight> {
        let known_end = {
            let state = self.lock();
            let is_fresh = |at: Instant| at.elapsed() < ASK_END_EVERY;
            let is_known = state.end_asked_at.is_some_and(is_fresh);
            state.positions.known_end().filter(|_| is_known)
        };
        let sight = commands.look(known_end).await?;
        let news = {
            let mut state = self.lock();
            if sight.end.is_some() {
                state.end_asked_at = Some(Instant::now());
            }
            state.positions.see(&sight, &self.settings)
        };
        for news in news {
            self.tell_of_position(news, commands).await?;
        }
        Ok(sight)
    }

    /// Why nothing new may be read; `None` if all is well.
    pub(super) fn misplaced(&self) -> Option<String> {
        let ahead = self.lock().positions.ahead()?;
        Some(self.of_ahead(&ahead))
    }

    fn of_ahead(&self, ahead: &Ahead) -> String {
        let settings = &self.settings;
        let (what, remedy) = (ahead.what(settings), ahead.remedy(settings));
        format!("Redis at {}: {what}; {remedy}", self.server)
    }

    async fn tell_of_position(&self, news: News, commands: &mut Commands<'_>) -> RedisResult<()> {
        let RedisSettings { stream, group, .. } = &self.settings;
        let server = &self.server;
        match news {
            // The next read fails with it, which is told and makes the source not ready.
            News::Ahead(_) => {}
            News::WentBack { from, to } => log::error!(
                "the stream's last id went back from {from} to {to}: Redis has lost what was published \
                 last, in a failover or a restart, or somebody used XSETID; what nobody had read of it \
                 is lost redis.server={server} redis.stream={stream}"
            ),
            News::Sound { passed_over: None } => {}
            News::Sound {
                passed_over: Some((behind, last)),
            } => {
                let num = commands.count_entries(behind, last).await?;
                if num > 0 {
                    self.stats.lost(usize::try_from(num).unwrap_or(usize::MAX));
                    log::error!(
                        "events were passed over: the consumer group was set ahead of them, and nobody \
                         read what is behind {behind} and up to {last} (up to so many, where another \
                         replica had read some just before); while it is in the stream \
                         `redis-cli XGROUP SETID {stream} {group} {behind}` has it read \
                         num_lost={num} redis.server={server} redis.stream={stream} \
                         redis.group={group}"
                    );
                }
            }
        }
        Ok(())
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

    /// Entries of others that are ours now: counted, and told at once or later.
    pub(super) fn note_takeover(&self, num: usize) {
        self.stats.claimed(num);
        let told = self.lock().takeovers.add(as_u64(num), Instant::now());
        self.tell_of_takeovers(told);
    }

    /// Entries that are gone and were never read: counted, and told at once or later.
    pub(super) fn note_lost(&self, num: usize, how: &'static str) {
        if num == 0 {
            return;
        }
        self.stats.lost(num);
        let told = {
            let mut state = self.lock();
            let losses = state.losses.entry(how).or_default();
            losses.add(as_u64(num), Instant::now())
        };
        self.tell_of_losses(told, how);
    }

    /// Tells of what came since the last line, once that is long enough ago.
    pub(super) fn tell_what_is_due(&self) {
        let now = Instant::now();
        self.tell(|untold| untold.due(now));
    }

    /// Tells of all of it: nobody will later.
    pub(super) fn tell_the_rest(&self) {
        self.tell(RateLimitedLog::rest);
    }

    fn tell(&self, mut take: impl FnMut(&mut RateLimitedLog) -> Option<u64>) {
        let (takeovers, losses) = {
            let state = &mut *self.lock();
            let takeovers = take(&mut state.takeovers);
            let losses = state.losses.iter_mut();
            let losses: Vec<_> = losses.map(|(how, untold)| (*how, take(untold))).collect();
            (takeovers, losses)
        };
        self.tell_of_takeovers(takeovers);
        for (how, num) in losses {
            self.tell_of_losses(num, how);
        }
    }

    fn tell_of_takeovers(&self, num: Option<u64>) {
        if let Some(num) = num {
            log::info!(
                "took over entries that their consumer had not touched for too long \
                 num_entries={num} redis.server={} redis.group={}",
                self.server,
                self.settings.group
            );
        }
    }

    fn tell_of_losses(&self, num: Option<u64>, how: &str) {
        if let Some(num) = num {
            let RedisSettings { stream, group, .. } = &self.settings;
            log::error!(
                "events are lost: entries were removed from the stream {how}; see who trims it, and \
                 keep the trim guard on num_lost={num} redis.server={} redis.stream={stream} \
                 redis.group={group}",
                self.server
            );
        }
    }
}

fn as_u64(num: usize) -> u64 {
    u64::try_from(num).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limited_log::LOG_EVERY;

    #[tokio::test(start_paused = true)]
    async fn what_is_not_told_at_once_is_told_in_its_time_or_at_the_end() {
        let shared = Shared::new(RedisSettings::default());
        let untold = || {
            let mut state = shared.lock();
            let takeovers = state.takeovers.rest();
            let losses = state.losses.values_mut().map(RateLimitedLog::rest);
            (takeovers, losses.collect::<Vec<_>>())
        };
        shared.note_takeover(3);
        shared.note_lost(0, "in a way");
        assert_eq!(untold(), (None, vec![]), "told at once");
        shared.note_lost(2, "in a way");
        for _ in 0..10 {
            shared.note_takeover(16);
            shared.note_lost(1, "in a way");
            shared.note_lost(1, "in another way");
        }
        shared.tell_what_is_due();
        assert_eq!(untold(), (Some(160), vec![Some(10), Some(9)]));
        shared.note_takeover(1);
        tokio::time::advance(LOG_EVERY).await;
        shared.tell_what_is_due();
        assert_eq!(untold().0, None, "told after a minute");
        shared.note_takeover(1);
        shared.tell_the_rest();
        assert_eq!(untold().0, None, "told at the end");
        let status = shared.stats.status();
        assert_eq!((status.num_claimed, status.num_lost), (165, 22));
    }
}
