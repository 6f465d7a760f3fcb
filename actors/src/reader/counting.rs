//! How events are counted: by name, by resource, or by buckets of time that are all of one length.

use chrono::{DateTime, Datelike as _, TimeDelta, TimeZone as _, Timelike as _, Utc};
use serde::{Serialize, Serializer};

use super::filter::Occurred;
use super::stored::iso;

/// The most buckets of one count.
const MAX_BUCKETS: i128 = 1_000;

/// The kinds of events that are told apart by a count.
#[derive(Debug, Clone, PartialEq)]
pub enum Countable {
    /// Those of one bucket of time.
    Time(Buckets),
    /// Those of one name.
    Event,
    /// Those about one resource.
    Resource,
}

/// A unit of time, by which buckets are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    /// Seven days.
    Week,
    /// 24 hours.
    Day,
    /// 60 minutes.
    Hour,
    /// 60 seconds.
    Minute,
    /// A second.
    Second,
}

impl TimeUnit {
    pub(super) const ALL: [(&'static str, Self); 5] = [
        ("week", Self::Week),
        ("day", Self::Day),
        ("hour", Self::Hour),
        ("minute", Self::Minute),
        ("second", Self::Second),
    ];

    fn seconds(self) -> u32 {
        match self {
            Self::Week => 7 * 86_400,
            Self::Day => 86_400,
            Self::Hour => 3_600,
            Self::Minute => 60,
            Self::Second => 1,
        }
    }

    /// The last microsecond of the unit that a moment lies in.
    fn end(self, moment: DateTime<Utc>) -> DateTime<Utc> {
        let midnight = moment
            .date_naive()
            .and_time(chrono::NaiveTime::MIN)
            .and_utc();
        let in_day = moment.num_seconds_from_midnight();
        let (begin, unit) = match self {
            Self::Week => {
                let days = i64::from(moment.weekday().num_days_from_monday());
                (midnight - TimeDelta::days(days), self)
            }
            unit => {
                let seconds = in_day - in_day % unit.seconds();
                (midnight + TimeDelta::seconds(seconds.into()), unit)
            }
        };
        begin + TimeDelta::seconds(unit.seconds().into()) - TimeDelta::microseconds(1)
    }
}

/// Time divided into spans of one length, of which some are asked for. The first of all begins with April 2024.
#[derive(Debug, Clone, PartialEq)]
pub struct Buckets {
    /// How long each is, in microseconds.
    micros: i64,
    /// The number of the first that is asked for.
    first: i64,
    spans: Vec<Bucket>,
}

/// One span of time, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Its first microsecond.
    pub start: DateTime<Utc>,
    /// Its last.
    pub end: DateTime<Utc>,
}

/// More buckets than anybody looks at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there would be {0} intervals, more than {MAX_BUCKETS}: ask for longer ones, or for a shorter time"
)]
pub struct TooManyBuckets(i128);

impl Buckets {
    /// The spans of `interval` units that the time lies in, as far as they have begun.
    ///
    /// # Errors
    ///
    /// There are too many of them.
    pub fn new(
        occurred: Occurred,
        unit: TimeUnit,
        interval: f64,
        now: DateTime<Utc>,
    ) -> Result<Self, TooManyBuckets> {
        // Longer than all of time is as good as that.
        let micros = (interval * f64::from(unit.seconds()) * 1e6)
            .round_ties_even()
            .clamp(1.0, 1e18) as i64;
        let length = i128::from(micros);
        let Occurred { since, until } = occurred;
        let between = |from: DateTime<Utc>, to: DateTime<Utc>| {
            i128::from(to.timestamp_micros()) - i128::from(from.timestamp_micros())
        };
        let num_buckets = (between(since, until) + length - 1).div_euclid(length);
        if num_buckets > MAX_BUCKETS {
            return Err(TooManyBuckets(num_buckets));
        }
        let until = if until > now { unit.end(now) } else { until };
        let first = between(Self::pivot(), since).div_euclid(length);
        let mut spans = Vec::new();
        let start_of = |place: i128| {
            let micros = i128::from(Self::pivot().timestamp_micros()) + place * length;
            Utc.timestamp_micros(i64::try_from(micros).ok()?).single()
        };
        for place in first.. {
            let Some(start) = start_of(place).filter(|start| *start < until) else {
                break;
            };
            let next = start_of(place + 1).unwrap_or(DateTime::<Utc>::MAX_UTC);
            let end = within_its_years(next - TimeDelta::microseconds(1));
            let start = within_its_years(start);
            spans.push(Bucket { start, end });
        }
        let first = i64::try_from(first).unwrap_or(i64::MIN);
        Ok(Self {
            micros,
            first,
            spans,
        })
    }

