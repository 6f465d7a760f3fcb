//! This process as a member of the consumer group: what the reads, the keeper and the callers of the source
//! share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use redis::{RedisError, RedisResult};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::primary::Primary;
use crate::rate_limited_log::RateLimitedLog;
use crate::source::{SourceError, lock};

use super::connection::{Commands, Connections, Made};
use super::failure;
use super::fetch::Reading;
use super::keeper::FailureLog;
use super::position::{PassedOver, Positions, WentBack};
use super::sentinel::Watch;
use super::settings::RedisSettings;
use super::snapshot::{StreamSnapshot, as_u64};
use super::stats::RedisStats;
use super::stream_id::StreamId;

/// More than a master can have taken that its replicas lack, unless they were cut off from it for long.
const REMEMBERED: usize = 5_000;

pub(super) struct Member {
    pub(super) settings: RedisSettings,
    pub(super) server: String,
    pub(super) stats: RedisStats,
    pub(super) connections: Connections,
    pub(super) changed: Notify,
    /// Messages were handed out, so that there may be room for more of an old master.
    pub(super) handed_out: Arc<Notify>,
    /// Held during a look, so that looks are taken in in the order in which they were made.
    looking: tokio::sync::Mutex<()>,
    /// Neither of these two is locked across an await, nor while the other is.
    reading: Mutex<Reading>,
    keeping: Mutex<Keeping>,
}

#[derive(Default)]
pub(super) struct Keeping {
    pub(super) positions: Positions,
    pub(super) recorded: RecordedReads,
    pub(super) failures: FailureLog,
    /// The primary of the database on which the replicas had agreed when they were asked last.
    agreed: Option<Primary>,
    /// The ids of the last entries that were read, where the master may change.
    given: VecDeque<StreamId>,
    notes: BTreeMap<Note, RateLimitedLog>,
}

/// Entries of which the log tells at once or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Note {
    /// They were another consumer's and are ours now.
    TakenOver,
    /// They are gone and were never read; with how they came about.
    Lost(&'static str),
}

/// Where Redis has written down how many entries the group has read; empty where that may be undone.
#[derive(Default)]
pub(super) struct RecordedReads {
    pub(super) last: Option<StreamId>,
    /// Whether the number was known beyond doubt, so that Redis counts on from it rightly.
    pub(super) is_exact: bool,
}

impl Member {
    pub(super) fn new(settings: RedisSettings) -> Self {
        Self {
            server: settings.url.to_string(),
            stats: RedisStats::default(),
            connections: Connections::new(settings.clone()),
            changed: Notify::new(),
            handed_out: Arc::default(),
            looking: tokio::sync::Mutex::default(),
            reading: Mutex::new(Reading::new(Instant::now())),
            keeping: Mutex::default(),
            settings,
        }
    }

