//! From JSON text to an event.
//!
//! One pass: known fields are read, others are skipped, and of a field that comes twice the last
//! counts. Why `jiter`, `speedate` and `uuid`, and not serde: they are what Prefect's own models run
//! on beneath Python, so what they accept needs no second opinion; and the payload, most of an
//! event's bytes, is checked and never built.

use bytes::Bytes;
use bytestring::ByteString;
use chrono::{DateTime, SubsecRound, Utc};
use jiter::JiterResult;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::EnumString;
use uuid::Uuid;

use super::fields::{self, Field};
use super::json::Reader;
use super::problems::Problems;
use super::{ReceivedEvent, Resource};
use crate::settings::{As, Count};

/// How much of each thing an event may hold; the defaults are Prefect's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EventLimits {
    /// Labels of one resource, id and role included; an event with more is refused. Prefect's own limit.
    #[serde(with = "As::<Count<usize>>")]
    pub max_labels_per_resource: usize,
    /// Related resources of one event; an event with more is refused. Prefect's own limit.
    #[serde(with = "As::<Count<usize>>")]
    pub max_related_resources: usize,
    /// Characters of an event's name; an event with more is refused. Prefect's own limit.
    #[serde(with = "As::<Count<usize>>")]
    pub max_event_name_length: usize,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self {
            max_labels_per_resource: 500,
            max_related_resources: 100,
            max_event_name_length: 1024,
        }
    }
}

/// Where an event's `received` comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// From the text; this moment where the text has none. For what stands on a bus or in a file.
    FromText {
        /// Used where the field is missing.
        default: DateTime<Utc>,
    },
    /// This moment, whatever the text says. For what a client sends us.
    Now(DateTime<Utc>),
}

/// Why a text is not an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ParseError {
    /// The mistakes and their places; names fields, holds no values of the event.
    pub reason: String,
    /// The event's id, where that could be read.
    pub event_id: Option<Uuid>,
}

impl ReceivedEvent {
    /// Reads an event from its JSON text.
    ///
    /// # Errors
    ///
    /// The text is not JSON, or not an event within `limits`: every field that is wrong is named.
    pub fn parse(
        text: ByteString,
        limits: &EventLimits,
        received: Received,
    ) -> Result<Self, ParseError> {
        let mut reader = Reader::new(&text);
        let mut fields = Fields::default();
        let read = fields.read_all(&mut reader, limits, received);
        match read.and_then(|()| reader.jiter.finish()) {
            Ok(()) => fields.into_event(text, received),
            Err(error) => Err(ParseError {
                reason: reader.describe(&error),
                event_id: fields.readable_id(),
            }),
        }
    }

    /// Reads an event from bytes that may not even be text.
    ///
    /// # Errors
    ///
    /// As for [`parse`](Self::parse), and where the bytes are not UTF-8.
    pub fn parse_bytes(
        bytes: Bytes,
        limits: &EventLimits,
        received: Received,
    ) -> Result<Self, ParseError> {
        match ByteString::try_from(bytes) {
            Ok(text) => Self::parse(text, limits, received),
            Err(error) => Err(ParseError {
                reason: format!("not UTF-8: invalid byte at offset {}", error.valid_up_to()),
                event_id: None,
            }),
        }
    }
}

#[derive(Default)]
struct Fields {
    occurred: Option<Field<DateTime<Utc>>>,
    event: Option<Field<String>>,
    resource: Option<Field<Resource>>,
    related: Option<Field<Vec<Resource>>>,
    payload: Option<Field<ByteString>>,
    id: Option<Field<Uuid>>,
    follows: Option<Field<Option<Uuid>>>,
    received: Option<Field<DateTime<Utc>>>,
}

#[derive(EnumString)]
#[strum(serialize_all = "lowercase")]
enum Key {
    Occurred,
    Event,
    Resource,
    Related,
    Payload,
    Id,
    Follows,
    Received,
    Other,
}

impl Key {
    fn named(key: &str) -> Self {
        key.parse().unwrap_or(Self::Other)
    }
}

impl Fields {
    fn read_all(
        &mut self,
        reader: &mut Reader<'_>,
        limits: &EventLimits,
        received: Received,
    ) -> JiterResult<()> {
        let mut next = reader.jiter.next_object()?.map(Key::named);
        while let Some(key) = next {
            self.read(key, reader, limits, received)?;
            next = reader.jiter.next_key()?.map(Key::named);
        }
        Ok(())
    }

    fn read(
        &mut self,
        key: Key,
        reader: &mut Reader<'_>,
        limits: &EventLimits,
        received: Received,
    ) -> JiterResult<()> {
        match key {
            Key::Occurred => self.occurred = Some(fields::datetime(reader, "occurred")?),
            Key::Event => {
                let max_length = limits.max_event_name_length;
                self.event = Some(fields::name(reader, "event", max_length)?);
            }
            Key::Resource => self.resource = Some(fields::resource(reader, limits)?),
            Key::Related => self.related = Some(fields::related(reader, "related", limits)?),
            Key::Payload => {
                let payload = fields::object(reader, "payload")?;
                self.payload = Some(payload.map(|payload| payload.to_json()));
            }
            Key::Id => self.id = Some(fields::uuid(reader, "id")?),
            Key::Follows => self.follows = Some(fields::optional_uuid(reader, "follows")?),
            Key::Received if matches!(received, Received::FromText { .. }) => {
                self.received = Some(fields::datetime(reader, "received")?);
            }
            Key::Received | Key::Other => fields::ignored(reader)?,
        }
        Ok(())
    }

    fn readable_id(&self) -> Option<Uuid> {
        self.id.as_ref()?.as_ref().ok().copied()
    }

    fn into_event(self, text: ByteString, received: Received) -> Result<ReceivedEvent, ParseError> {
        let event_id = self.readable_id();
        let (Received::FromText { default: moment } | Received::Now(moment)) = received;

        let mut wrong = Vec::new();
        let occurred = required(self.occurred, "occurred", &mut wrong);
        let event = required(self.event, "event", &mut wrong);
        let resource = required(self.resource, "resource", &mut wrong);
        let related = or_default(self.related, Vec::new, &mut wrong);
        let payload = or_default(self.payload, || ByteString::from_static("{}"), &mut wrong);
        let id = required(self.id, "id", &mut wrong);
        let follows = or_default(self.follows, || None, &mut wrong);
        let received = or_default(self.received, || moment.trunc_subsecs(6), &mut wrong);

        let event = || {
            Some(ReceivedEvent {
                id: id?,
                occurred: occurred?,
                received: received?,
                event: event?,
                resource: resource?,
                related: related?,
                follows: follows?,
                payload: payload?,
                text,
            })
        };
        event().ok_or_else(|| ParseError {
            reason: wrong.join("; "),
            event_id,
        })
    }
}

/// The value of a field that must be there; what is wrong is added to `wrong`.
fn required<T>(field: Option<Field<T>>, path: &str, wrong: &mut Vec<String>) -> Option<T> {
    let field = field.unwrap_or_else(|| Err(Problems::one(path, "missing")));
    value_of(field, wrong)
}

fn or_default<T>(
    field: Option<Field<T>>,
    default: impl FnOnce() -> T,
    wrong: &mut Vec<String>,
) -> Option<T> {
    value_of(field.unwrap_or_else(|| Ok(default())), wrong)
}

fn value_of<T>(field: Field<T>, wrong: &mut Vec<String>) -> Option<T> {
    field
        .map_err(|problems| wrong.push(problems.to_string()))
        .ok()
}
