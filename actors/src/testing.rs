//! Fakes with observable state and switchable faults, for tests of actors and of hosts.

mod memory_source;

pub use memory_source::MemorySource;
