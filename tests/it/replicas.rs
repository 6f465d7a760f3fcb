//! Several of the binary on one group, and the servers beside them, while events flow: whatever is
//! killed or stopped, every event is stored once.

use std::time::Duration;

use redis::Value;
use tokio::time::{Instant, sleep};

use crate::support::bus::{Bus, Publisher, has_exactly};
use crate::support::postgres;
use crate::support::server::Server;
use crate::support::wait::{PATIENCE, until, until_within};

/// How soon it must have noticed that something is away, or is back.
const SOON: Duration = Duration::from_secs(5);

/// For how long something is broken: as somebody has said, or as long as everybody can wait.
fn trouble(otherwise: Duration) -> Duration {
    crate::faults::trouble().unwrap_or(otherwise)
}

/// Prefect's own persister takes what has been idle for so long.
const PREFECTS_PATIENCE: Duration = Duration::from_secs(5);

/// Waits until the group holds entries that are not acknowledged.
async fn until_busy(bus: &Bus) {
    let started = Instant::now();
    while bus.stream.num_pending() == 0 && started.elapsed() < Duration::from_secs(1) {
        sleep(Duration::from_millis(1)).await;
    }
}

/// Entries of consumers that have not been heard of for half a second.
fn num_left_by_the_dead(bus: &Bus) -> u64 {
    let consumers = bus.stream.consumers("event-persister");
    let dead = consumers.iter().filter(|(_, _, idle)| *idle > 500);
    dead.map(|(_, pending, _)| pending).sum()
}

async fn replicas_are_killed(num_copies: usize) {
    let postgres = postgres::Server::start("fsync = off\n");
    let database = postgres.database();
    let bus = Bus::into_postgres(&database);
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(bus.start().ready().await);
    }
    let publisher = Publisher::start(&bus.stream, num_copies);
    let started = Instant::now();
    let (mut num_killed, mut num_left) = (0, 0);
    let long = trouble(Duration::from_secs(4));
    // At the least each of them is killed, one of them while it holds something.
    while started.elapsed() < long || num_killed < replicas.len() || num_left == 0 {
        assert!(
            started.elapsed() < long + PATIENCE,
            "nobody is killed at work"
        );
        sleep(Duration::from_millis(500)).await;
        until_busy(&bus).await;
        let killed = num_killed % replicas.len();
        replicas[killed].kill_9();
        replicas[killed] = bus.start();
        num_killed += 1;
        num_left += num_left_by_the_dead(&bus);
    }
    let ids = publisher.stop();
    bus.until_settled(&replicas[0]).await;
    has_exactly(&database, &ids);
    for replica in replicas {
        replica.until_ready_is(200).await;
        replica.terminate().in_good_order();
    }
    assert!(ids.len() > 20 * num_killed, "{} events", ids.len());
    let log = postgres.log();
    assert!(!log.contains("deadlock detected"), "{log}");
    // The living took over all that the dead held.
    assert_eq!(bus.stream.num_pending(), 0);
}

#[tokio::test]
async fn replicas_that_are_killed_lose_and_double_nothing() {
    replicas_are_killed(1).await;
}

#[tokio::test]
async fn replicas_that_are_killed_lose_and_double_nothing_of_what_comes_twice() {
    replicas_are_killed(2).await;
}

#[tokio::test]
async fn a_replica_that_is_killed_has_left_its_group_within_a_minute() {
    let database = postgres::Server::shared().database();
    let bus = Bus::into_postgres(&database);
    let killed = bus.start().ready().await;
    let publisher = Publisher::start(&bus.stream, 1);
    let consumers = || bus.stream.consumers("event-persister");
    until("in the group", || !consumers().is_empty()).await;
    let name = consumers()[0].0.clone();
    until_busy(&bus).await;
    killed.kill_9();
    let killed_at = Instant::now();
    let heir = bus.start().ready().await;
    let ids = publisher.stop();
    let a_minute = Duration::from_secs(60).saturating_sub(killed_at.elapsed());
    until_within(a_minute, "gone: the consumer of the dead", || {
        consumers().iter().all(|(other, _, _)| *other != name)
    })
    .await;
    bus.until_settled(&heir).await;
    has_exactly(&database, &ids);
    assert_eq!(consumers().len(), 1, "{:?}", consumers());
    heir.terminate().in_good_order();
}

