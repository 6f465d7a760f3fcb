//! The entries that are pending for this consumer, as far as it knows: plain data, no waiting.
//!
//! An entry is in flight from the moment it is read until its receipt comes back, then committed until
//! Redis has confirmed its acknowledgement. An entry that is pending in Redis and in neither of the two
//! came in a reply that was lost, was skipped, or was rewound: it has to be read again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::delivery::Receipt;
use crate::source::{Body, Chunk, Message, More, Permit};

use super::stream_id::StreamId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PendingRun {
    pub(super) first: StreamId,
    pub(super) num: usize,
}

#[derive(Default)]
pub(super) struct PendingEntries {
    in_flight: BTreeMap<StreamId, InFlight>,
    by_receipt: HashMap<Receipt, StreamId>,
    committed: BTreeSet<StreamId>,
    /// Confirmed while a reply was under way that may still show them as pending.
    confirmed_meanwhile: HashSet<StreamId>,
    reply_is_under_way: bool,
    /// Read before, by us or another consumer; go first.
    again: VecDeque<Message>,
    fresh: VecDeque<Message>,
    /// Of a master that was replaced. Nothing of it is acknowledged, so only their messages are known.
    of_old_master: VecDeque<Message>,
    /// Rewound entries have not been read again yet; nothing new goes out before them.
    is_rewinding: bool,
    next_receipt: u64,
}

struct InFlight {
    stage: Stage,
    /// Also tells apart what was read under the same id: a stream may be deleted and begin anew.
    receipt: Receipt,
    /// When Redis last heard that it is ours.
    kept_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    HandedOut,
    /// Handed out once, to be handed out again, its bytes no longer here.
    Rewound,
}

impl PendingEntries {
    /// Takes in an entry that the group delivered for the first time. An id that is known has been used
    /// again by a stream that began anew, and the receipt of the old one is void.
    pub(super) fn add_new(&mut self, id: StreamId, body: Body, now: Instant) {
        let redelivered = self.forget(id);
        let receipt = self.insert(id, None, now);
        self.fresh.push_back(Message {
            receipt,
            redelivered,
            body,
        });
    }

    /// A new entry was skipped. An older one with its id is void, or this one would not be read again.
    pub(super) fn skip_new(&mut self, id: StreamId) {
        self.forget(id);
        self.confirmed_meanwhile.remove(&id);
    }

    /// Takes in an entry that was pending, ours or claimed, unless it is here already; whether it was not.
    pub(super) fn add_again(&mut self, id: StreamId, body: Body, now: Instant) -> bool {
        if self.has(id) {
            return false;
        }
        let known = self.in_flight.get(&id).map(|known| known.receipt);
        let receipt = self.insert(id, known, now);
        self.again.push_back(Message {
            receipt,
            redelivered: true,
            body,
        });
        true
    }

    /// Takes in what an old master has; its id may be another entry's here.
    pub(super) fn add_of_old_master(&mut self, body: Body, redelivered: bool) {
        let receipt = self.new_receipt();
        self.of_old_master.push_back(Message {
            receipt,
            redelivered,
            body,
        });
    }

    /// Whether what was taken in of old masters, and waits, is less than that.
    pub(super) fn has_room_of_old_master(&self, room: Permit) -> bool {
        let num_bytes = self.of_old_master.iter().map(|m| m.body.num_bytes());
        self.of_old_master.len() < room.max_messages && num_bytes.sum::<usize>() < room.max_bytes
    }

    fn new_receipt(&mut self) -> Receipt {
        self.next_receipt += 1;
        Receipt(self.next_receipt - 1)
    }

    fn insert(&mut self, id: StreamId, known: Option<Receipt>, now: Instant) -> Receipt {
        let receipt = known.unwrap_or_else(|| self.new_receipt());
        let entry = InFlight {
            stage: Stage::Waiting,
            receipt,
            kept_at: now,
        };
        self.in_flight.insert(id, entry);
        self.by_receipt.insert(receipt, id);
        receipt
    }

    fn is_done_with(&self, id: StreamId) -> bool {
        self.committed.contains(&id) || self.confirmed_meanwhile.contains(&id)
    }

    pub(super) fn forget(&mut self, id: StreamId) -> bool {
        let known = self.in_flight.remove(&id);
        if let Some(known) = &known {
            self.by_receipt.remove(&known.receipt);
        }
        // An old acknowledgement must not be sent for the new entry.
        self.committed.remove(&id) || known.is_some()
    }

    /// What waits, within the permit; `None` if nothing does, or if what was rewound must be read first.
    pub(super) fn hand_out(&mut self, permit: Permit, when_empty: More) -> Option<Chunk> {
        let mut messages = Vec::new();
        let mut num_bytes = 0_usize;
        let mut more = when_empty;
        while let Some((queue, in_flight)) = self.next_waiting() {
            let Some(message) = queue.front() else { break };
            let with_this = num_bytes.saturating_add(message.body.num_bytes());
            let fits = messages.len() < permit.max_messages && with_this <= permit.max_bytes;
            if !fits && !messages.is_empty() {
                more = More::Ready;
                break;
            }
            num_bytes = with_this;
            if let Some(in_flight) = in_flight {
                in_flight.stage = Stage::HandedOut;
            }
            messages.extend(queue.pop_front());
        }
        (!messages.is_empty()).then_some(Chunk { messages, more })
    }

