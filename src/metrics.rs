//! All that `/metrics` shows: the pipeline's own numbers, the stream's, the listener's, the build.
//!
//! The names are documented in `deploy/METRICS.md`; a test compares.

use std::sync::Arc;

use event_persister_actors::archive::ArchiveStats;
use event_persister_actors::clock::SystemClock;
use event_persister_actors::metrics::Metrics;
use prometheus::core::Collector;
use prometheus::{IntGauge, Opts, Registry};

use crate::config::Config;
use crate::wiring::{Bus, BusStats, Intake};

mod archive;
mod bridge;
mod listener;
mod looked_up;
#[cfg(feature = "nats")]
mod nats;
mod redis;

pub(crate) use listener::Refusals;

use archive::of_archive;
use bridge::of_bridge;
use listener::of_intake;
#[cfg(feature = "nats")]
use nats::of_nats;
use redis::of_redis;

/// A registry with everything in it.
pub(crate) fn registry(all: Vec<Box<dyn Collector>>) -> Result<Registry, prometheus::Error> {
    let registry = Registry::new();
    for collector in all {
        registry.register(collector)?;
    }
    Ok(registry)
}

/// The numbers of the pipelines that there are.
pub(crate) struct OfPipelines {
    pub(crate) storing: Option<Metrics>,
    /// From HTTP to the bus.
    pub(crate) publishing: Option<Metrics>,
}

pub(crate) fn collectors(
    config: &Config,
    pipelines: &OfPipelines,
    refusals: &Refusals,
    intake: &Intake,
    bus: Option<&Bus>,
    archive: Option<ArchiveStats>,
) -> Result<Vec<Box<dyn Collector>>, prometheus::Error> {
    let mut all: Vec<Box<dyn Collector>> = vec![
        Box::new(build_info()?),
        Box::new(refusals.collector()),
        Box::new(of_intake(intake.handle.clone())?),
    ];
    if let Some(metrics) = pipelines.storing.clone() {
        all.push(Box::new(metrics));
    }
    if let Some(metrics) = pipelines.publishing.clone() {
        all.push(Box::new(of_bridge(metrics)?));
    }
    let clock = Arc::new(SystemClock);
    match bus.map(|bus| bus.stats.clone()) {
        None => {}
        Some(BusStats::Redis(stats)) => {
            let settings = config.redis.as_ref();
            let limit = settings.map_or(0, |settings| settings.guard_max_entries.get());
            all.push(Box::new(of_redis(stats, limit, clock)?));
        }
        #[cfg(feature = "nats")]
        Some(BusStats::Nats(stats)) => all.push(Box::new(of_nats(stats, clock)?)),
    }
    if let Some(stats) = archive {
        all.push(Box::new(of_archive(stats)?));
    }
    Ok(all)
}

fn build_info() -> Result<IntGauge, prometheus::Error> {
    let opts = Opts::new(
        "event_persister_build_info",
        "Always 1; the labels tell what runs.",
    );
    let info = IntGauge::with_opts(opts.const_label("version", env!("CARGO_PKG_VERSION")))?;
    info.set(1);
    Ok(info)
}

#[cfg(test)]
mod tests;
