//! The worse ways in which a primary leaves: it hangs, the network loses it, or it comes back.

use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::case::{Case, Store, for_seconds, trouble};
use super::replication::Pair;
use crate::support::postgres::{Database, Server};
use crate::support::proxy::Proxy;
use crate::support::server::Server as Persister;
use crate::support::wait::until;

/// What an operator is promised. At full length nothing else runs; a busy machine may take its time.
fn promised(seconds: u64) -> Duration {
    let busy = if trouble().is_some() { 1 } else { 6 };
    Duration::from_secs(seconds * busy)
}

#[track_caller]
fn within(began: Instant, limit: Duration) {
    assert!(began.elapsed() < limit, "{:?}", began.elapsed());
}

/// A database on two hosts, of which one takes events.
fn on_both(database: &Database, hosts: [u16; 2]) -> String {
    let [first, second] = hosts.map(|port| format!("host=127.0.0.1:{port}"));
    format!(
        "postgresql://postgres@/{}?{first}&{second}&target_session_attrs=read-write&sslmode=disable",
        database.name
    )
}

/// `/api/ready` and the log name the server that is silent.
async fn is_told_of(persister: &Persister, port: u16, began: Instant) {
    let server = format!("127.0.0.1:{port}");
    let names_it = |reason: &serde_json::Value| {
        reason
            .as_str()
            .is_some_and(|reason| reason.contains(&server))
    };
    let answer =
        persister.until_readiness(|status, answer| status == 503 && names_it(&answer["reason"]));
    answer.await;
    within(began, promised(5));
    persister.logged(&format!("nothing was heard of the server {server} for"));
    within(began, promised(5));
}

/// Both writers are in the middle of something that the server will never answer.
async fn hangs(fault: &'static str, statement_timeout: &str) {
    let primary = Server::start("");
    let database = primary.database();
    let pair = Pair::synchronous(&primary, &database).await;
    let moved = pair.moved();
    let mut case = Case::postgres(fault, &database);
    let url = on_both(&database, [primary.port(), pair.standby.port()]);
    case.bus.set("EVENT_PERSISTER_DATABASE_URL", url);
    (case.bus).set(
        "EVENT_PERSISTER_DATABASE_STATEMENT_TIMEOUT",
        statement_timeout,
    );
    let persister = case.start().await;
    case.load().await;
    let _frozen = primary.freeze();
    let began = Instant::now();
    pair.standby.promote();
    case.store = Store::Postgres(&moved);
    is_told_of(&persister, primary.port(), began).await;
    case.until_more_is_stored().await;
    within(began, promised(15));
    case.cured();
    case.ends_well(vec![persister]).await;
}

#[tokio::test]
async fn the_primary_hangs() {
    hangs(
        "PostgreSQL: the primary hangs, and another host takes over",
        "30s",
    )
    .await;
}

#[tokio::test]
async fn the_primary_hangs_where_statements_are_given_up_soon() {
    hangs(
        "PostgreSQL: the primary hangs, and another host takes over (statement_timeout 5 s)",
        "5s",
    )
    .await;
}

/// Nothing is written when it happens, and nothing says so but the probe.
#[tokio::test]
async fn the_primary_hangs_while_nobody_writes() {
    let primary = Server::start("");
    let database = primary.database();
    let pair = Pair::synchronous(&primary, &database).await;
    let moved = pair.moved();
    let mut case = Case::postgres(
        "PostgreSQL: the primary hangs while nothing is written, and another host takes over",
        &database,
    );
    let url = on_both(&database, [primary.port(), pair.standby.port()]);
    case.bus.set("EVENT_PERSISTER_DATABASE_URL", url);
    let persister = case.start().await;
    case.publish(10);
    case.bus.until_settled(&persister).await;
    let _frozen = primary.freeze();
    let began = Instant::now();
    let server = format!("127.0.0.1:{}", primary.port());
    let answer = persister.until_ready_is(503).await;
    within(began, promised(6));
    assert!(answer.to_string().contains(&server), "{answer}");
    pair.standby.promote();
    let promoted = Instant::now();
    persister.until_ready_is(200).await;
    within(promoted, promised(15));
    case.store = Store::Postgres(&moved);
    case.load().await;
    case.cured();
    case.ends_well(vec![persister]).await;
}

fn num_events(database: &Database) -> String {
    database.value("SELECT count(*) FROM events")
}

/// Everything that was published so far is stored, on the standby too, which then becomes a primary.
async fn take_over(case: &mut Case<'_>, pair: &Pair<'_>, persister: &Persister) {
    case.publish(300);
    case.bus.until_settled(persister).await;
    let moved = pair.moved();
    until("replicated", || num_events(&moved) == "300").await;
    pair.standby.promote();
}

