//! How a setting's text becomes a typed value, and how it is shown again.

use std::fmt;

use super::database_url::mask_url;

mod numbers;
mod overrides;
mod texts;
mod words;

pub(crate) use numbers::{LONGEST, NonZeroDuration, NumWriters, Size, Switchable};
pub(crate) use overrides::Overrides;
pub(crate) use texts::{TlsMode, Toggle};
pub(crate) use words::{Listen, LogFilter, LogFormat};

/// A value as a layer gives it. Variables and flags are always text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    Text(String),
    Integer(i128),
    Table(Vec<(String, Input)>),
    /// Anything else that TOML knows; here only to be shown in an error.
    Other(String),
}

impl Input {
    /// As it would be quoted to the person who wrote it.
    pub(crate) fn quote(&self) -> String {
        match self {
            Self::Text(text) => format!("{:?}", mask_url(text)),
            Self::Integer(number) => number.to_string(),
            Self::Table(_) => "a table".to_owned(),
            Self::Other(text) => text.clone(),
        }
    }
}

/// A type that settings have.
pub(crate) trait SettingValue: Sized {
    /// Reads a value; the error says what would be right.
    fn read(input: &Input) -> Result<Self, String>;

    /// The value for people; secrets come masked.
    fn show(&self) -> String;
}

/// A text that is not to be seen.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// Of a text that came by another way than a setting of its own.
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one who compares it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl SettingValue for Secret {
    fn read(input: &Input) -> Result<Self, String> {
        // Secrets come out of files, whose last line end nobody means and nobody sees.
        match input {
            Input::Text(text) => Some(text.trim_end_matches(['\r', '\n'])),
            _ => None,
        }
        .filter(|text| !text.is_empty())
        .map(|text| Self(text.to_owned()))
        .ok_or_else(|| "give a text that is not empty".to_owned())
    }

    fn show(&self) -> String {
        "***".to_owned()
    }
}

/// Short cuts for the tests of all kinds of values.
#[cfg(test)]
mod testing {
    use super::{Input, SettingValue};

    pub(super) fn read<T: SettingValue>(text: &str) -> Result<T, String> {
        T::read(&Input::Text(text.to_owned()))
    }

    pub(super) fn shown<T: SettingValue>(text: &str) -> String {
        read::<T>(text).map_or_else(|error| format!("ERROR {error}"), |value| value.show())
    }
}

#[cfg(test)]
mod tests {
    use super::testing::read;
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret: Secret = read("user:password\n").unwrap();
        assert_eq!(secret.reveal(), "user:password");
        assert_eq!(secret.show(), "***");
        assert_eq!(format!("{secret:?}"), "***");
    }
}
