//! The findings of a comparison of entries with the tables. They name columns, never values.

use chrono::{DateTime, Utc};

/// Stands for the time of receipt where a message has none. Each writer takes its own clock's then,
/// so that the column is not compared; no sender gives this one.
pub const UNKNOWN_RECEIVED: DateTime<Utc> =
    DateTime::from_timestamp_nanos(-9_000_000_000_123_457_000);

/// Names the rows of `event_resources` among the columns that differ.
pub const RESOURCES: &str = "event_resources";
/// The same where only the number of rows differs: some are there more than once.
pub const NUM_RESOURCES: &str = "event_resources (number of rows)";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    Identical,
    /// The event is there, and these columns of it hold something else; also [`RESOURCES`] and
    /// [`NUM_RESOURCES`].
    Differing(Vec<String>),
    Absent,
    /// The event is not there, and only an attempt would show whether it would be written: its ids
    /// are longer than an index takes, unless they can be compressed.
    Unclear,
    Refused {
        is_there: bool,
    },
}
