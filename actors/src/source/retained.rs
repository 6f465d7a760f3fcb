//! The messages of a source that keeps them itself until they are acknowledged. Plain data, no waiting.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::delivery::Receipt;

use super::{Body, Chunk, Message, More, Permit};

/// What a source keeps of a message: its [`Body`], or something of its own that has one.
pub trait Retain {
    /// What it counts for in a [`Permit`].
    fn num_bytes(&self) -> usize;

    /// As it is handed out, which may be more than once.
    fn body(&self) -> Body;

    /// Whether another process was given it before.
    fn came_before(&self) -> bool {
        false
    }
}

impl Retain for Body {
    fn num_bytes(&self) -> usize {
        Self::num_bytes(self)
    }

    fn body(&self) -> Body {
        match self {
            Self::Raw { position, data } => Self::Raw {
                position: position.clone(),
                data: data.clone(),
            },
            Self::Entry(entry) => Self::Entry(Arc::clone(entry)),
        }
    }
}

/// Messages in the order of their receipts, each kept until it is acknowledged.
///
/// It is what a source needs of state to hand out within a [`Permit`], and again after a rewind.
#[derive(Debug)]
pub struct Retained<T> {
    messages: BTreeMap<u64, T>,
    next_receipt: u64,
    /// The first receipt that is to be handed out next: everything before it is handed out.
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
    pub fn push(&mut self, message: T) -> Receipt {
        let receipt = self.next_receipt;
        self.next_receipt += 1;
        self.messages.insert(receipt, message);
        Receipt(receipt)
    }

    pub(crate) fn get_mut(&mut self, receipt: Receipt) -> Option<&mut T> {
        self.messages.get_mut(&receipt.0)
    }

    pub(crate) fn handed_out(&self, receipt: Receipt) -> Option<&T> {
        let known = receipt.0 < self.handed_out;
        self.messages.get(&receipt.0).filter(|_| known)
    }

    /// How many messages are kept, handed out or not.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether all that came is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn next_receipt(&self) -> Receipt {
        Receipt(self.next_receipt)
    }

    /// Hands out the next messages within the permit; `None` if there are none now. One that is larger comes
    /// alone. `when_empty` is what to expect if nothing is left behind the chunk.
    pub fn hand_out(&mut self, permit: Permit, when_empty: More) -> Option<Chunk> {
        let mut messages = Vec::new();
        let mut num_bytes = 0_usize;
        let mut more = when_empty;
        for (&receipt, message) in self.messages.range(self.cursor..) {
            let with_this = num_bytes.saturating_add(message.num_bytes());
            if !permit.covers(messages.len() + 1, with_this) {
                more = More::Ready;
                break;
            }
            num_bytes = with_this;
            messages.push(Message {
                receipt: Receipt(receipt),
                redelivered: receipt < self.handed_out || message.came_before(),
                body: message.body(),
            });
        }
        let Some(last) = messages.last() else {
            return (more == More::Ended).then(|| Chunk::nothing(More::Ended));
        };
        self.cursor = last.receipt.0 + 1;
        self.handed_out = self.handed_out.max(self.cursor);
        Some(Chunk { messages, more })
    }

    /// Lets go of a message that was handed out; `None` if the receipt is not known.
    pub fn acknowledge(&mut self, receipt: Receipt) -> Option<T> {
        if receipt.0 >= self.handed_out {
            return None;
        }
        self.messages.remove(&receipt.0)
    }

    /// The same for several; receipts that are not known are ignored.
    pub fn acknowledge_all(&mut self, receipts: &[Receipt]) {
        for receipt in receipts {
            self.acknowledge(*receipt);
        }
    }

    #[cfg(feature = "nats")]
    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.messages.values_mut()
    }

    /// Has all that was handed out and is not acknowledged handed out again, before anything else.
    pub fn rewind(&mut self) {
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
