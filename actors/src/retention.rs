//! How long events are kept, and what to tell of a pass that waits. Plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::store::EventCounts;

/// How long events are kept, by the time at which they occurred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// For all names without one of their own.
    pub default: Duration,
    /// For single event names, shorter or longer.
    pub overrides: BTreeMap<String, Duration>,
}

impl Retention {
    /// Whether an event of this name that occurred then is older than what is kept now.
    pub fn is_over(&self, occurred: DateTime<Utc>, name: &str, now: DateTime<Utc>) -> bool {
        let kept = self.overrides.get(name).unwrap_or(&self.default);
        let age = now.signed_duration_since(occurred);
        TimeDelta::from_std(*kept).is_ok_and(|kept| age > kept)
    }
}

/// A pass that a person has to allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBack {
    /// The time by the clock.
    pub now: DateTime<Utc>,
    /// When the last pass was made or, where none is known, the newest event was stored.
    pub since: DateTime<Utc>,
    /// How many events there were then, and how many of them would go.
    pub counts: EventCounts,
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |at: DateTime<Utc>| at.format("%Y-%m-%d %H:%M");
        write!(
            f,
            "by the clock it is {} UTC, {} days after retention last ran or, before its first run, the \
             newest event was stored ({} UTC), and {} of {} events would go: nothing was removed, and \
             nothing will be until somebody says so. If the clock is right, run \
             `event-persister trim --yes` once; if it is not, set it",
            time(self.now),
            (self.now - self.since).num_days(),
            time(self.since),
            self.counts.num_expired,
            self.counts.num_events
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_older_only_beyond_its_own_period() {
        let day = Duration::from_secs(86_400);
        let retention = Retention {
            default: 7 * day,
            overrides: BTreeMap::from([("short".to_owned(), day), ("long".to_owned(), 30 * day)]),
        };
        let now = DateTime::UNIX_EPOCH;
        for (days, name, is_over) in [
            (7, "e", false),
            (8, "e", true),
            (1, "short", false),
            (2, "short", true),
            (30, "long", false),
            (31, "long", true),
            (-1, "short", false),
        ] {
            let occurred = now - TimeDelta::days(days);
            assert_eq!(
                retention.is_over(occurred, name, now),
                is_over,
                "{days} {name}"
            );
        }
        let for_ever = Retention {
            default: Duration::MAX,
            overrides: BTreeMap::new(),
        };
        assert!(!for_ever.is_over(DateTime::<Utc>::MIN_UTC, "e", now));
    }
}
