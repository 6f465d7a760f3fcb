//! Whether something has happened lately.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Writing counts as going on for this long after a batch.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Tells a trimmer whether stores that were opened together with its own are writing.
#[derive(Default)]
pub(super) struct Writing {
    last: Mutex<Option<Instant>>,
}

impl Writing {
    /// A batch is being written, or was.
    pub(super) fn note(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// Whether one has been written lately.
    pub(super) fn is_going_on(&self) -> bool {
        self.lock().is_some_and(|last| last.elapsed() < BUSY_FOR)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
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
}
