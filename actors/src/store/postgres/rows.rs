//! The rows of a batch, in the order in which they are written, and their binary form for COPY.

use std::num::TryFromIntError;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Datelike as _, Utc};
use uuid::Uuid;

use super::text_length::is_too_long;
use crate::delivery::{Content, Entry};
use crate::event::{ReceivedEvent, Resource};
use crate::store::RefusalReason;
use crate::store::python_json::{write_array, write_object, write_string};
use crate::store::resource_ids::ResourceIds;

/// From 1970 to 2000, where PostgreSQL's time begins.
pub(super) const EPOCH_MICROS: i64 = 946_684_800_000_000;

const MICROS: i64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) i64);

impl Moment {
    /// `-infinity`, which is before every other.
    pub(super) const FIRST: Self = Self(i64::MIN);
    /// The beginning of the year 1, and of the year 10000.
    pub(super) const YEAR_1: i64 = -63_082_281_600 * MICROS;
    pub(super) const YEAR_10000: i64 = 252_455_616_000 * MICROS;

    pub(super) fn new(at: DateTime<Utc>) -> Self {
        Self(at.timestamp_micros().saturating_sub(EPOCH_MICROS))
    }

    /// `None` where chrono does not know it.
    pub(super) fn to_utc(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(self.0.checked_add(EPOCH_MICROS)?)
    }

    /// As Prefect stores it: it counts seconds since 2000 in floating point, which is some microseconds off in
    /// the year 9999; the first moment that it knows becomes `-infinity`. `None` outside the years 0001 to 9999.
    ///
    /// The last 15 microseconds of the year 9999 are stored as they are: Prefect makes the year 10000 of them,
    /// which Python does not read. The last is Python's `datetime.max`, which some send for "never".
    pub(super) fn as_prefect_stores(at: DateTime<Utc>) -> Option<Self> {
        if !(1..=9999).contains(&at.year()) {
            return None;
        }
        let Self(exact) = Self::new(at);
        let fraction = exact.rem_euclid(MICROS) as f64 / MICROS as f64;
        let seconds = exact.div_euclid(MICROS) as f64 + fraction;
        let micros = (seconds.fract() * MICROS as f64).round_ties_even();
        let rounded = seconds.trunc() as i64 * MICROS + micros as i64;
        Some(match rounded {
            Self::YEAR_1 => Self::FIRST,
            Self::YEAR_10000.. => Self(exact),
            _ => Self(rounded),
        })
    }
}

#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) index: usize,
    pub(super) reason: String,
    pub(super) sqlstate: Option<String>,
}

impl Refusal {
    /// By the class of the SQLSTATE. What has none was left out by a trigger.
    pub(super) fn kind(&self) -> RefusalReason {
        match self.sqlstate.as_deref() {
            None => RefusalReason::Swallowed,
            Some("P0001") => RefusalReason::Raised,
            Some(code) => match code.get(..2) {
                Some("22") => RefusalReason::InvalidData,
                Some("23") => RefusalReason::Constraint,
                Some("54") => RefusalReason::TooLarge,
                _ => RefusalReason::Other,
            },
        }
    }
}

pub(super) struct EventRow<'a> {
    pub(super) index: usize,
    pub(super) event: &'a ReceivedEvent,
    pub(super) occurred: Moment,
    pub(super) received: Moment,
}

pub(super) struct ResourceRow<'a> {
    pub(super) event_number: i32,
    pub(super) event_id: Uuid,
    pub(super) occurred: Moment,
    pub(super) role: &'a str,
    pub(super) resource: &'a Resource,
}

/// From so many events on, a batch is copied. Fewer are written by the store function, which takes two
/// round trips where COPY takes six.
const MANY: usize = 200;

pub(super) struct Rows<'a> {
    pub(super) events: Vec<EventRow<'a>>,
    pub(super) resources: Vec<ResourceRow<'a>>,
    pub(super) repeats_ids: bool,
    /// Events that are refused without being sent.
    pub(super) refused: Vec<Refusal>,
}

