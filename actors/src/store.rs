//! PORT: where events go.
//!
//! A store writes a batch in one transaction and says what happened to each entry. An event that
//! the database refuses becomes a dead letter in the same transaction and harms no neighbour.
//! Adapters implement this port; they never send actor messages.

use std::collections::BTreeMap;
use std::error::Error;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::LocalBoxFuture;
use serde::Serialize;
use strum::{EnumString, IntoStaticStr, VariantNames};

use crate::delivery::Batch;

pub use period::Period;
pub use refusal::{RefusalCounts, RefusalReason};

#[cfg(feature = "archive")]
#[doc(hidden)]
pub mod archivable;
#[doc(hidden)]
pub mod operator;
mod period;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(any(feature = "nats", feature = "redis"))]
#[doc(hidden)]
pub mod publishing;
mod refusal;
#[cfg(feature = "sqlite")]
pub mod sqlite;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod filter_sql;
#[cfg(all(feature = "archive", any(feature = "postgres", feature = "sqlite")))]
mod manifest_row;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod new_letter;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod prefect;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod python_json;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod resource_ids;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod tables;

/// Which tables a store may make in its database.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateSchema {
    /// All of them: the database is our own. Where Prefect has been, its tables are left to it.
    Everything,
    /// Only `event_persister_*`: the database is Prefect's, or may become so. Its migrations fail
    /// for ever on tables that exist already.
    OwnOnly,
    /// None: somebody only looks. Our own may be missing, since a writer makes them.
    Nothing,
}

/// The outcome of one entry of a batch that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The event and all of its resources are new rows.
    Stored,
    /// The id was there already, in the table or earlier in the batch; nothing was changed.
    Duplicate,
    /// The parser had rejected it; the dead letter is a row.
    RejectedAtParse,
    /// The database refused it; the dead letter, with its reason, is a row.
    RefusedByStore(RefusalReason),
}

/// The likely cause of a failure, judged by its code. A hint: whose fault it is, the module
/// `isolation` finds out from what happens to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Somebody else holds a lock: no fault of any event.
    Contention,
    /// There is no room left: on a disk, in memory.
    Resources,
    /// Comes and goes by itself: lost connections, conflicts, time-outs, crashes.
    Transient,
    /// Anything else.
    Lasting,
}

/// The store's own words where it was reached and did not take a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The likely cause.
    pub kind: FaultKind,
    /// Its own code (SQLSTATE; SQLite: the result code's name), where that is known.
    pub code: Option<String>,
}

impl Fault {
    /// Whether the connection was lost, or ended by the server, which may have to start again.
    pub(crate) fn ends_the_connection(&self) -> bool {
        let is_loss = |code: &str| code.starts_with("08") || code.starts_with("57P");
        self.kind == FaultKind::Transient && self.code.as_deref().is_none_or(is_loss)
    }
}

/// A failure of a batch as a whole. In no case may anything be acknowledged, and the same
/// entries are written again, for ever: inserts are idempotent.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written, and the same batch may succeed later.
    #[error("{what}")]
    Unavailable {
        /// The action that failed, its object, and what to do about it.
        what: String,
        /// The store's own words; none where it was not reached, which tells nothing about the batch.
        fault: Option<Fault>,
        /// The adapter's own error.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// It took longer than it may, and the commit may or may not have happened. Fewer entries at a
    /// time may be written where all of them never are.
    #[error("{what}")]
    TooSlow {
        /// The action that failed, its object, and what to do about it.
        what: String,
        /// The store's own code, where it said that it took too long.
        code: Option<String>,
        /// The adapter's own error.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// The commit may or may not have happened.
    #[error("{what}")]
    OutcomeUnknown {
        /// The action that failed, its object, and what to do about it.
        what: String,
        /// The store's own words, where the work failed. None where the commit failed: that says nothing about
        /// what was committed.
        fault: Option<Fault>,
        /// The adapter's own error.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
}

impl StoreError {
    /// A store that was not reached, without a cause beneath it.
    pub fn unavailable(what: impl Into<String>) -> Self {
        Self::Unavailable {
            what: what.into(),
            fault: None,
            source: None,
        }
    }

    /// The store's own words, as far as they say anything about the batch.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Unavailable { fault, .. } | Self::OutcomeUnknown { fault, .. } => fault.clone(),
            // One that was never heard of again may have waited for anything.
            Self::TooSlow { code, .. } => code.clone().map(|code| Fault {
                kind: FaultKind::Transient,
                code: Some(code),
            }),
        }
    }
}

