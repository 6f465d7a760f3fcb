//! Whether the rows of an event fit together, and can be read: plain data, and the questions for it.
//!
//! One event is in memory at a time, and of its payload only what is long enough to be wrong.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment};
use diesel::sql_types::{Bool, Nullable, Text};
use diesel::sqlite::Sqlite;

use crate::event::{ID_LABEL, ROLE_LABEL, holds_long_integer};
use crate::store::operator::{RESOURCES, Unreadable};
use crate::store::sqlite::connection::Connection;
use crate::store::sqlite::result_code::Failed;
use crate::store::sqlite::text::read_timestamp;

#[derive(Debug, Default, Queryable)]
struct EventColumns {
    occurred: Option<String>,
    received: Option<String>,
    resource_id: Option<String>,
    resource: Option<String>,
    related: Option<String>,
    related_resource_ids: Option<String>,
    /// Only if it is long enough to hold a long integer.
    long_payload: Option<String>,
    payload_is_json: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Queryable)]
pub(super) struct ResourceColumns {
    pub(super) occurred: Option<String>,
    pub(super) resource_id: Option<String>,
    pub(super) resource_role: Option<String>,
    pub(super) resource: Option<String>,
}

/// Labels without those that are columns of their own, whatever their order.
type Labels = BTreeMap<String, String>;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ComparableRow {
    occurred: Option<String>,
    resource_id: Option<String>,
    role: Option<String>,
    /// `None` for what is no object of texts.
    labels: Option<Labels>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) received: Option<DateTime<Utc>>,
    pub(super) contradicting: Vec<&'static str>,
    pub(super) unreadable: Option<Unreadable>,
    pub(super) num_expected: u64,
    pub(super) num_resources: u64,
}

impl Content {
    pub(super) fn read(connection: &mut Connection, id: &str) -> Result<Option<Self>, Failed> {
        let event = EventOf(id);
        let event: Option<EventColumns> =
            connection.run(|connection| event.get_result(connection).optional())?;
        let Some(event) = event else { return Ok(None) };
        let resources = ResourcesOf(id);
        let resources: Vec<ResourceColumns> =
            connection.run(|connection| resources.load(connection))?;
        Ok(Some(Self::of(event, resources)))
    }

    pub(super) fn is_sound(&self) -> bool {
        self.num_expected == self.num_resources
            && self.contradicting.is_empty()
            && self.unreadable.is_none()
    }

    pub(super) fn unreadable(
        connection: &mut Connection,
        id: &str,
    ) -> Result<Option<Unreadable>, Failed> {
        let event = EventOf(id);
        let event: Option<EventColumns> =
            connection.run(|connection| event.get_result(connection).optional())?;
        Ok(event.and_then(|event| event.unreadable()))
    }

    fn of(event: EventColumns, resources: Vec<ResourceColumns>) -> Self {
        let labels: Option<Labels> = event.resource.as_deref().and_then(read);
        let related = event.related.as_deref().and_then(read::<Vec<Labels>>);
        let ids = event.related_resource_ids.as_deref().and_then(read);
        let id_of = |labels: &Labels| labels.get(ID_LABEL).cloned();
        let mut contradicting = Vec::new();
        if labels.as_ref().and_then(id_of) != event.resource_id {
            contradicting.push("resource_id");
        }
        if related.is_none() {
            contradicting.push("related");
        }
        let related = related.unwrap_or_default();
        let related_ids: Vec<Option<String>> = related.iter().map(id_of).collect();
        if ids != Some(related_ids) {
            contradicting.push("related_resource_ids");
        }
        let num_expected = 1 + related.len() as u64;
        let num_resources = resources.len() as u64;
        let own = ComparableRow {
            role: Some(String::new()),
            ..ComparableRow::told(&event, labels)
        };
        let related = related.into_iter();
        let mut expected: Vec<ComparableRow> = related
            .map(|labels| ComparableRow::told(&event, Some(labels)))
            .collect();
        expected.push(own);
        let mut held: Vec<ComparableRow> = resources.into_iter().map(ComparableRow::held).collect();
        expected.sort();
        held.sort();
        if expected != held {
            contradicting.push(RESOURCES);
        }
        Self {
            received: event.received.as_deref().and_then(read_timestamp),
            contradicting,
            unreadable: event.unreadable(),
            num_expected,
            num_resources,
        }
    }
}

impl EventColumns {
    fn unreadable(&self) -> Option<Unreadable> {
        let payload = self.long_payload.as_deref().unwrap_or_default();
        if !self.payload_is_json {
            Some(Unreadable::NoJson)
        } else if holds_long_integer(payload) {
            Some(Unreadable::LongInteger)
        } else {
            None
        }
    }
}

impl ComparableRow {
    /// By the event's own columns.
    fn told(event: &EventColumns, mut labels: Option<Labels>) -> Self {
        let mut take = |key| labels.as_mut().and_then(|labels| labels.remove(key));
        let (resource_id, role) = (take(ID_LABEL), take(ROLE_LABEL));
        Self {
            occurred: event.occurred.clone(),
            resource_id,
            role,
            labels,
        }
    }