    pub(super) fn reading(&self) -> MutexGuard<'_, Reading> {
        lock(&self.reading)
    }

    pub(super) fn keeping(&self) -> MutexGuard<'_, Keeping> {
        lock(&self.keeping)
    }

    pub(super) async fn commands(&self) -> RedisResult<Commands<'_>> {
        let commands = self.connections.commands().await?;
        self.enter(commands.epoch())?;
        Ok(commands)
    }

    /// Commands for the master of this epoch and no other.
    pub(super) async fn commands_of(&self, epoch: u64) -> RedisResult<Commands<'_>> {
        let commands = self.commands().await?;
        match commands.epoch() == epoch {
            true => Ok(commands),
            false => Err(failure::another_master()),
        }
    }

    /// Takes note of the master that a connection leads to.
    ///
    /// A new one may have lost entries, acknowledgements and groups, and may give ids to other entries. So nothing
    /// that was read from the one before is acknowledged there: its receipts mean nothing any more. What it hands
    /// out again the store finds to be there.
    fn enter(&self, epoch: u64) -> RedisResult<()> {
        let mut reading = self.reading();
        if epoch < reading.epoch {
            return Err(failure::another_master());
        }
        if epoch > reading.epoch {
            reading.begin_epoch(epoch);
            drop(reading);
            let mut keeping = self.keeping();
            keeping.recorded = RecordedReads::default();
            // The stream may end before where the old one's did, which is told with the new master.
            keeping.positions = Positions::default();
        }
        Ok(())
    }

    /// Remembers what was read, as far back as a failover may undo it.
    pub(super) fn remember(&self, ids: impl Iterator<Item = StreamId>) {
        if self.connections.watch.is_none() {
            return;
        }
        let mut keeping = self.keeping();
        keeping.given.extend(ids);
        let surplus = keeping.given.len().saturating_sub(REMEMBERED);
        keeping.given.drain(..surplus);
    }

    /// Tells once of a new master, and of what it lacks.
    async fn greet_master(&self, commands: &mut Commands<'_>) -> RedisResult<()> {
        let given: Vec<StreamId> = self.keeping().given.drain(..).collect();
        let Some(master) = self.connections.watch.as_ref().and_then(Watch::known) else {
            return Ok(());
        };
        if commands.epoch() == 1 {
            log::info!(
                "the sentinels name the master redis.server={} redis.master={master}",
                self.server
            );
            return Ok(());
        }
        let num = commands.count_missing(&given).await?;
        if num == 0 {
            log::warn!(
                "Redis has a new master redis.server={} redis.master={master}",
                self.server
            );
        } else {
            log::warn!(
                "Redis has a new master, which lacks entries that this process had read; these are stored, or \
                 will be; what the old master took besides, and nobody has read, is lost num_missing={num} \
                 redis.server={} redis.master={master}",
                self.server
            );
        }
        Ok(())
    }

    pub(super) async fn join(&self, commands: &mut Commands<'_>) -> RedisResult<()> {
        let made = commands.make_groups().await?;
        let is_new = {
            let mut reading = self.reading();
            let is_new = reading.greeted != commands.epoch();
            reading.greeted = commands.epoch();
            is_new
        };
        // The keeper tells of what is not allowed here.
        drop(self.agree(commands).await);
        if is_new && let Err(error) = self.greet_master(commands).await {
            log::warn!("what the new master lacks could not be counted error={error}");
        }
        if made.group {
            // Another stream, with ids of its own.
            let mut keeping = self.keeping();
            keeping.recorded = RecordedReads::default();
            keeping.positions = Positions::default();
        }
        let mut reading = self.reading();
        if reading.epoch != commands.epoch() {
            return Err(failure::another_master());
        }
        reading.has_joined = true;
        if made.guard || (self.settings.guard && !reading.had_joined) {
            self.stats.kept_guard();
        }
        let again = std::mem::replace(&mut reading.had_joined, true);
        if made.group && again {
            // A new stream may use ids again, so nothing may be known by its id.
            // If the keeper made it, the reader may have taken of it before this was known.
            reading.read_again();
            self.stats.update(|seen| seen.num_rejoined += 1);
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
        reading.claims.begin_anew();
        drop(reading);
        self.connections.unavailable(doing, error)
    }

    pub(super) async fn look(&self, commands: &mut Commands<'_>) -> RedisResult<StreamSnapshot> {
        let _looking = self.looking.lock().await;
        let (known_end, end_before) = {
            let positions = &self.keeping().positions;
            (positions.known_end(), positions.end())
        };
        let mut snapshot = commands.look(known_end).await?;
        snapshot.epoch = commands.epoch();
        self.enter(snapshot.epoch)?;
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
        self.stats.update(|seen| seen.num_lost += num);
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

    /// Agrees with the other replicas on the primary that the events are written to. Once it is another one,
    /// nothing is acknowledged that may have been written to the one before alone.
    pub(super) async fn agree(&self, commands: &mut Commands<'_>) -> RedisResult<()> {
        let known = &self.settings.primary;
        let own = known.get();
        if let Some(common) = commands.agree(own).await? {
            known.agree(common);
        }
        let now = known.get();
        let agreed = std::mem::replace(&mut self.keeping().agreed, now);
        if let (Some(before), Some(now)) = (agreed.or(own), now)
            && before != now
        {
            self.reading().read_again();
            log::warn!(
                "the replicas write to another primary of the database; what is not acknowledged is read \
                 once more primary=\"{now}\" before=\"{before}\" redis.server={} redis.group={}",
                self.server,
                self.settings.group
            );
        }
        Ok(())
    }

    /// Whether this is the primary that all have agreed on, as far as this process knows.
    fn has_agreed_on(&self, primary: Primary) -> bool {
        self.keeping().agreed == Some(primary)
    }

    pub(super) async fn acknowledge(
        &self,
        commands: &mut Commands<'_>,
        ids: &[StreamId],
    ) -> RedisResult<()> {
        let primary = self.settings.primary.get();
        if primary.is_some_and(|primary| !self.has_agreed_on(primary)) {
            self.agree(commands).await?;
        }
        // Of another master's entries none is acknowledged: the same id may be another entry's here.
        let epoch = commands.epoch();
        let ids = match self.reading() {
            reading if reading.epoch == epoch => reading.pending.still_committed(ids),
            _ => Vec::new(),
        };
        let mut rest = &ids[..];
        while !rest.is_empty() {
            let num = match primary {
                None => commands.acknowledge(rest).await?,
                Some(primary) => match commands.acknowledge_on(primary, rest).await? {
                    Ok(num) => num,
                    Err(other) => {
                        self.settings.primary.agree(other);
                        return self.agree(commands).await;
                    }
                },
            };
            let (confirmed, behind) = rest.split_at(num);
            let mut reading = self.reading();
            if reading.epoch != epoch {
                break;
            }
            reading.pending.confirm(confirmed);
            rest = behind;
        }
        Ok(())
    }

    pub(super) fn note(&self, note: Note, num: usize) {
        if num == 0 {
            return;
        }
        let num = as_u64(num);
        self.stats.update(|seen| match note {
            Note::TakenOver => seen.num_claimed += num,
            Note::Lost(_) => seen.num_lost += num,
        });
        let mut keeping = self.keeping();
        let told = (keeping.notes.entry(note).or_default()).add(num, Instant::now());
        drop(keeping);
        self.tell(note, told);
    }

    pub(super) fn tell_what_is_due(&self) {
        let now = Instant::now();
        self.tell_all(|untold| untold.due(now));
    }

    pub(super) fn tell_the_rest(&self) {
        self.tell_all(RateLimitedLog::rest);
    }

    fn tell_all(&self, mut take: impl FnMut(&mut RateLimitedLog) -> Option<u64>) {
        let taken: Vec<_> = {
            let notes = &mut self.keeping().notes;
            notes
                .iter_mut()
                .map(|(note, untold)| (*note, take(untold)))
                .collect()
        };
        for (note, num) in taken {
            self.tell(note, num);
        }
    }

    fn tell(&self, note: Note, num: Option<u64>) {
        let Some(num) = num else { return };
        let RedisSettings { stream, group, .. } = &self.settings;
        let server = &self.server;
        match note {
            Note::TakenOver => log::info!(
                "took over entries that their consumer had not touched for too long \
                 num_entries={num} redis.server={server} redis.group={group}"
            ),
            Note::Lost(how) => log::error!(
                "events are lost: entries were removed from the stream {how}; see who trims it, and \
                 keep the trim guard on num_lost={num} redis.server={server} redis.stream={stream} \
                 redis.group={group}"
            ),
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
            let notes = keeping.notes.values_mut().map(RateLimitedLog::rest);
            notes.collect::<Vec<_>>()
        };
        member.note(Note::TakenOver, 3);
        member.note(Note::Lost("in a way"), 0);
        assert_eq!(untold(), [None], "told at once");
        member.note(Note::Lost("in a way"), 2);
        for _ in 0..10 {
            member.note(Note::TakenOver, 16);
            member.note(Note::Lost("in a way"), 1);
            member.note(Note::Lost("in another way"), 1);
        }
        member.tell_what_is_due();
        assert_eq!(untold(), [Some(160), Some(10), Some(9)]);
        member.note(Note::TakenOver, 1);
        tokio::time::advance(LOG_EVERY).await;
        member.tell_what_is_due();
        assert_eq!(untold()[0], None, "told after a minute");
        member.note(Note::TakenOver, 1);
        member.tell_the_rest();
        assert_eq!(untold()[0], None, "told at the end");
        let status = member.stats.status();
        assert_eq!((status.num_claimed, status.num_lost), (165, 22));
    }
}
