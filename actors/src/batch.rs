//! A batch, and the pure accumulation of deliveries into batches. No actix here.

use std::fmt;
use std::sync::Arc;

use crate::delivery::Entry;

/// A batch's place in the sequence of batches of one pipeline generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Entries that are written in one transaction.
#[derive(Clone)]
pub struct Batch {
    /// Which one.
    pub id: BatchId,
    entries: Vec<Arc<Entry>>,
    num_bytes: usize,
}

impl Batch {
    /// Of entries in the order in which they came.
    pub fn new(id: BatchId, entries: Vec<Arc<Entry>>) -> Self {
        let num_bytes = entries.iter().map(|entry| entry.num_bytes()).sum();
        Self {
            id,
            entries,
            num_bytes,
        }
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

/// Id and sizes only.
impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("id", &self.id.0)
            .field("len", &self.len())
            .field("num_bytes", &self.num_bytes)
            .finish()
    }
}
