//! What retention costs: how fast expired events go, and what that leaves to the inserts meanwhile.
//!
//! Alone: the steps of a pass, and the command `trim`, against two plain DELETEs of the same rows in
//! one transaction. Under load: a backlog in Redis is written with retention off, and with a
//! trimmer that has as many expired events to remove as there are to insert; what was
//! `trimmed ÷ added` when the last event was in is at most 1, since then nothing expired is left.
//! Every run begins with the same database. Both servers run as they come, durable.
//!
//! Archiving, in builds with the feature `archive`: the command `trim` with an archive in a folder against the
//! same without one, in the same turns: rows a second, the largest memory of the process, and the size of
//! the archive over that of the removed rows in the tables, indexes included.
//!
//! `cargo bench --features service-tests --bench trim`; `BENCH_EVENTS` (50,000 expired, as many that
//! stay, and as many to insert), `BENCH_ROUNDS` (5), `BENCH_TRIM_BATCH` (as by default),
//! `BENCH_STORES` (`SQLite,PostgreSQL`), `BENCH_PARTS` (`alone,load,archive`), `BENCH_EVENTS_FILE`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout)]

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use event_persister_actors::clock::{Clock as _, SystemClock};
use event_persister_actors::store::EventStore;
use event_persister_actors::store::postgres::PostgresStore;
use event_persister_actors::store::sqlite::{SqliteSettings, SqliteStore};
use event_persister_actors::trim::{TrimSettings, cutoffs, run_pass};
use tokio::time::Instant;

use binary::Folder;
use stats::{Samples, turns};

#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/binary.rs"]
mod binary;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/certificates.rs"]
mod certificates;
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
#[path = "support/load.rs"]
mod load;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/metrics.rs"]
mod metrics;
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/plain_sqlite.rs"]
mod plain_sqlite;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/ports.rs"]
mod ports;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/postgres.rs"]
mod postgres;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/redis.rs"]
mod redis_server;
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
#[cfg(feature = "archive")]
#[allow(dead_code, reason = "other benchmarks need more of it")]
#[path = "support/usage.rs"]
mod usage;
#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/it/support/wait.rs"]
mod wait;

/// How soon it is looked again whether the backlog is written.
const LOOK: Duration = Duration::from_millis(20);

/// Where the rows are, with everything that differs.
struct Place {
    folder: Folder,
    /// `None` for SQLite, whose files are in the folder.
    postgres: Option<Postgres>,
}

struct Postgres {
    _server: postgres::Server,
    /// For statements during which nobody may be connected to the other two.
    admin: postgres::Database,
    base: postgres::Database,
    work: postgres::Database,
}

impl Postgres {
    fn start() -> Self {
        let server = postgres::Server::start("");
        let base = server.database_named("base");
        Self {
            admin: server.database_named("admin"),
            work: base.at(base.url.replace("/base?", "/work?")),
            base,
            _server: server,
        }
    }
}

impl Place {
    fn sqlite() -> Self {
        Self {
            folder: Folder::new(),
            postgres: None,
        }
    }

    fn postgres() -> Self {
        Self {
            folder: Folder::new(),
            postgres: Some(Postgres::start()),
        }
    }

