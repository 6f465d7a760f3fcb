//! Prefect's variables, and what others of them hold as JSON.
//!
//! Prefect reads its settings by pydantic-settings, so one variable may hold a whole section of them:
//! `PREFECT_SERVER_DATABASE={"host": "db"}`. A section comes before the variables of its fields, and an outer
//! section before an inner one. The name of a variable as a key of a section counts least.

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde_json::{Map, Value};

use super::{FLUSH_INTERVAL, LIMITS, PERSISTER_ENABLED, Seen, database, redis, retention};

const PREFIX: &str = "PREFECT_";

/// What begins so belongs to Prefect's server, and not to one of its clients.
const OF_THE_SERVER: [&str; 7] = [
    "PREFECT_SERVER_",
    "PREFECT_REDIS_",
    "PREFECT_MESSAGING_",
    "PREFECT_EVENTS_M",
    "PREFECT_EVENTS_RETENTION_PERIOD",
    "PREFECT_API_DATABASE_",
    "PREFECT_API_SERVICES_",
];

/// The sections with settings that we know, each behind the one that holds it. Those of Redis are not among
/// them: Prefect reads none.
const SECTIONS: [&str; 10] = [
    "PREFECT_SERVER",
    "PREFECT_SERVER_API",
    "PREFECT_SERVER_DATABASE",
    "PREFECT_SERVER_DATABASE_SQLALCHEMY",
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS",
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS",
    "PREFECT_SERVER_EVENTS",
    "PREFECT_SERVER_SERVICES",
    "PREFECT_SERVER_SERVICES_DB_VACUUM",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER",
];

/// Single settings that Prefect reads as JSON too.
const AS_JSON: [&str; 2] = [retention::OVERRIDES, retention::VACUUM_ENABLED];

/// Prefect's variables that are not empty, by their names in capitals: Prefect does not tell them apart.
/// What a section holds stands under the name of the variable that is for it alone.
#[derive(Default)]
pub(in crate::config) struct Variables {
    given: BTreeMap<String, Given>,
    /// Those that others come before.
    pub(super) hidden: Vec<Seen>,
    /// What Prefect refuses as well. The values are not told: they may hold passwords.
    pub(super) problems: Vec<String>,
}

/// A value: a text, or whatever stood in JSON.
struct Given {
    value: Value,
    /// The variable that it stands in.
    variable: String,
    /// The same with the place within the variable.
    place: String,
}

impl Variables {
    pub(in crate::config) fn of(environment: &[(OsString, OsString)]) -> Self {
        let mut variables = Self::default();
        for (name, value) in environment {
            let Some(name) = name.to_str() else {
                continue;
            };
            let upper = name.to_ascii_uppercase();
            // The home is not Prefect's, but its default database stands in it.
            if value.is_empty() || !(upper.starts_with(PREFIX) || name == database::HOME) {
                continue;
            }
            let text = value.to_string_lossy().into_owned();
            let json = AS_JSON
                .contains(&&*upper)
                .then(|| serde_json::from_str(&text));
            let given = Given {
                value: match json {
                    Some(Ok(value)) => value,
                    _ => text.into(),
                },
                variable: upper.clone(),
                place: upper.clone(),
            };
            variables.given.insert(upper, given);
        }
        for name in AS_JSON {
            if let Some(given) = variables.given.remove(name) {
                if given.value.is_null() {
                    variables.hide(given.place, "null means the default");
                } else {
                    variables.given.insert(name.to_owned(), given);
                }
            }
        }
        variables.read_sections();
        variables
    }

