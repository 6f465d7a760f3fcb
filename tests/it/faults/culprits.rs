//! Events that the database does not take for reasons that no list holds, among others that it takes.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::case::Case;
use crate::support::events;
use crate::support::postgres::{self, Database};
use crate::support::server::Server;
use crate::support::wait::{until, until_within};

/// What a trigger of this test looks for.
const CULPRIT: &str = "culprit";

fn culprit() -> Value {
    let mut event = events::event();
    event["event"] = CULPRIT.into();
    event
}

fn with_payload(payload: &str) -> String {
    let mut event = events::event();
    event["payload"] = json!("here");
    event.to_string().replace("\"here\"", payload)
}

/// Makes the database do this with each culprit, and with nothing else.
fn on_a_culprit(database: &Database, does: &str) {
    on_events(database, &format!("NEW.event = '{CULPRIT}'"), does);
}

fn on_events(database: &Database, condition: &str, does: &str) {
    database.execute(&format!(
        "CREATE OR REPLACE FUNCTION harm() RETURNS trigger LANGUAGE plpgsql AS $harm$ BEGIN \
           IF {condition} THEN {does}; END IF; RETURN NEW; END $harm$; \
         DROP TRIGGER IF EXISTS harm ON events; \
         CREATE TRIGGER harm BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION harm()"
    ));
}

fn stored(database: &Database, ids: &[String]) -> usize {
    let mut list = String::new();
    for id in ids {
        write!(list, "'{id}',").unwrap();
    }
    let query = format!("SELECT count(*) FROM events WHERE id IN ({list} NULL)");
    database.value(&query).parse().unwrap()
}

/// Ten good events, the culprits and ten good events at once, then a trickle until all letters are
/// there. What is good must be stored soon, whatever the culprits do meanwhile.
async fn among_good_ones(
    case: &mut Case<'_>,
    database: &Database,
    culprits: &[String],
    letters: &str,
) {
    let letters = format!("SELECT count(*) FROM event_persister_dead_letters WHERE {letters}");
    let num_letters = || -> usize { database.value(&letters).parse().unwrap() };
    let expected = num_letters() + culprits.len();
    let good = events::events(20);
    let ids = events::ids(&good);
    let good = events::texts(&good);
    let all = [&good[..10], culprits, &good[10..]].concat();
    case.bus.stream.publish(&all);
    case.expect(ids.iter().cloned());
    let published = Instant::now();
    until("the good ones are stored", || stored(database, &ids) == 20).await;
    let took = published.elapsed();
    assert!(took < case.stored_within, "{letters}: {took:?}");
    let patience = case.found_out_within;
    until_within(patience, format!("{expected} letters: {letters}"), || {
        case.publish(1);
        num_letters() >= expected
    })
    .await;
    assert_eq!(num_letters(), expected);
}

const SINGLED_OUT: &str = "reason LIKE 'refused while others were stored: %' AND stage = 'store'";

/// Each code in turn, by a trigger that raises it for one event.
async fn raised(fault: &'static str, codes: &[&str]) {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres(fault, &database);
    let server = case.start().await;
    for code in codes {
        let raise = format!("RAISE EXCEPTION 'never this one' USING ERRCODE = '{code}'");
        on_a_culprit(&database, &raise);
        let letters =
            format!("{SINGLED_OUT} AND sqlstate = '{code}' AND reason LIKE '%never this one%'");
        let culprit = culprit().to_string();
        among_good_ones(&mut case, &database, &[culprit], &letters).await;
    }
    server.until_ready_is(200).await;
    case.cured();
    case.ends_with_letters(vec![server], codes.len()).await;
}

#[tokio::test]
async fn a_trigger_that_raises_what_lasts() {
    let fault = "culprit: a trigger raises for one event what is on no list";
    let codes = [
        "42501", "55000", "0A000", "45000", "P0004", "38000", "39000", "HV000", "42883", "21000",
        "25006", "44000", "28000", "F0000",
    ];
    raised(fault, &codes).await;
}

#[tokio::test]
async fn a_trigger_that_raises_what_looks_like_an_outage() {
    let fault = "culprit: a trigger raises for one event what looks like an outage";
    let codes = [
        "XX000", "40001", "53100", "08006", "58030", "57014", "57P01",
    ];
    raised(fault, &codes).await;
}

