//! How long to wait before trying again.

use std::time::Duration;

/// Exponential delays with jitter and a cap; holds no state, so resetting is counting from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first delay, before jitter. Smaller only adds load to what is already in trouble.
    pub base: Duration,
    /// No delay is longer. Larger only makes the return after an outage slower.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(3),
        }
    }
}

impl Backoff {
    /// The delay after failure number `attempt`, counted from 1.
    ///
    /// `jitter` in `0.0..=1.0` spreads replicas that failed together: the delay lies between half
    /// of the full one and all of it.
    pub fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let full = self.base.saturating_mul(1_u32 << doublings).min(self.cap);
        full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }

    /// The delay after failure number `attempt`, with random jitter.
    pub fn random_delay(&self, attempt: u32) -> Duration {
        self.delay(attempt, fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grows_is_capped_and_starts_over() {
        let backoff = Backoff::default();
        let millis = |attempt| backoff.delay(attempt, 1.0).as_millis();
        assert_eq!(
            [1, 2, 3, 4, 5, 6, 7, 1].map(millis),
            [100, 200, 400, 800, 1600, 3000, 3000, 100]
        );
        assert_eq!(backoff.delay(1, 0.0), Duration::from_millis(50));
    }

    proptest! {
        #[test]
        fn never_exceeds_the_cap_nor_falls_below_half(attempt in 0_u32.., jitter in 0.0..=1.0) {
            let backoff = Backoff::default();
            let delay = backoff.delay(attempt, jitter);
            prop_assert!(delay <= backoff.cap);
            prop_assert!(delay >= backoff.base / 2);
            prop_assert!(backoff.delay(attempt.saturating_add(1), jitter) >= delay);
        }
    }
}