    fn held(row: ResourceColumns) -> Self {
        Self {
            occurred: row.occurred,
            resource_id: row.resource_id,
            role: row.resource_role,
            labels: row.resource.as_deref().and_then(read),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(json: &str) -> Option<T> {
    serde_json::from_str(json).ok()
}

struct EventOf<'a>(&'a str);

pub(super) struct ResourcesOf<'a>(pub(super) &'a str);

macro_rules! question {
    ($question:ident, $row:ty, $sql:expr) => {
        prepared_once!($question);

        impl Query for $question<'_> {
            type SqlType = $row;
        }

        impl QueryFragment<Sqlite> for $question<'_> {
            fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
                out.push_sql($sql);
                out.push_bind_param::<Text, str>(self.0)
            }
        }
    };
}

type Texts4 = (
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Text>,
);

question!(
    EventOf,
    (
        Nullable<Text>,
        Nullable<Text>,
        Nullable<Text>,
        Nullable<Text>,
        Nullable<Text>,
        Nullable<Text>,
        Nullable<Text>,
        Bool,
    ),
    "SELECT CAST(occurred AS TEXT), CAST(received AS TEXT), CAST(resource_id AS TEXT), \
     CAST(resource AS TEXT), CAST(related AS TEXT), CAST(related_resource_ids AS TEXT), \
     CASE WHEN octet_length(payload) > 4300 THEN CAST(payload AS TEXT) END, \
     json_valid(CAST(payload AS TEXT)) FROM events WHERE id = "
);

question!(
    ResourcesOf,
    Texts4,
    "SELECT CAST(occurred AS TEXT), CAST(resource_id AS TEXT), CAST(resource_role AS TEXT), \
     CAST(resource AS TEXT) FROM event_resources WHERE event_id = "
);

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn event() -> EventColumns {
        EventColumns {
            occurred: text("2026-01-02 03:04:05.000000"),
            received: text("2026-01-02 03:04:06.000000"),
            resource_id: text("a"),
            resource: text(r#"{"prefect.resource.id": "a", "name": "A"}"#),
            related: text(
                r#"[{"prefect.resource.id": "b", "prefect.resource.role": "flow", "x": "1", "y": "2"}]"#,
            ),
            related_resource_ids: text(r#"["b"]"#),
            long_payload: None,
            payload_is_json: true,
        }
    }

    fn resource(id: &str, role: &str, labels: &str) -> ResourceColumns {
        ResourceColumns {
            occurred: event().occurred,
            resource_id: text(id),
            resource_role: text(role),
            resource: text(labels),
        }
    }

    /// In another order than the event has them.
    fn resources() -> Vec<ResourceColumns> {
        vec![
            resource("b", "flow", r#"{"y": "2", "x": "1"}"#),
            resource("a", "", r#"{"name":"A"}"#),
        ]
    }

    #[test]
    fn rows_that_fit_together_contradict_nothing() {
        let content = Content::of(event(), resources());
        assert_eq!(
            content,
            Content {
                received: Some("2026-01-02T03:04:06Z".parse().unwrap()),
                num_expected: 2,
                num_resources: 2,
                ..Content::default()
            }
        );
    }

    #[test]
    fn every_column_that_does_not_fit_is_named() {
        type Change = fn(&mut EventColumns, &mut Vec<ResourceColumns>);
        let changes: [(Change, &[&str]); 11] = [
            (|event, _| event.resource_id = text("b"), &["resource_id"]),
            (
                |event, _| event.related_resource_ids = text(r#"["b", "b"]"#),
                &["related_resource_ids"],
            ),
            (
                |event, _| event.related_resource_ids = text("null"),
                &["related_resource_ids"],
            ),
            (|event, _| event.occurred = text("2026"), &[RESOURCES]),
            (
                |event, _| event.resource = text("{"),
                &["resource_id", RESOURCES],
            ),
            (
                |event, _| event.related = text("{}"),
                &["related", "related_resource_ids", RESOURCES],
            ),
            (|_, rows| rows[0].resource_role = text("task"), &[RESOURCES]),
            (|_, rows| rows[1].resource_role = None, &[RESOURCES]),
            (|_, rows| rows[0].resource_id = text("c"), &[RESOURCES]),
            (
                |_, rows| rows[0].resource = text(r#"{"x": "1"}"#),
                &[RESOURCES],
            ),
            (
                |_, rows| rows[1] = resource("b", "flow", r#"{"y": "2", "x": "1"}"#),
                &[RESOURCES],
            ),
        ];
        for (index, (change, columns)) in changes.into_iter().enumerate() {
            let (mut event, mut resources) = (event(), resources());
            change(&mut event, &mut resources);
            let content = Content::of(event, resources);
            assert_eq!(content.contradicting, columns, "change {index}");
            assert_eq!(content.unreadable, None);
        }
    }

    #[test]
    fn a_payload_that_is_no_json_cannot_be_read() {
        let mut broken = event();
        broken.payload_is_json = false;
        let content = Content::of(broken, resources());
        assert_eq!(content.unreadable, Some(Unreadable::NoJson));
    }
}
