//! Names, paths, and switches.

use std::path::PathBuf;

use super::{Input, SettingValue};

const TEXT_EXPECTED: &str = "give a text that is not empty";

fn text(input: &Input) -> Result<&str, String> {
    match input {
        Input::Text(text) => Some(text.trim()),
        _ => None,
    }
    .filter(|text| !text.is_empty() && !text.contains('\0'))
    .ok_or_else(|| TEXT_EXPECTED.to_owned())
}

impl SettingValue for String {
    fn read(input: &Input) -> Result<Self, String> {
        text(input).map(str::to_owned)
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl SettingValue for PathBuf {
    fn read(input: &Input) -> Result<Self, String> {
        text(input)
            .map(Self::from)
            .map_err(|_| "give the path of a file".to_owned())
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Toggle(pub(crate) bool);

impl SettingValue for Toggle {
    fn read(input: &Input) -> Result<Self, String> {
        // TOML's own booleans arrive as what they are not to us: other values.
        let (Input::Text(text) | Input::Other(text)) = input else {
            return Err("give on or off".to_owned());
        };
        match text.trim() {
            "on" | "true" => Ok(Self(true)),
            "off" | "false" => Ok(Self(false)),
            _ => Err("give on or off".to_owned()),
        }
    }

    fn show(&self) -> String {
        if self.0 { "on" } else { "off" }.to_owned()
    }
}

/// How far a connection to PostgreSQL is encrypted and the server's certificate believed; libpq's
/// words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsMode {
    /// Never encrypted.
    Disable,
    /// Encrypted if the server insists.
    Allow,
    /// Encrypted if the server can.
    Prefer,
    /// Encrypted, with whoever answers.
    Require,
    /// With a server whose certificate a known authority signed.
    VerifyCa,
    /// The same, and the certificate is for that host.
    VerifyFull,
}

impl TlsMode {
    const ALL: [(&'static str, Self); 6] = [
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];

    /// By its name.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, mode)| *mode)
    }
}

impl SettingValue for TlsMode {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Text(text) => Self::parse(text.trim()),
            _ => None,
        }
        .ok_or_else(|| "give disable, allow, prefer, require, verify-ca or verify-full".to_owned())
    }

    fn show(&self) -> String {
        Self::ALL
            .iter()
            .find(|(_, mode)| mode == self)
            .map_or("", |(name, _)| name)
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{read, shown};
    use super::*;

    #[test]
    fn a_switch_is_on_or_off_also_as_tomls_boolean() {
        assert_eq!(read("on"), Ok(Toggle(true)));
        assert_eq!(shown::<Toggle>("false"), "off");
        assert_eq!(
            Toggle::read(&Input::Other("true".to_owned())),
            Ok(Toggle(true))
        );
        assert!(read::<Toggle>("1").is_err());
    }

    #[test]
    fn names_and_paths_are_not_empty() {
        assert_eq!(read(" events "), Ok("events".to_owned()));
        assert!(read::<String>(" ").is_err());
        assert!(read::<String>("a\0b").is_err());
        assert!(read::<PathBuf>("").unwrap_err().contains("path"));
    }

    #[test]
    fn tls_modes_are_libpqs() {
        for (name, mode) in TlsMode::ALL {
            assert_eq!(read(name), Ok(mode));
            assert_eq!(mode.show(), name);
        }
        assert!(read::<TlsMode>("on").unwrap_err().contains("verify-full"));
    }
}
