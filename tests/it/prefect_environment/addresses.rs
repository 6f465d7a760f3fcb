//! Each kind of address by the binary, and beside it by Prefect's own drivers: `PREFECT_PYTHON` names the Python of
//! an environment in which prefect, prefect-redis and asyncpg are.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::{BROKER, PERSISTER_OFF};
use crate::support::binary::{Folder, Ran};
use crate::support::ports::free_port;
use crate::support::postgres;
use crate::support::redis::{RedisServer, ServerOptions};
use crate::support::sentinels::{Sentinels, Wanted};
use crate::support::server::Server;

const DATABASE_URL: &str = "PREFECT_SERVER_DATABASE_CONNECTION_URL";
const REDIS_URL: &str = "PREFECT_REDIS_MESSAGING_URL";

/// Connects as Prefect's server does.
const DATABASE_BY_PREFECT: &str = "
import asyncio
import sqlalchemy as sa
from prefect.server.database.configurations import AsyncPostgresConfiguration
from prefect.settings import get_current_settings

async def main():
    url = get_current_settings().server.database.connection_url.get_secret_value()
    engine = await AsyncPostgresConfiguration(url).engine()
    async with engine.connect() as connection:
        print('connected to', await connection.scalar(sa.text('SELECT current_database()')))

asyncio.run(main())
";
const REDIS_BY_PREFECT: &str = "
import asyncio
from prefect_redis.client import get_async_redis_client

async def main():
    client = get_async_redis_client()
    await client.set('asked-by-prefect', 1)
    print('connected to', await client.get('asked-by-prefect'))

asyncio.run(main())
";

/// Runs a script of Prefect's in an environment; nothing where there is no Prefect.
#[expect(clippy::print_stderr, reason = "says what was not done")]
fn prefect(folder: &Folder, script: &str, variables: &[(&str, &str)]) {
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let python = std::env::var("PREFECT_PYTHON").unwrap_or_default();
    if python.is_empty() {
        eprintln!("PREFECT_PYTHON is not set: only the binary connects");
        return;
    }
    let mut command = Command::new(python);
    command
        .args(["-c", script])
        .env_clear()
        .envs(variables.iter().copied());
    command
        .env("HOME", folder.path())
        .env("PREFECT_HOME", folder.path());
    let ran = Ran::new(command.output().unwrap());
    assert_eq!(ran.code, Some(0), "{variables:?}: {ran:?}");
    assert!(
        ran.stdout.contains("connected to"),
        "{variables:?}: {ran:?}"
    );
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn every_kind_of_address_of_postgresql_is_connected_to() {
    let server = postgres::Server::shared();
    let Some(directory) = server.directory() else {
        return;
    };
    let database = server.database();
    let folder = Folder::new();
    folder
        .run(&["migrate", "--database-url", &database.url])
        .exits(0);
    let with_colons = folder.path().join("p:r:i");
    symlink(directory, &with_colons).unwrap();
    let socket = shown(&with_colons);
    let escaped = socket.replace('/', "%2F").replace(':', "%3A");
    let (port, nobody, name) = (server.port(), free_port(), &database.name);
    let ca = shown(&directory.join("ca.pem"));
    let at = |authority: &str, query: &str| {
        format!("postgresql+asyncpg://postgres@{authority}/{name}?{query}")
    };
    let by_url = |url: String| vec![(DATABASE_URL, url)];
    let by_number = format!("127.0.0.1:{port}");
    let by_name = format!("localhost:{port}");
    for variables in [
        by_url(at("", &format!("host={socket}&port={port}"))),
        by_url(at("", &format!("host={escaped}&port={port}"))),
        by_url(at("", &format!("host={socket}/.s.PGSQL.{port}"))),
        by_url(at("", &format!("host={escaped}%2F.s.PGSQL.{port}"))),
        by_url(at(
            "",
            &format!("host=127.0.0.1:{nobody}&host=127.0.0.1:{port}"),
        )),
        by_url(at(
            "",
            &format!("host=127.0.0.1,127.0.0.1&port={nobody},{port}"),
        )),
        by_url(at(&by_number, "target_session_attrs=primary")),
        by_url(at(&by_number, "target_session_attrs=read-write")),
        by_url(at(&by_number, "target_session_attrs=prefer-standby")),
        vec![
            (DATABASE_URL, "postgresql+asyncpg://".to_owned()),
            ("PGHOST", socket.clone()),
            ("PGPORT", port.to_string()),
            ("PGUSER", "postgres".to_owned()),
            ("PGDATABASE", name.clone()),
            // Nothing is encrypted on a socket.
            ("PGSSLMINPROTOCOLVERSION", "x".to_owned()),
        ],
        vec![
            (DATABASE_URL, at("", "")),
            ("PGHOST", format!("127.0.0.1:{nobody},127.0.0.1:{port}")),
        ],
        vec![
            (DATABASE_URL, at(&by_name, "ssl=verify-full")),
            ("PGSSLROOTCERT", ca.clone()),
        ],
        // The certificate is made out to localhost alone.
        vec![
            (DATABASE_URL, at(&by_number, "")),
            ("PGSSLMODE", "verify-ca".to_owned()),
            ("PGSSLROOTCERT", ca.clone()),
        ],
    ] {
        let mut variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (*name, &value[..]))
            .collect();
        variables.push(PERSISTER_OFF);
        is_reached_by_both(&folder, &variables);
    }
}

/// By `check`, and by Prefect's driver.
fn is_reached_by_both(folder: &Folder, variables: &[(&str, &str)]) {
    let ran = folder.run_with(&["check"], variables);
    let is_reached = ran
        .stdout
        .contains("store: reachable, and its tables are right");
    assert!(is_reached, "{variables:?}: {ran:?}");
    prefect(folder, DATABASE_BY_PREFECT, variables);
}

