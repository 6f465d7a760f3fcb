//! One fetch at a time, which ends with entries, with nothing, or with an error.
//!
//! A fetch runs on its own. When the future of a read is dropped, the entries that the fetch brings wait for
//! the next read, and no second command is sent that waits in Redis.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use redis::{Cmd, RedisResult};
use tokio::time::{Instant, sleep};

use crate::source::{More, Permit, SourceError};

use super::connection::{Commands, IDS_AT_ONCE, RESPONSE_TIMEOUT, read_new, read_pending};
use super::entry_reader::{EntriesRead, Reply, Room, StreamEntry};
use super::failure;
use super::idleness::{Idleness, Judged, Limits};
use super::member::{Member, Note};
use super::pending::{PendingEntries, PendingRun};
use super::sizes::Sizes;
use super::stream_id::StreamId;

/// Own pending entries are looked through this often, even if nothing failed that we know of.
const RECOVER_EVERY: Duration = Duration::from_secs(60);

/// And so long after a failure: a stalled server may carry out a read of a connection that is gone.
const RECOVER_AFTER_FAILURE: Duration = Duration::from_secs(6);

/// While events trickle in, reads are this far apart. Longer saves commands, at the price of the delay.
const PACE: Duration = Duration::from_millis(5);

/// From so many entries on, how much was read is written down at once. Fewer would make that most of what
/// Redis has to do; more could be taken for lost after a restart.
const MANY: usize = 16;

/// After a pause of this length losses are counted before anything is read.
const LONG_PAUSE: Duration = Duration::from_secs(10);

/// A replica that died may have stored them.
const TRIMMED_WHILE_PENDING: Note = Note::Lost(
    "while they were pending in the group (up to so many, where a replica died just before)",
);

const TRIMMED_UNREAD: Note =
    Note::Lost("before they were read (up to so many, where Redis restarted just before)");

/// How far the reads are: what was read and is not acknowledged, and what is to be read next.
pub(super) struct Reading {
    pub(super) pending: PendingEntries,
    pub(super) sizes: Sizes,
    /// Of the last fetch, for the next read.
    pub(super) outcome: Option<Result<Outcome, SourceError>>,
    pub(super) more: More,
    pub(super) is_fetching: bool,
    pub(super) is_stopping: bool,
    pub(super) is_closed: bool,
    /// The last fetch failed, and the read that took its outcome says so.
    pub(super) fetch_failed: bool,
    /// The groups were found or made on the present connections.
    pub(super) has_joined: bool,
    /// Of the master that all of this is about, and of the one that was told of.
    pub(super) epoch: u64,
    pub(super) greeted: u64,
    /// They were found or made before: if they have to be made again, something happened.
    pub(super) had_joined: bool,
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

pub(super) struct Recovery {
    pub(super) is_due: bool,
    pub(super) due_at: Instant,
    pub(super) runs: Option<VecDeque<PendingRun>>,
}

pub(super) struct Claims {
    due_at: Instant,
    idleness: Idleness,
    /// Still to be claimed: of a dead replica, or one by one.
    left: Vec<(Option<String>, VecDeque<StreamId>)>,
}

impl Claims {
    /// Some more of what is to be claimed.
    fn next(&mut self, max: usize) -> Option<(Option<String>, Vec<StreamId>)> {
        self.left.retain(|(_, ids)| !ids.is_empty());
        let (dead, ids) = self.left.last_mut()?;
        let some = ids.drain(..max.min(ids.len())).collect();
        Some((dead.clone(), some))
    }

