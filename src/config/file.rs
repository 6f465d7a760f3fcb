//! The layer of the TOML file.

use std::path::Path;

use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, nearest};
use super::keys;
use super::layer::{Layer, Origin};

pub(super) fn read(path: &Path) -> Result<Layer, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::new(format!(
            "cannot read the configuration file {}: {error}; name a TOML file that exists with \
             --config or EVENT_PERSISTER_CONFIG, or leave both away",
            path.display()
        ))
    })?;
    parse(&text, path)
}

pub(super) fn parse(text: &str, path: &Path) -> Result<Layer, ConfigError> {
    let line = |offset: usize| {
        let before = text.bytes().take(offset);
        1 + before.filter(|byte| *byte == b'\n').count()
    };
    let place = |offset| format!("{}:{}", path.display(), line(offset));
    let document = DeTable::parse(text).map_err(|error| {
        // Its `Display` draws the place, over several lines.
        let offset = error.span().map_or(0, |span| span.start);
        let (place, message) = (place(offset), error.message());
        ConfigError::new(format!("{place}: this is not TOML: {message}"))
    })?;
    let mut layer = Layer::default();
    let mut errors = ConfigError::default();
    for (name, value) in document.get_ref() {
        let (section, offset) = (name.get_ref(), name.span().start);
        let DeValue::Table(keys) = value.get_ref() else {
            let problem = outside_of_sections(section);
            errors.add(format!("{}: {problem}", place(offset)));
            continue;
        };
        if !keys::sections().contains(&section.as_ref()) {
            let problem = unknown_section(section);
            errors.add(format!("{}: {problem}", place(offset)));
            continue;
        }
        for (name, value) in keys {
            let (key, offset) = (name.get_ref(), name.span().start);
            let mut settings = keys::all().iter();
            let setting =
                settings.find(|setting| setting.section == section && setting.key == *key);
            let Some(setting) = setting else {
                let problem = unknown_key(section, key);
                errors.add(format!("{}: {problem}", place(offset)));
                continue;
            };
            let origin = Origin::File {
                path: path.to_owned(),
                line: line(offset),
            };
            layer.set(&setting.name, convert(value.get_ref()), origin);
        }
    }
    errors.into_result().map(|()| layer)
}

fn convert(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        // What is no number of 64 bits is right nowhere; it is kept to be quoted.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| number.to_string().into(), Value::from),
        DeValue::Float(number) => {
            (number.as_str().parse::<f64>()).map_or_else(|_| number.to_string().into(), Value::from)
        }
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Datetime(value) => value.to_string().into(),
        DeValue::Array(_) => Value::Array(Vec::new()),
        DeValue::Table(table) => table
            .iter()
            .map(|(key, value)| (key.get_ref().to_string(), convert(value.get_ref())))
            .collect(),
    }
}

fn outside_of_sections(key: &str) -> String {
    let settings = keys::all().iter().filter(|setting| setting.key == key);
    let sections: Vec<String> = settings
        .map(|setting| format!("[{}]", setting.section))
        .collect();
    let hint = if sections.is_empty() {
        format!("the sections are {}", all_sections())
    } else {
        format!("it belongs into {}", sections.join(" or "))
    };
    format!("the key {key:?} stands outside of a section; {hint}")
}

fn unknown_section(name: &str) -> String {
    if cfg!(not(feature = "nats")) && name == "nats" {
        return format!("[nats]: {}", keys::WITHOUT_NATS);
    }
    let hint = match nearest(name, keys::sections()) {
        Some(near) => format!("did you mean [{near}]?"),
        None => format!("the sections are {}", all_sections()),
    };
    format!("unknown section [{name}]; {hint}")
}

fn unknown_key(section: &str, key: &str) -> String {
    let settings = keys::all().iter();
    let of_section: Vec<&str> = settings
        .filter(|setting| setting.section == section)
        .map(|setting| setting.key.as_str())
        .collect();
    let hint = match nearest(key, of_section.iter().copied()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => match keys::all().iter().find(|setting| setting.key == key) {
            Some(elsewhere) => format!("it belongs into [{}]", elsewhere.section),
            None => format!("the keys there are {}", of_section.join(", ")),
        },
    };
    format!("unknown key {key:?} in section [{section}]; {hint}")
}

fn all_sections() -> String {
    let sections: Vec<String> = (keys::sections().iter())
        .map(|section| format!("[{section}]"))
        .collect();
    sections.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    fn error(text: &str) -> String {
        parse(text, Path::new("p.toml")).unwrap_err().to_string()
    }

    #[test]
    fn values_keep_their_line() {
        let layer = parse(
            "# a comment\n[batch]\nmax_bytes = \"8MiB\"\nmax_events = 5\n",
            Path::new("p.toml"),
        )
        .unwrap();
        let (input, origin) = layer.get("batch.max_events").unwrap();
        assert_eq!(*input, 5);
        assert_eq!(origin.to_string(), "p.toml:4");
    }

    #[test]
    fn unknown_names_are_errors_that_suggest_the_nearest() {
        assert_eq!(
            error("\n[pipeline]\nwriter = 3\n"),
            "p.toml:3: unknown key \"writer\" in section [pipeline]; did you mean \"writers\"?"
        );
        assert_eq!(
            error("[pipline]\n"),
            "p.toml:1: unknown section [pipline]; did you mean [pipeline]?"
        );
        assert!(error("[http]\nretention = \"1d\"\n").contains("it belongs into [trim]"));
        assert!(error("[trim]\nxyz = 1\n").contains("the keys there are every, retention,"));
        assert!(error("writers = 2\n").contains("it belongs into [pipeline]"));
        assert!(error("[prefect]\n").contains("[database], [redis], [nats], [http]"));
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let error = error("[a]\n[trim]\nb = 1\n");
        assert!(
            error.contains("p.toml:1") && error.contains("p.toml:3"),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_toml_is_named_with_its_line() {
        let error = error("[http]\nlisten = 127.0.0.1:4280\n");
        assert!(error.starts_with("p.toml:2: this is not TOML: "), "{error}");
    }
}
