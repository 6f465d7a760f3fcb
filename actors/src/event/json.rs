//! JSON text, read once from front to back.
//!
//! The reader is `jiter`'s, which pydantic and with it Prefect reads events with, so that the two
//! agree on every odd number, escape and surrogate. It goes through skipped values in a loop, not
//! by recursion, and so does what is added here: no nesting can exhaust the stack.

use bytestring::ByteString;
use jiter::{
    Jiter, JiterError, JiterErrorType, JiterResult, JsonErrorType, JsonType, NumberAny, Peek,
};
use memchr::memchr2_iter;

use super::numbers::{Kept, write_float};
use super::tokens::{Token, Tokens};

/// How many arrays and objects may stand open, the event included. As in Prefect, an empty one does
/// not count.
const MAX_NESTING: usize = 200;

pub(super) struct Reader<'t> {
    pub(super) text: &'t ByteString,
    pub(super) jiter: Jiter<'t>,
}

/// A value that was checked to be JSON and not looked at any further.
pub(super) struct Skipped<'t> {
    text: &'t ByteString,
    json: &'t str,
    has_odd_numbers: bool,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t ByteString) -> Self {
        Self {
            text,
            jiter: Jiter::new(text.as_bytes()).with_allow_inf_nan(),
        }
    }

    /// Consumes the number that was peeked; `None` is an integer of more than 64 bits.
    pub(super) fn number(&mut self, peek: Peek) -> JiterResult<Option<NumberAny>> {
        // Read as a range first: that an integer is too long for us does not make it wrong JSON.
        let digits = self.jiter.known_number_bytes(peek)?;
        Ok(NumberAny::from_bytes(digits, true).ok())
    }

    /// Consumes the value that was peeked, whatever it is; `num_open` arrays and objects stand
    /// open around it.
    pub(super) fn skip(&mut self, peek: Peek, num_open: usize) -> JiterResult<Skipped<'t>> {
        let start = self.jiter.current_index();
        self.jiter.known_skip(peek)?;
        let json = &self.text[start..self.jiter.current_index()];
        let max_nesting = MAX_NESTING.saturating_sub(num_open);
        let has_odd_numbers = match peek {
            Peek::Array | Peek::Object if !is_plain(json, max_nesting) => {
                inspect(json, max_nesting).map_err(|offset| JiterError {
                    error_type: JiterErrorType::JsonError(JsonErrorType::RecursionLimitExceeded),
                    index: start + offset,
                })?
            }
            _ => false,
        };
        Ok(Skipped {
            text: self.text,
            json,
            has_odd_numbers,
        })
    }

    /// The mistake and its place, without anything of the text.
    pub(super) fn describe(&self, error: &JiterError) -> String {
        let position = error.get_position(&self.jiter);
        match &error.error_type {
            JiterErrorType::JsonError(JsonErrorType::RecursionLimitExceeded) => format!(
                "nested too deeply at {position}: more than {MAX_NESTING} arrays and objects within one another"
            ),
            JiterErrorType::JsonError(error) => format!("not JSON: {error} at {position}"),
            JiterErrorType::WrongType { actual, .. } => match self.syntax_error() {
                Some(error) => self.describe(&error),
                None => format!("not an event: must be an object, not {}", kind(actual)),
            },
        }
    }

    /// What makes the whole text no JSON. A kind was told from a first letter: `no` is no null.
    fn syntax_error(&self) -> Option<JiterError> {
        let mut jiter = Jiter::new(self.text.as_bytes()).with_allow_inf_nan();
        jiter.next_skip().and_then(|()| jiter.finish()).err()
    }
}

impl Skipped<'_> {
    /// The value as a slice of the text that it stands in; a copy only where it holds numbers that are not kept
    /// as they are.
    pub(super) fn to_json(&self) -> ByteString {
        if self.has_odd_numbers {
            with_kept_numbers(self.json).into()
        } else {
            self.text.slice_ref(self.json)
        }
    }
}

pub(super) fn kind_of(peek: Peek) -> &'static str {
    match peek {
        Peek::Null => kind(&JsonType::Null),
        Peek::True | Peek::False => kind(&JsonType::Bool),
        Peek::String => kind(&JsonType::String),
        Peek::Array => kind(&JsonType::Array),
        Peek::Object => kind(&JsonType::Object),
        _ => kind(&JsonType::Float),
    }
}

fn kind(json_type: &JsonType) -> &'static str {
    match json_type {
        JsonType::Null => "null",
        JsonType::Bool => "a boolean",
        JsonType::Int | JsonType::Float => "a number",
        JsonType::String => "a string",
        JsonType::Array => "an array",
        JsonType::Object => "an object",
    }
}

/// Whether a look at many bytes at once is enough to tell that JSON is neither too deep nor holds
/// odd numbers.
fn is_plain(json: &str, max_nesting: usize) -> bool {
    let bytes = json.as_bytes();
    let num_opening = |chunk: &[u8]| {
        let opening = chunk.iter().map(|&byte| u8::from(byte | b' ' == b'{'));
        usize::from(opening.sum::<u8>())
    };
    // No chunk can hold more than its sum can.
    let chunks = bytes.chunks(usize::from(u8::MAX));
    if chunks.map(num_opening).sum::<usize>() > max_nesting {
        return false;
    }
    // Of more than 200 digits, all before or all behind the point.
    let is_part_of_long = |chunk: &[u8]| chunk.iter().all(u8::is_ascii_digit);
    if bytes.chunks_exact(100).any(is_part_of_long) {
        return false;
    }
    let is_of_non_finite =
        |first, second| (first == b'N') & (second == b'a') | (first == b'I') & (second == b'n');
    !has_pair(bytes, is_of_non_finite) && !may_have_long_exponent(bytes)
}

