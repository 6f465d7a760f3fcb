#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

/// The future that the methods of [`source::EventSource`] and [`store::EventStore`] return.
pub use futures_util::future::LocalBoxFuture;

pub mod prelude;

pub mod event;

pub mod delivery;

pub mod source;

pub mod messages;

mod consumer;

#[doc(hidden)]
pub mod batch_queue;
mod batcher;
mod control;
#[doc(hidden)]
pub mod credit;
mod isolation;
mod refusals;

mod db_writer;

pub mod store;

pub mod reader;

pub mod archive;
pub mod retention;
pub mod trim;

pub mod pipeline;

#[cfg(feature = "http")]
pub mod access;
#[cfg(any(feature = "nats", feature = "postgres", feature = "redis"))]
#[doc(hidden)]
pub mod address;
pub mod backoff;
pub mod clock;
mod failpoint;
#[doc(hidden)]
pub mod finding;
#[cfg(feature = "http")]
pub mod health;
mod lifeline;
pub mod live;
mod lock;
pub mod metrics;
pub mod primary;
#[cfg(any(feature = "nats", feature = "redis"))]
#[doc(hidden)]
pub mod publisher;
mod rate_limited_log;
#[cfg(feature = "http")]
pub mod read_routes;
#[doc(hidden)]
pub mod settings;
pub mod status;
#[cfg(any(
    feature = "archive",
    feature = "nats",
    feature = "postgres",
    feature = "redis"
))]
#[doc(hidden)]
pub mod tls;
mod waiters;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
