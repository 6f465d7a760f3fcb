//! Whether it gets slower as the tables grow: events from Redis into a database that gets ever larger,
//! and `COPY` of the same rows into a second one that grows with it, in turns.
//!
//! `cargo bench --features service-tests --bench growth`
//!
//! | variable | default | |
//! |---|---|---|
//! | `BENCH_EVENTS` | 1000000 | events in the end |
//! | `BENCH_STEP` | 100000 | events in each turn |
//! | `BENCH_WRITERS` | 2 | our writers, and the connections of `COPY` |
//! | `BENCH_EVENTS_FILE` | generated | events to use, one a line, plain or gzipped |
//!
//! The clocks run as in the benchmark `pipeline`. Both databases are in one server, so that each turn
//! finds the other's pages in its memory. The quantiles of a flush, from handing a batch to a writer to
//! the end of its transaction, are estimated from the histogram in `/metrics`, whose bounds double.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use event_persister_actors::clock::{Clock as _, SystemClock};

#[allow(dead_code, reason = "other benchmarks and the tests need more of it")]
#[path = "support/kit.rs"]
mod kit;

use kit::load::{Load, Message};
use kit::postgres::Database;
use kit::reference::Way;
use kit::servers::Servers;
use kit::stats::{Samples, Table, shown};
use kit::{copy, persister, reference, servers, settings};

/// The two databases, which grow alike.
struct Growth {
    servers: Servers,
    ours: Database,
    theirs: Database,
    num_writers: usize,
}

/// What one step came to.
struct Step {
    ours: f64,
    copy: f64,
    /// In seconds.
    flush_p50: f64,
    flush_p99: f64,
}

impl Growth {
    /// Events a second of either, and the flushes of ours.
    fn step(&self, messages: &[Message], ours_first: bool) -> Step {
        let copy = || {
            let batches = copy::encode(messages);
            self.theirs.execute("CHECKPOINT");
            reference::run(&self.theirs, Way::Copy, self.num_writers, &batches)
        };
        let ours = || {
            self.servers.filled_stream(messages);
            self.ours.execute("CHECKPOINT");
            persister::run(&self.servers.redis, &self.ours, self.num_writers)
        };
        let (run, copied) = if ours_first {
            let run = ours();
            (run, copy())
        } else {
            let copied = copy();
            (ours(), copied)
        };
        let flush = |share| run.metrics.quantile("event_persister_flush_seconds", share);
        let num_events = messages.len() as f64;
        Step {
            ours: num_events / run.took.as_secs_f64(),
            copy: num_events / copied.as_secs_f64(),
            flush_p50: flush(0.5),
            flush_p99: flush(0.99),
        }
    }
}

fn megabytes(database: &Database) -> f64 {
    let query = "SELECT pg_database_size(current_database())";
    database.value(query).parse::<f64>().unwrap() / 1e6
}

fn main() {
    let file = settings::events_file();
    let num_events: usize = settings::number("BENCH_EVENTS", 1_000_000);
    let step = settings::number("BENCH_STEP", 100_000).clamp(1, num_events);
    let servers = Servers::start();
    let growth = Growth {
        ours: servers.fresh_database("ours"),
        theirs: servers.fresh_database("theirs"),
        servers,
        num_writers: settings::number("BENCH_WRITERS", 2),
    };
    let mut load = Load::new(file.as_deref(), SystemClock.now());
    let mut table = Table::new(&[
        "stored before",
        "database MB",
        "events/s",
        "COPY events/s",
        "ratio",
        "flush p50 ms",
        "p99 ms",
    ]);
    let mut ratios = Vec::new();
    for number in 0..num_events / step {
        let messages = load.take(step);
        let size = megabytes(&growth.ours);
        let done = growth.step(&messages, number % 2 == 0);
        let ratio = done.ours / done.copy;
        println!(
            "{} events: {:.0} events/s, ratio {ratio:.2}",
            (number + 1) * step,
            done.ours
        );
        ratios.push(ratio);
        table.row(vec![
            (number * step).to_string(),
            shown(Some(size), 0),
            shown(Some(done.ours), 0),
            shown(Some(done.copy), 0),
            shown(Some(ratio), 2),
            shown(Some(done.flush_p50 * 1e3), 0),
            shown(Some(done.flush_p99 * 1e3), 0),
        ]);
    }
    table.print();
    let ratios: Samples = ratios.into_iter().collect();
    println!(
        "ratio to COPY with {} connections: min {} median {} max {}",
        growth.num_writers,
        shown(ratios.min(), 2),
        shown(ratios.median(), 2),
        shown(ratios.max(), 2),
    );
    let digests = [&growth.ours, &growth.theirs].map(servers::digest);
    assert_eq!(
        digests[0], digests[1],
        "the two databases hold different rows"
    );
}
