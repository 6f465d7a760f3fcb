//! PORT: the rows that somebody else wrote, held against those that would be written here.
//!
//! Everything here only reads and makes no table. An answer is of one moment: who compares with a
//! writer at work looks once more at what is not identical. Names of columns are told, never values.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::future::LocalBoxFuture;

use super::StoreError;
use crate::delivery::Entry;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) use answers::{of_columns, with_refused};

#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod answers;

/// Stands for the time of receipt where a message has none. Each writer takes its own clock's then,
/// so that the column is not compared; no sender gives this one.
pub const UNKNOWN_RECEIVED: DateTime<Utc> =
    DateTime::from_timestamp_nanos(-9_000_000_000_123_457_000);

/// Names the rows of `event_resources` among the columns that differ.
pub const RESOURCES: &str = "event_resources";
/// The same where only the number of rows differs: some are there more than once.
pub const NUM_RESOURCES: &str = "event_resources (number of rows)";

/// An entry, held against what is in the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// What is there is what would be written.
    Identical,
    /// The event is there, and these columns of it hold something else; also [`RESOURCES`] and
    /// [`NUM_RESOURCES`].
    Differing(Vec<String>),
    /// The event is not there and would be written.
    Absent,
    /// The event is not there, and only an attempt would show whether it would be written: its ids
    /// are longer than an index takes, unless they can be compressed.
    Unclear,
    /// It would not be written, but become a dead letter.
    Refused {
        /// Whether the event is there.
        is_there: bool,
    },
}

/// Compares with the tables.
pub trait Comparison: Send + Sync {
    /// One answer for each of the entries, in their order.
    ///
    /// An entry whose event has [`UNKNOWN_RECEIVED`] is not compared in that column. A rejection is
    /// looked for by its event's id, if it has one.
    fn compare<'a>(
        &'a self,
        entries: &'a [Arc<Entry>],
    ) -> LocalBoxFuture<'a, Result<Vec<Compared>, StoreError>>;

    /// The same, with the payload that Prefect would store: it rounds a number to what a double holds.
    ///
    /// Only where that is another one than would be written here the answers differ.
    fn compare_as_prefect<'a>(
        &'a self,
        entries: &'a [Arc<Entry>],
    ) -> LocalBoxFuture<'a, Result<Vec<Compared>, StoreError>> {
        self.compare(entries)
    }
}
