//! One open connection: how it is opened, what its transactions are, and what its errors say.

use std::path::Path;
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::dsl::sql;
use diesel::sql_types::{Integer, Text};
use diesel::{QueryResult, RunQueryDsl as _, SqliteConnection};
use libsqlite3_sys as ffi;
use tokio::time::Instant;

use super::result_code::{CodedConnection, Failed, ResultCode};
use super::{SqliteSettings, lock_holder, log_size};
use crate::store::StoreError;

/// How many KiB of pages a connection keeps. The pages that a batch of 1,000 events touches fit in,
/// which makes it a fifth faster than SQLite's own 2,000 KiB do. Larger gains little more, and every
/// writer and the trimmer may come to hold as much.
pub(super) const CACHE_KIB: u32 = 8_000;

/// After how many pages a commit writes the log back into the file. With SQLite's own 1,000 every commit of 40
/// events does, and syncs the file besides; those of 64 events took a fifth longer. Larger gains little more,
/// and half of [`log_size::LIMIT`] is left to the largest batches.
pub(super) const CHECKPOINT_PAGES: u32 = 4_000;

#[derive(Debug)]
pub(super) enum Failure {
    Database(Failed),
    /// COMMIT failed: it may have happened all the same.
    Commit(Failed),
    /// The database is not what it should be; says what and what to do.
    Unfit(String),
}

impl Failure {
    /// Whether it was given up because it took too long.
    pub(super) fn is_interrupted(&self) -> bool {
        matches!(self, Self::Database(failed) if failed.code.primary() == ffi::SQLITE_INTERRUPT)
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        Self::Database(failed)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Create,
    Refuse,
    /// The same: Prefect's migrations are to make it.
    Await,
}

pub(super) struct Connection {
    coded: CodedConnection,
    /// Named by every error: the absolute path, and how long is waited for a lock.
    settings: SqliteSettings,
}

impl Connection {
    pub(super) fn open(settings: &SqliteSettings, missing: Missing) -> Result<Self, StoreError> {
        let path = std::path::absolute(&settings.path).unwrap_or_else(|_| settings.path.clone());
        inspect_path(&path, missing)?;
        let url = uri(&path, missing);
        let settings = SqliteSettings {
            path,
            ..settings.clone()
        };
        let coded = CodedConnection::establish(&url).map_err(|error| StoreError::Unavailable {
            what: format!(
                "cannot open the SQLite database {}: {}",
                settings.path.display(),
                remedy(ffi::SQLITE_CANTOPEN, &settings)
            ),
            fault: None,
            source: Some(Box::new(error)),
        })?;
        let mut connection = Self { coded, settings };
        match connection.configure() {
            Ok(()) => Ok(connection),
            Err(failure) => Err(connection.store_error("set up a connection to", failure)),
        }
    }

    fn configure(&mut self) -> Result<(), Failure> {
        // First of all, so that the others wait too.
        self.wait_for_locks(self.settings.busy_timeout)?;
        // An acknowledged event survives a power cut: every commit is synced. Without a write-ahead log the
        // directory is as well, else a journal could come back and undo the commit.
        self.execute_batch("PRAGMA synchronous = EXTRA")?;
        self.execute_batch("PRAGMA foreign_keys = ON")?;
        self.execute_batch(&format!("PRAGMA cache_size = -{CACHE_KIB}"))?;
        self.execute_batch(&format!("PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}"))?;
        // Else the log would keep the size that it once had for ever.
        self.execute_batch(&format!("PRAGMA journal_size_limit = {}", log_size::LIMIT))?;
        self.use_write_ahead_log()
    }

