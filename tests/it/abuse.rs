//! A service that is abused in every way at once goes on with its work.

use std::time::Duration;

use super::support::abuse::Abuse;
use super::support::binary::Folder;
use super::support::events::{events, ids, list};
use super::support::server::Server;

/// Far beyond what anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// At least so many lists, and until each kind of abuse has been refused.
const NUM_LISTS: usize = 100;
/// Without abuse it takes some 40 MiB; 1,100 connections may hold up to 128 KiB of a head each, the
/// bodies of those who are not let in nothing.
const MAX_MEMORY_MIB: u64 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_under_abuse_stores_all_good_events_in_bounded_memory_and_says_that_it_lives() {
    let folder = Folder::new();
    let settings = [
        ("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:right"),
        // So that those who trickle and keep silent are thrown out while the test lasts.
        ("EVENT_PERSISTER_HTTP_IDLE_TIMEOUT", "3s"),
    ];
    let server = Server::start(&folder, &settings).ready().await;
    let abuse = Abuse::of(server.address());
    let work = async {
        let mut sent = Vec::new();
        for number in 0.. {
            let events = events(50);
            post_until_taken(&server, list(&events)).await;
            sent.extend(ids(&events));
            if number >= NUM_LISTS && abuse.refused.all() {
                break;
            }
        }
        sent
    };
    let health = async {
        loop {
            for path in ["/api/health", "/api/ready"] {
                let alive = tokio::time::timeout(PATIENCE, server.get(path)).await;
                assert_eq!(alive.expect("an answer in time").status(), 200);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let sent = tokio::select! {
        sent = tokio::time::timeout(PATIENCE, work) => sent,
        () = health => unreachable!("it never ends"),
    };
    let sent = sent.unwrap_or_else(|_| panic!("not all were refused: {:?}", abuse.refused));
    drop(abuse);
    let memory = server.peak_memory();
    assert!(memory < MAX_MEMORY_MIB, "{memory} MiB");
    let stored = server.database().complete_events();
    assert_eq!(stored, sent.into_iter().collect());
    let ended = server.terminate().in_good_order();
    assert!(!ended.log.contains(" ERROR "), "{}", ended.log);
    assert!(!ended.log.contains("right"), "{}", ended.log);
}

/// As a good client does: told that there is no place, it comes again.
async fn post_until_taken(server: &Server, body: String) {
    loop {
        let request = server.post(body.clone()).basic_auth("admin", Some("right"));
        match request.send().await.map(|answer| answer.status().as_u16()) {
            Ok(204) => return,
            // Cut off in the middle it may be as well: whatever it was told, it sends it again.
            Ok(503) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok(other) => panic!("{other}"),
        }
    }
}
