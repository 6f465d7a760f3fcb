//! Starts, watches, drains and restarts the others; the one address that a host sees.
//!
//! Receives [`Drain`], [`Finish`], [`Status`], [`Trim`], [`Retire`]; sends what these take to the others.
//! Guarantee: a part that dies is replaced. A writer or the trimmer alone: the batcher still has
//! what they were working on. When a consumer or the batcher is gone, everything is retired, the
//! sources hand out again what was not acknowledged, and a new *generation* starts.
//!
//! *Why whole generations?* What the batcher held and which receipts belong to it is gone with it.
//! The sources know exactly what was not acknowledged, and the store makes a second delivery
//! harmless, so starting over is both simpler and safer than mending.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::prelude::*;
use futures_util::future::{join, join_all};
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::Backoff;
use crate::batcher::{BatcherActor, BatcherParts, BatcherSettings};
use crate::clock::Clock;
use crate::consumer::{ConsumerActor, ConsumerParts, Downstream};
use crate::db_writer::DbWriterActor;
use crate::event::EventLimits;
use crate::lifeline::{Lifeline, Watch, lifeline};
use crate::messages::{
    AwaitEnd, Drain, Drained, Finish, ReplaceWriter, Retire, SourceIndex, Status, StopReading,
    Trim, TrimError, stops_when_retired,
};
use crate::metrics::Metrics;
use crate::source::EventSource;
use crate::status::{Component, PipelineStatus, State, error_chain};
use crate::store::{EventStore, OpenStore, Trimmed};
use crate::trim::{TrimActor, TrimParts, TrimSettings};
use crate::waiters::Waiters;

/// On which threads the parts run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Placement {
    /// Consumers and batcher on one thread of their own, each writer and the trimmer on another,
    /// so that neither parsing nor a store that blocks disturbs the host.
    #[default]
    OwnArbiters,
    /// All on the thread that starts the pipeline. For tests with paused time.
    SameArbiter,
}

/// How a pipeline works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineSettings {
    /// Connections that write at the same time (2).
    pub writers: NonZeroUsize,
    /// When batches leave, and how much may be held.
    pub batch: BatcherSettings,
    /// Retention; `None` never deletes anything.
    pub trim: Option<TrimSettings>,
    /// On which threads the parts run.
    pub placement: Placement,
}

impl Default for PipelineSettings {
    fn default() -> Self {
        Self {
            writers: NonZeroUsize::MIN.saturating_add(1),
            batch: BatcherSettings::default(),
            trim: Some(TrimSettings::default()),
            placement: Placement::default(),
        }
    }
}

/// What a pipeline is made of.
#[derive(Clone)]
pub struct PipelineParts {
    /// Where events come from; each gets a consumer.
    pub sources: Vec<Arc<dyn EventSource>>,
    /// Where events go; called once for each writer, for the trimmer and for probing.
    pub open_store: OpenStore,
    /// What an event may hold.
    pub event_limits: EventLimits,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// Accounts for every message.
    pub metrics: Metrics,
}

/// The pipeline as one actor.
pub struct PipelineActor {
    settings: PipelineSettings,
    parts: PipelineParts,
    components: Components,
    arbiters: Option<Arbiters>,
    probe: Arc<dyn EventStore>,
    phase: Phase,
    generation: u64,
    started_at: Instant,
    /// Restarts in a row, none of which lived long.
    restarts: u32,
    children: Option<Children>,
    finishing: Waiters<Drained>,
    draining: Waiters<Drained>,
    drained: Option<Drained>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No generation is there yet, or the last one is being retired.
    Starting,
    Running,
    Draining,
    Drained,
}

#[derive(Clone)]
struct Components {
    store: Component,
    sources: Vec<Component>,
    trim: Option<Component>,
}

impl Components {
    fn all(&self) -> impl Iterator<Item = &Component> {
        self.sources.iter().chain([&self.store]).chain(&self.trim)
    }
}

