//! Splits the text of a JSON list into the texts of its elements, by brackets and strings alone:
//! whether an element is JSON is for its parser to say. Nesting is counted, so no depth exhausts
//! the stack.

use jiter::{Jiter, JsonErrorType};

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ListError {
    /// The brackets do not even match, or there is something beside the list.
    #[error("the body is not JSON (at byte {at})")]
    NotJson { at: usize },
    #[error("the body must be a list of events")]
    NotAList,
    #[error("the list has more than {limit} events; send them in smaller portions")]
    TooLong { limit: usize },
}

/// The texts of the list's elements, in order, without the white space around them.
pub(super) fn split(text: &str, limit: usize) -> Result<Vec<&str>, ListError> {
    let bytes = text.as_bytes();
    let start = skip_space(bytes, 0);
    if bytes.get(start) != Some(&b'[') {
        return Err(match syntax_error(text) {
            Some(at) => ListError::NotJson { at },
            None => ListError::NotAList,
        });
    }
    let mut elements = Vec::new();
    let mut at = skip_space(bytes, start + 1);
    if bytes.get(at) != Some(&b']') {
        loop {
            let end = end_of_element(bytes, at).ok_or(ListError::NotJson { at: bytes.len() })?;
            let element = text[at..end].trim_matches(is_space);
            if element.is_empty() {
                return Err(ListError::NotJson { at: end });
            }
            if elements.len() == limit {
                return Err(ListError::TooLong { limit });
            }
            elements.push(element);
            at = end;
            match bytes.get(at) {
                Some(b',') => at = skip_space(bytes, at + 1),
                Some(b']') => break,
                _ => return Err(ListError::NotJson { at }),
            }
        }
    }
    let end = skip_space(bytes, at + 1);
    if end == bytes.len() {
        Ok(elements)
    } else {
        Err(ListError::NotJson { at: end })
    }
}

/// Where the text stops being JSON. Too deep, half a surrogate pair, or a number beyond all bounds
/// is no matter of syntax: only the parser of events refuses that.
pub(super) fn syntax_error(text: &str) -> Option<usize> {
    let mut parser = Jiter::new(text.as_bytes()).with_allow_inf_nan();
    let error = match parser.next_skip().and_then(|()| parser.finish()) {
        Ok(()) => return None,
        Err(error) => error,
    };
    match error.error_type {
        jiter::JiterErrorType::JsonError(
            JsonErrorType::RecursionLimitExceeded
            | JsonErrorType::LoneLeadingSurrogateInHexEscape
            | JsonErrorType::UnexpectedEndOfHexEscape
            | JsonErrorType::InvalidUnicodeCodePoint
            | JsonErrorType::NumberOutOfRange,
        ) => None,
        _ => Some(error.index),
    }
}

fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

fn skip_space(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    let spaces = rest.iter().take_while(|byte| is_space(char::from(**byte)));
    at + spaces.count()
}

/// The place of the comma or bracket behind the element; `None` if the text ends before.
fn end_of_element(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    loop {
        match bytes.get(at)? {
            b'"' => at = end_of_string(bytes, at + 1)?,
            b'[' | b'{' => depth += 1,
            b',' if depth == 0 => return Some(at),
            b']' | b'}' => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return Some(at),
            },
            _ => {}
        }
        at += 1;
    }
}

/// The place of the closing quote of a string whose content begins at `at`.
fn end_of_string(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gives_the_texts_as_they_stand() {
        let text = " [ {\"a\": [1, 2], \"b\\\"]\": \"},\\\\\"} ,\n3, \"x,y\", [], NaN ]\r\n";
        let elements = split(text, 10).unwrap();
        assert_eq!(
            elements,
            [
                "{\"a\": [1, 2], \"b\\\"]\": \"},\\\\\"}",
                "3",
                "\"x,y\"",
                "[]",
                "NaN"
            ]
        );
        assert_eq!(split("[]", 10).unwrap(), Vec::<&str>::new());
        assert_eq!(split(" [ \t] ", 0).unwrap(), Vec::<&str>::new());
    }

    #[test]
    fn tells_what_is_not_json_from_what_is_no_list() {
        for text in [
            "", " ", "nonsense", "[", "[1", "[1,", "[1,]", "[,1]", "[1]]", "[1] x", "[\"a]",
            "[\"a\\", "{\"a\":", "[{]", "[1}",
        ] {
            let error = split(text, 10).and_then(|elements| {
                // What the brackets do not tell, the elements do.
                match elements.iter().find_map(|element| syntax_error(element)) {
                    Some(at) => Err(ListError::NotJson { at }),
                    None => Ok(elements),
                }
            });
            assert!(
                matches!(error, Err(ListError::NotJson { .. })),
                "{text}: {error:?}"
            );
        }
        for text in ["{}", "null", "1", "\"[]\"", "NaN", " {\"a\": [1]} "] {
            assert_eq!(split(text, 10), Err(ListError::NotAList), "{text}");
        }
    }

    #[test]
    fn counts_before_anything_is_parsed() {
        assert_eq!(split("[1,2,3]", 2), Err(ListError::TooLong { limit: 2 }));
        assert!(split("[1,2,3]", 3).is_ok());
    }

    #[test]
    fn any_depth_is_split_and_is_no_syntax_error() {
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        let list = format!("[{deep}]");
        assert_eq!(split(&list, 1).unwrap(), [deep.as_str()]);
        assert_eq!(syntax_error(&deep), None);
    }

    #[test]
    fn what_only_events_may_not_hold_is_no_syntax_error() {
        for text in [
            r#""\ud800""#,
            r#""\ud800x""#,
            "1e999999",
            "NaN",
            "-Infinity",
        ] {
            assert_eq!(syntax_error(text), None, "{text}");
        }
        for text in ["{", "{\"a\"}", "tru", "\"\u{1}\"", "01", "[1 2]", "\"\\x\""] {
            assert!(syntax_error(text).is_some(), "{text}");
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            r#"[\\"\[\]{},: ]{0,8}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..4)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn splits_what_a_real_parser_reads(
            list in prop::collection::vec(json(), 0..5),
            pretty in any::<bool>(),
        ) {
            let text = if pretty {
                serde_json::to_string_pretty(&list).unwrap()
            } else {
                serde_json::to_string(&list).unwrap()
            };
            let elements: Vec<serde_json::Value> = split(&text, 10)
                .unwrap()
                .into_iter()
                .map(|element| serde_json::from_str(element).unwrap())
                .collect();
            prop_assert_eq!(elements, list);
        }

        #[test]
        fn never_panics(text in r#"[\[\]{}",:\\ a1\n\u{e9}]{0,40}"#) {
            prop_assert!(split(&text, 3).unwrap_or_default().len() <= 3);
            prop_assert!(syntax_error(&text).is_none_or(|at| at <= text.len()));
        }
    }
}
