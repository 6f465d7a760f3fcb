//! A store in memory, with faults that can be switched on.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use futures_util::future::LocalBoxFuture;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::batch::Batch;
use crate::clock::{Clock, SystemClock};
use crate::delivery::{Content, Entry};
use crate::event::{ReceivedEvent, Resource};
use crate::store::{
    Cutoffs, DeadLetter, DeadLetters, EventStore, OpenLetter, OpenStore, Outcome, Stage,
    StoreError, TrimStep, Trimmed,
};

/// A store that a test can look into and make fail.
///
/// Clones share everything, as connections to one database do. Faults happen in this order: hold,
/// unavailable, fail, panic, outcome unknown.
#[derive(Clone)]
pub struct MemoryStore {
    core: Arc<Core>,
}

struct Core {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    held: watch::Sender<bool>,
    started: Semaphore,
}

struct State {
    events: BTreeMap<Uuid, StoredEvent>,
    letters: Vec<OpenLetter>,
    refused: HashMap<Uuid, String>,
    available: bool,
    fail_next: usize,
    panic_next: usize,
    outcome_unknown_next: usize,
    num_opened: usize,
    num_closed: usize,
    num_writes: usize,
    num_commits: usize,
    num_trims: usize,
}

/// A row of `events` and its rows of `event_resources`.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// The event.
    pub event: ReceivedEvent,
    /// When it was written.
    pub recorded: DateTime<Utc>,
    /// The primary resource, then the related ones in order.
    pub resources: Vec<StoredResource>,
}

/// A row of `event_resources`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResource {
    /// The resource's id.
    pub resource_id: String,
    /// What it is to the event; empty for the primary resource.
    pub role: String,
    /// Its labels without id and role, in order.
    pub labels: Vec<(String, String)>,
}

