//! The binary, run to its end.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

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
            .envs(clock())
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

    /// Starts it with all three streams in the test's hands.
    pub(crate) fn spawn(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Child {
        self.command(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs it on what is written to its standard input.
    pub(crate) fn run_on(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut child = self.spawn(arguments, &[]);
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // On a thread of its own: it may print before it has read everything.
            scope.spawn(move || stdin.write_all(input).unwrap());
            Ran::new(child.wait_with_output().unwrap())
        })
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path().join(name), contents).unwrap();
    }

    /// Where its database is, unless somebody says otherwise.
    pub(crate) fn database_path(&self) -> PathBuf {
        self.path().join("event-persister.db")
    }

    pub(crate) fn is_empty(&self) -> bool {
        std::fs::read_dir(self.path()).unwrap().next().is_none()
    }

    /// All dead letters, the newest first.
    pub(crate) fn dead_letters(&self) -> Vec<Value> {
        let arguments = ["dead-letters", "list", "--json", "--limit", "1000000"];
        let listed = self.run(&arguments).exits(0).json();
        listed.as_array().unwrap().clone()
    }
}

/// What makes another date of today, if the tests run under `faketime`: the binary has the same.
fn clock() -> Vec<(&'static str, OsString)> {
    const NAMES: [&str; 4] = [
        "FAKETIME",
        "FAKETIME_SHARED",
        "FAKETIME_DONT_FAKE_MONOTONIC",
        "LD_PRELOAD",
    ];
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let set = NAMES.map(|name| Some((name, std::env::var_os(name)?)));
    if set[0].is_none() {
        return Vec::new();
    }
    set.into_iter().flatten().collect()
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn new(output: Output) -> Self {
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

/// A compressed file of the repository's `tests/data`.
pub(crate) fn data(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{error}: {path}"));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}
