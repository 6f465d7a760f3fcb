//! What is said of things that anybody can make happen: not each time, or whoever can connect could
//! fill the disk with it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Says at most once in a while that something happened, and then how often it happened unsaid.
#[derive(Debug)]
pub(super) struct Sparing {
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    said_at: Option<Instant>,
    num_unsaid: u64,
}

impl Sparing {
    /// For one line in this time.
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every,
            state: Mutex::default(),
        }
    }

    /// Notes that it happened; if it is to be said, how often it happened since it last was.
    pub(super) fn happened(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_soon = |said: Instant| now.saturating_duration_since(said) < self.every;
        if state.said_at.is_some_and(is_soon) {
            state.num_unsaid += 1;
            return None;
        }
        state.said_at = Some(now);
        Some(std::mem::take(&mut state.num_unsaid))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVERY: Duration = Duration::from_secs(10);

    #[test]
    fn the_first_is_said_at_once_and_the_next_after_a_while_with_those_between() {
        let (sparing, start) = (Sparing::new(EVERY), Instant::now());
        let happened = |seconds| sparing.happened(start + Duration::from_secs(seconds));
        let said = [0, 0, 9, 10, 19, 100, 101].map(happened);
        assert_eq!(said, [Some(0), None, None, Some(2), None, Some(1), None]);
    }

    proptest! {
        #[test]
        fn no_two_lines_are_close_and_none_is_forgotten(
            pauses in prop::collection::vec(0_u64..15_000, 1..50),
        ) {
            let sparing = Sparing::new(EVERY);
            let mut now = Instant::now();
            let mut said: Vec<Instant> = Vec::new();
            let mut num_told = 0;
            for pause in &pauses {
                now += Duration::from_millis(*pause);
                if let Some(unsaid) = sparing.happened(now) {
                    prop_assert!(said.last().is_none_or(|last| now - *last >= EVERY));
                    said.push(now);
                    num_told += unsaid + 1;
                }
            }
            let unsaid = sparing.happened(now + EVERY).unwrap();
            prop_assert_eq!(num_told + unsaid, pauses.len() as u64);
        }
    }
}
