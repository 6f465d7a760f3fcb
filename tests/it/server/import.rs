//! Files of events: bad lines, a killed import, and a large one.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin};

use super::super::support::binary::Ran;
use super::*;

fn database(folder: &Folder) -> Database {
    Database::new(&folder.path().join("event-persister.db"))
}

#[test]
fn bad_lines_become_dead_letters_with_their_numbers_and_stop_nothing() {
    let folder = Folder::new();
    let good = events(3);
    let bad = [
        (2, "no JSON".to_owned(), "JSON"),
        (4, r#"{"id":"7"}"#.to_owned(), "occurred"),
        (6, event().to_string().replace("test.1", ""), "resource"),
    ];
    let mut text = String::new();
    for (event, (_, line, _)) in good.iter().zip(&bad) {
        text.push_str(&format!("{event}\n{line}\n"));
    }
    // A blank line has a number and is no message.
    text.push_str("\n \r\n");
    let ran = folder.run_on(&["import", "-"], text.as_bytes()).exits(1);
    assert!(
        ran.stdout
            .starts_with("read 6, stored 3, duplicates 0, dead letters 3, "),
        "{ran:?}"
    );
    assert_eq!(ran.stdout.lines().count(), 1);
    assert_eq!(
        database(&folder).complete_events(),
        ids(&good).into_iter().collect()
    );

    let mut letters = folder.dead_letters();
    letters.reverse();
    assert_eq!(letters.len(), bad.len());
    for (letter, (number, line, word)) in letters.iter().zip(&bad) {
        assert_eq!(letter["position"], format!("stdin:{number}"));
        assert_eq!(letter["source"], "file");
        assert_eq!(letter["stage"], "parse");
        assert!(
            letter["reason"].as_str().unwrap().contains(word),
            "{letter}"
        );
        let number = letter["id"].to_string();
        let shown = folder.run(&["dead-letters", "show", &number, "--json"]);
        assert_eq!(shown.exits(0).json()["raw"], *line);
    }

    // Again: nothing is doubled, neither events nor letters.
    folder
        .run_on(&["import", "-"], text.as_bytes())
        .exits(1)
        .prints(&["read 6, stored 0, duplicates 3, dead letters 3, "]);
    let letters = folder.dead_letters();
    assert_eq!(letters.len(), bad.len());
    assert!(letters.iter().all(|letter| letter["attempts"] == 2));
}

/// An import that is given lines while it runs; killed when it is dropped.
struct Importing {
    child: Child,
    stdin: Option<ChildStdin>,
    database: Database,
}

impl Importing {
    fn start(folder: &Folder, variables: &[(&str, &str)]) -> Self {
        let mut child = folder.spawn(&["import", "-", "--json"], variables);
        Self {
            stdin: child.stdin.take(),
            child,
            database: database(folder),
        }
    }

    fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
    }

    /// Returns once this many events are stored.
    fn until_stored(&mut self, num: usize) {
        while self.database.num_events() < num {
            assert!(self.child.try_wait().unwrap().is_none(), "it has ended");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The most memory that it has had so far, in bytes.
    fn peak_memory(&self) -> u64 {
        let path = PathBuf::from(format!("/proc/{}/status", self.child.id()));
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kilobytes.parse::<u64>().unwrap() * 1024
    }

    /// Ends its input and waits for what comes of it.
    fn finish(mut self) -> Value {
        drop(self.stdin.take());
        let mut output = (Vec::new(), Vec::new());
        use std::io::Read as _;
        let (stdout, stderr) = (self.child.stdout.as_mut(), self.child.stderr.as_mut());
        stdout.unwrap().read_to_end(&mut output.0).unwrap();
        stderr.unwrap().read_to_end(&mut output.1).unwrap();
        let ran = Ran::new(std::process::Output {
            status: self.child.wait().unwrap(),
            stdout: output.0,
            stderr: output.1,
        });
        ran.exits(0).json()
    }
}

impl Drop for Importing {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn killed_in_the_middle_and_run_again_an_import_is_complete() {
    let folder = Folder::new();
    let small = ("EVENT_PERSISTER_BATCH_MAX_EVENTS", "50");
    let events = events(2000);
    let text = lines(&events);
    let mut seen = 0;
    for _ in 0..3 {
        let mut importing = Importing::start(&folder, &[small]);
        // The end of its input does not come, so it is in the middle when it is killed.
        importing.write(&text[..text.len() / 2]);
        importing.until_stored(seen + 1);
        importing.child.kill().unwrap();
        importing.child.wait().unwrap();
        seen = database(&folder).complete_events().len();
        if seen >= 900 {
            break;
        }
    }
    assert!(seen < events.len());
    let summary = folder
        .run_on(&["import", "-", "--json"], text.as_bytes())
        .exits(0)
        .json();
    assert_eq!(summary["read"], 2000);
    assert_eq!(summary["duplicates"], seen);
    assert_eq!(summary["stored"], 2000 - seen);
    assert_eq!(
        database(&folder).complete_events(),
        ids(&events).into_iter().collect()
    );
}

/// The bound is what the settings allow in flight, several times over for the copies on the way to
/// the database, and a base for the program itself: far below what is imported.
#[test]
fn memory_does_not_grow_with_the_file() {
    const NUM_EVENTS: usize = 4000;
    const EVENT_BYTES: usize = 32 * 1024;
    const MIB: u64 = 1024 * 1024;
    const BOUND: u64 = 48 * MIB;
    let folder = Folder::new();
    let settings = [
        ("EVENT_PERSISTER_PIPELINE_MAX_BYTES_IN_FLIGHT", "4MiB"),
        ("EVENT_PERSISTER_BATCH_MAX_BYTES", "1MiB"),
    ];
    let mut importing = Importing::start(&folder, &settings);
    let filler = "x".repeat(EVENT_BYTES);
    let mut num_bytes = 0;
    for _ in 0..NUM_EVENTS {
        let mut event = event();
        event["payload"]["text"] = filler.clone().into();
        let line = format!("{event}\n");
        num_bytes += line.len() as u64;
        importing.write(&line);
    }
    importing.until_stored(NUM_EVENTS);
    let peak = importing.peak_memory();
    assert!(num_bytes > 2 * BOUND);
    assert!(peak < BOUND, "{} MiB", peak / MIB);
    assert_eq!(importing.finish()["stored"], NUM_EVENTS);
}
