//! A writer as the batcher sees it.

use actix::Recipient;

use crate::batch::HeldBatch;
use crate::messages::Flush;

/// One handing out of a batch; a reply to an earlier one is stale.
pub(super) type HandOut = u64;

/// One writer.
pub(super) struct Writer {
    pub(super) recipient: Recipient<Flush>,
    /// What it is writing, and under which number that was handed out; an idle one writes nothing.
    pub(super) writing: Option<(HandOut, HeldBatch)>,
    /// Its mailbox has closed; it gets nothing until it is replaced.
    pub(super) gone: bool,
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
}
