//! A writer as the batcher sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix::Recipient;

use crate::batch_queue::HeldBatch;
use crate::delivery::Entry;
use crate::isolation::Control;
use crate::messages::{Flush, Purpose};
use crate::store::FaultKind;

/// One handing out of a batch; a reply to an earlier one is stale.
pub(super) type HandOut = u64;

pub(super) struct Writer {
    pub(super) recipient: Recipient<Flush>,
    /// `None` while it is idle.
    writing: Option<Writing>,
    /// Its mailbox has closed; it gets nothing until it is replaced.
    pub(super) gone: bool,
}

pub(super) struct Writing {
    hand_out: HandOut,
    pub(super) held: HeldBatch,
    controls_passed: Arc<AtomicBool>,
}

impl Writing {
    pub(super) fn control_before_death(&self) -> Control {
        if self.controls_passed.load(Ordering::Acquire) {
            Control::Passed
        } else {
            Control::NotTried
        }
    }
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

    pub(super) fn held(&self) -> Option<&HeldBatch> {
        self.writing.as_ref().map(|writing| &writing.held)
    }

    pub(super) fn begin(
        &mut self,
        hand_out: HandOut,
        held: HeldBatch,
        template: Option<Arc<Entry>>,
    ) -> Flush {
        let batch = Arc::clone(&held.batch);
        let fault = held.failure.as_ref().and_then(|failure| failure.fault);
        let fault = fault.unwrap_or(FaultKind::Transient);
        let is_retry = held.failures > 0 && held.batch.condemned().is_none();
        let purpose = match held.suspect {
            Some(_) => Purpose::Examine { fault },
            None if is_retry => Purpose::Retry { fault },
            None => Purpose::Write,
        };
        let controls_passed = Arc::default();
        self.writing = Some(Writing {
            hand_out,
            held,
            controls_passed: Arc::clone(&controls_passed),
        });
        Flush {
            batch,
            purpose,
            template,
            controls_passed,
        }
    }

    pub(super) fn end(&mut self, hand_out: HandOut) -> Option<Writing> {
        self.writing.take_if(|of| of.hand_out == hand_out)
    }

    pub(super) fn give_up(&mut self) -> Option<Writing> {
        self.writing.take()
    }
}
