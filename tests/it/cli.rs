//! The real binary: usage, configuration, commands, exit codes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which the setting for tests does not reach"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;
use uuid::Uuid;

/// The binary in an empty folder, with nothing in its environment.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_event-persister"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::new(self.command(arguments).output().unwrap())
    }

    pub(crate) fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied());
        Ran::new(command.output().unwrap())
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    pub(crate) fn is_empty(&self) -> bool {
        std::fs::read_dir(self.path()).unwrap().next().is_none()
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn complains(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in {self:?}");
        }
        self
    }

    #[track_caller]
    pub(crate) fn prints(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stdout.contains(part), "no {part:?} in {self:?}");
        }
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

pub(crate) fn event(occurred: &str) -> String {
    let id = Uuid::new_v4();
    format!(
        r#"{{"id":"{id}","occurred":"{occurred}","event":"it","resource":{{"prefect.resource.id":"r"}}}}"#
    )
}

#[test]
fn help_shows_the_variables_and_not_what_is_in_them() {
    let folder = Folder::new();
    let url = (
        "EVENT_PERSISTER_DATABASE_URL",
        "postgresql://u:hunter2@db/x",
    );
    let ran = folder.run_with(&["--help"], &[url]).exits(0).prints(&[
        "EVENT_PERSISTER_DATABASE_URL",
        "EVENT_PERSISTER_LISTEN",
        "EVENT_PERSISTER_WRITERS",
        "EVENT_PERSISTER_CONFIG",
        "dead-letters",
        "Examples:",
    ]);
    assert!(!ran.stdout.contains("hunter2"), "{ran:?}");
    folder
        .run(&["--version"])
        .exits(0)
        .prints(&["event-persister 0."]);
}

#[test]
fn wrong_usage_exits_with_2() {
    let folder = Folder::new();
    for arguments in [
        &["nonsense"][..],
        &["--nonsense"],
        &["import"],
        &["dead-letters"],
        &["dead-letters", "list", "--limit", "0"],
        &["dead-letters", "show", "seven"],
    ] {
        folder.run(arguments).exits(2);
    }
    assert!(folder.is_empty());
}

#[test]
fn wrong_configuration_exits_with_2_and_says_what_would_be_right() {
    let folder = Folder::new();
    folder.write(
        "p.toml",
        "[batch]\nmax_evnts = 5\n\n[trim]\nretention = \"7\"\n",
    );
    folder
        .run(&["check", "--config", "p.toml"])
        .exits(2)
        .complains(&["p.toml:2", "max_evnts", "did you mean \"max_events\"?"]);
    folder.write("p.toml", "[trim]\nretention = \"7\"\n");
    folder
        .run_with(&["check"], &[("EVENT_PERSISTER_CONFIG", "p.toml")])
        .exits(2)
        .complains(&["p.toml:2", "trim.retention", "\"7d\""]);
    folder
        .run_with(&["check"], &[("EVENT_PERSISTER_WRITERZ", "2")])
        .exits(2)
        .complains(&["EVENT_PERSISTER_WRITERZ", "EVENT_PERSISTER_WRITERS?"]);
    folder
        .run(&["check", "--config", "missing.toml"])
        .exits(2)
        .complains(&["missing.toml"]);
    folder
        .run(&["--writers", "-1", "check"])
        .exits(2)
        .complains(&["--writers", "pipeline.writers", "at least 1"]);
}

#[test]
fn what_is_not_built_in_yet_is_refused_without_showing_passwords() {
    let folder = Folder::new();
    let url = "redis+sentinel://:hunter2@a:26379,b:26379/mymaster";
    let ran = folder
        .run(&["--redis-url", url])
        .exits(2)
        .complains(&["--redis-url", "Sentinel is not built in yet"]);
    assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
}

#[test]
fn settings_that_cannot_work_together_exit_with_2() {
    let folder = Folder::new();
    let variables = [
        ("EVENT_PERSISTER_REDIS_URL", "redis://127.0.0.1:1"),
        ("EVENT_PERSISTER_REDIS_GUARD_GROUP", "ephemeral-guard"),
    ];
    folder
        .run_with(&["check"], &variables)
        .exits(2)
        .complains(&["ephemeral-guard"]);
    folder
        .run(&[
            "check",
            "--database-url",
            "postgresql://h/d?keepalives_idle=x",
        ])
        .exits(2)
        .complains(&["database.url"]);
}

