//! The database as another process sees it: through connections that only read, and one that locks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection as _;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::{Connection as _, QueryableByName, RunQueryDsl as _, SqliteConnection, sql_query};

use super::binary::Folder;

/// One row: each column's storage class and text.
pub(crate) type Row = BTreeMap<String, (String, Option<String>)>;

/// The columns of `events` that come from the event.
pub(crate) const EVENT_COLUMNS: [&str; 10] = [
    "event",
    "follows",
    "id",
    "occurred",
    "payload",
    "received",
    "related",
    "related_resource_ids",
    "resource",
    "resource_id",
];

/// The columns of `event_resources` that come from the event.
pub(crate) const RESOURCE_COLUMNS: [&str; 5] = [
    "event_id",
    "occurred",
    "resource",
    "resource_id",
    "resource_role",
];

/// A database file.
#[derive(Clone)]
pub(crate) struct Database(PathBuf);

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = Text)]
    id: String,
}

#[derive(QueryableByName)]
struct Cell {
    #[diesel(sql_type = BigInt)]
    number: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Nullable<Text>)]
    value: Option<String>,
}

impl Database {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn read_only(&self) -> SqliteConnection {
        let url = format!("file:{}?mode=ro", self.0.display());
        let mut connection = SqliteConnection::establish(&url).unwrap();
        connection
            .batch_execute("PRAGMA busy_timeout = 20000")
            .unwrap();
        connection
    }

    /// Changes it as an operator would.
    pub(crate) fn execute(&self, sql: &str) {
        let mut connection = SqliteConnection::establish(&self.0.to_string_lossy()).unwrap();
        let sql = format!("PRAGMA busy_timeout = 20000; {sql}");
        connection.batch_execute(&sql).unwrap();
    }

    /// The number that a query gives in its column `number`.
    pub(crate) fn number(&self, query: &str) -> i64 {
        let found: Number = sql_query(query).get_result(&mut self.read_only()).unwrap();
        found.number
    }

    /// How many events there are; none while the tables are not there.
    pub(crate) fn num_events(&self) -> usize {
        if !self.0.exists() {
            return 0;
        }
        let tables = "SELECT count(*) AS number FROM sqlite_master WHERE name = 'events'";
        if self.number(tables) == 0 {
            return 0;
        }
        let number = self.number("SELECT count(*) AS number FROM events");
        usize::try_from(number).unwrap()
    }

    /// The ids of all events, of which each must have all of its resources, and no resource may be
    /// without its event.
    pub(crate) fn complete_events(&self) -> BTreeSet<String> {
        let mut connection = self.read_only();
        // One snapshot, so that a service at work between two statements is no fault.
        connection
            .transaction::<_, diesel::result::Error, _>(|connection| {
                let broken: Vec<Id> = sql_query(
                    "SELECT id FROM events WHERE json_array_length(related) + 1 != \
                     (SELECT count(*) FROM event_resources WHERE event_id = events.id) \
                     UNION ALL SELECT event_id FROM event_resources \
                     WHERE event_id NOT IN (SELECT id FROM events)",
                )
                .load(connection)?;
                let broken: Vec<String> = broken.into_iter().map(|broken| broken.id).collect();
                assert!(broken.is_empty(), "half-written: {broken:?}");
                let ids: Vec<Id> = sql_query("SELECT id FROM events").load(connection)?;
                Ok(ids.into_iter().map(|id| id.id).collect())
            })
            .unwrap()
    }

    /// All of these must be there, with all of their resources.
    #[track_caller]
    pub(crate) fn has_all<'a>(&self, ids: impl IntoIterator<Item = &'a String>) {
        let stored = self.complete_events();
        let missing: Vec<&String> = ids.into_iter().filter(|id| !stored.contains(*id)).collect();
        assert!(missing.is_empty(), "missing: {missing:?}");
    }

    /// The rows of a table, as untouched text.
    pub(crate) fn rows(&self, table: &str, columns: &[&str]) -> Vec<Row> {
        let selects: Vec<String> = columns
            .iter()
            .map(|column| {
                format!(
                    "SELECT rowid AS number, '{column}' AS name, typeof({column}) AS kind, \
                     {column} AS value FROM {table}"
                )
            })
            .collect();
        let query = selects.join(" UNION ALL ");
        let cells: Vec<Cell> = sql_query(query).load(&mut self.read_only()).unwrap();
        let mut rows: BTreeMap<i64, Row> = BTreeMap::new();
        for cell in cells {
            let row = rows.entry(cell.number).or_default();
            row.insert(cell.name, (cell.kind, cell.value));
        }
        rows.into_values().collect()
    }

    /// Keeps everybody else from writing, as another program would that writes for long.
    pub(crate) fn lock(&self) -> Lock {
        let path = self.0.display().to_string();
        let mut connection = SqliteConnection::establish(&path).unwrap();
        connection
            .batch_execute("PRAGMA busy_timeout = 20000; BEGIN IMMEDIATE")
            .unwrap();
        Lock(connection)
    }
}

impl Folder {
    /// The database that the binary has made here, unless somebody says otherwise.
    pub(crate) fn database(&self) -> Database {
        Database::new(&self.database_path())
    }
}

/// The write lock; given back when it is dropped.
pub(crate) struct Lock(SqliteConnection);

impl Lock {
    pub(crate) fn release(mut self) {
        self.0.batch_execute("ROLLBACK").unwrap();
    }
}
