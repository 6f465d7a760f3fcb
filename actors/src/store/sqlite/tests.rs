use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use futures_util::FutureExt as _;
use tempfile::TempDir;
use tokio::time::Instant;
use uuid::Uuid;

use super::*;
use crate::clock::SystemClock;
use crate::delivery::{BatchId, Entry};
use crate::event::ReceivedEvent;
use crate::store::operator::{DeadLetter, LetterFilter, StoreOperator as _};
use crate::store::{RefusalReason, Trimmed};
use crate::testing::{EventFixture, event, event_entry, rejected_entry};

fn settings(directory: &TempDir) -> SqliteSettings {
    SqliteSettings {
        busy_timeout: Duration::from_millis(50),
        ..SqliteSettings::new(directory.path().join("events.db"))
    }
}

fn store(settings: &SqliteSettings) -> SqliteStore {
    SqliteStore::new(settings.clone(), Arc::new(SystemClock))
}

/// A connection of someone else's.
fn connect(settings: &SqliteSettings) -> SqliteConnection {
    let mut connection = SqliteConnection::establish(settings.path.to_str().unwrap()).unwrap();
    connection
        .batch_execute("PRAGMA busy_timeout = 10000")
        .unwrap();
    connection
}

/// A migrated store and someone else's connection to it.
async fn store_with_tables(directory: &TempDir) -> (SqliteStore, SqliteConnection) {
    let settings = settings(directory);
    let store = store(&settings);
    store.check().await.unwrap();
    (store, connect(&settings))
}

fn batch(entries: Vec<Arc<Entry>>) -> Arc<Batch> {
    Arc::new(Batch::new(BatchId(0), entries))
}

fn of_events(events: impl IntoIterator<Item = ReceivedEvent>) -> Arc<Batch> {
    batch(events.into_iter().map(event_entry).collect())
}

async fn all_letters(store: &SqliteStore) -> Vec<DeadLetter> {
    let all = LetterFilter::default();
    store
        .list_letters(&all, None, NonZeroUsize::MAX)
        .await
        .unwrap()
}

fn one_event() -> Arc<Batch> {
    of_events([event(Uuid::new_v4())])
}

#[derive(QueryableByName)]
struct OneText {
    #[diesel(sql_type = Text)]
    text: String,
}

#[derive(QueryableByName)]
struct OneNumber {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

fn texts(connection: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let rows: Vec<OneText> = sql_query(sql).load(connection).unwrap();
    rows.into_iter().map(|row| row.text).collect()
}

fn number(connection: &mut SqliteConnection, sql: &str) -> i64 {
    let row: OneNumber = sql_query(sql).get_result(connection).unwrap();
    row.number
}

fn num_events(connection: &mut SqliteConnection) -> i64 {
    number(connection, "SELECT count(*) AS number FROM events")
}

/// The error's message with those of its causes.
fn chain(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    chain(&error)
}

#[actix::test]
async fn the_schema_is_prefects_to_the_letter() {
    let directory = TempDir::new().unwrap();
    let (_store, mut connection) = store_with_tables(&directory).await;
    let made = texts(
        &mut connection,
        "SELECT sql || ';' AS text FROM sqlite_master \
         WHERE tbl_name IN ('events', 'event_resources') AND sql IS NOT NULL ORDER BY rowid",
    );
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/data/prefect-schema-sqlite.sql"
    );
    let prefects = std::fs::read_to_string(path).unwrap();
    assert_eq!(made.join("\n") + "\n", prefects);
}

#[actix::test]
async fn migrations_can_be_reverted_and_run_again() {
    use diesel::migration::MigrationSource as _;
    use diesel_migrations::MigrationHarness as _;

    let directory = TempDir::new().unwrap();
    let store = store(&settings(&directory));
    let first = store.migrate().await.unwrap();
    assert_eq!(first.len(), 2, "{first:?}");
    assert_eq!(store.migrate().await.unwrap(), [""; 0]);
    let mut connection = connect(&settings(&directory));
    for set in [schema::OWN, schema::EVENTS] {
        for migration in set.migrations().unwrap() {
            connection.revert_migration(&migration).unwrap();
        }
    }
    let left = "SELECT name AS text FROM sqlite_master WHERE name NOT LIKE '%_diesel_%' \
                AND name NOT LIKE 'sqlite_%'";
    assert_eq!(texts(&mut connection, left), [""; 0]);
    assert_eq!(store.migrate().await.unwrap(), first);
}

