//! Guards against a database that refuses nearly everything, as pure bookkeeping.
//!
//! A trigger that somebody got wrong would make a whole backlog dead letters. So when more than
//! half of the last 1,000 messages, and at least 500, were refused *by the database*, reading
//! pauses. From then on one batch a back-off goes out as a probe, and the first that is mostly
//! accepted ends the pause. A message that the parser rejected counts neither way.
//!
//! Batches are counted whole: the window holds the fewest last batches that together have 1,000
//! messages, which needs two numbers a batch and not one an event.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::messages::Flushed;

/// The window. Smaller pauses for what a single flow run with odd events does, larger lets more
/// letters pile up first.
const WINDOW: u64 = 1_000;

/// Fewer refusals than this never pause reading, whatever their share.
const AT_LEAST: u64 = 500;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Judged {
    total: u64,
    refused: u64,
}

impl Judged {
    fn of(flushed: &Flushed) -> Self {
        Self {
            total: flushed.inserted + flushed.duplicates + flushed.refused_by_store.total(),
            refused: flushed.refused_by_store.total(),
        }
    }

    fn is_mostly_refused(self) -> bool {
        self.refused > self.total - self.refused
    }
}

#[derive(Debug)]
struct Pause {
    since: Instant,
    probes: u32,
    next_probe: Instant,
    /// When the next permit may be granted, should there be no batch to go out.
    next_permit: Instant,
    refused: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Reading pauses from now on; so many of so many were refused.
    Paused {
        refused: u64,
        /// Of these last messages that reached it.
        of: u64,
    },
    Resumed {
        after: Duration,
        refused: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Refusals {
    backoff: Backoff,
    batches: VecDeque<Judged>,
    sum: Judged,
    pause: Option<Pause>,
}

impl Refusals {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            batches: VecDeque::new(),
            sum: Judged::default(),
            pause: None,
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.pause.is_some()
    }

    /// Takes a batch into account that was committed. `jitter` in `0.0..=1.0` as for [`Backoff`].
    pub(crate) fn committed(
        &mut self,
        flushed: &Flushed,
        now: Instant,
        jitter: f64,
    ) -> Option<Change> {
        let judged = Judged::of(flushed);
        match &mut self.pause {
            None => {
                self.slide(judged);
                self.pause_if_flooded(now, jitter)
            }
            Some(pause) if judged.total > 0 && !judged.is_mostly_refused() => {
                pause.refused += judged.refused;
                self.resume(now)
            }
            Some(pause) => {
                pause.refused += judged.refused;
                pause.probes = pause.probes.saturating_add(1);
                pause.next_probe = now + self.backoff.delay(pause.probes, jitter);
                pause.next_permit = pause.next_probe;
                None
            }
        }
    }

    /// Takes into account that a refused event was tried again and rolled back: whether it was taken.
    pub(crate) fn rehearsed(&mut self, was_taken: bool, now: Instant) -> Option<Change> {
        was_taken.then(|| self.resume(now)).flatten()
    }

    fn resume(&mut self, now: Instant) -> Option<Change> {
        let pause = self.pause.take()?;
        *self = Self::new(self.backoff);
        Some(Change::Resumed {
            after: now.duration_since(pause.since),
            refused: pause.refused,
        })
    }

    /// Whether a batch may go out while no other is being written; else the moment from which on
    /// one may.
    pub(crate) fn may_write(&self, now: Instant) -> Result<(), Instant> {
        match &self.pause {
            Some(pause) if now < pause.next_probe => Err(pause.next_probe),
            _ => Ok(()),
        }
    }

    /// Whether a permit may be granted while nothing is held that could probe; else the moment from
    /// which on one may. The next one may a back-off later: an idle source must not keep the others
    /// from probing, nor all of them read at once.
    pub(crate) fn take_permit(&mut self, now: Instant, jitter: f64) -> Result<(), Instant> {
        let Some(pause) = &mut self.pause else {
            return Ok(());
        };
        if now < pause.next_permit {
            return Err(pause.next_permit);
        }
        pause.next_permit = now + self.backoff.delay(pause.probes.max(1), jitter);
        Ok(())
    }

    fn slide(&mut self, judged: Judged) {
        if judged.total == 0 {
            return;
        }
        self.batches.push_back(judged);
        self.sum.total += judged.total;
        self.sum.refused += judged.refused;
        while let Some(oldest) = self.batches.front()
            && self.sum.total - oldest.total >= WINDOW
        {
            self.sum.total -= oldest.total;
            self.sum.refused -= oldest.refused;
            self.batches.pop_front();
        }
    }

    fn pause_if_flooded(&mut self, now: Instant, jitter: f64) -> Option<Change> {
        if self.sum.refused < AT_LEAST || !self.sum.is_mostly_refused() {
            return None;
        }
        let next_probe = now + self.backoff.delay(1, jitter);
        self.pause = Some(Pause {
            since: now,
            probes: 1,
            next_probe,
            next_permit: next_probe,
            refused: self.sum.refused,
        });
        Some(Change::Paused {
            refused: self.sum.refused,
            of: self.sum.total,
        })
    }
}

#[cfg(test)]
mod tests;
