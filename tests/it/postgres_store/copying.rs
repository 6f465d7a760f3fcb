//! Large batches are copied, and whatever speaks against that changes nothing but their speed.

use event_persister_actors::store::{EventStore as _, Outcome, RefusalReason};

use super::*;

/// Events of a batch that is copied.
pub(super) const MANY: usize = 200;

fn many() -> Vec<ReceivedEvent> {
    (0..MANY).map(|_| any_event()).collect()
}

/// A table of what was done to `events`, one row a statement.
fn note_statements(database: &Database) {
    note_each(database, "STATEMENT");
}

/// The same with one row for each that went in, so that what inserts none leaves nothing.
pub(crate) fn note_rows(database: &Database) {
    note_each(database, "ROW");
}

fn note_each(database: &Database, what: &str) {
    database.execute(&format!(
        "CREATE TABLE statements (at bigserial, text text); \
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO statements (text) VALUES (current_query()); RETURN NULL; END $$; \
         CREATE TRIGGER note AFTER INSERT ON events FOR EACH {what} EXECUTE FUNCTION note()"
    ));
}

/// The ways in which batches went into the table since the last call.
pub(super) fn ways(database: &Database) -> String {
    let ways = database.value(
        "SELECT coalesce(string_agg(CASE WHEN text LIKE 'COPY%' THEN 'copy' ELSE 'call' END, ' ' \
         ORDER BY at), '') FROM statements",
    );
    database.execute("TRUNCATE statements");
    ways
}

async fn written(store: &PostgresStore, events: impl IntoIterator<Item = ReceivedEvent>) -> usize {
    let outcomes = store.write(of_events(events)).await.unwrap();
    let stored = outcomes.iter().filter(|one| **one == Outcome::Stored);
    stored.count()
}

#[actix::test]
async fn copies_what_is_many_and_calls_for_what_is_few() {
    let (database, store) = migrated().await;
    note_statements(&database);
    assert_eq!(written(&store, many()).await, MANY);
    assert_eq!(written(&store, [any_event()]).await, 1);
    assert_eq!(written(&store, many()).await, MANY);
    assert_eq!(ways(&database), "copy call copy");
    let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE {ARE_OF_OTHERS}");
    assert_eq!(database.value(&sessions), "2", "one for each way");
    store.close().await.unwrap();
}

