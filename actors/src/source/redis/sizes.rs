//! How many entries may be asked for, when only bytes may be taken and sizes are not yet known.

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::time::Instant;

use crate::source::Permit;

/// Entries of one read at most. Should all of them be huge, Redis would have to hold as many once more
/// until they are sent; with fewer, both sides wait for a processor more often.
const MAX_COUNT: usize = 256;

/// What an event is assumed to have before any was seen.
const FIRST_GUESS: usize = 256 * 1024;

/// The average is over about so many events. Fewer, and it follows chance; more, and it is late to see
/// that events have become larger.
const AVERAGE_OVER: usize = 64;

/// What was seen stands for what comes next.
#[derive(Debug)]
pub(super) struct Sizes {
    average: Option<usize>,
    /// The largest of this half of a minute, and of the one before.
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
            average: None,
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
        let average = self.average.unwrap_or(num_bytes);
        self.average = Some(average - average / AVERAGE_OVER + num_bytes / AVERAGE_OVER);
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// How many to ask for where what is beyond the permit can be read over. Half of the bytes are for
    /// what is larger than the average. None where not even one is likely to fit.
    pub(super) fn expected(&self, permit: Permit) -> Option<NonZeroUsize> {
        let average = self.average.unwrap_or(FIRST_GUESS);
        NonZeroUsize::new(self.within(permit, average.saturating_mul(2)))
    }

    /// How many to ask for where everything that comes has to be taken, however large.
    pub(super) fn certain(&self, permit: Permit) -> usize {
        let largest = self.current.max(self.previous);
        self.within(permit, largest.unwrap_or(FIRST_GUESS)).max(1)
    }

    fn within(&self, permit: Permit, num_bytes: usize) -> usize {
        let by_bytes = permit.max_bytes / num_bytes.max(1);
        match by_bytes.min(permit.max_messages).min(MAX_COUNT) {
            0 => 0,
            count => (count >> self.failures.min(9)).max(1),
        }
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
    async fn counts_by_the_largest_of_the_last_minute_where_all_has_to_be_taken() {
        let mut sizes = Sizes::new(Instant::now());
        assert_eq!(sizes.certain(PERMIT), 3, "cautious before the first event");
        sizes.saw(10, Instant::now());
        assert_eq!(sizes.certain(PERMIT), MAX_COUNT);
        sizes.saw(100_000, Instant::now());
        sizes.saw(10, Instant::now());
        assert_eq!(sizes.certain(PERMIT), 10);
        tokio::time::advance(Duration::from_secs(31)).await;
        sizes.saw(50_000, Instant::now());
        assert_eq!(sizes.certain(PERMIT), 10);
        tokio::time::advance(Duration::from_secs(31)).await;
        sizes.saw(10, Instant::now());
        assert_eq!(sizes.certain(PERMIT), 20);
        sizes.saw(5_000_000, Instant::now());
        assert_eq!(sizes.certain(PERMIT), 1, "one is always asked for");
    }

    #[tokio::test(start_paused = true)]
    async fn counts_by_the_average_where_the_rest_can_be_left() {
        let now = Instant::now();
        let mut sizes = Sizes::new(now);
        let expected = |sizes: &Sizes| sizes.expected(PERMIT).map_or(0, NonZeroUsize::get);
        assert_eq!(expected(&sizes), 1, "cautious before the first event");
        sizes.saw(10_000, now);
        assert_eq!(expected(&sizes), 50);
        sizes.saw(1_000_000, now);
        let after_a_large_one = expected(&sizes);
        assert!((15..50).contains(&after_a_large_one), "{after_a_large_one}");
        for _ in 0..1000 {
            sizes.saw(1_000_000, now);
        }
        assert_eq!(expected(&sizes), 0, "not even one");
        for _ in 0..1000 {
            sizes.saw(1_000, now);
        }
        assert_eq!(expected(&sizes), MAX_COUNT);
        let few = Permit {
            max_messages: 7,
            ..PERMIT
        };
        assert_eq!(sizes.expected(few), NonZeroUsize::new(7));
        let none = Permit {
            max_messages: 0,
            ..PERMIT
        };
        assert_eq!(sizes.expected(none), None);
    }

    #[tokio::test(start_paused = true)]
    async fn asks_for_less_after_failures() {
        let mut sizes = Sizes::new(Instant::now());
        sizes.saw(1, Instant::now());
        let counts: Vec<usize> = (0..11)
            .map(|_| {
                sizes.failed();
                let count = sizes.certain(PERMIT);
                assert_eq!(sizes.expected(PERMIT), NonZeroUsize::new(count));
                count
            })
            .collect();
        assert_eq!(counts[..4], [128, 64, 32, 16]);
        assert_eq!(counts[10], 1);
        sizes.succeeded();
        assert_eq!(sizes.certain(PERMIT), MAX_COUNT);
    }
}
