//! The ledger, and its image in the registry.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts};
use serde::Serialize;

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

/// The copy of the ledger in the registry, made whole at every scrape.
pub(super) struct Exported {
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

impl Exported {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
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
        self.in_flight
            .set(i64::try_from(counts.in_flight).unwrap_or(i64::MAX));
        self.oldest_unflushed
            .set(oldest.unwrap_or_default().as_secs_f64());
    }

    pub(super) fn collectors(&self) -> [&dyn Collector; 9] {
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
