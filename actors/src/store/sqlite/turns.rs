//! A trimmer among all others who want to write: in short turns, with rests.
//!
//! While it is alone its turns grow, and it rests only for as long as others have not had the lock anyway:
//! each step ends with a checkpoint, which does not hold it.

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::time::Instant;

use super::SqliteStore;
use super::connection::{Connection, Failure};
use super::pace::Pace;
use super::trim::{self, Resume, Turn};
use crate::store::{Cutoffs, StoreError, TrimStep};

/// How long a trimmer rests after a step, of the time that the step took. More costs as much of its
/// speed, less makes other processes wait longer.
const REST: f64 = 0.125;
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How long a trimmer keeps the turn while it waits for another process's lock. It is in no hurry, and
/// with it would wait whoever asks how the store is, which gives up after a few seconds.
const LONGEST_TURN: Duration = Duration::from_millis(500);

/// What a trimmer remembers from one step to the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    resume: Resume,
    pace: Pace,
    /// What the database said of commits by other processes when the last step began.
    version: Option<i64>,
}

/// How many events a step may remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// As many as it is told.
    AsTold,
    /// More while nobody else writes.
    AtPace,
}

/// What was done in one turn.
struct Made {
    step: TrimStep,
    /// Whether nobody else seemed to write.
    is_alone: bool,
    /// How long others had to wait for the lock, and when it was let go.
    held: Duration,
    committed: Instant,
}

impl SqliteStore {
    /// Makes a step in as many turns as it takes another process to let the lock go.
    pub(super) async fn trim_in_turns(
        &self,
        cutoffs: &Cutoffs,
        told: NonZeroUsize,
        size: Size,
    ) -> Result<TrimStep, StoreError> {
        cutoffs.refuse_future(self.shared.clock.now())?;
        let waits = Instant::now();
        let (made, started) = loop {
            let started = Instant::now();
            let turn = self.turn_at_trimming(waits.elapsed());
            let made = self.trim_in_turn(cutoffs.clone(), told, size, turn);
            if let Some(made) = made.await? {
                break (made, started);
            }
        };
        if matches!(made.step, TrimStep::Removed(_)) {
            // Other processes poll for the lock, and must find it free now and then.
            let rest = if made.is_alone {
                rest(made.held, made.committed.elapsed())
            } else {
                rest(started.elapsed(), Duration::ZERO)
            };
            tokio::time::sleep(rest).await;
        }
        Ok(made.step)
    }

    /// The next turn of a step that has waited for so long.
    fn turn_at_trimming(&self, waited: Duration) -> Turn {
        let busy_timeout = self.shared.settings.busy_timeout;
        let patience = LONGEST_TURN.min(busy_timeout);
        Turn {
            patience,
            is_last: waited + patience >= busy_timeout,
        }
    }

    /// Makes a step in one turn; `None` if another process kept the lock for all of it.
    async fn trim_in_turn(
        &self,
        cutoffs: Cutoffs,
        told: NonZeroUsize,
        size: Size,
        turn: Turn,
    ) -> Result<Option<Made>, StoreError> {
        let mut progress = std::mem::take(&mut *self.lock_progress());
        let may_grow = size == Size::AtPace && !self.shared.writing.is_going_on();
        let step = move |connection: &mut Connection| {
            let made = make_step(connection, &cutoffs, &mut progress, told, may_grow, turn)?;
            Ok((made, progress))
        };
        let (made, progress) = self.with_writer("trim", step).await?;
        *self.lock_progress() = progress;
        Ok(made)
    }
}

fn make_step(
    connection: &mut Connection,
    cutoffs: &Cutoffs,
    progress: &mut Progress,
    told: NonZeroUsize,
    may_grow: bool,
    turn: Turn,
) -> Result<Option<Made>, Failure> {
    let version = Some(connection.data_version()?);
    let is_alone = may_grow && progress.version == version;
    progress.version = version;
    let num_events = progress.pace.num_events(told, is_alone);
    connection.keep_many_pages(is_alone)?;
    let Some((step, held)) =
        trim::step(connection, cutoffs, num_events, &mut progress.resume, turn)?
    else {
        return Ok(None);
    };
    let committed = Instant::now();
    match step {
        TrimStep::Removed(trimmed) => {
            if trimmed.events == num_events.get() as u64 {
                progress.pace.learn(told, num_events, held);
            }
            connection.checkpoint();
        }
        TrimStep::Finished | TrimStep::TakenByAnother => connection.keep_many_pages(false)?,
    }
    Ok(Some(Made {
        step,
        is_alone,
        held,
        committed,
    }))
}

/// How long to rest after a step that took so long, if the lock has been free for a while since.
fn rest(took: Duration, free: Duration) -> Duration {
    took.mul_f64(REST).min(LONGEST_REST).saturating_sub(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_only_as_long_as_the_lock_was_not_free_anyway() {
        let millis = Duration::from_millis;
        assert_eq!(rest(millis(400), Duration::ZERO), millis(50));
        assert_eq!(rest(millis(400), millis(20)), millis(30));
        assert_eq!(rest(millis(4_000), millis(20)), millis(80));
        assert_eq!(rest(millis(400), millis(300)), Duration::ZERO);
    }
}
