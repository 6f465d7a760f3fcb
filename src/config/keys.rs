//! All settings: the fields of the structs in [`PARTS`], which say what there is, its default and its meaning.
//!
//! Here is what only the server knows: which setting has a flag or a shorter variable, and which is secret.

use std::sync::LazyLock;

use event_persister_actors::archive::ArchiveSettings;
use event_persister_actors::event::EventLimits;
use event_persister_actors::pipeline::BatcherSettings;
use event_persister_actors::pipeline::PipelineSettings;
use event_persister_actors::settings::plain;
use event_persister_actors::source::http::HttpSettings;
use event_persister_actors::source::intake::IntakeSettings;
#[cfg(feature = "nats")]
use event_persister_actors::source::nats::NatsSettings;
use event_persister_actors::source::redis::RedisSettings;
use event_persister_actors::store::postgres::PostgresSettings;
use event_persister_actors::store::sqlite::SqliteSettings;
use event_persister_actors::trim::TrimSettings;
use schemars::{JsonSchema, Schema, schema_for};
use serde::de::DeserializeOwned;
use serde::ser::Serialize;
use serde_json::{Map, Value};

#[cfg(feature = "nats")]
use super::sections::WhichNats;
use super::sections::{Shutdown, WhichDatabase, WhichRedis};
use crate::cli::Flags;
use crate::http::ListenerSettings;
use crate::logging::Log;

pub(crate) const PREFIX: &str = "EVENT_PERSISTER_";

pub(super) const WITHOUT_NATS: &str =
    "this program was built without NATS; build it with the feature `nats`";

/// A variable that ends with it names a file instead of holding the value.
const FILE_SUFFIX: &str = "_FILE";

/// The sections, in the order in which people read them. One may consist of several structs.
static PARTS: &[Part] = &[
    Part::of::<WhichDatabase>("database"),
    Part::of::<SqliteSettings>("database"),
    Part::of::<PostgresSettings>("database"),
    Part::of::<WhichRedis>("redis"),
    Part::of::<RedisSettings>("redis"),
    #[cfg(feature = "nats")]
    Part::of::<WhichNats>("nats"),
    #[cfg(feature = "nats")]
    Part::of::<NatsSettings>("nats"),
    Part::of::<ListenerSettings>("http"),
    Part::of::<HttpSettings>("http"),
    Part::of::<IntakeSettings>("http"),
    Part::of::<PipelineSettings>("pipeline"),
    Part::of::<Shutdown>("pipeline"),
    Part::of::<BatcherSettings>("batch"),
    Part::of::<TrimSettings>("trim"),
    Part::of::<ArchiveSettings>("archive"),
    Part::of::<EventLimits>("events"),
    Part::of::<Log>("log"),
];

type OfFlags = fn(&Flags) -> &Option<String>;

/// By the name of their setting.
pub(crate) const FLAGS: &[(&str, &str, OfFlags)] = &[
    ("database.url", "--database-url", |flags| {
        &flags.database_url
    }),
    ("redis.url", "--redis-url", |flags| &flags.redis_url),
    #[cfg(feature = "nats")]
    ("nats.url", "--nats-url", |flags| &flags.nats_url),
    ("http.listen", "--listen", |flags| &flags.listen),
    ("pipeline.writers", "--writers", |flags| &flags.writers),
    ("log.format", "--log-format", |flags| &flags.log_format),
];

const SHORT_VARIABLES: [(&str, &str); 2] = [
    ("http.listen", "EVENT_PERSISTER_LISTEN"),
    ("pipeline.writers", "EVENT_PERSISTER_WRITERS"),
];

/// Never repeated, not even in an error.
const SECRETS: &[&str] = &[
    "redis.url",
    #[cfg(feature = "nats")]
    "nats.url",
    "http.auth_string",
];

/// A variable may name a file with the value.
const FROM_FILES: &[&str] = &[
    "database.url",
    "redis.url",
    #[cfg(feature = "nats")]
    "nats.url",
    "http.auth_string",
];

pub(crate) struct Setting {
    pub(crate) section: &'static str,
    pub(crate) key: String,
    pub(crate) name: String,
    /// As it would be written; `null` where there is none.
    pub(crate) default: Value,
    pub(crate) help: String,
    pub(crate) schema: Value,
    part: &'static Part,
}

struct Part {
    section: &'static str,
    defaults: fn() -> Result<Fields, serde_json::Error>,
    schema: fn() -> Schema,
    rewrite: fn(Map<String, Value>) -> Result<Value, serde_json::Error>,
}

