//! Dead letters as an operator sees them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::store::Stage;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    pub id: i64,
    pub source: String,
    pub position: String,
    pub stage: Stage,
    pub reason: String,
    pub sqlstate: Option<String>,
    pub event_id: Option<Uuid>,
    pub attempts: i64,
    pub first_seen: DateTime<Utc>,
    pub last_seen: DateTime<Utc>,
    pub num_bytes: u64,
}

pub type OpenLetter = (DeadLetter, Vec<u8>);

/// Which letters are meant: those that fit every part that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// Only these ids; `None` for any, unlike an empty list.
    pub ids: Option<Vec<i64>>,
    pub source: Option<String>,
    pub stage: Option<Stage>,
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
    pub attempts: i64,
}
