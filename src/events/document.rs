//! Events as JSON text, which is printed as it stands: a number that is read and written again may become another
//! one, and no depth is too deep.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use event_persister_actors::reader::StoredEvent;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::output;

/// What a row shows of an event. The rest is skipped, however deep it nests.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) occurred: DateTime<Utc>,
    pub(super) event: String,
    pub(super) resource: HashMap<String, String>,
    pub(super) received: Option<DateTime<Utc>>,
}

/// The id among a resource's labels.
pub(super) fn resource_id(labels: &HashMap<String, String>) -> &str {
    labels
        .get("prefect.resource.id")
        .map(String::as_str)
        .unwrap_or_default()
}

/// A stored event on one line.
pub(super) fn line(event: &StoredEvent) -> String {
    one_line(&event.to_json())
}

/// A stored event as a part of a larger document; `None`, and a word of it, where what stands in the table is no
/// JSON. The rest could not be read with it.
pub(super) fn part(event: &StoredEvent) -> Option<String> {
    let line = line(event);
    if let Err(error) = serde_json::from_str::<IgnoredAny>(&line) {
        let (id, column) = (event.id, error.column());
        log::warn!("an event is left out, for it is no JSON event.id={id} at={column}");
        return None;
    }
    Some(line)
}

/// JSON on one line, for a terminal. A sender may have put line breaks and tabs between its values.
pub(super) fn one_line(json: &str) -> String {
    output::plain_json(&spaced(json, Spacing::Kept))
}

/// JSON with a line for each value.
pub(super) fn indented(json: &str) -> String {
    spaced(json, Spacing::Indented)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spacing {
    /// But that all of it is on one line.
    Kept,
    Indented,
}

/// The same JSON with other spaces between its values.
fn spaced(json: &str, spacing: Spacing) -> String {
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\r');
    let mut spaced = String::with_capacity(json.len());
    let mut depth = 0_usize;
    let (mut in_text, mut is_escaped) = (false, false);
    let mut rest = json.chars();
    while let Some(c) = rest.next() {
        if in_text {
            spaced.push(c);
            in_text = c != '"' || is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            continue;
        }
        in_text = c == '"';
        if spacing == Spacing::Kept {
            spaced.push(if is_space(c) { ' ' } else { c });
            continue;
        }
        match c {
            _ if is_space(c) => {}
            '{' | '[' => {
                spaced.push(c);
                let behind = rest.as_str().trim_start_matches(is_space);
                if let Some(behind) = behind.strip_prefix(['}', ']']) {
                    spaced.push(if c == '{' { '}' } else { ']' });
                    rest = behind.chars();
                } else {
                    depth += 1;
                    new_line(&mut spaced, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut spaced, depth);
                spaced.push(c);
            }
            ',' => {
                spaced.push(c);
                new_line(&mut spaced, depth);
            }
            ':' => spaced.push_str(": "),
            _ => spaced.push(c),
        }
    }
    spaced
}

fn new_line(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn json_is_indented_as_serde_does_it() {
        let document = json!({
            "a": [1, [], {}, [[]], "x, {y}: [\\\"z\\\\"], "b": { "c": null, "d": { "e": true } }, "é": "\u{1f600}",
        });
        let pretty = serde_json::to_string_pretty(&document).unwrap();
        for json in [document.to_string(), pretty.clone()] {
            assert_eq!(indented(&json), pretty);
        }
        assert_eq!(indented(" [ ] "), "[]");
    }

    #[test]
    fn numbers_and_depth_are_kept() {
        let payload = r#"{"a":123456789012345678901234567890,"b":1.50e+2,"c":-0.0}"#;
        let shown = indented(payload);
        assert_eq!(
            shown,
            "{\n  \"a\": 123456789012345678901234567890,\n  \"b\": 1.50e+2,\n  \"c\": -0.0\n}"
        );
        let deep = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000));
        assert_eq!(indented(&deep).replace([' ', '\n'], ""), deep);
        let event =
            format!(r#"{{"payload":{deep},"id":"a","resource":{{"prefect.resource.id":"r"}}}}"#);
        let head: Head = serde_json::from_str(&event).unwrap();
        assert_eq!((&*head.id, resource_id(&head.resource)), ("a", "r"));
    }

    #[test]
    fn one_line_is_the_same_json() {
        let json = "{\r\n\t\"a\":\n1, \"b\": \"\\n\u{9b}\"}";
        let line = one_line(json);
        assert_eq!(line, "{   \"a\": 1, \"b\": \"\\n\\u009b\"}");
        let read = |json| serde_json::from_str::<Value>(json).unwrap();
        assert_eq!(read(&line), read(json));
    }
}