#[actix::test]
async fn makes_only_its_own_tables_in_a_database_of_prefects() {
    let directory = TempDir::new().unwrap();
    let settings = SqliteSettings {
        create_schema: CreateSchema::OwnOnly,
        ..settings(&directory)
    };
    let store = store(&settings);
    let error = unavailable(store.check().await);
    assert!(
        error.contains("waiting for Prefect's migrations"),
        "{error}"
    );
    assert!(!settings.path.exists(), "and does not make the file");

    let mut connection = connect(&settings);
    connection
        .batch_execute("CREATE TABLE alembic_version (version_num TEXT)")
        .unwrap();
    let error = unavailable(store.write(one_event()).await);
    assert!(error.contains("no table events"), "{error}");
    assert!(
        error.contains("waiting for Prefect's migrations"),
        "{error}"
    );
    assert!(error.contains("`event-persister migrate`"), "{error}");
    let tables = "SELECT name AS text FROM sqlite_master WHERE type = 'table' ORDER BY name";
    assert_eq!(
        texts(&mut connection, tables),
        [
            "__diesel_schema_migrations",
            "alembic_version",
            "event_persister_dead_letters",
            "sqlite_sequence"
        ]
    );

    // Prefect's migrations run now.
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/data/prefect-schema-sqlite.sql"
    );
    connection
        .batch_execute(&std::fs::read_to_string(path).unwrap())
        .unwrap();
    let outcomes = store.write(one_event()).await.unwrap();
    assert_eq!(outcomes, [Outcome::Stored]);
}

#[actix::test]
async fn makes_nothing_for_somebody_who_only_looks() {
    let directory = TempDir::new().unwrap();
    let settings = SqliteSettings {
        create_schema: CreateSchema::Nothing,
        ..settings(&directory)
    };
    let mut connection = connect(&settings);
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/data/prefect-schema-sqlite.sql"
    );
    connection
        .batch_execute(&std::fs::read_to_string(path).unwrap())
        .unwrap();
    store(&settings).check().await.unwrap();
    let tables = "SELECT name AS text FROM sqlite_master WHERE type = 'table' ORDER BY name";
    assert_eq!(
        texts(&mut connection, tables),
        ["event_resources", "events"]
    );
}

#[actix::test]
async fn leaves_the_tables_to_prefect_where_it_has_begun() {
    let directory = TempDir::new().unwrap();
    let settings = settings(&directory);
    connect(&settings)
        .batch_execute("CREATE TABLE alembic_version (version_num TEXT)")
        .unwrap();
    let store = store(&settings);
    for error in [
        unavailable(store.check().await),
        unavailable(store.migrate().await),
    ] {
        assert!(
            error.contains("waiting for Prefect's migrations"),
            "{error}"
        );
    }
}

#[actix::test]
async fn names_the_column_that_is_missing_or_unknown() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    store.close().await.unwrap();
    connection
        .batch_execute("ALTER TABLE events RENAME COLUMN follows TO leads")
        .unwrap();
    let error = unavailable(store.check().await);
    assert!(error.contains("events"), "{error}");
    assert!(error.contains("no column follows"), "{error}");
    connection
        .batch_execute(
            "ALTER TABLE events RENAME COLUMN leads TO follows; \
             ALTER TABLE events ADD COLUMN tenant TEXT NOT NULL DEFAULT ''; \
             PRAGMA writable_schema = ON; \
             UPDATE sqlite_master SET sql = replace(sql, ' DEFAULT ''''', '') WHERE name = 'events'; \
             PRAGMA writable_schema = RESET",
        )
        .unwrap();
    let error = unavailable(store.check().await);
    assert!(error.contains("tenant"), "{error}");
    assert!(error.contains("upgrade event-persister"), "{error}");
}

#[actix::test]
async fn says_what_is_wrong_with_the_path() {
    let directory = TempDir::new().unwrap();
    let at = |path: &Path| store(&SqliteSettings::new(path));

    let missing = directory.path().join("none/events.db");
    let error = unavailable(at(&missing).check().await);
    assert!(error.contains("there is no directory"), "{error}");
    assert!(error.contains(missing.to_str().unwrap()), "{error}");

    let error = unavailable(at(directory.path()).check().await);
    assert!(error.contains("is a directory"), "{error}");

    let other = directory.path().join("letter.txt");
    std::fs::write(&other, "Dear Sir or Madam, ".repeat(100)).unwrap();
    let error = unavailable(at(&other).check().await);
    assert!(error.contains("SQLITE_NOTADB"), "{error}");
    assert!(error.contains("not an SQLite database"), "{error}");
    assert!(error.contains(other.to_str().unwrap()), "{error}");

    let error = unavailable(at(Path::new(":memory:")).check().await);
    assert!(error.contains("in memory"), "{error}");
}

