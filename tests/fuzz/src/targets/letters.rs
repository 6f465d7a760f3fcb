//! The pages that show dead letters to people.

use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};
use event_persister_actors::store::Stage;
use event_persister_actors::store::operator::DeadLetter;

use crate::dead_letters::{describe, page};

/// Bytes up to a 0xff each are the source, the position, the code and the reason; the rest is the
/// message. Whatever they are, a letter has one line in the list, in the columns of the others,
/// and one line a field when it is shown; and no terminal is told to do anything.
pub fn letters(data: &[u8]) {
    let mut parts = data.splitn(5, |byte| *byte == 0xff);
    let mut next = || parts.next().unwrap_or_default();
    let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
    let odd = DeadLetter {
        source: text(next()),
        position: text(next()),
        sqlstate: Some(text(next())),
        reason: text(next()),
        ..plain()
    };
    let message = next();
    check_page(&page(&[odd.clone(), plain()], NonZeroUsize::MAX));
    check_letter(&describe(&odd, message.to_vec()), message);
}

fn plain() -> DeadLetter {
    DeadLetter {
        id: 7,
        source: "file".to_owned(),
        position: "events.jsonl:17".to_owned(),
        stage: Stage::Parse,
        reason: "REASON".to_owned(),
        sqlstate: None,
        event_id: None,
        attempts: 2,
        first_seen: DateTime::<Utc>::UNIX_EPOCH,
        last_seen: DateTime::<Utc>::UNIX_EPOCH,
        num_bytes: 2,
    }
}

fn check_page(page: &str) {
    let lines: Vec<Vec<char>> = page
        .split('\n')
        .map(|line| line.chars().collect())
        .collect();
    let [header, odd, plain] = lines.as_slice() else {
        panic!("{page:?}");
    };
    assert!(!page.contains(|c: char| c != '\n' && moves(c)), "{page:?}");
    // The last column begins where its header does.
    let start = header.len() - "REASON".len();
    assert_eq!(header[start..], plain[start..], "{page:?}");
    assert!(
        odd.len() < start || odd[start - 2..start] == [' ', ' '],
        "{page:?}"
    );
}

fn check_letter(text: &str, message: &[u8]) {
    let (fields, rest) = text.split_once("\n\n").expect("a line between");
    assert_eq!(fields.lines().count(), 11, "{fields:?}");
    assert!(
        !fields.contains(|c: char| c != '\n' && moves(c)),
        "{fields:?}"
    );
    match std::str::from_utf8(message) {
        Ok(message) => {
            assert!(!rest.contains(|c| !"\n\t".contains(c) && moves(c)));
            if !message.contains(|c| !"\n\t".contains(c) && moves(c)) {
                assert_eq!(rest, message);
            }
        }
        Err(_) => assert!(rest.is_ascii() && rest.ends_with(|c: char| c.is_ascii_hexdigit())),
    }
}

/// What ends a line, or turns its direction, or is a command.
fn moves(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
