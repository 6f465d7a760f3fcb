//! What would stop or hurt a store in this file, looked for without making anything.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::CreateSchema;
use super::audit;
use super::connection::{Connection, Failure, Missing, Place};
use super::{lock_holder, log_size, schema};
use crate::finding::Finding;

mod file_system;

pub(super) fn inspect(place: &Place, create: CreateSchema) -> Vec<Finding> {
    let path = resolved(&place.path);
    let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut findings = Vec::new();
    if directory.is_dir() {
        findings.push(file_system::kind(&directory));
        findings.push(file_system::space(&directory));
        findings.push(file_system::writable(&path, &directory));
    }
    if !path.exists() && create == CreateSchema::Everything && directory.is_dir() {
        let what = format!("{} is not there yet; `serve` makes it", path.display());
        findings.push(Finding::ok("sqlite.file", what));
        return findings;
    }
    let missing = match create {
        CreateSchema::OwnOnly => Missing::Await,
        CreateSchema::Everything | CreateSchema::Nothing => Missing::Refuse,
    };
    match Connection::open(place, missing) {
        Ok(mut connection) => {
            let what = path.display().to_string();
            findings.push(Finding::ok("sqlite.file", what));
            look_inside(&mut connection, create, &mut findings);
            findings.push(log(&path));
        }
        Err(error) => findings.push(Finding::of_error("sqlite.file", &error)),
    }
    findings
}

/// SQLite puts its files beside what a symbolic link points to.
fn resolved(path: &Path) -> PathBuf {
    std::fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .unwrap_or_else(|_| path.to_owned())
}

fn look_inside(connection: &mut Connection, create: CreateSchema, findings: &mut Vec<Finding>) {
    findings.push(lock(connection));
    let shape = schema::look(connection, create == CreateSchema::OwnOnly);
    let newest = shape.is_ok().then(|| audit::newest(connection));
    findings.push(match shape {
        Ok(()) => Finding::ok(
            "sqlite.schema",
            "all columns are there that are written, and no other must be",
        ),
        Err(Failure::Unfit(_)) if create == CreateSchema::Everything && is_empty(connection) => {
            Finding::ok(
                "sqlite.schema",
                "there are no tables yet; `serve` makes them",
            )
        }
        Err(failure) => of_failure(connection, "sqlite.schema", "read", failure),
    });
    findings.extend(newest.map(|newest| match newest {
        Ok(newest) => newest.judge("sqlite.unreadable"),
        Err(failure) => of_failure(connection, "sqlite.unreadable", "read", failure),
    }));
    findings.push(match connection.journal_mode("PRAGMA journal_mode") {
        Ok(mode) => of_journal(&mode),
        Err(failure) => of_failure(connection, "sqlite.wal", "read", failure),
    });
    findings.push(match schema::missing_indexes(connection) {
        Ok(missing) => of_indexes(&missing),
        Err(failure) => of_failure(connection, "sqlite.indexes", "read", failure),
    });
    findings.push(match schema::newer_migrations(connection) {
        Ok(newer) => Finding::of_newer_migrations("sqlite.migrations", &newer),
        Err(failure) => of_failure(connection, "sqlite.migrations", "read", failure),
    });
}

fn of_failure(connection: &Connection, id: &'static str, doing: &str, failure: Failure) -> Finding {
    Finding::of_error(id, &connection.store_error(doing, failure))
}

/// Whether there is no table of anybody.
fn is_empty(connection: &mut Connection) -> bool {
    schema::is_empty(connection).unwrap_or(false)
}

/// Takes the write lock and gives it back.
fn lock(connection: &mut Connection) -> Finding {
    const ID: &str = "sqlite.lock";
    match connection.begin().and_then(|()| connection.roll_back()) {
        Ok(()) => Finding::ok(ID, "nobody keeps us from writing"),
        Err(failure) => of_failure(connection, ID, "write to", failure),
    }
}

/// Looks twice where the log is large: readers that come and go keep it from nobody.
fn log(path: &Path) -> Finding {
    const ID: &str = "sqlite.log";
    const BETWEEN: Duration = Duration::from_secs(1);
    let num_bytes = log_size::num_bytes(path);
    let what = format!("the write-ahead log has {} MiB", num_bytes >> 20);
    if num_bytes <= log_size::LIMIT {
        return Finding::ok(ID, what);
    }
    let mut readers = lock_holder::readers(path);
    if !readers.is_empty() {
        std::thread::sleep(BETWEEN);
        let still = lock_holder::readers(path);
        readers.retain(|reader| still.contains(reader));
    }
    if readers.is_empty() {
        return Finding::ok(ID, format!("{what}; the next events give it back"));
    }
    let readers: Vec<String> = readers.iter().map(ToString::to_string).collect();
    Finding::warning(
        ID,
        format!(
            "{what} and grows with all that is written, since an open read transaction keeps it: {}",
            readers.join(", ")
        ),
        "end that transaction; the next events then give the log back",
    )
}

fn of_journal(mode: &str) -> Finding {
    const ID: &str = "sqlite.wal";
    if mode == "wal" {
        return Finding::ok(ID, "writers and readers do not wait for each other");
    }
    Finding::warning(
        ID,
        format!(
            "no write-ahead log is possible here (journal_mode is {mode}): writers and readers wait \
             for each other"
        ),
        "put the file on a local file system",
    )
}

fn of_indexes(missing: &[String]) -> Finding {
    const ID: &str = "sqlite.indexes";
    if missing.is_empty() {
        return Finding::ok(ID, "all that is looked for has an index");
    }
    let create: Vec<String> = missing
        .iter()
        .filter_map(|name| name.split_once('.'))
        .map(|(table, column)| format!("CREATE INDEX ix_{table}__{column} ON {table} ({column})"))
        .collect();
    Finding::warning(
        ID,
        format!(
            "no index begins with {}: every step of retention reads the whole table",
            missing.join(", ")
        ),
        create.join("; "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn only_a_write_ahead_log_lets_readers_be() {
        assert_eq!(of_journal("wal").severity, Severity::Ok);
        assert_eq!(of_journal("delete").severity, Severity::Warning);
    }
}
