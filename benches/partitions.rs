//! The worth of partitions: the same events into tables that are partitioned by day and into tables that
//! are not, in turns, at growing sizes; then how soon an expired day is gone, and what that does to inserts.
//!
//! `cargo bench --features service-tests --bench partitions`
//!
//! | variable | default | |
//! |---|---|---|
//! | `BENCH_SIZES` | 1000000,3000000 | events in each database before it is measured |
//! | `BENCH_STEP` | 50000 | events in each turn |
//! | `BENCH_ROUNDS` | 5 | turns at each size, and expired days that are dropped |
//! | `BENCH_DAYS` | 10 | days over which the events that are there are spread |
//! | `BENCH_RATE` | 1000 | inserts a second while a day is dropped |
//! | `BENCH_SECONDS` | 10 | how long, for each day, and as long before |
//! | `BENCH_ALONE` | 0 | events to which the partitioned tables then grow without the others, see below |
//! | `BENCH_EVENTS_FILE` | generated | events to use, one a line, plain or gzipped |
//!
//! Both databases are in one server and have the same events. One writer reads a stream that is full, as in
//! the benchmark `pipeline`.
//!
//! With `BENCH_ALONE` the tables without partitions make room, since two databases of that size may not fit the
//! disk. A day then begins beside those that are full, in turns with one that begins in tables without events.
//!
//! The clock of a drop runs from the start of `event-persister trim`: until nobody sees
//! the day any more, and until the command has ended, which waits for the server to remove the files. The time to
//! delete as many rows plainly stands beside it. The latencies are those of the benchmark `latency`, each time
//! after as long without a drop.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use event_persister_actors::clock::{Clock as _, SystemClock};
use tokio::time::Instant;

#[allow(dead_code, reason = "other benchmarks and the tests need more of it")]
#[path = "support/kit.rs"]
mod kit;

use kit::load::{Load, Message};
use kit::persister::{self, Persister};
use kit::postgres::Database;
use kit::servers::{self, Servers};
use kit::stats::{Samples, Table, shown, turns};
use kit::visible::{self, Listener};
use kit::watch::Watch;
use kit::{copy, fill, settings};

/// How often it is looked which events are due; those are sent together.
const TICK: Duration = Duration::from_millis(1);

const TABLES: [&str; 2] = ["events", "event_resources"];

/// Partitioned tables without events, with a partition for each day of the past that gets some.
fn partitioned(servers: &Servers, name: &str, num_days: u64) -> Database {
    let database = servers.fresh_database(name);
    command(&["migrate", "--partition-by", "day"], &database);
    for num in 1..=num_days {
        let day = today() - Days::new(num);
        for table in TABLES {
            database.execute(&format!(
                "CREATE TABLE IF NOT EXISTS {} PARTITION OF {table} \
                 FOR VALUES FROM ('{day} 00:00:00+00') TO ('{} 00:00:00+00')",
                of_day(table, day),
                day + Days::new(1)
            ));
        }
    }
    database
}

/// Events of some past days, the earliest first.
struct Past(Vec<Load>);

impl Past {
    fn new(num_days: u64) -> Self {
        let file = settings::events_file();
        let start = |num| midnight(today() - Days::new(num)) + TimeDelta::hours(1);
        let load = |num| Load::new(file.as_deref(), start(num));
        Self((1..=num_days).rev().map(load).collect())
    }

    /// Adds as many to each day, the same to all databases, until each database has so many.
    fn fill(&mut self, databases: &[&Database], num_events: usize) {
        let num_there = number(databases[0], "SELECT count(*) FROM events");
        let num_of_day = num_events.saturating_sub(num_there) / self.0.len();
        fill::unsynced(databases[0], || {
            for load in &mut self.0 {
                fill::fill(databases, load, num_of_day);
            }
            for database in databases {
                database.execute("VACUUM (ANALYZE)");
            }
        });
    }
}

fn today() -> NaiveDate {
    SystemClock.now().date_naive()
}

fn of_day(table: &str, day: NaiveDate) -> String {
    format!("{table}_p{}", day.format("%Y%m%d"))
}

fn number(database: &Database, query: &str) -> usize {
    database.value(query).parse().unwrap()
}

/// Runs the program to its end.
fn command(arguments: &[&str], database: &Database) -> Duration {
    let mut command = Command::new(env!("CARGO_BIN_EXE_event-persister"));
    command
        .env_clear()
        .args(arguments)
        .args(["--database-url", &database.url]);
    let started = Instant::now();
    let output = command.output().unwrap();
    let took = started.elapsed();
    assert!(output.status.success(), "{output:?}");
    took
}

/// Turns with the same events into both, at a size; a row of the figures.
fn compare(
    servers: &Servers,
    databases: [&Database; 2],
    load: &mut Load,
    size: usize,
) -> Vec<String> {
    let step = settings::number("BENCH_STEP", 50_000);
    let mut rates = [(); 2].map(|()| Samples::default());
    for round in 0..num_rounds() {
        let [reference, measured] = grow(servers, databases, load, round, step);
        println!(
            "at {size}, round {}: ratio {:.2}",
            round + 1,
            measured / reference
        );
        rates[0].push(reference);
        rates[1].push(measured);
    }
    let ratios = rates[1].over(&rates[0]);
    vec![
        size.to_string(),
        shown(rates[0].median(), 0),
        shown(rates[1].median(), 0),
        shown(ratios.min(), 2),
        shown(ratios.median(), 2),
        shown(ratios.max(), 2),
    ]
}

