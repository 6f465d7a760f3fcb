//! A store in memory, with faults that can be switched on.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::LocalBoxFuture;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::clock::{Clock, SystemClock};
use crate::delivery::Batch;
use crate::lock::lock;
use crate::store::operator::{
    Answer, DeadLetter, LetterFilter, LetterVersion, OpenLetter, StoreOperator,
};
use crate::store::{
    Cutoffs, EventCounts, EventStore, Fault, FaultKind, LastPass, OpenStore, Outcome,
    RefusalReason, Removed, StoreError, TrimStep, Trimmed,
};

mod rows;

use rows::Rows;
pub use rows::{StoredEvent, StoredResource};

/// A store that a test can look into and make fail.
///
/// Clones share everything, as connections to one database do. Faults happen in this order: hold,
/// unavailable, fail, panic, outcome unknown.
#[derive(Clone)]
pub struct MemoryStore {
    core: Arc<Core>,
}

struct Core {
    state: Mutex<StoreState>,
    clock: Arc<dyn Clock>,
    held: watch::Sender<bool>,
    started: Semaphore,
}

struct StoreState {
    rows: Rows,
    available: bool,
    /// Events that fail every batch that they are part of.
    failing: BTreeMap<Uuid, Fault>,
    /// Events with which every write panics.
    panicking: BTreeSet<Uuid>,
    /// Larger batches lose their connection.
    max_bytes: Option<usize>,
    /// Every batch fails with this.
    outage: Option<Fault>,
    /// How long a write or a rehearsal takes.
    latency: Duration,
    fail_next: usize,
    panic_next: usize,
    outcome_unknown_next: usize,
    num_opened: usize,
    num_closed: usize,
    num_writes: usize,
    num_commits: usize,
    /// Steps of a trim of more events take too long.
    max_trimmed: Option<usize>,
    trim_steps: Vec<usize>,
    last_pass: Option<DateTime<Utc>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }
}

