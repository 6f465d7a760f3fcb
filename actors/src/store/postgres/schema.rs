//! The tables: which there are, which may be made here, and whether they are what is written.

use std::collections::BTreeSet;
use std::error::Error;

use diesel::Connection as _;
use diesel::connection::SimpleConnection as _;
use diesel::migration::{Migration, MigrationConnection as _, MigrationSource as _};
use diesel::pg::Pg;
use diesel::prelude::{QueryResult, QueryableByName};
use diesel::sql_query;
use diesel::sql_types::{Bool, Nullable, Oid, Text};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};

use super::connection::Connection;
use super::failure::Failure;
use super::settings::Place;
use crate::store::CreateSchema;

/// Prefect's tables, to the letter. Never run on a database that is or may become Prefect's.
const EVENTS: EmbeddedMigrations = embed_migrations!("../migrations/postgres/events");
/// Our own tables and the store function.
const OWN: EmbeddedMigrations = embed_migrations!("../migrations/postgres/own");

/// Held while the schema is changed, so that replicas may start together. Any number that no one else
/// uses in the same database.
const SCHEMA_LOCK: i64 = 0x6576_656e_7470_7273;

diesel::table! {
    events (id) {
        occurred -> Timestamptz,
        event -> Text,
        updated -> Timestamptz,
        id -> Uuid,
    }
}

diesel::table! {
    event_resources (id) {
        occurred -> Timestamptz,
        event_id -> Uuid,
        id -> Uuid,
    }
}