/// Whether two such bytes stand side by side. One question at a time lets the compiler use wide
/// registers.
fn has_pair(bytes: &[u8], is_such: impl Fn(u8, u8) -> bool) -> bool {
    let pairs = bytes.iter().zip(bytes.get(1..).unwrap_or_default());
    pairs.fold(false, |found, (&first, &second)| {
        found | is_such(first, second)
    })
}

/// Whether a number may have an exponent of more than two digits. Ids in hexadecimal digits often
/// look so, hence the closer look, which has to be cheap.
fn may_have_long_exponent(bytes: &[u8]) -> bool {
    const CHUNK: usize = 256;
    let is_of_exponent = |first: u8, second| first.is_ascii_digit() & (second | b' ' == b'e');
    (0..bytes.len()).step_by(CHUNK).any(|start| {
        // With the one that may stand behind the last digit.
        let end = bytes.len().min(start + CHUNK + 1);
        let chunk = bytes.get(start..end).unwrap_or_default();
        has_pair(chunk, is_of_exponent)
            && memchr2_iter(b'e', b'E', chunk).any(|e| is_long_exponent(bytes, start + e))
    })
}

/// Whether the `e` at this place stands between the digits of a number and at least three more.
fn is_long_exponent(bytes: &[u8], place: usize) -> bool {
    let (mantissa, rest) = bytes.split_at(place);
    let digits = match rest {
        [_, b'+' | b'-', digits @ ..] | [_, digits @ ..] => digits,
        [] => return false,
    };
    let has_digits = |digits: &[u8]| digits.iter().all(u8::is_ascii_digit);
    if !digits.get(..3).is_some_and(has_digits) {
        return false;
    }
    let is_of_mantissa = |byte: &u8| byte.is_ascii_digit() || *byte == b'.' || *byte == b'-';
    let before = mantissa.iter().rev().find(|byte| !is_of_mantissa(byte));
    matches!(
        before,
        Some(b'[' | b',' | b':' | b' ' | b'\t' | b'\n' | b'\r')
    )
}

/// Whether valid JSON holds odd numbers, or else where it goes too deep.
fn inspect(json: &str, max_nesting: usize) -> Result<bool, usize> {
    let mut num_open = 0_usize;
    let mut has_odd_numbers = false;
    for (offset, token) in Tokens::new(json) {
        match token {
            Token::Other(b']' | b'}') => num_open = num_open.saturating_sub(1),
            Token::Other(b' ' | b'\t' | b'\n' | b'\r') => {}
            // One level too deep there may be an empty array or object, but no content.
            _ if num_open > max_nesting => return Err(offset),
            Token::Other(b'[' | b'{') => num_open += 1,
            Token::Number(number) => has_odd_numbers |= Kept::of(number) != Kept::Text,
            Token::Other(_) | Token::String(_) => {}
        }
    }
    Ok(has_odd_numbers)
}

fn with_kept_numbers(json: &str) -> String {
    let mut rewritten = String::with_capacity(json.len());
    let mut copied = 0;
    for (offset, token) in Tokens::new(json) {
        let Token::Number(number) = token else {
            continue;
        };
        let kept = Kept::of(number);
        if kept == Kept::Text {
            continue;
        }
        rewritten.push_str(json.get(copied..offset).unwrap_or_default());
        copied = offset + number.len();
        match kept {
            Kept::Double(double) => write_float(double, &mut rewritten),
            Kept::Text | Kept::Nothing => rewritten.push_str("null"),
        }
    }
    rewritten.push_str(json.get(copied..).unwrap_or_default());
    rewritten
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_look_lets_nothing_pass_that_has_to_be_looked_at() {
        for before in 0..600 {
            for number in ["NaN", "Infinity", "-Infinity"] {
                let json = format!("[{}{number}]", " ".repeat(before));
                assert!(!is_plain(&json, MAX_NESTING), "{before} {number}");
            }
        }
        let many = "9".repeat(400);
        for before in 0..300 {
            for number in [
                "1e400",
                "-1.5E-400",
                "0.1e+0100",
                &many,
                &format!("1.{many}e9"),
            ] {
                for end in ["]", " ]", ",1]", ",\"1234567890\"]"] {
                    let json = format!(
                        "[\"{}\",{number}{end}",
                        "3".repeat(before % 40) + &"e".repeat(before)
                    );
                    assert!(!is_plain(&json, MAX_NESTING), "{json}");
                }
            }
        }
        for num_open in [1, 2, 100, 254, 255, 256, 600] {
            for (opening, closing) in [("[", "]"), ("{\"a\":", "}")] {
                let [opening, closing] = [opening, closing].map(|text| text.repeat(num_open));
                let json = format!("{opening}1{closing}");
                assert!(is_plain(&json, num_open), "{num_open}");
                assert!(!is_plain(&json, num_open - 1), "{num_open}");
            }
        }
        assert!(is_plain(r#"{"I":"RUNNING","b":"No, I am"}"#, 1));
        assert!(is_plain(
            r#"{"id":"3e123456-0e1111-4e999","a":1e10,"b":[1.5E-07,-2e+99,12345678901234567890]}"#,
            2
        ));
        assert!(is_plain("{}", 1));
        assert!(is_plain("", 0));
    }
}
