//! The tables are Prefect's to the letter, and never made where Prefect will make them.

use event_persister_actors::store::EventStore as _;
use event_persister_actors::store::postgres::CreateSchema;
use futures_util::future::join_all;

use super::*;

const PREFECT: &str = include_str!("../../data/prefect-schema-postgres.sql");

/// Prefect's tables as its own migrations leave them, without the statements that set the session up.
fn prefect_tables() -> String {
    let lines = PREFECT.lines().filter(|line| !line.starts_with("--"));
    let sql = lines.collect::<Vec<_>>().join("\n");
    let statements = sql.split(";\n").map(str::trim_start);
    let creating = statements.filter(|statement| {
        statement.starts_with("CREATE ") || statement.starts_with("ALTER TABLE ONLY")
    });
    creating.collect::<Vec<_>>().join(";\n")
}

/// Everything that the catalog knows about the two tables.
const CATALOG: &str = "\
    SELECT 'column ' || attrelid::regclass || ' ' || attnum || ' ' || attname || ' ' || \
        format_type(atttypid, atttypmod) || ' ' || attnotnull || ' ' || attstorage::text || ' ' || \
        coalesce(pg_get_expr(adbin, adrelid), '') AS line \
    FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum \
    WHERE attrelid IN ('events'::regclass, 'event_resources'::regclass) AND attnum > 0 \
    UNION ALL SELECT 'index ' || indexdef FROM pg_indexes \
    WHERE tablename IN ('events', 'event_resources') \
    UNION ALL SELECT 'constraint ' || conname || ' ' || pg_get_constraintdef(oid) \
    FROM pg_constraint WHERE conrelid IN ('events'::regclass, 'event_resources'::regclass) \
    UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger ORDER BY line";

fn own_only(database: &Database) -> PostgresSettings {
    let mut settings = database.settings();
    settings.create_schema = CreateSchema::OwnOnly;
    settings
}

/// The relations and functions in all schemas of the database's users.
fn names(database: &Database) -> Vec<String> {
    let rows = database.execute(
        "SELECT relname FROM pg_class WHERE relnamespace::regnamespace::text \
         NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND relkind IN ('r', 'S', 'v') \
         UNION SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
    );
    rows.into_iter()
        .map(|row| row[0].clone().unwrap())
        .collect()
}

const OWN: [&str; 4] = [
    "__diesel_schema_migrations",
    "event_persister_dead_letters",
    "event_persister_dead_letters_id_seq",
    "event_persister_store_v1",
];

#[actix::test]
async fn the_tables_are_prefects_to_the_letter() {
    let prefect = Server::shared().database();
    prefect.execute(&prefect_tables());
    let (ours, _store) = migrated().await;
    let expected = prefect.execute(CATALOG);
    assert_eq!(expected.len(), 13 + 8 + 15 + 2);
    assert_eq!(ours.execute(CATALOG), expected);
}

#[actix::test]
async fn replicas_that_start_together_do_not_get_in_each_others_way() {
    let database = Server::shared().database();
    let stores: Vec<_> = (0..8).map(|_| store(database.settings())).collect();
    let checked = join_all(stores.iter().map(|store| store.check())).await;
    for checked in checked {
        checked.unwrap();
    }
    let applied = database.value("SELECT count(*) FROM __diesel_schema_migrations");
    assert_eq!(applied, "4");
}

