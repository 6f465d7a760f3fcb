//! The layer of the TOML file.

use std::borrow::Cow;
use std::path::Path;

use serde_json::Value;
use toml::Spanned;
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
    let file = File { text, path };
    let document = DeTable::parse(text).map_err(|error| {
        // Of several lines, the parser's drawing of the place among them; ours names the line.
        let offset = error.span().map_or(0, |span| span.start);
        ConfigError::new(format!(
            "{}: this is not TOML: {}",
            file.place(offset),
            error.message()
        ))
    })?;
    let mut layer = Layer::default();
    let mut errors = ConfigError::default();
    for (section, value) in document.get_ref() {
        file.read_section(section, value, &mut layer, &mut errors);
    }
    errors.into_result().map(|()| layer)
}

struct File<'a> {
    text: &'a str,
    path: &'a Path,
}

impl File<'_> {
    fn read_section(
        &self,
        section: &Spanned<Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        layer: &mut Layer,
        errors: &mut ConfigError,
    ) {
        let name = section.get_ref();
        let place = self.place(section.span().start);
        let DeValue::Table(keys) = value.get_ref() else {
            errors.add(format!("{place}: {}", outside_of_sections(name)));
            return;
        };
        if !keys::sections().contains(&name.as_ref()) {
            errors.add(format!("{place}: {}", unknown_section(name)));
            return;
        }
        for (key, value) in keys {
            let setting = keys::all()
                .iter()
                .find(|setting| setting.section == name && setting.key == *key.get_ref());
            match setting {
                Some(setting) => layer.set(
                    &setting.name,
                    convert(value.get_ref()),
                    Origin::File {
                        path: self.path.to_owned(),
                        line: self.line(key.span().start),
                    },
                ),
                None => errors.add(format!(
                    "{}: {}",
                    self.place(key.span().start),
                    unknown_key(name, key.get_ref())
                )),
            }
        }
    }

    fn line(&self, offset: usize) -> usize {
        1 + self
            .text
            .bytes()
            .take(offset)
            .filter(|byte| *byte == b'\n')
            .count()
    }

    fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.path.display(), self.line(offset))
    }
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
        assert!(error("[prefect]\n").contains("[database], [redis], [http]"));
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