impl StoredResource {
    fn new(resource: &Resource, role: &str) -> Self {
        Self {
            resource_id: resource.id().to_owned(),
            role: role.to_owned(),
            labels: resource
                .other_labels()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        }
    }
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
                state: Mutex::new(State {
                    events: BTreeMap::new(),
                    letters: Vec::new(),
                    refused: HashMap::new(),
                    available: true,
                    fail_next: 0,
                    panic_next: 0,
                    outcome_unknown_next: 0,
                    num_opened: 0,
                    num_closed: 0,
                    num_writes: 0,
                    num_commits: 0,
                    num_trims: 0,
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

    /// The next `n` writes panic, with nothing written.
    pub fn panic_next(&self, n: usize) {
        self.state().panic_next = n;
    }

    /// While false, every call fails.
    pub fn set_available(&self, available: bool) {
        self.state().available = available;
    }

    /// From now on the event with this id is refused, as by a database that cannot hold it.
    pub fn refuse(&self, event_id: Uuid) {
        let reason = "the test refuses this event".to_owned();
        self.state().refused.insert(event_id, reason);
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
        self.state().events.clone()
    }

    /// The stored event with this id.
    pub fn event(&self, id: Uuid) -> Option<StoredEvent> {
        self.state().events.get(&id).cloned()
    }

    /// How many events are stored.
    pub fn num_events(&self) -> usize {
        self.state().events.len()
    }

    /// The dead letters in the order in which they came first, each with its raw message.
    pub fn dead_letters(&self) -> Vec<OpenLetter> {
        self.state().letters.clone()
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

    /// How many trim steps were made.
    pub fn num_trims(&self) -> usize {
        self.state().num_trims
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.core
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn available(&self) -> Result<MutexGuard<'_, State>, StoreError> {
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
        let mut state = self.available()?;
        if take_one(&mut state.fail_next) {
            return Err(StoreError::unavailable("the test lets this write fail"));
        }
        if take_one(&mut state.panic_next) {
            drop(state);
            #[expect(clippy::panic, reason = "the fault that was asked for")]
            {
                panic!("the test lets this write panic");
            }
        }
        let now = self.core.clock.now();
        let outcomes = batch
            .entries()
            .iter()
            .map(|entry| state.write(entry, now))
            .collect();
        state.num_commits += 1;
        if take_one(&mut state.outcome_unknown_next) {
            return Err(StoreError::OutcomeUnknown {
                what: "the test hides the outcome of this commit".to_owned(),
                source: None,
            });
        }
        Ok(outcomes)
    }
}

fn take_one(counter: &mut usize) -> bool {
    let is_left = *counter > 0;
    *counter = counter.saturating_sub(1);
    is_left
}

impl State {
    fn write(&mut self, entry: &Entry, now: DateTime<Utc>) -> Outcome {
        let event = match &entry.content {
            Content::Rejected(rejection) => {
                let (reason, event_id) = (rejection.reason.clone(), rejection.event_id);
                self.write_letter(entry, Stage::Parse, reason, event_id, now);
                return Outcome::RejectedAtParse;
            }
            Content::Event(event) => event,
        };
        if self.events.contains_key(&event.id) {
            return Outcome::Duplicate;
        }
        if let Some(reason) = self.refused.get(&event.id).cloned() {
            self.write_letter(entry, Stage::Store, reason, Some(event.id), now);
            return Outcome::RefusedByStore;
        }
        let related = event
            .related
            .iter()
            .map(|resource| StoredResource::new(resource, resource.role().unwrap_or_default()));
        let stored = StoredEvent {
            recorded: now,
            resources: std::iter::once(StoredResource::new(&event.resource, ""))
                .chain(related)
                .collect(),
            event: event.clone(),
        };
        self.events.insert(event.id, stored);
        Outcome::Stored
    }

    fn write_letter(
        &mut self,
        entry: &Entry,
        stage: Stage,
        reason: String,
        event_id: Option<Uuid>,
        now: DateTime<Utc>,
    ) {
        let known = self.letters.iter_mut().find(|(letter, raw)| {
            letter.source == *entry.source
                && letter.position == entry.position.as_str()
                && raw == entry.raw()
        });
        if let Some((letter, _)) = known {
            letter.attempts += 1;
            letter.last_seen = now;
            return;
        }
        let letter = DeadLetter {
            id: i64::try_from(self.letters.len() + 1).unwrap_or(i64::MAX),
            source: entry.source.to_string(),
            position: entry.position.to_string(),
            stage,
            reason,
            sqlstate: None,
            event_id,
            attempts: 1,
            first_seen: now,
            last_seen: now,
            num_bytes: entry.num_bytes() as u64,
        };
        self.letters.push((letter, entry.raw().to_vec()));
    }

    /// The expired events, oldest first.
    fn expired(&self, cutoffs: &Cutoffs) -> Vec<Uuid> {
        let mut expired: Vec<_> = self
            .events
            .values()
            .map(|stored| &stored.event)
            .filter(|event| {
                let cutoff = cutoffs.overrides.get(&event.event);
                event.occurred < *cutoff.unwrap_or(&cutoffs.default)
            })
            .map(|event| (event.occurred, event.id))
            .collect();
        expired.sort_unstable();
        expired.into_iter().map(|(_, id)| id).collect()
    }

    fn remove(&mut self, ids: impl IntoIterator<Item = Uuid>) -> Trimmed {
        let mut trimmed = Trimmed::default();
        for id in ids {
            if let Some(stored) = self.events.remove(&id) {
                trimmed.events += 1;
                trimmed.resources += stored.resources.len() as u64;
            }
        }
        trimmed
    }
}

impl EventStore for MemoryStore {
    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(async move { self.write_batch(&batch).await })
    }

    fn trim<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_events: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>> {
        Box::pin(async move {
            let mut state = self.available()?;
            state.num_trims += 1;
            let expired = state.expired(cutoffs);
            if expired.is_empty() {
                return Ok(TrimStep::Finished);
            }
            let oldest = expired.into_iter().take(max_events.get());
            Ok(TrimStep::Removed(state.remove(oldest)))
        })
    }

    fn count_expired<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
    ) -> LocalBoxFuture<'a, Result<Trimmed, StoreError>> {
        Box::pin(async move {
            let state = self.available()?;
            let expired = state.expired(cutoffs);
            let resources = expired
                .iter()
                .filter_map(|id| state.events.get(id))
                .map(|stored| stored.resources.len() as u64)
                .sum();
            Ok(Trimmed {
                events: expired.len() as u64,
                resources,
            })
        })
    }

    fn check(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.available().map(drop) })
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.state().num_closed += 1;
            Ok(())
        })
    }
}

impl DeadLetters for MemoryStore {
    fn list(
        &self,
        before: Option<i64>,
        limit: NonZeroUsize,
    ) -> LocalBoxFuture<'_, Result<Vec<DeadLetter>, StoreError>> {
        Box::pin(async move {
            let state = self.available()?;
            Ok(state
                .letters
                .iter()
                .rev()
                .map(|(letter, _)| letter)
                .filter(|letter| before.is_none_or(|before| letter.id < before))
                .take(limit.get())
                .cloned()
                .collect())
        })
    }

    fn show(&self, id: i64) -> LocalBoxFuture<'_, Result<Option<OpenLetter>, StoreError>> {
        Box::pin(async move {
            let state = self.available()?;
            Ok(state
                .letters
                .iter()
                .find(|(letter, _)| letter.id == id)
                .cloned())
        })
    }
}
