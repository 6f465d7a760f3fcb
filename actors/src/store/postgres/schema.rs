//! The tables: which there are, which may be made here, and whether they are what is written.

use std::collections::BTreeSet;

use diesel::Connection as _;
use diesel::connection::SimpleConnection as _;
use diesel::migration::{Migration, MigrationConnection as _};
use diesel::pg::Pg;
use diesel::prelude::QueryResult;
use diesel::sql_query;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};

use super::conditions::{self, FIND, Found};
use super::connection::Connection;
use super::failure::Failure;
use super::partitions::for_partitions;
use super::settings::Place;
use crate::store::CreateSchema;
use crate::store::tables::{migrations, query_error, unfit};

/// Prefect's tables, to the letter. Never run on a database that is or may become Prefect's.
pub(super) const EVENTS: EmbeddedMigrations = embed_migrations!("migrations/postgres/events");
pub(super) const OWN: EmbeddedMigrations = embed_migrations!("migrations/postgres/own");
/// The tables of an archive, where one is configured.
pub(super) const ARCHIVE: EmbeddedMigrations = embed_migrations!("migrations/postgres/archive");

/// The same as text, with the note that it was run: diesel's migrations would need a connection of their own.
#[cfg(feature = "archive")]
pub(super) const MAKE_ARCHIVES: &str = concat!(
    include_str!("../../../migrations/postgres/archive/00000000000201_create_archives/up.sql"),
    "INSERT INTO __diesel_schema_migrations (version) VALUES ('00000000000201') ON CONFLICT DO NOTHING"
);

/// Held while the schema is changed, so that replicas may start together. Any number that no one else
/// uses in the same database.
pub(super) const SCHEMA_LOCK: i64 = 0x6576_656e_7470_7273;

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

impl Found {
    fn wants_events(&self, create: CreateSchema) -> bool {
        create == CreateSchema::Everything && !self.events && !self.alembic
    }

    fn wants_own(&self, create: CreateSchema) -> bool {
        create != CreateSchema::Nothing && (!self.has_own() || self.outdated || self.unfit)
    }
}

/// Makes what is missing and may be made, then checks the whole; returns the names of the migrations
/// that were run.
///
/// Tables that are there are not touched, so that a role without CREATE can run on them.
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
    let migrated = tokio::task::spawn_blocking(move || {
        let mut wrapper = Wrapper::from(connection.pg);
        let run = wrapper.transaction(|wrapper| migrate(wrapper, &connection.configure, create))?;
        let pg = wrapper.into_inner();
        Ok((Connection { pg, ..connection }, run))
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
    let mut wanted = Vec::<Box<dyn Migration<Pg>>>::new();
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
    if found.has_plan && create != CreateSchema::Nothing {
        fit_function(wrapper)?;
    }
    Ok(run)
}

#[derive(diesel::QueryableByName)]
struct Definition {
    #[diesel(sql_type = diesel::sql_types::Text)]
    text: String,
}

/// The store function with all of its settings, and neither more nor less than one.
const DEFINITION: &str = "SELECT pg_get_functiondef(oid) AS text FROM pg_catalog.pg_proc \
    WHERE oid = to_regproc('event_persister_store_v1')::oid AND strpos(prosrc, 'times_moved') = 0";

/// Makes the store function one for partitioned tables, if it is not. What is not ours is left as it is:
/// the look that follows tells of it.
fn fit_function(wrapper: &mut Wrapper) -> QueryResult<()> {
    let plain: Vec<Definition> = diesel::RunQueryDsl::load(sql_query(DEFINITION), wrapper)?;
    for definition in plain {
        if let Some(changed) = for_partitions(&definition.text) {
            wrapper.batch_execute(&changed)?;
        }
    }
    Ok(())
}

pub(super) async fn check(
    connection: &mut Connection,
    create: CreateSchema,
    place: &Place,
) -> Result<(), Failure> {
    connection.begin().await?;
    let looked = conditions::look(connection, create, place).await?;
    if let Some(what) = unfit(looked.faults, create, conditions::SCHEMA) {
        return Err(Failure::Unfit(what));
    }
    connection.commit().await
}