#[cfg(target_os = "linux")]
#[actix::test]
async fn says_what_is_needed_where_it_may_not_write() {
    let error = unavailable(store(&SqliteSettings::new("/proc/events.db")).check().await);
    assert!(error.contains("/proc/events.db"), "{error}");
    assert!(error.contains("directory"), "{error}");
}

#[actix::test]
async fn any_file_name_will_do() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("a b?mode=memory#%41ü&.db");
    let store = store(&SqliteSettings::new(&path));
    store.write(one_event()).await.unwrap();
    store.close().await.unwrap();
    assert!(path.exists());
    let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(
        names.len(),
        1,
        "the log is written back when the store is closed"
    );
}

#[actix::test]
async fn commits_are_synced_and_readers_do_not_wait() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    let mode = "SELECT journal_mode AS text FROM pragma_journal_mode";
    assert_eq!(texts(&mut connection, mode), ["wal"]);
    let synchronous = store
        .with_writer("read", |connection| {
            let pragma = "SELECT synchronous AS number FROM pragma_synchronous";
            let row: OneNumber =
                connection.run(|connection| sql_query(pragma).get_result(connection))?;
            Ok(row.number)
        })
        .await;
    assert_eq!(synchronous.unwrap(), 3, "EXTRA");
    connection
        .batch_execute("BEGIN; SELECT count(*) FROM events")
        .unwrap();
    store.write(one_event()).await.unwrap();
    connection.batch_execute("COMMIT").unwrap();
}

/// Another program may have stored them without a sync.
#[actix::test]
async fn a_batch_of_duplicates_is_logged_and_so_synced() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    let batch = one_event();
    store.write(Arc::clone(&batch)).await.unwrap();
    connection.batch_execute("PRAGMA user_version = 7").unwrap();
    let log = || std::fs::read(directory.path().join("events.db-wal")).unwrap();
    let before = log();
    assert_eq!(
        store.write(Arc::clone(&batch)).await.unwrap(),
        [Outcome::Duplicate]
    );
    assert!(log() != before, "nothing was logged");
    let version = "SELECT user_version AS number FROM pragma_user_version";
    assert_eq!(number(&mut connection, version), 7, "it is what it was");
    let before = log();
    store.rehearse(batch).await.unwrap();
    assert!(log() == before, "a rehearsal writes nothing");
}

#[actix::test]
async fn names_who_holds_the_lock_and_goes_on_when_it_is_free() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    connection.batch_execute("BEGIN IMMEDIATE").unwrap();
    let batch = one_event();
    let error = unavailable(store.write(Arc::clone(&batch)).await);
    assert!(error.contains("SQLITE_BUSY"), "{error}");
    assert!(error.contains("events.db"), "{error}");
    if cfg!(target_os = "linux") {
        let holder = format!("process {} (this one", std::process::id());
        assert!(error.contains(&holder), "{error}");
    }
    connection.batch_execute("COMMIT").unwrap();
    assert_eq!(store.write(batch).await.unwrap(), [Outcome::Stored]);
}

#[actix::test]
async fn a_full_disk_is_waited_for() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    store
        .with_writer("fill", |connection| {
            Ok(connection.execute_batch("PRAGMA max_page_count = 1")?)
        })
        .await
        .unwrap();
    let large = EventFixture {
        payload: format!(r#"{{"large":"{}"}}"#, "x".repeat(1 << 20)),
        ..EventFixture::default()
    };
    let batch = of_events([large.build()]);
    let error = unavailable(store.write(Arc::clone(&batch)).await);
    assert!(error.contains("SQLITE_FULL"), "{error}");
    assert!(error.contains("free space"), "{error}");
    assert_eq!(num_events(&mut connection), 0);
    assert_eq!(store.write(batch).await.unwrap(), [Outcome::Stored]);
}

/// The names of the codes of all dead letters, with their reasons.
async fn refusals(store: &SqliteStore) -> BTreeMap<String, String> {
    let letters = all_letters(store).await;
    letters
        .into_iter()
        .map(|letter| (letter.sqlstate.unwrap_or_default(), letter.reason))
        .collect()
}

fn named(name: &str) -> ReceivedEvent {
    EventFixture {
        event: name.to_owned(),
        ..EventFixture::default()
    }
    .build()
}

