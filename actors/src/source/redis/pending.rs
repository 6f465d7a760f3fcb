//! Everything that was taken from the stream and is not done with: plain data, no waiting.
//!
//! An entry is in flight from the moment it is taken until its receipt comes back, then committed
//! until Redis has confirmed that it is acknowledged. What is pending in Redis and in neither set
//! was taken for us by a reply that never arrived, or rewound, and has to be read again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::delivery::Receipt;
use crate::source::{Body, Chunk, Message, More, Permit};

use super::stream_id::StreamId;

/// An entry as it was read, with its size in a permit.
pub(super) struct Fetched {
    pub(super) id: StreamId,
    pub(super) num_bytes: usize,
    pub(super) body: Body,
}

/// Consecutive own pending entries that have to be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: StreamId,
    pub(super) num: usize,
}

#[derive(Default)]
pub(super) struct Taken {
    in_flight: BTreeMap<StreamId, InFlight>,
    by_receipt: HashMap<Receipt, StreamId>,
    committed: BTreeSet<StreamId>,
    /// Confirmed while a reply was under way that may still show them as pending.
    settled: HashSet<StreamId>,
    watching: bool,
    /// Taken before by us or another; goes first.
    again: VecDeque<Waiting>,
    fresh: VecDeque<Waiting>,
    /// What was rewound has not been read again yet; nothing new goes out before it.
    rewinding: bool,
    next_receipt: u64,
    next_version: u64,
}

struct InFlight {
    stage: Stage,
    receipt: Option<Receipt>,
    /// Tells apart what was taken under the same id: a stream may be deleted and begin anew.
    version: u64,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Again,
    Fresh,
}

struct Waiting {
    line: Line,
    version: u64,
    redelivered: bool,
    entry: Fetched,
}

impl Taken {
    /// Entries that the group delivered for the first time. An id that is known has been used
    /// again by a stream that began anew, and the receipt of the old one is void.
    pub(super) fn take_new(&mut self, entries: Vec<Fetched>, now: Instant) {
        for entry in entries {
            let known = self.forget(entry.id);
            let version = self.insert(entry.id, None, now);
            self.fresh.push_back(Waiting {
                line: Line::Fresh,
                version,
                redelivered: known,
                entry,
            });
        }
    }

    /// Entries that the group delivered for the first time and that were read over. What is known by such
    /// an id is void as well, or they would not be read again.
    pub(super) fn leave_new(&mut self, left: &[(StreamId, usize)]) {
        for (id, _) in left {
            self.forget(*id);
            self.settled.remove(id);
        }
    }

    /// Entries that were pending, ours or claimed; those that we have already are left out.
    /// Returns how many are left.
    pub(super) fn take_again(&mut self, entries: Vec<Fetched>, now: Instant) -> usize {
        let before = self.again.len();
        for entry in entries {
            if self.is_done_with(entry.id) {
                continue;
            }
            let receipt = match self.in_flight.get(&entry.id) {
                Some(known) if known.stage != Stage::Rewound => continue,
                Some(known) => known.receipt,
                None => None,
            };
            let version = self.insert(entry.id, receipt, now);
            self.again.push_back(Waiting {
                line: Line::Again,
                version,
                redelivered: true,
                entry,
            });
        }
        self.again.len() - before
    }

    fn insert(&mut self, id: StreamId, receipt: Option<Receipt>, now: Instant) -> u64 {
        let version = self.next_version;
        self.next_version += 1;
        let entry = InFlight {
            stage: Stage::Waiting,
            receipt,
            version,
            kept_at: now,
        };
        self.in_flight.insert(id, entry);
        version
    }

    /// Whether it is acknowledged, confirmed or not.
    fn is_done_with(&self, id: StreamId) -> bool {
        self.committed.contains(&id) || self.settled.contains(&id)
    }

    fn forget(&mut self, id: StreamId) -> bool {
        let known = self.in_flight.remove(&id);
        if let Some(receipt) = known.as_ref().and_then(|known| known.receipt) {
            self.by_receipt.remove(&receipt);
        }
        // An old acknowledgement must not be sent for the new entry.
        self.committed.remove(&id) || known.is_some()
    }

    /// Hands out what waits, within the permit; `None` if nothing does, or if something that was
    /// rewound has to be read first.
    pub(super) fn hand_out(&mut self, permit: Permit, when_empty: More) -> Option<Chunk> {
        let mut messages = Vec::new();
        let mut num_bytes = 0_usize;
        let mut more = when_empty;
        while let Some(waiting) = self.next_waiting() {
            let with_this = num_bytes.saturating_add(waiting.entry.num_bytes);
            let fits = messages.len() < permit.max_messages && with_this <= permit.max_bytes;
            if !fits && !messages.is_empty() {
                more = More::Ready;
                self.put_back(waiting);
                break;
            }
            num_bytes = with_this;
            messages.push(self.handed_out(waiting));
        }
        (!messages.is_empty()).then_some(Chunk { messages, more })
    }

