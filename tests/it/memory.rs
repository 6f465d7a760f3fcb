//! How much memory the binary takes at most, with the settings that everybody has.

use serde_json::{Value, json};

use crate::support::bus::{Bus, attributes, has_exactly};
use crate::support::events;
use crate::support::postgres;
use crate::support::redis::ServerOptions;

/// What it may take, whatever is on the bus.
const LIMIT_MIB: u64 = 256;
/// So many that all that is known of sizes is that they are small; and as many as come with whole
/// replies, so that the next one holds nothing but large ones.
const NUM_SMALL: usize = 32 + 10 * 512;
/// Far more of them than fit into the limit.
const NUM_LARGE: usize = 400;
/// As large as Prefect lets an event be.
const LARGE: usize = 1_500_000;

fn large_event() -> Value {
    let mut event = events::event();
    let words: String = (0..)
        .map(|number| format!("word {number} "))
        .take(200_000)
        .collect();
    event["payload"] = json!({"text": words[..LARGE - 1_000]});
    event
}

/// Small events, and then large ones, on a bus that nobody reads yet.
fn publish(bus: &Bus) -> Vec<String> {
    let mut ids = Vec::new();
    let mut publish = |events: Vec<Value>| {
        let entries: Vec<_> = (events.iter())
            .map(|event| (event.to_string().into_bytes(), attributes(event)))
            .collect();
        bus.stream.try_publish(&entries).unwrap();
        ids.extend(events::ids(&events));
    };
    publish(events::events(NUM_SMALL));
    let mut event = large_event();
    for _ in 0..NUM_LARGE {
        event["id"] = json!(uuid::Uuid::new_v4());
        publish(vec![event.clone()]);
    }
    ids
}

fn bus() -> Bus {
    Bus::of(ServerOptions::default())
}

#[tokio::test]
async fn a_backlog_of_large_events_behind_small_ones_fits_into_memory_on_sqlite() {
    let bus = bus();
    let ids = publish(&bus);
    let server = bus.start().ready().await;
    bus.until_settled(&server).await;
    server.database().has_all(&ids);
    let peak = server.peak_memory();
    println!("{peak} MiB at most");
    assert!(peak < LIMIT_MIB, "{peak} MiB");
    server.terminate().in_good_order();
}

#[tokio::test]
async fn a_backlog_of_large_events_behind_small_ones_fits_into_memory_on_postgresql() {
    let postgres = postgres::Server::start("fsync = off\n");
    let database = postgres.database();
    let mut bus = bus();
    bus.write_to(&database);
    let ids = publish(&bus);
    let server = bus.start().ready().await;
    bus.until_settled(&server).await;
    has_exactly(&database, &ids);
    let peak = server.peak_memory();
    println!("{peak} MiB at most");
    assert!(peak < LIMIT_MIB, "{peak} MiB");
    server.terminate().in_good_order();
}
