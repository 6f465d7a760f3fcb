//! Whether an open connection still writes to the file that stands at its path.
//!
//! SQLite goes on with a file that was moved or removed: what is committed there is acknowledged, and nobody
//! finds it. While one connection of this process is open on the old file, no other may be opened at the path:
//! both would use the same `-wal` and `-shm` files, and damage one another's database.

use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use crate::lock::lock;
use crate::store::StoreError;

#[derive(Default)]
pub(super) struct OpenFile(Mutex<Weak<FileId>>);

/// Held with a connection for as long as it is open.
pub(super) type Token = Arc<FileId>;

/// Tells one file from another at the same path; `None` where the system does not tell.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FileId(Option<(u64, u64)>);

/// The device and the inode of a file.
#[cfg(unix)]
pub(super) fn numbers(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;

    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
pub(super) fn numbers(_path: &Path) -> Option<(u64, u64)> {
    None
}

impl FileId {
    fn at(path: &Path) -> Self {
        Self(numbers(path))
    }

    pub(super) fn is_at(&self, path: &Path) -> bool {
        *self == Self::at(path)
    }
}

impl OpenFile {
    /// Opens a connection, unless another one is still open on a file that stood there before.
    pub(super) fn open<C>(
        &self,
        path: &Path,
        connect: impl FnOnce() -> Result<C, StoreError>,
    ) -> Result<(C, Token), StoreError> {
        let used = self.lock().upgrade();
        if used.is_some_and(|used| !used.is_at(path)) {
            return Err(moved(path));
        }
        let connection = connect()?;
        let mut open = self.lock();
        let token = open.upgrade().unwrap_or_else(|| {
            let token = Arc::new(FileId::at(path));
            *open = Arc::downgrade(&token);
            token
        });
        Ok((connection, token))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Weak<FileId>> {
        lock(&self.0)
    }
}

/// Why nothing is written: the file that is open no longer stands at the path.
pub(super) fn moved(path: &Path) -> StoreError {
    StoreError::unavailable(format!(
        "the SQLite database {} was moved, replaced or removed while it was in use: put it back, or \
         start this process again to go on with what stands there now",
        shown(path)
    ))
}

/// For a call that succeeded on a file that no longer stands at the path.
pub(super) fn moved_meanwhile(path: &Path) -> StoreError {
    StoreError::OutcomeUnknown {
        what: format!(
            "the SQLite database {} was moved, replaced or removed while it was in use; what was \
             written last is written again once it is back",
            shown(path)
        ),
        fault: None,
        source: None,
    }
}

/// As all errors of this store name it: absolute.
fn shown(path: &Path) -> String {
    let absolute = std::path::absolute(path);
    absolute.as_deref().unwrap_or(path).display().to_string()
}
