//! How much a trimmer takes on at once: as much as it was told beside others, more while it is alone.
//!
//! Each step writes nearly all pages of the indexes whose keys have nothing to do with time, so that
//! steps of twice the size write little more, and half as often.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::store::MAX_GROWTH;

/// How long a transaction should take. Others wait as long for the lock; a step that finds the disk
/// slower than the one before must still end within about a second.
const AIM: Duration = Duration::from_millis(750);

/// How many times as many events as it was told a trimmer removes in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    growth: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { growth: 1.0 }
    }
}

impl Pace {
    /// How many events the next step may remove.
    pub(super) fn num_events(self, told: NonZeroUsize, is_alone: bool) -> NonZeroUsize {
        if !is_alone {
            return told;
        }
        // It is at most a few times what it was, and what is cut off is less than one event.
        let grown = (told.get() as f64 * self.growth) as usize;
        NonZeroUsize::new(grown).unwrap_or(told)
    }

    /// Learns from a transaction that removed so many events where it was told another number.
    pub(super) fn learn(&mut self, told: NonZeroUsize, num_events: NonZeroUsize, took: Duration) {
        let growth = num_events.get() as f64 / told.get() as f64;
        let ratio = AIM.as_secs_f64() / took.as_secs_f64().max(f64::MIN_POSITIVE);
        // One that was exceptionally quick or slow tells little of the next.
        let next = growth * ratio.clamp(0.5, 2.0);
        self.growth = next.clamp(1.0, f64::from(MAX_GROWTH));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: NonZeroUsize = NonZeroUsize::new(5_000).unwrap();

    /// The sizes of the steps of a pass of which each event takes so long.
    fn sizes(of_one: Duration, num_steps: usize) -> Vec<usize> {
        let mut pace = Pace::default();
        let step = |_| {
            let size = pace.num_events(TOLD, true);
            pace.learn(TOLD, size, of_one.mul_f64(size.get() as f64));
            size.get()
        };
        (0..num_steps).map(step).collect()
    }

    #[test]
    fn steps_grow_until_a_transaction_takes_long_enough() {
        let quick = Duration::from_micros(75);
        assert_eq!(sizes(quick, 4), [5_000, 10_000, 10_000, 10_000]);
        let quicker = Duration::from_micros(1);
        assert_eq!(
            sizes(quicker, 4),
            [5_000, 10_000, 20_000, 20_000],
            "a bound"
        );
    }

    #[test]
    fn a_slow_disk_makes_no_step_smaller_than_it_was_told() {
        let slow = Duration::from_micros(400);
        assert_eq!(sizes(slow, 3), [5_000, 5_000, 5_000]);
    }

    #[test]
    fn a_step_that_took_too_long_is_followed_by_a_smaller_one() {
        let mut pace = Pace::default();
        pace.learn(TOLD, NonZeroUsize::new(20_000).unwrap(), 2 * AIM);
        assert_eq!(pace.num_events(TOLD, true).get(), 10_000);
        pace.learn(TOLD, NonZeroUsize::new(10_000).unwrap(), 10 * AIM);
        assert_eq!(pace.num_events(TOLD, true).get(), 5_000);
    }

    #[test]
    fn beside_others_a_step_is_as_large_as_it_was_told() {
        let mut pace = Pace::default();
        pace.learn(TOLD, TOLD, Duration::ZERO);
        assert_eq!(pace.num_events(TOLD, true).get(), 10_000);
        assert_eq!(pace.num_events(TOLD, false), TOLD);
    }
}