    /// The next that still waits: what was acknowledged or superseded meanwhile is dropped.
    fn next_waiting(&mut self) -> Option<Waiting> {
        loop {
            let waiting = match self.again.pop_front() {
                Some(waiting) => waiting,
                None if self.rewinding => return None,
                None => self.fresh.pop_front()?,
            };
            let current = self.in_flight.get(&waiting.entry.id);
            if current.is_some_and(|current| current.version == waiting.version) {
                return Some(waiting);
            }
        }
    }

    fn put_back(&mut self, waiting: Waiting) {
        match waiting.line {
            Line::Again => self.again.push_front(waiting),
            Line::Fresh => self.fresh.push_front(waiting),
        }
    }

    fn handed_out(&mut self, waiting: Waiting) -> Message {
        let id = waiting.entry.id;
        let mut new_receipt = || {
            let receipt = Receipt(self.next_receipt);
            self.next_receipt += 1;
            receipt
        };
        let receipt = match self.in_flight.get_mut(&id) {
            Some(entry) => {
                entry.stage = Stage::HandedOut;
                *entry.receipt.get_or_insert_with(new_receipt)
            }
            None => new_receipt(),
        };
        self.by_receipt.insert(receipt, id);
        Message {
            receipt,
            redelivered: waiting.redelivered,
            body: waiting.entry.body,
        }
    }

    /// Moves what is durable to the committed, and returns all of these: one command takes in
    /// what an earlier one could not.
    pub(super) fn commit(&mut self, receipts: &[Receipt]) -> Vec<StreamId> {
        for receipt in receipts {
            if let Some(id) = self.by_receipt.remove(receipt) {
                self.in_flight.remove(&id);
                self.committed.insert(id);
            }
        }
        self.committed()
    }

    /// Whose acknowledgement Redis has not confirmed.
    pub(super) fn committed(&self) -> Vec<StreamId> {
        self.committed.iter().copied().collect()
    }

    /// Redis has confirmed.
    pub(super) fn confirm(&mut self, ids: &[StreamId]) {
        for id in ids {
            if self.committed.remove(id) && self.watching {
                self.settled.insert(*id);
            }
        }
    }

    /// From here on replies are under way that may show as pending what is confirmed meanwhile.
    pub(super) fn watch(&mut self) {
        self.watching = true;
    }

    /// Those replies have been taken.
    pub(super) fn end_watch(&mut self) {
        self.watching = false;
        self.settled.clear();
    }

    /// Everything that was handed out is to be handed out again, before anything new.
    pub(super) fn rewind(&mut self) {
        for entry in self.in_flight.values_mut() {
            if entry.stage == Stage::HandedOut {
                entry.stage = Stage::Rewound;
                self.rewinding = true;
            }
        }
    }

    /// What of our pending entries, in their order, has to be read again. What was rewound and is
    /// no longer ours is forgotten: someone else has it, or it is acknowledged.
    pub(super) fn plan_recovery(&mut self, pending: &[StreamId]) -> VecDeque<Run> {
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
        let mut runs: VecDeque<Run> = VecDeque::new();
        let mut in_run = false;
        for &id in pending {
            let known = self.in_flight.get(&id);
            let unknown =
                known.is_none_or(|known| known.stage == Stage::Rewound) && !self.is_done_with(id);
            if !unknown {
                in_run = false;
            } else if let Some(run) = runs.back_mut().filter(|_| in_run) {
                run.num += 1;
            } else {
                in_run = true;
                runs.push_back(Run { first: id, num: 1 });
            }
        }
        runs
    }

    /// All that was rewound has been read again.
    pub(super) fn recovered(&mut self) {
        self.rewinding = false;
    }

    /// What Redis has not heard of for that long, so that others may soon think us dead.
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

    /// Whether we have it: what it says is here, or was handed out, or is durable.
    pub(super) fn has(&self, id: StreamId) -> bool {
        self.is_done_with(id)
            || self
                .in_flight
                .get(&id)
                .is_some_and(|known| known.stage != Stage::Rewound)
    }

    /// A pending entry whose text is gone from the stream: acknowledged without a receipt.
    pub(super) fn lost(&mut self, id: StreamId) {
        self.forget(id);
    }

    /// Lets go of everything: the group that it was taken from is no more, or we are.
    pub(super) fn clear(&mut self) {
        let Self {
            next_receipt,
            next_version,
            watching,
            ..
        } = *self;
        *self = Self {
            next_receipt,
            next_version,
            watching,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests;
