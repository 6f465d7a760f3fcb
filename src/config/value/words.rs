//! Addresses, and words out of few.

use super::{Input, SettingValue};

/// Where the listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    /// Nowhere.
    Off,
    /// At this host and port; port 0 takes any that is free.
    At(String),
}

impl SettingValue for Listen {
    fn read(input: &Input) -> Result<Self, String> {
        const EXPECTED: &str =
            "give an address and a port, such as 127.0.0.1:4280, [::1]:4280 or 0.0.0.0:80, or off";
        let Input::Text(text) = input else {
            return Err(EXPECTED.to_owned());
        };
        let text = text.trim();
        if text == "off" {
            return Ok(Self::Off);
        }
        let valid = match text.parse::<std::net::SocketAddr>() {
            Ok(_) => true,
            // A name, to be looked up when the listener starts.
            Err(_) => text.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && host
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
                    && port.parse::<u16>().is_ok()
            }),
        };
        if valid {
            Ok(Self::At(text.to_owned()))
        } else {
            Err(EXPECTED.to_owned())
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::At(address) => address.clone(),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

impl SettingValue for LogFormat {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Text(text) if text.trim() == "text" => Ok(Self::Text),
            Input::Text(text) if text.trim() == "json" => Ok(Self::Json),
            _ => Err("give text or json".to_owned()),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
        .to_owned()
    }
}

/// Which log lines are written: a level, or `target=level` parts separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogFilter(pub(crate) String);

impl SettingValue for LogFilter {
    fn read(input: &Input) -> Result<Self, String> {
        let expected = || {
            "give off, error, warn, info, debug or trace, or several such as \
             info,event_persister_actors=debug"
                .to_owned()
        };
        let Input::Text(text) = input else {
            return Err(expected());
        };
        // The logger itself would take an unknown word for a module and fall silent.
        let level = |text: &str| text.trim().parse::<log::LevelFilter>().is_ok();
        let valid = text.split(',').all(|part| match part.split_once('=') {
            Some((target, name)) => !target.trim().is_empty() && level(name),
            None => level(part),
        });
        if valid {
            Ok(Self(text.clone()))
        } else {
            Err(expected())
        }
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{read, shown};
    use super::*;

    #[test]
    fn the_listener_needs_a_host_and_a_port() {
        for text in [
            "127.0.0.1:4280",
            "[::1]:0",
            "0.0.0.0:80",
            "localhost:4280",
            "off",
        ] {
            assert_eq!(shown::<Listen>(text), text);
        }
        for text in [
            "4280",
            ":4280",
            "127.0.0.1",
            "::1:4280",
            "host:99999",
            "a b:1",
            "OFF",
        ] {
            assert!(read::<Listen>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_misspelt_level_is_not_taken_for_a_module() {
        for text in ["info", "WARN", "warn,actix_web=debug", "off"] {
            assert_eq!(shown::<LogFilter>(text), text);
        }
        for text in ["", "inof", "info,debgu", "a=b", "=info"] {
            assert!(read::<LogFilter>(text).is_err(), "{text}");
        }
    }
}
