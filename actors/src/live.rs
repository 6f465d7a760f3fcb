//! Events as they are committed, for those who watch.
//!
//! Nobody who watches is waited for. The last events that were committed are kept for a while; whoever has not come
//! to one before it goes is told how many there were. Events that other processes commit into the same database
//! are found by looking, twice a second, as long as somebody watches.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytestring::ByteString;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::LocalBoxFuture;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use crate::clock::Clock;
use crate::delivery::Batch;
use crate::delivery::Content;
use crate::event::{EventLimits, Received, ReceivedEvent};
use crate::reader::{EventFilter, EventReader, MAX_PAGE, Occurred, Part, StoredEvent};
use crate::store::{EventStore, OpenStore, Outcome, StoreError, StoreLayer};

/// So many events are kept for those who come to them later: a few seconds of a busy service.
const MAX_KEPT_EVENTS: usize = 10_000;
/// Fewer, where they are large.
pub const MAX_KEPT_BYTES: usize = 8 << 20;

/// How often is looked for what others have committed.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a transaction may take from the moment that stands in its rows to its commit, and the clocks of two
/// machines differ, so that its events are still found.
const LOOK_BACK: TimeDelta = TimeDelta::seconds(5);
/// An id is remembered for longer than it can be found.
const REMEMBERED: Duration = Duration::from_secs(20);
/// More than others write in that time.
const MAX_FOUND: usize = 20_000;

/// An event that was committed.
#[derive(Debug)]
pub struct LiveEvent {
    /// The event.
    pub event: ReceivedEvent,
    /// Made once for all who watch.
    message: OnceLock<ByteString>,
}

impl LiveEvent {
    fn new(event: ReceivedEvent) -> Arc<Self> {
        let message = OnceLock::new();
        Arc::new(Self { event, message })
    }

    /// As Prefect's API shows it.
    pub fn json(&self) -> &str {
        let message = self.message();
        let end = message.len() - MESSAGE[1].len();
        message.get(MESSAGE[0].len()..end).unwrap_or_default()
    }

    /// As it is told on a WebSocket.
    pub(crate) fn message(&self) -> &ByteString {
        self.message
            .get_or_init(|| message_of(&StoredEvent::from(&self.event)))
    }

    fn num_bytes(&self) -> usize {
        self.event.text().len()
    }
}

