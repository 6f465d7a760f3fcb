//! One master, two replicas and three sentinels, which fail over within a second or two.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::{RedisResult, Value};
use tempfile::TempDir;
use tokio::time::Instant;

use super::certificates;
use super::ports::free_port;
use super::redis::TestStream;
use super::wait::until;

/// The name that the sentinels give the master.
pub(crate) const SERVICE: &str = "events";

/// What the servers and the sentinels want of their clients.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) tls: bool,
    pub(crate) passwords: bool,
}

/// With [`Wanted::passwords`], of the servers and of the sentinels.
pub(crate) const PASSWORDS: [&str; 2] = ["of-the-servers", "of-the-sentinels"];

pub(crate) struct Sentinels {
    wanted: Wanted,
    nodes: Vec<Process>,
    sentinels: Vec<Process>,
    directory: TempDir,
}

/// One server, which is killed with the test.
struct Process {
    /// The one that it is known by.
    port: u16,
    /// For the test, which speaks no TLS.
    url: String,
    child: Child,
}

impl Sentinels {
    pub(crate) async fn start() -> Self {
        Self::start_with(Wanted::default()).await
    }

    pub(crate) async fn start_with(wanted: Wanted) -> Self {
        let directory = TempDir::new().unwrap();
        if wanted.tls {
            certificates::make(directory.path());
        }
        let ports = [free_port(), free_port(), free_port()];
        let master = ports[0];
        let nodes = ports.map(|port| {
            let of = (port != master).then_some(master);
            node(wanted, directory.path(), port, of)
        });
        let started = Self {
            wanted,
            nodes: nodes.into(),
            sentinels: Vec::new(),
            directory,
        };
        until("replicas of the master", || started.num_online(master) == 2).await;
        let sentinels = [free_port(), free_port(), free_port()];
        let sentinels =
            sentinels.map(|port| sentinel(wanted, started.directory.path(), port, master));
        let started = Self {
            sentinels: sentinels.into(),
            ..started
        };
        started.until_settled().await;
        started
    }

    /// With everything that is wanted.
    pub(crate) fn url(&self) -> String {
        let members = self
            .sentinels
            .iter()
            .map(|sentinel| format!("127.0.0.1:{}", sentinel.port));
        let members: Vec<String> = members.collect();
        let members = members.join(",");
        let (mut scheme, mut login, mut parameters) = ("redis", String::new(), Vec::new());
        if self.wanted.tls {
            scheme = "rediss";
            parameters.push(format!("ssl_ca_certs={}", self.ca_file().display()));
        }
        if self.wanted.passwords {
            let [servers, sentinels] = PASSWORDS;
            login = format!(":{servers}@");
            parameters.push(format!("sentinel_password={sentinels}"));
        }
        let parameters = parameters.join("&");
        format!("{scheme}+sentinel://{login}{members}/{SERVICE}/0?{parameters}")
    }

