//! Whether something has happened lately.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Writing counts as going on for this long after a batch.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Tells a trimmer whether stores that were opened together with its own are writing, and how much.
#[derive(Default)]
pub(super) struct Writing {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    last: Option<Instant>,
    /// Since when events are counted, and how many there were.
    counted: Option<(Instant, usize)>,
    /// Events a second, in the time that was counted before.
    before: f64,
}

impl Writing {
    /// A batch is being written, or was.
    pub(super) fn note(&self) {
        self.lock().last = Some(Instant::now());
    }

    /// So many events have been written.
    pub(super) fn wrote(&self, num_events: usize) {
        let mut seen = self.lock();
        let now = Instant::now();
        seen.last = Some(now);
        let (since, num) = seen.counted.unwrap_or((now, 0));
        let took = now - since;
        if took < BUSY_FOR {
            seen.counted = Some((since, num + num_events));
        } else {
            seen.before = num as f64 / took.as_secs_f64();
            seen.counted = Some((now, num_events));
        }
    }

    /// Whether one has been written lately.
    pub(super) fn is_going_on(&self) -> bool {
        self.lock()
            .last
            .is_some_and(|last| last.elapsed() < BUSY_FOR)
    }

    /// Events a second; more than that in the first second after a pause is not noticed at once.
    pub(super) fn events_per_second(&self) -> f64 {
        let seen = self.lock();
        let Some((since, num)) = seen.counted else {
            return 0.0;
        };
        let elapsed = since.elapsed();
        if elapsed < BUSY_FOR {
            seen.before.max(num as f64)
        } else {
            num as f64 / elapsed.as_secs_f64()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix::test]
    async fn writing_goes_on_for_a_second_after_a_batch() {
        tokio::time::pause();
        let writing = Writing::default();
        assert!(!writing.is_going_on());
        writing.note();
        tokio::time::advance(Duration::from_millis(900)).await;
        assert!(writing.is_going_on());
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(!writing.is_going_on());
    }

    #[actix::test]
    async fn tells_events_a_second() {
        tokio::time::pause();
        let writing = Writing::default();
        assert_eq!(writing.events_per_second(), 0.0);
        for _ in 0..25 {
            writing.wrote(100);
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert_eq!(writing.events_per_second(), 1_000.0);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(writing.events_per_second() < 100.0);
    }
}
