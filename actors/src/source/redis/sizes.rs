//! How many entries may be asked for, when only bytes may be taken and sizes are not yet known.

use std::time::Duration;

use tokio::time::Instant;

use crate::source::Permit;

/// Entries of one chunk at most: more is no faster.
pub(super) const MAX_COUNT: usize = 512;

/// Entries of one reply at most.
///
/// Sizes are known only afterwards, so this is what bounds the memory that a reply takes when large
/// events follow small ones: so many times the largest event. Fewer would cost a round trip more
/// for every so many entries.
pub(super) const MAX_REPLY: usize = 32;

/// What an event is assumed to have before any was seen.
const FIRST_GUESS: usize = 256 * 1024;

/// The largest event of the last minute stands for the next ones.
#[derive(Debug)]
pub(super) struct Sizes {
    current: Option<usize>,
    previous: Option<usize>,
    since: Instant,
    /// Reads that failed in a row. Each halves the count: what a slow line cannot bring within
    /// the time-out must not be asked for in the same amount for ever.
    failures: u32,
}

impl Sizes {
    const HALF: Duration = Duration::from_secs(30);

    pub(super) fn new(now: Instant) -> Self {
        Self {
            current: None,
            previous: None,
            since: now,
            failures: 0,
        }
    }

    pub(super) fn saw(&mut self, num_bytes: usize, now: Instant) {
        let halves = now.duration_since(self.since).as_secs() / Self::HALF.as_secs();
        if halves > 0 {
            self.previous = if halves == 1 { self.current } else { None };
            self.current = None;
            self.since = now;
        }
        self.current = Some(num_bytes.max(self.current.unwrap_or_default()));
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// How many entries to ask for with one command.
    pub(super) fn reply(&self, permit: Permit) -> usize {
        self.count(permit).min(MAX_REPLY)
    }

    /// How many entries to read for one chunk.
    pub(super) fn count(&self, permit: Permit) -> usize {
        let largest = self.current.max(self.previous).unwrap_or(FIRST_GUESS);
        let by_bytes = permit.max_bytes / largest.max(1);
        let count = by_bytes.min(permit.max_messages).clamp(1, MAX_COUNT);
        (count >> self.failures.min(9)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERMIT: Permit = Permit {
        max_messages: 10_000,
        max_bytes: 1_000_000,
    };

    #[tokio::test(start_paused = true)]
    async fn counts_by_the_largest_of_the_last_minute() {
        let mut sizes = Sizes::new(Instant::now());
        assert_eq!(sizes.count(PERMIT), 3, "cautious before the first event");
        sizes.saw(10, Instant::now());
        assert_eq!(sizes.count(PERMIT), MAX_COUNT);
        sizes.saw(100_000, Instant::now());
        sizes.saw(10, Instant::now());
        assert_eq!(sizes.count(PERMIT), 10);
        tokio::time::advance(Duration::from_secs(31)).await;
        sizes.saw(50_000, Instant::now());
        assert_eq!(sizes.count(PERMIT), 10);
        tokio::time::advance(Duration::from_secs(31)).await;
        sizes.saw(10, Instant::now());
        assert_eq!(sizes.count(PERMIT), 20);
        sizes.saw(5_000_000, Instant::now());
        assert_eq!(sizes.count(PERMIT), 1, "one is always asked for");
    }

    #[tokio::test(start_paused = true)]
    async fn no_reply_is_much_larger_than_allowed_even_if_large_events_follow_small_ones() {
        let mut sizes = Sizes::new(Instant::now());
        sizes.saw(10, Instant::now());
        assert_eq!(sizes.reply(PERMIT), MAX_REPLY);
        sizes.saw(100_000, Instant::now());
        assert_eq!(sizes.reply(PERMIT), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn asks_for_less_after_failures() {
        let mut sizes = Sizes::new(Instant::now());
        sizes.saw(1, Instant::now());
        let counts: Vec<usize> = (0..11)
            .map(|_| {
                sizes.failed();
                sizes.count(PERMIT)
            })
            .collect();
        assert_eq!(counts[..4], [256, 128, 64, 32]);
        assert_eq!(counts[10], 1);
        sizes.succeeded();
        assert_eq!(sizes.count(PERMIT), MAX_COUNT);
    }
}
