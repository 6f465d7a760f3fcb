//! What the persister itself can take, and what the bus alone can give: the figures to plan with.
//!
//! `cargo bench --features service-tests --bench scaling`
//!
//! | variable | default | |
//! |---|---|---|
//! | `BENCH_EVENTS` | 50000 | events in each turn |
//! | `BENCH_ROUNDS` | 5 | turns of each contestant, interleaved |
//! | `BENCH_BUSES` | redis,nats | what feeds them |
//! | `BENCH_WRITERS` | 1,2,4 | writers of one replica |
//! | `BENCH_REPLICAS` | 1,2,4 | replicas, of two writers each, and bare clients |
//! | `BENCH_CORES` | unlimited | cores that each replica may use, such as 0.4: several replicas then have what they need on a small machine; needs root |
//! | `BENCH_EVENTS_FILE` | generated | events to use, one a line, plain or gzipped |
//!
//! *counting*: the pipeline of the library with the source of the product, and a store that counts what it is given and
//! says that it is stored. Each replica is a process of its own (this program again); all share one group of Redis or
//! one consumer of NATS. The clock runs from the start of the first process to the last acknowledgement.
//! *bare*: clients that take the same events, acknowledge them, and do nothing else, in threads of this program. Those
//! of NATS have no acknowledgement confirmed; the product has each of them confirmed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::collections::HashMap;
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use actix::Actor as _;
use event_persister_actors::LocalBoxFuture;
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::delivery::Batch;
use event_persister_actors::event::EventLimits;
use event_persister_actors::messages::Drain;
use event_persister_actors::metrics::Metrics;
use event_persister_actors::pipeline::{PipelineActor, PipelineParts, PipelineSettings};
use event_persister_actors::source::EventSource;
#[cfg(feature = "nats")]
use event_persister_actors::source::nats::{NatsSettings, NatsSource};
use event_persister_actors::source::redis::{RedisSettings, RedisSource, consumer_name};
use event_persister_actors::store::{Cutoffs, EventStore, Outcome, StoreError, TrimStep};
use futures_util::future::ready;
use tokio::time::Instant;

#[path = "support/bare.rs"]
mod bare;
#[path = "support/cpu_quota.rs"]
mod cpu_quota;
#[allow(dead_code, reason = "other benchmarks and the tests need more of it")]
#[path = "support/kit.rs"]
mod kit;

use cpu_quota::CpuQuota;
use kit::bus::Bus;
use kit::load::{Load, Message};
#[cfg(feature = "nats")]
use kit::nats;
#[cfg(feature = "nats")]
use kit::nats::NatsServer;
use kit::redis;
use kit::redis::RedisServer;
use kit::stats::{Samples, Table, shown};
use kit::{settings, usage};

/// The bus, its URL and the number of writers, for a process that is a replica.
const REPLICA: &str = "SCALING_REPLICA";
const WRITERS_OF_REPLICAS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Contestant {
    Counting { replicas: usize, writers: usize },
    Bare { clients: usize },
}

impl Contestant {
    fn name(self) -> String {
        let plural = |num: usize| if num == 1 { "" } else { "s" };
        match self {
            Self::Counting { replicas, writers } => format!(
                "counting, {replicas} replica{}, {writers} writer{}",
                plural(replicas),
                plural(writers)
            ),
            Self::Bare { clients } => format!("bare, {clients} client{}", plural(clients)),
        }
    }

    /// Whether it is what the others are held against: one of the same kind.
    fn reference(self) -> Self {
        match self {
            Self::Counting { .. } => Self::Counting {
                replicas: 1,
                writers: WRITERS_OF_REPLICAS,
            },
            Self::Bare { .. } => Self::Bare { clients: 1 },
        }
    }
}

/// What one turn came to; CPU in microseconds an event.
struct Turn {
    events_per_second: f64,
    own_processor: f64,
    bus_processor: f64,
    /// That the bus keeps of an event.
    bytes: f64,
}

/// A server of each kind, with its own type where that is needed.
enum Server {
    Redis(RedisServer),
    #[cfg(feature = "nats")]
    Nats(NatsServer),
}

impl Server {
    fn start(name: &str) -> Self {
        match name {
            "redis" => Self::Redis(RedisServer::start()),
            #[cfg(feature = "nats")]
            "nats" => Self::Nats(NatsServer::start()),
            other => panic!("there is no bus {other}: name redis or nats"),
        }
    }

