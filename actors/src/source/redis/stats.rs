//! The state of the stream as the source last saw it, for metrics and status.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::source::lock;

/// A guard that was not moved for this long deserves an alarm. Longer than a server takes to restart
/// or to be replaced, which is said when it begins.
pub(super) const GUARD_ALARM_AFTER: Duration = Duration::from_secs(60);

/// A handle on what the source knows about its stream; cheap to clone, for any thread.
#[derive(Debug, Clone, Default)]
pub struct RedisStats {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    status: RedisStatus,
    guard_kept_at: Option<Instant>,
    guard_error: Option<String>,
}

/// The state of the stream as the source last saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisStatus {
    /// Entries that were gone from the stream before they could be read, as far as Redis lets
    /// them be counted. Where it restarted or failed over just before, up to so many.
    pub num_lost: u64,
    /// Entries that were taken over from consumers that had not touched them for too long.
    pub num_claimed: u64,
    /// How often the stream or the group had vanished and was made again.
    pub num_rejoined: u64,
    /// Entries that this consumer was given and that are not acknowledged.
    pub own_pending: u64,
    /// The same of the whole group.
    pub group_pending: u64,
    /// Entries in the stream.
    pub stream_length: u64,
    /// Entries that the group was not given yet; Redis does not always know, and is wrong for a
    /// while after a stream was trimmed.
    pub lag: Option<u64>,
    /// When the oldest entry that is not acknowledged was added, in milliseconds since 1970 by the
    /// server's clock; `None` if there is no such entry.
    pub oldest_millis: Option<u64>,
    /// Where the trim guard stands; `None` without one, `abandoned` if one is there although the
    /// guard is off.
    pub guard_position: Option<String>,
    /// For how long the trim guard has not been moved to where it belongs; `None` without one.
    pub guard_age: Option<Duration>,
    /// Whether the stream is longer than the alarm allows.
    pub alarm: bool,
}

impl RedisStats {
    /// The state as it was last seen.
    pub fn status(&self) -> RedisStatus {
        RedisStatus {
            guard_age: self.guard_age(),
            ..self.seen().status.clone()
        }
    }

    /// Troubles that somebody should look at, although events are stored.
    pub fn warnings(&self) -> Vec<String> {
        let old_guard = self.guard_age().filter(|age| *age >= GUARD_ALARM_AFTER);
        let seen = self.seen();
        let old_guard = old_guard.map(|age| {
            format!(
                "the trim guard has not been moved for {} s, so nobody can trim what is persisted, \
                 and Redis may run out of memory; the last error: {}",
                age.as_secs(),
                seen.guard_error.as_deref().unwrap_or("none")
            )
        });
        let too_long = seen.status.alarm.then(|| {
            format!(
                "the stream has {} entries, more than the alarm allows, and Redis may run out of \
                 memory; see why it is not persisted or not trimmed",
                seen.status.stream_length
            )
        });
        old_guard.into_iter().chain(too_long).collect()
    }

    /// Takes in what was seen, all but the guard's age.
    pub(super) fn update<T>(&self, take_in: impl FnOnce(&mut RedisStatus) -> T) -> T {
        take_in(&mut self.seen().status)
    }

    /// From now on the guard stands where it belongs, or it did until now.
    pub(super) fn kept_guard(&self) {
        self.seen().guard_kept_at = Some(Instant::now());
    }

    /// Why it could not be moved, or that it could.
    pub(super) fn saw_guard_error(&self, error: Option<String>) {
        self.seen().guard_error = error;
    }

    pub(super) fn guard_age(&self) -> Option<Duration> {
        self.seen().guard_kept_at.map(|at| at.elapsed())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }
}
