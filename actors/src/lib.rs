#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod event;

pub mod delivery;

pub mod source;

pub mod messages;

pub mod consumer;

pub mod batch;
pub mod batcher;
mod control;
pub mod credit;
pub mod isolation;
pub mod refusals;

pub mod db_writer;

pub mod store;

pub mod retention;
pub mod trim;

pub mod pipeline;

#[cfg(any(feature = "postgres", feature = "redis"))]
pub mod address;
pub mod backoff;
pub mod clock;
mod failpoint;
pub mod finding;
pub mod lifeline;
pub mod metrics;
pub mod settings;
pub mod status;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub mod tls;
mod untold;
mod waiters;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