    fn bus(&self) -> &dyn Bus {
        match self {
            Self::Redis(server) => server,
            #[cfg(feature = "nats")]
            Self::Nats(server) => server,
        }
    }

    fn turn(&self, contestant: Contestant, messages: &[Message]) -> Turn {
        let bus = self.bus();
        bus.fill(&[]);
        let empty = bus.num_bytes();
        bus.fill(messages);
        let bytes = bus.num_bytes() - empty;
        let before = usage::of_process(bus.process_id());
        let (took, own) = match contestant {
            Contestant::Counting { replicas, writers } => {
                counting(bus, replicas, writers, messages.len())
            }
            Contestant::Bare { clients } => self.bare(messages.len(), clients),
        };
        let of_bus = usage::of_process(bus.process_id()) - before;
        let num_events = messages.len() as f64;
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / num_events;
        Turn {
            events_per_second: num_events / took.as_secs_f64(),
            own_processor: micros(own),
            bus_processor: micros(of_bus),
            bytes: bytes / num_events,
        }
    }

    fn bare(&self, num_events: usize, num_clients: usize) -> (Duration, Duration) {
        let before = usage::own();
        let took = match self {
            Self::Redis(server) => bare::from_redis(server, num_events, num_clients),
            #[cfg(feature = "nats")]
            Self::Nats(server) => bare::from_nats(server, num_events, num_clients),
        };
        (took, usage::own() - before)
    }
}

/// How long it took, and the CPU of all replicas together.
fn counting(
    bus: &dyn Bus,
    num_replicas: usize,
    num_writers: usize,
    num_events: usize,
) -> (Duration, Duration) {
    let quotas: Vec<CpuQuota> = (0..num_replicas)
        .filter_map(|number| Some(CpuQuota::new(&number.to_string(), cores_of_each()?)))
        .collect();
    let mut watch = bus.watch();
    let started = Instant::now();
    let replicas: Vec<Child> = (0..num_replicas)
        .map(|_| replica(bus, num_writers))
        .collect();
    for (replica, quota) in replicas.iter().zip(&quotas) {
        quota.limit(replica.id());
    }
    watch.until_settled(&|| "see above".to_owned());
    let took = started.elapsed();
    let processor = replicas.iter().map(|one| usage::of_process(one.id())).sum();
    let counts = replicas.into_iter().map(|mut replica| {
        // It stops at the end of its input.
        drop(replica.stdin.take());
        let output = replica.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim().parse::<u64>().unwrap()
    });
    // Nothing has died, so nothing came twice.
    assert_eq!(counts.sum::<u64>(), num_events as u64);
    (took, processor)
}

/// `None`: as many as the machine has.
fn cores_of_each() -> Option<f64> {
    settings::text("BENCH_CORES").map(|_| settings::number("BENCH_CORES", 1.0))
}

fn replica(bus: &dyn Bus, num_writers: usize) -> Child {
    let what = format!("{} {} {num_writers}", bus.name(), bus.url());
    Command::new(std::env::current_exe().unwrap())
        .env(REPLICA, what)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Takes everything at once.
struct CountingStore;

impl EventStore for CountingStore {
    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(ready(Ok(vec![Outcome::Stored; batch.len()])))
    }

    fn rehearse(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        self.write(batch)
    }

    fn trim<'a>(
        &'a self,
        _: &'a Cutoffs,
        _: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>> {
        Box::pin(ready(Ok(TrimStep::Finished)))
    }

    fn check(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(ready(Ok(())))
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(ready(Ok(())))
    }
}

fn source(bus: &str, url: &str) -> Arc<dyn EventSource> {
    match bus {
        #[cfg(feature = "nats")]
        "nats" => Arc::new(NatsSource::new(NatsSettings::from_url(url).unwrap()).unwrap()),
        _ => {
            let settings = RedisSettings {
                consumer_name: consumer_name("bench"),
                ..RedisSettings::from_url(url).unwrap()
            };
            Arc::new(RedisSource::new(settings).unwrap())
        }
    }
}

/// A replica, until its input ends; then it tells how many events it was given.
async fn replicate(what: &str) {
    let words: Vec<&str> = what.split(' ').collect();
    let [bus, url, num_writers] = words[..] else {
        panic!("{what}");
    };
    let metrics = Metrics::new().unwrap();
    let settings = PipelineSettings {
        writers: num_writers.parse().unwrap(),
        trim: None,
        retention: None,
        ..PipelineSettings::default()
    };
    let parts = PipelineParts {
        sources: vec![source(bus, url)],
        open_store: Arc::new(|| Arc::new(CountingStore)),
        event_limits: EventLimits::default(),
        clock: Arc::new(SystemClock),
        metrics: metrics.clone(),
    };
    let pipeline = PipelineActor::new(settings, parts).start();
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    end.await.unwrap().unwrap();
    pipeline.send(Drain::default()).await.unwrap();
    assert!(metrics.ledger().balances());
    println!("{}", metrics.ledger().stored);
}