    fn name(&self) -> &'static str {
        match &self.postgres {
            None => "SQLite",
            Some(_) => "PostgreSQL",
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Fills the database from which all runs begin with what is in `events.jsonl`.
    fn fill(&self) {
        let url = match &self.postgres {
            None => "sqlite://base.db",
            Some(Postgres { base, .. }) => &base.url,
        };
        let migrate = ["migrate", "--database-url", url];
        self.folder.run(&migrate).exits(0);
        let import = || {
            let import = ["import", "events.jsonl", "--database-url", url];
            self.folder.run(&import).exits(0);
        };
        match &self.postgres {
            None => without_indexes(&self.file("base.db"), import),
            Some(Postgres { base, .. }) => {
                import();
                base.execute("VACUUM (ANALYZE, FREEZE)");
            }
        }
    }

    /// Makes the work database anew, with nothing of it left to be written to disk.
    fn restore(&self) {
        match &self.postgres {
            None => {
                plain_sqlite::remove(&self.file("work.db"));
                std::fs::copy(self.file("base.db"), self.file("work.db")).unwrap();
                let file = std::fs::File::open(self.file("work.db")).unwrap();
                file.sync_all().unwrap();
            }
            Some(Postgres { admin, .. }) => {
                admin.execute("DROP DATABASE IF EXISTS work WITH (FORCE)");
                admin.execute("CREATE DATABASE work TEMPLATE base");
                admin.execute("CHECKPOINT");
            }
        }
    }

    /// The work database as the program is told of it.
    fn url(&self) -> &str {
        match &self.postgres {
            None => "sqlite://work.db",
            Some(Postgres { work, .. }) => &work.url,
        }
    }

    fn number(&self, query: &str) -> usize {
        match &self.postgres {
            None => plain_sqlite::number(&self.file("work.db"), query),
            Some(Postgres { work, .. }) => work.value(query).parse().unwrap(),
        }
    }

    fn num_events(&self, condition: &str) -> usize {
        self.number(&format!("SELECT count(*) FROM events WHERE {condition}"))
    }

    fn num_resources(&self) -> usize {
        self.number("SELECT count(*) FROM event_resources")
    }

    fn delete_plainly(&self, is_expired: &str) {
        let sql = format!(
            "BEGIN; DELETE FROM event_resources WHERE event_id IN \
             (SELECT id FROM events WHERE {is_expired}); \
             DELETE FROM events WHERE {is_expired}; COMMIT"
        );
        match &self.postgres {
            None => {
                let connection = plain_sqlite::open(&self.file("work.db"));
                connection.execute_batch(&sql).unwrap();
                connection.close().unwrap();
            }
            Some(Postgres { work, .. }) => drop(work.execute(&sql)),
        }
    }

    fn store(&self) -> Arc<dyn EventStore> {
        let clock = Arc::new(SystemClock);
        match &self.postgres {
            None => {
                let settings = SqliteSettings::new(self.file("work.db"));
                Arc::new(SqliteStore::new(settings, clock))
            }
            Some(Postgres { work, .. }) => Arc::new(PostgresStore::new(work.settings(), clock)),
        }
    }

    /// The steps of one pass, as the trimmer makes them.
    fn run_pass(&self) {
        let store = self.store();
        let settings = TrimSettings {
            batch_size: batch_size(),
            ..TrimSettings::default()
        };
        let cutoffs = cutoffs(&settings, SystemClock.now()).unwrap();
        runtime().block_on(async {
            run_pass(store.as_ref(), &cutoffs, settings.batch_size, |_| {})
                .await
                .unwrap();
            store.close().await.unwrap();
        });
    }
}

/// Lets many rows in while the tables have no indexes but those of their primary keys, and makes the others at once
/// afterwards: a million events would take half an hour.
fn without_indexes(file: &std::path::Path, work: impl FnOnce()) {
    let connection = plain_sqlite::open(file);
    let made = {
        let indexes =
            "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL";
        let mut indexes = connection.prepare(indexes).unwrap();
        let rows = indexes.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        let made = rows.unwrap().collect::<Result<Vec<(String, String)>, _>>();
        made.unwrap()
    };
    let dropped: String = made
        .iter()
        .map(|(name, _)| format!("DROP INDEX {name};"))
        .collect();
    connection.execute_batch(&dropped).unwrap();
    work();
    let made: String = made.iter().map(|(_, sql)| format!("{sql};")).collect();
    connection.execute_batch(&made).unwrap();
    connection.close().unwrap();
}

/// Events removed in one transaction.
fn batch_size() -> NonZeroUsize {
    settings::number("BENCH_TRIM_BATCH", TrimSettings::default().batch_size)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// The events of one place, and what is expected of its tables.
struct Load {
    now: DateTime<Utc>,
    num_events: usize,
    backlog: Vec<String>,
    num_expired_rows: usize,
    num_kept_resources: usize,
    num_added_resources: usize,
}

impl Load {
    fn fill(place: &Place, num_events: usize) -> Self {
        let now = SystemClock.now();
        let num_resources = |events: &[String]| events.len() + load::num_related(events);
        let mut file = BufWriter::new(File::create(place.file("events.jsonl")).unwrap());
        // A million is much to hold twice.
        let [num_expired_resources, num_kept_resources] = [10, 1].map(|days| {
            let events = load::events(num_events, now - TimeDelta::days(days));
            for event in &events {
                writeln!(file, "{event}").unwrap();
            }
            num_resources(&events)
        });
        file.flush().unwrap();
        place.fill();
        let backlog = load::events(num_events, now);
        Self {
            now,
            num_events,
            num_expired_rows: num_events + num_expired_resources,
            num_kept_resources,
            num_added_resources: num_resources(&backlog),
            backlog,
        }
    }

    fn is_expired(&self) -> String {
        let cutoff = self.now - TimeDelta::days(7);
        format!("occurred < '{}'", cutoff.format("%F %T%.6f+00"))
    }
}

/// Rows removed in a second, by each way of removing them.
fn alone(place: &Place, load: &Load, num_rounds: usize) {
    let names = ["plain DELETE", "run_pass", "event-persister trim"];
    let mut rates = names.map(|_| Samples::default());
    for round in 0..num_rounds {
        for variant in turns(names.len(), round) {
            place.restore();
            let started = Instant::now();
            match variant {
                0 => place.delete_plainly(&load.is_expired()),
                1 => place.run_pass(),
                _ => {
                    let mut command =
                        place
                            .folder
                            .command(&["trim", "--database-url", place.url()]);
                    command.env("EVENT_PERSISTER_TRIM_BATCH_SIZE", batch_size().to_string());
                    assert!(command.output().unwrap().status.success());
                }
            }
            let took = started.elapsed();
            assert_eq!(place.num_events("true"), load.num_events, "{round}");
            assert_eq!(place.num_resources(), load.num_kept_resources);
            rates[variant].push(load.num_expired_rows as f64 / took.as_secs_f64());
        }
    }
    let title = format!("{}, alone", place.name());
    println!("{title:<36}{:>10}{:>10}{:>10}", "min", "median", "max");
    for (name, rates) in names.into_iter().zip(&rates) {
        println!("{:<36}{rates}", format!("{name}, rows/s"));
    }
    for variant in 1..names.len() {
        let title = format!("{} ÷ plain DELETE", names[variant]);
        println!("{title:<36}{:.2}", rates[variant].over(&rates[0]));
    }
}

/// What one backlog showed.
struct Inserted {
    per_second: f64,
    trimmed_over_added: f64,
}

/// Writes the backlog and watches how much is trimmed meanwhile.
fn insert(place: &Place, load: &Load, trim_every: &str) -> Inserted {
    place.restore();
    let redis = redis_server::RedisServer::start();
    let stream = redis.stream();
    stream.publish(&load.backlog);
    let mut command = place.folder.command(&["--database-url", place.url()]);
    command.env("EVENT_PERSISTER_LISTEN", "127.0.0.1:0");
    command.env("EVENT_PERSISTER_REDIS_URL", redis.url());
    command.env("EVENT_PERSISTER_TRIM_EVERY", trim_every);
    command.env("EVENT_PERSISTER_TRIM_BATCH_SIZE", batch_size().to_string());
    let started = Instant::now();
    let service = server::Server::spawn(command, &place.file("work.db"));
    let is_written = || {
        let group = stream.group("event-persister").unwrap_or_default();
        let is_zero = |name: &str| group.contains(&(name.to_owned(), "0".to_owned()));
        is_zero("lag") && is_zero("pending")
    };
    while !is_written() {
        assert!(!service.has_ended(), "{}", service.log());
        std::thread::sleep(LOOK);
    }
    let took = started.elapsed();
    let num_left = place.num_events(&load.is_expired());
    let ledger = service.terminate().in_good_order().ledger();
    assert_eq!(ledger("stored"), load.num_events as u64);
    check_nothing_lost(place, load);
    Inserted {
        per_second: load.num_events as f64 / took.as_secs_f64(),
        trimmed_over_added: 1.0 - num_left as f64 / load.num_events as f64,
    }
}

/// All that is to stay is there, and each event has its resources, expired or not.
fn check_nothing_lost(place: &Place, load: &Load) {
    let is_kept = format!("NOT {}", load.is_expired());
    assert_eq!(place.num_events(&is_kept), 2 * load.num_events);
    let num_resources = place.number(&format!(
        "SELECT count(*) FROM event_resources WHERE {is_kept}"
    ));
    let expected = load.num_kept_resources + load.num_added_resources;
    assert_eq!(num_resources, expected);
    let half_trimmed = format!(
        "{} AND NOT EXISTS (SELECT 1 FROM event_resources WHERE event_id = events.id)",
        load.is_expired()
    );
    assert_eq!(place.num_events(&half_trimmed), 0);
}

fn under_load(place: &Place, load: &Load, num_rounds: usize) {
    let settings = ["off", "200ms"];
    let mut rates = settings.map(|_| Samples::default());
    let mut trimmed = Samples::default();
    for round in 0..num_rounds {
        for variant in turns(settings.len(), round) {
            let inserted = insert(place, load, settings[variant]);
            rates[variant].push(inserted.per_second);
            if variant == 1 {
                trimmed.push(inserted.trimmed_over_added);
            }
        }
    }
    let title = format!("{}, under load", place.name());
    println!("{title:<36}{:>10}{:>10}{:>10}", "min", "median", "max");
    println!("{:<36}{}", "without trim, events/s", rates[0]);
    println!("{:<36}{}", "with trim, events/s", rates[1]);
    println!(
        "{:<36}{:.2}",
        "with ÷ without trim",
        rates[1].over(&rates[0])
    );
    println!("{:<36}{trimmed:.2}", "trimmed ÷ added");
}

/// Bytes of the files in a folder and its folders.
#[cfg(feature = "archive")]
fn num_bytes(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => num_bytes(&entry.path()),
        false => entry.metadata().unwrap().len(),
    });
    sizes.sum()
}

