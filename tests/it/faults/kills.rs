//! Everything is killed again and again, at any moment: two replicas, PostgreSQL and Redis.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::case::Case;
use crate::support::postgres;
use crate::support::server::Server;

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Replica(usize),
    Postgres,
    Redis,
}

const VICTIMS: [Victim; 4] = [
    Victim::Replica(0),
    Victim::Replica(1),
    Victim::Postgres,
    Victim::Redis,
];

#[expect(clippy::print_stderr, reason = "half an hour is long without a word")]
/// Kills in rounds; whoever is killed is started again at once.
async fn kill(
    case: &mut Case<'_>,
    postgres: &postgres::Server,
    replicas: &mut [Server],
    num: usize,
) {
    let mut kills = [0; VICTIMS.len()];
    let started = Instant::now();
    for round in 1..=num {
        sleep(Duration::from_millis(fastrand::u64(0..700))).await;
        // Now and then two at the same time.
        for _ in 0..=usize::from(fastrand::u8(..) < 40) {
            let victim = fastrand::usize(..VICTIMS.len());
            kills[victim] += 1;
            match VICTIMS[victim] {
                Victim::Replica(index) => {
                    replicas[index].kill_9();
                    replicas[index] = case.bus.start();
                }
                Victim::Postgres => {
                    postgres.kill_9();
                    postgres.start_again();
                }
                Victim::Redis => {
                    case.bus.redis.kill();
                    case.bus.redis.launch();
                }
            }
        }
        if round % 5 == 0 {
            // As Prefect's consumers do: whatever all groups have been given, but for the guard.
            case.bus.trim_as_prefect_does();
        }
        if round % 50 == 0 {
            eprintln!("{round} rounds in {:?}, kills {kills:?}", started.elapsed());
        }
    }
    assert!(
        num < 50 || kills.iter().all(|kills| *kills > 0),
        "{kills:?}"
    );
}

#[expect(clippy::print_stderr, reason = "who asked for it wants to know")]
async fn everything_is_killed(fault: &'static str, num: usize) {
    let postgres = postgres::Server::start("");
    let database = postgres.database();
    let mut case = Case::postgres(fault, &database);
    let mut replicas = vec![case.start().await, case.start().await];
    case.publish_some();
    case.until_more_is_stored().await;
    kill(&mut case, &postgres, &mut replicas, num).await;
    case.cured();
    case.until_more_is_stored().await;
    case.ends_well(replicas).await;
    let counts = database.value(
        "SELECT (SELECT count(*) FROM events) || ' rows, ' || \
         (SELECT count(*) FROM event_resources) || ' resources, ' || \
         (SELECT count(*) FROM event_persister_dead_letters) || ' dead letters'",
    );
    eprintln!("all that was published is stored, once and whole: {counts}");
}

#[tokio::test]
async fn ten_times() {
    everything_is_killed("kill -9: replicas, PostgreSQL and Redis, ten rounds", 10).await;
}

/// `tests/run.sh --kills 1000` takes about half an hour.
#[tokio::test]
#[ignore = "as often as TEST_KILLS says"]
async fn as_often_as_asked() {
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let num = std::env::var("TEST_KILLS").unwrap().parse().unwrap();
    everything_is_killed(
        "kill -9: replicas, PostgreSQL and Redis, as often as asked",
        num,
    )
    .await;
}
