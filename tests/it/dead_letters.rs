//! The real binary: dead letters are found, tried again and thrown away, in SQLite and PostgreSQL.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which the setting for tests does not reach"
)]

use serde_json::{Value, json};

use super::support::binary::{Folder, Ran};
use super::support::events::{events, ids, lines};
use super::support::server::Server;
use super::support::wait::until;

#[cfg(feature = "service-tests")]
mod postgres;

/// With this every event of these tests has too long a name.
const SHORT_NAMES: (&str, &str) = ("EVENT_PERSISTER_EVENTS_MAX_EVENT_NAME_LENGTH", "5");

fn summary(replayed: u64, stored: u64, duplicates: u64, still_refused: u64) -> Value {
    json!({
        "replayed": replayed,
        "stored": stored,
        "duplicates": duplicates,
        "still_refused": still_refused,
    })
}

/// The letters that are there, as `(position, attempts)`, the newest first.
fn letters(folder: &Folder) -> Vec<(String, u64)> {
    let letter = |letter: Value| {
        let position = letter["position"].as_str().unwrap().to_owned();
        (position, letter["attempts"].as_u64().unwrap())
    };
    folder.dead_letters().into_iter().map(letter).collect()
}

/// As many events as letters, each with too long a name.
fn with_letters(num: usize) -> (Folder, Vec<Value>) {
    let (folder, events) = (Folder::new(), events(num));
    folder.write("events.jsonl", lines(&events));
    folder
        .run_with(&["import", "events.jsonl"], &[SHORT_NAMES])
        .exits(1);
    assert_eq!(letters(&folder).len(), num);
    (folder, events)
}

fn replay(folder: &Folder, arguments: &[&str]) -> Ran {
    folder.run(&[&["dead-letters", "replay"], arguments].concat())
}

fn purge(folder: &Folder, arguments: &[&str]) -> Ran {
    folder.run(&[&["dead-letters", "purge"], arguments].concat())
}

#[test]
fn letters_are_tried_again_until_the_cause_is_cured() {
    // More than one page and one batch.
    let (folder, events) = with_letters(3_000);
    let arguments = ["dead-letters", "replay", "--all", "--json"];
    for attempts in [2, 3] {
        let ran = folder.run_with(&arguments, &[SHORT_NAMES]).exits(1);
        assert_eq!(ran.json(), summary(3_000, 0, 0, 3_000));
        let letters = letters(&folder);
        assert_eq!(letters.len(), 3_000);
        assert!(letters.iter().all(|(_, times)| *times == attempts));
    }
    assert_eq!(folder.database().num_events(), 0);
    let ran = replay(&folder, &["--all"]).exits(0);
    assert_eq!(
        ran.stdout,
        "REPLAYED  STORED  DUPLICATES  STILL REFUSED\n3000      3000    0           0\n"
    );
    assert_eq!(letters(&folder), []);
    let stored = folder.database().complete_events();
    assert_eq!(stored, ids(&events).into_iter().collect());
    let ran = replay(&folder, &["--all", "--json"]).exits(0);
    assert_eq!(ran.json(), summary(0, 0, 0, 0));
}

#[test]
fn only_the_letters_that_are_meant_are_tried_again() {
    let (folder, _) = with_letters(4);
    folder.write("bad.jsonl", "no event\n");
    folder.run(&["import", "bad.jsonl"]).exits(1);
    let ran = replay(&folder, &["1", "3", "--json"]).exits(0);
    assert_eq!(ran.json(), summary(2, 2, 0, 0));
    let ran = replay(&folder, &["--reason", "JSON", "--json"]).exits(1);
    assert_eq!(ran.json(), summary(1, 0, 0, 1));
    let ran = replay(&folder, &["--source", "redis", "--json"]).exits(0);
    assert_eq!(ran.json(), summary(0, 0, 0, 0));
    let ran = replay(&folder, &["--until", "1h", "--json"]).exits(0);
    assert_eq!(ran.json(), summary(0, 0, 0, 0));
    let left = [
        ("bad.jsonl:1", 2),
        ("events.jsonl:4", 1),
        ("events.jsonl:2", 1),
    ];
    let here = folder.path().canonicalize().unwrap();
    let place = |position: &str| here.join(position).display().to_string();
    let left = left.map(|(position, attempts)| (place(position), attempts));
    assert_eq!(letters(&folder), left);
    let listed = folder.run(&["dead-letters", "list", "--reason", "JSON", "--since", "1h"]);
    let listed = listed.exits(0).prints(&["bad.jsonl:1", "CODE"]);
    assert!(!listed.stdout.contains("events.jsonl"), "{listed:?}");
}