#[actix::test]
async fn both_ways_write_the_same_rows() {
    let (database, store) = migrated().await;
    let events: Vec<_> = (0..MANY)
        .map(|number| {
            EventFixture {
                event: format!("näme {number}"),
                follows: (number % 3 == 0).then(|| Uuid::from_u128(number as u128)),
                labels: vec![("a \"quoted\" label".to_owned(), "ü\\\n".to_owned())],
                related: (0..number % 5)
                    .map(|role| (format!("related.{number}"), format!("role {role}")))
                    .collect(),
                payload: format!(r#"{{"n": [1.50, 1e300, {number}], "n": "\u00e9"}}"#),
                ..EventFixture::default()
            }
            .build()
        })
        .collect();
    let rows = || {
        database.value(
            "SELECT string_agg((e.id, e.occurred, e.received, e.event, e.resource_id, e.resource, \
             e.related, e.related_resource_ids, e.payload, e.follows, (SELECT string_agg( \
             (r.occurred, r.resource_id, r.resource_role, r.resource)::text, '|' ORDER BY r.id) \
             FROM event_resources r WHERE r.event_id = e.id))::text, '|' ORDER BY e.id) FROM events e",
        )
    };
    assert_eq!(written(&store, events.clone()).await, MANY);
    let copied = rows();
    database.execute("TRUNCATE events, event_resources");
    for few in events.chunks(MANY / 2) {
        assert_eq!(written(&store, few.to_vec()).await, MANY / 2);
    }
    assert_eq!(rows(), copied);
    let times = "SELECT count(DISTINCT t) FROM (SELECT unnest(ARRAY[recorded, created, updated]) AS t, \
         id FROM events) AS times GROUP BY id ORDER BY 1 DESC LIMIT 1";
    assert_eq!(database.value(times), "1");
}

#[actix::test]
async fn what_is_there_already_is_found_and_nothing_of_the_attempt_stays() {
    let (database, store) = migrated().await;
    note_statements(&database);
    let events = many();
    assert_eq!(written(&store, events[..MANY / 2].to_vec()).await, MANY / 2);
    ways(&database);
    assert_eq!(written(&store, events.clone()).await, MANY / 2);
    assert_eq!(
        ways(&database),
        "call",
        "the COPY was undone, what it noted too"
    );
    assert_eq!(written(&store, events).await, 0);
    assert_eq!(written(&store, many()).await, MANY);
    assert_eq!(
        ways(&database),
        "call call",
        "what came after something special"
    );
    assert_eq!(written(&store, many()).await, MANY);
    assert_eq!(
        ways(&database),
        "copy",
        "what came after something ordinary"
    );
    let halves = "SELECT count(DISTINCT e.id) || ' ' || count(*) FROM events e \
        JOIN event_resources r ON r.event_id = e.id";
    assert_eq!(database.value(halves), format!("{} {}", 3 * MANY, 6 * MANY));
}

#[actix::test]
async fn rows_that_a_trigger_swallows_do_not_pass_for_stored() {
    for (table, column) in [("events", "id"), ("event_resources", "event_id")] {
        let (database, store) = migrated().await;
        let events = many();
        database.execute(&format!(
            "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RETURN NULL; END $$; \
             CREATE TRIGGER swallow BEFORE INSERT ON {table} FOR EACH ROW \
             WHEN (NEW.{column} = '{}') EXECUTE FUNCTION swallow()",
            events[7].id
        ));
        let outcomes = store.write(of_events(events)).await.unwrap();
        for (number, outcome) in outcomes.into_iter().enumerate() {
            let expected = match number {
                7 => Outcome::RefusedByStore(RefusalReason::Swallowed),
                _ => Outcome::Stored,
            };
            assert_eq!(outcome, expected, "{number} of {table}");
        }
    }
}

#[actix::test]
async fn a_rule_is_heeded_although_copy_would_pass_it_by() {
    let (database, store) = migrated().await;
    note_statements(&database);
    database.execute(
        "CREATE TABLE copies (id uuid); \
         CREATE RULE also AS ON INSERT TO events DO ALSO INSERT INTO copies VALUES (NEW.id)",
    );
    assert_eq!(written(&store, many()).await, MANY);
    assert_eq!(ways(&database), "call");
    let copies = "SELECT count(*) FROM copies JOIN events USING (id)";
    assert_eq!(database.value(copies), MANY.to_string());
}

#[actix::test]
async fn connections_that_died_are_made_again() {
    let (database, store) = migrated().await;
    note_statements(&database);
    assert_eq!(written(&store, many()).await, MANY);
    let kill = format!(
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE {ARE_OF_OTHERS}"
    );
    assert_eq!(database.value(&kill), "2");
    assert_eq!(written(&store, many()).await, MANY);
    assert_eq!(written(&store, many()).await, MANY);
    assert_eq!(ways(&database), "copy copy copy");
}

#[actix::test]
async fn a_connection_killed_in_the_middle_of_a_copy_loses_and_doubles_nothing() {
    let (database, store) = migrated().await;
    database.execute(
        "CREATE TABLE switch AS SELECT true AS is_on; \
         CREATE FUNCTION kill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF current_query() LIKE 'COPY%' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; \
         RETURN NULL; END $$; \
         CREATE TRIGGER kill AFTER INSERT ON event_resources FOR EACH STATEMENT EXECUTE FUNCTION kill()",
    );
    let events = many();
    // Told as what it is, or written by the other way at once: whichever the server's last words allow.
    match store.write(of_events(events.clone())).await {
        Ok(outcomes) => assert!(outcomes.iter().all(|one| *one == Outcome::Stored)),
        Err(error) => assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}"),
    }
    database.execute("DROP TRIGGER kill ON event_resources");
    store.write(of_events(events)).await.unwrap();
    let counts =
        "SELECT (SELECT count(*) FROM events) || ' ' || (SELECT count(*) FROM event_resources)";
    assert_eq!(database.value(counts), format!("{MANY} {}", 2 * MANY));
}

#[actix::test]
async fn a_commit_of_a_copy_that_fails_may_have_happened() {
    let (database, store) = migrated().await;
    database.execute(
        "CREATE FUNCTION kill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF current_query() = 'COMMIT' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; \
         RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER kill AFTER INSERT ON event_persister_dead_letters \
         DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION kill(); \
         CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         SET CONSTRAINTS ALL DEFERRED; \
         INSERT INTO event_persister_dead_letters \
         (source, position, raw, raw_hash, stage, reason, attempts, first_seen, last_seen) \
         VALUES ('a', 'b', '', '', 'store', 'c', 1, now(), now()); RETURN NULL; END $$; \
         CREATE TRIGGER leave AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION leave()",
    );
    let events = many();
    let error = store.write(of_events(events.clone())).await.unwrap_err();
    assert!(
        matches!(error, StoreError::OutcomeUnknown { .. }),
        "{error:?}"
    );
    database.execute("DROP TRIGGER leave ON events");
    assert_eq!(written(&store, events).await, MANY);
}

#[actix::test]
async fn without_a_connection_to_spare_everything_is_written_all_the_same() {
    let (database, _) = migrated().await;
    note_statements(&database);
    let (role, url) = database.for_a_role();
    database.execute(&format!("ALTER ROLE {role} CONNECTION LIMIT 1"));
    let store = store(PostgresSettings::from_url(&url).unwrap());
    assert_eq!(written(&store, many()).await, MANY);
    assert_eq!(written(&store, many()).await, MANY);
    assert_eq!(ways(&database), "call call");
}
