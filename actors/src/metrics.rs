//! Every message accounted for, and every metric's name.
//!
//! The numbers belong to one pipeline and live as long as it does; a host registers them in a
//! registry of its own. Nothing is global.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::batch::{Batch, FlushReason};
use crate::messages::Flushed;
use crate::store::Trimmed;

/// The ledger: at any moment
/// `received + redelivered = stored + duplicates + dead_lettered + ignored + released + in_flight`.
///
/// Requests that were refused with a 4xx stand outside. After an unknown outcome a retry counts
/// what it finds as duplicates, so the tables may hold more rows than `stored`, never fewer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LedgerCounts {
    /// Messages taken from the sources for the first time.
    pub received: u64,
    /// Messages taken again.
    pub redelivered: u64,
    /// Events that became rows.
    pub stored: u64,
    /// Events whose id was there already.
    pub duplicates: u64,
    /// Messages that became dead letters, for either reason.
    pub dead_lettered: u64,
    /// Of those, the ones that the database refused.
    pub refused_by_store: u64,
    /// Empty messages, acknowledged and forgotten.
    pub ignored: u64,
    /// Messages left with their source, at a restart or at the end.
    pub released: u64,
    /// Messages held now.
    pub in_flight: u64,
}

impl LedgerCounts {
    /// Whether every message is accounted for.
    pub fn balances(&self) -> bool {
        self.received + self.redelivered
            == self.stored
                + self.duplicates
                + self.dead_lettered
                + self.ignored
                + self.released
                + self.in_flight
    }
}

/// As in a log line, with whether they balance.
impl std::fmt::Display for LedgerCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            received,
            redelivered,
            stored,
            duplicates,
            dead_lettered,
            refused_by_store,
            ignored,
            released,
            in_flight,
        } = self;
        write!(
            f,
            "received={received} redelivered={redelivered} stored={stored} \
             duplicates={duplicates} dead_lettered={dead_lettered} \
             refused_by_store={refused_by_store} ignored={ignored} released={released} \
             in_flight={in_flight} balanced={}",
            self.balances()
        )
    }
}

/// The numbers of one pipeline, over all of its generations.
///
/// A clone is another handle on the same numbers, so a clone can be registered with a
/// [`Registry`] while the pipeline counts.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    ledger: Mutex<LedgerCounts>,
    oldest: Mutex<Option<Instant>>,
    last_commit: Mutex<Option<Instant>>,
    exported: Exported,
    batches: IntCounterVec,
    failed_batches: IntCounter,
    batch_events: Histogram,
    batch_bytes: Histogram,
    flush_seconds: Histogram,
    trimmed_events: IntCounter,
    trimmed_resources: IntCounter,
    generation: IntGauge,
    ready: IntGauge,
    reading_paused: IntGauge,
}

/// What is copied from the ledger, whole, whenever somebody looks.
struct Exported {
    received: IntCounter,
    redelivered: IntCounter,
    stored: IntCounter,
    duplicates: IntCounter,
    dead_lettered: IntCounterVec,
    ignored: IntCounter,
    released: IntCounter,
    in_flight: IntGauge,
    oldest_unflushed: Gauge,
}

