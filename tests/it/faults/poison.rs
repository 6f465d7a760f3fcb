//! Messages that are no events, events that the database refuses, and events that come again.

use redis::Value;
use serde_json::json;

use super::case::{Case, for_seconds};
use crate::support::events;
use crate::support::postgres;

/// Each entry, twenty times among good ones.
async fn among_good_ones(fault: &'static str, entry: &[(&str, &[u8])], num_letters: usize) {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres(fault, &database);
    let server = case.start().await;
    case.load().await;
    let mut connection = case.bus.stream.connect();
    for _ in 0..20 {
        let mut add = redis::cmd("XADD");
        add.arg("events").arg("*");
        for (name, value) in entry {
            add.arg(name).arg(value);
        }
        add.query::<Value>(&mut connection).unwrap();
    }
    case.cured();
    case.bus.until_settled_now().await;
    // Each is kept as it came.
    if let Some((_, data)) = entry.iter().find(|(name, _)| *name == "data") {
        let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        let kept = database.value(&format!(
            "SELECT count(*) FROM event_persister_dead_letters WHERE raw = '\\x{hex}' \
             AND source = 'redis' AND reason != ''"
        ));
        assert_eq!(kept, num_letters.to_string());
    }
    case.ends_with_letters(vec![server], num_letters).await;
}

const ATTRIBUTES: (&str, &[u8]) = ("attributes", br#"{"id":"","event":""}"#);

#[tokio::test]
async fn a_nul() {
    let mut event = events::event();
    event["payload"] = json!({"text": "a\0b"});
    let text = event.to_string();
    let fault = "poison: a NUL in a text";
    among_good_ones(fault, &[("data", text.as_bytes()), ATTRIBUTES], 20).await;
}

#[tokio::test]
async fn bad_json() {
    among_good_ones(
        "poison: bad JSON",
        &[("data", b"{\"id\": "), ATTRIBUTES],
        20,
    )
    .await;
}

#[tokio::test]
async fn not_utf_8() {
    among_good_ones(
        "poison: not UTF-8",
        &[("data", b"\xff\xfe{}"), ATTRIBUTES],
        20,
    )
    .await;
}

#[tokio::test]
async fn no_data() {
    among_good_ones("poison: no data field", &[ATTRIBUTES], 20).await;
}

#[tokio::test]
async fn bad_attributes() {
    let fault = "poison: bad attributes, which harm no event";
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres(fault, &database);
    let server = case.start().await;
    case.load().await;
    let events = events::events(20);
    let entries: Vec<_> = (events.iter())
        .map(|event| (event.to_string(), "no JSON"))
        .collect();
    case.bus.stream.try_publish(&entries).unwrap();
    case.expect(events::ids(&events));
    case.cured();
    case.ends_well(vec![server]).await;
}

fn too_long() -> String {
    let mut event = events::event();
    event["resource"]["prefect.resource.id"] = events::incompressible(9_000).into();
    event.to_string()
}

#[tokio::test]
async fn an_over_long_index_value() {
    let text = too_long();
    let fault = "poison: a value too long for an index";
    among_good_ones(fault, &[("data", text.as_bytes()), ATTRIBUTES], 20).await;
}

#[tokio::test]
async fn a_flood_that_no_parser_takes() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres("poison: a flood of 10,000 that no parser takes", &database);
    let server = case.start().await;
    case.publish(100);
    case.bus.stream.publish(&vec!["no event"; 10_000]);
    case.publish(100);
    case.cured();
    case.bus.until_settled(&server).await;
    server.until_ready_is(200).await;
    case.ends_with_letters(vec![server], 10_000).await;
}

#[tokio::test]
async fn the_same_id_twice_in_a_batch() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres("twice: the same id in one batch", &database);
    let events = events::events(400);
    let texts = events::texts(&events);
    let twice: Vec<_> = texts.iter().flat_map(|text| [text, text]).collect();
    case.bus.stream.publish(&twice);
    case.expect(events::ids(&events));
    let server = case.start().await;
    case.cured();
    case.ends_well(vec![server]).await;
}

#[tokio::test]
async fn the_same_id_across_batches() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres("twice: the same id across batches", &database);
    let server = case.start().await;
    let events = events::events(2_500);
    let texts = events::texts(&events);
    for _ in 0..3 {
        case.bus.stream.publish(&texts);
    }
    case.expect(events::ids(&events));
    case.cured();
    case.ends_well(vec![server]).await;
}

#[tokio::test]
async fn the_same_id_across_replicas() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres("twice: the same ids across three replicas", &database);
    let replicas = vec![case.start().await, case.start().await, case.start().await];
    case.load_in_copies(3).await;
    case.until_more_is_stored().await;
    case.cured();
    case.ends_well(replicas).await;
}

#[tokio::test]
async fn a_flood_that_the_database_refuses() {
    let database = postgres::Server::shared().database();
    let fault = "poison: a flood that the database refuses, until its cause is cured";
    let mut case = Case::postgres(fault, &database);
    let server = case.start().await;
    database.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'not today'; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    case.publish(12_000);
    let answer = server.until_ready_is(503).await;
    let reason = answer["reason"].as_str().unwrap();
    assert!(reason.contains("refused"), "{answer}");
    for_seconds(5).await;
    let num_letters = case.store.num_letters();
    // What was in flight by then is refused as well, the rest is not even read.
    assert!((500..9_000).contains(&num_letters), "{num_letters}");
    database.execute("DROP TRIGGER refuse ON events");
    case.cured();
    server.until_ready_is(200).await;
    case.bus.until_settled(&server).await;
    let replay = ["dead-letters", "replay", "--all"];
    case.bus
        .folder
        .run_with(&replay, &case.bus.variables())
        .exits(0);
    case.ends_well(vec![server]).await;
}