fn num_rounds() -> usize {
    settings::number("BENCH_ROUNDS", 5)
}

/// Events a second, into each.
fn grow(
    servers: &Servers,
    databases: [&Database; 2],
    load: &mut Load,
    round: usize,
    step: usize,
) -> [f64; 2] {
    let messages = load.take(step);
    let mut rates = [0.0; 2];
    for variant in turns(2, round) {
        let database = databases[variant];
        servers.filled_stream(&messages);
        database.execute("CHECKPOINT");
        let variables = [
            ("EVENT_PERSISTER_WRITERS", "1"),
            ("EVENT_PERSISTER_TRIM_EVERY", "off"),
        ];
        let run = persister::run_beside(&servers.redis, database, &variables, |_| ());
        rates[variant] = step as f64 / run.took.as_secs_f64();
    }
    rates
}

/// The figures of a day that expires while events come in.
struct Dropped {
    num_events: usize,
    trimmed: Trimmed,
    /// Without a drop, and with it.
    latencies: [Samples; 2],
    /// A plain DELETE of the same events with their resources from the other tables, if they are there.
    delete: Option<Duration>,
}

fn drop_a_day(
    servers: &Servers,
    database: &Database,
    plain: Option<&Database>,
    messages: &[Message],
    num_days: u64,
) -> Dropped {
    let day = today() - Days::new(num_days);
    let partition = of_day("events", day);
    let num_events = number(database, &format!("SELECT count(*) FROM {partition}"));
    let (before, during) = messages.split_at(messages.len() / 2);
    let (quiet, ()) = inserts(servers, database, before, |_| ());
    let (beside, trimmed) = inserts(servers, database, during, |half| {
        std::thread::sleep(half);
        trim(database, num_days - 1, &partition)
    });
    Dropped {
        num_events,
        trimmed,
        latencies: [quiet, beside],
        delete: plain.map(|plain| delete_until(plain, day + Days::new(1))),
    }
}

fn delete_until(database: &Database, day: NaiveDate) -> Duration {
    let started = Instant::now();
    database.execute(&format!(
        "BEGIN; DELETE FROM event_resources WHERE event_id IN \
         (SELECT id FROM events WHERE occurred < '{day} 00:00:00+00'); \
         DELETE FROM events WHERE occurred < '{day} 00:00:00+00'; COMMIT"
    ));
    started.elapsed()
}

/// The latencies of events that come in at this rate, while something else is done, which is told half the time.
fn inserts<T: Send>(
    servers: &Servers,
    database: &Database,
    messages: &[Message],
    meanwhile: impl FnOnce(Duration) -> T + Send,
) -> (Samples, T) {
    servers.filled_stream(&[]);
    let listener = Listener::start(database);
    let variables = [("EVENT_PERSISTER_TRIM_EVERY", "off")];
    let persister = Persister::start(&servers.redis, database, &variables);
    persister.until_ready();
    let mut watch = Watch::start(&servers.redis, "event-persister");
    let half = Duration::from_secs_f64(messages.len() as f64 / rate() as f64 / 2.0);
    let (sent, done) = std::thread::scope(|scope| {
        let meanwhile = scope.spawn(|| meanwhile(half));
        let sent = publish(servers, messages);
        (sent, meanwhile.join().unwrap())
    });
    watch.until_settled(|| persister.log());
    let moments = listener.stop();
    persister.stop();
    database.execute("DROP TRIGGER tell ON events; DROP FUNCTION tell()");
    let latencies = visible::latencies(database, &moments, &sent);
    let seconds = latencies.iter().map(Duration::as_secs_f64);
    (seconds.collect(), done)
}

/// How long a pass took.
struct Trimmed {
    until_gone: Duration,
    until_ended: Duration,
}

/// One pass with which all up to this many days ago is expired, but nothing of that day. The partition must be
/// gone with it.
fn trim(database: &Database, days: u64, partition: &str) -> Trimmed {
    // The events of a day begin an hour after midnight.
    let since = SystemClock.now() - midnight(today()) - TimeDelta::minutes(1);
    let retention = since + TimeDelta::days(i64::try_from(days).unwrap());
    let retention = format!("{}s", retention.num_seconds());
    let is_gone = format!("SELECT (to_regclass('{partition}') IS NULL)::int");
    let is_gone = || number(database, &is_gone) == 1;
    assert!(!is_gone());
    let mut command = Command::new(env!("CARGO_BIN_EXE_event-persister"));
    command
        .env_clear()
        .env("EVENT_PERSISTER_TRIM_RETENTION", retention)
        .env("EVENT_PERSISTER_TRIM_OVERRIDES", "{}")
        .args(["trim", "--yes", "--database-url", &database.url]);
    let started = Instant::now();
    let trimming = std::thread::spawn(move || command.output().unwrap());
    let mut until_gone = None;
    while !trimming.is_finished() {
        if until_gone.is_none() && is_gone() {
            until_gone = Some(started.elapsed());
        }
        std::thread::sleep(10 * TICK);
    }
    let until_ended = started.elapsed();
    let output = trimming.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(is_gone(), "{partition} is still there");
    Trimmed {
        until_gone: until_gone.unwrap_or(until_ended),
        until_ended,
    }
}

