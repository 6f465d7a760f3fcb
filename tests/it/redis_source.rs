//! The Redis source against real servers.