#[actix::test]
async fn every_way_to_refuse_an_event_leaves_its_neighbours_alone() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    let trigger = |name: &str, when: &str, raise: &str| {
        format!(
            "CREATE TRIGGER t_{name} {when} INSERT ON events WHEN new.event = '{name}' \
             BEGIN SELECT RAISE({raise}); END;"
        )
    };
    let sql = [
        trigger("abort", "AFTER", "ABORT, 'aborted'"),
        trigger("fail", "AFTER", "FAIL, 'failed'"),
        trigger("rollback", "AFTER", "ROLLBACK, 'rolled back'"),
        trigger("ignore", "BEFORE", "IGNORE"),
        "CREATE UNIQUE INDEX u_once ON events (event) WHERE event = 'once'".to_owned(),
    ];
    connection.batch_execute(&sql.concat()).unwrap();
    let names = [
        "a", "abort", "b", "fail", "c", "rollback", "d", "ignore", "e", "once", "f", "once", "g",
    ];
    let outcomes = store.write(of_events(names.map(named))).await.unwrap();
    let stored = "SELECT event AS text FROM events ORDER BY rowid";
    assert_eq!(
        texts(&mut connection, stored),
        ["a", "b", "c", "d", "e", "once", "f", "g"]
    );
    let num_resources = "SELECT count(*) AS number FROM event_resources";
    assert_eq!(number(&mut connection, num_resources), 16);
    // Every second one is refused, but for the first of the two that may be there once.
    for (index, outcome) in outcomes.iter().enumerate() {
        let is_refused = index % 2 == 1 && index != 9;
        let refused = matches!(outcome, Outcome::RefusedByStore(_));
        assert_eq!(refused, is_refused, "{index}");
    }
    let reason = |index: usize| match outcomes[index] {
        Outcome::RefusedByStore(reason) => reason,
        ref other => panic!("{other:?}"),
    };
    use RefusalReason::{Constraint, Raised, Swallowed};
    let expected = [Raised, Raised, Raised, Swallowed, Constraint];
    assert_eq!([1, 3, 5, 7, 11].map(reason), expected);
    let refusals = refusals(&store).await;
    assert!(
        refusals.contains_key("SQLITE_CONSTRAINT_UNIQUE"),
        "{refusals:?}"
    );
    assert!(
        refusals.contains_key("SQLITE_CONSTRAINT_TRIGGER"),
        "{refusals:?}"
    );
    assert!(refusals[""].contains("a trigger"), "{refusals:?}");
    assert_eq!(all_letters(&store).await.len(), 5);
}

#[actix::test]
async fn a_check_that_fails_is_no_duplicate() {
    let directory = TempDir::new().unwrap();
    let settings = settings(&directory);
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/data/prefect-schema-sqlite.sql"
    );
    let checked = std::fs::read_to_string(path).unwrap().replacen(
        "event TEXT NOT NULL",
        "event TEXT NOT NULL CHECK (event <> 'no')",
        1,
    );
    connect(&settings).batch_execute(&checked).unwrap();
    let store = store(&settings);
    let outcomes = store.write(of_events([named("yes"), named("no")])).await;
    assert_eq!(
        outcomes.unwrap(),
        [
            Outcome::Stored,
            Outcome::RefusedByStore(RefusalReason::Constraint)
        ]
    );
    let refusals = refusals(&store).await;
    assert!(
        refusals.contains_key("SQLITE_CONSTRAINT_CHECK"),
        "{refusals:?}"
    );
}

#[actix::test]
async fn a_column_that_must_not_be_null_makes_no_dead_letters() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    // The schema grows while the store is connected.
    connection
        .batch_execute(
            "CREATE TABLE audit (note TEXT NOT NULL); \
             CREATE TRIGGER t AFTER INSERT ON events BEGIN INSERT INTO audit VALUES (NULL); END",
        )
        .unwrap();
    let error = unavailable(store.write(one_event()).await);
    assert!(error.contains("SQLITE_CONSTRAINT_NOTNULL"), "{error}");
    assert!(error.contains("upgrade event-persister"), "{error}");
    assert_eq!(refusals(&store).await, BTreeMap::new());
}

#[actix::test]
async fn a_time_that_cannot_be_written_is_refused() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    let at = |occurred: &str| {
        EventFixture {
            occurred: occurred.parse().unwrap(),
            ..EventFixture::default()
        }
        .build()
    };
    let outcomes = store
        .write(of_events([
            at("0001-01-01T00:00:00Z"),
            at("0000-12-31T23:59:58Z"),
            at("9999-12-31T23:59:59Z"),
            at("9999-12-31T23:59:58Z"),
        ]))
        .await
        .unwrap();
    let refused = Outcome::RefusedByStore(RefusalReason::InvalidData);
    use Outcome::Stored;
    assert_eq!(outcomes, [Stored, refused.clone(), refused, Stored]);
    let letters = all_letters(&store).await;
    let reasons: Vec<_> = letters.iter().map(|letter| &*letter.reason).collect();
    assert!(reasons.contains(&"occurred: the year is outside 0001 to 9999"));
    assert!(reasons.contains(&"received: the year is outside 0001 to 9999"));
    let first = "SELECT min(occurred) AS text FROM events";
    assert_eq!(
        texts(&mut connection, first),
        ["0001-01-01 00:00:00.000000"]
    );
}

