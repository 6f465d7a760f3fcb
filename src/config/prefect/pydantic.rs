//! Values as pydantic, which reads Prefect's settings, understands them: texts of variables, and JSON.

use std::time::Duration;

use serde_json::Value;

/// A whole number; the texts `5.0` and `1_000` are such. Beyond an `i128` it is the nearest that is not.
pub(super) fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => integer_of_text(text),
        Value::Number(number) => number.as_i128().or_else(|| {
            let number = number.as_f64()?;
            (number.fract() == 0.0).then_some(number as i128)
        }),
        Value::Bool(value) => Some(i128::from(*value)),
        _ => None,
    }
}

fn integer_of_text(text: &str) -> Option<i128> {
    let text = text.trim();
    let text = match text.split_once('.') {
        Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|byte| byte == b'0') => {
            whole
        }
        Some(_) => return None,
        None => text,
    };
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = without_separators(digits)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().unwrap_or(i128::MAX);
    Some(if is_negative { -number } else { number })
}

/// A number, `inf` and `nan` included.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => without_separators(text.trim())?.parse().ok(),
        Value::Number(number) => number.as_f64(),
        Value::Bool(value) => Some(f64::from(u8::from(*value))),
        _ => None,
    }
}

/// Underscores may stand between digits, and nowhere else.
fn without_separators(text: &str) -> Option<String> {
    let is_digit = |part: Option<char>| part.is_some_and(|c| c.is_ascii_digit());
    let parts: Vec<&str> = text.split('_').collect();
    let joined_by_digits = parts
        .windows(2)
        .all(|pair| is_digit(pair[0].chars().last()) && is_digit(pair[1].chars().next()));
    joined_by_digits.then(|| parts.concat())
}

/// Yes or no, in any of their words and any case.
pub(super) fn boolean(value: &Value) -> Option<bool> {
    let text = match value {
        Value::Bool(value) => return Some(*value),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => return Some(false),
            Some(1.0) => return Some(true),
            _ => return None,
        },
        value => value.as_str()?,
    };
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => Some(true),
        "0" | "false" | "f" | "no" | "n" | "off" => Some(false),
        _ => None,
    }
}

/// A stretch of time: a text in words, or a number of seconds; `None` if pydantic refuses it.
pub(super) fn time_delta(value: &Value) -> Option<TimeDelta> {
    let Value::String(text) = value else {
        return time_delta_of_seconds(number(value)?);
    };
    let duration = speedate::Duration::parse_str(text).ok()?;
    let length = Duration::from_secs(u64::from(duration.day) * 86_400 + u64::from(duration.second))
        + Duration::from_micros(u64::from(duration.microsecond));
    Some(TimeDelta {
        is_positive: duration.positive && !length.is_zero(),
        length,
    })
}

/// Seconds, or else a stretch of time in words.
pub(super) fn seconds_or_time_delta(value: &Value) -> Option<TimeDelta> {
    match number(value) {
        Some(seconds) => time_delta_of_seconds(seconds),
        None => time_delta(value),
    }
}

/// Python's longest: 999,999,999 days.
const MAX_SECONDS: f64 = 999_999_999.0 * 86_400.0;

fn time_delta_of_seconds(seconds: f64) -> Option<TimeDelta> {
    // Neither is `nan` within, nor infinity.
    (seconds.abs() <= MAX_SECONDS).then(|| TimeDelta {
        is_positive: seconds > 0.0,
        length: Duration::from_micros((seconds.abs() * 1e6).round() as u64),
    })
}

/// Python's `timedelta`, which may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeDelta {
    pub(super) is_positive: bool,
    pub(super) length: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What pydantic 2 says to the same texts.
    #[test]
    fn time_deltas_are_pydantics() {
        const HOUR: u64 = 3600;
        for (text, seconds) in [
            ("2d", 48 * HOUR),
            ("7 days", 7 * 24 * HOUR),
            ("P7D", 7 * 24 * HOUR),
            ("P1W", 7 * 24 * HOUR),
            ("PT12H", 12 * HOUR),
            ("12:00", 12 * HOUR),
            ("1:00:00", HOUR),
            ("2 days, 1:00:00", 49 * HOUR),
            ("1d 12:00:00", 36 * HOUR),
            ("2d ", 48 * HOUR),
            ("+7d", 7 * 24 * HOUR),
            ("P1Y2M3DT4H5M6S", 428 * 24 * HOUR + 14706),
        ] {
            let expected = TimeDelta {
                is_positive: true,
                length: Duration::from_secs(seconds),
            };
            assert_eq!(time_delta(&text.into()), Some(expected), "{text}");
        }
        assert!(!time_delta(&"-2d".into()).unwrap().is_positive);
        assert!(!time_delta(&"0:00:00".into()).unwrap().is_positive);
        assert_eq!(
            time_delta(&"1:00:00.25".into()).unwrap().length,
            Duration::from_millis(3_600_250)
        );
        for text in [
            "3600",
            "3600.5",
            " 2d",
            "1w",
            "12h",
            "10s",
            "9999999999d",
            "1e3",
            "",
        ] {
            assert_eq!(time_delta(&text.into()), None, "{text}");
        }
    }

    #[test]
    fn seconds_come_before_words() {
        let length = |text: &str| seconds_or_time_delta(&text.into()).map(|delta| delta.length);
        assert_eq!(length("5"), Some(Duration::from_secs(5)));
        assert_eq!(length(" 5.5 "), Some(Duration::from_millis(5500)));
        assert_eq!(length("P1D"), Some(Duration::from_secs(86_400)));
        for text in ["inf", "nan", "1e30", "x"] {
            assert_eq!(length(text), None, "{text}");
        }
    }

    #[test]
    fn integers_are_pydantics() {
        for (text, number) in [
            ("5", 5),
            (" 5 ", 5),
            ("5.0", 5),
            ("1_000", 1000),
            ("+5", 5),
            ("-5", -5),
            ("05", 5),
            ("0", 0),
        ] {
            assert_eq!(integer(&text.into()), Some(number), "{text}");
        }
        assert_eq!(integer(&"9".repeat(60).into()), Some(i128::MAX));
        for text in ["5.5", "0x5", "1e3", "5.", "_5", "5_", "٣", "", "-", "--5"] {
            assert_eq!(integer(&text.into()), None, "{text}");
        }
    }

    #[test]
    fn booleans_are_pydantics() {
        for text in ["true", "TRUE", "t", "y", "Yes", "on", "1"] {
            assert_eq!(boolean(&text.into()), Some(true), "{text}");
        }
        for text in ["0", "off", "f", "n", "no", "False"] {
            assert_eq!(boolean(&text.into()), Some(false), "{text}");
        }
        for text in [" true", "2", "1.0", "enabled", ""] {
            assert_eq!(boolean(&text.into()), None, "{text}");
        }
    }
}
