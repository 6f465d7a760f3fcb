//! Encryption, passwords, and PgBouncer.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use event_persister_actors::store::postgres::TlsMode;
use event_persister_actors::store::{EventStore as _, Outcome, RefusalReason, TrimStep};
use futures_util::future::join_all;

use super::*;
use crate::support::ports::free_port;

/// The server with its certificates; `None` where the server is not ours.
fn server() -> Option<(&'static Server, &'static Path)> {
    let server = Server::shared();
    Some((server, server.directory()?))
}

/// Whether a connection with this mode works, and is encrypted.
async fn connects(url: &str, mode: TlsMode, ca_file: Option<&Path>) -> Result<(), StoreError> {
    let mut settings = PostgresSettings::from_url(url).unwrap();
    settings.tls = mode;
    settings.tls_ca_file = ca_file.map(Path::to_owned);
    store(settings).describe().await.map(|_| ())
}

#[actix::test]
async fn encrypts_where_the_mode_and_the_server_want_it() {
    let Some((server, directory)) = server() else {
        return;
    };
    let (ca, other) = (directory.join("ca.pem"), directory.join("other.pem"));
    let (only, none) = (
        server.database_named("tls_only"),
        server.database_named("no_tls"),
    );
    let by_address = only.url.replace("?sslmode=disable", "");
    let by_name = by_address.replace("127.0.0.1", "localhost");
    let unencrypted = none.url.replace("?sslmode=disable", "");
    for (url, mode, ca_file, works) in [
        (&by_name, TlsMode::Disable, None, false),
        (&by_name, TlsMode::Allow, None, true),
        (&by_name, TlsMode::Prefer, None, true),
        (&by_name, TlsMode::Require, None, true),
        (&by_name, TlsMode::Require, Some(&ca), true),
        (&by_name, TlsMode::Require, Some(&other), false),
        (&by_name, TlsMode::VerifyCa, Some(&ca), true),
        (&by_name, TlsMode::VerifyCa, Some(&other), false),
        (&by_name, TlsMode::VerifyCa, None, false),
        (&by_name, TlsMode::VerifyFull, Some(&ca), true),
        (&by_name, TlsMode::VerifyFull, Some(&other), false),
        (&by_address, TlsMode::VerifyCa, Some(&ca), true),
        (&by_address, TlsMode::VerifyFull, Some(&ca), false),
        (&unencrypted, TlsMode::Disable, None, true),
        (&unencrypted, TlsMode::Allow, None, true),
        (&unencrypted, TlsMode::Prefer, None, true),
        (&unencrypted, TlsMode::Require, None, false),
    ] {
        let connected = connects(url, mode, ca_file.map(|file| file.as_path())).await;
        assert_eq!(
            connected.is_ok(),
            works,
            "{url} {mode:?} {ca_file:?} {connected:?}"
        );
    }
    let mut settings = PostgresSettings::from_url(&by_address).unwrap();
    settings.tls = TlsMode::VerifyFull;
    settings.tls_ca_file = Some(ca);
    settings.tls_check_hostname = false;
    store(settings).describe().await.unwrap();
}

/// A wrong password counts against whoever sends it.
#[actix::test]
async fn a_server_that_does_not_encrypt_is_not_asked_twice() {
    let server = Server::start("ssl = off\n");
    if server.directory().is_none() {
        return;
    }
    let database = server.database_named("password_only");
    server
        .database()
        .execute("CREATE ROLE ada LOGIN PASSWORD 'right'");
    let url = database.url.replace("postgres@", "ada:wrong@");
    let url = url.replace("?sslmode=disable", "");
    let refusals = || server.log().matches("authentication failed").count();
    let mut counts = Vec::new();
    for mode in [TlsMode::Disable, TlsMode::Prefer] {
        let before = refusals();
        connects(&url, mode, None).await.unwrap_err();
        counts.push(refusals() - before);
    }
    assert!(counts[0] > 0 && counts[0] == counts[1], "{counts:?}");
}

#[actix::test]
async fn shows_its_certificate() {
    let Some((server, directory)) = server() else {
        return;
    };
    let database = server.database_named("cert_only");
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let url = format!(
        "{}&sslrootcert={}&sslcert={}&sslkey={}",
        database
            .url
            .replace("127.0.0.1", "localhost")
            .replace("sslmode=disable", "sslmode=verify-full"),
        file("ca.pem"),
        file("postgres.pem"),
        file("postgres.key"),
    );
    let mut settings = PostgresSettings::from_url(&url).unwrap();
    store(settings.clone()).describe().await.unwrap();
    settings.tls_cert_file = None;
    let error = store(settings.clone()).describe().await.unwrap_err();
    assert!(chain(&error).contains("both"), "{}", chain(&error));
    settings.tls_key_file = None;
    let error = store(settings).describe().await.unwrap_err();
    assert!(error.to_string().contains("pg_hba.conf"), "{error}");
}

