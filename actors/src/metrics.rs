//! Every message accounted for, and every metric's name.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::messages::Flushed;

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

/// The ledger of one pipeline over all of its generations.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<LedgerCounts>);

impl Ledger {
    /// Messages were taken from a source.
    pub fn received(&self, first_time: u64, again: u64) {
        self.with(|counts| {
            counts.received += first_time;
            counts.redelivered += again;
            counts.in_flight += first_time + again;
        });
    }

    /// Empty messages, already counted as received, were acknowledged.
    pub fn ignored(&self, num_messages: u64) {
        self.with(|counts| {
            counts.ignored += num_messages;
            counts.in_flight = counts.in_flight.saturating_sub(num_messages);
        });
    }

    /// A batch is durable.
    pub fn flushed(&self, flushed: &Flushed) {
        self.with(|counts| {
            counts.stored += flushed.inserted;
            counts.duplicates += flushed.duplicates;
            counts.dead_lettered += flushed.dead_lettered();
            counts.refused_by_store += flushed.refused_by_store;
            counts.in_flight = counts.in_flight.saturating_sub(flushed.total());
        });
    }

    /// All that is held is left to the sources; returns how much that was.
    pub fn released_all(&self) -> u64 {
        self.with(|counts| {
            let released = std::mem::take(&mut counts.in_flight);
            counts.released += released;
            released
        })
    }

    /// As it is now.
    pub fn counts(&self) -> LedgerCounts {
        self.with(|counts| *counts)
    }

    fn with<T>(&self, f: impl FnOnce(&mut LedgerCounts) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
