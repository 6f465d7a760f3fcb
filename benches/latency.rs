//! How long it takes from `XADD`, or a publish to NATS, to a row that others see, at a steady rate and with default settings;
//! then the same while old events are trimmed from the same table.
//!
//! `cargo bench --features service-tests --bench latency`
//!
//! | variable | default | |
//! |---|---|---|
//! | `BENCH_BUS` | redis | what feeds the product: `redis` or `nats` |
//! | `BENCH_RATES` | 100,1000,2000 | events a second |
//! | `BENCH_SECONDS` | 20 | how long for each rate |
//! | `BENCH_EVENTS` | 200000 | old events to trim: enough for the whole time |
//! | `BENCH_EVENTS_FILE` | generated | events to use, one a line, plain or gzipped |
//!
//! *by COPY*: the same events at the same rate, without a bus, copied into the tables over two connections, whenever one
//! is free all that are due. It tells what the machine and its PostgreSQL can do.
//!
//! The clock runs from before the event is sent to the bus until a connection that listens has been told
//! by PostgreSQL that the transaction is committed; see `support/visible.rs`. The first second, in
//! which statements are prepared, counts as well.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::clock::{Clock as _, SystemClock};
use tokio::time::Instant;

#[allow(dead_code, reason = "other benchmarks and the tests need more of it")]
#[path = "support/kit.rs"]
mod kit;

use kit::load::{Load, Message};
use kit::persister::Persister;
use kit::reference::Way;
use kit::servers::Servers;
use kit::stats::{Samples, Table, shown};
use kit::visible::{self, Listener};
use kit::{copy, reference, settings};

/// The connections that put the old events there.
const NUM_FILLING: usize = 2;
/// Events that are written beforehand, and not measured.
const NUM_WARMING: usize = 30_000;
/// As many as the product has writers.
const NUM_COPYING: usize = 2;
/// How often it is looked which events are due; those are sent together.
const TICK: Duration = Duration::from_millis(1);

/// What one rate came to.
struct Turn {
    latencies: Samples,
    /// What the bus was in fact sent.
    events_per_second: f64,
    num_trimmed: f64,
    /// Whether there was still something to trim at the end.
    trimmed_throughout: bool,
}

fn turn(servers: &Servers, messages: &[Message], rate: usize, old: &[copy::CopyBatch]) -> Turn {
    let database = servers.fresh_database("bench");
    reference::run(&database, Way::Copy, NUM_FILLING, old);
    database.execute("CHECKPOINT");
    servers.bus().fill(&[]);
    let trim = [
        ("EVENT_PERSISTER_TRIM_EVERY", "1s"),
        ("EVENT_PERSISTER_TRIM_RETENTION", "1d"),
    ];
    let variables = if old.is_empty() { &[] } else { &trim[..] };
    let listener = Listener::start(&database);
    let persister = Persister::start(servers.bus(), &database, variables);
    persister.until_ready();
    let mut watch = servers.bus().watch();
    let started = Instant::now();
    let sent = publish(servers, messages, rate);
    let took = started.elapsed();
    let num_old = "SELECT count(*) FROM events WHERE occurred < now() - interval '1 day'";
    let trimmed_throughout = database.value(num_old) != "0";
    watch.until_settled(&|| persister.log());
    let moments = listener.stop();
    let trimmed = persister
        .metrics()
        .value("event_persister_trimmed_events_total");
    persister.stop();
    let latencies = visible::latencies(&database, &moments, &sent);
    Turn {
        latencies: latencies.iter().map(Duration::as_secs_f64).collect(),
        events_per_second: messages.len() as f64 / took.as_secs_f64(),
        num_trimmed: trimmed,
        trimmed_throughout,
    }
}

/// The same events at the same rate, copied into the tables without a bus: what the machine and its PostgreSQL can do.
fn reference_turn(servers: &Servers, messages: &[Message], rate: usize) -> Samples {
    let database = servers.fresh_database("bench");
    let listener = Listener::start(&database);
    let due = reference::run_at_rate(&database, NUM_COPYING, rate, messages);
    let latencies = visible::latencies(&database, &listener.stop(), &due);
    latencies.iter().map(Duration::as_secs_f64).collect()
}

/// Sends events at this rate; when each of them was sent, by id.
fn publish(servers: &Servers, messages: &[Message], rate: usize) -> HashMap<String, DateTime<Utc>> {
    let mut publish = servers.bus().publisher();
    let started = Instant::now();
    let mut sent = HashMap::with_capacity(messages.len());
    let mut rest = messages;
    while !rest.is_empty() {
        let due = (started.elapsed().as_secs_f64() * rate as f64) as usize + 1;
        let num_due = due.saturating_sub(messages.len() - rest.len());
        if num_due == 0 {
            std::thread::sleep(TICK);
            continue;
        }
        let (now_due, later) = rest.split_at(num_due.min(rest.len()));
        rest = later;
        let now = SystemClock.now();
        publish(now_due);
        sent.extend(now_due.iter().map(|message| (message.id.clone(), now)));
    }
    sent
}

fn main() {
    let file = settings::events_file();
    let seconds: usize = settings::number("BENCH_SECONDS", 20);
    let rates = settings::numbers("BENCH_RATES", &[100, 1_000, 2_000]);
    let num_old = settings::number("BENCH_EVENTS", 200_000);
    let old_since = SystemClock.now() - TimeDelta::days(60);
    let old = copy::encode(&Load::new(file.as_deref(), old_since).take(num_old));
    let mut load = Load::new(file.as_deref(), SystemClock.now());
    let servers = Servers::with_chosen_bus();
    servers.warm_up("warm", &copy::encode(&load.take(NUM_WARMING)));
    let mut table = Table::new(&[
        "asked for",
        "events/s sent",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "trimmed",
    ]);
    let mut row = |what: String, latencies: &Samples, rest: [String; 2]| {
        let millis = |seconds: Option<f64>| shown(seconds.map(|one| one * 1e3), 1);
        let [sent, trimmed] = rest;
        table.row(vec![
            what,
            sent,
            millis(latencies.median()),
            millis(latencies.quantile(0.99)),
            millis(latencies.quantile(0.999)),
            millis(latencies.max()),
            trimmed,
        ]);
    };
    for trims in [false, true] {
        for &rate in &rates {
            let messages = load.take(rate * seconds);
            if !trims {
                let latencies = reference_turn(&servers, &messages, rate);
                let rest = ["-".to_owned(), "-".to_owned()];
                row(format!("{rate}/s by COPY"), &latencies, rest);
            }
            let turn = turn(&servers, &messages, rate, if trims { &old } else { &[] });
            let trimmed = match (trims, turn.trimmed_throughout) {
                (false, _) => "-".to_owned(),
                (true, true) => shown(Some(turn.num_trimmed), 0),
                (true, false) => format!("{:.0}, all too soon", turn.num_trimmed),
            };
            row(
                format!("{rate}/s{}", if trims { " and trim" } else { "" }),
                &turn.latencies,
                [shown(Some(turn.events_per_second), 0), trimmed],
            );
        }
    }
    table.print();
    println!(
        "From the publish to the row's being visible; by COPY from when the event is due. Where all was trimmed too \
         soon, raise BENCH_EVENTS."
    );
}
