//! How long a row becomes as text, and how long it may be.
//!
//! PostgreSQL gives `1e308` in `jsonb` back as 309 digits, and a value of more than 1 GiB not at all: then no
//! page with the event can be read, and `pg_dump` and every logical replica stop at the row. Prefect's search
//! for a text stops even earlier: `lower()` takes four times the length of all of an event's texts together,
//! and where that is more than 1 GiB, a search fails for every event of the time that is searched.
//!
//! So an event that is longer is refused, as PostgreSQL refuses what is too long for `jsonb`.

use memchr::memchr;

use crate::event::{ReceivedEvent, Resource, Token, Tokens};

/// The longest text that `lower()` takes on every server.
const MAX_LENGTH: usize = (1 << 28) - 2;

/// An event of which less was sent cannot become too long: nothing grows more than `1e308` in a list.
const NEVER_TOO_LONG: usize = 4 << 20;

/// Whether what Prefect searches for a text would be too long for that, and with it for everything else.
pub(super) fn is_too_long(event: &ReceivedEvent) -> bool {
    if event.text().len().max(event.payload().len()) < NEVER_TOO_LONG {
        return false;
    }
    // The labels are hardly longer than they were sent, if they are not twice there.
    let labels = |resource: &Resource| {
        let labels = resource.labels();
        let lengths = labels.map(|(key, value)| written_length(key) + written_length(value) + 8);
        lengths.sum::<usize>()
    };
    let resources = std::iter::once(&event.resource).chain(&event.related);
    let resources = resources
        .map(|resource| labels(resource) + 4)
        .sum::<usize>();
    event.event.len() + resources + json_length(event.payload()) > MAX_LENGTH
}

/// The length of a text in `jsonb` without its quotes, at most.
fn written_length(text: &str) -> usize {
    let num_escaped = text
        .bytes()
        .filter(|byte| matches!(byte, b'"' | b'\\' | 0..b' '));
    text.len() + 5 * num_escaped.count()
}

/// The length of valid JSON as `jsonb` writes it, or a little more: it drops repeated keys, for one.
fn json_length(json: &str) -> usize {
    let length = |token| match token {
        Token::String(text) => string_length(text),
        Token::Number(number) => number_length(number),
        Token::Other(b' ' | b'\t' | b'\n' | b'\r') => 0,
        Token::Other(b',' | b':') => 2,
        Token::Other(_) => 1,
    };
    let lengths = Tokens::new(json).map(|(_, token)| length(token));
    lengths.fold(0, usize::saturating_add)
}

/// The length of a string of JSON without the escapes that are not needed, or a little more.
fn string_length(text: &str) -> usize {
    let mut length = text.len();
    let mut rest = text;
    while let Some(place) = memchr(b'\\', rest.as_bytes()) {
        let escape = rest.get(place..).unwrap_or_default();
        // Of six bytes at most three remain, except of a control character.
        if escape.starts_with("\\u") && !escape.starts_with("\\u00") {
            length -= 3;
        }
        rest = escape.get(2..).unwrap_or_default();
    }
    length
}

/// The length of a number without its exponent.
fn number_length(number: &str) -> usize {
    let Some((mantissa, exponent)) = number.split_once(['e', 'E']) else {
        return number.len();
    };
    let exponent = exponent.trim_start_matches(['+', '-']);
    // The zeros that are put before or behind, and a point and a zero.
    let num_zeros: usize = exponent.parse().unwrap_or(usize::MAX);
    num_zeros.saturating_add(mantissa.len() + 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::EventFixture;

    fn event(payload: String) -> ReceivedEvent {
        EventFixture {
            payload,
            ..EventFixture::default()
        }
        .build()
    }

    #[test]
    fn lengths_are_those_of_the_server_or_a_little_more() {
        for (json, server) in [
            (
                r#"{"a":[1,2.50,"x"],"b":{}}"#,
                r#"{"a": [1, 2.50, "x"], "b": {}}"#.len(),
            ),
            ("[1e308]", 311),
            ("[5e-324]", 328),
            ("[-1.25E+10]", 14),
            (r#""\u20ac\\u\u0001\"""#, r#""€\\u\u0001\"""#.len()),
        ] {
            let length = json_length(json);
            assert!((server..server + 12).contains(&length), "{json}: {length}");
        }
        assert!(json_length(r#""\u20ac""#) < r#""\u20ac""#.len());
    }

    #[test]
    fn what_grows_too_long_is_told_and_what_does_not_is_not() {
        let numbers = |num: usize| format!("{{\"n\":[{}0]}}", "1e308,".repeat(num));
        let num_at_most = MAX_LENGTH / 311;
        assert!(is_too_long(&event(numbers(num_at_most + 1))));
        assert!(!is_too_long(&event(numbers(num_at_most - 40_000))));
        assert!(!is_too_long(&event(format!(
            "{{\"n\":\"{}\"}}",
            "x".repeat(8 << 20)
        ))));
        let most = "1e308,".len() * (num_at_most - 1);
        assert!(
            most > NEVER_TOO_LONG,
            "what is never looked at is never too long"
        );
    }
}