    /// The queue whose first message is next, and what is known of it. What is void meanwhile is dropped.
    fn next_waiting(&mut self) -> Option<(&mut VecDeque<Message>, Option<&mut InFlight>)> {
        if !self.of_old_master.is_empty() {
            return Some((&mut self.of_old_master, None));
        }
        let by_receipt = &self.by_receipt;
        for queue in [&mut self.again, &mut self.fresh] {
            let is_over = |first: &Message| !by_receipt.contains_key(&first.receipt);
            while queue.front().is_some_and(is_over) {
                queue.pop_front();
            }
        }
        let queue = if !self.again.is_empty() {
            &mut self.again
        } else if self.is_rewinding {
            return None;
        } else {
            &mut self.fresh
        };
        let id = by_receipt.get(&queue.front()?.receipt)?;
        Some((queue, Some(self.in_flight.get_mut(id)?)))
    }

    /// Returns all that is committed: one command takes in what an earlier one could not.
    pub(super) fn commit(&mut self, receipts: &[Receipt]) -> Vec<StreamId> {
        for receipt in receipts {
            if let Some(id) = self.by_receipt.remove(receipt) {
                self.in_flight.remove(&id);
                self.committed.insert(id);
            }
        }
        self.committed()
    }

    pub(super) fn committed(&self) -> Vec<StreamId> {
        self.committed.iter().copied().collect()
    }

    /// Those of these ids whose acknowledgement is still to be sent.
    pub(super) fn still_committed(&self, ids: &[StreamId]) -> Vec<StreamId> {
        let ids = ids.iter().copied();
        ids.filter(|id| self.committed.contains(id)).collect()
    }

    pub(super) fn confirm(&mut self, ids: &[StreamId]) {
        for id in ids {
            if self.committed.remove(id) && self.reply_is_under_way {
                self.confirmed_meanwhile.insert(*id);
            }
        }
    }

    /// From here on replies are under way that may show as pending what is confirmed meanwhile.
    pub(super) fn begin_replies(&mut self) {
        self.reply_is_under_way = true;
    }

    pub(super) fn end_replies(&mut self) {
        self.reply_is_under_way = false;
        self.confirmed_meanwhile.clear();
    }

    /// Everything that was handed out is to be handed out again, before anything new.
    pub(super) fn rewind(&mut self) {
        for entry in self.in_flight.values_mut() {
            if entry.stage == Stage::HandedOut {
                entry.stage = Stage::Rewound;
                self.is_rewinding = true;
            }
        }
    }

    /// Which of our pending entries, in their order, have to be read again. What was rewound and is no longer
    /// ours is forgotten.
    pub(super) fn plan_recovery(&mut self, pending: &[StreamId]) -> VecDeque<PendingRun> {
        let gone: Vec<StreamId> = self
            .in_flight
            .iter()
            .filter(|(id, entry)| {
                entry.stage == Stage::Rewound && pending.binary_search(id).is_err()
            })
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.forget(id);
        }
        let mut runs: VecDeque<PendingRun> = VecDeque::new();
        let mut in_run = false;
        for &id in pending {
            if self.has(id) {
                in_run = false;
            } else if let Some(run) = runs.back_mut().filter(|_| in_run) {
                run.num += 1;
            } else {
                in_run = true;
                runs.push_back(PendingRun { first: id, num: 1 });
            }
        }
        runs
    }

    pub(super) fn recovered(&mut self) {
        self.is_rewinding = false;
    }

    /// The entries that Redis has not heard of for that long, so that others may soon claim them.
    pub(super) fn to_keep(&self, now: Instant, longer_than: Duration) -> Vec<StreamId> {
        self.in_flight
            .iter()
            .filter(|(_, entry)| now.duration_since(entry.kept_at) >= longer_than)
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn kept(&mut self, ids: &[StreamId], now: Instant) {
        for id in ids {
            if let Some(entry) = self.in_flight.get_mut(id) {
                entry.kept_at = now;
            }
        }
    }

    /// Whether it is here, was handed out, or is durable.
    pub(super) fn has(&self, id: StreamId) -> bool {
        self.is_done_with(id)
            || self
                .in_flight
                .get(&id)
                .is_some_and(|known| known.stage != Stage::Rewound)
    }

    /// Lets go of everything: the group that it was read from is no more, or we are. What an old master has
    /// taken is nowhere else.
    pub(super) fn clear(&mut self) {
        *self = Self {
            of_old_master: std::mem::take(&mut self.of_old_master),
            next_receipt: self.next_receipt,
            reply_is_under_way: self.reply_is_under_way,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests;
