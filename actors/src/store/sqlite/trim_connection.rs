//! What only a trimmer asks of a connection.

use diesel::RunQueryDsl as _;

use super::connection::{CACHE_KIB, Connection, Failure};

/// How many KiB of pages a trimmer keeps while nobody writes. It touches pages all over the indexes that
/// do not go by time; with so many in memory a step of 10,000 events holds the lock for two thirds of the
/// time. Twice as many gain nothing more.
const LARGE_CACHE_KIB: u32 = 32_000;
/// After how many pages a commit writes the log back into the file; as SQLite has it.
const CHECKPOINT_PAGES: u32 = 1_000;

impl Connection {
    /// Ends the transaction, but leaves the write-ahead log as it is: a checkpoint within COMMIT does not
    /// hold the lock, but could not be told from what does.
    pub(super) fn commit_only(&mut self) -> Result<(), Failure> {
        self.execute_batch("PRAGMA wal_autocheckpoint = 0")?;
        self.commit()?;
        self.execute_batch(&format!("PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}"))
            .map_err(Failure::Commit)
    }

    /// Writes the write-ahead log back into the file as far as nobody is in the way, while others may
    /// read and write. As after a commit of SQLite's own, the next one makes up for a failure.
    pub(super) fn checkpoint(&mut self) {
        if let Err(failed) = self.execute_batch("PRAGMA wal_checkpoint(PASSIVE)") {
            log::debug!(
                "no checkpoint of {} code={}",
                self.path(),
                failed.code.name()
            );
        }
    }

    /// A number that changes with every commit of another connection.
    pub(super) fn data_version(&mut self) -> Result<i64, Failure> {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::BigInt)]
            data_version: i64,
        }
        let query = || diesel::sql_query("PRAGMA data_version");
        let row: Row = self.run(|connection| query().get_result(connection))?;
        Ok(row.data_version)
    }

    /// Whether to keep more pages in memory than a writer does.
    pub(super) fn keep_many_pages(&mut self, many: bool) -> Result<(), Failure> {
        let kib = if many { LARGE_CACHE_KIB } else { CACHE_KIB };
        Ok(self.execute_batch(&format!("PRAGMA cache_size = -{kib}"))?)
    }
}
