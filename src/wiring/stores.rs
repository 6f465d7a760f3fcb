//! Where events go: SQLite or PostgreSQL.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use event_persister_actors::archive::ArchiveStats;
use event_persister_actors::finding::Finding;
use event_persister_actors::reader::EventReader;
use event_persister_actors::store::operator::{Needs, StoreOperator};
use event_persister_actors::store::postgres::{PostgresReader, PostgresSettings, PostgresStore};
use event_persister_actors::store::sqlite::{
    CreateSchema, SqliteReader, SqliteSettings, SqliteStore,
};
use event_persister_actors::store::{EventStore, OpenStore, Period};

use super::archive::{Archive, archive, archiving};
use super::clock;
use crate::config::{Config, DatabaseUrl};

/// What to do about a database or tables that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make them: events come in and want to be stored.
    Create,
    /// Say so: there is nothing to delete.
    Refuse,
    /// Make nothing at all, not even our own tables: somebody only looks.
    Ignore,
}

pub(super) enum Settings {
    Sqlite(SqliteSettings),
    Postgres(Box<PostgresSettings>),
}

impl Settings {
    pub(super) fn new(config: &Config, missing: Missing) -> Self {
        let database = &config.database;
        match &database.url {
            DatabaseUrl::Sqlite { path, .. } => Self::Sqlite(SqliteSettings {
                path: path.clone(),
                create_schema: match missing {
                    // Prefect's migrations fail for ever on tables that exist.
                    Missing::Create if !database.is_prefects => CreateSchema::Everything,
                    // A command that only deletes makes no tables in a file of our own.
                    Missing::Refuse if !database.is_prefects => CreateSchema::Nothing,
                    Missing::Create | Missing::Refuse => CreateSchema::OwnOnly,
                    Missing::Ignore => CreateSchema::Nothing,
                },
                ..database.sqlite.clone()
            }),
            DatabaseUrl::Postgres { url, .. } => Self::Postgres(Box::new(PostgresSettings {
                url: url.as_ref().clone(),
                // Prefect's two tables are made in PostgreSQL by `migrate` alone: a service cannot know
                // whether Prefect will come to a database.
                create_schema: match missing {
                    Missing::Create | Missing::Refuse => CreateSchema::OwnOnly,
                    Missing::Ignore => CreateSchema::Nothing,
                },
                ..database.postgres.clone()
            })),
        }
    }
}

pub(crate) fn open_store(config: &Config, missing: Missing) -> OpenStore {
    let archive = archive(config);
    match Settings::new(config, missing) {
        Settings::Sqlite(settings) => of_sqlite(SqliteStore::new(settings, clock()), archive),
        Settings::Postgres(settings) => of_postgres(*settings, archive),
    }
}

fn of_sqlite(store: SqliteStore, archive: Option<Archive>) -> OpenStore {
    Arc::new(move || archiving(store.beside(), archive.as_ref()))
}

fn of_postgres(settings: PostgresSettings, archive: Option<Archive>) -> OpenStore {
    Arc::new(move || {
        let store = PostgresStore::new(settings.clone(), clock());
        archiving(store, archive.as_ref())
    })
}

/// The configured database, from each of its sides, for one process that stays.
pub(crate) struct Stores {
    pub(crate) open_store: OpenStore,
    pub(crate) operator: Arc<dyn StoreOperator>,
    pub(crate) reader: Arc<dyn EventReader>,
    /// What was written to the archive, where there is one.
    pub(crate) archive: Option<ArchiveStats>,
}

impl Stores {
    pub(crate) fn new(config: &Config) -> Self {
        let archive = archive(config);
        match Settings::new(config, Missing::Create) {
            Settings::Sqlite(settings) => {
                let store = SqliteStore::new(settings, clock());
                Self {
                    operator: Arc::new(store.beside()),
                    reader: Arc::new(store.reader()),
                    archive: archive.as_ref().map(Archive::stats),
                    open_store: of_sqlite(store, archive),
                }
            }
            Settings::Postgres(settings) => Self {
                operator: Arc::new(PostgresStore::new(*settings.clone(), clock())),
                reader: Arc::new(PostgresReader::new(*settings.clone())),
                archive: archive.as_ref().map(Archive::stats),
                open_store: of_postgres(*settings, archive),
            },
        }
    }
}

/// A reader of the configured database, for a command.
pub(crate) fn reader(config: &Config) -> Arc<dyn EventReader> {
    match Settings::new(config, Missing::Ignore) {
        Settings::Sqlite(settings) => Arc::new(SqliteReader::new(settings)),
        Settings::Postgres(settings) => Arc::new(PostgresReader::new(*settings)),
    }
}

/// The configured database, for one of the operator's commands.
pub(crate) fn operator(config: &Config, missing: Missing) -> Arc<dyn StoreOperator> {
    match Settings::new(config, missing) {
        Settings::Sqlite(settings) => Arc::new(SqliteStore::new(settings, clock())),
        Settings::Postgres(settings) => Arc::new(PostgresStore::new(*settings, clock())),
    }
}

/// Whether the configured database answers, and nobody has made its tables.
pub(crate) async fn has_no_tables(config: &Config) -> bool {
    let described = operator(config, Missing::Ignore).describe().await;
    described.is_ok_and(|info| info.server.is_some() && info.schema.is_none())
}