/// Before which moment events are no longer kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cutoffs {
    /// For all names without one of their own.
    pub default: DateTime<Utc>,
    /// For single event names; earlier or later than the default.
    pub overrides: BTreeMap<String, DateTime<Utc>>,
}

impl Cutoffs {
    /// Whether an event of this name that occurred then is no longer kept.
    pub fn have_passed(&self, occurred: DateTime<Utc>, name: &str) -> bool {
        occurred < *self.overrides.get(name).unwrap_or(&self.default)
    }

    /// The overrides that differ from the default: only these names need a search of their own.
    pub fn different_overrides(&self) -> impl Iterator<Item = (&str, DateTime<Utc>)> {
        self.overrides
            .iter()
            .map(|(name, cutoff)| (name.as_str(), *cutoff))
            .filter(|(_, cutoff)| *cutoff != self.default)
    }

    /// Each cutoff as a database has it, where it differs from the default.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    fn bounds<T>(&self, of: impl Fn(DateTime<Utc>) -> T) -> Bounds<T> {
        let overrides = self.different_overrides();
        Bounds {
            default: of(self.default),
            overrides: overrides
                .map(|(name, cutoff)| (name.to_owned(), of(cutoff)))
                .collect(),
        }
    }

    /// A clock that ran ahead, or a retention that is negative, must not empty the tables.
    ///
    /// # Errors
    ///
    /// A cutoff lies in the future.
    pub fn refuse_future(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let mut all = self.overrides.values().chain([&self.default]);
        match all.find(|cutoff| **cutoff > now) {
            None => Ok(()),
            Some(cutoff) => Err(StoreError::unavailable(format!(
                "the cutoff {cutoff} lies in the future (it is {now}), so nothing was trimmed: set a \
                 retention that is not negative, and the clock right"
            ))),
        }
    }
}

/// Cutoffs as a database has them.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
struct Bounds<T> {
    default: T,
    /// Of the names that are kept longer or shorter.
    overrides: Vec<(String, T)>,
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl<T> Bounds<T> {
    fn names(&self) -> impl Iterator<Item = &String> {
        self.overrides.iter().map(|(name, _)| name)
    }

    fn all(&self) -> impl Iterator<Item = &T> {
        let overrides = self.overrides.iter().map(|(_, cutoff)| cutoff);
        std::iter::once(&self.default).chain(overrides)
    }
}

/// The rows that a trim removed, or would remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Trimmed {
    /// Rows of `events`.
    pub events: u64,
    /// Rows of `event_resources`.
    pub resources: u64,
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl Trimmed {
    /// Whether a deletion of so many events may have left rows of them. Events without resources are rare.
    fn may_have_left_rows(&self, num_events: usize) -> bool {
        self.events < num_events as u64 || self.resources == 0
    }
}

/// What is wrong where a deletion leaves rows.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn does_not_leave(event_id: &str) -> String {
    format!(
        "the event {event_id} is deleted, but does not leave the tables: see whether a trigger, a rule or \
         row-level security keeps its rows; no more is removed until then"
    )
}

impl std::ops::AddAssign for Trimmed {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.resources += other.resources;
    }
}

/// The last retention pass, as far as a store knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastPass {
    /// The time now: by the slower clock, where the store has one of its own.
    pub now: DateTime<Utc>,
    /// When the last pass was made or, where none was noted, the newest event was stored; `None` where
    /// there is neither.
    pub at: Option<DateTime<Utc>>,
    /// Whether it was a pass.
    pub is_noted: bool,
}

/// How many events there are, and how many of them are expired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Rows of `events`.
    pub num_events: u64,
    /// Those that a pass would remove.
    pub num_expired: u64,
}

/// A count of rows, which is never negative.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn as_count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// A limit as databases take it.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn at_most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The result of one step of a trim, and its cost for others who write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// The rows that are gone.
    pub rows: Trimmed,
    /// How long the transaction of the removal was open.
    pub took: Duration,
    /// Whether another process has written since the step before, where the store sees that.
    pub others_write: bool,
    /// Whether the rows went with the table that held them, which costs next to nothing however many they
    /// were.
    pub with_their_table: bool,
}

/// One bounded step of a trim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrimStep {
    /// A batch was removed; there may be more.
    Removed(Removed),
    /// Nothing is left to remove.
    Finished,
    /// Another process is trimming this database: leave it to that one.
    TakenByAnother,
}

/// The resource that writers and retention contend for. It decides how fast retention may go, and whether a batch that
/// is not full may go to a second writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contention {
    /// One log: a commit waits until all that was logged before it is on disk.
    Log,
    /// One lock, which a step holds for as long as its transaction is open.
    WriteLock,
}

