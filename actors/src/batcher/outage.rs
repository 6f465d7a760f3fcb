//! How often batches go out while none of them can be written.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// Failures in a row after which it is the store that fails, rather than a batch.
const PATIENCE: u32 = 3;
/// So many attempts fit into the longest back-off. More would only load a store in trouble; with
/// fewer, a batch that alone always fails would keep the others from being tried.
const ATTEMPTS_IN_A_BACKOFF: u32 = 12;

/// Spaces attempts while nothing succeeds: each batch has a back-off of its own, and their attempts
/// would add up to hundreds a second.
#[derive(Debug)]
pub(super) struct Outage {
    pace: Duration,
    failures: u32,
    last_attempt: Option<Instant>,
    /// Whether that was one that had failed before.
    was_retry: bool,
}

impl Outage {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self {
            pace: backoff.cap / ATTEMPTS_IN_A_BACKOFF,
            failures: 0,
            last_attempt: None,
            was_retry: false,
        }
    }

    pub(super) fn tried(&mut self, now: Instant, is_retry: bool) {
        self.last_attempt = Some(now);
        self.was_retry = is_retry;
    }

    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// One was written: all others may go out at once.
    pub(super) fn ended(&mut self) {
        self.failures = 0;
    }

    /// Whether it is the turn of what was never tried, since many batches that fail alone would
    /// take all attempts.
    pub(super) fn prefers_new(&self) -> bool {
        self.failures >= PATIENCE && self.was_retry
    }

    pub(super) fn may_write(&self, now: Instant) -> Result<(), Instant> {
        match self.last_attempt.map(|last| last + self.pace) {
            Some(next) if self.failures >= PATIENCE && next > now => Err(next),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_spaced_once_it_is_the_store_that_fails() {
        let backoff = Backoff::default();
        let mut outage = Outage::new(backoff);
        let now = Instant::now();
        for _ in 0..PATIENCE {
            assert_eq!(outage.may_write(now), Ok(()));
            outage.tried(now, false);
            outage.failed();
        }
        let pace = backoff.cap / ATTEMPTS_IN_A_BACKOFF;
        assert_eq!(outage.may_write(now), Err(now + pace));
        assert_eq!(outage.may_write(now + pace), Ok(()));
        assert!(!outage.prefers_new(), "the last one was new");
        outage.tried(now, true);
        assert!(outage.prefers_new());
        outage.ended();
        assert_eq!(outage.may_write(now), Ok(()));
        assert!(!outage.prefers_new());
    }
}
