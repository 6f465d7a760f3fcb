//! Writes one batch at a time and says what happened.
//!
//! Receives [`Flush`], [`Drain`]; sends nothing.
//! Guarantee: the reply to a `Flush` comes only after the transaction's end; `Ok` means committed.
//! Knows nothing of sources and receipts. When it panics, the batcher still has the batch.

use std::pin::pin;
use std::sync::Arc;

use actix::prelude::*;
use futures_util::future::{Either, select};

use crate::failpoint;
use crate::lifeline::Lifeline;
use crate::messages::{Drain, Drained, Flush, Flushed, stops_when_retired};
use crate::status::error_chain;
use crate::store::{EventStore, StoreError};

/// The owner of one connection to the store.
pub struct DbWriterActor {
    store: Arc<dyn EventStore>,
    _lifeline: Lifeline,
}

impl DbWriterActor {
    /// A writer on a store of its own.
    pub fn new(store: Arc<dyn EventStore>, lifeline: Lifeline) -> Self {
        Self {
            store,
            _lifeline: lifeline,
        }
    }
}

impl Actor for DbWriterActor {
    type Context = Context<Self>;
}

impl Handler<Flush> for DbWriterActor {
    /// One at a time: the mailbox waits while a batch is being written.
    type Result = AtomicResponse<Self, Result<Flushed, StoreError>>;

    fn handle(&mut self, flush: Flush, _: &mut Self::Context) -> Self::Result {
        let Flush { batch, upcoming } = flush;
        let store = Arc::clone(&self.store);
        let write = async move {
            failpoint::pass("writer::before-write");
            let prepare = async {
                if let Ok(upcoming) = upcoming.await {
                    store.prepare(upcoming).await;
                }
            };
            // The database works on the one while the other is made ready here.
            let write = store.write(Arc::clone(&batch));
            let outcomes = match select(write, pin!(prepare)).await {
                Either::Left((outcomes, _)) => outcomes,
                Either::Right(((), write)) => write.await,
            }?;
            failpoint::pass("writer::after-commit");
            if outcomes.len() != batch.len() {
                return Err(StoreError::unavailable(format!(
                    "the store told {} outcomes for a batch of {}",
                    outcomes.len(),
                    batch.len()
                )));
            }
            Ok(outcomes.iter().collect())
        };
        AtomicResponse::new(Box::pin(write.into_actor(self)))
    }
}

impl Handler<Drain> for DbWriterActor {
    type Result = AtomicResponse<Self, Drained>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let store = Arc::clone(&self.store);
        let close = async move {
            if let Err(error) = store.close().await {
                log::warn!(
                    "the store did not close cleanly error={}",
                    error_chain(&error)
                );
            }
            Drained { released: 0 }
        };
        AtomicResponse::new(Box::pin(close.into_actor(self).map(|drained, _, ctx| {
            ctx.stop();
            drained
        })))
    }
}

stops_when_retired!(DbWriterActor);

#[cfg(test)]
mod tests;
