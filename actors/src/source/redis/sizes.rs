//! How many entries may be asked for, when only bytes may be taken and sizes are not yet known.

use std::num::NonZeroUsize;

use crate::source::Permit;

/// Entries of one read at most. More might all be huge, and Redis holds them until they are sent; with
/// fewer, both sides wait for a processor more often.
const MAX_COUNT: usize = 256;

const FIRST_GUESS: usize = 256 * 1024;

/// The average is over about so many events. Fewer, and it follows chance; more, and it is late to see
/// that events have become larger.
const AVERAGE_OVER: usize = 64;

/// The sizes that were seen stand for those that come next.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    average: Option<usize>,
    /// Reads that failed in a row. Each halves the count: what a slow line cannot bring within
    /// the time-out must not be asked for in the same amount for ever.
    failures: u32,
}

impl Sizes {
    pub(super) fn saw(&mut self, num_bytes: usize) {
        let average = self.average.unwrap_or(num_bytes);
        self.average = Some(average - average / AVERAGE_OVER + num_bytes / AVERAGE_OVER);
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// How many to ask for. Half of the bytes are for what is larger than the average; what is beyond the
    /// permit is skipped and read again. None where not even one is likely to fit.
    pub(super) fn expected(&self, permit: Permit) -> Option<NonZeroUsize> {
        let average = self.average.unwrap_or(FIRST_GUESS);
        let by_bytes = permit.max_bytes / average.saturating_mul(2).max(1);
        match by_bytes.min(permit.max_messages).min(MAX_COUNT) {
            0 => None,
            count => NonZeroUsize::new((count >> self.failures.min(9)).max(1)),
        }
    }

    pub(super) fn at_least_one(&self, permit: Permit) -> usize {
        self.expected(permit).map_or(1, NonZeroUsize::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERMIT: Permit = Permit {
        max_messages: 10_000,
        max_bytes: 1_000_000,
    };

    #[test]
    fn counts_by_the_average() {
        let mut sizes = Sizes::default();
        let expected = |sizes: &Sizes| sizes.expected(PERMIT).map_or(0, NonZeroUsize::get);
        assert_eq!(expected(&sizes), 1, "cautious before the first event");
        sizes.saw(10_000);
        assert_eq!(expected(&sizes), 50);
        sizes.saw(1_000_000);
        let after_a_large_one = expected(&sizes);
        assert!((15..50).contains(&after_a_large_one), "{after_a_large_one}");
        for _ in 0..1000 {
            sizes.saw(1_000_000);
        }
        assert_eq!(expected(&sizes), 0, "not even one");
        assert_eq!(sizes.at_least_one(PERMIT), 1);
        for _ in 0..1000 {
            sizes.saw(1_000);
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

    #[test]
    fn asks_for_less_after_failures() {
        let mut sizes = Sizes::default();
        sizes.saw(1);
        let counts: Vec<usize> = (0..11)
            .map(|_| {
                sizes.failed();
                sizes.at_least_one(PERMIT)
            })
            .collect();
        assert_eq!(counts[..4], [128, 64, 32, 16]);
        assert_eq!(counts[10], 1);
        sizes.succeeded();
        assert_eq!(sizes.at_least_one(PERMIT), MAX_COUNT);
    }
}