impl<'a> Rows<'a> {
    /// Sorted by id, so that writers that meet the same ids do not deadlock.
    pub(super) fn new(entries: &'a [Arc<Entry>]) -> Self {
        let mut refused = Vec::new();
        let mut events = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            if let Content::Event(event) = &entry.content {
                match EventRow::new(index, event) {
                    Ok(row) => events.push(row),
                    Err(refusal) => refused.push(refusal),
                }
            }
        }
        events.sort_by_key(|row| row.event.id);
        let repeats_ids = events
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a.event.id == b.event.id));
        let num_resources = events.iter().map(|row| 1 + row.event.related.len()).sum();
        let mut resources = Vec::with_capacity(num_resources);
        for (row, event_number) in events.iter().zip(1..) {
            let event = row.event;
            let related = event.related.iter();
            let related = related.map(|resource| (resource.role().unwrap_or_default(), resource));
            for (role, resource) in std::iter::once(("", &event.resource)).chain(related) {
                resources.push(ResourceRow {
                    event_number,
                    event_id: event.id,
                    occurred: row.occurred,
                    role,
                    resource,
                });
            }
        }
        Self {
            events,
            resources,
            repeats_ids,
            refused,
        }
    }

    /// Whether they are many, and nothing is special about any entry of the batch.
    pub(super) fn can_be_copied(&self, num_entries: usize) -> bool {
        num_entries >= MANY && self.events.len() == num_entries && !self.repeats_ids
    }
}

impl<'a> EventRow<'a> {
    /// Says why not where the value would not even reach the table, but fail the whole batch on its
    /// way there.
    fn new(index: usize, event: &'a ReceivedEvent) -> Result<Self, Refusal> {
        let refusal = |reason, sqlstate: &str| Refusal {
            index,
            reason,
            sqlstate: Some(sqlstate.to_owned()),
        };
        let moment = |name: &str, at| {
            Moment::as_prefect_stores(at).ok_or_else(|| {
                let reason = format!("{name}: the year is outside 0001 to 9999");
                refusal(reason, "22008")
            })
        };
        let text = |name: &str, text: &str| {
            if text.contains('\0') {
                let reason = format!("{name}: PostgreSQL's texts cannot hold a NUL");
                return Err(refusal(reason, "22021"));
            }
            Ok(())
        };
        let occurred = moment("occurred", event.occurred)?;
        let received = moment("received", event.received)?;
        text("event", &event.event)?;
        text("resource", event.resource.id())?;
        for related in &event.related {
            text("related", related.id())?;
            text("related", related.role().unwrap_or_default())?;
        }
        if is_too_long(event) {
            let reason =
                "as text, without exponents, more than 256 MiB, which could not be read back";
            return Err(refusal(reason.to_owned(), "54000"));
        }
        Ok(Self {
            index,
            event,
            occurred,
            received,
        })
    }

    pub(super) fn resource<'r>(&'r self, text: &'r mut String) -> &'r str {
        write_object(self.event.resource.labels(), text);
        text
    }

    pub(super) fn related<'r>(&'r self, text: &'r mut String) -> &'r str {
        write_array(self.event.related.iter(), text, |resource, out| {
            write_object(resource.labels(), out);
        });
        text
    }

    pub(super) fn related_ids<'r>(&'r self, text: &'r mut String) -> &'r str {
        write_array(self.event.related_ids(), text, write_string);
        text
    }
}

impl ResourceRow<'_> {
    pub(super) fn other_labels<'r>(&'r self, text: &'r mut String) -> &'r str {
        write_object(self.resource.other_labels(), text);
        text
    }
}

/// With the columns in the order of [`CopyRows::of_events`].
pub(super) const COPY_EVENTS: &str = "COPY events (id, occurred, received, event, resource_id, resource, \
     related, related_resource_ids, payload, follows, recorded, created, updated) \
     FROM STDIN (FORMAT binary)";
const NUM_EVENT_COLUMNS: i16 = 13;

/// With the columns in the order of [`CopyRows::of_resources`].
pub(super) const COPY_RESOURCES: &str = "COPY event_resources (id, event_id, occurred, resource_id, \
     resource_role, resource, created, updated) FROM STDIN (FORMAT binary)";
const NUM_RESOURCE_COLUMNS: i16 = 8;

/// The signature, then neither flags nor an extension of the header.
const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
/// The first byte of `jsonb`: the version of its format, which is text.
const JSONB: u8 = 1;

