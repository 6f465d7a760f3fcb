//! Collects deliveries into batches and hands each to a writer.
//!
//! Receives [`Join`], [`Enqueue`], [`ReplaceWriter`], [`Drain`]; sends [`Flush`], then [`Ack`].
//! Guarantee: a receipt is acknowledged only once its batch is durable.
//!
//! - A batch that failed goes out again until it is written. While its back-off lasts nothing newer
//!   overtakes it, unless it fails alone ([`BatchQueue`]).
//! - Where the store writes one batch at a time, one that is not full waits for that, and grows meanwhile.
//! - However many batches fail, their attempts do not add up ([`Outage`]).
//! - A batch that fails while the store takes others is split, until the event that fails stands alone
//!   ([`routing`]). That event becomes a dead letter once it has failed often enough
//!   ([`isolation`](crate::isolation)).
//! - A writer that dies loses nothing: the batcher still has its batch.
//! - While the database refuses nearly everything, reading pauses: there are no permits, and one batch a
//!   back-off goes out as a probe ([`Refusals`]). A drain ends the pause and writes all that is held.
//!
//! When this actor dies, it forgets what it held, and the sources hand it out again.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use crate::batch_queue::{BatchQueue, FlushReason, HeldBatch, Next, Preference};
use crate::clock::Clock;
use crate::control::Samples;
use crate::delivery::{Batch, BatchId, Condemned, SourceIndex};
use crate::isolation::{Allowance, Control, Unrest, Verdict};
use crate::lifeline::Lifeline;
use crate::messages::{
    Ack, Drain, Drained, Enqueue, EnqueueRefused, Flush, FlushError, Flushed, Join, Purpose,
    ReplaceWriter, stops_when_retired,
};
use crate::metrics::{Metrics, RetryKind};
use crate::rate_limited_log::{LOG_EVERY, RateLimitedLog};
use crate::refusals::{Change, Refusals};
use crate::source::Permit;
use crate::status::{Component, HeldUp, error_chain};
use crate::store::{Contention, Fault, FaultKind, StoreError};
use crate::waiters::{LateReply, Waiters};

mod outage;
mod permits;
mod routing;
mod settings;
mod writer;

use outage::Outage;
use permits::Permits;
use routing::{FailedBatch, Route};
pub use settings::BatcherSettings;
use writer::{HandOut, Writer, Writing};

/// How long an event may be held before somebody is told which one it is. Longer hides it, shorter names
/// what the next attempt may store.
pub(crate) const HELD_UP_AFTER: Duration = Duration::from_secs(10);

/// Between two attempts at a suspect whose failure may go by itself. Longer keeps a culprit for longer,
/// shorter has all attempts fall into the same trouble of the store.
const TRANSIENT_SUSPECT_AGAIN_AFTER: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(crate) struct BatcherParts {
    /// Bytes of messages that may be held, beside the largest one of each source.
    pub(crate) max_bytes_in_flight: NonZeroUsize,
    pub(crate) store: Component,
    pub(crate) contention: Contention,
    /// Fails while reading pauses because the store refuses nearly everything.
    pub(crate) refusals: Component,
    pub(crate) held_up: HeldUp,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Arc<dyn Clock>,
}

pub(crate) struct BatcherActor {
    settings: BatcherSettings,
    parts: BatcherParts,
    writers: Vec<Writer>,
    acks: HashMap<SourceIndex, Recipient<Ack>>,
    queue: BatchQueue,
    permits: Permits,
    refusals: Refusals,
    outage: Outage,
    letters_log: RateLimitedLog,
    suspects: Allowance,
    unrest: Unrest,
    samples: Samples,
    /// Whether the batch that went out last may take long: then it is the turn of the others.
    last_may_take_long: bool,
    is_rehearsing: bool,
    is_draining: bool,
    draining: Waiters<Drained>,
    timer: Option<(Instant, SpawnHandle)>,
    hand_outs: HandOut,
    successes: u64,
    _lifeline: Lifeline,
}

