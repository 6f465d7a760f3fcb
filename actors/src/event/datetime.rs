//! Datetimes as Prefect reads them, by `speedate`, which is what pydantic uses: RFC 3339 and its
//! relatives, a date alone, and Unix time as a number or a text, in seconds up to 2e10 and in
//! milliseconds beyond. Digits beyond microseconds are cut off, and a time without an offset is
//! UTC.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use jiter::{NumberAny, NumberInt};
use speedate::{
    DateTimeConfig, MicrosecondsPrecisionOverflowBehavior, ParseError, Time, TimeConfig,
    TimestampUnit,
};

/// Why something is not a datetime; holds nothing of the value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotADatetime {
    Unreadable(ParseError),
    /// A year before 1 or after 9999, which Python's datetimes do not have.
    YearOutOfRange,
    /// NaN or an integer of more than 64 bits.
    NumberOutOfRange,
}

impl std::fmt::Display for NotADatetime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // The parser displays its errors as identifiers: `out_of_range_month`.
            Self::Unreadable(error) => {
                write!(f, "not a datetime: {}", error.to_string().replace('_', " "))
            }
            Self::YearOutOfRange => f.write_str("not a datetime: the year is not 1 to 9999"),
            Self::NumberOutOfRange => f.write_str("not a datetime: number out of range"),
        }
    }
}

pub(super) fn from_text(text: &str) -> Result<DateTime<Utc>, NotADatetime> {
    match speedate::DateTime::parse_str_with_config(text, &config()) {
        Ok(datetime) => to_utc(datetime),
        Err(error) => match speedate::Date::parse_str_rfc3339(text) {
            Ok(date) => to_utc(at_midnight(date)),
            Err(_) => Err(NotADatetime::Unreadable(error)),
        },
    }
}

/// Reads a datetime from a JSON number, as Unix time; `None` is an integer of more than 64 bits.
pub(super) fn from_number(number: Option<NumberAny>) -> Result<DateTime<Utc>, NotADatetime> {
    let datetime = match number {
        Some(NumberAny::Int(NumberInt::Int(timestamp))) => {
            speedate::DateTime::from_timestamp_with_config(timestamp, 0, &config())
        }
        // NaN would be taken for the epoch; infinities are beyond the last year.
        Some(NumberAny::Float(timestamp)) if !timestamp.is_nan() => {
            speedate::DateTime::from_float_with_config(timestamp, &config())
        }
        _ => return Err(NotADatetime::NumberOutOfRange),
    };
    to_utc(datetime.map_err(NotADatetime::Unreadable)?)
}

fn config() -> DateTimeConfig {
    DateTimeConfig {
        timestamp_unit: TimestampUnit::Infer,
        time_config: TimeConfig {
            microseconds_precision_overflow_behavior:
                MicrosecondsPrecisionOverflowBehavior::Truncate,
            unix_timestamp_offset: Some(0),
        },
    }
}

fn at_midnight(date: speedate::Date) -> speedate::DateTime {
    let time = Time {
        hour: 0,
        minute: 0,
        second: 0,
        microsecond: 0,
        tz_offset: None,
    };
    speedate::DateTime { date, time }
}

/// The moment in UTC. The year is limited where the datetime was written, not in UTC, so that
/// `0001-01-01T00:00:00+05:00` is a moment in the year 0, as in Prefect.
fn to_utc(datetime: speedate::DateTime) -> Result<DateTime<Utc>, NotADatetime> {
    let speedate::DateTime { date, time } = datetime;
    if date.year == 0 {
        return Err(NotADatetime::YearOutOfRange);
    }
    let offset = TimeDelta::seconds(i64::from(time.tz_offset.unwrap_or_default()));
    NaiveDate::from_ymd_opt(i32::from(date.year), date.month.into(), date.day.into())
        .and_then(|date| {
            date.and_hms_micro_opt(
                time.hour.into(),
                time.minute.into(),
                time.second.into(),
                time.microsecond,
            )
        })
        .and_then(|local| local.checked_sub_signed(offset))
        .map(|utc| utc.and_utc())
        .ok_or(NotADatetime::YearOutOfRange)
}