/// The rows of one table in the binary format of COPY. A value that is too long for it is an error.
pub(super) struct CopyRows {
    pub(super) bytes: Bytes,
    pub(super) num_rows: u64,
}

impl CopyRows {
    pub(super) fn of_events(rows: &Rows<'_>, now: DateTime<Utc>) -> Result<Self, TryFromIntError> {
        Self::new(&rows.events, NUM_EVENT_COLUMNS, |_, row, values| {
            values.value(row.event.id.as_bytes())?;
            values.time(row.occurred)?;
            values.time(row.received)?;
            values.value(row.event.event.as_bytes())?;
            values.value(row.event.resource.id().as_bytes())?;
            values.text(row, Some(JSONB), EventRow::resource)?;
            values.text(row, Some(JSONB), EventRow::related)?;
            values.text(row, Some(JSONB), EventRow::related_ids)?;
            values.text(row, Some(JSONB), |row, _| row.event.payload())?;
            match row.event.follows {
                Some(id) => values.value(id.as_bytes())?,
                None => values.null(),
            }
            for _ in ["recorded", "created", "updated"] {
                values.time(Moment::new(now))?;
            }
            Ok(())
        })
    }

    pub(super) fn of_resources(
        rows: &Rows<'_>,
        now: DateTime<Utc>,
    ) -> Result<Self, TryFromIntError> {
        let ids = ResourceIds::new(now);
        Self::new(
            &rows.resources,
            NUM_RESOURCE_COLUMNS,
            |index, row, values| {
                values.value(ids.get(index).as_bytes())?;
                values.value(row.event_id.as_bytes())?;
                values.time(row.occurred)?;
                values.value(row.resource.id().as_bytes())?;
                values.value(row.role.as_bytes())?;
                values.text(row, None, ResourceRow::other_labels)?;
                for _ in ["created", "updated"] {
                    values.time(Moment::new(now))?;
                }
                Ok(())
            },
        )
    }

    fn new<R>(
        rows: &[R],
        num_columns: i16,
        write: impl Fn(usize, &R, &mut Values) -> Result<(), TryFromIntError>,
    ) -> Result<Self, TryFromIntError> {
        let mut values = Values {
            bytes: HEADER.to_vec(),
            text: String::new(),
        };
        for (index, row) in rows.iter().enumerate() {
            values.bytes.extend_from_slice(&num_columns.to_be_bytes());
            write(index, row, &mut values)?;
        }
        values.bytes.extend_from_slice(&TRAILER);
        Ok(Self {
            bytes: values.bytes.into(),
            num_rows: rows.len() as u64,
        })
    }
}

struct Values {
    bytes: Vec<u8>,
    text: String,
}

impl Values {
    fn value(&mut self, value: &[u8]) -> Result<(), TryFromIntError> {
        let length = i32::try_from(value.len())?;
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(value);
        Ok(())
    }

    fn null(&mut self) {
        self.bytes.extend_from_slice(&(-1_i32).to_be_bytes());
    }

    fn time(&mut self, moment: Moment) -> Result<(), TryFromIntError> {
        self.value(&moment.0.to_be_bytes())
    }

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{EventFixture, event, event_entry, rejected_entry};

    fn stored(text: &str) -> Option<i64> {
        let at: DateTime<Utc> = text.parse().unwrap();
        Moment::as_prefect_stores(at).map(|moment| moment.0)
    }

    #[test]
    fn stores_the_ends_of_time_as_prefect_does() {
        assert_eq!(stored("0001-01-01T00:00:00Z"), Some(i64::MIN));
        assert_eq!(stored("0001-01-01T00:00:00.000001Z"), Some(i64::MIN));
        let second = -63_082_281_599_000_000;
        assert_eq!(stored("0001-01-01T00:00:01Z"), Some(second));
        assert_eq!(stored("0001-01-01T00:00:00+00:01"), None);
        let next_year = 252_455_616_000_000_000;
        for micros in 1_i64..=15 {
            let text = format!("9999-12-31T23:59:59.{}Z", 1_000_000 - micros);
            assert_eq!(
                stored(&text),
                Some(next_year - micros),
                "Prefect: year 10000"
            );
        }
        let rounded = next_year - 31;
        assert_eq!(stored("9999-12-31T23:59:59.999984Z"), Some(rounded));
        let off = next_year - 1_007;
        assert_eq!(stored("9999-12-31T23:59:59.999Z"), Some(off));
        assert_eq!(stored("9999-12-31T23:59:59-00:01"), None);
    }