#[test]
fn check_shows_values_and_where_they_came_from() {
    let folder = Folder::new();
    folder.write("p.toml", "[batch]\nmax_events = 5\n");
    let variables = [
        ("EVENT_PERSISTER_CONFIG", "p.toml"),
        ("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:hunter2"),
        ("EVENT_PERSISTER_LISTEN", ""),
        ("EVENT_PERSISTER_SERVICE_HOST", "10.0.0.1"),
        ("EVENT_PERSISTER_PORT", "tcp://10.0.0.1:4280"),
    ];
    let ran = folder
        .run_with(&["check", "--json", "--writers", "3"], &variables)
        .exits(0);
    assert!(!ran.stdout.contains("hunter2"), "{ran:?}");
    let document = ran.json();
    assert_eq!(document["ok"], true);
    let setting = |name: &str| {
        let settings = document["settings"].as_array().unwrap();
        let found = settings.iter().find(|setting| setting["name"] == name);
        let found = found.unwrap();
        (found["value"].clone(), found["from"].clone())
    };
    assert_eq!(setting("batch.max_events"), ("5".into(), "p.toml:2".into()));
    assert_eq!(
        setting("pipeline.writers"),
        ("3".into(), "--writers".into())
    );
    assert_eq!(
        setting("http.listen"),
        ("127.0.0.1:4280".into(), "default".into())
    );
    assert_eq!(
        setting("http.auth_string"),
        ("***".into(), "EVENT_PERSISTER_HTTP_AUTH_STRING".into())
    );
}

#[test]
fn check_makes_nothing_and_fails_where_nothing_could_be_made() {
    let folder = Folder::new();
    folder.run(&["check"]).exits(0).prints(&["not there yet"]);
    assert!(folder.is_empty());
    folder
        .run(&["check", "--database-url", "sqlite://missing/x.db"])
        .exits(1)
        .prints(&["missing"]);
    folder.write(
        "text.db",
        "this is no database, and was never meant to be one\n",
    );
    folder
        .run(&["check", "--database-url", "sqlite://text.db"])
        .exits(1);
}

#[test]
fn migrate_says_what_it_did_and_can_be_repeated() {
    let folder = Folder::new();
    folder.run(&["migrate"]).exits(0).prints(&["ran "]);
    folder
        .run(&["migrate"])
        .exits(0)
        .prints(&["nothing was changed"]);
    assert_eq!(
        folder.run(&["migrate", "--json"]).exits(0).json(),
        serde_json::json!({ "migrations": [] })
    );
    folder
        .run(&["check"])
        .exits(0)
        .prints(&["its tables are right"]);
}

#[test]
fn import_counts_every_line_and_again_changes_nothing() {
    let folder = Folder::new();
    let lines = [event("2026-01-01T00:00:00Z"), event("2026-01-02T00:00:00Z")];
    folder.write("events.jsonl", &lines.join("\n"));
    let ran = folder.run(&["import", "events.jsonl"]).exits(0);
    assert!(
        ran.stdout
            .starts_with("read 2, stored 2, duplicates 0, dead letters 0, "),
        "{ran:?}"
    );
    assert_eq!(ran.stdout.lines().count(), 1);
    let again = folder
        .run(&["import", "events.jsonl", "--json"])
        .exits(0)
        .json();
    assert_eq!(again["read"], 2);
    assert_eq!(again["duplicates"], 2);
}

#[test]
fn a_line_that_is_no_event_becomes_a_dead_letter_that_can_be_looked_at() {
    let folder = Folder::new();
    let mut text = format!("{}\n{{\"a\": 1}}\n", event("2026-01-01T00:00:00Z")).into_bytes();
    text.extend_from_slice(b"\xff\xfe\n");
    std::fs::write(folder.path().join("events.jsonl"), text).unwrap();
    folder
        .run(&["import", "events.jsonl"])
        .exits(1)
        .prints(&["stored 1, duplicates 0, dead letters 2"])
        .complains(&["dead-letters list"]);

    let listed = folder
        .run(&["dead-letters", "list", "--json"])
        .exits(0)
        .json();
    let letters = listed.as_array().unwrap();
    assert_eq!(letters.len(), 2);
    assert_eq!(letters[0]["position"], "events.jsonl:3");
    assert_eq!(letters[1]["position"], "events.jsonl:2");
    let id = |index: usize| letters[index]["id"].to_string();

    folder
        .run(&["dead-letters", "list", "--limit", "1"])
        .exits(0)
        .prints(&["events.jsonl:3", &format!("--before {}", id(0))]);
    folder
        .run(&["dead-letters", "list", "--before", &id(0)])
        .exits(0)
        .prints(&["events.jsonl:2"]);
    folder
        .run(&["dead-letters", "show", &id(1)])
        .exits(0)
        .prints(&["{\"a\": 1}", "occurred"]);
    let shown = folder
        .run(&["dead-letters", "show", &id(0), "--json"])
        .exits(0)
        .json();
    assert_eq!(shown["raw_hex"], "fffe");
    folder
        .run(&["dead-letters", "show", "999"])
        .exits(1)
        .complains(&["no dead letter 999"]);
}

