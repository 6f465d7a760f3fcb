//! Events as they are committed, for those who watch.
//!
//! Nobody who watches is waited for. The last events that were committed are kept for a while; whoever has not come
//! to one before it goes is told how many there were. Events that other processes commit into the same database
//! are found by looking, as long as somebody watches: twice a second, or once where nobody else commits any.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytestring::ByteString;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::LocalBoxFuture;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use crate::clock::Clock;
use crate::delivery::Batch;
use crate::delivery::Content;
use crate::event::{EventLimits, Received, ReceivedEvent};
use crate::lock::lock;
use crate::reader::{EventFilter, EventReader, MAX_PAGE, Occurred, Part, StoredEvent};
use crate::store::{EventStore, OpenStore, Outcome, StoreError, StoreLayer};

pub use recent::RecentIds;

mod recent;

/// So many events are kept for those who come to them later: a few seconds of a busy service.
const MAX_KEPT_EVENTS: usize = 10_000;
/// Fewer, where they are large.
pub const MAX_KEPT_BYTES: usize = 8 << 20;

/// How often is looked for what others have committed; half as often after a look that found nothing.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a transaction may take from the moment that stands in its rows to its commit, and the clocks of two
/// machines differ, so that its events are still found.
const LOOK_BACK: TimeDelta = TimeDelta::seconds(5);
/// An id is remembered for longer than it can be found.
const REMEMBERED: Duration = Duration::from_secs(20);
/// More than others write in that time.
const MAX_FOUND: usize = 20_000;

/// An event that was committed.
///
/// It is kept as its text, and read again for those who look at it: beside a busy service most are never looked at.
pub struct LiveEvent {
    /// The event's id.
    pub id: Uuid,
    occurred: DateTime<Utc>,
    received: DateTime<Utc>,
    text: ByteString,
    /// Made once for all who watch, as the message is.
    event: OnceLock<Option<ReceivedEvent>>,
    message: OnceLock<ByteString>,
}

/// The id only: events may hold secrets, and debug output ends in logs.
impl std::fmt::Debug for LiveEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LiveEvent").field(&self.id).finish()
    }
}

impl From<&ReceivedEvent> for LiveEvent {
    fn from(event: &ReceivedEvent) -> Self {
        Self {
            id: event.id,
            occurred: event.occurred,
            received: event.received,
            text: event.text.clone(),
            event: OnceLock::new(),
            message: OnceLock::new(),
        }
    }
}

impl From<&StoredEvent> for LiveEvent {
    fn from(event: &StoredEvent) -> Self {
        Self {
            id: event.id,
            occurred: event.occurred,
            received: event.received,
            text: event.to_json().into(),
            event: OnceLock::new(),
            message: OnceLock::new(),
        }
    }
}

impl LiveEvent {
    /// The event; `None` if its text cannot be read a second time.
    pub fn event(&self) -> Option<&ReceivedEvent> {
        let read = || {
            // It was taken once, by limits that may have been others.
            let limits = EventLimits {
                max_labels_per_resource: usize::MAX,
                max_related_resources: usize::MAX,
                max_event_name_length: usize::MAX,
            };
            let received = Received::Now(self.received);
            let mut event = ReceivedEvent::parse(self.text.clone(), &limits, received).ok()?;
            (event.id, event.occurred) = (self.id, self.occurred);
            Some(event)
        };
        self.event.get_or_init(read).as_ref()
    }

    /// Whether somebody who asked so is told of it. Its time is looked at first: its text is read for the rest.
    #[cfg(feature = "http")]
    pub(crate) fn is_asked_for(&self, filter: &EventFilter) -> bool {
        filter.occurred.contains(self.occurred)
            && self.event().is_some_and(|event| filter.matches(event))
    }

    /// As Prefect's API shows it.
    pub fn json(&self) -> &str {
        let message = self.message();
        let end = message.len() - MESSAGE[1].len();
        message.get(MESSAGE[0].len()..end).unwrap_or_default()
    }

    /// As it is told on a WebSocket.
    pub(crate) fn message(&self) -> &ByteString {
        self.message.get_or_init(|| match self.event() {
            Some(event) => message_of(&StoredEvent::from(event)),
            None => format!("{}{}{}", MESSAGE[0], self.text, MESSAGE[1]).into(),
        })
    }

