//! Rows of which there are as many as there should be, and which hold something else.

use super::*;
use crate::postgres_store::truth::expect_capture;
use crate::shadow::acknowledge_all;
use crate::shadow::truth::{insert_prefects_sqlite_tables, publish_capture};

impl Case {
    /// What is found without Redis.
    fn verify_tables(&self, code: i32) -> Value {
        let folder = &self.bus.folder;
        let ran = match &self.store {
            Store::Postgres(database) => without_redis(database, &["verify", "--json"]),
            Store::Sqlite(_) => folder.run_with(&["verify", "--json"], &[NOBODY_WRITES]),
        };
        ran.exits(code).json()
    }

    fn update(&self, table: &str, set: &str, wher: &str) {
        self.store
            .execute(&format!("UPDATE {table} SET {set} WHERE {wher}"));
    }
}

/// Kind, event and detail of what was found.
fn found(document: &Value) -> Vec<(&str, &str, &str)> {
    let findings = document["findings"].as_array().unwrap();
    (findings.iter())
        .map(|finding| {
            let text = |name: &str| finding[name].as_str().unwrap_or_default();
            (text("kind"), text("event_id"), text("detail"))
        })
        .collect()
}

/// Each with a resource of its own, and received at a time of its own.
fn distinct_events(num: usize) -> Vec<Value> {
    let mut events = Vec::new();
    for number in 0..num {
        let mut event = events::event_with(2);
        event["resource"]["prefect.resource.id"] = format!("test.{number}").into();
        event["received"] = "2026-11-24T03:04:06Z".into();
        events.push(event);
    }
    events
}

const FITS_NOT: &str = "not what its columns resource and related say: ";
const SAYS_NOT: &str = "not what the stream's entry says: ";

async fn every_column_is_compared(case: Case) {
    let (_, ids) = case.publish(&distinct_events(16));
    let server = case.settled().await;
    assert_eq!(case.verify(0)["stream"]["stored"], 16);

    let of = |number: usize| format!("event_id = '{}'", ids[number]);
    let resource = |number: usize, id: &str| format!("{} AND resource_id = '{id}'", of(number));
    let event = |number: usize| format!("id = '{}'", ids[number]);
    let nobody = "00000000-0000-4000-8000-000000000001";
    // The resources of two are swapped.
    for (from, to) in [(of(0), nobody), (of(1), &ids[0])] {
        case.update("event_resources", &format!("event_id = '{to}'"), &from);
    }
    let (set, from) = (
        format!("event_id = '{}'", ids[1]),
        format!("event_id = '{nobody}'"),
    );
    case.update("event_resources", &set, &from);
    let moment = "'2999-01-01 00:00:00.000000'";
    for (table, set, wher) in [
        // One is a copy of another.
        (
            "event_resources",
            "resource_id = 'related.0'",
            resource(2, "related.1"),
        ),
        ("events", "payload = '{\"other\": 1}'", event(3)),
        ("events", "resource_id = 'other'", event(4)),
        (
            "event_resources",
            &format!("occurred = {moment}"),
            resource(5, "related.0"),
        ),
        ("events", "related_resource_ids = '[]'", event(6)),
        (
            "events",
            &format!("event = 'other', follows = '{}'", ids[0]),
            event(7),
        ),
        ("events", &format!("received = {moment}"), event(8)),
        (
            "event_resources",
            "resource_role = ''",
            resource(9, "related.0"),
        ),
        (
            "event_resources",
            "resource = '{\"name\": \"another\"}'",
            resource(10, "related.1"),
        ),
        ("events", "related = '{}'", event(11)),
        // Who sent it again had it received again, and the first that was written stays.
        (
            "events",
            "received = '2001-01-01 00:00:00.000000'",
            event(12),
        ),
        // The same labels.
        (
            "event_resources",
            "resource = '{ \"name\":\"a resource\" }'",
            resource(13, "test.13"),
        ),
    ] {
        case.update(table, set, &wher);
    }

    let wrong = case.verify(1);
    let found_all = found(&wrong);
    let expected: [(usize, &str, &[&str]); 12] = [
        (0, "differing", &[FITS_NOT, "event_resources"]),
        (1, "differing", &[FITS_NOT, "event_resources"]),
        (2, "differing", &[FITS_NOT, "event_resources"]),
        (3, "differing", &[SAYS_NOT, "payload"]),
        (4, "differing", &[FITS_NOT, "resource_id", SAYS_NOT]),
        (5, "differing", &[FITS_NOT, "event_resources"]),
        (
            6,
            "differing",
            &[FITS_NOT, "related_resource_ids", SAYS_NOT],
        ),
        (7, "differing", &[SAYS_NOT, "event", "follows"]),
        (8, "differing", &[SAYS_NOT, "received"]),
        (9, "differing", &[FITS_NOT, "event_resources"]),
        (10, "differing", &[FITS_NOT, "event_resources"]),
        // It has more resources than it tells of.
        (
            11,
            "doubled",
            &["3 resources instead of 1", SAYS_NOT, "related"],
        ),
    ];
    for (number, kind, parts) in expected {
        let of_event = found_all.iter().find(|(_, id, _)| *id == ids[number]);
        let Some((found_kind, _, detail)) = of_event else {
            panic!("{number} is not in {wrong}")
        };
        assert_eq!(*found_kind, kind, "{number}: {detail}");
        for part in parts {
            assert!(detail.contains(part), "{number}: {detail}");
        }
    }
    assert_eq!(found_all.len(), expected.len(), "{wrong}");
    assert_eq!(wrong["differing"], 11);
    let all_in_stream = wrong["findings"].as_array().unwrap();
    assert!(
        all_in_stream
            .iter()
            .all(|finding| finding["stream_id"].is_string())
    );
    case.run(&["verify"]).exits(1).prints(&[
        "differing              11",
        "DELETE FROM event_resources WHERE event_id = '",
    ]);

    // Without the stream only what contradicts itself is seen.
    let alone = case.verify_tables(1);
    let mut seen: Vec<&str> = found(&alone).into_iter().map(|(_, id, _)| id).collect();
    let mut expected: Vec<&str> = [0, 1, 2, 4, 5, 6, 9, 10, 11]
        .map(|number: usize| ids[number].as_str())
        .to_vec();
    seen.sort_unstable();
    expected.sort_unstable();
    assert_eq!(seen, expected, "{alone}");
    server.terminate().in_good_order();
}

