//! How a batcher works.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::batch_queue::BatchLimits;
use crate::credit::Credit;
use crate::isolation::Allowance;
use crate::source::Permit;

/// When batches leave, and how much may be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatcherSettings {
    /// Events in a batch at most (1,000). More make a transaction longer, fewer make more of them.
    pub max_events: NonZeroUsize,
    /// Bytes in a batch at most (8 MiB); a larger event makes a batch of its own.
    pub max_bytes: NonZeroUsize,
    /// How long to wait for a source that had more (5 ms).
    pub linger: Duration,
    /// How long an event may wait for its batch to fill (1 s).
    pub max_age: Duration,
    /// Bytes in flight at most (64 MiB), plus the largest event of each source.
    pub max_bytes_in_flight: NonZeroUsize,
    /// Delays between attempts to write.
    pub backoff: Backoff,
    /// Whether reading pauses while the database refuses nearly everything (yes). Switch it off for
    /// sources that come to an end: it would only delay that.
    pub pauses_when_refused: bool,
}

impl Default for BatcherSettings {
    fn default() -> Self {
        const fn at_least_one(count: usize) -> NonZeroUsize {
            match NonZeroUsize::new(count) {
                Some(count) => count,
                None => NonZeroUsize::MIN,
            }
        }
        Self {
            max_events: at_least_one(1_000),
            max_bytes: at_least_one(8 << 20),
            linger: Duration::from_millis(5),
            max_age: Duration::from_secs(1),
            max_bytes_in_flight: at_least_one(64 << 20),
            backoff: Backoff::default(),
            pauses_when_refused: true,
        }
    }
}

impl BatcherSettings {
    pub(super) fn credit(&self, num_writers: usize, num_sources: usize) -> Credit {
        let largest = Permit {
            max_messages: self.max_events.get(),
            max_bytes: self.max_bytes.get(),
        };
        let max_messages = (num_writers + 2).saturating_mul(self.max_events.get());
        Credit::new(
            max_messages,
            self.max_bytes_in_flight.get(),
            largest,
            num_sources,
        )
    }

    /// Suspects are few, or the guard against refusals pauses reading. Their bytes are twice as many as may be
    /// in flight: with fewer, two large ones would have a third one stop all reading.
    pub(super) fn allowance(&self) -> Allowance {
        const MAX_SUSPECTS: usize = 100;
        Allowance::new(
            MAX_SUSPECTS,
            self.max_bytes_in_flight.get().saturating_mul(2),
        )
    }

    pub(super) fn limits(&self) -> BatchLimits {
        BatchLimits {
            max_events: self.max_events,
            max_bytes: self.max_bytes,
            linger: self.linger,
            max_age: self.max_age,
        }
    }
}
