//! What the PostgreSQL store promises beyond the contract of all stores.

use std::num::NonZeroUsize;
use std::sync::Arc;

use event_persister_actors::clock::SystemClock;
use event_persister_actors::delivery::{Batch, BatchId, Entry};
use event_persister_actors::event::ReceivedEvent;
use event_persister_actors::store::StoreError;
use event_persister_actors::store::operator::{DeadLetter, LetterFilter, StoreOperator as _};
use event_persister_actors::store::postgres::{PostgresSettings, PostgresStore};
use event_persister_actors::testing::{EventFixture, event, event_entry};
use uuid::Uuid;

use crate::support::postgres::{ARE_OF_OTHERS, Database, Server};

mod addresses;
pub(crate) mod connect;
pub(crate) mod copying;
mod durable;
mod failures;
mod schema;
mod trim;
pub(crate) mod truth;

fn store(settings: PostgresSettings) -> PostgresStore {
    PostgresStore::new(settings, Arc::new(SystemClock))
}

/// A database with all tables, and a store of it.
async fn migrated() -> (Database, PostgresStore) {
    let database = Server::shared().database();
    let store = store(database.settings());
    store.migrate().await.unwrap();
    (database, store)
}

fn batch(entries: Vec<Arc<Entry>>) -> Arc<Batch> {
    Arc::new(Batch::new(BatchId(0), entries))
}

fn of_events(events: impl IntoIterator<Item = ReceivedEvent>) -> Arc<Batch> {
    batch(events.into_iter().map(event_entry).collect())
}

fn any_event() -> ReceivedEvent {
    event(Uuid::new_v4())
}

/// The newest first.
async fn all_letters(store: &PostgresStore) -> Vec<DeadLetter> {
    let all = LetterFilter::default();
    store
        .list_letters(&all, None, NonZeroUsize::MAX)
        .await
        .unwrap()
}

/// An event with this JSON text as its payload.
fn with_payload(payload: &str) -> ReceivedEvent {
    EventFixture {
        payload: payload.to_owned(),
        ..EventFixture::default()
    }
    .build()
}

/// The error with everything beneath it, as it would be logged.
fn chain(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
