//! Events that only the database refuses, from Redis into Prefect's tables in PostgreSQL.

use std::collections::BTreeSet;

use serde_json::Value;

use super::summary;
use crate::support::binary::Ran;
use crate::support::bus::{Bus, attributes, has_exactly};
use crate::support::events::{events, id, ids, incompressible};
use crate::support::postgres::{self, Database};

const NUM_EVENTS: usize = 2_000;
const NUM_POISON: usize = 7;

/// Longer than an index entry may be, and nothing that could be compressed.
fn too_long_for_an_index() -> String {
    incompressible(8_000)
}

/// Events of which some have a resource that no index can hold, and the ids of those.
fn events_with_poison() -> (Vec<Value>, BTreeSet<String>) {
    let mut events = events(NUM_EVENTS);
    let poison = events.iter_mut().skip(100).step_by(NUM_EVENTS / NUM_POISON);
    let poisoned = poison.take(NUM_POISON).map(|event| {
        event["resource"]["prefect.resource.id"] = too_long_for_an_index().into();
        id(event)
    });
    let poisoned = poisoned.collect();
    (events, poisoned)
}

/// Without a Redis: only the database is needed.
fn dead_letters(bus: &Bus, database: &Database, arguments: &[&str]) -> Ran {
    let url = ("EVENT_PERSISTER_DATABASE_URL", database.url.as_str());
    bus.folder
        .run_with(&[&["dead-letters"], arguments].concat(), &[url])
}

/// The letters' event ids; each must have come this often, and have the code of a limit.
fn letters(bus: &Bus, database: &Database, attempts: u64) -> BTreeSet<String> {
    let listed = dead_letters(bus, database, &["list", "--code", "54000", "--json"]);
    let listed = listed.exits(0).json();
    let letters = listed.as_array().unwrap();
    for letter in letters {
        assert_eq!(letter["attempts"], attempts, "{letter}");
        assert_eq!(letter["stage"], "store", "{letter}");
        assert_eq!(letter["source"], "redis", "{letter}");
    }
    let event_id = |letter: &Value| letter["event_id"].as_str().unwrap().to_owned();
    letters.iter().map(event_id).collect()
}

#[tokio::test]
async fn poison_is_set_aside_and_stored_once_it_is_none_any_more() {
    let database = postgres::Server::shared().database();
    let bus = Bus::into_postgres(&database);
    let (events, poisoned) = events_with_poison();
    let entries: Vec<_> = (events.iter())
        .map(|event| (event.to_string().into_bytes(), attributes(event)))
        .collect();
    bus.stream.try_publish(&entries).unwrap();
    let server = bus.start().ready().await;
    bus.until_settled(&server).await;
    let ledger = server.terminate().in_good_order().ledger();
    assert_eq!(ledger("stored"), (NUM_EVENTS - NUM_POISON) as u64);
    assert_eq!(ledger("dead_lettered"), NUM_POISON as u64);
    assert_eq!(letters(&bus, &database, 1), poisoned);
    let num_stored = database.value("SELECT count(*) FROM events");
    assert_eq!(num_stored, (NUM_EVENTS - NUM_POISON).to_string());

    for attempts in [2, 3] {
        let ran = dead_letters(&bus, &database, &["replay", "--all", "--json"]);
        assert_eq!(ran.exits(1).json(), summary(7, 0, 0, 7));
        assert_eq!(letters(&bus, &database, attempts), poisoned);
    }
    assert_eq!(
        database.value("SELECT count(*) FROM event_persister_dead_letters"),
        "7"
    );

    database.execute(
        "DROP INDEX ix_events__event_resource_id_occurred; \
         DROP INDEX ix_event_resources__resource_id__occurred",
    );
    let ran = dead_letters(&bus, &database, &["replay", "--code", "54000", "--json"]);
    assert_eq!(ran.exits(0).json(), summary(7, 7, 0, 0));
    has_exactly(&database, &ids(&events));
}

#[tokio::test]
async fn letters_are_purged() {
    let database = postgres::Server::shared().database();
    let bus = Bus::into_postgres(&database);
    bus.stream.publish(&["no event", "{", "[]"]);
    let server = bus.start().ready().await;
    bus.until_settled(&server).await;
    server.terminate().in_good_order();
    let purge = |arguments: &[&str]| {
        let arguments = [&["purge", "--yes", "--json"], arguments].concat();
        dead_letters(&bus, &database, &arguments).exits(0).json()["removed"].clone()
    };
    assert_eq!(purge(&["--until", "1h"]), 0);
    assert_eq!(
        purge(&["--source", "redis", "--reason", "no such reason"]),
        0
    );
    assert_eq!(purge(&["1"]), 1);
    assert_eq!(purge(&["--source", "redis", "--stage", "parse"]), 2);
    assert_eq!(
        database.value("SELECT count(*) FROM event_persister_dead_letters"),
        "0"
    );
}
