//! A shadow waits for what is away, and says what it missed.

use super::*;
use crate::support::wait::until;

/// Waits until no client of Redis is in the middle of a read that waits.
async fn until_nobody_reads(bus: &Bus) {
    until("without readers: Redis", || {
        let info: String = bus.stream.command("INFO clients");
        info.contains("blocked_clients:0")
    })
    .await;
}

#[tokio::test]
async fn what_is_trimmed_before_it_is_read_is_told_as_not_compared() {
    let case = Case::postgres();
    if !case.bus.stream.counts_entries() {
        // Before 7.0 Redis does not tell.
        return;
    }
    let _: redis::Value =
        (case.bus.stream).command("XGROUP CREATE events event-persister 0-1 MKSTREAM");
    let shadow = case.shadow().await;
    shadow.signal("STOP");
    until_nobody_reads(&case.bus).await;
    let texts = events::texts(&events::events(30));
    case.bus.stream.publish(&texts);
    acknowledge_all(&case.bus);
    let _: u64 = case.bus.stream.command("XTRIM events MAXLEN 0");
    shadow.signal("CONT");
    assert_eq!(
        until_settled(&shadow, 30).await,
        expected(&[("trimmed", 30)])
    );
    case.bus.stream.publish(&texts[..1]);
    acknowledge_all(&case.bus);
    assert_eq!(
        until_settled(&shadow, 31).await,
        expected(&[("trimmed", 30), ("lost_by_prefect", 1)])
    );
    assert_eq!(shadow.terminate().status.code(), Some(0));
}

#[tokio::test]
async fn outages_are_waited_for_and_nothing_is_called_lost_meanwhile() {
    let server = postgres::Server::start("fsync = off\n");
    let database = server.database();
    let mut bus = Bus::into_postgres(&database);
    bus.set(LONG.0, LONG.1);
    let persister = bus.start().ready().await;
    let variables = bus.variables();
    let shadow = shadow_with(&bus, &variables).await;
    let publish = |num: usize| {
        bus.stream.publish(&events::texts(&events::events(num)));
    };
    publish(20);
    bus.until_settled(&persister).await;
    server.stop("fast");
    publish(20);
    let body = shadow.until_ready_is(503).await;
    assert!(
        body["reason"].as_str().unwrap().contains(&database.name),
        "{body}"
    );
    bus.redis.stall();
    shadow.logged("Redis at");
    bus.redis.resume();
    publish(20);
    server.start_again();
    bus.until_settled(&persister).await;
    assert_eq!(
        until_settled(&shadow, 60).await,
        expected(&[("identical", 60)])
    );
    // The group is gone, as when Prefect deletes it or somebody flushes the database.
    let groups: Vec<Vec<redis::Value>> = bus.stream.command("XINFO GROUPS events");
    let names = groups
        .into_iter()
        .map(|group| redis::from_redis_value(group[1].clone()).unwrap());
    let own: Vec<String> = names
        .filter(|name: &String| name.starts_with("ephemeral"))
        .collect();
    let destroyed: u64 = bus
        .stream
        .command(&format!("XGROUP DESTROY events {}", own[0]));
    assert_eq!(destroyed, 1);
    publish(20);
    bus.until_settled(&persister).await;
    assert_eq!(
        until_settled(&shadow, 80).await,
        expected(&[("identical", 80)])
    );
    let _: u64 = bus.stream.command("DEL events");
    publish(20);
    bus.until_settled(&persister).await;
    assert_eq!(
        until_settled(&shadow, 100).await,
        expected(&[("identical", 100)])
    );
    assert_eq!(shadow.terminate().status.code(), Some(0));
    persister.terminate().in_good_order();
}
