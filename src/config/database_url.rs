//! Where the database is, in the two forms that operators have at hand: ours and SQLAlchemy's.

use std::fmt;
use std::path::PathBuf;

use event_persister_actors::address::mask;
use event_persister_actors::settings::Spelling;
use event_persister_actors::store::postgres::PostgresUrl;
use event_persister_actors::store::sqlite::SqliteSettings;
use serde_json::Value;

const EXPECTED: &str = "give sqlite://PATH, where everything after `sqlite://` is the path, such as \
     sqlite://event-persister.db or sqlite:///var/lib/event-persister/events.db, or \
     postgresql://USER:PASSWORD@HOST:PORT/DATABASE";

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum DatabaseUrl {
    Sqlite {
        text: String,
        /// The file, relative to the working directory or absolute.
        path: PathBuf,
    },
    Postgres {
        text: String,
        url: Box<PostgresUrl>,
    },
}

impl Default for DatabaseUrl {
    fn default() -> Self {
        Self::Sqlite {
            text: "sqlite://event-persister.db".to_owned(),
            path: "event-persister.db".into(),
        }
    }
}

impl Spelling for DatabaseUrl {
    type Value = Self;

    fn read(given: &Value) -> Result<Self, String> {
        let text = given.as_str().unwrap_or_default().trim();
        let (scheme, _) = text.split_once("://").unwrap_or_default();
        // A driver of Python's is the same to the database.
        let dialect = scheme.split('+').next().unwrap_or_default();
        let read = match dialect.to_ascii_lowercase().as_str() {
            "sqlite" => SqliteSettings::from_url(text).map(|settings| Self::Sqlite {
                text: text.to_owned(),
                path: settings.path,
            }),
            "postgresql" | "postgres" => text.parse().map(|url| Self::Postgres {
                text: text.to_owned(),
                url: Box::new(url),
            }),
            _ => return Err(EXPECTED.to_owned()),
        };
        read.map_err(|error| error.to_string())
    }

    fn write(value: &Self) -> Value {
        value.to_string().into()
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { text, .. } | Self::Postgres { text, .. } => f.write_str(&mask(text)),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<DatabaseUrl, String> {
        DatabaseUrl::read(&url.into())
    }

    #[test]
    fn a_file_is_known_by_its_path() {
        for url in ["sqlite://a.db", "sqlite+aiosqlite:///a.db"] {
            let read = read(url).unwrap();
            let DatabaseUrl::Sqlite { path, .. } = &read else {
                panic!("{url} is not SQLite");
            };
            assert_eq!(path, &PathBuf::from("a.db"));
            assert_eq!(read.to_string(), url);
        }
        assert!(read("sqlite://:memory:").unwrap_err().contains("in memory"));
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
            let url = read(&format!("{scheme}://u:p@db/x")).unwrap();
            assert!(matches!(url, DatabaseUrl::Postgres { .. }), "{scheme}");
            assert_eq!(url.to_string(), format!("{scheme}://u:***@db/x"));
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
            assert!(read(url).unwrap_err().contains("sqlite://PATH"), "{url}");
        }
    }
}