/// One generation.
#[derive(Clone)]
struct Children {
    batcher: Addr<BatcherActor>,
    consumers: Vec<Addr<ConsumerActor>>,
    writers: Vec<Addr<DbWriterActor>>,
    trim: Option<Addr<TrimActor>>,
    /// The batcher and the consumers, without which a generation cannot go on.
    core: Vec<Watch>,
}

/// A part that is replaced alone.
#[derive(Debug, Clone, Copy)]
enum Replaceable {
    Writer(usize),
    Trimmer,
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

/// Starts an actor here or on an arbiter, with a lifeline to watch.
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

/// Tells an actor to stop; one that is gone already need not be told.
async fn retire<A>(addr: Addr<A>)
where
    A: Actor + Handler<Retire>,
    A::Context: ToEnvelope<A, Retire>,
{
    if let Err(error) = addr.send(Retire).await {
        log::trace!("retired one that was gone error={error}");
    }
}

/// Generations that live this long are healthy: the next restart is again the first in a row.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// How often readiness is looked at, and the store probed while it is away.
const TICK: Duration = Duration::from_secs(1);
/// How often the store is probed while it is there and nothing is written.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long sources and stores may take to close once everything else is over.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

impl PipelineActor {
    /// A pipeline that starts when the actor does.
    pub fn new(settings: PipelineSettings, parts: PipelineParts) -> Self {
        let named =
            |source: &Arc<dyn EventSource>| Component::new(format!("source.{}", source.name()));
        let components = Components {
            store: Component::new("store"),
            sources: parts.sources.iter().map(named).collect(),
            trim: settings.trim.as_ref().map(|_| Component::new("trim")),
        };
        Self {
            probe: (parts.open_store)(),
            settings,
            parts,
            components,
            arbiters: None,
            phase: Phase::Starting,
            generation: 0,
            started_at: Instant::now(),
            restarts: 0,
            children: None,
            finishing: Waiters::default(),
            draining: Waiters::default(),
            drained: None,
        }
    }

    fn backoff(&self) -> Backoff {
        self.settings.batch.backoff
    }

    /// Retires the generation that may be there, rewinds the sources, and starts another.
    fn renew(&mut self, after: Duration, ctx: &mut Context<Self>) {
        self.phase = Phase::Starting;
        let old = self.children.take();
        let sources = self.parts.sources.clone();
        let backoff = self.backoff();
        let metrics = self.parts.metrics.clone();
        let prepare = async move {
            if let Some(old) = old {
                old.retire().await;
            }
            let released = metrics.released_all();
            if released > 0 {
                log::info!("left to the sources, which hand it out again messages={released}");
            }
            sleep(after).await;
            join_all(
                sources
                    .iter()
                    .map(|source| rewind(source.as_ref(), backoff)),
            )
            .await;
        };
        ctx.spawn(prepare.into_actor(self).map(|(), actor, ctx| {
            if actor.phase == Phase::Starting {
                actor.start_generation(ctx);
            }
        }));
    }

    fn start_generation(&mut self, ctx: &mut Context<Self>) {
        self.generation += 1;
        self.started_at = Instant::now();
        self.parts.metrics.set_generation(self.generation);
        if self.settings.placement == Placement::OwnArbiters && self.arbiters.is_none() {
            self.arbiters = Some(Arbiters::new(self.settings.writers.get()));
        }
        let writers: Vec<_> = (0..self.settings.writers.get())
            .map(|index| self.start_writer(index, ctx))
            .collect();
        let (batcher, batcher_watch) = self.start_batcher(&writers);
        let mut core = vec![batcher_watch];
        let mut consumers = Vec::new();
        for index in 0..self.parts.sources.len() {
            if let Some((consumer, watch)) = self.start_consumer(index, &batcher) {
                consumers.push(consumer);
                core.push(watch);
            }
        }
        for watch in &core {
            self.restart_when_gone(watch.clone(), ctx);
        }
        self.children = Some(Children {
            batcher,
            consumers,
            writers,
            trim: self.start_trimmer(ctx),
            core,
        });
        self.phase = Phase::Running;
        log::debug!("started generation={}", self.generation);
        if !self.finishing.is_empty() {
            self.finish_when_ended(ctx);
        }
    }

