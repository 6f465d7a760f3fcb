//! Collects deliveries into batches and hands each to a writer.
//!
//! Receives [`Join`], [`Enqueue`], [`ReplaceWriter`], [`Drain`]; sends [`Flush`], then [`Ack`].
//! Guarantee: a receipt is acknowledged only once its batch is durable.
//! A batch that failed goes back to the front, in order, until it is written, in halves if it took
//! too long; while its back-off
//! lasts, nothing newer overtakes it, unless it is the only one that fails. However many fail,
//! their attempts do not add up (`Outage` spaces them). A batch that fails while the store takes others
//! is split until what fails stands alone, and that becomes a dead letter once it has failed often enough
//! ([`isolation`](crate::isolation) decides). A writer that dies
//! loses nothing: its batch is still here.
//! While the database refuses nearly everything, reading pauses: no permits are granted, and one
//! batch a back-off goes out as a probe ([`Refusals`] decides). What is held stays held, bounded by
//! the credit as ever, and a drain writes all of it.
//! When this actor dies, what it held is forgotten, and the sources hand it out again.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::batch::{BatchQueue, FlushReason, HeldBatch, Next, Preference};
use crate::clock::Clock;
use crate::credit::Credit;
use crate::delivery::Entry;
use crate::isolation::{Allowance, Unrest};
use crate::lifeline::Lifeline;
use crate::messages::{
    Ack, Drain, Drained, Enqueue, EnqueueRefused, Flush, FlushError, Flushed, Join, ReplaceWriter,
    SourceIndex, stops_when_retired,
};
use crate::metrics::Metrics;
use crate::refusals::Refusals;
use crate::source::Permit;
use crate::status::{Component, HeldUp};
use crate::untold::Untold;
use crate::waiters::{Owed, Waiters};

mod isolating;
mod letters;
mod outage;
mod pausing;
mod retrying;
mod settings;
mod writer;

pub(crate) use isolating::HELD_UP_AFTER;
use outage::Outage;
pub use settings::BatcherSettings;
use writer::{HandOut, Writer};

/// What a batcher shares with the rest of its pipeline.
#[derive(Clone)]
pub struct BatcherParts {
    /// Bytes of messages that may be held, beside the largest one of each source.
    pub max_bytes_in_flight: NonZeroUsize,
    /// Notes what happens to the store.
    pub store: Component,
    /// Fails while reading pauses because the store refuses nearly everything.
    pub refusals: Component,
    /// What is held for long, and why.
    pub held_up: HeldUp,
    /// Accounts for every message.
    pub metrics: Metrics,
    /// Dates errors.
    pub clock: Arc<dyn Clock>,
}

/// The middle of the pipeline.
pub struct BatcherActor {
    settings: BatcherSettings,
    parts: BatcherParts,
    writers: Vec<Writer>,
    acks: HashMap<SourceIndex, Recipient<Ack>>,
    queue: BatchQueue,
    credit: Credit,
    refusals: Refusals,
    outage: Outage,
    untold: Untold,
    suspects: Allowance,
    unrest: Unrest,
    /// Whether what was handed out last is a suspect: then it is the turn of the others.
    was_suspect: bool,
    /// An event that was stored lately.
    template: Option<Arc<Entry>>,
    /// The event that the store refused last, for a rehearsal.
    refused: Option<Arc<Entry>>,
    is_rehearsing: bool,
    /// Who waits for room, in the order in which they asked.
    asking: VecDeque<(SourceIndex, oneshot::Sender<Result<Permit, EnqueueRefused>>)>,
    is_draining: bool,
    /// Who waits for everything to be durable.
    draining: Waiters<Drained>,
    timer: Option<(Instant, SpawnHandle)>,
    hand_outs: HandOut,
    /// How many batches were written.
    successes: u64,
    _lifeline: Lifeline,
}

/// A writer's reply as it arrives, its own death included.
type FlushReply = Result<Result<Flushed, FlushError>, MailboxError>;

impl BatcherActor {
    /// A batcher between `num_sources` consumers, which will [`Join`], and these writers.
    pub fn new(
        settings: BatcherSettings,
        parts: BatcherParts,
        num_sources: usize,
        writers: Vec<Recipient<Flush>>,
        lifeline: Lifeline,
    ) -> Self {
        let max_bytes_in_flight = parts.max_bytes_in_flight;
        Self {
            queue: BatchQueue::new(settings.limits()),
            credit: settings.credit(max_bytes_in_flight, writers.len(), num_sources),
            refusals: Refusals::new(settings.backoff),
            outage: Outage::new(settings.backoff),
            untold: Untold::default(),
            suspects: settings::allowance(max_bytes_in_flight),
            unrest: Unrest::default(),
            was_suspect: false,
            template: None,
            refused: None,
            is_rehearsing: false,
            settings,
            parts,
            writers: writers.into_iter().map(Writer::new).collect(),
            acks: HashMap::new(),
            asking: VecDeque::new(),
            is_draining: false,
            draining: Waiters::default(),
            timer: None,
            hand_outs: 0,
            successes: 0,
            _lifeline: lifeline,
        }
    }

