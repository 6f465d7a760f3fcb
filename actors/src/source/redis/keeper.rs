//! The task beside the reads: says that entries are ours, moves the guard, tidies up.
//!
//! While the pipeline is full nobody reads, and what is held must still be held. So this runs on
//! its own, from the first read until the source is closed or dropped; it keeps nothing alive.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::RedisResult;
use tokio::time::{Instant, sleep_until};

use crate::source::SourceError;
use crate::status::error_chain;

use super::commands::Commands;
use super::connection::Use;
use super::failure;
use super::guard;
use super::replies::Sight;
use super::shared::Shared;
use super::stream_id::StreamId;

/// How often the guard is moved at most, and the stream looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A guard that was not moved for this long deserves an alarm. Longer than a server takes to restart
/// or to be replaced, which is said when it begins.
const GUARD_ALARM_AFTER: Duration = Duration::from_secs(60);

/// How often dead consumers are looked for; less if they count as dead sooner.
const TIDY_EVERY: Duration = Duration::from_secs(600);

/// When each duty is due.
struct Duties {
    heartbeat: Instant,
    look: Instant,
    tidy: Instant,
}

impl Duties {
    fn next(&self) -> Instant {
        self.heartbeat.min(self.look).min(self.tidy)
    }
}

/// What was said of failures, so that an outage is one line.
#[derive(Default)]
struct Complaint {
    /// Failures in a row.
    failures: u32,
    said: bool,
    /// Said, too, that the guard was not moved for long.
    said_old_guard: bool,
}

impl Complaint {
    /// Whether this failure is to be said aloud. A refusal is; a lost connection the reader tells of
    /// as well, unless nobody reads, so that one waits for a second.
    fn failed(&mut self, is_refusal: bool, reader_fails: bool) -> bool {
        self.failures = self.failures.saturating_add(1);
        let aloud = !self.said && (is_refusal || (self.failures > 1 && !reader_fails));
        self.said |= aloud;
        aloud
    }

    /// After how many failures a success is to be said aloud.
    fn succeeded(&mut self) -> Option<u32> {
        let Self {
            failures,
            said,
            said_old_guard,
        } = std::mem::take(self);
        (said || said_old_guard).then_some(failures)
    }
}

/// Runs until the source is closed or gone.
pub(super) async fn keep(shared: Weak<Shared>) {
    let now = Instant::now();
    let mut duties = Duties {
        heartbeat: now,
        look: now,
        tidy: now,
    };
    let mut complaint = Complaint::default();
    loop {
        sleep_until(duties.next()).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if shared.lock().closed {
            return;
        }
        let result = shared.fulfil(&mut duties).await;
        shared.note_keeping(result, &mut complaint);
    }
}

impl Shared {
    /// Starts the task on the runtime of the caller.
    pub(super) fn start_keeper(self: &Arc<Self>) -> tokio::task::AbortHandle {
        tokio::spawn(keep(Arc::downgrade(self))).abort_handle()
    }

    async fn fulfil(&self, duties: &mut Duties) -> RedisResult<()> {
        let now = Instant::now();
        // Set first: a duty that fails comes again after its own time, not at once.
        let heartbeat = is_due(&mut duties.heartbeat, now, self.settings.heartbeat_every);
        let look = is_due(&mut duties.look, now, LOOK_EVERY);
        let tidy_every = self.settings.consumer_idle_removal.min(TIDY_EVERY);
        let tidy = is_due(&mut duties.tidy, now, tidy_every);

        // Before the first read has found or made the groups there is nothing to keep.
        if !self.lock().joined_before {
            return Ok(());
        }
        let mut commands = self.commands(Use::Commands).await?;
        if heartbeat {
            self.heartbeat(&mut commands).await?;
        }
        if look {
            self.look(&mut commands).await?;
        }
        if tidy {
            self.tidy(&mut commands).await?;
        }
        Ok(())
    }

