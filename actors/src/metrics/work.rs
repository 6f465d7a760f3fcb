//! The numbers of the work itself: batches, what is tried again, what is refused, retention.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, exponential_buckets};

use crate::batch::Batch;
use crate::batch_queue::FlushReason;
use crate::store::{RefusalCounts, RefusalReason, StoreError, Trimmed};

/// A failure after which something is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryKind {
    /// Nothing of a batch was written.
    Unavailable,
    /// A batch took too long, and goes out again in halves.
    TooSlow,
    /// Whether a batch was written is not known.
    OutcomeUnknown,
    /// A writer died with a batch.
    WriterDied,
    /// A source could not be rewound.
    Rewind,
    /// A source could not be read.
    Read,
    /// A source could not be told what is durable.
    Acknowledge,
}

impl RetryKind {
    const ALL: [Self; 7] = [
        Self::Unavailable,
        Self::TooSlow,
        Self::OutcomeUnknown,
        Self::WriterDied,
        Self::Rewind,
        Self::Read,
        Self::Acknowledge,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::TooSlow => "too_slow",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::WriterDied => "writer_died",
            Self::Rewind => "rewind",
            Self::Read => "read",
            Self::Acknowledge => "acknowledge",
        }
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassOutcome {
    Done,
    LeftToAnother,
    Failed,
}

impl PassOutcome {
    const ALL: [Self; 3] = [Self::Done, Self::LeftToAnother, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::LeftToAnother => "left_to_another",
            Self::Failed => "failed",
        }
    }
}

pub(super) struct Work {
    batches: IntCounterVec,
    batch_events: Histogram,
    batch_bytes: Histogram,
    flush_seconds: Histogram,
    commit_age_seconds: Histogram,
    retries: IntCounterVec,
    refused: IntCounterVec,
    older_than_retention: IntCounter,
    trimmed_events: IntCounter,
    trimmed_resources: IntCounter,
    trim_passes: IntCounterVec,
    trim_seconds: Histogram,
}

impl Work {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            batches: counters(
                "event_persister_batches_total",
                "Batches handed to a writer, by what made them leave.",
                "reason",
                FlushReason::ALL.map(FlushReason::as_str),
            )?,
            batch_events: histogram(
                "event_persister_batch_events",
                "Messages in a batch.",
                exponential_buckets(1.0, 4.0, 8)?,
            )?,
            batch_bytes: histogram(
                "event_persister_batch_bytes",
                "Bytes in a batch.",
                exponential_buckets(1024.0, 4.0, 9)?,
            )?,
            flush_seconds: histogram(
                "event_persister_flush_seconds",
                "From handing a batch to a writer to the end of its transaction.",
                exponential_buckets(0.001, 2.0, 15)?,
            )?,
            commit_age_seconds: histogram(
                "event_persister_commit_age_seconds",
                "How long the oldest message of a batch had been held when it was committed.",
                exponential_buckets(0.002, 2.0, 17)?,
            )?,
            retries: counters(
                "event_persister_retries_total",
                "What failed and is tried again, by what failed.",
                "kind",
                RetryKind::ALL.map(RetryKind::as_str),
            )?,
            refused: counters(
                "event_persister_refused_by_store_total",
                "Dead letters of events that the database refused, by why.",
                "reason",
                RefusalReason::ALL.map(RefusalReason::as_str),
            )?,
            older_than_retention: IntCounter::new(
                "event_persister_older_than_retention_total",
                "Events that came when retention no longer kept what is as old.",
            )?,
            trimmed_events: IntCounter::new(
                "event_persister_trimmed_events_total",
                "Events that retention removed.",
            )?,
            trimmed_resources: IntCounter::new(
                "event_persister_trimmed_resources_total",
                "Resource rows that retention removed.",
            )?,
            trim_passes: counters(
                "event_persister_trim_passes_total",
                "Retention passes, by how they ended.",
                "outcome",
                PassOutcome::ALL.map(PassOutcome::as_str),
            )?,
            trim_seconds: histogram(
                "event_persister_trim_seconds",
                "How long a retention pass took.",
                exponential_buckets(0.01, 4.0, 9)?,
            )?,
        })
    }

    pub(super) fn handed_out(&self, reason: FlushReason, batch: &Batch) {
        self.batches.with_label_values(&[reason.as_str()]).inc();
        self.batch_events.observe(batch.len() as f64);
        self.batch_bytes.observe(batch.num_bytes() as f64);
    }

    pub(super) fn flushed(&self, refused: &RefusalCounts, took: Duration, age: Duration) {
        self.flush_seconds.observe(took.as_secs_f64());
        self.commit_age_seconds.observe(age.as_secs_f64());
        for (reason, num_events) in refused.iter() {
            let counter = self.refused.with_label_values(&[reason.as_str()]);
            counter.inc_by(num_events);
        }
    }

    pub(super) fn retries(&self, kind: RetryKind) {
        self.retries.with_label_values(&[kind.as_str()]).inc();
    }

    pub(super) fn older_than_retention(&self, num_events: u64) {
        self.older_than_retention.inc_by(num_events);
    }

    pub(super) fn num_older_than_retention(&self) -> u64 {
        self.older_than_retention.get()
    }

    pub(super) fn trimmed(&self, trimmed: &Trimmed) {
        self.trimmed_events.inc_by(trimmed.events);
        self.trimmed_resources.inc_by(trimmed.resources);
    }

    pub(super) fn trim_pass(&self, outcome: PassOutcome, took: Duration) {
        let passes = self.trim_passes.with_label_values(&[outcome.as_str()]);
        passes.inc();
        self.trim_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn collectors(&self) -> [&dyn Collector; 12] {
        [
            &self.batches,
            &self.batch_events,
            &self.batch_bytes,
            &self.flush_seconds,
            &self.commit_age_seconds,
            &self.retries,
            &self.refused,
            &self.older_than_retention,
            &self.trimmed_events,
            &self.trimmed_resources,
            &self.trim_passes,
            &self.trim_seconds,
        ]
    }
}

/// Counters of one label. All are there from the start, at zero: a rate over a counter that
/// appears with its first event misses that event.
fn counters<const N: usize>(
    name: &str,
    help: &str,
    label: &str,
    values: [&str; N],
) -> Result<IntCounterVec, prometheus::Error> {
    let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
    for value in values {
        counters.get_metric_with_label_values(&[value])?;
    }
    Ok(counters)
}

fn histogram(name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram, prometheus::Error> {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
}
