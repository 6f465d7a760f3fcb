//! The configuration, and the only reader of the file and the environment that it comes from.
//!
//! Five places say what a setting is, and the first that says anything counts: flags, environment
//! variables, the TOML file, the environment of Prefect's server, the default.
//!
//! A new setting is a documented field of the struct of the part that it steers, with its value in that
//! struct's `Default`. Keys, variables, help, `deploy/SETTINGS.md` and the command `config` follow; `keys`
//! lists the structs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use event_persister_actors::event::EventLimits;
use event_persister_actors::pipeline::PipelineSettings;
use event_persister_actors::source::http::HttpSettings;
use event_persister_actors::source::intake::IntakeSettings;
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
pub(crate) use prefect::{Misfit, Prefect};
pub(crate) use supervisor::Supervisor;

use layer::{Layer, Layers};

use crate::http::ListenerSettings;
use crate::logging::Log;

/// What the command line says; `None` where it says nothing.
#[derive(Debug, Default, Clone)]
pub(crate) struct Flags {
    pub(crate) config: Option<PathBuf>,
    pub(crate) database_url: Option<String>,
    pub(crate) redis_url: Option<String>,
    pub(crate) listen: Option<String>,
    pub(crate) writers: Option<String>,
    pub(crate) log_format: Option<String>,
}

/// Everything that can be set, with right values only.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) database: Database,
    /// `None` when events do not come from there.
    pub(crate) redis: Option<RedisSettings>,
    pub(crate) http: Http,
    pub(crate) pipeline: PipelineSettings,
    /// How long the pipeline may take to write what it holds.
    pub(crate) drain_timeout: Duration,
    /// Retention, also where the service itself does not trim.
    pub(crate) trim: TrimSettings,
    pub(crate) events: EventLimits,
    pub(crate) log: Log,
    /// Each setting as it is in effect, for people.
    pub(crate) effective: Vec<Effective>,
    /// What else the environment of Prefect's server says.
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

/// One setting as it is in effect.
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
    /// Of this process's environment and the file that flags or environment name.
    pub(crate) fn load(flags: &Flags) -> Result<Self, ConfigError> {
        Self::from_parts(flags, std::env::vars_os())
    }

    /// Of this environment and the file that flags or environment name.
    pub(crate) fn from_parts(
        flags: &Flags,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let environment: Vec<(OsString, OsString)> = environment.into_iter().collect();
        let texts = environment.iter();
        let texts = texts.filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)));
        let of_drivers = PgEnvironment::of(texts);
        let prefects = prefect::Variables::of(&environment);
        let variables = environment::ours(environment)?;
        let path = flags.config.clone().or_else(|| {
            variables
                .iter()
                .find(|(name, _)| name == environment::CONFIG_VARIABLE)
                .map(|(_, value)| PathBuf::from(value))
        });
        // Both are read before either's errors are told, so that they are told together.
        let file = path.map_or_else(|| Ok(Layer::default()), |path| file::read(&path));
        let environment = environment::read(&variables);
        let mut errors = ConfigError::default();
        let mut layers = vec![flags_layer(flags)];
        for layer in [environment, file] {
            match layer {
                Ok(layer) => layers.push(layer),
                Err(error) => errors.extend(error),
            }
        }
        let (layer, prefect, read) = prefect::read(&prefects, &layers);
        layers.push(layer);
        if let Err(error) = read {
            errors.extend(error);
        }
        let layers = Layers(layers);
        if let Err(wrong_values) = compose::check(&layers) {
            errors.extend(wrong_values);
        }
        errors.into_result()?;
        compose::compose(layers, prefect, of_drivers)
    }
}

fn flags_layer(flags: &Flags) -> Layer {
    let mut layer = Layer::default();
    for (name, flag, value) in keys::FLAGS {
        if let Some(value) = value(flags) {
            layer.set(name, value.as_str(), Origin::Flag(flag));
        }
    }
    layer
}

#[cfg(test)]
mod tests;
