//! What commands print: results on standard output, and nothing else there.
//!
//! Most of it came from outside, and a terminal obeys what it is sent. So control characters are escaped;
//! only [`bytes()`] prints what it is given.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd as _;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use tokio::io::Interest;
use tokio::net::unix::pipe;

/// Writes a text of one or more lines, and the end of the last.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    bytes(format!("{}\n", lines(text)).as_bytes())
}

/// Nobody reads what is printed any more: a reader such as `head` has seen enough.
#[derive(Debug)]
pub(crate) struct Unread;

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads what is printed")
    }
}

impl std::error::Error for Unread {}

pub(crate) fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    or_unread(part(bytes))
}

/// A command that prints part after part ends in good order where it is [`Unread`].
pub(crate) fn or_unread(printed: anyhow::Result<()>) -> anyhow::Result<()> {
    match printed {
        Err(error) if error.is::<Unread>() => Ok(()),
        other => other,
    }
}

/// A part of many; fails where it is [`Unread`].
pub(crate) fn part(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Unread.into(),
        _ => anyhow::anyhow!("cannot write to standard output: {error}"),
    })
}

/// The same of a line.
pub(crate) fn line_of_many(line: &str) -> anyhow::Result<()> {
    part(format!("{line}\n").as_bytes())
}

/// Waits until nobody reads what is printed; for ever where that cannot be told, as of a file.
pub(crate) async fn unread() -> anyhow::Result<()> {
    // Nothing is written through it, so standard output may block as ever.
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    if let Ok(stdout) = stdout.and_then(pipe::Sender::from_owned_fd_unchecked)
        && stdout.ready(Interest::ERROR).await.is_ok()
    {
        return Err(Unread.into());
    }
    std::future::pending().await
}

pub(crate) fn json(document: &impl Serialize) -> anyhow::Result<()> {
    line(&plain_json(&serde_json::to_string_pretty(document)?))
}

/// JSON that says the same. What a terminal obeys stands only in texts, where it is written as its number.
pub(crate) fn plain_json(json: &str) -> String {
    escaped(json, "\n", |c| {
        let mut units = [0; 2];
        let units = c.encode_utf16(&mut units).iter();
        units.map(|unit| format!("\\u{unit:04x}")).collect()
    })
}

pub(crate) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

pub(crate) fn counted(num: u64, what: &str) -> String {
    let plural = if num == 1 { "" } else { "s" };
    format!("{num} {what}{plural}")
}

pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    line(&format_table(header, rows))
}

pub(crate) fn format_table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(&header)
        .chain(rows)
        .map(|row| row.iter().map(|cell| one_line(cell)).collect())
        .collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        })
        .collect();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

pub(crate) fn error(text: &str) {
    // There is no third place to tell that the second one failed.
    drop(writeln!(io::stderr().lock(), "error: {}", lines(text)));
}

/// A text on one line, for a cell of a table.
pub(crate) fn one_line(text: &str) -> String {
    escaped(text, "", |c| c.escape_default().collect())
}

/// A text of several lines, with its tabs.
pub(crate) fn lines(text: &str) -> String {
    escaped(text, "\n\t", |c| c.escape_default().collect())
}

/// Text in which what a terminal obeys is written in another way, but for these.
fn escaped(text: &str, kept: &str, escape: impl Fn(char) -> String) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) && !kept.contains(c) {
            plain.push_str(&escape(c));
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Whether a terminal acts on it, or shows a name as another because it runs from right to left.
pub(crate) fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["1".to_owned(), "x".to_owned()],
            vec!["long".to_owned(), "".to_owned()],
        ];
        assert_eq!(format_table(&["id", "b"], &rows), "id    b\n1     x\nlong");
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(one_line("a\u{202e}b\u{2028}c"), "a\\u{202e}b\\u{2028}c");
        let rows = [vec!["a\nb".to_owned(), "\u{9b}2J".to_owned()]];
        assert_eq!(
            format_table(&["x", "y"], &rows),
            "x     y\na\\nb  \\u{9b}2J"
        );
    }

    #[test]
    fn a_text_of_several_lines_keeps_these_and_nothing_else() {
        let text = "{\n\t\"a\": \"\u{1b}]0;x\u{7}\u{7f}\u{85}\u{9b}\u{200f}\u{2066}é\r\"\n}";
        let plain =
            "{\n\t\"a\": \"\\u{1b}]0;x\\u{7}\\u{7f}\\u{85}\\u{9b}\\u{200f}\\u{2066}é\\r\"\n}";
        assert_eq!(lines(text), plain);
    }

    #[test]
    fn json_says_the_same_without_what_a_terminal_obeys() {
        let all: String = (0..=0x2_ffff).filter_map(char::from_u32).collect();
        for document in [
            serde_json::to_string_pretty(&[&all]).unwrap(),
            serde_json::to_string(&[&all]).unwrap(),
        ] {
            let plain = plain_json(&document);
            assert!(!plain.contains(|c| is_obeyed(c) && c != '\n'));
            let read: Vec<String> = serde_json::from_str(&plain).unwrap();
            assert_eq!(read, std::slice::from_ref(&all));
        }
    }
}
