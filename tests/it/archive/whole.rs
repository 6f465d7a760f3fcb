//! Partitions that go whole once they are archived, and those that do not.

use super::*;
use crate::support::wait::until;

/// The partitions of long ago.
fn num_old(case: &Case) -> usize {
    let old = "SELECT count(*) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
        WHERE inhparent = 'events'::regclass AND relname LIKE 'events_p%' \
        AND relname < to_char(now() - interval '9 days', '\"events_p\"YYYYMMDD')";
    case.database().value(old).parse().unwrap()
}

/// Nobody deletes an event by itself any more.
fn forbid_deletes(case: &Case) {
    case.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql \
         AS $$ BEGIN RAISE EXCEPTION 'events are deleted one by one'; END $$; \
         CREATE TRIGGER refuse BEFORE DELETE ON events FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
    );
}

/// A day of events takes several files, and goes with its table.
#[tokio::test]
async fn partitions_go_with_all_that_they_hold() {
    let case = Case::postgres().whole();
    let all = case.store_events(200);
    assert!(num_old(&case) >= 3);
    forbid_deletes(&case);
    let trimmed = case.trim().exits(0).json();
    assert_eq!(trimmed["events"], 200);
    assert_eq!(num_old(&case), 0);
    assert_eq!(case.holds_once(&all).await, 200);
    case.is_in_order();
    let files = case.run(&["archive", "list", "--json"]).exits(0).json();
    let num_events = |file: &Value| file["events"].as_u64().unwrap();
    let files = files.as_array().unwrap();
    assert!(files.iter().all(|file| num_events(file) <= 40), "{files:?}");
    // What is back is not archived twice.
    case.run(&["archive", "restore"]).exits(0);
    assert_eq!(case.in_tables().len(), all.len());
    assert!(num_old(&case) >= 3);
    case.trim().exits(0);
    assert_eq!(num_old(&case), 0);
    assert_eq!(case.holds_once(&all).await, 200);
    let again = case.run(&["archive", "list", "--json"]).exits(0).json();
    assert_eq!(again.as_array().unwrap(), files);
    case.is_in_order();
}

/// Where something is kept, events go one by one, and the partition once it is empty.
#[tokio::test]
async fn what_is_kept_longer_keeps_its_partition() {
    let mut case = Case::postgres().partitioned();
    let all = case.store_events(200);
    let num_before = num_old(&case);
    assert!(num_before >= 3);
    case.trim().exits(0);
    assert_eq!(num_old(&case), num_before, "what is kept longer is there");
    let overrides = "EVENT_PERSISTER_TRIM_OVERRIDES".to_owned();
    case.variables.push((overrides, String::new()));
    let trimmed = case.trim().exits(0).json();
    assert_ne!(trimmed["events"], 0);
    assert_eq!(num_old(&case), 0);
    case.holds_once(&all).await;
    case.is_in_order();
}

const FALLS_BACK: &str = "is archived file by file";

/// A pass that takes its time over each file, and what happens meanwhile.
async fn meanwhile(case: &Case, happens: impl AsyncFnOnce()) -> Ran {
    let mut command = case.folder.command(&["trim", "--yes", "--json"]);
    command.envs(case.all_variables(&[("FAILPOINTS", "archive::after-upload=1*sleep(3000)")]));
    let trimmer = std::thread::spawn(move || Ran::new(command.output().unwrap()));
    let incoming = case.archive_path().join("_incoming");
    let has_begun =
        || std::fs::read_dir(&incoming).is_ok_and(|mut entries| entries.next().is_some());
    until("a file is written", has_begun).await;
    happens().await;
    assert!(!trimmer.is_finished(), "it is still asleep");
    trimmer.join().unwrap().exits(0)
}

/// One of the day that all others are of.
fn late_event() -> Value {
    let mut late = events::event();
    late["occurred"] = (SystemClock.now() - chrono::TimeDelta::days(12))
        .to_rfc3339()
        .into();
    late
}

/// An event that comes to a partition between its reading and its drop is archived with the others.
#[tokio::test]
async fn an_event_comes_late() {
    let case = Case::postgres().whole();
    let mut all = case.store_events(200);
    let late = late_event();
    all.insert(events::id(&late));
    let ran = meanwhile(&case, async || case.import(&[late])).await;
    ran.complains(&[FALLS_BACK]);
    assert_eq!(case.holds_once(&all).await, 201);
    case.trim().exits(0);
    assert_eq!(num_old(&case), 0);
    assert_eq!(case.holds_once(&all).await, 201);
    case.is_in_order();
}

/// The same number of events is not the same events: one that somebody deletes meanwhile hides none that comes.
#[tokio::test]
async fn an_event_comes_and_another_goes() {
    let case = Case::postgres().whole();
    let mut all = case.store_events(200);
    let late = late_event();
    all.insert(events::id(&late));
    let gone = "(SELECT id FROM events ORDER BY occurred LIMIT 1)";
    let gone = case
        .database()
        .value(&format!("SELECT id::text FROM events WHERE id = {gone}"));
    let ran = meanwhile(&case, async || {
        case.import(&[late]);
        for (table, column) in [("event_resources", "event_id"), ("events", "id")] {
            case.execute(&format!("DELETE FROM {table} WHERE {column} = '{gone}'"));
        }
    })
    .await;
    ran.complains(&[FALLS_BACK]);
    // It was deleted before the file that had it counted.
    all.remove(&gone);
    assert_eq!(case.holds_once(&all).await, 200);
}

/// Somebody who reads for long keeps the partitions, and not their events.
#[tokio::test]
async fn a_reader_holds_them_back() {
    let case = Case::postgres().whole();
    let all = case.store_events(200);
    let (client, connection) = tokio_postgres::connect(&case.database().url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let read = "BEGIN; SELECT count(*) FROM events";
    let ran = meanwhile(&case, async || client.batch_execute(read).await.unwrap()).await;
    ran.complains(&[FALLS_BACK]);
    assert_eq!(case.holds_once(&all).await, 200);
    assert!(num_old(&case) >= 3);
    // The next pass sees the reader before it writes any file.
    let more = case.store_events(60);
    let all: BTreeSet<String> = all.union(&more).cloned().collect();
    let ran = case.trim().exits(0);
    assert!(!ran.stderr.contains(FALLS_BACK), "{ran:?}");
    assert_eq!(case.holds_once(&all).await, 260);
    client.batch_execute("COMMIT").await.unwrap();
    case.trim().exits(0);
    assert_eq!(num_old(&case), 0);
    case.holds_once(&all).await;
    case.is_in_order();
}
