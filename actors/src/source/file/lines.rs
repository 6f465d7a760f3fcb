//! Events out of a reader, in bounded memory.
//!
//! A JSON list of events, or events that are spread over several lines each, are told by the beginning and
//! read value by value: see [`Documents`].

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Buf as _, Bytes};

use super::FileProgress;
use super::documents::{self, Documents};
use crate::source::encoding::{self, Encoding};

/// How much of a line beyond the limit is kept for its dead letter: enough to recognise it.
pub(super) const MAX_KEPT_BYTES: usize = 1024 * 1024;

/// One system call reads this much. Smaller costs calls, larger gains nothing.
pub(super) const READ_BUFFER_BYTES: usize = 256 * 1024;

/// How long the first line of an event that is spread over several may be: it ends early in such files.
const MAX_FIRST_LINE_BYTES: u64 = 64 * 1024;

pub(super) enum Text {
    Whole(Bytes),
    TooLong {
        beginning: Bytes,
        num_bytes: u64,
        limit: usize,
    },
}

pub(super) struct Item {
    pub(super) text: Text,
    /// The line on which it begins, as editors count.
    pub(super) line: u64,
    /// Its place in a JSON list, from 0.
    pub(super) index: Option<u64>,
}

#[derive(Debug)]
pub(super) enum Unreadable {
    Failed(io::Error),
    /// It is no text in UTF-8; nothing was taken of it.
    Encoded(Encoding),
    /// It does not go on as the JSON that it began as: nobody can tell where the next event begins.
    Broken(String),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// A reader that gives bytes once more where they were only looked at.
pub(super) struct Input {
    again: Bytes,
    reader: BufReader<Box<dyn Read + Send>>,
    /// How many lines have ended; blank ones count, as in editors.
    pub(super) line_number: u64,
    progress: Arc<FileProgress>,
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let num = self.fill_buf()?.read(into)?;
        self.consume(num);
        Ok(num)
    }
}

impl BufRead for Input {
    /// Empty only at the end.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if !self.again.is_empty() {
            return Ok(&self.again);
        }
        while let Err(error) = self.reader.fill_buf() {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        // Once more, for the borrow; what is buffered is not read again.
        self.reader.fill_buf()
    }

    fn consume(&mut self, num: usize) {
        if self.again.is_empty() {
            self.reader.consume(num);
        } else {
            self.again.advance(num);
        }
    }
}

impl Input {
    pub(super) fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.fill_buf()?.first().copied())
    }

    /// Passes over bytes, which then count as read.
    pub(super) fn pass(&mut self, num: usize) {
        self.consume(num);
        self.count(num);
    }

    pub(super) fn skip_space(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.fill_buf()?;
            let is_space = |byte: &&u8| byte.is_ascii_whitespace();
            let num_space = buffer.iter().take_while(is_space).count();
            let is_over = num_space < buffer.len() || buffer.is_empty();
            let num_ended = num_lines(&buffer[..num_space]);
            self.line_number += num_ended;
            self.pass(num_space);
            if is_over {
                return Ok(());
            }
        }
    }

    fn go_back(&mut self, seen: &[u8]) {
        self.again = [seen, &self.again].concat().into();
    }

    fn count(&self, num: usize) {
        let num = u64::try_from(num).unwrap_or(u64::MAX);
        self.progress.num_bytes.fetch_add(num, Ordering::Relaxed);
    }
}

enum Form {
    Unknown,
    Lines,
    Documents(Documents),
}

pub(super) struct Lines {
    pub(super) input: Input,
    form: Form,
    max_line_bytes: usize,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn new(
        reader: Box<dyn Read + Send>,
        max_line_bytes: usize,
        progress: Arc<FileProgress>,
    ) -> Self {
        Self {
            input: Input {
                again: Bytes::new(),
                reader: BufReader::with_capacity(READ_BUFFER_BYTES, reader),
                line_number: 0,
                progress,
            },
            form: Form::Unknown,
            max_line_bytes,
            line: Vec::new(),
        }
    }

