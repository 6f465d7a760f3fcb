//! What is logged, and how.

use event_persister_actors::settings::{As, Named, OneOf, Spelling};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is logged, and how.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// `text` for people, `json` for one object a line.
    #[serde(with = "As::<OneOf<LogFormat>>")]
    pub(crate) format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace` or `off`, also by module:
    /// `info,event_persister_actors=debug`.
    #[serde(with = "As::<LogFilter>")]
    pub(crate) level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".to_owned(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Named for LogFormat {
    const ALL: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

/// The log lines that are written: a level, or `target=level` parts separated by commas.
struct LogFilter;

impl Spelling for LogFilter {
    type Value = String;

    fn read(given: &Value) -> Result<String, String> {
        let text = given.as_str().unwrap_or_default();
        // The logger itself would take an unknown word for a module and fall silent.
        let level = |text: &str| text.trim().parse::<log::LevelFilter>().is_ok();
        let is_right = text.split(',').all(|part| match part.split_once('=') {
            Some((target, name)) => !target.trim().is_empty() && level(name),
            None => level(part),
        });
        if is_right {
            return Ok(text.to_owned());
        }
        Err(
            "give off, error, warn, info, debug or trace, or several such as \
             info,event_persister_actors=debug"
                .to_owned(),
        )
    }

    fn write(value: &String) -> Value {
        value.clone().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_not_taken_for_a_module() {
        for text in ["info", "WARN", "warn,actix_web=debug", "off"] {
            assert_eq!(LogFilter::read(&text.into()).as_deref(), Ok(text));
        }
        for text in ["", "inof", "info,debgu", "a=b", "=info"] {
            assert!(LogFilter::read(&text.into()).is_err(), "{text}");
        }
    }
}
