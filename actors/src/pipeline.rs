//! Starts, watches, drains and restarts the others; the one address that a host sees.
//!
//! Receives [`Drain`], [`Finish`], [`Status`], [`Trim`], [`Retire`](crate::messages::Retire).
//! Guarantee: a part that dies is replaced. A writer or the trimmer is replaced alone, since the
//! batcher still has what it was working on. When a consumer or the batcher is gone, what it held
//! is unknown: all are retired, the sources hand out again what was not acknowledged, and a new
//! *generation* starts. The store makes a second delivery harmless.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::{join, join_all};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::Backoff;
pub use crate::batcher::BatcherSettings;
use crate::clock::{Clock, SystemClock};
use crate::db_writer::DbWriterActor;
use crate::event::EventLimits;
use crate::lifeline::Watch;
use crate::messages::{
    AwaitEnd, Drain, Drained, Finish, ReplaceWriter, Status, Trim, TrimError, stops_when_retired,
};
use crate::metrics::Metrics;
use crate::retention::Retention;
use crate::settings::{As, AtMost, Size};
use crate::source::EventSource;
use crate::store::{EventStore, OpenStore, Trimmed};
use crate::trim::{TrimActor, TrimSettings};
use crate::waiters::{LateReply, Waiters};

mod children;
mod health;

use children::{CLOSE_WITHIN, Children, Starter};
use health::Components;

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

/// What a pipeline may take, when it writes, and what it deletes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PipelineSettings {
    /// How many write at the same time, each on a thread of its own, at most 64; on PostgreSQL over two
    /// connections, one of them to copy large batches. More helps a database with cores to spare; SQLite
    /// writes one at a time.
    // Each has a connection and a thread, and a share in the memory. No database is faster with more, and
    // a slip of the finger must not exhaust it.
    #[serde(with = "As::<AtMost<64>>")]
    pub writers: NonZeroUsize,
    /// Bytes of events between source and commit; the bound on memory. One event larger than this still
    /// passes, alone.
    #[serde(with = "As::<Size>")]
    pub max_bytes_in_flight: NonZeroUsize,
    /// When batches leave, and how those that fail are tried again.
    #[serde(skip)]
    pub batch: BatcherSettings,
    /// Retention; `None` never deletes anything.
    #[serde(skip)]
    pub trim: Option<TrimSettings>,
    /// By which events count as old when they come, which is counted; `None` counts none.
    #[serde(skip)]
    pub retention: Option<Retention>,
    /// On which threads the parts run.
    #[serde(skip)]
    pub placement: Placement,
}

impl Default for PipelineSettings {
    fn default() -> Self {
        const MAX_BYTES_IN_FLIGHT: NonZeroUsize = NonZeroUsize::new(64 << 20).unwrap();
        Self {
            writers: NonZeroUsize::MIN.saturating_add(1),
            max_bytes_in_flight: MAX_BYTES_IN_FLIGHT,
            batch: BatcherSettings::default(),
            trim: Some(TrimSettings::default()),
            retention: Some(Retention::from(&TrimSettings::default())),
            placement: Placement::default(),
        }
    }
}

impl PipelineSettings {
    /// Never deletes anything; by default events go a week after they occurred.
    pub fn without_retention(mut self) -> Self {
        self.trim = None;
        self.retention = None;
        self
    }

    /// All on the thread that starts the pipeline: for tests with paused time.
    pub fn on_one_thread(mut self) -> Self {
        self.placement = Placement::SameArbiter;
        self
    }
}

/// The parts that a pipeline is made of.
#[derive(Clone)]
pub struct PipelineParts {
    /// Where events come from; each gets a consumer.
    pub sources: Vec<Arc<dyn EventSource>>,
    /// Where events go; called once for each writer, for the trimmer and for probing.
    pub open_store: OpenStore,
    /// The limits of an event.
    pub event_limits: EventLimits,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// Counts every message; a clone can be registered to be scraped.
    pub metrics: Metrics,
}

impl PipelineParts {
    /// From these sources into this store, with the usual limits, the system's clock, and metrics of its own.
    ///
    /// # Errors
    ///
    /// Never; as [`Metrics::new`] says.
    pub fn new(
        sources: Vec<Arc<dyn EventSource>>,
        open_store: OpenStore,
    ) -> Result<Self, prometheus::Error> {
        Ok(Self {
            sources,
            open_store,
            event_limits: EventLimits::default(),
            clock: Arc::new(SystemClock),
            metrics: Metrics::new()?,
        })
    }
}

