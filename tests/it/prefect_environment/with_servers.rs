//! The same beside servers that are there.

use super::{BROKER, PERSISTER_OFF};
use crate::cli::event;
use crate::support::binary::Folder;
use crate::support::postgres;
use crate::support::redis::RedisServer;
use crate::support::server::Server;
use crate::support::wait::until_blocking;

#[test]
fn events_go_from_prefects_redis_to_prefects_database_and_the_guard_can_be_removed() {
    let redis = RedisServer::start();
    let stream = redis.stream();
    let database = postgres::Server::shared().database();
    let folder = Folder::new();
    let url = database
        .url
        .replacen("postgresql://", "postgresql+asyncpg://", 1)
        .replace("sslmode=", "ssl=");
    let redis_url = redis.url();
    let variables = [
        BROKER,
        PERSISTER_OFF,
        ("PREFECT_API_DATABASE_CONNECTION_URL", url.as_str()),
        ("PREFECT_REDIS_MESSAGING_URL", redis_url.as_str()),
    ];
    let run = |arguments: &[&str]| folder.run_with(arguments, &variables);
    run(&["check"]).exits(1).prints(&[
        "waiting for Prefect's migrations",
        "redis: reachable, version ",
    ]);
    run(&["guard", "show"])
        .exits(0)
        .prints(&["no stream events yet"]);

    let server = Server::start(&folder, &variables);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let get = |path| {
        runtime.block_on(async {
            let response = server.get(path).await;
            (response.status().as_u16(), response.text().await.unwrap())
        })
    };
    stream.publish(&[event("2999-01-01T00:00:00Z"), event("2999-01-01T00:00:00Z")]);
    until_blocking("said why it is not ready", || {
        let (status, why) = get("/api/ready");
        status == 503 && why.contains("waiting for Prefect's migrations")
    });
    // As Prefect's migrations would.
    folder
        .run(&["migrate", "--database-url", &database.url])
        .exits(0)
        .prints(&["ran "]);
    until_blocking("stored", || {
        database.execute("SELECT 1 FROM events").len() == 2
    });
    runtime.block_on(server.until_ready_is(200));
    run(&["check"]).exits(0).prints(&[
        "its tables are right",
        "stream events: 2 entries",
        "guard event-persister-guard: others trim nothing from",
    ]);
    let (_, metrics) = get("/metrics");
    assert!(
        metrics.contains("event_persister_redis_guard 1"),
        "{metrics}"
    );
    let ended = server.terminate().in_good_order();
    assert!(ended.log.contains("stored=2"), "{}", ended.log);

    let removed = run(&["guard", "remove", "--json"]).exits(0).json();
    assert_eq!(removed["removed"], true);
    run(&["guard", "remove"])
        .exits(0)
        .prints(&["there was no guard"]);
    assert_eq!(stream.group("event-persister-guard"), None);
}

#[test]
fn trim_counts_half_events_and_removes_them_on_request() {
    let database = postgres::Server::shared().database();
    let folder = Folder::new();
    let run = |arguments: &[&str]| {
        let url = ["--database-url", database.url.as_str()];
        folder.run(&[arguments, &url].concat()).exits(0)
    };
    run(&["migrate"]);
    database.execute(
        "INSERT INTO event_resources \
         (id, occurred, resource_id, resource_role, resource, event_id, created, updated) \
         VALUES (gen_random_uuid(), '2999-01-01', 'r', '', '{}', gen_random_uuid(), now(), now())",
    );
    let halves = ["0 events without resources and 1 resources without an event"];
    run(&["trim", "--dry-run"])
        .prints(&halves)
        .prints(&["found", "--remove-half-events"]);
    run(&["trim", "--dry-run", "--remove-half-events"]).prints(&["found"]);
    // To count them takes long, and nobody asked.
    let document = run(&["trim", "--json"]).json();
    assert!(document["half_events"].is_null(), "{document}");
    run(&["trim", "--remove-half-events"])
        .prints(&halves)
        .prints(&["removed"]);
    let document = run(&["trim", "--dry-run", "--json"]).json();
    assert_eq!(document["half_events"]["resources"], 0);
}

#[test]
fn counting_what_would_be_deleted_makes_no_tables() {
    let database = postgres::Server::shared().database();
    let folder = Folder::new();
    let run = |arguments: &[&str]| {
        let url = ["--database-url", &database.url];
        folder.run(&[arguments, &url[..]].concat())
    };
    run(&["migrate"]).exits(0);
    database.execute(
        "DROP TABLE event_persister_dead_letters, __diesel_schema_migrations; \
         DROP FUNCTION event_persister_store_v1",
    );
    run(&["trim", "--dry-run"])
        .exits(0)
        .prints(&["would delete 0 events"]);
    let made = "SELECT count(*) FROM pg_class WHERE relname LIKE 'event\\_persister%'";
    assert_eq!(database.value(made), "0");
}
