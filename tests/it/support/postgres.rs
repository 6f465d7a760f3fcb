//! A throw-away PostgreSQL server for the tests of one process, with a database for each test.
//!
//! `TEST_DATABASE_URL` names a server to use instead; its role must be allowed to create databases.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock, mpsc};

use event_persister_actors::store::postgres::{CreateSchema, PostgresSettings};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::ports::free_port;

/// Which sessions of a database are not those of the tests: a condition for `pg_stat_activity`.
pub(crate) const ARE_OF_OTHERS: &str = "datname = current_database() \
    AND application_name <> current_setting('application_name')";

/// Rows as texts.
pub(crate) type TextRows = Vec<Vec<Option<String>>>;

/// A server that ends with this process, however it ends.
pub(crate) struct Server {
    /// `postgresql://user:password@host:port/`, without a database.
    base: String,
    /// Certificates and logs; `None` for a server that is not ours.
    directory: Option<PathBuf>,
    /// Holds the pipe whose end stops the server.
    _keeper: Option<Child>,
}

/// How often a server is started before it must have a port.
const MAX_STARTS: usize = 3;

/// Runs the server until its input ends, then stops it and removes its folder.
const KEEPER: &str = r#"
"$1/pg_ctl" -D "$2/data" -l "$2/log" -w -s start || exit 1
echo ready
cat > /dev/null
"$1/pg_ctl" -D "$2/data" -m immediate -s stop
rm -rf "$2"
"#;

/// Self-made certificates: a CA, one for `localhost`, one for the client `postgres`; one for `localhost` that has
/// signed itself (`own`), and one without extensions, which is of version 1 (`old`).
const CERTIFICATES: &str = r#"
cd "$1"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=ca \
  -keyout ca.key -out ca.pem
for name in localhost postgres; do
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$name" \
    -keyout "$name.key" -out "$name.csr"
  printf 'subjectAltName=DNS:%s\n' "$name" > "$name.ext"
  openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
    -extfile "$name.ext" -out "$name.pem"
  chmod 600 "$name.key"
done
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=other \
  -keyout other.key -out other.pem
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
  -addext subjectAltName=DNS:localhost -keyout own.key -out own.pem
