//! Which events are wanted: plain data.
//!
//! A list that is empty asks for nothing special. Filters of one event are all to hold; the values of one
//! list are alternatives.

use chrono::{DateTime, Utc};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use super::parse;
use super::problems::{Loc, Problems};
use super::stored::iso;

/// Which events are wanted, and in what order. Serialised, it is a filter that parses into the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventFilter {
    /// When they occurred.
    pub occurred: Occurred,
    /// Their names.
    #[serde(skip_serializing_if = "is_default")]
    pub event: NameFilter,
    /// The resource that they are about.
    #[serde(skip_serializing_if = "is_default")]
    pub resource: ResourceFilter,
    /// For each of these, one of their related resources.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<RelatedFilter>,
    /// For each of these, one of all their resources.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub any_resource: Vec<AnyResourceFilter>,
    /// Their ids.
    #[serde(serialize_with = "as_ids", skip_serializing_if = "Vec::is_empty")]
    pub id: Vec<Uuid>,
    /// A search in their texts.
    #[serde(serialize_with = "as_query", skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The oldest or the newest first.
    pub order: Order,
}

impl EventFilter {
    /// All events of half a year, the newest first, as Prefect means it where nothing is said.
    pub fn all(now: DateTime<Utc>) -> Self {
        Self {
            occurred: Occurred::recent(now),
            event: NameFilter::default(),
            resource: ResourceFilter::default(),
            related: Vec::new(),
            any_resource: Vec::new(),
            id: Vec::new(),
            text: None,
            order: Order::Desc,
        }
    }

    /// Reads a filter.
    ///
    /// # Errors
    ///
    /// All that is wrong, with where it stands; locations begin with `at`.
    pub fn parse(value: &Value, now: DateTime<Utc>, at: &str) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let filter = parse::filter(&mut problems, &Loc::root(at), value, now);
        problems.or(filter)
    }
}

/// When events occurred, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Occurred {
    /// Not before.
    #[serde(serialize_with = "as_moment")]
    pub since: DateTime<Utc>,
    /// Not after.
    #[serde(serialize_with = "as_moment")]
    pub until: DateTime<Utc>,
}

impl Occurred {
    pub(super) fn recent(now: DateTime<Utc>) -> Self {
        let midnight = now.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
        Self {
            since: midnight - chrono::TimeDelta::days(180),
            until: now,
        }
    }

    pub(crate) fn contains(&self, moment: DateTime<Utc>) -> bool {
        (self.since..=self.until).contains(&moment)
    }
}

/// The order of events by when they occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Order {
    /// The oldest first.
    #[serde(rename = "ASC")]
    Asc,
    /// The newest first.
    #[serde(rename = "DESC")]
    Desc,
}

/// The names of events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NameFilter {
    /// One of these begins it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefix: Vec<String>,
    /// None of these begins it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude_prefix: Vec<String>,
    /// It is one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub name: Vec<String>,
    /// It is none of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude_name: Vec<String>,
}

/// The labels of a resource, each with patterns: `*` is any text, `?` any character, and a leading `!` means all
/// but those that match. A label without patterns matches nothing, but for id and role, where it asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(pub Vec<(String, Vec<String>)>);

impl Labels {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (label, patterns) in &self.0 {
            map.serialize_entry(label, patterns)?;
        }
        map.end()
    }
}

/// The resource that events are about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ResourceFilter {
    /// Its id is one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub id: Vec<String>,
    /// One of these begins its id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub id_prefix: Vec<String>,
    /// It has these labels.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Only the first event of each resource.
    #[serde(skip_serializing_if = "is_default")]
    pub distinct: bool,
}

/// A related resource of events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RelatedFilter {
    /// Its id is one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub id: Vec<String>,
    /// Its role is one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub role: Vec<String>,
    /// Its id and its role are one of these pairs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources_in_roles: Vec<(String, String)>,
    /// It has these labels.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Any resource of events, whatever its role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AnyResourceFilter {
    /// Its id is one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub id: Vec<String>,
    /// One of these begins its id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub id_prefix: Vec<String>,
    /// It has these labels.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn as_moment<S: Serializer>(moment: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&iso(*moment))
}

fn as_ids<S: Serializer>(ids: &[Uuid], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry("id", ids)?;
    map.end()
}

fn as_query<S: Serializer>(query: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry("query", query)?;
    map.end()
}

#[cfg(test)]
mod tests;
