//! The service as a process, killed, ended, locked out, and asked again: the promises from outside.

use std::collections::BTreeSet;
use std::slice::from_ref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use super::support::binary::Folder;
use super::support::database::Database;
use super::support::events::{event, event_with, events, id, ids, lines, list};
use super::support::metrics::Metrics;
use super::support::server::Server;
use super::support::socket::{self, send, send_events, send_ping};

mod import;
mod outage;
mod refusals;
mod shutdown;
#[cfg(target_os = "linux")]
mod systemd;

/// What clients were told.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    /// Ids of the events answered with 204.
    acknowledged: Vec<String>,
    num_acknowledgements: usize,
    /// Status codes of the other answers.
    others: Vec<u16>,
}

impl Answers {
    fn told<T>(&self, with: impl FnOnce(&mut Told) -> T) -> T {
        with(&mut self.0.lock().unwrap())
    }

    /// Posts lists of one to five events, one after the other, until the service is gone.
    async fn post_until_gone(&self, server: &Server) {
        loop {
            let events = events(fastrand::usize(1..=5));
            match server.post(list(&events)).send().await {
                Ok(response) if response.status() == 204 => self.told(|told| {
                    told.acknowledged.extend(ids(&events));
                    told.num_acknowledgements += 1;
                }),
                Ok(response) => self.told(|told| told.others.push(response.status().as_u16())),
                Err(_gone) => return,
            }
        }
    }

    /// Returns once there have been this many acknowledgements.
    async fn until(&self, num_acknowledgements: usize) {
        while self.told(|told| told.num_acknowledgements) < num_acknowledgements {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn without_arguments_it_stores_what_it_is_sent_where_others_see_it() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let event = event_with(2);
    assert_eq!(server.post_status(list(from_ref(&event))).await, 204);
    // Another connection, while the service runs.
    server.database().has_all(&[id(&event)]);
    let checked = folder.run(&["check", "--json"]).exits(0).json();
    let settings = checked["settings"].as_array().unwrap();
    let listen = settings
        .iter()
        .find(|setting| setting["name"] == "http.listen");
    assert_eq!(listen.unwrap()["value"], "127.0.0.1:4280");
    server.terminate().in_good_order();
}

#[tokio::test]
async fn every_event_answered_with_204_survives_kill_9() {
    const NUM_ROUNDS: usize = 20;
    const NUM_CLIENTS: usize = 8;
    let folder = Folder::new();
    let mut acknowledged = BTreeSet::new();
    for _ in 0..NUM_ROUNDS {
        let server = Server::start(&folder, &[]).ready().await;
        // What was acknowledged before the restart.
        server.database().has_all(&acknowledged);
        let answers = Answers::default();
        let at = fastrand::usize(1..=40);
        let mut clients = std::pin::pin!(join_all(
            (0..NUM_CLIENTS).map(|_| answers.post_until_gone(&server))
        ));
        tokio::select! {
            _ = &mut clients => panic!("gone before its time: {}", server.log()),
            () = answers.until(at) => server.signal("KILL"),
        }
        clients.await;
        answers.told(|told| {
            assert!(told.num_acknowledgements >= at);
            assert_eq!(told.others, [0_u16; 0]);
            acknowledged.extend(std::mem::take(&mut told.acknowledged));
        });
        let killed = server.ended();
        assert_eq!(killed.status.code(), None, "{}", killed.log);
    }
    let server = Server::start(&folder, &[]).ready().await;
    server.database().has_all(&acknowledged);
    server.terminate().in_good_order();
}

#[tokio::test]
async fn a_pong_means_that_all_before_it_is_committed() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let mut client = server.connect().await;
    // As Prefect's client does: it tries the connection before it says who it is.
    socket::ping(&mut client, "there?").await;
    socket::authenticate(&mut client, Value::Null).await;
    let events = events(5000);
    send_events(&mut client, &events).await;
    socket::ping(&mut client, "all there?").await;
    let stored = server.database().complete_events();
    assert_eq!(stored, ids(&events).into_iter().collect());
    server.terminate().in_good_order();
}

/// A client that loses its connection sends everything unconfirmed again.
#[tokio::test]
async fn what_is_sent_again_after_kill_9_is_there_once() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let events = events(300);
    let mut client = server.authenticated().await;
    send_events(&mut client, &events).await;
    server.kill_9();
    assert!(!matches!(client.next().await, Some(Ok(Message::Pong(_)))));

