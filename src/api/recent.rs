//! How long something took of late, from a histogram that counts since the process began: one that has just become
//! slow would not show there for hours.

use std::collections::VecDeque;
use std::time::Duration;

use prometheus::proto::Histogram;
use tokio::time::Instant;

/// What is shown is of the last minute.
const SPAN: Duration = Duration::from_secs(60);
/// However many ask, so often is remembered what was counted.
const REMEMBERED_EVERY: Duration = Duration::from_secs(2);

/// What a histogram had counted at moments of the last minute.
#[derive(Default)]
pub(super) struct RecentTimes {
    counted: VecDeque<(Instant, Times)>,
}

/// How many took how long.
#[derive(Clone, Default)]
pub(super) struct Times {
    /// Upper bounds in seconds, and how many took no longer.
    buckets: Vec<(f64, u64)>,
    num: u64,
}

impl RecentTimes {
    /// What was counted in the last minute. Where nobody has looked in it that is all of a process that is no older,
    /// and of any other nothing is known.
    pub(super) fn look(&mut self, times: &Times, uptime: Duration, now: Instant) -> Times {
        while let Some((at, _)) = self.counted.front()
            && now.saturating_duration_since(*at) > SPAN
        {
            self.counted.pop_front();
        }
        let is_due = |at: Instant| now.saturating_duration_since(at) >= REMEMBERED_EVERY;
        if self.counted.back().is_none_or(|(at, _)| is_due(*at)) {
            self.counted.push_back((now, times.clone()));
        }
        if uptime <= SPAN {
            return times.clone();
        }
        let before = self.counted.front().map_or(times, |(_, before)| before);
        times.since(before)
    }
}

impl Times {
    fn since(&self, before: &Self) -> Self {
        let buckets = self.buckets.iter().zip(&before.buckets);
        Self {
            buckets: buckets
                .map(|((bound, num), (_, before))| (*bound, num.saturating_sub(*before)))
                .collect(),
            num: self.num.saturating_sub(before.num),
        }
    }

    /// The bound of the bucket in which this share is reached; `None` where nothing was measured.
    pub(super) fn percentile(&self, share: f64) -> Option<f64> {
        if self.num == 0 {
            return None;
        }
        let wanted = self.num as f64 * share;
        let mut buckets = self.buckets.iter();
        let reached = buckets.find(|(_, num)| *num as f64 >= wanted);
        reached
            .or(self.buckets.last())
            .map(|(upper_bound, _)| *upper_bound)
    }
}

impl From<&Histogram> for Times {
    fn from(histogram: &Histogram) -> Self {
        let buckets = histogram.get_bucket().iter();
        Self {
            buckets: buckets
                .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
                .collect(),
            num: histogram.get_sample_count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Duration = Duration::from_secs(86_400);

    /// So many that took 10 ms, and so many that took a second.
    fn times(num_fast: u64, num_slow: u64) -> Times {
        let num = num_fast + num_slow;
        Times {
            buckets: vec![(0.01, num_fast), (1.0, num)],
            num,
        }
    }

    #[test]
    fn what_has_just_become_slow_is_slow_whatever_was_counted_before() {
        let mut recent = RecentTimes::default();
        let start = Instant::now();
        let mut at = |seconds: u64, times: Times| {
            let now = start + Duration::from_secs(seconds);
            let recent = recent.look(&times, OLD, now);
            (recent.percentile(0.5), recent.percentile(0.99))
        };
        assert_eq!(at(0, times(1_000_000, 0)), (None, None), "since when?");
        assert_eq!(at(2, times(1_000_100, 0)), (Some(0.01), Some(0.01)));
        assert_eq!(at(4, times(1_000_100, 50)), (Some(0.01), Some(1.0)));
        assert_eq!(at(63, times(1_000_100, 90)), (Some(1.0), Some(1.0)));
        // Nobody has looked for an hour.
        assert_eq!(at(3_600, times(2_000_000, 90)), (None, None));
    }

    #[test]
    fn all_that_a_young_process_counted_is_of_the_last_minute() {
        let young = RecentTimes::default().look(&times(3, 1), SPAN, Instant::now());
        assert_eq!(young.percentile(0.5), Some(0.01));
        assert_eq!(young.percentile(0.99), Some(1.0));
    }

    #[test]
    fn many_who_look_take_no_more_memory() {
        let mut recent = RecentTimes::default();
        let start = Instant::now();
        for tenth in 0..10_000 {
            let now = start + SPAN / 600 * tenth as u32;
            recent.look(&times(tenth, 0), OLD, now);
        }
        assert!(recent.counted.len() <= 31);
    }
}
