//! What the binary makes of what comes over Redis is what Prefect made of it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::postgres_store::truth::{
    ACTUAL, differences, expect_capture, expect_case, expect_what_is_there, lines_of,
};
use crate::support::bus::{Bus, attributes};
use crate::support::events::{events, ids};
use crate::support::postgres;
use crate::truth::{Case, compare_cases};

/// The capture, each event this often in a row.
fn capture(num_copies: usize) -> Vec<(String, String)> {
    let mut entries = Vec::new();
    for line in lines_of("prefect-events-dev.jsonl.gz") {
        let attributes = attributes(&serde_json::from_str(&line).unwrap());
        entries.extend(std::iter::repeat_n((line, attributes), num_copies));
    }
    entries
}

/// The capture comes into an empty stream in these rounds, each with as many copies of every event.
async fn the_capture_becomes_prefects_rows(rounds: &[usize]) {
    let database = postgres::Server::shared().database();
    let bus = Bus::into_postgres(&database);
    expect_capture(&database);
    let server = bus.start().ready().await;
    for num_copies in rounds {
        bus.stream.try_publish(&capture(*num_copies)).unwrap();
        bus.until_settled(&server).await;
        assert_eq!(differences(&database), Vec::<String>::new());
    }
    let ledger = server.terminate().in_good_order().ledger();
    let num_entries = 3126 * rounds.iter().sum::<usize>() as u64;
    assert_eq!(ledger("received"), num_entries);
    assert_eq!(ledger("stored"), 3126);
    assert_eq!(ledger("duplicates"), num_entries - 3126);
    assert_eq!(bus.stream.num_pending(), 0);
}

#[tokio::test]
async fn a_capture_becomes_the_very_rows_of_prefect_and_copies_of_it_change_nothing() {
    the_capture_becomes_prefects_rows(&[1, 2]).await;
}

#[tokio::test]
async fn a_capture_that_comes_twice_at_once_is_stored_once() {
    the_capture_becomes_prefects_rows(&[2]).await;
}

/// Publishes the cases with a good event behind each; the positions of the cases, and the ids of the
/// good ones.
fn publish(bus: &Bus, cases: &[Case]) -> (Vec<String>, Vec<String>) {
    let neighbours = events(cases.len());
    let entries: Vec<_> = (cases.iter().zip(&neighbours))
        .flat_map(|(case, neighbour)| [case.bytes(), neighbour.to_string().into_bytes()])
        .collect();
    let positions = bus.stream.publish(&entries);
    let positions = positions.into_iter().step_by(2).collect();
    (positions, ids(&neighbours))
}

#[tokio::test]
async fn every_case_over_the_bus_becomes_in_sqlite_what_prefect_makes_of_it() {
    let bus = Bus::into_sqlite();
    let cases = Case::all();
    let server = bus.start().ready().await;
    let (positions, neighbours) = publish(&bus, &cases);
    bus.until_settled(&server).await;
    server.until_ready_is(200).await;
    let database = bus.folder.database();
    let (num_stored, num_refused) = compare_cases(&cases, &positions, &database);
    assert_eq!(num_stored + num_refused, cases.len());
    database.has_all(&neighbours);
    assert_eq!(database.num_events(), num_stored + neighbours.len());
    let ledger = server.terminate().in_good_order().ledger();
    assert_eq!(ledger("stored"), database.num_events() as u64);
    assert_eq!(ledger("dead_lettered"), num_refused as u64);
}

/// Stage and raw bytes of the dead letters, by position.
fn dead_letters(database: &postgres::Database) -> BTreeMap<String, (String, String)> {
    let rows = database
        .execute("SELECT position, stage, encode(raw, 'hex') FROM event_persister_dead_letters");
    rows.into_iter()
        .map(|row| {
            let [position, stage, raw] = row.try_into().unwrap();
            (position.unwrap(), (stage.unwrap(), raw.unwrap()))
        })
        .collect()
}

fn in_hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn every_case_over_the_bus_becomes_in_postgresql_what_prefect_makes_of_it() {
    let database = postgres::Server::shared().database();
    let bus = Bus::into_postgres(&database);
    database.execute(ACTUAL);
    let cases = Case::all();
    let server = bus.start().ready().await;
    let (positions, neighbours) = publish(&bus, &cases);
    bus.until_settled(&server).await;
    server.until_ready_is(200).await;

    let mut letters = dead_letters(&database);
    let (mut wrong, mut expected_as_they_are) = (Vec::new(), neighbours.clone());
    let mut num_stored = neighbours.len() as u64;
    for ((case, position), line) in
        (cases.iter().zip(&positions)).zip(lines_of("prefect-truth-table.jsonl.gz"))
    {
        let truth: Value = serde_json::from_str(&line).unwrap();
        let verdict = truth["prefect"]["postgres"]["result"].as_str();
        match letters.remove(position) {
            None if case.may_be(true) && verdict == Some("stored") => {
                num_stored += 1;
                if !expect_case(&database, &truth) {
                    expected_as_they_are.push(truth["prefect"]["id"].as_str().unwrap().to_owned());
                }
            }
            Some((stage, raw)) => {
                let is_right = match &*stage {
                    "parse" => case.may_be(false),
                    _ => verdict == Some("failed"),
                };
                if !is_right || raw != in_hexadecimal(&case.bytes()) {
                    wrong.push(format!("{}: refused by {stage}, {verdict:?}", case.name));
                }
            }
            None => wrong.push(format!("{}: not refused, {verdict:?}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(letters.is_empty(), "{letters:?}");
    expect_what_is_there(&database, &expected_as_they_are);
    let differences = differences(&database);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    let num_there = database.value("SELECT count(*) FROM events");
    assert_eq!(
        num_there,
        num_stored.to_string(),
        "every neighbour is there"
    );
    let ledger = server.terminate().in_good_order().ledger();
    assert_eq!(ledger("stored"), num_stored);
    assert_eq!(
        ledger("dead_lettered"),
        (2 * cases.len()) as u64 - num_stored
    );
}
