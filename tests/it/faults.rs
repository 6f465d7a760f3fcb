//! Whatever may break is broken under load, and nothing is lost.
//!
//! Each case ends with the same questions. Is every event that was published one row with all of its
//! resources, or a dead letter where it had to become one? Is nothing left pending? Did it recover
//! unaided, in bounded memory, and does its ledger add up? The cases take as long as
//! `TEST_SECONDS_OF_TROUBLE` lets them; `tests/run.sh --faults` runs them at full length and writes
//! `tests/FAULTS.md` from what they record.

mod case;
mod culprits;
mod failover;
mod kills;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod network;
mod persister;
mod poison;
mod postgresql;
mod redis;
mod replication;
mod sqlite;
mod table;
mod trim;

pub(crate) use case::{SmallDisk, trouble};
