//! Writes one batch at a time and says what happened.
//!
//! Receives [`Flush`], [`Drain`]; sends nothing.
//! Guarantee: the reply to a `Flush` comes only after the transaction's end; `Ok` means committed, but for
//! a rehearsal, after which nothing is.
//! A failure comes with a second answer: whether the store takes anything at all. It is found out by
//! *controls*, events of our own that are rolled back; what follows from it the batcher decides.
//! Knows nothing of sources and receipts. When it panics, the batcher still has the batch.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::{Either, select};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::batch::Batch;
use crate::clock::Clock;
use crate::control;
use crate::delivery::Entry;
use crate::failpoint;
use crate::isolation::Control;
use crate::lifeline::Lifeline;
use crate::messages::{Drain, Drained, Flush, FlushError, Flushed, Purpose, stops_when_retired};
use crate::status::error_chain;
use crate::store::{EventStore, FaultKind, Outcome, StoreError};

/// Controls before a suspect is tried. More make it less likely that a store which is up and down all the
/// time passes for one that is up, and cost a transaction each.
const CONTROLS_BEFORE: usize = 3;
/// How long the store may take to come back after a suspect was tried: one that kills the server each
/// time must not pass for an outage. Longer keeps a writer from other work where it is one.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(60);
/// How often that is asked.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The owner of one connection to the store.
pub struct DbWriterActor {
    store: Arc<dyn EventStore>,
    clock: Arc<dyn Clock>,
    _lifeline: Lifeline,
}

impl DbWriterActor {
    /// A writer on a store of its own.
    pub fn new(store: Arc<dyn EventStore>, clock: Arc<dyn Clock>, lifeline: Lifeline) -> Self {
        Self {
            store,
            clock,
            _lifeline: lifeline,
        }
    }
}

/// One flush on its way.
struct Attempt {
    store: Arc<dyn EventStore>,
    clock: Arc<dyn Clock>,
    batch: Arc<Batch>,
    template: Option<Arc<Entry>>,
}

impl Attempt {
    /// Writes, and makes the next batch ready while the database is at work.
    async fn write(
        &self,
        upcoming: oneshot::Receiver<Arc<Batch>>,
    ) -> Result<Vec<Outcome>, StoreError> {
        failpoint::pass("writer::before-write");
        let prepare = async {
            if let Ok(upcoming) = upcoming.await {
                self.store.prepare(upcoming).await;
            }
        };
        let write = self.store.write(Arc::clone(&self.batch));
        let outcomes = match select(write, pin!(prepare)).await {
            Either::Left((outcomes, _)) => outcomes,
            Either::Right(((), write)) => write.await,
        }?;
        failpoint::pass("writer::after-commit");
        Ok(outcomes)
    }

    /// Writes a batch; where the store said no, sees whether it takes anything.
    async fn write_or_control(
        &self,
        upcoming: oneshot::Receiver<Arc<Batch>>,
    ) -> Result<Vec<Outcome>, FlushError> {
        let error = match self.write(upcoming).await {
            Ok(outcomes) => return Ok(outcomes),
            Err(error) => error,
        };
        let control = match error.fault() {
            // A store that was not reached, or was not heard of again, is not asked for more.
            None => Control::NotTried,
            Some(fault) => self.tried(fault.kind).await,
        };
        Err(FlushError { error, control })
    }

    /// Writes what has failed before, if the store takes a control. What fails behind one that passed does
    /// not fail because the store was away.
    async fn retry(
        &self,
        fault: FaultKind,
        upcoming: oneshot::Receiver<Arc<Batch>>,
    ) -> Result<Vec<Outcome>, FlushError> {
        self.control(fault).await.map_err(|error| FlushError {
            error,
            control: Control::FailedBefore,
        })?;
        self.write(upcoming).await.map_err(|error| FlushError {
            error,
            control: Control::Passed,
        })
    }

