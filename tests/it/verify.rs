//! `verify`, on what the binary has written, whole and broken.

use serde_json::{Value, json};

use crate::support::binary::{Folder, Ran};
use crate::support::bus::Publisher;
use crate::support::events;
use crate::support::postgres::{self, Database};
use crate::support::server::Server;
use crate::support::stored::{Case, LONG, Store};

mod content;

const PREFECTS_TABLES: &str = include_str!("../data/prefect-schema-postgres.sql");

impl Store {
    /// An expression for a new id.
    fn new_id(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "gen_random_uuid()",
            Self::Sqlite(_) => "lower(hex(randomblob(16)))",
        }
    }
}

/// Where nobody writes, the second look of `verify` need not wait.
const NOBODY_WRITES: (&str, &str) = ("FAILPOINTS", "verify::nobody-writes=return");

impl Case {
    fn run(&self, arguments: &[&str]) -> Ran {
        let mut variables = self.bus.variables();
        variables.push(NOBODY_WRITES);
        self.bus.folder.run_with(arguments, &variables)
    }

    /// While somebody writes.
    fn verify_at_work(&self) -> Value {
        let variables = self.bus.variables();
        let ran = (self.bus.folder).run_with(&["verify", "--json"], &variables);
        ran.exits(0).json()
    }

    fn verify(&self, code: i32) -> Value {
        self.run(&["verify", "--json"]).exits(code).json()
    }

    /// Publishes events; their stream ids and their own.
    fn publish(&self, events: &[Value]) -> (Vec<String>, Vec<String>) {
        let stream_ids = self.bus.stream.publish(&events::texts(events));
        (stream_ids, events::ids(events))
    }

    /// A replica that has written everything.
    async fn settled(&self) -> Server {
        let server = self.bus.start().ready().await;
        self.bus.until_settled(&server).await;
        server
    }
}

fn finding(kind: &str, stream_id: Option<&str>, event_id: Option<&str>, detail: &str) -> Value {
    json!({"kind": kind, "stream_id": stream_id, "event_id": event_id, "detail": detail})
}

async fn what_is_whole_and_what_is_broken(case: Case) {
    let (stream_ids, ids) = case.publish(&events::events(40));
    // The same again is no doubt either.
    case.publish(&[events::event()]);
    let copy = events::event();
    case.publish(&[copy.clone(), copy]);
    let bad = case.bus.stream.publish(&["{", ""]);
    let server = case.settled().await;

    let mut well = case.verify(0);
    // Only a server has a place and a timeline.
    let asked = well["server"].take();
    let has_server = (case.bus.variables().iter())
        .any(|(name, value)| *name == "EVENT_PERSISTER_DATABASE_URL" && value.contains("postgres"));
    let names_it = |asked: &str| asked.contains(", timeline 1 of system ");
    assert_eq!(asked.as_str().is_some_and(names_it), has_server, "{asked}");
    assert_eq!(
        well,
        json!({
            "all_is_well": true,
            "server": null,
            "since": null,
            "stream": {
                "stream": "events", "group": "event-persister",
                "checked": 45, "stored": 43, "dead_letters": 1, "ignored": 1, "expired": 0,
                "pending": 0, "unread": 0,
            },
            "events": 42, "dead_letters": 1, "curable": 0,
            "missing": 0, "doubled": 0, "half_written": 0, "differing": 0, "unreadable": 0,
            "findings": [], "curable_letters": [], "read_again": null,
        })
    );

    // The third of each four has two related resources, hence three rows.
    let [lost, half, bare, twice] = [2, 6, 10, 14].map(|number: usize| ids[number].as_str());
    let orphan = "00000000-0000-4000-8000-00000000000a";
    let new_id = case.store.new_id();
    case.store.execute(&format!(
        "DELETE FROM events WHERE id = '{lost}';
         DELETE FROM event_resources WHERE event_id = '{lost}';
         DELETE FROM event_resources WHERE event_id = '{half}' AND resource_id = 'related.1';
         DELETE FROM event_resources WHERE event_id = '{bare}';
         INSERT INTO event_resources (occurred, resource_id, resource_role, resource, event_id, id)
             SELECT occurred, resource_id, resource_role, resource, event_id, {new_id}
             FROM event_resources WHERE event_id = '{twice}';
         INSERT INTO event_resources (occurred, resource_id, resource_role, resource, event_id, id)
             SELECT occurred, resource_id, resource_role, resource, '{orphan}', {new_id}
             FROM event_resources WHERE event_id = '{half}';
         DELETE FROM event_persister_dead_letters",
    ));
    let broken = case.verify(1);
    let counts = ["missing", "doubled", "half_written"].map(|kind| broken[kind].as_u64().unwrap());
    assert_eq!(counts, [2, 1, 3], "{broken}");
    let expected = [
        finding(
            "missing",
            Some(&stream_ids[2]),
            Some(lost),
            "acknowledged, and neither in events nor a dead letter",
        ),
        finding(
            "missing",
            Some(&bad[0]),
            None,
            "acknowledged though it is no event, and not a dead letter",
        ),
        finding(
            "half_written",
            Some(&stream_ids[6]),
            Some(half),
            "in events, with 2 resources instead of 3",
        ),
        finding(
            "half_written",
            Some(&stream_ids[10]),
            Some(bare),
            "in events, without any of its 3 resources",
        ),
        finding(
            "doubled",
            Some(&stream_ids[14]),
            Some(twice),
            "in events, with 6 resources instead of 3",
        ),
        finding(
            "half_written",
            None,
            Some(orphan),
            "2 in event_resources and no row in events",
        ),
    ];
    let found = broken["findings"].as_array().unwrap();
    for expected in &expected {
        assert!(found.contains(expected), "no {expected} in {broken}");
    }
    assert_eq!(found.len(), expected.len(), "{broken}");

    let told = case.run(&["verify", "--limit", "1"]).exits(1);
    told.prints(&[
        "stream: checked        45",
        "half-written           3",
        "and 5 more",
        "trim --remove-half-events",
        &stream_ids[2],
        "something is wrong",
    ]);
    server.terminate().in_good_order();
}

