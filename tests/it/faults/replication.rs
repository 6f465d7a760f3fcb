//! A standby takes over, and what was acknowledged is there: commits wait for it, however that is disturbed.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use super::case::{Case, Store, for_seconds};
use crate::postgres_store::copying::note_rows;
use crate::support::events;
use crate::support::postgres::{Database, Server};
use crate::support::proxy::Proxy;
use crate::support::server::Server as Persister;
use crate::support::wait::until;

/// A primary with a database, and its standby.
pub(super) struct Pair<'a> {
    pub(super) primary: &'a Server,
    /// As it is on the primary.
    database: &'a Database,
    pub(super) standby: Server,
    /// From the standby to the primary.
    link: Proxy,
}

impl<'a> Pair<'a> {
    /// With a standby that commits wait for.
    pub(super) async fn synchronous(primary: &'a Server, database: &'a Database) -> Self {
        database.execute("ALTER SYSTEM SET synchronous_standby_names = '*'");
        database.execute("SELECT pg_reload_conf()");
        database.until_commits_wait();
        let pair = Self::asynchronous(primary, database);
        let waited_for = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        until("synchronous", || database.value(waited_for) == "1").await;
        pair
    }

    pub(super) fn asynchronous(primary: &'a Server, database: &'a Database) -> Self {
        let link = Proxy::to(primary.port());
        Self {
            standby: primary.standby(link.port()),
            primary,
            database,
            link,
        }
    }

    /// From here on the standby gets nothing more.
    fn cut_off(&self) {
        self.link.refuse();
    }

    /// Waits until both writers wait for the standby, with commits that did not wait before; the processes.
    async fn until_committing(&self, before: &BTreeSet<String>) -> BTreeSet<String> {
        let mut committing = BTreeSet::new();
        until("both writers wait for the standby", || {
            committing = self.database.committing();
            committing.len() == 2 && committing.is_disjoint(before)
        })
        .await;
        committing
    }

    /// In which ways events have gone into the primary's table since it was asked to take note.
    fn ways(&self) -> BTreeSet<String> {
        let ways = "SELECT DISTINCT left(text, 4) FROM statements";
        let ways = self.database.execute(ways);
        ways.into_iter().flatten().flatten().collect()
    }

    /// The database as it is on the standby.
    pub(super) fn moved(&self) -> Database {
        let (from, to) = (self.primary.port(), self.standby.port());
        let url = (self.database.url).replace(&format!(":{from}/"), &format!(":{to}/"));
        self.database.at(url)
    }

    /// The primary is gone for good, and the standby takes its place behind the proxy.
    fn fail_over(&self, way: &Proxy) {
        self.primary.kill_9();
        self.standby.promote();
        way.lead_to(self.standby.port());
        way.cut();
    }
}

/// Whatever is done to those that wait, again and again: nothing is acknowledged that the standby lacks.
async fn takes_over(fault: &'static str, harm: impl Fn(&Pair<'_>, &BTreeSet<String>)) {
    let primary = Server::start("");
    let database = primary.database();
    let pair = Pair::synchronous(&primary, &database).await;
    let (moved, way) = (pair.moved(), Proxy::to(primary.port()));
    let mut case = Case::postgres(fault, &database);
    note_rows(&database);
    (case.bus).set("EVENT_PERSISTER_DATABASE_URL", way.url(&database.url));
    case.survives(async |case, _| {
        pair.cut_off();
        let mut waiting = BTreeSet::new();
        let mut num_rounds = 0;
        // The first batches are small, and those that gather meanwhile are copied.
        while num_rounds < 3 || pair.ways().len() < 2 {
            waiting = pair.until_committing(&waiting).await;
            harm(&pair, &waiting);
            until("anybody is let in", || database.answers()).await;
            num_rounds += 1;
            assert!(num_rounds < 20, "{:?}", pair.ways());
        }
        // What was written again waits again.
        pair.until_committing(&waiting).await;
        pair.fail_over(&way);
        case.store = Store::Postgres(&moved);
    })
    .await;
}

fn call(function: &str, pair: &Pair<'_>, processes: &BTreeSet<String>) {
    for process in processes {
        pair.database
            .execute(&format!("SELECT {function}({process})"));
    }
}

#[tokio::test]
async fn waits_are_cancelled() {
    takes_over(
        "PostgreSQL: waits for the standby are cancelled, then it takes over",
        |pair, waiting| call("pg_cancel_backend", pair, waiting),
    )
    .await;
}

#[tokio::test]
async fn those_who_wait_are_terminated() {
    takes_over(
        "PostgreSQL: those who wait for the standby are terminated, then it takes over",
        |pair, waiting| call("pg_terminate_backend", pair, waiting),
    )
    .await;
}

#[tokio::test]
async fn the_primary_is_restarted() {
    takes_over(
        "PostgreSQL: restarted while commits wait for the standby, then it takes over",
        |pair, _| {
            pair.primary.stop("fast");
            pair.primary.start_again();
        },
    )
    .await;
}

