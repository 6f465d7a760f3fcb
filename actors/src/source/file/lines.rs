//! Events out of a reader, in bounded memory.
//!
//! Most files have one a line. One that is a JSON list of events, or events that are spread over several
//! lines each, is told by its beginning, and then read value by value: see [`Documents`].

use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::documents::{self, Documents};
use crate::source::encoding::{self, Encoding};

/// How much of a line beyond the limit is kept for its dead letter: enough to recognise it, too
/// little to hurt a table.
pub(super) const MAX_KEPT_BYTES: usize = 1024 * 1024;

/// One system call reads this much. Smaller costs calls, larger gains nothing.
pub(super) const READ_BUFFER_BYTES: usize = 256 * 1024;

/// How long the first line of an event that is spread over several may be. Those who write such files
/// break after the first bracket or the first member.
const MAX_FIRST_LINE_BYTES: u64 = 64 * 1024;

/// The text of what should be one event.
pub(super) enum Text {
    Whole(Bytes),
    TooLong {
        beginning: Bytes,
        num_bytes: u64,
        limit: usize,
    },
}

/// One event, and where it stands.
pub(super) struct Item {
    pub(super) text: Text,
    /// The line on which it begins, as editors count.
    pub(super) line: u64,
    /// Its place in a JSON list, from 0.
    pub(super) index: Option<u64>,
}

/// Why nothing more can be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    Failed(io::Error),
    /// It is no text in UTF-8; nothing was taken of it.
    Encoded(Encoding),
    /// It began as a list, or as an event over several lines, and does not go on as JSON: nobody can tell
    /// where the next event begins.
    Broken(String),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// A reader whose first bytes, which were looked at already, come once more.
pub(super) type Input = io::Chain<io::Cursor<Vec<u8>>, BufReader<Box<dyn Read + Send>>>;

/// How events stand in a reader.
enum Form {
    /// Nothing was looked at yet.
    Unknown,
    Lines,
    Documents(Documents),
}

/// Splits a reader into events.
pub(super) struct Lines {
    input: Input,
    form: Form,
    max_line_bytes: usize,
    /// How many lines were read to their ends; blank ones count, so that it is the number that editors
    /// show.
    pub(super) line_number: u64,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn new(reader: Box<dyn Read + Send>, max_line_bytes: usize) -> Self {
        let reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
        Self {
            input: io::Cursor::default().chain(reader),
            form: Form::Unknown,
            max_line_bytes,
            line_number: 0,
            line: Vec::new(),
        }
    }

    /// Whether the next event can be read without waiting for the reader, as far as that can be told.
    pub(super) fn has_more(&self) -> bool {
        let end = match self.form {
            Form::Unknown | Form::Lines => b'\n',
            Form::Documents(_) => b'}',
        };
        let (first, then) = self.input.get_ref();
        let at = usize::try_from(first.position()).unwrap_or(usize::MAX);
        let first = first.get_ref().get(at..).unwrap_or_default();
        first.contains(&end) || then.buffer().contains(&end)
    }

    /// The next event; `None` at the end.
    pub(super) fn next(&mut self, num_bytes: &AtomicU64) -> Result<Option<Item>, Unreadable> {
        if matches!(self.form, Form::Unknown) {
            self.form = self.look(num_bytes)?;
        }
        let item = match &mut self.form {
            Form::Unknown | Form::Lines => self.next_line(num_bytes)?,
            Form::Documents(documents) => {
                let mut cursor = documents::InputCursor {
                    input: &mut self.input,
                    line_number: &mut self.line_number,
                    num_bytes,
                };
                documents.next(&mut cursor, &mut self.line, self.max_line_bytes)?
            }
        };
        // A giant one must not keep its room for the rest of the file.
        self.line.clear();
        self.line.shrink_to(READ_BUFFER_BYTES);
        Ok(item)
    }

    /// Finds out how events stand there, and goes back to where the first one begins.
    fn look(&mut self, num_bytes: &AtomicU64) -> Result<Form, Unreadable> {
        let mut beginning = Vec::new();
        while !encoding_shows(&beginning) && self.look_at_one_more(&mut beginning)? {}
        let (encoding, mark) = encoding::detect(&beginning);
        if encoding != Encoding::Utf8 {
            return Err(Unreadable::Encoded(encoding));
        }
        beginning.drain(..mark);
        count(num_bytes, mark);
        self.go_back(beginning);
        skip_space(&mut self.input, &mut self.line_number, num_bytes)?;
        match peek(&mut self.input)? {
            Some(b'[') => Ok(Form::Documents(Documents::default())),
            Some(b'{') => self.look_at_object(),
            _ => Ok(Form::Lines),
        }
    }

    /// Whether an object goes on behind its first line.
    fn look_at_object(&mut self) -> Result<Form, Unreadable> {
        let mut seen = Vec::new();
        let mut input = (&mut self.input).take(MAX_FIRST_LINE_BYTES);
        input.read_until(b'\n', &mut seen)?;
        let mut form = Form::Lines;
        if seen.last() == Some(&b'\n') && documents::breaks_off(&seen) {
            // The next byte in an object; where lines are events, the next one is an object.
            let is_space = |byte: &u8| byte.is_ascii_whitespace();
            while self.look_at_one_more(&mut seen)? && seen.last().is_some_and(is_space) {}
            if matches!(seen.last(), Some(b'"' | b'}')) {
                form = Form::Documents(Documents::default());
            }
        }
        self.go_back(seen);
        Ok(form)
    }

