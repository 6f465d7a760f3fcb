//! Where the database is, in the two forms that operators have at hand: ours and SQLAlchemy's.

use std::fmt;
use std::path::PathBuf;

use super::value::{Input, SettingValue};

mod postgres;

pub(super) use postgres::Parameters;
pub(crate) use postgres::PostgresUrl;

const EXPECTED: &str = "give sqlite://PATH, where everything after `sqlite://` is the path, such as \
     sqlite://event-persister.db or sqlite:///var/lib/event-persister/events.db, or \
     postgresql://USER:PASSWORD@HOST:PORT/DATABASE";

/// Query parameters of Python's driver that say nothing about which file is meant.
const HARMLESS_PARAMETERS: [&str; 5] = [
    "timeout",
    "check_same_thread",
    "isolation_level",
    "cached_statements",
    "detect_types",
];

/// A database that this program can write to.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum DatabaseUrl {
    /// An SQLite file.
    Sqlite {
        /// As it was written.
        text: String,
        /// The file, relative to the working directory or absolute.
        path: PathBuf,
    },
    /// A PostgreSQL server.
    Postgres {
        /// As it was written.
        text: String,
        /// What it says.
        url: Box<PostgresUrl>,
    },
}

impl DatabaseUrl {
    fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(EXPECTED.to_owned());
        };
        let scheme = scheme.to_ascii_lowercase();
        let path = match (scheme.as_str(), rest.strip_prefix("//")) {
            ("sqlite", Some(path)) => path.to_owned(),
            ("sqlite+aiosqlite" | "sqlite+pysqlite", Some(rest)) => sqlalchemy_path(rest)?,
            (scheme, Some(rest)) if is_postgres(scheme) => {
                return PostgresUrl::parse(rest).map(|url| Self::Postgres {
                    text: text.to_owned(),
                    url: Box::new(url),
                });
            }
            _ => return Err(EXPECTED.to_owned()),
        };
        let name = path.rsplit('/').next().unwrap_or_default();
        let is_uri_in_memory = path.starts_with("file:")
            && (path.contains(":memory:") || path.contains("mode=memory"));
        if path.is_empty() || name == ":memory:" || is_uri_in_memory {
            return Err(format!(
                "a database in memory would be lost with each connection; {EXPECTED}"
            ));
        }
        if matches!(name, "" | "." | "..") {
            return Err(format!(
                "{path} is a directory: give the path of a file in it, such as \
                 sqlite://{}/event-persister.db",
                path.trim_end_matches('/')
            ));
        }
        if path.contains('\0') {
            return Err("a path cannot hold a NUL character".to_owned());
        }
        Ok(Self::Sqlite {
            text: text.to_owned(),
            path: PathBuf::from(path),
        })
    }
}

/// With any of Python's drivers, which are the same to the server.
fn is_postgres(scheme: &str) -> bool {
    let dialect = scheme
        .split_once('+')
        .map_or(scheme, |(dialect, _)| dialect);
    dialect == "postgresql" || dialect == "postgres"
}

/// What SQLAlchemy takes for the path in what follows `sqlite+aiosqlite://`: a third slash ends
/// the empty host, so three are relative and four absolute.
fn sqlalchemy_path(rest: &str) -> Result<String, String> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let Some(path) = rest.strip_prefix('/') else {
        return Err(if rest.is_empty() {
            "without a path it is a database in memory, which would be lost; give \
             sqlite+aiosqlite:///relative/path or sqlite+aiosqlite:////absolute/path"
        } else {
            "after `sqlite+aiosqlite:` come three slashes for a relative path and four for an \
             absolute one"
        }
        .to_owned());
    };
    let unknown = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name))
        .find(|name| !HARMLESS_PARAMETERS.contains(name));
    match unknown {
        Some(name) => Err(format!(
            "the parameter {name:?} has no meaning here; remove it"
        )),
        None => Ok(path.to_owned()),
    }
}

impl SettingValue for DatabaseUrl {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Text(text) => Self::parse(text.trim()),
            _ => Err(EXPECTED.to_owned()),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// With the password masked.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { text, .. } | Self::Postgres { text, .. } => f.write_str(&mask_url(text)),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A URL without its password, for people and logs.
///
/// Everything between the first colon of the user part and the last `@` is taken for the
/// password, since people put `/`, `@` and `?` into passwords without escaping them.
pub(crate) fn mask_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // No URL, but perhaps meant for one, with its password.
        return match url.rsplit_once('@') {
            Some((_, host)) => format!("***@{host}"),
            None => url.to_owned(),
        };
    };
    if scheme.to_ascii_lowercase().starts_with("sqlite") {
        return url.to_owned();
    }
    let rest = match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, _)) => format!("{name}:***@{host}"),
            None => rest.to_owned(),
        },
        None => rest.to_owned(),
    };
    let Some((place, query)) = rest.split_once('?') else {
        return format!("{scheme}://{rest}");
    };
    let query: Vec<String> = query.split('&').map(mask_parameter).collect();
    format!("{scheme}://{place}?{}", query.join("&"))
}

fn mask_parameter(pair: &str) -> String {
    match pair.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("pass") => format!("{name}=***"),
        _ => pair.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(url: &str) -> PathBuf {
        match DatabaseUrl::parse(url).unwrap() {
            DatabaseUrl::Sqlite { path, .. } => path,
            other => panic!("{other} is not SQLite"),
        }
    }

    fn error(url: &str) -> String {
        DatabaseUrl::parse(url).unwrap_err()
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

    #[test]
    fn postgres_has_several_names() {
        for scheme in [
            "postgresql",
            "postgres",
            "postgresql+asyncpg",
            "postgresql+psycopg2",
            "PostgreSQL",
        ] {
            let url = DatabaseUrl::parse(&format!("{scheme}://u:p@db/x")).unwrap();
            assert!(matches!(url, DatabaseUrl::Postgres { .. }), "{scheme}");
            assert_eq!(url.show(), format!("{scheme}://u:***@db/x"));
        }
    }

    #[test]
    fn other_databases_are_refused() {
        for url in [
            "mysql://db",
            "event-persister.db",
            "/tmp/x.db",
            "sqlite:x.db",
            "postgresql:x",
        ] {
            assert!(error(url).contains("sqlite://PATH"), "{url}");
        }
    }

    #[test]
    fn passwords_are_masked_wherever_they_stand() {
        assert_eq!(
            mask_url("postgresql://u:p@db:5432/x"),
            "postgresql://u:***@db:5432/x"
        );
        assert_eq!(
            mask_url("postgresql://u:p/a@s?s@db/x"),
            "postgresql://u:***@db/x"
        );
        assert_eq!(mask_url("redis://:p@r:6379/0"), "redis://:***@r:6379/0");
        assert_eq!(mask_url("postgresql://u@db/x"), "postgresql://u@db/x");
        assert_eq!(
            mask_url("postgresql://db/x?user=u&password=p&sslmode=require"),
            "postgresql://db/x?user=u&password=***&sslmode=require",
        );
        assert_eq!(mask_url("sqlite:///me:x@home.db"), "sqlite:///me:x@home.db");
        assert_eq!(mask_url("postgresql:/u:p@db/x"), "***@db/x");
    }
}