    fn start_batcher(&self, writers: &[Addr<DbWriterActor>]) -> (Addr<BatcherActor>, Watch) {
        let settings = self.settings.batch.clone();
        let parts = BatcherParts {
            store: self.components.store.clone(),
            metrics: self.parts.metrics.clone(),
            clock: Arc::clone(&self.parts.clock),
        };
        let num_sources = self.parts.sources.len();
        let writers = writers.iter().map(|w| w.clone().recipient()).collect();
        start(self.arbiters.as_ref().map(|a| &a.core), move |alive| {
            BatcherActor::new(settings, parts, num_sources, writers, alive)
        })
    }

    fn start_consumer(
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
            backoff: self.backoff(),
        };
        let on = self.arbiters.as_ref().map(|arbiters| &arbiters.core);
        Some(start(on, move |alive| {
            ConsumerActor::new(source, downstream, parts, alive)
        }))
    }

    fn start_writer(&self, index: usize, ctx: &mut Context<Self>) -> Addr<DbWriterActor> {
        let on = self.arbiters.as_ref().and_then(|a| a.writers.get(index));
        let open = Arc::clone(&self.parts.open_store);
        let (writer, watch) = start(on, move |alive| DbWriterActor::new(open(), alive));
        self.replace_when_gone(Replaceable::Writer(index), watch, ctx);
        writer
    }

    fn start_trimmer(&self, ctx: &mut Context<Self>) -> Option<Addr<TrimActor>> {
        let settings = self.settings.trim.clone()?;
        let parts = TrimParts {
            component: self.components.trim.clone()?,
            metrics: self.parts.metrics.clone(),
            clock: Arc::clone(&self.parts.clock),
        };
        let open = Arc::clone(&self.parts.open_store);
        let on = self.arbiters.as_ref().map(|arbiters| &arbiters.trim);
        let (trimmer, watch) = start(on, move |alive| {
            TrimActor::new(open(), settings, parts, alive)
        });
        self.replace_when_gone(Replaceable::Trimmer, watch, ctx);
        Some(trimmer)
    }

    fn restart_when_gone(&self, watch: Watch, ctx: &mut Context<Self>) {
        let generation = self.generation;
        ctx.spawn(watch.gone().into_actor(self).map(move |(), actor, ctx| {
            if actor.phase == Phase::Running && actor.generation == generation {
                actor.restart(ctx);
            }
        }));
    }

    fn restart(&mut self, ctx: &mut Context<Self>) {
        if self.started_at.elapsed() >= HEALTHY_AFTER {
            self.restarts = 0;
        }
        self.restarts = self.restarts.saturating_add(1);
        let delay = self.backoff().random_delay(self.restarts);
        log::error!(
            "a consumer or the batcher has died; the pipeline starts over, nothing is lost \
             generation={} restart_in={delay:?}",
            self.generation
        );
        self.renew(delay, ctx);
    }

    /// Replaces a part a little after its death, so that one that dies at once does not spin.
    fn replace_when_gone(&self, part: Replaceable, watch: Watch, ctx: &mut Context<Self>) {
        let generation = self.generation;
        let delay = self.backoff().random_delay(1);
        let gone = async move {
            watch.gone().await;
            sleep(delay).await;
        };
        ctx.spawn(gone.into_actor(self).map(move |(), actor, ctx| {
            if actor.phase == Phase::Running && actor.generation == generation {
                actor.replace(part, ctx);
            }
        }));
    }

    fn replace(&mut self, part: Replaceable, ctx: &mut Context<Self>) {
        log::error!("a part has died and is replaced, nothing is lost part={part:?}");
        match part {
            Replaceable::Trimmer => {
                let trimmer = self.start_trimmer(ctx);
                if let Some(children) = &mut self.children {
                    children.trim = trimmer;
                }
            }
            Replaceable::Writer(index) => {
                let writer = self.start_writer(index, ctx);
                let Some(children) = &mut self.children else {
                    return;
                };
                let replaced = children.batcher.send(ReplaceWriter {
                    index,
                    writer: writer.clone().recipient(),
                });
                if let Some(slot) = children.writers.get_mut(index) {
                    *slot = writer;
                }
                // A batcher that is gone makes the whole generation start over.
                ctx.spawn(replaced.into_actor(self).map(|_, _, _| ()));
            }
        }
    }

