//! NATS breaks, or somebody breaks what it holds.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::case::{Case, Store, for_seconds, trouble};
use super::network;
use crate::support::bus::{NatsBus, TestBus as _};
use crate::support::network::Network;
use crate::support::postgres::{self, Database};
use crate::support::proxy::Proxy;
use crate::support::server::Server;
use crate::support::wait::until;

type NatsCase<'a> = Case<'a, NatsBus>;

fn case<'a>(fault: &'static str, database: &'a Database) -> NatsCase<'a> {
    let bus = NatsBus::into_postgres(database);
    Case::new(fault, bus, Store::Postgres(database))
}

fn on_three<'a>(fault: &'static str, database: &'a Database) -> NatsCase<'a> {
    let bus = NatsBus::of_three_into_postgres(database);
    Case::new(fault, bus, Store::Postgres(database))
}

/// Stops a replica while it holds something, which takes a few attempts.
async fn stop_with_messages(case: &NatsCase<'_>, replica: &Server) {
    let started = Instant::now();
    loop {
        replica.signal("STOP");
        sleep(Duration::from_millis(100)).await;
        // What the other one holds is soon acknowledged.
        let held = case.bus.stream.num_pending();
        sleep(Duration::from_millis(300)).await;
        if held > 0 && case.bus.stream.num_pending() > 0 {
            return;
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "it holds nothing"
        );
        replica.signal("CONT");
        sleep(Duration::from_millis(fastrand::u64(10..80))).await;
    }
}

#[tokio::test]
async fn killed_with_its_file() {
    let database = postgres::Server::shared().database();
    let case = case("NATS: killed, with its file, three times", &database);
    case.survives(async |case, server| {
        for _ in 0..3 {
            sleep(Duration::from_millis(fastrand::u64(100..500))).await;
            case.bus.servers.servers[0].kill();
            server.until_ready_is(503).await;
            case.bus.servers.servers[0].launch();
            server.until_ready_is(200).await;
        }
    })
    .await;
}

#[tokio::test]
async fn killed_before_it_wrote_where_its_consumer_was() {
    let database = postgres::Server::shared().database();
    let case = case(
        "NATS: killed, and its consumer has forgotten what it gave, three times",
        &database,
    );
    case.survives(async |case, _| {
        for _ in 0..3 {
            case.bus.servers.servers[0].terminate();
            let state = case.bus.servers.servers[0].consumer_state();
            case.bus.servers.servers[0].launch();
            case.until_more_is_stored().await;
            case.bus.servers.servers[0].kill_back_to(&state);
            case.bus.servers.servers[0].launch();
            case.until_more_is_stored().await;
        }
    })
    .await;
}

#[tokio::test]
async fn stalled() {
    let database = postgres::Server::shared().database();
    let case = case("NATS: stalled (SIGSTOP) for 20 s", &database);
    case.survives(async |case, _| {
        case.bus.servers.servers[0].stall();
        for_seconds(20).await;
        case.bus.servers.servers[0].resume();
    })
    .await;
}

