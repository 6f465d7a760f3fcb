//! A stream that is written into either database, under a retention that leaves all of it alone.

use std::path::PathBuf;

use super::bus::Bus;
use super::database::Database as File;
use super::postgres::{self, Database};

/// Retention under which only what is meant to be old is old, on whatever day the tests run.
pub(crate) const LONG: (&str, &str) = ("EVENT_PERSISTER_TRIM_RETENTION", "20000d");

/// Where the events end up.
pub(crate) enum Store {
    Postgres(Database),
    Sqlite(PathBuf),
}

impl Store {
    pub(crate) fn execute(&self, sql: &str) {
        match self {
            Self::Postgres(database) => drop(database.execute(sql)),
            Self::Sqlite(path) => File::new(path).execute(sql),
        }
    }
}

pub(crate) struct Case {
    pub(crate) bus: Bus,
    pub(crate) store: Store,
}

impl Case {
    pub(crate) fn postgres() -> Self {
        let database = postgres::Server::shared().database();
        Self::new(Bus::into_postgres(&database), |_| Store::Postgres(database))
    }

    /// PostgreSQL with partitioned tables.
    pub(crate) fn partitioned() -> Self {
        let case = Self::postgres();
        let arguments = ["migrate", "--partition-by", "day"];
        let migrated = case.bus.folder.run_with(&arguments, &case.bus.variables());
        migrated.exits(0);
        case
    }

    pub(crate) fn sqlite() -> Self {
        Self::new(Bus::into_sqlite(), |bus| {
            Store::Sqlite(bus.folder.database_path())
        })
    }

    fn new(mut bus: Bus, store: impl FnOnce(&Bus) -> Store) -> Self {
        bus.set(LONG.0, LONG.1);
        let store = store(&bus);
        Self { bus, store }
    }
}