impl MemoryStore {
    /// An empty store that is available.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store that takes the time of writing from `clock`.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self {
            core: Arc::new(Core {
                state: Mutex::new(StoreState {
                    rows: Rows::default(),
                    available: true,
                    failing: BTreeMap::new(),
                    panicking: BTreeSet::new(),
                    max_bytes: None,
                    outage: None,
                    latency: Duration::ZERO,
                    fail_next: 0,
                    panic_next: 0,
                    outcome_unknown_next: 0,
                    num_opened: 0,
                    num_closed: 0,
                    num_writes: 0,
                    num_commits: 0,
                    max_trimmed: None,
                    trim_steps: Vec::new(),
                    last_pass: None,
                }),
                clock,
                held: watch::Sender::new(false),
                started: Semaphore::new(0),
            }),
        }
    }

    /// Opens handles that all see this store's data and faults.
    pub fn open_store(&self) -> OpenStore {
        let store = self.clone();
        Arc::new(move || {
            store.state().num_opened += 1;
            Arc::new(store.clone())
        })
    }

    /// The next `n` writes fail, with nothing written.
    pub fn fail_next(&self, n: usize) {
        self.state().fail_next = n;
    }

    /// The next `n` writes commit, and then say that they do not know whether they did.
    pub fn outcome_unknown_next(&self, n: usize) {
        self.state().outcome_unknown_next = n;
    }

    /// The next `n` writes or rehearsals panic, with nothing written.
    pub fn panic_next(&self, n: usize) {
        self.state().panic_next = n;
    }

    /// While false, every call fails.
    pub fn set_available(&self, available: bool) {
        self.state().available = available;
    }

    /// From now on every batch with this event fails as a whole, with this fault.
    pub fn fail_with(&self, event_id: Uuid, fault: Fault) {
        self.state().failing.insert(event_id, fault);
    }

    /// From now on every write with this event panics.
    pub fn panic_on(&self, event_id: Uuid) {
        self.state().panicking.insert(event_id);
    }

    /// Batches with more bytes lose their connection, as on a path that drops large packets.
    pub fn lose_connections_above(&self, max_bytes: Option<usize>) {
        self.state().max_bytes = max_bytes;
    }

    /// While there is a fault, every batch fails with it as a whole, as in an outage that the store itself
    /// can still tell of.
    pub fn fail_all(&self, fault: Option<Fault>) {
        self.state().outage = fault;
    }

    /// From now on every write, and every rehearsal, takes this long.
    pub fn set_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Steps of a trim that may remove more events take too long, with nothing removed.
    pub fn trim_too_slowly_above(&self, max_events: Option<usize>) {
        self.state().max_trimmed = max_events;
    }

    async fn takes_its_time(&self) {
        let latency = self.state().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
    }

    /// From now on the event with this id is refused, as by a database that cannot hold it.
    pub fn refuse(&self, event_id: Uuid) {
        let reason = "the test refuses this event".to_owned();
        self.state().rows.refused.insert(event_id, reason);
    }

    /// From now on the event with this id is taken again.
    pub fn accept(&self, event_id: Uuid) {
        self.state().failing.remove(&event_id);
        self.state().rows.refused.remove(&event_id);
    }

    /// While true, every new event is refused, as by a trigger that somebody got wrong.
    pub fn refuse_all(&self, refuse: bool) {
        self.state().rows.refuses_all = refuse;
    }

    /// Makes writes wait, before they do anything, until [`Self::release`].
    pub fn hold(&self) {
        self.core.held.send_replace(true);
    }

    /// Lets held writes go on.
    pub fn release(&self) {
        self.core.held.send_replace(false);
    }

    /// Returns once for each write that has started, held or not, whether before the call or after.
    pub async fn wait_for_write_started(&self) {
        // The semaphore is never closed.
        if let Ok(permit) = self.core.started.acquire().await {
            permit.forget();
        }
    }

    /// The stored events by id, each with its resources.
    pub fn events(&self) -> BTreeMap<Uuid, StoredEvent> {
        self.state().rows.events.clone()
    }

    /// The stored event with this id.
    pub fn event(&self, id: Uuid) -> Option<StoredEvent> {
        self.state().rows.events.get(&id).cloned()
    }

    /// How many events are stored.
    pub fn num_events(&self) -> usize {
        self.state().rows.events.len()
    }

    /// The dead letters in the order in which they came first, each with its raw message.
    pub fn dead_letters(&self) -> Vec<OpenLetter> {
        self.state().rows.letters.clone()
    }

    /// How many handles were opened.
    pub fn num_opened(&self) -> usize {
        self.state().num_opened
    }

    /// How often a handle was closed.
    pub fn num_closed(&self) -> usize {
        self.state().num_closed
    }

    /// How many writes were begun, failed ones included.
    pub fn num_writes(&self) -> usize {
        self.state().num_writes
    }

    /// How many writes were committed, those with an unknown outcome included.
    pub fn num_commits(&self) -> usize {
        self.state().num_commits
    }

    /// How many trim steps were made, those that took too long included.
    pub fn num_trims(&self) -> usize {
        self.state().trim_steps.len()
    }

    /// How many events each trim step was allowed to remove, in order.
    pub fn trim_steps(&self) -> Vec<usize> {
        self.state().trim_steps.clone()
    }

    fn state(&self) -> MutexGuard<'_, StoreState> {
        lock(&self.core.state)
    }

    fn available(&self) -> Result<MutexGuard<'_, StoreState>, StoreError> {
        let state = self.state();
        if state.available {
            Ok(state)
        } else {
            Err(StoreError::unavailable("the memory store is switched off"))
        }
    }

    async fn write_batch(&self, batch: &Batch) -> Result<Vec<Outcome>, StoreError> {
        self.state().num_writes += 1;
        self.core.started.add_permits(1);
        // The sender lives in the core, so that the wait ends only with the hold.
        self.core
            .held
            .subscribe()
            .wait_for(|held| !held)
            .await
            .map_err(|_| StoreError::unavailable("the memory store is gone"))?;
        self.takes_its_time().await;
        let mut state = self.available()?;
        if take_one(&mut state.fail_next) {
            return Err(StoreError::unavailable("the test lets this write fail"));
        }
        if take_one(&mut state.panic_next) || state.panics_on(batch) {
            drop(state);
            panics();
        }
        if let Some(fault) = state.fault_of(batch) {
            return Err(faulty(fault));
        }
        let now = self.core.clock.now();
        let outcomes = match batch.condemned() {
            Some(condemned) => {
                let mut outcomes = Vec::new();
                for entry in batch.entries() {
                    outcomes.push(match state.rows.outcome_of(entry) {
                        Outcome::Duplicate => Outcome::Duplicate,
                        _ => {
                            let (reason, code) = (condemned.reason.clone(), condemned.code.clone());
                            state.rows.keep(entry, reason, code, now);
                            Outcome::RefusedByStore(RefusalReason::Other)
                        }
                    });
                }
                outcomes
            }
            None => {
                let entries = batch.entries().iter();
                entries.map(|entry| state.rows.write(entry, now)).collect()
            }
        };
        state.num_commits += 1;
        if take_one(&mut state.outcome_unknown_next) {
            return Err(StoreError::OutcomeUnknown {
                what: "the test hides the outcome of this commit".to_owned(),
                fault: None,
                source: None,
            });
        }
        Ok(outcomes)
    }
}

