//! One generation of actors: how they are started, drained and retired.

use std::sync::Arc;
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::prelude::*;
use futures_util::future::{join, join_all};
use tokio::time::timeout;

use super::health::Components;
use super::{PipelineParts, PipelineSettings, Placement};
use crate::batcher::{BatcherActor, BatcherParts};
use crate::consumer::{ConsumerActor, ConsumerParts, Downstream};
use crate::db_writer::DbWriterActor;
use crate::delivery::SourceIndex;
use crate::lifeline::{Lifeline, Watch, lifeline};
use crate::messages::{Drain, Retire, StopReading};
use crate::store::Contention;
use crate::trim::{TrimActor, TrimParts};

/// How long stores, and sources, may take to close once everything else is over.
pub(super) const CLOSE_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct Children {
    pub(super) batcher: Addr<BatcherActor>,
    pub(super) consumers: Vec<Addr<ConsumerActor>>,
    pub(super) writers: Vec<Addr<DbWriterActor>>,
    pub(super) trim: Option<Addr<TrimActor>>,
    /// The batcher and the consumers, without which a generation cannot go on.
    pub(super) core: Vec<Watch>,
}

impl Children {
    /// Waits until all that was enqueued is durable and acknowledged; false if a part has died.
    pub(super) async fn settle(&self, within: Duration) -> bool {
        let drain = Drain { timeout: within };
        let flushed = self.batcher.send(drain).await;
        let acknowledged = join_all(self.consumers.iter().map(|c| c.send(drain))).await;
        flushed.is_ok() && acknowledged.iter().all(Result::is_ok)
    }

    pub(super) async fn drain(&self, within: Duration) {
        let orderly = async {
            // The batcher refuses permits from now on, which lets waiting consumers go. A chunk
            // may still be on its way to it, so it is asked again once they have stopped.
            let refuse = self.batcher.send(Drain { timeout: within });
            let stop = join_all(self.consumers.iter().map(|c| c.send(StopReading)));
            let (refused, _) = join(refuse, stop).await;
            refused.is_ok() && self.settle(within).await
        };
        if timeout(within, orderly).await.is_err() && !within.is_zero() {
            log::warn!(
                "the store did not take everything within {within:?}; the rest stays with its \
                 source"
            );
            // The writers are busy with what the store does not take: nothing to wait for.
            return;
        }
        let close = Drain {
            timeout: CLOSE_WITHIN,
        };
        let writers = join_all(self.writers.iter().map(|writer| writer.send(close)));
        let trim = join_all(self.trim.iter().map(|trim| trim.send(close)));
        if timeout(CLOSE_WITHIN, join(writers, trim)).await.is_err() {
            log::warn!("a writer is still busy after {CLOSE_WITHIN:?} and is left behind");
        }
    }

    /// Stops all and waits until no consumer and no batcher is left. A writer may still be at work
    /// on a batch: what it commits, the next delivery finds as a duplicate.
    pub(super) async fn retire(self) {
        for writer in self.writers {
            actix_rt::spawn(retire(writer));
        }
        if let Some(trimmer) = self.trim {
            actix_rt::spawn(retire(trimmer));
        }
        let consumers = join_all(self.consumers.into_iter().map(retire));
        join(retire(self.batcher), consumers).await;
        join_all(self.core.into_iter().map(Watch::gone)).await;
    }
}

pub(super) struct Starter {
    settings: PipelineSettings,
    parts: PipelineParts,
    components: Components,
    contention: Contention,
    arbiters: Option<Arbiters>,
}

impl Starter {
    pub(super) fn new(
        settings: &PipelineSettings,
        parts: &PipelineParts,
        components: &Components,
        contention: Contention,
    ) -> Self {
        let arbiters = match settings.placement {
            Placement::OwnArbiters => Some(Arbiters::new(settings.writers.get())),
            Placement::SameArbiter => None,
        };
        Self {
            settings: settings.clone(),
            parts: parts.clone(),
            components: components.clone(),
            contention,
            arbiters,
        }
    }