/// The pipeline as one actor.
pub struct PipelineActor {
    settings: PipelineSettings,
    parts: PipelineParts,
    components: Components,
    /// Made with the first generation, and with it the threads that all of them share.
    starter: Option<Starter>,
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
    is_degraded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No generation is there yet, or the last one is being retired.
    Starting,
    Running,
    Draining,
    Drained,
}

#[derive(Debug, Clone, Copy)]
enum Replaceable {
    Writer(usize),
    Trimmer,
}

/// Generations that live this long are healthy: the next restart is again the first in a row.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

impl PipelineActor {
    /// A pipeline that starts when the actor does.
    pub fn new(settings: PipelineSettings, parts: PipelineParts) -> Self {
        Self {
            probe: (parts.open_store)(),
            components: Components::new(&settings, &parts),
            settings,
            parts,
            starter: None,
            phase: Phase::Starting,
            generation: 0,
            started_at: Instant::now(),
            restarts: 0,
            children: None,
            finishing: Waiters::default(),
            draining: Waiters::default(),
            drained: None,
            is_degraded: false,
        }
    }

    fn backoff(&self) -> Backoff {
        self.settings.batch.backoff
    }

    /// Retires the generation that may be there and starts another, which rewinds the sources.
    fn renew(&mut self, after: Duration, ctx: &mut Context<Self>) {
        self.phase = Phase::Starting;
        let old = self.children.take();
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
        let starter = self.starter.take().unwrap_or_else(|| {
            let contention = self.probe.contention();
            Starter::new(&self.settings, &self.parts, &self.components, contention)
        });
        let writers: Vec<_> = (0..self.settings.writers.get())
            .map(|index| self.start_writer(&starter, index, ctx))
            .collect();
        let (batcher, batcher_watch) = starter.batcher(&writers);
        let (consumers, mut core): (Vec<_>, Vec<_>) = (0..self.parts.sources.len())
            .filter_map(|index| starter.consumer(index, &batcher))
            .unzip();
        core.push(batcher_watch);
        for watch in &core {
            self.restart_when_gone(watch.clone(), ctx);
        }
        self.children = Some(Children {
            batcher,
            consumers,
            writers,
            trim: self.start_trimmer(&starter, ctx),
            core,
        });
        self.starter = Some(starter);
        self.phase = Phase::Running;
        log::debug!("started generation={}", self.generation);
        if !self.finishing.is_empty() {
            self.finish_when_ended(ctx);
        }
    }

    fn start_writer(
        &self,
        starter: &Starter,
        index: usize,
        ctx: &mut Context<Self>,
    ) -> Addr<DbWriterActor> {
        let (writer, watch) = starter.writer(index);
        self.replace_when_gone(Replaceable::Writer(index), watch, ctx);
        writer
    }

    fn start_trimmer(&self, starter: &Starter, ctx: &mut Context<Self>) -> Option<Addr<TrimActor>> {
        let (trimmer, watch) = starter.trimmer()?;
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
        let (Some(starter), Some(mut children)) = (self.starter.take(), self.children.take())
        else {
            return;
        };
        match part {
            Replaceable::Trimmer => children.trim = self.start_trimmer(&starter, ctx),
            Replaceable::Writer(index) => {
                let writer = self.start_writer(&starter, index, ctx);
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
        self.starter = Some(starter);
        self.children = Some(children);
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
        self.show();
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
                log::warn!("a source did not close within {CLOSE_WITHIN:?}");
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
        self.show();
        self.draining.answer(&drained);
        self.finishing.answer(&drained);
    }
}

impl Actor for PipelineActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match self.phase {
            Phase::Starting | Phase::Running => {
                self.renew(Duration::ZERO, ctx);
                self.watch_store(ctx);
                self.keep_showing(ctx);
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

/// A host's supervisor brings it back with its numbers; then it starts another generation, or goes on draining.
impl Supervised for PipelineActor {}

impl Handler<Drain> for PipelineActor {
    type Result = LateReply<Drained>;

    fn handle(&mut self, Drain { timeout }: Drain, ctx: &mut Self::Context) -> Self::Result {
        if let Some(drained) = self.drained {
            return LateReply::at_once(drained);
        }
        if self.phase != Phase::Draining {
            self.drain(timeout, ctx);
        }
        self.draining.wait()
    }
}

impl Handler<Finish> for PipelineActor {
    type Result = LateReply<Drained>;

    fn handle(&mut self, _: Finish, ctx: &mut Self::Context) -> Self::Result {
        if let Some(drained) = self.drained {
            return LateReply::at_once(drained);
        }
        if self.phase == Phase::Running {
            self.finish_when_ended(ctx);
        }
        self.finishing.wait()
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
