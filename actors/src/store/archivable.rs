//! PORT: the rows that retention removes, for an archive that takes them first.
//!
//! A file of the archive is known by a row of `event_persister_archives`, its manifest. The manifest of at
//! most one file is *open*: its rows are being written, or removed. So two processes never archive the same
//! rows, and the database alone decides whose turn it is, without a clock. Whoever has it open may write the next
//! file already, whose manifest is opened as this one closes.
//!
//! ```text
//! (nothing) ──begin──▶ writing ──remove: claim──▶ removing ──remove: last──▶ removed ──published──▶ archived
//!                         └──discard──▶ (nothing)
//! ```
//!
//! A partition that is dropped whole may take several files. The manifest that is open meanwhile is that of
//! none of them.
//!
//! An archive writes the columns of `events`. The rows of `event_resources` say the same once more, and are
//! made again from them.

use std::cmp::Ordering;
use std::future::ready;
use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};

use super::operator::Answer;
use super::{Cutoffs, Removed, TrimStep};

/// The first moment that Prefect knows, in microseconds since 1970: the beginning of the year 1. PostgreSQL has
/// it as `-infinity`; to an archive it is the same in all databases and files.
pub(crate) const YEAR_1: i64 = -62_135_596_800_000_000;

/// When an event occurred, and its id: the order in which events are removed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    /// Microseconds since 1970; the smallest number is before all time.
    pub occurred: i64,
    /// In lower case.
    pub id: String,
}

impl Position {
    /// Before every event.
    pub const FIRST: Self = Self {
        occurred: i64::MIN,
        id: String::new(),
    };
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.occurred, &self.id).cmp(&(other.occurred, &other.id))
    }
}

/// A row of `events`; JSON is the text that stands there, and times are microseconds since 1970.
#[derive(Clone, PartialEq, Eq)]
pub struct EventRow {
    /// When and which.
    pub position: Position,
    /// When a server received it.
    pub received: i64,
    /// When it was stored.
    pub recorded: i64,
    /// Its name.
    pub event: String,
    /// The event that came before it.
    pub follows: Option<String>,
    /// A JSON object.
    pub resource: String,
    /// A JSON list of objects.
    pub related: String,
    /// A JSON object.
    pub payload: String,
}

impl EventRow {
    /// About as many bytes as it takes in memory.
    pub fn num_bytes(&self) -> usize {
        const FIXED: usize = 256;
        FIXED + self.event.len() + self.resource.len() + self.related.len() + self.payload.len()
    }
}

/// Ids only: events may hold secrets, and debug output ends in logs.
impl std::fmt::Debug for EventRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EventRow").field(&self.position).finish()
    }
}

/// How far a file has come.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, strum::IntoStaticStr, strum::EnumString,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum FileState {
    /// It is being written; all of its rows are in the tables.
    Writing,
    /// It is written, and its rows are being removed from the tables.
    Removing,
    /// Its rows are gone, and it has to be put where readers look.
    Removed,
    /// It is where readers look.
    Archived,
}

impl FileState {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What a file holds, as its manifest tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// Events in it.
    pub num_events: u64,
    /// Its size.
    pub num_bytes: u64,
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// Of its first event.
    pub first: Position,
    /// Of its last one.
    pub last: Position,
    /// The version of the schema that it is written in.
    pub schema_version: u32,
}

/// A file that is complete.
#[derive(Debug, Clone)]
pub struct NamedContent {
    /// Its path in the archive.
    pub file: String,
    /// What it holds.
    pub content: FileContent,
}

/// A partition of which nothing is kept. It is dropped once all of it is in files.
#[derive(Debug, Clone, Default)]
pub struct Partition {
    /// The end of the names of its tables.
    pub suffix: String,
    /// The first moment that it holds, in microseconds since 1970.
    pub from: i64,
    /// The first moment behind it.
    pub until: i64,
    /// The manifest that is open meanwhile.
    pub opened: String,
    /// The files so far.
    pub files: Vec<NamedContent>,
    /// The events that are in the archive.
    pub num_events: u64,
    /// The sum of their fingerprints.
    pub fingerprint: i128,
}

/// The manifest of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its path in the archive.
    pub file: String,
    /// How far it has come.
    pub state: FileState,
    /// Grows while somebody is at work on it.
    pub beats: i64,
    /// Unknown while it is being written.
    pub content: Option<FileContent>,
    /// When it was begun, by the database's clock.
    pub begun: DateTime<Utc>,
}