#[actix::test]
async fn rows_hold_prefects_texts() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    let id = Uuid::from_u128(0xABCD);
    let written = EventFixture {
        id,
        event: "née".to_owned(),
        occurred: "2024-01-02T03:04:05.1Z".parse().unwrap(),
        follows: Some(Uuid::from_u128(1)),
        labels: vec![("ü".to_owned(), "\"".to_owned())],
        payload: r#"{"b":[1.50,1],"a":{},"b":"\u00E9é"}"#.to_owned(),
        ..EventFixture::default()
    };
    store.write(of_events([written.build()])).await.unwrap();
    let columns = "SELECT occurred || '|' || received || '|' || event || '|' || resource_id || '|' || \
                   resource || '|' || related || '|' || related_resource_ids || '|' || payload || \
                   '|' || follows || '|' || id AS text FROM events";
    assert_eq!(
        texts(&mut connection, columns),
        [
            r#"2024-01-02 03:04:05.100000|2024-01-02 03:04:06.100000|née|test.resource|{"prefect.resource.id": "test.resource", "\u00fc": "\""}|[{"prefect.resource.id": "test.related", "prefect.resource.role": "neighbour"}]|["test.related"]|{"b": "\u00e9\u00e9", "a": {}}|00000000-0000-0000-0000-000000000001|00000000-0000-0000-0000-00000000abcd"#
        ]
    );
    let columns = "SELECT occurred || '|' || resource_id || '|' || resource_role || '|' || resource \
                   || '|' || event_id AS text FROM event_resources ORDER BY rowid";
    assert_eq!(
        texts(&mut connection, columns),
        [
            r#"2024-01-02 03:04:05.100000|test.resource||{"\u00fc": "\""}|00000000-0000-0000-0000-00000000abcd"#,
            "2024-01-02 03:04:05.100000|test.related|neighbour|{}|00000000-0000-0000-0000-00000000abcd",
        ]
    );
    let times = "SELECT count(*) AS number FROM events JOIN event_resources ON event_id = events.id \
                 WHERE recorded = events.created AND recorded = events.updated \
                 AND recorded = event_resources.created AND recorded = event_resources.updated \
                 AND recorded GLOB '????-??-?? ??:??:??.??????' AND length(event_resources.id) = 36";
    assert_eq!(number(&mut connection, times), 2);
}

#[actix::test]
async fn a_dropped_write_is_whole_and_the_next_one_works() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    let batch = of_events((0..50).map(|_| event(Uuid::new_v4())));
    for _ in 0..20 {
        // Polled once, so that it has begun.
        let mut write = store.write(Arc::clone(&batch));
        assert!((&mut write).now_or_never().is_none());
        drop(write);
        let num = num_events(&mut connection);
        assert!(num == 0 || num == 50, "{num} of 50");
    }
    let outcomes = store.write(batch).await.unwrap();
    assert!(
        outcomes
            .iter()
            .all(|outcome| *outcome == Outcome::Duplicate)
    );
    assert_eq!(num_events(&mut connection), 50);
}

/// A clock that can be broken.
struct BrokenClock(std::sync::atomic::AtomicBool);

impl Clock for BrokenClock {
    fn now(&self) -> DateTime<Utc> {
        assert!(!self.0.load(std::sync::atomic::Ordering::Relaxed));
        SystemClock.now()
    }
}

#[actix::test]
async fn a_panic_is_an_error_and_the_next_write_works() {
    let directory = TempDir::new().unwrap();
    let clock = Arc::new(BrokenClock(true.into()));
    let store = SqliteStore::new(settings(&directory), Arc::clone(&clock) as Arc<dyn Clock>);
    let error = store.write(one_event()).await.unwrap_err();
    assert!(
        matches!(error, StoreError::OutcomeUnknown { .. }),
        "{error:?}"
    );
    clock.0.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(store.write(one_event()).await.unwrap(), [Outcome::Stored]);
}

