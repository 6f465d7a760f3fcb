//! The bounds of an intake, and the places within them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{IntakeSettings, SubmitError};

/// How much room there is, and how much is left.
///
/// Semaphores are fair: a large entry at the head of the line is not overtaken for ever by small
/// ones. Both are taken in this order.
pub(super) struct Bounds {
    pub(super) max_events: usize,
    max_bytes: usize,
    events: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Bounds {
    pub(super) fn new(settings: IntakeSettings) -> Self {
        // A semaphore hands out at most this many permits at once.
        let limit = usize::try_from(u32::MAX)
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS);
        let max_events = settings.max_events.get().min(limit);
        let max_bytes = settings.max_bytes.get().min(limit);
        Self {
            max_events,
            max_bytes,
            events: Arc::new(Semaphore::new(max_events)),
            bytes: Arc::new(Semaphore::new(max_bytes)),
        }
    }

    /// What an entry of this size takes of the room. One that is larger than all of it takes all
    /// of it.
    pub(super) fn weight(&self, num_bytes: usize) -> usize {
        num_bytes.min(self.max_bytes)
    }

    pub(super) fn close(&self) {
        self.events.close();
        self.bytes.close();
    }

    /// Room for many, if there is, at once.
    pub(super) fn room_now(
        &self,
        num_events: usize,
        num_bytes: usize,
    ) -> Result<Room, SubmitError> {
        if num_events > self.max_events || num_bytes > self.max_bytes {
            return Err(SubmitError::TooLarge);
        }
        let take = |semaphore: &Arc<Semaphore>, num: usize| {
            Arc::clone(semaphore)
                .try_acquire_many_owned(as_permits(num))
                .map_err(|_| SubmitError::Full)
        };
        Ok(Room {
            events: Some(take(&self.events, num_events)?),
            bytes: Some(take(&self.bytes, num_bytes)?),
        })
    }

    pub(super) async fn room(&self, num_bytes: usize) -> Result<Room, SubmitError> {
        let take = async |semaphore: &Arc<Semaphore>, num: usize| {
            Arc::clone(semaphore)
                .acquire_many_owned(as_permits(num))
                .await
                .map_err(|_| SubmitError::Closed)
        };
        Ok(Room {
            events: Some(take(&self.events, 1).await?),
            bytes: Some(take(&self.bytes, num_bytes).await?),
        })
    }
}

/// Both bounds are at most `u32::MAX`, and so is everything that is compared with them.
fn as_permits(num: usize) -> u32 {
    u32::try_from(num).unwrap_or(u32::MAX)
}

/// A place in the intake; given back when dropped.
///
/// `None` only where a part was asked of more than there is, which the callers' sums rule out.
pub(super) struct Room {
    events: Option<OwnedSemaphorePermit>,
    bytes: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(super) fn split(&mut self, num_bytes: usize) -> Self {
        Self {
            events: self.events.as_mut().and_then(|events| events.split(1)),
            bytes: self.bytes.as_mut().and_then(|bytes| bytes.split(num_bytes)),
        }
    }
}