#[tokio::test]
async fn every_column_is_compared_in_postgres() {
    every_column_is_compared(Case::postgres()).await;
}

#[tokio::test]
async fn every_column_is_compared_in_partitions() {
    every_column_is_compared(Case::partitioned()).await;
}

#[tokio::test]
async fn every_column_is_compared_in_sqlite() {
    every_column_is_compared(Case::sqlite()).await;
}

async fn a_row_is_what_one_of_the_copies_says(case: Case) {
    let mut first = events::event_with(1);
    first["received"] = "2026-11-24T03:04:06Z".into();
    let mut again = first.clone();
    again["received"] = "2026-11-24T03:05:06Z".into();
    let other = events::event_with(1);
    let mut changed = other.clone();
    changed["payload"] = json!({"other": 1});
    let (firsts, ids) = case.publish(&[first, other]);
    let server = case.settled().await;
    let (copies, _) = case.publish(&[again, changed]);
    case.bus.until_settled(&server).await;
    assert_eq!(case.verify(0)["stream"]["stored"], 4);

    // An earlier copy of the one has left the stream, and of the other only another event stands there.
    let remove = |id: &str| -> u64 { case.bus.stream.command(&format!("XDEL events {id}")) };
    assert_eq!(remove(&firsts[0]), 1);
    assert_eq!(case.verify(0)["stream"]["stored"], 3);
    assert_eq!(remove(&firsts[1]), 1);
    let wrong = case.verify(1);
    let only = finding(
        "differing",
        Some(&copies[1]),
        Some(&ids[1]),
        &format!("{SAYS_NOT}payload"),
    );
    assert_eq!(wrong["findings"], json!([only]));
    server.terminate().in_good_order();
}

#[tokio::test]
async fn a_row_in_postgres_is_what_one_of_the_copies_says() {
    a_row_is_what_one_of_the_copies_says(Case::postgres()).await;
}

#[tokio::test]
async fn a_row_in_sqlite_is_what_one_of_the_copies_says() {
    a_row_is_what_one_of_the_copies_says(Case::sqlite()).await;
}

/// The rows that a real Prefect wrote, beside the stream that it read.
fn prefects_own_rows_are_well(case: &Case) {
    let _: redis::Value =
        (case.bus.stream).command("XGROUP CREATE events event-persister 0-1 MKSTREAM");
    assert_eq!(publish_capture(&case.bus), 3126);
    acknowledge_all(&case.bus);
    let found = case.verify(0);
    assert_eq!(found["stream"]["stored"], 3126, "{found}");
    assert_eq!(found["events"], 3126);
}

