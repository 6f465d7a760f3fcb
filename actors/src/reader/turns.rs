//! How an adapter keeps those who read to their bounds.

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::{MAX_READ_TIME, MAX_READERS};
use crate::store::StoreError;

/// So many may read a database at a time; others wait for their turn.
pub(crate) struct Turns(Semaphore);

impl Turns {
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(MAX_READERS))
    }

    /// Waits for a turn, which lasts until it is dropped.
    pub(crate) async fn take(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        match timeout(MAX_READ_TIME, self.0.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(StoreError::unavailable(
                "others are reading the database; ask again in a moment",
            )),
        }
    }
}

/// The error of a statement that was given up.
pub(crate) fn too_slow() -> StoreError {
    StoreError::TooSlow {
        what: format!(
            "the database took longer than {} s to find that; ask for a shorter time or for less",
            MAX_READ_TIME.as_secs()
        ),
        code: None,
        source: None,
    }
}
