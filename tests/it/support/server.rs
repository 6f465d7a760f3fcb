//! The service as a process: started, asked, and ended in one way or another.

use std::io::{BufRead, BufReader};
use std::panic::Location;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::binary::Folder;
use super::database::Database;
use super::metrics::Metrics;
use super::socket::{self, Socket};
use super::wait::PATIENCE;

/// How soon a condition is looked at again that nobody announces.
const POLL: Duration = Duration::from_millis(5);

/// What it has logged so far, filled by a thread that reads its standard error.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    changed: Condvar,
}

impl Log {
    fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }
}

/// A service on a port of its own; killed when it is dropped.
///
/// It is ended through a shared reference, since clients may still hold one.
pub(crate) struct Server {
    child: Mutex<Child>,
    log: Arc<Log>,
    reader: Mutex<Option<JoinHandle<()>>>,
    address: String,
    database: Database,
    client: reqwest::Client,
}

/// How a service ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) log: String,
}

impl Server {
    /// Starts it on the default database of a folder, at any free port.
    pub(crate) fn start(folder: &Folder, variables: &[(&str, &str)]) -> Self {
        let mut command = folder.command(&[]);
        command
            .env("EVENT_PERSISTER_LISTEN", "127.0.0.1:0")
            .envs(variables.iter().copied());
        Self::spawn(command, &folder.database_path())
    }

