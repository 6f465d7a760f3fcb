//! From JSON text to an event.

use bytestring::ByteString;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::ReceivedEvent;

/// How much of each thing an event may hold; the defaults are Prefect's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLimits {
    /// Labels of one resource, id and role included (500).
    pub max_labels_per_resource: usize,
    /// Related resources of one event (100).
    pub max_related_resources: usize,
    /// Code points of an event's name (1024).
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
    /// What is wrong and where; names fields, holds no values of the event.
    pub reason: String,
    /// The event's id, where that could be read.
    pub event_id: Option<Uuid>,
}

pub(super) fn parse(
    _text: ByteString,
    _limits: &EventLimits,
    _received: Received,
) -> Result<ReceivedEvent, ParseError> {
    Err(ParseError {
        reason: String::new(),
        event_id: None,
    })
}
