//! Files of events: bad lines, a killed import, and a large one.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::process::{Child, ChildStdin};

use event_persister_actors::clock::{Clock as _, SystemClock};
use tokio::time::Instant;

use super::super::support::binary::Ran;
use super::super::support::server::mebibytes_of;
use super::*;

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
        folder.database().complete_events(),
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
            database: folder.database(),
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

    /// The most memory that it has had so far, in bytes, without the pages of the program's own file: how much of
    /// that is in memory depends on how large an unoptimised build is.
    fn peak_memory(&self) -> u64 {
        let of = |what| mebibytes_of(self.child.id(), what);
        (of("VmHWM") - of("RssFile")) * 1024 * 1024
    }

    /// Ends its input and waits for what comes of it.
    fn finish(mut self) -> Value {
        drop(self.stdin.take());
        let mut output = (Vec::new(), Vec::new());
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
        seen = folder.database().complete_events().len();
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
        folder.database().complete_events(),
        ids(&events).into_iter().collect()
    );
}

/// The bound is what the settings allow in flight, several times over for the copies on the way to
/// the database: far below what is imported.
#[test]
fn memory_does_not_grow_with_the_file() {
    const NUM_EVENTS: usize = 3100;
    const EVENT_BYTES: usize = 32 * 1024;
    const MIB: u64 = 1024 * 1024;
    const BOUND: u64 = 24 * MIB;
    let folder = Folder::new();
    let settings = [
        ("EVENT_PERSISTER_PIPELINE_MAX_BYTES_IN_FLIGHT", "4MiB"),
        ("EVENT_PERSISTER_BATCH_MAX_BYTES", "1MiB"),
    ];
    let mut importing = Importing::start(&folder, &settings);
    let filler = "x".repeat(EVENT_BYTES);
    let mut num_bytes = 0;
    for _ in 0..NUM_EVENTS {
        // Written into the text, which is far quicker in a debug build than into the event.
        let line = format!("{}\n", event()).replace("é", &filler);
        num_bytes += line.len() as u64;
        importing.write(&line);
    }
    importing.until_stored(NUM_EVENTS);
    let peak = importing.peak_memory();
    assert!(num_bytes > 2 * BOUND);
    assert!(peak < BOUND, "{} MiB", peak / MIB);
    assert_eq!(importing.finish()["stored"], NUM_EVENTS);
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_file_is_read_as_what_it_is() {
    let folder = Folder::new();
    let events = events(6);
    let pretty = |events: &[Value]| {
        let texts = events
            .iter()
            .map(|event| serde_json::to_string_pretty(event).unwrap());
        texts.collect::<Vec<_>>().join("\n")
    };
    folder.write("list.json", Value::from(events[..1].to_vec()).to_string());
    folder.write("pretty.json", pretty(&events[1..3]));
    let members = [gzip(&lines(&events[3..4])), gzip(&lines(&events[4..5]))];
    folder.write("lines.gz", members.concat());
    let marked = format!("\u{feff}{}", events[5]);
    folder.write(
        "marked.zst",
        zstd::stream::encode_all(marked.as_bytes(), 1).unwrap(),
    );
    for (name, num) in [
        ("list.json", 1),
        ("pretty.json", 2),
        ("lines.gz", 2),
        ("marked.zst", 1),
    ] {
        folder
            .run(&["import", name])
            .exits(0)
            .prints(&[&format!("read {num}, stored {num}, ")]);
    }
    let expected = ids(&events).into_iter().collect();
    assert_eq!(folder.database().complete_events(), expected);
}

#[test]
fn what_was_cut_off_is_written_up_to_there() {
    let folder = Folder::new();
    let events = events(2_000);
    let whole = gzip(&lines(&events));
    folder.write("cut.gz", &whole[..whole.len() / 2]);
    let ran = folder.run(&["import", "cut.gz"]).exits(1).complains(&[
        "cut.gz any further: line ",
        &format!("the gzip data breaks off after {} bytes", whole.len() / 2),
    ]);
    let stored = folder.database().num_events();
    assert!(0 < stored && stored < events.len());
    let number = ran
        .stderr
        .split("line ")
        .nth(1)
        .and_then(|rest| rest.split(':').next());
    assert_eq!(number, Some((stored + 1).to_string().as_str()), "{ran:?}");
    folder.write("whole.gz", &whole);
    folder
        .run(&["import", "whole.gz"])
        .exits(0)
        .prints(&[&format!("duplicates {stored}")]);
}

#[test]
fn utf_16_is_refused_with_the_command_that_cures_it() {
    let folder = Folder::new();
    let text = format!("\u{feff}{}", lines(&events(3)));
    let data: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    folder.write("windows.jsonl", &data);
    folder
        .run(&["import", "windows.jsonl"])
        .exits(1)
        .prints(&["read 0, stored 0, duplicates 0, dead letters 0"])
        .complains(&[
            "it is UTF-16LE and not UTF-8",
            "`iconv -f UTF-16LE -t UTF-8`",
        ]);
    // And it does.
    let cured = std::process::Command::new("iconv")
        .args(["-f", "UTF-16LE", "-t", "UTF-8", "windows.jsonl"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    folder
        .run_on(&["import", "-"], &cured.stdout)
        .exits(0)
        .prints(&["stored 3"]);
}

#[test]
fn a_letter_stands_where_its_file_is_however_that_is_called() {
    let folder = Folder::new();
    folder.write("bad.jsonl", "nonsense\n");
    folder.write("list.json", format!("[{},\n 17]", event()));
    symlink("bad.jsonl", folder.path().join("link.jsonl")).unwrap();
    let absolute = folder.path().join("bad.jsonl");
    for name in [
        "bad.jsonl",
        "./bad.jsonl",
        "link.jsonl",
        absolute.to_str().unwrap(),
        "list.json",
    ] {
        folder
            .run(&["import", name])
            .exits(1)
            .complains(&["1 message is no event"]);
    }
    let place = |name: &str, rest: &str| {
        let path = folder.path().canonicalize().unwrap().join(name);
        format!("{}{rest}", path.display())
    };
    let letters = folder.dead_letters();
    let found: Vec<_> = letters
        .iter()
        .map(|letter| (letter["position"].clone(), letter["attempts"].clone()))
        .collect();
    assert_eq!(
        found,
        [
            (place("list.json", ":2[1]").into(), 1.into()),
            (place("bad.jsonl", ":1").into(), 4.into()),
        ]
    );
}

#[test]
fn says_that_events_are_older_than_retention() {
    let folder = Folder::new();
    let mut old = event();
    old["occurred"] = "2020-01-01T00:00:00Z".into();
    let mut new = event();
    new["occurred"] = SystemClock.now().to_rfc3339().into();
    let text = lines(&[old, new.clone()]);
    let ran = folder.run_on(&["import", "-"], text.as_bytes()).exits(0);
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
    ran.prints(&["stored 2, duplicates 0, dead letters 0, older than retention 1, "])
        .complains(&[
            "1 event is older than retention",
            "EVENT_PERSISTER_TRIM_RETENTION=",
        ]);
    let again = folder
        .run_on(&["import", "-"], lines(&[new]).as_bytes())
        .exits(0);
    assert!(
        !again.stdout.contains("older") && !again.stderr.contains("older"),
        "{again:?}"
    );
}

/// A PostgreSQL that is not there.
const NOWHERE: (&str, &str) = (
    "EVENT_PERSISTER_DATABASE_URL",
    "postgresql://nobody@127.0.0.1:1/nothing",
);

#[test]
fn waits_for_a_database_as_long_as_it_is_told_and_says_for_what() {
    let folder = Folder::new();
    folder.write("events.jsonl", lines(&events(3)));
    let started = Instant::now();
    let arguments = ["import", "events.jsonl", "--wait", "500ms"];
    folder
        .run_with(&arguments, &[NOWHERE])
        .exits(1)
        .prints(&["stored 0"])
        .complains(&[
            "waiting for the database, for at most 500ms",
            "127.0.0.1:1",
            "gave up after 500ms",
        ]);
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(started.elapsed() >= Duration::from_millis(500));
}

#[test]
fn the_first_signal_ends_an_import_that_waits_for_its_database() {
    let folder = Folder::new();
    folder.write("events.jsonl", lines(&events(3)));
    let mut child = folder.spawn(&["import", "events.jsonl"], &[NOWHERE]);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut told = String::new();
    while !told.contains("waiting for the database; SIGINT (Ctrl-C) ends it") {
        assert!(stderr.read_line(&mut told).unwrap() > 0, "{told}");
    }
    let started = Instant::now();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    stderr.read_to_string(&mut told).unwrap();
    // The file may not have been read by then.
    let after = told.contains("stopped by SIGINT after 3 events of events.jsonl, of which 3");
    let before = told.contains("stopped by SIGINT before anything of events.jsonl was read");
    assert!(after || before, "{told}");
}
