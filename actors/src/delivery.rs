//! One message of a source on its way through the pipeline, parsed or rejected, with its receipt; and the
//! batch in which it is written.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use crate::event::{EventLimits, Received, ReceivedEvent};

/// One of the pipeline's sources; an index into the list that it was started with.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceIndex(pub usize);

/// A source's own token for one message that it handed out; means nothing to anyone else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Receipt(pub u64);

/// Where a message stands in its source: a stream id, a line, a request. With the source's name and
/// the raw bytes it identifies a dead letter, so it is the same whenever the message comes again.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Position(Arc<str>);

impl Position {
    /// A position as text, such as `events.jsonl:17`.
    pub fn new(position: impl Into<Arc<str>>) -> Self {
        Self(position.into())
    }

    /// As it was made; what a dead letter stores.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A message that no parser accepts; it becomes a dead letter as durably as an event becomes a row.
#[derive(Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The message as it came.
    pub raw: Bytes,
    /// Why, for people; holds no values of the message.
    pub reason: String,
    /// The event's id, where that could be read.
    pub event_id: Option<Uuid>,
}

/// Sizes only, never the message.
impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection")
            .field("num_bytes", &self.raw.len())
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

/// A message after it was parsed.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// An event, to be stored.
    Event(ReceivedEvent),
    /// Not an event, to be kept as a dead letter.
    Rejected(Rejection),
}

/// One message as a store sees it: what it is and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The name of its source, as in dead letters and logs.
    pub source: Arc<str>,
    /// Where it stands in that source.
    pub position: Position,
    /// The event or the rejection.
    pub content: Content,
}

impl Entry {
    /// Of a message that is yet to be read: an event, or a rejection with the reason why not.
    pub fn parse(
        source: Arc<str>,
        position: Position,
        raw: Bytes,
        limits: &EventLimits,
        received: Received,
    ) -> Self {
        let content = match ReceivedEvent::parse_bytes(raw.clone(), limits, received) {
            Ok(event) => Content::Event(event),
            Err(error) => Content::Rejected(Rejection {
                raw,
                reason: error.reason,
                event_id: error.event_id,
            }),
        };
        Self {
            source,
            position,
            content,
        }
    }

    /// Of an event that this process has made; its id is its position.
    pub fn of_event(source: Arc<str>, event: ReceivedEvent) -> Self {
        Self {
            source,
            position: Position::new(event.id.to_string()),
            content: Content::Event(event),
        }
    }

    /// The message as it came, for a dead letter.
    pub fn raw(&self) -> &[u8] {
        match &self.content {
            Content::Event(event) => event.text().as_bytes(),
            Content::Rejected(rejection) => &rejection.raw,
        }
    }

    /// The event, if it is one.
    pub fn event(&self) -> Option<&ReceivedEvent> {
        match &self.content {
            Content::Event(event) => Some(event),
            Content::Rejected(_) => None,
        }
    }

    /// The id of the event, where that could be read.
    pub fn event_id(&self) -> Option<Uuid> {
        match &self.content {
            Content::Event(event) => Some(event.id),
            Content::Rejected(rejection) => rejection.event_id,
        }
    }

    /// The length of the raw message, which counts in every bound that is given in bytes.
    pub fn num_bytes(&self) -> usize {
        self.raw().len()
    }
}

/// An entry on its way to the database, with the receipt that its source waits for.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct Delivery {
    pub source: SourceIndex,
    /// Given back to the source once the entry is durable.
    pub receipt: Receipt,
    pub came: Instant,
    /// Shared, so that a source can keep what it handed out without a copy.
    pub entry: Arc<Entry>,
}

/// A batch's place in one pipeline generation: the number of its first entry, from 1. So a half has
/// one too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why an event became a dead letter that the store itself would never call its fault: it was refused
/// again and again while others were stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condemned {
    /// For people; holds no values of the event beyond what the store's own words hold.
    pub reason: String,
    /// What the store called it, such as an SQLSTATE.
    pub code: Option<String>,
}

/// Entries that are written in one transaction.
#[derive(Clone)]
pub struct Batch {
    /// Its place in the order in which entries came.
    pub id: BatchId,
    entries: Vec<Arc<Entry>>,
    num_bytes: usize,
    condemned: Option<Condemned>,
}

impl Batch {
    /// Of entries in the order in which they came.
    pub fn new(id: BatchId, entries: Vec<Arc<Entry>>) -> Self {
        let num_bytes = entries.iter().map(|entry| entry.num_bytes()).sum();
        Self {
            id,
            entries,
            num_bytes,
            condemned: None,
        }
    }

    /// The same entries, of which none is written as an event any more: each becomes a dead letter.
    pub fn condemn(self, condemned: Condemned) -> Self {
        Self {
            condemned: Some(condemned),
            ..self
        }
    }

    /// Why all of it is to become dead letters, if it is.
    pub fn condemned(&self) -> Option<&Condemned> {
        self.condemned.as_ref()
    }

    /// In the order in which they came.
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The number of entries, which is the number of outcomes that a store tells.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The sum of the raw messages' lengths.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("id", &self.id.0)
            .field("len", &self.len())
            .field("num_bytes", &self.num_bytes)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{event, event_entry, rejected_entry};

    #[test]
    fn an_entry_tells_its_events_id_where_that_could_be_read() {
        let id = Uuid::from_u128(7);
        assert_eq!(event_entry(event(id)).event_id(), Some(id));
        assert_eq!(rejected_entry("1", b"{", "no JSON").event_id(), None);
        let mut rejected = Entry::clone(&rejected_entry("2", b"{}", "occurred: missing"));
        if let Content::Rejected(rejection) = &mut rejected.content {
            rejection.event_id = Some(id);
        }
        assert_eq!(rejected.event_id(), Some(id));
    }

    #[test]
    fn a_batch_without_entries_is_empty() {
        assert!(Batch::new(BatchId(1), Vec::new()).is_empty());
        let entries = vec![event_entry(event(Uuid::from_u128(7)))];
        assert!(!Batch::new(BatchId(1), entries).is_empty());
    }
}
