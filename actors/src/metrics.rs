//! Every message accounted for, and every number of a pipeline.
//!
//! The numbers belong to one pipeline and live as long as it does; a host registers them in a
//! registry of its own. Nothing is global. Labels have values from lists that are known beforehand:
//! nothing that comes with an event becomes one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use tokio::time::Instant;

use crate::batch_queue::FlushReason;
use crate::delivery::Batch;
use crate::lock::lock;
use crate::messages::Flushed;
use crate::store::Removed;

mod ledger;
mod numbers;

pub use ledger::LedgerCounts;
use numbers::Numbers;
pub use numbers::PassOutcome;
pub(crate) use numbers::RetryKind;

/// The numbers of one pipeline, over all of its generations.
///
/// A clone is another handle on the same numbers, so a clone can be registered with a
/// [`Registry`] while the pipeline counts.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    ledger: Mutex<LedgerCounts>,
    oldest: Mutex<Option<Instant>>,
    oldest_but_suspects: Mutex<Option<Instant>>,
    last_commit: Mutex<Option<Instant>>,
    numbers: Numbers,
}

impl Metrics {
    /// All numbers at zero.
    ///
    /// # Errors
    ///
    /// Never with these names; the metrics library checks them when it runs.
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self(Arc::new(Inner {
            ledger: Mutex::default(),
            oldest: Mutex::default(),
            oldest_but_suspects: Mutex::default(),
            last_commit: Mutex::default(),
            numbers: Numbers::new()?,
        })))
    }

    /// Makes the numbers visible in a registry.
    ///
    /// # Errors
    ///
    /// The registry has metrics of these names already: those of another pipeline.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.clone()))
    }

    /// The ledger as it is now.
    pub fn ledger(&self) -> LedgerCounts {
        *lock(&self.0.ledger)
    }

    /// Whether the pipeline was ready when it was last looked at.
    pub fn is_ready(&self) -> bool {
        self.0.numbers.ready.get() == 1
    }

    /// How long the oldest message that is not durable has been held.
    pub fn oldest_unflushed(&self) -> Option<Duration> {
        lock(&self.0.oldest).map(|since| since.elapsed())
    }

    /// For how long there has been something to write that is no suspect, and nothing was committed.
    pub(crate) fn stalled(&self) -> Option<Duration> {
        let waiting_since = (*lock(&self.0.oldest_but_suspects))?;
        let last_commit = *lock(&self.0.last_commit);
        let since = last_commit.map_or(waiting_since, |commit| commit.max(waiting_since));
        Some(since.elapsed())
    }

    pub(crate) fn since_last_commit(&self) -> Option<Duration> {
        lock(&self.0.last_commit).map(|commit| commit.elapsed())
    }

    /// Whether there is something to write that is no suspect.
    pub(crate) fn holds_more_than_suspects(&self) -> bool {
        lock(&self.0.oldest_but_suspects).is_some()
    }

    pub(crate) fn received(&self, first_time: usize, again: usize) {
        let mut counts = lock(&self.0.ledger);
        counts.received += first_time as u64;
        counts.redelivered += again as u64;
        counts.in_flight += (first_time + again) as u64;
    }

    /// Empty messages, already counted as received, that need no storing.
    pub(crate) fn ignored(&self, num_messages: usize) {
        let mut counts = lock(&self.0.ledger);
        counts.ignored += num_messages as u64;
        counts.in_flight = counts.in_flight.saturating_sub(num_messages as u64);
    }

    pub(crate) fn batch_handed_out(&self, reason: FlushReason, batch: &Batch) {
        let numbers = &self.0.numbers;
        numbers.batches.with_label_values(&[reason.as_ref()]).inc();
        numbers.batch_events.observe(batch.len() as f64);
        numbers.batch_bytes.observe(batch.num_bytes() as f64);
    }

    pub(crate) fn retries(&self, kind: RetryKind) {
        let retries = &self.0.numbers.retries;
        retries.with_label_values(&[kind.as_ref()]).inc();
    }

    /// A batch is durable: how long its transaction took, and how old its oldest message was then.
    pub(crate) fn batch_flushed(&self, flushed: &Flushed, took: Duration, age: Duration) {
        *lock(&self.0.last_commit) = Some(Instant::now());
        let mut counts = lock(&self.0.ledger);
        // Under the lock, so that who looks meanwhile sees the same refusals in both.
        self.0.numbers.flush_seconds.observe(took.as_secs_f64());
        self.0.numbers.commit_age_seconds.observe(age.as_secs_f64());
        for (reason, num_events) in flushed.refused_by_store.iter() {
            let refused = &self.0.numbers.refused;
            let counter = refused.with_label_values(&[reason.as_str()]);
            counter.inc_by(num_events);
        }
        counts.stored += flushed.inserted;
        counts.duplicates += flushed.duplicates;
        counts.dead_lettered += flushed.dead_lettered();
        counts.refused_by_store += flushed.refused_by_store.total();
        counts.in_flight = counts.in_flight.saturating_sub(flushed.total());
    }

    /// All that is held is left to the sources; returns how much that was.
    pub(crate) fn released_all(&self) -> u64 {
        let mut counts = lock(&self.0.ledger);
        let released = std::mem::take(&mut counts.in_flight);
        counts.released += released;
        drop(counts);
        self.set_oldest(None, None);
        self.set_load(0, 0);
        released
    }

    pub(crate) fn set_oldest(&self, oldest: Option<Instant>, but_suspects: Option<Instant>) {
        *lock(&self.0.oldest) = oldest;
        *lock(&self.0.oldest_but_suspects) = but_suspects;
    }

    /// How many writers are at work, and how many bytes are held.
    pub(crate) fn set_load(&self, num_busy: usize, num_bytes: usize) {
        let numbers = &self.0.numbers;
        let gauges = [
            (&numbers.writers_busy, num_busy),
            (&numbers.in_flight_bytes, num_bytes),
        ];
        for (gauge, value) in gauges {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// How many events came when retention no longer kept what is as old.
    pub fn older_than_retention(&self) -> u64 {
        self.0.numbers.older_than_retention.get()
    }

    pub(crate) fn came_late(&self, num_events: u64) {
        self.0.numbers.older_than_retention.inc_by(num_events);
    }

    pub(crate) fn trimmed(&self, removed: &Removed) {
        let numbers = &self.0.numbers;
        numbers.trimmed_events.inc_by(removed.rows.events);
        numbers.trimmed_resources.inc_by(removed.rows.resources);
        let num_partitions = u64::from(removed.with_their_table);
        numbers.trimmed_partitions.inc_by(num_partitions);
    }

    pub(crate) fn trim_pass(&self, outcome: PassOutcome, took: Duration) {
        let passes = &self.0.numbers.trim_passes;
        passes.with_label_values(&[outcome.as_ref()]).inc();
        self.0.numbers.trim_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn set_generation(&self, generation: u64) {
        let generation = i64::try_from(generation).unwrap_or(i64::MAX);
        self.0.numbers.generation.set(generation);
    }

    pub(crate) fn set_reading_paused(&self, paused: bool) {
        self.0.numbers.reading_paused.set(i64::from(paused));
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.0.numbers.ready.set(i64::from(ready));
    }

    /// Whether an event is held for long while others are stored.
    pub(crate) fn set_degraded(&self, degraded: bool) {
        self.0.numbers.degraded.set(i64::from(degraded));
    }

    /// Whether the last attempt of a part succeeded.
    pub(crate) fn set_up(&self, component: &str, up: bool) {
        let gauge = self.0.numbers.component_up.with_label_values(&[component]);
        gauge.set(i64::from(up));
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Metrics").field(&self.ledger()).finish()
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        let all = self.0.numbers.all.iter();
        all.flat_map(|metric| metric.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The lock is held until everything is read, so that two scrapes at once do not mix.
        let counts = lock(&self.0.ledger);
        self.0.numbers.copy(&counts, self.oldest_unflushed());
        let all = self.0.numbers.all.iter();
        all.flat_map(|metric| metric.collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{RefusalCounts, RefusalReason};

    #[test]
    fn what_is_scraped_adds_up() {
        let metrics = Metrics::new().unwrap();
        let registry = Registry::new();
        metrics.register(&registry).unwrap();
        metrics.received(7, 3);
        metrics.ignored(1);
        let flushed = Flushed {
            inserted: 3,
            duplicates: 2,
            rejected_at_parse: 1,
            refused_by_store: RefusalCounts::of(RefusalReason::Constraint, 1),
            letters: vec![4, 5],
        };
        let (took, age) = (Duration::from_millis(3), Duration::from_millis(5));
        metrics.batch_flushed(&flushed, took, age);
        assert!(metrics.ledger().balances());
        assert_eq!(metrics.ledger().in_flight, 2);
        assert_eq!(metrics.released_all(), 2);
        assert!(metrics.ledger().balances());
        assert_eq!(
            metrics.ledger().to_string(),
            "received=7 redelivered=3 stored=3 duplicates=2 dead_lettered=2 refused_by_store=1 \
             ignored=1 released=2 in_flight=0 balanced=true"
        );
        let unbalanced = LedgerCounts {
            stored: 1,
            ..LedgerCounts::default()
        };
        assert!(unbalanced.to_string().ends_with("balanced=false"));

        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        for line in [
            "event_persister_received_total 7",
            "event_persister_redelivered_total 3",
            "event_persister_stored_total 3",
            "event_persister_duplicates_total 2",
            "event_persister_dead_lettered_total{stage=\"parse\"} 1",
            "event_persister_dead_lettered_total{stage=\"store\"} 1",
            "event_persister_refused_by_store_total{reason=\"constraint\"} 1",
            "event_persister_refused_by_store_total{reason=\"raised\"} 0",
            "event_persister_commit_age_seconds_sum 0.005",
            "event_persister_ignored_total 1",
            "event_persister_released_total 2",
            "event_persister_in_flight 0",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} not in:\n{text}"
            );
        }
    }
}