    /// Drains once every source has ended and all of it is durable and acknowledged.
    ///
    /// Until then the pipeline counts as running, so that a part that dies is still replaced.
    fn finish_when_ended(&mut self, ctx: &mut Context<Self>) {
        let Some(children) = self.children.clone() else {
            return;
        };
        let generation = self.generation;
        let finished = async move {
            let ends = children.consumers.iter().map(|c| c.send(AwaitEnd));
            let ended = join_all(ends).await.iter().all(Result::is_ok);
            ended && children.settle(Duration::MAX).await
        };
        ctx.spawn(finished.into_actor(self).map(move |finished, actor, ctx| {
            if finished && actor.phase == Phase::Running && actor.generation == generation {
                actor.drain(Duration::ZERO, ctx);
            }
        }));
    }

    fn drain(&mut self, within: Duration, ctx: &mut Context<Self>) {
        self.phase = Phase::Draining;
        self.parts.metrics.set_ready(false);
        let children = self.children.clone();
        let sources = self.parts.sources.clone();
        let probe = Arc::clone(&self.probe);
        let drain = async move {
            if let Some(children) = &children {
                children.drain(within).await;
            }
            let closing = join_all(sources.iter().map(|source| source.close()));
            let closed = timeout(CLOSE_WITHIN, join(closing, probe.close())).await;
            if closed.is_err() {
                log::warn!("a source or the store did not close within {CLOSE_WITHIN:?}");
            }
            if let Some(children) = children {
                children.retire().await;
            }
        };
        ctx.spawn(
            drain
                .into_actor(self)
                .map(|(), actor, _| actor.has_drained()),
        );
    }

    fn has_drained(&mut self) {
        let drained = Drained {
            released: self.parts.metrics.released_all(),
        };
        self.phase = Phase::Drained;
        self.children = None;
        self.drained = Some(drained);
        for component in self.components.all() {
            component.ended();
        }
        self.draining.answer(&drained);
        self.finishing.answer(&drained);
    }

    fn status(&self) -> PipelineStatus {
        let components: Vec<_> = self.components.all().map(Component::snapshot).collect();
        let reason = match self.phase {
            Phase::Starting => Some("the pipeline is starting".to_owned()),
            Phase::Draining | Phase::Drained => Some("the pipeline is draining".to_owned()),
            Phase::Running => components.iter().find_map(|component| {
                let error = component.last_error.as_deref().unwrap_or("no error told");
                match component.state {
                    // Without the trimmer the tables grow, but no event is refused or lost.
                    _ if component.name == "trim" => None,
                    State::Starting => Some(format!("{} has not answered yet", component.name)),
                    State::Failing => Some(format!("{}: {error}", component.name)),
                    State::Ok | State::Ended => None,
                }
            }),
        };
        PipelineStatus {
            ready: reason.is_none(),
            reason,
            generation: self.generation,
            draining: matches!(self.phase, Phase::Draining | Phase::Drained),
            components,
            ledger: self.parts.metrics.ledger(),
            oldest_unflushed: self.parts.metrics.oldest_unflushed(),
        }
    }

    /// Asks the store how it is while no writer does; with messages in flight their word counts.
    fn watch_store(&mut self, ctx: &mut Context<Self>) {
        self.parts.metrics.set_ready(self.status().ready);
        let state = self.components.store.snapshot().state;
        if matches!(self.phase, Phase::Draining | Phase::Drained) {
            return;
        }
        if state != State::Starting && self.parts.metrics.ledger().in_flight > 0 {
            ctx.run_later(TICK, |actor, ctx| actor.watch_store(ctx));
            return;
        }
        let probe = Arc::clone(&self.probe);
        let check = async move { probe.check().await };
        ctx.spawn(check.into_actor(self).map(|result, actor, ctx| {
            let next = match result {
                Ok(()) => {
                    if actor.components.store.succeeded() {
                        log::info!("the store is back");
                    }
                    PROBE_EVERY
                }
                Err(error) => {
                    let error = error_chain(&error);
                    let at = actor.parts.clock.now();
                    if actor.components.store.failed(error.clone(), at) {
                        log::warn!("the store is not ready; asking until it is error={error}");
                    }
                    TICK
                }
            };
            actor.parts.metrics.set_ready(actor.status().ready);
            ctx.run_later(next, |actor, ctx| actor.watch_store(ctx));
        }));
    }
}

