//! Events that are restored: the same rows, to the letter.

use super::s3::Bucket;
use super::*;
use crate::support::binary::data;
use crate::support::database::{EVENT_COLUMNS, RESOURCE_COLUMNS};
use crate::support::postgres::TextRows;

const ALL: (&str, &str) = ("EVENT_PERSISTER_TRIM_RETENTION", "1s");
const NO_OVERRIDES: (&str, &str) = ("EVENT_PERSISTER_TRIM_OVERRIDES", "none=1s");

/// Real events of Prefect, imported, archived, and restored into another database.
#[tokio::test]
async fn into_another_sqlite_database() {
    let case = Case::sqlite();
    case.folder
        .write("events.jsonl", data("prefect-events-dev.jsonl.gz"));
    case.run(&["import", "events.jsonl"]);
    // No retention is ever over for what is still to come.
    for table in ["event_resources", "events"] {
        case.execute(&format!(
            "DELETE FROM {table} WHERE occurred > '2030-01-01'"
        ));
    }
    let sorted = |file: &File, table, columns: &[&str]| {
        let mut rows = file.rows(table, columns);
        rows.sort();
        rows
    };
    let tables = |file: &File| {
        let events = sorted(file, "events", &EVENT_COLUMNS);
        (events, sorted(file, "event_resources", &RESOURCE_COLUMNS))
    };
    let before = tables(&case.folder.database());
    case.run_with(&["trim", "--yes"], &[ALL, NO_OVERRIDES])
        .exits(0);
    assert_eq!(case.in_tables().len(), 0);
    let other = case.folder.path().join("other.db");
    let url = format!("sqlite://{}", other.display());
    let restore = ["archive", "restore", "--json", "--database-url", &url];
    let restored = case.run(&restore).exits(0).json();
    assert_eq!(restored["stored"], before.0.len());
    assert!(tables(&File::new(&other)) == before);
    let again = case.run(&restore).exits(0).json();
    assert_eq!(
        (&again["stored"], &again["duplicates"]),
        (&0.into(), &before.0.len().into())
    );
}

/// All columns of both tables but those that tell when something was written here, which a restored row has anew.
/// The order of rows and of keys of an object means nothing.
fn rows(database: &Database) -> [TextRows; 2] {
    let not_told = "'created', 'updated', 'recorded'";
    let tables = [
        ("events", not_told.to_owned()),
        ("event_resources", format!("{not_told}, 'id'")),
    ];
    tables.map(|(table, left_out)| {
        let columns = database.value(&format!(
            "SELECT string_agg(CASE data_type WHEN 'json' THEN format('%I::jsonb::text', column_name) \
             ELSE format('%I::text', column_name) END, ', ' ORDER BY column_name) \
             FROM information_schema.columns WHERE table_name = '{table}' AND table_schema = current_schema() \
             AND column_name NOT IN ({left_out})"
        ));
        let num_columns = columns.split(", ").count();
        assert_eq!(num_columns, if table == "events" { 10 } else { 5 }, "{columns}");
        let mut rows = database.execute(&format!("SELECT {columns} FROM {table}"));
        rows.sort();
        rows
    })
}

async fn into_another_postgresql(case: &Case) {
    case.folder
        .write("events.jsonl", data("prefect-events-dev.jsonl.gz"));
    case.run(&["import", "events.jsonl"]);
    // No retention is ever over for what is still to come.
    for table in ["event_resources", "events"] {
        case.execute(&format!(
            "DELETE FROM {table} WHERE occurred > '2030-01-01'"
        ));
    }
    let before = rows(case.database());
    assert!(before[0].len() > 1_000 && before[1].len() > before[0].len());
    case.run_with(&["trim", "--yes"], &[ALL, NO_OVERRIDES])
        .exits(0);
    assert_eq!(case.in_tables().len(), 0);
    let other = postgres::Server::shared().database();
    case.run(&["migrate", "--database-url", &other.url])
        .exits(0);
    let restore = ["archive", "restore", "--json", "--database-url", &other.url];
    let restored = case.run(&restore).exits(0).json();
    assert_eq!(restored["stored"], before[0].len());
    assert!(rows(&other) == before);
}