#[actix::test]
async fn waits_for_prefects_tables_and_makes_none_of_them() {
    let database = Server::shared().database();
    let store = store(own_only(&database));
    let batch = of_events([any_event()]);
    let error = store.write(Arc::clone(&batch)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    let message = error.to_string();
    assert!(
        message.contains("waiting for Prefect's migrations"),
        "{message}"
    );
    assert!(message.contains("event-persister migrate"), "{message}");
    assert_eq!(names(&database), OWN);
    // What Prefect does when it starts.
    database.execute(&prefect_tables());
    store.write(batch).await.unwrap();
    assert_eq!(database.value("SELECT count(*) FROM events"), "1");
}

#[actix::test]
async fn leaves_the_tables_to_prefect_where_it_has_been() {
    let database = Server::shared().database();
    database.execute(
        "CREATE TABLE alembic_version (version_num varchar(32)); \
         INSERT INTO alembic_version VALUES ('9e9dadc36797')",
    );
    let store = store(database.settings());
    let error = store.migrate().await.unwrap_err();
    assert!(error.to_string().contains("waiting for Prefect"), "{error}");
    assert!(!names(&database).contains(&"events".to_owned()));
    let info = store.describe().await.unwrap();
    assert_eq!(info.prefect_revision.as_deref(), Some("9e9dadc36797"));
    assert_eq!(info.schema, None);
}

#[actix::test]
async fn migrating_twice_does_nothing() {
    let (_database, store) = migrated().await;
    assert_eq!(store.migrate().await.unwrap(), Vec::<String>::new());
}

#[actix::test]
async fn works_in_the_schema_of_the_search_path() {
    let database = Server::shared().database();
    database.execute("CREATE SCHEMA \"it's prefect\"");
    let mut settings = database.settings();
    settings.search_path = Some("\"it's prefect\"".to_owned());
    let store = store(settings);
    store.migrate().await.unwrap();
    let known = any_event();
    store.write(of_events([known.clone()])).await.unwrap();
    store.write(of_events([known, any_event()])).await.unwrap();
    let count = "SELECT count(*) FROM \"it's prefect\".events";
    assert_eq!(database.value(count), "2");
    let info = store.describe().await.unwrap();
    assert_eq!(info.schema.as_deref(), Some("\"it's prefect\""));
    let elsewhere = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(database.value(elsewhere), "0");
}

#[actix::test]
async fn a_function_that_writes_to_another_schema_is_not_used() {
    // A first trial in one schema, and Prefect's tables in another that comes before it.
    let (database, trial) = migrated().await;
    trial.write(of_events([any_event()])).await.unwrap();
    database.execute("CREATE SCHEMA prefect");
    database.execute(&prefect_tables().replace("public.", "prefect."));
    let mut settings = own_only(&database);
    settings.search_path = Some("prefect, public".to_owned());
    let store = store(settings);
    let error = store.write(of_events([any_event()])).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    let message = error.to_string();
    assert!(
        message.contains("public.event_persister_store_v1"),
        "{message}"
    );
    assert_eq!(database.value("SELECT count(*) FROM public.events"), "1");
    let mut settings = own_only(&database);
    settings.search_path = Some("prefect".to_owned());
    let store = super::store(settings);
    store.write(of_events([any_event()])).await.unwrap();
    assert_eq!(database.value("SELECT count(*) FROM prefect.events"), "1");
}

#[actix::test]
async fn a_role_that_may_only_write_works_on_what_is_there() {
    let (database, _store) = migrated().await;
    let role = format!("{}_writer", database.name);
    database.execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'secret'; \
         REVOKE CREATE ON SCHEMA public FROM PUBLIC; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}; \
         REVOKE ALL ON __diesel_schema_migrations FROM {role}"
    ));
    let url = database
        .url
        .replace("postgres@", &format!("{role}:secret@"));
    let writer = store(PostgresSettings::from_url(&url).unwrap());
    let known = any_event();
    writer.write(of_events([known.clone()])).await.unwrap();
    writer
        .write(of_events([known, with_payload(r#"{"k": "\u0000"}"#)]))
        .await
        .unwrap();
    database.execute(&format!("REVOKE INSERT ON event_resources FROM {role}"));
    let error = writer.write(of_events([any_event()])).await.unwrap_err();
    assert!(
        chain(&error).contains("event_resources"),
        "{}",
        chain(&error)
    );
    assert!(error.to_string().contains("GRANT"), "{error}");
    let error = writer.check().await.unwrap_err().to_string();
    assert!(error.contains("GRANT INSERT ON event_resources"), "{error}");
    drop(writer);
    let drop_role = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    database.execute(&drop_role);
}

#[actix::test]
async fn a_read_only_server_is_told_apart() {
    let (database, store) = migrated().await;
    database.execute(&format!(
        "ALTER DATABASE {} SET default_transaction_read_only = on",
        database.name
    ));
    let error = store.write(of_events([any_event()])).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("only takes reads"), "{error}");
    // Nobody is told to send events before one could be stored.
    let error = self::store(database.settings()).check().await.unwrap_err();
    assert!(error.to_string().contains("only takes reads"), "{error}");
}

#[actix::test]
async fn a_database_that_cannot_hold_every_character_is_refused() {
    let database = Server::shared().database();
    let name = format!("{}_latin1", database.name);
    database.execute(&format!(
        "CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    ));
    let url = database.url.replace(&database.name, &name);
    let mut settings = PostgresSettings::from_url(&url).unwrap();
    settings.create_schema = CreateSchema::Everything;
    let error = store(settings).check().await.unwrap_err().to_string();
    assert!(error.contains("ENCODING 'UTF8'"), "{error}");
    database.execute(&format!("DROP DATABASE {name} WITH (FORCE)"));
}