    /// Whoever trusts this trusts servers and sentinels.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
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
        let url = &self.sentinels.get(index)?.url;
        let facts: Vec<String> = ask(url, &format!("SENTINEL MASTER {SERVICE}")).ok()?;
        let at = facts.iter().position(|fact| fact == name)?;
        facts.get(at + 1).cloned()
    }

    fn master_of(&self, index: usize) -> Option<u16> {
        let url = &self.sentinels.get(index)?.url;
        let address: (String, u16) =
            ask(url, &format!("SENTINEL GET-MASTER-ADDR-BY-NAME {SERVICE}")).ok()?;
        Some(address.1)
    }

    /// The port of the master that the first sentinel names.
    pub(crate) fn master(&self) -> Option<u16> {
        self.master_of(0)
    }

    /// How many of them somebody listens to, to be told at once of another master.
    pub(crate) fn num_listened_to(&self) -> usize {
        let clients = self
            .sentinels
            .iter()
            .filter_map(|sentinel| ask(&sentinel.url, "CLIENT LIST").ok());
        clients
            .filter(|clients: &String| clients.contains(" sub=1 "))
            .count()
    }

    fn num_online(&self, port: u16) -> usize {
        let info: RedisResult<String> = ask(&self.url_of(port), "INFO replication");
        info.map_or(0, |info| info.matches("state=online").count())
    }

    /// Until another server is the master, and says so.
    pub(crate) async fn until_replaced(&self, old: u16) -> u16 {
        let mut new = old;
        until("chosen: another master", || {
            new = self.master().unwrap_or(old);
            new != old && self.role(new) == "master"
        })
        .await;
        new
    }

    /// What a server says that it is.
    pub(crate) fn role(&self, port: u16) -> String {
        let role: RedisResult<Vec<Value>> = ask(&self.url_of(port), "ROLE");
        match role.ok().and_then(|parts| parts.into_iter().next()) {
            Some(Value::BulkString(name)) => String::from_utf8_lossy(&name).into_owned(),
            _ => String::new(),
        }
    }

    fn url_of(&self, port: u16) -> String {
        let node = self.nodes.iter().find(|node| node.port == port).unwrap();
        node.url.clone()
    }

    /// The stream on one of the servers.
    pub(crate) fn stream(&self, port: u16) -> TestStream {
        TestStream::at(self.url_of(port))
    }

    pub(crate) fn kill(&mut self, port: u16) {
        let node = self.node(port);
        node.child.kill().ok();
        node.child.wait().ok();
    }

    /// Starts one again that was killed, as a master, until the sentinels tell it otherwise.
    pub(crate) fn launch(&mut self, port: u16) {
        let started = node(self.wanted, self.directory.path(), port, None);
        *self.node(port) = started;
    }

    pub(crate) fn stall(&mut self, port: u16) {
        signal(&self.node(port).child, "STOP");
    }

    pub(crate) fn resume(&mut self, port: u16) {
        signal(&self.node(port).child, "CONT");
    }

    pub(crate) fn kill_sentinel(&mut self, index: usize) {
        let child = &mut self.sentinels[index].child;
        child.kill().ok();
        child.wait().ok();
    }

    pub(crate) fn stall_sentinel(&self, index: usize) {
        signal(&self.sentinels[index].child, "STOP");
    }

    /// A command of all sentinels.
    pub(crate) fn tell_sentinels(&self, words: &str) {
        for sentinel in &self.sentinels {
            ask::<Value>(&sentinel.url, words).unwrap();
        }
    }

    /// From here on nobody tells an old master, for more than a minute, that it is none any more.
    pub(crate) fn leave_old_masters_alone(&self) {
        self.tell_sentinels("SENTINEL DEBUG publish-period 20000");
    }

    /// Asks for a failover without a reason, again where a busy machine made the sentinels give it up.
    pub(crate) async fn fail_over(&self, old: u16) -> u16 {
        let url = &self.sentinels[0].url;
        let mut asked: Option<Instant> = None;
        let mut new = old;
        until("chosen: another master", || {
            if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(8)) {
                drop(ask::<Value>(url, &format!("SENTINEL FAILOVER {SERVICE}")));
                asked = Some(Instant::now());
            }
            new = self.master().unwrap_or(old);
            new != old && self.role(new) == "master"
        })
        .await;
        new
    }

    /// The replicas get nothing from here on, and do not know it.
    pub(crate) fn cut_off_replicas(&mut self, master: u16) {
        for port in self.replicas(master) {
            self.stall(port);
        }
        ask::<Value>(&self.url_of(master), "CLIENT KILL TYPE replica").unwrap();
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

fn ask<T: redis::FromRedisValue>(url: &str, words: &str) -> RedisResult<T> {
    let client = redis::Client::open(url)?;
    let mut connection = client.get_connection_with_timeout(Duration::from_millis(500))?;
    connection.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut words = words.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    for word in words {
        command.arg(word);
    }
    command.query(&mut connection)
}

/// Lines of configuration for the port of a server or a sentinel, and where the test reaches it.
fn listening(wanted: Wanted, directory: &Path, port: u16, password: &str) -> (String, String) {
    let login = if wanted.passwords {
        format!(":{password}@")
    } else {
        String::new()
    };
    let url = |port| format!("redis://{login}127.0.0.1:{port}/0");
    let mut lines = format!("bind 127.0.0.1\ndir {}\n", directory.display());
    if wanted.passwords {
        lines += &format!("requirepass {password}\n");
    }
    if !wanted.tls {
        return (format!("{lines}port {port}\n"), url(port));
    }
    let plain = free_port();
    lines += &format!(
        "port {plain}\ntls-port {port}\ntls-replication yes\ntls-auth-clients no\n\
         tls-cert-file {directory}/server.pem\ntls-key-file {directory}/server.key\n\
         tls-ca-cert-file {directory}/ca.pem\n",
        directory = directory.display()
    );
    (lines, url(plain))
}

fn node(wanted: Wanted, directory: &Path, port: u16, of: Option<u16>) -> Process {
    let (mut settings, url) = listening(wanted, directory, port, PASSWORDS[0]);
    settings += &format!(
        "save \"\"\ndbfilename {port}.rdb\nrepl-diskless-sync-delay 0\n\
         repl-ping-replica-period 1\nrepl-timeout 5\n"
    );
    if wanted.passwords {
        settings += &format!("masterauth {}\n", PASSWORDS[0]);
    }
    if let Some(of) = of {
        settings += &format!("replicaof 127.0.0.1 {of}\n");
    }
    let file = directory.join(format!("node-{port}.conf"));
    std::fs::write(&file, settings).unwrap();
    spawn(Command::new("redis-server").arg(file), port, url)
}

fn sentinel(wanted: Wanted, directory: &Path, port: u16, master: u16) -> Process {
    let (mut settings, url) = listening(wanted, directory, port, PASSWORDS[1]);
    settings += &format!(
        "sentinel monitor {SERVICE} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 3000\n\
         sentinel parallel-syncs {SERVICE} 2\n"
    );
    if wanted.passwords {
        let [servers, sentinels] = PASSWORDS;
        settings += &format!(
            "sentinel auth-pass {SERVICE} {servers}\nsentinel sentinel-pass {sentinels}\n"
        );
    }
    let file = directory.join(format!("sentinel-{port}.conf"));
    std::fs::write(&file, settings).unwrap();
    let mut command = Command::new("redis-server");
    let started = spawn(command.arg(file).arg("--sentinel"), port, url);
    for _ in 0..200 {
        // Quicker than the defaults, where it knows the command.
        let hurry = "SENTINEL DEBUG publish-period 200 info-period 500 ping-period 200";
        match ask::<Value>(&started.url, hurry) {
            Err(error) if error.code().is_none() => std::thread::sleep(Duration::from_millis(10)),
            _ => break,
        }
    }
    started
}

fn spawn(command: &mut Command, port: u16, url: String) -> Process {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed (Debian package redis-server)");
    Process { port, url, child }
}

fn signal(child: &Child, signal: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill")
        .args([&format!("-{signal}"), &id])
        .status();
    assert!(sent.unwrap().success());
}
