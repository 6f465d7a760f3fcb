//! A writer as the batcher sees it.

use std::sync::Arc;

use actix::Recipient;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::BatcherActor;
use crate::batch::{Batch, HeldBatch};
use crate::delivery::Entry;
use crate::messages::{Flush, Purpose};
use crate::store::FaultKind;

/// One handing out of a batch; a reply to an earlier one is stale.
pub(super) type HandOut = u64;

/// One writer.
pub(super) struct Writer {
    pub(super) recipient: Recipient<Flush>,
    /// What it is writing; an idle one writes nothing.
    writing: Option<Writing>,
    /// Its mailbox has closed; it gets nothing until it is replaced.
    pub(super) gone: bool,
}

/// A batch in a writer's hands.
struct Writing {
    hand_out: HandOut,
    held: HeldBatch,
    /// Takes the batch that comes next; used once.
    upcoming: Option<oneshot::Sender<Arc<Batch>>>,
}

impl Writer {
    pub(super) fn new(recipient: Recipient<Flush>) -> Self {
        Self {
            recipient,
            writing: None,
            gone: false,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_none() && !self.gone
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// What it is writing.
    pub(super) fn held(&self) -> Option<&HeldBatch> {
        self.writing.as_ref().map(|writing| &writing.held)
    }

    /// When the oldest entry of what it is writing came.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.writing.as_ref().map(|writing| writing.held.oldest)
    }

    /// When the oldest entry of what it is writing came, unless that is a suspect.
    pub(super) fn oldest_but_suspects(&self) -> Option<Instant> {
        let writing = self.writing.as_ref();
        let writing = writing.filter(|writing| writing.held.suspect.is_none());
        writing.map(|writing| writing.held.oldest)
    }

    /// Whether it is trying a suspect.
    pub(super) fn is_examining(&self) -> bool {
        let writing = self.writing.as_ref();
        writing.is_some_and(|writing| writing.held.suspect.is_some())
    }

    /// Notes what it is given, and returns how it is told.
    pub(super) fn begin(
        &mut self,
        hand_out: HandOut,
        held: HeldBatch,
        template: Option<Arc<Entry>>,
    ) -> Flush {
        let (sender, upcoming) = oneshot::channel();
        let batch = Arc::clone(&held.batch);
        let fault = held.failure.as_ref().and_then(|failure| failure.fault);
        let fault = fault.unwrap_or(FaultKind::Transient);
        let is_retry = held.failures > 0 && held.batch.condemned().is_none();
        let purpose = match held.suspect {
            Some(_) => Purpose::Examine { fault },
            None if is_retry => Purpose::Retry { fault },
            None => Purpose::Write,
        };
        self.writing = Some(Writing {
            hand_out,
            held,
            upcoming: Some(sender),
        });
        Flush {
            batch,
            purpose,
            template,
            upcoming,
        }
    }

    /// Takes back what it was given, if it was by this handing out.
    pub(super) fn end(&mut self, hand_out: HandOut) -> Option<HeldBatch> {
        let writing = self.writing.take_if(|of| of.hand_out == hand_out)?;
        Some(writing.held)
    }

    /// Takes back what it was given, whenever.
    pub(super) fn give_up(&mut self) -> Option<HeldBatch> {
        self.writing.take().map(|writing| writing.held)
    }

    fn can_be_told(&self) -> bool {
        let writing = self.writing.as_ref();
        writing.is_some_and(|writing| writing.upcoming.is_some())
    }

    fn tell(&mut self, batch: Arc<Batch>) {
        if let Some(upcoming) = self.writing.as_mut().and_then(|of| of.upcoming.take()) {
            // A writer that has just answered needs no hint.
            upcoming.send(batch).ok();
        }
    }
}

impl BatcherActor {
    /// Tells one of the busy writers which batch comes next, once that is certain.
    pub(super) fn announce_upcoming(&mut self) {
        let mut writers = self.writers.iter_mut();
        if let Some(writer) = writers.find(|writer| writer.can_be_told())
            && let Some(batch) = self.queue.announce(Instant::now())
        {
            writer.tell(batch);
        }
    }
}
