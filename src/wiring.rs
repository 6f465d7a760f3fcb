//! The only code that names concrete adapters: from the configuration to sources and stores.

use std::io::Read;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use event_persister_actors::clock::{Clock, SystemClock};
use event_persister_actors::event::EventLimits;
use event_persister_actors::metrics::Metrics;
use event_persister_actors::pipeline::BatcherSettings;
use event_persister_actors::pipeline::{PipelineParts, PipelineSettings};
use event_persister_actors::retention::Retention;
use event_persister_actors::source::EventSource;
pub(crate) use event_persister_actors::source::file::FileProgress;
use event_persister_actors::source::file::{DEFAULT_MAX_LINE_BYTES, FileSource};
pub(crate) use event_persister_actors::source::http::{AuthString, EventRoutes};
use event_persister_actors::source::letters::LetterSource;
use event_persister_actors::store::{DeadLetters, LetterFilter};
use event_persister_actors::trim::{Caution, TrimSettings};

use crate::config::Config;

mod inspection;
mod intake;
mod redis;
mod stores;

pub(crate) use event_persister_actors::finding::{Finding, Severity};
pub(crate) use event_persister_actors::source::intake::Intake as IntakeHandle;
pub(crate) use inspection::{inspect_bus, inspect_store};
pub(crate) use intake::{Intake, auth, intake};
pub(crate) use redis::{
    BUS_NAME, Bus, BusAudit, BusShadow, GuardReport, RedisStats, bus, bus_audit, bus_shadow, guard,
};
pub(crate) use stores::{
    HalfEvents, Missing, Prefects, Tables, close, comparison, dead_letters, half_events,
    look_at_retention, migrate, not_there_yet, open_store, prefects_schema, remove_half_events,
    tables,
};

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// How the service's pipeline works.
pub(crate) fn pipeline_settings(config: &Config) -> PipelineSettings {
    PipelineSettings {
        trim: config.trim.every.map(|every| TrimSettings {
            every,
            ..trim_settings(config)
        }),
        ..settings_without_retention(config)
    }
}

/// The same without retention: what is imported or replayed stays until the service looks at it. And
/// without a pause where the database refuses nearly everything: nobody would mend it before the
/// end, which would only take longer to come, and the letters can be no more than there was to read.
pub(crate) fn finite_settings(config: &Config) -> PipelineSettings {
    let mut settings = settings_without_retention(config);
    settings.batch.pauses_when_refused = false;
    settings
}

fn settings_without_retention(config: &Config) -> PipelineSettings {
    PipelineSettings {
        writers: config.pipeline.writers,
        batch: BatcherSettings {
            max_events: config.batch.max_events,
            max_bytes: config.batch.max_bytes,
            linger: config.batch.linger,
            max_age: config.batch.max_age,
            max_bytes_in_flight: config.pipeline.max_bytes_in_flight,
            ..BatcherSettings::default()
        },
        trim: None,
        retention: retention(config),
        ..PipelineSettings::default()
    }
}

/// What is old, also where the service itself does not trim.
pub(crate) fn trim_settings(config: &Config) -> TrimSettings {
    TrimSettings {
        retention: config.trim.retention,
        overrides: config.trim.overrides.0.clone(),
        batch_size: config.trim.batch_size,
        ..TrimSettings::default()
    }
}

/// What a retention pass that is made now is held against.
pub(crate) fn caution(config: &Config) -> Caution {
    Caution {
        began: clock().now(),
        passed: None,
        every: config.trim.every.unwrap_or_default(),
    }
}

/// What is kept, where anything is ever removed.
fn retention(config: &Config) -> Option<Retention> {
    config
        .trim
        .every
        .map(|_| Retention::from(&trim_settings(config)))
}

/// What an event may hold.
pub(crate) fn event_limits(config: &Config) -> EventLimits {
    EventLimits {
        max_labels_per_resource: config.events.max_labels_per_resource.get(),
        max_related_resources: config.events.max_related_resources.get(),
        max_event_name_length: config.events.max_event_name_length.get(),
    }
}

/// What the pipeline is made of, whatever the sources.
pub(crate) fn pipeline_parts(
    config: &Config,
    sources: Vec<Arc<dyn EventSource>>,
    metrics: Metrics,
) -> anyhow::Result<PipelineParts> {
    Ok(PipelineParts {
        sources,
        open_store: open_store(config, Missing::Create)?,
        event_limits: event_limits(config),
        clock: clock(),
        metrics,
    })
}

/// Whether the sources and the store can be made as configured. Connects to nothing.
pub(crate) fn validate(config: &Config) -> anyhow::Result<()> {
    if let Some(misplaced) = stores::misplaced(config) {
        bail!("{misplaced}");
    }
    open_store(config, Missing::Refuse)?;
    bus(config)?;
    Ok(())
}

/// The lines of a reader.
pub(crate) fn file_source(
    reader: Box<dyn Read + Send>,
    name: String,
) -> anyhow::Result<Arc<FileSource>> {
    FileSource::new(reader, name, DEFAULT_MAX_LINE_BYTES)
        .map(Arc::new)
        .context("cannot start reading")
}

/// Dead letters, to be tried again.
pub(crate) fn letter_source(
    config: &Config,
    letters: Arc<dyn DeadLetters>,
    filter: LetterFilter,
    before: Option<i64>,
) -> Arc<LetterSource> {
    let limits = event_limits(config);
    Arc::new(LetterSource::new(letters, filter, before, limits))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A default that stands in two places must be the same in both.
    #[test]
    fn the_defaults_are_those_of_the_library() {
        let config = Config::of_defaults().unwrap();
        let mut settings = pipeline_settings(&config);
        // The one that depends on the database, by default one of SQLite.
        assert_eq!(settings.batch.max_events.get(), 1_250);
        settings.batch.max_events = PipelineSettings::default().batch.max_events;
        assert_eq!(settings, PipelineSettings::default());
        assert_eq!(event_limits(&config), EventLimits::default());
    }

    #[test]
    fn what_has_an_end_never_trims() {
        let config = Config::of_defaults().unwrap();
        assert_eq!(finite_settings(&config).trim, None);
    }
}
