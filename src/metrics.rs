//! All that `/metrics` shows: the pipeline's own numbers, the stream's, the listener's, the build.
//!
//! The names are documented in `deploy/METRICS.md`; a test compares.

use std::sync::Arc;

use anyhow::Context as _;
use event_persister_actors::clock::SystemClock;
use event_persister_actors::metrics::Metrics;
use prometheus::core::Collector;
use prometheus::{IntGauge, Opts, Registry};

use crate::config::Config;
use crate::wiring::{Bus, Intake};

mod listener;
mod redis;

pub(crate) use listener::Refusals;

use listener::IntakeMetrics;
use redis::RedisMetrics;

/// A registry with everything in it.
pub(crate) fn registry(
    config: &Config,
    metrics: &Metrics,
    refusals: &Refusals,
    intake: &Intake,
    bus: Option<&Bus>,
) -> anyhow::Result<Registry> {
    const FAILED: &str = "cannot set the metrics up";
    let registry = Registry::new();
    let all = collectors(config, metrics, refusals, intake, bus).context(FAILED)?;
    for collector in all {
        registry.register(collector).context(FAILED)?;
    }
    Ok(registry)
}

fn collectors(
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
        Box::new(IntakeMetrics::new(intake.handle.clone())?),
    ];
    if let (Some(bus), Some(settings)) = (bus, &config.redis) {
        let limit = settings.guard_max_entries.get();
        let clock = Arc::new(SystemClock);
        let of_redis = RedisMetrics::new(bus.stats.clone(), limit, clock)?;
        all.push(Box::new(of_redis));
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
