//! Retention at work while events come in.

use serde_json::Value;

use super::case::{Case, Store};
use crate::support::events;
use crate::support::postgres;
use crate::support::wait::until;

/// Events that retention no longer keeps.
fn publish_old_ones(case: &Case<'_>, num: usize) {
    let old = (0..num).map(|number| {
        let mut event = events::event_with(number % 3);
        event["occurred"] = "2020-01-01T00:00:00Z".into();
        event.to_string()
    });
    case.bus.stream.publish(&old.collect::<Vec<_>>());
}

fn num_old(case: &Case<'_>) -> String {
    match &case.store {
        Store::Postgres(database) => {
            database.value("SELECT count(*) FROM events WHERE occurred < '2021-01-01'")
        }
        Store::Sqlite(file) => {
            let query = "SELECT count(*) AS number FROM events WHERE occurred < '2021-01-01'";
            file.number(query).to_string()
        }
    }
}

async fn trims_during_inserts(mut case: Case<'_>, num_trimmers: usize) {
    let server = case.start().await;
    case.load().await;
    publish_old_ones(&case, 3_000);
    until("the old ones are there", || num_old(&case) != "0").await;
    let trimmers = (0..num_trimmers).map(|_| {
        let mut command = case.bus.folder.command(&["trim", "--json"]);
        command.envs(case.bus.variables());
        tokio::task::spawn_blocking(move || command.output().unwrap())
    });
    let trimmers: Vec<_> = trimmers.collect();
    let mut num_trimmed = 0;
    for trimmer in trimmers {
        let output = trimmer.await.unwrap();
        if output.status.success() {
            let trimmed: Value = serde_json::from_slice(&output.stdout).unwrap();
            num_trimmed += trimmed["events"].as_u64().unwrap();
        } else {
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(error.contains("another process is trimming"), "{error}");
            let (_, deleted) = error.split_once("this one deleted ").unwrap();
            let (number, _) = deleted.split_once(' ').unwrap();
            num_trimmed += number.parse::<u64>().unwrap();
        }
    }
    assert!(num_trimmed > 0, "nobody trimmed");
    case.num_trimmed = 3_000;
    case.until_more_is_stored().await;
    case.bus.until_settled_now().await;
    // What came after the pass goes with the next one.
    let ran = case.bus.folder.run_with(&["trim"], &case.bus.variables());
    ran.exits(0);
    assert_eq!(num_old(&case), "0");
    case.cured();
    case.ends_well(vec![server]).await;
}

#[tokio::test]
async fn during_inserts() {
    let database = postgres::Server::shared().database();
    trims_during_inserts(
        Case::postgres("trim: during inserts (PostgreSQL)", &database),
        1,
    )
    .await;
}

#[tokio::test]
async fn by_two_at_once() {
    let database = postgres::Server::shared().database();
    trims_during_inserts(
        Case::postgres("trim: two trimmers at once, during inserts", &database),
        2,
    )
    .await;
}

#[tokio::test]
async fn during_inserts_into_sqlite() {
    trims_during_inserts(Case::sqlite("trim: during inserts (SQLite)"), 1).await;
}
