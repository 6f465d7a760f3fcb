//! Killed at every step: of becoming partitioned, of making, copying and dropping.

use super::*;
use crate::support::binary::{Folder, Ran};
use crate::support::bus::{Bus, Publisher, has_exactly};
use crate::support::events;
use crate::support::wait::until;

/// Runs the binary until it is killed at a moment; whether it came so far.
fn dies_at(folder: &Folder, arguments: &[&str], database: &Database, moment: &str) -> bool {
    let variables = [
        ("EVENT_PERSISTER_DATABASE_URL", database.url.as_str()),
        ("FAILPOINTS", &format!("{moment}=return")),
    ];
    let ran = folder.run_with(arguments, &variables);
    assert!(matches!(ran.code, None | Some(0)), "{moment}: {ran:?}");
    ran.code.is_none()
}

fn run(folder: &Folder, arguments: &[&str], database: &Database) -> Ran {
    let variables = [("EVENT_PERSISTER_DATABASE_URL", database.url.as_str())];
    folder.run_with(arguments, &variables).exits(0)
}

const STEPS: [&str; 11] = [
    "partitioning::planned",
    "partitioning::function",
    "partitioning::indexed",
    "partitioning::before-bound",
    "partitioning::bound",
    "partitioning::moved",
    "partitioning::validated",
    "partitioning::before-swapped",
    "partitioning::swapped",
    "partitions::before-made",
    "partitioning::made-one",
];

#[tokio::test]
async fn at_each_step_of_becoming_partitioned_while_events_come_in() {
    let database = Server::shared().database();
    let bus = Bus::into_postgres(&database);
    let server = bus.start().ready().await;
    let mut ids = Vec::new();
    let far_ahead = |bus: &Bus| {
        let mut event = events::event_with(2);
        event["occurred"] = "2999-01-01T00:00:00Z".into();
        bus.stream.publish(&events::texts([&event]));
        events::id(&event)
    };
    let publisher = Publisher::to(Box::new(bus.stream.clone()), 1, 10);
    let num_events = || {
        database
            .value("SELECT count(*) FROM events")
            .parse::<usize>()
            .unwrap()
    };
    until("something is there", || num_events() > 100).await;
    // Some partitions ahead begin behind the bound.
    let migrate = ["migrate", "--partition-by", "week"];
    for moment in STEPS {
        ids.push(far_ahead(&bus));
        assert!(
            dies_at(&bus.folder, &migrate, &database, moment),
            "{moment}"
        );
        // Writers go on, what occurs far ahead included.
        ids.push(far_ahead(&bus));
        let before = num_events();
        until(format!("more is stored after {moment}"), || {
            num_events() > before + 20
        })
        .await;
    }
    run(&bus.folder, &migrate, &database);
    let partitioned = "SELECT relkind FROM pg_class WHERE oid = 'events'::regclass";
    assert_eq!(database.value(partitioned), "p");
    ids.extend(publisher.stop());
    bus.until_settled(&server).await;
    has_exactly(&database, &ids);
    run_verify(&bus);
    let ended = server.terminate().in_good_order();
    assert_eq!(ended.ledger()("stored"), ids.len() as u64);
}

fn run_verify(bus: &Bus) {
    bus.folder.run_with(&["verify"], &bus.variables()).exits(0);
}

/// A writer is killed while it makes a partition; the next one makes it.
#[tokio::test]
async fn at_each_step_of_making_a_partition() {
    for moment in [
        "partitions::before-attached",
        "partitions::before-made",
        "partitions::after-made",
    ] {
        let (database, _) = partitioned(Period::Day).await;
        let folder = Folder::new();
        let mut events = events::events(20);
        for (event, days) in events.iter_mut().zip([0, 2, 4].iter().cycle()) {
            event["occurred"] = days_ago(*days).to_rfc3339().into();
        }
        folder.write("events.jsonl", events::lines(&events));
        let import = ["import", "events.jsonl"];
        assert!(dies_at(&folder, &import, &database, moment), "{moment}");
        run(&folder, &import, &database);
        has_exactly(&database, &events::ids(&events));
        for days in [2, 4] {
            let count = format!(
                "SELECT count(*) > 0 FROM {}",
                of_day("events", days_ago(days))
            );
            assert_eq!(database.value(&count), "t", "{moment}");
        }
    }
}

