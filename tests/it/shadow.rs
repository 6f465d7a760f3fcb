//! `serve --shadow`, beside a persister whose rows are spoiled on their way into the tables.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::bus::{Bus, Publisher};
use crate::support::database::Database as File;
use crate::support::events;
use crate::support::postgres::{self, TextRows};
use crate::support::server::Server;
use crate::support::stored::{Case, LONG, Store};

mod listener;
mod outages;
pub(crate) mod truth;

/// Otherwise a shadow waits for twice as long.
const FLUSH_INTERVAL: (&str, &str) = (
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL",
    "0.05",
);
/// Beyond the shadow's own delays, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(120);

const METRIC: &str = "event_persister_shadow_messages_total{class=\"";

impl Case {
    /// A shadow that sees what is published from now on.
    async fn shadow(&self) -> Server {
        let variables = self.bus.variables();
        shadow_with(&self.bus, &variables).await
    }

    /// Makes what is written from now on differ from what was given.
    fn spoil(&self) {
        self.store.execute(match self.store {
            Store::Postgres(_) => SPOIL_POSTGRES,
            Store::Sqlite(_) => SPOIL_SQLITE,
        });
    }

    /// A row of `events` that somebody else wrote.
    fn insert(&self, id: &str) {
        self.store.execute(&format!(
            "INSERT INTO events (id, occurred, event, resource_id, resource, payload, received, recorded) \
             VALUES ('{id}', '2026-01-01', 'e', 'r', '{{}}', '{{}}', '2026-01-01', '2026-01-01')"
        ));
    }
}

async fn shadow_with(bus: &Bus, variables: &[(&str, &str)]) -> Server {
    let mut command = bus.folder.command(&["serve", "--shadow"]);
    command
        .envs(variables.iter().copied())
        .env(FLUSH_INTERVAL.0, FLUSH_INTERVAL.1)
        .env("EVENT_PERSISTER_LISTEN", "127.0.0.1:0");
    Server::spawn(command, &bus.folder.database_path())
        .ready()
        .await
}

const SPOIL_POSTGRES: &str = r#"
CREATE FUNCTION spoil_event() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    CASE NEW.event
        WHEN 'test.lost' THEN DELETE FROM events WHERE id = NEW.id;
        WHEN 'test.changed' THEN
            UPDATE events SET payload = '{"other": 1}', follows = id WHERE id = NEW.id;
        ELSE NULL;
    END CASE;
    RETURN NULL;
END $$;
CREATE FUNCTION spoil_resource() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.resource_role = 'halved' THEN
        DELETE FROM event_resources WHERE id = NEW.id;
    ELSIF NEW.resource_role = 'doubled' AND pg_trigger_depth() = 1 THEN
        INSERT INTO event_resources (occurred, resource_id, resource_role, resource, event_id)
        VALUES (NEW.occurred, NEW.resource_id, NEW.resource_role, NEW.resource, NEW.event_id);
    ELSIF NEW.resource_role = 'reordered' THEN
        UPDATE event_resources SET resource = '{"name":"a related resource"}' WHERE id = NEW.id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER spoil AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION spoil_event();
CREATE TRIGGER spoil AFTER INSERT ON event_resources FOR EACH ROW EXECUTE FUNCTION spoil_resource();
"#;

const SPOIL_SQLITE: &str = r#"
CREATE TRIGGER lose AFTER INSERT ON events WHEN NEW.event = 'test.lost'
BEGIN DELETE FROM events WHERE id = NEW.id; END;
CREATE TRIGGER change AFTER INSERT ON events WHEN NEW.event = 'test.changed'
BEGIN UPDATE events SET payload = '{"other": 1}', follows = id WHERE id = NEW.id; END;
CREATE TRIGGER halve AFTER INSERT ON event_resources WHEN NEW.resource_role = 'halved'
BEGIN DELETE FROM event_resources WHERE id = NEW.id; END;
CREATE TRIGGER double AFTER INSERT ON event_resources
WHEN NEW.resource_role = 'doubled' AND NEW.id NOT LIKE 'copy of %'
BEGIN
    INSERT INTO event_resources (occurred, resource_id, resource_role, resource, event_id, id)
    VALUES (NEW.occurred, NEW.resource_id, NEW.resource_role, NEW.resource, NEW.event_id,
        'copy of ' || NEW.id);
