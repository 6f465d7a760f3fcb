//! A rate limit for one log line: it is written at once, and then once in a time with how many more
//! there were. Without it a busy stream, or any client, could fill the disk.

use std::time::Duration;

use tokio::time::Instant;

/// Longer tells later of more; shorter fills the log while nothing else happens.
pub(crate) const LOG_EVERY: Duration = Duration::from_secs(60);

/// The occurrences that no log line has counted yet.
#[derive(Debug)]
pub(crate) struct RateLimitedLog {
    every: Duration,
    num: u64,
    /// When a line was written last, if less than `every` ago when this was last asked.
    logged_at: Option<Instant>,
}

impl Default for RateLimitedLog {
    fn default() -> Self {
        Self::new(LOG_EVERY)
    }
}

impl RateLimitedLog {
    pub(crate) fn new(every: Duration) -> Self {
        Self {
            every,
            num: 0,
            logged_at: None,
        }
    }

    /// Adds some; returns how many to log now, if it is time.
    pub(crate) fn add(&mut self, num: u64, now: Instant) -> Option<u64> {
        self.num = self.num.saturating_add(num);
        self.due(now)
    }

    /// How many to log now, if it is time and there are any.
    pub(crate) fn due(&mut self, now: Instant) -> Option<u64> {
        let is_recent = |at: Instant| now.duration_since(at) < self.every;
        if self.logged_at.is_some_and(is_recent) {
            return None;
        }
        self.logged_at = (self.num > 0).then_some(now);
        self.rest()
    }

    /// How many to log now because no later line will.
    pub(crate) fn rest(&mut self) -> Option<u64> {
        let num = std::mem::take(&mut self.num);
        (num > 0).then_some(num)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn logs_at_once_then_once_a_minute_with_all_that_came_since() {
        let mut limited = RateLimitedLog::default();
        let began = Instant::now();
        assert_eq!(limited.add(0, began), None);
        assert_eq!(limited.add(2, began), Some(2));
        let soon = began + LOG_EVERY / 2;
        assert_eq!([limited.add(3, soon), limited.add(4, soon)], [None, None]);
        let over = began + LOG_EVERY;
        assert_eq!(limited.due(over), Some(7), "the minute is over");
        assert_eq!(limited.due(over + LOG_EVERY), None, "nothing came since");
        let next = over + LOG_EVERY;
        assert_eq!(
            limited.add(1, next),
            Some(1),
            "so the next is logged at once"
        );
        assert_eq!(limited.add(5, next), None);
        assert_eq!(limited.rest(), Some(5), "at the end");
        assert_eq!(limited.rest(), None);
    }

    proptest! {
        #[test]
        fn no_two_lines_are_close_and_none_is_forgotten(
            pauses in prop::collection::vec(0_u64..15_000, 1..50),
        ) {
            const EVERY: Duration = Duration::from_secs(10);
            let mut limited = RateLimitedLog::new(EVERY);
            let mut now = Instant::now();
            let mut last: Option<Instant> = None;
            let mut num_told = 0;
            for pause in &pauses {
                now += Duration::from_millis(*pause);
                if let Some(num) = limited.add(1, now) {
                    prop_assert!(last.is_none_or(|last| now - last >= EVERY));
                    last = Some(now);
                    num_told += num;
                }
            }
            let untold = limited.due(now + EVERY).unwrap_or_default();
            prop_assert_eq!(num_told + untold, pauses.len() as u64);
        }
    }
}
