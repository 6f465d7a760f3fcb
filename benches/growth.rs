//! Whether it gets slower as the tables grow: events from Redis into a database that gets ever larger,
//! and `COPY` of the same rows into a second one that grows with it, in turns, several times over.
//!
//! `cargo bench --features service-tests --bench growth`
//!
//! | variable | default | |
//! |---|---|---|
//! | `BENCH_EVENTS` | 1000000 | events in the end |
//! | `BENCH_STEP` | 100000 | events in each turn |
//! | `BENCH_ROUNDS` | 5 | how often they grow from nothing |
//! | `BENCH_WRITERS` | 2 | our writers, and the connections of `COPY` |
//! | `BENCH_EVENTS_FILE` | generated | events to use, one a line, plain or gzipped |
//!
//! The clocks run as in the benchmark `pipeline`. Both databases are in one server, so that each turn
//! finds the other's pages in its memory. Who goes first changes from step to step, and at each size from
//! round to round. A ratio is the median over the rounds of ours to `COPY`'s at that size. The quantiles of
//! a flush, from handing a batch to a writer to the end of its transaction, are estimated from the
//! histogram in `/metrics`, whose bounds double.
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
struct Growth<'a> {
    servers: &'a Servers,
    ours: Database,
    theirs: Database,
    num_writers: usize,
}

/// What one step came to.
struct Step {
    /// Of our database, before it.
    megabytes: f64,
    ours: f64,
    copy: f64,
    /// In seconds.
    flush_p50: f64,
    flush_p99: f64,
}

impl<'a> Growth<'a> {
    fn from_nothing(servers: &'a Servers, num_writers: usize) -> Self {
        Self {
            servers,
            ours: servers.fresh_database("ours"),
            theirs: servers.fresh_database("theirs"),
            num_writers,
        }
    }

    /// Events a second of either, and the flushes of ours.
    fn step(&self, messages: &[Message], ours_first: bool) -> Step {
        let megabytes = megabytes(&self.ours);
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
            megabytes,
            ours: num_events / run.took.as_secs_f64(),
            copy: num_events / copied.as_secs_f64(),
            flush_p50: flush(0.5),
            flush_p99: flush(0.99),
        }
    }

    /// That in the end both hold the same rows.
    fn check(&self) {
        let [ours, theirs] = [&self.ours, &self.theirs].map(servers::digest);
        assert_eq!(ours, theirs, "the two databases hold different rows");
    }
}

fn megabytes(database: &Database) -> f64 {
    let query = "SELECT pg_database_size(current_database())";
    database.value(query).parse::<f64>().unwrap() / 1e6
}

/// One row for each size, from its turns in all rounds.
fn print(sizes: &[Vec<Step>], step: usize) {
    let mut table = Table::new(&[
        "stored before",
        "database MB",
        "events/s",
        "COPY events/s",
        "ratio min",
        "median",
        "max",
        "flush p50 ms",
        "p99 ms",
        "p99 to p50 max",
    ]);
    for (number, turns) in sizes.iter().enumerate() {
        let samples = |of: fn(&Step) -> f64| -> Samples { turns.iter().map(of).collect() };
        let median = |of, digits| shown(samples(of).median(), digits);
        let ratios = samples(|turn| turn.ours).over(&samples(|turn| turn.copy));
        let [p50, p99] = [
            samples(|turn| turn.flush_p50),
            samples(|turn| turn.flush_p99),
        ];
        table.row(vec![
            (number * step).to_string(),
            median(|turn| turn.megabytes, 0),
            median(|turn| turn.ours, 0),
            median(|turn| turn.copy, 0),
            shown(ratios.min(), 2),
            shown(ratios.median(), 2),
            shown(ratios.max(), 2),
            median(|turn| turn.flush_p50 * 1e3, 0),
            median(|turn| turn.flush_p99 * 1e3, 0),
            shown(p99.over(&p50).max(), 1),
        ]);
    }
    table.print();
}

fn main() {
    let file = settings::events_file();
    let num_events: usize = settings::number("BENCH_EVENTS", 1_000_000);
    let step = settings::number("BENCH_STEP", 100_000).clamp(1, num_events);
    let num_rounds: usize = settings::number("BENCH_ROUNDS", 5);
    let num_writers = settings::number("BENCH_WRITERS", 2);
    let load = || Load::new(file.as_deref(), SystemClock.now());
    let servers = Servers::start();
    servers.warm_up("ours", &copy::encode(&load().take(step)));
    let mut sizes: Vec<Vec<Step>> = (0..num_events / step).map(|_| Vec::new()).collect();
    for round in 0..num_rounds {
        let growth = Growth::from_nothing(&servers, num_writers);
        let mut load = load();
        for (number, turns) in sizes.iter_mut().enumerate() {
            let messages = load.take(step);
            let done = growth.step(&messages, (round + number) % 2 == 0);
            println!(
                "round {}, from {}: {:.0} events/s, ratio {:.2}",
                round + 1,
                number * step,
                done.ours,
                done.ours / done.copy,
            );
            turns.push(done);
        }
        growth.check();
    }
    println!("{num_writers} writers, {num_rounds} rounds:");
    print(&sizes, step);
}
