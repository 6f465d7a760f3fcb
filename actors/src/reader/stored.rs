//! An event as it is stored, and as it is shown.

use chrono::{DateTime, SecondsFormat, Timelike as _, Utc};
use uuid::Uuid;

use super::Place;
use crate::event::{ReceivedEvent, Resource};

/// An event out of the table; labels and payload are the JSON text that stands there.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Chosen by the sender.
    pub id: Uuid,
    /// When it happened.
    pub occurred: DateTime<Utc>,
    /// When a server received it.
    pub received: DateTime<Utc>,
    /// Its name.
    pub event: String,
    /// The labels of the resource that it concerns: a JSON object.
    pub resource: String,
    /// The labels of the other resources: a JSON list of objects.
    pub related: String,
    /// A JSON object.
    pub payload: String,
    /// The event that came before it.
    pub follows: Option<Uuid>,
}

impl StoredEvent {
    /// Appends it as Prefect's API shows it.
    pub fn write_json(&self, out: &mut String) {
        let Self {
            id,
            occurred,
            received,
            event,
            resource,
            related,
            payload,
            follows,
        } = self;
        out.reserve(event.len() + resource.len() + related.len() + payload.len() + 256);
        out.push_str(r#"{"occurred":""#);
        out.push_str(&iso(*occurred));
        out.push_str(r#"","event":"#);
        write_text(event, out);
        for (key, json) in [
            ("resource", resource),
            ("related", related),
            ("payload", payload),
        ] {
            out.push_str(",\"");
            out.push_str(key);
            out.push_str("\":");
            out.push_str(json);
        }
        let follows = follows.map_or_else(|| "null".to_owned(), |id| format!("\"{id}\""));
        let received = iso(*received);
        out.push_str(&format!(
            r#","id":"{id}","follows":{follows},"received":"{received}"}}"#
        ));
    }

    /// Its place in a list.
    pub fn place(&self) -> Place {
        Place {
            occurred: self.occurred,
            id: self.id,
        }
    }

    /// How many bytes it has, without what is short.
    #[cfg(feature = "http")]
    pub(crate) fn num_bytes(&self) -> usize {
        self.event.len() + self.resource.len() + self.related.len() + self.payload.len()
    }

    /// The same as a text of its own.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out);
        out
    }
}

impl From<&ReceivedEvent> for StoredEvent {
    fn from(event: &ReceivedEvent) -> Self {
        let mut related = String::from("[");
        for (number, resource) in event.related.iter().enumerate() {
            if number > 0 {
                related.push(',');
            }
            write_labels(resource, &mut related);
        }
        related.push(']');
        let mut resource = String::new();
        write_labels(&event.resource, &mut resource);
        Self {
            id: event.id,
            occurred: event.occurred,
            received: event.received,
            event: event.event.clone(),
            resource,
            related,
            payload: event.payload().to_owned(),
            follows: event.follows,
        }
    }
}

fn write_labels(resource: &Resource, out: &mut String) {
    out.push('{');
    for (number, (label, value)) in resource.labels().enumerate() {
        if number > 0 {
            out.push(',');
        }
        write_text(label, out);
        out.push(':');
        write_text(value, out);
    }
    out.push('}');
}

/// Ids and sizes only: events may hold secrets, and debug output ends in logs.
impl std::fmt::Debug for StoredEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredEvent")
            .field("id", &self.id)
            .field("num_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// A text as JSON.
pub(super) fn write_text(text: &str, out: &mut String) {
    // A text always is JSON.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

/// A moment as Prefect's API writes it: six digits of a second, or none.
pub(super) fn iso(moment: DateTime<Utc>) -> String {
    let format = match moment.nanosecond() / 1_000 {
        0 => SecondsFormat::Secs,
        _ => SecondsFormat::Micros,
    };
    moment.to_rfc3339_opts(format, true)
}
