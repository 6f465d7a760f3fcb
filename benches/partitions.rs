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
//! | `BENCH_EVENTS_FILE` | generated | events to use, one a line, plain or gzipped |
//!
//! Both databases are in one server and have the same events. One writer reads a stream that is full, as in
//! the benchmark `pipeline`. The clock of a drop runs from the start of `event-persister trim`: until nobody sees
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
use kit::reference::Way;
use kit::servers::{self, Servers};
use kit::stats::{Samples, Table, shown, turns};
use kit::visible::{self, Listener};
use kit::watch::Watch;
use kit::{copy, reference, settings};

/// The connections that put the events there that are measured against.
const NUM_FILLING: usize = 2;
/// So many at a time, which are in memory.
const FILL_STEP: usize = 100_000;
/// How often it is looked which events are due; those are sent together.
const TICK: Duration = Duration::from_millis(1);

struct Tables {
    plain: Database,
    partitioned: Database,
}

impl Tables {
    /// Both without events; the partitioned ones have a partition for each day of the past that gets some.
    fn new(servers: &Servers, num_days: u64) -> Self {
        let tables = Self {
            plain: servers.fresh_database("plain"),
            partitioned: servers.fresh_database("partitioned"),
        };
        command(&["migrate", "--partition-by", "day"], &tables.partitioned);
        for num in 1..=num_days {
            let day = today() - Days::new(num);
            for table in ["events", "event_resources"] {
                tables.partitioned.execute(&format!(
                    "CREATE TABLE IF NOT EXISTS {} PARTITION OF {table} \
                     FOR VALUES FROM ('{day} 00:00:00+00') TO ('{} 00:00:00+00')",
                    of_day(table, day),
                    day + Days::new(1)
                ));
            }
        }
        tables
    }

    fn both(&self) -> [&Database; 2] {
        [&self.plain, &self.partitioned]
    }

    /// Adds events of the past to both until each has so many.
    fn fill(&self, load: &mut Spread, num_events: usize) {
        let mut num_there = number(&self.plain, "SELECT count(*) FROM events");
        while num_there < num_events {
            let num = FILL_STEP.min(num_events - num_there);
            let batches = copy::encode(&load.take(num));
            for database in self.both() {
                reference::run(database, Way::Copy, NUM_FILLING, &batches);
            }
            num_there += num;
        }
        for database in self.both() {
            database.execute("VACUUM (ANALYZE)");
            database.execute("CHECKPOINT");
        }
    }
}

/// Events of each of some past days in turn, as many of each.
struct Spread(Vec<Load>, usize);

impl Spread {
    fn new(num_days: u64) -> Self {
        let file = settings::events_file();
        let start = |num| midnight(today() - Days::new(num)) + TimeDelta::hours(1);
        let load = |num| Load::new(file.as_deref(), start(num));
        Self((1..=num_days).map(load).collect(), 0)
    }

