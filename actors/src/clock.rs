//! The wall clock as a value, so that a test can be at any moment.

use chrono::{DateTime, SubsecRound, Utc};

/// Tells the time of day. Durations are measured elsewhere, with the runtime's monotonic clock.
pub trait Clock: Send + Sync {
    /// Now, in whole microseconds, which is what the tables hold.
    fn now(&self) -> DateTime<Utc>;
}

/// The clock of this machine, which a person may set.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that asks the machine"
        )]
        Utc::now().trunc_subsecs(6)
    }
}
