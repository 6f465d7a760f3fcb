//! How a batcher works.

use std::num::NonZeroUsize;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::batch_queue::BatchLimits;
use crate::credit::Credit;
use crate::isolation::Allowance;
use crate::settings::{As, Count, LongerThanZero, Period, Size};
use crate::source::Permit;

/// When batches leave, and what follows a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BatcherSettings {
    /// Events in one transaction, 1,250 by default on SQLite; more is faster up to a few thousand, takes
    /// memory for four times as many, and repeats more after a failure.
    #[serde(with = "As::<Count>")]
    pub max_events: NonZeroUsize,
    /// Bytes in one transaction; a larger event goes alone.
    #[serde(with = "As::<Size>")]
    pub max_bytes: NonZeroUsize,
    /// How long an idle writer waits while a source that has said it has more delivers nothing; an event
    /// with nothing behind it is written at once.
    #[serde(with = "As::<Period>")]
    pub linger: Duration,
    /// No event waits longer than this for its batch to fill.
    #[serde(with = "As::<LongerThanZero>")]
    pub max_age: Duration,
    /// Delays between attempts to write.
    #[serde(skip)]
    pub backoff: Backoff,
    /// Whether reading pauses while the database refuses nearly everything (yes). Switch it off for
    /// sources that come to an end: it would only delay that.
    #[serde(skip)]
    pub pauses_when_refused: bool,
}

impl Default for BatcherSettings {
    fn default() -> Self {
        const MAX_EVENTS: NonZeroUsize = NonZeroUsize::new(1_000).unwrap();
        const MAX_BYTES: NonZeroUsize = NonZeroUsize::new(8 << 20).unwrap();
        Self {
            max_events: MAX_EVENTS,
            max_bytes: MAX_BYTES,
            linger: Duration::from_millis(5),
            max_age: Duration::from_secs(1),
            backoff: Backoff::default(),
            pauses_when_refused: true,
        }
    }
}

impl BatcherSettings {
    pub(super) fn credit(
        &self,
        max_bytes_in_flight: NonZeroUsize,
        num_writers: usize,
        num_sources: usize,
    ) -> Credit {
        let largest = Permit {
            max_messages: self.max_events.get(),
            max_bytes: self.max_bytes.get(),
        };
        let max_messages = (num_writers + 2).saturating_mul(self.max_events.get());
        Credit::new(
            max_messages,
            max_bytes_in_flight.get(),
            largest,
            num_sources,
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

/// Suspects are few, or the guard against refusals pauses reading. Two large ones must leave room
/// for a third, so their bytes are twice as many as may be in flight.
pub(super) fn allowance(max_bytes_in_flight: NonZeroUsize) -> Allowance {
    const MAX_SUSPECTS: usize = 100;
    Allowance::new(MAX_SUSPECTS, max_bytes_in_flight.get().saturating_mul(2))
}
