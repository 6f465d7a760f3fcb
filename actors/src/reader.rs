//! PORT: what is stored, found again by a filter.
//!
//! The filters are those of Prefect's REST API (3.9), and so are the answers. An adapter reads through
//! connections of its own, which can change nothing: a reader never holds a writer up. Where a statement
//! takes too long it is given up, and the error says so.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::LocalBoxFuture;
use uuid::Uuid;

use crate::store::StoreError;

pub use counting::{Bucket, Buckets, Countable, EventCount, TimeUnit, TooManyBuckets};
pub use filter::{
    AnyResourceFilter, EventFilter, Labels, NameFilter, Occurred, Order, RelatedFilter,
    ResourceFilter,
};
pub use problems::{Problem, Problems, Step};
pub use requests::{CountRequest, PageRequest};
pub use stored::StoredEvent;
pub use token::{InvalidToken, PageToken};

mod counting;
mod filter;
mod matching;
mod parse;
mod problems;
mod requests;
mod stored;
mod text_query;
mod token;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod turns;
mod values;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use text_query::TextQuery;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use turns::{Turns, too_slow};

/// How many may read a database at a time; others wait.
pub const MAX_READERS: usize = 2;

/// How long a statement may take, and how long others wait for their turn.
pub const MAX_READ_TIME: Duration = Duration::from_secs(10);

/// The most events on a page.
pub const MAX_PAGE: usize = 50;

/// A page holds at most so many bytes of events, but always one event; larger ones are pages of fewer. A count holds
/// as many bytes of groups.
pub const MAX_PAGE_BYTES: usize = 4 << 20;

/// The future that a call of the reader's port returns.
pub type Answer<'a, T> = LocalBoxFuture<'a, Result<T, StoreError>>;

/// A place in the order of a filter's events: behind this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// When the event occurred.
    pub occurred: DateTime<Utc>,
    /// Its id, which decides among those of one moment.
    pub id: Uuid,
}

/// A page of events, and what it is a part of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventPage {
    /// The events in the filter's order.
    pub events: Vec<StoredEvent>,
    /// How many there are in all; `None` where they were not counted.
    pub total: Option<u64>,
    /// Whether there are fewer than asked for because more would be too many bytes.
    pub is_cut: bool,
}

/// The part of a filter's events that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// How many at most.
    pub limit: usize,
    /// Behind which event; `None` begins with the first.
    pub after: Option<Place>,
    /// Whether all of them are counted too, which may take much longer.
    pub counts: bool,
}

/// A database in a few numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// Its kind, such as `SQLite`.
    pub kind: &'static str,
    /// The version of its server or library.
    pub version: String,
    /// Its name, or its file.
    pub name: String,
    /// How many events there are.
    pub num_events: u64,
    /// Whether that is an estimate: only few are counted.
    pub is_estimate: bool,
    /// How much of the disk it takes.
    pub num_bytes: u64,
    /// When the oldest event occurred.
    pub oldest: Option<DateTime<Utc>>,
    /// When the newest did.
    pub newest: Option<DateTime<Utc>>,
}

/// Up to so many events are counted where only their number is asked for; to count more takes time.
pub const COUNTED: u64 = 10_000;

/// The number of events, and whether it is an estimate, from a count that stops behind [`COUNTED`].
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) fn counted_or_estimated(count: u64, estimate: u64) -> (u64, bool) {
    match count {
        0..=COUNTED => (count, false),
        _ => (estimate.max(count), true),
    }
}

/// Finds stored events by a filter. All that is asked in one call is of one moment.
pub trait EventReader: Send + Sync {
    /// Some of the events, in the filter's order.
    fn page<'a>(&'a self, filter: &'a EventFilter, part: Part) -> Answer<'a, EventPage>;

    /// How many events there are of each kind: for times a count for each bucket that has any, with the
    /// bucket's number as value; for others the most first, as many as [`MAX_PAGE_BYTES`] hold.
    fn count<'a>(
        &'a self,
        filter: &'a EventFilter,
        countable: &'a Countable,
    ) -> Answer<'a, Vec<EventCount>>;

    /// One event; `None` if it is not there.
    fn event(&self, id: Uuid) -> Answer<'_, Option<StoredEvent>>;

    /// The ids of events that were written since then, at most so many, the newest first.
    fn written_since(&self, moment: DateTime<Utc>, limit: usize) -> Answer<'_, Vec<Uuid>>;

    /// The database in a few numbers, which take no time to find.
    fn overview(&self) -> Answer<'_, Overview>;

    /// Closes the connections; the next call opens others.
    fn close(&self) -> Answer<'_, ()>;
}