impl StoreState {
    fn panics_on(&self, batch: &Batch) -> bool {
        let mut events = batch.entries().iter().filter_map(|entry| entry.event());
        batch.condemned().is_none() && events.any(|event| self.panicking.contains(&event.id))
    }

    /// Why this batch fails as a whole, if it does.
    fn fault_of(&self, batch: &Batch) -> Option<Fault> {
        if self.outage.is_some() {
            return self.outage.clone();
        }
        if self.max_bytes.is_some_and(|max| batch.num_bytes() > max) {
            return Some(Fault {
                kind: FaultKind::Transient,
                code: None,
            });
        }
        if batch.condemned().is_some() {
            return None;
        }
        let mut events = batch.entries().iter().filter_map(|entry| entry.event());
        events.find_map(|event| self.failing.get(&event.id).cloned())
    }
}

fn faulty(fault: Fault) -> StoreError {
    StoreError::Unavailable {
        what: "the test lets every write of this fail".to_owned(),
        fault: Some(fault),
        source: None,
    }
}

#[expect(clippy::panic, reason = "the fault that was asked for")]
fn panics() -> ! {
    panic!("the test lets this panic")
}

fn take_one(counter: &mut usize) -> bool {
    let is_left = *counter > 0;
    *counter = counter.saturating_sub(1);
    is_left
}

impl EventStore for MemoryStore {
    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(async move { self.write_batch(&batch).await })
    }

    fn rehearse(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(async move {
            self.takes_its_time().await;
            let mut state = self.available()?;
            if take_one(&mut state.panic_next) {
                drop(state);
                panics();
            }
            if let Some(fault) = state.fault_of(&batch) {
                return Err(faulty(fault));
            }
            let entries = batch.entries().iter();
            Ok(entries.map(|entry| state.rows.outcome_of(entry)).collect())
        })
    }

    fn trim<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_events: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>> {
        Box::pin(async move {
            cutoffs.refuse_future(self.core.clock.now())?;
            let mut state = self.available()?;
            state.trim_steps.push(max_events.get());
            if state.max_trimmed.is_some_and(|max| max_events.get() > max) {
                return Err(StoreError::TooSlow {
                    what: "the test lets this step take too long".to_owned(),
                    code: None,
                    source: None,
                });
            }
            let expired = state.rows.expired(cutoffs);
            if expired.is_empty() {
                return Ok(TrimStep::Finished);
            }
            let oldest = expired.into_iter().take(max_events.get());
            Ok(TrimStep::Removed(Removed {
                rows: state.rows.remove(oldest),
                took: Duration::ZERO,
                others_write: false,
                with_their_table: false,
            }))
        })
    }

    fn last_pass(&self, before: DateTime<Utc>) -> LocalBoxFuture<'_, Result<LastPass, StoreError>> {
        Box::pin(async move {
            let state = self.available()?;
            let recorded = state.rows.events.values().map(|stored| stored.recorded);
            let newest = recorded.filter(|at| *at < before).max();
            Ok(LastPass {
                now: self.core.clock.now(),
                at: state.last_pass.or(newest),
                is_noted: state.last_pass.is_some(),
            })
        })
    }

    fn note_pass(&self, at: DateTime<Utc>) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.available()?.last_pass = Some(at);
            Ok(())
        })
    }

    fn count_events<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        until: DateTime<Utc>,
    ) -> LocalBoxFuture<'a, Result<EventCounts, StoreError>> {
        Box::pin(async move {
            let state = self.available()?;
            let mut held = EventCounts::default();
            for stored in state.rows.events.values() {
                if stored.recorded <= until {
                    let event = &stored.event;
                    held.num_events += 1;
                    held.num_expired +=
                        u64::from(cutoffs.have_passed(event.occurred, &event.event));
                }
            }
            Ok(held)
        })
    }

    fn check(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.available().map(drop) })
    }

    fn place(&self) -> Option<String> {
        Some("memory".to_owned())
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.state().num_closed += 1;
            Ok(())
        })
    }
}

