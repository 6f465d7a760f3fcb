//! What a batcher does about events that the store does not take while it takes others: what
//! [`isolation`](crate::isolation) decides.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::BatcherActor;
use super::writer::Writer;
use crate::batch::{Batch, Condemned, Failure, HeldBatch};
use crate::control::MAX_TEMPLATE_BYTES;
use crate::isolation::{Control, Verdict};
use crate::messages::{FlushError, Flushed};
use crate::metrics::RetryKind;
use crate::status::error_chain;
use crate::store::{Fault, FaultKind, StoreError};

/// How long an event may be held before somebody is told which one it is. Longer hides it, shorter names
/// what the next attempt may store.
pub(crate) const HELD_UP_AFTER: Duration = Duration::from_secs(10);

/// Between two attempts at a suspect whose failure may go by itself. Longer keeps a culprit for longer,
/// shorter has all attempts fall into the same trouble of the store.
const TRANSIENT_SUSPECT_AGAIN_AFTER: Duration = Duration::from_secs(1);

impl BatcherActor {
    /// Whether a suspect may go out: one writer is left to the others, where there is more than one.
    pub(super) fn may_examine(&self) -> bool {
        let examining = self.writers.iter().filter(|writer| writer.is_examining());
        examining.count() < self.writers.len().saturating_sub(1).max(1)
    }

    /// A batch is not durable: it is split, set aside, or tried again whole.
    pub(super) fn not_written(&mut self, held: HeldBatch, failed: &FlushError) {
        let FlushError { error, control } = failed;
        let is_slow = matches!(error, StoreError::TooSlow { .. });
        let now = Instant::now();
        if matches!(control, Control::Failed | Control::FailedBefore) {
            self.unrest.note(now);
        }
        if *control == Control::FailedBefore {
            return self.not_tried(held, error);
        }
        let control = match control {
            Control::NotTried if held.others_were_written(self.successes) => Control::Passed,
            control => *control,
        };
        // One that takes the server down with it has no control that passes behind it.
        let is_not_alone = control == Control::Passed || held.others_were_written(self.successes);
        match (error.fault(), control) {
            (Some(fault), Control::Passed) if held.batch.len() > 1 && is_slow => {
                self.store_takes_events();
                self.narrow(held, &fault, error);
            }
            _ if held.batch.len() > 1 && is_slow => self.retry_in_halves(held, error),
            // Nothing was heard of it, behind a control that passed: it is not the store, but what it is
            // nobody knows. It waits among the suspects, and is never judged.
            (None, Control::Passed) if is_slow && held.may_be_a_culprit() => {
                let unknown = Fault {
                    kind: FaultKind::Contention,
                    code: None,
                };
                self.suspect(held, &unknown, control, error, error.into());
            }
            (Some(fault), _) if held.batch.len() > 1 && is_not_alone => {
                self.split(held, &fault, error);
            }
            (Some(fault), Control::Passed | Control::NotTried) if held.may_be_a_culprit() => {
                self.suspect(held, &fault, control, error, error.into());
            }
            // A commit may fail where a control, which is rolled back, passes: that is no sign of a store
            // that takes events.
            (fault, control) => {
                let mut held = held;
                if let Some(suspect) = &mut held.suspect {
                    suspect.failed(fault.as_ref(), control, 0);
                }
                self.retry_later(held, error.into(), &error_chain(error));
            }
        }
    }

    /// The control before an attempt failed, so that it was not made.
    fn not_tried(&mut self, mut held: HeldBatch, error: &StoreError) {
        if let Some(suspect) = &mut held.suspect {
            suspect.failed(None, Control::FailedBefore, 0);
        }
        self.retry_later(held, error.into(), &error_chain(error));
    }

    /// The same as for one that is refused, and new batches become smaller.
    fn narrow(&mut self, mut held: HeldBatch, fault: &Fault, error: &StoreError) {
        self.parts.metrics.retries(error.into());
        held.note(fault, error, self.successes);
        self.queue.put_back_in_halves(held, Instant::now());
    }

    /// A writer is gone, perhaps because of what it was writing.
    pub(super) fn writer_died(&mut self, held: HeldBatch, what: &str) {
        if !held.others_were_written(self.successes) {
            return self.retry_later(held, RetryKind::WriterDied, what);
        }
        let fault = Fault {
            kind: FaultKind::Transient,
            code: None,
        };
        let error = StoreError::unavailable(what);
        if held.batch.len() > 1 {
            self.split(held, &fault, &error);
        } else if held.may_be_a_culprit() {
            let kind = RetryKind::WriterDied;
            self.suspect(held, &fault, Control::Passed, &error, kind);
        } else {
            self.retry_later(held, RetryKind::WriterDied, what);
        }
    }

    /// Something in the batch is not taken; its halves go out at once.
    fn split(&mut self, mut held: HeldBatch, fault: &Fault, error: &StoreError) {
        self.store_takes_events();
        self.parts.metrics.retries(error.into());
        log::debug!(
            "a batch was refused while others are stored; it goes out again in halves batch.id={} \
             batch.len={} error={}",
            held.batch.id,
            held.batch.len(),
            error_chain(error),
        );
        held.note(fault, error, self.successes);
        self.queue.put_back_to_isolate(held, Instant::now());
    }

