//! The task beside the reads: says that entries are ours, moves the guard, tidies up.
//!
//! While the pipeline is full nobody reads, and what is held must still be held. So this runs on
//! its own, from the first read until the source is closed or dropped; it keeps nothing alive.
//!
//! Each duty has its own turns, time-out and failures: one that is refused or hangs keeps no other
//! from its turn. A user who may not claim entries must not fill the server's memory as well, because
//! the guard stands still.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::{join_all, join4};
use redis::RedisResult;
use tokio::time::{Instant, sleep_until, timeout};

use crate::source::SourceError;
use crate::status::error_chain;

use super::failure;
use super::shared::Shared;
use super::stats::GUARD_ALARM_AFTER;

mod complaints;
mod duties;

use complaints::Complaints;

/// How often the guard is moved at most, and the stream looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a duty may take: longer than any of its commands, of which there may be several.
const DUTY_TIMEOUT: Duration = Duration::from_secs(10);

/// What is done again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    Hold,
    Confirm,
    Look,
    /// This and the next three do something about what was seen.
    Guard,
    Oldest,
    Record,
    Trim,
    Tidy,
}

impl Duty {
    const NUM: usize = Self::Tidy as usize + 1;
    /// Those that have turns of their own.
    const ROUNDS: [Self; 4] = [Self::Hold, Self::Confirm, Self::Look, Self::Tidy];

    /// What is being done, for the error.
    const fn doing(self) -> &'static str {
        match self {
            Self::Hold => "keeping what is held",
            Self::Confirm => "acknowledging once more",
            Self::Look => "looking at the stream and its groups",
            Self::Guard => "moving the trim guard",
            Self::Oldest => "looking for the oldest entry",
            Self::Record => "writing down how much was read",
            Self::Trim => "trimming the stream",
            Self::Tidy => "removing consumers that are gone",
        }
    }

    /// Whether the guard stands still while this fails.
    const fn moves_guard(self) -> bool {
        matches!(self, Self::Look | Self::Guard)
    }
}

/// Runs until the source is closed or gone.
async fn keep(shared: Weak<Shared>) {
    let complaints = Mutex::default();
    let rounds = Duty::ROUNDS.map(|duty| repeat(&shared, duty, &complaints));
    join_all(rounds).await;
}

async fn repeat(shared: &Weak<Shared>, duty: Duty, complaints: &Mutex<Complaints>) {
    let mut due = Instant::now();
    loop {
        sleep_until(due).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let (closed, joined) = {
            let state = shared.lock();
            (state.closed, state.joined_before)
        };
        if closed {
            return;
        }
        // A duty that fails comes again after its own time, not at once.
        due = Instant::now() + shared.time_between(duty);
        if duty == Duty::Look {
            shared.tell_what_is_due();
        }
        // Before the first read has found or made the groups there is nothing to keep.
        if joined {
            shared.fulfil(duty, complaints).await;
        }
    }
}

impl Shared {
    /// Starts the task on the runtime of the caller.
    pub(super) fn start_keeper(self: &Arc<Self>) -> tokio::task::AbortHandle {
        tokio::spawn(keep(Arc::downgrade(self))).abort_handle()
    }

    fn time_between(&self, duty: Duty) -> Duration {
        match duty {
            Duty::Hold | Duty::Confirm => self.settings.heartbeat_every,
            Duty::Tidy => self.settings.tidy_every(),
            Duty::Look | Duty::Guard | Duty::Oldest | Duty::Record | Duty::Trim => LOOK_EVERY,
        }
    }

    async fn fulfil(&self, duty: Duty, complaints: &Mutex<Complaints>) {
        match duty {
            Duty::Hold => drop(self.attend(duty, self.hold(), complaints).await),
            Duty::Confirm => drop(self.attend(duty, self.confirm(), complaints).await),
            Duty::Tidy => drop(self.attend(duty, self.tidy(), complaints).await),
            Duty::Look | Duty::Guard | Duty::Oldest | Duty::Record | Duty::Trim => {
                self.look_after_the_stream(complaints).await;
            }
        }
    }

    /// Looks, and does what follows from it.
    async fn look_after_the_stream(&self, complaints: &Mutex<Complaints>) {
        let Some(sight) = self.attend(Duty::Look, self.look(), complaints).await else {
            return;
        };
        join4(
            self.attend(Duty::Guard, self.move_guard(&sight), complaints),
            self.attend(Duty::Oldest, self.find_oldest(&sight), complaints),
            self.attend(Duty::Record, self.record_read(&sight), complaints),
            self.attend(Duty::Trim, self.trim(&sight), complaints),
        )
        .await;
    }