    fn look_at_one_more(&mut self, seen: &mut Vec<u8>) -> io::Result<bool> {
        Ok((&mut self.input).take(1).read_to_end(seen)? > 0)
    }

    /// Has bytes that were looked at come once more.
    fn go_back(&mut self, seen: Vec<u8>) {
        let nothing: Box<dyn Read + Send> = Box::new(io::empty());
        let nothing = io::Cursor::default().chain(BufReader::with_capacity(0, nothing));
        let (first, then) = std::mem::replace(&mut self.input, nothing).into_inner();
        let at = usize::try_from(first.position()).unwrap_or(usize::MAX);
        let mut again = seen;
        again.extend_from_slice(first.get_ref().get(at..).unwrap_or_default());
        self.input = io::Cursor::new(again).chain(then);
    }

    /// The next line that is not blank; `None` at the end.
    fn next_line(&mut self, num_bytes: &AtomicU64) -> Result<Option<Item>, Unreadable> {
        loop {
            self.line.clear();
            // One byte beyond the limit tells a line that is too long from one that just fits.
            let limit = u64::try_from(self.max_line_bytes)
                .unwrap_or(u64::MAX)
                .saturating_add(1);
            let num_read = (&mut self.input)
                .take(limit)
                .read_until(b'\n', &mut self.line);
            count(num_bytes, self.line.len());
            if num_read? == 0 {
                return Ok(None);
            }
            let ended = self.line.pop_if(|last| *last == b'\n').is_some();
            let text = if !ended && self.line.len() > self.max_line_bytes {
                self.too_long(num_bytes)?
            } else if self.line.trim_ascii().is_empty() {
                self.line_number += 1;
                continue;
            } else {
                Text::Whole(Bytes::copy_from_slice(&self.line))
            };
            self.line_number += 1;
            return Ok(Some(Item {
                text,
                line: self.line_number,
                index: None,
            }));
        }
    }

    /// Passes over the rest of the line.
    fn too_long(&mut self, num_bytes: &AtomicU64) -> io::Result<Text> {
        let mut length = self.line.len();
        loop {
            let buffer = fill(&mut self.input)?;
            let line_end = buffer.iter().position(|byte| *byte == b'\n');
            let in_line = line_end.unwrap_or(buffer.len());
            let at_end = buffer.is_empty() || line_end.is_some();
            let consumed = in_line + usize::from(line_end.is_some());
            self.input.consume(consumed);
            count(num_bytes, consumed);
            length = length.saturating_add(in_line);
            if at_end {
                break;
            }
        }
        Ok(too_long(&self.line, length, self.max_line_bytes))
    }
}

/// The beginning of a text that has so many bytes.
pub(super) fn too_long(text: &[u8], num_bytes: usize, limit: usize) -> Text {
    let kept = text.len().min(MAX_KEPT_BYTES);
    Text::TooLong {
        beginning: Bytes::copy_from_slice(&text[..kept]),
        num_bytes: u64::try_from(num_bytes).unwrap_or(u64::MAX),
        limit,
    }
}

/// Whether so much is enough to tell the encoding: of a pipe no more is waited for than that.
fn encoding_shows(beginning: &[u8]) -> bool {
    match beginning {
        [] | [_] => false,
        [0 | 0xEF | 0xFE | 0xFF, ..] | [_, 0, ..] => beginning.len() >= encoding::ENOUGH,
        _ => true,
    }
}

/// The buffered bytes, after a read if there are none. Empty only at the end.
pub(super) fn fill(input: &mut Input) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // Once more, for the borrow; what is buffered is not read again.
    input.fill_buf()
}

/// The next byte, which stays there.
pub(super) fn peek(input: &mut Input) -> io::Result<Option<u8>> {
    Ok(fill(input)?.first().copied())
}

/// Passes over white space, and counts its lines.
pub(super) fn skip_space(
    input: &mut Input,
    line_number: &mut u64,
    num_bytes: &AtomicU64,
) -> io::Result<()> {
    loop {
        let buffer = fill(input)?;
        let is_space = |byte: &&u8| byte.is_ascii_whitespace();
        let num_space = buffer.iter().take_while(is_space).count();
        let is_over = num_space < buffer.len() || buffer.is_empty();
        *line_number += num_lines(&buffer[..num_space]);
        input.consume(num_space);
        count(num_bytes, num_space);
        if is_over {
            return Ok(());
        }
    }
}

pub(super) fn num_lines(bytes: &[u8]) -> u64 {
    let ends = memchr::memchr_iter(b'\n', bytes).count();
    u64::try_from(ends).unwrap_or(u64::MAX)
}

pub(super) fn count(counter: &AtomicU64, num: usize) {
    counter.fetch_add(u64::try_from(num).unwrap_or(u64::MAX), Ordering::Relaxed);
}
