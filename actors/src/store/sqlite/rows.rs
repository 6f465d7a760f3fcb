//! The rows of one event: their texts in Prefect's forms, and the statements that insert them.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Nullable, Text};
use diesel::sqlite::Sqlite;
use uuid::Uuid;

use super::connection::Failure;
use super::result_code::{Failed, ResultCode};
use super::text::write_timestamp;
use crate::event::{ReceivedEvent, Resource};
use crate::store::python_json::{rewrite, write_array, write_object, write_string};

/// Why the database does not take an event.
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) sqlstate: Option<String>,
}

impl Refusal {
    pub(super) fn ours(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            sqlstate: None,
        }
    }

    pub(super) fn by_database(failed: &Failed) -> Self {
        Self {
            reason: failed.error.to_string(),
            sqlstate: Some(failed.code.name()),
        }
    }
}

/// The texts of one row in Prefect's forms, in buffers that serve one event after another.
pub(super) struct RowTexts {
    pub(super) now: String,
    pub(super) id: String,
    pub(super) occurred: String,
    pub(super) received: String,
    pub(super) follows: Option<String>,
    pub(super) resource: String,
    pub(super) related: String,
    pub(super) related_ids: String,
    pub(super) payload: String,
    /// Of one row of `event_resources`.
    resource_row_id: String,
    pub(super) other_labels: String,
}

impl RowTexts {
    pub(super) fn at(now: DateTime<Utc>) -> Result<Self, Failure> {
        let mut text = String::new();
        write_timestamp(now, &mut text).ok_or_else(|| {
            Failure::Unfit(format!(
                "the clock shows {now}, which is no time that can be written: set it right"
            ))
        })?;
        Ok(Self {
            now: text,
            id: String::new(),
            occurred: String::new(),
            received: String::new(),
            follows: None,
            resource: String::new(),
            related: String::new(),
            related_ids: String::new(),
            payload: String::new(),
            resource_row_id: String::new(),
            other_labels: String::new(),
        })
    }

    /// Takes on an event; says why not where a column cannot hold it.
    pub(super) fn set(&mut self, event: &ReceivedEvent, max_length: usize) -> Result<(), Refusal> {
        for (name, at, text) in [
            ("occurred", event.occurred, &mut self.occurred),
            ("received", event.received, &mut self.received),
        ] {
            text.clear();
            write_timestamp(at, text).ok_or_else(|| {
                Refusal::ours(format!("{name}: the year is outside 0001 to 9999"))
            })?;
        }
        set_uuid(event.id, &mut self.id);
        self.follows = event.follows.map(|id| id.hyphenated().to_string());
        self.resource.clear();
        write_object(event.resource.labels(), &mut self.resource);
        self.related.clear();
        write_array(event.related.iter(), &mut self.related, |resource, out| {
            write_object(resource.labels(), out);
        });
        self.related_ids.clear();
        write_array(event.related_ids(), &mut self.related_ids, write_string);
        self.payload.clear();
        rewrite(event.payload(), &mut self.payload);
        for (column, text) in [
            ("event", event.event.as_str()),
            ("resource_id", event.resource.id()),
            ("resource", &self.resource),
            ("related", &self.related),
            ("related_resource_ids", &self.related_ids),
            ("payload", &self.payload),
        ] {
            if text.len() > max_length {
                return Err(Refusal {
                    reason: format!(
                        "{column}: {} bytes are more than the {max_length} that SQLite takes",
                        text.len()
                    ),
                    sqlstate: Some(ResultCode::TOO_BIG.name()),
                });
            }
        }
        Ok(())
    }

    /// Takes on one of the event's resources. A new id at every attempt: one that is taken, if that
    /// can be, is not met again.
    pub(super) fn set_resource(&mut self, resource: &Resource) {
        set_uuid(Uuid::new_v4(), &mut self.resource_row_id);
        self.other_labels.clear();
        write_object(resource.other_labels(), &mut self.other_labels);
    }
}

fn set_uuid(id: Uuid, text: &mut String) {
    text.clear();
    text.push_str(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
}

/// Inserts one event unless its id is there.
pub(super) struct InsertEvent<'a> {
    pub(super) event: &'a ReceivedEvent,
    pub(super) texts: &'a RowTexts,
}

impl QueryId for InsertEvent<'_> {
    type QueryId = InsertEvent<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl RunQueryDsl<SqliteConnection> for InsertEvent<'_> {}

impl QueryFragment<Sqlite> for InsertEvent<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let texts = self.texts;
        out.push_sql(
            "INSERT INTO events (id, occurred, received, event, resource_id, resource, related, \
             related_resource_ids, payload, follows, recorded, created, updated) VALUES (",
        );
        for text in [
            texts.id.as_str(),
            &texts.occurred,
            &texts.received,
            &self.event.event,
            self.event.resource.id(),
            &texts.resource,
            &texts.related,
            &texts.related_ids,
            &texts.payload,
        ] {
            out.push_bind_param::<Text, str>(text)?;
            out.push_sql(", ");
        }
        out.push_bind_param::<Nullable<Text>, Option<String>>(&texts.follows)?;
        for _ in 0..3 {
            out.push_sql(", ");
            out.push_bind_param::<Text, str>(&texts.now)?;
        }
        out.push_sql(") ON CONFLICT (id) DO NOTHING");
        Ok(())
    }
}

/// Inserts one row for one of an event's resources.
pub(super) struct InsertResource<'a> {
    pub(super) resource_id: &'a str,
    pub(super) role: &'a str,
    pub(super) texts: &'a RowTexts,
}

impl QueryId for InsertResource<'_> {
    type QueryId = InsertResource<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl RunQueryDsl<SqliteConnection> for InsertResource<'_> {}

impl QueryFragment<Sqlite> for InsertResource<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let texts = self.texts;
        out.push_sql(
            "INSERT INTO event_resources (id, event_id, occurred, resource_id, resource_role, \
             resource, created, updated) VALUES (",
        );
        for text in [
            texts.resource_row_id.as_str(),
            &texts.id,
            &texts.occurred,
            self.resource_id,
            self.role,
            &texts.other_labels,
            &texts.now,
        ] {
            out.push_bind_param::<Text, str>(text)?;
            out.push_sql(", ");
        }
        out.push_bind_param::<Text, str>(&texts.now)?;
        out.push_sql(")");
        Ok(())
    }
}
