//! How fast retention goes: as fast as writers can bear. No actix here.
//!
//! Both ways were measured by how long the slowest hundredth of all writes takes.
//!
//! - [`Contention::Log`] (PostgreSQL): a commit waits until all that was logged before it is on
//!   disk. So while this process writes, steps are small, and the rest is as long as the step;
//!   where little is written it is longer, or the checkpoints that follow would make commits wait.
//! - [`Contention::WriteLock`] (SQLite): a step writes nearly all pages of some indexes, so that
//!   one of twice the size costs little more. While nobody else writes, a step grows until it holds
//!   the lock for 0.75 s. Other processes poll for the lock, so a short rest follows each step.
//!
//! Writers of this process show in its metrics, others in [`Removed::others_write`], where the
//! store sees them.

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::store::{Contention, Removed};

/// Events of a step at most while this process writes to the same log.
const SMALL_STEP: usize = 1_000;

/// So many times what this process stores may be removed in a second: other processes, of which nothing is
/// known, may store as well.
const TIMES_STORED: f64 = 4.0;
/// And so many events in any case.
const ALWAYS_PER_SECOND: f64 = 5_000.0;

/// How long a step should hold the write lock: even on a disk that turns slow it ends in about a
/// second.
const AIM: Duration = Duration::from_millis(750);

/// How many times as many events as it was told a step removes at most while nobody else writes.
const MAX_GROWTH: f64 = 4.0;

/// How much of a step's time the lock is free behind it. More costs speed, less makes others wait.
const FREE: f64 = 0.125;
const LONGEST_FREE: Duration = Duration::from_millis(100);

/// Writing counts as going on for this long after a commit, and stored events are counted over as long.
const WINDOW: Duration = Duration::from_secs(1);

/// A step that takes too long is made again with half as many events, down to an eighth.
const MAX_HALVINGS: u32 = 3;

#[derive(Debug)]
pub(super) struct Pace {
    contention: Contention,
    told: NonZeroUsize,
    halvings: u32,
    /// How many times as many as told the next step may remove while nobody else writes.
    growth: f64,
    /// Whether another process wrote before the last step; nothing is known before the first.
    others_write: bool,
    /// `None` for one that is alone in its process.
    writers: Option<Writers>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    pub(super) max_events: NonZeroUsize,
    /// How many events a second this process stores; `None` where it does not write.
    stored_per_second: Option<f64>,
}

impl Pace {
    pub(super) fn alone(contention: Contention, batch_size: NonZeroUsize) -> Self {
        Self {
            contention,
            told: batch_size,
            halvings: 0,
            growth: 1.0,
            others_write: true,
            writers: None,
        }
    }

    pub(super) fn beside_writers(
        contention: Contention,
        batch_size: NonZeroUsize,
        metrics: Metrics,
    ) -> Self {
        Self {
            writers: Some(Writers::new(metrics)),
            ..Self::alone(contention, batch_size)
        }
    }

    pub(super) fn next(&mut self, now: Instant) -> Step {
        let stored_per_second = self.writers.as_mut().and_then(|writers| writers.look(now));
        let told = self.told.get() >> self.halvings;
        let is_writing = stored_per_second.is_some();
        let num_events = match self.contention {
            Contention::Log if is_writing => told.min(SMALL_STEP),
            Contention::WriteLock if !is_writing && !self.others_write => {
                // At most a few times what it was; less than one event is cut off.
                (told as f64 * self.growth) as usize
            }
            Contention::Log | Contention::WriteLock => told,
        };
        Step {
            max_events: NonZeroUsize::new(num_events).unwrap_or(NonZeroUsize::MIN),
            stored_per_second,
        }
    }

    /// Takes in what a step removed, from call to answer; how long to rest before the next.
    pub(super) fn rest(&mut self, step: Step, removed: &Removed, elapsed: Duration) -> Duration {
        self.others_write = removed.others_write;
        match (self.contention, step.stored_per_second) {
            (Contention::Log, None) => Duration::ZERO,
            // What is gone with its table was logged in a few lines.
            (Contention::Log, Some(_)) if removed.with_their_table => Duration::ZERO,
            (Contention::Log, Some(stored)) => {
                let per_second = ALWAYS_PER_SECOND.max(TIMES_STORED * stored);
                let due = Duration::from_secs_f64(removed.rows.events as f64 / per_second);
                due.saturating_sub(elapsed).max(elapsed)
            }
            (Contention::WriteLock, stored) => {
                if removed.rows.events == step.max_events.get() as u64 {
                    self.grow(step.max_events, removed.took);
                }
                if stored.is_none() && !removed.others_write {
                    // The lock was free while the step searched, and behind its commit.
                    free(removed.took).saturating_sub(elapsed.saturating_sub(removed.took))
                } else {
                    free(elapsed)
                }
            }
        }
    }