    let server = Server::start(&folder, &[]).ready().await;
    let mut client = server.authenticated().await;
    send_events(&mut client, &events).await;
    socket::ping(&mut client, "all there?").await;
    let stored = server.database().complete_events();
    assert_eq!(stored, ids(&events).into_iter().collect());
    let ledger = server.terminate().in_good_order().ledger();
    assert_eq!(ledger("received"), 300);
    assert_eq!(ledger("stored") + ledger("duplicates"), 300);
}

/// What came in, and what became of it.
fn both_sides(metrics: &Metrics) -> (u64, u64) {
    let parts = [
        "stored_total",
        "duplicates_total",
        "dead_lettered_total{stage=\"parse\"}",
        "dead_lettered_total{stage=\"store\"}",
        "ignored_total",
        "released_total",
        "in_flight",
    ];
    (
        metrics.count("received_total") + metrics.count("redelivered_total"),
        parts.iter().map(|part| metrics.count(part)).sum(),
    )
}

#[tokio::test]
async fn every_message_is_accounted_for_at_any_moment() {
    const NUM_CLIENTS: usize = 4;
    let folder = Folder::new();
    let server = Server::start(&folder, &[]).ready().await;
    let again = events(5);
    for _ in 0..2 {
        assert_eq!(server.post_status(list(&again)).await, 204);
    }
    let posts = join_all((0..NUM_CLIENTS).map(|_| async {
        for _ in 0..10 {
            let both = [events(5), again.clone()].concat();
            assert_eq!(server.post_status(list(&both)).await, 204);
            // Refused whole, and no part of the ledger.
            let wrong = [events(1), vec![Value::Null]].concat();
            assert_eq!(server.post_status(list(&wrong)).await, 422);
        }
    }));
    let frames = async {
        let mut client = server.authenticated().await;
        for number in 0..200 {
            let text = match number % 4 {
                0 => format!("no event {number}"),
                1 => again[0].to_string(),
                _ => event().to_string(),
            };
            send(&mut client, Message::text(text)).await;
        }
        socket::ping(&mut client, "all there?").await;
    };
    let mut load = std::pin::pin!(async { tokio::join!(posts, frames) });
    let mut num_scrapes = 0;
    loop {
        tokio::select! {
            _ = &mut load => break,
            metrics = server.metrics() => {
                let (came_in, became) = both_sides(&metrics);
                assert_eq!(came_in, became);
                num_scrapes += 1;
            }
        }
    }
    assert!(num_scrapes > 0);
    let metrics = server.metrics().await;
    let (came_in, became) = both_sides(&metrics);
    assert_eq!(came_in, became);
    assert_eq!(metrics.count("stored_total"), 5 + 200 + 100);
    assert_eq!(metrics.count("dead_lettered_total{stage=\"parse\"}"), 50);
    assert_eq!(metrics.count("in_flight"), 0);
    // What repeats something that still waits joins it, and is no message of its own.
    assert!(metrics.count("duplicates_total") >= 5);
    assert_eq!(folder.dead_letters().len(), 50);
    assert_eq!(server.database().complete_events().len(), 305);
    server.terminate().in_good_order();
}

