//! What the cases record, and the table that is made of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What came of one case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    /// `area: what was broken`.
    fault: String,
    /// Events that were published, copies counted once.
    pub(crate) published: usize,
    pub(crate) stored: usize,
    pub(crate) letters: usize,
    /// Deliveries that were not the first, as the replicas counted that lived to the end.
    pub(crate) redelivered: u64,
    /// From the cure until nothing was pending or unread.
    pub(crate) settled_after: Duration,
    /// Of the largest replica, in MiB.
    pub(crate) peak_memory: u64,
    pub(crate) failed: bool,
}

impl Row {
    pub(crate) fn new(fault: &str) -> Self {
        Self {
            fault: fault.to_owned(),
            published: 0,
            stored: 0,
            letters: 0,
            redelivered: 0,
            settled_after: Duration::ZERO,
            peak_memory: 0,
            failed: false,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
fn outcomes() -> Option<String> {
    std::env::var("TEST_FAULTS_OUTCOMES").ok()
}

/// Adds a line to the file that `TEST_FAULTS_OUTCOMES` names, if it does.
pub(crate) fn record(row: &Row) {
    let Some(path) = outcomes() else { return };
    let mut line = serde_json::to_string(row).unwrap();
    line.push('\n');
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    // In one piece, since other cases write as well.
    file.write_all(line.as_bytes()).unwrap();
}

const HEAD: &str = "\
# What was broken, and what came of it

Made by `tests/run.sh --faults`, from a run of the whole suite; the cases are `tests/it/faults/*.rs`.
Each breaks something while events are being published and then asks: is every event one row with all
of its resources, or a dead letter where it had to become one? Is nothing left pending? Did it recover
unaided within bounded memory, and does the ledger add up? Only where the fault itself destroys what
Redis had (a flush, a kill without its append-only file, trimming past what was read) is less stored
than was published.

Columns: events published (copies counted once), rows, dead letters, deliveries that were not the
first, the time from the cure until nothing was pending or unread, and the most memory that a replica
(a debug build) had resident.

| what was broken | published | stored | dead letters | redelivered | settled after | memory | outcome |
|---|--:|--:|--:|--:|--:|--:|---|
";

fn render(rows: &BTreeMap<String, Row>) -> String {
    let mut table = HEAD.to_owned();
    for row in rows.values() {
        writeln!(
            table,
            "| {} | {} | {} | {} | {} | {:.1} s | {} MiB | {} |",
            row.fault,
            row.published,
            row.stored,
            row.letters,
            row.redelivered,
            row.settled_after.as_secs_f64(),
            row.peak_memory,
            if row.failed {
                "**FAILED**"
            } else {
                "nothing lost"
            },
        )
        .unwrap();
    }
    let num_failed = rows.values().filter(|row| row.failed).count();
    writeln!(table, "\n{} cases, {num_failed} failed.", rows.len()).unwrap();
    table
}

#[test]
fn the_table_tells_what_failed() {
    let mut bad = Row::new("a: broken");
    bad.failed = true;
    let rows = [bad, Row::new("b: well")].map(|row| (row.fault.clone(), row));
    let table = render(&BTreeMap::from(rows));
    assert!(table.contains("| a: broken | 0 | 0 | 0 | 0 | 0.0 s | 0 MiB | **FAILED** |"));
    assert!(table.ends_with("2 cases, 1 failed.\n"), "{table}");
}

#[test]
#[ignore = "the last step of tests/run.sh --faults"]
fn is_written_from_the_outcomes() {
    let outcomes = std::fs::read_to_string(outcomes().unwrap()).unwrap();
    let rows: BTreeMap<String, Row> = (outcomes.lines())
        .map(|line| serde_json::from_str::<Row>(line).unwrap())
        .map(|row| (row.fault.clone(), row))
        .collect();
    assert!(rows.len() >= 40, "{} cases", rows.len());
    std::fs::write("tests/FAULTS.md", render(&rows)).unwrap();
}