    proptest! {
        #[test]
        fn stores_other_times_exactly(seconds in -2_208_988_800_i64..4_102_444_800, micros in 0_i64..1_000_000) {
            let at = DateTime::from_timestamp_micros(seconds * 1_000_000 + micros).unwrap();
            prop_assert_eq!(Moment::as_prefect_stores(at), Some(Moment::new(at)));
        }
    }

    #[test]
    fn only_what_is_large_and_ordinary_is_copied() {
        let events = |num: usize| -> Vec<_> {
            let ids = (0..num).map(|_| Uuid::new_v4());
            ids.map(|id| event_entry(event(id))).collect()
        };
        let is_copied = |entries: Vec<_>| Rows::new(&entries).can_be_copied(entries.len());
        let many = events(MANY);
        assert!(is_copied(many.clone()));
        assert!(!is_copied(events(MANY - 1)));
        let rejected = rejected_entry("1", b"{", "no JSON");
        assert!(!is_copied([many.clone(), vec![rejected]].concat()));
        let twice = many[..1].to_vec();
        assert!(is_copied([many.clone(), events(1)].concat()));
        assert!(!is_copied([twice.clone(), many.clone(), twice].concat()));
        let nul = EventFixture {
            event: "a\0b".to_owned(),
            ..EventFixture::default()
        };
        assert!(!is_copied([many, vec![event_entry(nul.build())]].concat()));
    }

    /// The values of all rows.
    fn values(sent: &CopyRows, num_columns: i16) -> Vec<Vec<Option<&[u8]>>> {
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
                let length = i32::from_be_bytes(take(4).try_into().unwrap());
                row.push(usize::try_from(length).ok().map(&mut take));
            }
            rows.push(row);
        }
        assert!(rest.is_empty());
        assert_eq!(rows.len() as u64, sent.num_rows);
        rows
    }

    #[test]
    fn the_columns_hold_the_event_and_the_time_of_the_attempt() {
        let related = ("one".to_owned(), "role".to_owned());
        let entries = [2, 0, 1].map(|num_related| {
            let fixture = EventFixture {
                related: vec![related.clone(); num_related],
                ..EventFixture::default()
            };
            event_entry(fixture.build())
        });
        let rows = Rows::new(&entries);
        let now: DateTime<Utc> = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        let time = Moment::new(now).0.to_be_bytes();
        let events = CopyRows::of_events(&rows, now).unwrap();
        let written = values(&events, NUM_EVENT_COLUMNS);
        assert_eq!(written.len(), 3);
        for (values, row) in written.iter().zip(&rows.events) {
            assert_eq!(values[0], Some(&row.event.id.as_bytes()[..]));
            assert_eq!(values[1], Some(&row.occurred.0.to_be_bytes()[..]));
            assert_eq!(values[3], Some(row.event.event.as_bytes()));
            assert_eq!(values[8].unwrap()[0], JSONB);
            assert_eq!(&values[8].unwrap()[1..], row.event.payload().as_bytes());
            assert_eq!(values[9], None);
            assert!(values[10..].iter().all(|value| *value == Some(&time)));
        }
        let resources = CopyRows::of_resources(&rows, now).unwrap();
        let written = values(&resources, NUM_RESOURCE_COLUMNS);
        assert_eq!(written.len(), 6);
        let ids: Vec<_> = written.iter().map(|values| values[0].unwrap()).collect();
        assert!(ids.is_sorted() && ids.iter().all(|id| id.len() == 16));
        for (values, row) in written.iter().zip(&rows.resources) {
            assert_eq!(values[1], Some(&row.event_id.as_bytes()[..]));
            assert_eq!(values[3], Some(row.resource.id().as_bytes()));
            assert_eq!(values[4], Some(row.role.as_bytes()));
            assert!(values[6..].iter().all(|value| *value == Some(&time)));
        }
    }
}
