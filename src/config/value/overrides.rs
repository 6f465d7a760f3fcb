//! Durations by the name of an event.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Input, NonZeroDuration, SettingValue};

/// Durations by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Overrides(pub(crate) BTreeMap<String, Duration>);

impl Overrides {
    fn from_pairs(pairs: &[(String, Input)]) -> Result<Self, String> {
        let mut overrides = BTreeMap::new();
        flatten("", pairs, &mut overrides)?;
        Ok(Self(overrides))
    }

    fn from_json(text: &str) -> Result<Self, String> {
        let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(text)
            .map_err(|error| format!("this is not a JSON object ({error}); {}", expected()))?;
        let pairs: Vec<(String, Input)> = object
            .into_iter()
            .map(|(name, value)| {
                let input = match value {
                    serde_json::Value::String(text) => Input::Text(text),
                    other => Input::Other(other.to_string()),
                };
                (name, input)
            })
            .collect();
        Self::from_pairs(&pairs)
    }

    fn from_list(text: &str) -> Result<Self, String> {
        let pairs = text
            .split(',')
            .filter(|pair| !pair.trim().is_empty())
            .map(|pair| {
                // An event's name may hold `=`, a duration never does.
                let (name, duration) = pair.rsplit_once('=').ok_or_else(expected)?;
                Ok((name.trim().to_owned(), Input::Text(duration.to_owned())))
            })
            .collect::<Result<Vec<_>, String>>()?;
        Self::from_pairs(&pairs)
    }
}

/// A name with dots that was not quoted reaches us as tables in tables; what is meant is plain.
fn flatten(
    prefix: &str,
    pairs: &[(String, Input)],
    into: &mut BTreeMap<String, Duration>,
) -> Result<(), String> {
    for (key, input) in pairs {
        let name = format!("{prefix}{key}");
        if let Input::Table(nested) = input {
            flatten(&format!("{name}."), nested, into)?;
            continue;
        }
        if name.is_empty() {
            return Err(format!("an event's name is missing; {}", expected()));
        }
        let duration = NonZeroDuration::read(input)
            .map_err(|expected| format!("for {name:?} {expected}, not {}", input.quote()))?;
        if into.insert(name.clone(), duration.0).is_some() {
            return Err(format!("{name:?} stands there twice; keep one"));
        }
    }
    Ok(())
}

fn expected() -> String {
    "give durations by event name: in the file [trim.overrides] \"my.event\" = \"30d\", in a \
     variable my.event=30d,other.event=1h or {\"my.event\": \"30d\"}"
        .to_owned()
}

impl SettingValue for Overrides {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Table(pairs) => Self::from_pairs(pairs),
            Input::Text(text) if text.trim_start().starts_with('{') => Self::from_json(text),
            Input::Text(text) => Self::from_list(text),
            Input::Integer(_) | Input::Other(_) => Err(expected()),
        }
    }

    fn show(&self) -> String {
        if self.0.is_empty() {
            return "{}".to_owned();
        }
        let pairs: Vec<String> = self
            .0
            .iter()
            .map(|(name, duration)| format!("{name}={}", duration.show()))
            .collect();
        pairs.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::read;
    use super::*;

    #[test]
    fn overrides_are_read_in_three_forms() {
        let expected: Overrides = read("a.b=7d, c=1h").unwrap();
        assert_eq!(read(r#"{"a.b": "7d", "c": "1h"}"#), Ok(expected.clone()));
        let nested = Input::Table(vec![
            (
                "a".to_owned(),
                Input::Table(vec![("b".to_owned(), Input::Text("7d".to_owned()))]),
            ),
            ("c".to_owned(), Input::Text("1h".to_owned())),
        ]);
        assert_eq!(Overrides::read(&nested), Ok(expected.clone()));
        assert_eq!(expected.show(), "a.b=7d,c=1h");
        assert_eq!(read::<Overrides>("{}").unwrap().show(), "{}");
        assert_eq!(
            read::<Overrides>("x=y=1d")
                .unwrap()
                .0
                .keys()
                .collect::<Vec<_>>(),
            ["x=y"],
        );
        assert!(
            read::<Overrides>("a")
                .unwrap_err()
                .contains("by event name")
        );
        assert!(read::<Overrides>("=1d").unwrap_err().contains("missing"));
        assert!(
            read::<Overrides>("a=1d,a=2d")
                .unwrap_err()
                .contains("twice")
        );
        let number = read::<Overrides>(r#"{"a": 604800}"#).unwrap_err();
        assert!(
            number.contains("\"a\"") && number.contains("604800"),
            "{number}"
        );
    }
}