    /// Where the first of all buckets begins.
    pub fn pivot() -> DateTime<Utc> {
        DateTime::from_timestamp(1_711_929_600, 0).unwrap_or_default()
    }

    /// How long each is, in microseconds.
    pub fn micros(&self) -> i64 {
        self.micros
    }

    /// A count for every span, also where nothing was counted. A count outside of them, by the clock's
    /// running on, belongs to the nearest.
    pub fn fill(&self, counts: impl IntoIterator<Item = (i64, u64)>) -> Vec<EventCount> {
        let empty = self
            .spans
            .iter()
            .enumerate()
            .map(|(place, span)| EventCount {
                value: place.to_string(),
                label: span.start.format("%Y-%m-%dT%H:%M:%S").to_string()
                    + &fraction(span.start)
                    + "+00:00",
                count: 0,
                start_time: span.start,
                end_time: span.end,
            });
        let mut all: Vec<_> = empty.collect();
        let last = all.len().saturating_sub(1);
        for (number, count) in counts {
            let place = usize::try_from(number.saturating_sub(self.first)).unwrap_or_default();
            if let Some(counted) = all.get_mut(place.min(last)) {
                counted.count += count;
            }
        }
        all
    }
}

/// The nearest moment of the years 1 to 9999, which are all that an RFC 3339 time can say.
fn within_its_years(moment: DateTime<Utc>) -> DateTime<Utc> {
    let [first, last] = [(-62_135_596_800, 0), (253_402_300_799, 999_999_000)]
        .map(|(seconds, nanos)| DateTime::from_timestamp(seconds, nanos).unwrap_or(moment));
    moment.clamp(first, last)
}

/// Six digits, or nothing where they are zeros.
fn fraction(moment: DateTime<Utc>) -> String {
    match moment.nanosecond() / 1_000 {
        0 => String::new(),
        micros => format!(".{micros:06}"),
    }
}

/// How many events there are of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventCount {
    /// The value to filter by: the name, the resource's id, or the place of a bucket.
    pub value: String,
    /// The name to show.
    pub label: String,
    /// How many events.
    pub count: u64,
    /// The first of them, or the bucket's beginning.
    #[serde(serialize_with = "as_moment")]
    pub start_time: DateTime<Utc>,
    /// The last of them, or the bucket's end.
    #[serde(serialize_with = "as_moment")]
    pub end_time: DateTime<Utc>,
}

fn as_moment<S: Serializer>(moment: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&iso(*moment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_bucket_of_all_begins_with_april_2024() {
        assert_eq!(Buckets::pivot(), utc("2024-04-01T00:00:00Z"));
    }

    #[test]
    fn a_unit_ends_with_its_last_microsecond() {
        let moment = utc("2026-11-28T12:34:56.5Z");
        for (unit, end) in [
            (TimeUnit::Second, "2026-11-28T12:34:56.999999Z"),
            (TimeUnit::Minute, "2026-11-28T12:34:59.999999Z"),
            (TimeUnit::Hour, "2026-11-28T12:59:59.999999Z"),
            (TimeUnit::Day, "2026-11-28T23:59:59.999999Z"),
            (TimeUnit::Week, "2026-11-29T23:59:59.999999Z"),
        ] {
            assert_eq!(unit.end(moment), utc(end), "{unit:?}");
        }
    }

    #[test]
    fn buckets_begin_and_end_within_the_years_that_can_be_said() {
        let occurred = Occurred {
            since: utc("0001-01-01T00:00:00Z"),
            until: utc("2026-11-28T00:00:00Z"),
        };
        let now = utc("2026-11-28T12:00:00Z");
        let buckets = Buckets::new(occurred, TimeUnit::Week, 1e6, now).unwrap();
        let counts = buckets.fill([]);
        let (first, last) = (&counts[0], &counts[counts.len() - 1]);
        assert_eq!(first.start_time, utc("0001-01-01T00:00:00Z"));
        assert_eq!(first.label, "0001-01-01T00:00:00+00:00");
        assert_eq!(last.end_time, utc("9999-12-31T23:59:59.999999Z"));
    }
}