#[actix::test]
async fn acknowledges_nothing_that_is_in_no_file() {
    let directory = TempDir::new().unwrap();
    let settings = settings(&directory);
    let moved = SqliteSettings {
        path: directory.path().join("moved.db"),
        ..settings.clone()
    };
    let first = store(&settings);
    first.write(one_event()).await.unwrap();
    std::fs::rename(&settings.path, &moved.path).unwrap();
    for _ in 0..2 {
        let error = unavailable(first.write(one_event()).await);
        assert!(error.contains("put it back"), "{error}");
    }
    assert!(!settings.path.exists(), "made while the old one is in use");
    // What was acknowledged is in the file, not in a log that stands somewhere else.
    assert_eq!(num_events(&mut connect(&moved)), 1);

    std::fs::rename(&moved.path, &settings.path).unwrap();
    first.write(one_event()).await.unwrap();
    assert_eq!(num_events(&mut connect(&settings)), 2);

    // Another process goes on with what stands there then.
    std::fs::rename(&settings.path, &moved.path).unwrap();
    unavailable(first.write(one_event()).await);
    first.close().await.unwrap();
    store(&settings).write(one_event()).await.unwrap();
    assert_eq!(num_events(&mut connect(&settings)), 1);
    assert_eq!(num_events(&mut connect(&moved)), 2);
}

#[actix::test]
async fn a_commit_to_a_file_that_was_just_removed_is_not_told_as_done() {
    let directory = TempDir::new().unwrap();
    let settings = settings(&directory);
    let first = store(&settings);
    first.check().await.unwrap();
    let path = settings.path.clone();
    let removed = first.with_writer("write to", move |_| {
        std::fs::remove_file(path).unwrap();
        Ok(())
    });
    let error = removed.await.unwrap_err();
    assert!(
        matches!(error, StoreError::OutcomeUnknown { .. }),
        "{error:?}"
    );
    let error = unavailable(first.write(one_event()).await);
    assert!(error.contains("start this process again"), "{error}");
    first.close().await.unwrap();
    store(&settings).write(one_event()).await.unwrap();
    assert_eq!(num_events(&mut connect(&settings)), 1);
}

#[actix::test]
async fn refuses_to_trim_up_to_a_moment_that_has_not_come() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    store.write(one_event()).await.unwrap();
    let cutoffs = Cutoffs {
        default: SystemClock.now() + TimeDelta::days(1),
        overrides: BTreeMap::new(),
    };
    let error = unavailable(store.trim(&cutoffs, NonZeroUsize::MIN).await);
    assert!(error.contains("in the future"), "{error}");
    assert_eq!(num_events(&mut connection), 1);
}

/// Otherwise the service is not ready because it trims while somebody else writes.
#[actix::test]
async fn whoever_asks_how_the_store_is_does_not_wait_for_a_trimmer_that_waits() {
    let directory = TempDir::new().unwrap();
    let settings = SqliteSettings {
        busy_timeout: Duration::from_secs(60),
        ..settings(&directory)
    };
    let open = SqliteStore::open_store(settings.clone(), Arc::new(SystemClock));
    let (trimmer, probe) = (open(), open());
    probe.write(one_event()).await.unwrap();
    let cutoffs = Cutoffs {
        default: SystemClock.now(),
        overrides: [].into(),
    };
    let mut other = connect(&settings);
    other.batch_execute("BEGIN IMMEDIATE").unwrap();
    let mut step = trimmer.trim(&cutoffs, NonZeroUsize::MAX);
    tokio::select! {
        // Asked first, so it has its turn before the other.
        biased;
        step = &mut step => panic!("it did not wait for the lock: {step:?}"),
        checked = probe.check() => checked.unwrap(),
    }
    other.batch_execute("ROLLBACK").unwrap();
    let step = step.await.unwrap();
    assert!(matches!(step, TrimStep::Removed(removed) if removed.rows.events == 1));
}

#[actix::test]
async fn a_trimmer_that_waits_in_vain_names_who_holds_the_lock() {
    let directory = TempDir::new().unwrap();
    let settings = SqliteSettings {
        busy_timeout: Duration::from_millis(1200),
        ..settings(&directory)
    };
    let store = store(&settings);
    store.write(one_event()).await.unwrap();
    let cutoffs = Cutoffs {
        default: SystemClock.now(),
        overrides: [].into(),
    };
    let mut other = connect(&settings);
    other.batch_execute("BEGIN IMMEDIATE").unwrap();
    let started = Instant::now();
    let error = unavailable(store.trim(&cutoffs, NonZeroUsize::MAX).await);
    assert!(started.elapsed() >= settings.busy_timeout - Duration::from_millis(500));
    assert!(error.contains("holds the write lock"), "{error}");
    assert!(error.contains("for 1.2 s"), "{error}");
    other.batch_execute("ROLLBACK").unwrap();
    let step = store.trim(&cutoffs, NonZeroUsize::MAX).await.unwrap();
    assert!(matches!(step, TrimStep::Removed(_)));
}