impl Part {
    const fn of<T>(section: &'static str) -> Self
    where
        T: Default + Serialize + DeserializeOwned + JsonSchema,
    {
        Self {
            section,
            defaults: defaults::<T>,
            schema: || schema_for!(T),
            rewrite: rewrite::<T>,
        }
    }

    fn settings(&'static self) -> Vec<Setting> {
        let schema = (self.schema)();
        // That a struct of settings can be written is tested.
        let fields = (self.defaults)().unwrap_or_default();
        let settings = fields.into_iter().map(|(key, default)| {
            let mut schema = schema
                .pointer(&format!("/properties/{key}"))
                .cloned()
                .unwrap_or_default();
            let help = schema["description"].as_str().unwrap_or_default();
            let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
            schema["description"] = help.as_str().into();
            if default.is_null() {
                schema
                    .as_object_mut()
                    .map(|schema| schema.remove("default"));
            }
            Setting {
                section: self.section,
                name: format!("{}.{key}", self.section),
                help,
                key,
                default,
                schema,
                part: self,
            }
        });
        settings.collect()
    }
}

type Fields = Vec<(String, Value)>;

/// The fields in the order of the struct, which a map forgets and the text keeps.
fn defaults<T: Default + Serialize>() -> Result<Fields, serde_json::Error> {
    let text = serde_json::to_string(&T::default())?;
    let mut fields = Fields::from_iter(serde_json::from_str::<Map<String, Value>>(&text)?);
    fields.sort_by_key(|(key, _)| text.find(&format!("\"{key}\":")));
    Ok(fields)
}

/// Reads settings only to write them again.
fn rewrite<T: DeserializeOwned + Serialize>(
    given: Map<String, Value>,
) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(given.into())?)
}

pub(crate) fn all() -> &'static [Setting] {
    static ALL: LazyLock<Vec<Setting>> =
        LazyLock::new(|| PARTS.iter().flat_map(Part::settings).collect());
    &ALL
}

pub(crate) fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&str> = PARTS.iter().map(|part| part.section).collect();
    sections.dedup();
    sections
}

pub(crate) fn is_secret(name: &str) -> bool {
    SECRETS.contains(&name)
}

impl Setting {
    pub(crate) fn variable(&self) -> String {
        format!("{PREFIX}{}_{}", self.section, self.key).to_ascii_uppercase()
    }

    /// All variables that set it, the full name first.
    pub(crate) fn variables(&self) -> impl Iterator<Item = String> {
        let shorter = SHORT_VARIABLES.into_iter();
        let shorter = shorter.filter(|(name, _)| *name == self.name);
        std::iter::once(self.variable()).chain(shorter.map(|(_, variable)| variable.to_owned()))
    }

    /// The variable that names a file with the value, if there may be one.
    pub(crate) fn file_variable(&self) -> Option<String> {
        FROM_FILES
            .contains(&self.name.as_str())
            .then(|| format!("{}{FILE_SUFFIX}", self.variable()))
    }

    pub(crate) fn shown_default(&self) -> Option<String> {
        (!self.default.is_null()).then(|| plain(&self.default))
    }

    /// A value for people, secrets masked; the error says what would be right.
    pub(crate) fn show(&self, given: &Value) -> Result<String, String> {
        let alone = Map::from_iter([(self.key.clone(), given.clone())]);
        let written = (self.part.rewrite)(alone).map_err(|error| error.to_string())?;
        Ok(plain(&written[&self.key]))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_default_is_a_right_value_written_as_it_is_shown() {
        for setting in all().iter().filter(|setting| !setting.default.is_null()) {
            let default = &setting.default;
            assert_eq!(
                setting.show(default),
                Ok(plain(default)),
                "{}",
                setting.name
            );
            assert_eq!(&setting.schema["default"], default, "{}", setting.name);
        }
    }

    #[test]
    fn every_part_has_settings_and_every_example_is_right() {
        assert!(PARTS.iter().all(|part| !part.settings().is_empty()));
        for setting in all().iter().filter(|setting| setting.default.is_null()) {
            let example = &setting.schema["examples"][0];
            assert!(setting.show(example).is_ok(), "{}", setting.name);
        }
    }

    #[test]
    fn no_two_settings_share_a_name() {
        let names: BTreeSet<&str> = all().iter().map(|setting| setting.name.as_str()).collect();
        let variables: Vec<String> = all().iter().flat_map(Setting::variables).collect();
        assert_eq!(names.len(), all().len());
        assert_eq!(
            variables.iter().collect::<BTreeSet<_>>().len(),
            variables.len()
        );
        let named = (FLAGS.iter().map(|(name, ..)| *name))
            .chain(SHORT_VARIABLES.map(|(name, _)| name))
            .chain(SECRETS.iter().copied())
            .chain(FROM_FILES.iter().copied());
        for name in named {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn every_setting_says_what_it_does() {
        for setting in all() {
            assert!(setting.help.ends_with('.'), "{}", setting.name);
        }
    }
}
