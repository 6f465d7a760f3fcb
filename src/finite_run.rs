//! One source that has an end, through the same pipeline as the service's: until that end, or until
//! somebody stops it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor as _, Addr};
use anyhow::Context as _;
use event_persister_actors::messages::{Drain, Drained, Finish};
use event_persister_actors::metrics::{LedgerCounts, Metrics};
use event_persister_actors::pipeline::PipelineActor;
use event_persister_actors::source::EventSource;
use tokio::time::Instant;

use crate::config::Config;
use crate::signals::{Signals, Stop};
use crate::wiring;

/// How often progress is looked at; faster is more than an eye sees.
const TICK: Duration = Duration::from_millis(100);

/// How a run came to its end.
pub(crate) enum End {
    Finished,
    Interrupted(Stop, Drained),
    /// The source cannot be read further.
    Failed(String),
}

/// A pipeline at work on one source.
pub(crate) struct FiniteRun {
    pipeline: Addr<PipelineActor>,
    drain: Drain,
    metrics: Metrics,
    started: Instant,
    /// What to do if the pipeline is gone.
    again: &'static str,
}

impl FiniteRun {
    pub(crate) fn start(
        config: &Config,
        source: Arc<dyn EventSource>,
        again: &'static str,
    ) -> anyhow::Result<Self> {
        let metrics = Metrics::new().context("cannot set the metrics up")?;
        let parts = wiring::pipeline_parts(config, vec![source], metrics.clone())?;
        Ok(Self {
            pipeline: PipelineActor::new(wiring::finite_settings(config), parts).start(),
            drain: Drain {
                timeout: config.pipeline.drain_timeout,
            },
            metrics,
            started: Instant::now(),
            again,
        })
    }

    /// What became of the messages so far.
    pub(crate) fn ledger(&self) -> LedgerCounts {
        self.metrics.ledger()
    }

    /// For how long it has been at work.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for the end. `look` sees how far it is, ten times a second, and may say why the source
    /// cannot be read further; what was read of it is then still written.
    pub(crate) async fn to_end(
        &self,
        signals: &mut Signals,
        look: impl Fn(&LedgerCounts) -> Option<String>,
    ) -> anyhow::Result<End> {
        let gone = || format!("the pipeline has stopped by itself; {}", self.again);
        let mut finish = pin!(self.pipeline.send(Finish));
        let mut ticks = actix_rt::time::interval(TICK);
        loop {
            tokio::select! {
                finished = &mut finish => {
                    finished.with_context(gone)?;
                    return Ok(End::Finished);
                }
                stop = signals.next() => {
                    log::info!("{stop}; writing what is held, then stopping");
                    Signals::listen()?.next_is_final();
                    let drained = self.pipeline.send(self.drain).await.with_context(gone)?;
                    return Ok(End::Interrupted(stop, drained));
                }
                _ = ticks.tick() => {
                    if let Some(failure) = look(&self.ledger()) {
                        self.pipeline.send(self.drain).await.with_context(gone)?;
                        return Ok(End::Failed(failure));
                    }
                }
            }
        }
    }
}