/// Rewinds until it works: without it, what the last generation held would be lost to this one.
async fn rewind(source: &dyn EventSource, backoff: Backoff) {
    let mut failures = 0;
    while let Err(error) = source.rewind().await {
        failures += 1;
        let delay = backoff.random_delay(failures);
        log::warn!(
            "a source could not be rewound source.name={} retry_in={delay:?} error={}",
            source.name(),
            error_chain(&error)
        );
        sleep(delay).await;
    }
}

impl Children {
    /// Waits until all that was enqueued is durable and acknowledged; false if a part has died.
    async fn settle(&self, within: Duration) -> bool {
        let drain = Drain { timeout: within };
        let flushed = self.batcher.send(drain).await;
        let acknowledged = join_all(self.consumers.iter().map(|c| c.send(drain))).await;
        flushed.is_ok() && acknowledged.iter().all(Result::is_ok)
    }

    /// Stops reading and settles what is held, for as long as the time allows.
    async fn drain(&self, within: Duration) {
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
                "the store did not take everything within {within:?}; the rest stays with its source"
            );
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
    async fn retire(self) {
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

impl Actor for PipelineActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match self.phase {
            Phase::Starting | Phase::Running => {
                self.renew(Duration::ZERO, ctx);
                self.watch_store(ctx);
            }
            Phase::Draining => self.drain(Duration::ZERO, ctx),
            Phase::Drained => {}
        }
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        // A supervisor may bring this actor back, and then waits for these before it goes on.
        if let Some(children) = self.children.clone() {
            actix_rt::spawn(children.retire());
        }
    }
}

impl Supervised for PipelineActor {
    /// A host's supervisor brings it back with its numbers; it starts another generation, or goes
    /// on draining.
    fn restarting(&mut self, _: &mut Self::Context) {
        if self.phase == Phase::Running {
            self.phase = Phase::Starting;
        }
    }
}

impl Handler<Drain> for PipelineActor {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, Drain { timeout }: Drain, ctx: &mut Self::Context) -> Self::Result {
        if let Some(drained) = self.drained {
            return Box::pin(std::future::ready(drained));
        }
        if self.phase != Phase::Draining {
            self.drain(timeout, ctx);
        }
        self.draining.wait(Drained { released: 0 })
    }
}

impl Handler<Finish> for PipelineActor {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, _: Finish, ctx: &mut Self::Context) -> Self::Result {
        if let Some(drained) = self.drained {
            return Box::pin(std::future::ready(drained));
        }
        let first = self.finishing.is_empty();
        let reply = self.finishing.wait(Drained { released: 0 });
        if first && self.phase == Phase::Running {
            self.finish_when_ended(ctx);
        }
        reply
    }
}

impl Handler<Status> for PipelineActor {
    type Result = MessageResult<Status>;

    fn handle(&mut self, _: Status, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.status())
    }
}

impl Handler<Trim> for PipelineActor {
    type Result = ResponseFuture<Result<Trimmed, TrimError>>;

    fn handle(&mut self, _: Trim, _: &mut Self::Context) -> Self::Result {
        let trimmer = self.children.as_ref().and_then(|c| c.trim.clone());
        Box::pin(async move {
            let trimmer = trimmer.ok_or(TrimError::Off)?;
            trimmer.send(Trim).await.map_err(|_| TrimError::Off)?
        })
    }
}

stops_when_retired!(PipelineActor);

#[cfg(test)]
mod tests;
