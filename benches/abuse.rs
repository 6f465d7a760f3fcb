//! What abuse of the listener costs those who mean well, without it and with it, in turns: how many
//! events a second two of them post into SQLite, and how many get from Redis into PostgreSQL. The
//! ratio should be at least 0.9.
//!
//! `cargo bench --features service-tests --bench abuse`; `BENCH_ROUNDS` (7), and for the way from Redis
//! `BENCH_EVENTS` (50,000) and `BENCH_EVENTS_FILE`. Those who abuse run on the same machine, and their
//! own work counts against the ratio.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use event_persister_actors::clock::{Clock as _, SystemClock};
use futures_util::future::join_all;
use tokio::runtime::Runtime;
use tokio::time::Instant;

#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/kit.rs"]
mod kit;

#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support"]
mod support {
    pub(crate) mod abuse;
    pub(crate) mod binary;
    pub(crate) mod client;
    pub(crate) mod database;
    pub(crate) mod events;
    pub(crate) mod metrics;
    pub(crate) mod server;
    pub(crate) mod socket;
    pub(crate) mod wait;
}

use kit::load::{Load, Message};
use kit::servers::Servers;
use kit::{persister, settings, usage};
use support::abuse::{Abuse, Refused};
use support::binary::Folder;
use support::events::{events, list};
use support::server::Server;

const ROUND: Duration = Duration::from_secs(6);
const NUM_CLIENTS: usize = 2;
const EVENTS_IN_A_LIST: usize = 200;
const AUTH_STRING: (&str, &str) = ("EVENT_PERSISTER_HTTP_AUTH_STRING", "admin:right");

/// Posts one list after the other on a connection of its own; the number of events stored.
async fn post_until(server: &Server, until: Instant) -> usize {
    let client = support::client::client();
    let mut num = 0;
    while Instant::now() < until {
        let body = list(&events(EVENTS_IN_A_LIST));
        loop {
            let request = client.post(server.url("/api/events")).body(body.clone());
            let request = request.basic_auth("admin", Some("right"));
            match request.send().await.map(|answer| answer.status().as_u16()) {
                Ok(204) => break,
                Ok(503) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Ok(other) => panic!("{other}"),
            }
        }
        num += EVENTS_IN_A_LIST;
    }
    num
}

/// Events a second.
async fn posted(server: &Server) -> f64 {
    let started = Instant::now();
    let clients = (0..NUM_CLIENTS).map(|_| post_until(server, started + ROUND));
    let num: usize = join_all(clients).await.iter().sum();
    num as f64 / started.elapsed().as_secs_f64()
}

/// What all rounds of one way came to.
#[derive(Default)]
struct Ratios(Vec<f64>);

impl Ratios {
    /// The first round, which warms up, does not count.
    fn push(&mut self, round: usize, without: f64, with: f64, remark: &str) {
        if round > 0 {
            let ratio = with / without;
            println!("{round:>5} {without:>10.0}/s {with:>10.0}/s {ratio:>7.2}  {remark}");
            self.0.push(ratio);
        }
    }

    fn print(mut self, peak_memory: f64) {
        self.0.sort_by(f64::total_cmp);
        if let Some(median) = self.0.get(self.0.len() / 2) {
            println!("median ratio {median:.2}");
        }
        println!("peak memory  {peak_memory:.0} MiB\n");
    }
}

fn head(way: &str) {
    println!("{way}\nround      without         with   ratio");
}

/// Those who abuse cost processor time of this machine too.
fn remark(cost: Duration, refused: &Refused) -> String {
    format!("abusers' CPU {:.1} s, {refused:?}", cost.as_secs_f64())
}

fn from_http(runtime: &Runtime, num_rounds: usize) {
    head("HTTP into SQLite");
    let folder = Folder::new();
    let start = async { Server::start(&folder, &[AUTH_STRING]).ready().await };
    let server = runtime.block_on(start);
    let mut ratios = Ratios::default();
    for round in 0..=num_rounds {
        let (before, without) = (usage::own(), runtime.block_on(posted(&server)));
        let between = usage::own();
        let abuse = Abuse::of(server.address());
        let with = runtime.block_on(posted(&server));
        // The clients that mean well run in this process too.
        let cost = (usage::own() - between).saturating_sub(between - before);
        ratios.push(round, without, with, &remark(cost, &abuse.refused));
    }
    ratios.print(server.peak_memory() as f64);
    server.terminate().in_good_order();
}

/// From the start of the process to the last acknowledgement; what abuses it begins once it listens.
fn from_redis(num_rounds: usize) {
    head("Redis into PostgreSQL");
    let file = settings::events_file();
    let mut load = Load::new(file.as_deref(), SystemClock.now());
    let messages = load.take(settings::number("BENCH_EVENTS", 50_000));
    let servers = Servers::start();
    let mut ratios = Ratios::default();
    let mut peak_memory = 0_f64;
    for round in 0..=num_rounds {
        let mut refused = Arc::default();
        let mut abused = || {
            drained(&servers, &messages, |persister| {
                persister.until_reachable();
                let abuse = Abuse::of(&persister.address());
                refused = Arc::clone(&abuse.refused);
                abuse
            })
        };
        let left_alone = || drained(&servers, &messages, |persister| persister.until_reachable());
        // So that neither always profits, or suffers, from being first.
        let (without, with) = if round % 2 == 1 {
            (left_alone(), abused())
        } else {
            let with = abused();
            (left_alone(), with)
        };
        let num_refused = refused.tokens.load(Ordering::Relaxed);
        assert!(num_refused > 0, "nobody abused it: {refused:?}");
        peak_memory = peak_memory.max(with.peak_memory);
        let cost = with.own_cpu.saturating_sub(without.own_cpu);
        ratios.push(round, without.rate, with.rate, &remark(cost, &refused));
    }
    ratios.print(peak_memory);
}

struct Drained {
    /// Events a second.
    rate: f64,
    /// In MiB.
    peak_memory: f64,
    /// The processor time of this process.
    own_cpu: Duration,
}

fn drained<T>(
    servers: &Servers,
    messages: &[Message],
    beside: impl FnOnce(&persister::Persister) -> T,
) -> Drained {
    let database = servers.fresh_database("bench");
    servers.filled_stream(messages);
    let before = usage::own();
    let work = || persister::run_beside(&servers.redis, &database, &[AUTH_STRING], beside);
    let (run, _) = servers.cost(&database, work);
    Drained {
        rate: messages.len() as f64 / run.took.as_secs_f64(),
        peak_memory: run.peak_memory,
        own_cpu: usage::own().saturating_sub(before),
    }
}

fn main() {
    let num_rounds = settings::number("BENCH_ROUNDS", 7);
    let runtime = Runtime::new().unwrap();
    // Those who abuse run on it, wherever they are sent off.
    let _entered = runtime.enter();
    from_http(&runtime, num_rounds);
    from_redis(num_rounds);
}