/// Looks at the configured database as `serve` would use it, and makes nothing.
pub(crate) async fn inspect_store(config: &Config) -> Vec<Finding> {
    let needs = Needs {
        writers: config.pipeline.writers.get(),
        trims: config.trim.every.is_some(),
        archives: config.trim.every.is_some() && archive(config).is_some(),
        reads: config.http.listener.reads(),
    };
    operator(config, Missing::Create).inspect(needs).await
}

/// Why no event could ever be stored there; `None` where it could, or the server would have to be asked.
pub(super) fn misplaced(config: &Config) -> Option<String> {
    let DatabaseUrl::Sqlite { path, .. } = &config.database.url else {
        return None;
    };
    path.is_dir().then(|| {
        format!(
            "database.url: {} is a directory: give the path of a file in it, such as sqlite://{}",
            config.database.url,
            path.join("event-persister.db").display()
        )
    })
}

/// Why there is no database to look at yet, though one could be made: not a fault.
pub(crate) fn not_there_yet(config: &Config) -> Option<String> {
    let DatabaseUrl::Sqlite { path, .. } = &config.database.url else {
        return None;
    };
    if path.exists() || config.database.is_prefects {
        return None;
    }
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    directory.is_none_or(Path::is_dir).then(|| {
        format!(
            "{} is not there yet; `serve`, `import` and `migrate` create it",
            path.display()
        )
    })
}

/// Creates or upgrades the schema; returns the names of the migrations that were run.
pub(crate) async fn migrate(config: &Config) -> anyhow::Result<Vec<String>> {
    refuse_prefects(config)?;
    let migrated = operator(config, Missing::Create).migrate().await;
    migrated.context("cannot create or upgrade the tables")
}

/// Makes the tables partitioned; returns the steps that were made.
pub(crate) async fn partition(config: &Config, period: Period) -> anyhow::Result<Vec<String>> {
    refuse_prefects(config)?;
    let partitioned = operator(config, Missing::Create).partition(period).await;
    partitioned.context("cannot partition the tables")
}

fn refuse_prefects(config: &Config) -> anyhow::Result<()> {
    if config.database.is_prefects {
        bail!(
            "the database is Prefect's ({}): its own migrations make its tables when its server \
             starts, and `serve` makes ours beside them. For a database without Prefect give \
             --database-url or EVENT_PERSISTER_DATABASE_URL",
            config.database.url
        );
    }
    Ok(())
}

/// The server that a command has asked, and what it is, where there are servers.
pub(crate) fn server_asked(config: &Config) -> Option<String> {
    match config.database.url {
        DatabaseUrl::Postgres { .. } => config.database.postgres.servers.told(),
        DatabaseUrl::Sqlite { .. } => None,
    }
}

/// Closes a store that was used for one command. A failure costs nothing: the process ends.
pub(crate) async fn close(store: &dyn EventStore) {
    if let Err(error) = store.close().await {
        log::debug!("cannot close the store error={error}");
    }
}

#[cfg(test)]
mod tests {
    use event_persister_actors::store::postgres::TlsMode;

    use super::*;

    #[test]
    fn the_tables_of_prefect_are_made_only_in_a_file_of_our_own() {
        let create = |variable, url| {
            let config = Config::of_variables(&[(variable, url)]).unwrap();
            match Settings::new(&config, Missing::Create) {
                Settings::Sqlite(settings) => settings.create_schema,
                Settings::Postgres(settings) => settings.create_schema,
            }
        };
        let (ours, prefects) = (
            "EVENT_PERSISTER_DATABASE_URL",
            "PREFECT_API_DATABASE_CONNECTION_URL",
        );
        assert_eq!(create(ours, "sqlite://a.db"), CreateSchema::Everything);
        for (variable, url) in [
            (prefects, "sqlite+aiosqlite:///a.db"),
            (ours, "postgresql://h/d"),
            (prefects, "postgresql+asyncpg://h/d"),
        ] {
            assert_eq!(create(variable, url), CreateSchema::OwnOnly, "{url}");
        }
    }

    #[test]
    fn every_setting_of_a_connection_arrives() {
        let config = Config::of_variables(&[
            (
                "EVENT_PERSISTER_DATABASE_URL",
                "postgresql+asyncpg://u:p@ss@h:6432/d?ssl=require&options=-c%20x%3Dy",
            ),
            ("EVENT_PERSISTER_DATABASE_SEARCH_PATH", "a, public"),
            ("EVENT_PERSISTER_DATABASE_PREPARED_STATEMENTS", "off"),
            ("EVENT_PERSISTER_DATABASE_TLS_CHECK_HOSTNAME", "off"),
            ("EVENT_PERSISTER_DATABASE_TLS_CA_FILE", "system"),
        ])
        .unwrap();
        let Settings::Postgres(settings) = Settings::new(&config, Missing::Create) else {
            panic!("not PostgreSQL");
        };
        assert_eq!(settings.search_path.as_deref(), Some("a, public"));
        assert_eq!(settings.application_name, "event-persister");
        assert!(!settings.prepared_statements);
        assert_eq!(settings.tls, TlsMode::Require);
        assert!(!settings.tls_check_hostname);
        assert_eq!(settings.tls_ca_file, Some("system".into()));
        let shown = format!("{settings:?}");
        assert!(shown.contains("d at h:6432 as user u"), "{shown}");
    }
}