#[tokio::test]
async fn into_another_postgresql_database() {
    into_another_postgresql(&Case::postgres()).await;
}

#[tokio::test]
async fn from_partitions_into_another_postgresql_database() {
    into_another_postgresql(&Case::postgres().whole()).await;
}

#[tokio::test]
async fn from_a_bucket_into_another_postgresql_database() {
    if let Some(bucket) = Bucket::new(Case::postgres()).await {
        into_another_postgresql(&bucket.case).await;
    }
}

/// What is restored into its own database is removed again, and not archived twice.
#[tokio::test]
async fn into_the_same_database() {
    let case = Case::sqlite();
    let all = case.store_events(100);
    case.trim().exits(0);
    let num_left = case.in_tables().len();
    let restored = case.run(&["archive", "restore", "--json"]).exits(0).json();
    assert!(restored["older_than_retention"].as_u64().unwrap() > 0);
    assert_eq!(case.in_tables().len(), all.len());
    case.trim().exits(0);
    assert_eq!(case.in_tables().len(), num_left);
    case.holds_once(&all).await;
    case.is_in_order();
}

#[tokio::test]
async fn only_what_is_wanted() {
    let case = Case::sqlite();
    case.store_events(90);
    case.run_with(&["trim", "--yes"], &[NO_OVERRIDES]).exits(0);
    let events = archived(&case.place()).await;
    let other = format!("sqlite://{}", case.folder.path().join("other.db").display());
    let now = SystemClock.now();
    let moment = |days: i64| (now - chrono::TimeDelta::days(days)).to_rfc3339();
    let (since, until) = (moment(12), moment(11));
    let restore = [
        "archive",
        "restore",
        "--json",
        "--event",
        "kept",
        "--since",
        &since,
        "--until",
        &until,
        "--database-url",
        &other,
    ];
    let restored = case.run(&restore).exits(0).json();
    let is_wanted = |event: &&Value| {
        let occurred: chrono::DateTime<chrono::Utc> =
            event["occurred"].as_str().unwrap().parse().unwrap();
        event["event"] == "kept"
            && occurred >= since.parse::<chrono::DateTime<chrono::Utc>>().unwrap()
            && occurred < until.parse::<chrono::DateTime<chrono::Utc>>().unwrap()
    };
    let num_wanted = events.iter().filter(is_wanted).count();
    assert!(num_wanted > 0 && num_wanted < events.len());
    assert_eq!(restored["stored"], num_wanted);
}

/// PostgreSQL has the first moment of all as `-infinity`, files have it as the year 1: it is one moment.
async fn before_all_time(case: Case) {
    let mut all = case.store_events(30);
    let first: Vec<Value> = (0..30).map(|_| at_first()).collect();
    case.import(&first);
    all.extend(events::ids(&first));
    case.comes_and_goes(&all, 40).await;
    case.trim().exits(0);
    assert!(case.holds_once(&all).await > 40);
}

fn at_first() -> Value {
    let mut event = events::event();
    event["occurred"] = "0001-01-01T00:00:00Z".into();
    event
}

#[tokio::test]
async fn before_all_time_in_sqlite() {
    before_all_time(Case::sqlite()).await;
}

#[tokio::test]
async fn before_all_time_in_postgresql() {
    before_all_time(Case::postgres()).await;
}

#[tokio::test]
async fn before_all_time_in_partitions() {
    before_all_time(Case::postgres().partitioned()).await;
}

/// The rest of a removal that was cut off is found by what the file says.
#[tokio::test]
async fn before_all_time_and_killed() {
    for case in [Case::postgres(), Case::postgres().partitioned()] {
        let first: Vec<Value> = (0..30).map(|_| at_first()).collect();
        case.import(&first);
        let all = events::ids(&first).into_iter().collect();
        let killed = [("FAILPOINTS", "archive::after-removal=return")];
        let died = case.run_with(&["trim", "--yes"], &killed);
        assert_eq!(died.code, None, "it was killed: {died:?}");
        case.trim().exits(0);
        assert_eq!(case.holds_once(&all).await, 30);
        case.is_in_order();
    }
}
