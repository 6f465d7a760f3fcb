//! The settings as a file to start from, and as a JSON schema for editors.

use serde_json::{Map, Value, json};

use super::keys::{self, Setting};

const WIDTH: usize = 100;

/// A file of all settings, commented out, with their defaults, or examples where there is none.
pub(crate) fn example() -> String {
    let mut text = String::from(
        "# The settings of event-persister, each with its default. To change one, remove the # in front of\n\
         # it; to be told which are in effect, run `event-persister config show`.\n",
    );
    for section in keys::sections() {
        text.push_str(&format!("\n[{section}]\n"));
        for setting in of_section(section) {
            let value = match &setting.default {
                Value::Null => &setting.schema["examples"][0],
                default => default,
            };
            let none = if setting.default.is_null() {
                " Not set by default."
            } else {
                ""
            };
            for line in wrapped(&format!("{}{none}", setting.help)) {
                text.push_str(&format!("# {line}\n"));
            }
            text.push_str(&format!("#{} = {}\n", setting.key, in_toml(value)));
        }
    }
    text
}

fn of_section(section: &str) -> impl Iterator<Item = &'static Setting> {
    keys::all()
        .iter()
        .filter(move |setting| setting.section == section)
}

/// Every text of JSON is one of TOML, but for tables.
fn in_toml(value: &Value) -> String {
    match value {
        Value::Object(pairs) => {
            let pairs: Vec<String> = pairs
                .iter()
                .map(|(name, value)| format!("{} = {value}", Value::from(name.as_str())))
                .collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        other => other.to_string(),
    }
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

pub(crate) fn schema() -> Value {
    let sections: Map<String, Value> = keys::sections()
        .into_iter()
        .map(|section| {
            let keys: Map<String, Value> = of_section(section)
                .map(|setting| (setting.key.clone(), setting.schema.clone()))
                .collect();
            (section.to_owned(), object(keys))
        })
        .collect();
    let mut schema = object(sections);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "The configuration file of event-persister".into();
    schema
}

fn object(properties: Map<String, Value>) -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file;

    #[test]
    fn the_example_sets_nothing_and_without_its_marks_the_defaults() {
        let example = example();
        let path = Path::new("example.toml");
        let layer = file::parse(&example, path).unwrap();
        assert!(keys::all().iter().all(|s| layer.get(&s.name).is_none()));
        let active: Vec<&str> = example
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if !key.starts_with(' ') => key,
                _ => line,
            })
            .collect();
        let layer = file::parse(&active.join("\n"), path).unwrap();
        for setting in keys::all() {
            let (value, _) = layer.get(&setting.name).unwrap();
            let shown = setting.show(value);
            assert!(shown.is_ok(), "{}: {value}", setting.name);
            if let Some(default) = setting.shown_default() {
                assert_eq!(shown, Ok(default), "{}", setting.name);
            }
        }
        assert!(
            example
                .lines()
                .all(|line| line.chars().count() <= WIDTH + 10)
        );
    }

    #[test]
    fn the_schema_names_every_key_and_nothing_else() {
        let schema = schema();
        for setting in keys::all() {
            let key = &schema["properties"][setting.section]["properties"][&setting.key];
            assert_eq!(key["description"], setting.help.as_str());
            assert_ne!(key.get("default"), Some(&Value::Null));
        }
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["log"]["additionalProperties"], false);
    }

    const PAGE: &str = "deploy/SETTINGS.md";

    /// All settings as a page of documentation.
    fn reference() -> String {
        let mut page = String::from(
            "# Settings\n\n\
             <!-- Made of the structs of settings; a test compares. To make it anew:\n\
             cargo test --bin event-persister -- --ignored makes_the_page_anew -->\n\n\
             Nothing needs to be set. A value comes from the first of these places that has one: a flag, an\n\
             environment variable, the configuration file (`--config FILE` or `EVENT_PERSISTER_CONFIG`), a\n\
             variable of Prefect's server, the default.\n\n\
             A `key` in a `[section]` of the file is the variable `EVENT_PERSISTER_<SECTION>_<KEY>`. An empty\n\
             variable is unset. Unknown names and wrong values are errors that say what would be right.\n\n\
             - `event-persister config example` prints a file to start from.\n\
             - `event-persister config schema` prints a JSON schema for editors.\n\
             - `event-persister config show` prints what is in effect, and where each value came from.\n",
        );
        for section in keys::sections() {
            page.push_str(&format!(
                "\n## `[{section}]`\n\n| key | default | what it does |\n|---|---|---|\n"
            ));
            for setting in of_section(section) {
                let default = setting
                    .shown_default()
                    .map_or_else(|| "none".to_owned(), |default| format!("`{default}`"));
                let full = setting.variable();
                let flag = keys::FLAGS.iter().find(|(name, ..)| *name == setting.name);
                let others = flag.map(|(_, flag, _)| (*flag).to_owned()).into_iter();
                let others: String = others
                    .chain(setting.variables().filter(|name| *name != full))
                    .chain(setting.file_variable())
                    .map(|other| format!("<br>`{other}`"))
                    .collect();
                page.push_str(&format!(
                    "| `{}`{others} | {default} | {} |\n",
                    setting.key, setting.help
                ));
            }
        }
        page
    }

    #[test]
    fn the_page_of_settings_is_what_the_structs_say() {
        let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE));
        let again = "run `cargo test --bin event-persister -- --ignored makes_the_page_anew`";
        assert!(
            page.unwrap() == reference(),
            "{PAGE} is out of date: {again}"
        );
    }

    #[test]
    #[ignore = "it writes the page"]
    fn makes_the_page_anew() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
        std::fs::write(path, reference()).unwrap();
    }
}
