//! Events out of JSON that is not one event a line: lists of events, and events over several lines each.
//!
//! One element of a list at a time is cut out, by its brackets and strings alone. Whether that is an event is
//! for the parser to say. Where brackets or the commas between elements are wrong nobody can tell where the
//! next event begins, and reading ends.

use std::io::BufRead as _;

use bytes::Bytes;

use super::lines::{Input, Item, Text, Unreadable, num_lines, too_long};

struct List {
    line: u64,
    num_elements: u64,
    /// Whether an element stands behind the last comma, so that a comma or the end is due.
    has_element: bool,
}

#[derive(Default)]
pub(super) struct Documents {
    list: Option<List>,
}

impl Documents {
    pub(super) fn next(
        &mut self,
        input: &mut Input,
        text: &mut Vec<u8>,
        limit: usize,
    ) -> Result<Option<Item>, Unreadable> {
        loop {
            input.skip_space()?;
            let next = input.peek()?;
            match (&mut self.list, next) {
                (None, None) => return Ok(None),
                (None, Some(b'[')) => {
                    input.pass(1);
                    self.list = Some(List {
                        line: input.line_number + 1,
                        num_elements: 0,
                        has_element: false,
                    });
                }
                (None, Some(b'{')) => return cut(input, text, limit, None).map(Some),
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
                    input.pass(1);
                    self.list = None;
                }
                (Some(list), Some(b',')) if list.has_element => {
                    input.pass(1);
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
                    return cut(input, text, limit, Some(index)).map(Some);
                }
            }
        }
    }
}

fn broken<T>(why: &str) -> Result<T, Unreadable> {
    Err(Unreadable::Broken(why.to_owned()))
}

fn cut(
    input: &mut Input,
    text: &mut Vec<u8>,
    limit: usize,
    index: Option<u64>,
) -> Result<Item, Unreadable> {
    let line = input.line_number + 1;
    let mut scan = Scan::default();
    let mut num_bytes = 0_usize;
    text.clear();
    loop {
        let buffer = input.fill_buf()?;
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
        let num_ended = num_lines(part);
        input.line_number += num_ended;
        input.pass(consumed);
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

#[derive(Debug, Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    has_begun: bool,
}

enum Step {
    Goes,
    Ended,
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

/// Whether a first line leaves an object open behind a bracket or a comma, as a line that was cut off rarely
/// does.
pub(super) fn breaks_off(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    let mut scan = Scan::default();
    let (_, step) = scan.advance(line);
    matches!(step, Step::Goes)
        && scan.depth > 0
        && !scan.in_string
        && matches!(line.last(), Some(b'{' | b','))
}
