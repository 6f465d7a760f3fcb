//! The layer of Prefect's own environment, which counts least of all but the defaults.
//!
//! Its server's database, bus and events are taken over. What was chosen for the ways of another program is
//! reported only. Values are read as Prefect reads them: we start where its server starts, and refuse what it
//! refuses. Variables whose settings are given elsewhere are not looked into.

use std::time::Duration;

use event_persister_actors::address::encode;
use event_persister_actors::finding::Finding;
use serde_json::Value;

use super::error::ConfigError;
use super::keys;
use super::layer::{Layer, Origin, quote};

mod database;
mod not_taken_over;
mod pydantic;
mod redis;
mod retention;
mod variables;

pub(super) use variables::Variables;

const FLUSH_INTERVAL: [&str; 2] = [
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL",
    "PREFECT_API_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL",
];

const PERSISTER_ENABLED: [&str; 2] = [
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED",
    "PREFECT_API_SERVICES_EVENT_PERSISTER_ENABLED",
];

type Read = fn(&Value) -> Result<Reading, String>;

/// Prefect checks an event's size only where events come in by HTTP.
const LIMITS: [(&str, &[&str], Read); 4] = [
    (
        "events.max_labels_per_resource",
        &[
            "PREFECT_SERVER_EVENTS_MAXIMUM_LABELS_PER_RESOURCE",
            "PREFECT_EVENTS_MAXIMUM_LABELS_PER_RESOURCE",
        ],
        limit,
    ),
    (
        "events.max_related_resources",
        &[
            "PREFECT_SERVER_EVENTS_MAXIMUM_RELATED_RESOURCES",
            "PREFECT_EVENTS_MAXIMUM_RELATED_RESOURCES",
        ],
        limit,
    ),
    (
        "http.max_event_bytes",
        &[
            "PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES",
            "PREFECT_EVENTS_MAXIMUM_SIZE_BYTES",
        ],
        limit,
    ),
    (
        "events.max_event_name_length",
        &["PREFECT_SERVER_EVENTS_MAXIMUM_EVENT_NAME_LENGTH"],
        |value| match pydantic::integer(value) {
            Some(number) if number < 1 => Err("give a number above 0".to_owned()),
            _ => limit(value),
        },
    ),
];

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prefect {
    /// Variables that are set and not in effect, in the order of their names.
    pub(crate) not_taken_over: Vec<Seen>,
    /// What does not fit together, and what to do about it.
    pub(crate) warnings: Vec<Finding>,
    /// How long its persister may hold an event that it has acknowledged; `None` for its default.
    pub(crate) flush_interval: Option<Duration>,
}

