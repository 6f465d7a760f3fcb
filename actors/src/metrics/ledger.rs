//! The ledger: every message accounted for.

use serde::Serialize;

/// The ledger: at any moment
/// `received + redelivered = stored + duplicates + dead_lettered + ignored + released + in_flight`.
///
/// Requests refused with a 4xx stand outside. After an unknown outcome a retry counts what it finds
/// as duplicates, so the tables may hold more rows than `stored`, never fewer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LedgerCounts {
    /// Messages taken from the sources for the first time.
    pub received: u64,
    /// Messages taken again, after a restart, a failure or from a dead replica.
    pub redelivered: u64,
    /// Events that were committed as new rows.
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
    /// Messages taken, and neither durable nor released yet.
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
