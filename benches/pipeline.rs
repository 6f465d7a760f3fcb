//! How fast events get from Redis, or NATS, into PostgreSQL with all of Prefect's indexes, and what that costs,
//! against binary `COPY` of the same rows into the same tables.
//!
//! `cargo bench --features service-tests --bench pipeline`
//!
//! | variable | default | |
//! |---|---|---|
//! | `BENCH_EVENTS` | 50000 | events in each turn |
//! | `BENCH_ROUNDS` | 5 | turns of each contestant, interleaved |
//! | `BENCH_BUS` | redis | what feeds the product: `redis` or `nats` |
//! | `BENCH_WRITERS` | 1,2,4 | our writers, and the connections of `COPY` |
//! | `BENCH_EVENTS_FILE` | generated | events to use, one a line, plain or gzipped |
//! | `PREFECT_PYTHON` | none | a Python with Prefect in it: its persister takes part |
//! | `BENCH_PREFECT_EVENTS` | 5000 | events in its turns |
//!
//! The clock of the product runs from the start of its process, with the stream full, to the last
//! acknowledgement: it connects, compares the schema, reads, parses, commits and acknowledges within it.
//! The clock of `COPY` runs from the first transaction to the last commit: its connections are made and
//! its rows are encoded before, and it acknowledges to nobody. Each turn has a database of its own, and
//! a checkpoint before it. A turn of `COPY` before all others makes the files of the log, and counts for
//! nobody. A ratio is the median over the rounds of ours to theirs in the same round.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::collections::HashMap;
use std::time::Duration;

use event_persister_actors::clock::{Clock as _, SystemClock};

#[allow(dead_code, reason = "other benchmarks and the tests need more of it")]
#[path = "support/kit.rs"]
mod kit;

use kit::copy::CopyBatch;
use kit::load::{Load, Message};
use kit::reference::Way;
use kit::servers::{Cost, Servers};
use kit::stats::{Samples, Table, shown};
use kit::{copy, persister, prefect, reference, servers, settings};

/// Who writes, through how many connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Contestant {
    who: Who,
    num_connections: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Ours,
    Copy,
    CopyLz4,
    Staged,
    Prefect,
}

impl Contestant {
    fn name(self) -> String {
        let name = match self.who {
            Who::Ours => "event-persister",
            Who::Copy => "COPY",
            Who::CopyLz4 => "COPY, lz4",
            Who::Staged => "COPY, staged",
            Who::Prefect => return "Prefect".to_owned(),
        };
        format!("{name}, {}", self.num_connections)
    }
}

/// What one turn came to; for each event where nothing else is said.
struct Turn {
    events_per_second: f64,
    /// Of the persister, in microseconds.
    processor: Option<f64>,
    /// Of all processes of PostgreSQL, in microseconds.
    postgres: f64,
    /// In MiB, at most, in the whole turn.
    memory: Option<f64>,
    wal_bytes: f64,
    redis_commands: Option<f64>,
    /// Of the product: what tells whether the writers, or what feeds them, was the bound.
    remark: String,
}

/// What all turns share.
struct Contest {
    servers: Servers,
    messages: Vec<Message>,
    batches: Vec<CopyBatch>,
    /// What must be in the tables after each turn.
    digest: Option<Vec<Option<String>>>,
    num_prefect_events: usize,
    python: Option<String>,
}

impl Contest {
    fn new() -> Self {
        let file = settings::events_file();
        let mut load = Load::new(file.as_deref(), SystemClock.now());
        let messages = load.take(settings::number("BENCH_EVENTS", 50_000));
        let batches = copy::encode(&messages);
        let servers = Servers::with_chosen_bus();
        servers.warm_up("bench", &batches);
        Self {
            servers,
            batches,
            num_prefect_events: settings::number("BENCH_PREFECT_EVENTS", 5_000).min(messages.len()),
            messages,
            digest: None,
            python: settings::text("PREFECT_PYTHON"),
        }
    }

    /// Those whose turns stand next to each other, in one round.
    fn groups(&self) -> Vec<Vec<Contestant>> {
        let database = self.servers.fresh_database("bench");
        let mut who = vec![Who::Ours, Who::Copy, Who::CopyLz4, Who::Staged];
        who.retain(|who| *who != Who::CopyLz4 || self.servers.knows_lz4(&database));
        let of = |who: &Who, num_connections| Contestant {
            who: *who,
            num_connections,
        };
        let numbers = settings::numbers("BENCH_WRITERS", &[1, 2, 4]);
        let groups = numbers
            .into_iter()
            .map(|number| who.iter().map(|who| of(who, number)).collect());
        let prefect = self.python.iter().map(|_| vec![of(&Who::Prefect, 1)]);
        groups.chain(prefect).collect()
    }

    fn turn(&mut self, contestant: Contestant) -> Turn {
        match contestant.who {
            Who::Ours => self.ours(contestant.num_connections),
            Who::Copy => self.reference(Way::Copy, contestant.num_connections),
            Who::CopyLz4 => self.reference(Way::CopyLz4, contestant.num_connections),
            Who::Staged => self.reference(Way::Staged, contestant.num_connections),
            Who::Prefect => self.prefect(),
        }
    }

    fn ours(&mut self, num_writers: usize) -> Turn {
        let database = self.servers.fresh_database("bench");
        let bus = self.servers.bus();
        bus.fill(&self.messages);
        let work = || persister::run(bus, &database, num_writers);
        let (run, cost) = self.servers.cost(&database, work);
        self.check(&database);
        let num_events = self.messages.len() as f64;
        Turn {
            processor: Some(micros(run.processor) / num_events),
            memory: Some(run.peak_memory),
            redis_commands: run.redis_commands.map(|num| num / num_events),
            remark: remark(&run, num_writers),
            ..Turn::new(num_events, run.took, cost)
        }
    }

