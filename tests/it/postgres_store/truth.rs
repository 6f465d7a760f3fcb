//! What stands in the tables is what Prefect's own persister put there.

use std::io::Read as _;
use std::mem::discriminant;

use bytes::Bytes;
use event_persister_actors::delivery::Position;
use event_persister_actors::event::{EventLimits, Received};
use event_persister_actors::store::{EventStore as _, Outcome, RefusalReason};
use flate2::read::GzDecoder;
use serde_json::Value;

use super::*;

pub(crate) fn lines_of(file: &str) -> Vec<String> {
    let path = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(path).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    text.split('\n')
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

fn parsed(position: usize, raw: &[u8]) -> Arc<Entry> {
    let received = Received::FromText {
        default: "2024-01-01T00:00:00Z".parse().unwrap(),
    };
    Arc::new(Entry::parse(
        "test".into(),
        Position::new(position.to_string()),
        Bytes::copy_from_slice(raw),
        &EventLimits::default(),
        received,
    ))
}

/// Both tables in the form of the files with the truth.
pub(crate) const ACTUAL: &str = r#"
CREATE FUNCTION moment(at timestamptz) RETURNS jsonb LANGUAGE sql AS $$
    SELECT CASE WHEN isfinite(at)
        THEN to_jsonb(to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
        ELSE jsonb_build_object('$t', at::text) END
$$;
CREATE VIEW actual AS
SELECT 'events' AS name, to_jsonb(e) - '{created,updated,recorded}'::text[]
    || jsonb_build_object('occurred', moment(occurred), 'received', moment(received)) AS row
FROM events AS e
UNION ALL
SELECT 'event_resources', to_jsonb(r) - '{created,updated,id}'::text[]
    || jsonb_build_object('occurred', moment(occurred))
FROM event_resources AS r;
CREATE TABLE truth (name text, row jsonb);
"#;

/// A number that Python would write in another way stands in the files as `{"$n":"2.50"}`.
fn plain_numbers(line: &str) -> String {
    let mut parts = line.split(r#"{"$n":""#);
    let mut plain = parts.next().unwrap().to_owned();
    for part in parts {
        let (number, rest) = part.split_once(r#""}"#).unwrap();
        plain.push_str(number);
        plain.push_str(rest);
    }
    plain
}

pub(crate) fn expect_rows<'a>(
    database: &Database,
    name: &str,
    rows: impl Iterator<Item = &'a str>,
) {
    let values: Vec<_> = rows
        .map(|row| format!("('{name}', '{}')", plain_numbers(row).replace('\'', "''")))
        .collect();
    database.execute(&format!("INSERT INTO truth VALUES {}", values.join(", ")));
}

/// Expects what Prefect made of the capture of a real server.
pub(crate) fn expect_capture(database: &Database) {
    database.execute(ACTUAL);
    for table in ["events", "event_resources"] {
        let truth = lines_of(&format!("truth-dev-pg-{table}.jsonl.gz"));
        expect_rows(database, table, truth.iter().map(String::as_str));
    }
}

/// Rows on one side only, shortened.
pub(crate) fn differences(database: &Database) -> Vec<String> {
    let rows = database.execute(
        "SELECT 'missing ' || name || left(row::text, 400) FROM \
         (SELECT * FROM truth EXCEPT ALL SELECT * FROM actual) AS a UNION ALL \
         SELECT 'too much ' || name || left(row::text, 400) FROM \
         (SELECT * FROM actual EXCEPT ALL SELECT * FROM truth) AS b",
    );
    rows.into_iter()
        .map(|row| row[0].clone().unwrap())
        .collect()
}

#[actix::test]
async fn the_events_of_a_real_server_become_the_rows_that_prefect_made_of_them() {
    let (database, store) = migrated().await;
    let lines = lines_of("prefect-events-dev.jsonl.gz");
    let entries: Vec<_> = (0..)
        .zip(&lines)
        .map(|(number, line)| parsed(number, line.as_bytes()))
        .collect();
    expect_capture(&database);
    for expected in [Outcome::Stored, Outcome::Duplicate] {
        for chunk in entries.chunks(500) {
            let outcomes = store.write(batch(chunk.to_vec())).await.unwrap();
            assert!(outcomes.iter().all(|outcome| *outcome == expected));
        }
        assert_eq!(differences(&database), Vec::<String>::new());
    }
    let json = "SELECT resource::text FROM event_resources WHERE resource::text LIKE '%,%' LIMIT 1";
    assert!(
        database.value(json).contains("\", \""),
        "the text is Python's, too"
    );
}

/// Cases whose number Prefect rounds, and which is kept here.
const KEEPS_THE_NUMBER: [&str; 2] = ["number-float-17-digits", "number-float-1000-decimals"];

/// Expects the rows that Prefect made of one case, if the file knows them: not where they are too
/// long, hold the time of the day, or have a number that is kept here.
pub(crate) fn expect_case(database: &Database, case: &Value) -> bool {
    let name = case["name"].as_str().unwrap();
    if name == "missing-received" || KEEPS_THE_NUMBER.contains(&name) {
        return false;
    }
    let tables = ["events", "event_resources"];
    let rows = tables.map(|table| case["prefect"]["postgres"][table].as_str());
    let [Some(events), Some(resources)] = rows else {
        return false;
    };
    for (table, rows) in tables.into_iter().zip([events, resources]) {
        // Prefect cannot read the year 10000 that it makes of the last moment of 9999; that is kept here.
        let rows = rows.replace(
            "10000-01-01T00:00:00.000000Z",
            "9999-12-31T23:59:59.999999Z",
        );
        expect_rows(database, table, rows.split('\n'));
    }
    true
}

/// Expects of these events what there is of them.
pub(crate) fn expect_what_is_there(database: &Database, ids: &[String]) {
    let ids: Vec<_> = ids.iter().map(|id| format!("'{id}'")).collect();
    database.execute(&format!(
        "INSERT INTO truth SELECT * FROM actual \
         WHERE coalesce(row ->> 'event_id', row ->> 'id') IN ({})",
        ids.join(", ")
    ));
}

#[actix::test]
async fn every_odd_event_is_stored_where_prefect_stores_it_and_kept_where_its_database_fails() {
    let (database, store) = migrated().await;
    database.execute(ACTUAL);
    let (mut names, mut entries, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    // Those of which the truth is too long to be in the file, or the time of the day.
    let mut unknown = Vec::new();
    for line in lines_of("prefect-truth-table.jsonl.gz") {
        let case: Value = serde_json::from_str(&line).unwrap();
        // The others are no UTF-8, and the parser's business.
        let Some(data) = case["data"].as_str() else {
            continue;
        };
        let entry = parsed(entries.len(), data.as_bytes());
        let postgres = &case["prefect"]["postgres"];
        let name = case["name"].as_str().unwrap().to_owned();
        expected.push(match entry.event() {
            None => Outcome::RejectedAtParse,
            Some(event) if postgres["result"] == "stored" => {
                if !expect_case(&database, &case) {
                    unknown.push(event.id.to_string());
                }
                Outcome::Stored
            }
            Some(_) => Outcome::RefusedByStore(RefusalReason::InvalidData),
        });
        names.push(name);
        entries.push(entry);
    }
    let outcomes = store.write(batch(entries)).await.unwrap();
    let wrong: Vec<_> = (names.iter().zip(&outcomes).zip(&expected))
        // Why is told by the letters.
        .filter(|((_, outcome), expected)| discriminant(*outcome) != discriminant(*expected))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(unknown.len() < 16, "{unknown:?}");
    expect_what_is_there(&database, &unknown);
    let differences = differences(&database);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    let is_stored = |outcome: &&Outcome| **outcome == Outcome::Stored;
    let num_stored = outcomes.iter().filter(is_stored).count();
    assert_eq!(
        database.value("SELECT count(*) FROM event_persister_dead_letters"),
        (outcomes.len() - num_stored).to_string()
    );
}
