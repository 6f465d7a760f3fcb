//! One fetch at a time, which ends with entries, with nothing, or with an error.
//!
//! A fetch runs on its own and not within the future of a read. When that is dropped, the entries that the
//! fetch brings wait for the next read, and no second command is sent that waits in Redis.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, RedisResult};
use tokio::time::{Instant, sleep};

use crate::source::{More, Permit};

use super::commands::{self, Commands};
use super::connection::RESPONSE_TIMEOUT;
use super::entry_reader::{EntriesRead, Room, StreamEntry};
use super::failure;
use super::member::{Member, Outcome, Reading};
use super::pending::PendingRun;
use super::stream_id::StreamId;

/// Own pending entries are looked through this often, even if nothing failed that we know of.
const RECOVER_EVERY: Duration = Duration::from_secs(60);

/// And once more this long after a failure: a server that was stalled may carry out a read of a
/// connection that is long gone.
const RECOVER_AFTER_FAILURE: Duration = Duration::from_secs(6);

/// While events trickle in, reads are this far apart: each takes what gathered meanwhile, instead
/// of one command an event. Longer saves commands, at the price of that much delay.
const PACE: Duration = Duration::from_millis(15);

/// From so many entries on, how much was read is written down at once. Fewer would make that the most
/// part of what Redis has to do; more could be taken for lost after a restart.
const MANY: usize = 16;

/// After a pause of this length losses are counted before anything is read.
const LONG_PAUSE: Duration = Duration::from_secs(10);

/// A replica that died may have stored them.
const TRIMMED_WHILE_PENDING: &str =
    "while they were pending in the group (up to so many, where a replica died just before)";

/// Begins a fetch for a permit, which leaves its outcome for the next read.
///
/// The fetch counts as over also if its task ends before its first poll.
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

/// The step that failed, and why.
type Failed = (&'static str, redis::RedisError);

impl Reading {
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
        self.read_new(permit)
            .await
            .map_err(while_doing("reading the stream"))
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
                let command = commands::read_pending(&self.settings, run.first.previous(), count);
                let mut room = Room::new(permit);
                let read = self.read(&command, &mut room, RESPONSE_TIMEOUT).await?;
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
        let mut reading = self.reading();
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
        self.note_lost(gone.len(), TRIMMED_WHILE_PENDING);
        Ok(num)
    }

    /// How many of these we do not have.
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
            self.note_lost(
                lost,
                "before they were read (up to so many, where Redis restarted just before)",
            );
        }
        Ok(())
    }

    fn must_claim(&self) -> bool {
        let reading = self.reading();
        if reading.is_stopping {
            return false;
        }
        reading.claims.cursor.is_some() || Instant::now() >= reading.claims.due_at
    }

    /// Takes over what others left. Returns whether there was any: it is pending for us then, and is read
    /// next. The search goes on after that.
    async fn claim(&self, commands: &mut Commands<'_>, permit: Permit) -> RedisResult<bool> {
        loop {
            let (cursor, count) = {
                let mut reading = self.reading();
                reading.claims.due_at = Instant::now() + self.settings.claim_every;
                let cursor = reading.claims.cursor.take().unwrap_or(StreamId::ZERO);
                // Entries that are not read soon look idle to others.
                (cursor, reading.sizes.at_least_one(permit))
            };
            let claimed = commands.claim_idle(cursor, count).await?;
            self.note_lost(self.num_unknown(&claimed.deleted), TRIMMED_WHILE_PENDING);
            let num = self.num_unknown(&claimed.ids);
            let is_end = claimed.next == StreamId::ZERO;
            {
                let mut reading = self.reading();
                reading.claims.cursor = (!is_end).then_some(claimed.next);
                if num > 0 {
                    reading.recover();
                }
            }
            if num > 0 {
                self.note_takeover(num);
                return Ok(true);
            }
            if is_end {
                return Ok(false);
            }
        }
    }

    /// Waits for new entries, and takes as many as there are and the permit allows for.
    ///
    /// In several reads, since none asks for very many. Their entries are handed out together: each part
    /// on its own would have to wait for a processor as often.
    async fn read_new(&self, permit: Permit) -> RedisResult<Outcome> {
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
            let command = commands::read_new(&self.settings, count, waits);
            let patience = self.settings.block + RESPONSE_TIMEOUT;
            let read = self.read(&command, &mut room, patience).await?;
            let is_full = read.num() == count && read.skipped.is_empty();
            num_taken += read.entries.len();
            self.take_new(read, is_full).await?;
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

    /// Takes in entries that were delivered just now.
    async fn take_new(&self, read: EntriesRead, has_more: bool) -> RedisResult<()> {
        let num = read.num();
        let last = read.entries.last().map(|entry| entry.id);
        let last = read.skipped.last().map(|(id, _)| *id).or(last);
        if let Some(last) = last {
            self.keeping().positions.read_up_to(last);
        }
        let now = Instant::now();
        let mut gone = Vec::new();
        {
            let mut reading = self.reading();
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
            self.commands().await?.acknowledge(&gone).await?;
            self.note_lost(gone.len(), "while they were read");
        }
        Ok(())
    }

    /// Reads entries through the connection for that.
    async fn read(
        &self,
        command: &Cmd,
        room: &mut Room,
        patience: Duration,
    ) -> RedisResult<EntriesRead> {
        let mut in_use = self.connections.reader().await?;
        let read = in_use.reader.entries(command, room, patience).await;
        let read = self.connections.give_back(in_use, read)?;
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
