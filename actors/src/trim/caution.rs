//! Whether a retention pass would do what somebody with a wrong clock regrets. No actix here.
//!
//! By an absurd clock everything has expired. The database remembers its last pass: one that comes
//! more than a day later *and* would remove more than half of what was there then waits for a
//! person. So does the first pass after a long absence, which one command lets go on.
//!
//! Where no pass is remembered, the time at which the newest event was stored stands for it, so
//! that old events stored just now, from a file or by Prefect, wait for nobody.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::retention::HeldBack;
use crate::store::{Cutoffs, EventStore, LastPass, StoreError};

/// So long may nobody have trimmed, whatever goes then.
const ABSENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// The facts that a pass is compared with.
#[derive(Debug, Clone, Copy)]
pub struct Caution {
    /// Events that were stored later tell nothing: their times may be of a clock that is wrong.
    pub began: DateTime<Utc>,
    /// When this process made a pass, where the database remembers none.
    pub passed: Option<DateTime<Utc>>,
    /// How often passes are made.
    pub every: Duration,
}

impl Caution {
    fn is_long(&self, now: DateTime<Utc>, since: DateTime<Utc>) -> bool {
        let long = ABSENCE.max(self.every.saturating_mul(2));
        TimeDelta::from_std(long).is_ok_and(|long| now.signed_duration_since(since) > long)
    }

    /// Looks whether a pass with these cutoffs has to wait for a person; returns by which clock it goes
    /// if it need not.
    pub async fn look(
        &self,
        store: &dyn EventStore,
        cutoffs: &Cutoffs,
    ) -> Result<Result<LastPass, HeldBack>, StoreError> {
        let last = store.last_pass(self.began).await?;
        let noted = last.at.filter(|_| last.is_noted);
        let Some(since) = self.passed.max(noted).or(last.at) else {
            return Ok(Ok(last));
        };
        if !self.is_long(last.now, since) {
            return Ok(Ok(last));
        }
        let mut counts = store.count_events(cutoffs, since).await?;
        if counts.num_events == 0 {
            // All that is there came after the last pass: what was there when this process started counts.
            counts = store.count_events(cutoffs, self.began).await?;
        }
        if counts.num_expired.saturating_mul(2) <= counts.num_events {
            return Ok(Ok(last));
        }
        Ok(Err(HeldBack {
            now: last.now,
            since,
            counts,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_long_after_more_than_a_day_and_more_than_two_intervals() {
        const HOUR: u64 = 60 * 60;
        for (every, hours) in [(HOUR, 24), (12 * HOUR, 24), (36 * HOUR, 72)] {
            let now = DateTime::UNIX_EPOCH;
            let caution = Caution {
                began: now,
                passed: None,
                every: Duration::from_secs(every),
            };
            let since = now - TimeDelta::hours(hours);
            assert!(!caution.is_long(now, since), "{hours}");
            assert!(caution.is_long(now, since - TimeDelta::nanoseconds(1)));
        }
    }
}
