//! PostgreSQL breaks, or what lies between.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::NoTls;

use super::case::{Case, SmallDisk, Store, for_seconds, trouble};
use super::network;
use crate::support::bus::Bus;
use crate::support::ports::free_port;
use crate::support::postgres::{self, Database};
use crate::support::proxy::Proxy;
use crate::support::wait::until;

/// Breaks it under load for a while, cures it, and sees that it was noticed in between.
async fn for_a_while(
    fault: &'static str,
    database: &Database,
    seconds: u64,
    harm: &str,
    cure: &str,
) {
    let case = Case::postgres(fault, database);
    case.survives(async |_, server| {
        database.execute(harm);
        database.execute(CUT_OFF);
        server.until_ready_is(503).await;
        for_seconds(seconds).await;
        assert_eq!(server.readiness().await.0, 503, "{}", server.log());
        database.execute(cure);
    })
    .await;
}

#[tokio::test]
async fn killed_in_the_middle_of_a_commit() {
    let server = postgres::Server::start("");
    let database = server.database();
    let mut case = Case::postgres("PostgreSQL: killed in the middle of a commit", &database);
    let persister = case.start().await;
    // A commit that waits for a standby is on the disk, and nobody has been told.
    database.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    database.execute("SELECT pg_reload_conf()");
    case.publish_in_copies(1);
    for _ in 0..2 {
        // What the first round has stored is committed again before anything new is.
        until("in the middle of a commit", || {
            !database.committing().is_empty()
        })
        .await;
        server.stop("immediate");
        server.start_again();
    }
    database.execute("ALTER SYSTEM RESET synchronous_standby_names");
    database.execute("SELECT pg_reload_conf()");
    case.cured();
    case.until_more_is_stored().await;
    case.ends_well(vec![persister]).await;
}

#[tokio::test]
async fn restarted() {
    let server = postgres::Server::start("fsync = off\n");
    let database = server.database();
    let case = Case::postgres("PostgreSQL: restarted, three times", &database);
    case.survives(async |_, _| {
        for _ in 0..3 {
            sleep(Duration::from_millis(fastrand::u64(100..500))).await;
            server.stop("fast");
            server.start_again();
        }
    })
    .await;
}

#[tokio::test]
async fn all_of_its_processes_are_killed() {
    let server = postgres::Server::start("");
    let database = server.database();
    let case = Case::postgres(
        "PostgreSQL: kill -9 of all of its processes, three times",
        &database,
    );
    case.survives(async |_, _| {
        for _ in 0..3 {
            sleep(Duration::from_millis(fastrand::u64(100..500))).await;
            server.kill_9();
            server.start_again();
        }
    })
    .await;
}

/// What an operator is promised of an outage: told within 5 s, over within 5 s, nothing lost.
#[tokio::test]
async fn stopped_for_a_minute() {
    // At full length nothing else runs; a busy machine may take its time.
    let soon = Duration::from_secs(if trouble().is_some() { 5 } else { 30 });
    let server = postgres::Server::start("fsync = off\n");
    let database = server.database();
    let mut case = Case::postgres("PostgreSQL: stopped for a minute", &database);
    let persister = case.start().await;
    case.load().await;
    server.stop("fast");
    let stopped = Instant::now();
    let answer = persister.until_ready_is(503).await;
    assert!(stopped.elapsed() < soon, "{:?}", stopped.elapsed());
    assert!(
        answer["reason"].as_str().unwrap().contains("store"),
        "{answer}"
    );
    for_seconds(60).await;
    server.start_again();
    case.cured();
    let started = Instant::now();
    persister.until_ready_is(200).await;
    assert!(started.elapsed() < soon, "{:?}", started.elapsed());
    case.until_more_is_stored().await;
    case.ends_well(vec![persister]).await;
}

#[tokio::test]
async fn it_fails_over_to_another_port() {
    let mut server = postgres::Server::start("");
    let database = server.database();
    let port = free_port();
    let moved = (database.url).replace(&format!(":{}/", server.port()), &format!(":{port}/"));
    let moved = database.at(moved);
    let proxy = Proxy::to(server.port());
    let mut case = Case::postgres(
        "PostgreSQL: fails over to another port behind a proxy",
        &database,
    );
    case.bus
        .set("EVENT_PERSISTER_DATABASE_URL", proxy.url(&database.url));
    case.survives(async |case, persister| {
        proxy.refuse();
        server.stop("immediate");
        persister.until_ready_is(503).await;
        server.start_again_at(port);
        proxy.lead_to(port);
        proxy.pass();
        case.store = Store::Postgres(&moved);
    })
    .await;
}

