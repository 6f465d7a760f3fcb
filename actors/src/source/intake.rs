//! Source: a bounded intake that this process fills itself.
//!
//! The HTTP routes and any host submit entries to an [`Intake`], from any thread, and wait on the
//! [`Commit`]. The pipeline reads them from the [`IntakeSource`]. An entry that was admitted stays
//! here until it is acknowledged, whether its client still waits or not, and its [`Commit`]
//! succeeds exactly then. The entries never exceed the bounds, but for a single larger one that
//! comes when nothing else is here.
//!
//! In a long outage clients send the same messages again. A text that already waits takes no second
//! place: its sender waits for the first. An event with the same id and another text is admitted on
//! its own, since if the database refuses the one, the other must not count as durable.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::LocalBoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::delivery::{Content, Entry, Receipt};
use crate::event::ReceivedEvent;
use crate::settings::{As, Count, Size};

use super::{Body, Chunk, EventSource, More, Permit, Retain, Retained, SourceError, lock};

mod commit;
mod room;

use commit::Waiter;
pub use commit::{Commit, Committed, NotCommitted};
use room::{Bounds, Room};

/// How much an intake holds: everything submitted and not yet durable.
///
/// Should be no less than what the pipeline has in flight, or the batches cannot fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IntakeSettings {
    /// Events that were taken in and are not committed yet; beyond it requests get 503 and WebSockets are
    /// read no further.
    #[serde(rename = "max_waiting_events", with = "As::<Count>")]
    pub max_events: NonZeroUsize,
    /// The same bound in bytes: the memory that an outage of the database may take; no more than 4 GiB.
    #[serde(rename = "max_waiting_bytes", with = "As::<Size>")]
    pub max_bytes: NonZeroUsize,
}

impl Default for IntakeSettings {
    fn default() -> Self {
        const MAX_EVENTS: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();
        const MAX_BYTES: NonZeroUsize = NonZeroUsize::new(128 << 20).unwrap();
        Self {
            max_events: MAX_EVENTS,
            max_bytes: MAX_BYTES,
        }
    }
}

/// Why entries were not admitted; none of them was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// There is no room for them now; there will be once others are durable.
    #[error("the intake is full; send the events again later")]
    Full,
    /// Together they are more than the intake ever holds.
    #[error("these are more events than are taken at once; send them in smaller portions")]
    TooLarge,
    /// Nothing is taken any more.
    #[error("the service is stopping; send the events again once it is back")]
    Closed,
}

/// How much an intake holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntakeUsage {
    /// Entries that are not yet durable.
    pub num_events: usize,
    /// The bytes of their raw messages.
    pub num_bytes: usize,
}

/// The side of those who submit; cheap to clone, for any thread.
#[derive(Clone)]
pub struct Intake {
    shared: Arc<IntakeState>,
}

impl Intake {
    /// The source's name, which every entry carries.
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// How many entries the intake holds at most.
    pub fn max_events(&self) -> usize {
        self.shared.bounds.max_events
    }

