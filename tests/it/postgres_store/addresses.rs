//! Sockets and several hosts, some of which are silent, dead or the wrong one.

use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::time::Duration;

use event_persister_actors::store::operator::StoreOperator as _;
use event_persister_actors::store::postgres::PostgresSettings;
use event_persister_actors::store::{EventStore as _, StoreError};
use tokio::time::{Instant, sleep};

use super::{any_event, chain, of_events, store};
use crate::cli;
use crate::support::binary::Folder;
use crate::support::ports::free_port;
use crate::support::postgres::{Database, Server};
use crate::support::proxy::Proxy;
use crate::support::server::Server as Persister;
use crate::support::wait::until;

/// Takes connections, as the system does for it, and says nothing.
fn silent() -> (TcpListener, u16) {
    let listener = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn name(database: &Database) -> &str {
    let path = database.url.rsplit('/').next().unwrap();
    path.split('?').next().unwrap()
}

fn by(hosts: &str, database: &str) -> PostgresSettings {
    let url = format!("postgresql+asyncpg://postgres@/{database}?{hosts}&ssl=disable");
    let mut settings = PostgresSettings::from_url(&url).unwrap();
    settings.connect_timeout = Duration::from_millis(500);
    settings
}

#[actix::test]
async fn a_socket_is_found_in_a_folder_with_colons() {
    let server = Server::shared();
    let Some(directory) = server.directory() else {
        return;
    };
    let database = server.database();
    let folder = tempfile::tempdir().unwrap();
    let with_colons = folder.path().join("p:r:i");
    symlink(directory, &with_colons).unwrap();
    let (port, name) = (server.port(), name(&database));
    let with_colons = with_colons.to_str().unwrap();
    let escaped = with_colons.replace('/', "%2F").replace(':', "%3A");
    for hosts in [
        format!("host={with_colons}&port={port}"),
        format!("host={escaped}&port={port}"),
        format!("host={with_colons}/.s.PGSQL.{port}"),
        format!("host={escaped}%2F.s.PGSQL.{port}&port=1"),
        format!("host=/nowhere,{with_colons}&port=1,{port}"),
    ] {
        let described = store(by(&hosts, name)).describe().await;
        assert!(described.is_ok(), "{hosts}: {described:?}");
    }
}

#[actix::test]
async fn a_host_that_says_nothing_is_left_for_the_next_one() {
    let server = Server::shared();
    let database = server.database();
    let (_listener, silent) = silent();
    let (port, nobody) = (server.port(), free_port());
    let hosts = format!("host=127.0.0.1:{silent}&host=127.0.0.1:{nobody}&host=127.0.0.1:{port}");
    let settings = by(&hosts, name(&database));
    let store = store(settings);
    store.migrate().await.unwrap();
    let began = Instant::now();
    store.write(of_events([any_event()])).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    let alone = by(
        &format!("host=127.0.0.1:{silent}&host=127.0.0.1:{nobody}"),
        name(&database),
    );
    let error = super::store(alone).describe().await.unwrap_err();
    let told = chain(&error);
    assert!(told.contains("nothing was heard of it"), "{told}");
    assert!(told.contains(&format!("127.0.0.1:{nobody}: ")), "{told}");
}

#[actix::test]
async fn the_one_that_takes_events_is_found_wherever_it_stands() {
    let primary = Server::start("fsync = off\n");
    let database = primary.database();
    let standby = primary.standby(primary.port());
    let hosts = |target: &str| {
        let (standby, primary) = (standby.port(), primary.port());
        let hosts = format!("host=127.0.0.1:{standby}&host=127.0.0.1:{primary}");
        by(
            &format!("{hosts}&target_session_attrs={target}"),
            name(&database),
        )
    };
    for target in ["primary", "read-write", "prefer-standby"] {
        let store = store(hosts(target));
        store.migrate().await.unwrap();
        store.write(of_events([any_event()])).await.unwrap();
    }
    let only = format!(
        "host=127.0.0.1:{}&target_session_attrs=primary",
        standby.port()
    );
    let error = store(by(&only, name(&database)))
        .describe()
        .await
        .unwrap_err();
    assert!(chain(&error).contains("is a standby"), "{}", chain(&error));
    for target in ["standby", "read-only"] {
        let url = format!("postgresql://h/d?target_session_attrs={target}");
        let error = PostgresSettings::from_url(&url).unwrap_err().to_string();
        assert!(error.contains(target), "{error}");
    }
}

#[tokio::test]
async fn the_second_host_takes_over_when_the_first_one_dies() {
    let server = Server::shared();
    let database = server.database();
    let first = Proxy::to(server.port());
    let hosts = format!(
        "host=127.0.0.1:{}&host=127.0.0.1:{}",
        first.port(),
        server.port()
    );
    let url = format!(
        "postgresql://postgres@/{}?{hosts}&sslmode=disable",
        name(&database)
    );
    let folder = Folder::new();
    folder.run(&["migrate", "--database-url", &url]).exits(0);
    let persister = Persister::start(&folder, &[("EVENT_PERSISTER_DATABASE_URL", &url)]);
    persister.until_ready_is(200).await;
    let num = || database.execute("SELECT 1 FROM events").len();
    let send = async || {
        let list = format!("[{}]", cli::event("2999-01-01T00:00:00Z"));
        persister.post_status(list).await
    };
    assert_eq!(send().await, 204);
    first.refuse();
    let died = Instant::now();
    assert_eq!(send().await, 204);
    assert!(
        died.elapsed() < Duration::from_secs(5),
        "{:?}",
        died.elapsed()
    );
    until("stored", || num() == 2).await;
    let line = persister.logged("a host of the database was passed over");
    assert!(
        line.contains(&format!("127.0.0.1:{}", first.port())),
        "{line}"
    );
    persister.terminate().in_good_order();
}

#[actix::test]
async fn a_server_that_says_nothing_is_given_up_and_not_one_that_works() {
    let database = Server::shared().database();
    let way = Proxy::to(Server::shared().port());
    let mut settings = database.at(way.url(&database.url)).settings();
    settings.connect_timeout = Duration::from_millis(500);
    settings.lock_timeout = Duration::from_secs(20);
    let store = store(settings);
    store.migrate().await.unwrap();
    store.write(of_events([any_event()])).await.unwrap();
    let lock = "BEGIN; LOCK TABLE events; SELECT pg_sleep(8)";
    let holder = std::thread::spawn(move || database.execute(lock));
    let held = Instant::now();
    sleep(Duration::from_secs(1)).await;
    store.write(of_events([any_event()])).await.unwrap();
    assert!(held.elapsed() > Duration::from_secs(7), "it did not wait");
    holder.join().unwrap();
    way.stall();
    let stalled = Instant::now();
    let error = store.write(of_events([any_event()])).await.unwrap_err();
    assert!(
        stalled.elapsed() < Duration::from_secs(5),
        "{:?}",
        stalled.elapsed()
    );
    assert!(
        matches!(error, StoreError::OutcomeUnknown { .. }),
        "{error:?}"
    );
    let told = chain(&error);
    assert!(
        told.contains(&format!("127.0.0.1:{}", way.port())),
        "{told}"
    );
    way.refuse();
    way.pass();
    store.write(of_events([any_event()])).await.unwrap();
}

#[tokio::test]
async fn a_service_passes_over_a_silent_host_and_names_it() {
    let server = Server::shared();
    let database = server.database();
    let (_listener, silent) = silent();
    let (name, port) = (name(&database), server.port());
    let hosts = format!("host=127.0.0.1,127.0.0.1&port={silent},{port}");
    let url = format!("postgresql://postgres@/{name}?{hosts}&sslmode=disable&connect_timeout=1");
    let folder = Folder::new();
    folder.run(&["migrate", "--database-url", &url]).exits(0);
    let began = Instant::now();
    let persister = Persister::start(&folder, &[("EVENT_PERSISTER_DATABASE_URL", &url)]);
    let list = format!("[{}]", cli::event("2999-01-01T00:00:00Z"));
    assert_eq!(persister.post_status(list).await, 204);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let line = persister.logged("a host of the database was passed over");
    assert!(
        line.contains(&format!("store.host=127.0.0.1:{silent}")),
        "{line}"
    );
    assert!(line.contains("nothing was heard of it for 1s"), "{line}");
    persister.terminate().in_good_order();
}
