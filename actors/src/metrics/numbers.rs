//! Every number that is scraped, by its name.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Error, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    exponential_buckets,
};
use strum::{AsRefStr, VariantArray};

use super::LedgerCounts;
use crate::batch_queue::FlushReason;
use crate::store::{RefusalReason, StoreError};

#[derive(Debug, Clone, Copy, PartialEq, Eq, AsRefStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum RetryKind {
    /// Nothing of a batch was written.
    Unavailable,
    /// A batch took too long, and goes out again in halves.
    TooSlow,
    OutcomeUnknown,
    WriterDied,
    Rewind,
    Read,
    /// A source could not be told what is durable.
    Acknowledge,
}

impl From<&StoreError> for RetryKind {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable { .. } => Self::Unavailable,
            StoreError::TooSlow { .. } => Self::TooSlow,
            StoreError::OutcomeUnknown { .. } => Self::OutcomeUnknown,
        }
    }
}

/// How a retention pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, AsRefStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum PassOutcome {
    /// Nothing was left to remove.
    Done,
    /// Another process does it.
    LeftToAnother,
    /// It could not be made or not be finished; the next one makes up for it.
    Failed,
}

pub(super) struct Numbers {
    // The copy of the ledger, made whole at every scrape.
    received: IntCounter,
    redelivered: IntCounter,
    stored: IntCounter,
    duplicates: IntCounter,
    dead_lettered: IntCounterVec,
    ignored: IntCounter,
    released: IntCounter,
    in_flight: IntGauge,
    oldest_unflushed: Gauge,
    pub(super) in_flight_bytes: IntGauge,
    pub(super) writers_busy: IntGauge,
    // How the pipeline is.
    pub(super) generation: IntGauge,
    pub(super) ready: IntGauge,
    pub(super) degraded: IntGauge,
    pub(super) reading_paused: IntGauge,
    pub(super) component_up: IntGaugeVec,
    // The work itself.
    pub(super) batches: IntCounterVec,
    pub(super) batch_events: Histogram,
    pub(super) batch_bytes: Histogram,
    pub(super) flush_seconds: Histogram,
    pub(super) commit_age_seconds: Histogram,
    pub(super) retries: IntCounterVec,
    pub(super) refused: IntCounterVec,
    pub(super) older_than_retention: IntCounter,
    pub(super) trimmed_events: IntCounter,
    pub(super) trimmed_resources: IntCounter,
    pub(super) trimmed_partitions: IntCounter,
    pub(super) trim_passes: IntCounterVec,
    pub(super) trim_seconds: Histogram,
    pub(super) all: Vec<Box<dyn Collector>>,
}