    fn take(&mut self, num_events: usize) -> Vec<Message> {
        let mut messages = Vec::with_capacity(num_events);
        while messages.len() < num_events {
            let num = copy::BATCH.min(num_events - messages.len());
            let index = self.1 % self.0.len();
            messages.extend(self.0[index].take(num));
            self.1 += 1;
        }
        messages
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

/// Events a second, into each.
fn grow(
    servers: &Servers,
    tables: &Tables,
    load: &mut Load,
    round: usize,
    step: usize,
) -> [f64; 2] {
    let messages = load.take(step);
    let mut rates = [0.0; 2];
    for variant in turns(2, round) {
        let database = tables.both()[variant];
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
    /// A plain DELETE of the same events with their resources from the other tables.
    delete: Duration,
}

fn drop_a_day(
    servers: &Servers,
    tables: &Tables,
    messages: &[Message],
    rate: usize,
    num_days: u64,
) -> Dropped {
    let database = &tables.partitioned;
    let day = today() - Days::new(num_days);
    let partition = of_day("events", day);
    let num_events = number(database, &format!("SELECT count(*) FROM {partition}"));
    let (before, during) = messages.split_at(messages.len() / 2);
    let (quiet, ()) = inserts(servers, database, before, rate, |_| ());
    let (beside, trimmed) = inserts(servers, database, during, rate, |half| {
        std::thread::sleep(half);
        trim(database, num_days - 1, &partition)
    });
    let until = day + Days::new(1);
    let started = Instant::now();
    tables.plain.execute(&format!(
        "BEGIN; DELETE FROM event_resources WHERE event_id IN \
         (SELECT id FROM events WHERE occurred < '{until} 00:00:00+00'); \
         DELETE FROM events WHERE occurred < '{until} 00:00:00+00'; COMMIT"
    ));
    Dropped {
        num_events,
        trimmed,
        latencies: [quiet, beside],
        delete: started.elapsed(),
    }
}

/// The latencies of events that come in at this rate, while something else is done, which is told half the time.
fn inserts<T: Send>(
    servers: &Servers,
    database: &Database,
    messages: &[Message],
    rate: usize,
    meanwhile: impl FnOnce(Duration) -> T + Send,
) -> (Samples, T) {
    servers.filled_stream(&[]);
    let listener = Listener::start(database);
    let variables = [("EVENT_PERSISTER_TRIM_EVERY", "off")];
    let persister = Persister::start(&servers.redis, database, &variables);
    persister.until_ready();
    let mut watch = Watch::start(&servers.redis, "event-persister");
    let half = Duration::from_secs_f64(messages.len() as f64 / rate as f64 / 2.0);
    let (sent, done) = std::thread::scope(|scope| {
        let meanwhile = scope.spawn(|| meanwhile(half));
        let sent = publish(servers, messages, rate);
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

/// Sends events at this rate; when each of them was sent, by id.
fn publish(servers: &Servers, messages: &[Message], rate: usize) -> HashMap<String, DateTime<Utc>> {
    let mut connection = servers.redis.stream().connect();
    let started = Instant::now();
    let mut sent = HashMap::with_capacity(messages.len());
    while sent.len() < messages.len() {
        let due = (started.elapsed().as_secs_f64() * rate as f64) as usize + 1;
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
    let step = settings::number("BENCH_STEP", 50_000);
    let num_rounds: usize = settings::number("BENCH_ROUNDS", 5);
    let num_days: u64 = settings::number("BENCH_DAYS", 10);
    let rate: usize = settings::number("BENCH_RATE", 1_000);
    let seconds: usize = settings::number("BENCH_SECONDS", 10);
    assert!(
        num_days > num_rounds as u64,
        "a day is dropped in each round"
    );
    let servers = Servers::start();
    let mut load = Load::new(settings::events_file().as_deref(), SystemClock.now());
    servers.warm_up("plain", &copy::encode(&load.take(step)));
    let tables = Tables::new(&servers, num_days);
    let mut past = Spread::new(num_days);
    let mut table = Table::new(&[
        "stored before",
        "plain events/s",
        "partitioned events/s",
        "ratio min",
        "median",
        "max",
    ]);
    for size in [0].into_iter().chain(sizes) {
        tables.fill(&mut past, size);
        let mut rates = [(); 2].map(|()| Samples::default());
        for round in 0..num_rounds {
            let [plain, partitioned] = grow(&servers, &tables, &mut load, round, step);
            println!(
                "at {size}, round {}: ratio {:.2}",
                round + 1,
                partitioned / plain
            );
            rates[0].push(plain);
            rates[1].push(partitioned);
        }
        let ratios = rates[1].over(&rates[0]);
        table.row(vec![
            size.to_string(),
            shown(rates[0].median(), 0),
            shown(rates[1].median(), 0),
            shown(ratios.min(), 2),
            shown(ratios.median(), 2),
            shown(ratios.max(), 2),
        ]);
    }
    let [plain, partitioned] = tables.both().map(servers::digest);
    assert_eq!(plain, partitioned, "the two databases hold different rows");
    table.print();
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
    for round in 0..num_rounds {
        let messages = load.take(2 * rate * seconds);
        let days = num_days - round as u64;
        let dropped = drop_a_day(&servers, &tables, &messages, rate, days);
        let mut row = vec![
            dropped.num_events.to_string(),
            shown(Some(dropped.trimmed.until_gone.as_secs_f64()), 2),
            shown(Some(dropped.trimmed.until_ended.as_secs_f64()), 2),
            shown(Some(dropped.delete.as_secs_f64()), 1),
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
