//! Source: a bounded intake that this process fills itself.
//!
//! The HTTP routes and any host submit entries here and wait until they are durable.
