//! Writes one batch at a time and says what happened.
//!
//! Receives [`Flush`], [`Drain`]; sends nothing.
//! Guarantee: the reply to a `Flush` comes only after the transaction's end; `Ok` means committed,
//! but for a rehearsal. A failure comes with whether the store takes anything at all, found out by
//! *controls* that are rolled back. When it panics, the batcher still has the batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::prelude::*;
use tokio::time::{Instant, sleep};

use crate::clock::Clock;
use crate::control;
use crate::delivery::{Batch, Entry};
use crate::failpoint;
use crate::isolation::Control;
use crate::lifeline::{Lifeline, close};
use crate::messages::{Drain, Drained, Flush, FlushError, Flushed, Purpose, stops_when_retired};
use crate::store::{EventStore, FaultKind, Outcome, StoreError};

/// Controls before a suspect is tried: more trust a store less that is up and down, at a
/// transaction each.
const CONTROLS_BEFORE: usize = 3;
/// How long the store may take to come back after a suspect: one that kills the server each time
/// must not pass for an outage. Longer keeps a writer from other work.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(60);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

pub(crate) struct DbWriterActor {
    store: Arc<dyn EventStore>,
    clock: Arc<dyn Clock>,
    _lifeline: Lifeline,
}

impl DbWriterActor {
    pub(crate) fn new(
        store: Arc<dyn EventStore>,
        clock: Arc<dyn Clock>,
        lifeline: Lifeline,
    ) -> Self {
        Self {
            store,
            clock,
            _lifeline: lifeline,
        }
    }
}

struct Attempt {
    store: Arc<dyn EventStore>,
    clock: Arc<dyn Clock>,
    batch: Arc<Batch>,
    template: Option<Arc<Entry>>,
    controls_passed: Arc<AtomicBool>,
}

impl Attempt {
    async fn run(&self, purpose: Purpose) -> Result<Flushed, FlushError> {
        let outcomes = match purpose {
            Purpose::Write => self.write_or_control().await,
            Purpose::Retry { fault } => self.retry(fault).await,
            Purpose::Examine { fault } => self.examine(fault).await,
            Purpose::Rehearse => {
                let rehearsal = self.store.rehearse(Arc::clone(&self.batch));
                rehearsal.await.map_err(FlushError::from)
            }
        }?;
        let num_entries = self.batch.len();
        if outcomes.len() != num_entries {
            return Err(FlushError::from(StoreError::unavailable(format!(
                "the store told {} outcomes for a batch of {num_entries}",
                outcomes.len(),
            ))));
        }
        Ok(outcomes.iter().collect())
    }

    async fn write(&self) -> Result<Vec<Outcome>, StoreError> {
        failpoint::pass("writer::before-write");
        let outcomes = self.store.write(Arc::clone(&self.batch)).await?;
        failpoint::pass("writer::after-commit");
        Ok(outcomes)
    }

    /// Writes a batch; where the store said no, sees whether it takes anything.
    async fn write_or_control(&self) -> Result<Vec<Outcome>, FlushError> {
        let error = match self.write().await {
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
    async fn retry(&self, fault: FaultKind) -> Result<Vec<Outcome>, FlushError> {
        self.controls_before(1, fault).await?;
        self.write().await.map_err(|error| FlushError {
            error,
            control: Control::Passed,
        })
    }

    async fn examine(&self, fault: FaultKind) -> Result<Vec<Outcome>, FlushError> {
        self.controls_before(CONTROLS_BEFORE, fault).await?;
        let error = match self.write().await {
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

    async fn controls_before(&self, num: usize, fault: FaultKind) -> Result<(), FlushError> {
        for _ in 0..num {
            self.control(fault).await.map_err(|error| FlushError {
                error,
                control: Control::FailedBefore,
            })?;
        }
        self.controls_passed.store(true, Ordering::Release);
        Ok(())
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

    /// Whether the store takes an event like one that it took before, or one of ours.
    async fn control(&self, fault: FaultKind) -> Result<(), StoreError> {
        let first = self.batch.entries().first();
        // Where room is short only one as large tells anything.
        let template = self.template.as_deref();
        let template = template.filter(|_| fault != FaultKind::Resources);
        let is_like_taken = match template.and_then(control::like) {
            Some(like) => self.takes(like).await?,
            None => false,
        };
        // A path that drops large packets lets a small template through, so that one tells nothing of
        // a large event whose connection was lost.
        let is_larger =
            |template: &Entry| first.is_some_and(|first| first.num_bytes() > template.num_bytes());
        let size_matters = fault == FaultKind::Transient && template.is_some_and(is_larger);
        if is_like_taken && !size_matters {
            return Ok(());
        }
        // The store may refuse a copy for being one, and an event of ours by a rule. One of the two
        // is enough.
        let beside = |entry: &Arc<Entry>| control::beside(entry, fault, self.clock.now());
        let is_made_taken = match first.and_then(beside) {
            Some(made) => self.takes(made).await?,
            None => false,
        };
        if is_like_taken || is_made_taken {
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
            controls_passed: flush.controls_passed,
        };
        let purpose = flush.purpose;
        let flush = async move { attempt.run(purpose).await };
        AtomicResponse::new(Box::pin(flush.into_actor(self)))
    }
}

impl Handler<Drain> for DbWriterActor {
    type Result = AtomicResponse<Self, Drained>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let close = close(Arc::clone(&self.store), log::Level::Warn);
        AtomicResponse::new(Box::pin(close.into_actor(self).map(|drained, _, ctx| {
            ctx.stop();
            drained
        })))
    }
}

stops_when_retired!(DbWriterActor);

#[cfg(test)]
mod tests;