#[test]
fn prefects_own_rows_in_postgres_are_well() {
    let case = Case::postgres();
    let Store::Postgres(database) = &case.store else {
        panic!("not PostgreSQL")
    };
    expect_capture(database);
    database.execute(
        r#"INSERT INTO events SELECT (jsonb_populate_record(NULL::events, row ||
               '{"recorded": "2026-01-01", "created": "2026-01-01", "updated": "2026-01-01"}')).*
           FROM truth WHERE name = 'events';
           INSERT INTO event_resources SELECT (jsonb_populate_record(NULL::event_resources, row ||
               '{"created": "2026-01-01", "updated": "2026-01-01"}' ||
               jsonb_build_object('id', gen_random_uuid()))).*
           FROM truth WHERE name = 'event_resources'"#,
    );
    prefects_own_rows_are_well(&case);
}

#[test]
fn prefects_own_rows_in_sqlite_are_well() {
    let case = Case::sqlite();
    let Store::Sqlite(path) = &case.store else {
        panic!("not SQLite")
    };
    insert_prefects_sqlite_tables(path);
    prefects_own_rows_are_well(&case);
}

/// Prefect rounds numbers to what Python holds; PostgreSQL would hold more.
#[tokio::test]
async fn a_number_that_prefect_rounded_is_no_difference() {
    let case = Case::postgres();
    let event = events::event();
    let text = event.to_string().replace("2.5", "12345678901234567890.5");
    case.bus.stream.publish(&[text]);
    let server = case.settled().await;
    let id = events::id(&event);
    let write = |number: &str| {
        let payload = format!("payload = '{{\"text\": \"é\", \"number\": {number}}}'");
        case.update("events", &payload, &format!("id = '{id}'"));
    };
    for as_prefect in ["12345678901234567000", "1.2345678901234567e19"] {
        write(as_prefect);
        assert_eq!(case.verify(0)["stream"]["stored"], 1, "{as_prefect}");
    }
    write("12345678901234567001");
    assert_eq!(case.verify(1)["differing"], 1);
    server.terminate().in_good_order();
}

/// Of these payloads the events that cannot be read.
async fn what_cannot_be_read_is_found(case: Case, payloads: &[(String, Option<&str>)]) {
    let (_, ids) = case.publish(&events::events(payloads.len()));
    let server = case.settled().await;
    for ((payload, _), id) in payloads.iter().zip(&ids) {
        case.update(
            "events",
            &format!("payload = '{payload}'"),
            &format!("id = '{id}'"),
        );
    }
    let wrong = case.verify_tables(1);
    let mut expected: Vec<(&str, &str, &str)> = payloads
        .iter()
        .zip(&ids)
        .filter_map(|((_, detail), id)| Some(("unreadable", id.as_str(), (*detail)?)))
        .collect();
    let mut seen = found(&wrong);
    expected.sort_unstable();
    seen.sort_unstable();
    assert_eq!(seen, expected);
    assert_eq!(wrong["unreadable"], expected.len());
    // The stream says so too, and then it is the same finding.
    assert_eq!(case.verify(1)["unreadable"], expected.len());
    case.run(&["verify"])
        .exits(1)
        .prints(&["UPDATE events SET payload = '{}'"]);
    server.terminate().in_good_order();
}

#[tokio::test]
async fn a_time_that_python_does_not_know_is_found() {
    let case = Case::postgres();
    let (_, ids) = case.publish(&events::events(3));
    let server = case.settled().await;
    let late = "occurred = '10000-01-01 00:00+00'";
    case.update("events", late, &format!("id = '{}'", ids[1]));
    case.update("event_resources", late, &format!("event_id = '{}'", ids[1]));
    let wrong = case.verify_tables(1);
    let why = "occurred or received lies beyond the year 9999, which Python does not know";
    assert_eq!(found(&wrong), [("unreadable", ids[1].as_str(), why)]);
    server.terminate().in_good_order();
}

const LONG_INTEGER: &str =
    "payload holds an integer of more than 4,300 digits, which Python does not read";

fn digits(num: usize) -> String {
    "9".repeat(num)
}

