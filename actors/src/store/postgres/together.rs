//! What the stores of one database that were opened together know of each other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::encoded::Prepared;

/// Writing counts as going on for this long after a batch.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Shared by them.
#[derive(Default)]
pub(super) struct Together {
    pub(super) prepared: Arc<Prepared>,
    last_write: Mutex<Option<Instant>>,
}

impl Together {
    /// A batch is being written, or was.
    pub(super) fn writes(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// Whether one of them has been writing lately.
    pub(super) fn are_writing(&self) -> bool {
        self.lock().is_some_and(|last| last.elapsed() < BUSY_FOR)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last_write
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix::test]
    async fn writing_goes_on_for_a_second_after_a_batch() {
        tokio::time::pause();
        let together = Together::default();
        assert!(!together.are_writing());
        together.writes();
        tokio::time::advance(Duration::from_millis(900)).await;
        assert!(together.are_writing());
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(!together.are_writing());
    }
}