/// What a removal of rows does to the manifest, in the same transaction.
#[derive(Debug, Clone, Copy)]
pub enum ManifestChange<'a> {
    /// Nothing: the rows are in the archive already.
    None,
    /// The file is complete, and its rows begin to go; only if it is still being written.
    Claim(&'a str, &'a FileContent),
    /// More of its rows go.
    Beat(&'a str),
}

/// A step of the removal of rows.
#[derive(Debug, Clone, Copy)]
pub struct Removal<'a> {
    /// The events that go, with their resources; those that are gone already do not matter.
    pub events: &'a [Position],
    /// What happens to the manifest.
    pub change: ManifestChange<'a>,
    /// Whether these are the last rows of the file.
    pub is_last: bool,
    /// With the last rows: the file whose manifest is opened then.
    pub next: Option<&'a str>,
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalStep {
    /// The rows are gone, and the manifest says so.
    Removed(Removed),
    /// Another process works on the file, or trims at this moment; nothing was changed.
    TakenByAnother,
}

/// How many events may be read at a time.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// At most so many.
    pub max_events: NonZeroUsize,
    /// And no more once so many bytes are reached, but at least one.
    pub max_bytes: usize,
}

/// The rows that retention removes, and the manifests of an archive, in one database.
///
/// A change that fails with [`TooSlow`](super::StoreError::TooSlow) was not made. One that may have been made all the
/// same is an [`OutcomeUnknown`](super::StoreError::OutcomeUnknown).
pub trait ArchivableRows: Send + Sync {
    /// Makes the tables of the manifests where they are missing.
    fn prepare(&self) -> Answer<'_, ()>;

    /// The id of the archive that belongs to this database; notes the one that is proposed where there is
    /// none.
    fn archive_id<'a>(&'a self, proposed: Option<&'a str>) -> Answer<'a, Option<String>>;

    /// The manifests; of all files, or of those that are not archived yet.
    fn manifests(&self, only_unfinished: bool) -> Answer<'_, Vec<Manifest>>;

    /// The manifests of a folder of the archive.
    fn manifests_in<'a>(&'a self, folder: &'a str) -> Answer<'a, Vec<Manifest>>;

    /// Opens the manifest of a file that is to be written; whether it was: not while another is open.
    fn begin<'a>(&'a self, file: &'a str) -> Answer<'a, bool>;

    /// Says that somebody is still at work on the file whose manifest is open; whether he may be.
    fn beat<'a>(&'a self, file: &'a str) -> Answer<'a, bool>;

    /// Forgets a file that is being written; whether it was. Whoever writes it cannot claim it any more.
    fn discard<'a>(&'a self, file: &'a str) -> Answer<'a, bool>;

    /// Notes a file that readers see already, and that no manifest names.
    fn adopt<'a>(&'a self, file: &'a str, content: &'a FileContent) -> Answer<'a, ()>;

    /// The next expired events in order, behind one position and before a moment.
    fn expired<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        behind: &'a Position,
        before: i64,
        budget: Budget,
    ) -> Answer<'a, Vec<EventRow>>;

    /// Removes events with their resources, and changes the manifest in the same transaction. Its commit
    /// waits for the disk.
    fn remove<'a>(&'a self, removal: Removal<'a>) -> Answer<'a, RemovalStep>;

    /// The partition that holds an expired event, if nothing in it is kept and it can be locked. A store
    /// without partitions has none.
    fn whole_partition<'a>(
        &'a self,
        _cutoffs: &'a Cutoffs,
        _event: &'a Position,
    ) -> Answer<'a, Option<Partition>> {
        Box::pin(ready(Ok(None)))
    }

    /// The sum of numbers that are made of what identifies events.
    fn fingerprint(&self, _events: &[Position]) -> i128 {
        0
    }

    /// Drops a partition, and changes the manifests in the same transaction: the one that is open goes, and those
    /// of the files come as *removed*. Its commit waits for the disk. `None` if it holds other events than
    /// the files, could not be locked, or another process is at work; nothing was changed then.
    fn drop_partition<'a>(&'a self, _: &'a Partition) -> Answer<'a, Option<Removed>> {
        Box::pin(ready(Ok(None)))
    }

    /// Notes that readers see the file.
    fn published<'a>(&'a self, file: &'a str) -> Answer<'a, ()>;

    /// Removes what holds no event, as a trim without an archive does: resources of no event that are older than
    /// anything that is kept, and expired partitions that are empty.
    fn remove_strays<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_rows: NonZeroUsize,
    ) -> Answer<'a, TrimStep>;
}