impl Prefect {
    pub(crate) fn warning_lines(&self) -> impl Iterator<Item = String> {
        self.warnings.iter().map(|Finding { what, remedy, .. }| {
            format!("{what}: {}", remedy.as_deref().unwrap_or_default())
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) variable: String,
    pub(crate) reason: String,
}

/// Reads the layer; `higher` are those that count more.
pub(super) fn read(
    variables: &Variables,
    higher: &[Layer],
) -> (Layer, Prefect, Result<(), ConfigError>) {
    let mut reader = Reader {
        variables,
        higher,
        layer: Layer::default(),
        prefect: Prefect {
            not_taken_over: variables.hidden.clone(),
            ..Prefect::default()
        },
        errors: ConfigError::default(),
    };
    for problem in &variables.problems {
        reader.errors.add(problem);
    }
    database::read(&mut reader);
    redis::read(&mut reader);
    retention::read(&mut reader);
    for (setting, names, read) in LIMITS {
        reader.take(setting, names, read);
    }
    reader.take(
        "http.auth_string",
        &["PREFECT_SERVER_API_AUTH_STRING"],
        text,
    );
    not_taken_over::report(&mut reader);
    reader.prefect.flush_interval = flush_interval(variables);
    reader.warn_of_prefects_persister();
    reader.prefect.not_taken_over.sort();
    (reader.layer, reader.prefect, reader.errors.into_result())
}

enum Reading {
    Value(Value),
    /// Prefect takes it and we cannot: why.
    Unusable(String),
}

struct Reader<'a> {
    variables: &'a Variables,
    higher: &'a [Layer],
    layer: Layer,
    prefect: Prefect,
    errors: ConfigError,
}

impl<'a> Reader<'a> {
    /// Takes a setting over from the first of these variables that is set.
    fn take(
        &mut self,
        setting: &str,
        names: &[&'static str],
        read: impl FnOnce(&Value) -> Result<Reading, String>,
    ) {
        let Some((name, value)) = self.variables.first(names) else {
            return;
        };
        self.see_all(
            names.iter().filter(|other| **other != name),
            &self.comes_before(name),
        );
        if let Some(reason) = self.is_set_elsewhere(setting) {
            self.see(name, reason);
            return;
        }
        match read(value) {
            Ok(Reading::Value(value)) => self.set(setting, value, name),
            Ok(Reading::Unusable(reason)) => self.see(name, reason),
            Err(expected) => self.refuse(
                name,
                (!keys::is_secret(setting)).then_some(value),
                &expected,
            ),
        }
    }

    fn set(&mut self, setting: &str, value: impl Into<Value>, variable: &str) {
        let origin = self.variables.origin(variable).to_owned();
        self.layer.set(setting, value, Origin::Prefect(origin));
    }

    /// Takes over a value that several variables make up.
    fn set_from_parts(
        &mut self,
        setting: &str,
        value: String,
        parts: impl Iterator<Item = &'static str>,
    ) {
        let mut origins: Vec<&str> = Vec::new();
        for part in parts.filter(|part| self.variables.get(part).is_some()) {
            let origin = self.variables.origin(part);
            if !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        let origin = Origin::Prefect(origins.join(", "));
        self.layer.set(setting, value, origin);
    }

    fn comes_before(&self, name: &str) -> String {
        format!("{} comes before it", self.variables.place(name))
    }

    fn is_set_elsewhere(&self, setting: &str) -> Option<String> {
        self.higher
            .iter()
            .find_map(|layer| layer.get(setting))
            .map(|(_, origin)| format!("{setting} is set by {origin}"))
    }

    fn see(&mut self, name: &str, reason: impl Into<String>) {
        self.prefect.not_taken_over.push(Seen {
            variable: self.variables.place(name).to_owned(),
            reason: reason.into(),
        });
    }

    fn see_all<'n>(&mut self, names: impl IntoIterator<Item = &'n &'static str>, reason: &str) {
        for name in names {
            if self.variables.get(name).is_some() {
                self.see(name, reason);
            }
        }
    }

    /// Notes a value that Prefect refuses too; `None` if it must not be repeated.
    fn refuse(&mut self, name: &str, value: Option<&Value>, expected: &str) {
        let value = value.map_or_else(|| "the value".to_owned(), quote);
        let place = self.variables.place(name);
        self.errors.add(format!(
            "{place}: {value} is nothing that Prefect's server would start with: {expected}"
        ));
    }

    /// A switch of Prefect's; `None` if it is not set or cannot be read.
    fn switch(&mut self, names: &[&'static str]) -> Option<(&'static str, bool)> {
        let (name, value) = self.variables.first(names)?;
        let switch = pydantic::boolean(value);
        if switch.is_none() {
            self.refuse(name, Some(value), "give true or false");
        }
        switch.map(|switch| (name, switch))
    }

    fn warn_of_prefects_persister(&mut self) {
        if !self.variables.are_of_a_server() {
            return;
        }
        let enabled = self.switch(&PERSISTER_ENABLED);
        let (name, how) = match enabled {
            Some((_, false)) => return,
            Some((given, true)) => {
                let place = self.variables.place(given);
                (place, format!("{place} is on"))
            }
            None => {
                let [name, _] = PERSISTER_ENABLED;
                (name, format!("{name} is not set, and the default is on"))
            }
        };
        self.prefect.warnings.push(Finding::warning(
            "prefect.persister",
            format!(
                "Prefect's own persister is enabled in this environment ({how}), takes a share of the \
                 events and acknowledges them before they are stored"
            ),
            format!(
                "once event-persister runs, not before, set {name}=false for Prefect's server and \
                 services and restart them"
            ),
        ));
    }
}

/// Only what a shadow waits for; what Prefect would refuse is not looked into here.
fn flush_interval(variables: &Variables) -> Option<Duration> {
    let (_, value) = variables.first(&FLUSH_INTERVAL)?;
    let seconds = pydantic::number(value).filter(|seconds| *seconds > 0.0)?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A host as a URL has it.
fn host(text: &str) -> String {
    if text.contains(':') {
        format!("[{text}]")
    } else {
        encode(text)
    }
}

fn text(value: &Value) -> Result<Reading, String> {
    match value {
        Value::String(_) => Ok(Reading::Value(value.clone())),
        _ => Err("give a text".to_owned()),
    }
}

/// The value that a setting of ours takes.
fn ours(value: &str) -> Result<Reading, String> {
    Ok(Reading::Value(value.into()))
}

fn limit(value: &Value) -> Result<Reading, String> {
    // More than this are not to be had in memory; both mean that there is no limit.
    const NO_LIMIT: i128 = 1 << 40;
    match pydantic::integer(value) {
        None => Err("give a whole number".to_owned()),
        Some(number) if number < 1 => Ok(Reading::Unusable(
            "with less than 1 every event would be refused; the default counts".to_owned(),
        )),
        Some(number) => Ok(Reading::Value(number.min(NO_LIMIT).to_string().into())),
    }
}

#[cfg(test)]
mod tests;