#[tokio::test]
async fn the_old_primary_comes_back_and_takes_writes() {
    let primary = Server::start("");
    let database = primary.database();
    let pair = Pair::asynchronous(&primary, &database);
    let moved = pair.moved();
    let mut case = Case::postgres(
        "PostgreSQL: the old primary comes back after a failover, and takes writes",
        &database,
    );
    let url = on_both(&database, [primary.port(), pair.standby.port()]);
    case.bus.set("EVENT_PERSISTER_DATABASE_URL", url);
    let persisters = [case.start().await, case.start().await];
    take_over(&mut case, &pair, &persisters[0]).await;
    primary.stop("fast");
    case.store = Store::Postgres(&moved);
    case.load().await;
    for persister in &persisters {
        persister.logged("another server takes the events");
    }
    primary.start_again();
    let cut = "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity \
        WHERE application_name = 'event-persister' AND datname = current_database() LIMIT 1) AS one";
    for _ in 0..10 {
        moved.execute(cut);
        sleep(Duration::from_millis(100)).await;
    }
    case.until_more_is_stored().await;
    let passed_over = format!("store.host=127.0.0.1:{}", primary.port());
    let left_behind = format!(
        "the server 127.0.0.1:{} is on timeline 1 of",
        primary.port()
    );
    let told = |persister: &Persister| {
        let log = persister.log();
        log.lines()
            .any(|line| line.contains(&passed_over) && line.contains(&left_behind))
    };
    until("passed over", || persisters.iter().any(&told)).await;
    assert_eq!(num_events(&database), "300", "the old one");
    case.cured();
    case.ends_well(persisters.into()).await;
    assert_eq!(num_events(&database), "300", "the old one");
}

/// Both take writes, and only one replica finds out by itself.
#[tokio::test]
async fn a_replica_that_still_reaches_the_old_primary_leaves_it() {
    let primary = Server::start("");
    let database = primary.database();
    let pair = Pair::asynchronous(&primary, &database);
    let moved = pair.moved();
    let ways = [(); 2].map(|()| Proxy::to(primary.port()));
    let urls = [0, 1].map(|at| on_both(&database, [ways[at].port(), pair.standby.port()]));
    let mut case = Case::postgres(
        "PostgreSQL: two primaries take writes, and one replica reaches both",
        &database,
    );
    let mut persisters = Vec::new();
    for url in &urls {
        let persister = case.bus.start_with("EVENT_PERSISTER_DATABASE_URL", url);
        persisters.push(persister.ready().await);
    }
    take_over(&mut case, &pair, &persisters[0]).await;
    ways[0].refuse();
    persisters[0].logged("another server takes the events");
    for persister in &persisters {
        persister.logged("the replicas write to another primary of the database");
    }
    case.store = Store::Postgres(&moved);
    case.load().await;
    assert_eq!(num_events(&database), "300", "the old one");
    // Whoever is led to the old one alone is told so.
    let to_the_old = ("EVENT_PERSISTER_DATABASE_URL", database.url.as_str());
    let misled = case.bus.start_with(to_the_old.0, to_the_old.1);
    let answer = misled.until_readiness(|status, answer| {
        status == 503
            && answer
                .to_string()
                .contains("events are written to timeline 2")
    });
    answer.await;
    misled.terminate().in_good_order();
    let run = |command: &[&str], url: &str| {
        let mut variables = case.bus.variables();
        variables.push(("EVENT_PERSISTER_DATABASE_URL", url));
        case.bus.folder.run_with(command, &variables)
    };
    run(&["check"], to_the_old.1)
        .exits(1)
        .prints(&["it was left behind in a failover"]);
    run(&["verify"], to_the_old.1)
        .exits(1)
        .complains(&["it was left behind in a failover"]);
    let found = run(&["verify", "--json"], &urls[1]).json();
    let asked = found["server"].as_str().unwrap();
    let expected = format!("127.0.0.1:{}, timeline 2 of system ", pair.standby.port());
    assert!(asked.starts_with(&expected), "{asked}");
    case.bus
        .set("EVENT_PERSISTER_DATABASE_URL", urls[1].clone());
    case.cured();
    case.ends_well(persisters).await;
    assert_eq!(num_events(&database), "300", "the old one");
}

/// Packets to and from a port of this machine vanish while this is there.
struct Wall(String);

impl Wall {
    /// `None` where only root could do that.
    fn around(port: u16) -> Option<Self> {
        let wall = Self(port.to_string());
        let is_there = wall.rules("-I");
        is_there.then_some(wall)
    }

    fn rules(&self, change: &str) -> bool {
        ["--dport", "--sport"].into_iter().all(|end| {
            let rule = [
                "-w", change, "INPUT", "-p", "tcp", end, &self.0, "-j", "DROP",
            ];
            let changed = Command::new("iptables").args(rule).output();
            changed.is_ok_and(|changed| changed.status.success())
        })
    }
}

impl Drop for Wall {
    fn drop(&mut self) {
        self.rules("-D");
    }
}

#[tokio::test]
async fn the_network_loses_everything() {
    let server = Server::start("fsync = off\n");
    let database = server.database();
    let mut case = Case::postgres("PostgreSQL: all packets vanish for a minute", &database);
    let persister = case.start().await;
    case.load().await;
    let began = Instant::now();
    let Some(wall) = Wall::around(server.port()) else {
        return;
    };
    is_told_of(&persister, server.port(), began).await;
    // Long enough for the system to wait ever longer between its attempts.
    for_seconds(60).await;
    sleep(Duration::from_secs(10).saturating_sub(began.elapsed())).await;
    drop(wall);
    let healed = Instant::now();
    case.cured();
    case.until_more_is_stored().await;
    within(healed, promised(5));
    persister.until_ready_is(200).await;
    persister.logged("the store is back failures=");
    case.ends_well(vec![persister]).await;
}
