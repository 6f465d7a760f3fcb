//! The state of the stream as the source last saw it, for metrics and status.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::source::lock;

/// A handle on what the source knows about its stream; cheap to clone, for any thread.
#[derive(Debug, Clone, Default)]
pub struct NatsStats {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    status: NatsStatus,
    warnings: Vec<String>,
}

/// The state of the stream as the source last saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NatsStatus {
    /// Messages that the stream's limits removed before the consumer was given them, as far as that was seen.
    pub num_lost: u64,
    /// Messages that came although they had been given to this process or another before.
    pub num_redelivered: u64,
    /// How often the stream or the consumer had vanished and was there again.
    pub num_rejoined: u64,
    /// Messages that this process was given and that are not acknowledged.
    pub own_pending: u64,
    /// The same of all who share the consumer.
    pub consumer_pending: u64,
    /// Messages in the stream.
    pub stream_messages: u64,
    /// Their size.
    pub stream_bytes: u64,
    /// Messages that the consumer was not given yet.
    pub lag: u64,
    /// When the oldest message was stored that is not acknowledged, in milliseconds since 1970 by the
    /// server's clock; `None` if there is no such message.
    pub oldest_millis: Option<u64>,
    /// There may be one all the same: the server did not say when it was stored.
    pub is_oldest_unknown: bool,
}

impl NatsStats {
    /// The state as it was last seen.
    pub fn status(&self) -> NatsStatus {
        self.seen().status.clone()
    }

    /// Troubles that somebody should look at, although events are stored.
    pub fn warnings(&self) -> Vec<String> {
        self.seen().warnings.clone()
    }

    pub(super) fn update(&self, take_in: impl FnOnce(&mut NatsStatus)) {
        take_in(&mut self.seen().status);
    }

    /// What is to be looked at from now on; returns what was not before.
    pub(super) fn warn(&self, warnings: Vec<String>) -> Vec<String> {
        let mut seen = self.seen();
        let before = std::mem::replace(&mut seen.warnings, warnings);
        let new = seen.warnings.iter();
        new.filter(|warning| !before.contains(warning))
            .cloned()
            .collect()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }
}
