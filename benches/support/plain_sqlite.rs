//! SQLite as a program without a pipeline would use it, with the settings of the store.

use std::path::Path;

use rusqlite::Connection;

/// All that the store sets for a connection; the size of the page cache is its own too.
const PRAGMAS: &str = "PRAGMA busy_timeout = 4000; PRAGMA synchronous = FULL; \
    PRAGMA foreign_keys = ON; PRAGMA cache_size = -8000; PRAGMA journal_mode = WAL";

pub(crate) fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(PRAGMAS).unwrap();
    connection
}

/// The number that a query gives.
pub(crate) fn number(path: &Path, query: &str) -> usize {
    let number: i64 = open(path).query_row(query, [], |row| row.get(0)).unwrap();
    usize::try_from(number).unwrap()
}

/// Removes a database with the files beside it, if it is there.
pub(crate) fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }
}
