//! Whether retention keeps its rate as the tables grow: tables as Prefect has them, of which a twentieth is
//! expired, are trimmed at several sizes.
//!
//! `cargo bench --features service-tests --bench trim_sizes`
//!
//! | variable | default | |
//! |---|---|---|
//! | `BENCH_SIZES` | 500000,10000000 | events that are kept; ten millions take about 41 GB |
//! | `BENCH_SHARE` | 20 | one in so many is expired |
//! | `BENCH_ROUNDS` | 5 | passes at each size |
//! | `BENCH_EVENTS_FILE` | generated | events to use, one a line, plain or gzipped |
//!
//! The clock runs from the start of `event-persister trim` to its end. Before each round as many expired
//! events are put there again, and VACUUM and CHECKPOINT leave nothing to be done.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::process::Command;

use chrono::TimeDelta;
use event_persister_actors::clock::{Clock as _, SystemClock};

#[allow(dead_code, reason = "other benchmarks and the tests need more of it")]
#[path = "support/kit.rs"]
mod kit;

use kit::load::Load;
use kit::postgres::Database;
use kit::servers::Servers;
use kit::stats::{Samples, Table, shown};
use kit::{fill, settings, usage};

fn number(database: &Database, query: &str) -> usize {
    database.value(query).parse().unwrap()
}

/// One pass, as an operator makes it.
fn trim(database: &Database) -> usage::Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_event-persister"));
    command
        .env_clear()
        .args(["trim", "--yes", "--database-url", &database.url]);
    usage::run(&mut command)
}

fn main() {
    let sizes = settings::numbers("BENCH_SIZES", &[500_000, 10_000_000]);
    let share: usize = settings::number("BENCH_SHARE", 20);
    let num_rounds: usize = settings::number("BENCH_ROUNDS", 5);
    let file = settings::events_file();
    let servers = Servers::start();
    let database = servers.fresh_database("bench");
    let mut kept = Load::new(file.as_deref(), SystemClock.now() - TimeDelta::days(1));
    let mut expired = Load::new(file.as_deref(), SystemClock.now() - TimeDelta::days(60));
    let mut table = Table::new(&[
        "events kept",
        "expired",
        "rows/s min",
        "median",
        "max",
        "MiB at most",
    ]);
    let mut num_kept = 0;
    for size in sizes {
        fill::unsynced(&database, || {
            fill::fill(&[&database], &mut kept, size - num_kept);
        });
        num_kept = size;
        let num_expired = size / share;
        let (mut rates, mut peaks) = (Samples::default(), Samples::default());
        for round in 0..num_rounds {
            fill::unsynced(&database, || {
                fill::fill(&[&database], &mut expired, num_expired);
                database.execute("VACUUM (ANALYZE)");
            });
            let num_rows = "SELECT (SELECT count(*) FROM events) + count(*) FROM event_resources";
            let before = number(&database, num_rows);
            let ran = trim(&database);
            let num_removed = before - number(&database, num_rows);
            assert_eq!(number(&database, "SELECT count(*) FROM events"), size);
            rates.push(num_removed as f64 / ran.took.as_secs_f64());
            peaks.push(ran.peak_mib);
            println!(
                "{size}, round {}: {num_removed} rows in {:.1?}",
                round + 1,
                ran.took
            );
        }
        table.row(vec![
            size.to_string(),
            num_expired.to_string(),
            shown(rates.min(), 0),
            shown(rates.median(), 0),
            shown(rates.max(), 0),
            shown(peaks.max(), 0),
        ]);
    }
    table.print();
}
