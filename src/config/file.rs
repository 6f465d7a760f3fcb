//! The layer of the TOML file.

use std::borrow::Cow;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, nearest};
use super::layer::{Layer, Origin};
use super::settings::ALL;
use super::value::Input;

/// Reads the file.
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
        if !ALL.iter().any(|setting| setting.section == name) {
            errors.add(format!("{place}: {}", unknown_section(name)));
            return;
        }
        for (key, value) in keys {
            let setting = ALL
                .iter()
                .find(|setting| setting.section == name && setting.key == key.get_ref());
            match setting {
                Some(setting) => layer.set(
                    setting,
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

fn convert(value: &DeValue<'_>) -> Input {
    match value {
        DeValue::String(text) => Input::Text(text.clone().into_owned()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Input::Other(number.to_string()), Input::Integer),
        DeValue::Float(number) => Input::Other(number.to_string()),
        DeValue::Boolean(value) => Input::Other(value.to_string()),
        DeValue::Datetime(value) => Input::Other(value.to_string()),
        DeValue::Array(_) => Input::Other("a list".to_owned()),
        DeValue::Table(table) => Input::Table(
            table
                .iter()
                .map(|(key, value)| (key.get_ref().to_string(), convert(value.get_ref())))
                .collect(),
        ),
    }
}

fn outside_of_sections(key: &str) -> String {
    let keys: Vec<String> = ALL
        .iter()
        .filter(|setting| setting.key == key)
        .map(|setting| format!("[{}]", setting.section))
        .collect();
    let hint = if keys.is_empty() {
        format!("the sections are {}", sections().join(", "))
    } else {
        format!("it belongs into {}", keys.join(" or "))
    };
    format!("the key {key:?} stands outside of a section; {hint}")
}

fn unknown_section(name: &str) -> String {
    let hint = match nearest(name, ALL.iter().map(|setting| setting.section)) {
        Some(near) => format!("did you mean [{near}]?"),
        None => format!("the sections are {}", sections().join(", ")),
    };
    format!("unknown section [{name}]; {hint}")
}

fn unknown_key(section: &str, key: &str) -> String {
    let of_section = || ALL.iter().filter(|setting| setting.section == section);
    let hint = match nearest(key, of_section().map(|setting| setting.key)) {
        Some(near) => format!("did you mean {near:?}?"),
        None => match ALL.iter().find(|setting| setting.key == key) {
            Some(elsewhere) => format!("it belongs into [{}]", elsewhere.section),
            None => {
                let keys: Vec<&str> = of_section().map(|setting| setting.key).collect();
                format!("the keys there are {}", keys.join(", "))
            }
        },
    };
    format!("unknown key {key:?} in section [{section}]; {hint}")
}

fn sections() -> Vec<String> {
    let mut sections: Vec<String> = ALL
        .iter()
        .map(|setting| format!("[{}]", setting.section))
        .collect();
    sections.dedup();
    sections
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings;

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
        let (input, origin) = layer.get(&settings::BATCH_MAX_EVENTS.setting).unwrap();
        assert_eq!(*input, Input::Integer(5));
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
