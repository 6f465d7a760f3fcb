//! What a real Prefect wrote, and what is made of whatever comes, is what the shadow expects.

use std::path::Path;

use super::*;
use crate::postgres_store::truth::lines_of;
use crate::support::binary::data;
use crate::support::bus::attributes;
use crate::truth::Case as Message;

const PREFECTS_SQLITE_TABLES: &str = include_str!("../../data/prefect-schema-sqlite.sql");

/// Prefect's tables with the rows that a real Prefect wrote.
pub(crate) fn insert_prefects_sqlite_tables(path: &Path) -> File {
    let file = File::new(path);
    file.execute(PREFECTS_SQLITE_TABLES);
    insert_prefects_rows(&file, "events");
    insert_prefects_rows(&file, "event_resources");
    file
}

/// The rows that a real Prefect wrote, as they stood in its file.
fn insert_prefects_rows(database: &File, table: &str) {
    let truth = data(&format!("truth-dev-sqlite-{table}.raw.jsonl.gz"));
    let mut sql = String::from("BEGIN;");
    let lines = truth.split(|byte| *byte == b'\n');
    for line in lines.filter(|line| !line.is_empty()) {
        let row: BTreeMap<String, (String, Option<String>)> = serde_json::from_slice(line).unwrap();
        let values = row.values().map(|(_, value)| match value {
            Some(value) => format!("'{}'", value.replace('\'', "''")),
            None => "NULL".to_owned(),
        });
        let columns: Vec<_> = row.keys().map(String::as_str).collect();
        let (recorded, now) = match table {
            "events" => (", recorded", ", '2026-01-01'"),
            _ => ("", ""),
        };
        sql += &format!(
            "INSERT INTO {table} ({}{recorded}) VALUES ({}{now});",
            columns.join(", "),
            values.collect::<Vec<_>>().join(", ")
        );
    }
    database.execute(&format!("{sql} COMMIT"));
}

pub(crate) fn publish_capture(bus: &Bus) -> u64 {
    let lines = lines_of("prefect-events-dev.jsonl.gz");
    let entries: Vec<_> = (lines.into_iter())
        .map(|line| {
            let attributes = attributes(&serde_json::from_str(&line).unwrap());
            (line, attributes)
        })
        .collect();
    bus.stream.try_publish(&entries).unwrap().len() as u64
}

#[tokio::test]
async fn the_rows_that_prefect_itself_wrote_are_identical() {
    let case = Case::sqlite();
    let Store::Sqlite(path) = &case.store else {
        panic!("not SQLite")
    };
    let file = insert_prefects_sqlite_tables(path);
    let tables = file.number("SELECT count(*) AS number FROM sqlite_master");
    let _: redis::Value =
        (case.bus.stream).command("XGROUP CREATE events event-persister 0-1 MKSTREAM");
    let shadow = case.shadow().await;
    let num_events = publish_capture(&case.bus);
    acknowledge_all(&case.bus);
    assert_eq!(
        until_settled(&shadow, num_events).await,
        expected(&[("identical", 3126)])
    );
    assert_eq!(shadow.terminate().status.code(), Some(0));
    let query = "SELECT count(*) AS number FROM sqlite_master";
    assert_eq!(file.number(query), tables, "no table was made");
}

/// What the persister makes of a capture and of hostile messages is what the shadow expects of it.
async fn whatever_comes_is_identical_or_refused(case: Case) {
    let persister = case.bus.start().ready().await;
    let shadow = case.shadow().await;
    let num_events = publish_capture(&case.bus);
    let messages = Message::all();
    let texts: Vec<_> = messages.iter().map(Message::bytes).collect();
    case.bus.stream.publish(&texts);
    case.bus.until_settled(&persister).await;
    let counts = until_settled(&shadow, num_events + texts.len() as u64).await;
    let log = shadow.log();
    let count = |class: &str| counts.get(class).copied().unwrap_or_default();
    for class in [
        "differing",
        "lost_by_prefect",
        "refused_only_by_us",
        "expired",
    ] {
        assert_eq!(count(class), 0, "{class}: {counts:?}\n{log}");
    }
    let refused = count("refused_by_both") + count("unclear");
    let ledger = persister.terminate().in_good_order().ledger();
    assert_eq!(refused, ledger("dead_lettered"), "{counts:?}\n{log}");
    assert_eq!(count("identical"), ledger("stored"), "{counts:?}\n{log}");
    assert_eq!(shadow.terminate().status.code(), Some(0));
}

#[tokio::test]
async fn whatever_comes_is_identical_or_refused_on_postgres() {
    whatever_comes_is_identical_or_refused(Case::postgres()).await;
}

#[tokio::test]
async fn whatever_comes_is_identical_or_refused_on_sqlite() {
    whatever_comes_is_identical_or_refused(Case::sqlite()).await;
}
