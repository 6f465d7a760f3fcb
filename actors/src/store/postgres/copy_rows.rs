//! The rows of a batch in the binary format of COPY.
//!
//! The ids of resources and the times of writing belong to an attempt and not to the events. They stand
//! first in each row, at places that are known, and are filled in at the last moment.

use std::num::TryFromIntError;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::columns::Moment;
use super::rows::{EventRow, ResourceRow, Rows};
use crate::store::resource_ids::ResourceIds;

/// With the columns in the order of [`event`].
pub(super) const INTO_EVENTS: &str = "COPY events (recorded, created, updated, id, occurred, received, \
     event, resource_id, resource, related, related_resource_ids, payload, follows) \
     FROM STDIN (FORMAT binary)";
const NUM_EVENT_COLUMNS: i16 = 13;

/// With the columns in the order of [`resource`].
pub(super) const INTO_RESOURCES: &str = "COPY event_resources (created, updated, id, event_id, occurred, \
     resource_id, resource_role, resource) FROM STDIN (FORMAT binary)";
const NUM_RESOURCE_COLUMNS: i16 = 8;

/// The signature, then neither flags nor an extension of the header.
const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Behind the last row.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
/// The first byte of `jsonb`: the version of its format, which is text.
const JSONB: u8 = 1;

/// Before each value.
const LENGTH: usize = size_of::<i32>();

/// All rows of a batch.
pub(super) struct CopyRows {
    events: Table,
    resources: Table,
}

/// The rows of one table.
struct Table {
    bytes: Vec<u8>,
    /// Where the first value of each row begins.
    starts: Vec<usize>,
}

/// The rows of one table as they are sent.
pub(super) struct Sent {
    pub(super) bytes: Bytes,
    pub(super) num_rows: u64,
}

impl CopyRows {
    /// # Errors
    ///
    /// A value is too long to be sent.
    pub(super) fn new(rows: &Rows<'_>) -> Result<Self, TryFromIntError> {
        Ok(Self {
            events: Table::new(NUM_EVENT_COLUMNS, &rows.events, event)?,
            resources: Table::new(NUM_RESOURCE_COLUMNS, &rows.resources, resource)?,
        })
    }

    /// The rows of both tables for one attempt.
    pub(super) fn at(mut self, now: DateTime<Utc>) -> [Sent; 2] {
        let time = Moment::new(now).0.to_be_bytes();
        self.events.fill_in(|_, mut row| {
            for _ in ["recorded", "created", "updated"] {
                row.put(&time);
            }
        });
        let ids = ResourceIds::new(now);
        self.resources.fill_in(|index, mut row| {
            for _ in ["created", "updated"] {
                row.put(&time);
            }
            row.put(ids.get(index).as_bytes());
        });
        [self.events.sent(), self.resources.sent()]
    }
}

impl Table {
    fn new<R>(
        num_columns: i16,
        rows: &[R],
        write: fn(&R, &mut Values) -> Result<(), TryFromIntError>,
    ) -> Result<Self, TryFromIntError> {
        let mut values = Values {
            bytes: HEADER.to_vec(),
            text: String::new(),
        };
        let mut starts = Vec::with_capacity(rows.len());
        for row in rows {
            values.bytes.extend_from_slice(&num_columns.to_be_bytes());
            starts.push(values.bytes.len());
            write(row, &mut values)?;
        }
        values.bytes.extend_from_slice(&TRAILER);
        // It grew by doubling, and may wait for its turn.
        values.bytes.shrink_to_fit();
        Ok(Self {
            bytes: values.bytes,
            starts,
        })
    }

    fn fill_in(&mut self, fill: impl Fn(usize, Places<'_>)) {
        for (index, &start) in self.starts.iter().enumerate() {
            fill(
                index,
                Places(self.bytes.get_mut(start..).unwrap_or_default()),
            );
        }
    }

    fn sent(self) -> Sent {
        Sent {
            bytes: self.bytes.into(),
            num_rows: self.starts.len() as u64,
        }
    }
}

/// The places that were kept in a row, in their order.
struct Places<'a>(&'a mut [u8]);

impl Places<'_> {
    /// Puts a value in the next place.
    fn put(&mut self, value: &[u8]) {
        let places = std::mem::take(&mut self.0);
        if let Some((place, rest)) = places.split_at_mut_checked(LENGTH + value.len()) {
            place[LENGTH..].copy_from_slice(value);
            self.0 = rest;
        }
    }
}

struct Values {
    bytes: Vec<u8>,
    /// Where texts are put together.
    text: String,
}

impl Values {
    fn value(&mut self, value: &[u8]) -> Result<(), TryFromIntError> {
        let length = i32::try_from(value.len())?;
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(value);
        Ok(())
    }

    fn uuid(&mut self, id: Option<Uuid>) -> Result<(), TryFromIntError> {
        match id {
            Some(id) => self.value(id.as_bytes()),
            None => {
                self.bytes.extend_from_slice(&(-1_i32).to_be_bytes());
                Ok(())
            }
        }
    }

