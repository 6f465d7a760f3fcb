//! A trimmer among all others who want to write: in short turns, with rests.

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::time::Instant;

use super::SqliteStore;
use super::connection::Connection;
use super::trim::{self, Turn};
use crate::store::{Cutoffs, StoreError, TrimStep};

/// How long a trimmer rests after a step, of the time that the step took. More costs as much of its
/// speed, less makes other processes wait longer.
const REST: f64 = 0.125;
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How long a trimmer keeps the turn while it waits for another process's lock. It is in no hurry, and
/// with it would wait whoever asks how the store is, which gives up after a few seconds.
const LONGEST_TURN: Duration = Duration::from_millis(500);

impl SqliteStore {
    /// Makes a step in as many turns as it takes another process to let the lock go.
    pub(super) async fn trim_in_turns(
        &self,
        cutoffs: &Cutoffs,
        max_events: NonZeroUsize,
    ) -> Result<TrimStep, StoreError> {
        cutoffs.refuse_future(self.shared.clock.now())?;
        let waits = Instant::now();
        let (step, started) = loop {
            let started = Instant::now();
            let turn = self.turn_at_trimming(waits.elapsed());
            if let Some(step) = self.trim_in_turn(cutoffs.clone(), max_events, turn).await? {
                break (step, started);
            }
        };
        if matches!(step, TrimStep::Removed(_)) {
            // Other processes poll for the lock, and must find it free now and then.
            tokio::time::sleep(started.elapsed().mul_f64(REST).min(LONGEST_REST)).await;
        }
        Ok(step)
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
        max_events: NonZeroUsize,
        turn: Turn,
    ) -> Result<Option<TrimStep>, StoreError> {
        let mut resume = self.lock_resume().take();
        let step = move |connection: &mut Connection| {
            let step = trim::step(connection, &cutoffs, max_events, &mut resume, turn)?;
            Ok((step, resume))
        };
        let (step, resume) = self.with_writer("trim", step).await?;
        *self.lock_resume() = resume;
        Ok(step)
    }
}
