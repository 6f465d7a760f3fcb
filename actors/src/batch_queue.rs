//! Gathers deliveries into batches, and decides which batch is written next. No actix here.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use strum::{AsRefStr, VariantArray};
use tokio::time::Instant;

use crate::delivery::{Batch, BatchId, Delivery, Receipt, SourceIndex};
use crate::isolation::Suspect;
use crate::messages::{Ack, Flushed};
use crate::status::error_chain;
use crate::store::{FaultKind, StoreError};

/// When an open batch is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    pub max_events: NonZeroUsize,
    /// Bytes in a batch at most; a single larger entry makes a batch of its own.
    pub max_bytes: NonZeroUsize,
    /// How long to wait for a source that had more, since it last brought something.
    pub linger: Duration,
    /// How long the oldest entry may wait for the batch to fill.
    pub max_age: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, AsRefStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum FlushReason {
    MaxEvents,
    MaxBytes,
    /// The source had nothing more: waiting would only delay what there is.
    SourceIdle,
    /// The source had more, but did not bring it in time.
    Linger,
    MaxAge,
    Retry,
    Draining,
}

#[derive(Debug, Clone)]
pub struct HeldBatch {
    pub batch: Arc<Batch>,
    /// In the order of the entries.
    pub(crate) receipts: Vec<(SourceIndex, Receipt)>,
    pub(crate) failures: u32,
    /// Whether others were written between its last two failures: then it is not the store.
    pub(crate) is_stubborn: bool,
    failed_after: Option<u64>,
    pub(crate) failure: Option<Failure>,
    /// Set for a single event that failed while others were stored.
    pub(crate) suspect: Option<Suspect>,
    /// Whether it is a part of a batch that took too long while others were stored, or waited for a lock.
    pub(crate) is_narrowed: bool,
    /// Whether it counts against the allowance of suspects, and no longer as in flight.
    pub(crate) is_aside: bool,
    pub(crate) oldest: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Its likely cause, where the store said anything.
    pub(crate) fault: Option<FaultKind>,
    pub(crate) error: Arc<str>,
}

/// The batcher's next step for a writer that is idle.
#[derive(Debug)]
pub enum Next {
    Write(HeldBatch, FlushReason),
    /// Nothing is due before this moment, unless something changes.
    WaitUntil(Instant),
    Nothing,
}

impl HeldBatch {
    /// Notes that it could not be written. `fault` is what is known of that, if anything is, and
    /// `successes` counts the batches that were written so far.
    pub(crate) fn failed(&mut self, fault: Option<FaultKind>, error: &StoreError, successes: u64) {
        self.failures = self.failures.saturating_add(1);
        let before = self.failed_after.replace(successes);
        self.is_stubborn = before.is_some_and(|before| before < successes);
        let fault_before = self.failure.take().and_then(|failure| failure.fault);
        self.failure = Some(Failure {
            fault: fault.or(fault_before),
            error: error_chain(error).into(),
        });
    }

    pub(crate) fn may_be_a_culprit(&self) -> bool {
        let entries = self.batch.entries();
        entries.len() == 1
            && self.batch.condemned().is_none()
            && entries.iter().all(|entry| entry.event().is_some())
    }

    /// Whether it may keep its writer for long: it is tried between controls, or for a whole time-out.
    pub(crate) fn may_take_long(&self) -> bool {
        self.suspect.is_some() || self.is_narrowed
    }

    pub(crate) fn acks(&self, flushed: &Flushed) -> HashMap<SourceIndex, Ack> {
        let mut by_source: HashMap<SourceIndex, Ack> = HashMap::new();
        for (place, (source, receipt)) in self.receipts.iter().enumerate() {
            let ack = by_source.entry(*source).or_default();
            ack.receipts.push(*receipt);
            if flushed.letters.binary_search(&place).is_ok() {
                ack.dead_letters.push(*receipt);
            }
        }
        by_source
    }

    pub(crate) fn others_were_written(&self, successes: u64) -> bool {
        self.failed_after.is_some_and(|before| before < successes)
    }

    /// Two halves, in order; a single entry stays as it is.
    fn halves(mut self) -> (Self, Option<Self>) {
        let middle = self.batch.len().div_ceil(2);
        let BatchId(first) = self.batch.id;
        let (front, back) = self.batch.entries().split_at(middle);
        if back.is_empty() {
            return (self, None);
        }
        let id = BatchId(first + middle as u64);
        let second = Self {
            batch: Arc::new(Batch::new(id, back.to_vec())),
            receipts: self.receipts.split_off(middle),
            failure: self.failure.clone(),
            ..self
        };
        self.batch = Arc::new(Batch::new(BatchId(first), front.to_vec()));
        (self, Some(second))
    }

