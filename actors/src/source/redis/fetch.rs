//! The reading side: one fetch at a time, which ends with entries, with nothing, or with an error.
//!
//! A fetch runs on its own and not within the future of a read. When that is dropped, what the
//! fetch takes waits for the next read, and no second command is sent that waits in Redis.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, RedisResult};
use tokio::time::{Instant, sleep};

use crate::source::{More, Permit};

use super::commands::{self, Commands, FEW};
use super::connection::RESPONSE_TIMEOUT;
use super::entries::fetched;
use super::failure;
use super::reads::{EntriesRead, Room};
use super::replies::RawEntry;
use super::shared::{Outcome, Shared, State};
use super::stream_id::StreamId;
use super::taken::{Fetched, Run};

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

/// Leaves the state right however the fetch ends, also if it is aborted.
pub(super) struct Turn(Arc<Shared>);

impl Turn {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        shared.lock().taken.watch();
        Self(shared)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.fetching = false;
        state.taken.end_watch();
        drop(state);
        self.0.changed.notify_one();
    }
}

/// Fetches entries for a permit, and leaves the outcome for the reader.
///
/// The turn is made before the task: it must end also if the task's thread does before its first poll.
pub(super) async fn fetch(turn: Turn, permit: Permit) {
    let shared = &turn.0;
    let result = shared.fetch_or_rejoin(permit).await;
    let outcome = match result {
        Ok(outcome) => {
            let mut state = shared.lock();
            state.sizes.succeeded();
            state.fetch_failed = false;
            drop(state);
            Ok(outcome)
        }
        Err((doing, error)) => {
            let error = shared.failed(doing, error);
            let mut state = shared.lock();
            state.sizes.failed();
            state.fetch_failed = true;
            state.recovery.due_at = Instant::now() + RECOVER_AFTER_FAILURE;
            drop(state);
            Err(error)
        }
    };
    shared.lock().outcome = Some(outcome);
}

