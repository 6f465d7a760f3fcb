//! The only code that names concrete adapters: from the configuration to sources and stores.

use std::io::Read;
use std::sync::Arc;

use anyhow::Context as _;
use event_persister_actors::batcher::BatcherSettings;
use event_persister_actors::clock::{Clock, SystemClock};
use event_persister_actors::event::EventLimits;
use event_persister_actors::metrics::Metrics;
use event_persister_actors::pipeline::{PipelineParts, PipelineSettings};
use event_persister_actors::source::EventSource;
pub(crate) use event_persister_actors::source::file::FileProgress;
use event_persister_actors::source::file::{DEFAULT_MAX_LINE_BYTES, FileSource};
use event_persister_actors::source::http::HttpSettings;
pub(crate) use event_persister_actors::source::http::{AuthString, EventRoutes};
use event_persister_actors::source::intake::{self, IntakeSettings, IntakeSource};
use event_persister_actors::store::sqlite::{CreateSchema, SqliteSettings, SqliteStore};
use event_persister_actors::store::{DeadLetters, EventStore, OpenStore};
use event_persister_actors::trim::TrimSettings;

use crate::config::{Config, DatabaseUrl};

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
        ..import_settings(config)
    }
}

/// The same without retention: what is imported stays until the service looks at it.
pub(crate) fn import_settings(config: &Config) -> PipelineSettings {
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

fn event_limits(config: &Config) -> EventLimits {
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
) -> PipelineParts {
    PipelineParts {
        sources,
        open_store: open_store(config, Missing::Create),
        event_limits: event_limits(config),
        clock: clock(),
        metrics,
    }
}

/// What to do about a database or tables that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make them: events come in and want to be stored.
    Create,
    /// Say so: there is nothing to delete.
    Refuse,
    /// Make nothing at all, not even our own tables: somebody only looks.
    Ignore,
}

/// Opens the configured database.
pub(crate) fn open_store(config: &Config, missing: Missing) -> OpenStore {
    SqliteStore::open_store(sqlite_settings(config, missing), clock())
}

fn sqlite_settings(config: &Config, missing: Missing) -> SqliteSettings {
    let DatabaseUrl::Sqlite { path, .. } = &config.database.url;
    SqliteSettings {
        path: path.clone(),
        busy_timeout: config.database.busy_timeout,
        create_schema: match missing {
            Missing::Create => CreateSchema::Everything,
            Missing::Refuse => CreateSchema::OwnOnly,
            Missing::Ignore => CreateSchema::Nothing,
        },
    }
}

/// Why there is no database to look at yet, though one could be made: not a fault.
pub(crate) fn not_there_yet(config: &Config) -> Option<String> {
    let DatabaseUrl::Sqlite { path, .. } = &config.database.url;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let could_be_made = directory.is_none_or(std::path::Path::is_dir);
    (could_be_made && !path.exists()).then(|| {
        format!(
            "{} is not there yet; `serve`, `import` and `migrate` create it",
            path.display()
        )
    })
}

/// Creates or upgrades the schema; returns the names of the migrations that were run.
pub(crate) async fn migrate(config: &Config) -> anyhow::Result<Vec<String>> {
    SqliteStore::new(sqlite_settings(config, Missing::Create), clock())
        .migrate()
        .await
        .context("cannot create or upgrade the tables")
}

/// The dead letters of the configured database.
pub(crate) fn dead_letters(config: &Config) -> Arc<dyn DeadLetters> {
    Arc::new(SqliteStore::new(
        sqlite_settings(config, Missing::Ignore),
        clock(),
    ))
}

/// Closes a store that was used for one command. A failure costs nothing: the process ends.
pub(crate) async fn close(store: &dyn EventStore) {
    if let Err(error) = store.close().await {
        log::debug!("cannot close the store error={error}");
    }
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

/// The intake that the listener fills, as seen from each of its sides.
pub(crate) struct Intake {
    source: Arc<IntakeSource>,
    handle: intake::Intake,
    routes: EventRoutes,
    auth: Option<AuthString>,
}

/// An empty intake.
pub(crate) fn intake(config: &Config) -> Intake {
    let http = &config.http;
    let (source, handle) = IntakeSource::new(
        "http",
        IntakeSettings {
            max_events: http.max_waiting_events,
            max_bytes: http.max_waiting_bytes,
        },
    );
    let auth = http
        .auth_string
        .as_ref()
        .map(|secret| AuthString::new(secret.reveal()));
    let defaults = HttpSettings::default();
    let settings = HttpSettings {
        auth: auth.clone(),
        max_body_bytes: http.max_body_bytes,
        // A frame beyond its limit ends the connection, and the client sends it again for ever; an
        // event beyond its own becomes a dead letter. So a lower limit on events moves no frames.
        max_frame_bytes: http.max_event_bytes.max(defaults.max_frame_bytes),
        max_buffered_bytes: http.max_buffered_bytes,
        max_event_bytes: Some(http.max_event_bytes),
        request_timeout: http.request_timeout,
        ..defaults
    };
    Intake {
        routes: EventRoutes::new(handle.clone(), settings, event_limits(config), clock()),
        source,
        handle,
        auth,
    }
}

impl Intake {
    /// The pipeline's side.
    pub(crate) fn source(&self) -> Arc<dyn EventSource> {
        Arc::clone(&self.source) as Arc<dyn EventSource>
    }

    /// The listener's side: `POST /api/events` and the WebSocket `/api/events/in`.
    pub(crate) fn routes(&self) -> EventRoutes {
        self.routes.clone()
    }

    /// What requests have to carry.
    pub(crate) fn auth(&self) -> Option<AuthString> {
        self.auth.clone()
    }

    /// Takes nothing more; what is here still becomes durable.
    pub(crate) fn stop_accepting(&self) {
        self.handle.stop_accepting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A default that stands in two places must be the same in both.
    #[test]
    fn the_defaults_are_those_of_the_library() {
        let config = Config::of_defaults().unwrap();
        assert_eq!(pipeline_settings(&config), PipelineSettings::default());
        assert_eq!(event_limits(&config), EventLimits::default());
        let DatabaseUrl::Sqlite { path, .. } = &config.database.url;
        assert_eq!(
            sqlite_settings(&config, Missing::Create),
            SqliteSettings::new(path)
        );
    }

    #[test]
    fn an_import_never_trims() {
        let config = Config::of_defaults().unwrap();
        assert_eq!(import_settings(&config).trim, None);
    }
}