    /// Hands out batches for as long as there is one due and a writer idle.
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
                new_first: self.outage.prefers_new() || self.was_suspect,
                no_suspects: !self.may_examine(),
            };
            match self.queue.next(now, prefer) {
                Next::Write(held, reason) => self.hand_out(index, held, reason, ctx),
                Next::WaitUntil(at) => {
                    self.wake_at(at, ctx);
                    // What only waits for its own sake probes nothing.
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
        self.announce_upcoming();
        self.show_oldest();
        self.answer_drained();
    }

    fn is_writing(&self) -> bool {
        self.writers.iter().any(Writer::is_writing)
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
            reason.as_str(),
        );
        self.parts.metrics.batch_handed_out(reason, &held.batch);
        self.outage
            .tried(Instant::now(), reason == FlushReason::Retry);
        self.was_suspect = held.suspect.is_some();
        self.hand_outs += 1;
        let hand_out = self.hand_outs;
        let flush = writer.begin(hand_out, held, self.template.clone());
        let flush = writer.recipient.send(flush);
        let started = Instant::now();
        ctx.spawn(flush.into_actor(self).map(move |reply, actor, ctx| {
            actor.flushed((index, hand_out), started.elapsed(), reply, ctx);
        }));
    }

    fn flushed(
        &mut self,
        (index, hand_out): (usize, HandOut),
        took: Duration,
        reply: FlushReply,
        ctx: &mut Context<Self>,
    ) {
        let writer = self.writers.get_mut(index);
        let Some(held) = writer.and_then(|writer| writer.end(hand_out)) else {
            return;
        };
        match reply {
            Ok(Ok(flushed)) => {
                self.settle(held, &flushed, took);
                self.note_letters(&flushed, ctx);
            }
            Ok(Err(failed)) => self.not_written(held, &failed),
            Err(error) => {
                if let Some(writer) = self.writers.get_mut(index) {
                    writer.gone = true;
                }
                self.writer_died(held, &format!("writer {index} died: {error}"));
            }
        }
        self.pump(ctx);
    }

    /// The batch is durable: account for it, acknowledge it, let the next chunks in.
    fn settle(&mut self, held: HeldBatch, flushed: &Flushed, took: Duration) {
        let age = held.oldest.elapsed();
        self.parts.metrics.batch_flushed(flushed, took, age);
        self.successes += 1;
        self.store_takes_events();
        self.queue.grow();
        self.remember(&held, flushed);
        self.judge(flushed);
        let mut by_source: HashMap<SourceIndex, Ack> = HashMap::new();
        for (place, (source, receipt)) in held.receipts.into_iter().enumerate() {
            let ack = by_source.entry(source).or_default();
            ack.receipts.push(receipt);
            if flushed.letters.binary_search(&place).is_ok() {
                ack.dead_letters.push(receipt);
            }
        }
        for (source, ack) in by_source {
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
            self.credit.give_back(held.batch.len(), num_bytes);
        }
        self.grant();
    }

    /// Gives permits to those who wait, for as long as there is room.
    fn grant(&mut self) {
        if !self.is_paused() {
            self.grant_to(self.asking.len());
        }
    }

    /// Gives at most so many permits.
    fn grant_to(&mut self, mut num_permits: usize) {
        for _ in 0..self.asking.len() {
            if num_permits == 0 {
                break;
            }
            let Some((source, asker)) = self.asking.pop_front() else {
                break;
            };
            if asker.is_closed() {
                continue;
            }
            match self.credit.grant(source) {
                Some(permit) => {
                    if asker.send(Ok(permit)).is_ok() {
                        num_permits -= 1;
                    } else {
                        self.credit.spend(source, 0, 0);
                    }
                }
                None => self.asking.push_back((source, asker)),
            }
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
        let (asker, answer) = oneshot::channel();
        self.asking.push_back((source, asker));
        if self.is_paused() {
            self.pump(ctx);
        } else {
            self.grant();
        }
        Box::pin(async move { answer.await.unwrap_or(Err(EnqueueRefused)) })
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
        self.credit
            .spend(chunk.source, chunk.deliveries.len(), num_bytes);
        self.queue.push(
            chunk.source,
            chunk.deliveries,
            chunk.more_ready,
            Instant::now(),
        );
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
            if let Some(held) = unanswered {
                self.writer_died(held, "the writer died before it answered");
            }
        }
        self.pump(ctx);
    }
}

impl Handler<Drain> for BatcherActor {
    type Result = Owed<Drained>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        let reply = self.draining.wait();
        self.is_draining = true;
        if let Some(failures) = self.parts.store.closes() {
            log::info!("the store is back failures={failures}");
        }
        self.queue.start_draining();
        for (_, asker) in self.asking.drain(..) {
            asker.send(Err(EnqueueRefused)).ok();
        }
        self.pump(ctx);
        reply
    }
}

stops_when_retired!(BatcherActor);

#[cfg(test)]
mod tests;