type FlushReply = Result<Result<Flushed, FlushError>, MailboxError>;

impl BatcherActor {
    pub(crate) fn new(
        settings: BatcherSettings,
        parts: BatcherParts,
        num_sources: usize,
        writers: Vec<Recipient<Flush>>,
        lifeline: Lifeline,
    ) -> Self {
        let max_bytes_in_flight = parts.max_bytes_in_flight;
        Self {
            queue: BatchQueue::new(settings.limits()),
            permits: Permits::new(settings.credit(max_bytes_in_flight, writers.len(), num_sources)),
            refusals: Refusals::new(settings.backoff),
            outage: Outage::new(settings.backoff),
            letters_log: RateLimitedLog::default(),
            suspects: settings::allowance(max_bytes_in_flight),
            unrest: Unrest::default(),
            samples: Samples::default(),
            last_may_take_long: false,
            is_rehearsing: false,
            settings,
            parts,
            writers: writers.into_iter().map(Writer::new).collect(),
            acks: HashMap::new(),
            is_draining: false,
            draining: Waiters::default(),
            timer: None,
            hand_outs: 0,
            successes: 0,
            _lifeline: lifeline,
        }
    }

    // Handing out.

    fn pump(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        while let Some(index) = self.writers.iter().position(Writer::is_idle) {
            if self.waits_for_probe(now, ctx) {
                break;
            }
            if let Err(at) = self.outage.may_write(now) {
                self.wake_at(at, ctx);
                break;
            }
            let prefer = Preference {
                new_first: self.outage.prefers_new() || self.last_may_take_long,
                quick_only: !self.may_spare_a_writer(),
                full_only: self.has_to_wait_for_another(),
            };
            match self.queue.next(now, prefer) {
                Next::Write(held, reason) => self.hand_out(index, held, reason, ctx),
                Next::WaitUntil(at) => {
                    self.wake_at(at, ctx);
                    // Suspects wait for their own sake, so their attempts are no probes.
                    if self.queue.has_only_suspects() {
                        self.read_a_probe(now, ctx);
                    }
                    break;
                }
                Next::Nothing => {
                    self.read_a_probe(now, ctx);
                    break;
                }
            }
        }
        self.show_oldest();
        self.show_load();
        self.answer_drained();
    }

    /// One writer is left to batches that are quick, where there is more than one.
    fn may_spare_a_writer(&self) -> bool {
        let at_work = self.writers.iter().filter_map(Writer::held);
        let taking_long = at_work.filter(|held| held.may_take_long()).count();
        taking_long < self.writers.len().saturating_sub(1).max(1)
    }

    /// Whether a new batch would only wait for the one that is being written, instead of growing.
    fn has_to_wait_for_another(&self) -> bool {
        let mut at_work = self.writers.iter().filter_map(Writer::held);
        self.parts.contention == Contention::WriteLock && at_work.any(|held| !held.may_take_long())
    }

    fn hand_out(
        &mut self,
        index: usize,
        held: HeldBatch,
        reason: FlushReason,
        ctx: &mut Context<Self>,
    ) {
        let Some(writer) = self.writers.get_mut(index) else {
            return self.queue.put_back(held, Instant::now());
        };
        log::trace!(
            "flushing batch.id={} batch.len={} batch.num_bytes={} reason={} writer={index}",
            held.batch.id,
            held.batch.len(),
            held.batch.num_bytes(),
            reason.as_ref(),
        );
        self.parts.metrics.batch_handed_out(reason, &held.batch);
        self.outage
            .tried(Instant::now(), reason == FlushReason::Retry);
        self.last_may_take_long = held.may_take_long();
        self.hand_outs += 1;
        let hand_out = self.hand_outs;
        let flush = writer.begin(hand_out, held, self.samples.stored.clone());
        let flush = writer.recipient.send(flush);
        let started = Instant::now();
        ctx.spawn(flush.into_actor(self).map(move |reply, actor, ctx| {
            actor.flushed((index, hand_out), started.elapsed(), reply, ctx);
        }));
    }

