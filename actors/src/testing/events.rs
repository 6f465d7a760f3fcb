//! Events for tests, without a text to parse.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use chrono::{DateTime, Datelike as _, TimeDelta, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::delivery::{Content, Entry, Position, Rejection};
use crate::event::{ID_LABEL, ROLE_LABEL, ReceivedEvent, Resource};

/// An event with this id and nothing special about it.
pub fn event(id: Uuid) -> ReceivedEvent {
    EventFixture {
        id,
        ..EventFixture::default()
    }
    .build()
}

/// The event as an entry from the source `test`, at a position made of its id.
pub fn event_entry(event: ReceivedEvent) -> Arc<Entry> {
    Arc::new(Entry {
        source: "test".into(),
        position: Position::new(event.id.to_string()),
        content: Content::Event(event),
    })
}

/// A message that no parser accepts, from the source `test`.
pub fn rejected_entry(position: &str, raw: &[u8], reason: &str) -> Arc<Entry> {
    Arc::new(Entry {
        source: "test".into(),
        position: Position::new(position),
        content: Content::Rejected(Rejection {
            raw: Bytes::copy_from_slice(raw),
            reason: reason.to_owned(),
            event_id: None,
        }),
    })
}

/// The parts of an event: name those that matter, and take the rest from the default.
#[derive(Debug, Clone)]
pub struct EventFixture {
    /// The event's id; a random one by default.
    pub id: Uuid,
    /// The event's name.
    pub event: String,
    /// When it occurred; it was received a second later.
    pub occurred: DateTime<Utc>,
    /// The event before it.
    pub follows: Option<Uuid>,
    /// The labels of the primary resource besides its id, which is `resource_id`.
    pub labels: Vec<(String, String)>,
    /// The primary resource's id.
    pub resource_id: String,
    /// Id and role of each related resource.
    pub related: Vec<(String, String)>,
    /// The payload's JSON text.
    pub payload: String,
}

impl Default for EventFixture {
    fn default() -> Self {
        Self {
            id: Uuid::new_v4(),
            event: "test.happened".to_owned(),
            occurred: DateTime::UNIX_EPOCH + TimeDelta::days(20_000),
            follows: None,
            labels: Vec::new(),
            resource_id: "test.resource".to_owned(),
            related: vec![("test.related".to_owned(), "neighbour".to_owned())],
            payload: r#"{"answer":42}"#.to_owned(),
        }
    }
}

impl EventFixture {
    /// The event.
    ///
    /// Its text is what a dead letter holds; it says which event it is and no more.
    pub fn build(self) -> ReceivedEvent {
        let mut labels = vec![(ID_LABEL.to_owned(), self.resource_id)];
        labels.extend(self.labels);
        let related = self.related.iter();
        let related = related
            .map(|(id, role)| Resource::from_checked(&[(ID_LABEL, id), (ROLE_LABEL, role)]))
            .collect();
        ReceivedEvent {
            id: self.id,
            occurred: self.occurred,
            received: self.occurred + TimeDelta::seconds(1),
            event: self.event,
            resource: Resource::from_checked(&labels),
            related,
            follows: self.follows,
            text: ByteString::from(format!(r#"{{"id":"{}"}}"#, self.id)),
            payload: ByteString::from(self.payload),
        }
    }
}

/// The event's columns as the JSON text of an event, as they would be read back from a database.
pub fn json_of(event: &ReceivedEvent) -> String {
    let string = |text: &str| Value::from(text).to_string();
    let labels = |resource: &Resource| {
        let labels = resource.labels();
        let labels: Vec<_> = labels
            .map(|(key, value)| format!("{}:{}", string(key), string(value)))
            .collect();
        format!("{{{}}}", labels.join(","))
    };
    let related: Vec<_> = event.related.iter().map(labels).collect();
    format!(
        r#"{{"id":"{}","occurred":"{}","received":"{}","event":{},"resource":{},"related":[{}],"follows":{},"payload":{}}}"#,
        event.id,
        written(event.occurred),
        written(event.received),
        string(&event.event),
        labels(&event.resource),
        related.join(","),
        event
            .follows
            .map_or("null".to_owned(), |id| format!("\"{id}\"")),
        event.payload(),
    )
}

/// In an offset in which the year is one that can be written: 1 to 9999.
fn written(moment: DateTime<Utc>) -> String {
    let (offset, minutes) = match moment.year() {
        ..1 => ("+23:59", 1_439),
        1..=9999 => ("+00:00", 0),
        _ => ("-23:59", -1_439),
    };
    let local = moment + TimeDelta::minutes(minutes);
    format!("{}{offset}", local.format("%Y-%m-%d %H:%M:%S%.6f"))
}