    /// Writes an event that has failed alone, between controls.
    async fn examine(
        &self,
        fault: FaultKind,
        upcoming: oneshot::Receiver<Arc<Batch>>,
    ) -> Result<Vec<Outcome>, FlushError> {
        for _ in 0..CONTROLS_BEFORE {
            self.control(fault).await.map_err(|error| FlushError {
                error,
                control: Control::FailedBefore,
            })?;
        }
        let error = match self.write(upcoming).await {
            Ok(outcomes) => return Ok(outcomes),
            Err(error) => error,
        };
        let control = match error.fault() {
            None => Control::Failed,
            Some(fault) if fault.ends_the_connection() => self.comes_back(fault.kind).await,
            Some(fault) => self.tried(fault.kind).await,
        };
        Err(FlushError { error, control })
    }

    /// Asks for as long as a server may take to start again.
    async fn comes_back(&self, fault: FaultKind) -> Control {
        let started = Instant::now();
        loop {
            if self.control(fault).await.is_ok() {
                return Control::Passed;
            }
            if started.elapsed() > COMES_BACK_WITHIN {
                return Control::Failed;
            }
            sleep(ASK_AGAIN_AFTER).await;
        }
    }

    async fn tried(&self, fault: FaultKind) -> Control {
        match self.control(fault).await {
            Ok(()) => Control::Passed,
            Err(_) => Control::Failed,
        }
    }

    /// Whether the store takes an event like one that it took lately, or one of ours.
    async fn control(&self, fault: FaultKind) -> Result<(), StoreError> {
        // Where room is short only one as large tells anything.
        let template = self.template.as_deref();
        let template = template.filter(|_| fault != FaultKind::Resources);
        if let Some(like) = template.and_then(control::like)
            && self.takes(like).await?
        {
            return Ok(());
        }
        // A copy may be refused for being one.
        let entries = self.batch.entries();
        let beside = |entry: &Arc<Entry>| control::beside(entry, fault, self.clock.now());
        if let Some(made) = entries.first().and_then(beside)
            && self.takes(made).await?
        {
            return Ok(());
        }
        Err(StoreError::unavailable(
            "the store refuses even an event that is only written to be rolled back: look for triggers \
             and policies on events and event_resources",
        ))
    }

    async fn takes(&self, control: Arc<Batch>) -> Result<bool, StoreError> {
        let outcomes = self.store.rehearse(control).await?;
        Ok(outcomes.iter().all(|one| *one == Outcome::Stored))
    }
}

impl Actor for DbWriterActor {
    type Context = Context<Self>;
}

impl Handler<Flush> for DbWriterActor {
    /// One at a time: the mailbox waits while a batch is being written.
    type Result = AtomicResponse<Self, Result<Flushed, FlushError>>;

    fn handle(&mut self, flush: Flush, _: &mut Self::Context) -> Self::Result {
        let attempt = Attempt {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            batch: flush.batch,
            template: flush.template,
        };
        let (purpose, upcoming) = (flush.purpose, flush.upcoming);
        let flush = async move {
            let outcomes = match purpose {
                Purpose::Write => attempt.write_or_control(upcoming).await,
                Purpose::Retry { fault } => attempt.retry(fault, upcoming).await,
                Purpose::Examine { fault } => attempt.examine(fault, upcoming).await,
                Purpose::Rehearse => {
                    let rehearsal = attempt.store.rehearse(Arc::clone(&attempt.batch));
                    rehearsal.await.map_err(FlushError::from)
                }
            }?;
            let num_entries = attempt.batch.len();
            if outcomes.len() != num_entries {
                return Err(FlushError::from(StoreError::unavailable(format!(
                    "the store told {} outcomes for a batch of {num_entries}",
                    outcomes.len(),
                ))));
            }
            Ok(outcomes.iter().collect())
        };
        AtomicResponse::new(Box::pin(flush.into_actor(self)))
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
