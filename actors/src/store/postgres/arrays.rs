//! The rows of a batch as parameters: one array for each column.
//!
//! diesel's own arrays would take a `String` for each text that is made of an event, some seven an event,
//! and copy each text twice more when they are sent. Here a text is written once, where it is sent from.

use diesel::pg::Pg;
use diesel::prelude::QueryResult;
use diesel::query_builder::AstPass;
use diesel::sql_types::{Array, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};

use super::columns::{Column, Oid};
use super::rows::{EventRow, ResourceRow, Rows};
use crate::store::python_json::rewrite;

/// All columns of both tables that come from the events.
pub(super) struct Arrays {
    ids: Column,
    times: [Column; 2],
    texts: [Column; 6],
    follows: Column,
    event_numbers: Column,
    event_ids: Column,
    occurred: Column,
    resource_texts: [Column; 3],
}

impl Arrays {
    pub(super) fn new(rows: &Rows<'_>) -> Self {
        let events = rows.events.as_slice();
        let resources = rows.resources.as_slice();
        let time = |value| Column::of_fixed(events, Oid::Timestamptz, value);
        let text = |text| Column::of_texts(events, text);
        let resource_text = |text| Column::of_texts(resources, text);
        Self {
            ids: Column::of_fixed(events, Oid::Uuid, |row| Some(row.event.id.into_bytes())),
            times: [
                time(|row: &EventRow<'_>| Some(row.occurred.0.to_be_bytes())),
                time(|row: &EventRow<'_>| Some(row.received.0.to_be_bytes())),
            ],
            texts: [
                text(|row, _| &row.event.event),
                text(|row, _| row.event.resource.id()),
                text(EventRow::resource),
                text(EventRow::related),
                text(EventRow::related_ids),
                text(|row, _| row.event.payload()),
            ],
            follows: Column::of_fixed(events, Oid::Uuid, |row| {
                row.event.follows.map(uuid::Uuid::into_bytes)
            }),
            event_numbers: Column::of_fixed(resources, Oid::Int4, |row| {
                Some(row.event_number.to_be_bytes())
            }),
            event_ids: Column::of_fixed(resources, Oid::Uuid, |row| {
                Some(row.event_id.into_bytes())
            }),
            occurred: Column::of_fixed(resources, Oid::Timestamptz, |row| {
                Some(row.occurred.0.to_be_bytes())
            }),
            resource_texts: [
                resource_text(|row: &ResourceRow<'_>, _| row.resource.id()),
                resource_text(|row, _| row.role),
                resource_text(ResourceRow::other_labels),
            ],
        }
    }

    /// The same with the payloads that Prefect would write, whose numbers Python has read.
    pub(super) fn as_prefect(rows: &Rows<'_>) -> Self {
        let mut arrays = Self::new(rows);
        let payloads = Column::of_texts(&rows.events, |row: &EventRow<'_>, text| {
            rewrite(row.event.payload(), text);
            text
        });
        let [.., payload] = &mut arrays.texts;
        *payload = payloads;
        arrays
    }

    /// Ten parameters, with commas between: id, occurred, received, event, resource_id, resource,
    /// related, related_resource_ids, payload, follows.
    pub(super) fn push_events<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_bind_param::<Array<SqlUuid>, _>(&self.ids)?;
        for times in &self.times {
            out.push_sql(", ");
            out.push_bind_param::<Array<Timestamptz>, _>(times)?;
        }
        for texts in &self.texts {
            out.push_sql(", ");
            out.push_bind_param::<Array<Text>, _>(texts)?;
        }
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<SqlUuid>>, _>(&self.follows)
    }

    /// Six parameters, with commas between: the event's number, event_id, occurred, resource_id,
    /// resource_role, resource.
    pub(super) fn push_resources<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_bind_param::<Array<Integer>, _>(&self.event_numbers)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<SqlUuid>, _>(&self.event_ids)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Timestamptz>, _>(&self.occurred)?;
        for texts in &self.resource_texts {
            out.push_sql(", ");
            out.push_bind_param::<Array<Text>, _>(texts)?;
        }
        Ok(())
    }
}
