//! `dead-letters show`: all of one letter, with its message.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use event_persister_actors::store::operator::{DeadLetter, StoreOperator};
use serde::Serialize;

use crate::output;

/// `only_raw` prints the message alone, byte for byte.
pub(super) async fn run(
    letters: &dyn StoreOperator,
    id: i64,
    only_raw: bool,
    json: bool,
) -> anyhow::Result<()> {
    let mut shown = letters
        .open_letters(&[id])
        .await
        .with_context(|| format!("cannot show the dead letter {id}"))?;
    let Some((letter, raw)) = shown.pop() else {
        bail!(
            "there is no dead letter {id}; `event-persister dead-letters list` shows which there are"
        );
    };
    if only_raw {
        return output::bytes(&raw);
    }
    if json {
        let message = Message::new(raw);
        return output::json(&Shown { letter, message });
    }
    output::line(&describe(&letter, raw))
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Raw(String),
    /// Two digits a byte, where it is not UTF-8.
    RawHex(String),
}

impl Message {
    fn new(raw: Vec<u8>) -> Self {
        match String::from_utf8(raw) {
            Ok(text) => Self::Raw(text),
            Err(error) => {
                let mut hex = String::new();
                for byte in error.as_bytes() {
                    // Writing to a string cannot fail.
                    write!(hex, "{byte:02x}").unwrap_or_default();
                }
                Self::RawHex(hex)
            }
        }
    }
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    letter: DeadLetter,
    #[serde(flatten)]
    message: Message,
}

pub(crate) fn describe(letter: &DeadLetter, raw: Vec<u8>) -> String {
    let event_id = letter
        .event_id
        .map_or_else(|| "-".to_owned(), |id| id.to_string());
    let sqlstate = letter.sqlstate.as_deref().unwrap_or("-");
    let fields = [
        ("id", letter.id.to_string()),
        ("source", output::one_line(&letter.source)),
        ("position", output::one_line(&letter.position)),
        ("stage", letter.stage.as_str().to_owned()),
        ("reason", output::one_line(&letter.reason)),
        ("code", output::one_line(sqlstate)),
        ("event id", event_id),
        ("attempts", letter.attempts.to_string()),
        ("first seen", output::time(letter.first_seen)),
        ("last seen", output::time(letter.last_seen)),
        ("bytes", letter.num_bytes.to_string()),
    ];
    let mut text = String::new();
    for (name, value) in fields {
        writeln!(text, "{name:<11} {value}").unwrap_or_default();
    }
    match Message::new(raw) {
        Message::Raw(raw) => text.push_str(&format!("\n{}", output::lines(&raw))),
        Message::RawHex(hex) => text.push_str(&format!("\nnot UTF-8, in hexadecimal:\n{hex}")),
    }
    text
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use event_persister_actors::store::Stage;

    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            id: 7,
            source: "file".to_owned(),
            position: "events.jsonl:17".to_owned(),
            stage: Stage::Parse,
            reason: "id: missing".to_owned(),
            sqlstate: None,
            event_id: None,
            attempts: 2,
            first_seen: DateTime::UNIX_EPOCH,
            last_seen: DateTime::UNIX_EPOCH,
            num_bytes: 2,
        }
    }

    #[test]
    fn a_message_that_is_not_text_is_shown_in_hexadecimal() {
        assert_eq!(Message::new(b"{}".to_vec()), Message::Raw("{}".to_owned()));
        assert_eq!(
            Message::new(vec![0xff, 0x0a]),
            Message::RawHex("ff0a".to_owned())
        );
    }

    #[test]
    fn a_letter_is_one_object_with_its_message() {
        let shown = Shown {
            letter: letter(),
            message: Message::new(vec![0xff]),
        };
        let json = serde_json::to_value(shown).unwrap();
        assert_eq!(json["id"], 7);
        assert_eq!(json["raw_hex"], "ff");
    }

    #[test]
    fn the_message_comes_last_with_its_lines() {
        let text = describe(&letter(), b"{\n\t}".to_vec());
        assert!(text.starts_with("id          7\n"), "{text}");
        assert!(text.ends_with("\n\n{\n\t}"), "{text}");
    }

    #[test]
    fn nothing_of_it_is_a_command_to_a_terminal() {
        let odd = DeadLetter {
            source: "a\u{1b}[2J".to_owned(),
            position: "b\nc".to_owned(),
            sqlstate: Some("\u{7f}".to_owned()),
            reason: "\u{202e}d".to_owned(),
            ..letter()
        };
        let text = describe(&odd, b"\x1b".to_vec());
        let (fields, message) = text.split_once("\n\n").unwrap();
        assert_eq!(fields.lines().count(), 11, "{fields:?}");
        assert!(fields.is_ascii(), "{fields:?}");
        let is_line = |c: char| c == '\n' || !c.is_control();
        assert!(fields.chars().all(is_line), "{fields:?}");
        assert_eq!(message, "\\u{1b}");
    }
}
