//! Memory adapters with switchable faults, and events, for tests of actors and of hosts.

mod events;
mod memory_store;

pub use events::{EventFixture, event, event_entry, rejected_entry};
pub use memory_store::{MemoryStore, StoredEvent, StoredResource};
