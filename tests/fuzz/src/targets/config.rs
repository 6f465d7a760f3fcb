//! The configuration: a TOML file and an environment.

use std::ffi::OsString;
use std::io::Write as _;

use crate::cli::Flags;
use crate::config::Config;

/// Stands between the file and the environment.
const SEPARATOR: &str = "\n---\n";

const SECRET: &str = "correct-horse-battery";

/// Before the separator a TOML file, behind it a variable a line. Any of them is a configuration or
/// is refused, the same each time; a secret shows nowhere.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (toml, variables) = text.split_once(SEPARATOR).unwrap_or((text, ""));
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(toml.as_bytes()).expect("a temporary file");
    let flags = Flags {
        // Also so that no variable names another file.
        config: Some(file.path().to_owned()),
        ..Flags::default()
    };
    let first = shown(&flags, variables);
    assert!(!first.contains(SECRET), "{first}");
    assert_eq!(first, shown(&flags, variables));
}

/// Everything that people see of it.
fn shown(flags: &Flags, variables: &str) -> String {
    let given = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        // What stands in any file of this machine, or a pipe that never ends, is no input of a test.
        .filter(|(name, _)| !name.ends_with("_URL_FILE") && !name.ends_with("_STRING_FILE"));
    let secrets = [
        ("EVENT_PERSISTER_HTTP_AUTH_STRING", SECRET.to_owned()),
        ("PREFECT_SERVER_API_AUTH_STRING", SECRET.to_owned()),
        ("PREFECT_REDIS_MESSAGING_PASSWORD", SECRET.to_owned()),
        (
            "PREFECT_SERVER_DATABASE_CONNECTION_URL",
            format!("postgresql://user:{SECRET}@host/database"),
        ),
    ];
    let mut environment: Vec<(OsString, OsString)> = secrets
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    environment.extend(given.map(|(name, value)| (name.into(), value.into())));
    match Config::from_parts(flags, environment) {
        Ok(config) => format!("{config:?}"),
        Err(error) => error.to_string(),
    }
}
