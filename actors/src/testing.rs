//! Fakes for tests of actors and of hosts: observable, with switchable faults, and held to the same
//! contracts as the real adapters.

mod memory_source;
mod probe;

pub use memory_source::MemorySource;
pub use probe::{Asked, Inbox, probe};