/// The modes `prefer` and `allow` try the other way after any refusal of the login.
#[test]
fn a_login_that_is_refused_in_one_way_is_tried_in_the_other_as_by_prefect() {
    let server = postgres::Server::shared();
    let Some(directory) = server.directory() else {
        return;
    };
    let file = |name: &str| shown(&directory.join(name));
    let (socket, port) = (shown(directory), server.port());
    let folder = Folder::new();
    for (name, mode, certificate) in [
        ("password_in_tls", "prefer", false),
        ("cert_in_tls", "allow", true),
    ] {
        let _database = server.database_named(name);
        let local = format!("postgresql://postgres@/{name}?host={socket}&port={port}");
        folder.run(&["migrate", "--database-url", &local]).exits(0);
        let url = format!("postgresql+asyncpg://postgres@localhost:{port}/{name}?ssl={mode}");
        let (cert, key) = (file("postgres.pem"), file("postgres.key"));
        let mut variables = vec![PERSISTER_OFF, (DATABASE_URL, &url)];
        if certificate {
            variables.extend([("PGSSLCERT", &cert[..]), ("PGSSLKEY", &key)]);
        }
        is_reached_by_both(&folder, &variables);
    }
}

/// Certificates as people make them with a line of openssl: one that has signed itself, and one of version 1.
#[test]
fn certificates_are_taken_as_by_prefect() {
    let all = [
        (
            "own",
            &["verify-full", "verify-ca", "require", "prefer"][..],
        ),
        ("old", &["require", "prefer"]),
    ];
    for (certificate, modes) in all {
        let server = postgres::Server::start(&format!(
            "ssl_cert_file = '../{certificate}.pem'\nssl_key_file = '../{certificate}.key'\nlog_connections = on\n"
        ));
        let directory = server.directory().unwrap();
        let root = shown(&directory.join("own.pem"));
        let folder = Folder::new();
        for mode in modes {
            let port = server.port();
            let url = format!("postgresql+asyncpg://postgres@localhost:{port}/postgres?ssl={mode}");
            let mut variables = vec![PERSISTER_OFF, (DATABASE_URL, &url)];
            if mode.starts_with("verify") {
                variables.push(("PGSSLROOTCERT", &root));
            }
            folder.run_with(&["check"], &variables);
            let log = std::fs::read_to_string(directory.join("log")).unwrap();
            let ours = log.lines().filter(|line| {
                line.contains("authorized") && line.contains("application_name=event-persister")
            });
            let (encrypted, plain): (Vec<&str>, Vec<&str>) =
                ours.partition(|line| line.contains("SSL enabled"));
            assert!(!encrypted.is_empty(), "{certificate}, {mode}: {log}");
            assert!(plain.is_empty(), "{certificate}, {mode}: {log}");
            prefect(&folder, DATABASE_BY_PREFECT, &variables);
        }
        let url = format!(
            "postgresql+asyncpg://postgres@localhost:{}/postgres?ssl=verify-full",
            server.port()
        );
        let ca = shown(&directory.join("ca.pem"));
        let variables = [PERSISTER_OFF, (DATABASE_URL, &url), ("PGSSLROOTCERT", &ca)];
        let refused = folder.run_with(&["check"], &variables);
        let why = match certificate {
            "old" => "of version 1",
            _ => "invalid peer certificate",
        };
        assert!(refused.stdout.contains(why), "{refused:?}");
    }
}

#[tokio::test]
async fn every_kind_of_address_of_redis_is_connected_to() {
    let plain = RedisServer::start();
    let elsewhere = RedisServer::start_with(ServerOptions {
        tls: true,
        password: Some("p@ss/word".to_owned()),
        has_other_name: true,
        ..ServerOptions::default()
    });
    let sentinels = Sentinels::start_with(Wanted {
        tls: true,
        passwords: true,
    })
    .await;
    let socket = shown(&plain.socket());
    plain
        .stream()
        .command::<()>("ACL SETUSER ann on >p@ss ~* &* +@all");
    let ca = shown(&elsewhere.ca_file());
    let tls = format!("rediss://:p%40ss%2Fword@127.0.0.1:{}/0", elsewhere.port());
    let folder = Folder::new();
    for url in [
        format!("unix://{socket}?db=2"),
        format!("unix://{socket}?db=2&username=ann&password=p%40ss"),
        format!("unix://ann:p%40ss@{socket}"),
        format!("{tls}?ssl_ca_certs={ca}&ssl_check_hostname=false"),
        format!("{tls}?ssl_cert_reqs=none&ssl_check_hostname=false"),
        sentinels.url(),
    ] {
        let variables = [BROKER, PERSISTER_OFF, (REDIS_URL, &url)];
        let ran = folder.run_with(&["check"], &variables);
        assert!(
            ran.stdout.contains("redis: reachable, version "),
            "{url}: {ran:?}"
        );
        prefect(&folder, REDIS_BY_PREFECT, &variables);
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_looked_at_is_warned_of_at_every_start() {
    let redis = RedisServer::start_with(ServerOptions {
        tls: true,
        has_other_name: true,
        ..ServerOptions::default()
    });
    let folder = Folder::new();
    let url = format!("{}?ssl_cert_reqs=none", redis.url());
    for _ in 0..2 {
        let server = Server::start(&folder, &[("EVENT_PERSISTER_REDIS_URL", &url)])
            .ready()
            .await;
        server.logged("the certificate of Redis is not looked at (ssl_cert_reqs=none)");
        server.terminate().in_good_order();
    }
}
