//! SQLite, in a file of its own for each test.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Text;
use event_persister_actors::clock::SystemClock;
use event_persister_actors::store::OpenStore;
use event_persister_actors::store::operator::StoreOperator;
use event_persister_actors::store::sqlite::{SqliteSettings, SqliteStore};
use tempfile::TempDir;
use uuid::Uuid;

use super::{Fixture, store_contract_tests};

struct SqliteFixture {
    directory: TempDir,
    num_refused: Cell<usize>,
}

impl SqliteFixture {
    async fn new() -> Self {
        let fixture = Self {
            directory: TempDir::new().unwrap(),
            num_refused: Cell::new(0),
        };
        let store = SqliteStore::new(fixture.settings(), Arc::new(SystemClock));
        store.migrate().await.unwrap();
        fixture
    }

    fn settings(&self) -> SqliteSettings {
        SqliteSettings::new(self.directory.path().join("events.db"))
    }

    /// Another connection, which sees only what is committed.
    fn connect(&self) -> SqliteConnection {
        let path = self.settings().path;
        let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        connection
            .batch_execute("PRAGMA busy_timeout = 10000")
            .unwrap();
        connection
    }
}

impl Fixture for SqliteFixture {
    fn open_store(&self) -> OpenStore {
        SqliteStore::open_store(self.settings(), Arc::new(SystemClock))
    }

    fn operator(&self) -> Arc<dyn StoreOperator> {
        Arc::new(SqliteStore::new(self.settings(), Arc::new(SystemClock)))
    }

    fn refuse(&self, id: Uuid) {
        // Every other one is refused only when half of it is in.
        self.num_refused.set(self.num_refused.get() + 1);
        let table = if self.num_refused.get() % 2 == 1 {
            "events WHEN new.id"
        } else {
            "event_resources WHEN new.event_id"
        };
        let trigger = format!(
            "CREATE TRIGGER refuse_{} AFTER INSERT ON {table} = '{id}' \
             BEGIN SELECT RAISE(ABORT, 'the test refuses this event'); END",
            id.simple()
        );
        self.connect().batch_execute(&trigger).unwrap();
    }

    fn set_broken(&self, broken: bool) {
        let (from, to) = if broken {
            ("event_resources", "hidden")
        } else {
            ("hidden", "event_resources")
        };
        let rename = format!("ALTER TABLE {from} RENAME TO {to}");
        self.connect().batch_execute(&rename).unwrap();
    }

    fn rows(&self) -> BTreeMap<Uuid, Vec<(String, String)>> {
        let mut connection = self.connect();
        let events: Vec<EventRow> = sql_query("SELECT id FROM events")
            .load(&mut connection)
            .unwrap();
        let resources: Vec<ResourceRow> =
            sql_query("SELECT event_id, resource_id, resource_role FROM event_resources")
                .load(&mut connection)
                .unwrap();
        let mut rows: BTreeMap<Uuid, Vec<_>> = events
            .into_iter()
            .map(|row| (row.id.parse().unwrap(), Vec::new()))
            .collect();
        for row in resources {
            rows.get_mut(&row.event_id.parse().unwrap())
                .expect("no resource without its event")
                .push((row.resource_id, row.resource_role));
        }
        rows.values_mut()
            .for_each(|resources| resources.sort_unstable());
        rows
    }
}

#[derive(QueryableByName)]
struct EventRow {
    #[diesel(sql_type = Text)]
    id: String,
}

#[derive(QueryableByName)]
struct ResourceRow {
    #[diesel(sql_type = Text)]
    event_id: String,
    #[diesel(sql_type = Text)]
    resource_id: String,
    #[diesel(sql_type = Text)]
    resource_role: String,
}

store_contract_tests!(SqliteFixture::new().await);
