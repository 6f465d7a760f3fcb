//! The tables: which there are, which may be made here, and whether they are what is written.

use std::collections::BTreeSet;
use std::error::Error;

use diesel::migration::{Migration, MigrationConnection as _, MigrationSource as _};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Bool, Text};
use diesel::sqlite::Sqlite;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};

use super::connection::{Connection, Failure};
use crate::store::CreateSchema;

/// Prefect's tables, to the letter. Never run on a database that is or may become Prefect's.
pub(super) const EVENTS: EmbeddedMigrations = embed_migrations!("../migrations/sqlite/events");
/// Our own tables.
pub(super) const OWN: EmbeddedMigrations = embed_migrations!("../migrations/sqlite/own");

diesel::table! {
    events (id) {
        occurred -> Text,
        event -> Text,
        resource_id -> Text,
        resource -> Text,
        related_resource_ids -> Text,
        related -> Text,
        payload -> Text,
        received -> Text,
        recorded -> Text,
        follows -> Nullable<Text>,
        id -> Text,
        created -> Text,
        updated -> Text,
    }
}

diesel::table! {
    event_resources (id) {
        occurred -> Text,
        resource_id -> Text,
        resource_role -> Text,
        resource -> Text,
        event_id -> Text,
        id -> Text,
        created -> Text,
        updated -> Text,
    }
}

diesel::table! {
    event_persister_dead_letters (id) {
        id -> BigInt,
        source -> Text,
        position -> Text,
        raw -> Binary,
        raw_hash -> Binary,
        event_id -> Nullable<Text>,
        stage -> Text,
        reason -> Text,
        sqlstate -> Nullable<Text>,
        attempts -> BigInt,
        first_seen -> Text,
        last_seen -> Text,
    }
}

diesel::allow_tables_to_appear_in_same_query!(events, event_resources);

/// What is written, table by table.
const WRITTEN: [(&str, &[&str]); 3] = [
    (
        "events",
        &[
            "occurred",
            "event",
            "resource_id",
            "resource",
            "related_resource_ids",
            "related",
            "payload",
            "received",
            "recorded",
            "follows",
            "id",
            "created",
            "updated",
        ],
    ),
    (
        "event_resources",
        &[
            "occurred",
            "resource_id",
            "resource_role",
            "resource",
            "event_id",
            "id",
            "created",
            "updated",
        ],
    ),
    (
        "event_persister_dead_letters",
        &[
            "id",
            "source",
            "position",
            "raw",
            "raw_hash",
            "event_id",
            "stage",
            "reason",
            "sqlstate",
            "attempts",
            "first_seen",
            "last_seen",
        ],
    ),
];

/// What a database holds already.
struct Found {
    tables: BTreeSet<String>,
    applied: BTreeSet<String>,
}

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

impl Found {
    fn in_database(connection: &mut SqliteConnection) -> QueryResult<Self> {
        let tables = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')";
        let tables = names(connection, tables)?;
        let applied = if tables.contains("__diesel_schema_migrations") {
            names(
                connection,
                "SELECT version AS name FROM __diesel_schema_migrations",
            )?
        } else {
            BTreeSet::new()
        };
        Ok(Self { tables, applied })
    }

    fn has(&self, table: &str) -> bool {
        self.tables.contains(table)
    }

    fn has_run(&self, migration: &dyn Migration<Sqlite>) -> bool {
        let version = migration.name().version().to_string();
        self.applied.contains(&version)
    }

    /// What is still to be run, in order.
    fn pending(&self, create: CreateSchema) -> QueryResult<Vec<Box<dyn Migration<Sqlite>>>> {
        let mut pending = Vec::new();
        if create == CreateSchema::Nothing {
            return Ok(pending);
        }
        if create == CreateSchema::Everything {
            let events = migrations(EVENTS)?;
            // Tables that Prefect made are not in our list of migrations; and where it has begun to
            // make some, it will make these too.
            let is_ours = events
                .iter()
                .any(|migration| self.has_run(migration.as_ref()))
                || !["events", "event_resources", "alembic_version"]
                    .iter()
                    .any(|table| self.has(table));
            if is_ours {
                pending.extend(events);
            }
        }
        pending.extend(migrations(OWN)?);
        pending.retain(|migration| !self.has_run(migration.as_ref()));
        Ok(pending)
    }
}

fn names(connection: &mut SqliteConnection, sql: &str) -> QueryResult<BTreeSet<String>> {
    let rows: Vec<Name> = sql_query(sql).load(connection)?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}

fn migrations(set: EmbeddedMigrations) -> QueryResult<Vec<Box<dyn Migration<Sqlite>>>> {
    let mut migrations = set.migrations().map_err(query_error)?;
    migrations.sort_unstable_by(|a, b| a.name().version().cmp(&b.name().version()));
    Ok(migrations)
}

/// What the migrations report, as diesel's own error where it is one.
fn query_error(error: Box<dyn Error + Send + Sync>) -> diesel::result::Error {
    match error.downcast::<diesel::result::Error>() {
        Ok(error) => *error,
        Err(error) => diesel::result::Error::QueryBuilderError(error),
    }
}

/// Makes what is missing and may be made, and checks all that is written; returns the names of the
/// migrations that were run.
///
/// They run in one transaction that holds the write lock from its beginning, so that several
/// processes may start together on a new file.
pub(super) fn prepare(
    connection: &mut Connection,
    create: CreateSchema,
) -> Result<Vec<String>, Failure> {
    // Most often there is nothing to do, and then no lock is wanted.
    let found = connection.run(Found::in_database)?;
    let mut run = Vec::new();
    if !connection.run(|_| found.pending(create))?.is_empty() {
        run = connection.run(|connection| {
            connection.immediate_transaction(|connection| run_pending(connection, create))
        })?;
    }
    check(connection, create)?;
    Ok(run)
}

