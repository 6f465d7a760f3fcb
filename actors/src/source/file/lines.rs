//! Lines out of a reader, in bounded memory.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// How much of a line beyond the limit is kept for its dead letter: enough to recognise it, too
/// little to hurt a table.
pub(super) const MAX_KEPT_BYTES: usize = 1024 * 1024;

/// One system call reads this much. Smaller costs calls, larger gains nothing.
pub(super) const READ_BUFFER_BYTES: usize = 256 * 1024;

/// One line, without its end.
pub(super) enum Text {
    Whole(Bytes),
    TooLong {
        beginning: Bytes,
        num_bytes: u64,
        limit: usize,
    },
}

/// Splits a reader into lines.
pub(super) struct Lines {
    reader: BufReader<Box<dyn Read + Send>>,
    max_line_bytes: usize,
    /// Of the line that was read last; blank lines count, so that it is the one editors show.
    pub(super) line_number: u64,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn new(reader: Box<dyn Read + Send>, max_line_bytes: usize) -> Self {
        Self {
            reader: BufReader::with_capacity(READ_BUFFER_BYTES, reader),
            max_line_bytes,
            line_number: 0,
            line: Vec::new(),
        }
    }

    /// Whether the next line can be read without waiting for the reader.
    pub(super) fn has_whole_line(&self) -> bool {
        self.reader.buffer().contains(&b'\n')
    }

    /// The next line that is not blank; `None` at the end.
    pub(super) fn next(&mut self, num_bytes: &AtomicU64) -> io::Result<Option<Text>> {
        loop {
            self.line.clear();
            // One byte beyond the limit tells a line that is too long from one that just fits.
            let limit = u64::try_from(self.max_line_bytes)
                .unwrap_or(u64::MAX)
                .saturating_add(1);
            let num_read = (&mut self.reader)
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
            // A giant line must not keep its room for the rest of the file.
            self.line.clear();
            self.line.shrink_to(READ_BUFFER_BYTES);
            return Ok(Some(text));
        }
    }

    /// Passes over the rest of the line.
    fn too_long(&mut self, num_bytes: &AtomicU64) -> io::Result<Text> {
        let mut length = self.line.len();
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let line_end = buffer.iter().position(|byte| *byte == b'\n');
            let in_line = line_end.unwrap_or(buffer.len());
            let at_end = buffer.is_empty() || line_end.is_some();
            let consumed = in_line + usize::from(line_end.is_some());
            self.reader.consume(consumed);
            count(num_bytes, consumed);
            length = length.saturating_add(in_line);
            if at_end {
                break;
            }
        }
        let kept = self.line.len().min(MAX_KEPT_BYTES);
        Ok(Text::TooLong {
            beginning: Bytes::copy_from_slice(&self.line[..kept]),
            num_bytes: u64::try_from(length).unwrap_or(u64::MAX),
            limit: self.max_line_bytes,
        })
    }
}

fn count(counter: &AtomicU64, num: usize) {
    counter.fetch_add(u64::try_from(num).unwrap_or(u64::MAX), Ordering::Relaxed);
}