    fn time(&mut self, moment: Moment) -> Result<(), TryFromIntError> {
        self.value(&moment.0.to_be_bytes())
    }

    /// The place of a value that comes later.
    fn later(&mut self, num_bytes: usize) -> Result<(), TryFromIntError> {
        self.bytes
            .extend_from_slice(&i32::try_from(num_bytes)?.to_be_bytes());
        self.bytes.resize(self.bytes.len() + num_bytes, 0);
        Ok(())
    }

    /// A text, which is either there or put together.
    fn text<'r, R>(
        &mut self,
        row: &'r R,
        version: Option<u8>,
        text: impl for<'t> FnOnce(&'t R, &'t mut String) -> &'t str,
    ) -> Result<(), TryFromIntError> {
        self.text.clear();
        let text = text(row, &mut self.text);
        let length = i32::try_from(text.len() + usize::from(version.is_some()))?;
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend(version);
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn event(row: &EventRow<'_>, values: &mut Values) -> Result<(), TryFromIntError> {
    for _ in ["recorded", "created", "updated"] {
        values.later(size_of::<i64>())?;
    }
    values.uuid(Some(row.event.id))?;
    values.time(row.occurred)?;
    values.time(row.received)?;
    values.value(row.event.event.as_bytes())?;
    values.value(row.event.resource.id().as_bytes())?;
    values.text(row, Some(JSONB), EventRow::resource)?;
    values.text(row, Some(JSONB), EventRow::related)?;
    values.text(row, Some(JSONB), EventRow::related_ids)?;
    values.text(row, Some(JSONB), |row, _| row.event.payload())?;
    values.uuid(row.event.follows)
}

fn resource(row: &ResourceRow<'_>, values: &mut Values) -> Result<(), TryFromIntError> {
    for _ in ["created", "updated"] {
        values.later(size_of::<i64>())?;
    }
    values.later(size_of::<Uuid>())?;
    values.uuid(Some(row.event_id))?;
    values.time(row.occurred)?;
    values.value(row.resource.id().as_bytes())?;
    values.value(row.role.as_bytes())?;
    values.text(row, None, ResourceRow::other_labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{EventFixture, event_entry};

    /// The values of all rows.
    fn values(sent: &Sent, num_columns: i16) -> Vec<Vec<Option<&[u8]>>> {
        let (header, mut rest) = sent.bytes.split_at(HEADER.len());
        assert_eq!(header, HEADER);
        let mut take = |num_bytes| {
            let (taken, left) = rest.split_at(num_bytes);
            rest = left;
            taken
        };
        let mut rows = Vec::new();
        loop {
            let num = i16::from_be_bytes(take(2).try_into().unwrap());
            if num == -1 {
                assert_eq!(take(0), b"");
                break;
            }
            assert_eq!(num, num_columns);
            let mut row = Vec::new();
            for _ in 0..num {
                let length = i32::from_be_bytes(take(LENGTH).try_into().unwrap());
                row.push(usize::try_from(length).ok().map(&mut take));
            }
            rows.push(row);
        }
        assert!(rest.is_empty());
        assert_eq!(rows.len() as u64, sent.num_rows);
        rows
    }

    #[test]
    fn what_belongs_to_the_attempt_is_filled_in_and_nothing_else_is_touched() {
        let related = ("one".to_owned(), "role".to_owned());
        let events = [2, 0, 1].map(|num_related| {
            let fixture = EventFixture {
                related: vec![related.clone(); num_related],
                ..EventFixture::default()
            };
            event_entry(fixture.build())
        });
        let rows = Rows::new(&events);
        let now: DateTime<Utc> = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        let time = Moment::new(now).0.to_be_bytes();
        let [events, resources] = CopyRows::new(&rows).unwrap().at(now);
        let written = values(&events, NUM_EVENT_COLUMNS);
        assert_eq!(written.len(), 3);
        for (values, row) in written.iter().zip(&rows.events) {
            assert!(values[..3].iter().all(|value| *value == Some(&time)));
            assert_eq!(values[3], Some(&row.event.id.as_bytes()[..]));
            assert_eq!(values[4], Some(&row.occurred.0.to_be_bytes()[..]));
            assert_eq!(values[6], Some(row.event.event.as_bytes()));
            assert_eq!(values[11].unwrap()[0], JSONB);
            assert_eq!(&values[11].unwrap()[1..], row.event.payload().as_bytes());
            assert_eq!(values[12], None);
        }
        let written = values(&resources, NUM_RESOURCE_COLUMNS);
        assert_eq!(written.len(), 6);
        let ids: Vec<_> = written.iter().map(|values| values[2].unwrap()).collect();
        assert!(ids.is_sorted() && ids.iter().all(|id| id.len() == 16));
        for (values, row) in written.iter().zip(&rows.resources) {
            assert!(values[..2].iter().all(|value| *value == Some(&time)));
            assert_eq!(values[3], Some(&row.event_id.as_bytes()[..]));
            assert_eq!(values[5], Some(row.resource.id().as_bytes()));
            assert_eq!(values[6], Some(row.role.as_bytes()));
        }
    }
}
