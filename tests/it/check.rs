//! `event-persister check` on set-ups that are broken on purpose: each fault is found, for what it is,
//! with its remedy, and nothing else is.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which the setting for tests does not reach"
)]

use serde_json::Value;

use crate::support::binary::{Folder, Ran};

mod configuration;
mod listener;
#[cfg(feature = "service-tests")]
mod postgres;
#[cfg(feature = "service-tests")]
mod redis;
mod secrets;
mod sqlite;

/// What `check` says with these variables, at an address that is free.
fn check(folder: &Folder, variables: &[(&str, &str)]) -> Ran {
    check_with(folder, &[], variables)
}

fn check_with(folder: &Folder, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = folder.command(&[&["check", "--json"], arguments].concat());
    command
        .env("EVENT_PERSISTER_LISTEN", "127.0.0.1:0")
        .envs(variables.iter().copied());
    Ran::new(command.output().unwrap())
}

/// Of everything that is not as it should be: id, severity and remedy.
fn bad(ran: &Ran) -> Vec<(String, String, String)> {
    let document = ran.json();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = document["findings"].as_array().unwrap();
    findings
        .iter()
        .filter(|finding| finding["severity"] != "ok")
        // Folders of tests may be on whatever the machine has for that.
        .filter(|finding| finding["id"] != "sqlite.file_system")
        .map(|finding| {
            (
                text(&finding["id"]),
                text(&finding["severity"]),
                text(&finding["remedy"]),
            )
        })
        .collect()
}

/// Nothing is wrong but this, of which the remedy has this part; and the exit code says so.
#[track_caller]
fn finds_only(ran: &Ran, id: &str, severity: &str, remedy: &str) {
    let bad = bad(ran);
    let ids: Vec<&str> = bad.iter().map(|(id, _, _)| id.as_str()).collect();
    assert_eq!(ids, [id], "{ran:?}");
    finds(ran, id, severity, remedy);
}

/// This is among what is wrong.
#[track_caller]
fn finds(ran: &Ran, id: &str, severity: &str, remedy: &str) {
    let bad = bad(ran);
    let found = bad.iter().find(|(found, _, _)| found == id);
    let (_, of_severity, told) = found.unwrap_or_else(|| panic!("no {id} in {bad:?}"));
    assert_eq!(of_severity, severity, "{bad:?}");
    assert!(told.contains(remedy), "no {remedy:?} in {told:?}");
    let is_error = bad.iter().any(|(_, severity, _)| severity == "error");
    assert_eq!(ran.code, Some(i32::from(is_error)), "{ran:?}");
    assert_eq!(ran.json()["ok"], !is_error);
}

#[track_caller]
fn finds_nothing(ran: &Ran) {
    assert_eq!(bad(ran), [], "{ran:?}");
    assert_eq!(ran.code, Some(0), "{ran:?}");
}
