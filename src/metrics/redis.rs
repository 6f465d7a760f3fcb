//! What is known about the stream in Redis, for `/metrics`.

use std::sync::Arc;

use event_persister_actors::clock::Clock;

use super::looked_up::LookedUp;
use crate::wiring::{RedisStats, RedisStatus};

pub(super) struct Seen {
    status: RedisStatus,
    max_entries: u64,
    /// By our clock, which may be a little behind that of Redis.
    now_millis: i64,
}

impl Seen {
    fn seconds_since(&self, millis: u64) -> f64 {
        let since = (self.now_millis).saturating_sub(i64::try_from(millis).unwrap_or(i64::MAX));
        since.max(0) as f64 / 1000.0
    }
}

/// Of one stream, whose alarm begins beyond so many entries.
pub(super) fn of_redis(
    stats: RedisStats,
    max_entries: u64,
    clock: Arc<dyn Clock>,
) -> Result<LookedUp<Seen>, prometheus::Error> {
    let look = move || Seen {
        status: stats.status(),
        max_entries,
        now_millis: clock.now().timestamp_millis(),
    };
    LookedUp::new(look)
        .counter(
            "event_persister_redis_lost_total",
            "Entries that nobody read: trimmed from the stream before, or passed over when the \
             group was set ahead. The true number may be smaller where Redis restarted or failed \
             over just before.",
            |seen| Some(seen.status.num_lost as f64),
        )?
        .counter(
            "event_persister_redis_claimed_total",
            "Entries taken over from consumers that had not touched them for too long.",
            |seen| Some(seen.status.num_claimed as f64),
        )?
        .counter(
            "event_persister_redis_rejoined_total",
            "How often the stream or the group had vanished and was made again.",
            |seen| Some(seen.status.num_rejoined as f64),
        )?
        .gauge(
            "event_persister_redis_own_pending",
            "Entries that this process was given and has not acknowledged.",
            |seen| Some(seen.status.own_pending as f64),
        )?
        .gauge(
            "event_persister_redis_group_pending",
            "Entries that the whole group was given and has not acknowledged.",
            |seen| Some(seen.status.group_pending as f64),
        )?
        .gauge(
            "event_persister_redis_stream_length",
            "Entries in the stream.",
            |seen| Some(seen.status.stream_length as f64),
        )?
        .gauge(
            "event_persister_redis_lag",
            "Entries that the group was not given yet; left out while Redis does not know.",
            |seen| seen.status.lag.map(|lag| lag as f64),
        )?
        .gauge(
            "event_persister_redis_lag_seconds",
            "How long ago the oldest entry was added that is not acknowledged; 0 if there is none.",
            |seen| {
                let oldest = seen.status.oldest_millis;
                Some(oldest.map_or(0.0, |millis| seen.seconds_since(millis)))
            },
        )?
        .gauge(
            "event_persister_redis_guard",
            "1 while the trim guard is in place, else 0.",
            |seen| Some(f64::from(seen.status.guard_position.is_some())),
        )?
        .gauge(
            "event_persister_redis_guard_age_seconds",
            "Seconds for which the trim guard has not been moved to where it belongs; 0 or 1 when \
             all is well. Left out without one.",
            |seen| seen.status.guard_age.map(|age| age.as_secs() as f64),
        )?
        .gauge(
            "event_persister_redis_guard_position_seconds",
            "The time in the id at which the trim guard stands, since 1970; left out without a \
             guard.",
            |seen| {
                let position = millis(seen.status.guard_position.as_deref()?)?;
                Some(position as f64 / 1000.0)
            },
        )?
        .gauge(
            "event_persister_redis_guard_max_entries",
            "Entries in the stream above which redis_guard_alarm is 1 (redis.guard_max_entries).",
            |seen| Some(seen.max_entries as f64),
        )?
        .gauge(
            "event_persister_redis_guard_alarm",
            "1 while the stream is longer than redis.guard_max_entries, else 0.",
            |seen| Some(f64::from(seen.status.alarm)),
        )
}

fn millis(id: &str) -> Option<u64> {
    id.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use event_persister_actors::clock::SystemClock;
    use prometheus::{Encoder as _, Registry, TextEncoder};

    use super::*;

    #[test]
    fn the_numbers_of_the_stream_are_there_and_none_that_is_unknown() {
        let registry = Registry::new();
        let clock = Arc::new(SystemClock);
        let metrics = of_redis(RedisStats::default(), 7, clock).unwrap();
        registry.register(Box::new(metrics)).unwrap();
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&registry.gather(), &mut text)
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("event_persister_redis_lost_total 0"),
            "{text}"
        );
        assert!(
            text.contains("event_persister_redis_stream_length 0"),
            "{text}"
        );
        assert!(
            text.contains("event_persister_redis_guard_max_entries 7"),
            "{text}"
        );
        assert!(
            text.contains("event_persister_redis_lag_seconds 0"),
            "{text}"
        );
        assert!(!text.contains("event_persister_redis_lag "), "{text}");
        assert!(!text.contains("redis_guard_position_seconds"), "{text}");
        assert!(!text.contains("guard_age"), "{text}");
    }

    #[test]
    fn the_guard_stands_at_a_time() {
        assert_eq!(millis("1700000000123-0"), Some(1_700_000_000_123));
        assert_eq!(millis("abandoned"), None);
    }
}