#[tokio::test]
async fn what_is_broken_is_found_in_postgres() {
    what_is_whole_and_what_is_broken(Case::postgres()).await;
}

#[tokio::test]
async fn what_is_broken_is_found_in_partitions() {
    what_is_whole_and_what_is_broken(Case::partitioned()).await;
}

#[tokio::test]
async fn what_is_broken_is_found_in_sqlite() {
    what_is_whole_and_what_is_broken(Case::sqlite()).await;
}

/// Nothing at work is taken for something wrong.
async fn replicas_at_work_are_no_fault(case: Case, num_replicas: usize) {
    let mut replicas = Vec::new();
    for _ in 0..num_replicas {
        replicas.push(case.bus.start().ready().await);
    }
    let publisher = Publisher::to(Box::new(case.bus.stream.clone()), 2, 20);
    let mut last_checked = 0;
    for round in 0..8 {
        let found = case.verify_at_work();
        let checked = found["stream"]["checked"].as_u64().unwrap();
        assert!(round == 0 || checked > last_checked, "no load: {found}");
        last_checked = checked;
        case.bus.until_settled_now().await;
    }
    let ids = publisher.stop();
    case.bus.until_settled(&replicas[0]).await;
    let found = case.verify(0);
    assert_eq!(found["stream"]["stored"], 2 * ids.len());
    assert_eq!(found["events"], ids.len());
    for replica in replicas {
        replica.terminate().in_good_order();
    }
}

#[tokio::test]
async fn replicas_at_work_on_postgres_are_no_fault() {
    replicas_at_work_are_no_fault(Case::postgres(), 3).await;
}

#[tokio::test]
async fn replicas_at_work_on_partitions_are_no_fault() {
    replicas_at_work_are_no_fault(Case::partitioned(), 3).await;
}

#[tokio::test]
async fn replicas_at_work_on_sqlite_are_no_fault() {
    replicas_at_work_are_no_fault(Case::sqlite(), 2).await;
}

fn event_of(occurred: &str, name: &str) -> Value {
    let mut event = events::event();
    event["occurred"] = occurred.into();
    event["event"] = name.into();
    event
}

