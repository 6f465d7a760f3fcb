//! Rewinds one source, reads it, and forwards what it brings, parsed, in chunks.
//!
//! Receives [`Ack`], [`StopReading`], [`AwaitEnd`], [`Drain`]; sends [`Join`], then [`Enqueue`].
//! Guarantee: a receipt goes back to the source only after the batcher's `Ack`, or for a message
//! that is empty. A message that cannot be parsed travels on as a rejection, never vanishes.
//! When this actor dies, what it had read and not enqueued comes again after a rewind.

use std::mem;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::delivery::{Delivery, Entry, Position, Receipt, SourceIndex};
use crate::event::{EventLimits, Received};
use crate::failpoint;
use crate::lifeline::Lifeline;
use crate::messages::{
    Ack, AwaitEnd, Drain, Drained, Enqueue, EnqueueRefused, Join, StopReading, stops_when_retired,
};
use crate::metrics::{Metrics, RetryKind};
use crate::retention::Retention;
use crate::source::{Body, Chunk, EventSource, Message, More, Permit, SourceError};
use crate::status::{Component, error_chain};
use crate::waiters::{LateReply, Waiters};

#[derive(Clone)]
pub(crate) struct ConsumerParts {
    pub(crate) component: Component,
    pub(crate) limits: EventLimits,
    pub(crate) metrics: Metrics,
    /// Dates events without a `received`, and errors.
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) backoff: Backoff,
    /// By which events count as old when they come; `None` counts none.
    pub(crate) retention: Option<Retention>,
}

/// The batcher, and which source this is to it.
#[derive(Clone)]
pub(crate) struct Downstream {
    pub(crate) index: SourceIndex,
    pub(crate) join: Recipient<Join>,
    pub(crate) enqueue: Recipient<Enqueue>,
}

pub(crate) struct ConsumerActor {
    source: Arc<dyn EventSource>,
    source_name: Arc<str>,
    downstream: Downstream,
    parts: ConsumerParts,
    stage: Stage,
    /// Told to stop, or refused by a batcher that drains.
    is_stopping: bool,
    failed_reads: u32,
    acks: Acks,
    stopping: Waiters<()>,
    ending: Waiters<()>,
    draining: Waiters<Drained>,
    _lifeline: Lifeline,
}

/// The step that the next new message waits for.
enum Stage {
    /// Waiting for the batcher: for a permit, after its last chunk or before its first.
    AtBatcher,
    /// Waiting for the source to be rewound, or to try that again: the batcher does not know us yet.
    Rewinding(SpawnHandle),
    BetweenReads(SpawnHandle),
    AtSource(SpawnHandle),
    /// Waiting for the source to take receipts back, with a permit for the next read.
    AtAcks(Permit),
    Ended,
    /// Nothing is read any more, and nothing that the source took is left with it.
    Stopped,
}

impl ConsumerActor {
    pub(crate) fn new(
        source: Arc<dyn EventSource>,
        downstream: Downstream,
        parts: ConsumerParts,
        lifeline: Lifeline,
    ) -> Self {
        Self {
            source_name: Arc::from(source.name()),
            source,
            downstream,
            parts,
            stage: Stage::AtBatcher,
            is_stopping: false,
            failed_reads: 0,
            acks: Acks::default(),
            stopping: Waiters::default(),
            ending: Waiters::default(),
            draining: Waiters::default(),
            _lifeline: lifeline,
        }
    }

    /// Makes the source hand out again what an earlier consumer had taken, then goes on to join.
    ///
    /// Until that works nothing is read: it would be lost to this generation.
    fn rewind(&mut self, ctx: &mut Context<Self>) {
        let source = Arc::clone(&self.source);
        let rewind = async move { source.rewind().await };
        let handle = ctx.spawn(
            rewind
                .into_actor(self)
                .map(|result, actor, ctx| actor.has_rewound(result, ctx)),
        );
        self.stage = Stage::Rewinding(handle);
    }

