//! A clock that stands still until it is moved.

use std::sync::Mutex;

use chrono::{DateTime, TimeDelta, Utc};

use crate::clock::Clock;
use crate::lock::lock;

/// Shows the moment that it was set to.
#[derive(Debug)]
pub struct ManualClock(Mutex<DateTime<Utc>>);

impl ManualClock {
    /// A clock at this moment.
    pub fn at(now: DateTime<Utc>) -> Self {
        Self(Mutex::new(now))
    }

    /// Moves it, forwards or backwards.
    pub fn advance(&self, by: TimeDelta) {
        *lock(&self.0) += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        *lock(&self.0)
    }
}
