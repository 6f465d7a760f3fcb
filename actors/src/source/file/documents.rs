//! Events out of JSON that is not one event a line: lists of events, and events over several lines each.
//!
//! A list is never held as a whole: one element at a time is cut out, by its brackets and strings alone.
//! Whether that is JSON, and an event, is for the parser to say, and costs only the one element. Where
//! the brackets themselves or the commas between elements are wrong nobody can tell where the next event
//! begins, and reading ends there.

use std::io::BufRead as _;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;

use super::lines::{
    Input, Item, Text, Unreadable, count, fill, num_lines, peek, skip_space, too_long,
};

/// The input, with counts of what was read of it.
pub(super) struct InputCursor<'a> {
    pub(super) input: &'a mut Input,
    /// How many lines have ended.
    pub(super) line_number: &'a mut u64,
    pub(super) num_bytes: &'a AtomicU64,
}

impl InputCursor<'_> {
    fn consume(&mut self, num: usize) {
        self.input.consume(num);
        count(self.num_bytes, num);
    }
}

/// A list that has begun.
struct List {
    /// The line on which it began.
    line: u64,
    /// How many elements have been read.
    num_elements: u64,
    /// Whether an element stands behind the last comma, so that a comma or the end is due.
    has_element: bool,
}

/// Cuts values out of a text of JSON.
#[derive(Default)]
pub(super) struct Documents {
    list: Option<List>,
}

impl Documents {
    /// The next event; `None` at the end. `text` is room for it.
    pub(super) fn next(
        &mut self,
        cursor: &mut InputCursor<'_>,
        text: &mut Vec<u8>,
        limit: usize,
    ) -> Result<Option<Item>, Unreadable> {
        loop {
            skip_space(cursor.input, cursor.line_number, cursor.num_bytes)?;
            let next = peek(cursor.input)?;
            match (&mut self.list, next) {
                (None, None) => return Ok(None),
                (None, Some(b'[')) => {
                    cursor.consume(1);
                    self.list = Some(List {
                        line: *cursor.line_number + 1,
                        num_elements: 0,
                        has_element: false,
                    });
                }
                (None, Some(b'{')) => return cut(cursor, text, limit, None).map(Some),
                (None, Some(_)) => {
                    return broken("here stands neither an event nor a list of events");
                }
                (Some(list), None) => {
                    return broken(&format!(
                        "the list that begins on line {} has no end",
                        list.line
                    ));
                }
                (Some(list), Some(b']')) if list.has_element || list.num_elements == 0 => {
                    cursor.consume(1);
                    self.list = None;
                }
                (Some(list), Some(b',')) if list.has_element => {
                    cursor.consume(1);
                    list.has_element = false;
                }
                (Some(list), Some(_)) if list.has_element => {
                    return broken("a comma is missing between two events of the list");
                }
                (Some(_), Some(b']' | b'}' | b',')) => {
                    return broken("an event is missing in the list");
                }
                (Some(list), Some(_)) => {
                    let index = list.num_elements;
                    list.num_elements += 1;
                    list.has_element = true;
                    return cut(cursor, text, limit, Some(index)).map(Some);
                }
            }
        }
    }
}

fn broken<T>(why: &str) -> Result<T, Unreadable> {
    Err(Unreadable::Broken(why.to_owned()))
}

fn cut(
    cursor: &mut InputCursor<'_>,
    text: &mut Vec<u8>,
    limit: usize,
    index: Option<u64>,
) -> Result<Item, Unreadable> {
    let line = *cursor.line_number + 1;
    let mut scan = Scan::default();
    let mut num_bytes = 0_usize;
    text.clear();
    loop {
        let buffer = fill(cursor.input)?;
        if buffer.is_empty() {
            // A number has no end of its own.
            if scan.is_scalar() {
                break;
            }
            return broken(&format!("what begins on line {line} has no end"));
        }
        let (consumed, step) = scan.advance(buffer);
        let part = &buffer[..consumed];
        let room = limit.saturating_add(1).saturating_sub(text.len());
        text.extend_from_slice(&part[..consumed.min(room)]);
        num_bytes = num_bytes.saturating_add(consumed);
        *cursor.line_number += num_lines(part);
        cursor.consume(consumed);
        match step {
            Step::Goes => {}
            Step::Ended => break,
            Step::Broken => return broken("a line ends within a string"),
        }
    }
    let text = if num_bytes > limit {
        too_long(text, num_bytes, limit)
    } else {
        Text::Whole(Bytes::copy_from_slice(text))
    };
    Ok(Item { text, line, index })
}

/// How far into a value the bytes lead.
#[derive(Debug, Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    has_begun: bool,
}

enum Step {
    /// The value goes on behind these bytes.
    Goes,
    Ended,
    /// A line ends within a string.
    Broken,
}

impl Scan {
    fn is_scalar(&self) -> bool {
        self.has_begun && self.depth == 0 && !self.in_string
    }

    /// How many of these bytes belong to the value, and whether it ends with them.
    fn advance(&mut self, bytes: &[u8]) -> (usize, Step) {
        for (at, byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    // As written the newline still counts for the line on which it stands.
                    b'\n' => return (at, Step::Broken),
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return (at + 1, Step::Ended);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 1 => self.depth -= 1,
                b'}' | b']' if self.depth == 1 => return (at + 1, Step::Ended),
                b'}' | b']' | b',' if self.depth == 0 => return (at, Step::Ended),
                _ if self.depth == 0 && byte.is_ascii_whitespace() => return (at, Step::Ended),
                _ => {}
            }
            self.has_begun = true;
        }
        (bytes.len(), Step::Goes)
    }
}

/// Whether a first line leaves an object open where one that is spread over lines does: behind a bracket
/// or a comma. A line that was cut off most often ends elsewhere.
pub(super) fn breaks_off(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    let mut scan = Scan::default();
    let (_, step) = scan.advance(line);
    matches!(step, Step::Goes)
        && scan.depth > 0
        && !scan.in_string
        && matches!(line.last(), Some(b'{' | b','))
}