#[actix::test]
async fn rows_that_a_deletion_leaves_are_an_error_and_nothing_is_halved() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    store.write(one_event()).await.unwrap();
    let cutoffs = Cutoffs {
        default: SystemClock.now(),
        overrides: BTreeMap::new(),
    };
    let keep = async |connection: &mut SqliteConnection, table: &str| {
        let trigger =
            format!("CREATE TRIGGER keep BEFORE DELETE ON {table} BEGIN SELECT RAISE(IGNORE); END");
        connection.batch_execute(&trigger).unwrap();
        let error = unavailable(store.trim(&cutoffs, NonZeroUsize::MAX).await);
        assert!(error.contains("does not leave the tables"), "{error}");
        connection.batch_execute("DROP TRIGGER keep").unwrap();
    };
    for table in ["events", "event_resources"] {
        keep(&mut connection, table).await;
        assert_eq!(num_events(&mut connection), 1);
    }
    connection.batch_execute("DELETE FROM events").unwrap();
    keep(&mut connection, "event_resources").await;
}

#[actix::test]
async fn trims_resources_that_have_no_event() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    let old = || EventFixture {
        occurred: SystemClock.now() - TimeDelta::days(9),
        ..EventFixture::default()
    };
    let (halves, whole) = ((0..5).map(|_| old().build()), old());
    let kept = EventFixture {
        event: "long".to_owned(),
        occurred: SystemClock.now() - TimeDelta::days(8),
        ..EventFixture::default()
    };
    store.write(of_events(halves)).await.unwrap();
    connection.batch_execute("DELETE FROM events").unwrap();
    store
        .write(of_events([
            whole.build(),
            kept.build(),
            event(Uuid::new_v4()),
        ]))
        .await
        .unwrap();
    let day = |days| SystemClock.now() - TimeDelta::days(days);
    let cutoffs = Cutoffs {
        default: day(7),
        overrides: [("long".to_owned(), day(8) - TimeDelta::hours(1))].into(),
    };
    // The default fixture's event is years old.
    let expected = Trimmed {
        events: 2,
        resources: 14,
    };
    assert_eq!(store.count_expired(&cutoffs).await.unwrap(), expected);
    let mut total = Trimmed::default();
    let max = NonZeroUsize::new(4).unwrap();
    while let TrimStep::Removed(removed) = store.trim(&cutoffs, max).await.unwrap() {
        assert!(removed.rows.events + removed.rows.resources > 0);
        total += removed.rows;
    }
    assert_eq!(total, expected);
    assert_eq!(num_events(&mut connection), 1);
    let num_resources = "SELECT count(*) AS number FROM event_resources";
    assert_eq!(number(&mut connection, num_resources), 2);
}

/// Numbers sort before all texts: by their order alone they would be older than anything that is kept.
#[actix::test]
async fn a_time_that_is_a_number_is_not_expired() {
    let directory = TempDir::new().unwrap();
    let (store, mut connection) = store_with_tables(&directory).await;
    let named = |name: &str| EventFixture {
        event: name.to_owned(),
        ..EventFixture::default()
    };
    let half = named("half").build();
    let rest = ["short", "plain", "plain"].map(|name| named(name).build());
    store
        .write(of_events(rest.into_iter().chain([half])))
        .await
        .unwrap();
    // The last one of the plain ones keeps its text, and goes.
    connection
        .batch_execute(
            "DELETE FROM events WHERE event = 'half'; \
             CREATE TEMP TABLE last AS SELECT max(id) AS id FROM events WHERE event = 'plain'; \
             UPDATE events SET occurred = 1767225600.5 WHERE id NOT IN (SELECT id FROM last); \
             UPDATE event_resources SET occurred = 1767225600 WHERE event_id NOT IN (SELECT id FROM last)",
        )
        .unwrap();
    let cutoffs = Cutoffs {
        default: SystemClock.now(),
        overrides: [("short".to_owned(), SystemClock.now())].into(),
    };
    let expected = Trimmed {
        events: 1,
        resources: 2,
    };
    assert_eq!(store.count_expired(&cutoffs).await.unwrap(), expected);
    let mut total = Trimmed::default();
    while let TrimStep::Removed(removed) = store.trim(&cutoffs, NonZeroUsize::MAX).await.unwrap() {
        total += removed.rows;
    }
    assert_eq!(total, expected);
    assert_eq!(num_events(&mut connection), 2);
}