#[tokio::test]
async fn one_who_waits_is_killed() {
    takes_over(
        "PostgreSQL: kill -9 of one who waits for the standby, then it takes over",
        |pair, waiting| {
            // All others end with it.
            let num_ended = || pair.primary.log().matches("; reinitializing").count();
            let before = num_ended();
            let process = waiting.first().unwrap();
            let killed = Command::new("kill").args(["-9", process]).status();
            assert!(killed.unwrap().success());
            while num_ended() == before {
                std::thread::sleep(Duration::from_millis(5));
            }
        },
    )
    .await;
}

/// Longer than a call may take: it is given up while the server goes on with its commit, which then is in the
/// way of the next attempt.
#[tokio::test]
async fn the_standby_is_away() {
    let primary = Server::start("");
    let database = primary.database();
    let pair = Pair::synchronous(&primary, &database).await;
    let mut case = Case::postgres(
        "PostgreSQL: the standby that commits wait for is away for a minute",
        &database,
    );
    (case.bus).set("EVENT_PERSISTER_DATABASE_STATEMENT_TIMEOUT", "5s");
    (case.bus).set("EVENT_PERSISTER_DATABASE_LOCK_TIMEOUT", "1s");
    case.survives(async |_, _| {
        pair.cut_off();
        pair.until_committing(&BTreeSet::new()).await;
        for_seconds(60).await;
        pair.link.pass();
    })
    .await;
}

/// Posts a list until it is acknowledged, as a client does.
async fn post(persister: &Persister, body: String) {
    while persister.post_status(body.clone()).await != 204 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn what_was_posted_is_there_too() {
    let primary = Server::start("");
    let database = primary.database();
    let pair = Pair::synchronous(&primary, &database).await;
    let (moved, way) = (pair.moved(), Proxy::to(primary.port()));
    let mut case = Case::postgres(
        "PostgreSQL: waits for the standby are cancelled under POST, then it takes over",
        &database,
    );
    (case.bus).set("EVENT_PERSISTER_DATABASE_URL", way.url(&database.url));
    let persister = case.start().await;
    case.publish(10);
    case.bus.until_settled(&persister).await;
    pair.cut_off();
    // Few go by the store function and many are copied; they must not come into one batch.
    let [few, many] = [3, 400].map(events::events);
    let and_many = async {
        until("the first writer waits for the standby", || {
            database.committing().len() == 1
        })
        .await;
        post(&persister, events::list(&many)).await
    };
    let trouble = async {
        let mut waiting = BTreeSet::new();
        for _ in 0..3 {
            waiting = pair.until_committing(&waiting).await;
            call("pg_cancel_backend", &pair, &waiting);
        }
        pair.until_committing(&waiting).await;
    };
    let mut posted =
        Box::pin(async { tokio::join!(post(&persister, events::list(&few)), and_many) });
    tokio::select! {
        () = trouble => {}
        _ = &mut posted => panic!("answered before the standby had it: {}", persister.log()),
    }
    pair.fail_over(&way);
    case.store = Store::Postgres(&moved);
    case.cured();
    posted.await;
    case.expect(events::ids(&few).into_iter().chain(events::ids(&many)));
    case.ends_well(vec![persister]).await;
}

/// What an asynchronous standby lacks, `verify` names, and it comes again from the stream.
#[tokio::test]
async fn an_asynchronous_standby_takes_over() {
    let primary = Server::start("");
    let database = primary.database();
    let pair = Pair::asynchronous(&primary, &database);
    let (moved, way) = (pair.moved(), Proxy::to(primary.port()));
    let mut case = Case::postgres(
        "PostgreSQL: an asynchronous standby takes over, and what it lacks is read again",
        &database,
    );
    (case.bus).set("EVENT_PERSISTER_DATABASE_URL", way.url(&database.url));
    let persister = case.start().await;
    case.publish(100);
    case.bus.until_settled(&persister).await;
    until("replicated", || {
        moved.value("SELECT count(*) FROM events") == "100"
    })
    .await;
    let replicated = case.bus.last_id();
    pair.cut_off();
    case.publish(300);
    case.bus.until_settled(&persister).await;
    pair.fail_over(&way);
    case.store = Store::Postgres(&moved);
    let verify = || {
        let variables = case.bus.variables();
        case.bus.folder.run_with(&["verify", "--json"], &variables)
    };
    let found = verify().exits(1).json();
    assert_eq!(found["missing"], 300, "{found}");
    // As the handbook has it.
    persister.terminate().in_good_order();
    let moved_back: String =
        (case.bus.stream).command(&format!("XGROUP SETID events event-persister {replicated}"));
    assert_eq!(moved_back, "OK");
    case.cured();
    let persister = case.start().await;
    case.ends_well(vec![persister]).await;
}