#[actix::test]
async fn says_why_it_cannot_connect_and_never_the_password() {
    let Some((server, _)) = server() else {
        return;
    };
    let _database = server.database_named("password_only");
    let admin = server.database();
    admin.execute("DROP ROLE IF EXISTS ada; CREATE ROLE ada LOGIN PASSWORD 'right'");
    let url = |password: &str, database: &str, port: u16| {
        format!("postgresql://ada:{password}@127.0.0.1:{port}/{database}?sslmode=disable")
    };
    let port = server.port();
    let error = async |url: &str| {
        let store = store(PostgresSettings::from_url(url).unwrap());
        let error = store.check().await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        let text = format!("{} {error:?}", chain(&error));
        assert!(!text.contains("hush"), "{text}");
        assert!(text.contains("127.0.0.1:"), "{text}");
        text
    };
    connects(&url("right", "password_only", port), TlsMode::Disable, None)
        .await
        .unwrap();
    let wrong = error(&url("hush", "password_only", port)).await;
    assert!(wrong.contains("password"), "{wrong}");
    let missing = error(&url("hush", "nowhere", port)).await;
    assert!(missing.contains("create it"), "{missing}");
    let nobody = error(&url("hush", "nowhere", free_port())).await;
    assert!(nobody.contains("is the server running"), "{nobody}");
    let named = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'event-persister'";
    let store = store(admin.settings());
    store.check().await.unwrap();
    assert_ne!(admin.value(named), "0");
}

/// A PgBouncer in transaction mode before the server, with this many server connections.
pub(crate) struct Bouncer {
    process: Child,
    pub(crate) port: u16,
    _directory: tempfile::TempDir,
}

impl Bouncer {
    pub(crate) async fn start(server: &Server, pool_size: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let configuration = format!(
            "[databases]\n* = user=postgres host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n\
             default_pool_size = {pool_size}\nmin_pool_size = 0\nserver_reset_query =\n\
             ignore_startup_parameters = extra_float_digits\n",
            server.port()
        );
        let file = directory.path().join("pgbouncer.ini");
        std::fs::write(&file, configuration).unwrap();
        let mut command = if crate::support::postgres::is_root() {
            let chown = Command::new("chown")
                .args(["-R", "postgres"])
                .arg(directory.path())
                .status();
            assert!(chown.unwrap().success());
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--", "pgbouncer"]);
            command
        } else {
            Command::new("pgbouncer")
        };
        let process = command
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("PgBouncer is installed (Debian package pgbouncer)");
        while tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
        {
            actix::clock::sleep(std::time::Duration::from_millis(10)).await;
        }
        Self {
            process,
            port,
            _directory: directory,
        }
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        // It passes the signal on to PgBouncer, which `kill` would not.
        let id = self.process.id().to_string();
        let killed = Command::new("kill").arg(id).status();
        drop(killed.and_then(|_| self.process.wait()));
    }
}

#[actix::test]
async fn works_behind_pgbouncer_in_transaction_mode() {
    let Some((server, _)) = server() else {
        return;
    };
    let (database, _) = migrated().await;
    database.execute("CREATE SCHEMA other; CREATE TABLE other.events ()");
    // Fewer connections than stores, so that every transaction may meet another one.
    let bouncer = Bouncer::start(server, 2).await;
    let url = database.url.replace(
        &format!(":{}/", server.port()),
        &format!(":{}/", bouncer.port),
    );
    let mut settings = PostgresSettings::from_url(&url).unwrap();
    settings.prepared_statements = false;
    settings.search_path = Some("public".to_owned());
    let stores: Vec<_> = (0..6).map(|_| store(settings.clone())).collect();
    let write = async |store: &PostgresStore| {
        for _ in 0..20 {
            let batch = of_events([any_event(), with_payload(r#"{"k": "\u0000"}"#), any_event()]);
            let outcomes = store.write(batch).await.unwrap();
            let refused = Outcome::RefusedByStore(RefusalReason::InvalidData);
            let expected = [Outcome::Stored, refused, Outcome::Stored];
            assert_eq!(outcomes, expected);
        }
    };
    join_all(stores.iter().map(write)).await;
    assert_eq!(database.value("SELECT count(*) FROM events"), "240");
    stores[0].check().await.unwrap();
    stores[0].half_events().await.unwrap();
    let now = event_persister_actors::clock::Clock::now(&SystemClock);
    let cutoffs = event_persister_actors::store::Cutoffs {
        default: now,
        overrides: Default::default(),
    };
    let step = stores[1]
        .trim(&cutoffs, std::num::NonZeroUsize::MIN)
        .await
        .unwrap();
    assert!(matches!(step, TrimStep::Removed(_)), "{step:?}");
    // Of this database alone: other tests hold locks on the same server.
    let held = database.value(
        "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database \
         WHERE l.locktype = 'advisory' AND d.datname = current_database()",
    );
    assert_eq!(held, "0");
}

#[actix::test]
async fn migrates_through_pgbouncer() {
    let Some((server, _)) = server() else {
        return;
    };
    let database = server.database();
    let bouncer = Bouncer::start(server, 2).await;
    let url = database.url.replace(
        &format!(":{}/", server.port()),
        &format!(":{}/", bouncer.port),
    );
    let mut settings = PostgresSettings::from_url(&url).unwrap();
    settings.prepared_statements = false;
    let stores: Vec<_> = (0..4).map(|_| store(settings.clone())).collect();
    for migrated in join_all(stores.iter().map(|store| store.migrate())).await {
        migrated.unwrap();
    }
    let outcomes = stores[0].write(of_events([any_event()])).await.unwrap();
    assert_eq!(outcomes, [Outcome::Stored]);
}