    /// Does one duty, for so long at most, and says what is to be said of how it went.
    async fn attend<T>(
        &self,
        duty: Duty,
        work: impl Future<Output = RedisResult<T>>,
        complaints: &Mutex<Complaints>,
    ) -> Option<T> {
        let result = timeout(DUTY_TIMEOUT, work)
            .await
            .unwrap_or_else(|_| Err(failure::timed_out("not done within its time")));
        // Every change is complete before anything that could panic.
        let mut complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(done) => {
                self.note_success(duty, &mut complaints);
                Some(done)
            }
            Err(error) => {
                self.note_failure(duty, error, &mut complaints);
                None
            }
        }
    }

    fn note_success(&self, duty: Duty, complaints: &mut Complaints) {
        if duty == Duty::Guard {
            self.stats.saw_guard_error(None);
        }
        if let Some(failures) = complaints.succeeded(duty) {
            log::info!(
                "{} works again failures={failures} redis.server={}",
                duty.doing(),
                self.server
            );
        }
    }

    fn note_failure(&self, duty: Duty, error: redis::RedisError, complaints: &mut Complaints) {
        // A group that has vanished is made again at once, which is told.
        let is_refusal = failure::is_answer(&error) && !failure::has_vanished(&error);
        let aloud = complaints.failed(duty, is_refusal, self.lock().fetch_failed);
        // A refusal of something here must not disturb the reads.
        let error = if failure::leaves_connections_sound(&error) {
            failure::unavailable(&self.server, duty.doing(), error)
        } else {
            self.failed(duty.doing(), error)
        };
        let level = if aloud {
            log::Level::Warn
        } else {
            log::Level::Debug
        };
        log::log!(level, "{}", error_chain(&error));
        if duty.moves_guard() {
            self.note_old_guard(&error, complaints);
        }
    }

    fn note_old_guard(&self, error: &SourceError, complaints: &mut Complaints) {
        let error = error_chain(error);
        self.stats.saw_guard_error(Some(error.clone()));
        let age = self.stats.guard_age().unwrap_or_default();
        if age < GUARD_ALARM_AFTER || !complaints.guard_is_old() {
            return;
        }
        log::error!(
            "the trim guard has not been moved for long: nobody can trim what is persisted, and \
             Redis may run out of memory guard_age_s={} redis.stream={} redis.guard={} error={error}",
            age.as_secs(),
            self.settings.stream,
            self.settings.guard_group
        );
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::advance;

    use super::super::failure::timed_out;
    use super::super::settings::RedisSettings;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_guard_that_was_not_moved_for_long_is_told_of_until_it_is() {
        let shared = Shared::new(RedisSettings::default());
        let complaints = Mutex::default();
        let warned_after = async |time| {
            advance(time).await;
            let failing = async { RedisResult::<()>::Err(timed_out("no answer")) };
            shared.attend(Duty::Look, failing, &complaints).await;
            shared.stats.warnings()
        };
        let without_guard = warned_after(2 * GUARD_ALARM_AFTER).await;
        assert!(without_guard.is_empty(), "{without_guard:?}");
        shared.stats.kept_guard();
        let soon = warned_after(GUARD_ALARM_AFTER / 2).await;
        assert!(soon.is_empty(), "{soon:?}");
        let late = warned_after(GUARD_ALARM_AFTER / 2).await;
        assert!(late[0].contains("not been moved for 60 s"), "{late:?}");
        assert!(late[0].contains("no answer"), "{late:?}");
        assert!(!complaints.lock().unwrap().guard_is_old(), "said already");
        let moving = async {
            shared.stats.kept_guard();
            RedisResult::Ok(())
        };
        shared.attend(Duty::Guard, moving, &complaints).await;
        assert!(shared.stats.warnings().is_empty());
        assert!(complaints.lock().unwrap().guard_is_old(), "to be said anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_duty_that_hangs_ends_in_its_time_and_is_told_of() {
        let shared = Shared::new(RedisSettings::default());
        let complaints = Mutex::default();
        let began = Instant::now();
        for _ in 0..2 {
            let hanging = pending::<RedisResult<()>>();
            assert_eq!(shared.attend(Duty::Hold, hanging, &complaints).await, None);
        }
        assert_eq!(began.elapsed(), 2 * DUTY_TIMEOUT);
        let said_after = complaints.lock().unwrap().succeeded(Duty::Hold);
        assert_eq!(said_after, Some(2));
    }
}
