//! SQLite, in a file of its own.

use std::sync::Arc;

use event_persister_actors::clock::SystemClock;
use event_persister_actors::store::sqlite::{SqliteSettings, SqliteStore};

#[actix::test]
async fn sqlite_answers_as_prefect_does() {
    let folder = tempfile::tempdir().unwrap();
    let settings = SqliteSettings::new(folder.path().join("events.db"));
    let store = SqliteStore::new(settings, Arc::new(SystemClock));
    let reader = store.reader();
    super::promises("sqlite", &store, &reader).await;
}
