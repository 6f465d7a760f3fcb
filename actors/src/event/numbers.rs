//! The form in which a number of a payload is kept: its text, unless some reader could not take
//! that.
//!
//! Python refuses to read integers of more than 4,300 digits. PostgreSQL's `jsonb` keeps digits and
//! gives `1e131071` back as 131,072 of them, so that Prefect's page would fail for every event on
//! it. So a number beyond the range of a double is what Prefect stores: `null`, or 0.0 where it is
//! too small. A number with more than 16,383 decimals, which `jsonb` cannot hold, is the nearest
//! double.

use super::tokens::{Token, Tokens};

/// The longest integer that Python reads, in digits.
const MAX_INTEGER_DIGITS: usize = 4_300;

/// Decimals that a number of PostgreSQL can have.
const MAX_DECIMALS: i64 = 16_383;

/// A number with no more digits before and behind its point than this each, and at most two in its exponent, is
/// far from the ends of both ranges.
const FEW_DIGITS: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kept {
    Text,
    /// A double, in its shortest form.
    Double(f64),
    Nothing,
}

impl Kept {
    /// The form of a number that the parser has accepted, which may be NaN or infinite.
    pub(super) fn of(number: &str) -> Self {
        if !number.ends_with(|last: char| last.is_ascii_digit()) {
            return Self::Nothing;
        }
        let Some(shape) = Shape::of(number) else {
            return Self::Text;
        };
        if shape.is_short() {
            return Self::Text;
        }
        let value = number.parse().ok().filter(|value: &f64| value.is_finite());
        let Some(value) = value else {
            return Self::Nothing;
        };
        let is_zero = value == 0.0 && (shape.has_digits() || !shape.exponent.is_empty());
        if is_zero || shape.num_decimals() > MAX_DECIMALS {
            Self::Double(value)
        } else {
            Self::Text
        }
    }
}

/// The parts of a number that is no integer; those that it does not have are empty.
struct Shape<'t> {
    mantissa: &'t str,
    exponent: &'t str,
    has_negative_exponent: bool,
}

impl<'t> Shape<'t> {
    fn of(number: &'t str) -> Option<Self> {
        let is_of_integer = |byte: u8| byte.is_ascii_digit() || byte == b'-';
        if number.bytes().all(is_of_integer) {
            return None;
        }
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, ""));
        Some(Self {
            mantissa,
            exponent: exponent.trim_start_matches(['+', '-']),
            has_negative_exponent: exponent.starts_with('-'),
        })
    }

    fn is_short(&self) -> bool {
        let point = self.mantissa.find('.').unwrap_or(self.mantissa.len());
        let num_decimals = self.mantissa.len() - point;
        point.max(num_decimals) <= FEW_DIGITS && self.exponent.len() <= 2
    }

    fn has_digits(&self) -> bool {
        let mut bytes = self.mantissa.bytes();
        bytes.any(|byte| matches!(byte, b'1'..=b'9'))
    }

    /// How many decimals it has where it is written without an exponent.
    fn num_decimals(&self) -> i64 {
        let decimals = self.mantissa.split_once('.').map_or("", |(_, part)| part);
        let num_written = i64::try_from(decimals.len()).unwrap_or(i64::MAX);
        let exponent = match self.exponent {
            "" => 0,
            digits => digits.parse().unwrap_or(i64::MAX),
        };
        if self.has_negative_exponent {
            num_written.saturating_add(exponent)
        } else {
            num_written.saturating_sub(exponent)
        }
    }
}

/// Whether a number in this JSON is one that Prefect's reader fails on, or reads as an infinity.
///
/// For JSON as a database gives it back: an integer of more than 4,300 digits, which Python refuses to read,
/// or a number with decimals or an exponent beyond the range of a double. With it no page that the event stands
/// on can be read. No such number is written here.
///
/// ```
/// use event_persister_actors::event::holds_unreadable_number;
///
/// assert!(!holds_unreadable_number(r#"{"n": [1e308, 12345678901234567890123]}"#));
/// assert!(holds_unreadable_number(&format!(r#"{{"n": 1{}}}"#, "0".repeat(4_300))));
/// assert!(holds_unreadable_number(r#"{"n": 1e309}"#));
/// ```
pub fn holds_unreadable_number(json: &str) -> bool {
    numbers(json).any(|number| match Shape::of(number) {
        None => has_many_digits(number),
        Some(_) => !number.parse().is_ok_and(f64::is_finite),
    })
}

fn numbers(json: &str) -> impl Iterator<Item = &str> {
    Tokens::new(json).filter_map(|(_, token)| match token {
        Token::Number(number) => Some(number),
        Token::String(_) | Token::Other(_) => None,
    })
}

fn has_many_digits(integer: &str) -> bool {
    integer.len() - usize::from(integer.starts_with('-')) > MAX_INTEGER_DIGITS
}

/// Whether an integer in this JSON has more digits than Python reads.
#[cfg(feature = "sqlite")]
pub(crate) fn holds_long_integer(json: &str) -> bool {
    numbers(json).any(|number| Shape::of(number).is_none() && has_many_digits(number))
}

