//! NATS servers for one test, and a small client that speaks their protocol.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use event_persister_actors::source::nats::NatsSettings;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use super::certificates;
use super::network::{Host, Network};
use super::ports::free_port;

/// How long a server may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// One that is cut off refuses nobody.
const CONNECTS_WITHIN: Duration = Duration::from_secs(1);

pub(crate) const STREAM: &str = "events";
pub(crate) const CONSUMER: &str = "event-persister";

/// What is special about a server.
#[derive(Debug, Clone, Default)]
pub(crate) struct NatsOptions {
    pub(crate) user_and_password: Option<(&'static str, &'static str)>,
    pub(crate) token: Option<&'static str>,
    /// Takes encrypted connections alone, with a certificate of [`NatsServer::ca_file`].
    pub(crate) tls: bool,
    /// Lets in users of [`Credentials`] alone.
    pub(crate) credentials: Option<Credentials>,
    /// Runs there, not on this machine itself.
    pub(crate) host: Option<Host>,
    /// More of the configuration file.
    pub(crate) more: String,
}

impl NatsOptions {
    fn address(&self) -> IpAddr {
        let host = self.host.as_ref();
        host.map_or(IpAddr::from(Ipv4Addr::LOCALHOST), |host| host.address)
    }
}

/// A user whom an account vouches for, and an operator for the account.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    jwt: String,
    seed: String,
    /// For the configuration of a server.
    trust: String,
}