    fn num_bytes(&self) -> usize {
        self.text.len()
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
    /// Somebody watches, and nobody did before.
    begun: Notify,
    is_over: watch::Sender<bool>,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Arc<LiveEvent>>,
    num_bytes: usize,
    /// The number of the first of them.
    first: u64,
    /// When was last looked for what others commit; `None` until it is noted what was there before.
    looked: Option<DateTime<Utc>>,
    /// So that none is told twice.
    seen: HashMap<Uuid, Seen>,
}

/// An event that was told, or was there before somebody watched.
struct Seen {
    at: Instant,
    /// An event of our own may be found before it is told.
    is_told: bool,
}

impl Default for LiveEvents {
    fn default() -> Self {
        Self(Arc::new(Shared {
            kept: Mutex::default(),
            next: watch::Sender::new(0),
            begun: Notify::new(),
            is_over: watch::Sender::new(false),
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
        let mut kept = self.0.lock();
        if !self.is_watched() {
            kept.forget();
            self.0.begun.notify_one();
        }
        Watching {
            shared: Arc::clone(&self.0),
            next: self.0.next.subscribe(),
            number: kept.end(),
        }
    }

    /// Those who watch are told that it is over. A host calls it before it waits for their connections.
    pub fn end(&self) {
        self.0.is_over.send_replace(true);
    }

    /// Waits for the end.
    #[cfg(feature = "http")]
    pub(crate) async fn ended(&self) {
        // It cannot fail: the sender is held here.
        drop(
            self.0
                .is_over
                .subscribe()
                .wait_for(|is_over| *is_over)
                .await,
        );
    }

    /// Looks for what others commit, for as long as the future is polled.
    pub async fn look(&self, reader: Arc<dyn EventReader>, clock: Arc<dyn Clock>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_quiet = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.0.begun.notified() => is_quiet = false,
            }
            if std::mem::take(&mut is_quiet) || !self.is_looked_for() {
                continue;
            }
            // What a look did not find because it failed, or took long, is found by the next.
            match self.look_once(&*reader, clock.now()).await {
                Ok(found_some) => is_quiet = !found_some,
                Err(error) => log::debug!("cannot look for events of others error={error}"),
            }
        }
    }

    /// Notes what is there already, unless that was done for somebody else who watches. What others commit from
    /// then on is told.
    pub(crate) async fn note_what_is_there(
        &self,
        reader: &dyn EventReader,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        if self.0.lock().looked.is_some() {
            return Ok(());
        }
        let ids = reader.written_since(now - LOOK_BACK, MAX_FOUND).await?;
        let mut kept = self.0.lock();
        // Another one may have done it meanwhile, and what came since then is to be told to that one.
        if kept.looked.is_none() {
            kept.looked = Some(now);
            let at = Instant::now();
            for id in ids {
                let is_told = false;
                kept.seen.entry(id).or_insert(Seen { at, is_told });
            }
        }
        Ok(())
    }

    async fn look_once(
        &self,
        reader: &dyn EventReader,
        now: DateTime<Utc>,
    ) -> Result<bool, StoreError> {
        let Some(looked) = self.0.lock().looked else {
            self.note_what_is_there(reader, now).await?;
            return Ok(true);
        };
        let moment = Instant::now();
        let mut new = reader.written_since(looked - LOOK_BACK, MAX_FOUND).await?;
        {
            let mut kept = self.0.lock();
            if kept.looked != Some(looked) {
                // Those who watched have gone, and for those who came then it was there before.
                return Ok(true);
            }
            new.retain(|id| !kept.seen.contains_key(id));
            kept.seen
                .retain(|_, seen| moment.saturating_duration_since(seen.at) < REMEMBERED);
        }
        // The oldest first, as they came.
        new.reverse();
        let found_some = !new.is_empty();
        for ids in new.chunks(MAX_PAGE) {
            let mut left = ids.to_vec();
            // A page of large events holds not all that were asked for.
            while !left.is_empty() {
                let events = load(reader, &left, now).await?;
                left.retain(|id| !events.iter().any(|event| event.id == *id));
                self.tell(events.iter().map(LiveEvent::from));
                if events.is_empty() {
                    break;
                }
            }
        }
        let mut kept = self.0.lock();
        if kept.looked == Some(looked) {
            kept.looked = Some(now);
        }
        Ok(found_some)
    }

    /// Whether anybody watches; where nobody does, nothing is kept.
    fn is_looked_for(&self) -> bool {
        let mut kept = self.0.lock();
        let is_watched = self.is_watched();
        if !is_watched {
            kept.forget();
        }
        is_watched
    }

    fn is_watched(&self) -> bool {
        self.0.next.receiver_count() > 0
    }

    fn tell(&self, events: impl IntoIterator<Item = LiveEvent>) {
        let at = Instant::now();
        let mut kept = self.0.lock();
        for event in events {
            let seen = kept.seen.insert(event.id, Seen { at, is_told: true });
            if seen.is_none_or(|seen| !seen.is_told) {
                kept.push(Arc::new(event));
            }
        }
        let next = kept.end();
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
        counts: false,
    };
    Ok(reader.page(&filter, part).await?.events)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}

impl Kept {
    /// The number of the next event.
    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// Nobody watches any more.
    fn forget(&mut self) {
        *self = Self {
            first: self.end(),
            ..Self::default()
        };
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
        let next = kept.end().saturating_sub(but_for).max(self.number);
        let num_skipped = next - self.number;
        self.number = next;
        num_skipped
    }

    /// How many events have come that were not taken yet, with those that are no longer kept.
    #[cfg(feature = "http")]
    pub(crate) fn num_waiting(&self) -> u64 {
        self.shared.lock().end() - self.number
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
                        Content::Event(event) => Some(LiveEvent::from(event)),
                        Content::Rejected(_) => None,
                    }));
            }
            Ok(outcomes)
        })
    }
}

#[cfg(test)]
mod tests;