/// Retention is killed at each of its steps; the next pass makes up for it, and nothing else goes.
#[tokio::test]
async fn at_each_step_of_dropping_a_partition() {
    for moment in [
        "retention::copying",
        "retention::copied",
        "retention::before-drop",
        "retention::after-drop",
        "retention::dropped",
    ] {
        for num_before in [0, 1] {
            let (database, store) = partitioned(Period::Day).await;
            let folder = Folder::new();
            let mut kept = Vec::new();
            for days in [9, 10, 11] {
                let mut events = Vec::new();
                for number in 0..30 {
                    let is_kept = number % 4 == 0;
                    let event = EventFixture {
                        event: if is_kept { "long" } else { "plain" }.to_owned(),
                        ..occurred(days_ago(days))
                    };
                    let event = event.build();
                    kept.extend(is_kept.then(|| event.id.to_string()));
                    events.push(event);
                }
                store.write(batch(&events)).await.unwrap();
            }
            store.close().await.unwrap();
            let trim = |moment: Option<&str>| {
                let mut variables = vec![
                    ("EVENT_PERSISTER_DATABASE_URL", database.url.as_str()),
                    ("EVENT_PERSISTER_TRIM_OVERRIDES", "long=90d"),
                    ("EVENT_PERSISTER_TRIM_BATCH_SIZE", "5"),
                ];
                variables.extend(moment.map(|moment| ("FAILPOINTS", moment)));
                folder.run_with(&["trim", "--yes"], &variables)
            };
            let doom = format!("{moment}={num_before}*off->return");
            let ran = trim(Some(&doom));
            assert_eq!(ran.code, None, "{doom}: {ran:?}");
            // At every moment what is kept is there once.
            let is_there =
                "SELECT count(*) || ' ' || count(DISTINCT id) FROM events WHERE event = 'long'";
            assert_eq!(database.value(is_there), "24 24", "{doom}");
            trim(None).exits(0);
            has_exactly(&database, &kept);
            trim(None).exits(0).prints(&["deleted 0 events"]);
            let partitions = partitions_of(&database, "events");
            let num_kept = partitions
                .iter()
                .filter(|name| name.contains("_kept_"))
                .count();
            assert_eq!(num_kept, 3, "{doom}: {partitions:?}");
            let strays = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND NOT relispartition \
                AND relname LIKE 'event%\\_p2%'";
            assert_eq!(database.value(strays), "0", "{doom}");
        }
    }
}

/// Two replicas trim and write at the same time, and are killed now and then; so is the server, if it is
/// given.
async fn trim_and_write(database: &Database, server: Option<&Server>, num_rounds: i64) {
    let mut bus = Bus::into_postgres(database);
    run(&bus.folder, &["migrate", "--partition-by", "day"], database);
    bus.set("EVENT_PERSISTER_TRIM_EVERY", "300ms");
    bus.set("EVENT_PERSISTER_TRIM_OVERRIDES", "long=90d");
    let mut replicas = vec![bus.start().ready().await, bus.start().ready().await];
    let publisher = Publisher::to(Box::new(bus.stream.clone()), 1, 10);
    let mut kept = Vec::new();
    for round in 0..num_rounds {
        // Days that are expired, each some times: partitions are made for them, and dropped again.
        let mut old = events::events(40);
        for (number, event) in old.iter_mut().enumerate() {
            event["occurred"] = days_ago(9 + round % 5).to_rfc3339().into();
            if number % 4 == 0 {
                event["event"] = "long".into();
                kept.push(events::id(event));
            }
        }
        bus.stream.publish(&events::texts(&old));
        tokio::time::sleep(std::time::Duration::from_millis(fastrand::u64(50..400))).await;
        match (server, round % 4) {
            (Some(server), 1) => {
                server.kill_9();
                server.start_again();
            }
            (_, 3) => {
                let index = fastrand::usize(..replicas.len());
                replicas[index].kill_9();
                replicas[index] = bus.start().ready().await;
            }
            _ => {}
        }
    }
    let mut ids = publisher.stop();
    bus.until_settled(&replicas[0]).await;
    ids.extend(kept);
    until("all that is expired is gone", || {
        let left = "SELECT count(*) FROM events \
            WHERE event <> 'long' AND occurred < now() - interval '8 days'";
        database.answers() && database.value(left) == "0"
    })
    .await;
    for replica in replicas {
        replica.terminate().in_good_order();
    }
    let mut pass = bus.variables();
    pass.push(("EVENT_PERSISTER_TRIM_EVERY", "off"));
    bus.folder.run_with(&["trim", "--yes"], &pass).exits(0);
    has_exactly(database, &ids);
    run_verify(&bus);
}

#[tokio::test]
async fn two_replicas_trim_and_write() {
    let database = Server::shared().database();
    trim_and_write(&database, None, 12).await;
}

#[tokio::test]
async fn two_replicas_and_the_server_are_killed_while_they_trim_and_write() {
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let num_kills = std::env::var("TEST_PARTITION_KILLS").map(|number| number.parse().unwrap());
    let server = Server::start("");
    let database = server.database();
    // In every other round one is killed.
    trim_and_write(&database, Some(&server), 2 * num_kills.unwrap_or(8)).await;
}
