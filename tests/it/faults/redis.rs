//! Redis breaks, or somebody breaks what it holds.

use std::time::Duration;

use redis::Value;
use tokio::time::sleep;

use super::case::{Case, Store, for_seconds};
use super::network;
use super::persister::stop_with_entries;
use crate::support::bus::Bus;
use crate::support::postgres;
use crate::support::proxy::Proxy;
use crate::support::redis::ServerOptions;
use crate::support::wait::until;

#[tokio::test]
async fn killed_with_its_file() {
    let database = postgres::Server::shared().database();
    let case = Case::postgres(
        "Redis: killed, with its append-only file, three times",
        &database,
    );
    case.survives(async |case, server| {
        for _ in 0..3 {
            sleep(Duration::from_millis(fastrand::u64(100..500))).await;
            case.bus.redis.kill();
            server.until_ready_is(503).await;
            case.bus.redis.launch();
            server.until_ready_is(200).await;
        }
    })
    .await;
}

/// What the dead one held counts as new by the clock of Redis, for an hour.
#[tokio::test]
async fn its_clock_is_set_back_as_a_replica_dies() {
    let database = postgres::Server::shared().database();
    let mut bus = Bus::of(ServerOptions {
        durable: true,
        own_clock: true,
        ..ServerOptions::default()
    });
    bus.write_to(&database);
    let mut case = Case::new(
        "Redis: its clock is set back by an hour as a replica dies",
        bus,
        Store::Postgres(&database),
    );
    let (dying, heir) = (case.start().await, case.start().await);
    case.load().await;
    stop_with_entries(&case, &dying).await;
    case.bus.redis.set_clock(-3600);
    drop(dying.kill_9());
    case.cured();
    case.until_more_is_stored().await;
    heir.logged("the clock of Redis was set");
    case.ends_well(vec![heir]).await;
}

#[tokio::test]
async fn killed_without_a_file() {
    let bus = Bus::of(ServerOptions::default());
    let file = bus.folder.database();
    let mut case = Case::new(
        "Redis: killed, and all that it held is gone",
        bus,
        Store::Sqlite(file),
    );
    let server = case.start().await;
    case.load().await;
    case.forgive();
    case.bus.redis.kill();
    server.until_ready_is(503).await;
    case.bus.redis.launch();
    case.cured();
    case.load().await;
    case.ends_well(vec![server]).await;
}

#[tokio::test]
async fn stalled() {
    let database = postgres::Server::shared().database();
    let case = Case::postgres("Redis: stalled (SIGSTOP) for 20 s", &database);
    case.survives(async |case, _| {
        case.bus.redis.stall();
        for_seconds(20).await;
        case.bus.redis.resume();
    })
    .await;
}

async fn somebody(fault: &'static str, command: &str) {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres(fault, &database);
    let server = case.start().await;
    case.load().await;
    case.forgive();
    case.bus.stream.command::<Value>(command);
    case.cured();
    case.load().await;
    case.ends_well(vec![server]).await;
}

#[tokio::test]
async fn flushed() {
    somebody("Redis: flushed", "FLUSHALL").await;
}

#[tokio::test]
async fn the_stream_is_deleted() {
    somebody("Redis: the stream is deleted", "DEL events").await;
}

#[tokio::test]
async fn trimmed_past_our_position() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres("Redis: the stream is trimmed past our position", &database);
    let server = case.start().await;
    case.load().await;
    server.terminate().in_good_order();
    let delivered = || case.bus.stream.last_delivered("event-persister");
    until("something is unread", || {
        delivered() != Some(case.bus.last_id())
    })
    .await;
    case.forgive();
    let trimmed: u64 = case.bus.stream.command("XTRIM events MAXLEN = 0");
    assert!(trimmed > 0);
    let server = case.start().await;
    case.cured();
    case.load().await;
    if case.bus.stream.counts_entries() {
        server.logged("lost");
    }
    case.ends_well(vec![server]).await;
}

#[tokio::test]
async fn the_group_is_destroyed() {
    let database = postgres::Server::shared().database();
    let case = Case::postgres(
        "Redis: the consumer group is destroyed, three times",
        &database,
    );
    case.survives(async |case, _| {
        for _ in 0..3 {
            sleep(Duration::from_millis(fastrand::u64(0..300))).await;
            case.bus
                .stream
                .command::<Value>("XGROUP DESTROY events event-persister");
            until("the group is back", || {
                case.bus.stream.group("event-persister").is_some()
            })
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_password_is_changed() {
    let database = postgres::Server::shared().database();
    let case = Case::postgres("Redis: password changed", &database);
    case.survives(async |case, server| {
        // Whoever is connected stays so, the publisher's next connection does not come about.
        let mut connection = case.bus.stream.connect();
        let mut send = |words: &str| {
            let mut words = words.split(' ');
            let mut command = redis::cmd(words.next().unwrap());
            words.for_each(|word| {
                command.arg(word);
            });
            command.query::<Value>(&mut connection).unwrap();
        };
        send("CONFIG SET requirepass another");
        send("AUTH another");
        send("CLIENT KILL TYPE normal SKIPME yes");
        server.until_ready_is(503).await;
        for_seconds(5).await;
        redis::cmd("CONFIG")
            .arg("SET")
            .arg("requirepass")
            .arg("")
            .query::<Value>(&mut connection)
            .unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_peer_dies_with_what_it_took() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres(
        "Redis: a peer of another kind dies with 500 entries taken",
        &database,
    );
    let server = case.start().await;
    case.load().await;
    let mut taken = 0;
    let started = tokio::time::Instant::now();
    while taken < 500 {
        assert!(started.elapsed() < Duration::from_secs(60), "{taken} taken");
        let read = "XREADGROUP GROUP event-persister peer COUNT 100 BLOCK 1000 STREAMS events >";
        case.bus.stream.command::<Value>(read);
        let consumers = case.bus.stream.consumers("event-persister");
        let peer = consumers.iter().find(|(name, _, _)| name == "peer");
        taken = peer.map_or(0, |(_, pending, _)| *pending);
    }
    case.cured();
    case.ends_well(vec![server]).await;
}

async fn through_a_proxy(fault: &'static str, trouble: impl AsyncFnOnce(&Proxy)) {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres(fault, &database);
    let proxy = Proxy::to(case.bus.redis.port());
    let url = proxy.url(&case.bus.redis.url());
    case.bus.set("EVENT_PERSISTER_REDIS_URL", url);
    case.survives(async |_, _| {
        trouble(&proxy).await;
    })
    .await;
}

#[tokio::test]
async fn connections_are_cut() {
    through_a_proxy(
        "Redis: connections cut at random moments, twenty times",
        network::cuts_at_random_moments,
    )
    .await;
}

#[tokio::test]
async fn the_network_swallows_everything() {
    through_a_proxy(
        "Redis: the network swallows everything for 30 s, then cuts",
        network::swallows_everything,
    )
    .await;
}