impl Metrics {
    /// All numbers at zero.
    ///
    /// # Errors
    ///
    /// Never with the names below; the metrics library checks them when it runs.
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self(Arc::new(Inner {
            ledger: Mutex::default(),
            oldest: Mutex::default(),
            last_commit: Mutex::default(),
            exported: Exported::new()?,
            batches: IntCounterVec::new(
                Opts::new(
                    "event_persister_batches_total",
                    "Batches handed to a writer, by what made them leave.",
                ),
                &["reason"],
            )?,
            failed_batches: IntCounter::new(
                "event_persister_batch_failures_total",
                "Attempts to write a batch that failed; the batch is kept and written again.",
            )?,
            batch_events: histogram(
                "event_persister_batch_events",
                "Messages in a batch.",
                prometheus::exponential_buckets(1.0, 4.0, 8)?,
            )?,
            batch_bytes: histogram(
                "event_persister_batch_bytes",
                "Bytes in a batch.",
                prometheus::exponential_buckets(1024.0, 4.0, 9)?,
            )?,
            flush_seconds: histogram(
                "event_persister_flush_seconds",
                "From handing a batch to a writer to the end of its transaction.",
                prometheus::exponential_buckets(0.001, 2.0, 15)?,
            )?,
            trimmed_events: IntCounter::new(
                "event_persister_trimmed_events_total",
                "Events that retention removed.",
            )?,
            trimmed_resources: IntCounter::new(
                "event_persister_trimmed_resources_total",
                "Resource rows that retention removed.",
            )?,
            generation: IntGauge::new(
                "event_persister_generation",
                "How many times the pipeline was started whole; above 1 a part of it has died.",
            )?,
            ready: IntGauge::new(
                "event_persister_ready",
                "1 while events that are sent will be stored, else 0.",
            )?,
            reading_paused: IntGauge::new(
                "event_persister_reading_paused",
                "1 while reading pauses because the database refuses nearly everything, else 0.",
            )?,
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

    /// How long the oldest message that is not durable has been held.
    pub fn oldest_unflushed(&self) -> Option<Duration> {
        lock(&self.0.oldest).map(|since| since.elapsed())
    }

    /// For how long there has been something to write, and nothing was committed.
    pub(crate) fn stalled(&self) -> Option<Duration> {
        let waiting_since = (*lock(&self.0.oldest))?;
        let last_commit = *lock(&self.0.last_commit);
        let since = last_commit.map_or(waiting_since, |commit| commit.max(waiting_since));
        Some(since.elapsed())
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
        self.0.batches.with_label_values(&[reason.as_str()]).inc();
        self.0.batch_events.observe(batch.len() as f64);
        self.0.batch_bytes.observe(batch.num_bytes() as f64);
    }

    pub(crate) fn batch_failed(&self) {
        self.0.failed_batches.inc();
    }

    pub(crate) fn batch_flushed(&self, flushed: &Flushed, took: Duration) {
        self.0.flush_seconds.observe(took.as_secs_f64());
        *lock(&self.0.last_commit) = Some(Instant::now());
        let mut counts = lock(&self.0.ledger);
        counts.stored += flushed.inserted;
        counts.duplicates += flushed.duplicates;
        counts.dead_lettered += flushed.dead_lettered();
        counts.refused_by_store += flushed.refused_by_store;
        counts.in_flight = counts.in_flight.saturating_sub(flushed.total());
    }

    /// All that is held is left to the sources; returns how much that was.
    pub(crate) fn released_all(&self) -> u64 {
        let mut counts = lock(&self.0.ledger);
        let released = std::mem::take(&mut counts.in_flight);
        counts.released += released;
        drop(counts);
        self.set_oldest(None);
        released
    }

    pub(crate) fn set_oldest(&self, oldest: Option<Instant>) {
        *lock(&self.0.oldest) = oldest;
    }

    pub(crate) fn trimmed(&self, trimmed: &Trimmed) {
        self.0.trimmed_events.inc_by(trimmed.events);
        self.0.trimmed_resources.inc_by(trimmed.resources);
    }

    pub(crate) fn set_generation(&self, generation: u64) {
        self.0
            .generation
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    pub(crate) fn set_reading_paused(&self, paused: bool) {
        self.0.reading_paused.set(i64::from(paused));
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.0.ready.set(i64::from(ready));
    }
}

/// Ids and sizes are elsewhere; this is a handle.
impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Metrics").field(&self.ledger()).finish()
    }
}

impl Exported {
    fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            received: IntCounter::new(
                "event_persister_received_total",
                "Messages taken from the sources for the first time.",
            )?,
            redelivered: IntCounter::new(
                "event_persister_redelivered_total",
                "Messages taken again.",
            )?,
            stored: IntCounter::new("event_persister_stored_total", "Events that became rows.")?,
            duplicates: IntCounter::new(
                "event_persister_duplicates_total",
                "Events whose id was there already.",
            )?,
            dead_lettered: IntCounterVec::new(
                Opts::new(
                    "event_persister_dead_lettered_total",
                    "Messages that became dead letters, by who refused them.",
                ),
                &["stage"],
            )?,
            ignored: IntCounter::new(
                "event_persister_ignored_total",
                "Empty messages, acknowledged and forgotten.",
            )?,
            released: IntCounter::new(
                "event_persister_released_total",
                "Messages left with their source, at a restart or at the end.",
            )?,
            in_flight: IntGauge::new("event_persister_in_flight", "Messages held now.")?,
            oldest_unflushed: Gauge::new(
                "event_persister_oldest_unflushed_seconds",
                "How long the oldest message that is not durable has been held.",
            )?,
        })
    }

    /// One consistent picture: what is scraped together adds up.
    fn copy(&self, counts: &LedgerCounts, oldest: Option<Duration>) {
        let set = |counter: &IntCounter, value: u64| {
            counter.reset();
            counter.inc_by(value);
        };
        set(&self.received, counts.received);
        set(&self.redelivered, counts.redelivered);
        set(&self.stored, counts.stored);
        set(&self.duplicates, counts.duplicates);
        let by_stage = |stage| self.dead_lettered.with_label_values(&[stage]);
        let by_parser = counts.dead_lettered - counts.refused_by_store;
        set(&by_stage("parse"), by_parser);
        set(&by_stage("store"), counts.refused_by_store);
        set(&self.ignored, counts.ignored);
        set(&self.released, counts.released);
        self.in_flight
            .set(i64::try_from(counts.in_flight).unwrap_or(i64::MAX));
        self.oldest_unflushed
            .set(oldest.unwrap_or_default().as_secs_f64());
    }

    fn collectors(&self) -> [&dyn Collector; 9] {
        [
            &self.received,
            &self.redelivered,
            &self.stored,
            &self.duplicates,
            &self.dead_lettered,
            &self.ignored,
            &self.released,
            &self.in_flight,
            &self.oldest_unflushed,
        ]
    }
}

impl Inner {
    fn collectors(&self) -> impl Iterator<Item = &dyn Collector> {
        let own: [&dyn Collector; 10] = [
            &self.batches,
            &self.failed_batches,
            &self.batch_events,
            &self.batch_bytes,
            &self.flush_seconds,
            &self.trimmed_events,
            &self.trimmed_resources,
            &self.generation,
            &self.ready,
            &self.reading_paused,
        ];
        self.exported.collectors().into_iter().chain(own)
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.0.collectors().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The lock is held until everything is read, so that two scrapes at once do not mix.
        let counts = lock(&self.0.ledger);
        self.0.exported.copy(&counts, self.oldest_unflushed());
        self.0.collectors().flat_map(Collector::collect).collect()
    }
}

fn histogram(name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram, prometheus::Error> {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            refused_by_store: 1,
        };
        metrics.batch_flushed(&flushed, Duration::from_millis(3));
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