END;
CREATE TRIGGER reorder AFTER INSERT ON event_resources WHEN NEW.resource_role = 'reordered'
BEGIN
    UPDATE event_resources SET resource = '{"name":"a related resource"}' WHERE id = NEW.id;
END;
"#;

/// The counts of a shadow by class, zeros left out.
async fn counts(shadow: &Server) -> BTreeMap<String, u64> {
    let text = shadow.get("/metrics").await.text().await.unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix(METRIC));
    let counts = lines.map(|line| {
        let (class, count) = line.split_once("\"} ").unwrap();
        (class.to_owned(), count.parse().unwrap())
    });
    counts.filter(|(_, count)| *count > 0).collect()
}

/// Waits until the shadow has settled so many messages.
async fn until_settled(shadow: &Server, num_messages: u64) -> BTreeMap<String, u64> {
    let started = Instant::now();
    loop {
        let counts = counts(shadow).await;
        if counts.values().sum::<u64>() >= num_messages {
            return counts;
        }
        let log = shadow.log();
        assert!(started.elapsed() < PATIENCE, "still {counts:?}\n{log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn expected(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    let counts = counts.iter();
    counts
        .map(|(class, count)| ((*class).to_owned(), *count))
        .collect()
}

fn named(name: &str) -> Value {
    let mut event = events::event_with(1);
    event["event"] = name.into();
    event
}

fn with_role(role: &str) -> Value {
    let mut event = events::event_with(2);
    event["related"][1]["prefect.resource.role"] = role.into();
    event
}

/// The groups of the stream besides shadows', each with everything that Redis says of it but for how
/// far behind it is.
fn groups(bus: &Bus) -> Vec<Vec<(String, String)>> {
    let names = ["event-persister", "event-persister-guard"];
    let groups = names.iter().filter_map(|name| bus.stream.group(name));
    groups.collect()
}

/// How many there are, but for the one that tells the primary of the database.
fn num_groups(bus: &Bus) -> usize {
    let groups: Vec<Vec<redis::Value>> = bus.stream.command("XINFO GROUPS events");
    let is_other = |group: &&Vec<redis::Value>| match &group[1] {
        redis::Value::BulkString(name) => !name.starts_with(b"event-persister-primary:"),
        _ => true,
    };
    groups.iter().filter(is_other).count()
}

async fn every_class_is_told_apart(case: Case, expectations: &[(&str, u64)]) {
    let persister = case.bus.start().ready().await;
    case.spoil();
    case.bus.stream.publish(&["not for the shadow"]);
    case.bus.until_settled(&persister).await;
    let shadow = case.shadow().await;

    let well = events::events(40);
    let mut old = named("test.lost");
    old["occurred"] = "1950-01-01T00:00:00Z".into();
    let mut long = events::event();
    let digits = (0..3_000).map(|_| char::from(b'!' + fastrand::u8(..90)));
    long["resource"]["prefect.resource.id"] = digits.collect::<String>().into();
    let mut nul = events::event();
    nul["payload"]["text"] = "secret \0".into();
    let mut nul_there = nul.clone();
    nul_there["id"] = events::event()["id"].clone();
    let bad_there = json!({"id": events::event()["id"], "event": 5, "payload": "secret"});
    let spoiled = [
        named("test.lost"),
        named("test.lost"),
        named("test.changed"),
        with_role("halved"),
        with_role("doubled"),
        with_role("reordered"),
        old,
    ];
    if let Store::Postgres(_) = case.store {
        // SQLite takes it, and would have it already.
        case.insert(&events::id(&nul_there));
    }
    case.insert(&events::id(&bad_there));
    let all = well
        .iter()
        .chain(&spoiled)
        .chain([&long, &nul, &nul_there, &bad_there, &well[7]]);
    let mut texts = events::texts(all);
    texts.extend(["{".to_owned(), String::new()]);
    case.bus.stream.publish(&texts);
    case.bus.until_settled(&persister).await;
    // From here on nobody else moves the groups.
    persister.terminate().in_good_order();
    let before = groups(&case.bus);

    assert_eq!(
        until_settled(&shadow, texts.len() as u64).await,
        expected(expectations)
    );
    let columns = shadow.get("/metrics").await.text().await.unwrap();
    for (column, count) in [
        ("payload", 1),
        ("follows", 1),
        ("event_resources", 2),
        ("event_resources (number of rows)", 1),
    ] {
        let line = format!("differing_columns_total{{column=\"{column}\"}} {count}");
        assert!(columns.contains(&line), "no {line} in {columns}");
    }
    let ended = shadow.terminate();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    for event in &spoiled[..6] {
        assert!(ended.log.contains(&events::id(event)), "{}", ended.log);
    }
    assert!(!ended.log.contains("secret"), "{}", ended.log);
    assert_eq!(groups(&case.bus), before);
    assert_eq!(num_groups(&case.bus), 2, "the shadow's own is gone");
}

#[tokio::test]
async fn every_class_is_told_apart_on_postgres() {
    let expected = [
        ("identical", 40),
        ("differing", 4),
        ("lost_by_prefect", 2),
        ("expired", 1),
        ("unclear", 1),
        // The NUL, and what is no event.
        ("refused_by_both", 2),
        ("refused_only_by_us", 2),
        ("duplicate", 1),
        ("ignored", 1),
    ];
    every_class_is_told_apart(Case::postgres(), &expected).await;
}

#[tokio::test]
async fn every_class_is_told_apart_on_sqlite() {
    let expected = [
        // SQLite takes the long one and both with a NUL.
        ("identical", 43),
        ("differing", 4),
        ("lost_by_prefect", 2),
        ("expired", 1),
        ("refused_by_both", 1),
        ("refused_only_by_us", 1),
        ("duplicate", 1),
        ("ignored", 1),
    ];
    every_class_is_told_apart(Case::sqlite(), &expected).await;
}

/// Takes and acknowledges all that the group was not given yet, as Prefect's persister does before
/// it writes. What was taken before stays pending.
pub(crate) fn acknowledge_all(bus: &Bus) {
    let last = bus.stream.last_delivered("event-persister").unwrap();
    let command = |words: &str| -> redis::Value { bus.stream.command(words) };
    command("XREADGROUP GROUP event-persister prefect COUNT 5000 STREAMS events >");
    let pending: Vec<(String, redis::Value, redis::Value, redis::Value)> = bus
        .stream
        .command(&format!("XPENDING events event-persister ({last} + 5000"));
    for ids in pending.chunks(500) {
        let ids: Vec<&str> = ids.iter().map(|entry| entry.0.as_str()).collect();
        command(&format!("XACK events event-persister {}", ids.join(" ")));
    }
}

#[tokio::test]
async fn a_shadow_needs_only_to_read_and_leaves_nothing_behind() {
    let case = Case::postgres();
    let Store::Postgres(database) = &case.store else {
        panic!("not PostgreSQL")
    };
    let role = format!("reader_of_{}", database.name);
    database.execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
    ));
    let (_, place) = database.url.split_once('@').unwrap();
    let url = format!("postgresql://{role}@{place}");
    let mut variables = case.bus.variables();
    variables.push(("EVENT_PERSISTER_DATABASE_URL", &url));
    let made = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace \
        UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1";
    let before = database.execute(made);
    let command = |words: &str| -> redis::Value { case.bus.stream.command(words) };
    command("XGROUP CREATE events event-persister 0-1 MKSTREAM");

    let shadow = shadow_with(&case.bus, &variables).await;
    assert_eq!(num_groups(&case.bus), 2);
    assert_eq!(
        shadow.post_status(events::list(&[events::event()])).await,
        503
    );
    case.bus.stream.publish(&[events::event().to_string()]);
    // Given to a consumer that is not done with it: nobody may call it lost.
    command("XREADGROUP GROUP event-persister prefect COUNT 1 STREAMS events >");
    let five = events::texts(&events::events(5));
    case.bus.stream.publish(&five);
    acknowledge_all(&case.bus);
    assert_eq!(
        until_settled(&shadow, 5).await,
        expected(&[("lost_by_prefect", 5)])
    );
    let ended = shadow.terminate();
    assert!(ended.log.contains(" unfinished=1 "), "{}", ended.log);
    assert_eq!(
        ended.status.code(),
        Some(0),
        "what Prefect loses is no fault here"
    );
    assert_eq!(database.execute(made), before);
    assert_eq!(database.execute("SELECT id FROM events"), TextRows::new());
    assert_eq!(num_groups(&case.bus), 1);
    assert_eq!(case.bus.stream.len(), 6, "nothing was trimmed");
    assert_eq!(case.bus.stream.consumers("event-persister").len(), 1);
    let owned = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    database.execute(&owned);
}