    /// Whether newer batches wait while its back-off lasts. In an outage trying them all is of no
    /// use; but a batch that alone fails must not hold the others up for ever.
    fn holds_up_others(&self) -> bool {
        const PATIENCE: u32 = 3;
        !self.is_stubborn && self.failures < PATIENCE && !self.may_take_long()
    }
}

impl fmt::Display for HeldBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(entry) = self.batch.entries().first() {
            write!(f, "{} {}", entry.source, entry.position)?;
            if let Some(event) = entry.event() {
                write!(f, " (event {})", event.id)?;
            }
        }
        match &self.failure {
            Some(Failure { error, .. }) => {
                write!(f, ", which failed {} times: {error}", self.failures)
            }
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Preference {
    /// Batches that were never tried go before those that came back.
    pub new_first: bool,
    /// Batches that may take long wait: the idle writer is the last one.
    pub quick_only: bool,
    /// New batches wait until they are full, or for as long as their oldest entry may wait: another writer
    /// is at work, and the store writes one batch at a time.
    pub full_only: bool,
}

/// Everything that waits for a writer.
///
/// Batches leave in the order in which their entries came. One that came back goes first, and while
/// its back-off lasts nothing newer overtakes it, unless it has failed too often for that.
#[derive(Debug)]
pub struct BatchQueue {
    limits: BatchLimits,
    /// Entries that a new batch may have: fewer than its limit after one took too long.
    max_events: usize,
    returned: BTreeMap<BatchId, (HeldBatch, Instant)>,
    open: VecDeque<Delivery>,
    open_bytes: usize,
    last_push: Option<Instant>,
    more_ready: bool,
    draining: bool,
    next_id: u64,
}

impl BatchQueue {
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            max_events: limits.max_events.get(),
            limits,
            returned: BTreeMap::new(),
            open: VecDeque::new(),
            open_bytes: 0,
            last_push: None,
            more_ready: false,
            draining: false,
            next_id: 1,
        }
    }

    /// Adds a source's chunk behind all that waits. `more_ready` says that the source has more.
    pub fn push(&mut self, deliveries: Vec<Delivery>, more_ready: bool, now: Instant) {
        let sizes = deliveries.iter().map(|delivery| delivery.entry.num_bytes());
        self.open_bytes += sizes.sum::<usize>();
        self.open.extend(deliveries);
        self.last_push = Some(now);
        self.more_ready = more_ready;
    }

    /// Takes back a batch that could not be written; it goes out again, first, from `not_before`.
    pub(crate) fn put_back(&mut self, held: HeldBatch, not_before: Instant) {
        self.returned.insert(held.batch.id, (held, not_before));
    }

    /// Makes new batches no larger than the halves of one that took too long, but for one that is known
    /// already as the next.
    pub(crate) fn shrink_to_halves_of(&mut self, held: &HeldBatch) {
        self.max_events = self.max_events.min(held.batch.len().div_ceil(2));
    }

    /// Takes back a batch that took too long, as two halves, which may be written.
    pub(crate) fn put_back_in_halves(&mut self, held: HeldBatch, not_before: Instant) {
        let (first, second) = held.halves();
        for half in [Some(first), second].into_iter().flatten() {
            self.put_back(half, not_before);
        }
    }

    /// Takes back, as two halves that go out at once, a batch that failed while the store takes
    /// others: something in it cannot be written, and the rest must not wait for that.
    pub(crate) fn put_back_to_isolate(&mut self, held: HeldBatch, now: Instant) {
        let (first, second) = held.halves();
        for half in [Some(first), second].into_iter().flatten() {
            let fresh = HeldBatch {
                failures: 0,
                is_stubborn: false,
                is_narrowed: false,
                ..half
            };
            self.put_back(fresh, now);
        }
    }

    /// Lets new batches be a quarter larger again, up to their limit: one was written in time.
    pub(crate) fn grow(&mut self) {
        let larger = self.max_events + (self.max_events / 4).max(1);
        self.max_events = larger.min(self.limits.max_events.get());
    }

    /// Ends the back-offs, since the store is there again; for stubborn batches another success
    /// means nothing.
    pub(crate) fn end_backoff(&mut self, now: Instant) {
        for (held, not_before) in self.returned.values_mut() {
            if !held.is_stubborn && held.suspect.is_none() {
                *not_before = (*not_before).min(now);
            }
        }
    }

    pub(crate) fn start_draining(&mut self) {
        self.draining = true;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.returned.is_empty()
    }

    pub(crate) fn returned(&self) -> impl Iterator<Item = &HeldBatch> {
        self.returned.values().map(|(held, _)| held)
    }

    /// Since when the oldest entry waits that is in no batch yet.
    pub(crate) fn oldest_open(&self) -> Option<Instant> {
        self.open.front().map(|delivery| delivery.came)
    }

    /// Whether all that waits are suspects, and culprits whose letters could not be written.
    pub(crate) fn has_only_suspects(&self) -> bool {
        let is_one = |held: &HeldBatch| held.suspect.is_some() || held.batch.condemned().is_some();
        self.open.is_empty() && self.returned().all(is_one)
    }

    /// The next batch for an idle writer. With [`new_first`](Preference::new_first), batches that
    /// hold nothing up wait for new ones, so that every new batch is tried.
    pub fn next(&mut self, now: Instant, prefer: Preference) -> Next {
        let mut retry: Option<(Instant, BatchId)> = None;
        let mut held_up_until = None;
        for (id, (held, not_before)) in &self.returned {
            if prefer.quick_only && held.may_take_long() {
                continue;
            }
            if held.holds_up_others() {
                if *not_before <= now {
                    return self.retry(*id);
                }
                held_up_until = Some(*not_before);
                break;
            }
            let due = (*not_before, *id);
            retry = Some(retry.map_or(due, |first| first.min(due)));
        }
        let is_passed_over =
            prefer.new_first && held_up_until.is_none() && self.flush_reason(now, prefer).is_ok();
        match retry {
            Some((at, id)) if at <= now && !is_passed_over => return self.retry(id),
            _ => {}
        }
        let wake = retry.map(|(at, _)| at);
        if let Some(at) = held_up_until {
            return Next::WaitUntil(wake.map_or(at, |wake| wake.min(at)));
        }
        match self.flush_reason(now, prefer) {
            Ok(reason) => Next::Write(self.take_batch(now), reason),
            Err(at) => match at.into_iter().chain(wake).min() {
                Some(at) => Next::WaitUntil(at),
                None => Next::Nothing,
            },
        }
    }

    fn retry(&mut self, id: BatchId) -> Next {
        match self.returned.remove(&id) {
            Some((held, _)) => Next::Write(held, FlushReason::Retry),
            None => Next::Nothing,
        }
    }

    /// Why the open entries leave now, or else when they will.
    fn flush_reason(
        &self,
        now: Instant,
        prefer: Preference,
    ) -> Result<FlushReason, Option<Instant>> {
        let (Some(first), Some(last_push)) = (self.open.front(), self.last_push) else {
            return Err(None);
        };
        let aged = first.came + self.limits.max_age;
        let lingered = last_push + self.limits.linger;
        if self.open.len() >= self.max_events {
            Ok(FlushReason::MaxEvents)
        } else if self.open_bytes >= self.limits.max_bytes.get() {
            Ok(FlushReason::MaxBytes)
        } else if self.draining {
            Ok(FlushReason::Draining)
        } else if prefer.full_only && now < aged {
            Err(Some(aged))
        } else if !self.more_ready {
            Ok(FlushReason::SourceIdle)
        } else if aged <= now {
            Ok(FlushReason::MaxAge)
        } else if lingered <= now {
            Ok(FlushReason::Linger)
        } else {
            Err(Some(aged.min(lingered)))
        }
    }

    /// As many open entries as fit into a batch, at least one.
    fn take_batch(&mut self, now: Instant) -> HeldBatch {
        let mut entries = Vec::new();
        let mut receipts = Vec::new();
        let mut num_bytes = 0;
        let oldest = self.open.front().map_or(now, |delivery| delivery.came);
        while let Some(next) = self.open.front() {
            let size = next.entry.num_bytes();
            let full =
                entries.len() >= self.max_events || num_bytes + size > self.limits.max_bytes.get();
            if full && !entries.is_empty() {
                break;
            }
            if let Some(delivery) = self.open.pop_front() {
                num_bytes += size;
                receipts.push((delivery.source, delivery.receipt));
                entries.push(delivery.entry);
            }
        }
        self.open_bytes -= num_bytes;
        let id = BatchId(self.next_id);
        self.next_id += entries.len() as u64;
        HeldBatch {
            batch: Arc::new(Batch::new(id, entries)),
            receipts,
            failures: 0,
            is_stubborn: false,
            failed_after: None,
            failure: None,
            suspect: None,
            is_narrowed: false,
            is_aside: false,
            oldest,
        }
    }
}

#[cfg(test)]
mod tests;