#[tokio::test]
async fn the_consumer_is_deleted() {
    let database = postgres::Server::shared().database();
    let case = case("NATS: the consumer is deleted, three times", &database);
    case.survives(async |case, _| {
        for _ in 0..3 {
            sleep(Duration::from_millis(fastrand::u64(0..300))).await;
            case.bus.stream.delete_consumer();
            until("the consumer is back", || {
                case.bus.stream.consumer()["error"].is_null()
            })
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_stream_is_deleted_and_made_anew() {
    let database = postgres::Server::shared().database();
    let mut case = case("NATS: the stream is deleted and made anew", &database);
    let server = case.start().await;
    case.load().await;
    case.forgive();
    case.bus.stream.delete();
    server.until_ready_is(503).await;
    case.bus.stream.create(&json!({}));
    case.cured();
    case.load().await;
    case.ends_well(vec![server]).await;
}

#[tokio::test]
async fn the_stream_is_purged() {
    let database = postgres::Server::shared().database();
    let mut case = case("NATS: the stream is purged of what is unread", &database);
    let server = case.start().await;
    case.load().await;
    server.signal("STOP");
    // And is not on its way to a fetch that still waits.
    until("something stays unread", || {
        let consumer = case.bus.stream.consumer();
        consumer["num_pending"] != 0 && consumer["num_waiting"] == 0
    })
    .await;
    case.forgive();
    case.bus.stream.api("STREAM.PURGE.events", &json!({}));
    server.signal("CONT");
    case.cured();
    server.logged("events are lost");
    case.load().await;
    case.ends_well(vec![server]).await;
}

#[tokio::test]
async fn a_replica_is_killed() {
    let database = postgres::Server::shared().database();
    let mut case = case(
        "NATS: a replica of two is killed with what it holds",
        &database,
    );
    let (dying, heir) = (case.start().await, case.start().await);
    case.load().await;
    stop_with_messages(&case, &dying).await;
    drop(dying.kill_9());
    case.cured();
    case.until_more_is_stored().await;
    case.ends_well(vec![heir]).await;
}

/// Longer than the consumer waits: what it holds goes to the other, and it goes on with it as well.
#[tokio::test]
async fn a_replica_is_stalled() {
    let database = postgres::Server::shared().database();
    let mut case = case(
        "NATS: a replica of two is stalled (SIGSTOP) for 8 s",
        &database,
    );
    let (stalled, other) = (case.start().await, case.start().await);
    case.load().await;
    stop_with_messages(&case, &stalled).await;
    sleep(Duration::from_secs(8)).await;
    case.until_more_is_stored().await;
    stalled.signal("CONT");
    case.cured();
    case.until_more_is_stored().await;
    case.ends_well(vec![other, stalled]).await;
}

#[tokio::test]
async fn postgresql_is_away() {
    let postgres = postgres::Server::start("");
    let database = postgres.database();
    let case = case("NATS: PostgreSQL is away for 20 s", &database);
    case.survives(async |_, server| {
        postgres.kill_9();
        server.until_ready_is(503).await;
        // Longer than the consumer waits for a word about what is held.
        sleep(Duration::from_secs(6)).await;
        for_seconds(14).await;
        postgres.start_again();
    })
    .await;
}

async fn through_a_proxy(fault: &'static str, trouble: impl AsyncFnOnce(&Proxy)) {
    let database = postgres::Server::shared().database();
    let mut case = case(fault, &database);
    let server = &case.bus.servers.servers[0];
    let proxy = Proxy::to(server.port());
    let url = proxy.url(&server.url());
    case.bus.set("EVENT_PERSISTER_NATS_URL", url);
    case.survives(async |_, _| {
        trouble(&proxy).await;
    })
    .await;
}

#[tokio::test]
async fn connections_are_cut() {
    through_a_proxy(
        "NATS: connections cut at random moments, twenty times",
        network::cuts_at_random_moments,
    )
    .await;
}

#[tokio::test]
async fn the_network_swallows_everything() {
    through_a_proxy(
        "NATS: the network swallows everything for 30 s, then cuts",
        network::swallows_everything,
    )
    .await;
}

/// The server that leads the stream, or that leads its consumer.
async fn the_leader_of_three(case: &NatsCase<'_>, of_the_stream: bool) -> usize {
    let mut leader = None;
    until("there is a leader", || {
        let what = match of_the_stream {
            true => "STREAM.INFO.events",
            false => "CONSUMER.INFO.events.event-persister",
        };
        let info = case.bus.stream.try_api(what, &serde_json::Value::Null);
        leader = info.ok().and_then(|info| case.bus.servers.leader(&info));
        leader.is_some()
    })
    .await;
    leader.unwrap()
}

#[tokio::test]
async fn the_leader_of_three_is_killed() {
    let database = postgres::Server::shared().database();
    let case = on_three(
        "NATS: the leader of three servers is killed, four times",
        &database,
    );
    case.survives(async |case, _| {
        for round in 0..4 {
            let leader = the_leader_of_three(case, round % 2 == 0).await;
            case.bus.servers.servers[leader].kill();
            case.until_more_is_stored().await;
            case.bus.servers.servers[leader].launch();
            case.until_more_is_stored().await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_leader_of_three_is_stalled() {
    let database = postgres::Server::shared().database();
    let case = on_three(
        "NATS: the leader of three servers is stalled (SIGSTOP) for 20 s",
        &database,
    );
    case.survives(async |case, _| {
        let leader = the_leader_of_three(case, true).await;
        case.bus.servers.servers[leader].stall();
        for_seconds(20).await;
        case.bus.servers.servers[leader].resume();
    })
    .await;
}

/// The server goes on, and believes that it leads until it finds itself alone.
#[tokio::test]
async fn the_leader_of_three_is_cut_off() {
    let Some(network) = Network::of(3) else {
        eprintln!("not tried: only root can make a network (`ip netns`)");
        return;
    };
    // An election begins four seconds after the last word of the leader at the earliest.
    let (times, seconds) = match trouble() {
        Some(_) => (10, 20),
        None => (2, 8),
    };
    let database = postgres::Server::shared().database();
    let bus = NatsBus::of_three_on(network, &database);
    let fault = "NATS: the leader of three servers is cut off from the network for 20 s, ten times";
    let case = Case::new(fault, bus, Store::Postgres(&database));
    case.survives(async |case, _| {
        for round in 0..times {
            let leader = the_leader_of_three(case, round % 2 == 0).await;
            let server = &case.bus.servers.servers[leader];
            server.cut_off();
            sleep(Duration::from_secs(seconds)).await;
            // The others go on without it.
            case.until_more_is_stored().await;
            server.connect();
            case.until_more_is_stored().await;
        }
    })
    .await;
}

#[tokio::test]
async fn all_three_are_killed() {
    let database = postgres::Server::shared().database();
    let case = on_three("NATS: all three servers are killed", &database);
    case.survives(async |case, server| {
        for at in 0..3 {
            case.bus.servers.servers[at].kill();
        }
        server.until_ready_is(503).await;
        case.bus.servers.relaunch();
        server.until_ready_is(200).await;
    })
    .await;
}

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Replica(usize),
    Postgres,
    /// The server that leads the stream.
    Leader,
    AnyServer,
}

const VICTIMS: [Victim; 5] = [
    Victim::Replica(0),
    Victim::Replica(1),
    Victim::Postgres,
    Victim::Leader,
    Victim::AnyServer,
];

/// Kills in rounds; whoever is killed is started again at once.
#[expect(clippy::print_stderr, reason = "half an hour is long without a word")]
async fn everything_is_killed(fault: &'static str, num: usize) {
    let postgres = postgres::Server::start("");
    let database = postgres.database();
    let mut case = on_three(fault, &database);
    let mut replicas = vec![case.start().await, case.start().await];
    case.publish_some();
    case.until_more_is_stored().await;
    let mut kills = [0; VICTIMS.len()];
    for round in 1..=num {
        sleep(Duration::from_millis(fastrand::u64(0..700))).await;
        let chosen = fastrand::usize(..VICTIMS.len());
        kills[chosen] += 1;
        let server = match VICTIMS[chosen] {
            Victim::Replica(index) => {
                replicas[index].kill_9();
                replicas[index] = case.bus.start();
                None
            }
            Victim::Postgres => {
                postgres.kill_9();
                postgres.start_again();
                None
            }
            Victim::Leader => Some(the_leader_of_three(&case, true).await),
            Victim::AnyServer => Some(fastrand::usize(..3)),
        };
        if let Some(server) = server {
            case.bus.servers.servers[server].kill();
            case.bus.servers.servers[server].launch();
        }
        if round % 50 == 0 {
            eprintln!("{round} rounds, kills {kills:?}");
        }
    }
    case.cured();
    case.until_more_is_stored().await;
    case.ends_well(replicas).await;
}

#[tokio::test]
async fn everything_is_killed_ten_times() {
    let fault = "kill -9: replicas, PostgreSQL and three NATS servers, ten rounds";
    everything_is_killed(fault, 10).await;
}

/// `tests/run.sh --kills 1000` does both this and the same with Redis.
#[tokio::test]
#[ignore = "as often as TEST_KILLS says"]
async fn as_often_as_asked() {
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let num = std::env::var("TEST_KILLS").unwrap().parse().unwrap();
    let fault = "kill -9: replicas, PostgreSQL and three NATS servers, as often as asked";
    everything_is_killed(fault, num).await;
}