#[test]
fn ids_that_no_letter_has_are_named_before_anything_is_done() {
    let (folder, _) = with_letters(2);
    for command in ["replay", "purge"] {
        folder
            .run(&["dead-letters", command, "1", "7", "8"])
            .exits(1)
            .complains(&["no dead letter 7, 8", "dead-letters list"]);
    }
    assert_eq!(letters(&folder).len(), 2);
    assert_eq!(folder.database().num_events(), 0);
    for command in ["replay", "purge"] {
        folder.run(&["dead-letters", command]).exits(2);
    }
}

#[test]
fn letters_are_removed_only_by_somebody_who_says_so() {
    let (folder, _) = with_letters(5);
    purge(&folder, &["--all"])
        .exits(1)
        .complains(&["5 dead letters", "--yes"]);
    assert_eq!(letters(&folder).len(), 5);
    purge(&folder, &["2", "--yes"])
        .exits(0)
        .prints(&["removed 1 dead letter\n"]);
    let ran = purge(&folder, &["--stage", "store", "--yes", "--json"]).exits(0);
    assert_eq!(ran.json(), json!({ "matching": 0, "removed": 0 }));
    let ran = purge(&folder, &["--all", "--yes", "--json"]).exits(0);
    assert_eq!(ran.json(), json!({ "matching": 4, "removed": 4 }));
    assert_eq!(letters(&folder), []);
    assert_eq!(folder.database().num_events(), 0);
    // Nothing is nothing to ask about.
    purge(&folder, &["--all"]).exits(0);
}

#[tokio::test]
async fn killed_between_commit_and_removal_a_replay_is_finished_by_the_next() {
    let (folder, events) = with_letters(10);
    folder.database().execute(
        "CREATE TRIGGER keep BEFORE DELETE ON event_persister_dead_letters \
         BEGIN SELECT RAISE(ABORT, 'the test keeps it'); END",
    );
    let mut killed = folder.spawn(&["dead-letters", "replay", "--all"], &[]);
    until("committed", || {
        folder.database().num_events() >= events.len()
    })
    .await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(letters(&folder).len(), events.len());
    folder.database().execute("DROP TRIGGER keep");
    let ran = replay(&folder, &["--all", "--json"]).exits(0);
    assert_eq!(ran.json(), summary(10, 0, 10, 0));
    assert_eq!(letters(&folder), []);
    let stored = folder.database().complete_events();
    assert_eq!(stored, ids(&events).into_iter().collect());
}

#[tokio::test]
async fn a_service_does_not_mind() {
    let (folder, events) = with_letters(500);
    let server = Server::start(&folder, &[]).ready().await;
    let ran = replay(&folder, &["--all", "--json"]).exits(0);
    assert_eq!(ran.json(), summary(500, 500, 0, 0));
    server.database().has_all(&ids(&events));
    server.terminate().in_good_order();
    assert_eq!(letters(&folder), []);
}

#[test]
fn what_a_terminal_would_obey_is_escaped_but_not_with_raw() {
    let folder = Folder::new();
    let message = b"{\"x\": \"\x1b]0;owned\x07\x7f\xc2\x9b2J\xe2\x80\xae\", \t1";
    folder.write("odd\u{1b}[2J.jsonl", message);
    folder.run(&["import", "odd\u{1b}[2J.jsonl"]).exits(1);
    let id = folder.dead_letters()[0]["id"].to_string();
    let odd = |c: char| c != '\n' && c != '\t' && (c.is_control() || c == '\u{202e}');
    for arguments in [
        &["dead-letters", "list"][..],
        &["dead-letters", "list", "--json"],
        &["dead-letters", "show", &id],
        &["dead-letters", "show", &id, "--json"],
    ] {
        let ran = folder.run(arguments).exits(0);
        assert!(!ran.stdout.contains(odd), "{ran:?}");
    }
    let shown = folder.run(&["dead-letters", "show", &id]);
    shown.prints(&["\\u{1b}]0;owned\\u{7}\\u{7f}\\u{9b}2J\\u{202e}\", \t1"]);
    let document = folder.run(&["dead-letters", "show", &id, "--json"]).json();
    assert_eq!(document["raw"], std::str::from_utf8(message).unwrap());
    let mut raw = folder.command(&["dead-letters", "show", &id, "--raw"]);
    assert_eq!(raw.output().unwrap().stdout, message);
    folder
        .run(&["dead-letters", "show", &id, "--raw", "--json"])
        .exits(2);
}