#[tokio::test]
async fn a_policy_that_refuses_one_event() {
    let database = postgres::Server::shared().database();
    let fault = "culprit: row-level security refuses one event";
    let mut case = Case::postgres(fault, &database);
    let (role, url) = database.for_a_role();
    case.bus.set("EVENT_PERSISTER_DATABASE_URL", url);
    database.execute(&format!(
        "ALTER TABLE events ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY reads ON events FOR SELECT USING (true); \
         CREATE POLICY writes ON events FOR INSERT WITH CHECK (event <> '{CULPRIT}')"
    ));
    let server = case.start().await;
    let letters = format!("{SINGLED_OUT} AND sqlstate = '42501'");
    let culprit = culprit().to_string();
    among_good_ones(&mut case, &database, &[culprit], &letters).await;
    server.until_ready_is(200).await;
    case.cured();
    case.ends_with_letters(vec![server], 1).await;
    database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[tokio::test]
async fn an_event_that_ends_its_connection() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres("culprit: an event ends its connection each time", &database);
    let server = case.start().await;
    on_a_culprit(&database, "PERFORM pg_terminate_backend(pg_backend_pid())");
    let letters = format!("{SINGLED_OUT} AND sqlstate = '08006'");
    let culprit = culprit().to_string();
    among_good_ones(&mut case, &database, &[culprit], &letters).await;
    server.until_ready_is(200).await;
    case.cured();
    case.ends_with_letters(vec![server], 1).await;
}

#[tokio::test]
async fn an_event_that_crashes_the_server() {
    let postgres = postgres::Server::start("fsync = off\n");
    let database = postgres.database();
    let mut case = Case::postgres("culprit: an event crashes the server each time", &database);
    let server = case.start().await;
    on_a_culprit(&database, "COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'");
    let good = events::events(20);
    let ids = events::ids(&good);
    let good = events::texts(&good);
    let culprit = culprit().to_string();
    let all = [&good[..10], &[culprit], &good[10..]].concat();
    case.bus.stream.publish(&all);
    case.expect(ids);
    // Nobody can ask the server meanwhile.
    server
        .until("all acknowledged", || {
            case.bus.stream.num_pending() == 0 && case.bus.stream.len() > 0
        })
        .await;
    server.until_ready_is(200).await;
    case.cured();
    case.ends_with_letters(vec![server], 1).await;
}

#[tokio::test]
async fn payloads_that_no_jsonb_holds() {
    let database = postgres::Server::shared().database();
    let fault = "culprit: an array of 17 million numbers, which no jsonb holds";
    let mut case = Case::postgres(fault, &database);
    // The event, some times over.
    case.max_memory = 512;
    // A debug build takes its time to read 34 MB.
    case.stored_within = Duration::from_secs(60);
    case.found_out_within = Duration::from_secs(300);
    let server = case.start().await;
    let culprit = with_payload(&format!("{{\"a\": [{}1]}}", "1,".repeat(17_000_000)));
    let letters = format!("{SINGLED_OUT} AND sqlstate = 'XX000'");
    among_good_ones(&mut case, &database, &[culprit], &letters).await;
    server.until_ready_is(200).await;
    case.cured();
    case.ends_with_letters(vec![server], 1).await;
}

#[tokio::test]
async fn an_event_that_takes_too_long() {
    let database = postgres::Server::shared().database();
    let fault = "culprit: an event of 17 MB with statement_timeout = 1s";
    let mut case = Case::postgres(fault, &database);
    case.max_memory = 512;
    // A debug build takes its time to read 17 MB.
    case.stored_within = Duration::from_secs(60);
    case.found_out_within = Duration::from_secs(300);
    case.bus
        .set("EVENT_PERSISTER_DATABASE_STATEMENT_TIMEOUT", "1s");
    let server = case.start().await;
    // Whatever the machine is worth, it takes too long.
    on_events(
        &database,
        "pg_column_size(NEW.payload) > 1000000",
        "PERFORM pg_sleep(60)",
    );
    let numbers: String = (0..1_700_000)
        .map(|at| format!("{},", 100_000_000 + at))
        .collect();
    let culprit = with_payload(&format!("{{\"a\": [{numbers}1]}}"));
    let letters = format!("{SINGLED_OUT} AND sqlstate = '57014'");
    among_good_ones(&mut case, &database, &[culprit], &letters).await;
    server.until_ready_is(200).await;
    case.cured();
    case.ends_with_letters(vec![server], 1).await;
}

