//! The persister itself is killed, at exact moments and at any.

use std::time::Duration;

use tokio::time::sleep;

use super::case::{Case, for_seconds};
use super::postgresql::CUT_OFF;
use crate::support::postgres;
use crate::support::server::Server;
use crate::support::wait::until;

/// It dies when it has passed a moment often enough to be at work; another takes over.
async fn dies_at(mut case: Case<'_>, moment: &str, num_before: usize) {
    let doomed = (case.bus).start_with("FAILPOINTS", &format!("{moment}={num_before}*off->return"));
    case.publish_in_copies(1);
    until(format!("dead at {moment}"), || doomed.has_ended()).await;
    assert_eq!(doomed.ended().status.code(), None, "it was to be killed");
    case.cured();
    let successor = case.start().await;
    case.until_more_is_stored().await;
    case.ends_well(vec![successor]).await;
}

macro_rules! dies_in_postgres {
    ($($name:ident, $fault:literal, $moment:literal;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let database = postgres::Server::shared().database();
            dies_at(Case::postgres($fault, &database), $moment, 3).await;
        }
    )*};
}

dies_in_postgres! {
    killed_before_the_write, "persister: killed before the write (PostgreSQL)", "writer::before-write";
    killed_before_the_commit, "persister: killed after the write, before the commit (PostgreSQL)", "postgres::before-commit";
    killed_after_the_commit, "persister: killed after the commit (PostgreSQL)", "writer::after-commit";
    killed_before_the_acknowledgement, "persister: killed before the acknowledgement (PostgreSQL)", "consumer::before-acknowledge";
    killed_after_the_acknowledgement, "persister: killed after the acknowledgement (PostgreSQL)", "consumer::after-acknowledge";
}

macro_rules! dies_in_sqlite {
    ($($name:ident, $fault:literal, $moment:literal, $num_before:literal;)*) => {$(
        #[tokio::test]
        async fn $name() {
            dies_at(Case::sqlite($fault), $moment, $num_before).await;
        }
    )*};
}

dies_in_sqlite! {
    killed_before_the_write_to_sqlite, "persister: killed before the write (SQLite)", "writer::before-write", 3;
    killed_between_the_inserts_of_sqlite, "persister: killed between an event's row and its resources (SQLite)", "sqlite::between-inserts", 130;
    killed_before_the_commit_of_sqlite, "persister: killed before the commit (SQLite)", "sqlite::before-commit", 3;
    killed_after_the_commit_of_sqlite, "persister: killed after the commit, before the acknowledgement (SQLite)", "consumer::before-acknowledge", 3;
}

#[tokio::test]
async fn killed_between_the_inserts() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres(
        "persister: killed between an event's row and its resources (PostgreSQL)",
        &database,
    );
    database.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$; \
         CREATE TRIGGER dawdle BEFORE INSERT ON event_resources \
         FOR EACH STATEMENT EXECUTE FUNCTION dawdle()",
    );
    let mut doomed = case.start().await;
    case.publish_in_copies(1);
    for _ in 0..3 {
        until("between the inserts", || {
            let asleep = "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event = 'PgSleep'";
            database.value(asleep) != "0"
        })
        .await;
        doomed.kill_9();
        // What its backends still do would pass for the work of the next.
        database.execute(CUT_OFF);
        doomed = case.bus.start();
    }
    database.execute("DROP TRIGGER dawdle ON event_resources");
    case.cured();
    case.until_more_is_stored().await;
    case.ends_well(vec![doomed]).await;
}

#[tokio::test]
async fn a_writer_panics() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres("persister: a writer panics, three times", &database);
    let moments = "writer::before-write=2*off->2*panic(on purpose)->9*off->1*panic(on purpose)";
    let server = case.bus.start_with("FAILPOINTS", moments);
    case.load().await;
    until("three panics", || {
        server.log().matches("on purpose").count() >= 3
    })
    .await;
    case.cured();
    case.until_more_is_stored().await;
    case.ends_well(vec![server]).await;
}

#[tokio::test]
async fn terminated_under_load() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres("persister: SIGTERM under load, five times", &database);
    let mut server = case.start().await;
    case.load().await;
    for _ in 0..5 {
        sleep(Duration::from_millis(fastrand::u64(0..300))).await;
        server.terminate().in_good_order();
        server = case.start().await;
    }
    case.cured();
    case.ends_well(vec![server]).await;
}

#[tokio::test]
async fn a_replica_hangs_and_comes_back() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres(
        "persister: a replica hangs (SIGSTOP) for longer than its entries stay its own",
        &database,
    );
    let (hung, other) = (case.start().await, case.start().await);
    case.load().await;
    let name = stop_with_entries(&case, &hung).await;
    let consumers = || case.bus.stream.consumers("event-persister");
    // Entries of a consumer that is idle for 4 s are claimed by the other.
    until("the other has taken over", || {
        let hung = consumers().into_iter().find(|(of, _, _)| *of == name);
        hung.is_none_or(|(_, pending, _)| pending == 0)
    })
    .await;
    for_seconds(10).await;
    hung.signal("CONT");
    case.cured();
    case.until_more_is_stored().await;
    case.ends_well(vec![hung, other]).await;
}

/// Stops a replica while it holds something, which takes a few attempts; its name in the group.
pub(super) async fn stop_with_entries(case: &Case<'_>, replica: &Server) -> String {
    loop {
        replica.signal("STOP");
        sleep(Duration::from_millis(300)).await;
        let consumers = case.bus.stream.consumers("event-persister");
        let mut consumers = consumers.into_iter();
        let holder = consumers.find(|(_, pending, idle)| *pending > 0 && *idle > 200);
        if let Some((name, _, _)) = holder {
            return name;
        }
        replica.signal("CONT");
        sleep(Duration::from_millis(fastrand::u64(1..50))).await;
    }
}