    /// Learns from a transaction that removed all that it was to remove.
    fn grow(&mut self, num_events: NonZeroUsize, took: Duration) {
        let growth = num_events.get() as f64 / self.told.get() as f64;
        let ratio = AIM.as_secs_f64() / took.as_secs_f64().max(f64::MIN_POSITIVE);
        // One that was exceptionally quick or slow tells little of the next.
        let next = growth * ratio.clamp(0.5, 2.0);
        self.growth = next.clamp(1.0, MAX_GROWTH);
    }

    /// Halves the steps after one that took too long; whether that is still possible.
    pub(super) fn halve(&mut self) -> bool {
        self.growth = 1.0;
        self.halvings += 1;
        self.halvings <= MAX_HALVINGS
    }
}

fn free(held: Duration) -> Duration {
    held.mul_f64(FREE).min(LONGEST_FREE)
}

#[derive(Debug)]
struct Writers {
    metrics: Metrics,
    /// When the window began, and how many events had been stored by then.
    window: Option<(Instant, u64)>,
    per_second: f64,
}

impl Writers {
    fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            window: None,
            per_second: 0.0,
        }
    }

    /// How many events a second are stored; `None` while nothing is written. Within a window it is
    /// no less than in the one before.
    fn look(&mut self, now: Instant) -> Option<f64> {
        let ledger = self.metrics.ledger();
        let (began, num_then) = *self.window.get_or_insert((now, ledger.stored));
        let (took, num_stored) = (now - began, ledger.stored - num_then);
        let in_this = num_stored as f64 / took.max(WINDOW).as_secs_f64();
        let per_second = if took < WINDOW {
            self.per_second.max(in_this)
        } else {
            self.window = Some((now, ledger.stored));
            self.per_second = in_this;
            in_this
        };
        let last_commit = self.metrics.since_last_commit();
        let is_writing = ledger.in_flight > 0 || last_commit.is_some_and(|since| since < WINDOW);
        is_writing.then_some(per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Flushed;
    use crate::store::Trimmed;
    use crate::testing::pause_time;

    const TOLD: NonZeroUsize = NonZeroUsize::new(5_000).unwrap();

    fn removed(num_events: usize, took: Duration, others_write: bool) -> Removed {
        Removed {
            rows: Trimmed {
                events: num_events as u64,
                resources: 4 * num_events as u64,
            },
            took,
            others_write,
            with_their_table: false,
        }
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Makes a step that removes all that it may and holds the lock all the time: its size, and the rest.
    fn make_step(pace: &mut Pace, of_one: Duration, others_write: bool) -> (usize, Duration) {
        let step = pace.next(Instant::now());
        let size = step.max_events.get();
        let took = of_one.mul_f64(size as f64);
        let rest = pace.rest(step, &removed(size, took, others_write), took);
        (size, rest)
    }

    /// The sizes of the steps of a pass of which each event takes so long.
    fn sizes(of_one: Duration, num_steps: usize) -> Vec<usize> {
        let mut pace = Pace::alone(Contention::WriteLock, TOLD);
        let steps = (0..num_steps).map(|_| make_step(&mut pace, of_one, false).0);
        steps.collect()
    }

    #[test]
    fn steps_grow_until_they_hold_the_lock_long_enough() {
        let quick = Duration::from_micros(75);
        assert_eq!(sizes(quick, 4), [5_000, 10_000, 10_000, 10_000]);
        let quicker = Duration::from_micros(1);
        assert_eq!(
            sizes(quicker, 4),
            [5_000, 10_000, 20_000, 20_000],
            "a bound"
        );
    }

    #[test]
    fn a_slow_disk_makes_no_step_smaller_than_it_was_told() {
        let slow = Duration::from_micros(400);
        assert_eq!(sizes(slow, 3), [5_000, 5_000, 5_000]);
    }

    #[test]
    fn a_step_that_held_the_lock_too_long_is_followed_by_a_smaller_one() {
        let mut pace = Pace::alone(Contention::WriteLock, TOLD);
        let quick = Duration::from_micros(1);
        for size in [5_000, 10_000, 20_000] {
            assert_eq!(make_step(&mut pace, quick, false).0, size);
        }
        let slow = Duration::from_micros(75);
        assert_eq!(make_step(&mut pace, slow, false).0, 20_000);
        assert_eq!(make_step(&mut pace, slow, false).0, 10_000);
    }

    #[test]
    fn beside_another_process_a_step_is_as_large_as_it_was_told() {
        let mut pace = Pace::alone(Contention::WriteLock, TOLD);
        let quick = Duration::from_micros(1);
        assert_eq!(make_step(&mut pace, quick, false).0, 5_000);
        assert_eq!(make_step(&mut pace, quick, true).0, 10_000);
        assert_eq!(make_step(&mut pace, quick, true).0, 5_000);
        assert_eq!(make_step(&mut pace, quick, false).0, 5_000);
        assert_eq!(make_step(&mut pace, quick, false).0, 10_000);
    }

    #[test]
    fn rests_only_as_long_as_the_lock_was_not_free_anyway() {
        let mut pace = Pace::alone(Contention::WriteLock, TOLD);
        let mut rest = |took, elapsed, others_write| {
            let step = pace.next(Instant::now());
            pace.rest(
                step,
                &removed(1, millis(took), others_write),
                millis(elapsed),
            )
        };
        assert_eq!(rest(400, 400, false), millis(50));
        assert_eq!(rest(400, 420, false), millis(30));
        assert_eq!(rest(4_000, 4_020, false), millis(80));
        assert_eq!(rest(400, 700, false), Duration::ZERO);
        assert_eq!(
            rest(400, 700, true),
            millis(87) + Duration::from_micros(500)
        );
    }

    #[test]
    fn a_step_that_took_too_long_is_made_smaller_three_times() {
        for contention in [Contention::Log, Contention::WriteLock] {
            let mut pace = Pace::alone(contention, TOLD);
            for size in [2_500, 1_250, 625] {
                assert!(pace.halve());
                assert_eq!(pace.next(Instant::now()).max_events.get(), size);
            }
            assert!(!pace.halve());
        }
        let mut smallest = Pace::alone(Contention::Log, NonZeroUsize::MIN);
        assert!(smallest.halve());
        assert_eq!(smallest.next(Instant::now()).max_events, NonZeroUsize::MIN);
    }

    fn store_events(metrics: &Metrics, num_events: u64) {
        let flushed = Flushed {
            inserted: num_events,
            ..Flushed::default()
        };
        metrics.batch_flushed(&flushed, Duration::ZERO, Duration::ZERO);
    }

    #[actix::test]
    async fn a_window_that_took_longer_counts_for_a_second() {
        pause_time();
        let metrics = Metrics::new().unwrap();
        let mut writers = Writers::new(metrics.clone());
        assert_eq!(writers.look(Instant::now()), None);
        tokio::time::advance(4 * WINDOW).await;
        store_events(&metrics, 1_000);
        assert_eq!(writers.look(Instant::now()), Some(250.0));
        tokio::time::advance(WINDOW).await;
        store_events(&metrics, 100);
        assert_eq!(writers.look(Instant::now()), Some(100.0), "the next window");
    }

    #[actix::test]
    async fn steps_are_small_and_rest_while_this_process_writes() {
        pause_time();
        let metrics = Metrics::new().unwrap();
        let pace = |contention| Pace::beside_writers(contention, TOLD, metrics.clone());
        let mut log = pace(Contention::Log);
        let mut lock = pace(Contention::WriteLock);
        let quick = Duration::from_micros(1);
        assert_eq!(make_step(&mut log, quick, false), (5_000, Duration::ZERO));
        assert_eq!(make_step(&mut lock, quick, false).0, 5_000);
        assert_eq!(make_step(&mut lock, quick, false).0, 10_000);

        store_events(&metrics, 10);
        let step = log.next(Instant::now());
        let mut rest = |took| log.rest(step, &removed(1_000, millis(took), false), millis(took));
        assert_eq!(step.max_events.get(), 1_000);
        assert_eq!(rest(20), millis(180), "little is written");
        assert_eq!(rest(300), millis(300), "as long as it took");
        let table = Removed {
            with_their_table: true,
            ..removed(1_000_000, millis(20), false)
        };
        assert_eq!(log.rest(step, &table, millis(20)), Duration::ZERO);
        assert_eq!(make_step(&mut lock, quick, false).0, 5_000);

        tokio::time::advance(WINDOW).await;
        assert_eq!(log.next(Instant::now()).max_events, TOLD, "a second later");
        assert_eq!(make_step(&mut lock, quick, false).0, 10_000);
    }

    #[actix::test]
    async fn more_goes_where_more_is_written() {
        pause_time();
        let metrics = Metrics::new().unwrap();
        let mut pace = Pace::beside_writers(Contention::Log, TOLD, metrics.clone());
        let mut rest = |took| {
            let step = pace.next(Instant::now());
            pace.rest(step, &removed(1_000, millis(took), false), millis(took))
        };
        rest(20);
        for _ in 0..25 {
            store_events(&metrics, 500);
            tokio::time::advance(millis(100)).await;
            rest(20);
        }
        assert_eq!(rest(20), millis(30), "5,000 a second are stored");
        store_events(&metrics, 10_000);
        assert_eq!(rest(20), millis(20), "more is noticed at once");
    }

    #[actix::test]
    async fn what_is_in_flight_is_about_to_be_written() {
        pause_time();
        let metrics = Metrics::new().unwrap();
        metrics.received(1, 0);
        let mut pace = Pace::beside_writers(Contention::Log, TOLD, metrics);
        assert_eq!(pace.next(Instant::now()).max_events.get(), 1_000);
    }
}