    /// Admits an event that this process has made: [`submit`](Self::submit) of one entry.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn submit_event(&self, event: ReceivedEvent) -> Result<Commit, SubmitError> {
        self.submit(vec![Entry::of_event(Arc::clone(self.name()), event)])
    }

    /// Admits all of the entries at once, in order, or none.
    ///
    /// # Errors
    ///
    /// There is no room, there never will be, or nothing is taken any more.
    pub fn submit(&self, entries: Vec<Entry>) -> Result<Commit, SubmitError> {
        let (commit, waiter) = Waiter::of(entries.len());
        let mut state = self.shared.lock_open()?;
        let mut num_events = 0_usize;
        let mut num_bytes = 0_usize;
        let mut places = Vec::with_capacity(entries.len());
        for entry in entries {
            let key = self.shared.key(&entry);
            let joins = state.find(key, &entry);
            if joins.is_none() {
                num_events += 1;
                num_bytes = num_bytes.saturating_add(self.shared.bounds.weight(entry.num_bytes()));
            }
            places.push((entry, key, joins));
        }
        // A repetition within the list is counted here and gives its room back below. From here
        // on nothing can fail: there is room for all that do not join.
        let mut room = self.shared.bounds.room_now(num_events, num_bytes)?;
        for (entry, key, joins) in places {
            if let Some(receipt) = joins.or_else(|| state.find(key, &entry)) {
                state.join(receipt, &waiter);
            } else {
                let room = room.split(self.shared.bounds.weight(entry.num_bytes()));
                state.admit(entry, key, room, Arc::clone(&waiter));
            }
        }
        drop(room);
        drop(state);
        self.shared.available.notify_one();
        Ok(commit)
    }

    /// Admits one entry, in turn, once there is room; one that already waits is joined at once.
    /// When the future is dropped before it resolves, the entry was not admitted.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Closed`] if nothing is taken any more.
    pub async fn submit_when_room(&self, entry: Entry) -> Result<Commit, SubmitError> {
        let key = self.shared.key(&entry);
        let (commit, waiter) = Waiter::of(1);
        {
            let mut state = self.shared.lock_open()?;
            if let Some(receipt) = state.find(key, &entry) {
                state.join(receipt, &waiter);
                return Ok(commit);
            }
        }
        let room = self
            .shared
            .bounds
            .room(self.shared.bounds.weight(entry.num_bytes()))
            .await?;
        let mut state = self.shared.lock_open()?;
        // The same message may have come by another connection in the meantime.
        if let Some(receipt) = state.find(key, &entry) {
            state.join(receipt, &waiter);
        } else {
            state.admit(entry, key, room, waiter);
            drop(state);
            self.shared.available.notify_one();
        }
        Ok(commit)
    }

    /// Takes nothing more; what is here is still handed out, and its commits still succeed.
    pub fn stop_accepting(&self) {
        self.shared.enter(Phase::Draining);
    }

    /// Resolves when nothing is taken any more.
    pub async fn stopped(&self) {
        let mut phase = self.shared.phase.subscribe();
        // The sender lives as long as `self`: there is no error to hear of.
        drop(phase.wait_for(|phase| *phase != Phase::Open).await);
    }

    /// How much is here now.
    pub fn usage(&self) -> IntakeUsage {
        self.shared.lock().usage
    }
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake")
            .field("name", &self.shared.name)
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

/// The pipeline's side of an [`Intake`].
pub struct IntakeSource {
    shared: Arc<IntakeState>,
}

impl IntakeSource {
    /// An empty intake and the handle that fills it.
    pub fn new(name: impl Into<Arc<str>>, settings: IntakeSettings) -> (Arc<Self>, Intake) {
        let shared = Arc::new(IntakeState {
            name: name.into(),
            bounds: Bounds::new(settings),
            hasher: RandomState::new(),
            available: Notify::new(),
            phase: watch::Sender::new(Phase::Open),
            state: Mutex::new(Entries::default()),
        });
        let source = Arc::new(Self {
            shared: Arc::clone(&shared),
        });
        (source, Intake { shared })
    }
}

impl EventSource for IntakeSource {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<Chunk, SourceError>> {
        Box::pin(async move {
            loop {
                // One poll looks and takes, so a dropped read has taken nothing. `notify_one`
                // leaves a permit behind when nobody waits: no entry arrives unseen in between.
                if let Some(chunk) = self.shared.hand_out(permit) {
                    return Ok(chunk);
                }
                self.shared.available.notified().await;
            }
        })
    }

    fn note_dead_letters(&self, receipts: &[Receipt]) {
        let mut state = self.shared.lock();
        for &receipt in receipts {
            if let Some(waiting) = state.messages.get_mut(receipt) {
                waiting.is_dead_letter = true;
            }
        }
    }

    fn acknowledge<'a>(
        &'a self,
        receipts: &'a [Receipt],
    ) -> LocalBoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let durable = self.shared.lock().release(receipts);
            for waiting in &durable {
                for waiter in &waiting.waiters {
                    waiter.one_is_durable(waiting.is_dead_letter);
                }
            }
            Ok(())
        })
    }

    fn rewind(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            self.shared.lock().messages.rewind();
            Ok(())
        })
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            self.shared.enter(Phase::Closed);
            // With the waiters go their senders: every commit that is left fails.
            let dropped = self.shared.lock().clear();
            drop(dropped);
            Ok(())
        })
    }
}

/// A source that nobody reads any more commits nothing.
impl Drop for IntakeSource {
    fn drop(&mut self) {
        self.shared.enter(Phase::Closed);
        let dropped = self.shared.lock().clear();
        drop(dropped);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    /// Takes nothing, still hands out.
    Draining,
    Closed,
}

struct IntakeState {
    name: Arc<str>,
    bounds: Bounds,
    hasher: RandomState,
    /// Something may be there for the one reader.
    available: Notify,
    phase: watch::Sender<Phase>,
    /// Never locked across an await.
    state: Mutex<Entries>,
}

impl IntakeState {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        lock(&self.state)
    }

