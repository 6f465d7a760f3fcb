//! A rate limit for log lines about things that any client can make happen: without it, one that can
//! connect could fill the disk.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Allows one line in a time, with how many were suppressed since the last one.
#[derive(Debug)]
pub(super) struct RateLimitedLog {
    every: Duration,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    last_at: Option<Instant>,
    num_suppressed: u64,
}

impl RateLimitedLog {
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every,
            lines: Mutex::default(),
        }
    }

    /// Notes that it happened. If a line may be written, how many were suppressed since the last one.
    pub(super) fn happened(&self, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let is_soon = |last: Instant| now.saturating_duration_since(last) < self.every;
        if lines.last_at.is_some_and(is_soon) {
            lines.num_suppressed += 1;
            return None;
        }
        lines.last_at = Some(now);
        Some(std::mem::take(&mut lines.num_suppressed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVERY: Duration = Duration::from_secs(10);

    #[test]
    fn the_first_is_said_at_once_and_the_next_after_a_while_with_those_between() {
        let (log, start) = (RateLimitedLog::new(EVERY), Instant::now());
        let happened = |seconds| log.happened(start + Duration::from_secs(seconds));
        let said = [0, 0, 9, 10, 19, 100, 101].map(happened);
        assert_eq!(said, [Some(0), None, None, Some(2), None, Some(1), None]);
    }

    proptest! {
        #[test]
        fn no_two_lines_are_close_and_none_is_forgotten(
            pauses in prop::collection::vec(0_u64..15_000, 1..50),
        ) {
            let log = RateLimitedLog::new(EVERY);
            let mut now = Instant::now();
            let mut said: Vec<Instant> = Vec::new();
            let mut num_told = 0;
            for pause in &pauses {
                now += Duration::from_millis(*pause);
                if let Some(unsaid) = log.happened(now) {
                    prop_assert!(said.last().is_none_or(|last| now - *last >= EVERY));
                    said.push(now);
                    num_told += unsaid + 1;
                }
            }
            let unsaid = log.happened(now + EVERY).unwrap();
            prop_assert_eq!(num_told + unsaid, pauses.len() as u64);
        }
    }
}
