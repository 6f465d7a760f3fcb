//! Events by HTTP and WebSocket into SQLite: how many a second are committed and answered, and how
//! long a client waits, beside an import of the same events.
//!
//! Lists of 50 and single events by POST, and a WebSocket with a ping after 700 events, each from 1,
//! 16 and 128 clients. All clients share one thread, and what it costs is in the table: it is taken
//! from the server, which has the same processors. Every run begins with an empty database, and all
//! variants take turns. A variant sends at most 200 portions a client, so that a single client with
//! single events comes to an end too.
//!
//! `cargo bench --bench http`; `BENCH_EVENTS` (50,000), `BENCH_ROUNDS` (5), `BENCH_EVENTS_FILE`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout)]

use std::time::Duration;

use event_persister_actors::clock::{Clock as _, SystemClock};
use tokio::time::Instant;

use binary::Folder;
use light_client::Protocol;
use server::Server;
use stats::{Samples, shown, turns};

#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/binary.rs"]
mod binary;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/client.rs"]
mod client;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/database.rs"]
mod database;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/generated.rs"]
mod generated;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/light_client.rs"]
mod light_client;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/load.rs"]
mod load;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/metrics.rs"]
mod metrics;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/server.rs"]
mod server;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/settings.rs"]
mod settings;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/socket.rs"]
mod socket;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/stats.rs"]
mod stats;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/usage.rs"]
mod usage;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/wait.rs"]
mod wait;

const PORTIONS_A_CLIENT: usize = 200;
const CLIENTS: [usize; 3] = [1, 16, 128];
const PROTOCOLS: [Protocol; 3] = [Protocol::Post(50), Protocol::Post(1), Protocol::Socket(700)];

/// What is sent and by how many.
#[derive(Debug, Clone, Copy)]
struct Variant {
    protocol: Protocol,
    num_clients: usize,
}

impl Variant {
    fn name(self) -> String {
        let what = match self.protocol {
            Protocol::Post(1) => "POST of one".to_owned(),
            Protocol::Post(size) => format!("POST of {size}"),
            Protocol::Socket(_) => "WebSocket".to_owned(),
        };
        format!("{what}, {} clients", self.num_clients)
    }

    /// As many of the events as it can send in its portions.
    fn events(self, events: &[String]) -> &[String] {
        let (Protocol::Post(size) | Protocol::Socket(size)) = self.protocol;
        let most = size * PORTIONS_A_CLIENT * self.num_clients;
        &events[..events.len().min(most)]
    }
}

/// What the runs of one variant showed.
#[derive(Default)]
struct Row {
    rates: Samples,
    over_import: Samples,
    p50: Samples,
    p99: Samples,
    server_micros: Samples,
    client_micros: Samples,
    peak_mib: Samples,
}

impl Row {
    fn print(&self, name: &str) {
        let median = |samples: &Samples, digits| shown(samples.median(), digits);
        println!(
            "{name:<26}{:.0}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
            self.rates,
            median(&self.over_import, 2),
            median(&self.p50, 1),
            median(&self.p99, 1),
            median(&self.server_micros, 1),
            median(&self.client_micros, 1),
            median(&self.peak_mib, 0),
        );
    }
}

async fn measure(variant: Variant, events: &[String], import_rate: f64, row: &mut Row) {
    let Variant {
        protocol,
        num_clients,
    } = variant;
    let events = variant.events(events);
    let portions = protocol.portions(events, num_clients);
    let folder = Folder::new();
    let service = Server::start(&folder, &[]).ready().await;
    let (server_before, client_before) = (usage::of_process(service.id()), usage::own());
    let started = Instant::now();
    let waits = light_client::send_all(protocol, service.address(), &portions, num_clients).await;
    let took = started.elapsed();
    let micros = |cpu: Duration| cpu.as_secs_f64() * 1e6 / events.len() as f64;
    row.client_micros.push(micros(usage::own() - client_before));
    row.server_micros
        .push(micros(usage::of_process(service.id()) - server_before));
    row.peak_mib.push(service.peak_memory() as f64);
    let rate = events.len() as f64 / took.as_secs_f64();
    row.rates.push(rate);
    row.over_import.push(rate / import_rate);
    let millis: Samples = waits.iter().map(|wait| wait.as_secs_f64() * 1e3).collect();
    row.p50.push(millis.quantile(0.5).unwrap());
    row.p99.push(millis.quantile(0.99).unwrap());
    let stored = service.terminate().in_good_order().ledger()("stored");
    assert_eq!(stored, events.len() as u64);
}

/// Of clients that wait for their commits a transaction has half at most: the other half comes in meanwhile.
const SMALL_TRANSACTION: usize = 64;

/// Events a second; in transactions of that many, where it is said.
fn import(events: &[String], max_events: Option<usize>) -> f64 {
    let folder = Folder::new();
    folder.write("events.jsonl", events.join("\n"));
    let mut command = folder.command(&["import", "events.jsonl"]);
    if let Some(max_events) = max_events {
        command.env("EVENT_PERSISTER_BATCH_MAX_EVENTS", max_events.to_string());
    }
    let ran = usage::run(command.env("EVENT_PERSISTER_LOG_LEVEL", "warn"));
    events.len() as f64 / ran.took.as_secs_f64()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let num_rounds = settings::number("BENCH_ROUNDS", 5);
    let events = load::events(settings::number("BENCH_EVENTS", 50_000), SystemClock.now());
    println!("{}, {num_rounds} rounds", load::describe(&events));
    let variants: Vec<Variant> = (PROTOCOLS.into_iter())
        .flat_map(|protocol| {
            CLIENTS.map(|num_clients| Variant {
                protocol,
                num_clients,
            })
        })
        .collect();
    let mut rows: Vec<Row> = variants.iter().map(|_| Row::default()).collect();
    let (mut import_rates, mut small_rates) = (Samples::default(), Samples::default());
    for round in 0..num_rounds {
        let import_rate = import(&events, None);
        import_rates.push(import_rate);
        small_rates.push(import(&events, Some(SMALL_TRANSACTION)));
        for index in turns(variants.len(), round) {
            measure(variants[index], &events, import_rate, &mut rows[index]).await;
        }
    }
    println!(
        "{:<26}{:>30}{:>9}{:>18}{:>18}{:>9}",
        "", "events/s", "÷", "waits, ms", "µs CPU/event", "server"
    );
    println!(
        "{:<26}{:>10}{:>10}{:>10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "", "min", "median", "max", "import", "p50", "p99", "server", "client", "MiB"
    );
    println!("{:<26}{import_rates}", "import");
    println!(
        "{:<26}{small_rates}{:>9.2}",
        format!("import, {SMALL_TRANSACTION} at a time"),
        small_rates.over(&import_rates)
    );
    for (variant, row) in variants.iter().zip(&rows) {
        row.print(&variant.name());
    }
}