impl StoreOperator for MemoryStore {
    fn count_expired<'a>(&'a self, cutoffs: &'a Cutoffs) -> Answer<'a, Trimmed> {
        Box::pin(async move {
            cutoffs.refuse_future(self.core.clock.now())?;
            let state = self.available()?;
            let expired = state.rows.expired(cutoffs);
            let resources = expired
                .iter()
                .filter_map(|id| state.rows.events.get(id))
                .map(|stored| stored.resources.len() as u64)
                .sum();
            Ok(Trimmed {
                events: expired.len() as u64,
                resources,
            })
        })
    }

    fn list_letters<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
        limit: NonZeroUsize,
    ) -> Answer<'a, Vec<DeadLetter>> {
        Box::pin(async move {
            let state = self.available()?;
            let newest_first = state.rows.letters.iter().rev().map(|(letter, _)| letter);
            let matching = newest_first.filter(|letter| matches(filter, before, letter));
            Ok(matching.take(limit.get()).cloned().collect())
        })
    }

    fn count_letters<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
    ) -> Answer<'a, u64> {
        Box::pin(async move {
            let state = self.available()?;
            let letters = state.rows.letters.iter().map(|(letter, _)| letter);
            let matching = letters.filter(|letter| matches(filter, before, letter));
            Ok(matching.count() as u64)
        })
    }

    fn open_letters<'a>(&'a self, ids: &'a [i64]) -> Answer<'a, Vec<OpenLetter>> {
        Box::pin(async move {
            let state = self.available()?;
            let newest_first = state.rows.letters.iter().rev();
            let opened = newest_first.filter(|(letter, _)| ids.contains(&letter.id));
            Ok(opened.cloned().collect())
        })
    }

    fn peek_letter(&self, id: i64, num_bytes: usize) -> Answer<'_, Option<OpenLetter>> {
        Box::pin(async move {
            let opened = self.open_letters(&[id]).await?.pop();
            Ok(opened.map(|(letter, mut raw)| {
                raw.truncate(num_bytes);
                (letter, raw)
            }))
        })
    }

    fn remove_letters<'a>(&'a self, letters: &'a [LetterVersion]) -> Answer<'a, u64> {
        Box::pin(async move {
            let mut state = self.available()?;
            Ok(state.rows.remove_letters(|letter| {
                letters.contains(&LetterVersion {
                    id: letter.id,
                    attempts: letter.attempts,
                })
            }))
        })
    }
}

fn matches(filter: &LetterFilter, before: Option<i64>, letter: &DeadLetter) -> bool {
    let LetterFilter {
        ids,
        source,
        stage,
        reason,
        code,
        since,
        until,
    } = filter;
    before.is_none_or(|before| letter.id < before)
        && ids.as_ref().is_none_or(|ids| ids.contains(&letter.id))
        && source
            .as_ref()
            .is_none_or(|source| letter.source == *source)
        && stage.is_none_or(|stage| letter.stage == stage)
        && reason
            .as_ref()
            .is_none_or(|reason| letter.reason.contains(reason))
        && (code.is_none() || letter.sqlstate == *code)
        && since.is_none_or(|since| letter.last_seen >= since)
        && until.is_none_or(|until| letter.last_seen < until)
}