    /// Tells Redis that what is held is in work, and once more what is done.
    async fn heartbeat(&self, commands: &mut Commands<'_>) -> RedisResult<()> {
        let now = Instant::now();
        let (held, committed) = {
            let state = self.lock();
            // What is younger would wait for the next beat, and be idle for twice the time by then:
            // too close to the 5 s of Prefect's consumers for a beat that comes late.
            let held = state.taken.to_keep(now, self.settings.heartbeat_every / 2);
            (held, state.taken.committed())
        };
        if !held.is_empty() {
            commands.keep(&held).await?;
            self.lock().taken.kept(&held, now);
        }
        self.acknowledge(commands, &committed).await
    }

    /// Looks at the stream and its groups, and moves the guard.
    async fn look(&self, commands: &mut Commands<'_>) -> RedisResult<()> {
        let sight = match commands.look().await {
            Ok(sight) => sight,
            // The stream or the group may be gone; if that is not it, the error comes again.
            Err(error) if failure::is_answer(&error) => {
                self.join(commands).await?;
                commands.look().await?
            }
            Err(error) => return Err(error),
        };
        self.note_sight(&sight);
        let oldest = self.oldest(commands, &sight).await?;
        self.stats.saw_oldest(oldest.map(|id| id.millis));
        let standing = guard::find(&sight.groups, &self.settings.guard_group);
        if !self.settings.guard {
            self.note_stray_guard(standing.is_some());
            return Ok(());
        }
        let Some(standing) = standing.map(|guard| guard.last_delivered) else {
            return self.join(commands).await;
        };
        let Some(safe) = guard::safe_id(&sight, &self.settings) else {
            return Ok(());
        };
        let position = guard::position(safe);
        if position != standing {
            commands.set_guard(position).await?;
        }
        self.stats.kept_guard();
        self.stats.saw_guard(Some(position.to_string()));
        if self.settings.trim_stream && position != standing {
            let num = commands.trim(position).await?;
            log::debug!(
                "trimmed the stream behind the guard num_entries={num} redis.stream={}",
                self.settings.stream
            );
        }
        Ok(())
    }

    /// The oldest entry that is not acknowledged.
    async fn oldest(
        &self,
        commands: &mut Commands<'_>,
        sight: &Sight,
    ) -> RedisResult<Option<StreamId>> {
        let group = guard::find(&sight.groups, &self.settings.group);
        match (sight.pending.smallest, group) {
            // What is pending was delivered, and stands before all that was not.
            (Some(smallest), _) => Ok(Some(smallest)),
            (None, None) => Ok(None),
            (None, Some(group)) if group.lag == Some(0) => Ok(None),
            (None, Some(group)) => commands.first_behind(group.last_delivered).await,
        }
    }

    /// A guard that nobody moves keeps the stream from being trimmed, for ever.
    fn note_stray_guard(&self, is_there: bool) {
        let position = is_there.then(|| "abandoned".to_owned());
        if self.stats.saw_guard(position) && is_there {
            log::warn!(
                "the trim guard is off, but one is there that keeps others from trimming; remove \
                 it (event-persister guard remove) or set it on redis.server={} redis.stream={} \
                 redis.guard={}",
                self.server,
                self.settings.stream,
                self.settings.guard_group
            );
        }
    }

    fn note_sight(&self, sight: &Sight) {
        let settings = &self.settings;
        let own = sight.pending.by_consumer.get(&settings.consumer_name);
        self.stats
            .saw_pending(own.copied().unwrap_or_default(), sight.pending.num);
        let lag = guard::find(&sight.groups, &settings.group).and_then(|group| group.lag);
        let alarm = sight.length > settings.guard_max_entries.get();
        if !self.stats.saw_stream(sight.length, lag, alarm) {
            return;
        }
        let (length, limit) = (sight.length, settings.guard_max_entries);
        let (server, stream) = (&self.server, &settings.stream);
        if alarm {
            log::error!(
                "the stream is longer than the alarm allows, and Redis may run out of memory; see \
                 why it is not persisted or not trimmed num_entries={length} limit={limit} \
                 redis.server={server} redis.stream={stream}"
            );
        } else {
            log::info!(
                "the stream is short again num_entries={length} limit={limit} \
                 redis.server={server} redis.stream={stream}"
            );
        }
    }