#[actix::test]
async fn a_trimmer_sees_that_other_processes_write() {
    let directory = TempDir::new().unwrap();
    let (writer, mut other) = store_with_tables(&directory).await;
    let open = SqliteStore::open_store(settings(&directory), Arc::new(SystemClock));
    let (trimmer, beside) = (open(), open());
    let write = async |store: &dyn EventStore, num| {
        let events = (0..num).map(|_| event(Uuid::new_v4()));
        store.write(of_events(events)).await.unwrap();
    };
    write(&writer, 10).await;
    let cutoffs = Cutoffs {
        default: SystemClock.now(),
        overrides: [].into(),
    };
    let others_write = async || {
        let step = trimmer.trim(&cutoffs, NonZeroUsize::MIN).await.unwrap();
        match step {
            TrimStep::Removed(removed) => removed.others_write,
            step => panic!("{step:?}"),
        }
    };
    assert!(others_write().await, "nothing is known yet");
    assert!(!others_write().await);
    write(&*beside, 2).await;
    assert!(!others_write().await, "one of its own");
    for _ in 0..2 {
        other.batch_execute("PRAGMA user_version = 1").unwrap();
        assert!(others_write().await);
    }
    assert!(!others_write().await);
}

#[test]
fn many_may_start_together_on_a_new_file() {
    let directory = TempDir::new().unwrap();
    let settings = SqliteSettings::new(directory.path().join("events.db"));
    let start = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                actix_rt::System::new().block_on(async {
                    let store = store(&settings);
                    assert_eq!(store.write(one_event()).await.unwrap(), [Outcome::Stored]);
                });
            });
        }
    });
    assert_eq!(num_events(&mut connect(&settings)), 8);
}

#[actix::test]
async fn letters_of_a_database_without_them_are_none() {
    let directory = TempDir::new().unwrap();
    let settings = settings(&directory);
    let store = store(&settings);
    let error = unavailable(store.open_letters(&[1]).await);
    assert!(error.contains("there is no SQLite database"), "{error}");
    connect(&settings)
        .batch_execute("CREATE TABLE t (a)")
        .unwrap();
    assert_eq!(all_letters(&store).await, []);
    assert_eq!(store.open_letters(&[1]).await.unwrap(), []);
}

#[actix::test]
async fn letters_are_numbered_in_the_order_of_their_keys() {
    let directory = TempDir::new().unwrap();
    let (store, _connection) = store_with_tables(&directory).await;
    let letters = ["3", "1", "2"].map(|position| rejected_entry(position, b"{", "not JSON"));
    store.write(batch(letters.to_vec())).await.unwrap();
    let letters = all_letters(&store).await;
    let positions: Vec<_> = letters.iter().map(|letter| &*letter.position).collect();
    assert_eq!(positions, ["3", "2", "1"], "the newest first");
}

const CHILD: &str = "store::sqlite::tests::writes_until_it_is_killed";
const CHILD_FILE: &str = "EVENT_PERSISTER_TEST_FILE";
const PER_BATCH: i64 = 20;

/// This test binary again, as a process that writes batches to the file.
fn spawn_child(settings: &SqliteSettings) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", CHILD])
        .env(CHILD_FILE, &settings.path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[actix::test]
#[ignore = "other tests run it as a process of its own"]
async fn writes_until_it_is_killed() {
    #[expect(
        clippy::disallowed_methods,
        reason = "set by the test that starts this process"
    )]
    let Some(path) = std::env::var_os(CHILD_FILE) else {
        return;
    };
    let store = store(&SqliteSettings::new(path));
    let parent = std::os::unix::process::parent_id();
    // A test that fails leaves no writers behind.
    while std::os::unix::process::parent_id() == parent {
        let batch = of_events((0..PER_BATCH).map(|_| event(Uuid::new_v4())));
        store.write(batch).await.unwrap();
    }
}

/// Several processes start together on a new file, and are killed in the middle of their work.
#[test]
fn a_killed_process_leaves_nothing_half() {
    let directory = TempDir::new().unwrap();
    let settings = SqliteSettings::new(directory.path().join("events.db"));
    for round in 1..=3 {
        let mut children: Vec<_> = (0..3).map(|_| spawn_child(&settings)).collect();
        // Until they are in the middle of it.
        loop {
            for child in &mut children {
                assert!(
                    child.try_wait().unwrap().is_none(),
                    "a writer ended by itself"
                );
            }
            if settings.path.exists() {
                let mut connection = connect(&settings);
                let made = "SELECT count(*) AS number FROM sqlite_master WHERE name = 'events'";
                if number(&mut connection, made) == 1
                    && num_events(&mut connection) > round * 20 * PER_BATCH
                {
                    break;
                }
            }
            std::thread::yield_now();
        }
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let mut connection = connect(&settings);
        assert_eq!(num_events(&mut connection) % PER_BATCH, 0);
        let halves = "SELECT count(*) AS number FROM events WHERE 2 <> \
                      (SELECT count(*) FROM event_resources WHERE event_id = events.id)";
        assert_eq!(number(&mut connection, halves), 0);
        let orphans = "SELECT count(*) AS number FROM event_resources \
                       WHERE event_id NOT IN (SELECT id FROM events)";
        assert_eq!(number(&mut connection, orphans), 0);
    }
}
