//! A Redis server for one test: on a free port, in a folder of its own, gone with the test.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use event_persister_actors::source::redis::{RedisSettings, RedisUrl, consumer_name};
use redis::{Connection, FromRedisValue, Value};
use tempfile::TempDir;
use tokio::time::Instant;
use uuid::Uuid;

use super::certificates;
use super::ports::free_port;

/// What is special about a server.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerOptions {
    /// Writes every change to disk before it answers, so that it survives a kill.
    pub(crate) durable: bool,
    pub(crate) password: Option<String>,
    /// Takes encrypted connections alone, with a certificate of [`RedisServer::ca_file`].
    pub(crate) tls: bool,
    /// And only from who shows a certificate of the same authority.
    pub(crate) wants_certificate: bool,
    /// Has a clock that can be set.
    pub(crate) own_clock: bool,
    /// Its certificate is made out to [`certificates::ELSEWHERE`] alone.
    pub(crate) has_other_name: bool,
}

/// A running server.
pub(crate) struct RedisServer {
    options: ServerOptions,
    directory: TempDir,
    port: u16,
    process: Option<Child>,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        Self::start_with(ServerOptions::default())
    }

    pub(crate) fn start_with(options: ServerOptions) -> Self {
        let mut server = Self {
            options,
            directory: TempDir::new().unwrap(),
            port: free_port(),
            process: None,
        };
        if server.options.tls {
            certificates::make(server.directory.path());
        }
        if server.options.has_other_name {
            certificates::sign_for(server.directory.path(), certificates::ELSEWHERE);
        }
        server.launch();
        server
    }

    /// Starts it again, with what it had on its disk.
    pub(crate) fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let directory = self.directory.path();
        let mut command = Command::new(setting("TEST_REDIS_SERVER", "redis-server"));
        command.args(["--bind", "127.0.0.1", "--save", "", "--dir"]);
        command
            .arg(directory)
            .arg("--unixsocket")
            .arg(self.socket());
        let port = self.port.to_string();
        if self.options.tls {
            command.args(["--port", "0", "--tls-port", &port]);
            let wants = if self.options.wants_certificate {
                "yes"
            } else {
                "no"
            };
            command.args(["--tls-auth-clients", wants]);
            for (option, file) in [
                ("--tls-cert-file", "server.pem"),
                ("--tls-key-file", "server.key"),
                ("--tls-ca-cert-file", "ca.pem"),
            ] {
                command.arg(option).arg(directory.join(file));
            }
        } else {
            command.args(["--port", &port]);
        }
        if self.options.durable {
            command.args(["--appendonly", "yes", "--appendfsync", "always"]);
        }
        if let Some(password) = &self.options.password {
            command.args(["--requirepass", password]);
        }
        if self.options.own_clock {
            let ahead = directory.join("ahead");
            if !ahead.exists() {
                std::fs::write(&ahead, [0; 8]).unwrap();
            }
            command
                .env("LD_PRELOAD", clock_library())
                .env("CLOCK_AHEAD", ahead);
        }
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed (Debian package redis-server)");
        self.process = Some(process);
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answers = if self.options.tls {
                TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            } else {
                self.answers()
            };
            if answers {
                return;
            }
            if let Some(status) = self.process.as_mut().unwrap().try_wait().unwrap() {
                panic!("redis-server ended with {status}");
            }
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it answers a ping and is not loading.
    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return false;
        };
        let mut answer = [0; 5];
        stream.write_all(b"PING\r\n").is_ok()
            && stream.read_exact(&mut answer).is_ok()
            && (&answer == b"+PONG" || &answer == b"-NOAU")
    }

    /// Ends it at once, as a power cut would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }

    /// Stops it in its tracks; connections stay open and nothing answers.
    pub(crate) fn stall(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.process_id().to_string();
        let status = Command::new("kill")
            .args([&format!("-{signal}"), &id])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Sets its clock so many seconds ahead of that of this machine, while it runs.
    pub(crate) fn set_clock(&self, seconds: i64) {
        assert!(self.options.own_clock, "it has the machine's clock");
        // In place, since the server has the file mapped.
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .open(self.directory.path().join("ahead"))
            .unwrap();
        file.write_all(&seconds.to_ne_bytes()).unwrap();
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens besides its port.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// Whoever trusts this trusts the server.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A certificate of that authority, and its key.
    pub(crate) fn certificate(&self) -> [PathBuf; 2] {
        ["server.pem", "server.key"].map(|name| self.directory.path().join(name))
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.options.tls { "rediss" } else { "redis" };
        let password = match &self.options.password {
            Some(password) => format!(":{password}@"),
            None => String::new(),
        };
        format!("{scheme}://{password}127.0.0.1:{}/0", self.port)
    }

    /// The stream `events` of this server.
    pub(crate) fn stream(&self) -> TestStream {
        TestStream::at(self.url())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Tells a server a time of day that is so many seconds ahead as a file says.
const CLOCK: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static const volatile long *ahead = MAP_FAILED;

__attribute__((constructor)) static void open_file(void) {
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
    ahead = mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    int result = syscall(SYS_gettimeofday, time, zone);
    if (ahead != MAP_FAILED) time->tv_sec += *ahead;
    return result;
}
"#;

/// The library that has a server's clock set, made once.
fn clock_library() -> PathBuf {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let directory = MADE.get_or_init(|| {
        let directory = TempDir::new().unwrap();
        let source = directory.path().join("clock.c");
        std::fs::write(&source, CLOCK).unwrap();
        let library = directory.path().join("clock.so");
        let compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([library, source])
            .status();
        assert!(compiler.unwrap().success());
        directory
    });
    directory.path().join("clock.so")
}

/// A setting of the tests themselves: `TEST_REDIS_SERVER` is the program to start, for trying
/// other versions; `TEST_REDIS_URL` a server to use where any will do.
fn setting(name: &str, default: &str) -> String {
    #[expect(clippy::disallowed_methods, reason = "the tests' own settings")]
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// A stream as its publishers and other consumers see it.
#[derive(Debug, Clone)]
pub(crate) struct TestStream {
    url: String,
    name: String,
}

impl TestStream {
    /// The stream `events` of the server with this URL.
    pub(crate) fn at(url: String) -> Self {
        let name = "events".to_owned();
        Self { url, name }
    }

    /// A stream that nobody else uses: on the server that the environment names, or on one that is
    /// started for it.
    pub(crate) fn anywhere() -> (Self, Option<RedisServer>) {
        let url = setting("TEST_REDIS_URL", "");
        if url.is_empty() {
            let server = RedisServer::start();
            return (server.stream(), Some(server));
        }
        let name = format!("test-events-{}", Uuid::new_v4());
        (Self { url, name }, None)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// As the source names the server, without secrets.
    pub(crate) fn server(&self) -> String {
        self.url.parse::<RedisUrl>().unwrap().to_string()
    }

    /// Settings for a consumer of this stream that no other test disturbs.
    pub(crate) fn settings(&self) -> RedisSettings {
        RedisSettings {
            url: self.url.parse::<RedisUrl>().unwrap(),
            stream: self.name.clone(),
            consumer_name: consumer_name("test"),
            block: Duration::from_millis(100),
            ..RedisSettings::default()
        }
    }

    pub(crate) fn connect(&self) -> Connection {
        redis::Client::open(self.url.as_str())
            .unwrap()
            .get_connection()
            .unwrap()
    }

    /// Sends a command whose words are separated by spaces; `events` is this stream.
    pub(crate) fn command<T: FromRedisValue>(&self, words: &str) -> T {
        self.try_command(words).unwrap()
    }

    pub(crate) fn try_command<T: FromRedisValue>(&self, words: &str) -> redis::RedisResult<T> {
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(if word == "events" { &self.name } else { word });
        }
        command.query(&mut self.connect())
    }

    /// Publishes events as Prefect does; returns their ids.
    pub(crate) fn publish<T: AsRef<[u8]>>(&self, events: &[T]) -> Vec<String> {
        let entries: Vec<_> = (events.iter())
            .map(|event| (event, r#"{"id":"","event":""}"#))
            .collect();
        self.try_publish(&entries).unwrap()
    }

    /// Publishes events with these attributes; returns their ids.
    pub(crate) fn try_publish<T: AsRef<[u8]>, A: AsRef<str>>(
        &self,
        entries: &[(T, A)],
    ) -> redis::RedisResult<Vec<String>> {
        let mut ids = Vec::with_capacity(entries.len());
        let mut connection = redis::Client::open(self.url.as_str())?.get_connection()?;
        for entries in entries.chunks(1000) {
            let mut pipeline = redis::pipe();
            for (event, attributes) in entries {
                pipeline.cmd("XADD").arg(&self.name).arg("*");
                pipeline.arg("data").arg(event.as_ref());
                pipeline.arg("attributes").arg(attributes.as_ref());
            }
            let added: Vec<String> = pipeline.query(&mut connection)?;
            ids.extend(added);
        }
        Ok(ids)
    }

    /// Whether it counts what was added and read: since Redis 7.0.
    pub(crate) fn counts_entries(&self) -> bool {
        let info: String = self.command("INFO server");
        !info.contains("redis_version:6.")
    }

    pub(crate) fn len(&self) -> usize {
        self.command("XLEN events")
    }

    /// Entries that the group was given and that are not acknowledged.
    pub(crate) fn num_pending(&self) -> usize {
        let (num, _, _, _): (usize, Value, Value, Value) =
            self.command("XPENDING events event-persister");
        num
    }

    /// What XINFO GROUPS says about a group; a value is empty where Redis knows none.
    pub(crate) fn group(&self, name: &str) -> Option<Vec<(String, String)>> {
        let groups: Vec<Vec<Value>> = self.try_command("XINFO GROUPS events").ok()?;
        groups
            .into_iter()
            .map(|group| {
                let texts: Vec<String> = group.iter().map(text).collect();
                texts
                    .chunks(2)
                    .map(|pair| (pair[0].clone(), pair[1].clone()))
                    .collect::<Vec<_>>()
            })
            .find(|group| group[0].1 == name)
    }

    pub(crate) fn last_delivered(&self, group: &str) -> Option<String> {
        let fields = self.group(group)?;
        let field = fields
            .into_iter()
            .find(|(name, _)| name == "last-delivered-id")?;
        Some(field.1)
    }

    /// How many entries a group has read, where Redis knows.
    pub(crate) fn entries_read(&self, group: &str) -> Option<usize> {
        let fields = self.group(group)?;
        let field = fields
            .into_iter()
            .find(|(name, _)| name == "entries-read")?;
        field.1.parse().ok()
    }

    /// The consumers of a group: name, entries pending, milliseconds idle.
    pub(crate) fn consumers(&self, group: &str) -> Vec<(String, u64, u64)> {
        let consumers: Vec<Vec<Value>> = self
            .try_command(&format!("XINFO CONSUMERS events {group}"))
            .unwrap_or_default();
        consumers
            .iter()
            .map(|fields| {
                let texts: Vec<String> = fields.iter().map(text).collect();
                let value = |name: &str| {
                    let at = texts.iter().position(|text| text == name).unwrap();
                    texts[at + 1].clone()
                };
                let number = |name| value(name).parse().unwrap();
                (value("name"), number("pending"), number("idle"))
            })
            .collect()
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Int(number) => number.to_string(),
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    }
}
