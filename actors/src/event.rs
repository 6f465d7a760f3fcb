//! One received event: plain data, and the rules by which it is accepted.
//!
//! The rules are those of Prefect's server (3.8) for the JSON text of a received event; what it
//! accepts is accepted here and what it rejects is rejected, with a reason that names the field.
//! Imports nothing of ours.

use bytestring::ByteString;
use chrono::{DateTime, Utc};
use jiter::{NumberAny, NumberInt};
use uuid::Uuid;

mod builder;
mod datetime;
mod fields;
mod json;
mod numbers;
mod parse;
mod problems;
mod resource;
mod tokens;

pub use builder::EventBuilder;
pub use numbers::holds_unreadable_number;
pub use parse::{EventLimits, ParseError, Received};
pub use resource::Resource;

pub(crate) use fields::uuid_from_text;
#[cfg(feature = "sqlite")]
pub(crate) use numbers::holds_long_integer;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use numbers::write_float;
#[cfg(feature = "postgres")]
pub(crate) use tokens::{Token, Tokens};

/// The label that names a resource.
pub const ID_LABEL: &str = "prefect.resource.id";
/// The label that tells what a related resource is to the event.
pub const ROLE_LABEL: &str = "prefect.resource.role";

/// An event as it stands on the bus, validated.
///
/// Keeps the text that it was read from: the payload and the labels without escapes are parts of it, and a
/// dead letter holds it whole. Two events are equal when their columns are, whatever text they were read from.
#[derive(Clone)]
pub struct ReceivedEvent {
    /// Chosen by the sender; what makes a redelivery harmless.
    pub id: Uuid,
    /// When it happened, from the sender's point of view, in whole microseconds.
    pub occurred: DateTime<Utc>,
    /// When a server received it, in whole microseconds.
    pub received: DateTime<Utc>,
    /// The event's name, such as `prefect.flow-run.Completed`.
    pub event: String,
    /// The resource that it concerns.
    pub resource: Resource,
    /// The other resources involved, in the sender's order.
    pub related: Vec<Resource>,
    /// The event that is known to have come before this one.
    pub follows: Option<Uuid>,
    pub(crate) payload: ByteString,
    pub(crate) text: ByteString,
}

impl ReceivedEvent {
    /// Begins an event of this process's own.
    ///
    /// ```
    /// use event_persister_actors::clock::{Clock as _, SystemClock};
    /// use event_persister_actors::event::{EventLimits, ReceivedEvent, Resource};
    ///
    /// # fn main() -> Result<(), event_persister_actors::event::ParseError> {
    /// let event = ReceivedEvent::builder("order.paid", Resource::new("order-1"))
    ///     .related(Resource::new("customer-7").with_role("customer"))
    ///     .payload(serde_json::json!({ "total": 12 }))
    ///     .build(&EventLimits::default(), SystemClock.now())?;
    /// assert_eq!(event.resource.id(), "order-1");
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(event: impl Into<String>, resource: Resource) -> EventBuilder {
        EventBuilder::new(event.into(), resource)
    }

    /// The payload: a JSON object, as it was sent but for numbers that not everybody can read back.
    ///
    /// NaN, infinities and numbers beyond the range of a double are `null`, or 0.0 where they are
    /// too small; one with more than 16,383 decimals is the nearest double. Repeated keys stay, and
    /// the last counts.
    pub fn payload(&self) -> &str {
        &self.payload
    }

    /// The text that the event was read from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The ids of the related resources, in order, repeated ones kept.
    pub fn related_ids(&self) -> impl ExactSizeIterator<Item = &str> {
        self.related.iter().map(Resource::id)
    }
}

/// A datetime of a text, in any form that an event's may have; or why it is none.
pub(crate) fn datetime_from_text(text: &str) -> Result<DateTime<Utc>, String> {
    datetime::from_text(text).map_err(|error| error.to_string())
}

/// The same of a number: Unix time in seconds or milliseconds.
pub(crate) fn datetime_from_number(number: &serde_json::Number) -> Result<DateTime<Utc>, String> {
    let number = match (number.as_i64(), number.as_f64()) {
        (Some(whole), _) => Some(NumberAny::Int(NumberInt::Int(whole))),
        (None, Some(float)) if number.is_f64() => Some(NumberAny::Float(float)),
        _ => None,
    };
    datetime::from_number(number).map_err(|error| error.to_string())
}

impl PartialEq for ReceivedEvent {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.occurred == other.occurred
            && self.received == other.received
            && self.event == other.event
            && self.resource == other.resource
            && self.related == other.related
            && self.follows == other.follows
            && self.payload == other.payload
    }
}

/// Ids and sizes only: events may hold secrets, and debug output ends in logs.
impl std::fmt::Debug for ReceivedEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceivedEvent")
            .field("id", &self.id)
            .field("num_related", &self.related.len())
            .field("num_bytes", &self.text.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
