//! How large the write-ahead log has become, and which readers keep it from being given back.
//!
//! After a checkpoint the next transaction begins the log anew, and what it has beyond [`LIMIT`] is given back
//! to the file system. A reader whose transaction began before prevents that: the log grows by all that is
//! written. Such a reader holds its lock each time when it is looked at; others let theirs go.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::lock_holder::{self, Holder};
use crate::lock::lock;

/// The bytes that a log keeps when it begins anew. A usual one is smaller: the largest batches, and steps of
/// retention, write some tens of MiB.
pub(super) const LIMIT: u64 = 32 * MIB;

const MIB: u64 = 1 << 20;

/// How long a reader may hold its lock before it is named.
const NAMED_AFTER: Duration = Duration::from_secs(10);

const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct LogWatch(Mutex<Option<Large>>);

#[derive(Debug)]
struct Large {
    since: Instant,
    looked: Instant,
    num_bytes: u64,
    readers: Vec<Holder>,
    is_told: bool,
}

impl Large {
    /// Names the readers that keep it large, once that is certain.
    fn warning(&self, now: Instant) -> Option<String> {
        let lasted = now.saturating_duration_since(self.since);
        if lasted < NAMED_AFTER || self.readers.is_empty() {
            return None;
        }
        let pinned = pinned(self.num_bytes, &self.readers);
        Some(format!(
            "{pinned}; end that transaction, and the next events give the log back"
        ))
    }
}

pub(super) fn pinned(num_bytes: u64, readers: &[Holder]) -> String {
    let readers: Vec<String> = readers.iter().map(ToString::to_string).collect();
    format!(
        "the write-ahead log has {} MiB and grows with all that is written, since an open read \
         transaction keeps it: {}",
        num_bytes / MIB,
        readers.join(", ")
    )
}

impl LogWatch {
    /// Looks at the log of a database, if that was not done just now. It takes one question to the file
    /// system, and more only while the log is large.
    pub(super) fn look(&self, database: &Path) {
        let now = Instant::now();
        let mut state = lock(&self.0);
        if (state.as_ref()).is_some_and(|large| now < large.looked + LOOK_EVERY) {
            return;
        }
        let num_bytes = num_bytes(database);
        let seen = if num_bytes > LIMIT {
            Some(lock_holder::readers(database))
        } else {
            None
        };
        if let Some(said) = note(&mut state, num_bytes, seen, now) {
            let path = database.display();
            match said {
                Said::Pinned(warning) => log::warn!("{warning} store.path={path}"),
                Said::Free => log::info!("the write-ahead log is given back store.path={path}"),
            }
        }
    }

    pub(super) fn warning(&self) -> Option<String> {
        let state = lock(&self.0);
        state.as_ref()?.warning(Instant::now())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    Pinned(String),
    Free,
}

/// Takes in what was seen: readers of a log that is large, or none of one that is not.
fn note(
    state: &mut Option<Large>,
    num_bytes: u64,
    seen: Option<Vec<Holder>>,
    now: Instant,
) -> Option<Said> {
    let Some(seen) = seen else {
        let before = state.take()?;
        return before.is_told.then_some(Said::Free);
    };
    let large = state.get_or_insert_with(|| Large {
        since: now,
        looked: now,
        num_bytes,
        readers: seen.clone(),
        is_told: false,
    });
    large.looked = now;
    large.num_bytes = num_bytes;
    large.readers.retain(|reader| seen.contains(reader));
    if large.readers.is_empty() {
        // These readers began no earlier than now.
        large.readers = seen;
        large.since = now;
    }
    let warning = large.warning(now).filter(|_| !large.is_told)?;
    large.is_told = true;
    Some(Said::Pinned(warning))
}

/// How large the log of a database is; nothing where there is none.
pub(super) fn num_bytes(database: &Path) -> u64 {
    // SQLite puts its files beside what a symbolic link points to. Neither is opened: see the module
    // `lock_holder`.
    let database = std::fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let mut log = database.into_os_string();
    log.push("-wal");
    std::fs::metadata(PathBuf::from(log)).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readers(pids: &[u32]) -> Option<Vec<Holder>> {
        Some(pids.iter().map(|pid| Holder::new(*pid)).collect())
    }

    #[test]
    fn only_a_reader_that_stays_is_named_and_said_once() {
        let start = Instant::now();
        let mut state = None;
        let mut look = |seconds, pids: &[u32]| {
            let now = start + Duration::from_secs(seconds);
            let said = note(&mut state, 100 * MIB, readers(pids), now);
            let warning = state.as_ref().and_then(|large| large.warning(now));
            (said.is_some(), warning)
        };
        assert_eq!(look(0, &[1, 2]), (false, None));
        assert_eq!(look(9, &[2, 3]), (false, None));
        let (said, warning) = look(11, &[2]);
        let warning = warning.unwrap();
        assert!(said && warning.contains("process 2"), "{warning}");
        assert!(warning.contains("100 MiB"), "{warning}");
        assert!(!look(12, &[2, 5]).0, "said already");
        assert_eq!(look(13, &[5]), (false, None), "another one");
        assert_eq!(look(14, &[]), (false, None));
        assert_eq!(look(40, &[]), (false, None), "nobody reads");
    }

    #[test]
    fn readers_that_come_and_go_are_not_named() {
        let start = Instant::now();
        let mut state = None;
        for second in 0..100 {
            let now = start + Duration::from_secs(u64::from(second));
            note(&mut state, 100 * MIB, readers(&[second, second + 1]), now);
            assert_eq!(state.as_ref().unwrap().warning(now), None);
        }
    }

    #[test]
    fn a_log_that_is_small_again_is_told_where_it_was_told_of() {
        let start = Instant::now();
        let mut state = None;
        note(&mut state, 100 * MIB, readers(&[1]), start);
        assert_eq!(note(&mut state, MIB, None, start), None);
        note(&mut state, 100 * MIB, readers(&[1]), start);
        let later = start + 2 * NAMED_AFTER;
        let said = note(&mut state, 200 * MIB, readers(&[1]), later);
        assert!(matches!(said, Some(Said::Pinned(_))), "{said:?}");
        assert_eq!(note(&mut state, MIB, None, later), Some(Said::Free));
    }
}