/// Where events go. One value is one connection, made when it is first needed and made again after
/// an error; a writer owns one, and so does the trimmer.
///
/// A store that wraps another forwards every method, those with a default too: the defaults know no
/// last pass, and so take away what keeps a wrong clock from emptying the tables.
#[expect(unused_variables, reason = "the defaults need none")]
pub trait EventStore: Send + Sync {
    /// Writes the batch in one transaction; the outcomes are in the order of its entries.
    ///
    /// When the future is dropped or panics, the transaction is either committed or rolled back as
    /// a whole, and the next call works.
    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>>;

    /// Does all that [`write`](Self::write) would do with the batch, and undoes it: the outcomes are those
    /// that it would have had. Tells whether the store takes events, and leaves nothing behind.
    fn rehearse(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>>;

    /// Removes at most `max_events` events older than their cutoff, oldest first, each together
    /// with its resources. A cutoff in the future, by the store's clock, is refused.
    ///
    /// How large steps are and how long to rest between them is the caller's affair.
    fn trim<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_events: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>>;

    /// The resource that writers and the steps of a trim contend for.
    fn contention(&self) -> Contention {
        Contention::Log
    }

    /// When the last retention pass was made. Where none was noted, the newest event tells that was
    /// stored before this moment. Makes nothing.
    ///
    /// These three keep a clock that is wrong from emptying the tables; a store that leaves them as they
    /// are is trimmed by whatever the clock says.
    fn last_pass(&self, before: DateTime<Utc>) -> LocalBoxFuture<'_, Result<LastPass, StoreError>> {
        let unknown = LastPass {
            now: before,
            at: None,
            is_noted: false,
        };
        Box::pin(std::future::ready(Ok(unknown)))
    }

    /// Notes when a retention pass was made, for the process that makes the next one.
    fn note_pass(&self, at: DateTime<Utc>) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Counts the events that were stored until then, and those of them that are expired.
    fn count_events<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        until: DateTime<Utc>,
    ) -> LocalBoxFuture<'a, Result<EventCounts, StoreError>> {
        Box::pin(std::future::ready(Ok(EventCounts::default())))
    }

    /// Whether the store can be reached and has the tables and columns that are written.
    fn check(&self) -> LocalBoxFuture<'_, Result<(), StoreError>>;

    /// Warnings for a person, although events are stored. Answers at once, from what was seen a short while
    /// ago.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// The server that was used last, for a person to look at, where there is one.
    fn place(&self) -> Option<String> {
        None
    }

    /// Closes the connection; the next call would open it again.
    fn close(&self) -> LocalBoxFuture<'_, Result<(), StoreError>>;
}

/// A layer over another store, with a part in writing or in trimming. All else goes to the store below, the methods with
/// a default too.
pub trait StoreLayer: Send + Sync {
    /// The store below.
    fn below(&self) -> &dyn EventStore;

    /// As [`EventStore::write`].
    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        self.below().write(batch)
    }

    /// As [`EventStore::trim`].
    fn trim<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_events: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>> {
        self.below().trim(cutoffs, max_events)
    }
}

impl<T: StoreLayer> EventStore for T {
    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        StoreLayer::write(self, batch)
    }

    fn rehearse(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        self.below().rehearse(batch)
    }

    fn trim<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_events: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>> {
        StoreLayer::trim(self, cutoffs, max_events)
    }

    fn contention(&self) -> Contention {
        self.below().contention()
    }

    fn last_pass(&self, before: DateTime<Utc>) -> LocalBoxFuture<'_, Result<LastPass, StoreError>> {
        self.below().last_pass(before)
    }

    fn note_pass(&self, at: DateTime<Utc>) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        self.below().note_pass(at)
    }

    fn count_events<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        until: DateTime<Utc>,
    ) -> LocalBoxFuture<'a, Result<EventCounts, StoreError>> {
        self.below().count_events(cutoffs, until)
    }

    fn check(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        self.below().check()
    }

    fn warnings(&self) -> Vec<String> {
        self.below().warnings()
    }

    fn place(&self) -> Option<String> {
        self.below().place()
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        self.below().close()
    }
}

/// Makes one store for each writer and one for the trimmer.
pub type OpenStore = Arc<dyn Fn() -> Arc<dyn EventStore> + Send + Sync>;

/// Where a message was found wanting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, EnumString, IntoStaticStr, VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Stage {
    /// By the parser: it is not an event.
    Parse,
    /// By the database: it is an event that its columns or indexes cannot hold.
    Store,
}

impl Stage {
    /// The name in the table.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