/// What was being done, for the error.
type Failed = (&'static str, redis::RedisError);

impl State {
    /// Ends the recovery, unless it was asked for anew meanwhile.
    fn ends_recovery(&mut self) -> bool {
        if self.recovery.runs.is_none() {
            return false;
        }
        self.taken.recovered();
        self.recovery.due = false;
        self.recovery.runs = None;
        // An earlier appointment, made by a failure, stands.
        let now = Instant::now();
        if self.recovery.due_at <= now {
            self.recovery.due_at = now + RECOVER_EVERY;
        }
        true
    }
}

impl Shared {
    /// A stream or a group that has vanished is made again at once, within the same fetch.
    async fn fetch_or_rejoin(&self, permit: Permit) -> Result<Outcome, Failed> {
        let connecting = |error| ("connecting", error);
        let mut commands = self.commands().await.map_err(connecting)?;
        match self.fetch_with(&mut commands, permit).await {
            Err((_, error)) if failure::has_vanished(&error) => {
                self.lock().joined = false;
                self.fetch_with(&mut commands, permit).await
            }
            result => result,
        }
    }

    async fn fetch_with(
        &self,
        commands: &mut Commands<'_>,
        permit: Permit,
    ) -> Result<Outcome, Failed> {
        if !self.lock().joined {
            self.join(commands)
                .await
                .map_err(|error| ("making the consumer group", error))?;
            // What is not allowed here the keeper tells.
            drop(self.sight(commands).await);
        }
        if self.must_recover() {
            let found = self
                .recover(commands, permit)
                .await
                .map_err(|error| ("reading what is pending for this consumer", error))?;
            if found {
                return Ok(Outcome::Some);
            }
        }
        self.count_losses(commands)
            .await
            .map_err(|error| ("counting what was removed unread", error))?;
        if self.must_claim() {
            let found = self
                .claim(commands, permit)
                .await
                .map_err(|error| ("claiming what others left", error))?;
            if found {
                return Ok(Outcome::Some);
            }
        }
        if let Some(what) = self.misplaced() {
            return Ok(Outcome::Misplaced(what));
        }
        self.read_new(permit)
            .await
            .map_err(|error| ("reading the stream", error))
    }

    fn must_recover(&self) -> bool {
        let mut state = self.lock();
        if Instant::now() >= state.recovery.due_at {
            state.recovery.due = true;
        }
        state.recovery.due
    }

    /// Reads again what is pending for us and nobody has. Returns whether there was any.
    async fn recover(&self, commands: &mut Commands<'_>, permit: Permit) -> RedisResult<bool> {
        // What is durable comes first, so that it is no longer pending.
        let committed = self.lock().taken.committed();
        self.acknowledge(commands, &committed).await?;
        loop {
            if self.lock().recovery.runs.is_none() {
                let pending = commands.own_pending().await?;
                let mut state = self.lock();
                let runs = state.taken.plan_recovery(&pending);
                state.recovery.runs = Some(runs);
            }
            while let Some((run, count)) = self.next_run(permit) {
                let behind = run.first.previous();
                let command = commands::read_pending(&self.settings, behind, count);
                let room = Room {
                    permit,
                    must_take_one: true,
                };
                let read = self.read(&command, room, RESPONSE_TIMEOUT).await?;
                let rest = rest_of(run, count, &read);
                let num = self.take_pending(commands, read.entries).await?;
                self.run_is_read(rest);
                if num > 0 {
                    return Ok(true);
                }
            }
            if self.lock().ends_recovery() {
                return Ok(false);
            }
        }
    }

    fn next_run(&self, permit: Permit) -> Option<(Run, usize)> {
        let state = self.lock();
        let run = *state.recovery.runs.as_ref()?.front()?;
        Some((
            run,
            run.num
                .min(state.sizes.expected(permit).map_or(1, NonZeroUsize::get)),
        ))
    }

    fn run_is_read(&self, rest: Option<Run>) {
        let mut state = self.lock();
        if let Some(runs) = state.recovery.runs.as_mut() {
            runs.pop_front();
            if let Some(rest) = rest {
                runs.push_front(rest);
            }
        }
    }

    /// Takes pending entries, our own or claimed. Those without text are acknowledged and counted.
    async fn take_pending(
        &self,
        commands: &mut Commands<'_>,
        entries: Vec<RawEntry>,
    ) -> RedisResult<usize> {
        let (entries, mut gone) = self.split(entries);
        {
            // What we have needs no text in the stream any more.
            let state = self.lock();
            gone.retain(|id| !state.taken.has(*id));
        }
        if !gone.is_empty() {
            commands.acknowledge(&gone).await?;
        }
        let mut state = self.lock();
        for &id in &gone {
            state.taken.lost(id);
        }
        let num = state.taken.take_again(entries, Instant::now());
        state.more = More::Ready;
        drop(state);
        self.note_lost(gone.len(), TRIMMED_WHILE_PENDING);
        Ok(num)
    }

    /// Entries with text, sized; and the ids of those without.
    fn split(&self, entries: Vec<RawEntry>) -> (Vec<Fetched>, Vec<StreamId>) {
        let now = Instant::now();
        let mut state = self.lock();
        let mut with_text = Vec::with_capacity(entries.len());
        let mut gone = Vec::new();
        for entry in entries {
            match entry.fields {
                Some(fields) => {
                    let entry = fetched(entry.id, fields);
                    state.sizes.saw(entry.num_bytes, now);
                    with_text.push(entry);
                }
                None => gone.push(entry.id),
            }
        }
        (with_text, gone)
    }

    /// How many of these we do not have: their events are lost.
    fn unknown_of(&self, ids: &[StreamId]) -> usize {
        let state = self.lock();
        ids.iter().filter(|id| !state.taken.has(**id)).count()
    }

    async fn count_losses(&self, commands: &mut Commands<'_>) -> RedisResult<()> {
        let due = {
            let state = self.lock();
            state.count_losses || state.last_new_read.elapsed() >= LONG_PAUSE
        };
        if due {
            let lost = commands.count_losses().await?;
            self.lock().count_losses = false;
            self.note_lost(
                lost,
                "before they were read (up to so many, where Redis restarted just before)",
            );
        }
        Ok(())
    }

    fn must_claim(&self) -> bool {
        let state = self.lock();
        if state.stopping {
            return false;
        }
        state.claims.cursor.is_some() || Instant::now() >= state.claims.due_at
    }

    /// Takes over what others left. Returns whether there was any; the search then goes on with
    /// the next fetch.
    async fn claim(&self, commands: &mut Commands<'_>, permit: Permit) -> RedisResult<bool> {
        loop {
            let (cursor, count) = {
                let mut state = self.lock();
                state.claims.due_at = Instant::now() + self.settings.claim_every;
                let cursor = state.claims.cursor.take().unwrap_or(StreamId::ZERO);
                (cursor, state.sizes.certain(permit).min(FEW))
            };
            let claimed = commands.claim_idle(cursor, count).await?;
            let lost = self.unknown_of(&claimed.deleted);
            let num = self.take_pending(commands, claimed.entries).await?;
            {
                let mut state = self.lock();
                if claimed.next != StreamId::ZERO {
                    state.claims.cursor = Some(claimed.next);
                }
                // Redis 6.2 does not say which; they are pending for us now.
                state.recovery.due |= claimed.some_deleted;
            }
            self.note_lost(lost, TRIMMED_WHILE_PENDING);
            if num > 0 {
                self.note_takeover(num);
                return Ok(true);
            }
            if claimed.next == StreamId::ZERO {
                return Ok(false);
            }
        }
    }

    /// Waits for new entries, and takes as many as there are and the permit allows for.
    ///
    /// In several reads, since none asks for very many. What they bring is handed out together: each part
    /// on its own would have to wait for a processor as often.
    async fn read_new(&self, permit: Permit) -> RedisResult<Outcome> {
        self.keep_the_pace().await;
        let mut room = Room {
            permit,
            must_take_one: true,
        };
        let mut num_taken = 0;
        loop {
            let expected = {
                let state = self.lock();
                if state.stopping {
                    break;
                }
                state.sizes.expected(room.permit)
            };
            // One may come alone, however large.
            let count = match expected {
                None if !room.must_take_one => break,
                expected => expected.map_or(1, NonZeroUsize::get),
            };
            let command = commands::read_new(&self.settings, count, room.must_take_one);
            let patience = self.settings.block + RESPONSE_TIMEOUT;
            let read = self.read(&command, room, patience).await?;
            let is_full = read.num() == count && read.left.is_empty();
            num_taken += read.entries.len();
            room.use_up(&read);
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

    /// Takes entries that were delivered just now.
    async fn take_new(&self, read: EntriesRead, has_more: bool) -> RedisResult<()> {
        let num = read.num();
        let last = read.entries.iter().map(|entry| entry.id);
        let last = last.chain(read.left.iter().map(|(id, _)| *id)).max();
        let (entries, gone) = self.split(read.entries);
        let now = Instant::now();
        {
            let mut state = self.lock();
            state.taken.take_new(entries, now);
            state.taken.leave_new(&read.left);
            if let Some(last) = last {
                state.positions.read_up_to(last);
            }
            // Those are pending for us now, and nobody else will read them.
            let has_left = !read.left.is_empty();
            state.recovery.due |= has_left;
            state.last_new_read = now;
            state.last_was_short = num > 0 && !has_more && !has_left;
            state.more = if has_more || has_left {
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
        room: Room,
        patience: Duration,
    ) -> RedisResult<EntriesRead> {
        let mut connection = self.connections.reads().await?;
        let read = connection.reads.entries(command, room, patience).await;
        // A future that was dropped, or an answer that was not understood, ends the connection.
        if read.as_ref().err().is_none_or(failure::is_answer) {
            self.connections.give_back(connection);
        }
        let read = read?;
        let now = Instant::now();
        let mut state = self.lock();
        for &(_, num_bytes) in &read.left {
            state.sizes.saw(num_bytes, now);
        }
        Ok(read)
    }

    async fn keep_the_pace(&self) {
        let rest = {
            let state = self.lock();
            let since = state.last_new_read.elapsed();
            state
                .last_was_short
                .then(|| PACE.checked_sub(since))
                .flatten()
        };
        if let Some(rest) = rest {
            sleep(rest).await;
        }
    }
}

/// What of a run is still to be read; `None` if Redis has no more of it.
fn rest_of(run: Run, asked: usize, read: &EntriesRead) -> Option<Run> {
    let last = read.entries.last()?.id;
    let num = run.num.saturating_sub(read.entries.len());
    // Where another has taken some of it meanwhile, fewer come than were asked for.
    let goes_on = read.num() == asked || !read.left.is_empty();
    (goes_on && num > 0).then_some(Run {
        first: StreamId {
            number: last.number.saturating_add(1),
            ..last
        },
        num,
    })
}
