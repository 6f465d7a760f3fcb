//! One function for each fuzz target; it panics where a promise is broken.
//!
//! Compiled into the fuzz targets and, to play their seeds, into the server's tests.

// Public for the targets; to the server's tests that makes no difference.
#![allow(unreachable_pub)]

mod config;
mod datetime;
mod event;
mod frames;
mod letters;
#[cfg(test)]
mod replay;

pub use {config::config, datetime::datetime, event::event, frames::frames, letters::letters};