/// What stands around an event in the message that tells it.
const MESSAGE: [&str; 2] = [r#"{"type":"event","event":"#, "}"];

/// The message that tells an event.
pub(crate) fn message_of(event: &StoredEvent) -> ByteString {
    let mut message = MESSAGE[0].to_owned();
    event.write_json(&mut message);
    message.push_str(MESSAGE[1]);
    message.into()
}

/// The next message to somebody who watches.
#[derive(Debug)]
pub enum Live {
    /// An event was committed.
    Event(Arc<LiveEvent>),
    /// So many were, and are no longer kept.
    Missed(u64),
}

/// The events that are committed; a handle.
#[derive(Clone)]
pub struct LiveEvents(Arc<Shared>);

struct Shared {
    kept: Mutex<Kept>,
    /// The number of the next event.
    next: watch::Sender<u64>,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Arc<LiveEvent>>,
    num_bytes: usize,
    /// The number of the first of them.
    first: u64,
    /// When ids were seen, so that none is told twice.
    seen: HashMap<Uuid, Instant>,
}

impl Default for LiveEvents {
    fn default() -> Self {
        Self(Arc::new(Shared {
            kept: Mutex::default(),
            next: watch::Sender::new(0),
        }))
    }
}

impl LiveEvents {
    /// The same stores, of which each tells what it has committed.
    pub fn told_by(&self, open_store: OpenStore) -> OpenStore {
        let live = self.clone();
        Arc::new(move || {
            Arc::new(Telling {
                store: open_store(),
                live: live.clone(),
            })
        })
    }

    /// Watches from now on.
    pub fn watch(&self) -> Watching {
        let next = self.0.next.subscribe();
        let number = *next.borrow();
        Watching {
            shared: Arc::clone(&self.0),
            next,
            number,
        }
    }

    /// Looks for what others commit, for as long as the future is polled.
    pub async fn look(&self, reader: Arc<dyn EventReader>, clock: Arc<dyn Clock>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Events of before are seen already. A look that took long, or failed, is made up for by the next.
        let mut looked = None;
        loop {
            ticks.tick().await;
            if !self.is_watched() {
                self.0.lock().forget();
                looked = None;
                continue;
            }
            let now = clock.now();
            let is_first = looked.is_none();
            let since = looked.unwrap_or(now) - LOOK_BACK;
            match self.look_once(&*reader, since, is_first, now).await {
                Ok(()) => looked = Some(now),
                Err(error) => log::debug!("cannot look for events of others error={error}"),
            }
        }
    }

    async fn look_once(
        &self,
        reader: &dyn EventReader,
        since: DateTime<Utc>,
        is_first: bool,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let moment = Instant::now();
        let mut new = reader.written_since(since, MAX_FOUND).await?;
        {
            let mut kept = self.0.lock();
            if is_first {
                // They were there before somebody watched.
                kept.seen.extend(new.drain(..).map(|id| (id, moment)));
            }
            new.retain(|id| !kept.seen.contains_key(id));
            kept.seen
                .retain(|_, at| moment.saturating_duration_since(*at) < REMEMBERED);
        }
        // The oldest first, as they came.
        new.reverse();
        for ids in new.chunks(MAX_PAGE) {
            let mut left = ids.to_vec();
            // A page of large events holds not all that were asked for.
            while !left.is_empty() {
                let events = load(reader, &left, now).await?;
                left.retain(|id| !events.iter().any(|event| event.id == *id));
                self.tell(events.iter().filter_map(read));
                if events.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn is_watched(&self) -> bool {
        self.0.next.receiver_count() > 0
    }

    fn tell(&self, events: impl IntoIterator<Item = ReceivedEvent>) {
        let now = Instant::now();
        let mut kept = self.0.lock();
        for event in events {
            if kept.seen.insert(event.id, now).is_none() {
                kept.push(LiveEvent::new(event));
            }
        }
        let next = kept.first + kept.events.len() as u64;
        drop(kept);
        self.0.next.send_replace(next);
    }
}

/// Some events by their ids, the oldest first.
async fn load(
    reader: &dyn EventReader,
    ids: &[Uuid],
    now: DateTime<Utc>,
) -> Result<Vec<StoredEvent>, StoreError> {
    let filter = EventFilter {
        id: ids.to_vec(),
        occurred: Occurred {
            since: DateTime::<Utc>::MIN_UTC,
            until: DateTime::<Utc>::MAX_UTC,
        },
        order: crate::reader::Order::Asc,
        ..EventFilter::all(now)
    };
    let part = Part {
        limit: MAX_PAGE,
        after: None,
    };
    Ok(reader.page(&filter, part).await?.events)
}

/// A stored event as one that came in.
fn read(event: &StoredEvent) -> Option<ReceivedEvent> {
    // It was taken once, by limits that may have been others.
    let limits = EventLimits {
        max_labels_per_resource: usize::MAX,
        max_related_resources: usize::MAX,
        max_event_name_length: usize::MAX,
    };
    let received = Received::FromText {
        default: event.received,
    };
    ReceivedEvent::parse(event.to_json().into(), &limits, received).ok()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Nobody watches any more.
    fn forget(&mut self) {
        self.first += self.events.len() as u64;
        self.events = VecDeque::new();
        self.num_bytes = 0;
        self.seen = HashMap::new();
    }

    fn push(&mut self, event: Arc<LiveEvent>) {
        self.num_bytes += event.num_bytes();
        self.events.push_back(event);
        while self.events.len() > MAX_KEPT_EVENTS
            || (self.num_bytes > MAX_KEPT_BYTES && self.events.len() > 1)
        {
            if let Some(gone) = self.events.pop_front() {
                self.num_bytes -= gone.num_bytes();
                self.first += 1;
            }
        }
    }
}

/// Somebody who watches.
pub struct Watching {
    shared: Arc<Shared>,
    next: watch::Receiver<u64>,
    /// The number of the event that comes next.
    number: u64,
}

impl Watching {
    /// The next message; waits for it. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Live {
        loop {
            self.next.mark_unchanged();
            if let Some(live) = self.now() {
                return live;
            }
            if self.next.changed().await.is_err() {
                // It cannot: this one holds the sender.
                return std::future::pending().await;
            }
        }
    }

    /// Leaves out all but the newest so many; how many that were.
    #[cfg(feature = "http")]
    pub(crate) fn skip(&mut self, but_for: u64) -> u64 {
        let kept = self.shared.lock();
        let end = kept.first + kept.events.len() as u64;
        let next = end.saturating_sub(but_for).max(self.number);
        let num_skipped = next - self.number;
        self.number = next;
        num_skipped
    }

    /// The next message, if it is there already.
    pub(crate) fn now(&mut self) -> Option<Live> {
        let kept = self.shared.lock();
        if let Some(missed) = kept
            .first
            .checked_sub(self.number)
            .filter(|missed| *missed > 0)
        {
            self.number = kept.first;
            return Some(Live::Missed(missed));
        }
        let place = usize::try_from(self.number - kept.first).ok()?;
        let event = Arc::clone(kept.events.get(place)?);
        self.number += 1;
        Some(Live::Event(event))
    }
}

/// A store that tells what it has committed.
struct Telling {
    store: Arc<dyn EventStore>,
    live: LiveEvents,
}

impl StoreLayer for Telling {
    fn below(&self) -> &dyn EventStore {
        self.store.as_ref()
    }

    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(async move {
            let outcomes = self.store.write(Arc::clone(&batch)).await?;
            if self.live.is_watched() {
                let entries = batch.entries().iter().zip(&outcomes);
                let stored = entries.filter(|(_, outcome)| **outcome == Outcome::Stored);
                self.live
                    .tell(stored.filter_map(|(entry, _)| match &entry.content {
                        Content::Event(event) => Some(event.clone()),
                        Content::Rejected(_) => None,
                    }));
            }
            Ok(outcomes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::BatchId;
    use crate::testing::{MemoryStore, event, event_entry};

    async fn commit(store: &dyn EventStore, ids: std::ops::Range<u128>) {
        let entries = ids
            .map(|id| event_entry(event(Uuid::from_u128(id))))
            .collect();
        let batch = Batch::new(BatchId(0), entries);
        store.write(Arc::new(batch)).await.unwrap();
    }

    async fn ids(watching: &mut Watching, num: usize) -> Vec<u128> {
        let mut ids = Vec::new();
        for _ in 0..num {
            match watching.next().await {
                Live::Event(event) => ids.push(event.event.id.as_u128()),
                Live::Missed(missed) => panic!("missed {missed}"),
            }
        }
        ids
    }

    #[actix::test]
    async fn watchers_are_told_each_event_once_and_how_many_they_missed() {
        let live = LiveEvents::default();
        let store = live.told_by(MemoryStore::new().open_store())();
        commit(&*store, 0..3).await;
        let (mut one, mut other) = (live.watch(), live.watch());
        commit(&*store, 2..5).await;
        assert_eq!(ids(&mut one, 2).await, [3, 4]);
        assert_eq!(ids(&mut other, 1).await, [3]);
        let num = MAX_KEPT_EVENTS as u128;
        commit(&*store, 10..10 + num).await;
        assert!(matches!(other.next().await, Live::Missed(1)));
        assert_eq!(ids(&mut other, 2).await, [10, 11]);
        commit(&*store, 100_000..100_005).await;
        assert!(matches!(other.next().await, Live::Missed(3)));
        assert_eq!(ids(&mut other, 1).await, [15]);
        assert!(matches!(one.next().await, Live::Missed(5)));
        let nothing_new = tokio::time::timeout(Duration::ZERO, async {
            let mut late = live.watch();
            late.next().await
        });
        assert!(nothing_new.await.is_err());
    }
}
