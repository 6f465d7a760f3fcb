//! An archive of what retention removes: Parquet files in a folder or in S3.
//!
//! An event is in the tables or in the archive, and never in both: the row that names a file commits in
//! the transactions that remove the file's events from the tables, and readers see the file after that
//! (`layer`). A crash at any moment leaves work that the next pass finishes, in whichever process.
//!
//! The feature `archive` brings what writes and reads files. Without it there are only the settings.

#[cfg(feature = "archive")]
mod layer;
#[cfg(feature = "archive")]
mod names;
#[cfg(feature = "archive")]
mod place;
#[cfg(feature = "archive")]
mod reading;
#[cfg(feature = "archive")]
mod recovery;
#[cfg(feature = "archive")]
mod schema;
mod settings;
mod stats;
#[cfg(all(test, feature = "archive"))]
mod tests;
#[cfg(feature = "archive")]
mod writing;

#[cfg(feature = "archive")]
pub use layer::ArchivingStore;
#[cfg(feature = "archive")]
pub use place::{Place, PlaceError};
#[cfg(feature = "archive")]
pub use reading::{ArchivedFile, FileFault, Wanted, may_have};
#[cfg(feature = "archive")]
pub use recovery::{Begin, identify};
#[cfg(feature = "archive")]
pub use schema::{SCHEMA, SCHEMA_VERSION, Unreadable};
pub use settings::{ArchiveSettings, ArchiveUrl, Variables};
pub use stats::{ArchiveStats, ArchiveStatus};

#[cfg(feature = "archive")]
use std::sync::Arc;

/// An archive, for all stores of a process.
#[cfg(feature = "archive")]
#[derive(Clone)]
pub struct Archive {
    place: Arc<Place>,
    file_events: std::num::NonZeroUsize,
    stats: ArchiveStats,
}

#[cfg(feature = "archive")]
impl Archive {
    /// The archive of these settings; `None` where they name none. Looks at nothing yet.
    pub fn new(settings: &ArchiveSettings) -> Option<Self> {
        let url = settings.url.clone()?;
        Some(Self {
            place: Arc::new(Place::new(url, settings.variables.clone())),
            file_events: settings.file_events,
            stats: ArchiveStats::default(),
        })
    }

    /// Where its files are.
    pub fn place(&self) -> Arc<Place> {
        Arc::clone(&self.place)
    }

    /// What was written by this process.
    pub fn stats(&self) -> ArchiveStats {
        self.stats.clone()
    }
}
