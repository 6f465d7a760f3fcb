//! PostgreSQL, in a database of its own.

use std::sync::Arc;

use event_persister_actors::clock::SystemClock;
use event_persister_actors::store::Period;
use event_persister_actors::store::operator::StoreOperator as _;
use event_persister_actors::store::postgres::{PostgresReader, PostgresStore};

use crate::support::postgres::Server;

#[actix::test]
async fn postgresql_answers_as_prefect_does() {
    let database = Server::shared().database();
    let store = PostgresStore::new(database.settings(), Arc::new(SystemClock));
    store.migrate().await.unwrap();
    let reader = PostgresReader::new(database.settings());
    super::promises("postgresql", &store, &reader).await;
}

#[actix::test]
async fn partitioned_tables_answer_the_same() {
    let database = Server::shared().database();
    let store = PostgresStore::new(database.settings(), Arc::new(SystemClock));
    store.partition(Period::Day).await.unwrap();
    let reader = PostgresReader::new(database.settings());
    super::promises("postgresql", &store, &reader).await;
}