    /// Starts any command line; returns once it listens.
    pub(crate) fn spawn(mut command: Command, database: &Path) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Log::default());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let filled = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines() {
                filled.lines.lock().unwrap().push(line.unwrap());
                filled.changed.notify_all();
            }
        });
        let mut server = Self {
            child: Mutex::new(child),
            log,
            reader: Mutex::new(Some(reader)),
            address: String::new(),
            database: Database::new(database),
            // A connection that is kept may have been closed while the test was busy elsewhere.
            client: super::client::builder()
                .pool_max_idle_per_host(0)
                .build()
                .unwrap(),
        };
        let line = server.logged("listen=http");
        let (_, rest) = line.split_once("://").unwrap();
        server.address = rest
            .split(' ')
            .next()
            .unwrap()
            .replace("0.0.0.0", "127.0.0.1");
        server
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// Where it listens, as `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// The id of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// The first line of its log that has this text in it, waited for.
    pub(crate) fn logged(&self, text: &str) -> String {
        let lines = self.log.lines.lock().unwrap();
        let missing = |lines: &mut Vec<String>| !lines.iter().any(|line| line.contains(text));
        let (lines, _) = self
            .log
            .changed
            .wait_timeout_while(lines, PATIENCE, missing)
            .unwrap();
        let found = lines.iter().find(|line| line.contains(text)).cloned();
        found.unwrap_or_else(|| panic!("{text:?} was not logged:\n{}", lines.join("\n")))
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        let sent = self.client.get(self.url(path)).send().await;
        sent.unwrap_or_else(|error| panic!("{error}: {}", self.log()))
    }

    /// A request that posts a body to the events' path.
    pub(crate) fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        let request = self.client.post(self.url("/api/events"));
        request.body(body)
    }

    /// Posts and returns the answer's status.
    pub(crate) async fn post_status(&self, body: impl Into<reqwest::Body>) -> u16 {
        let sent = self.post(body).send().await;
        let response = sent.unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        response.status().as_u16()
    }

    pub(crate) async fn readiness(&self) -> (u16, Value) {
        let response = self.get("/api/ready").await;
        (
            response.status().as_u16(),
            response.json().await.expect("a JSON body"),
        )
    }

    /// Asks until it says whether it is ready as expected; its answer.
    pub(crate) async fn until_ready_is(&self, expected: u16) -> Value {
        self.until_readiness(|status, _| status == expected).await
    }

    /// Asks whether it is ready until status and answer are as expected; that answer.
    pub(crate) async fn until_readiness(&self, is_expected: impl Fn(u16, &Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let (status, body) = self.readiness().await;
            if is_expected(status, &body) {
                return body;
            }
            let log = self.log();
            assert!(started.elapsed() < PATIENCE, "still {status} {body}\n{log}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until something holds that is its doing; its log tells why it does not.
    #[track_caller]
    pub(crate) fn until(
        &self,
        what: &str,
        mut holds: impl FnMut() -> bool,
    ) -> impl Future<Output = ()> {
        let caller = Location::caller();
        async move {
            let started = Instant::now();
            while !holds() {
                let log = self.log();
                assert!(
                    started.elapsed() < PATIENCE,
                    "{caller}: not yet {what}\n{log}"
                );
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// Its numbers, as Prometheus reads them.
    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics::new(self.get("/metrics").await.text().await.unwrap())
    }

    pub(crate) async fn ready(self) -> Self {
        self.until_ready_is(200).await;
        self
    }

    /// A WebSocket that speaks Prefect's subprotocol and has not authenticated itself.
    pub(crate) async fn connect(&self) -> Socket {
        socket::connect(&self.address, Some("prefect"))
            .await
            .unwrap_or_else(|error| panic!("{error}: {}", self.log()))
    }

    /// A WebSocket that has been let in.
    pub(crate) async fn authenticated(&self) -> Socket {
        let mut socket = self.connect().await;
        socket::authenticate(&mut socket, Value::Null).await;
        socket
    }

    /// Sends a signal by name, through a shell: it has `kill` built in everywhere.
    pub(crate) fn signal(&self, name: &str) {
        let script = format!("kill -{name} {}", self.id());
        let sent = Command::new("sh").args(["-c", &script]).status().unwrap();
        assert!(sent.success());
    }

    /// Ends it where it stands.
    pub(crate) fn kill_9(&self) -> Ended {
        self.child.lock().unwrap().kill().unwrap();
        self.ended()
    }

    /// Ends it with SIGTERM.
    pub(crate) fn terminate(&self) -> Ended {
        self.signal("TERM");
        self.ended()
    }

    /// Waits for its end.
    pub(crate) fn ended(&self) -> Ended {
        let started = Instant::now();
        let status = loop {
            let status = self.child.lock().unwrap().try_wait().unwrap();
            if let Some(status) = status {
                break status;
            }
            assert!(started.elapsed() < PATIENCE, "still there: {}", self.log());
            std::thread::sleep(POLL);
        };
        if let Some(reader) = self.reader.lock().unwrap().take() {
            reader.join().unwrap();
        }
        let log = self.log.text();
        Ended { status, log }
    }

    /// The most memory that it has had resident so far, in MiB.
    pub(crate) fn peak_memory(&self) -> u64 {
        mebibytes_of(self.id(), "VmHWM")
    }

    /// The memory that it has resident now, in MiB.
    pub(crate) fn memory(&self) -> u64 {
        mebibytes_of(self.id(), "VmRSS")
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_some()
    }
}

/// What the kernel says about the memory of a process.
pub(crate) fn mebibytes_of(process: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let mut lines = status.lines();
    let found = lines.find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    let kib = found.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() / 1024
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already, and there is nobody to tell of a failure.
        if let Ok(child) = self.child.get_mut() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Ended {
    /// Exit code 0, and a ledger that adds up with nothing in flight.
    #[track_caller]
    pub(crate) fn in_good_order(self) -> Self {
        assert_eq!(self.status.code(), Some(0), "{}", self.log);
        let counts = self.ledger();
        let sum = counts("received") + counts("redelivered");
        let parts = [
            "stored",
            "duplicates",
            "dead_lettered",
            "ignored",
            "released",
        ];
        assert_eq!(sum, parts.map(&counts).iter().sum::<u64>(), "{}", self.log);
        assert_eq!(counts("in_flight"), 0, "{}", self.log);
        assert!(self.log.contains(" balanced=true"), "{}", self.log);
        self
    }

    /// The counts that it ended with.
    pub(crate) fn ledger(&self) -> impl Fn(&str) -> u64 + use<> {
        // Behind it there may be a word of tables that were still being made.
        let mut lines = self.log.lines().rev();
        let line = lines.find(|line| line.contains(" stopped received="));
        let line = line.unwrap_or_else(|| panic!("{}", self.log)).to_owned();
        move |name| {
            let prefix = format!("{name}=");
            let mut words = line.split(' ');
            let value = words.find_map(|word| word.strip_prefix(&prefix)).unwrap();
            value.parse().unwrap()
        }
    }
}
