//! PostgreSQL, in a database of its own for each test.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use event_persister_actors::clock::SystemClock;
use event_persister_actors::store::operator::StoreOperator;
use event_persister_actors::store::postgres::PostgresStore;
use event_persister_actors::store::{OpenStore, Period};
use uuid::Uuid;

use super::{Fixture, store_contract_tests};
use crate::support::postgres::{Database, Server};

pub(super) struct PostgresFixture {
    database: Database,
    num_refused: Cell<usize>,
}

impl PostgresFixture {
    async fn new() -> Self {
        let fixture = Self {
            database: Server::shared().database(),
            num_refused: Cell::new(0),
        };
        let store = PostgresStore::new(fixture.database.settings(), Arc::new(SystemClock));
        store.migrate().await.unwrap();
        fixture
    }

    pub(super) async fn partitioned() -> Self {
        let fixture = Self::new().await;
        let partitioned = fixture.operator().partition(Period::Day).await;
        partitioned.unwrap();
        fixture
    }
}

impl Fixture for PostgresFixture {
    fn open_store(&self) -> OpenStore {
        PostgresStore::open_store(self.database.settings(), Arc::new(SystemClock))
    }

    fn operator(&self) -> Arc<dyn StoreOperator> {
        let settings = self.database.settings();
        Arc::new(PostgresStore::new(settings, Arc::new(SystemClock)))
    }

    fn refuse(&self, id: Uuid) {
        // Every other one is refused only when half of it is in.
        self.num_refused.set(self.num_refused.get() + 1);
        let (table, column) = if self.num_refused.get() % 2 == 1 {
            ("events", "id")
        } else {
            ("event_resources", "event_id")
        };
        let name = format!("refuse_{}", id.simple());
        self.database.execute(&format!(
            "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ \
             BEGIN RAISE EXCEPTION 'the test refuses this event'; END $$; \
             CREATE TRIGGER {name} BEFORE INSERT ON {table} FOR EACH ROW \
             WHEN (NEW.{column} = '{id}') EXECUTE FUNCTION {name}()"
        ));
    }

    fn set_broken(&self, broken: bool) {
        let (from, to) = if broken {
            ("event_resources", "hidden")
        } else {
            ("hidden", "event_resources")
        };
        self.database
            .execute(&format!("ALTER TABLE {from} RENAME TO {to}"));
    }

    fn rows(&self) -> BTreeMap<Uuid, Vec<(String, String)>> {
        let text = |value: &Option<String>| value.clone().unwrap();
        let events = self.database.execute("SELECT id FROM events");
        let mut rows: BTreeMap<Uuid, Vec<_>> = events
            .iter()
            .map(|row| (text(&row[0]).parse().unwrap(), Vec::new()))
            .collect();
        let resources = self
            .database
            .execute("SELECT event_id, resource_id, resource_role FROM event_resources");
        for row in resources {
            rows.get_mut(&text(&row[0]).parse().unwrap())
                .expect("no resource without its event")
                .push((text(&row[1]), text(&row[2])));
        }
        rows.values_mut()
            .for_each(|resources| resources.sort_unstable());
        rows
    }
}

store_contract_tests!(PostgresFixture::new().await);
