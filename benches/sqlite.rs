//! How much of SQLite's own speed `event-persister import` reaches, from a file to committed rows.
//!
//! The reference inserts the very rows that an import made, one by one through prepared statements,
//! in a transaction for each 1,000 events, and for each 1,250 as the import does, with the same schema
//! and PRAGMAs; its texts are in memory before its clock starts. All begin with an empty file and end
//! when it is closed. They take turns.
//!
//! `cargo bench --bench sqlite`; `BENCH_EVENTS` (50,000), `BENCH_ROUNDS` (7), `BENCH_EVENTS_FILE`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use event_persister_actors::clock::{Clock as _, SystemClock};
use rusqlite::params_from_iter;
use rusqlite::types::Value;
use tokio::time::Instant;

use binary::Folder;
use stats::{Samples, turns};

#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/binary.rs"]
mod binary;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/generated.rs"]
mod generated;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/load.rs"]
mod load;
#[path = "support/plain_sqlite.rs"]
mod plain_sqlite;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/settings.rs"]
mod settings;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/stats.rs"]
mod stats;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/usage.rs"]
mod usage;

/// Events in a transaction: those of a round number, and those of the import.
const BATCHES: [usize; 2] = [1_000, 1_250];
const EVENT_COLUMNS: &str = "id, occurred, received, event, resource_id, resource, related, \
    related_resource_ids, payload, follows, recorded, created, updated";
const RESOURCE_COLUMNS: &str =
    "id, event_id, occurred, resource_id, resource_role, resource, created, updated";

type Row = Vec<Value>;

/// An event's row and those of its resources.
struct Rows {
    event: Row,
    resources: Vec<Row>,
}

/// What one run measured.
struct Run {
    took: Duration,
    cpu: Duration,
    /// Empty for the reference, which shares its process with the benchmark.
    peak_mib: Option<f64>,
}

/// A database without events, with the schema that an import would make.
fn new_database(folder: &Folder) -> PathBuf {
    let path = folder.path().join("bench.db");
    plain_sqlite::remove(&path);
    folder
        .run(&["migrate", "--database-url", "sqlite://bench.db"])
        .exits(0);
    path
}

fn import(folder: &Folder) -> Run {
    let arguments = [
        "import",
        "events.jsonl",
        "--database-url",
        "sqlite://bench.db",
    ];
    let mut command = folder.command(&arguments);
    let ran = usage::run(command.env("EVENT_PERSISTER_LOG_LEVEL", "warn"));
    Run {
        took: ran.took,
        cpu: ran.cpu,
        peak_mib: Some(ran.peak_mib),
    }
}

fn insert_prepared(database: &Path, rows: &[Rows], batch: usize) -> Run {
    let (started, cpu_before) = (Instant::now(), usage::own());
    let connection = plain_sqlite::open(database);
    let mut events = connection
        .prepare(&insert("events", EVENT_COLUMNS))
        .unwrap();
    let resources = insert("event_resources", RESOURCE_COLUMNS);
    let mut resources = connection.prepare(&resources).unwrap();
    for batch in rows.chunks(batch) {
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        for row in batch {
            events.execute(params_from_iter(&row.event)).unwrap();
            for resource in &row.resources {
                resources.execute(params_from_iter(resource)).unwrap();
            }
        }
        connection.execute_batch("COMMIT").unwrap();
    }
    drop((events, resources));
    connection.close().unwrap();
    Run {
        took: started.elapsed(),
        cpu: usage::own() - cpu_before,
        peak_mib: None,
    }
}

fn insert(table: &str, columns: &str) -> String {
    let values = vec!["?"; columns.split(", ").count()].join(", ");
    format!("INSERT INTO {table} ({columns}) VALUES ({values})")
}

/// All rows, events in the order in which they were written.
fn rows_of(database: &Path) -> Vec<Rows> {
    let connection = plain_sqlite::open(database);
    let all = |table: &str, columns: &str| -> Vec<Row> {
        let sql = format!("SELECT {columns} FROM {table} ORDER BY rowid");
        let mut select = connection.prepare(&sql).unwrap();
        let num_columns = select.column_count();
        let rows = select.query_map([], |row| (0..num_columns).map(|at| row.get(at)).collect());
        rows.unwrap().map(Result::unwrap).collect()
    };
    let mut resources = all("event_resources", RESOURCE_COLUMNS)
        .into_iter()
        .peekable();
    let events = all("events", EVENT_COLUMNS).into_iter().map(|event| {
        let is_of_event = |resource: &Row| resource[1] == event[0];
        let resources = std::iter::from_fn(|| resources.next_if(is_of_event)).collect();
        Rows { event, resources }
    });
    events.collect()
}

/// As many rows as there should be, in both tables.
fn check(database: &Path, rows: &[Rows]) {
    let count = |table| plain_sqlite::number(database, &format!("SELECT count(*) FROM {table}"));
    assert_eq!(count("events"), rows.len());
    let num_resources: usize = rows.iter().map(|row| row.resources.len()).sum();
    assert_eq!(count("event_resources"), num_resources);
}

fn main() {
    let num_events = settings::number("BENCH_EVENTS", 50_000);
    let num_rounds = settings::number("BENCH_ROUNDS", 7);
    let folder = Folder::new();
    let events = load::events(num_events, SystemClock.now());
    println!("{}, {num_rounds} rounds", load::describe(&events));
    folder.write("events.jsonl", events.join("\n"));
    let database = new_database(&folder);
    import(&folder);
    let rows = rows_of(&database);
    assert_eq!(rows.len(), num_events);
    check(&database, &rows);

    let names = ["import", "inserts by 1,000", "inserts by 1,250"];
    let mut rates = names.map(|_| Samples::default());
    let mut micros = names.map(|_| Samples::default());
    let mut peaks = Samples::default();
    for round in 0..num_rounds {
        for variant in turns(names.len(), round) {
            let database = new_database(&folder);
            let run = match variant {
                0 => import(&folder),
                reference => insert_prepared(&database, &rows, BATCHES[reference - 1]),
            };
            check(&database, &rows);
            rates[variant].push(num_events as f64 / run.took.as_secs_f64());
            micros[variant].push(run.cpu.as_secs_f64() * 1e6 / num_events as f64);
            run.peak_mib.into_iter().for_each(|peak| peaks.push(peak));
        }
    }
    println!("{:<28}{:>10}{:>10}{:>10}", "", "min", "median", "max");
    for (variant, name) in names.into_iter().enumerate() {
        println!("{:<28}{}", format!("{name}, events/s"), rates[variant]);
        println!(
            "{:<28}{:.1}",
            format!("{name}, µs CPU/event"),
            micros[variant]
        );
    }
    println!("{:<28}{peaks:.1}", "import, peak MiB");
    for (name, reference) in names.iter().zip(&rates).skip(1) {
        let title = format!("import ÷ {name}");
        println!("{title:<28}{:.2}", rates[0].over(reference));
    }
}