async fn what_retention_removed_is_not_missed(mut case: Case) {
    let old = event_of("2001-01-01T00:00:00Z", "test.happened");
    let kept = event_of("2001-01-01T00:00:00Z", "test.kept");
    let young = event_of("2999-01-01T00:00:00Z", "test.happened");
    let (stream_ids, ids) = case.publish(&[old, kept, young]);
    let server = case.settled().await;
    case.bus.set(LONG.0, "1d");
    case.bus
        .set("EVENT_PERSISTER_TRIM_OVERRIDES", "test.kept=20000d");
    case.run(&["trim"]).exits(0).prints(&["deleted 1 events"]);
    let found = case.verify(0);
    let counts = ["checked", "stored", "expired"].map(|name| found["stream"][name].as_u64());
    assert_eq!(counts, [Some(3), Some(2), Some(1)], "{found}");

    // What is kept for longer is missed.
    for id in &ids[1..2] {
        case.store.execute(&format!(
            "DELETE FROM events WHERE id = '{id}'; DELETE FROM event_resources WHERE event_id = '{id}'"
        ));
    }
    let found = case.verify(1);
    assert_eq!(found["missing"], 1);
    assert_eq!(found["findings"][0]["stream_id"], stream_ids[1]);
    server.terminate().in_good_order();
}

#[tokio::test]
async fn what_retention_removed_from_postgres_is_not_missed() {
    what_retention_removed_is_not_missed(Case::postgres()).await;
}

#[tokio::test]
async fn what_retention_removed_from_partitions_is_not_missed() {
    what_retention_removed_is_not_missed(Case::partitioned()).await;
}

#[tokio::test]
async fn what_retention_removed_from_sqlite_is_not_missed() {
    what_retention_removed_is_not_missed(Case::sqlite()).await;
}

#[test]
fn what_is_not_acknowledged_is_only_counted() {
    // No table of ours is there, and no group yet: nobody has served.
    let case = Case::postgres();
    case.publish(&events::events(5));
    let found = case.verify(0);
    assert_eq!(
        (&found["stream"]["unread"], &found["events"]),
        (&json!(5), &json!(0))
    );

    let command = |words: &str| -> redis::Value { case.bus.stream.command(words) };
    command("XGROUP CREATE events event-persister 0-1");
    command("XREADGROUP GROUP event-persister peer COUNT 3 STREAMS events >");
    let found = case.verify(0);
    let counts = ["checked", "pending", "unread"].map(|name| found["stream"][name].as_u64());
    assert_eq!(counts, [Some(0), Some(3), Some(2)], "{found}");

    // Who acknowledges without writing is found out, and only for what it acknowledged.
    let first: Vec<redis::Value> = case.bus.stream.command("XRANGE events - + COUNT 1");
    let (first, _): (String, redis::Value) = redis::from_redis_value(first[0].clone()).unwrap();
    command(&format!("XACK events event-persister {first}"));
    let found = case.verify(1);
    let counts = ["checked", "pending", "unread"].map(|name| found["stream"][name].as_u64());
    assert_eq!(counts, [Some(1), Some(2), Some(2)], "{found}");
    assert_eq!(found["findings"][0]["stream_id"], first);
}

#[tokio::test]
async fn a_long_stream_is_read_page_by_page() {
    let case = Case::postgres();
    let mut large = events::events(5);
    for event in &mut large {
        event["payload"]["text"] = "x".repeat(1_500_000).into();
    }
    for num_events in [2_100, 2_100] {
        case.publish(&events::events(num_events));
        case.publish(&large);
    }
    let server = case.settled().await;
    let command = |words: &str| -> redis::Value { case.bus.stream.command(words) };
    // A page of its own in the middle of which something is pending, more than once over.
    let found = case.verify(0);
    assert_eq!(found["stream"]["stored"], 4_210);
    assert_eq!(found["events"], 4_205);
    server.terminate().in_good_order();
    command("XGROUP SETID events event-persister 0-1");
    command("XREADGROUP GROUP event-persister peer COUNT 3000 STREAMS events >");
    let found = case.verify(0);
    let counts = ["checked", "pending", "unread"].map(|name| found["stream"][name].as_u64());
    assert_eq!(counts, [Some(0), Some(3_000), Some(1_210)], "{found}");
}

/// A database that is looked at without Redis.
fn without_redis(database: &Database, arguments: &[&str]) -> Ran {
    let url = ("EVENT_PERSISTER_DATABASE_URL", database.url.as_str());
    Folder::new().run_with(arguments, &[url, NOBODY_WRITES])
}

