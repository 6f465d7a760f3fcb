//! One master, two replicas and three sentinels, which fail over within a second or two.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::{RedisResult, Value};
use tempfile::TempDir;
use tokio::time::Instant;

use super::ports::free_port;
use super::redis::TestStream;
use super::wait::until;

/// The name that the sentinels give the master.
pub(crate) const SERVICE: &str = "events";

pub(crate) struct Sentinels {
    nodes: Vec<Process>,
    sentinels: Vec<Process>,
    directory: TempDir,
}

/// One server, which is killed with the test.
struct Process {
    port: u16,
    child: Child,
}

impl Sentinels {
    pub(crate) async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let ports = [free_port(), free_port(), free_port()];
        let master = ports[0];
        let nodes =
            ports.map(|port| node(directory.path(), port, (port != master).then_some(master)));
        let started = Self {
            nodes: nodes.into(),
            sentinels: Vec::new(),
            directory,
        };
        until("replicas of the master", || started.num_online(master) == 2).await;
        let sentinels = [free_port(), free_port(), free_port()];
        let sentinels = sentinels.map(|port| sentinel(started.directory.path(), port, master));
        let started = Self {
            sentinels: sentinels.into(),
            ..started
        };
        started.until_settled().await;
        started
    }

    pub(crate) fn url(&self) -> String {
        let members = self
            .sentinels
            .iter()
            .map(|sentinel| format!("127.0.0.1:{}", sentinel.port));
        let members: Vec<String> = members.collect();
        format!("redis+sentinel://{}/{SERVICE}/0", members.join(","))
    }

    /// Until all know of each other, and of two replicas that follow the master.
    pub(crate) async fn until_settled(&self) {
        until("settled: the sentinels", || {
            let master = self.master();
            let all_know = (0..self.sentinels.len()).all(|index| {
                self.fact(index, "num-other-sentinels").as_deref() == Some("2")
                    && self.fact(index, "num-slaves").as_deref() == Some("2")
                    && self.fact(index, "flags").as_deref() == Some("master")
                    && self.master_of(index) == master
            });
            all_know && master.is_some_and(|port| self.num_online(port) == 2)
        })
        .await;
    }

    fn fact(&self, index: usize, name: &str) -> Option<String> {
        let port = self.sentinels.get(index)?.port;
        let facts: Vec<String> = ask(port, &format!("SENTINEL MASTER {SERVICE}")).ok()?;
        let at = facts.iter().position(|fact| fact == name)?;
        facts.get(at + 1).cloned()
    }

    fn master_of(&self, index: usize) -> Option<u16> {
        let port = self.sentinels.get(index)?.port;
        let address: (String, u16) =
            ask(port, &format!("SENTINEL GET-MASTER-ADDR-BY-NAME {SERVICE}")).ok()?;
        Some(address.1)
    }

    /// The port of the master that the first sentinel names.
    pub(crate) fn master(&self) -> Option<u16> {
        self.master_of(0)
    }

    fn num_online(&self, port: u16) -> usize {
        let info: RedisResult<String> = ask(port, "INFO replication");
        info.map_or(0, |info| info.matches("state=online").count())
    }

    /// Until another server is the master, and says so.
    pub(crate) async fn until_replaced(&self, old: u16) -> u16 {
        let mut new = old;
        until("chosen: another master", || {
            new = self.master().unwrap_or(old);
            new != old && role(new) == "master"
        })
        .await;
        new
    }

    /// The stream on one of the servers.
    pub(crate) fn stream(&self, port: u16) -> TestStream {
        TestStream::at(format!("redis://127.0.0.1:{port}/0"))
    }

    pub(crate) fn kill(&mut self, port: u16) {
        let node = self.node(port);
        node.child.kill().ok();
        node.child.wait().ok();
    }

    /// Starts one again that was killed, as a master, until the sentinels tell it otherwise.
    pub(crate) fn launch(&mut self, port: u16) {
        let started = node(self.directory.path(), port, None);
        *self.node(port) = started;
    }

    pub(crate) fn stall(&mut self, port: u16) {
        signal(&self.node(port).child, "STOP");
    }

    pub(crate) fn resume(&mut self, port: u16) {
        signal(&self.node(port).child, "CONT");
    }

    /// Asks for a failover without a reason, again where a busy machine made the sentinels give it up.
    pub(crate) async fn fail_over(&self, old: u16) -> u16 {
        let port = self.sentinels[0].port;
        let mut asked: Option<Instant> = None;
        let mut new = old;
        until("chosen: another master", || {
            if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(8)) {
                drop(ask::<Value>(port, &format!("SENTINEL FAILOVER {SERVICE}")));
                asked = Some(Instant::now());
            }
            new = self.master().unwrap_or(old);
            new != old && role(new) == "master"
        })
        .await;
        new
    }

    /// The replicas get nothing from here on, and do not know it.
    pub(crate) fn cut_off_replicas(&mut self, master: u16) {
        for port in self.replicas(master) {
            self.stall(port);
        }
        ask::<Value>(master, "CLIENT KILL TYPE replica").unwrap();
    }

    pub(crate) fn replicas(&self, master: u16) -> Vec<u16> {
        let ports = self.nodes.iter().map(|node| node.port);
        ports.filter(|port| *port != master).collect()
    }

    fn node(&mut self, port: u16) -> &mut Process {
        self.nodes
            .iter_mut()
            .find(|node| node.port == port)
            .unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a server says that it is.
pub(crate) fn role(port: u16) -> String {
    let role: RedisResult<Vec<Value>> = ask(port, "ROLE");
    match role.ok().and_then(|parts| parts.into_iter().next()) {
        Some(Value::BulkString(name)) => String::from_utf8_lossy(&name).into_owned(),
        _ => String::new(),
    }
}

fn ask<T: redis::FromRedisValue>(port: u16, words: &str) -> RedisResult<T> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
    let mut connection = client.get_connection_with_timeout(Duration::from_millis(500))?;
    connection.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut words = words.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    for word in words {
        command.arg(word);
    }
    command.query(&mut connection)
}

fn node(directory: &Path, port: u16, of: Option<u16>) -> Process {
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(directory);
    command.args([
        "--port",
        &port.to_string(),
        "--repl-diskless-sync-delay",
        "0",
    ]);
    command.args(["--repl-ping-replica-period", "1", "--repl-timeout", "5"]);
    command.args(["--dbfilename", &format!("{port}.rdb")]);
    if let Some(of) = of {
        command.args(["--replicaof", "127.0.0.1", &of.to_string()]);
    }
    spawn(command, port)
}

fn sentinel(directory: &Path, port: u16, master: u16) -> Process {
    let file = directory.join(format!("sentinel-{port}.conf"));
    let settings = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {SERVICE} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 3000\n\
         sentinel parallel-syncs {SERVICE} 2\n",
        directory.display()
    );
    std::fs::write(&file, settings).unwrap();
    let mut command = Command::new("redis-server");
    command.arg(file).arg("--sentinel");
    let started = spawn(command, port);
    for _ in 0..200 {
        // Quicker than the defaults, where it knows the command.
        let hurry = "SENTINEL DEBUG publish-period 200 info-period 500 ping-period 200";
        match ask::<Value>(port, hurry) {
            Err(error) if error.code().is_none() => std::thread::sleep(Duration::from_millis(10)),
            _ => break,
        }
    }
    started
}

fn spawn(mut command: Command, port: u16) -> Process {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed (Debian package redis-server)");
    Process { port, child }
}

fn signal(child: &Child, signal: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill")
        .args([&format!("-{signal}"), &id])
        .status();
    assert!(sent.unwrap().success());
}