#[tokio::test]
async fn two_services_share_a_database_file() {
    let folder = Folder::new();
    // Both find no tables and make them.
    let (one, two) = (Server::start(&folder, &[]), Server::start(&folder, &[]));
    let (one, two) = tokio::join!(one.ready(), two.ready());
    let same = event_with(3);
    let (one_ref, two_ref, same_ref) = (&one, &two, &same);
    let posts = (0..4)
        .flat_map(|_| [one_ref, two_ref])
        .map(|server| async move {
            let mut sent = Vec::new();
            for _ in 0..10 {
                let mut events = events(5);
                events.push(same_ref.clone());
                assert_eq!(server.post_status(list(&events)).await, 204);
                sent.extend(ids(&events));
            }
            sent
        });
    let sent: BTreeSet<String> = join_all(posts).await.into_iter().flatten().collect();
    assert_eq!(sent.len(), 401);
    assert_eq!(one.database().complete_events(), sent);
    let stored: u64 = [one, two]
        .map(|server| server.terminate().in_good_order().ledger()("stored"))
        .iter()
        .sum();
    assert_eq!(stored, 401);
}

#[tokio::test]
async fn the_service_deletes_what_retention_no_longer_keeps() {
    let folder = Folder::new();
    let mut old = events(20);
    for event in &mut old {
        event["occurred"] = "2020-01-01T00:00:00Z".into();
    }
    let mut new = events(20);
    for event in &mut new {
        event["occurred"] = "2999-01-01T00:00:00Z".into();
    }
    let both = [old.clone(), new.clone()].concat();
    folder
        .run_on(&["import", "-"], lines(&both).as_bytes())
        .exits(0);
    let trim = [
        ("EVENT_PERSISTER_TRIM_EVERY", "50ms"),
        ("EVENT_PERSISTER_TRIM_BATCH_SIZE", "3"),
    ];
    let server = Server::start(&folder, &trim).ready().await;
    server
        .until("trimmed", || server.database().num_events() <= 20)
        .await;
    let stored = server.database().complete_events();
    assert_eq!(stored, ids(&new).into_iter().collect());
    server.terminate().in_good_order();
}

/// To a database that was left alone for long a clock that is right looks as one that is absurd does.
#[tokio::test]
async fn a_clock_that_is_far_ahead_deletes_nothing_until_somebody_says_so() {
    let folder = Folder::new();
    let there = events(20);
    folder
        .run_on(&["import", "-"], lines(&there).as_bytes())
        .exits(0);
    let database = folder.database();
    database.execute(
        "UPDATE events SET occurred = '2020-01-02 03:04:05.000000', \
         recorded = '2020-01-02 03:04:06.000000', created = '2020-01-02 03:04:06.000000', \
         updated = '2020-01-02 03:04:06.000000'",
    );
    const SAID: &str = "was stored (2020-01-02 03:04 UTC), and 20 of 20 events would go";
    let trim = [("EVENT_PERSISTER_TRIM_EVERY", "50ms")];
    let server = Server::start(&folder, &trim).ready().await;
    let warned = server
        .until_readiness(|status, readiness| {
            assert_eq!(status, 200, "{readiness}");
            let warning = readiness["warnings"][0].as_str();
            warning.is_some_and(|warning| warning.starts_with("trim: "))
        })
        .await;
    let warning = warned["warnings"][0].as_str().unwrap();
    assert!(warning.contains(SAID), "{warning}");
    // Events go on being stored.
    let mut new = events(30);
    for event in &mut new {
        event["occurred"] = "2020-01-01T00:00:00Z".into();
    }
    assert_eq!(server.post_status(list(&new)).await, 204);
    assert_eq!(database.num_events(), 50);
    server.terminate().in_good_order();
    // What was stored since does not speak for the clock, also after a restart.
    let server = Server::start(&folder, &trim).ready().await;
    server.logged("retention waits for a person: by the clock");
    assert_eq!(server.log().matches("waits for a person").count(), 1);
    let checked = folder.run(&["check"]).exits(0);
    checked.prints(&[
        "retention.pass",
        "and 20 of 20 events would go",
        "trim --yes",
    ]);
    let counted = folder.run(&["trim", "--dry-run"]).exits(0);
    counted.prints(&["would delete 50 events", "`event-persister trim --yes`"]);
    folder.run(&["trim"]).exits(1).complains(&[
        "and 20 of 20 events would go",
        "`event-persister trim --yes`",
    ]);
    assert_eq!(database.num_events(), 50);
    folder
        .run(&["trim", "--yes"])
        .exits(0)
        .prints(&["deleted 50 events"]);
    folder
        .run(&["check"])
        .exits(0)
        .prints(&["the next pass waits for nobody"]);
    server.logged("retention works again");
    server.terminate().in_good_order();
}