    /// Readers must not stop the writer, nor the writer them. Only set where it is not set already:
    /// the mode is a property of the file, and setting it needs the file for itself alone.
    ///
    /// SQLite does not wait for that, so several processes that meet a new file are made to wait here.
    fn use_write_ahead_log(&mut self) -> Result<(), Failure> {
        const PAUSE: Duration = Duration::from_millis(20);
        if self.journal_mode("PRAGMA journal_mode")? == "wal" {
            return Ok(());
        }
        let mut waited = Duration::ZERO;
        loop {
            match self.journal_mode("PRAGMA journal_mode = WAL") {
                Ok(mode) if mode == "wal" => return Ok(()),
                Ok(mode) => {
                    log::warn!(
                        "no write-ahead log on this file system; writers and readers wait for each other \
                         store.path={} store.journal_mode={mode}",
                        self.settings.path.display()
                    );
                    return Ok(());
                }
                Err(Failure::Database(failed))
                    if is_busy(failed.code) && waited < self.settings.busy_timeout =>
                {
                    std::thread::sleep(PAUSE);
                    waited += PAUSE;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    pub(super) fn journal_mode(&mut self, pragma: &str) -> Result<String, Failure> {
        let mode = sql::<Text>(pragma);
        Ok(self.run(|connection| mode.get_result(connection))?)
    }

    /// Runs one call through diesel, or several of which the first that fails is the last.
    pub(super) fn run<T>(
        &mut self,
        call: impl FnOnce(&mut SqliteConnection) -> QueryResult<T>,
    ) -> Result<T, Failed> {
        self.coded.run(call)
    }

    pub(super) fn execute_batch(&mut self, sql: &str) -> Result<(), Failed> {
        self.run(|connection| connection.batch_execute(sql))
    }

    /// Starts a transaction with the write lock, so that it can never fail for a lock later.
    pub(super) fn begin(&mut self) -> Result<(), Failure> {
        Ok(self.execute_batch("BEGIN IMMEDIATE")?)
    }

    /// The same, but another process's lock is waited for at most as long as this; whether there is a
    /// transaction now.
    pub(super) fn try_begin(&mut self, patience: Duration) -> Result<bool, Failure> {
        match self.begin_within(patience) {
            Ok(()) => Ok(true),
            Err(Failure::Database(failed)) if is_busy(failed.code) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// The same, but a lock that is kept for longer is a failure.
    pub(super) fn begin_within(&mut self, patience: Duration) -> Result<(), Failure> {
        self.wait_for_locks(patience)?;
        let begun = self.begin();
        self.wait_for_locks(self.settings.busy_timeout)?;
        begun
    }

    fn wait_for_locks(&mut self, patience: Duration) -> Result<(), Failed> {
        let millis = patience.as_millis().min(i32::MAX as u128);
        self.execute_batch(&format!("PRAGMA busy_timeout = {millis}"))
    }

    /// Ends the transaction; from here on it is durable.
    pub(super) fn commit(&mut self) -> Result<(), Failure> {
        self.execute_batch("COMMIT").map_err(|failed| {
            // A COMMIT that is busy, or that a deferred constraint refuses, has done nothing and left the
            // transaction open.
            let is_refused = failed.code.primary() == ffi::SQLITE_CONSTRAINT;
            if is_busy(failed.code) || is_refused {
                Failure::Database(failed)
            } else {
                Failure::Commit(failed)
            }
        })
    }

    /// As [`Self::commit`], and rows of others that the transaction went by are as durable as its own.
    ///
    /// Another program may not sync its commits, and a transaction that has changed no page syncs nothing. This
    /// one changes the first page, to what it is.
    pub(super) fn commit_behind_others(&mut self) -> Result<(), Failure> {
        let version = sql::<Integer>("PRAGMA user_version");
        let version: i32 = self.run(|connection| version.get_result(connection))?;
        self.execute_batch(&format!("PRAGMA user_version = {version}"))?;
        self.commit()
    }

    /// Writes the write-ahead log back into the file, wherever that is now.
    pub(super) fn write_log_back(&mut self) {
        if let Err(failed) = self.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            log::warn!(
                "the write-ahead log of {} could not be written back code={}",
                self.path(),
                failed.code.name()
            );
        }
    }

    /// The same if nobody is in the way, without waiting for anybody.
    pub(super) fn give_log_back(&mut self) -> Result<(), Failure> {
        self.wait_for_locks(Duration::ZERO)?;
        // Others tell what is in the way; the next time it may be gone.
        if let Err(failed) = self.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            log::debug!("the write-ahead log stays code={}", failed.code.name());
        }
        Ok(self.wait_for_locks(self.settings.busy_timeout)?)
    }

    /// Gives up whatever is at work at this moment; `None` gives nothing up.
    pub(super) fn interrupt_at(&mut self, moment: Option<Instant>) {
        self.coded.interrupt_at(moment);
    }

    pub(super) fn roll_back(&mut self) -> Result<(), Failure> {
        Ok(self.execute_batch("ROLLBACK")?)
    }

    pub(super) fn path(&self) -> std::path::Display<'_> {
        self.settings.path.display()
    }

    pub(super) fn max_length(&self) -> usize {
        self.coded.max_length()
    }

    /// A failure as the port tells it: what was tried, on which file, and what to do next.
    pub(super) fn store_error(&self, doing: &str, failure: Failure) -> StoreError {
        let path = self.settings.path.display();
        match failure {
            Failure::Unfit(what) => StoreError::unavailable(what),
            Failure::Database(failed) => StoreError::Unavailable {
                what: format!(
                    "cannot {doing} the SQLite database {path}{}: {}",
                    in_brackets(failed.code),
                    remedy_for(failed.code, &self.settings)
                ),
                fault: Some(failed.code.fault()),
                source: Some(Box::new(failed.error)),
            },
            Failure::Commit(failed) => StoreError::OutcomeUnknown {
                what: format!(
                    "the commit to the SQLite database {path} failed{}, and may have happened: {}",
                    in_brackets(failed.code),
                    remedy_for(failed.code, &self.settings)
                ),
                fault: None,
                source: Some(Box::new(failed.error)),
            },
        }
    }
}

fn in_brackets(code: ResultCode) -> String {
    if code == ResultCode::NONE {
        String::new()
    } else {
        format!(" ({})", code.name())
    }
}

fn is_busy(code: ResultCode) -> bool {
    matches!(code.primary(), ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED)
}

/// Finds what can be found out without touching the file, in words better than SQLite's.
///
/// It is not opened: see the module `lock_holder`.
fn inspect_path(path: &Path, missing: Missing) -> Result<(), StoreError> {
    let shown = path.display();
    let unavailable = |what: String| Err(StoreError::unavailable(what));
    if path.file_name().is_some_and(|name| name == ":memory:") {
        return unavailable(
            "an SQLite database in memory cannot keep events: give the path of a file".to_owned(),
        );
    }
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => unavailable(format!(
            "the SQLite database {shown} is a directory: give the path of a file in it"
        )),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            if !directory.is_dir() {
                return unavailable(format!(
                    "the SQLite database {shown} cannot be opened: there is no directory {}; create \
                     it, or correct the path",
                    directory.display()
                ));
            }
            match missing {
                Missing::Create => Ok(()),
                Missing::Refuse => unavailable(format!(
                    "there is no SQLite database {shown}: correct the path, or let \
                     `event-persister migrate` make it"
                )),
                Missing::Await => unavailable(format!(
                    "there is no SQLite database {shown}: waiting for Prefect's migrations; for a \
                     database without Prefect run `event-persister migrate`"
                )),
            }
        }
        // Whatever it is, SQLite will say so too.
        Err(_) => Ok(()),
    }
}

/// The path as a URI, the one form in which every path means a file and nothing else.
fn uri(path: &Path, missing: Missing) -> String {
    let mut uri = String::from("file://");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                uri.push(char::from(*byte));
            }
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str(match missing {
        Missing::Create => "?mode=rwc",
        Missing::Refuse | Missing::Await => "?mode=rw",
    });
    uri
}

fn remedy_for(code: ResultCode, settings: &SqliteSettings) -> String {
    if code.refuses_values() {
        return "a row of ours was refused; compare the schema with `event-persister check`"
            .to_owned();
    }
    if code.primary() == ffi::SQLITE_CONSTRAINT {
        return "it has a constraint that this version does not know; upgrade event-persister to a \
                version that knows this schema"
            .to_owned();
    }
    remedy(code.primary(), settings)
}

fn remedy(primary: i32, settings: &SqliteSettings) -> String {
    let text = match primary {
        ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => {
            let seconds = settings.busy_timeout.as_secs_f32();
            return match lock_holder::find(&settings.path) {
                Some(holder) => format!(
                    "{holder} holds the write lock, and has not let it go for {seconds} s; end its \
                     transaction"
                ),
                None => format!(
                    "another connection has held the write lock for {seconds} s; end its transaction \
                     (`fuser` on the file shows who has it open)"
                ),
            };
        }
        ffi::SQLITE_FULL => "the disk is full; free space on its file system",
        ffi::SQLITE_IOERR => {
            "the file system reported an error; check the disk, its free space and the kernel's log"
        }
        ffi::SQLITE_READONLY | ffi::SQLITE_PERM | ffi::SQLITE_AUTH => {
            "it cannot be written; let this user write the file, its -wal and -shm files and their \
             directory"
        }
        ffi::SQLITE_CANTOPEN => {
            "let this user read and write the file, its -wal and -shm files and their directory"
        }
        ffi::SQLITE_NOTADB => "the file is not an SQLite database; give another path",
        ffi::SQLITE_CORRUPT => {
            "the file is damaged; look at `sqlite3 FILE 'pragma integrity_check'` and restore a backup"
        }
        ffi::SQLITE_ERROR | ffi::SQLITE_SCHEMA => {
            "its schema is not the expected one; compare it with `event-persister check`"
        }
        _ => "it is tried again",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_only_a_path_in_a_uri() {
        assert_eq!(
            uri(Path::new("/a b/ü?x#y%.db"), Missing::Create),
            "file:///a%20b/%C3%BC%3Fx%23y%25.db?mode=rwc"
        );
    }
}