/// Until it is ready or not, and within how much time it was.
async fn soon_ready_is(server: &Server, expected: u16) -> serde_json::Value {
    let since = Instant::now();
    let body = server.until_ready_is(expected).await;
    assert!(since.elapsed() < SOON, "{:?}: {body}", since.elapsed());
    body
}

#[tokio::test]
async fn a_redis_that_is_killed_under_load_costs_nothing() {
    let database = postgres::Server::shared().database();
    let mut bus = Bus::into_postgres(&database);
    let server = bus.start().ready().await;
    let publisher = Publisher::start(&bus.stream, 1);
    for _ in 0..2 {
        sleep(Duration::from_secs(1)).await;
        until_busy(&bus).await;
        bus.redis.kill();
        let why = soon_ready_is(&server, 503).await.to_string();
        assert!(why.contains("Redis at 127.0.0.1:"), "{why}");
        bus.redis.launch();
        soon_ready_is(&server, 200).await;
    }
    sleep(Duration::from_secs(1)).await;
    let ids = publisher.stop();
    bus.until_settled(&server).await;
    has_exactly(&database, &ids);
    server.terminate().in_good_order();
}

#[tokio::test]
async fn a_database_that_is_stopped_under_load_costs_nothing() {
    let postgres = postgres::Server::start("fsync = off\n");
    let database = postgres.database();
    let bus = Bus::into_postgres(&database);
    let server = bus.start().ready().await;
    let publisher = Publisher::start(&bus.stream, 1);
    for mode in ["fast", "immediate"] {
        sleep(Duration::from_secs(1)).await;
        postgres.stop(mode);
        let answer = soon_ready_is(&server, 503).await;
        let why = answer["reason"].as_str().unwrap();
        assert!(why.contains("store"), "{answer}");
        assert!(answer.to_string().contains("127.0.0.1"), "{answer}");
        // Long enough for more than one attempt.
        sleep(Duration::from_secs(2)).await;
        postgres.start_again();
        soon_ready_is(&server, 200).await;
    }
    sleep(Duration::from_secs(1)).await;
    let ids = publisher.stop();
    bus.until_settled(&server).await;
    has_exactly(&database, &ids);
    let ledger = server.terminate().in_good_order().ledger();
    assert_eq!(ledger("dead_lettered"), 0);
}

#[tokio::test]
async fn what_waits_for_a_locked_table_is_taken_by_nobody_else() {
    let database = postgres::Server::shared().database();
    let bus = Bus::into_postgres(&database);
    let server = bus.start().ready().await;
    let (client, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    client
        .batch_execute("BEGIN; LOCK TABLE events")
        .await
        .unwrap();
    let publisher = Publisher::start(&bus.stream, 1);
    until_busy(&bus).await;
    let started = Instant::now();
    let claim = format!(
        "XAUTOCLAIM events event-persister peer {} 0-0 COUNT 1000 JUSTID",
        PREFECTS_PATIENCE.as_millis()
    );
    while started.elapsed() < trouble(PREFECTS_PATIENCE + Duration::from_secs(2)) {
        let answer: Vec<Value> = bus.stream.command(&claim);
        let nothing = Value::Array(Vec::new());
        assert_eq!(answer[1], nothing, "after {:?}", started.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    assert!(bus.stream.num_pending() > 0);
    client.batch_execute("ROLLBACK").await.unwrap();
    connection.abort();
    let ids = publisher.stop();
    bus.until_settled(&server).await;
    has_exactly(&database, &ids);
    soon_ready_is(&server, 200).await;
    server.terminate().in_good_order();
}