#[tokio::test]
async fn without_redis_the_database_is_verified_alone() {
    let case = Case::postgres();
    let Store::Postgres(database) = &case.store else {
        panic!("not PostgreSQL")
    };
    let good = events::event();
    let bad = json!({"id": good["id"], "event": 5}).to_string();
    case.bus.stream.publish(&[bad, good.to_string()]);
    let server = case.settled().await;
    let found = without_redis(database, &["verify", "--json"])
        .exits(0)
        .json();
    assert_eq!(
        (&found["stream"], &found["events"]),
        (&Value::Null, &json!(1))
    );
    assert_eq!(
        (&found["dead_letters"], &found["curable"]),
        (&json!(1), &json!(1))
    );
    let letter = &found["curable_letters"][0];
    assert_eq!(letter["event_id"], good["id"]);
    without_redis(database, &["verify"]).exits(0).prints(&[
        &format!("replay` cures them: {}", letter["id"]),
        "all is well",
    ]);
    // With Redis the bad one is what it is.
    let found = case.verify(0);
    assert_eq!(found["stream"]["dead_letters"], 1);
    server.terminate().in_good_order();
}

#[test]
fn an_id_that_lost_its_key_may_occur_twice() {
    let database = postgres::Server::shared().database();
    database.execute(PREFECTS_TABLES);
    database.execute(
        "INSERT INTO events (occurred, event, resource_id, resource, payload, received, recorded, id)
         SELECT '2024-01-01', 'e', 'r', '{\"prefect.resource.id\": \"r\"}', '{}', now(), now(), gen_random_uuid()
         FROM generate_series(1, 3);
         INSERT INTO event_resources (occurred, resource_id, resource_role, resource, event_id)
         SELECT occurred, 'r', '', '{}', id FROM events",
    );
    let verify = |code| {
        without_redis(&database, &["verify", "--json"])
            .exits(code)
            .json()
    };
    assert_eq!(verify(0)["events"], 3);
    database.execute(
        "ALTER TABLE events DROP CONSTRAINT pk_events;
         INSERT INTO events SELECT * FROM events ORDER BY id LIMIT 1",
    );
    let found = verify(1);
    assert_eq!(
        (&found["doubled"], &found["half_written"]),
        (&json!(1), &json!(0))
    );
    let detail = "2 times in events, with 1 resources";
    assert_eq!(found["findings"][0]["detail"], detail);
}

#[test]
fn a_span_leaves_out_what_is_older() {
    let database = postgres::Server::shared().database();
    database.execute(PREFECTS_TABLES);
    // Each without a resource, and one resource without an event.
    database.execute(
        "INSERT INTO events (occurred, event, resource_id, resource, payload, received, recorded)
         SELECT occurred, 'e', 'r', '{\"prefect.resource.id\": \"r\"}', '{}', now(), now()
         FROM unnest('{-infinity, 2001-01-01, now}'::timestamptz[]) AS occurred;
         INSERT INTO event_resources (occurred, resource_id, resource_role, resource, event_id)
         VALUES ('2001-01-01', 'r', '', '{}', gen_random_uuid())",
    );
    let verify = |arguments: &[&str]| without_redis(&database, arguments).exits(1).json();
    let all = verify(&["verify", "--json"]);
    assert_eq!(
        (&all["events"], &all["half_written"]),
        (&json!(3), &json!(4))
    );
    let some = verify(&["verify", "--json", "--since", "1h"]);
    assert_eq!(
        (&some["events"], &some["half_written"]),
        (&json!(1), &json!(1))
    );
    assert!(some["since"].as_str().unwrap().ends_with('Z'), "{some}");
}

#[test]
fn wrong_usage_is_told_apart_from_something_wrong() {
    let folder = Folder::new();
    folder
        .run(&["verify", "--since", "foo"])
        .exits(2)
        .complains(&["'foo' for '--since", "give one such as 30s, 15m, 2h or 7d"]);
    for arguments in [
        &["verify", "--since", "-1h"][..],
        &["verify", "--limit", "some"],
        &["verify", "everything"],
    ] {
        folder.run(arguments).exits(2);
    }
    folder
        .run(&["verify"])
        .exits(1)
        .complains(&["event-persister.db"]);
    assert!(folder.is_empty(), "it made something");
}