#[tokio::test]
async fn what_cannot_be_read_is_found_in_postgres() {
    let payloads = [
        (format!(r#"{{"k": {}}}"#, digits(4_300)), None),
        (format!(r#"{{"k": {}}}"#, digits(4_301)), Some(LONG_INTEGER)),
        (r#"{"k": [{"l": -1e4301}]}"#.to_owned(), Some(LONG_INTEGER)),
        // To Python that is infinite.
        (format!(r#"{{"k": {}.5}}"#, digits(4_301)), None),
        (
            r#"{"k": 1e-5000, "l": 1e400, "m": "1e4301"}"#.to_owned(),
            None,
        ),
        // Its text would be longer than what PostgreSQL can send.
        (
            format!(r#"{{"k": [1{}]}}"#, ", 1e131071".repeat(9_000)),
            Some(LONG_INTEGER),
        ),
    ];
    what_cannot_be_read_is_found(Case::postgres(), &payloads).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_found_in_sqlite() {
    let payloads = [
        (format!(r#"{{"k": {}}}"#, digits(4_300)), None),
        (format!(r#"{{"k": {}}}"#, digits(4_301)), Some(LONG_INTEGER)),
        (
            format!(r#"{{"k": [{{"l": -{}}}]}}"#, digits(4_301)),
            Some(LONG_INTEGER),
        ),
        (format!(r#"{{"k": {}.5}}"#, digits(4_301)), None),
        (r#"{"k": 1e4301, "l": 1e400}"#.to_owned(), None),
        ("{".to_owned(), Some("payload is no JSON")),
    ];
    what_cannot_be_read_is_found(Case::sqlite(), &payloads).await;
}

/// One row that makes every question fail that meets it hides nothing else.
#[tokio::test]
async fn what_the_database_cannot_read_is_found_and_hides_nothing() {
    let case = Case::postgres();
    let (_, ids) = case.publish(&events::events(50));
    let server = case.settled().await;
    for bad in [17, 33] {
        let wher = format!("event_id = '{}'", ids[bad]);
        case.update("event_resources", r#"resource = '{"a": "\u0000"}'"#, &wher);
    }
    let wher = format!("id = '{}'", ids[34]);
    case.update("events", "resource_id = 'other'", &wher);
    let wrong = case.verify_tables(1);
    assert_eq!(wrong["events"], 50);
    let mut seen = found(&wrong);
    seen.sort_unstable();
    let damaged = "the database fails when it reads the row or its resources";
    let contradicting = format!("{FITS_NOT}resource_id");
    let mut expected = [
        ("unreadable", ids[17].as_str(), damaged),
        ("unreadable", ids[33].as_str(), damaged),
        ("differing", ids[34].as_str(), contradicting.as_str()),
    ];
    expected.sort_unstable();
    assert_eq!(seen, expected);
    server.terminate().in_good_order();
}

/// What a replica lacks that was promoted, for instance.
async fn what_is_missing_comes_back_by_the_command_that_is_told(case: Case) {
    let (_, ids) = case.publish(&events::events(30));
    let server = case.settled().await;
    for id in &ids[11..27] {
        case.store.execute(&format!(
            "DELETE FROM events WHERE id = '{id}'; DELETE FROM event_resources WHERE event_id = '{id}'"
        ));
    }
    let wrong = case.verify(1);
    assert_eq!(wrong["missing"], 16);
    let command = wrong["read_again"].as_str().unwrap();
    case.run(&["verify"]).exits(1).prints(&[command]);
    let words = command.strip_prefix("redis-cli ").unwrap();
    let _: redis::Value = case.bus.stream.command(words);
    case.bus.until_settled(&server).await;
    let found = case.verify(0);
    assert_eq!(
        (&found["stream"]["stored"], &found["read_again"]),
        (&json!(30), &Value::Null)
    );
    server.terminate().in_good_order();
}

#[tokio::test]
async fn what_is_missing_in_postgres_comes_back_by_the_command_that_is_told() {
    what_is_missing_comes_back_by_the_command_that_is_told(Case::postgres()).await;
}

#[tokio::test]
async fn what_is_missing_in_partitions_comes_back_by_the_command_that_is_told() {
    what_is_missing_comes_back_by_the_command_that_is_told(Case::partitioned()).await;
}

#[tokio::test]
async fn what_is_missing_in_sqlite_comes_back_by_the_command_that_is_told() {
    what_is_missing_comes_back_by_the_command_that_is_told(Case::sqlite()).await;
}
