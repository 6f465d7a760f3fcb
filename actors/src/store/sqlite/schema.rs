//! The tables: which there are, which may be made here, and whether they are what is written.

use std::collections::BTreeSet;

use diesel::dsl::sql;
use diesel::migration::{Migration, MigrationConnection as _};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use diesel::sqlite::Sqlite;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};

use super::connection::{Connection, Failure};
use crate::finding::Finding;
use crate::store::CreateSchema;
use crate::store::tables::{
    self, Column, LETTERS, LETTERS_VERSION, Remedies, WRITTEN, fault_of_unknown, fault_of_written,
    migrations, query_error, unfit, unknown_column,
};

/// Prefect's tables, to the letter. Never run on a database that is or may become Prefect's.
pub(super) const EVENTS: EmbeddedMigrations = embed_migrations!("migrations/sqlite/events");
pub(super) const OWN: EmbeddedMigrations = embed_migrations!("migrations/sqlite/own");
/// The tables of an archive, where one is configured.
pub(super) const ARCHIVE: EmbeddedMigrations = embed_migrations!("migrations/sqlite/archive");

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

struct Found {
    tables: BTreeSet<String>,
    applied: BTreeSet<String>,
}

impl Found {
    fn in_database(connection: &mut SqliteConnection) -> QueryResult<Self> {
        let tables = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')";
        let tables = names(connection, tables)?;
        let applied = if tables.contains("__diesel_schema_migrations") {
            names(connection, "SELECT version FROM __diesel_schema_migrations")?
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

    fn pending(&self, create: CreateSchema) -> QueryResult<Vec<Box<dyn Migration<Sqlite>>>> {
        let mut pending = Vec::new();
        if create == CreateSchema::Nothing {
            return Ok(pending);
        }
        if create == CreateSchema::Everything {
            let events = migrations(&EVENTS)?;
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
        pending.extend(migrations(&OWN)?);
        pending.retain(|migration| !self.has_run(migration.as_ref()));
        Ok(pending)
    }
}

fn names(connection: &mut SqliteConnection, text: &str) -> QueryResult<BTreeSet<String>> {
    Ok(sql::<Text>(text)
        .load::<String>(connection)?
        .into_iter()
        .collect())
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

/// Makes the tables of an archive where they are missing.
#[cfg(feature = "archive")]
pub(super) fn prepare_archive(connection: &mut Connection) -> Result<(), Failure> {
    let found = connection.run(Found::in_database)?;
    if found.has("event_persister_archives") {
        return Ok(());
    }
    connection.run(|connection| {
        connection.immediate_transaction(|connection| {
            connection.setup()?;
            // Another process may have made them meanwhile.
            let found = Found::in_database(connection)?;
            for migration in migrations::<Sqlite>(&ARCHIVE)? {
                if !found.has_run(migration.as_ref()) {
                    connection
                        .run_migration(migration.as_ref())
                        .map_err(query_error)?;
                }
            }
            Ok(())
        })
    })?;
    log::info!("the tables of the archive were made");
    Ok(())
}

#[cfg(feature = "archive")]
pub(super) fn has_archives(connection: &mut Connection) -> Result<bool, Failure> {
    let found = connection.run(Found::in_database)?;
    Ok(found.has("event_persister_archives"))
}

pub(super) fn newer_migrations(connection: &mut Connection) -> Result<Vec<String>, Failure> {
    let newer = connection.run(|connection| {
        let applied = Found::in_database(connection)?.applied;
        tables::newer_migrations::<Sqlite>(applied, [&EVENTS, &OWN, &ARCHIVE])
    });
    Ok(newer?)
}

/// Triggers that have a say in what is inserted or deleted, as `name on table`.
pub(super) fn triggers(connection: &mut Connection) -> Result<Vec<String>, Failure> {
    const TRIGGERS: &str = "SELECT name || ' on ' || tbl_name FROM sqlite_master \
        WHERE type = 'trigger' \
        AND tbl_name IN ('events', 'event_resources', 'event_persister_dead_letters')";
    let triggers = connection.run(|connection| names(connection, TRIGGERS))?;
    Ok(triggers.into_iter().collect())
}

/// Looks through all pages: the first fault, or nothing. Reads the
/// whole file.
pub(super) fn damage(connection: &mut Connection) -> Result<Option<String>, Failure> {
    const FIRST: &str = "SELECT quick_check FROM pragma_quick_check LIMIT 1";
    let found = connection.run(|connection| names(connection, FIRST))?;
    Ok(found.into_iter().find(|found| found != "ok"))
}

/// Which of the columns that rows are looked for by begin no index, as `table.column`.
pub(super) fn missing_indexes(connection: &mut Connection) -> Result<Vec<String>, Failure> {
    const MISSING: &str = "WITH wanted (table_name, column_name) AS (VALUES \
        ('events', 'occurred'), ('event_resources', 'event_id'), ('event_resources', 'occurred')) \
        SELECT table_name || '.' || column_name FROM wanted \
        WHERE EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = table_name) \
        AND NOT EXISTS (SELECT 1 FROM pragma_index_list(table_name) AS list, \
        pragma_index_info(list.name) AS info \
        WHERE NOT list.partial AND info.seqno = 0 AND info.name = column_name)";
    let missing = connection.run(|connection| names(connection, MISSING))?;
    Ok(missing.into_iter().collect())
}

/// How many rows have something else than a text where their time should be.
pub(super) fn num_without_time(connection: &mut Connection) -> Result<i64, Failure> {
    // Numbers sort before all texts, and bytes behind them, so that the indexes answer.
    const COUNT: &str = "(SELECT count(*) FROM events WHERE occurred < '' OR occurred >= x'') \
        + (SELECT count(*) FROM event_resources WHERE occurred < '' OR occurred >= x'')";
    let count = diesel::select(sql::<BigInt>(COUNT));
    Ok(connection.run(|connection| count.get_result(connection))?)
}

/// The revision that Prefect's migrations have noted; `None` where they were never run.
pub(super) fn prefect_revision(connection: &mut Connection) -> Result<Option<String>, Failure> {
    let revisions = connection.run(|connection| {
        if Found::in_database(connection)?.has("alembic_version") {
            names(connection, "SELECT version_num FROM alembic_version")
        } else {
            Ok(BTreeSet::new())
        }
    })?;
    Ok(revisions.into_iter().next_back())
}

pub(super) const SCHEMA: &str = "sqlite.schema";
pub(super) const INDEXES: &str = "sqlite.indexes";

pub(super) fn check(connection: &mut Connection, create: CreateSchema) -> Result<(), Failure> {
    let is_prefects = create == CreateSchema::OwnOnly;
    let faults = faults(connection, create, is_prefects)?;
    match unfit(faults, create, SCHEMA) {
        Some(what) => Err(Failure::Unfit(what)),
        None => Ok(()),
    }
}

/// Everything that keeps us from writing, in one list for all that ask: a store that starts, the probe behind
/// `/api/ready`, and `event-persister check`. A store that only looks does not mind that our own table is not
/// there yet: a writer makes it. Only where Prefect is, or may come to be, its migrations are waited for.
pub(super) fn faults(
    connection: &mut Connection,
    create: CreateSchema,
    is_prefects: bool,
) -> Result<Vec<Finding>, Failure> {
    let found = connection.run(Found::in_database)?;
    let is_prefects = is_prefects || found.has("alembic_version");
    let path = connection.path().to_string();
    let mut faults = Vec::new();
    for (table, written) in WRITTEN {
        if found.has(table) {
            faults.extend(table_fault(connection, table, written, is_prefects)?);
            faults.extend(key_fault(connection, table)?);
            continue;
        }
        let what = format!("the SQLite database {path} has no table {table}");
        if table != LETTERS {
            let remedy = if is_prefects {
                "waiting for Prefect's migrations; for a database without Prefect run \
                 `event-persister migrate`"
            } else {
                "`event-persister migrate` makes those that are missing"
            };
            faults.push(Finding::error(SCHEMA, what, remedy));
            // Where Prefect has been, both of its tables are there or neither.
            break;
        } else if found.applied.contains(LETTERS_VERSION) {
            let what = format!("{what}, though its migration is recorded");
            let remedy = format!(
                "DELETE FROM __diesel_schema_migrations WHERE version = '{LETTERS_VERSION}', and start \
                 `event-persister`, which makes it"
            );
            faults.push(Finding::error(SCHEMA, what, remedy));
        } else if create != CreateSchema::Nothing {
            let remedy = "start `event-persister`, which makes it";
            faults.push(Finding::error(SCHEMA, what, remedy));
        }
    }
    Ok(faults)
}

fn table_fault(
    connection: &mut Connection,
    table: &str,
    written: &[(&str, &str)],
    is_prefects: bool,
) -> Result<Option<Finding>, Failure> {
    let columns: Vec<Column> = connection.run(|connection| {
        sql_query(
            "SELECT name, NULL AS type_name, \"notnull\" AND dflt_value IS NULL AND pk = 0 AS required, \
             hidden IN (2, 3) AS generated FROM pragma_table_xinfo(?)",
        )
        .bind::<Text, _>(table)
        .load(connection)
    })?;
    let remedies = Remedies {
        missing: if is_prefects {
            "bring the schema up to date, with Prefect's migrations"
        } else {
            "bring the schema up to date, with `event-persister migrate`"
        },
        generated: "make it a plain column",
    };
    let mut written = written.to_vec();
    if table == LETTERS {
        // PostgreSQL alone may have it generated.
        written.push(("id", "bigint"));
    }
    let of = format!(
        "the table {table} of the SQLite database {}",
        connection.path()
    );
    let fault = fault_of_written(SCHEMA, &of, &written, &columns, &remedies);
    Ok(fault.or_else(|| {
        let unknown = unknown_column(&written, &columns)?;
        Some(fault_of_unknown(SCHEMA, &of, unknown))
    }))
}

/// These keys tell what comes twice.
fn key_fault(connection: &mut Connection, table: &str) -> Result<Option<Finding>, Failure> {
    let key = match table {
        "events" => "id",
        LETTERS => "position, raw_hash, source",
        _ => return Ok(None),
    };
    let keys = sql::<Text>(
        "SELECT (SELECT group_concat(name, ', ') FROM (\
         SELECT info.name AS name FROM pragma_index_info(list.name) AS info ORDER BY info.name)) \
         FROM pragma_index_list(",
    )
    .bind::<Text, _>(table)
    .sql(") AS list WHERE list.\"unique\" AND NOT list.partial");
    let keys: Vec<String> = connection.run(|connection| keys.load(connection))?;
    if keys.iter().any(|found| found == key) {
        return Ok(None);
    }
    Ok(Some(Finding::error(
        INDEXES,
        format!("{table} has no unique index on ({key}), by which what comes twice is told"),
        format!("CREATE UNIQUE INDEX uq_{table} ON {table} ({key})"),
    )))
}

pub(super) fn is_empty(connection: &mut Connection) -> bool {
    let found = connection.run(Found::in_database);
    found.is_ok_and(|found| found.tables.is_empty())
}

pub(super) fn has_letters(connection: &mut Connection) -> Result<bool, Failure> {
    let found = connection.run(Found::in_database)?;
    Ok(found.has(LETTERS))
}