    fn reference(&mut self, way: Way, num_connections: usize) -> Turn {
        let database = self.servers.fresh_database("bench");
        let work = || reference::run(&database, way, num_connections, &self.batches);
        let (took, cost) = self.servers.cost(&database, work);
        self.check(&database);
        Turn::new(self.messages.len() as f64, took, cost)
    }

    fn prefect(&mut self) -> Turn {
        let database = self.servers.fresh_database("bench");
        let num_events = self.num_prefect_events;
        self.servers.filled_stream(&self.messages[..num_events]);
        let python = self.python.as_deref().unwrap();
        let work = || prefect::run(python, &self.servers.redis, &database, num_events);
        let (run, cost) = self.servers.cost(&database, work);
        let num_timed = (num_events - run.num_before) as f64;
        Turn {
            events_per_second: num_timed / run.took.as_secs_f64(),
            processor: Some(micros(run.processor) / num_timed),
            memory: Some(run.peak_memory),
            ..Turn::new(num_events as f64, run.took, cost)
        }
    }

    /// All write the same rows; what does not is no contestant.
    fn check(&mut self, database: &kit::postgres::Database) {
        let digest = servers::digest(database);
        let expected = self.digest.get_or_insert_with(|| digest.clone());
        assert_eq!(
            *expected, digest,
            "the rows differ from those of the first turn"
        );
    }
}

impl Turn {
    fn new(num_events: f64, took: Duration, cost: Cost) -> Self {
        Self {
            events_per_second: num_events / took.as_secs_f64(),
            processor: None,
            postgres: micros(cost.processor) / num_events,
            memory: None,
            wal_bytes: cost.wal_bytes / num_events,
            redis_commands: None,
            remark: String::new(),
        }
    }
}

/// How much of the whole turn, start included, the writers had a batch in hand, and how large one was.
fn remark(run: &persister::Run, num_writers: usize) -> String {
    let flush = |part| {
        run.metrics
            .value(&format!("event_persister_flush_seconds_{part}"))
    };
    let busy = flush("sum") / (run.took.as_secs_f64() * num_writers as f64);
    let batch = run.metrics.value("event_persister_stored_total") / flush("count");
    format!(
        ", writers busy {:.0} %, {batch:.0} events a batch",
        busy * 100.0
    )
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The turns of each contestant, round by round.
type Turns = HashMap<Contestant, Vec<Turn>>;

fn print(groups: &[Vec<Contestant>], turns: &Turns) {
    let mut table = Table::new(&[
        "who, connections",
        "events/s min",
        "median",
        "max",
        "to COPY",
        "to COPY, lz4",
        "own CPU µs",
        "PostgreSQL CPU µs",
        "WAL bytes",
        "Redis commands",
        "peak MiB median",
        "max",
    ]);
    for contestant in groups.iter().flatten() {
        let samples = |of: fn(&Turn) -> Option<f64>| -> Samples {
            turns[contestant].iter().filter_map(of).collect()
        };
        let median = |digits, of| shown(samples(of).median(), digits);
        let rates = samples(|turn| Some(turn.events_per_second));
        table.row(vec![
            contestant.name(),
            shown(rates.min(), 0),
            shown(rates.median(), 0),
            shown(rates.max(), 0),
            shown(ratio(*contestant, Who::Copy, turns), 2),
            shown(ratio(*contestant, Who::CopyLz4, turns), 2),
            median(1, |turn| turn.processor),
            median(0, |turn| Some(turn.postgres)),
            median(0, |turn| Some(turn.wal_bytes)),
            median(4, |turn| turn.redis_commands),
            median(0, |turn| turn.memory),
            shown(samples(|turn| turn.memory).max(), 0),
        ]);
    }
    table.print();
    println!("CPU, WAL and commands are for each event, medians.");
}

/// The median of the rounds' own ratios of events a second.
fn ratio(contestant: Contestant, other: Who, turns: &Turns) -> Option<f64> {
    let other = Contestant {
        who: other,
        num_connections: contestant.num_connections,
    };
    let others = turns
        .get(&other)
        .filter(|_| contestant.who != Who::Prefect)?;
    let rounds = turns[&contestant].iter().zip(others);
    let ratios: Samples = rounds
        .map(|(ours, theirs)| ours.events_per_second / theirs.events_per_second)
        .collect();
    ratios.median()
}

fn main() {
    let mut contest = Contest::new();
    let num_rounds: usize = settings::number("BENCH_ROUNDS", 5);
    let groups = contest.groups();
    let mean_bytes = contest
        .messages
        .iter()
        .map(|one| one.data.len())
        .sum::<usize>();
    println!(
        "{} events of {} bytes on average from {}, {num_rounds} rounds",
        contest.messages.len(),
        mean_bytes / contest.messages.len(),
        contest.servers.bus().name(),
    );
    let mut turns = Turns::new();
    for round in 0..num_rounds {
        for group in &groups {
            let mut order = group.clone();
            // So that nobody always profits, or suffers, from being first.
            if round % 2 == 1 {
                order.reverse();
            }
            for contestant in order {
                let turn = contest.turn(contestant);
                println!(
                    "round {}: {} {:.0} events/s{}",
                    round + 1,
                    contestant.name(),
                    turn.events_per_second,
                    turn.remark,
                );
                turns.entry(contestant).or_default().push(turn);
            }
        }
    }
    print(&groups, &turns);
}
