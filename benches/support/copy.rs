//! The rows of events in PostgreSQL's binary COPY format, made before anything is measured.
//!
//! They are the rows that the product writes: same columns, same values, the same JSON text to the
//! letter where the column keeps it. What the server fills in for the product, `COPY` brings along: ids
//! of resources and the times of writing.

use bytes::{BufMut as _, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::event::{EventLimits, Received, ReceivedEvent, Resource};
use serde::Serializer as _;
use serde::ser::SerializeSeq as _;
use serde_json::ser::Formatter;
use uuid::Uuid;

use super::load::Message;

pub(crate) const EVENTS: &str = "id, occurred, received, event, resource_id, resource, related, \
     related_resource_ids, payload, follows, recorded, created, updated";
const NUM_EVENT_COLUMNS: i16 = 13;
pub(crate) const RESOURCES: &str =
    "id, event_id, occurred, resource_id, resource_role, resource, created, updated";
const NUM_RESOURCE_COLUMNS: i16 = 8;

/// As many events as the product puts into one transaction.
pub(crate) const BATCH: usize = 1_000;

/// What one transaction copies into the two tables.
pub(crate) struct CopyBatch {
    pub(crate) events: Bytes,
    pub(crate) resources: Bytes,
}

/// All events, in the order of the bus.
pub(crate) fn encode(messages: &[Message]) -> Vec<CopyBatch> {
    messages.chunks(BATCH).map(encode_batch).collect()
}

fn encode_batch(messages: &[Message]) -> CopyBatch {
    let now = SystemClock.now();
    let mut events = Rows::new(NUM_EVENT_COLUMNS);
    let mut resources = Rows::new(NUM_RESOURCE_COLUMNS);
    for message in messages {
        let received = Received::FromText { default: now };
        let text = message.data.as_str().into();
        let event = ReceivedEvent::parse(text, &EventLimits::default(), received).unwrap();
        encode_event(&event, now, &mut events);
        encode_resource(&event, &event.resource, now, &mut resources);
        for related in &event.related {
            encode_resource(&event, related, now, &mut resources);
        }
    }
    CopyBatch {
        events: events.finish(),
        resources: resources.finish(),
    }
}

fn encode_event(event: &ReceivedEvent, now: DateTime<Utc>, rows: &mut Rows) {
    rows.start();
    rows.uuid(Some(event.id));
    rows.time(event.occurred);
    rows.time(event.received);
    rows.text(&event.event);
    rows.text(event.resource.id());
    rows.jsonb(&object(event.resource.labels()));
    rows.jsonb(&related(&event.related));
    rows.jsonb(&list(event.related_ids()));
    rows.jsonb(event.payload());
    rows.uuid(event.follows);
    for _ in ["recorded", "created", "updated"] {
        rows.time(now);
    }
}

fn encode_resource(
    event: &ReceivedEvent,
    resource: &Resource,
    now: DateTime<Utc>,
    rows: &mut Rows,
) {
    // A primary resource has no role, whatever its label says.
    let is_primary = std::ptr::eq(resource, &raw const event.resource);
    let role = resource.role().filter(|_| !is_primary).unwrap_or_default();
    rows.start();
    rows.uuid(Some(Uuid::new_v4()));
    rows.uuid(Some(event.id));
    rows.time(event.occurred);
    rows.text(resource.id());
    rows.text(role);
    rows.text(&object(resource.other_labels()));
    for _ in ["created", "updated"] {
        rows.time(now);
    }
}

/// Rows of one table.
struct Rows {
    bytes: BytesMut,
    num_columns: i16,
}

impl Rows {
    fn new(num_columns: i16) -> Self {
        let mut bytes = BytesMut::new();
        bytes.put_slice(b"PGCOPY\n\xff\r\n\0");
        // Neither flags nor an extension of the header.
        bytes.put_u64(0);
        Self { bytes, num_columns }
    }

    fn start(&mut self) {
        self.bytes.put_i16(self.num_columns);
    }

    fn value(&mut self, value: &[u8]) {
        self.bytes.put_i32(i32::try_from(value.len()).unwrap());
        self.bytes.put_slice(value);
    }

    fn uuid(&mut self, id: Option<Uuid>) {
        match id {
            Some(id) => self.value(id.as_bytes()),
            None => self.bytes.put_i32(-1),
        }
    }

    /// Microseconds since the year 2000.
    fn time(&mut self, time: DateTime<Utc>) {
        const YEAR_2000: i64 = 946_684_800_000_000;
        let micros = time.timestamp_micros() - YEAR_2000;
        self.value(&micros.to_be_bytes());
    }

    /// Also `json`, which is text in either format.
    fn text(&mut self, text: &str) {
        self.value(text.as_bytes());
    }

    /// The version of the format, then the text.
    fn jsonb(&mut self, text: &str) {
        self.bytes.put_i32(i32::try_from(text.len() + 1).unwrap());
        self.bytes.put_u8(1);
        self.bytes.put_slice(text.as_bytes());
    }

    fn finish(mut self) -> Bytes {
        self.bytes.put_i16(-1);
        self.bytes.freeze()
    }
}

/// In ASCII, with a space behind commas and colons, as Prefect writes JSON.
struct Spaced;

impl Formatter for Spaced {
    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> std::io::Result<()> {
        for character in fragment.chars() {
            if character.is_ascii() {
                write!(writer, "{character}")?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

fn object<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, Spaced);
    serializer.collect_map(labels).unwrap();
    String::from_utf8(text).unwrap()
}

fn list<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    let mut list = serializer.serialize_seq(None).unwrap();
    for text in texts {
        list.serialize_element(text).unwrap();
    }
    list.end().unwrap();
    String::from_utf8(text).unwrap()
}

fn related(related: &[Resource]) -> String {
    let objects: Vec<String> = related.iter().map(|one| object(one.labels())).collect();
    format!("[{}]", objects.join(", "))
}