    fn has_rewound(&mut self, result: Result<(), SourceError>, ctx: &mut Context<Self>) {
        if let Err(error) = result {
            let delay = self.next_delay();
            self.note_failure(RetryKind::Rewind, "could not be rewound", &error);
            let handle = ctx.run_later(delay, |actor, ctx| actor.rewind(ctx));
            self.stage = Stage::Rewinding(handle);
            return;
        }
        self.failed_reads = 0;
        self.stage = Stage::AtBatcher;
        let join = self.downstream.join.send(Join {
            source: self.downstream.index,
            acks: ctx.address().recipient(),
        });
        ctx.spawn(
            join.into_actor(self)
                .map(|reply, actor, ctx| actor.permitted(reply, ctx)),
        );
    }

    fn next_delay(&mut self) -> Duration {
        self.failed_reads = self.failed_reads.saturating_add(1);
        self.parts.backoff.random_delay(self.failed_reads)
    }

    fn read(&mut self, permit: Permit, ctx: &mut Context<Self>) {
        if self.acks.are_too_many(permit) {
            self.stage = Stage::AtAcks(permit);
            return;
        }
        let source = Arc::clone(&self.source);
        let read = async move { source.read(permit).await };
        let handle = ctx.spawn(
            read.into_actor(self)
                .map(move |chunk, actor, ctx| actor.has_read(chunk, permit, ctx)),
        );
        self.stage = Stage::AtSource(handle);
    }

    fn has_read(
        &mut self,
        chunk: Result<Chunk, SourceError>,
        permit: Permit,
        ctx: &mut Context<Self>,
    ) {
        match chunk {
            Ok(chunk) => {
                // A source that is told to end its reading ends it, whether it could be read or not.
                if !(self.is_stopping && chunk.messages.is_empty()) {
                    self.failed_reads = 0;
                    self.note_success();
                }
                self.forward(chunk, permit, ctx);
            }
            Err(error) => self.read_failed(&error, permit, ctx),
        }
    }

    fn read_failed(&mut self, error: &SourceError, permit: Permit, ctx: &mut Context<Self>) {
        if self.is_stopping {
            log::debug!("the last read failed error={}", error_chain(error));
            return self.stop_reading();
        }
        let delay = self.next_delay();
        self.note_failure(RetryKind::Read, "could not be read", error);
        let handle = ctx.run_later(delay, move |actor, ctx| actor.read(permit, ctx));
        self.stage = Stage::BetweenReads(handle);
    }

    fn forward(&mut self, chunk: Chunk, permit: Permit, ctx: &mut Context<Self>) {
        let num_read = chunk.messages.len();
        let again = chunk.messages.iter().filter(|m| m.redelivered).count();
        self.parts.metrics.received(num_read - again, again);
        let mut empty = Vec::new();
        let mut deliveries = Vec::with_capacity(num_read);
        let now = self.parts.clock.now();
        let came = Instant::now();
        let mut num_old = 0;
        for message in chunk.messages {
            let is_new = !message.redelivered;
            match self.deliver(message, came) {
                Ok(delivery) => {
                    num_old += u64::from(is_new && self.is_old(&delivery, now));
                    deliveries.push(delivery);
                }
                Err(receipt) => empty.push(receipt),
            }
        }
        if num_old > 0 {
            self.parts.metrics.came_late(num_old);
        }
        if !empty.is_empty() {
            self.parts.metrics.ignored(empty.len());
            self.acknowledge(empty, ctx);
        }
        let more = chunk.more;
        if deliveries.is_empty() && more != More::Ended {
            return self.read(permit, ctx);
        }
        if deliveries.is_empty() && self.is_stopping {
            return self.stop_reading();
        }
        let enqueue = self.downstream.enqueue.send(Enqueue {
            source: self.downstream.index,
            deliveries,
            more_ready: more == More::Ready,
        });
        self.stage = Stage::AtBatcher;
        ctx.spawn(enqueue.into_actor(self).map(move |reply, actor, ctx| {
            if reply.is_ok() && more == More::Ended {
                actor.source_ended();
            } else {
                actor.permitted(reply, ctx);
            }
        }));
    }

    /// Whether it is an event that retention no longer keeps: it is stored, and goes with the next pass.
    fn is_old(&self, delivery: &Delivery, now: DateTime<Utc>) -> bool {
        let event = delivery.entry.event();
        let retention = self.parts.retention.as_ref();
        event
            .zip(retention)
            .is_some_and(|(event, retention)| retention.is_over(event.occurred, &event.event, now))
    }

