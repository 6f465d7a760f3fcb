//! PORT: an operator's questions to a store, and the repairs. No event on its way to its row needs it.
//!
//! Only the methods that say so change anything; none of the others makes a table. An answer is of one
//! moment: while a writer is at work, a finding has to be looked at once more.

use std::num::NonZeroUsize;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::future::LocalBoxFuture;
use serde::Serialize;

use super::{Cutoffs, Period, StoreError, Trimmed};
use crate::delivery::Entry;
use crate::finding::Finding;

pub use audit::{CurableLetter, Cursor, EventRows, Flaw, LetterCounts, Page, Strays, Unreadable};
pub use comparison::{Compared, NUM_RESOURCES, RESOURCES, UNKNOWN_RECEIVED};
pub use dead_letters::{DeadLetter, LetterFilter, LetterVersion, OpenLetter};

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(in crate::store) mod answers;
mod audit;
mod comparison;
mod dead_letters;

pub type Answer<'a, T> = LocalBoxFuture<'a, Result<T, StoreError>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    pub writers: usize,
    pub trims: bool,
    /// Whether an archive reads beside what is trimmed.
    pub archives: bool,
    /// Whether what is stored is shown to others.
    pub reads: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseInfo {
    /// The server and its version, for people; `None` for a file.
    pub server: Option<String>,
    /// The schema of the table `events`, where a database has schemas and the table is there.
    pub schema: Option<String>,
    /// The revision of Prefect's own schema; `None` where Prefect has not been.
    pub prefect_revision: Option<String>,
    pub tested_revisions: &'static [&'static str],
}

/// Events without resources and resources without an event, as a crash of a writer leaves them that does
/// not write both in one transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct HalfEvents {
    pub events: u64,
    pub resources: u64,
}

/// A method that a store leaves as it is answers that the store does not offer it.
///
/// A dead letter that is new has a larger id than all that were there. `before` stands for letters with
/// smaller ids only, and so for none that come meanwhile.
#[expect(unused_variables, reason = "a method that is not offered needs none")]
pub trait StoreOperator: Send + Sync {
    /// Makes or upgrades the tables, Prefect's two included unless Prefect has been here; returns the names
    /// of the migrations that were run. Changes the schema.
    fn migrate(&self) -> Answer<'_, Vec<String>> {
        not_offered("migrations")
    }

    /// Makes the tables partitioned by the time at which events occurred, in steps that go on where an
    /// earlier call was cut off; returns the steps that were made. Changes the schema.
    fn partition(&self, period: Period) -> Answer<'_, Vec<String>> {
        not_offered("partitions: they are for a PostgreSQL database of our own")
    }

    fn describe(&self) -> Answer<'_, DatabaseInfo> {
        not_offered("a description")
    }

    /// Looks for what would stop or hurt a service with these needs. That the database cannot be reached is
    /// a finding too.
    fn inspect(&self, needs: Needs) -> LocalBoxFuture<'_, Vec<Finding>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    /// At most `limit` dead letters, the newest (largest id) first.
    fn list_letters<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
        limit: NonZeroUsize,
    ) -> Answer<'a, Vec<DeadLetter>>;

    fn count_letters<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
    ) -> Answer<'a, u64>;

    /// These dead letters with their raw bytes, the largest id first; ids that are not there are left out.
    fn open_letters<'a>(&'a self, ids: &'a [i64]) -> Answer<'a, Vec<OpenLetter>>;

    /// This dead letter with the first so many bytes of what came; `None` if it is not there.
    fn peek_letter(&self, id: i64, num_bytes: usize) -> Answer<'_, Option<OpenLetter>>;

    /// Removes those of these dead letters that have not come again since they were read; returns how many
    /// these were.
    fn remove_letters<'a>(&'a self, letters: &'a [LetterVersion]) -> Answer<'a, u64>;

    /// Counts all dead letters, and those whose event is stored meanwhile, of which it names at most
    /// `limit`.
    fn count_curable_letters(&self, limit: usize) -> Answer<'_, LetterCounts> {
        not_offered("an audit")
    }

    fn letters_at<'a>(
        &'a self,
        source: &'a str,
        positions: Vec<String>,
    ) -> Answer<'a, Vec<String>> {
        not_offered("an audit")
    }

    /// The rows of each of these events; that an event has none is an answer too.
    fn look_up(&self, event_ids: Vec<String>) -> Answer<'_, Vec<EventRows>> {
        not_offered("an audit")
    }

    /// Looks whether the rows of each event that occurred since then fit together, page by page. Memory holds
    /// one page at most.
    fn walk<'a>(
        &'a self,
        since: Option<DateTime<Utc>>,
        from: Option<&'a Cursor>,
    ) -> Answer<'a, Page> {
        not_offered("an audit")
    }

    /// Events that occurred since then and of which only resources are there, `limit` ids at most.
    fn orphans(&self, since: Option<DateTime<Utc>>, limit: NonZeroUsize) -> Answer<'_, Strays> {
        not_offered("an audit")
    }

    /// Events that occurred since then and stand in `events` more than once, `limit` ids at most.
    ///
    /// A unique index over the id makes that impossible; only where it is gone they are looked for.
    fn repeated(&self, since: Option<DateTime<Utc>>, limit: NonZeroUsize) -> Answer<'_, Strays> {
        not_offered("an audit")
    }

    /// Compares entries with the rows that somebody wrote: one answer for each, in their order.
    ///
    /// An entry whose event has [`UNKNOWN_RECEIVED`] is not compared in that column. A rejection is
    /// looked for by its event's id, if it has one.
    fn compare<'a>(&'a self, entries: &'a [Arc<Entry>]) -> Answer<'a, Vec<Compared>> {
        not_offered("a comparison")
    }

    /// The same, with the payload that Prefect would store: it rounds a number to what a double holds.
    ///
    /// The answers differ only where a store would write another payload than Prefect.
    fn compare_as_prefect<'a>(&'a self, entries: &'a [Arc<Entry>]) -> Answer<'a, Vec<Compared>> {
        self.compare(entries)
    }

    /// Counts what trims with these cutoffs would remove.
    fn count_expired<'a>(&'a self, cutoffs: &'a Cutoffs) -> Answer<'a, Trimmed> {
        not_offered("a count of what has expired")
    }

    /// Counts the halves of events that other writers left behind; `None` where they leave none. Reads both
    /// tables as a whole.
    fn half_events(&self) -> Answer<'_, Option<HalfEvents>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Removes the halves of events, and returns how many there were; `None` as above. Deletes rows.
    fn remove_half_events(&self) -> Answer<'_, Option<HalfEvents>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

fn not_offered<'a, T: 'a>(what: &str) -> Answer<'a, T> {
    let error = StoreError::unavailable(format!("this store does not offer {what}"));
    Box::pin(std::future::ready(Err(error)))
}
