//! What changes under a pass: an answer that is lost, a database that goes back, a place that goes away, events that
//! come late, and rows that others write or keep.

use super::*;
use crate::support::proxy::Proxy;
use crate::support::wait;

impl Case {
    async fn until_a_manifest_is(&self, state: &str) {
        let query = format!(
            "SELECT count(*) AS number FROM event_persister_archives WHERE state = '{state}'"
        );
        let is_there = || match &self.tables {
            Tables::Sqlite => {
                let made = "SELECT count(*) AS number FROM sqlite_master WHERE name = 'event_persister_archives'";
                let file = self.folder.database();
                file.number(made) > 0 && file.number(&query) > 0
            }
            Tables::Postgres(database) => {
                let made = "SELECT count(to_regclass('event_persister_archives'))";
                database.value(made) != "0" && database.value(&query) != "0"
            }
        };
        wait::until(&format!("a manifest is {state}"), is_there).await;
    }
}

/// The server commits, its answer does not come, and a new connection finds it at work.
async fn an_answer_is_lost(case: Case) {
    let all = case.store_events(60);
    let database = case.database();
    let proxy = Proxy::to(postgres::Server::shared().port());
    let trimming = case.trimming(&[
        ("EVENT_PERSISTER_DATABASE_URL", &proxy.url(&case.url)),
        ("EVENT_PERSISTER_DATABASE_STATEMENT_TIMEOUT", "1s"),
        ("FAILPOINTS", "archive::before-commit=1*sleep(3000)"),
    ]);
    let name = &database.name;
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND state = 'idle in transaction' \
         AND state_change < now() - interval '0.3 s'"
    );
    wait::until("a removal is about to commit", || {
        database.value(&waits) != "0"
    })
    .await;
    proxy.lose_answers_to_these();
    let parts = ["did not answer for 14s"];
    trimming.join().unwrap().exits(1).complains(&parts);
    drop(proxy);
    case.trim().exits(0);
    assert!(case.holds_once(&all).await > 40);
    case.is_in_order();
}

#[tokio::test]
async fn the_answer_to_a_claim_is_lost() {
    an_answer_is_lost(Case::postgres()).await;
}

#[tokio::test]
async fn the_answer_to_the_drop_of_a_partition_is_lost() {
    an_answer_is_lost(Case::postgres().whole()).await;
}

/// A backup that was taken while rows were removed, restored after the file was shown.
#[tokio::test]
async fn the_database_goes_back_to_the_middle_of_a_removal() {
    let case = Case::sqlite();
    let all = case.store_events(60);
    let killed = [("FAILPOINTS", "archive::after-removal=return")];
    let died = case.run_with(&["trim", "--yes"], &killed);
    assert_eq!(died.code, None, "it was killed: {died:?}");
    let path = case.folder.database_path();
    let backup = case.folder.path().join("backup.db");
    case.execute(&format!("VACUUM INTO '{}'", backup.display()));
    case.trim().exits(0);
    let num_archived = case.holds_once(&all).await;
    for ending in ["", "-wal", "-shm"] {
        let mut file = path.clone().into_os_string();
        file.push(ending);
        drop(std::fs::remove_file(file));
    }
    std::fs::copy(&backup, &path).unwrap();
    case.trim().exits(0);
    assert_eq!(case.holds_once(&all).await, num_archived);
    case.is_in_order();
}

/// An event that is older than the day that is being archived, and comes before the first row is read.
async fn comes_late(case: Case) {
    let mut all = case.store_events(60);
    let trimming = case.trimming(&[("FAILPOINTS", "archive::after-beginning=1*sleep(2000)")]);
    case.until_a_manifest_is("writing").await;
    let mut late = events::event();
    late["occurred"] = "2020-02-03T04:05:06Z".into();
    all.insert(events::id(&late));
    case.import(&[late]);
    trimming.join().unwrap().exits(0);
    assert!(case.holds_once(&all).await > 40);
    case.is_in_order();
    for listed in case.place().visible().await.unwrap() {
        let file = case.place().open(&listed.path, None).await.unwrap();
        let lines = file.lines(0, &Wanted::default()).unwrap();
        for line in lines.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            let day = &event["occurred"].as_str().unwrap()[..10];
            assert!(listed.path.contains(day), "{day} is in {}", listed.path);
        }
    }
}

#[tokio::test]
async fn an_event_of_an_earlier_day_comes_late_to_sqlite() {
    comes_late(Case::sqlite()).await;
}

#[tokio::test]
async fn an_event_of_an_earlier_day_comes_late_to_postgresql() {
    comes_late(Case::postgres()).await;
}

