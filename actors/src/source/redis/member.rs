//! This process as a member of the consumer group: what the reads, the keeper and the callers of the source
//! share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redis::{RedisError, RedisResult};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::rate_limited_log::RateLimitedLog;
use crate::source::{More, SourceError};

use super::commands::{Commands, Made};
use super::connection::Connections;
use super::failure;
use super::pending::{PendingEntries, PendingRun};
use super::position::{PassedOver, Positions, WentBack};
use super::settings::RedisSettings;
use super::sizes::Sizes;
use super::snapshot::{StreamSnapshot, as_u64};
use super::stats::RedisStats;
use super::stream_id::StreamId;

pub(super) struct Member {
    pub(super) settings: RedisSettings,
    /// Host, port and database, for errors and logs.
    pub(super) server: String,
    pub(super) stats: RedisStats,
    pub(super) connections: Connections,
    /// Something has changed for the one reader.
    pub(super) changed: Notify,
    /// Held during a look, so that looks are taken in in the order in which they were made.
    looking: tokio::sync::Mutex<()>,
    /// Neither of these two is locked across an await, nor while the other is.
    reading: Mutex<Reading>,
    keeping: Mutex<Keeping>,
}

/// How far the reads are: what was read and is not acknowledged, and what is to be read next.
pub(super) struct Reading {
    pub(super) pending: PendingEntries,
    pub(super) sizes: Sizes,
    /// The outcome of the last fetch, for the next read.
    pub(super) outcome: Option<Result<Outcome, SourceError>>,
    /// Whether there is more behind the messages that wait.
    pub(super) more: More,
    pub(super) is_fetching: bool,
    /// Nothing more is to be taken from the stream.
    pub(super) is_stopping: bool,
    pub(super) is_closed: bool,
    /// The last fetch failed, and the read that took its outcome says so.
    pub(super) fetch_failed: bool,
    /// The groups were found or made on the present connections.
    pub(super) has_joined: bool,
    /// They were found or made before: if they have to be made again, something happened.
    pub(super) had_joined: bool,
    /// Whether losses have to be counted before anything new is read.
    pub(super) must_count_losses: bool,
    pub(super) recovery: Recovery,
    pub(super) claims: Claims,
    pub(super) last_new_read: Instant,
    /// The last read of new entries brought some, and left none.
    pub(super) last_was_short: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Some,
    Nothing,
    /// Nothing new may be read, for the group stands where it cannot be right; with what to do.
    Misplaced(String),
}

/// When own pending entries are read again, and which.
pub(super) struct Recovery {
    pub(super) is_due: bool,
    pub(super) due_at: Instant,
    pub(super) runs: Option<VecDeque<PendingRun>>,
}

/// How far the search for entries of dead consumers is.
pub(super) struct Claims {
    pub(super) due_at: Instant,
    pub(super) cursor: Option<StreamId>,
}

/// The state of the group, and how much of it was logged.
#[derive(Default)]
pub(super) struct Keeping {
    pub(super) positions: Positions,
    pub(super) recorded: RecordedReads,
    takeovers: RateLimitedLog,
    /// By how they came about.
    losses: BTreeMap<&'static str, RateLimitedLog>,
}

/// Where Redis has written down how many entries the group has read; empty after anything that may have
/// undone it, such as a restart of Redis.
#[derive(Default)]
pub(super) struct RecordedReads {
    pub(super) last: Option<StreamId>,
    /// Whether the number was known beyond doubt, so that Redis counts on from it rightly.
    pub(super) is_exact: bool,
}

impl Reading {
    fn new(now: Instant) -> Self {
        Self {
            pending: PendingEntries::default(),
            sizes: Sizes::default(),
            outcome: None,
            more: More::Later,
            is_fetching: false,
            is_stopping: false,
            is_closed: false,
            fetch_failed: false,
            has_joined: false,
            had_joined: false,
            must_count_losses: true,
            recovery: Recovery {
                is_due: true,
                due_at: now,
                runs: None,
            },
            claims: Claims {
                due_at: now,
                cursor: None,
            },
            last_new_read: now,
            last_was_short: false,
        }
    }

    /// Has all own pending entries looked through before anything new is read.
    pub(super) fn recover(&mut self) {
        self.recovery.is_due = true;
        self.recovery.runs = None;
    }
}

impl Member {
    pub(super) fn new(settings: RedisSettings) -> Self {
        Self {
            server: settings.url.to_string(),
            stats: RedisStats::default(),
            connections: Connections::new(&settings),
            changed: Notify::new(),
            looking: tokio::sync::Mutex::default(),
            reading: Mutex::new(Reading::new(Instant::now())),
            keeping: Mutex::default(),
            settings,
        }
    }