    /// The delivery of a message, or the receipt of an empty one.
    fn deliver(&self, message: Message, came: Instant) -> Result<Delivery, Receipt> {
        let entry = match message.body {
            Body::Raw { data, .. } if data.is_empty() => return Err(message.receipt),
            Body::Raw { position, data } => Arc::new(self.parse(position, data)),
            Body::Entry(entry) => entry,
        };
        Ok(Delivery {
            source: self.downstream.index,
            receipt: message.receipt,
            came,
            entry,
        })
    }

    fn parse(&self, position: Position, data: Bytes) -> Entry {
        let received = Received::FromText {
            default: self.parts.clock.now(),
        };
        let source = Arc::clone(&self.source_name);
        Entry::parse(source, position, data, &self.parts.limits, received)
    }

    /// The batcher's answer to a chunk or to the first call: read on, or not.
    fn permitted(
        &mut self,
        reply: Result<Result<Permit, EnqueueRefused>, MailboxError>,
        ctx: &mut Context<Self>,
    ) {
        match reply {
            Ok(Ok(permit)) if !self.is_stopping => {
                self.parts.component.started();
                self.read(permit, ctx);
            }
            Ok(_) => self.read_the_rest(ctx),
            // The batcher is gone; the pipeline starts anew, with another consumer.
            Err(error) => {
                log::debug!("the batcher is gone error={error}");
                ctx.stop();
            }
        }
    }

    fn acknowledge(&mut self, receipts: Vec<Receipt>, ctx: &mut Context<Self>) {
        self.acks.waiting.extend(receipts);
        if self.acks.under_way || self.acks.waiting.is_empty() {
            return;
        }
        self.acks.under_way = true;
        let receipts = mem::take(&mut self.acks.waiting);
        self.acks.num_sent = receipts.len();
        let source = Arc::clone(&self.source);
        let acknowledge = async move {
            failpoint::pass("consumer::before-acknowledge");
            let result = source.acknowledge(&receipts).await;
            failpoint::pass("consumer::after-acknowledge");
            (receipts, result)
        };
        ctx.spawn(
            acknowledge
                .into_actor(self)
                .map(|(receipts, result), actor, ctx| actor.acknowledged(receipts, result, ctx)),
        );
    }

    fn acknowledged(
        &mut self,
        receipts: Vec<Receipt>,
        result: Result<(), SourceError>,
        ctx: &mut Context<Self>,
    ) {
        self.acks.num_sent = 0;
        match result {
            Ok(()) => {
                self.acks.under_way = false;
                if mem::take(&mut self.acks.failures) > 0 {
                    self.note_success();
                }
                self.acknowledge(Vec::new(), ctx);
                if let Stage::AtAcks(permit) = self.stage {
                    self.read(permit, ctx);
                }
                if self.acks.is_empty() {
                    self.draining.answer(&Drained { released: 0 });
                }
            }
            Err(error) => {
                let what = "could not be told what is durable";
                self.note_failure(RetryKind::Acknowledge, what, &error);
                self.acks.waiting.extend(receipts);
                self.acks.failures = self.acks.failures.saturating_add(1);
                let delay = self.parts.backoff.random_delay(self.acks.failures);
                ctx.run_later(delay, |actor, ctx| {
                    actor.acks.under_way = false;
                    actor.acknowledge(Vec::new(), ctx);
                });
            }
        }
    }

    /// Reads what the source has taken and not handed out, then stops.
    ///
    /// It is in memory already, and stays in flight if it is left: so no permit is needed.
    fn read_the_rest(&mut self, ctx: &mut Context<Self>) {
        self.is_stopping = true;
        if self.source.end_reading() {
            self.read(Permit::UNLIMITED, ctx);
        } else {
            self.stop_reading();
        }
    }

    fn source_ended(&mut self) {
        self.parts.component.ended();
        self.stage = Stage::Ended;
        self.ending.answer(&());
        self.stopping.answer(&());
    }

    fn stop_reading(&mut self) {
        self.stage = Stage::Stopped;
        self.stopping.answer(&());
    }

