//! The text forms in which Prefect keeps times and ids in SQLite. Queries compare them as text.

use chrono::{DateTime, Datelike, NaiveDateTime, Timelike, Utc};

/// The years that the form can hold so that texts sort as the moments do; also Python's.
const YEARS: std::ops::RangeInclusive<i32> = 1..=9999;

/// Appends a moment as `2024-01-02 03:04:05.123456`; `None`, and nothing appended, where its year
/// is outside 0001 to 9999.
pub(super) fn write_timestamp(at: DateTime<Utc>, out: &mut String) -> Option<()> {
    let year = YEARS
        .contains(&at.year())
        .then(|| u32::try_from(at.year()).ok())??;
    let micros = (at.nanosecond() / 1_000).min(999_999);
    for (number, width, separator) in [
        (year, 4, "-"),
        (at.month(), 2, "-"),
        (at.day(), 2, " "),
        (at.hour(), 2, ":"),
        (at.minute(), 2, ":"),
        (at.second(), 2, "."),
        (micros, 6, ""),
    ] {
        write_padded(number, width, out);
        out.push_str(separator);
    }
    Some(())
}

/// A moment's text; what is before or after all texts where its year cannot be written.
pub(super) fn timestamp_bound(at: DateTime<Utc>) -> String {
    let mut text = String::with_capacity(26);
    if write_timestamp(at, &mut text).is_none() && at.year() > *YEARS.end() {
        text.push(':'); // The character after '9'.
    }
    text
}

pub(super) fn read_timestamp(text: &str) -> Option<DateTime<Utc>> {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f")
        .ok()
        .map(|naive| naive.and_utc())
}

fn write_padded(number: u32, width: usize, out: &mut String) {
    let mut digits = [b'0'; 6];
    let mut rest = number;
    for digit in digits[..width].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend(digits[..width].iter().map(|digit| char::from(*digit)));
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use proptest::prelude::*;

    use super::*;

    fn written(at: DateTime<Utc>) -> Option<String> {
        let mut out = String::new();
        write_timestamp(at, &mut out).map(|()| out)
    }

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn writes_six_digits_and_four_of_the_year() {
        for (at, text) in [
            ("2024-01-02T03:04:05.123456Z", "2024-01-02 03:04:05.123456"),
            ("2024-12-31T23:59:59Z", "2024-12-31 23:59:59.000000"),
            ("0001-01-01T00:00:00.000001Z", "0001-01-01 00:00:00.000001"),
            ("9999-12-31T23:59:59.999999Z", "9999-12-31 23:59:59.999999"),
        ] {
            assert_eq!(written(utc(at)).as_deref(), Some(text));
        }
    }

    #[test]
    fn refuses_years_that_would_not_sort() {
        assert_eq!(written(utc("0000-12-31T23:59:59Z")), None);
        assert_eq!(written(utc("-0001-12-31T23:59:59Z")), None);
        assert_eq!(written(utc("+10000-01-01T00:00:00Z")), None);
        assert_eq!(timestamp_bound(utc("0000-12-31T23:59:59Z")), "");
        assert!(*timestamp_bound(utc("+10000-01-01T00:00:00Z")) > *"9999-12-31 23:59:59.999999");
    }

    proptest! {
        #[test]
        fn sorts_as_the_moments_do_and_reads_back(
            a in -62_135_596_800_000_000_i64..253_402_300_800_000_000,
            b in -62_135_596_800_000_000_i64..253_402_300_800_000_000,
        ) {
            let moment = |micros| Utc.timestamp_micros(micros).unwrap();
            let (a, b) = (moment(a), moment(b));
            let (text_a, text_b) = (written(a).unwrap(), written(b).unwrap());
            prop_assert_eq!(text_a.cmp(&text_b), a.cmp(&b));
            prop_assert_eq!(read_timestamp(&text_a), Some(a));
        }
    }
}