fn run_pending(
    connection: &mut SqliteConnection,
    create: CreateSchema,
) -> QueryResult<Vec<String>> {
    connection.setup()?;
    let pending = Found::in_database(connection)?.pending(create)?;
    let mut run = Vec::with_capacity(pending.len());
    for migration in &pending {
        connection
            .run_migration(migration.as_ref())
            .map_err(query_error)?;
        run.push(migration.name().to_string());
    }
    Ok(run)
}

#[derive(QueryableByName)]
struct Column {
    #[diesel(sql_type = Text)]
    name: String,
    /// Whether an insert that leaves it out fails.
    #[diesel(sql_type = Bool)]
    required: bool,
}

/// Migrations of our numbering that this program does not know.
pub(super) fn newer_migrations(connection: &mut Connection) -> Result<Vec<String>, Failure> {
    const OURS: &str = "0000000000";
    let newer = connection.run(|connection| {
        let mut applied = Found::in_database(connection)?.applied;
        for migration in migrations(EVENTS)?.iter().chain(&migrations(OWN)?) {
            applied.remove(&migration.name().version().to_string());
        }
        Ok(applied)
    })?;
    let ours = newer
        .into_iter()
        .filter(|version| version.starts_with(OURS));
    Ok(ours.collect())
}

/// Which of the columns that rows are looked for by begin no index, as `table.column`.
pub(super) fn missing_indexes(connection: &mut Connection) -> Result<Vec<String>, Failure> {
    const MISSING: &str = "WITH wanted (table_name, column_name) AS (VALUES \
        ('events', 'occurred'), ('event_resources', 'event_id'), ('event_resources', 'occurred')) \
        SELECT table_name || '.' || column_name AS name FROM wanted \
        WHERE EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = table_name) \
        AND NOT EXISTS (SELECT 1 FROM pragma_index_list(table_name) AS list, \
        pragma_index_info(list.name) AS info \
        WHERE NOT list.partial AND info.seqno = 0 AND info.name = column_name)";
    let missing = connection.run(|connection| names(connection, MISSING))?;
    Ok(missing.into_iter().collect())
}

/// The revision that Prefect's migrations have noted; `None` where they were never run.
pub(super) fn prefect_revision(connection: &mut Connection) -> Result<Option<String>, Failure> {
    let revisions = connection.run(|connection| {
        if Found::in_database(connection)?.has("alembic_version") {
            names(
                connection,
                "SELECT version_num AS name FROM alembic_version",
            )
        } else {
            Ok(BTreeSet::new())
        }
    })?;
    Ok(revisions.into_iter().next_back())
}

/// Whether every column that is written is there, and no other must be written.
pub(super) fn check(connection: &mut Connection, create: CreateSchema) -> Result<(), Failure> {
    let is_prefects = create == CreateSchema::OwnOnly;
    check_tables(connection, create == CreateSchema::Nothing, is_prefects)
}

/// The same for somebody who makes nothing, in a database that is Prefect's or is not.
pub(super) fn look(connection: &mut Connection, is_prefects: bool) -> Result<(), Failure> {
    check_tables(connection, true, is_prefects)
}

fn check_tables(
    connection: &mut Connection,
    only_looks: bool,
    is_prefects: bool,
) -> Result<(), Failure> {
    let found = connection.run(Found::in_database)?;
    let is_prefects = is_prefects || found.has("alembic_version");
    for (table, written) in WRITTEN {
        let is_own = table.starts_with("event_persister_");
        if is_own && !found.has(table) && only_looks {
            continue;
        }
        if !found.has(table) {
            let path = connection.path();
            return Err(Failure::Unfit(if is_prefects {
                format!(
                    "the SQLite database {path} has no table {table}: waiting for Prefect's \
                     migrations; for a database without Prefect run `event-persister migrate`"
                )
            } else {
                format!(
                    "the SQLite database {path} has no table {table}: `event-persister migrate` makes \
                     those that are missing"
                )
            }));
        }
        let columns: Vec<Column> = connection.run(|connection| {
            sql_query(
                "SELECT name, \"notnull\" AND dflt_value IS NULL AND pk = 0 AS required \
                 FROM pragma_table_info(?)",
            )
            .bind::<Text, _>(table)
            .load(connection)
        })?;
        let path = connection.path();
        if let Some(missing) = written
            .iter()
            .find(|name| !columns.iter().any(|column| column.name == **name))
        {
            return Err(Failure::Unfit(format!(
                "the table {table} of the SQLite database {path} has no column {missing}: bring the \
                 schema up to date, with {}",
                if is_prefects {
                    "Prefect's migrations"
                } else {
                    "`event-persister migrate`"
                }
            )));
        }
        if let Some(unknown) = columns
            .iter()
            .find(|column| column.required && !written.contains(&column.name.as_str()))
        {
            return Err(Failure::Unfit(format!(
                "the table {table} of the SQLite database {path} has a column {} that must be \
                 written, and this version does not know it: upgrade event-persister",
                unknown.name
            )));
        }
    }
    Ok(())
}

/// Whether there is no table at all.
pub(super) fn is_empty(connection: &mut Connection) -> Result<bool, Failure> {
    let found = connection.run(Found::in_database)?;
    Ok(found.tables.is_empty())
}

/// Whether there is a table of dead letters to read.
pub(super) fn has_letters(connection: &mut Connection) -> Result<bool, Failure> {
    let found = connection.run(Found::in_database)?;
    Ok(found.has("event_persister_dead_letters"))
}
