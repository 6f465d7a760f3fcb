//! JSON text, read once from front to back.
//!
//! The reader is `jiter`'s, which pydantic and with it Prefect reads events with, so that the two
//! agree on every odd number, escape and surrogate. It goes through skipped values in a loop, not
//! by recursion, and so does what is added here: no nesting can exhaust the stack.

use bytestring::ByteString;
use jiter::{
    Jiter, JiterError, JiterErrorType, JiterResult, JsonErrorType, JsonType, NumberAny, Peek,
};
use memchr::memchr2;

/// How many arrays and objects may stand open within one another, the event itself included.
///
/// Prefect's limit to the letter: an array or object with nothing in it does not count.
const MAX_NESTING: usize = 200;

/// Reads one text.
pub(super) struct Reader<'t> {
    text: &'t ByteString,
    jiter: Jiter<'t>,
}

/// A value that was checked to be JSON and not looked at any further.
pub(super) struct Skipped<'t> {
    text: &'t ByteString,
    json: &'t str,
    has_non_finite: bool,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t ByteString) -> Self {
        Self {
            text,
            jiter: Jiter::new(text.as_bytes()).with_allow_inf_nan(),
        }
    }

    /// The kind of the next value, without consuming it.
    pub(super) fn peek(&mut self) -> JiterResult<Peek> {
        self.jiter.peek()
    }

    /// Goes into the text's only value, which must be an object: its first key, if it has any.
    pub(super) fn enter_event(&mut self) -> JiterResult<Option<&str>> {
        self.jiter.next_object()
    }

    /// Goes into the object that was peeked: its first key, if it has any.
    pub(super) fn enter_object(&mut self) -> JiterResult<Option<&str>> {
        self.jiter.known_object()
    }

    /// The next key of the object, or its end.
    pub(super) fn next_key(&mut self) -> JiterResult<Option<&str>> {
        self.jiter.next_key()
    }

    /// Goes into the array that was peeked: its first value, if it has any.
    pub(super) fn enter_array(&mut self) -> JiterResult<Option<Peek>> {
        self.jiter.known_array()
    }

    /// The next value of the array, or its end.
    pub(super) fn next_item(&mut self) -> JiterResult<Option<Peek>> {
        self.jiter.array_step()
    }

    /// The whole text.
    pub(super) fn text(&self) -> &'t ByteString {
        self.text
    }

    /// Consumes the string that was peeked: a part of the text, unless it has escapes.
    pub(super) fn string(&mut self) -> JiterResult<&str> {
        self.jiter.known_str()
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
        let has_non_finite = match peek {
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
            has_non_finite,
        })
    }

    /// Nothing but white space may follow.
    pub(super) fn finish(&mut self) -> JiterResult<()> {
        self.jiter.finish()
    }

    /// What is wrong and where, without anything of the text.
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
    /// The value as a slice of the text that it stands in; a copy only where it holds NaN or
    /// infinities, which are no JSON to anyone but Python: they become `null`, as in Prefect.
    pub(super) fn to_json(&self) -> ByteString {
        if self.has_non_finite {
            nullify_non_finite(self.json).into()
        } else {
            self.text.slice_ref(self.json)
        }
    }
}

/// The name of a value's kind, with its article.
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

/// Whether a look at the bytes, many at a time, is enough to tell that valid JSON neither goes deeper than
/// `max_nesting` nor holds NaN or infinities.
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
    let pairs = bytes.iter().zip(bytes.iter().skip(1));
    let is_suspect = pairs.fold(false, |found, (&first, &second)| {
        found | (first == b'N') & (second == b'a') | (first == b'I') & (second == b'n')
    });
    !is_suspect
}

/// Whether valid JSON holds NaN or infinities, or else where it goes deeper than `max_nesting`.
fn inspect(json: &str, max_nesting: usize) -> Result<bool, usize> {
    let mut num_open = 0_usize;
    let mut has_non_finite = false;
    for (offset, byte) in OutsideStrings::new(json) {
        match byte {
            b']' | b'}' => num_open = num_open.saturating_sub(1),
            b' ' | b'\t' | b'\n' | b'\r' => {}
            // One level too deep there may be an empty array or object, but no content.
            _ if num_open > max_nesting => return Err(offset),
            b'[' | b'{' => num_open += 1,
            b'N' | b'I' => has_non_finite = true,
            _ => {}
        }
    }
    Ok(has_non_finite)
}

/// Writes `null` for NaN, Infinity and -Infinity in JSON that is valid but for these.
fn nullify_non_finite(json: &str) -> String {
    let bytes = json.as_bytes();
    let mut rewritten = String::with_capacity(json.len());
    let mut copied = 0;
    for (offset, byte) in OutsideStrings::new(json) {
        let (start, end) = match byte {
            // The last letter of NaN is behind what is copied by then.
            b'N' if offset >= copied => (offset, offset + "NaN".len()),
            b'I' => {
                let is_negative = offset > 0 && bytes[offset - 1] == b'-';
                (offset - usize::from(is_negative), offset + "Infinity".len())
            }
            _ => continue,
        };
        rewritten.push_str(&json[copied..start]);
        rewritten.push_str("null");
        copied = end;
    }
    rewritten.push_str(&json[copied..]);
    rewritten
}

/// The bytes of valid JSON that stand outside its strings, with their offsets; of a string only
/// the opening quote.
struct OutsideStrings<'t> {
    bytes: &'t [u8],
    offset: usize,
}

impl<'t> OutsideStrings<'t> {
    fn new(json: &'t str) -> Self {
        Self {
            bytes: json.as_bytes(),
            offset: 0,
        }
    }

    /// The offset behind the closing quote of the string whose content starts at `offset`.
    fn end_of_string(&self, mut offset: usize) -> usize {
        loop {
            let rest = self.bytes.get(offset..).unwrap_or_default();
            let Some(length) = memchr2(b'"', b'\\', rest) else {
                return self.bytes.len();
            };
            match rest.get(length) {
                Some(b'\\') => offset += length + 2,
                _ => return offset + length + 1,
            }
        }
    }
}

impl Iterator for OutsideStrings<'_> {
    type Item = (usize, u8);

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        let byte = *self.bytes.get(offset)?;
        self.offset = match byte {
            b'"' => self.end_of_string(offset + 1),
            _ => offset + 1,
        };
        Some((offset, byte))
    }
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
        for num_open in [1, 2, 100, 254, 255, 256, 600] {
            for (opening, closing) in [("[", "]"), ("{\"a\":", "}")] {
                let [opening, closing] = [opening, closing].map(|text| text.repeat(num_open));
                let json = format!("{opening}1{closing}");
                assert!(is_plain(&json, num_open), "{num_open}");
                assert!(!is_plain(&json, num_open - 1), "{num_open}");
            }
        }
        assert!(is_plain(r#"{"I":"RUNNING","b":"No, I am"}"#, 1));
        assert!(is_plain("{}", 1));
        assert!(is_plain("", 0));
    }
}