/// As Python's `sqlite3` writes it by itself, in no order with the others.
#[tokio::test]
async fn a_time_that_is_written_in_another_way() {
    for written in [
        "2024-01-01 05:00:00.123456+00:00",
        "2024-01-02T01:00:00+05:00",
    ] {
        let case = Case::sqlite();
        let all = case.store_events(30);
        let first = "SELECT id FROM events WHERE event <> 'kept' ORDER BY occurred LIMIT 1";
        case.execute(&format!(
            "UPDATE events SET occurred = '{written}' WHERE id = ({first})"
        ));
        let advice = "UPDATE events SET occurred = '";
        let parts = ["its time is not written as the others are", advice];
        let ran = case.trim().exits(1).complains(&parts);
        assert_eq!(case.holds_once(&all).await, 0);
        let (_, rest) = ran.stderr.split_once(advice).unwrap();
        let (rest, _) = rest.split_once("' WHERE id = '").unwrap();
        case.execute(&format!(
            "UPDATE events SET occurred = '{rest}' WHERE occurred = '{written}'"
        ));
        case.trim().exits(0);
        assert!(case.holds_once(&all).await > 20);
        case.is_in_order();
    }
}

/// As only another writer leaves them; the first of them is what a file has in place of `-infinity`.
#[tokio::test]
async fn a_time_that_no_file_can_hold() {
    for (column, written) in [
        ("occurred", "0001-01-01 00:00:00+00"),
        ("occurred", "0044-03-15 00:00:00+00 BC"),
        ("received", "infinity"),
        ("recorded", "10000-01-01 00:00:00+00"),
    ] {
        for case in [Case::postgres(), Case::postgres().partitioned()] {
            let all = case.store_events(30);
            let database = case.database();
            let id = database
                .value("SELECT id FROM events WHERE event <> 'kept' ORDER BY occurred LIMIT 1");
            case.execute(&format!(
                "UPDATE events SET {column} = '{written}' WHERE id = '{id}'"
            ));
            if column == "occurred" {
                case.execute(&format!(
                    "UPDATE event_resources SET occurred = '{written}' WHERE event_id = '{id}'"
                ));
            }
            let ran = case.trim().exits(1).complains(&[&id]);
            assert_eq!(case.holds_once(&all).await, 0);
            // What it says cures it.
            let (_, cure) = ran.stderr.split_once(" with UPDATE").unwrap();
            let (cure, _) = cure.split_once('\n').unwrap();
            case.execute(&format!("UPDATE{cure}"));
            case.comes_and_goes(&all, 20).await;
        }
    }
}

#[tokio::test]
async fn rows_that_a_trigger_keeps() {
    let case = Case::postgres();
    case.store_events(30);
    case.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER keep BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION keep()",
    );
    let num_before = case.in_tables().len();
    let parts = ["does not leave the tables", "trigger"];
    case.trim().exits(1).complains(&parts);
    let database = case.database();
    let count = || database.value("SELECT count(*) FROM events");
    assert_eq!(count(), num_before.to_string());
    case.execute("DROP TRIGGER keep ON events");
    case.trim().exits(0);
    case.is_in_order();
}

/// A folder that is unmounted in the middle of a pass.
#[tokio::test]
async fn the_place_goes_away_while_a_file_is_written() {
    let case = Case::sqlite();
    let all = case.store_events(60);
    let trimming = case.trimming(&[("FAILPOINTS", "archive::after-upload=1*sleep(2000)")]);
    case.until_a_manifest_is("writing").await;
    let marker = case.archive_path().join("_event_persister_archive.json");
    let aside = case.folder.path().join("marker");
    std::fs::rename(&marker, &aside).unwrap();
    let parts = ["is not the archive any more", "mount it"];
    trimming.join().unwrap().exits(1).complains(&parts);
    assert_eq!(case.in_tables(), all);
    std::fs::rename(&aside, &marker).unwrap();
    case.trim().exits(0);
    assert!(case.holds_once(&all).await > 40);
    case.is_in_order();
}

/// A folder may forget a renaming in a power failure.
#[tokio::test]
async fn a_renaming_that_was_lost() {
    let case = Case::sqlite();
    let all = case.store_events(60);
    case.trim().exits(0);
    let num_archived = case.holds_once(&all).await;
    let shown = case.place().visible().await.unwrap().remove(0).path;
    let hidden = shown.strip_prefix("occurred_date=").unwrap();
    let hidden = format!("_incoming/{}.part", hidden.replace('/', "_"));
    let path = |name: &str| case.archive_path().join(name);
    std::fs::create_dir_all(path("_incoming")).unwrap();
    std::fs::rename(path(&shown), path(&hidden)).unwrap();
    case.trim().exits(0);
    assert_eq!(case.holds_once(&all).await, num_archived);
    case.is_in_order();
}

/// As long as there is nothing to archive a folder is not made: it may be mounted there only later.
#[tokio::test]
async fn nothing_is_made_before_there_is_something_for_it() {
    let case = Case::sqlite();
    case.import(&events::events(10));
    case.trim().exits(0);
    assert!(!case.archive_path().exists());
    let all = case.store_events(30);
    case.trim().exits(0);
    assert!(case.in_tables().len() < all.len());
    assert!(case.archive_path().exists());
}
