//! The rows of a batch as parameters: one array for each column.
//!
//! diesel's own arrays would take a `String` for each text that is made of an event, some seven an event,
//! and copy each text twice more when they are sent. Here a text is written once, where it is sent from.

use std::fmt;
use std::io::Write as _;
use std::num::TryFromIntError;

use diesel::pg::Pg;
use diesel::prelude::QueryResult;
use diesel::query_builder::AstPass;
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::{Array, HasSqlType, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};

use super::rows::{EventRow, ResourceRow, Rows};
use crate::store::python_json::rewrite;

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

/// An element type's number in every PostgreSQL.
#[derive(Debug, Clone, Copy)]
enum Oid {
    Int4 = 23,
    Text = 25,
    Timestamptz = 1184,
    Uuid = 2950,
}

/// A column as a parameter: an array in PostgreSQL's binary form.
///
/// One that is too long for that fails the batch, as one does that cannot be sent.
struct Column(Result<Vec<u8>, TryFromIntError>);

impl Column {
    /// A column of texts: one of each row, which is either there or written into the buffer.
    fn of_texts<R>(rows: &[R], text: for<'r> fn(&'r R, &'r mut String) -> &'r str) -> Self {
        Self::new(Oid::Text, rows, false, |bytes| {
            let mut buffer = String::new();
            for row in rows {
                buffer.clear();
                let text = text(row, &mut buffer);
                bytes.extend(i32::try_from(text.len())?.to_be_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
            Ok(())
        })
    }

    fn of_fixed<R, const N: usize>(rows: &[R], oid: Oid, value: fn(&R) -> Option<[u8; N]>) -> Self {
        let has_null = rows.iter().any(|row| value(row).is_none());
        Self::new(oid, rows, has_null, |bytes| {
            let length = i32::try_from(N)?.to_be_bytes();
            for row in rows {
                match value(row) {
                    Some(value) => {
                        bytes.extend_from_slice(&length);
                        bytes.extend_from_slice(&value);
                    }
                    None => bytes.extend((-1_i32).to_be_bytes()),
                }
            }
            Ok(())
        })
    }

    fn new<R>(
        oid: Oid,
        rows: &[R],
        has_null: bool,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), TryFromIntError>,
    ) -> Self {
        let mut bytes = Vec::new();
        let written =
            header(&mut bytes, oid, rows.len(), has_null).and_then(|()| write(&mut bytes));
        Self(written.map(|()| bytes))
    }
}

fn header(
    bytes: &mut Vec<u8>,
    oid: Oid,
    length: usize,
    has_null: bool,
) -> Result<(), TryFromIntError> {
    let num_dimensions = i32::from(length > 0);
    bytes.extend(num_dimensions.to_be_bytes());
    bytes.extend(i32::from(has_null).to_be_bytes());
    bytes.extend((oid as u32).to_be_bytes());
    if length > 0 {
        bytes.extend(i32::try_from(length)?.to_be_bytes());
        bytes.extend(1_i32.to_be_bytes());
    }
    Ok(())
}

impl<T> ToSql<Array<T>, Pg> for Column
where
    Pg: HasSqlType<T>,
{
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(self.0.as_ref().map_err(|error| *error)?)?;
        Ok(IsNull::No)
    }
}

/// Never the values.
impl fmt::Debug for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Column")
    }
}