    pub(super) fn reading(&self) -> MutexGuard<'_, Reading> {
        // Every change is complete before anything that could panic.
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keeping(&self) -> MutexGuard<'_, Keeping> {
        // Every change is complete before anything that could panic.
        self.keeping.lock().unwrap_or_else(PoisonError::into_inner)
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
        if made.group {
            // Another stream, with ids of its own.
            let mut keeping = self.keeping();
            keeping.recorded = RecordedReads::default();
            keeping.positions = Positions::default();
        }
        let mut reading = self.reading();
        reading.has_joined = true;
        if made.guard || (self.settings.guard && !reading.had_joined) {
            self.stats.kept_guard();
        }
        let again = std::mem::replace(&mut reading.had_joined, true);
        if made.group && again {
            // Entries that were in flight are pending no more. Ids may be used again by a new stream, so
            // nothing may be known by its id; all that is left in the stream comes again.
            reading.pending.clear();
            reading.more = More::Later;
            // If the keeper made it, the reader may have taken of it before this was known.
            reading.recover();
            self.stats.rejoined();
        }
        drop(reading);
        self.log_made(made, again);
        Ok(())
    }

    fn log_made(&self, made: Made, again: bool) {
        let Made {
            guard,
            group,
            moved,
        } = made;
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
        {
            let mut keeping = self.keeping();
            keeping.recorded = RecordedReads::default();
            keeping.positions.doubt_end();
        }
        let mut reading = self.reading();
        reading.has_joined = false;
        reading.must_count_losses = true;
        reading.recover();
        reading.claims.cursor = None;
        drop(reading);
        failure::unavailable(&self.server, doing, error)
    }

    /// Looks at the stream and its groups, and takes in where they stand.
    pub(super) async fn look(&self, commands: &mut Commands<'_>) -> RedisResult<StreamSnapshot> {
        let _looking = self.looking.lock().await;
        let (known_end, end_before) = {
            let positions = &self.keeping().positions;
            (positions.known_end(), positions.end())
        };
        let snapshot = commands.look(known_end).await?;
        let (went_back, passed_over) = {
            let positions = &mut self.keeping().positions;
            let went_back = positions.see(&snapshot, end_before, &self.settings);
            (went_back, positions.passed_over())
        };
        if let Some(went_back) = went_back {
            self.log_went_back(went_back);
        }
        if let Some(passed_over) = passed_over {
            let counted = commands
                .count_entries(passed_over.behind, passed_over.up_to)
                .await;
            match counted {
                Ok(num) => self.note_passed_over(passed_over, num),
                Err(error) => log::debug!("counting again with the next look error={error}"),
            }
        }
        Ok(snapshot)
    }

    /// Why nothing new may be read; `None` if all is well.
    pub(super) fn misplaced(&self) -> Option<String> {
        let ahead = self.keeping().positions.ahead()?;
        let what_and_remedy = ahead.what_and_remedy(&self.settings);
        Some(format!("Redis at {}: {what_and_remedy}", self.server))
    }

    fn log_went_back(&self, WentBack { from, to }: WentBack) {
        log::error!(
            "the stream's last id went back from {from} to {to}: Redis has lost what was published \
             last, in a failover or a restart, or somebody used XSETID; what nobody had read of it \
             is lost redis.server={} redis.stream={}",
            self.server,
            self.settings.stream
        );
    }

    fn note_passed_over(&self, PassedOver { behind, up_to }: PassedOver, num: u64) {
        self.keeping().positions.counted_passed_over();
        if num == 0 {
            return;
        }
        self.stats.lost(usize::try_from(num).unwrap_or(usize::MAX));
        let RedisSettings { stream, group, .. } = &self.settings;
        log::error!(
            "events were passed over: the consumer group was set ahead of them, and nobody read what \
             is behind {behind} and up to {up_to} (up to so many, where another replica had read some \
             just before); while it is in the stream \
             `redis-cli XGROUP SETID {stream} {group} {behind}` has it read num_lost={num} \
             redis.server={} redis.stream={stream} redis.group={group}",
            self.server
        );
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
            self.reading().pending.confirm(confirmed);
            rest = behind;
        }
        Ok(())
    }

    /// Entries of others that are ours now: counted, and told at once or later.
    pub(super) fn note_takeover(&self, num: usize) {
        self.stats.claimed(num);
        let told = self.keeping().takeovers.add(as_u64(num), Instant::now());
        self.tell_of_takeovers(told);
    }

    /// Entries that are gone and were never read: counted, and told at once or later.
    pub(super) fn note_lost(&self, num: usize, how: &'static str) {
        if num == 0 {
            return;
        }
        self.stats.lost(num);
        let told = {
            let mut keeping = self.keeping();
            let losses = keeping.losses.entry(how).or_default();
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
            let keeping = &mut *self.keeping();
            let takeovers = take(&mut keeping.takeovers);
            let losses = keeping.losses.iter_mut();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limited_log::LOG_EVERY;

    #[tokio::test(start_paused = true)]
    async fn what_is_not_told_at_once_is_told_in_its_time_or_at_the_end() {
        let member = Member::new(RedisSettings::default());
        let untold = || {
            let mut keeping = member.keeping();
            let takeovers = keeping.takeovers.rest();
            let losses = keeping.losses.values_mut().map(RateLimitedLog::rest);
            (takeovers, losses.collect::<Vec<_>>())
        };
        member.note_takeover(3);
        member.note_lost(0, "in a way");
        assert_eq!(untold(), (None, vec![]), "told at once");
        member.note_lost(2, "in a way");
        for _ in 0..10 {
            member.note_takeover(16);
            member.note_lost(1, "in a way");
            member.note_lost(1, "in another way");
        }
        member.tell_what_is_due();
        assert_eq!(untold(), (Some(160), vec![Some(10), Some(9)]));
        member.note_takeover(1);
        tokio::time::advance(LOG_EVERY).await;
        member.tell_what_is_due();
        assert_eq!(untold().0, None, "told after a minute");
        member.note_takeover(1);
        member.tell_the_rest();
        assert_eq!(untold().0, None, "told at the end");
        let status = member.stats.status();
        assert_eq!((status.num_claimed, status.num_lost), (165, 22));
    }
}