cp localhost.key old.key
openssl x509 -req -in localhost.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out old.pem
chmod 600 own.key old.key
chmod 644 ./*.pem
"#;

/// Who may come in how, by the name of the database.
const HBA: &str = "\
local all all trust
hostnossl tls_only all all reject
hostssl no_tls all all reject
hostnossl cert_only all all reject
hostssl cert_only all all cert
host password_only all all scram-sha-256
hostnossl password_in_tls all all trust
hostssl password_in_tls all all scram-sha-256
hostnossl cert_in_tls all all scram-sha-256
hostssl cert_in_tls all all cert
host all all all trust
host replication all all trust
";

/// What every server begins with, made once for all: certificates and an empty cluster.
struct Made {
    directory: PathBuf,
    /// Holds the pipe at whose end the folder goes.
    _keeper: Child,
}

impl Made {
    fn once() -> &'static Path {
        static MADE: OnceLock<Made> = OnceLock::new();
        &MADE.get_or_init(Self::new).directory
    }

    fn new() -> Self {
        let directory = empty_directory();
        let keeper = keeper("cat > /dev/null; rm -rf \"$1\"", &[&directory]);
        run("sh", &["-c", CERTIFICATES, "sh", text(&directory)]);
        let initdb = bin_directory().join("initdb");
        let data = directory.join("data");
        let options = "-U postgres -A trust -N -E UTF8 --locale=C".split(' ');
        let arguments: Vec<&str> = ["-D", text(&data)].into_iter().chain(options).collect();
        run(text(&initdb), &arguments);
        Self {
            directory,
            _keeper: keeper,
        }
    }
}

/// Runs a script that ends when this process does, however it ends.
fn keeper(script: &str, arguments: &[&Path]) -> Child {
    let arguments = arguments.iter().copied().map(text);
    let arguments: Vec<&str> = ["-c", script, "sh"].into_iter().chain(arguments).collect();
    command("sh", &arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // An interruption of the tests must not end it before it has cleared up.
        .process_group(0)
        .spawn()
        .unwrap()
}

impl Server {
    /// The server that all tests of this process share.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| {
            #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
            let given = std::env::var("TEST_DATABASE_URL");
            match given {
                Ok(url) if !url.is_empty() => Self {
                    base: url[..=url.rfind('/').unwrap()].to_owned(),
                    directory: None,
                    _keeper: None,
                },
                _ => Self::start("fsync = off\n"),
            }
        })
    }

    /// Starts one of its own, with these lines in its configuration.
    pub(crate) fn start(settings: &str) -> Self {
        let directory = empty_directory();
        let port = free_port();
        let made = text(Made::once()).to_owned() + "/.";
        run("cp", &["-a", &made, text(&directory)]);
        let data = directory.join("data");
        let configuration = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\n\
             unix_socket_directories = '{directory}'\nmax_connections = 200\nssl = on\n\
             ssl_ca_file = '{directory}/ca.pem'\nssl_cert_file = '{directory}/localhost.pem'\n\
             ssl_key_file = '{directory}/localhost.key'\n{settings}",
            directory = directory.display()
        );
        // Both exist, so that they keep their owner.
        std::fs::write(data.join("postgresql.auto.conf"), configuration).unwrap();
        std::fs::write(data.join("pg_hba.conf"), HBA).unwrap();
        Self::launch(directory, port)
    }

    /// Starts a standby of it, which reaches it at this port and is asynchronous until it is named. It has the
    /// certificates of this one.
    pub(crate) fn standby(&self, through: u16) -> Self {
        let directory = empty_directory();
        let data = directory.join("data");
        let primary = format!("host=127.0.0.1 port={through} user=postgres sslmode=disable");
        run(
            text(&bin_directory().join("pg_basebackup")),
            &["-D", text(&data), "-d", &primary, "-R", "-c", "fast"],
        );
        let port = free_port();
        let configuration = data.join("postgresql.auto.conf");
        let mut settings = std::fs::read_to_string(&configuration).unwrap();
        // Once it has taken over, it waits for nobody.
        settings.push_str(&format!(
            "port = {port}\nunix_socket_directories = '{}'\nsynchronous_standby_names = ''\n\
             wal_retrieve_retry_interval = '100ms'\n",
            directory.display()
        ));
        std::fs::write(&configuration, settings).unwrap();
        Self::launch(directory, port)
    }

    /// Starts what is in `data` of this folder; at another port where somebody has taken this one meanwhile.
    fn launch(directory: PathBuf, mut port: u16) -> Self {
        let configuration = directory.join("data/postgresql.auto.conf");
        let mut num_starts = 0;
        loop {
            let mut keeper = keeper(KEEPER, &[&bin_directory(), &directory]);
            let mut line = String::new();
            BufReader::new(keeper.stdout.take().unwrap())
                .read_line(&mut line)
                .unwrap();
            if line == "ready\n" {
                return Self {
                    base: format!("postgresql://postgres@127.0.0.1:{port}/"),
                    directory: Some(directory),
                    _keeper: Some(keeper),
                };
            }
            keeper.wait().unwrap();
            num_starts += 1;
            let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
            assert!(num_starts < MAX_STARTS, "the server did not start: {log}");
            port = free_port();
            // The last one counts.
            let mut settings = std::fs::read_to_string(&configuration).unwrap();
            settings.push_str(&format!("port = {port}\n"));
            std::fs::write(&configuration, settings).unwrap();
        }
    }

    /// Where the certificates and the log are; `None` for a server that is not ours.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// What it has logged, if it is ours.
    pub(crate) fn log(&self) -> String {
        let directory = self.directory().unwrap();
        std::fs::read_to_string(directory.join("log")).unwrap()
    }

    /// Stops it as `pg_ctl stop` does in this mode.
    pub(crate) fn stop(&self, mode: &str) {
        self.control(&["-m", mode, "stop"]);
    }

    /// Starts it again once it was stopped.
    pub(crate) fn start_again(&self) {
        let log = self.directory().unwrap().join("log");
        self.control(&["-l", text(&log), "start"]);
    }

    /// Starts it again at another port, as a standby that takes over would.
    pub(crate) fn start_again_at(&mut self, port: u16) {
        let log = self.directory().unwrap().join("log");
        self.control(&["-l", text(&log), "-o", &format!("-p {port}"), "start"]);
        self.base = format!("postgresql://postgres@127.0.0.1:{port}/");
    }

    /// Makes a primary of a standby; returns once it takes writes.
    pub(crate) fn promote(&self) {
        self.control(&["promote"]);
    }

    /// Kills it with all of its processes.
    pub(crate) fn kill_9(&self) {
        const KILL: &str = r#"
            postmaster=$(head -n 1 "$1/postmaster.pid")
            # Stopped, it starts no others meanwhile.
            kill -STOP "$postmaster"
            children=$(pgrep -P "$postmaster")
            kill -9 "$postmaster" $children
            # It could not start while one of them is still there.
            for process in "$postmaster" $children; do
                while kill -0 "$process" && ! grep -q "State:.Z" "/proc/$process/status"; do
                    sleep 0.01
                done
            done 2> /dev/null
            # Nobody may have asked yet how it ended, and then its number still counts as alive.
            rm "$1/postmaster.pid" "$1"/../.s.PGSQL.*
        "#;
        let data = self.directory().unwrap().join("data");
        run("sh", &["-c", KILL, "sh", text(&data)]);
    }

    /// Stops all of its processes in their tracks: the system takes connections, and nobody answers.
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        self.signal_all("STOP");
        Frozen(self)
    }

    fn signal_all(&self, signal: &str) {
        const SIGNAL: &str = r#"
            postmaster=$(head -n 1 "$1/postmaster.pid")
            kill "-$2" "$postmaster"
            kill "-$2" $(pgrep -P "$postmaster") 2> /dev/null
            true
        "#;
        let data = self.directory().unwrap().join("data");
        run("sh", &["-c", SIGNAL, "sh", text(&data), signal]);
    }

    fn control(&self, arguments: &[&str]) {
        let data = self.directory().unwrap().join("data");
        let program = bin_directory().join("pg_ctl");
        let always = ["-D", text(&data), "-w", "-s"];
        // Its output would stay open for as long as the server runs.
        let status = command(text(&program), &[&always, arguments].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(
            status.unwrap().success(),
            "pg_ctl {arguments:?}: {}",
            self.log()
        );
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        let port = self.base.trim_end_matches('/').rsplit(':').next().unwrap();
        port.parse().unwrap()
    }

    /// A new database without tables.
    pub(crate) fn database(&self) -> Database {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.database_named(&format!("it_{}_{number}", std::process::id()))
    }

    /// Makes a folder that the server may use.
    pub(crate) fn own_folder(&self, folder: &Path) {
        run("mkdir", &[text(folder)]);
        run("chmod", &["700", text(folder)]);
    }

    /// A new database with this name.
    pub(crate) fn database_named(&self, name: &str) -> Database {
        let admin = format!("{}postgres", self.base);
        execute(&admin, &format!("DROP DATABASE IF EXISTS {name}"));
        execute(&admin, &format!("CREATE DATABASE {name}"));
        Database {
            url: format!("{}{name}?sslmode=disable", self.base),
            drop_through: self.directory.is_none().then_some(admin),
            name: name.to_owned(),
            kept: Mutex::default(),
        }
    }
}

/// A server whose processes go on when this is dropped.
pub(crate) struct Frozen<'a>(&'a Server);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.signal_all("CONT");
    }
}

/// The database of one test.
pub(crate) struct Database {
    /// With everything that it takes to connect.
    pub(crate) url: String,
    pub(crate) name: String,
    /// Set where the server outlives the tests.
    drop_through: Option<String>,
    /// A connection for plain questions, which tests ask again and again: the server makes a process for each.
    kept: Mutex<Option<Box<Client>>>,
}

impl Database {
    /// Settings with which everything may be made.
    pub(crate) fn settings(&self) -> PostgresSettings {
        let mut settings = PostgresSettings::from_url(&self.url).unwrap();
        settings.create_schema = CreateSchema::Everything;
        settings
    }

    /// The same database for a role of its own, which is no superuser and has a password.
    pub(crate) fn for_a_role(&self) -> (String, String) {
        let role = format!("role_of_{}", self.name);
        self.execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'first'; GRANT ALL ON SCHEMA public TO {role}; \
             GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; \
             GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
        ));
        let (_, place) = self.url.split_once('@').unwrap();
        (role.clone(), format!("postgresql://{role}:first@{place}"))
    }

    /// The same database, reached with another URL.
    pub(crate) fn at(&self, url: String) -> Self {
        Self {
            url,
            name: self.name.clone(),
            drop_through: None,
            kept: Mutex::default(),
        }
    }

    /// Runs SQL, which sees only what is committed, and of which nothing is left in any connection.
    pub(crate) fn execute(&self, sql: &str) -> TextRows {
        // What depends on connections, or changes one, has one of its own.
        let is_plain = sql.starts_with("SELECT ") && !sql.contains("pg_") && !sql.contains("set_");
        let kept = is_plain.then(|| self.kept.lock().unwrap().take());
        let answered = answer(kept.flatten(), self.url.clone(), sql.to_owned());
        let (client, rows) = wait_for(answered).unwrap();
        if is_plain {
            *self.kept.lock().unwrap() = Some(client);
        }
        rows
    }

    /// The processes whose commits wait for a standby, of this database alone.
    pub(crate) fn committing(&self) -> BTreeSet<String> {
        let committing = "SELECT pid FROM pg_stat_activity \
            WHERE datname = current_database() AND wait_event = 'SyncRep'";
        // None while the server lets nobody in.
        let rows = try_execute(&self.url, committing).unwrap_or_default();
        rows.into_iter().flatten().flatten().collect()
    }

    /// Returns once commits wait for a standby, as the server's settings say; it heeds them a moment later.
    pub(crate) fn until_commits_wait(&self) {
        const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'test', '')";
        loop {
            let url = self.url.clone();
            let commit = std::thread::spawn(move || execute(&url, COMMIT));
            while !commit.is_finished() {
                let waiting = self.committing();
                for process in &waiting {
                    self.execute(&format!("SELECT pg_cancel_backend({process})"));
                }
                if !waiting.is_empty() {
                    commit.join().unwrap();
                    return;
                }
            }
        }
    }

    /// Whether the server lets anybody in at the moment.
    pub(crate) fn answers(&self) -> bool {
        try_execute(&self.url, "SELECT").is_ok()
    }

    /// The first column of the first row.
    pub(crate) fn value(&self, sql: &str) -> String {
        self.execute(sql)[0][0].clone().unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(admin) = &self.drop_through {
            execute(admin, &format!("DROP DATABASE {} WITH (FORCE)", self.name));
        }
    }
}

fn execute(url: &str, sql: &str) -> TextRows {
    try_execute(url, sql).unwrap()
}

fn try_execute(url: &str, sql: &str) -> Result<TextRows, tokio_postgres::Error> {
    wait_for(answer(None, url.to_owned(), sql.to_owned())).map(|(_, rows)| rows)
}

/// The rows, with the connection that they came by. A kept one that has broken meanwhile is made anew; what is wrong
/// with a question is said again.
async fn answer(
    kept: Option<Box<Client>>,
    url: String,
    sql: String,
) -> Result<(Box<Client>, TextRows), tokio_postgres::Error> {
    if let Some(client) = kept
        && let Ok(rows) = ask(&client, &sql).await
    {
        return Ok((client, rows));
    }
    let mut config: Config = url.parse()?;
    let (client, connection) = config.application_name("tests").connect(NoTls).await?;
    tokio::spawn(connection);
    let rows = ask(&client, &sql).await?;
    Ok((Box::new(client), rows))
}

async fn ask(client: &Client, sql: &str) -> Result<TextRows, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let texts = rows.map(|row| {
        (0..row.len())
            .map(|column| row.get(column).map(str::to_owned))
            .collect()
    });
    Ok(texts.collect())
}

/// Blocks until this is done, in a runtime of its own, since tests run inside one.
fn wait_for<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        let mut runtime = Builder::new_multi_thread();
        runtime.worker_threads(1).enable_all().build().unwrap()
    });
    let (answer, answered) = mpsc::channel();
    RUNTIME.spawn(async move { answer.send(work.await) });
    answered.recv().unwrap()
}

/// A folder of the server's own, which its keeper removes.
fn empty_directory() -> PathBuf {
    let directory = tempfile::Builder::new()
        .prefix("event-persister-postgres-")
        .tempdir()
        .unwrap()
        .keep();
    if is_root() {
        let mut chown = Command::new("chown");
        let chowned = chown.arg("postgres").arg(&directory).status();
        assert!(chowned.unwrap().success());
    }
    directory
}

pub(crate) fn is_root() -> bool {
    static IS_ROOT: OnceLock<bool> = OnceLock::new();
    *IS_ROOT.get_or_init(|| {
        let id = Command::new("id").arg("-u").output().unwrap();
        id.stdout == b"0\n"
    })
}

/// As the user `postgres` where we are root, since the server refuses to run as root.
fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", program]);
        command
    } else {
        Command::new(program)
    };
    command.args(arguments).current_dir("/");
    command
}

fn run(program: &str, arguments: &[&str]) {
    let output = command(program, arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Where the newest installed version has its programs.
fn bin_directory() -> PathBuf {
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let newest = debian
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .max_by_key(|bin| {
            let version = bin.parent().and_then(Path::file_name);
            version.and_then(|version| version.to_str()?.parse::<u32>().ok())
        });
    newest.unwrap_or_else(|| {
        let output = Command::new("pg_config").arg("--bindir").output();
        let output = output.expect("PostgreSQL is installed (Debian package postgresql)");
        String::from_utf8(output.stdout).unwrap().trim().into()
    })
}
