//! Waits for what nobody announces: asks again until it is so.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Nothing here takes longer, on however busy a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// How soon it is asked again: too seldom costs the tests time, too often costs the servers theirs.
const POLL: Duration = Duration::from_millis(20);

/// Waits until something holds.
#[track_caller]
pub(crate) fn until(
    what: impl fmt::Display,
    holds: impl FnMut() -> bool,
) -> impl Future<Output = ()> {
    until_within(PATIENCE, what, holds)
}

/// The same, with a patience of its own.
#[track_caller]
pub(crate) fn until_within(
    patience: Duration,
    what: impl fmt::Display,
    mut holds: impl FnMut() -> bool,
) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let started = Instant::now();
        while !holds() {
            let waited = started.elapsed();
            assert!(waited < patience, "{caller}: not yet {what}");
            sleep(POLL).await;
        }
    }
}

/// As [`until`], for a test without a runtime.
#[track_caller]
pub(crate) fn until_blocking(what: impl fmt::Display, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not yet {what}");
        std::thread::sleep(POLL);
    }
}

/// What a future gives, which must not take forever.
#[track_caller]
pub(crate) fn in_time<T>(
    what: impl fmt::Display,
    future: impl Future<Output = T>,
) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        let ended = tokio::time::timeout(PATIENCE, future).await;
        ended.unwrap_or_else(|_| panic!("{caller}: not yet {what}"))
    }
}
