//! What a process has written to its archive.

use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// A handle on the numbers of an archive; clones share them.
#[derive(Debug, Clone, Default)]
pub struct ArchiveStats(Arc<Mutex<ArchiveStatus>>);

/// The numbers of an archive since this process started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchiveStatus {
    /// Files that readers see.
    pub num_files: u64,
    /// Events in them.
    pub num_events: u64,
    /// Their bytes.
    pub num_bytes: u64,
    /// Events that were removed from the tables because a file held them already.
    pub num_known: u64,
    /// Passes of retention that failed with the archive.
    pub num_failures: u64,
    /// Why the last pass failed, if it did.
    pub failure: Option<String>,
}

impl ArchiveStats {
    /// The numbers as they are now.
    pub fn status(&self) -> ArchiveStatus {
        lock(&self.0).clone()
    }
}

#[cfg(feature = "archive")]
impl ArchiveStats {
    pub(super) fn published(&self, content: &crate::store::archivable::FileContent) {
        let mut status = lock(&self.0);
        status.num_files += 1;
        status.num_events += content.num_events;
        status.num_bytes += content.num_bytes;
    }

    pub(super) fn known(&self, num_events: usize) {
        lock(&self.0).num_known += num_events as u64;
    }

    pub(super) fn failed(&self, what: String) {
        let mut status = lock(&self.0);
        status.num_failures += 1;
        status.failure = Some(what);
    }

    pub(super) fn works(&self) {
        lock(&self.0).failure = None;
    }
}
