//! Looks for whatever would stop or hurt a store in this file, and makes nothing.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::audit;
use crate::finding::Finding;
use crate::store::CreateSchema;
use crate::store::sqlite::connection::{Connection, Failure, Missing};
use crate::store::sqlite::{SqliteSettings, lock_holder, log_size, schema};

mod file_system;

/// Enough for some gigabytes; `check` waits for no longer than half a minute.
const LOOKS_THROUGH_FOR: Duration = Duration::from_secs(10);

pub(super) fn inspect(settings: &SqliteSettings) -> Vec<Finding> {
    let create = settings.create_schema;
    let path = resolved(&settings.path);
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
    match Connection::open(settings, missing) {
        Ok(mut connection) => {
            let what = path.display().to_string();
            findings.push(Finding::ok("sqlite.file", what));
            look_inside(&mut connection, create, &mut findings);
            drop(connection);
            findings.push(log(&path));
            findings.push(integrity(settings));
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
    let mut is_keyed = true;
    let mut is_readable = false;
    let is_prefects = create == CreateSchema::OwnOnly;
    match schema::faults(connection, CreateSchema::Nothing, is_prefects) {
        Ok(_) if create == CreateSchema::Everything && schema::is_empty(connection) => {
            let what = "there are no tables yet; `serve` makes them";
            findings.push(Finding::ok(schema::SCHEMA, what));
        }
        Ok(faults) => {
            let is_faulty = |id| faults.iter().any(|fault| fault.id == id);
            is_keyed = !is_faulty(schema::INDEXES);
            is_readable = !is_faulty(schema::SCHEMA);
            if is_readable {
                let what = "all columns are there that are written, and no other must be";
                findings.push(Finding::ok(schema::SCHEMA, what));
            }
            findings.extend(faults);
        }
        Err(failure) => findings.push(of_failure(connection, schema::SCHEMA, "read", failure)),
    }
    let answer = schema::triggers(connection).map(|triggers| of_triggers(&triggers));
    findings.push(answered(connection, "sqlite.triggers", answer));
    if is_readable {
        let answer = audit::newest(connection).map(|newest| newest.judge("sqlite.unreadable"));
        findings.push(answered(connection, "sqlite.unreadable", answer));
        let answer = schema::num_without_time(connection).map(of_times);
        findings.push(answered(connection, TIMES, answer));
    }
    let answer = connection
        .journal_mode("PRAGMA journal_mode")
        .map(|mode| of_journal(&mode));
    findings.push(answered(connection, "sqlite.wal", answer));
    match schema::missing_indexes(connection) {
        // A key that is missing is told already.
        Ok(missing) if missing.is_empty() && !is_keyed => {}
        Ok(missing) => findings.push(of_indexes(&missing)),
        Err(failure) => findings.push(of_failure(connection, schema::INDEXES, "read", failure)),
    }
    let answer = schema::newer_migrations(connection)
        .map(|newer| Finding::of_newer_migrations("sqlite.migrations", &newer));
    findings.push(answered(connection, "sqlite.migrations", answer));
}

fn answered(
    connection: &Connection,
    id: &'static str,
    answer: Result<Finding, Failure>,
) -> Finding {
    answer.unwrap_or_else(|failure| of_failure(connection, id, "read", failure))
}

fn of_failure(connection: &Connection, id: &'static str, doing: &str, failure: Failure) -> Finding {
    Finding::of_error(id, &connection.store_error(doing, failure))
}

/// Looks through the whole file, for so long at most. It is not among what a service looks at when it
/// starts: that it is large is no reason to start late.
fn integrity(settings: &SqliteSettings) -> Finding {
    const ID: &str = "sqlite.integrity";
    let path = settings.path.display().to_string();
    let by_hand = format!("sqlite3 {path} 'PRAGMA quick_check'");
    let (sender, receiver) = mpsc::channel();
    let settings = settings.clone();
    // Where it takes too long it goes on until its process ends, and keeps nobody from anything.
    let looking = std::thread::Builder::new().spawn(move || {
        let looked = Connection::open(&settings, Missing::Refuse).and_then(|mut connection| {
            let damage = schema::damage(&mut connection);
            damage.map_err(|failure| connection.store_error("look through", failure))
        });
        // Nobody may be waiting any more.
        drop(sender.send(looked));
    });
    if let Err(error) = looking {
        let what = format!("it cannot be looked at whether the file is whole ({error})");
        return Finding::warning(ID, what, format!("run {by_hand}"));
    }
    let damage = match receiver.recv_timeout(LOOKS_THROUGH_FOR) {
        Ok(Ok(None)) => return Finding::ok(ID, "every page is what it should be"),
        Ok(Ok(Some(damage))) => damage,
        Ok(Err(error)) => return Finding::of_error(ID, &error),
        Err(_) => {
            let within = LOOKS_THROUGH_FOR.as_secs();
            let what =
                format!("no damage was found within {within} s; {by_hand} looks at the rest");
            return Finding::ok(ID, what);
        }
    };
    Finding::error(
        ID,
        format!("the file is damaged ({damage})"),
        format!(
            "stop what writes to it and copy it; then sqlite3 {path} .recover | sqlite3 whole.db, or take a \
             backup, and see to the disk"
        ),
    )
}

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
    Finding::warning(
        ID,
        log_size::pinned(num_bytes, &readers),
        "end that transaction; the next events then give the log back",
    )
}

fn of_triggers(triggers: &[String]) -> Finding {
    const ID: &str = "sqlite.triggers";
    if triggers.is_empty() {
        return Finding::ok(ID, "no trigger has a say in what is inserted or deleted");
    }
    Finding::warning(
        ID,
        format!(
            "triggers have a say in what is inserted or deleted ({}): what they refuse is not stored, or \
             does not leave",
            triggers.join(", ")
        ),
        "see that they are meant, and quick; if not: DROP TRIGGER",
    )
}

const TIMES: &str = "sqlite.times";

fn of_times(num_without: i64) -> Finding {
    if num_without == 0 {
        return Finding::ok(TIMES, "every time is a text");
    }
    Finding::warning(
        TIMES,
        format!(
            "{num_without} rows of events and event_resources have a number or bytes as their time: retention \
             never removes them"
        ),
        "SELECT id, occurred FROM events WHERE typeof(occurred) <> 'text' lists those of events; write each as \
         'YYYY-MM-DD HH:MM:SS.ffffff' in UTC, or delete it, and see to the program that wrote it",
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
