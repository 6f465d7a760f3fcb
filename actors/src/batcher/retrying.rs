//! What happens to a batch that could not be written: kept, said once, tried again later.

use tokio::time::Instant;

use super::BatcherActor;
use crate::batch::{Failure, HeldBatch};
use crate::metrics::RetryKind;
use crate::status::error_chain;
use crate::store::StoreError;

impl BatcherActor {
    /// The batch is not durable: it goes back to the front and out again after a back-off.
    pub(super) fn retry_later(&mut self, mut held: HeldBatch, kind: RetryKind, error: &str) {
        let not_before = self.note_failure(&mut held, kind, error);
        self.queue.put_back(held, not_before);
    }

    /// The same for one that took too long.
    pub(super) fn retry_in_halves(&mut self, mut held: HeldBatch, error: &StoreError) {
        let not_before = self.note_failure(&mut held, error.into(), &error_chain(error));
        self.queue.put_back_in_halves(held, not_before);
    }

    /// Says that a batch could not be written; returns when it may be tried again.
    pub(super) fn note_failure(
        &mut self,
        held: &mut HeldBatch,
        kind: RetryKind,
        error: &str,
    ) -> Instant {
        held.failed(self.successes);
        held.failure = Some(Failure {
            fault: held.failure.take().and_then(|failure| failure.fault),
            error: error.into(),
        });
        self.outage.failed();
        let delay = self.settings.backoff.random_delay(held.failures);
        self.parts.metrics.retries(kind);
        let at = self.parts.clock.now();
        if self.parts.store.failed(error.to_owned(), at) {
            log::warn!(
                "a batch could not be written and is kept; retrying until it is batch.id={} \
                 batch.len={} retry_in={delay:?} error={error}",
                held.batch.id,
                held.batch.len(),
            );
        } else {
            log::debug!(
                "a batch could not be written batch.id={} failures={} retry_in={delay:?} \
                 error={error}",
                held.batch.id,
                held.failures,
            );
        }
        Instant::now() + delay
    }
}
