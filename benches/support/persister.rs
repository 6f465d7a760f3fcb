//! The product as a process between Redis and PostgreSQL, as an operator starts it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use super::bus::Bus;
use super::ports::free_port;
use super::postgres::Database;
use super::usage;

/// Nothing takes that long without any progress.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is asked whether it is ready.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What it wants to see where its auth string is `admin:right`.
const AUTHORIZATION: &str = "Basic YWRtaW46cmlnaHQ=";

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_event-persister"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// Makes all tables.
pub(crate) fn migrate(database: &Database) {
    let mut command = command();
    command.args(["migrate", "--database-url", &database.url]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// What one run of the product came to.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// From the start of the process to the last acknowledgement.
    pub(crate) took: Duration,
    /// Processor time of the process, its start included.
    pub(crate) processor: Duration,
    pub(crate) peak_memory: f64,
    /// Commands that Redis carried out for it.
    pub(crate) redis_commands: Option<f64>,
    pub(crate) metrics: Metrics,
}

/// A running service; killed when it is dropped.
pub(crate) struct Persister {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Persister {
    /// Starts it with these variables; what is not said is as by default.
    pub(crate) fn start(bus: &dyn Bus, database: &Database, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut command = command();
        command
            .args(["--database-url", &database.url])
            .args([&format!("--{}-url", bus.name()), &bus.url()])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .envs(variables.iter().copied())
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("log")).unwrap());
        Self {
            child: command.spawn().unwrap(),
            port,
            folder,
        }
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) fn processor(&self) -> Duration {
        usage::of_process(self.child.id())
    }

    pub(crate) fn peak_memory(&self) -> f64 {
        usage::peak_memory(self.child.id())
    }

    /// Its numbers as they are now.
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics(self.until("no metrics", || self.get("/metrics")))
    }

    /// Waits until it listens.
    pub(crate) fn until_reachable(&self) {
        let address = ("127.0.0.1", self.port);
        self.until("no listener", || TcpStream::connect(address).ok());
    }

    /// Waits until it is ready.
    pub(crate) fn until_ready(&self) {
        self.until("not ready", || self.get("/api/ready"));
    }

    fn until<T>(&self, complaint: &str, look: impl Fn() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(started.elapsed() < PATIENCE, "{complaint}: {}", self.log());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The body of a 200.
    fn get(&self, path: &str) -> Option<String> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nauthorization: {AUTHORIZATION}\r\n\r\n");
        connection.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.split(' ').nth(1)?.eq("200").then(|| body.to_owned())
    }

    /// Ends it in good order, with every message accounted for.
    pub(crate) fn stop(mut self) {
        let kill = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        assert!(kill.unwrap().success());
        let status = self.child.wait().unwrap();
        let log = self.log();
        assert!(status.success() && log.contains(" balanced=true"), "{log}");
    }
}

impl Drop for Persister {
    fn drop(&mut self) {
        // It has ended already, unless something went wrong.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Starts it before a stream that is full, and ends it once all is acknowledged.
pub(crate) fn run(bus: &dyn Bus, database: &Database, num_writers: usize) -> Run {
    let num_writers = num_writers.to_string();
    let variables = [("EVENT_PERSISTER_WRITERS", num_writers.as_str())];
    run_beside(bus, database, &variables, |_| ())
}

/// The same beside something that begins as soon as it can be reached.
pub(crate) fn run_beside<T>(
    bus: &dyn Bus,
    database: &Database,
    variables: &[(&str, &str)],
    beside: impl FnOnce(&Persister) -> T,
) -> Run {
    let mut watch = bus.watch();
    let started = Instant::now();
    let persister = Persister::start(bus, database, variables);
    let beside = beside(&persister);
    watch.until_settled(&|| persister.log());
    let took = started.elapsed();
    drop(beside);
    let run = Run {
        took,
        processor: persister.processor(),
        peak_memory: persister.peak_memory(),
        redis_commands: watch.commands_of_others(),
        metrics: persister.metrics(),
    };
    persister.stop();
    run
}

/// What `/metrics` says.
#[derive(Debug, Clone)]
pub(crate) struct Metrics(String);

impl Metrics {
    /// The value of a metric without labels.
    pub(crate) fn value(&self, name: &str) -> f64 {
        let prefix = format!("{name} ");
        let line = self.0.lines().find_map(|line| line.strip_prefix(&prefix));
        line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    }

    /// An estimate from a histogram's buckets, in seconds: as if the values of a bucket lay evenly.
    pub(crate) fn quantile(&self, name: &str, share: f64) -> f64 {
        let prefix = format!("{name}_bucket{{le=\"");
        let buckets: Vec<(f64, f64)> = (self.0.lines())
            .filter_map(|line| {
                let (bound, count) = line.strip_prefix(&prefix)?.split_once("\"} ")?;
                Some((bound.parse().ok()?, count.parse().ok()?))
            })
            .collect();
        let rank = share * buckets.last().map_or(0.0, |(_, count)| *count);
        let (mut below, mut counted) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= rank && count > counted && bound.is_finite() {
                return below + (bound - below) * (rank - counted) / (count - counted);
            }
            if bound.is_finite() {
                (below, counted) = (bound, count);
            }
        }
        below
    }
}