    /// Removes consumers that are long gone.
    async fn tidy(&self, commands: &mut Commands<'_>) -> RedisResult<()> {
        let removed = match commands.remove_dead_consumers().await {
            Err(error) if failure::is_answer(&error) => {
                // Of use, but not worth an outage: the user may not be allowed scripts.
                log::warn!(
                    "consumers that are gone could not be removed redis.server={} error={error}",
                    self.server
                );
                return Ok(());
            }
            removed => removed?,
        };
        if !removed.is_empty() {
            log::info!(
                "removed consumers that had been idle with nothing pending num_consumers={} \
                 redis.server={} redis.group={}",
                removed.len(),
                self.server,
                self.settings.group
            );
        }
        Ok(())
    }

    /// Says once that it fails, and once that it works again.
    fn note_keeping(&self, result: RedisResult<()>, complaint: &mut Complaint) {
        match result {
            Ok(()) => {
                if let Some(failures) = complaint.succeeded() {
                    log::info!(
                        "what is held is kept again failures={failures} redis.server={}",
                        self.server
                    );
                }
            }
            Err(error) => {
                let doing = "keeping what is held";
                let is_refusal = failure::is_answer(&error);
                let aloud = complaint.failed(is_refusal, self.lock().fetch_failed);
                // A refusal of something here must not disturb the reads.
                let error = if failure::leaves_connections_sound(&error) {
                    failure::unavailable(&self.server, doing, error)
                } else {
                    self.failed(doing, error)
                };
                let level = if aloud {
                    log::Level::Warn
                } else {
                    log::Level::Debug
                };
                log::log!(level, "{}", error_chain(&error));
                self.note_old_guard(&error, complaint);
            }
        }
    }

    fn note_old_guard(&self, error: &SourceError, complaint: &mut Complaint) {
        let Some(age) = self.stats.guard_age() else {
            return;
        };
        if complaint.said_old_guard || age < GUARD_ALARM_AFTER {
            return;
        }
        complaint.said_old_guard = true;
        log::error!(
            "the trim guard has not been moved for long: nobody can trim what is persisted, and \
             Redis may run out of memory guard_age_s={} redis.stream={} redis.guard={} error={}",
            age.as_secs(),
            self.settings.stream,
            self.settings.guard_group,
            error_chain(error)
        );
    }
}

/// Whether a duty is due; if so, sets when it is due next.
fn is_due(at: &mut Instant, now: Instant, every: Duration) -> bool {
    let due = *at <= now;
    if due {
        *at = now + every;
    }
    due
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::super::failure::timed_out;
    use super::super::settings::RedisSettings;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_grave_once_a_guard_was_not_moved_for_long() {
        let shared = Shared::new(RedisSettings::default());
        let mut complaint = Complaint::default();
        let is_grave_after = async |time, complaint: &mut Complaint| {
            advance(time).await;
            shared.note_keeping(Err(timed_out("no answer")), complaint);
            complaint.said_old_guard
        };
        let without_guard = is_grave_after(2 * GUARD_ALARM_AFTER, &mut complaint).await;
        assert!(!without_guard);
        shared.stats.kept_guard();
        assert!(!is_grave_after(GUARD_ALARM_AFTER / 2, &mut complaint).await);
        assert!(is_grave_after(GUARD_ALARM_AFTER / 2, &mut complaint).await);
        shared.note_keeping(Ok(()), &mut complaint);
        assert!(!complaint.said_old_guard);
    }

    #[test]
    fn complains_once_an_outage_and_not_for_what_the_reader_tells_of() {
        let mut complaint = Complaint::default();
        assert_eq!(complaint.succeeded(), None);
        let refused = [true, true].map(|refusal| complaint.failed(refusal, true));
        assert_eq!(refused, [true, false]);
        assert_eq!(complaint.succeeded(), Some(2));
        let unread = [false, false, false].map(|refusal| complaint.failed(refusal, false));
        assert_eq!(unread, [false, true, false]);
        assert_eq!(complaint.succeeded(), Some(3));
        let told = [false, true, true].map(|reader_fails| complaint.failed(false, reader_fails));
        assert_eq!(told, [false; 3]);
        assert_eq!(complaint.succeeded(), None);
    }
}
