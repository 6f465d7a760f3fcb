//! How many events a second are stored.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Over how long events are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// The rate of late, of all who note what they have stored.
#[derive(Default)]
pub(super) struct Rate {
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    /// When the window began, and the events in it.
    window: Option<(Instant, usize)>,
    /// Events a second in the window before.
    before: f64,
}

impl Rate {
    /// So many have been stored.
    pub(super) fn note(&self, num_events: usize) {
        let mut counted = self.lock();
        let now = Instant::now();
        let (began, num) = counted.window.unwrap_or((now, 0));
        let took = now - began;
        if took < WINDOW {
            counted.window = Some((began, num + num_events));
        } else {
            counted.before = num as f64 / took.as_secs_f64();
            counted.window = Some((now, num_events));
        }
    }

    /// Events a second; within a window what the one before had, if that was more.
    pub(super) fn per_second(&self) -> f64 {
        let counted = self.lock();
        let Some((began, num)) = counted.window else {
            return 0.0;
        };
        let elapsed = began.elapsed();
        if elapsed < WINDOW {
            counted.before.max(num as f64 / WINDOW.as_secs_f64())
        } else {
            num as f64 / elapsed.as_secs_f64()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix::test]
    async fn follows_what_is_stored() {
        tokio::time::pause();
        let rate = Rate::default();
        assert_eq!(rate.per_second(), 0.0);
        for _ in 0..25 {
            rate.note(100);
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert_eq!(rate.per_second(), 1_000.0);
        rate.note(2_000);
        assert_eq!(rate.per_second(), 2_500.0, "more is noticed at once");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(rate.per_second() < 300.0);
    }
}