    fn wake_at(&mut self, at: Instant, ctx: &mut Context<Self>) {
        if let Some((due, timer)) = self.timer.take() {
            if due <= at && due > Instant::now() {
                self.timer = Some((due, timer));
                return;
            }
            ctx.cancel_future(timer);
        }
        let delay = at.saturating_duration_since(Instant::now());
        let timer = ctx.run_later(delay, |actor, ctx| {
            actor.timer = None;
            actor.pump(ctx);
        });
        self.timer = Some((at, timer));
    }

    // A batch is durable, or not.

    fn flushed(
        &mut self,
        (index, hand_out): (usize, HandOut),
        took: Duration,
        reply: FlushReply,
        ctx: &mut Context<Self>,
    ) {
        let writer = self.writers.get_mut(index);
        let Some(writing) = writer.and_then(|writer| writer.end(hand_out)) else {
            return;
        };
        match reply {
            Ok(Ok(flushed)) => {
                self.settle(writing.held, &flushed, took);
                self.note_letters(&flushed, ctx);
            }
            Ok(Err(failed)) => {
                let kind = RetryKind::from(&failed.error);
                self.not_written(writing.held, &failed, kind);
            }
            Err(error) => {
                if let Some(writer) = self.writers.get_mut(index) {
                    writer.gone = true;
                }
                self.writer_died(writing, format!("writer {index} died: {error}"));
            }
        }
        self.pump(ctx);
    }