diesel::table! {
    event_persister_dead_letters (id) {
        id -> BigInt,
        source -> Text,
        position -> Text,
        raw -> Binary,
        raw_hash -> Binary,
        event_id -> Nullable<Uuid>,
        stage -> Text,
        reason -> Text,
        sqlstate -> Nullable<Text>,
        attempts -> BigInt,
        first_seen -> Timestamptz,
        last_seen -> Timestamptz,
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

/// What the database holds already.
#[derive(QueryableByName)]
struct Found {
    #[diesel(sql_type = Bool)]
    events: bool,
    #[diesel(sql_type = Bool)]
    alembic: bool,
    #[diesel(sql_type = Bool)]
    letters: bool,
    #[diesel(sql_type = Bool)]
    function: bool,
    #[diesel(sql_type = Bool)]
    versions: bool,
    /// Whether every character that an event may hold can be stored.
    #[diesel(sql_type = Bool)]
    utf8: bool,
}

const FIND: &str = "SELECT \
    to_regclass('events') IS NOT NULL AS events, \
    to_regclass('alembic_version') IS NOT NULL AS alembic, \
    to_regclass('event_persister_dead_letters') IS NOT NULL AS letters, \
    EXISTS (SELECT FROM pg_catalog.pg_proc \
        WHERE oid = to_regproc('event_persister_store_v1')::oid AND 'r_ids' = ANY (proargnames)) \
        AS function, \
    to_regclass('__diesel_schema_migrations') IS NOT NULL AS versions, \
    current_setting('server_encoding') = 'UTF8' AS utf8";

impl Found {
    /// Whether Prefect's tables are to be made.
    fn wants_events(&self, create: CreateSchema) -> bool {
        create == CreateSchema::Everything && !self.events && !self.alembic
    }

    fn wants_own(&self, create: CreateSchema) -> bool {
        create != CreateSchema::Nothing && !self.has_own()
    }

    fn has_own(&self) -> bool {
        self.letters && self.function
    }
}

/// Makes what is missing and may be made, then checks the whole; returns the names of the migrations
/// that were run.
///
/// What is there is not touched, so that a role without CREATE can run on it.
pub(super) async fn prepare(
    mut connection: Connection,
    create: CreateSchema,
    place: &Place,
) -> Result<(Connection, Vec<String>), Failure> {
    connection.begin().await?;
    let found: Found = sql_query(FIND).get_result(&mut connection.pg).await?;
    connection.commit().await?;
    let mut run = Vec::new();
    if found.wants_events(create) || found.wants_own(create) {
        (connection, run) = run_pending(connection, create).await?;
    }
    check(&mut connection, create, place).await?;
    Ok((connection, run))
}

/// diesel's migrations block, so that they run where they may.
async fn run_pending(
    connection: Connection,
    create: CreateSchema,
) -> Result<(Connection, Vec<String>), Failure> {
    let Connection {
        pg,
        driver,
        configure,
        expects_duplicates,
        copying,
    } = connection;
    let migrated = tokio::task::spawn_blocking(move || {
        let mut wrapper = AsyncConnectionWrapper::<AsyncPgConnection>::from(pg);
        let run = wrapper.transaction(|wrapper| migrate(wrapper, &configure, create))?;
        let connection = Connection {
            pg: wrapper.into_inner(),
            driver,
            configure,
            expects_duplicates,
            copying,
        };
        Ok((connection, run))
    });
    migrated.await.map_err(Failure::Lost)?
}

type Wrapper = AsyncConnectionWrapper<AsyncPgConnection>;

fn migrate(
    wrapper: &mut Wrapper,
    configure: &str,
    create: CreateSchema,
) -> QueryResult<Vec<String>> {
    wrapper.batch_execute(configure)?;
    wrapper.batch_execute(&format!("SELECT pg_advisory_xact_lock({SCHEMA_LOCK})"))?;
    // Another replica may have made everything while this one waited.
    let found: Found = diesel::RunQueryDsl::get_result(sql_query(FIND), wrapper)?;
    let mut wanted = Vec::new();
    if found.wants_events(create) {
        wanted.extend(migrations(&EVENTS)?);
    }
    if found.wants_own(create) {
        wanted.extend(migrations(&OWN)?);
    }
    if !found.versions {
        wrapper.setup()?;
    }
    let applied = wrapper.applied_migrations().map_err(query_error)?;
    let applied: BTreeSet<_> = applied.iter().map(ToString::to_string).collect();
    let mut run = Vec::new();
    for migration in wanted {
        if !applied.contains(&migration.name().version().to_string()) {
            wrapper
                .run_migration(migration.as_ref())
                .map_err(query_error)?;
            run.push(migration.name().to_string());
        }
    }
    Ok(run)
}

fn migrations(embedded: &EmbeddedMigrations) -> QueryResult<Vec<Box<dyn Migration<Pg>>>> {
    let mut migrations = embedded.migrations().map_err(query_error)?;
    migrations.sort_by_key(|migration| migration.name().version().as_owned());
    Ok(migrations)
}

/// The versions of all migrations that this program knows.
pub(super) fn known_versions() -> QueryResult<BTreeSet<String>> {
    let mut versions = BTreeSet::new();
    for migration in migrations(&EVENTS)?.iter().chain(&migrations(&OWN)?) {
        versions.insert(migration.name().version().to_string());
    }
    Ok(versions)
}

fn query_error(error: Box<dyn Error + Send + Sync>) -> diesel::result::Error {
    match error.downcast::<diesel::result::Error>() {
        Ok(error) => *error,
        Err(error) => diesel::result::Error::QueryBuilderError(error),
    }
}

#[derive(QueryableByName)]
struct Column {
    #[diesel(sql_type = Text)]
    table_name: String,
    /// `None` where there is no such table.
    #[diesel(sql_type = Nullable<Text>)]
    name: Option<String>,
    /// Whether an insert that leaves it out fails.
    #[diesel(sql_type = Bool)]
    required: bool,
}

const COLUMNS: &str = "SELECT wanted.name AS table_name, attname::text AS name, \
    coalesce(attnotnull AND NOT atthasdef AND attidentity = '', false) AS required \
    FROM (VALUES ('events'), ('event_resources'), ('event_persister_dead_letters')) AS wanted (name) \
    LEFT JOIN pg_catalog.pg_attribute \
    ON attrelid = to_regclass(wanted.name) AND attnum > 0 AND NOT attisdropped";

#[derive(QueryableByName)]
struct Lacking {
    #[diesel(sql_type = Text)]
    privilege: String,
}

const LACKING: &str = "SELECT privilege || ' ON ' || name AS privilege FROM (VALUES \
    ('SELECT', 'events'), ('INSERT', 'events'), ('INSERT', 'event_resources'), \
    ('SELECT', 'event_persister_dead_letters'), ('INSERT', 'event_persister_dead_letters'), \
    ('UPDATE', 'event_persister_dead_letters')) AS wanted (privilege, name) \
    WHERE NOT has_table_privilege(to_regclass(name), privilege) \
    UNION ALL SELECT 'EXECUTE ON FUNCTION event_persister_store_v1' \
    WHERE NOT has_function_privilege(to_regproc('event_persister_store_v1')::oid, 'EXECUTE') \
    UNION ALL SELECT 'EXECUTE ON FUNCTION ' || oid::regprocedure FROM pg_catalog.pg_proc \
    WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = 'pg_logical_emit_message' \
    AND proargtypes[2] = 'text'::regtype AND NOT has_function_privilege(oid, 'EXECUTE')";

/// Whether every column that is written is there, no other must be written, and the role may write.
///
/// Whoever only looks does not mind that ours are missing: whoever writes makes them.
pub(super) async fn check(
    connection: &mut Connection,
    create: CreateSchema,
    place: &Place,
) -> Result<(), Failure> {
    connection.begin().await?;
    if check_shape(connection, create, place).await? {
        let lacking: Vec<Lacking> = sql_query(LACKING).load(&mut connection.pg).await?;
        if let Some(Lacking { privilege }) = lacking.into_iter().next() {
            return Err(Failure::Unfit(format!(
                "permission denied in {place}: the role needs GRANT {privilege}"
            )));
        }
        check_function(connection, place).await?;
    }
    connection.commit().await
}

/// Whether our own tables are there; fails unless all that is there has the form that is written.
pub(super) async fn check_shape(
    connection: &mut Connection,
    create: CreateSchema,
    place: &Place,
) -> Result<bool, Failure> {
    let found: Found = sql_query(FIND).get_result(&mut connection.pg).await?;
    if !found.utf8 {
        return Err(Failure::Unfit(format!(
            "{place} has another encoding than UTF8, in which not every event can be stored: create a \
             database with ENCODING 'UTF8'"
        )));
    }
    let only_looks = create == CreateSchema::Nothing && !found.has_own();
    let columns: Vec<Column> = sql_query(COLUMNS).load(&mut connection.pg).await?;
    for (table, written) in WRITTEN {
        if !(only_looks && table.starts_with("event_persister_")) {
            check_table(table, written, &columns, place)?;
        }
    }
    if only_looks {
        return Ok(false);
    }
    if !found.function {
        return Err(Failure::Unfit(format!(
            "{place} has no function event_persister_store_v1, or several, or one of a build before the \
             first release: look for it in the schemas of the search path, drop what is there together \
             with its rows 00000000000102 and 00000000000103 in __diesel_schema_migrations, then run \
             `event-persister migrate`"
        )));
    }
    Ok(true)
}

/// The tables that a search path leads to.
#[derive(PartialEq, Eq, QueryableByName)]
struct Targets {
    #[diesel(sql_type = Nullable<Oid>)]
    events: Option<u32>,
    #[diesel(sql_type = Nullable<Oid>)]
    event_resources: Option<u32>,
}

const TARGETS: &str = "SELECT to_regclass('events')::oid AS events, \
    to_regclass('event_resources')::oid AS event_resources";

#[derive(QueryableByName)]
struct OfFunction {
    #[diesel(sql_type = Text)]
    schema: String,
    #[diesel(sql_type = Text)]
    search_path: String,
}

/// What the store function goes by; from here to the end of the transaction so does everything else.
const FOLLOW_FUNCTION: &str = "SELECT pronamespace::regnamespace::text AS schema, \
    set_config('search_path', substr(setting, 13), true) AS search_path \
    FROM pg_catalog.pg_proc, unnest(proconfig) AS setting \
    WHERE oid = to_regproc('event_persister_store_v1')::oid AND setting LIKE 'search\\_path=%'";

/// Whether the function writes to the tables that were looked at: its search path is of the time when
/// it was made, and another schema of ours may hold a function that an earlier one left there.
pub(super) async fn check_function(
    connection: &mut Connection,
    place: &Place,
) -> Result<(), Failure> {
    let ours: Targets = sql_query(TARGETS).get_result(&mut connection.pg).await?;
    let of_function: Vec<OfFunction> = sql_query(FOLLOW_FUNCTION).load(&mut connection.pg).await?;
    let Some(of_function) = of_function.into_iter().next() else {
        return Ok(());
    };
    let targets: Targets = sql_query(TARGETS).get_result(&mut connection.pg).await?;
    if targets == ours {
        return Ok(());
    }
    let OfFunction {
        schema,
        search_path,
    } = of_function;
    Err(Failure::Unfit(format!(
        "the function {schema}.event_persister_store_v1 of {place} was made for the search path \
         {search_path}, where it finds other tables than with the present one: set database.search_path \
         so that it leads to the schema of Prefect's tables alone, or drop the function and its row in \
         {schema}.__diesel_schema_migrations"
    )))
}

fn check_table(
    table: &str,
    written: &[&str],
    columns: &[Column],
    place: &Place,
) -> Result<(), Failure> {
    let of_table: Vec<_> = columns
        .iter()
        .filter(|column| column.table_name == table)
        .filter_map(|column| Some((column.name.as_deref()?, column.required)))
        .collect();
    if of_table.is_empty() {
        return Err(Failure::Unfit(if table.starts_with("event_persister_") {
            format!(
                "{place} has no table {table}, though its migration is recorded: remove that row from \
                 __diesel_schema_migrations, then run `event-persister migrate`"
            )
        } else {
            format!(
                "{place} has no table {table}: waiting for Prefect's migrations; for a database \
                 without Prefect run `event-persister migrate`"
            )
        }));
    }
    let missing = written
        .iter()
        .find(|name| !of_table.iter().any(|(found, _)| found == *name));
    if let Some(missing) = missing {
        return Err(Failure::Unfit(format!(
            "the table {table} of {place} has no column {missing}: bring the schema up to date, with \
             Prefect's migrations where the database is Prefect's, else with `event-persister migrate`"
        )));
    }
    let unknown = of_table
        .iter()
        .find(|(name, required)| *required && !written.contains(name));
    if let Some((unknown, _)) = unknown {
        return Err(Failure::Unfit(format!(
            "the table {table} of {place} has a column {unknown} that must be written, and this \
             version does not know it: upgrade event-persister"
        )));
    }
    Ok(())
}

/// What stands behind a connection, for an operator.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName, serde::Serialize)]
pub struct ServerInfo {
    /// PostgreSQL's version.
    #[diesel(sql_type = Text)]
    pub server_version: String,
    /// The schema of the table `events`, if there is one.
    #[diesel(sql_type = Nullable<Text>)]
    pub schema: Option<String>,
    /// The revision of Prefect's schema, where Prefect has been.
    #[diesel(sql_type = Nullable<Text>)]
    pub prefect_revision: Option<String>,
}

/// Asks the server what it is.
pub(super) async fn describe(connection: &mut Connection) -> Result<ServerInfo, Failure> {
    connection.begin().await?;
    let found: Found = sql_query(FIND).get_result(&mut connection.pg).await?;
    let revision = if found.alembic {
        "(SELECT max(version_num)::text FROM alembic_version)"
    } else {
        "NULL::text"
    };
    let query = format!(
        "SELECT current_setting('server_version') AS server_version, \
         (SELECT relnamespace::regnamespace::text FROM pg_catalog.pg_class \
         WHERE oid = to_regclass('events')) AS schema, {revision} AS prefect_revision"
    );
    let info = sql_query(query).get_result(&mut connection.pg).await?;
    connection.commit().await?;
    Ok(info)
}
