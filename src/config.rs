//! The configuration, and the only reader of the file and the environment that it comes from.
//!
//! Five places say what a setting is, and the first that says anything counts: flags, environment
//! variables, the TOML file, the environment of Prefect's server, the default.

use std::ffi::OsString;
use std::path::PathBuf;

mod compose;
mod database_url;
mod environment;
mod error;
mod file;
mod layer;
mod prefect;
mod redis_url;
mod secret_file;
mod sections;
mod settings;
mod supervisor;
mod url_parts;
mod value;

pub(crate) use database_url::{DatabaseUrl, PostgresUrl};
pub(crate) use error::ConfigError;
pub(crate) use layer::Origin;
pub(crate) use prefect::{Misfit, Prefect};
pub(crate) use sections::{
    Batch, CertificateFiles, Database, Events, Http, Log, Pipeline, Redis, Tls, Trim,
};
pub(crate) use supervisor::Supervisor;
pub(crate) use value::{Listen, LogFormat, TlsMode};

use compose::Layers;
use layer::Layer;
use value::Input;

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
    pub(crate) redis: Option<Redis>,
    pub(crate) http: Http,
    pub(crate) pipeline: Pipeline,
    pub(crate) batch: Batch,
    pub(crate) trim: Trim,
    pub(crate) events: Events,
    pub(crate) log: Log,
    /// Each setting as it is in effect, for people.
    pub(crate) effective: Vec<Effective>,
    /// What else the environment of Prefect's server says.
    pub(crate) prefect: Prefect,
}

/// One setting as it is in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effective {
    /// Such as `http.listen`.
    pub(crate) name: String,
    /// Masked where it is secret; `None` where it is not set and has no default.
    pub(crate) value: Option<String>,
    /// Who says so.
    pub(crate) origin: Origin,
    /// The variable that would set it.
    pub(crate) variable: String,
    /// What it does.
    pub(crate) help: &'static str,
}

impl Config {
    /// Of this process's environment and the file that flags or environment name.
    pub(crate) fn load(flags: &Flags) -> Result<Self, ConfigError> {
        Self::from_parts(flags, std::env::vars_os())
    }

    /// Of nothing but the defaults.
    #[cfg(test)]
    pub(crate) fn of_defaults() -> Result<Self, ConfigError> {
        Self::from_parts(&Flags::default(), [])
    }

    /// Of these variables and the defaults.
    #[cfg(test)]
    pub(crate) fn of_variables(variables: &[(&str, &str)]) -> Result<Self, ConfigError> {
        let variables = variables.iter();
        Self::from_parts(
            &Flags::default(),
            variables.map(|(name, value)| (name.into(), value.into())),
        )
    }

    /// Of this environment and the file that flags or environment name.
    pub(crate) fn from_parts(
        flags: &Flags,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let environment: Vec<(OsString, OsString)> = environment.into_iter().collect();
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
        match layers.effective() {
            Ok(effective) => {
                errors.into_result()?;
                layers.typed(effective, prefect)
            }
            Err(wrong_values) => {
                errors.extend(wrong_values);
                Err(errors)
            }
        }
    }
}

fn flags_layer(flags: &Flags) -> Layer {
    let mut layer = Layer::default();
    let given = [
        (&settings::DATABASE_URL.setting, &flags.database_url),
        (&settings::REDIS_URL.setting, &flags.redis_url),
        (&settings::HTTP_LISTEN.setting, &flags.listen),
        (&settings::PIPELINE_WRITERS.setting, &flags.writers),
        (&settings::LOG_FORMAT.setting, &flags.log_format),
    ];
    for (setting, value) in given {
        if let (Some(value), Some(flag)) = (value, setting.flag) {
            layer.set(setting, Input::Text(value.clone()), Origin::Flag(flag));
        }
    }
    layer
}

#[cfg(test)]
mod tests;