    fn settle(&mut self, held: HeldBatch, flushed: &Flushed, took: Duration) {
        let age = held.oldest.elapsed();
        self.parts.metrics.batch_flushed(flushed, took, age);
        self.successes += 1;
        self.store_takes_events();
        self.queue.grow();
        self.samples.keep(&held.batch, flushed);
        if held.suspect.is_some() && flushed.inserted > 0 {
            // It failed for no fault of its own.
            self.unrest.note(Instant::now());
        }
        self.judge(flushed);
        for (source, ack) in held.acks(flushed) {
            if let Some(acks) = self.acks.get(&source) {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the backward edge must not wait; a lost one heals by redelivery"
                )]
                acks.do_send(ack);
            }
        }
        let num_bytes = held.batch.num_bytes();
        if held.is_aside {
            self.suspects.give_back(num_bytes);
        } else {
            self.permits.credit.give_back(held.batch.len(), num_bytes);
        }
        self.grant();
    }

    /// A writer is gone, perhaps because of its batch: that is held against it behind a control
    /// that passed, or where others were written. Otherwise the store may be to blame.
    fn writer_died(&mut self, writing: Writing, how: String) {
        let control = writing.control_before_death();
        let others_were_written = writing.held.others_were_written(self.successes);
        let is_not_the_store = control == Control::Passed || others_were_written;
        let failed = FlushError {
            error: StoreError::Unavailable {
                what: how,
                fault: is_not_the_store.then_some(Fault {
                    kind: FaultKind::Transient,
                    code: None,
                }),
                source: None,
            },
            control,
        };
        self.not_written(writing.held, &failed, RetryKind::WriterDied);
    }

    fn not_written(&mut self, mut held: HeldBatch, failed: &FlushError, kind: RetryKind) {
        let FlushError { error, control } = failed;
        if matches!(control, Control::Failed | Control::FailedBefore) {
            self.unrest.note(Instant::now());
        }
        let failed = FailedBatch {
            error,
            control: *control,
            num_entries: held.batch.len(),
            may_be_a_culprit: held.may_be_a_culprit(),
            others_were_written: held.others_were_written(self.successes),
        };
        match failed.route() {
            Route::Retry => {
                if let Some(suspect) = &mut held.suspect {
                    suspect.failed(error.fault().as_ref(), failed.control(), 0);
                }
                let not_before = self.back_off(&mut held, None, kind, error);
                self.queue.put_back(held, not_before);
            }
            Route::RetryInHalves => {
                let not_before = self.back_off(&mut held, None, kind, error);
                self.queue.shrink_to_halves_of(&held);
                self.queue.put_back_in_halves(held, not_before);
            }
            Route::Narrow(fault) => {
                self.failed_while_others_are_stored(&mut held, &fault, kind, error);
                held.is_narrowed = true;
                // A lock that somebody else holds says nothing of the size of a batch.
                if matches!(error, StoreError::TooSlow { .. }) {
                    self.queue.shrink_to_halves_of(&held);
                }
                self.queue.put_back_in_halves(held, Instant::now());
            }
            Route::Split(fault) => {
                log::debug!(
                    "a batch was refused while others are stored; it goes out again in halves \
                     batch.id={} batch.len={} error={}",
                    held.batch.id,
                    held.batch.len(),
                    error_chain(error),
                );
                self.failed_while_others_are_stored(&mut held, &fault, kind, error);
                self.queue.put_back_to_isolate(held, Instant::now());
            }
            Route::Suspect(fault) => self.suspect(held, &fault, failed.control(), kind, error),
        }
    }

    /// Notes a failure that tells nothing of the batch; returns when it may be tried again.
    fn back_off(
        &mut self,
        held: &mut HeldBatch,
        fault: Option<FaultKind>,
        kind: RetryKind,
        error: &StoreError,
    ) -> Instant {
        held.failed(fault, error, self.successes);
        self.outage.failed();
        let delay = self.settings.backoff.random_delay(held.failures);
        self.parts.metrics.retries(kind);
        let error = error_chain(error);
        let at = self.parts.clock.now();
        if self.parts.store.failed(error.clone(), at) {
            log::warn!(
                "a batch could not be written and is kept; retrying until it is batch.id={} \
                 batch.len={} retry_in={delay:?} error={error}",
                held.batch.id,
                held.batch.len(),
            );
        } else {
            log::debug!(
                "a batch could not be written batch.id={} failures={} retry_in={delay:?} \
                 error={error}",
                held.batch.id,
                held.failures,
            );
        }
        Instant::now() + delay
    }

    fn failed_while_others_are_stored(
        &mut self,
        held: &mut HeldBatch,
        fault: &Fault,
        kind: RetryKind,
        error: &StoreError,
    ) {
        self.store_takes_events();
        self.parts.metrics.retries(kind);
        held.failed(Some(fault.kind), error, self.successes);
    }

    /// An event failed alone: it is kept and tried again, or becomes a dead letter.
    fn suspect(
        &mut self,
        mut held: HeldBatch,
        fault: &Fault,
        control: Control,
        kind: RetryKind,
        error: &StoreError,
    ) {
        let has_passed = control == Control::Passed;
        // Without a control that passed, nothing tells yet that it is not the store.
        let not_before = if has_passed {
            self.failed_while_others_are_stored(&mut held, fault, kind, error);
            Instant::now() + self.suspect_again_after(fault.kind, held.failures)
        } else {
            self.back_off(&mut held, Some(fault.kind), kind, error)
        };
        let unrest = self.unrest.recent(Instant::now());
        let mut suspect = held.suspect.unwrap_or_default();
        match suspect.failed(Some(fault), control, unrest) {
            Verdict::Keep => {
                held.suspect = Some(suspect);
                self.set_aside(&mut held);
                self.queue.put_back(held, not_before);
            }
            Verdict::Culprit => {
                self.set_aside(&mut held);
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
            self.permits.credit.give_back(held.batch.len(), num_bytes);
            self.grant();
        }
    }

    /// The store took a batch, or a control: it is there, whatever else failed.
    fn store_takes_events(&mut self) {
        if let Some(failures) = self.parts.store.succeeded() {
            log::info!("the store is back failures={failures}");
        }
        self.outage.ended();
        self.queue.end_backoff(Instant::now());
    }

    // Reading, and its pause.

    fn grant(&mut self) {
        if !self.is_paused() {
            self.permits.grant(usize::MAX);
        }
    }

    fn ask(
        &mut self,
        source: SourceIndex,
        ctx: &mut Context<Self>,
    ) -> ResponseFuture<Result<Permit, EnqueueRefused>> {
        if self.is_draining {
            return Box::pin(std::future::ready(Err(EnqueueRefused)));
        }
        let answer = self.permits.ask(source);
        if self.is_paused() {
            self.pump(ctx);
        } else {
            self.grant();
        }
        Box::pin(async move { answer.await.unwrap_or(Err(EnqueueRefused)) })
    }

    /// Whether only probes go out and nothing is read beyond them. A drain ends that.
    fn is_paused(&self) -> bool {
        self.refusals.is_paused() && !self.is_draining
    }

    /// Whether nothing may go out, since reading pauses and a probe was just now or is under way.
    fn waits_for_probe(&mut self, now: Instant, ctx: &mut Context<Self>) -> bool {
        if !self.is_paused() {
            return false;
        }
        let may_write = self.refusals.may_write(now);
        if let Err(at) = may_write {
            self.wake_at(at, ctx);
        }
        may_write.is_err() || self.is_writing()
    }

    fn is_writing(&self) -> bool {
        self.writers.iter().any(|writer| writer.held().is_some())
    }

    /// Lets one source read what a probe needs, while nothing is held. Where none has anything, the
    /// event that was refused last is tried, and rolled back.
    fn read_a_probe(&mut self, now: Instant, ctx: &mut Context<Self>) {
        if !self.is_paused() {
            return;
        }
        match self.refusals.take_permit(now, fastrand::f64()) {
            Ok(()) => {
                self.permits.grant(1);
                self.rehearse(ctx);
                if let Err(at) = self.refusals.take_permit(now, fastrand::f64()) {
                    self.wake_at(at, ctx);
                }
            }
            Err(at) => self.wake_at(at, ctx),
        }
    }

    /// Tries the event that was refused last, and leaves nothing behind.
    fn rehearse(&mut self, ctx: &mut Context<Self>) {
        let writer = self.writers.iter().find(|writer| writer.is_idle());
        let (Some(refused), Some(writer), false) =
            (&self.samples.refused, writer, self.is_rehearsing)
        else {
            return;
        };
        self.is_rehearsing = true;
        let batch = Arc::new(Batch::new(BatchId(0), vec![Arc::clone(refused)]));
        let rehearsal = writer
            .recipient
            .send(Flush::alone(batch, Purpose::Rehearse));
        ctx.spawn(rehearsal.into_actor(self).map(|reply, actor, ctx| {
            actor.is_rehearsing = false;
            let was_taken =
                matches!(&reply, Ok(Ok(taken)) if taken.inserted + taken.duplicates > 0);
            let change = actor.refusals.rehearsed(was_taken, Instant::now());
            actor.tell_of_pause(change);
            actor.grant();
            actor.pump(ctx);
        }));
    }

    fn judge(&mut self, flushed: &Flushed) {
        if !self.settings.pauses_when_refused {
            return;
        }
        let now = Instant::now();
        let change = self.refusals.committed(flushed, now, fastrand::f64());
        self.tell_of_pause(change);
    }

    fn tell_of_pause(&mut self, change: Option<Change>) {
        match change {
            None => {}
            Some(Change::Paused { refused, of }) => {
                let why = format!(
                    "reading pauses: the database refused {refused} of the last {of} events, which \
                     are dead letters now; see why with `event-persister dead-letters list --stage \
                     store` and mend the database; reading goes on by itself once it accepts events"
                );
                log::error!("{why}");
                self.parts.refusals.failed(why, self.parts.clock.now());
                self.parts.metrics.set_reading_paused(true);
            }
            Some(Change::Resumed { after, refused }) => {
                log::info!(
                    "reading goes on: the database accepts events again paused_for={after:?} \
                     refused={refused}"
                );
                self.reads_on();
            }
        }
    }

    fn reads_on(&self) {
        self.parts.refusals.succeeded();
        self.parts.metrics.set_reading_paused(false);
    }

    // What others are told.

    /// Says how many messages became dead letters. A run that comes to an end counts them there instead.
    fn note_letters(&mut self, flushed: &Flushed, ctx: &mut Context<Self>) {
        if self.settings.pauses_when_refused {
            let due = self
                .letters_log
                .add(flushed.dead_lettered(), Instant::now());
            Self::log_letters(due, ctx);
        }
    }

    fn log_letters(num_letters: Option<u64>, ctx: &mut Context<Self>) {
        let Some(num_letters) = num_letters else {
            return;
        };
        log::warn!(
            "messages were refused and are kept as dead letters; `event-persister dead-letters list` \
             shows why letters={num_letters}"
        );
        ctx.run_later(LOG_EVERY, |actor, ctx| {
            Self::log_letters(actor.letters_log.due(Instant::now()), ctx);
        });
    }

    fn show_oldest(&self) {
        let at_work = || self.writers.iter().filter_map(Writer::held);
        let held = || at_work().chain(self.queue.returned());
        let open = self.queue.oldest_open();
        let oldest = held().map(|held| held.oldest).chain(open).min();
        let others = held().filter(|held| held.suspect.is_none());
        let others = others.map(|held| held.oldest).chain(open).min();
        self.parts.metrics.set_oldest(oldest, others);
        let failed = held().filter(|held| held.failure.is_some());
        let held_up = failed.min_by_key(|held| held.oldest);
        let held_up = held_up.filter(|held| Some(held.oldest) == oldest);
        self.parts.held_up.set(held_up.map(ToString::to_string));
    }

    fn show_load(&self) {
        let num_busy = self.writers.iter().filter_map(Writer::held).count();
        let num_bytes = self.permits.credit.num_bytes() + self.suspects.num_bytes();
        self.parts.metrics.set_load(num_busy, num_bytes);
    }

    fn answer_drained(&mut self) {
        if self.is_writing() || !self.queue.is_empty() {
            return;
        }
        self.draining.answer(&Drained { released: 0 });
    }
}

