//! The task beside the reads: says that entries are ours, moves the guard, tidies up.
//!
//! While the pipeline is full nobody reads, and the entries in flight must still be marked as ours. So this
//! runs on its own, from the first read until the source is closed or dropped; it keeps nothing alive.
//!
//! Each duty has its own turns, time-out and failures: one that is refused or hangs keeps no other
//! from its turn. Where the user may not claim entries the guard must move all the same, or the server's
//! memory would fill up as well.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::{join_all, join4};
use redis::RedisResult;
use tokio::time::{Instant, sleep_until, timeout};

use crate::source::SourceError;
use crate::status::error_chain;

use super::failure;
use super::member::Member;
use super::stats::GUARD_ALARM_AFTER;

mod duties;
mod failure_log;

use failure_log::FailureLog;

/// How often the guard is moved at most, and the stream looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a duty may take: longer than any of its commands, of which there may be several.
const DUTY_TIMEOUT: Duration = Duration::from_secs(10);

/// A task that comes again and again.
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

    /// For the error: "… failed".
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
async fn keep(member: Weak<Member>) {
    let failures = Mutex::default();
    let rounds = Duty::ROUNDS.map(|duty| repeat(&member, duty, &failures));
    join_all(rounds).await;
}

async fn repeat(member: &Weak<Member>, duty: Duty, failures: &Mutex<FailureLog>) {
    let mut due = Instant::now();
    loop {
        sleep_until(due).await;
        let Some(member) = member.upgrade() else {
            return;
        };
        let (is_closed, has_joined) = {
            let reading = member.reading();
            (reading.is_closed, reading.had_joined)
        };
        if is_closed {
            return;
        }
        // A duty that fails comes again after its own time, not at once.
        due = Instant::now() + member.time_between(duty);
        if duty == Duty::Look {
            member.tell_what_is_due();
        }
        // Before the first read has found or made the groups there is nothing to keep.
        if has_joined {
            member.run(duty, failures).await;
        }
    }
}

impl Member {
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

    async fn run(&self, duty: Duty, failures: &Mutex<FailureLog>) {
        match duty {
            Duty::Hold => drop(self.run_duty(duty, self.hold(), failures).await),
            Duty::Confirm => drop(self.run_duty(duty, self.confirm(), failures).await),
            Duty::Tidy => drop(self.run_duty(duty, self.tidy(), failures).await),
            Duty::Look | Duty::Guard | Duty::Oldest | Duty::Record | Duty::Trim => {
                self.watch_stream(failures).await;
            }
        }
    }

    /// Looks, and does what follows from it.
    async fn watch_stream(&self, failures: &Mutex<FailureLog>) {
        let Some(snapshot) = self
            .run_duty(Duty::Look, self.look_or_rejoin(), failures)
            .await
        else {
            return;
        };
        join4(
            self.run_duty(Duty::Guard, self.move_guard(&snapshot), failures),
            self.run_duty(Duty::Oldest, self.find_oldest(&snapshot), failures),
            self.run_duty(Duty::Record, self.record_read(&snapshot), failures),
            self.run_duty(Duty::Trim, self.trim(&snapshot), failures),
        )
        .await;
    }

    /// Runs one duty, for so long at most, and logs how it went where that is news.
    async fn run_duty<T>(
        &self,
        duty: Duty,
        work: impl Future<Output = RedisResult<T>>,
        failures: &Mutex<FailureLog>,
    ) -> Option<T> {
        let result = timeout(DUTY_TIMEOUT, work)
            .await
            .unwrap_or_else(|_| Err(failure::timed_out("not done within its time")));
        // Every change is complete before anything that could panic.
        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(done) => {
                self.note_success(duty, &mut failures);
                Some(done)
            }
            Err(error) => {
                self.note_failure(duty, error, &mut failures);
                None
            }
        }
    }

    fn note_success(&self, duty: Duty, failures: &mut FailureLog) {
        if duty == Duty::Guard {
            self.stats.saw_guard_error(None);
        }
        if let Some(failures) = failures.succeeded(duty) {
            log::info!(
                "{} works again failures={failures} redis.server={}",
                duty.doing(),
                self.server
            );
        }
    }

    fn note_failure(&self, duty: Duty, error: redis::RedisError, failures: &mut FailureLog) {
        // A group that has vanished is made again at once, which is logged.
        let is_refusal = failure::is_answer(&error) && !failure::has_vanished(&error);
        let aloud = failures.failed(duty, is_refusal, self.reading().fetch_failed);
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
            self.note_old_guard(&error, failures);
        }
    }

    fn note_old_guard(&self, error: &SourceError, failures: &mut FailureLog) {
        let error = error_chain(error);
        self.stats.saw_guard_error(Some(error.clone()));
        let age = self.stats.guard_age().unwrap_or_default();
        if age < GUARD_ALARM_AFTER || !failures.guard_is_old() {
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
        let member = Member::new(RedisSettings::default());
        let failures = Mutex::default();
        let warned_after = async |time| {
            advance(time).await;
            let failing = async { RedisResult::<()>::Err(timed_out("no answer")) };
            member.run_duty(Duty::Look, failing, &failures).await;
            member.stats.warnings()
        };
        let without_guard = warned_after(2 * GUARD_ALARM_AFTER).await;
        assert!(without_guard.is_empty(), "{without_guard:?}");
        member.stats.kept_guard();
        let soon = warned_after(GUARD_ALARM_AFTER / 2).await;
        assert!(soon.is_empty(), "{soon:?}");
        let late = warned_after(GUARD_ALARM_AFTER / 2).await;
        assert!(late[0].contains("not been moved for 60 s"), "{late:?}");
        assert!(late[0].contains("no answer"), "{late:?}");
        assert!(!failures.lock().unwrap().guard_is_old(), "said already");
        let moving = async {
            member.stats.kept_guard();
            RedisResult::Ok(())
        };
        member.run_duty(Duty::Guard, moving, &failures).await;
        assert!(member.stats.warnings().is_empty());
        assert!(failures.lock().unwrap().guard_is_old(), "to be said anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_duty_that_hangs_ends_in_its_time_and_is_told_of() {
        let member = Member::new(RedisSettings::default());
        let failures = Mutex::default();
        let began = Instant::now();
        for _ in 0..2 {
            let hanging = pending::<RedisResult<()>>();
            assert_eq!(member.run_duty(Duty::Hold, hanging, &failures).await, None);
        }
        assert_eq!(began.elapsed(), 2 * DUTY_TIMEOUT);
        let said_after = failures.lock().unwrap().succeeded(Duty::Hold);
        assert_eq!(said_after, Some(2));
    }
}