#[cfg(feature = "archive")]
impl Place {
    /// Bytes of the tables with their indexes.
    fn tables_bytes(&self) -> u64 {
        match &self.postgres {
            None => std::fs::metadata(self.file("work.db")).unwrap().len(),
            Some(Postgres { work, .. }) => {
                let size = "SELECT pg_total_relation_size('events') + pg_total_relation_size('event_resources')";
                work.value(size).parse().unwrap()
            }
        }
    }
}

#[cfg(feature = "archive")]
fn archiving(place: &Place, load: &Load, num_rounds: usize) {
    let names = ["without an archive", "with an archive"];
    let (mut rates, mut peaks) = (
        names.map(|_| Samples::default()),
        names.map(|_| Samples::default()),
    );
    let mut sizes = Samples::default();
    for round in 0..num_rounds {
        for variant in turns(names.len(), round) {
            place.restore();
            // As many events are kept, of the same kind.
            let removed_bytes = place.tables_bytes() as f64 / 2.0;
            let archive = place.file("archive");
            drop(std::fs::remove_dir_all(&archive));
            let mut command = place
                .folder
                .command(&["trim", "--database-url", place.url()]);
            command.env("EVENT_PERSISTER_TRIM_BATCH_SIZE", batch_size().to_string());
            if variant == 1 {
                command.env(
                    "EVENT_PERSISTER_ARCHIVE_URL",
                    format!("file://{}", archive.display()),
                );
            }
            let ran = usage::run(&mut command);
            assert_eq!(place.num_events("true"), load.num_events, "{round}");
            rates[variant].push(load.num_expired_rows as f64 / ran.took.as_secs_f64());
            peaks[variant].push(ran.peak_mib);
            if variant == 1 {
                sizes.push(num_bytes(&archive) as f64 / removed_bytes);
            }
        }
    }
    let title = format!("{}, archiving", place.name());
    println!("{title:<36}{:>10}{:>10}{:>10}", "min", "median", "max");
    for (name, (rates, peaks)) in names.into_iter().zip(rates.iter().zip(&peaks)) {
        println!("{:<36}{rates}", format!("{name}, rows/s"));
        println!("{:<36}{peaks:.1}", format!("{name}, MiB"));
    }
    println!("{:<36}{:.2}", "with ÷ without", rates[1].over(&rates[0]));
    println!("{:<36}{sizes:.3}", "archive ÷ tables");
}

#[cfg(not(feature = "archive"))]
fn archiving(_: &Place, _: &Load, _: usize) {
    println!("archiving: not in this build");
}

fn main() {
    let num_events = settings::number("BENCH_EVENTS", 50_000);
    let num_rounds = settings::number("BENCH_ROUNDS", 5);
    let stores = settings::text("BENCH_STORES");
    for store in stores.as_deref().unwrap_or("SQLite,PostgreSQL").split(',') {
        let place = match store {
            "SQLite" => Place::sqlite(),
            "PostgreSQL" => Place::postgres(),
            other => panic!("BENCH_STORES: {other} is neither SQLite nor PostgreSQL"),
        };
        let load = Load::fill(&place, num_events);
        println!("{}, {num_rounds} rounds", load::describe(&load.backlog));
        let parts = settings::text("BENCH_PARTS");
        for part in parts.as_deref().unwrap_or("alone,load,archive").split(',') {
            match part {
                "alone" => alone(&place, &load, num_rounds),
                "load" => under_load(&place, &load, num_rounds),
                "archive" => archiving(&place, &load, num_rounds),
                other => panic!("BENCH_PARTS: {other} is no part"),
            }
        }
    }
}
