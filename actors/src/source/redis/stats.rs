//! The state of the stream as the source last saw it, for metrics and status.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A guard that was not moved for this long deserves an alarm. Longer than a server takes to restart
/// or to be replaced, which is said when it begins.
pub(super) const GUARD_ALARM_AFTER: Duration = Duration::from_secs(60);

/// A handle on what the source knows about its stream; cheap to clone, for any thread.
#[derive(Debug, Clone, Default)]
pub struct RedisStats {
    shared: Arc<SharedStats>,
}

#[derive(Debug, Default)]
struct SharedStats {
    lost: AtomicU64,
    claimed: AtomicU64,
    rejoined: AtomicU64,
    view: Mutex<StreamView>,
}

#[derive(Debug, Clone, Default)]
struct StreamView {
    own_pending: u64,
    group_pending: u64,
    length: u64,
    lag: Option<u64>,
    oldest_millis: Option<u64>,
    guard_position: Option<String>,
    guard_kept_at: Option<Instant>,
    guard_error: Option<String>,
    alarm: bool,
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
        let view = self.view().clone();
        RedisStatus {
            num_lost: self.shared.lost.load(Ordering::Relaxed),
            num_claimed: self.shared.claimed.load(Ordering::Relaxed),
            num_rejoined: self.shared.rejoined.load(Ordering::Relaxed),
            own_pending: view.own_pending,
            group_pending: view.group_pending,
            stream_length: view.length,
            lag: view.lag,
            oldest_millis: view.oldest_millis,
            guard_position: view.guard_position,
            guard_age: view.guard_kept_at.map(|at| at.elapsed()),
            alarm: view.alarm,
        }
    }

    /// Troubles that somebody should look at, although events are stored.
    pub fn warnings(&self) -> Vec<String> {
        let view = self.view();
        let age = view.guard_kept_at.map(|at| at.elapsed());
        let old_guard = age.filter(|age| *age >= GUARD_ALARM_AFTER).map(|age| {
            format!(
                "the trim guard has not been moved for {} s, so nobody can trim what is persisted, \
                 and Redis may run out of memory; the last error: {}",
                age.as_secs(),
                view.guard_error.as_deref().unwrap_or("none")
            )
        });
        let too_long = view.alarm.then(|| {
            format!(
                "the stream has {} entries, more than the alarm allows, and Redis may run out of \
                 memory; see why it is not persisted or not trimmed",
                view.length
            )
        });
        old_guard.into_iter().chain(too_long).collect()
    }

    pub(super) fn lost(&self, num: usize) {
        let num = u64::try_from(num).unwrap_or(u64::MAX);
        self.shared.lost.fetch_add(num, Ordering::Relaxed);
    }

    pub(super) fn claimed(&self, num: usize) {
        let num = u64::try_from(num).unwrap_or(u64::MAX);
        self.shared.claimed.fetch_add(num, Ordering::Relaxed);
    }

    pub(super) fn rejoined(&self) {
        self.shared.rejoined.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn saw_pending(&self, own: u64, group: u64) {
        let mut view = self.view();
        view.own_pending = own;
        view.group_pending = group;
    }

    pub(super) fn saw_oldest(&self, millis: Option<u64>) {
        self.view().oldest_millis = millis;
    }

    /// Returns whether the alarm has changed.
    pub(super) fn saw_stream(&self, length: u64, lag: Option<u64>, alarm: bool) -> bool {
        let mut view = self.view();
        view.length = length;
        view.lag = lag;
        let changed = view.alarm != alarm;
        view.alarm = alarm;
        changed
    }

    /// Returns whether it stands elsewhere than before.
    pub(super) fn saw_guard(&self, position: Option<String>) -> bool {
        let mut view = self.view();
        let changed = view.guard_position != position;
        view.guard_position = position;
        changed
    }

    /// From now on the guard stands where it belongs, or it did until now.
    pub(super) fn kept_guard(&self) {
        self.view().guard_kept_at = Some(Instant::now());
    }

    /// Why it could not be moved, or that it could.
    pub(super) fn saw_guard_error(&self, error: Option<String>) {
        self.view().guard_error = error;
    }

    /// For how long it has not been moved to where it belongs.
    pub(super) fn guard_age(&self) -> Option<Duration> {
        self.view().guard_kept_at.map(|at| at.elapsed())
    }

    fn view(&self) -> MutexGuard<'_, StreamView> {
        // Every change is complete before anything that could panic.
        self.shared
            .view
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
