//! Whether the wall clock goes as time does: one that was put forward makes events expire at once,
//! which shows only in comparison with a clock that nobody sets. No actix here.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

/// More than any clock drifts or is slewed between two passes.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// How long a clock that was put forward must go right before it is believed. Shorter than the
/// default interval, so that one step costs one pass.
const BELIEVED_AFTER: Duration = Duration::from_secs(10 * 60);

#[derive(Debug)]
pub(super) struct Steadiness {
    seen: (DateTime<Utc>, Instant),
    /// When it was last found to have been put forward, and by how much.
    stepped: Option<(Instant, TimeDelta)>,
}

impl Steadiness {
    pub(super) fn new(wall: DateTime<Utc>, now: Instant) -> Self {
        Self {
            seen: (wall, now),
            stepped: None,
        }
    }

    /// An error says by how much the clock was put forward, until it has gone right for long
    /// enough. One that was put back is believed at once: its cutoffs keep more. A machine that
    /// slept looks like a clock that was put forward, and trims a little later.
    pub(super) fn look(&mut self, wall: DateTime<Utc>, now: Instant) -> Result<(), TimeDelta> {
        let (seen_wall, seen_at) = self.seen;
        self.seen = (wall, now);
        let passed = TimeDelta::from_std(now.duration_since(seen_at)).unwrap_or(TimeDelta::MAX);
        let ahead = (wall - seen_wall)
            .checked_sub(&passed)
            .unwrap_or(TimeDelta::MIN);
        if ahead > TOLERANCE {
            self.stepped = Some((now, ahead));
        }
        match self.stepped {
            Some((at, ahead)) if now.duration_since(at) < BELIEVED_AFTER => Err(ahead),
            _ => {
                self.stepped = None;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Looks after so many minutes, with a clock that was put by so many meanwhile.
    fn play(looks: &[(u32, i64)]) -> Vec<bool> {
        let mut wall = DateTime::UNIX_EPOCH;
        let mut now = Instant::now();
        let mut steadiness = Steadiness::new(wall, now);
        let looks = looks.iter().map(|&(minutes, step)| {
            now += MINUTE * minutes;
            wall += TimeDelta::minutes(i64::from(minutes) + step);
            steadiness.look(wall, now).is_ok()
        });
        looks.collect()
    }

    #[test]
    fn a_clock_that_was_put_forward_is_believed_once_it_has_gone_right() {
        assert_eq!(play(&[(15, 0), (15, 60), (15, 0)]), [true, false, true]);
        let every_minute = [(1, 60), (1, 0), (8, 0), (1, 0)];
        assert_eq!(play(&every_minute), [false, false, false, true]);
        let again = [(15, 60), (9, 60), (9, 0), (1, 0)];
        assert_eq!(play(&again), [false, false, false, true]);
    }

    #[test]
    fn one_that_was_put_back_keeps_more_and_is_believed() {
        assert_eq!(play(&[(15, -60), (15, 0)]), [true, true]);
        assert_eq!(play(&[(15, -60), (15, 60), (15, 0)]), [true, false, true]);
    }

    #[test]
    fn drift_is_no_step() {
        assert_eq!(play(&[(15, 4), (15, 5), (15, 5)]), [true; 3]);
        assert_eq!(play(&[(15, 6)]), [false]);
        let far = DateTime::<Utc>::MAX_UTC;
        let now = Instant::now();
        let mut steadiness = Steadiness::new(DateTime::<Utc>::MIN_UTC, now);
        assert!(steadiness.look(far, now).is_err());
    }

    proptest! {
        /// Whatever the clock does, one that is ahead by an hour is never believed at the first look.
        #[test]
        fn a_step_is_never_believed_at_once(
            before in prop::collection::vec((0_u32..60, -90_i64..90), 0..20),
            minutes in 0_u32..60,
        ) {
            let mut looks = before;
            looks.push((minutes, 60));
            prop_assert_eq!(play(&looks).pop(), Some(false));
            looks.push((10, 0));
            prop_assert_eq!(play(&looks).pop(), Some(true));
        }
    }
}