async fn through_a_proxy(fault: &'static str, trouble: impl AsyncFnOnce(&Proxy)) {
    let server = postgres::Server::shared();
    let database = server.database();
    let proxy = Proxy::to(server.port());
    let mut case = Case::postgres(fault, &database);
    case.bus
        .set("EVENT_PERSISTER_DATABASE_URL", proxy.url(&database.url));
    case.survives(async |_, _| {
        trouble(&proxy).await;
    })
    .await;
}

#[tokio::test]
async fn connections_are_cut() {
    through_a_proxy(
        "PostgreSQL: connections cut at random moments, twenty times",
        network::cuts_at_random_moments,
    )
    .await;
}

#[tokio::test]
async fn the_network_swallows_everything() {
    through_a_proxy(
        "PostgreSQL: the network swallows everything for 30 s, then cuts",
        network::swallows_everything,
    )
    .await;
}

#[tokio::test]
async fn the_network_comes_back_with_what_it_held() {
    through_a_proxy(
        "PostgreSQL: the network holds everything back for 30 s, then delivers it",
        async |proxy| {
            proxy.stall();
            for_seconds(30).await;
            proxy.pass();
        },
    )
    .await;
}

#[tokio::test]
async fn it_turns_read_only() {
    let database = postgres::Server::shared().database();
    let name = database.name.clone();
    for_a_while(
        "PostgreSQL: read-only",
        &database,
        10,
        &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"),
        &format!("BEGIN READ WRITE; ALTER DATABASE {name} RESET default_transaction_read_only; COMMIT; {CUT_OFF}"),
    )
    .await;
}

/// Ends all connections of others to the database.
pub(crate) const CUT_OFF: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
    WHERE datname = current_database() AND pid != pg_backend_pid()";

#[tokio::test]
async fn a_column_is_missing() {
    let database = postgres::Server::shared().database();
    for_a_while(
        "PostgreSQL: a column is missing",
        &database,
        5,
        "ALTER TABLE events RENAME COLUMN follows TO gone",
        "ALTER TABLE events RENAME COLUMN gone TO follows",
    )
    .await;
}

#[tokio::test]
async fn every_statement_takes_half_a_second() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres("PostgreSQL: half a second a statement", &database);
    let server = case.start().await;
    database.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$; \
         CREATE TRIGGER dawdle BEFORE INSERT ON events \
         FOR EACH STATEMENT EXECUTE FUNCTION dawdle()",
    );
    case.load().await;
    // Slow is not broken.
    let enough = async {
        for_seconds(20).await;
        case.until_more_is_stored().await;
    };
    let always_ready = async {
        loop {
            assert_eq!(server.readiness().await.0, 200);
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = enough => {}
        () = always_ready => {}
    }
    database.execute("DROP TRIGGER dawdle ON events");
    case.cured();
    case.ends_well(vec![server]).await;
}

