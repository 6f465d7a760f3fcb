//! The configuration, and the only reader of the file and the environment that it comes from.
//!
//! Four places say what a setting is, and the first that says anything counts: flags, environment
//! variables, the TOML file, the default.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

mod database_url;
mod environment;
mod error;
mod file;
mod layer;
mod settings;
mod value;

pub(crate) use database_url::DatabaseUrl;
pub(crate) use error::ConfigError;
pub(crate) use layer::Origin;
pub(crate) use value::{Listen, LogFormat, Overrides, Secret};

use layer::Layer;
use settings::{ALL, Key, Setting};
use value::{Input, NonZeroDuration, SettingValue, Size};

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
    pub(crate) http: Http,
    pub(crate) pipeline: Pipeline,
    pub(crate) batch: Batch,
    pub(crate) trim: Trim,
    pub(crate) events: Events,
    pub(crate) log: Log,
    /// Each setting as it is in effect, for people.
    pub(crate) effective: Vec<Effective>,
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

/// `[database]`
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) url: DatabaseUrl,
    pub(crate) busy_timeout: Duration,
}

/// `[http]`
#[derive(Debug)]
pub(crate) struct Http {
    pub(crate) listen: Listen,
    pub(crate) auth_string: Option<Secret>,
    pub(crate) max_body_bytes: NonZeroUsize,
    pub(crate) max_event_bytes: NonZeroUsize,
    pub(crate) max_buffered_bytes: NonZeroUsize,
    pub(crate) request_timeout: Duration,
    pub(crate) max_waiting_events: NonZeroUsize,
    pub(crate) max_waiting_bytes: NonZeroUsize,
}

/// `[pipeline]`
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) writers: NonZeroUsize,
    pub(crate) max_bytes_in_flight: NonZeroUsize,
    pub(crate) drain_timeout: Duration,
}

/// `[batch]`
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) max_events: NonZeroUsize,
    pub(crate) max_bytes: NonZeroUsize,
    pub(crate) linger: Duration,
    pub(crate) max_age: Duration,
}

/// `[trim]`
#[derive(Debug)]
pub(crate) struct Trim {
    /// `None` when it is off.
    pub(crate) every: Option<Duration>,
    pub(crate) retention: Duration,
    pub(crate) overrides: Overrides,
    pub(crate) batch_size: NonZeroUsize,
}

/// `[events]`
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) max_labels_per_resource: NonZeroUsize,
    pub(crate) max_related_resources: NonZeroUsize,
    pub(crate) max_event_name_length: NonZeroUsize,
}

