//! URLs of SQLite files, in the two forms that operators have at hand: ours and SQLAlchemy's.

use std::path::PathBuf;

use crate::settings::InvalidUrl;

const EXPECTED: &str = "give sqlite://PATH, where everything after `sqlite://` is the path, such as \
     sqlite://event-persister.db or sqlite:///var/lib/event-persister/events.db";

/// Query parameters of Python's driver that say nothing about which file is meant.
const HARMLESS_PARAMETERS: [&str; 5] = [
    "timeout",
    "check_same_thread",
    "isolation_level",
    "cached_statements",
    "detect_types",
];

/// The file that a URL names, relative to the working directory or absolute.
pub(super) fn path(url: &str) -> Result<PathBuf, InvalidUrl> {
    let (scheme, rest) = url.split_once("://").ok_or(EXPECTED)?;
    let path = match scheme.to_ascii_lowercase().as_str() {
        "sqlite" => rest,
        "sqlite+aiosqlite" | "sqlite+pysqlite" => sqlalchemy_path(rest)?,
        _ => return Err(EXPECTED.into()),
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    let is_uri_in_memory =
        path.starts_with("file:") && (path.contains(":memory:") || path.contains("mode=memory"));
    if path.is_empty() || name == ":memory:" || is_uri_in_memory {
        return Err(
            format!("a database in memory would be lost with each connection; {EXPECTED}").into(),
        );
    }
    if matches!(name, "" | "." | "..") {
        return Err(format!(
            "{path} is a directory: give the path of a file in it, such as \
             sqlite://{}/event-persister.db",
            path.trim_end_matches('/')
        )
        .into());
    }
    if path.contains('\0') {
        return Err("a path cannot hold a NUL character".into());
    }
    Ok(path.into())
}

/// What SQLAlchemy takes for the path in what follows `sqlite+aiosqlite://`: a third slash ends
/// the empty host, so three are relative and four absolute.
fn sqlalchemy_path(rest: &str) -> Result<&str, InvalidUrl> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let Some(path) = rest.strip_prefix('/') else {
        return Err(if rest.is_empty() {
            "without a path it is a database in memory, which would be lost; give \
             sqlite+aiosqlite:///relative/path or sqlite+aiosqlite:////absolute/path"
        } else {
            "after `sqlite+aiosqlite:` come three slashes for a relative path and four for an \
             absolute one"
        }
        .into());
    };
    let unknown = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name))
        .find(|name| !HARMLESS_PARAMETERS.contains(name));
    match unknown {
        Some(name) => Err(format!("the parameter {name:?} has no meaning here; remove it").into()),
        None => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(url: &str) -> PathBuf {
        super::path(url).unwrap()
    }

    fn error(url: &str) -> String {
        super::path(url).unwrap_err().to_string()
    }

    #[test]
    fn everything_after_sqlite_and_two_slashes_is_the_path() {
        assert_eq!(
            path("sqlite://event-persister.db"),
            PathBuf::from("event-persister.db")
        );
        assert_eq!(
            path("sqlite:///var/lib/events.db"),
            PathBuf::from("/var/lib/events.db")
        );
        assert_eq!(path("sqlite://./a b?c=d.db"), PathBuf::from("./a b?c=d.db"));
    }

    #[test]
    fn sqlalchemy_counts_slashes_otherwise() {
        assert_eq!(
            path("sqlite+aiosqlite:///prefect.db"),
            PathBuf::from("prefect.db")
        );
        assert_eq!(
            path("sqlite+aiosqlite:////root/.prefect/prefect.db"),
            PathBuf::from("/root/.prefect/prefect.db"),
        );
        assert_eq!(
            path("sqlite+aiosqlite:///prefect.db?timeout=60&check_same_thread=false"),
            PathBuf::from("prefect.db"),
        );
        assert!(error("sqlite+aiosqlite://prefect.db").contains("three slashes"));
        assert!(error("sqlite+aiosqlite:///file:x?mode=ro").contains("\"mode\""));
    }

    #[test]
    fn a_database_in_memory_is_refused() {
        for url in [
            "sqlite://",
            "sqlite://:memory:",
            "sqlite+aiosqlite://",
            "sqlite+aiosqlite:///:memory:",
            "sqlite:///:memory:",
            "sqlite://./:memory:",
            "sqlite://file::memory:?cache=shared",
            "sqlite://file:events?mode=memory",
        ] {
            assert!(error(url).contains("in memory"), "{url}");
        }
    }

    #[test]
    fn a_directory_is_refused_with_a_file_in_it() {
        for url in [
            "sqlite://data/",
            "sqlite:///",
            "sqlite://.",
            "sqlite:///var/..",
            "sqlite+aiosqlite:///data/",
        ] {
            assert!(error(url).contains("/event-persister.db"), "{url}");
        }
    }
}