    pub(super) fn batcher(&self, writers: &[Addr<DbWriterActor>]) -> (Addr<BatcherActor>, Watch) {
        let settings = self.settings.batch.clone();
        let parts = BatcherParts {
            max_bytes_in_flight: self.settings.max_bytes_in_flight,
            store: self.components.store.clone(),
            contention: self.contention,
            refusals: self.components.refusals.clone(),
            held_up: self.components.held_up.clone(),
            metrics: self.parts.metrics.clone(),
            clock: Arc::clone(&self.parts.clock),
        };
        let num_sources = self.parts.sources.len();
        let writers = writers.iter().map(|w| w.clone().recipient()).collect();
        start(self.arbiters.as_ref().map(|a| &a.core), move |alive| {
            BatcherActor::new(settings, parts, num_sources, writers, alive)
        })
    }

    pub(super) fn consumer(
        &self,
        index: usize,
        batcher: &Addr<BatcherActor>,
    ) -> Option<(Addr<ConsumerActor>, Watch)> {
        let source = Arc::clone(self.parts.sources.get(index)?);
        let downstream = Downstream {
            index: SourceIndex(index),
            join: batcher.clone().recipient(),
            enqueue: batcher.clone().recipient(),
        };
        let parts = ConsumerParts {
            component: self.components.sources.get(index)?.clone(),
            limits: self.parts.event_limits.clone(),
            metrics: self.parts.metrics.clone(),
            clock: Arc::clone(&self.parts.clock),
            backoff: self.settings.batch.backoff,
            retention: self.settings.retention.clone(),
        };
        let on = self.arbiters.as_ref().map(|arbiters| &arbiters.core);
        Some(start(on, move |alive| {
            ConsumerActor::new(source, downstream, parts, alive)
        }))
    }

    pub(super) fn writer(&self, index: usize) -> (Addr<DbWriterActor>, Watch) {
        let on = self.arbiters.as_ref().and_then(|a| a.writers.get(index));
        let open = Arc::clone(&self.parts.open_store);
        let clock = Arc::clone(&self.parts.clock);
        start(on, move |alive| DbWriterActor::new(open(), clock, alive))
    }

    /// `None` where nothing is ever trimmed.
    pub(super) fn trimmer(&self) -> Option<(Addr<TrimActor>, Watch)> {
        let settings = self.settings.trim.clone()?;
        let parts = TrimParts {
            component: self.components.trim.clone()?,
            passes: self.components.passes.clone(),
            metrics: self.parts.metrics.clone(),
            clock: Arc::clone(&self.parts.clock),
        };
        let open = Arc::clone(&self.parts.open_store);
        let on = self.arbiters.as_ref().map(|arbiters| &arbiters.trim);
        Some(start(on, move |alive| {
            TrimActor::new(open(), settings, parts, alive)
        }))
    }
}

struct Arbiters {
    core: Arbiter,
    writers: Vec<Arbiter>,
    trim: Arbiter,
}

impl Arbiters {
    fn new(num_writers: usize) -> Self {
        Self {
            core: Arbiter::new(),
            writers: (0..num_writers).map(|_| Arbiter::new()).collect(),
            trim: Arbiter::new(),
        }
    }
}

impl Drop for Arbiters {
    fn drop(&mut self) {
        for arbiter in self.writers.iter().chain([&self.core, &self.trim]) {
            arbiter.stop();
        }
    }
}

fn start<A>(
    on: Option<&Arbiter>,
    make: impl FnOnce(Lifeline) -> A + Send + 'static,
) -> (Addr<A>, Watch)
where
    A: Actor<Context = Context<A>>,
{
    let (alive, watch) = lifeline();
    let addr = match on {
        Some(arbiter) => A::start_in_arbiter(&arbiter.handle(), move |_| make(alive)),
        None => make(alive).start(),
    };
    (addr, watch)
}

async fn retire<A>(addr: Addr<A>)
where
    A: Actor + Handler<Retire>,
    A::Context: ToEnvelope<A, Retire>,
{
    if let Err(error) = addr.send(Retire).await {
        log::trace!("retired one that was gone error={error}");
    }
}
