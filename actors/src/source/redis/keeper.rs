//! The task beside the reads: says that entries are ours, moves the guard, tidies up.
//!
//! It runs from the first read until the source is closed or dropped, and keeps nothing alive: while the
//! pipeline is full nobody reads, and entries in flight must be marked as ours all the same.
//!
//! Each duty has its own turns, time-out and failures: one that is refused or hangs keeps no other
//! from its turn. Where the user may not claim entries the guard must still move, or the server's
//! memory would fill up as well.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{join, join_all, join5, select};
use redis::RedisResult;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::source::SourceError;
use crate::status::error_chain;

use super::failure;
use super::member::Member;
use super::sentinel::hints;
use super::stats::GUARD_ALARM_AFTER;

mod duties;
mod failure_log;

pub(super) use failure_log::FailureLog;

/// How often the guard is moved at most, and the stream looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often the sentinels are asked: longer reads from an old master for as long, shorter costs them more.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// How long a duty may take: longer than any of its commands, of which there may be several.
const DUTY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    Hold,
    Confirm,
    Look,
    /// This and the next four do something about what was seen.
    Guard,
    Oldest,
    Record,
    Trim,
    Agree,
    /// Where sentinels say who the master is.
    Follow,
    Tidy,
}

impl Duty {
    const NUM: usize = Self::Tidy as usize + 1;
    /// Those that have turns of their own.
    const ROUNDS: [Self; 5] = [
        Self::Hold,
        Self::Confirm,
        Self::Look,
        Self::Follow,
        Self::Tidy,
    ];

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
            Self::Agree => "agreeing on the primary of the database",
            Self::Follow => "asking the sentinels for the master",
            Self::Tidy => "removing consumers that are gone",
        }
    }

    /// Whether the guard stands still while this fails.
    const fn moves_guard(self) -> bool {
        matches!(self, Self::Look | Self::Guard)
    }
}

async fn keep(member: Weak<Member>) {
    // A sentinel says that there is another master.
    let hint = Notify::new();
    let duties = join_all(Duty::ROUNDS.map(|duty| repeat(&member, duty, &hint)));
    join(duties, hints::listen(&member, &hint)).await;
}

async fn repeat(member: &Weak<Member>, duty: Duty, hint: &Notify) {
    let mut due = Instant::now();
    loop {
        if duty == Duty::Follow {
            select(pin!(sleep_until(due)), pin!(hint.notified())).await;
        } else {
            sleep_until(due).await;
        }
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
        if has_joined || duty == Duty::Follow {
            member.run(duty).await;
        }
        if duty == Duty::Follow {
            member.read_old_masters();
        }
    }
}

impl Member {
    pub(super) fn start_keeper(self: &Arc<Self>) -> tokio::task::AbortHandle {
        tokio::spawn(keep(Arc::downgrade(self))).abort_handle()
    }

    fn time_between(&self, duty: Duty) -> Duration {
        match duty {
            Duty::Hold | Duty::Confirm => self.settings.heartbeat_every,
            Duty::Tidy => self.settings.tidy_every(),
            Duty::Follow => FOLLOW_EVERY,
            Duty::Look | Duty::Guard | Duty::Oldest | Duty::Record | Duty::Trim | Duty::Agree => {
                LOOK_EVERY
            }
        }
    }

    async fn run(&self, duty: Duty) {
        match duty {
            Duty::Hold => drop(self.run_duty(duty, self.hold()).await),
            Duty::Confirm => drop(self.run_duty(duty, self.confirm()).await),
            Duty::Tidy => drop(self.run_duty(duty, self.tidy()).await),
            Duty::Follow => drop(self.run_duty(duty, self.connections.follow()).await),
            Duty::Look | Duty::Guard | Duty::Oldest | Duty::Record | Duty::Trim | Duty::Agree => {
                self.watch_stream().await;
            }
        }
    }

    async fn watch_stream(&self) {
        let looking = self.run_duty(Duty::Look, self.look_or_rejoin());
        if let Some(snapshot) = looking.await {
            join5(
                self.run_duty(Duty::Guard, self.move_guard(&snapshot)),
                self.run_duty(Duty::Oldest, self.find_oldest(&snapshot)),
                self.run_duty(Duty::Record, self.record_read(&snapshot)),
                self.run_duty(Duty::Trim, self.trim(&snapshot)),
                self.run_duty(Duty::Agree, self.agree_on_primary(&snapshot)),
            )
            .await;
        }
    }

    /// Runs one duty, for so long at most, and logs how it went where that is news.
    async fn run_duty<T>(
        &self,
        duty: Duty,
        work: impl Future<Output = RedisResult<T>>,
    ) -> Option<T> {
        let result = timeout(DUTY_TIMEOUT, work)
            .await
            .unwrap_or_else(|_| Err(failure::timed_out("not done within its time")));
        match result {
            Ok(done) => {
                self.note_success(duty);
                Some(done)
            }
            Err(error) => {
                self.note_failure(duty, error);
                None
            }
        }
    }

    fn note_success(&self, duty: Duty) {
        if duty == Duty::Guard {
            self.stats.saw_guard_error(None);
        }
        let failures = self.keeping().failures.succeeded(duty);
        if let Some(failures) = failures {
            log::info!(
                "{} works again failures={failures} redis.server={}",
                duty.doing(),
                self.server
            );
        }
    }

    fn note_failure(&self, duty: Duty, error: redis::RedisError) {
        // A group that has vanished is made again at once, which is logged.
        let is_refusal = failure::is_answer(&error) && !failure::has_vanished(&error);
        let fetch_failed = self.reading().fetch_failed;
        let aloud = (self.keeping().failures).failed(duty, is_refusal, fetch_failed);
        // A refusal of something here must not disturb the reads.
        let is_elsewhere = duty == Duty::Follow;
        let error = if is_elsewhere || failure::leaves_connections_sound(&error) {
            self.connections.unavailable(duty.doing(), error)
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
            self.note_old_guard(&error);
        }
    }

    fn note_old_guard(&self, error: &SourceError) {
        let error = error_chain(error);
        self.stats.saw_guard_error(Some(error.clone()));
        let age = self.stats.guard_age().unwrap_or_default();
        if age < GUARD_ALARM_AFTER || !self.keeping().failures.guard_is_old() {
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
        let warned_after = async |time| {
            advance(time).await;
            let failing = async { RedisResult::<()>::Err(timed_out("no answer")) };
            member.run_duty(Duty::Look, failing).await;
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
        assert!(!member.keeping().failures.guard_is_old(), "said already");
        let moving = async {
            member.stats.kept_guard();
            RedisResult::Ok(())
        };
        member.run_duty(Duty::Guard, moving).await;
        assert!(member.stats.warnings().is_empty());
        assert!(member.keeping().failures.guard_is_old(), "to be said anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_duty_that_hangs_ends_in_its_time_and_is_told_of() {
        let member = Member::new(RedisSettings::default());
        let began = Instant::now();
        for _ in 0..2 {
            let hanging = pending::<RedisResult<()>>();
            assert_eq!(member.run_duty(Duty::Hold, hanging).await, None);
        }
        assert_eq!(began.elapsed(), 2 * DUTY_TIMEOUT);
        let said_after = member.keeping().failures.succeeded(Duty::Hold);
        assert_eq!(said_after, Some(2));
    }
}