    /// Whether the next event can probably be read without waiting for the reader.
    pub(super) fn has_more(&self) -> bool {
        let end = match self.form {
            Form::Unknown | Form::Lines => b'\n',
            Form::Documents(_) => b'}',
        };
        self.input.again.contains(&end) || self.input.reader.buffer().contains(&end)
    }

    pub(super) fn next(&mut self) -> Result<Option<Item>, Unreadable> {
        if matches!(self.form, Form::Unknown) {
            self.form = self.look()?;
        }
        let item = match &mut self.form {
            Form::Unknown | Form::Lines => self.next_line()?,
            Form::Documents(documents) => {
                documents.next(&mut self.input, &mut self.line, self.max_line_bytes)?
            }
        };
        // A giant one must not keep its room for the rest of the file.
        self.line.clear();
        self.line.shrink_to(READ_BUFFER_BYTES);
        Ok(item)
    }

    /// Finds out how events stand there, and goes back to where the first one begins.
    fn look(&mut self) -> Result<Form, Unreadable> {
        let mut beginning = Vec::new();
        while !encoding_shows(&beginning) && self.look_at_one_more(&mut beginning)? {}
        let (encoding, mark) = encoding::detect(&beginning);
        if encoding != Encoding::Utf8 {
            return Err(Unreadable::Encoded(encoding));
        }
        self.input.count(mark);
        self.input.go_back(&beginning[mark..]);
        self.input.skip_space()?;
        match self.input.peek()? {
            Some(b'[') => Ok(Form::Documents(Documents::default())),
            Some(b'{') => self.look_at_object(),
            _ => Ok(Form::Lines),
        }
    }

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
        self.input.go_back(&seen);
        Ok(form)
    }

    fn look_at_one_more(&mut self, seen: &mut Vec<u8>) -> io::Result<bool> {
        Ok((&mut self.input).take(1).read_to_end(seen)? > 0)
    }

    fn next_line(&mut self) -> Result<Option<Item>, Unreadable> {
        loop {
            self.line.clear();
            // One byte beyond the limit tells a line that is too long from one that just fits.
            let limit = u64::try_from(self.max_line_bytes)
                .unwrap_or(u64::MAX)
                .saturating_add(1);
            let num_read = (&mut self.input)
                .take(limit)
                .read_until(b'\n', &mut self.line);
            self.input.count(self.line.len());
            if num_read? == 0 {
                return Ok(None);
            }
            let ended = self.line.pop_if(|last| *last == b'\n').is_some();
            let text = if !ended && self.line.len() > self.max_line_bytes {
                self.too_long()?
            } else if self.line.trim_ascii().is_empty() {
                self.input.line_number += 1;
                continue;
            } else {
                Text::Whole(Bytes::copy_from_slice(&self.line))
            };
            self.input.line_number += 1;
            return Ok(Some(Item {
                text,
                line: self.input.line_number,
                index: None,
            }));
        }
    }

    fn too_long(&mut self) -> io::Result<Text> {
        let mut length = self.line.len();
        loop {
            let buffer = self.input.fill_buf()?;
            let line_end = buffer.iter().position(|byte| *byte == b'\n');
            let in_line = line_end.unwrap_or(buffer.len());
            let at_end = buffer.is_empty() || line_end.is_some();
            let consumed = in_line + usize::from(line_end.is_some());
            self.input.pass(consumed);
            length = length.saturating_add(in_line);
            if at_end {
                break;
            }
        }
        Ok(too_long(&self.line, length, self.max_line_bytes))
    }
}

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

pub(super) fn num_lines(bytes: &[u8]) -> u64 {
    let ends = memchr::memchr_iter(b'\n', bytes).count();
    u64::try_from(ends).unwrap_or(u64::MAX)
}
