//! Prefect's own event persister, alone in a process, on the same Redis and the same database.
//!
//! `PREFECT_PYTHON` is the Python of an environment in which `prefect`, `prefect-redis` and `asyncpg` are
//! installed. It acknowledges what it only holds in memory, so that its end is when the rows are there.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use super::postgres::Database;
use super::redis::RedisServer;
use super::usage;

/// Prefect takes seconds to start, and writes what is left over every five seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// It is slow; looking more often would only take time from it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

const PROGRAM: &str = "\
import asyncio
from prefect.server.events.services.event_persister import EventPersister
asyncio.run(EventPersister().start())
";

/// What one run of it came to.
pub(crate) struct Run {
    /// From the first row to the last one: its start is left out.
    pub(crate) took: Duration,
    /// How many rows were there when the clock started.
    pub(crate) num_before: usize,
    /// Processor time of the process, its start left out.
    pub(crate) processor: Duration,
    pub(crate) peak_memory: f64,
}

/// Killed when it is dropped: it would not end by itself.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts it with its default settings before a stream that is full, and ends it once all is stored.
pub(crate) fn run(
    python: &str,
    redis: &RedisServer,
    database: &Database,
    num_events: usize,
) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let process = Process(command(python, &folder, redis, database).spawn().unwrap());
    let log = || std::fs::read_to_string(folder.path().join("log")).unwrap();
    let mut first = None;
    let mut progress = (Instant::now(), 0);
    loop {
        let num_stored = database
            .value("SELECT count(*) FROM events")
            .parse()
            .unwrap();
        let processor = || usage::of_process(process.0.id());
        if num_stored > 0 && first.is_none() {
            first = Some((Instant::now(), num_stored, processor()));
        }
        if let Some((started, num_before, before)) = first
            && num_stored == num_events
        {
            return Run {
                took: started.elapsed(),
                num_before,
                processor: processor() - before,
                peak_memory: usage::peak_memory(process.0.id()),
            };
        }
        if progress.1 != num_stored {
            progress = (Instant::now(), num_stored);
        }
        assert!(progress.0.elapsed() < PATIENCE, "no progress: {}", log());
        std::thread::sleep(LOOK_EVERY);
    }
}

fn command(python: &str, folder: &TempDir, redis: &RedisServer, database: &Database) -> Command {
    let home = folder.path().to_str().unwrap();
    let (url, _) = database.url.split_once('?').unwrap();
    let url = url.replacen("postgresql:", "postgresql+asyncpg:", 1);
    let mut command = Command::new(python);
    command
        .args(["-c", PROGRAM])
        .env_clear()
        .env("HOME", home)
        .env("PREFECT_HOME", home)
        .env("PREFECT_API_DATABASE_CONNECTION_URL", url)
        .env("PREFECT_API_DATABASE_MIGRATE_ON_START", "false")
        .env("PREFECT_MESSAGING_BROKER", "prefect_redis.messaging")
        .env("PREFECT_MESSAGING_CACHE", "prefect_redis.messaging")
        .env("PREFECT_REDIS_MESSAGING_HOST", "127.0.0.1")
        .env("PREFECT_REDIS_MESSAGING_PORT", redis.port().to_string())
        .env("PREFECT_LOGGING_LEVEL", "WARNING")
        .env("DO_NOT_TRACK", "1")
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(folder.path().join("log")).unwrap());
    command
}
