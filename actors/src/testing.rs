//! Fakes for tests of actors and of hosts: observable, with switchable faults, and held to the same
//! contracts as the real adapters.

mod clock;
mod events;
mod memory_source;
mod memory_store;
#[cfg(test)]
mod paused;
mod probe;

pub use clock::ManualClock;
pub use events::{EventFixture, event, event_entry, json_of, rejected_entry};
pub use memory_source::MemorySource;
pub use memory_store::{MemoryStore, StoredEvent, StoredResource};
#[cfg(test)]
pub(crate) use paused::pause_time;
pub use probe::{Asked, Inbox, probe};