#[test]
fn import_reads_standard_input() {
    let folder = Folder::new();
    let mut child = folder
        .command(&["import", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", event("2026-01-01T00:00:00Z")).unwrap();
    drop(stdin);
    Ran::new(child.wait_with_output().unwrap())
        .exits(0)
        .prints(&["read 1, stored 1"]);
}

#[test]
fn a_file_that_cannot_be_read_is_a_failure_that_names_it() {
    let folder = Folder::new();
    folder
        .run(&["import", "missing.jsonl"])
        .exits(1)
        .complains(&["missing.jsonl"]);
    folder
        .run(&["import", "."])
        .exits(1)
        .complains(&["directory"]);
}

#[test]
fn trim_deletes_what_is_old_and_a_dry_run_only_counts() {
    let folder = Folder::new();
    let lines = [event("2020-01-01T00:00:00Z"), event("2999-01-01T00:00:00Z")];
    folder.write("events.jsonl", &lines.join("\n"));
    folder.run(&["import", "events.jsonl"]).exits(0);
    for _ in 0..2 {
        folder
            .run(&["trim", "--dry-run"])
            .exits(0)
            .prints(&["would delete 1 events and 1 resources"]);
    }
    let trimmed = folder.run(&["trim", "--json"]).exits(0).json();
    assert_eq!(trimmed["events"], 1);
    folder
        .run(&["trim"])
        .exits(0)
        .prints(&["deleted 0 events and 0 resources"]);
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let folder = Folder::new();
    let mut child = folder
        .command(&["check"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    Ran::new(child.wait_with_output().unwrap()).exits(0);
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = Folder::new();
    folder
        .run(&["--listen", &address])
        .exits(1)
        .complains(&[&address, "--listen"]);
    assert!(folder.is_empty());
}

/// A service on a port of its own, and the lines that it logs.
pub(crate) struct Served {
    child: std::process::Child,
    log: BufReader<std::process::ChildStderr>,
    address: String,
}

impl Served {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let address = line
            .split_once("listen=http://")
            .and_then(|(_, rest)| rest.split(' ').next())
            .unwrap_or_else(|| panic!("no address in {line:?}"))
            .to_owned();
        Self {
            child,
            log,
            address,
        }
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            self.address
        )
        .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }

    /// Asks until it is ready, which takes as long as making its tables.
    pub(crate) fn wait_until_ready(&self) {
        let started = Instant::now();
        while !self.get("/api/ready").starts_with("HTTP/1.1 200") {
            assert!(started.elapsed() < Duration::from_secs(20), "never ready");
        }
    }

    /// Ends it with SIGTERM; its exit code and what it logged since it started.
    pub(crate) fn terminate(mut self) -> (Option<i32>, String) {
        let sent = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

#[test]
fn a_service_says_how_it_is_and_ends_in_good_order() {
    let folder = Folder::new();
    let served = Served::start(folder.command(&["--listen", "127.0.0.1:0"]));
    assert!(served.get("/api/health").starts_with("HTTP/1.1 200"));
    served.wait_until_ready();
    let metrics = served.get("/metrics");
    assert!(
        metrics.contains("event_persister_received_total"),
        "{metrics}"
    );
    let (code, log) = served.terminate();
    assert_eq!(code, Some(0), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains("stopped received=0"), "{log}");
    assert!(last.ends_with("in_flight=0"), "{log}");
}

#[test]
fn a_service_without_its_store_is_alive_and_says_why_it_is_not_ready() {
    let folder = Folder::new();
    let mut command = folder.command(&["--listen", "127.0.0.1:0"]);
    command.env("EVENT_PERSISTER_DATABASE_URL", "sqlite://missing/x.db");
    let served = Served::start(command);
    assert!(served.get("/api/health").starts_with("HTTP/1.1 200"));
    let ready = served.get("/api/ready");
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    let (code, log) = served.terminate();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("missing"), "{log}");
}

#[test]
fn beyond_loopback_without_an_auth_string_only_health_is_served() {
    let folder = Folder::new();
    let mut served = Served::start(folder.command(&["--listen", "0.0.0.0:0"]));
    served.address = served.address.replace("0.0.0.0", "127.0.0.1");
    assert!(served.get("/api/health").starts_with("HTTP/1.1 200"));
    assert!(served.get("/metrics").starts_with("HTTP/1.1 404"));
    assert!(served.get("/api/events").starts_with("HTTP/1.1 404"));
    let (code, log) = served.terminate();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("EVENT_PERSISTER_HTTP_AUTH_STRING"), "{log}");
}

#[test]
fn an_auth_string_guards_all_but_health() {
    let folder = Folder::new();
    let mut command = folder.command(&["--listen", "127.0.0.1:0"]);
    command.env("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:hunter2");
    let served = Served::start(command);
    assert!(served.get("/api/health").starts_with("HTTP/1.1 200"));
    let refused = served.get("/metrics");
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    assert!(
        refused.ends_with(r#"{"exception_message":"Unauthorized"}"#),
        "{refused}"
    );
    assert_eq!(served.terminate().0, Some(0));
}