/// The reverse: what befalls all is an outage. Nothing becomes a letter, and all is stored in the end.
async fn befalls_all(fault: &'static str, harm: &str, cure: &str) {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres(fault, &database);
    let (role, url) = database.for_a_role();
    case.bus.set("EVENT_PERSISTER_DATABASE_URL", url);
    let server = case.start().await;
    case.publish(20);
    until("stored", || {
        database.value("SELECT count(*) FROM events") == "20"
    })
    .await;
    database.execute(&harm.replace("{role}", &role));
    case.publish(20);
    server.until_ready_is(503).await;
    for _ in 0..10 {
        case.publish(1);
        sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(server.readiness().await.0, 503);
    assert_eq!(case.store.num_letters(), 0);
    database.execute(&cure.replace("{role}", &role));
    case.cured();
    server.until_ready_is(200).await;
    case.ends_well(vec![server]).await;
    database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[tokio::test]
async fn privileges_revoked_on_the_whole_table() {
    befalls_all(
        "no culprit: privileges revoked on the whole table",
        "REVOKE INSERT ON events FROM {role}",
        "GRANT INSERT ON events TO {role}",
    )
    .await;
}

#[tokio::test]
async fn a_trigger_that_refuses_everything() {
    befalls_all(
        "no culprit: a trigger that refuses everything",
        "CREATE FUNCTION harm() RETURNS trigger LANGUAGE plpgsql AS $harm$ BEGIN \
           RAISE EXCEPTION 'not today' USING ERRCODE = '45000'; END $harm$; \
         CREATE TRIGGER harm BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION harm()",
        "DROP TRIGGER harm ON events",
    )
    .await;
}

/// Posts one list, and how long the answer takes.
async fn post(server: &Server, text: &str) -> (u16, Duration) {
    let started = Instant::now();
    let status = server.post_status(text.to_owned()).await;
    (status, started.elapsed())
}

#[tokio::test]
async fn by_http_the_others_are_not_held_up() {
    let database = postgres::Server::shared().database();
    let mut case = Case::postgres("culprit: among requests of others", &database);
    let server = case.start().await;
    let raise = "RAISE EXCEPTION 'never this one' USING ERRCODE = '40001'";
    on_a_culprit(&database, raise);
    case.publish(20);
    let bad = events::list(&[culprit()]);
    let others = async {
        for _ in 0..20 {
            let event = events::event();
            case.expect([events::id(&event)]);
            let (status, took) = post(&server, &events::list(&[event])).await;
            assert_eq!(status, 204);
            assert!(took < Duration::from_secs(2), "{took:?}");
            sleep(Duration::from_millis(100)).await;
        }
    };
    let ((status, took), ()) = tokio::join!(post(&server, &bad), others);
    assert_eq!(status, 204, "it is kept as a dead letter");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(case.store.num_letters(), 1);
    case.cured();
    case.ends_with_letters(vec![server], 1).await;
}

#[tokio::test]
async fn an_import_comes_to_its_end() {
    let database = postgres::Server::shared().database();
    let case = Case::postgres("culprit: in a file", &database);
    case.bus.folder.run_with(&["check"], &case.bus.variables());
    let server = case.start().await;
    let raise = "RAISE EXCEPTION 'never this one' USING ERRCODE = '55000'";
    on_a_culprit(&database, raise);
    assert!(server.terminate().status.success());
    let mut list = events::events(20);
    list.insert(10, culprit());
    let path = case.bus.folder.path().join("events.jsonl");
    std::fs::write(&path, events::lines(&list)).unwrap();
    let import = ["import", path.to_str().unwrap()];
    case.bus
        .folder
        .run_with(&import, &case.bus.variables())
        .exits(1);
    assert_eq!(database.value("SELECT count(*) FROM events"), "20");
    let letters = format!("SELECT count(*) FROM event_persister_dead_letters WHERE {SINGLED_OUT}");
    assert_eq!(database.value(&letters), "1");
}