/// Appends a double as Python's `repr` writes it: the shortest digits that give the number back, with an
/// exponent below 1e-4 and from 1e16 on.
pub(crate) fn write_float(number: f64, out: &mut String) {
    // Where two shortest forms are equally near, Rust's takes the larger and Python's the even one,
    // as Rust's exact form does.
    let shortest = format!("{number:e}");
    let num_decimals = shortest
        .split_once('.')
        .and_then(|(_, rest)| rest.split_once('e'))
        .map_or(0, |(decimals, _)| decimals.len());
    let scientific = format!("{number:.num_decimals$e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let mantissa = match mantissa.strip_prefix('-') {
        Some(mantissa) => {
            out.push('-');
            mantissa
        }
        None => mantissa,
    };
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        out.push_str(&format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs()));
        return;
    }
    let digits = mantissa
        .bytes()
        .filter(|byte| *byte != b'.')
        .map(char::from);
    let places = exponent.unsigned_abs() as usize;
    if exponent < 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', places - 1));
        out.extend(digits);
    } else {
        let mut digits = digits.fuse();
        out.extend((0..=places).map(|_| digits.next().unwrap_or('0')));
        out.push('.');
        out.push(digits.next().unwrap_or('0'));
        out.extend(digits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(number: &str) -> String {
        match Kept::of(number) {
            Kept::Text => number.to_owned(),
            Kept::Nothing => "null".to_owned(),
            Kept::Double(double) => {
                let mut text = String::new();
                write_float(double, &mut text);
                text
            }
        }
    }

    #[test]
    fn keeps_the_text_within_the_range_of_a_double() {
        for number in [
            "0",
            "-0",
            "-0.0",
            "2.50",
            "12345678901234567890.5",
            "1e308",
            "-1.7976931348623158e308",
            "4.9e-324",
            "3e-324",
            "0.00",
            "0e99",
            "1e00005",
            "100E-0002",
            &"9".repeat(4_300),
            &format!("0.{}", "7".repeat(16_383)),
            &format!("1.{}e308", "7".repeat(5_000)),
            &format!("{}e-4299", "1".repeat(4_300)),
            &format!("0.{}1e20001", "0".repeat(20_000)),
            &format!("0.{}", "0".repeat(16_383)),
        ] {
            assert_eq!(kept(number), number);
        }
    }

    #[test]
    fn stores_what_prefect_stores_beyond_it() {
        for (number, expected) in [
            ("NaN", "null"),
            ("Infinity", "null"),
            ("-Infinity", "null"),
            ("1e309", "null"),
            ("-1E400", "null"),
            ("1.7976931348623159e308", "null"),
            ("1e131071", "null"),
            ("1e99999999999999999999", "null"),
            (&format!("{}.5", "1".repeat(400)), "null"),
            (&format!("1{}e99", "0".repeat(210)), "null"),
            ("1e-400", "0.0"),
            ("-1e-400", "-0.0"),
            ("2e-324", "0.0"),
            ("0e400", "0.0"),
            ("-0.0e-400", "-0.0"),
            ("0e99999999999999999999", "0.0"),
            ("1e-99999999999999999999", "0.0"),
            (&format!("0.{}1e-99", "0".repeat(230)), "0.0"),
            (&format!("0.{}1", "0".repeat(400)), "0.0"),
        ] {
            assert_eq!(kept(number), expected, "{number}");
        }
    }

    #[test]
    fn stores_the_double_where_postgresql_has_no_room_for_the_decimals() {
        let third = "3".repeat(20_000);
        for (number, expected) in [
            (format!("0.{third}"), "0.3333333333333333"),
            (format!("-1.{third}e300"), "-1.3333333333333334e+300"),
            (format!("1.{}", "0".repeat(16_384)), "1.0"),
            (format!("0.{}", "0".repeat(16_384)), "0.0"),
            (format!("1.{}e-1", "0".repeat(16_383)), "0.1"),
        ] {
            assert_eq!(kept(&number), expected);
        }
    }

    #[test]
    fn what_is_kept_can_be_read_and_what_could_not_be_is_told() {
        let long = "9".repeat(4_301);
        for number in [&long, &format!("-{long}"), "1e309", "-1.5e400", "NaN"] {
            assert!(
                holds_unreadable_number(&format!("[1, {number}]")),
                "{number}"
            );
            let text = format!("{{\"{number}\": \"{number}\"}}");
            assert!(!holds_unreadable_number(&text), "{number}");
        }
        for number in [&long[1..], &format!("-{}", &long[1..]), "1e308", "1e-400"] {
            assert!(!holds_unreadable_number(&format!("[{number}]")), "{number}");
        }
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn what_python_does_not_read_is_told_from_what_it_does() {
        let digits = |num: usize| "9".repeat(num);
        for (payload, is_long) in [
            (format!(r#"{{"k": {}}}"#, digits(4_300)), false),
            (format!(r#"{{"k": {}}}"#, digits(4_301)), true),
            (format!(r#"{{"k": [-{}, 1]}}"#, digits(4_301)), true),
            (format!(r#"{{"k": {}.5}}"#, digits(4_301)), false),
            (format!(r#"{{"k": {}e1}}"#, digits(4_301)), false),
            (format!(r#"{{"k": 0.{}}}"#, digits(4_301)), false),
            (format!(r#"{{"k": 1e{}}}"#, digits(4_301)), false),
            (format!(r#"{{"k": "{}"}}"#, digits(4_301)), false),
            (format!(r#"{{"\"{}": "\\", "l": 1}}"#, digits(4_301)), false),
            (format!(r#"{{"k": "\\", "l": {}}}"#, digits(4_301)), true),
        ] {
            assert_eq!(holds_long_integer(&payload), is_long, "{payload:.20}");
        }
    }
}