    /// A success ends a failure once neither reading nor acknowledging fails any more.
    fn note_success(&self) {
        if self.failed_reads > 0 || self.acks.failures > 0 {
            return;
        }
        if let Some(failures) = self.parts.component.succeeded() {
            self.log_return(failures);
        }
    }

    /// Nothing more is read: failures that are over are logged now or never.
    fn note_end(&self) {
        if let Some(failures) = self.parts.component.closes() {
            self.log_return(failures);
        }
    }

    fn log_return(&self, failures: NonZeroU64) {
        log::info!(
            "the source is back source.name={} failures={failures}",
            self.source_name
        );
    }

    fn note_failure(&self, kind: RetryKind, what: &str, error: &SourceError) {
        self.parts.metrics.retries(kind);
        let consequence = match error {
            SourceError::Unavailable { .. } | SourceError::TimedOut { .. } => {
                "retrying until it works"
            }
            SourceError::Broken { .. } => "nothing more is read of it",
        };
        let error = error_chain(error);
        let at = self.parts.clock.now();
        let first = self.parts.component.failed(error.clone(), at);
        let level = if first {
            log::Level::Warn
        } else {
            log::Level::Debug
        };
        log::log!(
            level,
            "a source {what}; {consequence} source.name={} error={error}",
            self.source_name
        );
    }
}

impl Actor for ConsumerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.rewind(ctx);
    }
}

impl Handler<Ack> for ConsumerActor {
    type Result = ();

    fn handle(&mut self, ack: Ack, ctx: &mut Self::Context) {
        if !ack.dead_letters.is_empty() {
            self.source.note_dead_letters(&ack.dead_letters);
        }
        self.acknowledge(ack.receipts, ctx);
    }
}

impl Handler<StopReading> for ConsumerActor {
    type Result = LateReply<()>;

    fn handle(&mut self, _: StopReading, ctx: &mut Self::Context) -> Self::Result {
        let reply = self.stopping.wait();
        self.is_stopping = true;
        self.note_end();
        match self.stage {
            Stage::AtSource(_) if self.source.end_reading() => {}
            // What the read may have taken stays with the source.
            Stage::AtSource(handle) => {
                ctx.cancel_future(handle);
                self.stop_reading();
            }
            Stage::BetweenReads(handle) => {
                ctx.cancel_future(handle);
                self.read_the_rest(ctx);
            }
            // The batcher would not know whom to tell what of the rest is durable.
            Stage::Rewinding(handle) => {
                ctx.cancel_future(handle);
                self.source.end_reading();
                self.stop_reading();
            }
            Stage::AtAcks(_) => self.read_the_rest(ctx),
            Stage::Ended | Stage::Stopped => self.stopping.answer(&()),
            Stage::AtBatcher => {}
        }
        reply
    }
}

impl Handler<AwaitEnd> for ConsumerActor {
    type Result = LateReply<()>;

    fn handle(&mut self, _: AwaitEnd, _: &mut Self::Context) -> Self::Result {
        let reply = self.ending.wait();
        if matches!(self.stage, Stage::Ended) {
            self.ending.answer(&());
        }
        reply
    }
}

impl Handler<Drain> for ConsumerActor {
    type Result = LateReply<Drained>;

    /// Answered once every receipt that the batcher sent is back with the source.
    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let reply = self.draining.wait();
        if self.acks.is_empty() {
            self.draining.answer(&Drained { released: 0 });
        }
        reply
    }
}

stops_when_retired!(ConsumerActor);

/// Receipts that the source has not taken back, in messages of a permit: as much as two writers
/// have in flight, far more than one acknowledgement under way leaves behind.
const MAX_UNCONFIRMED: usize = 4;

#[derive(Default)]
struct Acks {
    waiting: Vec<Receipt>,
    num_sent: usize,
    under_way: bool,
    failures: u32,
}

impl Acks {
    /// Whether to read on would let receipts pile up, here and in the source, for as long as the
    /// source takes none back: a user of Redis who may read and not acknowledge, say.
    fn are_too_many(&self, permit: Permit) -> bool {
        self.waiting.len() + self.num_sent >= permit.max_messages.saturating_mul(MAX_UNCONFIRMED)
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && !self.under_way
    }
}

#[cfg(test)]
mod tests;
