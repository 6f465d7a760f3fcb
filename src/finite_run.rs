//! A pipeline on one source that has an end, until that end or until somebody stops it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor as _, Addr};
use anyhow::Context as _;
use event_persister_actors::event::EventLimits;
use event_persister_actors::messages::{Drain, Drained, Finish, Status};
use event_persister_actors::metrics::{LedgerCounts, Metrics};
use event_persister_actors::pipeline::{PipelineActor, PipelineParts};
use event_persister_actors::source::EventSource;
use event_persister_actors::status::ComponentState;
use event_persister_actors::store::OpenStore;
use tokio::time::Instant;

use crate::config::Config;
use crate::signals::{Signals, Stop};
use crate::wiring;

/// How often progress is looked at; faster is more than an eye sees.
const TICK: Duration = Duration::from_millis(100);

pub(crate) enum End {
    Finished,
    Interrupted(Stop, Drained),
    Failed(String),
    /// How long the store was away, and why.
    GaveUp(Duration, String),
}

/// While the store is away, what is held would not become durable however long it took.
const NOT_WAITED_FOR: Duration = Duration::from_millis(200);

#[derive(Clone, Copy)]
pub(crate) struct Words {
    /// What to do if the pipeline is gone.
    pub(crate) again: &'static str,
    /// Where it writes.
    pub(crate) place: &'static str,
}

/// Where a run writes to.
pub(crate) struct Destination {
    pub(crate) open_store: OpenStore,
    /// What an event may hold.
    pub(crate) event_limits: EventLimits,
    pub(crate) words: Words,
}

/// A pipeline at work on one source.
pub(crate) struct FiniteRun {
    pipeline: Addr<PipelineActor>,
    drain: Drain,
    metrics: Metrics,
    started: Instant,
    words: Words,
    /// For how long the store may be away; `None` for ever.
    patience: Option<Duration>,
}

impl FiniteRun {
    pub(crate) fn start(
        config: &Config,
        source: Arc<dyn EventSource>,
        destination: Destination,
        patience: Option<Duration>,
    ) -> anyhow::Result<Self> {
        let metrics = Metrics::new().context("cannot set the metrics up")?;
        let sources = vec![source];
        let parts = PipelineParts {
            event_limits: destination.event_limits,
            ..wiring::pipeline_parts(config, sources, destination.open_store, metrics.clone())
        };
        Ok(Self {
            pipeline: PipelineActor::new(wiring::finite_settings(config), parts).start(),
            drain: Drain {
                timeout: config.drain_timeout,
            },
            metrics,
            started: Instant::now(),
            words: destination.words,
            patience,
        })
    }

    pub(crate) fn ledger(&self) -> LedgerCounts {
        self.metrics.ledger()
    }

    pub(crate) fn older_than_retention(&self) -> u64 {
        self.metrics.older_than_retention()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for the end. `look` is called at every tick, and may say why the source cannot be read
    /// further; what was read before is still written.
    pub(crate) async fn to_end(
        &self,
        signals: &mut Signals,
        look: impl Fn(&LedgerCounts) -> Option<String>,
    ) -> anyhow::Result<End> {
        let gone = || format!("the pipeline has stopped by itself; {}", self.words.again);
        let mut finish = pin!(self.pipeline.send(Finish));
        let mut ticks = actix_rt::time::interval(TICK);
        let mut absence: Option<Absence> = None;
        loop {
            tokio::select! {
                finished = &mut finish => {
                    finished.with_context(gone)?;
                    return Ok(End::Finished);
                }
                stop = signals.next() => {
                    let drain = if absence.is_some() {
                        log::info!("{stop}; stopping, since {} cannot be written to", self.words.place);
                        Drain { timeout: NOT_WAITED_FOR }
                    } else {
                        log::info!("{stop}; writing what is held, then stopping");
                        self.drain
                    };
                    Signals::listen()?.next_is_final();
                    let drained = self.pipeline.send(drain).await.with_context(gone)?;
                    return Ok(End::Interrupted(stop, drained));
                }
                _ = ticks.tick() => {
                    if let Some(failure) = look(&self.ledger()) {
                        self.pipeline.send(self.drain).await.with_context(gone)?;
                        return Ok(End::Failed(failure));
                    }
                    absence = self.look_at_store(absence).await.with_context(gone)?;
                    if let Some((waited, error)) = self.has_waited_too_long(absence.as_ref()) {
                        let drain = Drain { timeout: NOT_WAITED_FOR };
                        self.pipeline.send(drain).await.with_context(gone)?;
                        return Ok(End::GaveUp(waited, error));
                    }
                }
            }
        }
    }

    /// Warns when an absence of the store begins.
    async fn look_at_store(
        &self,
        before: Option<Absence>,
    ) -> Result<Option<Absence>, actix::MailboxError> {
        let status = self.pipeline.send(Status).await?;
        let mut parts = status.components.into_iter();
        let store =
            parts.find(|part| part.name == "store" && part.state == ComponentState::Failing);
        let Some(store) = store else {
            return Ok(None);
        };
        let error = store.last_error.unwrap_or_default();
        let since = match before {
            Some(absence) => absence.since,
            None => {
                let limit = self.patience.map_or_else(String::new, |patience| {
                    format!(", for at most {}", humantime::format_duration(patience))
                });
                log::warn!(
                    "waiting for {}{limit}; SIGINT (Ctrl-C) ends it",
                    self.words.place
                );
                Instant::now()
            }
        };
        Ok(Some(Absence { since, error }))
    }

    fn has_waited_too_long(&self, absence: Option<&Absence>) -> Option<(Duration, String)> {
        let (absence, patience) = absence.zip(self.patience)?;
        let is_over = absence.since.elapsed() >= patience;
        is_over.then(|| (patience, absence.error.clone()))
    }
}

struct Absence {
    since: Instant,
    error: String,
}