impl Numbers {
    pub(super) fn new() -> Result<Self, Error> {
        let mut all = All::default();
        Ok(Self {
            received: all.counter(
                "event_persister_received_total",
                "Messages taken from the sources for the first time.",
            )?,
            redelivered: all.counter(
                "event_persister_redelivered_total",
                "Messages taken again.",
            )?,
            stored: all.counter("event_persister_stored_total", "Events that became rows.")?,
            duplicates: all.counter(
                "event_persister_duplicates_total",
                "Events whose id was there already.",
            )?,
            dead_lettered: all.counters(
                "event_persister_dead_lettered_total",
                "Messages that became dead letters, by who refused them.",
                "stage",
                &["parse", "store"],
            )?,
            ignored: all.counter(
                "event_persister_ignored_total",
                "Empty messages, acknowledged and forgotten.",
            )?,
            released: all.counter(
                "event_persister_released_total",
                "Messages left with their source, at a restart or at the end.",
            )?,
            in_flight: all.gauge("event_persister_in_flight", "Messages held now.")?,
            oldest_unflushed: all.keep(Gauge::new(
                "event_persister_oldest_unflushed_seconds",
                "How long the oldest message that is not durable has been held.",
            ))?,
            in_flight_bytes: all.gauge(
                "event_persister_in_flight_bytes",
                "Bytes of the messages that the batcher and the writers hold now.",
            )?,
            writers_busy: all.gauge(
                "event_persister_writers_busy",
                "Writers that are at work on a batch now.",
            )?,
            generation: all.gauge(
                "event_persister_generation",
                "How many times the pipeline was started whole; above 1 a part of it has died.",
            )?,
            ready: all.gauge(
                "event_persister_ready",
                "1 while events that are sent will be stored, else 0.",
            )?,
            degraded: all.gauge(
                "event_persister_degraded",
                "1 while an event has been held for more than 10 s although others are stored, else 0.",
            )?,
            reading_paused: all.gauge(
                "event_persister_reading_paused",
                "1 while reading pauses because the database refuses nearly everything, else 0.",
            )?,
            component_up: all.keep(IntGaugeVec::new(
                Opts::new(
                    "event_persister_component_up",
                    "1 while the last attempt of a part succeeded, else 0.",
                ),
                &["component"],
            ))?,
            batches: all.counters(
                "event_persister_batches_total",
                "Batches handed to a writer, by what made them leave.",
                "reason",
                FlushReason::VARIANTS,
            )?,
            batch_events: all.histogram(
                "event_persister_batch_events",
                "Messages in a batch.",
                exponential_buckets(1.0, 4.0, 8)?,
            )?,
            batch_bytes: all.histogram(
                "event_persister_batch_bytes",
                "Bytes in a batch.",
                exponential_buckets(1024.0, 4.0, 9)?,
            )?,
            flush_seconds: all.histogram(
                "event_persister_flush_seconds",
                "From handing a batch to a writer to the end of its transaction.",
                exponential_buckets(0.001, 2.0, 15)?,
            )?,
            commit_age_seconds: all.histogram(
                "event_persister_commit_age_seconds",
                "How long the oldest message of a batch had been held when it was committed.",
                exponential_buckets(0.002, 2.0, 17)?,
            )?,
            retries: all.counters(
                "event_persister_retries_total",
                "What failed and is tried again, by what failed.",
                "kind",
                RetryKind::VARIANTS,
            )?,
            refused: all.counters(
                "event_persister_refused_by_store_total",
                "Dead letters of events that the database refused, by why.",
                "reason",
                &RefusalReason::ALL.map(RefusalReason::as_str),
            )?,
            older_than_retention: all.counter(
                "event_persister_older_than_retention_total",
                "Events that came when retention no longer kept what is as old.",
            )?,
            trimmed_events: all.counter(
                "event_persister_trimmed_events_total",
                "Events that retention removed.",
            )?,
            trimmed_resources: all.counter(
                "event_persister_trimmed_resources_total",
                "Resource rows that retention removed.",
            )?,
            trimmed_partitions: all.counter(
                "event_persister_trimmed_partitions_total",
                "Partitions that retention dropped.",
            )?,
            trim_passes: all.counters(
                "event_persister_trim_passes_total",
                "Retention passes, by how they ended.",
                "outcome",
                PassOutcome::VARIANTS,
            )?,
            trim_seconds: all.histogram(
                "event_persister_trim_seconds",
                "How long a retention pass took.",
                exponential_buckets(0.01, 4.0, 9)?,
            )?,
            all: all.0,
        })
    }

    /// Copies one consistent picture: the numbers of one scrape add up.
    pub(super) fn copy(&self, counts: &LedgerCounts, oldest: Option<Duration>) {
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
        let in_flight = i64::try_from(counts.in_flight).unwrap_or(i64::MAX);
        self.in_flight.set(in_flight);
        let oldest = oldest.unwrap_or_default();
        self.oldest_unflushed.set(oldest.as_secs_f64());
    }
}

/// Makes metrics, and keeps a handle on each.
#[derive(Default)]
struct All(Vec<Box<dyn Collector>>);

impl All {
    fn keep<M>(&mut self, made: Result<M, Error>) -> Result<M, Error>
    where
        M: Collector + Clone + 'static,
    {
        let metric = made?;
        self.0.push(Box::new(metric.clone()));
        Ok(metric)
    }

    fn counter(&mut self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.keep(IntCounter::new(name, help))
    }

    fn gauge(&mut self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.keep(IntGauge::new(name, help))
    }

    /// Counters of one label. All are there from the start, at zero: a rate over a counter that
    /// appears with its first event misses that event.
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[impl AsRef<str>],
    ) -> Result<IntCounterVec, Error> {
        let counters = self.keep(IntCounterVec::new(Opts::new(name, help), &[label]))?;
        for value in values {
            counters.get_metric_with_label_values(&[value.as_ref()])?;
        }
        Ok(counters)
    }

    fn histogram(&mut self, name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram, Error> {
        let options = HistogramOpts::new(name, help).buckets(buckets);
        self.keep(Histogram::with_opts(options))
    }
}