#[tokio::test]
async fn a_shadow_with_a_span_ends_by_itself_and_sums_up() {
    let case = Case::sqlite();
    let persister = case.bus.start().ready().await;
    let publisher = Publisher::start(&case.bus.stream, 1);
    let mut variables = case.bus.variables();
    variables.push(FLUSH_INTERVAL);
    variables.push(("EVENT_PERSISTER_LISTEN", "off"));
    let mut summary = Value::Null;
    // A machine that is busy may not come to reading within a short one.
    for span in ["2s", "30s", "90s"] {
        let arguments = ["serve", "--shadow", "--json", "--for", span];
        let ran = case.bus.folder.run_with(&arguments, &variables).exits(0);
        summary = ran.json();
        if summary["compared"] != 0 {
            break;
        }
    }
    publisher.stop();
    assert_ne!(summary["compared"], 0, "{summary}");
    assert_eq!(summary["classes"]["identical"], summary["compared"]);
    assert_eq!(summary["classes"]["unfinished"], 0, "{summary}");
    assert_eq!(summary["all_is_well"], true);
    assert_eq!(num_groups(&case.bus), 2);
    case.bus.until_settled(&persister).await;
    persister.terminate().in_good_order();
}

#[tokio::test]
async fn what_a_killed_shadow_left_is_told_by_the_next_one() {
    let case = Case::sqlite();
    let persister = case.bus.start().ready().await;
    let killed = case.shadow().await;
    killed.kill_9();
    assert_eq!(num_groups(&case.bus), 3);
    let shadow = case.shadow().await;
    let line = shadow.logged("redis-cli XGROUP DESTROY events ephemeral-");
    let (_, command) = line.split_once("redis-cli ").unwrap();
    let destroyed: u64 = case.bus.stream.command(command.trim_end_matches('`'));
    assert_eq!(destroyed, 1);
    assert_eq!(shadow.terminate().status.code(), Some(0));
    assert_eq!(num_groups(&case.bus), 2);
    persister.terminate().in_good_order();
}

#[test]
fn a_shadow_of_nothing_is_wrong_usage() {
    let folder = crate::support::binary::Folder::new();
    let ran = folder.run(&["serve", "--shadow"]);
    ran.exits(2).complains(&["no persister to compare with"]);
    folder.run(&["serve", "--for", "1s"]).exits(2);
    assert!(folder.is_empty());
}