/// The turns of each contestant on each bus, round by round.
type Turns = HashMap<(usize, Contestant), Vec<Turn>>;

fn contestants() -> Vec<Contestant> {
    let numbers_of_replicas = settings::numbers("BENCH_REPLICAS", &[1, 2, 4]);
    let mut all: Vec<Contestant> = Vec::new();
    let writers = settings::numbers("BENCH_WRITERS", &[1, 2, 4]).into_iter();
    all.extend(writers.map(|writers| Contestant::Counting {
        replicas: 1,
        writers,
    }));
    let replicas = numbers_of_replicas.iter();
    all.extend(replicas.clone().map(|&replicas| Contestant::Counting {
        replicas,
        writers: WRITERS_OF_REPLICAS,
    }));
    all.extend(replicas.map(|&clients| Contestant::Bare { clients }));
    let mut seen = Vec::new();
    all.retain(|one| {
        !seen.contains(one) && {
            seen.push(*one);
            true
        }
    });
    all
}

fn print(servers: &[Server], contestants: &[Contestant], turns: &Turns) {
    let mut table = Table::new(&[
        "who",
        "bus",
        "events/s min",
        "median",
        "max",
        "to one",
        "own CPU µs",
        "bus CPU µs",
        "bytes on the bus",
    ]);
    for (number, server) in servers.iter().enumerate() {
        for &contestant in contestants {
            let of_contestant = &turns[&(number, contestant)];
            let samples =
                |of: fn(&Turn) -> f64| -> Samples { of_contestant.iter().map(of).collect() };
            let rates = samples(|turn| turn.events_per_second);
            let reference = turns.get(&(number, contestant.reference()));
            let ratios = reference.and_then(|reference| {
                let rounds = of_contestant.iter().zip(reference);
                let ratios: Samples = rounds
                    .map(|(one, other)| one.events_per_second / other.events_per_second)
                    .collect();
                ratios.median()
            });
            table.row(vec![
                contestant.name(),
                server.bus().name().to_owned(),
                shown(rates.min(), 0),
                shown(rates.median(), 0),
                shown(rates.max(), 0),
                shown(ratios, 2),
                shown(samples(|turn| turn.own_processor).median(), 1),
                shown(samples(|turn| turn.bus_processor).median(), 1),
                shown(samples(|turn| turn.bytes).median(), 0),
            ]);
        }
    }
    table.print();
    println!(
        "`to one` is the median of the rounds' own ratios to one replica of two writers, or to one client. CPU is for each \
         event. Redis keeps its bytes in memory, NATS in files."
    );
}

fn main() {
    if let Some(what) = settings::text(REPLICA) {
        actix::System::new().block_on(replicate(&what));
        return;
    }
    let num_events = settings::number("BENCH_EVENTS", 50_000);
    let num_rounds: usize = settings::number("BENCH_ROUNDS", 5);
    let file = settings::events_file();
    let messages = Load::new(file.as_deref(), SystemClock.now()).take(num_events);
    let mean_bytes = messages.iter().map(|one| one.data.len()).sum::<usize>() / messages.len();
    println!("{num_events} events of {mean_bytes} bytes on average, {num_rounds} rounds");
    let names = settings::text("BENCH_BUSES").unwrap_or_else(|| "redis,nats".to_owned());
    let servers: Vec<Server> = names.split(',').map(Server::start).collect();
    let contestants = contestants();
    let mut turns = Turns::new();
    for round in 0..num_rounds {
        let mut order = contestants.clone();
        // So that nobody always profits, or suffers, from being first.
        if round % 2 == 1 {
            order.reverse();
        }
        for contestant in order {
            for (number, server) in servers.iter().enumerate() {
                let turn = server.turn(contestant, &messages);
                println!(
                    "round {}: {}, {}: {:.0} events/s",
                    round + 1,
                    server.bus().name(),
                    contestant.name(),
                    turn.events_per_second
                );
                turns.entry((number, contestant)).or_default().push(turn);
            }
        }
    }
    print(&servers, &contestants, &turns);
}
