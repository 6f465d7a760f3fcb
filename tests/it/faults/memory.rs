//! A backlog of events that are large, behind many that are small.

use super::case::{Case, Store, trouble};
use crate::support::bus::Bus;
use crate::support::events;
use crate::support::postgres;
use crate::support::redis::ServerOptions;

/// A thousand events of 1.5 MB, or as many as everybody can wait for.
fn num_large() -> usize {
    match trouble() {
        Some(trouble) if trouble.as_secs() >= 30 => 1_000,
        // More than a replica may have resident, all the same.
        _ => 200,
    }
}

async fn large_ones_behind_small_ones(mut case: Case<'_>) {
    case.publish(5_000);
    for _ in 0..num_large() {
        let mut event = events::event();
        event["payload"]["text"] = "large".into();
        // Written into the text, which is far quicker in a debug build than into the event.
        let text = event.to_string();
        let text = text.replace("large", &events::incompressible(1_500_000));
        case.bus.stream.publish(&[text]);
        case.expect([events::id(&event)]);
    }
    let server = case.start().await;
    case.cured();
    case.ends_well(vec![server]).await;
}

/// Not durable: the append-only file would hold it all as well.
fn bus() -> Bus {
    Bus::of(ServerOptions::default())
}

#[tokio::test]
async fn into_postgres() {
    let database = postgres::Server::shared().database();
    let mut bus = bus();
    bus.write_to(&database);
    let fault = "memory: 1,000 events of 1.5 MB behind 5,000 small ones (PostgreSQL)";
    large_ones_behind_small_ones(Case::new(fault, bus, Store::Postgres(&database))).await;
}

#[tokio::test]
async fn into_sqlite() {
    let bus = bus();
    let file = bus.folder.database();
    let fault = "memory: 1,000 events of 1.5 MB behind 5,000 small ones (SQLite)";
    large_ones_behind_small_ones(Case::new(fault, bus, Store::Sqlite(file))).await;
}
