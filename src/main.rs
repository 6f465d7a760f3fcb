//! The event persister as a server process.

fn main() {}