fn midnight(day: NaiveDate) -> DateTime<Utc> {
    day.and_hms_opt(0, 0, 0).unwrap().and_utc()
}

fn rate() -> usize {
    settings::number("BENCH_RATE", 1_000)
}

/// Sends events at the rate; when each of them was sent, by id.
fn publish(servers: &Servers, messages: &[Message]) -> HashMap<String, DateTime<Utc>> {
    let mut connection = servers.redis.stream().connect();
    let rate = rate() as f64;
    let started = Instant::now();
    let mut sent = HashMap::with_capacity(messages.len());
    while sent.len() < messages.len() {
        let due = (started.elapsed().as_secs_f64() * rate) as usize + 1;
        let due = &messages[sent.len()..due.clamp(sent.len(), messages.len())];
        if due.is_empty() {
            std::thread::sleep(TICK);
            continue;
        }
        let mut pipeline = redis::pipe();
        for message in due {
            let command = pipeline.cmd("XADD").arg("events").arg("*");
            let command = command.arg("data").arg(&message.data);
            command.arg("attributes").arg(&message.attributes).ignore();
        }
        let now = SystemClock.now();
        pipeline.query::<()>(&mut connection).unwrap();
        sent.extend(due.iter().map(|message| (message.id.clone(), now)));
    }
    sent
}

fn main() {
    let sizes = settings::numbers("BENCH_SIZES", &[1_000_000, 3_000_000]);
    let alone: usize = settings::number("BENCH_ALONE", 0);
    let num_days: u64 = settings::number("BENCH_DAYS", 10);
    let seconds: usize = settings::number("BENCH_SECONDS", 10);
    assert!(
        num_days > num_rounds() as u64,
        "a day is dropped in each round"
    );
    let servers = Servers::start();
    let mut load = Load::new(settings::events_file().as_deref(), SystemClock.now());
    servers.warm_up("plain", &copy::encode(&load.take(fill::STEP)));
    let plain = servers.fresh_database("plain");
    let partitioned_one = partitioned(&servers, "partitioned", num_days);
    let mut past = Past::new(num_days);
    let mut table = Table::new(&[
        "stored before",
        "plain events/s",
        "partitioned events/s",
        "ratio min",
        "median",
        "max",
    ]);
    let both = [&plain, &partitioned_one];
    for size in [0].into_iter().chain(sizes) {
        past.fill(&both, size);
        table.row(compare(&servers, both, &mut load, size));
    }
    let [first, second] = both.map(servers::digest);
    assert_eq!(first, second, "the two databases hold different rows");
    table.print();
    let is_plain_there = alone == 0;
    if !is_plain_there {
        partitioned_one.execute("DROP DATABASE plain WITH (FORCE)");
        let empty = partitioned(&servers, "empty", num_days);
        past.fill(&[&partitioned_one], alone);
        for parent in TABLES {
            partitioned_one.execute(&format!("TRUNCATE {}", of_day(parent, today())));
        }
        let mut table = Table::new(&[
            "stored before",
            "into empty tables events/s",
            "beside full days events/s",
            "ratio min",
            "median",
            "max",
        ]);
        let both = [&empty, &partitioned_one];
        table.row(compare(&servers, both, &mut load, alone));
        table.print();
    }
    let plain = is_plain_there.then_some(&plain);
    let mut table = Table::new(&[
        "events of the day",
        "gone s",
        "trim s",
        "plain DELETE s",
        "p50 ms",
        "p99 ms",
        "max ms",
        "before: p50 ms",
        "p99 ms",
        "max ms",
    ]);
    for round in 0..num_rounds() {
        let messages = load.take(2 * rate() * seconds);
        let days = num_days - round as u64;
        let dropped = drop_a_day(&servers, &partitioned_one, plain, &messages, days);
        let mut row = vec![
            dropped.num_events.to_string(),
            shown(Some(dropped.trimmed.until_gone.as_secs_f64()), 2),
            shown(Some(dropped.trimmed.until_ended.as_secs_f64()), 2),
            shown(dropped.delete.map(|one| one.as_secs_f64()), 1),
        ];
        let millis = |seconds: Option<f64>| shown(seconds.map(|one| one * 1e3), 1);
        let [quiet, beside] = dropped.latencies;
        for latencies in [beside, quiet] {
            let all = [
                latencies.median(),
                latencies.quantile(0.99),
                latencies.max(),
            ];
            row.extend(all.map(millis));
        }
        table.row(row);
    }
    table.print();
}