/// `[log]`
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    pub(crate) level: String,
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

    fn from_parts(
        flags: &Flags,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
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
        // Another place to look, such as another program's environment, goes last: here.
        let layers = Layers(layers);
        match layers.effective() {
            Ok(effective) => {
                errors.into_result()?;
                layers.typed(effective)
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

/// From the one that counts most to the one that counts least.
struct Layers(Vec<Layer>);

impl Layers {
    fn find(&self, setting: &Setting) -> Option<(Input, Origin)> {
        self.0
            .iter()
            .find_map(|layer| layer.get(setting).cloned())
            .or_else(|| {
                let default = setting.default?;
                Some((Input::Text(default.to_owned()), Origin::Default))
            })
    }

    /// Shows the values that count; checks also those that others hide, since they would count
    /// once the other is gone.
    fn effective(&self) -> Result<Vec<Effective>, ConfigError> {
        let mut effective = Vec::new();
        let mut errors = ConfigError::default();
        for setting in ALL {
            for (input, origin) in self.0.iter().filter_map(|layer| layer.get(setting)) {
                if let Err(expected) = (setting.show)(input) {
                    errors.add(wrong_value(setting, input, origin, &expected));
                }
            }
            let found = self.find(setting);
            if !setting.hidden {
                effective.push(Effective {
                    name: setting.name(),
                    value: found
                        .as_ref()
                        .and_then(|(input, _)| (setting.show)(input).ok()),
                    origin: found.map_or(Origin::Default, |(_, origin)| origin),
                    variable: setting.variable(),
                    help: setting.help,
                });
            }
        }
        errors.into_result().map(|()| effective)
    }

    fn get<T: SettingValue>(&self, key: &Key<T>) -> Result<T, ConfigError> {
        self.get_optional(key)?
            .ok_or_else(|| ConfigError::new(format!("{} has no value; set it", key.setting.name())))
    }

    fn get_optional<T: SettingValue>(&self, key: &Key<T>) -> Result<Option<T>, ConfigError> {
        self.find(&key.setting)
            .map(|(input, origin)| {
                T::read(&input).map_err(|expected| {
                    ConfigError::new(wrong_value(&key.setting, &input, &origin, &expected))
                })
            })
            .transpose()
    }

    fn duration(&self, key: &Key<NonZeroDuration>) -> Result<Duration, ConfigError> {
        self.get(key).map(|duration| duration.0)
    }

    fn size(&self, key: &Key<Size>) -> Result<NonZeroUsize, ConfigError> {
        self.get(key).map(|size| size.0)
    }

    fn typed(&self, effective: Vec<Effective>) -> Result<Config, ConfigError> {
        Ok(Config {
            database: Database {
                url: self.get(&settings::DATABASE_URL)?,
                busy_timeout: self.duration(&settings::DATABASE_BUSY_TIMEOUT)?,
            },
            http: self.http()?,
            pipeline: Pipeline {
                writers: self.get(&settings::PIPELINE_WRITERS)?,
                max_bytes_in_flight: self.size(&settings::PIPELINE_MAX_BYTES_IN_FLIGHT)?,
                drain_timeout: self.get(&settings::PIPELINE_DRAIN_TIMEOUT)?,
            },
            batch: Batch {
                max_events: self.get(&settings::BATCH_MAX_EVENTS)?,
                max_bytes: self.size(&settings::BATCH_MAX_BYTES)?,
                linger: self.get(&settings::BATCH_LINGER)?,
                max_age: self.duration(&settings::BATCH_MAX_AGE)?,
            },
            trim: Trim {
                every: self.get(&settings::TRIM_EVERY)?.0,
                retention: self.duration(&settings::TRIM_RETENTION)?,
                overrides: self.get(&settings::TRIM_OVERRIDES)?,
                batch_size: self.get(&settings::TRIM_BATCH_SIZE)?,
            },
            events: Events {
                max_labels_per_resource: self.get(&settings::EVENTS_MAX_LABELS_PER_RESOURCE)?,
                max_related_resources: self.get(&settings::EVENTS_MAX_RELATED_RESOURCES)?,
                max_event_name_length: self.get(&settings::EVENTS_MAX_EVENT_NAME_LENGTH)?,
            },
            log: Log {
                format: self.get(&settings::LOG_FORMAT)?,
                level: self.get(&settings::LOG_LEVEL)?.0,
            },
            effective,
        })
    }

    fn http(&self) -> Result<Http, ConfigError> {
        Ok(Http {
            listen: self.get(&settings::HTTP_LISTEN)?,
            auth_string: self.get_optional(&settings::HTTP_AUTH_STRING)?,
            max_body_bytes: self.size(&settings::HTTP_MAX_BODY_BYTES)?,
            max_event_bytes: self.size(&settings::HTTP_MAX_EVENT_BYTES)?,
            max_buffered_bytes: self.size(&settings::HTTP_MAX_BUFFERED_BYTES)?,
            request_timeout: self.duration(&settings::HTTP_REQUEST_TIMEOUT)?,
            max_waiting_events: self.get(&settings::HTTP_MAX_WAITING_EVENTS)?,
            max_waiting_bytes: self.size(&settings::HTTP_MAX_WAITING_BYTES)?,
        })
    }
}

fn wrong_value(setting: &Setting, input: &Input, origin: &Origin, expected: &str) -> String {
    let name = setting.name();
    if setting.secret {
        format!("{origin}: wrong value for {name}: {expected}")
    } else {
        format!(
            "{origin}: {} is not right for {name}: {expected}",
            input.quote()
        )
    }
}

#[cfg(test)]
mod tests;
