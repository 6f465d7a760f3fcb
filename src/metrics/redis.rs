//! What is known about the stream in Redis, for `/metrics`.

use std::sync::Arc;

use event_persister_actors::clock::Clock;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntCounter, IntGauge};

use crate::wiring::RedisStats;

/// Reads the numbers whenever somebody looks.
pub(crate) struct RedisMetrics {
    stats: RedisStats,
    clock: Arc<dyn Clock>,
    lost: IntCounter,
    claimed: IntCounter,
    rejoined: IntCounter,
    own_pending: IntGauge,
    group_pending: IntGauge,
    stream_length: IntGauge,
    lag: IntGauge,
    lag_seconds: Gauge,
    guard: IntGauge,
    guard_age: IntGauge,
    guard_position: Gauge,
    guard_max_entries: IntGauge,
    alarm: IntGauge,
}

impl RedisMetrics {
    /// Of one stream, whose alarm begins beyond so many entries.
    pub(crate) fn new(
        stats: RedisStats,
        max_entries: u64,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, prometheus::Error> {
        let guard_max_entries = IntGauge::new(
            "event_persister_redis_guard_max_entries",
            "Entries in the stream above which redis_guard_alarm is 1 (redis.guard_max_entries).",
        )?;
        guard_max_entries.set(i64::try_from(max_entries).unwrap_or(i64::MAX));
        Ok(Self {
            stats,
            clock,
            guard_max_entries,
            lost: IntCounter::new(
                "event_persister_redis_lost_total",
                "Entries that nobody read: trimmed from the stream before, or passed over when the \
                 group was set ahead. The true number may be smaller where Redis restarted or failed \
                 over just before.",
            )?,
            claimed: IntCounter::new(
                "event_persister_redis_claimed_total",
                "Entries taken over from consumers that had not touched them for too long.",
            )?,
            rejoined: IntCounter::new(
                "event_persister_redis_rejoined_total",
                "How often the stream or the group had vanished and was made again.",
            )?,
            own_pending: IntGauge::new(
                "event_persister_redis_own_pending",
                "Entries that this process was given and has not acknowledged.",
            )?,
            group_pending: IntGauge::new(
                "event_persister_redis_group_pending",
                "Entries that the whole group was given and has not acknowledged.",
            )?,
            stream_length: IntGauge::new(
                "event_persister_redis_stream_length",
                "Entries in the stream.",
            )?,
            lag: IntGauge::new(
                "event_persister_redis_lag",
                "Entries that the group was not given yet; left out while Redis does not know.",
            )?,
            lag_seconds: Gauge::new(
                "event_persister_redis_lag_seconds",
                "How long ago the oldest entry was added that is not acknowledged; 0 if there is \
                 none.",
            )?,
            guard: IntGauge::new(
                "event_persister_redis_guard",
                "1 while the trim guard is in place, else 0.",
            )?,
            guard_age: IntGauge::new(
                "event_persister_redis_guard_age_seconds",
                "Seconds for which the trim guard has not been moved to where it belongs; 0 or 1 \
                 when all is well. Left out without one.",
            )?,
            guard_position: Gauge::new(
                "event_persister_redis_guard_position_seconds",
                "The time in the id at which the trim guard stands, since 1970; left out without \
                 a guard.",
            )?,
            alarm: IntGauge::new(
                "event_persister_redis_guard_alarm",
                "1 while the stream is longer than redis.guard_max_entries, else 0.",
            )?,
        })
    }

    fn all(&self) -> [&dyn Collector; 13] {
        [
            &self.lost,
            &self.claimed,
            &self.rejoined,
            &self.own_pending,
            &self.group_pending,
            &self.stream_length,
            &self.lag,
            &self.lag_seconds,
            &self.guard,
            &self.guard_age,
            &self.guard_position,
            &self.guard_max_entries,
            &self.alarm,
        ]
    }
}

impl RedisMetrics {
    /// By our clock, which may be a little behind that of Redis.
    fn seconds_since(&self, millis: u64) -> f64 {
        let now = self.clock.now().timestamp_millis();
        let since = now.saturating_sub(i64::try_from(millis).unwrap_or(i64::MAX));
        since.max(0) as f64 / 1000.0
    }
}

impl Collector for RedisMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.all()
            .into_iter()
            .flat_map(|metric| metric.desc())
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = self.stats.status();
        for (counter, value) in [
            (&self.lost, status.num_lost),
            (&self.claimed, status.num_claimed),
            (&self.rejoined, status.num_rejoined),
        ] {
            // Two who look at once would count twice if this only added; the numbers never fall.
            counter.reset();
            counter.inc_by(value);
        }
        for (gauge, value) in [
            (&self.own_pending, status.own_pending),
            (&self.group_pending, status.group_pending),
            (&self.stream_length, status.stream_length),
            (&self.lag, status.lag.unwrap_or_default()),
            (&self.guard, u64::from(status.guard_position.is_some())),
            (
                &self.guard_age,
                status.guard_age.unwrap_or_default().as_secs(),
            ),
            (&self.alarm, u64::from(status.alarm)),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        let lag_seconds = status
            .oldest_millis
            .map(|millis| self.seconds_since(millis));
        self.lag_seconds.set(lag_seconds.unwrap_or_default());
        let guard_millis = status.guard_position.as_deref().and_then(millis);
        let guard_seconds = guard_millis.map(|millis| millis as f64 / 1000.0);
        self.guard_position.set(guard_seconds.unwrap_or_default());
        let unknown = [
            (
                status.guard_age.is_none(),
                "event_persister_redis_guard_age_seconds",
            ),
            (status.lag.is_none(), "event_persister_redis_lag"),
            (
                guard_seconds.is_none(),
                "event_persister_redis_guard_position_seconds",
            ),
        ];
        self.all()
            .into_iter()
            .flat_map(|metric| metric.collect())
            .filter(|family| !unknown.contains(&(true, family.name())))
            .collect()
    }
}

/// The time in a stream's id.
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
        let metrics = RedisMetrics::new(RedisStats::default(), 7, clock).unwrap();
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
