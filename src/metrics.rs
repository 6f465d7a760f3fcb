//! All that `/metrics` shows: the pipeline's own numbers, the stream's, the listener's, the build.
//!
//! The names are documented in `deploy/METRICS.md`; a test compares.

use std::sync::Arc;

use event_persister_actors::clock::SystemClock;
use event_persister_actors::metrics::Metrics;
use prometheus::core::Collector;
use prometheus::{IntGauge, Opts, Registry};

use crate::config::Config;
use crate::wiring::{Bus, Intake};

mod listener;
mod looked_up;
mod redis;

pub(crate) use listener::Refusals;

use listener::of_intake;
use redis::of_redis;

/// A registry with everything in it.
pub(crate) fn registry(all: Vec<Box<dyn Collector>>) -> Result<Registry, prometheus::Error> {
    let registry = Registry::new();
    for collector in all {
        registry.register(collector)?;
    }
    Ok(registry)
}

pub(crate) fn collectors(
    config: &Config,
    metrics: &Metrics,
    refusals: &Refusals,
    intake: &Intake,
    bus: Option<&Bus>,
) -> Result<Vec<Box<dyn Collector>>, prometheus::Error> {
    let mut all: Vec<Box<dyn Collector>> = vec![
        Box::new(build_info()?),
        Box::new(metrics.clone()),
        Box::new(refusals.collector()),
        Box::new(of_intake(intake.handle.clone())?),
    ];
    if let (Some(bus), Some(settings)) = (bus, &config.redis) {
        let limit = settings.guard_max_entries.get();
        let clock = Arc::new(SystemClock);
        all.push(Box::new(of_redis(bus.stats.clone(), limit, clock)?));
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