    pub(super) fn begin_anew(&mut self) {
        self.left.clear();
    }
}

impl Reading {
    pub(super) fn new(now: Instant) -> Self {
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
            epoch: 0,
            greeted: 0,
            must_count_losses: true,
            recovery: Recovery {
                is_due: true,
                due_at: now,
                runs: None,
            },
            claims: Claims {
                due_at: now,
                idleness: Idleness::default(),
                left: Vec::new(),
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

    /// Lets go of all that was read from the master before this one.
    pub(super) fn begin_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.read_again();
        self.has_joined = false;
        self.must_count_losses = true;
        self.claims.idleness = Idleness::default();
        self.claims.begin_anew();
    }

    /// Lets go of all that was read, which is handed out again.
    pub(super) fn read_again(&mut self) {
        self.pending.clear();
        self.more = More::Later;
        self.recover();
    }

    /// Ends the recovery, unless it was asked for anew meanwhile.
    fn ends_recovery(&mut self) -> bool {
        if self.recovery.runs.is_none() {
            return false;
        }
        self.pending.recovered();
        self.recovery.is_due = false;
        self.recovery.runs = None;
        // An earlier appointment, made by a failure, stands.
        let now = Instant::now();
        if self.recovery.due_at <= now {
            self.recovery.due_at = now + RECOVER_EVERY;
        }
        true
    }
}

/// Begins a fetch, which leaves its outcome for the next read. It counts as over also if its task ends before
/// its first poll.
pub(super) fn begin(member: Arc<Member>, permit: Permit) -> impl Future<Output = ()> + Send {
    member.reading().pending.begin_replies();
    let fetching = Fetching(member);
    async move {
        let member = &fetching.0;
        let result = member.fetch_or_rejoin(permit).await;
        let outcome = result.map_err(|(doing, error)| member.failed(doing, error));
        let mut reading = member.reading();
        reading.fetch_failed = outcome.is_err();
        if outcome.is_ok() {
            reading.sizes.succeeded();
        } else {
            reading.sizes.failed();
            reading.recovery.due_at = Instant::now() + RECOVER_AFTER_FAILURE;
        }
        reading.outcome = Some(outcome);
    }
}

/// Leaves the state right however the fetch ends, also if it is aborted.
struct Fetching(Arc<Member>);

impl Drop for Fetching {
    fn drop(&mut self) {
        let mut reading = self.0.reading();
        reading.is_fetching = false;
        reading.pending.end_replies();
        drop(reading);
        self.0.changed.notify_one();
    }
}

type Failed = (&'static str, redis::RedisError);

impl Member {
    /// A stream or a group that has vanished is made again at once, within the same fetch.
    async fn fetch_or_rejoin(&self, permit: Permit) -> Result<Outcome, Failed> {
        let connecting = |error| ("connecting", error);
        let mut commands = self.commands().await.map_err(connecting)?;
        match self.fetch(&mut commands, permit).await {
            Err((_, error)) if failure::has_vanished(&error) => {
                self.reading().has_joined = false;
                self.fetch(&mut commands, permit).await
            }
            result => result,
        }
    }

    async fn fetch(&self, commands: &mut Commands<'_>, permit: Permit) -> Result<Outcome, Failed> {
        let while_doing = |doing| move |error| (doing, error);
        if !self.reading().has_joined {
            self.join(commands)
                .await
                .map_err(while_doing("making the consumer group"))?;
            // The keeper tells of what is not allowed here.
            drop(self.look(commands).await);
        }
        loop {
            if self.must_recover()
                && self
                    .recover(commands, permit)
                    .await
                    .map_err(while_doing("reading what is pending for this consumer"))?
            {
                return Ok(Outcome::Some);
            }
            self.count_losses(commands)
                .await
                .map_err(while_doing("counting what was removed unread"))?;
            let has_claimed = self.must_claim()
                && self
                    .claim(commands, permit)
                    .await
                    .map_err(while_doing("claiming what others left"))?;
            if !has_claimed {
                break;
            }
        }
        if let Some(what) = self.misplaced() {
            return Ok(Outcome::Misplaced(what));
        }
        self.read_new(permit, commands.epoch())
            .await
            .map_err(while_doing("reading the stream"))
    }

    /// The state, unless it is about another master by now.
    fn reading_of(&self, epoch: u64) -> RedisResult<MutexGuard<'_, Reading>> {
        match self.reading() {
            reading if reading.epoch == epoch => Ok(reading),
            _ => Err(failure::another_master()),
        }
    }

    fn must_recover(&self) -> bool {
        let mut reading = self.reading();
        if Instant::now() >= reading.recovery.due_at {
            reading.recovery.is_due = true;
        }
        reading.recovery.is_due
    }

    /// Reads again what is pending for us and nobody has. Returns whether there was any.
    async fn recover(&self, commands: &mut Commands<'_>, permit: Permit) -> RedisResult<bool> {
        // Durable entries come first, so that they are no longer pending.
        let committed = self.reading().pending.committed();
        self.acknowledge(commands, &committed).await?;
        loop {
            if self.reading().recovery.runs.is_none() {
                let own_pending = commands.own_pending().await?;
                let mut reading = self.reading();
                let runs = reading.pending.plan_recovery(&own_pending);
                reading.recovery.runs = Some(runs);
            }
            while let Some((run, count)) = self.next_run(permit) {
                let command = read_pending(&self.settings, run.first.previous(), count);
                let mut room = Room::new(permit);
                let epoch = commands.epoch();
                let read = self
                    .read(&command, &mut room, RESPONSE_TIMEOUT, epoch)
                    .await?;
                let rest = rest_of(run, count, &read);
                let num = self.take_pending(commands, read.entries).await?;
                self.run_is_read(rest);
                if num > 0 {
                    return Ok(true);
                }
            }
            if self.reading().ends_recovery() {
                return Ok(false);
            }
        }
    }

    fn next_run(&self, permit: Permit) -> Option<(PendingRun, usize)> {
        let reading = self.reading();
        let run = *reading.recovery.runs.as_ref()?.front()?;
        Some((run, run.num.min(reading.sizes.at_least_one(permit))))
    }

    fn run_is_read(&self, rest: Option<PendingRun>) {
        let mut reading = self.reading();
        if let Some(runs) = reading.recovery.runs.as_mut() {
            runs.pop_front();
            if let Some(rest) = rest {
                runs.push_front(rest);
            }
        }
    }

    /// Takes in own pending entries. Those without text are acknowledged and counted.
    async fn take_pending(
        &self,
        commands: &mut Commands<'_>,
        entries: Vec<StreamEntry>,
    ) -> RedisResult<usize> {
        let gone: Vec<StreamId> = {
            // An entry that we have needs no text in the stream any more.
            let pending = &self.reading().pending;
            let gone = entries.iter().filter(|entry| entry.body.is_none());
            let gone = gone.map(|entry| entry.id);
            gone.filter(|id| !pending.has(*id)).collect()
        };
        if !gone.is_empty() {
            commands.acknowledge(&gone).await?;
        }
        let now = Instant::now();
        let mut num = 0;
        let mut reading = self.reading_of(commands.epoch())?;
        for &id in &gone {
            reading.pending.forget(id);
        }
        for entry in entries {
            if let Some(body) = entry.body {
                reading.sizes.saw(body.num_bytes());
                num += usize::from(reading.pending.add_again(entry.id, body, now));
            }
        }
        reading.more = More::Ready;
        drop(reading);
        self.note(TRIMMED_WHILE_PENDING, gone.len());
        Ok(num)
    }

    fn num_unknown(&self, ids: &[StreamId]) -> usize {
        let reading = self.reading();
        ids.iter().filter(|id| !reading.pending.has(**id)).count()
    }

    async fn count_losses(&self, commands: &mut Commands<'_>) -> RedisResult<()> {
        let is_due = {
            let reading = self.reading();
            reading.must_count_losses || reading.last_new_read.elapsed() >= LONG_PAUSE
        };
        if is_due {
            let lost = commands.count_losses().await?;
            self.reading().must_count_losses = false;
            self.note(TRIMMED_UNREAD, lost);
        }
        Ok(())
    }

    fn must_claim(&self) -> bool {
        let reading = self.reading();
        if reading.is_stopping {
            return false;
        }
        !reading.claims.left.is_empty() || Instant::now() >= reading.claims.due_at
    }

    /// Takes over what others left. Returns whether there was any: it is pending for us then and read next,
    /// before more is taken over.
    async fn claim(&self, commands: &mut Commands<'_>, permit: Permit) -> RedisResult<bool> {
        if self.reading().claims.left.is_empty() {
            self.look_for_left(commands).await?;
        }
        loop {
            let next = {
                let mut reading = self.reading();
                // Entries that are not read soon look idle to others.
                let max = reading.sizes.at_least_one(permit).min(IDS_AT_ONCE);
                reading.claims.next(max)
            };
            let Some((dead, ids)) = next else {
                return Ok(false);
            };
            let (claimed, gone) = commands.claim(dead.as_deref(), &ids).await?;
            self.note(TRIMMED_WHILE_PENDING, self.num_unknown(&gone));
            let num = self.num_unknown(&claimed);
            if num > 0 {
                self.reading().recover();
                self.note(Note::TakenOver, num);
                return Ok(true);
            }
        }
    }

    async fn look_for_left(&self, commands: &mut Commands<'_>) -> RedisResult<()> {
        let limits = Limits::of(&self.settings);
        let observed = commands.look_at_others(limits.late()).await?;
        let now = Instant::now();
        let Judged {
            left,
            dead,
            stepped,
        } = {
            let claims = &mut self.reading().claims;
            claims.due_at = now + limits.look_every().min(self.settings.claim_every);
            claims.idleness.observe(observed, now, limits)
        };
        if let Some(millis) = stepped {
            log::warn!(
                "the clock of Redis was set, which nothing here depends on step_ms={millis} redis.server={}",
                self.server
            );
        }
        let mut all = vec![(None, left.into())];
        for consumer in dead {
            let of_it = commands
                .pending(StreamId::ZERO, usize::MAX, Some(&consumer))
                .await?;
            all.push((Some(consumer), of_it.into()));
        }
        self.reading().claims.left = all;
        Ok(())
    }

    /// Waits for new entries, and takes as many as there are and the permit allows for: in several reads,
    /// since none asks for very many, whose entries are handed out together.
    async fn read_new(&self, permit: Permit, epoch: u64) -> RedisResult<Outcome> {
        self.keep_the_pace().await;
        let mut room = Room::new(permit);
        let mut num_taken = 0;
        loop {
            let expected = {
                let reading = self.reading();
                if reading.is_stopping {
                    break;
                }
                reading.sizes.expected(room.permit)
            };
            // One may come alone, however large.
            let waits = room.must_take_one;
            let count = match expected {
                None if !waits => break,
                expected => expected.map_or(1, NonZeroUsize::get),
            };
            let command = read_new(&self.settings, count, waits);
            let patience = self.settings.block + RESPONSE_TIMEOUT;
            let read = self.read(&command, &mut room, patience, epoch).await?;
            let is_full = read.num() == count && read.skipped.is_empty();
            num_taken += read.entries.len();
            self.take_new(read, is_full, epoch).await?;
            if !is_full {
                break;
            }
        }
        if num_taken >= MANY {
            // The keeper does it too, and says what fails.
            drop(self.write_down_what_was_read().await);
        }
        Ok(match num_taken {
            0 => Outcome::Nothing,
            _ => Outcome::Some,
        })
    }

    async fn take_new(&self, read: EntriesRead, has_more: bool, epoch: u64) -> RedisResult<()> {
        drop(self.reading_of(epoch)?);
        let num = read.num();
        let last = read.entries.last().map(|entry| entry.id);
        let last = read.skipped.last().map(|(id, _)| *id).or(last);
        if let Some(last) = last {
            self.keeping().positions.read_up_to(last);
        }
        self.remember(read.entries.iter().map(|entry| entry.id));
        let now = Instant::now();
        let mut gone = Vec::new();
        {
            let mut reading = self.reading_of(epoch)?;
            for StreamEntry { id, body } in read.entries {
                match body {
                    Some(body) => {
                        reading.sizes.saw(body.num_bytes());
                        reading.pending.add_new(id, body, now);
                    }
                    None => gone.push(id),
                }
            }
            let has_skipped = !read.skipped.is_empty();
            for (id, _) in read.skipped {
                reading.pending.skip_new(id);
            }
            // Those are pending for us now, and nobody else will read them.
            reading.recovery.is_due |= has_skipped;
            reading.last_new_read = now;
            reading.last_was_short = num > 0 && !has_more && !has_skipped;
            reading.more = if has_more || has_skipped {
                More::Ready
            } else {
                More::Later
            };
        }
        if !gone.is_empty() {
            // One without text is unheard of, but must not stay pending.
            self.commands_of(epoch).await?.acknowledge(&gone).await?;
            self.note(Note::Lost("while they were read"), gone.len());
        }
        Ok(())
    }

    async fn read(
        &self,
        command: &Cmd,
        room: &mut Room,
        patience: Duration,
        epoch: u64,
    ) -> RedisResult<EntriesRead> {
        let epoch = Some(epoch);
        let read = (self.connections).read(command, Reply::Streams, room, patience, epoch);
        let read = read.await?;
        let mut reading = self.reading();
        for &(_, num_bytes) in &read.skipped {
            reading.sizes.saw(num_bytes);
        }
        Ok(read)
    }

    async fn keep_the_pace(&self) {
        let rest = {
            let reading = self.reading();
            let since = reading.last_new_read.elapsed();
            reading
                .last_was_short
                .then(|| PACE.checked_sub(since))
                .flatten()
        };
        if let Some(rest) = rest {
            sleep(rest).await;
        }
    }
}

/// The part of a run that is still to be read; `None` if Redis has no more of it.
fn rest_of(run: PendingRun, asked: usize, read: &EntriesRead) -> Option<PendingRun> {
    let last = read.entries.last()?.id;
    let num = run.num.saturating_sub(read.entries.len());
    // Where another has taken some of it meanwhile, fewer come than were asked for.
    let goes_on = read.num() == asked || !read.skipped.is_empty();
    (goes_on && num > 0).then_some(PendingRun {
        first: StreamId {
            number: last.number.saturating_add(1),
            ..last
        },
        num,
    })
}
