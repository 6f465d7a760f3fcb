//! Events that are in the tables before anything is measured.

use std::process::Command;

use super::load::Load;
use super::postgres::Database;
use super::reference::Way;
use super::{copy, reference};

/// The connections that put them there.
const NUM_CONNECTIONS: usize = 2;
/// So many at a time, which are in memory.
pub(crate) const STEP: usize = 100_000;

/// Takes the same events into all of these databases.
pub(crate) fn fill(databases: &[&Database], load: &mut Load, num_events: usize) {
    let mut num_left = num_events;
    while num_left > 0 {
        let num = STEP.min(num_left);
        let batches = copy::encode(&load.take(num));
        for database in databases {
            reference::run(database, Way::Copy, NUM_CONNECTIONS, &batches);
        }
        num_left -= num;
    }
}

/// Lets the server write in its own time while this is done, since nobody misses what a crash takes. All of it is on
/// the disk in the end.
pub(crate) fn unsynced(database: &Database, work: impl FnOnce()) {
    let settings = [
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("max_wal_size", "'8GB'"),
    ];
    for (setting, value) in settings {
        database.execute(&format!("ALTER SYSTEM SET {setting} = {value}"));
    }
    database.execute("SELECT pg_reload_conf()");
    work();
    for (setting, _) in settings {
        database.execute(&format!("ALTER SYSTEM RESET {setting}"));
    }
    database.execute("SELECT pg_reload_conf()");
    database.execute("CHECKPOINT");
    assert!(Command::new("sync").status().unwrap().success());
}
