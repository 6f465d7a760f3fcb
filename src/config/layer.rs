//! Where values come from: each layer holds what one place says.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::settings::Setting;
use super::value::Input;

/// Where a value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// In the file, at a line that counts from 1.
    File {
        /// As it was named.
        path: PathBuf,
        /// Of the value.
        line: usize,
    },
    /// In this environment variable.
    Variable(String),
    /// In a file for secrets that this environment variable names.
    SecretFile {
        /// The variable.
        variable: String,
        /// As it was named.
        path: PathBuf,
    },
    /// In these variables of Prefect's server.
    Prefect(String),
    /// In this flag of the command line.
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

/// What one place says about the settings, by their names.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Layer(BTreeMap<String, (Input, Origin)>);

impl Layer {
    /// Notes a value.
    pub(crate) fn set(&mut self, setting: &Setting, input: Input, origin: Origin) {
        self.0.insert(setting.name(), (input, origin));
    }

    /// What it says about a setting, if anything.
    pub(crate) fn get(&self, setting: &Setting) -> Option<&(Input, Origin)> {
        self.0.get(&setting.name())
    }
}