impl Credentials {
    pub(crate) fn new() -> Self {
        let (operator, system) = (KeyPair::new_operator(), KeyPair::new_account());
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        let none = json!({ "subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1 });
        let of_account = |key: &KeyPair, limits: Value| {
            let claims = json!({ "type": "account", "version": 2, "limits": limits });
            signed(&operator, key, claims)
        };
        let of_operator = json!({
            "type": "operator", "version": 2, "system_account": system.public_key(),
        });
        let of_user = json!({
            "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1,
        });
        Self {
            jwt: signed(&account, &user, of_user),
            seed: user.seed().unwrap(),
            trust: format!(
                "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n{}: {}\n{}: {}\n}}\n",
                signed(&operator, &operator, of_operator),
                system.public_key(),
                account.public_key(),
                of_account(&account, limits),
                system.public_key(),
                of_account(&system, none),
            ),
        }
    }

    /// As `nsc generate creds` writes it.
    pub(crate) fn file(&self) -> String {
        let Self { jwt, seed, .. } = self;
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

/// What an issuer says of a key.
fn signed(issuer: &KeyPair, subject: &KeyPair, claims: Value) -> String {
    let base64 = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let head = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let body = json!({
        "jti": "test", "iat": 1_700_000_000, "name": "test", "iss": issuer.public_key(),
        "sub": subject.public_key(), "nats": claims,
    });
    let [head, body] = [head, body].map(|part| base64(part.to_string().as_bytes()));
    let text = format!("{head}.{body}");
    let signature = base64(&issuer.sign(text.as_bytes()).unwrap());
    format!("{text}.{signature}")
}

/// A running server with JetStream.
pub(crate) struct NatsServer {
    directory: TempDir,
    port: u16,
    options: NatsOptions,
    process: Option<Child>,
}

fn program() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let set = std::env::var_os("TEST_NATS_SERVER");
    // Debian puts it where not everybody looks.
    let usual = Path::new("/usr/sbin/nats-server");
    match set {
        Some(set) => set.into(),
        None if usual.exists() => usual.to_owned(),
        None => "nats-server".into(),
    }
}

impl NatsServer {
    pub(crate) fn start() -> Self {
        Self::start_with(NatsOptions::default())
    }

    pub(crate) fn start_with(options: NatsOptions) -> Self {
        let mut server = Self::new(free_port(), options);
        server.launch();
        server
    }

    fn new(port: u16, options: NatsOptions) -> Self {
        let directory = TempDir::new().unwrap();
        if options.tls {
            certificates::make(directory.path());
        }
        let server = Self {
            directory,
            port,
            options,
            process: None,
        };
        server.configure();
        server
    }

    fn configure(&self) {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let mut text = format!(
            "listen: \"{}\"\nserver_name: \"n{}\"\njetstream {{ store_dir: \"{}\" }}\n",
            self.address(),
            self.port,
            self.store().display()
        );
        if let Some((user, password)) = self.options.user_and_password {
            writeln!(
                text,
                "authorization {{ user: {user}, password: \"{password}\" }}"
            )
            .unwrap();
        }
        if let Some(token) = self.options.token {
            writeln!(text, "authorization {{ token: \"{token}\" }}").unwrap();
        }
        if self.options.tls {
            let [cert, key] = ["server.pem", "server.key"].map(path);
            writeln!(text, "tls {{ cert_file: \"{cert}\", key_file: \"{key}\" }}").unwrap();
        }
        if let Some(credentials) = &self.options.credentials {
            text.push_str(&credentials.trust);
        }
        text.push_str(&self.options.more);
        std::fs::write(self.directory.path().join("nats.conf"), text).unwrap();
    }

    /// Starts it again, with what it had on its disk.
    pub(crate) fn launch(&mut self) {
        self.spawn();
        self.wait_until_ready();
    }

    fn spawn(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let mut command = match &self.options.host {
            None => Command::new(program()),
            Some(host) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &host.namespace]);
                command.arg(program());
                command
            }
        };
        let process = command
            .arg("-c")
            .arg(self.directory.path().join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is installed (Debian package nats-server)");
        self.process = Some(process);
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.answers() {
            if let Some(status) = self.process.as_mut().unwrap().try_wait().unwrap() {
                panic!("nats-server ended with {status}");
            }
            assert!(Instant::now() < deadline, "nats-server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn answers(&self) -> bool {
        if self.options.tls {
            return TcpStream::connect(self.address()).is_ok();
        }
        let asked = self.stream().try_api("INFO", &Value::Null);
        asked.is_ok_and(|answer| answer["error"].is_null())
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }

    /// Ends it in good order, with all that it knows on its disk.
    pub(crate) fn terminate(&mut self) {
        self.signal("TERM");
        let mut process = self.process.take().unwrap();
        process.wait().unwrap();
    }

    /// Where the consumer is, as a server that does not run has written it.
    pub(crate) fn consumer_state(&self) -> Vec<u8> {
        std::fs::read(self.consumer_state_file()).unwrap()
    }

    /// Has it forget what it gave since that state. A server that is killed at the wrong moment does that by itself:
    /// it writes the state a tenth of a second later.
    pub(crate) fn kill_back_to(&mut self, consumer_state: &[u8]) {
        self.kill();
        std::fs::write(self.consumer_state_file(), consumer_state).unwrap();
    }

    fn consumer_state_file(&self) -> PathBuf {
        let file = format!("jetstream/$G/streams/{STREAM}/obs/{CONSUMER}/o.dat");
        self.store().join(file)
    }

    /// The stream's files, as a server that does not run has left them.
    pub(crate) fn messages(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = std::fs::read_dir(self.messages_folder()).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        paths
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect()
    }

    /// Has it lose what was published since then, as the loss of a disk or of most servers does.
    pub(crate) fn lose_messages_since(&self, messages: &[(PathBuf, Vec<u8>)]) {
        std::fs::remove_dir_all(self.messages_folder()).unwrap();
        std::fs::create_dir(self.messages_folder()).unwrap();
        for (path, content) in messages {
            std::fs::write(path, content).unwrap();
        }
    }

    fn messages_folder(&self) -> PathBuf {
        (self.store()).join(format!("jetstream/$G/streams/{STREAM}/msgs"))
    }

    /// Stops it in its tracks; connections stay open and nothing answers.
    pub(crate) fn stall(&self) {
        self.signal("STOP");
    }

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

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.options.address(), self.port)
    }

    /// Of one that has such a place: from here on nobody reaches it, and it reaches nobody.
    pub(crate) fn cut_off(&self) {
        self.options.host.as_ref().expect("a host").cut_off();
    }

    pub(crate) fn connect(&self) {
        self.options.host.as_ref().expect("a host").connect();
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// The folder of its streams.
    pub(crate) fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// Trusts the server's certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    pub(crate) fn url(&self) -> String {
        let login = match (self.options.user_and_password, self.options.token) {
            (Some((user, password)), _) => format!("{user}:{password}@"),
            (None, Some(token)) => format!("{token}@"),
            (None, None) => String::new(),
        };
        format!("nats://{login}{}", self.address())
    }

    /// The stream of most tests, which may not have been made yet.
    pub(crate) fn stream(&self) -> NatsStream {
        NatsStream {
            addresses: vec![self.address()],
            url: self.url(),
            options: self.options.clone(),
        }
    }

    /// The same, made.
    pub(crate) fn with_stream(&self) -> NatsStream {
        let stream = self.stream();
        stream.create(&json!({}));
        stream
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three servers that keep each stream three times.
pub(crate) struct NatsCluster {
    pub(crate) servers: Vec<NatsServer>,
    /// Ends after them.
    _network: Option<Network>,
}

impl NatsCluster {
    pub(crate) fn of_one(server: NatsServer) -> Self {
        Self {
            servers: vec![server],
            _network: None,
        }
    }

    pub(crate) fn start() -> Self {
        Self::start_on(None)
    }

    /// On hosts that can be cut off, if there is such a network.
    pub(crate) fn start_on(network: Option<Network>) -> Self {
        let options: Vec<NatsOptions> = (0..3)
            .map(|number| NatsOptions {
                host: network
                    .as_ref()
                    .map(|network| network.hosts[number].clone()),
                ..NatsOptions::default()
            })
            .collect();
        let routes = options.iter();
        let routes: Vec<SocketAddr> = routes
            .map(|options| SocketAddr::new(options.address(), free_port()))
            .collect();
        let all = routes.iter().map(|at| format!("\"nats-route://{at}\""));
        let all = all.collect::<Vec<_>>().join(", ");
        let servers = routes.iter().zip(options).map(|(at, options)| {
            let more = format!("cluster {{ name: c, listen: \"{at}\", routes: [{all}] }}\n");
            NatsServer::new(free_port(), NatsOptions { more, ..options })
        });
        let mut servers: Vec<NatsServer> = servers.collect();
        for server in &mut servers {
            server.spawn();
        }
        for server in &mut servers {
            server.wait_until_ready();
        }
        let cluster = Self {
            servers,
            _network: network,
        };
        let stream = cluster.stream();
        let deadline = Instant::now() + Duration::from_secs(30);
        let wanted = json!({ "num_replicas": 3 });
        while !stream.try_create(&wanted) {
            assert!(Instant::now() < deadline, "the cluster has no leader");
            std::thread::sleep(Duration::from_millis(100));
        }
        cluster
    }

    /// Starts all that do not run.
    pub(crate) fn relaunch(&mut self) {
        let away = self.servers.iter_mut();
        let away = away.filter(|server| server.process.is_none());
        let mut away: Vec<&mut NatsServer> = away.collect();
        // Two of three are needed before any of them is ready.
        for server in &mut away {
            server.spawn();
        }
        for server in &mut away {
            server.wait_until_ready();
        }
    }

    pub(crate) fn stream(&self) -> NatsStream {
        let servers = self.servers.iter();
        let urls: Vec<String> = servers.clone().map(NatsServer::url).collect();
        NatsStream {
            addresses: servers.map(NatsServer::address).collect(),
            url: urls.join(","),
            options: NatsOptions::default(),
        }
    }

    /// The server that leads the stream, or its consumer.
    pub(crate) fn leader(&self, info: &Value) -> Option<usize> {
        let leader = info["cluster"]["leader"].as_str()?;
        let of = |server: &NatsServer| format!("n{}", server.port);
        (self.servers.iter()).position(|server| of(server) == leader)
    }
}

/// A stream, as publishers and operators see it.
#[derive(Clone)]
pub(crate) struct NatsStream {
    addresses: Vec<SocketAddr>,
    url: String,
    options: NatsOptions,
}

impl NatsStream {
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// For a source of it that takes over from a dead one soon.
    pub(crate) fn settings(&self) -> NatsSettings {
        NatsSettings {
            ack_wait: Duration::from_secs(4),
            ..NatsSettings::from_url(&self.url).unwrap()
        }
    }

    pub(crate) fn connect(&self) -> io::Result<Client> {
        let mut error = io::Error::other("no server");
        let start = fastrand::usize(..self.addresses.len());
        for at in 0..self.addresses.len() {
            let address = self.addresses[(start + at) % self.addresses.len()];
            match Client::connect(address, &self.options) {
                Ok(client) => return Ok(client),
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }

    pub(crate) fn try_api(&self, call: &str, body: &Value) -> io::Result<Value> {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let mut client = self.connect()?;
        let answer = client.request(&format!("$JS.API.{call}"), body.as_bytes())?;
        serde_json::from_slice(&answer).map_err(io::Error::other)
    }

    #[track_caller]
    pub(crate) fn api(&self, call: &str, body: &Value) -> Value {
        self.try_api(call, body).unwrap()
    }

    /// Makes it, with these settings besides.
    pub(crate) fn try_create(&self, with: &Value) -> bool {
        let mut config = json!({ "name": STREAM, "subjects": ["events", "events.>"] });
        for (key, value) in with.as_object().unwrap() {
            config[key] = value.clone();
        }
        let made = self.try_api(&format!("STREAM.CREATE.{STREAM}"), &config);
        made.is_ok_and(|made| made["error"].is_null())
    }

    #[track_caller]
    pub(crate) fn create(&self, with: &Value) {
        assert!(self.try_create(with), "it cannot be made");
    }

    pub(crate) fn delete(&self) {
        self.api(&format!("STREAM.DELETE.{STREAM}"), &Value::Null);
    }

    pub(crate) fn delete_consumer(&self) {
        self.api(
            &format!("CONSUMER.DELETE.{STREAM}.{CONSUMER}"),
            &Value::Null,
        );
    }

    pub(crate) fn info(&self) -> Value {
        self.api(&format!("STREAM.INFO.{STREAM}"), &Value::Null)
    }

    /// The consumer, or why there is none.
    pub(crate) fn consumer(&self) -> Value {
        self.api(&format!("CONSUMER.INFO.{STREAM}.{CONSUMER}"), &Value::Null)
    }

    /// Makes the consumer by hand, with these settings besides.
    #[track_caller]
    pub(crate) fn create_consumer(&self, with: &Value) {
        let mut config = json!({ "durable_name": CONSUMER, "ack_policy": "explicit" });
        for (key, value) in with.as_object().unwrap() {
            config[key] = value.clone();
        }
        let body = json!({ "stream_name": STREAM, "config": config });
        let made = self.api(
            &format!("CONSUMER.DURABLE.CREATE.{STREAM}.{CONSUMER}"),
            &body,
        );
        assert!(made["error"].is_null(), "{made}");
    }

    /// What was handed out and is not acknowledged.
    pub(crate) fn num_pending(&self) -> u64 {
        self.consumer()["num_ack_pending"].as_u64().unwrap_or(0)
    }

    /// Whether all that is in the stream was acknowledged; `None` where nobody says.
    pub(crate) fn is_settled(&self) -> Option<bool> {
        let what = format!("CONSUMER.INFO.{STREAM}.{CONSUMER}");
        let consumer = self.try_api(&what, &Value::Null).ok()?;
        let unread = consumer["num_pending"].as_u64()?;
        let pending = consumer["num_ack_pending"].as_u64()?;
        Some(unread == 0 && pending == 0)
    }

    #[track_caller]
    pub(crate) fn publish(&self, texts: &[impl AsRef<[u8]>]) {
        self.try_publish(texts).unwrap();
    }

    /// Publishes; an error if one of them was not confirmed.
    pub(crate) fn try_publish(&self, texts: &[impl AsRef<[u8]>]) -> io::Result<()> {
        let mut client = self.connect()?;
        for text in texts {
            client.send("events", "", text.as_ref())?;
        }
        for _ in texts {
            let answer = client.answer()?;
            let answer: Value = serde_json::from_slice(&answer).map_err(io::Error::other)?;
            if answer["seq"].is_null() {
                return Err(io::Error::other(answer.to_string()));
            }
        }
        Ok(())
    }
}

/// A connection; everything that it asks for is answered in its turn.
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
    /// Its own: another client must not be given the answers.
    inbox: String,
    num_sent: u64,
}

impl Client {
    fn connect(address: SocketAddr, options: &NatsOptions) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECTS_WITHIN)?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        stream.set_nodelay(true)?;
        let mut client = Self {
            reader: BufReader::new(stream),
            inbox: format!("answers.{}", fastrand::u64(..)),
            num_sent: 0,
        };
        let info = client.line()?;
        let mut hello = json!({ "verbose": false, "headers": true, "no_responders": true });
        if let Some((user, password)) = options.user_and_password {
            hello["user"] = user.into();
            hello["pass"] = password.into();
        }
        if let Some(token) = options.token {
            hello["auth_token"] = token.into();
        }
        if let Some(Credentials { jwt, seed, .. }) = &options.credentials {
            let info = info.strip_prefix("INFO ").unwrap_or_default();
            let info: Value = serde_json::from_str(info).map_err(io::Error::other)?;
            let nonce = info["nonce"].as_str().unwrap_or_default().as_bytes();
            let signature = KeyPair::from_seed(seed).unwrap().sign(nonce).unwrap();
            hello["jwt"] = jwt.as_str().into();
            hello["sig"] = BASE64_URL_SAFE_NO_PAD.encode(signature).into();
        }
        let inbox = &client.inbox;
        let hello = format!("CONNECT {hello}\r\nSUB {inbox}.> 1\r\nPING\r\n");
        client.write(hello.as_bytes())?;
        while client.line()? != "PONG" {}
        Ok(client)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => Err(io::ErrorKind::UnexpectedEof.into()),
            error if error.starts_with("-ERR") => Err(io::Error::other(error.to_owned())),
            line => Ok(line.to_owned()),
        }
    }

    /// Sends a message that is to be answered; headers are lines.
    pub(crate) fn send(&mut self, subject: &str, headers: &str, text: &[u8]) -> io::Result<()> {
        match headers {
            "" => self.send_with(subject, b"", text),
            headers => {
                let headers = format!("NATS/1.0\r\n{headers}\r\n\r\n");
                self.send_with(subject, headers.as_bytes(), text)
            }
        }
    }

    /// The same, with whatever stands for its headers.
    pub(crate) fn send_with(
        &mut self,
        subject: &str,
        headers: &[u8],
        text: &[u8],
    ) -> io::Result<()> {
        self.num_sent += 1;
        let reply = format!("{}.{}", self.inbox, self.num_sent);
        let head = match headers.len() {
            0 => format!("PUB {subject} {reply} {}\r\n", text.len()),
            length => format!(
                "HPUB {subject} {reply} {length} {}\r\n",
                length + text.len()
            ),
        };
        self.write(&[head.as_bytes(), headers, text, b"\r\n"].concat())
    }

    /// The next answer; an error where nobody would answer.
    pub(crate) fn answer(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let line = self.line()?;
            let words: Vec<&str> = line.split(' ').collect();
            let number = |word: &str| word.parse::<usize>().map_err(io::Error::other);
            let (headers, total) = match words[..] {
                ["PING"] => {
                    self.write(b"PONG\r\n")?;
                    continue;
                }
                ["MSG", .., total] => (0, number(total)?),
                ["HMSG", .., headers, total] => (number(headers)?, number(total)?),
                _ => continue,
            };
            let mut bytes = vec![0; total + 2];
            self.reader.read_exact(&mut bytes)?;
            if bytes.starts_with(b"NATS/1.0 503") {
                return Err(io::Error::other("nobody answers"));
            }
            return Ok(bytes[headers..total].to_vec());
        }
    }

    pub(crate) fn request(&mut self, subject: &str, text: &[u8]) -> io::Result<Vec<u8>> {
        self.send(subject, "", text)?;
        self.answer()
    }
}