/// As [`for_a_while`], for a role that is no superuser; `{role}` stands for its name.
async fn for_a_role(
    fault: &'static str,
    database: &Database,
    harm: &[&str],
    cure: &str,
    why: &str,
) {
    let mut case = Case::postgres(fault, database);
    let (role, url) = database.for_a_role();
    case.bus.set("EVENT_PERSISTER_DATABASE_URL", url);
    case.survives(async |_, server| {
        for harm in harm {
            database.execute(&harm.replace("{role}", &role));
        }
        server.until_ready_is(503).await;
        // The first error may only be that the connection was cut.
        server
            .until_readiness(|_, body| body.to_string().contains(why))
            .await;
        for_seconds(5).await;
        database.execute(&cure.replace("{role}", &role));
    })
    .await;
    database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[tokio::test]
async fn it_is_out_of_connections() {
    let database = postgres::Server::shared().database();
    for_a_role(
        "PostgreSQL: out of connections",
        &database,
        &["ALTER ROLE {role} CONNECTION LIMIT 0", CUT_OFF],
        "ALTER ROLE {role} CONNECTION LIMIT -1",
        "no connection left",
    )
    .await;
}

#[tokio::test]
async fn a_permission_is_revoked() {
    let database = postgres::Server::shared().database();
    for_a_role(
        "PostgreSQL: permission revoked",
        &database,
        &["REVOKE INSERT ON event_resources FROM {role}"],
        "GRANT INSERT ON event_resources TO {role}",
        "lacks a privilege",
    )
    .await;
}

#[tokio::test]
async fn the_password_is_changed() {
    let server = postgres::Server::start("fsync = off\n");
    let database = server.database_named("password_only");
    // Whoever looks is let in as well.
    database_admin_password(&server);
    let database = database.at(database.url.replace("postgres@", "postgres:admin@"));
    let mut case = Case::postgres("PostgreSQL: password changed", &database);
    let (role, url) = database.for_a_role();
    case.bus.set("EVENT_PERSISTER_DATABASE_URL", url);
    case.survives(async |_, persister| {
        database.execute(&format!("ALTER ROLE {role} PASSWORD 'second'"));
        database.execute(CUT_OFF);
        persister.until_ready_is(503).await;
        for_seconds(5).await;
        database.execute(&format!("ALTER ROLE {role} PASSWORD 'first'"));
    })
    .await;
}

fn database_admin_password(server: &postgres::Server) {
    let other = server.database();
    other.execute("ALTER ROLE postgres PASSWORD 'admin'");
}

#[tokio::test]
async fn its_disk_is_full() {
    let Some(disk) = SmallDisk::of(24) else {
        eprintln!("not run: only root can mount a small file system");
        return;
    };
    let server = postgres::Server::start("fsync = off\n");
    let database = server.database();
    let folder = disk.path("space");
    server.own_folder(&folder);
    // One statement at a time: it runs in no transaction.
    database.execute(&format!(
        "CREATE TABLESPACE small LOCATION '{}'",
        folder.display()
    ));
    let mut bus = Bus::into_sqlite();
    bus.write_to(&database);
    database.execute("ALTER TABLE events SET TABLESPACE small");
    let mut case = Case::new("PostgreSQL: out of disk", bus, Store::Postgres(&database));
    let persister = case.start().await;
    case.load().await;
    disk.fill();
    let answer = persister.until_ready_is(503).await;
    assert!(answer.to_string().contains("disk is full"), "{answer}");
    for_seconds(5).await;
    disk.clear();
    case.cured();
    persister.until_ready_is(200).await;
    case.ends_well(vec![persister]).await;
    drop(server);
}

async fn connect(database: &Database) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&database.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn a_table_is_locked() {
    let database = postgres::Server::shared().database();
    let case = Case::postgres("PostgreSQL: a table locked for 20 s", &database);
    case.survives(async |_, _| {
        let client = connect(&database).await;
        client
            .batch_execute("BEGIN; LOCK TABLE events")
            .await
            .unwrap();
        for_seconds(20).await;
        client.batch_execute("ROLLBACK").await.unwrap();
    })
    .await;
}

/// Another session holds the larger of two ids and then wants the smaller, which we hold by then.
#[tokio::test]
async fn it_comes_to_a_deadlock() {
    let server = postgres::Server::start("fsync = off\n");
    let database = server.database();
    let mut case = Case::postgres("PostgreSQL: a real deadlock, which we lose", &database);
    // Ours is the one that looks for deadlocks first.
    database.execute(&format!(
        "ALTER DATABASE {} SET deadlock_timeout = '2s'",
        database.name
    ));
    let mut ids: Vec<_> = (0..2).map(|_| uuid::Uuid::new_v4().to_string()).collect();
    ids.sort();
    let client = connect(&database).await;
    let insert = |id: &str| {
        format!(
            "INSERT INTO events (id, occurred, event, resource_id, resource, related, payload, received, recorded) \
             VALUES ('{id}', now(), 'e', 'r', '{{}}', '[]', '{{}}', now(), now())"
        )
    };
    let first = format!("SET deadlock_timeout = '60s'; BEGIN; {}", insert(&ids[1]));
    client.batch_execute(&first).await.unwrap();
    let texts: Vec<_> = (ids.iter())
        .map(|id| {
            let mut event = crate::support::events::event();
            event["id"] = id.as_str().into();
            event.to_string()
        })
        .collect();
    case.bus.stream.publish(&texts);
    case.expect(ids.clone());
    // Only now, so that both come in one batch.
    let persister = case.bus.start();
    until("ours waits", || {
        let waiting = "SELECT count(*) FROM pg_stat_activity \
            WHERE datname = current_database() AND wait_event = 'transactionid'";
        database.value(waiting) != "0"
    })
    .await;
    client.batch_execute(&insert(&ids[0])).await.unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    case.cured();
    case.publish(500);
    case.bus.until_settled(&persister).await;
    let log = server.log();
    assert_eq!(log.matches("deadlock detected").count(), 1, "{log}");
    case.ends_well(vec![persister]).await;
}

#[tokio::test]
async fn serialization_fails() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres(
        "PostgreSQL: serialization failures, a hundred of them",
        &database,
    );
    database.execute(
        "CREATE SEQUENCE tries; CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN IF nextval('tries') % 2 = 0 AND currval('tries') < 200 THEN \
            RAISE serialization_failure; END IF; RETURN NULL; END $$; \
         CREATE TRIGGER fail BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION fail()",
    );
    let server = case.start().await;
    case.load().await;
    until("a hundred failures", || {
        let tries = database.value("SELECT last_value FROM tries");
        tries.parse::<u32>().unwrap() >= 200
    })
    .await;
    case.cured();
    case.ends_well(vec![server]).await;
}
