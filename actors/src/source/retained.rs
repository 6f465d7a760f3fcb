//! The messages of a source that keeps them itself until they are acknowledged. Plain data, no waiting.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::delivery::Receipt;

use super::{Body, Chunk, Message, More, Permit};

/// Something that a source keeps until its receipt comes back.
pub(crate) trait Retain {
    /// Its size in a permit.
    fn num_bytes(&self) -> usize;

    /// A cheap copy, to be handed out.
    fn body(&self) -> Body;
}

/// Messages in the order of their receipts, each kept until it is acknowledged.
///
/// Messages are handed out in that order, so one cursor tells what was handed out: everything
/// before it. A rewind moves the cursor back to the first message that is still here.
#[derive(Debug)]
pub(crate) struct Retained<T> {
    messages: BTreeMap<u64, T>,
    next_receipt: u64,
    /// The first receipt that is to be handed out next.
    cursor: u64,
    /// Receipts before this one have been handed out at least once.
    handed_out: u64,
}

impl<T> Default for Retained<T> {
    fn default() -> Self {
        Self {
            messages: BTreeMap::new(),
            next_receipt: 0,
            cursor: 0,
            handed_out: 0,
        }
    }
}

impl<T: Retain> Retained<T> {
    /// Adds a message behind all others.
    pub(crate) fn push(&mut self, message: T) -> Receipt {
        let receipt = self.next_receipt;
        self.next_receipt += 1;
        self.messages.insert(receipt, message);
        Receipt(receipt)
    }

    /// A message that is still here.
    pub(crate) fn get_mut(&mut self, receipt: Receipt) -> Option<&mut T> {
        self.messages.get_mut(&receipt.0)
    }

    /// A message that was handed out and is still here.
    pub(crate) fn handed_out(&self, receipt: Receipt) -> Option<&T> {
        let known = receipt.0 < self.handed_out;
        self.messages.get(&receipt.0).filter(|_| known)
    }

    /// How many messages are here, handed out or not.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The receipt that the next message will get.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn next_receipt(&self) -> Receipt {
        Receipt(self.next_receipt)
    }

    /// Hands out the next messages within the permit; `None` if there are none.
    ///
    /// The first message may exceed the permit's bytes; it then comes alone. `when_empty` is what
    /// to expect if nothing is left behind the chunk.
    pub(crate) fn hand_out(&mut self, permit: Permit, when_empty: More) -> Option<Chunk> {
        let mut messages = Vec::new();
        let mut num_bytes = 0_usize;
        let mut more = when_empty;
        for (&receipt, message) in self.messages.range(self.cursor..) {
            let with_this = num_bytes.saturating_add(message.num_bytes());
            let fits = messages.len() < permit.max_messages && with_this <= permit.max_bytes;
            if !fits && !messages.is_empty() {
                more = More::Ready;
                break;
            }
            num_bytes = with_this;
            messages.push(Message {
                receipt: Receipt(receipt),
                redelivered: receipt < self.handed_out,
                body: message.body(),
            });
        }
        let last = messages.last()?.receipt.0;
        self.cursor = last + 1;
        self.handed_out = self.handed_out.max(self.cursor);
        Some(Chunk { messages, more })
    }

    /// Lets go of a message that was handed out; `None` if the receipt is not known.
    pub(crate) fn acknowledge(&mut self, receipt: Receipt) -> Option<T> {
        if receipt.0 >= self.handed_out {
            return None;
        }
        self.messages.remove(&receipt.0)
    }

    /// Hands out again from the first message that is still here.
    pub(crate) fn rewind(&mut self) {
        let first = self
            .messages
            .range((Bound::Unbounded, Bound::Excluded(self.cursor)));
        if let Some((&first, _)) = { first }.next() {
            self.cursor = first;
        }
    }

    pub(crate) fn clear(&mut self) -> BTreeMap<u64, T> {
        std::mem::take(&mut self.messages)
    }
}