    /// The first of these that is set. `null` in a section says that none is.
    pub(super) fn first(&self, names: &[&'static str]) -> Option<(&'static str, &Value)> {
        let given = |name: &&'static str| Some((*name, &self.given.get(*name)?.value));
        (names.iter().find_map(given)).filter(|(_, value)| !value.is_null())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let given = self.given.get(name)?;
        (!given.value.is_null()).then_some(&given.value)
    }

    /// The name of the variable that this one's value stands in.
    pub(super) fn origin<'a>(&'a self, name: &'a str) -> &'a str {
        self.given.get(name).map_or(name, |given| &given.variable)
    }

    /// The same with the place within it.
    pub(super) fn place<'a>(&'a self, name: &'a str) -> &'a str {
        self.given.get(name).map_or(name, |given| &given.place)
    }

    pub(super) fn are_of_a_server(&self) -> bool {
        self.given
            .keys()
            .any(|name| OF_THE_SERVER.iter().any(|prefix| name.starts_with(prefix)))
    }

    fn hide(&mut self, variable: String, reason: impl Into<String>) {
        self.hidden.push(Seen {
            variable,
            reason: reason.into(),
        });
    }

    fn read_sections(&mut self) {
        let mut fields = BTreeMap::new();
        let mut aliases = BTreeMap::new();
        for section in SECTIONS {
            let Some(Value::String(text)) = self.get(section) else {
                continue;
            };
            match serde_json::from_str(text) {
                Ok(Value::Null) => {}
                Ok(value) => {
                    let place = Given {
                        value,
                        variable: section.to_owned(),
                        place: section.to_owned(),
                    };
                    self.read_section(section, place, &mut fields, &mut aliases);
                }
                Err(_) => self.refuse(section),
            }
        }
        for (name, field) in fields {
            if let Some(variable) = self.given.insert(name.clone(), field) {
                self.put_behind(&name, variable);
            }
        }
        let mut last = Vec::new();
        for (name, alias) in aliases {
            let mut others = aliased(&name).into_iter().flatten();
            match others.find(|other| self.given.contains_key(**other)) {
                Some(other) => self.put_behind(other, alias),
                None => last.push((name, alias)),
            }
        }
        self.given.extend(last);
    }

    /// Notes the fields of a section, and the settings that are named as variables in it.
    fn read_section(
        &mut self,
        section: &str,
        given: Given,
        fields: &mut BTreeMap<String, Given>,
        aliases: &mut BTreeMap<String, Given>,
    ) {
        let Given {
            value,
            variable,
            place,
        } = given;
        let Value::Object(object) = value else {
            self.refuse(&place);
            return;
        };
        for (key, value) in object {
            let upper = key.to_ascii_uppercase();
            let name = format!("{section}_{upper}");
            let place = match place.strip_suffix(')') {
                Some(outer) => format!("{outer}.{key})"),
                None => format!("{place} ({key})"),
            };
            let given = Given {
                value,
                variable: variable.clone(),
                place,
            };
            let is_alias = aliased(&upper).is_some_and(|names| owner(names[0]) == Some(section));
            if SECTIONS.contains(&&*name) && owner(&name) == Some(section) {
                self.read_section(&name, given, fields, aliases);
            } else if is_alias {
                self.note(aliases, upper, given);
            } else if owner(&name) == Some(section) && (aliased(&name).is_none() || is_lower(&key))
            {
                self.note(fields, name, given);
            }
        }
    }

    fn note(&mut self, noted: &mut BTreeMap<String, Given>, name: String, mut given: Given) {
        if name == retention::VACUUM_ENABLED && given.value.is_null() {
            // Here it is the empty set.
            given.value = Value::Array(Vec::new());
        }
        match noted.get_mut(&name) {
            None => drop(noted.insert(name, given)),
            Some(before) => {
                let hidden = before.put_before(given);
                self.hidden.extend(hidden);
            }
        }
    }

    fn put_behind(&mut self, name: &str, given: Given) {
        let before = self.given.get_mut(name);
        let hidden = before.and_then(|before| before.put_before(given));
        self.hidden.extend(hidden);
    }

    fn refuse(&mut self, place: &str) {
        self.problems.push(format!(
            "{place}: the value is nothing that Prefect's server would start with: give a JSON object"
        ));
    }
}

impl Given {
    /// Objects are put together. Of anything else this one counts, and the other is hidden.
    fn put_before(&mut self, other: Self) -> Option<Seen> {
        match (&mut self.value, other.value) {
            (Value::Object(before), Value::Object(after)) => {
                fill(before, after);
                self.variable = format!("{}, {}", self.variable, other.variable);
                self.place = format!("{}, {}", self.place, other.place);
                None
            }
            _ => Some(Seen {
                variable: other.place,
                reason: format!("{} comes before it", self.place),
            }),
        }
    }
}

fn fill(before: &mut Map<String, Value>, after: Map<String, Value>) {
    for (key, value) in after {
        before.entry(key).or_insert(value);
    }
}

/// The section that a variable sets a field of.
fn owner(name: &str) -> Option<&'static str> {
    let of_it = |section: &&&str| {
        name.strip_prefix(**section)
            .is_some_and(|field| field.starts_with('_'))
    };
    SECTIONS.iter().rev().find(of_it).copied()
}

/// All names of a setting that has several. In JSON the case of its field counts, unlike that of others.
fn aliased(name: &str) -> Option<&'static [&'static str]> {
    let of_persister = [&FLUSH_INTERVAL, &PERSISTER_ENABLED];
    let of_others = [&redis::BROKER, &retention::PERIOD];
    let limits = LIMITS.iter().map(|(_, names, _)| *names);
    (database::ALIASED.into_iter())
        .chain(
            of_persister
                .into_iter()
                .chain(of_others)
                .map(|names| &names[..]),
        )
        .chain(limits)
        .find(|names| names.contains(&name))
}

fn is_lower(key: &str) -> bool {
    !key.bytes().any(|byte| byte.is_ascii_uppercase())
}
