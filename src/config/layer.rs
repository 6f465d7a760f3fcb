//! Where values come from: each layer holds what one place says.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use event_persister_actors::address::mask;
use serde::de::DeserializeOwned;
use serde::ser::Serialize;
use serde_json::{Map, Value};

use super::error::ConfigError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    /// In the file, at a line that counts from 1.
    File {
        path: PathBuf,
        line: usize,
    },
    Variable(String),
    SecretFile {
        variable: String,
        path: PathBuf,
    },
    /// Variables of Prefect's server, one or more.
    Prefect(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::SecretFile { variable, path } => write!(f, "{variable} ({})", path.display()),
            Self::Variable(name) | Self::Prefect(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// What one place says about the settings, by their names. Variables and flags are always texts.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Layer(BTreeMap<String, (Value, Origin)>);

impl Layer {
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>, origin: Origin) {
        self.0.insert(name.to_owned(), (value.into(), origin));
    }

    pub(crate) fn get(&self, name: &str) -> Option<&(Value, Origin)> {
        self.0.get(name)
    }
}

/// From the one that counts most to the one that counts least; below them are the defaults.
#[derive(Debug, Default)]
pub(crate) struct Layers(pub(crate) Vec<Layer>);

impl Layers {
    pub(crate) fn find(&self, name: &str) -> Option<&(Value, Origin)> {
        self.0.iter().find_map(|layer| layer.get(name))
    }

    pub(crate) fn origin(&self, name: &str) -> Origin {
        self.find(name)
            .map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    /// A struct of settings whose fields are keys of this section.
    pub(crate) fn read<T: Default + Serialize + DeserializeOwned>(
        &self,
        section: &str,
    ) -> Result<T, ConfigError> {
        let wrong = |error: serde_json::Error| ConfigError::new(format!("[{section}]: {error}"));
        let fields = serde_json::to_value(T::default()).map_err(wrong)?;
        let keys = fields.as_object().into_iter().flat_map(Map::keys);
        let given = keys.filter_map(|key| {
            let (value, _) = self.find(&format!("{section}.{key}"))?;
            Some((key.clone(), value.clone()))
        });
        serde_json::from_value(given.collect()).map_err(wrong)
    }
}

/// A value as it is quoted to the person who wrote it.
pub(crate) fn quote(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{:?}", mask(text)),
        Value::Object(_) => "a table".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        other => other.to_string(),
    }
}