#[test]
fn a_file_of_our_own_never_speaks_of_prefect() {
    let folder = Folder::new();
    let missing = ["--database-url", "sqlite://missing.db"];
    for command in [&["trim"][..], &["verify"], &["dead-letters", "list"]] {
        let ran = folder.run(&[command, &missing[..]].concat()).exits(1);
        ran.complains(&["there is no SQLite database", "`event-persister migrate`"]);
    }
    rusqlite::Connection::open(folder.path().join("other.db"))
        .unwrap()
        .execute_batch("CREATE TABLE t (a)")
        .unwrap();
    let other = ["--database-url", "sqlite://other.db"];
    let mut told = String::new();
    for command in [
        &["trim"][..],
        &["verify"],
        &["check"],
        &["trim", "--dry-run"],
    ] {
        for database in [&other[..], &missing[..]] {
            let ran = folder.run(&[command, database].concat());
            told.push_str(&ran.stdout);
            told.push_str(&ran.stderr);
        }
    }
    folder.run(&["migrate"]).exits(0);
    let ran = folder.run(&["check"]).exits(0);
    told.push_str(&ran.stdout);
    // But for the setting's default, which is a name of theirs.
    let told = told.replace("prefect.flow-run.heartbeat", "");
    assert!(!told.to_lowercase().contains("prefect"), "{told}");
}

#[test]
fn a_directory_or_memory_as_a_database_is_wrong_usage() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    for (url, right) in [
        ("sqlite://data", "sqlite://data/event-persister.db"),
        ("sqlite://data/", "sqlite://data/event-persister.db"),
        ("sqlite://:memory:", "sqlite://PATH"),
        ("sqlite://data/:memory:", "sqlite://PATH"),
    ] {
        for command in ["serve", "check", "migrate", "trim", "verify"] {
            let ran = folder.run(&[command, "--database-url", url]).exits(2);
            ran.complains(&[right]);
        }
    }
    let inside = std::fs::read_dir(folder.path().join("data")).unwrap();
    assert_eq!(inside.count(), 0);
}

#[test]
fn a_trim_keeps_what_its_own_retention_keeps() {
    let folder = Folder::new();
    let mut kept = Vec::new();
    let mut gone = Vec::new();
    for (name, year, is_kept) in [
        ("plain", "2020", false),
        ("plain", "2999", true),
        ("short", "2020", false),
        ("long", "2020", true),
        ("long", "1900", false),
    ] {
        for num_related in 0..3 {
            let mut event = event_with(num_related);
            event["event"] = name.into();
            event["occurred"] = format!("{year}-01-01T00:00:00Z").into();
            if is_kept { &mut kept } else { &mut gone }.push(event);
        }
    }
    let all = [kept.clone(), gone.clone()].concat();
    folder
        .run_on(&["import", "-"], lines(&all).as_bytes())
        .exits(0);
    let database = folder.database();
    let overrides = ("EVENT_PERSISTER_TRIM_OVERRIDES", "short=1h,long=20000d");
    let trim = |arguments: &[&str]| folder.run_with(arguments, &[overrides]).exits(0).json();

    let counted = trim(&["trim", "--dry-run", "--json"]);
    assert_eq!(database.complete_events(), ids(&all).into_iter().collect());
    let trimmed = trim(&["trim", "--json"]);
    for found in [counted, trimmed] {
        assert_eq!(found["events"], gone.len());
        assert_eq!(found["resources"], 3 * (1 + 2 + 3));
    }
    assert_eq!(database.complete_events(), ids(&kept).into_iter().collect());
    assert_eq!(trim(&["trim", "--json"])["events"], 0);
}