impl Actor for BatcherActor {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        // An earlier generation may have paused; this one knows nothing of refusals yet.
        self.reads_on();
    }
}

impl Handler<Join> for BatcherActor {
    type Result = ResponseFuture<Result<Permit, EnqueueRefused>>;

    fn handle(&mut self, Join { source, acks }: Join, ctx: &mut Self::Context) -> Self::Result {
        self.acks.insert(source, acks);
        self.ask(source, ctx)
    }
}

impl Handler<Enqueue> for BatcherActor {
    type Result = ResponseFuture<Result<Permit, EnqueueRefused>>;

    fn handle(&mut self, chunk: Enqueue, ctx: &mut Self::Context) -> Self::Result {
        let entries = chunk.deliveries.iter();
        let num_bytes = entries.map(|delivery| delivery.entry.num_bytes()).sum();
        self.permits
            .credit
            .spend(chunk.source, chunk.deliveries.len(), num_bytes);
        self.queue
            .push(chunk.deliveries, chunk.more_ready, Instant::now());
        // Timers fire only once the mailbox is empty, so what is due leaves here as well.
        self.pump(ctx);
        self.ask(chunk.source, ctx)
    }
}

impl Handler<ReplaceWriter> for BatcherActor {
    type Result = ();

    fn handle(&mut self, replacement: ReplaceWriter, ctx: &mut Self::Context) {
        if let Some(slot) = self.writers.get_mut(replacement.index) {
            let unanswered = slot.give_up();
            *slot = Writer::new(replacement.writer);
            if let Some(writing) = unanswered {
                self.writer_died(writing, "the writer died before it answered".to_owned());
            }
        }
        self.pump(ctx);
    }
}

impl Handler<Drain> for BatcherActor {
    type Result = LateReply<Drained>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        let reply = self.draining.wait();
        self.is_draining = true;
        if let Some(failures) = self.parts.store.closes() {
            log::info!("the store is back failures={failures}");
        }
        self.queue.start_draining();
        self.permits.refuse_all();
        self.pump(ctx);
        reply
    }
}

stops_when_retired!(BatcherActor);

#[cfg(test)]
mod tests;
