//! A batch as a store sees it: entries that are written in one transaction.

use std::fmt;
use std::sync::Arc;

use crate::delivery::Entry;

/// A batch's place in one pipeline generation: the number of its first entry, counted from 1. So a
/// half of a batch has a place too.
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
    /// The store's own code.
    pub code: Option<String>,
}

/// Entries that are written in one transaction.
#[derive(Clone)]
pub struct Batch {
    /// Which one.
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

    /// The entries.
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// How many entries.
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
