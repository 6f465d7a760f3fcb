//! The configuration, and the only reader of the file and the environment that it comes from.
//!
//! The first layer that names a setting counts: flags, environment variables, the TOML file, the
//! environment of Prefect's server, the default. A setting itself is a documented field of the struct of the
//! part that it steers; [`keys`] lists these structs, and all else follows from them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use event_persister_actors::archive::{self, ArchiveSettings};
use event_persister_actors::event::EventLimits;
use event_persister_actors::pipeline::PipelineSettings;
use event_persister_actors::source::http::HttpSettings;
use event_persister_actors::source::intake::IntakeSettings;
#[cfg(feature = "nats")]
pub(crate) use event_persister_actors::source::nats::NatsSettings;
use event_persister_actors::source::redis::RedisSettings;
use event_persister_actors::store::postgres::{PgEnvironment, PostgresSettings};
use event_persister_actors::store::sqlite::SqliteSettings;
use event_persister_actors::trim::TrimSettings;

mod compose;
mod database_url;
mod environment;
mod error;
mod export;
mod file;
mod keys;
mod layer;
mod prefect;
mod secret_file;
mod sections;
mod supervisor;

pub(crate) use database_url::DatabaseUrl;
pub(crate) use error::ConfigError;
pub(crate) use export::{example, schema};
pub(crate) use layer::Origin;
pub(crate) use prefect::Prefect;
pub(crate) use supervisor::Supervisor;

use layer::{Layer, Layers};

use crate::cli::Flags;
use crate::http::ListenerSettings;
use crate::logging::Log;

/// A binary without NATS has none.
#[cfg(not(feature = "nats"))]
pub(crate) type NatsSettings = std::convert::Infallible;

#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) database: Database,
    /// At most one of these two.
    pub(crate) redis: Option<RedisSettings>,
    pub(crate) nats: Option<NatsSettings>,
    pub(crate) http: Http,
    pub(crate) pipeline: PipelineSettings,
    /// How long the pipeline may take to write what it holds.
    pub(crate) drain_timeout: Duration,
    /// Retention, also where the service itself does not trim.
    pub(crate) trim: TrimSettings,
    /// Where retention puts what it removes.
    pub(crate) archive: ArchiveSettings,
    pub(crate) events: EventLimits,
    pub(crate) log: Log,
    pub(crate) effective: Vec<Effective>,
    pub(crate) prefect: Prefect,
}

#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) url: DatabaseUrl,
    /// Whether Prefect's environment named it: then Prefect's own migrations make its tables.
    pub(crate) is_prefects: bool,
    pub(crate) sqlite: SqliteSettings,
    pub(crate) postgres: PostgresSettings,
}

#[derive(Debug)]
pub(crate) struct Http {
    pub(crate) listener: ListenerSettings,
    pub(crate) routes: HttpSettings,
    pub(crate) intake: IntakeSettings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effective {
    pub(crate) name: &'static str,
    /// Masked where it is secret; `None` where it is not set and has no default.
    pub(crate) value: Option<String>,
    pub(crate) origin: Origin,
    /// The variable that would set it.
    pub(crate) variable: String,
    pub(crate) help: &'static str,
}

impl Config {
    /// Whether there is a bus beside HTTP.
    pub(crate) fn has_bus(&self) -> bool {
        self.redis.is_some() || self.nats.is_some()
    }

    /// Of this process's environment and the file that flags or environment name.
    pub(crate) fn load(flags: &Flags) -> Result<Self, ConfigError> {
        Self::from_parts(flags, std::env::vars_os())
    }

    pub(crate) fn from_parts(
        flags: &Flags,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let environment: Vec<(OsString, OsString)> = environment.into_iter().collect();
        let texts = environment.iter();
        let texts = texts.filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)));
        let of_drivers = PgEnvironment::of(texts.clone());
        let of_buckets = archive::Variables::of(texts);
        let prefects = prefect::Variables::of(&environment);
        let variables = environment::ours(environment)?;
        let named = variables.get(environment::CONFIG_VARIABLE);
        let path = flags.config.clone().or_else(|| named.map(PathBuf::from));
        // All layers are read before an error is told, so that all errors are told together.
        let mut errors = ConfigError::default();
        let environment = errors.note(environment::read(&variables));
        let file = path.map(|path| errors.note(file::read(&path)));
        let mut layers = vec![flags_layer(flags), environment];
        layers.extend(file);
        let (layer, prefect, read) = prefect::read(&prefects, &layers);
        errors.note(read);
        layers.push(layer);
        let layers = Layers(layers);
        errors.note(compose::check(&layers));
        errors.into_result()?;
        let mut config = compose::compose(layers, prefect, of_drivers)?;
        config.archive.variables = of_buckets;
        Ok(config)
    }
}

fn flags_layer(flags: &Flags) -> Layer {
    let mut layer = Layer::default();
    for &(name, flag, value) in keys::FLAGS {
        if let Some(value) = value(flags) {
            layer.set(name, value.as_str(), Origin::Flag(flag));
        }
    }
    layer
}

#[cfg(test)]
mod tests;