    /// An event failed alone.
    fn suspect(
        &mut self,
        mut held: HeldBatch,
        fault: &Fault,
        control: Control,
        error: &StoreError,
        kind: RetryKind,
    ) {
        if control == Control::Passed {
            self.store_takes_events();
            held.note(fault, error, self.successes);
        }
        let unrest = self.unrest.lately(Instant::now());
        let mut suspect = held.suspect.unwrap_or_default();
        let verdict = suspect.failed(Some(fault), control, unrest);
        held.suspect = Some(suspect);
        self.set_aside(&mut held);
        match verdict {
            Verdict::Keep => {
                let not_before = match control {
                    Control::Passed => {
                        self.parts.metrics.retries(kind);
                        Instant::now() + self.suspect_again_after(fault.kind, held.failures)
                    }
                    // Nothing tells yet that it is not the store.
                    _ => {
                        held.failure = Some(Failure::new(fault, error));
                        self.note_failure(&mut held, kind, &error_chain(error))
                    }
                };
                self.queue.put_back(held, not_before);
            }
            Verdict::Culprit => {
                self.parts.metrics.retries(kind);
                let said = std::error::Error::source(error);
                let said = said.map_or_else(|| error.to_string(), error_chain);
                let batch = Batch::clone(&held.batch).condemn(Condemned {
                    reason: format!("refused while others were stored: {said}"),
                    code: fault.code.clone(),
                });
                held.batch = Arc::new(batch);
                held.suspect = None;
                self.queue.put_back(held, Instant::now());
            }
        }
    }

    fn suspect_again_after(&self, fault: FaultKind, failures: u32) -> Duration {
        match fault {
            FaultKind::Lasting => self.settings.backoff.random_delay(1),
            FaultKind::Transient | FaultKind::Resources => TRANSIENT_SUSPECT_AGAIN_AFTER,
            FaultKind::Contention => self.settings.backoff.random_delay(failures),
        }
    }

    /// A suspect counts against an allowance of its own, so that it stops no reading.
    fn set_aside(&mut self, held: &mut HeldBatch) {
        let num_bytes = held.batch.num_bytes();
        if !held.is_aside && self.suspects.take(num_bytes) {
            held.is_aside = true;
            self.credit.give_back(held.batch.len(), num_bytes);
            self.grant();
        }
    }

    /// The store took a batch, or a control: whatever failed, it is there.
    pub(super) fn store_takes_events(&mut self) {
        if let Some(failures) = self.parts.store.succeeded() {
            log::info!("the store is back failures={failures}");
        }
        self.outage.ended();
        self.queue.end_backoff(Instant::now());
    }

    /// Keeps an event that was stored as a pattern for controls, and one that was refused for rehearsals.
    pub(super) fn remember(&mut self, held: &HeldBatch, flushed: &Flushed) {
        if held.suspect.is_some() && flushed.inserted > 0 {
            // It failed for no fault of its own.
            self.unrest.note(Instant::now());
        }
        let is_small =
            |entry: &&Arc<crate::delivery::Entry>| entry.num_bytes() <= MAX_TEMPLATE_BYTES;
        let entries = held.batch.entries();
        if flushed.inserted == entries.len() as u64
            && let Some(stored) = entries.first().filter(is_small)
        {
            self.template = Some(Arc::clone(stored));
        }
        let letters = flushed.letters.iter().rev();
        let mut refused = letters.filter_map(|place| entries.get(*place));
        if let Some(refused) = refused.find(|entry| entry.event().is_some() && is_small(entry)) {
            self.refused = Some(Arc::clone(refused));
        }
    }

    /// Makes visible since when the oldest entry is held, and what it is if it has failed.
    pub(super) fn show_oldest(&self) {
        let writing = self.writers.iter().filter_map(Writer::oldest);
        let oldest = writing.chain(self.queue.oldest()).min();
        let others = self.writers.iter().filter_map(Writer::oldest_but_suspects);
        let others = others.chain(self.queue.oldest_but_suspects()).min();
        self.parts.metrics.set_oldest(oldest, others);
        let failed = self.writers.iter().filter_map(Writer::held);
        let failed = failed.chain(self.queue.oldest_returned());
        let failed = failed.filter(|held| held.failure.is_some());
        match failed.min_by_key(|held| held.oldest) {
            Some(held) if Some(held.oldest) == oldest => self.parts.held_up.set(held.describe()),
            _ => self.parts.held_up.clear(),
        }
    }
}

impl Failure {
    fn new(fault: &Fault, error: &StoreError) -> Self {
        Self {
            fault: Some(fault.kind),
            error: error_chain(error).into(),
        }
    }
}

impl HeldBatch {
    /// Whether it is one event that may be the cause of its own failure.
    fn may_be_a_culprit(&self) -> bool {
        let entries = self.batch.entries();
        entries.len() == 1
            && self.batch.condemned().is_none()
            && entries.iter().all(|entry| entry.event().is_some())
    }

    /// Notes a failure.
    fn note(&mut self, fault: &Fault, error: &StoreError, successes: u64) {
        self.failed(successes);
        self.failure = Some(Failure::new(fault, error));
    }

    /// Which event is held, and why.
    fn describe(&self) -> String {
        let mut text = String::new();
        if let Some(entry) = self.batch.entries().first() {
            text.push_str(&format!("{} {}", entry.source, entry.position));
            if let Some(event) = entry.event() {
                text.push_str(&format!(" (event {})", event.id));
            }
        }
        if let Some(failure) = &self.failure {
            text.push_str(&format!(
                ", which failed {} times: {}",
                self.failures, failure.error
            ));
        }
        text
    }
}
