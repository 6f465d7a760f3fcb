//! Dead letters as an operator sees them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::store::Stage;

/// A message that was kept instead of stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    pub id: i64,
    /// The source that it came from.
    pub source: String,
    /// Where it stood in that source.
    pub position: String,
    /// The stage that refused it.
    pub stage: Stage,
    pub reason: String,
    /// The database's code, where the database refused it.
    pub sqlstate: Option<String>,
    /// The event's id, where that could be read.
    pub event_id: Option<Uuid>,
    pub attempts: i64,
    pub first_seen: DateTime<Utc>,
    pub last_seen: DateTime<Utc>,
    /// The length of the raw message in bytes.
    pub num_bytes: u64,
}

/// A letter together with the raw bytes of its message.
pub type OpenLetter = (DeadLetter, Vec<u8>);

/// Which letters are meant: those that fit every part that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// Only these ids; `None` for any, unlike an empty list.
    pub ids: Option<Vec<i64>>,
    /// The name of the source.
    pub source: Option<String>,
    /// The stage that refused it.
    pub stage: Option<Stage>,
    /// A part of the reason, as it is written there.
    pub reason: Option<String>,
    pub code: Option<String>,
    /// Last seen at this moment or later.
    pub since: Option<DateTime<Utc>>,
    /// Last seen before this moment.
    pub until: Option<DateTime<Utc>>,
}

/// A letter as it was read: its id, and how often it had come by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LetterVersion {
    pub id: i64,
    /// How often it had come.
    pub attempts: i64,
}