    fn lock_open(&self) -> Result<MutexGuard<'_, Entries>, SubmitError> {
        let state = self.lock();
        if *self.phase.borrow() == Phase::Open {
            Ok(state)
        } else {
            Err(SubmitError::Closed)
        }
    }

    fn enter(&self, phase: Phase) {
        {
            // Under the lock, so that nothing is admitted afterwards.
            let _state = self.lock();
            self.phase.send_if_modified(|current| {
                let later = phase > *current;
                *current = phase.max(*current);
                later
            });
        }
        self.bounds.close();
        self.available.notify_one();
    }

    fn key(&self, entry: &Entry) -> JoinKey {
        match &entry.content {
            Content::Event(event) => JoinKey::Event(event.id),
            Content::Rejected(rejection) => {
                JoinKey::Rejection(self.hasher.hash_one((&entry.position, &rejection.raw)))
            }
        }
    }

    fn hand_out(&self, permit: Permit) -> Option<Chunk> {
        let mut state = self.lock();
        let when_empty = match *self.phase.borrow() {
            Phase::Open => More::Later,
            Phase::Draining | Phase::Closed => More::Ended,
        };
        state.messages.hand_out(permit, when_empty)
    }
}

/// The same for two submissions of the same message; the texts are compared as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum JoinKey {
    Event(Uuid),
    Rejection(u64),
}

#[derive(Default)]
struct Entries {
    messages: Retained<AdmittedEntry>,
    by_key: HashMap<JoinKey, Receipt>,
    usage: IntakeUsage,
}

impl Entries {
    fn find(&mut self, key: JoinKey, entry: &Entry) -> Option<Receipt> {
        let receipt = *self.by_key.get(&key)?;
        let held = self.messages.get_mut(receipt)?;
        (held.entry.raw() == entry.raw()).then_some(receipt)
    }

    fn join(&mut self, receipt: Receipt, waiter: &Arc<Waiter>) {
        let Some(held) = self.messages.get_mut(receipt) else {
            return;
        };
        // Clients that come again and again leave waiters behind that nobody listens to.
        if held.waiters.len() == held.waiters.capacity() {
            held.waiters.retain(|waiter| !waiter.is_abandoned());
        }
        held.waiters.push(Arc::clone(waiter));
    }

    fn admit(&mut self, entry: Entry, key: JoinKey, room: Room, waiter: Arc<Waiter>) {
        self.usage.num_events += 1;
        self.usage.num_bytes += entry.num_bytes();
        let receipt = self.messages.push(AdmittedEntry {
            entry: Arc::new(entry),
            key,
            waiters: vec![waiter],
            is_dead_letter: false,
            _room: room,
        });
        self.by_key.insert(key, receipt);
    }

    /// Takes out what is durable. To be dropped, and told, without the lock.
    fn release(&mut self, receipts: &[Receipt]) -> Vec<AdmittedEntry> {
        let mut durable = Vec::with_capacity(receipts.len());
        for &receipt in receipts {
            let Some(waiting) = self.messages.acknowledge(receipt) else {
                continue;
            };
            self.usage.num_events -= 1;
            self.usage.num_bytes -= waiting.entry.num_bytes();
            if self.by_key.get(&waiting.key) == Some(&receipt) {
                self.by_key.remove(&waiting.key);
            }
            durable.push(waiting);
        }
        durable
    }

    fn clear(&mut self) -> impl Sized + use<> {
        self.usage = IntakeUsage::default();
        self.by_key.clear();
        self.messages.clear()
    }
}

struct AdmittedEntry {
    entry: Arc<Entry>,
    key: JoinKey,
    waiters: Vec<Arc<Waiter>>,
    /// The store could not hold it: it is a dead letter, or will be once it is durable.
    is_dead_letter: bool,
    _room: Room,
}

impl Retain for AdmittedEntry {
    fn num_bytes(&self) -> usize {
        self.entry.num_bytes()
    }

    fn body(&self) -> Body {
        Body::Entry(Arc::clone(&self.entry))
    }
}

#[cfg(test)]
mod tests;
