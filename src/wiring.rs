//! The only code that makes adapters: from the configuration to sources and stores.

use std::io::Read;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use event_persister_actors::access::Access;
use event_persister_actors::clock::{Clock, SystemClock};
use event_persister_actors::event::EventLimits;
use event_persister_actors::metrics::Metrics;
use event_persister_actors::pipeline::{PipelineParts, PipelineSettings};
use event_persister_actors::source::EventSource;
pub(crate) use event_persister_actors::source::file::FileProgress;
use event_persister_actors::source::file::{DEFAULT_MAX_LINE_BYTES, FileSource};
pub(crate) use event_persister_actors::source::http::{EventRoutes, OutRoutes};
use event_persister_actors::source::letters::LetterSource;
use event_persister_actors::store::OpenStore;
use event_persister_actors::store::operator::{LetterFilter, StoreOperator};
use event_persister_actors::trim::Caution;

use crate::config::Config;

mod archive;
mod bus;
mod intake;
mod stores;

#[cfg(feature = "archive")]
pub(crate) use archive::{archivable, archive};
pub(crate) use bus::{
    Bus, BusOperator, BusReport, BusStats, ConsumerReport, GuardReport, ReadAgain, RedisStats,
    RedisStatus, StreamShadow, bus, bus_operator, follow_the_replicas, inspect_bridge, inspect_bus,
    nats_servers, open_bridge, open_publisher,
};
#[cfg(feature = "nats")]
pub(crate) use bus::{NatsStats, NatsStatus};
pub(crate) use event_persister_actors::finding::{Finding, Severity};
pub(crate) use event_persister_actors::source::intake::Intake as IntakeHandle;
pub(crate) use intake::{Intake, intake};
pub(crate) use stores::{
    Missing, Stores, close, has_no_tables, inspect_store, migrate, not_there_yet, open_store,
    operator, partition, reader, server_asked,
};

pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// For all that can be asked of the listener beside health.
pub(crate) fn access(config: &Config) -> Access {
    Access::new(config.http.routes.auth.clone(), clock())
}

/// How a pipeline works whose sources come to an end. It trims nothing: what is imported or replayed stays
/// until a service looks at it. It makes no pause where the database refuses nearly everything, since there
/// can be no more letters than there was to read.
pub(crate) fn finite_settings(config: &Config) -> PipelineSettings {
    let mut settings = config.pipeline.clone();
    settings.trim = None;
    settings.batch.pauses_when_refused = false;
    settings
}

/// What a retention pass that is made now is held against.
pub(crate) fn caution(config: &Config) -> Caution {
    Caution {
        began: clock().now(),
        passed: None,
        every: config.trim.every.unwrap_or_default(),
    }
}

pub(crate) fn pipeline_parts(
    config: &Config,
    sources: Vec<Arc<dyn EventSource>>,
    open_store: OpenStore,
    metrics: Metrics,
) -> PipelineParts {
    PipelineParts {
        sources,
        open_store,
        event_limits: config.events.clone(),
        clock: clock(),
        metrics,
    }
}

/// The parts of a pipeline whose store is there already, and its numbers.
pub(crate) fn parts_of(
    event_limits: &EventLimits,
    source: Arc<dyn EventSource>,
    open_store: OpenStore,
) -> anyhow::Result<(PipelineParts, Metrics)> {
    let metrics = Metrics::new().context("cannot set the metrics up")?;
    let parts = PipelineParts {
        sources: vec![source],
        open_store,
        event_limits: event_limits.clone(),
        clock: clock(),
        metrics: metrics.clone(),
    };
    Ok((parts, metrics))
}

/// Whether the sources and the store can be made as configured. Connects to nothing.
pub(crate) fn validate(config: &Config) -> anyhow::Result<()> {
    if let Some(misplaced) = stores::misplaced(config) {
        bail!("{misplaced}");
    }
    archive::validate(config)?;
    bus(config)?;
    Ok(())
}

pub(crate) fn file_source(
    reader: Box<dyn Read + Send>,
    name: String,
) -> anyhow::Result<Arc<FileSource>> {
    FileSource::new(reader, name, DEFAULT_MAX_LINE_BYTES)
        .map(Arc::new)
        .context("cannot start reading")
}

pub(crate) fn letter_source(
    event_limits: &EventLimits,
    letters: Arc<dyn StoreOperator>,
    filter: LetterFilter,
    before: Option<i64>,
) -> Arc<LetterSource> {
    let limits = event_limits.clone();
    Arc::new(LetterSource::new(letters, filter, before, limits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_an_end_never_trims() {
        let config = Config::of_defaults().unwrap();
        assert_eq!(finite_settings(&config).trim, None);
    }
}
