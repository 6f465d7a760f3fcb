//! Bad events harm nobody else; bad times lose nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use event_persister_actors::store::{EventStore as _, Outcome, RefusalReason};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const NUL: &str = r#"{"k": "\u0000"}"#;

async fn isolates(num_culprits: usize) {
    let (database, store) = migrated().await;
    let mut events: Vec<_> = (0..1_000).map(|_| any_event()).collect();
    let step = events.len() / num_culprits;
    for culprit in events.iter_mut().step_by(step).take(num_culprits) {
        *culprit = with_payload(NUL);
    }
    let culprits: BTreeSet<_> = (0..num_culprits).map(|culprit| culprit * step).collect();
    let outcomes = store.write(of_events(events)).await.unwrap();
    let refused: BTreeSet<_> = (0..)
        .zip(&outcomes)
        .filter(|(_, outcome)| {
            matches!(outcome, Outcome::RefusedByStore(RefusalReason::InvalidData))
        })
        .map(|(index, _)| index)
        .collect();
    assert_eq!(refused, culprits);
    let counts = "SELECT (SELECT count(*) FROM events) || ' ' || \
        (SELECT count(*) FROM event_resources) || ' ' || \
        (SELECT count(*) FROM event_persister_dead_letters WHERE sqlstate = '22P05')";
    let num_stored = 1_000 - num_culprits;
    let expected = format!("{num_stored} {} {num_culprits}", 2 * num_stored);
    assert_eq!(database.value(counts), expected);
}

#[actix::test]
async fn one_culprit_in_a_thousand_is_named() {
    isolates(1).await;
}

#[actix::test]
async fn seven_culprits_in_a_thousand_are_named() {
    isolates(7).await;
}

#[actix::test]
async fn a_hundred_culprits_in_a_thousand_are_named() {
    isolates(100).await;
}

#[actix::test]
async fn every_event_of_a_batch_may_be_a_culprit() {
    isolates(1_000).await;
}

#[actix::test]
async fn an_event_that_could_not_be_read_back_is_refused_and_none_around_it() {
    let (database, store) = migrated().await;
    let list = |num: usize| format!("{{\"n\": [{}0]}}", "1e308,".repeat(num));
    let too_long = with_payload(&list(870_000));
    let batch = of_events([
        any_event(),
        too_long,
        any_event(),
        with_payload(&list(1_000)),
    ]);
    let outcomes = store.write(batch).await.unwrap();
    let expected = [
        Outcome::Stored,
        Outcome::RefusedByStore(RefusalReason::TooLarge),
        Outcome::Stored,
        Outcome::Stored,
    ];
    assert_eq!(outcomes, expected);
    let letters = "SELECT string_agg(sqlstate || stage, ' ') FROM event_persister_dead_letters";
    assert_eq!(database.value(letters), "54000store");
    let read = "SELECT count(*) FROM events WHERE lower(concat(event, ' ', resource, ' ', related, ' ', \
        payload)) NOT LIKE '%nothing of the kind%'";
    assert_eq!(database.value(read), "3");
}

#[actix::test]
async fn a_culprit_leaves_its_id_to_a_better_event() {
    let (database, store) = migrated().await;
    let bad = with_payload(NUL);
    let good = event(bad.id);
    let again = event(bad.id);
    let known = any_event();
    store.write(of_events([known.clone()])).await.unwrap();
    let batch = of_events([bad, known, good, any_event(), again]);
    let outcomes = store.write(Arc::clone(&batch)).await.unwrap();
    let expected = [
        Outcome::RefusedByStore(RefusalReason::InvalidData),
        Outcome::Duplicate,
        Outcome::Stored,
        Outcome::Stored,
        Outcome::Duplicate,
    ];
    assert_eq!(outcomes, expected);
    let outcomes = store.write(batch).await.unwrap();
    assert_eq!(
        outcomes[0],
        Outcome::RefusedByStore(RefusalReason::InvalidData)
    );
    assert!(
        outcomes[1..]
            .iter()
            .all(|outcome| *outcome == Outcome::Duplicate)
    );
    assert_eq!(database.value("SELECT count(*) FROM event_resources"), "6");
}

#[actix::test]
async fn what_fails_on_its_way_to_the_server_is_refused_before() {
    let (_database, store) = migrated().await;
    let bad_name = EventFixture {
        event: "a\0b".to_owned(),
        ..EventFixture::default()
    };
    let bad_id = EventFixture {
        resource_id: "a\0b".to_owned(),
        ..EventFixture::default()
    };
    let bad_related = EventFixture {
        related: vec![("a".to_owned(), "r\0".to_owned())],
        ..EventFixture::default()
    };
    let too_late = EventFixture {
        occurred: "9999-12-31T23:59:59-01:00".parse().unwrap(),
        ..EventFixture::default()
    };
    let bad = [bad_name, bad_id, bad_related, too_late].map(EventFixture::build);
    let outcomes = store
        .write(of_events(bad.into_iter().chain([any_event()])))
        .await
        .unwrap();
    assert_eq!(outcomes[4], Outcome::Stored);
    assert!(
        outcomes[..4]
            .iter()
            .all(|outcome| *outcome == Outcome::RefusedByStore(RefusalReason::InvalidData))
    );
    let letters = all_letters(&store).await;
    let codes: BTreeSet<_> = letters.into_iter().map(|letter| letter.sqlstate).collect();
    let expected = ["22008", "22021"].map(|code| Some(code.to_owned()));
    assert_eq!(codes, BTreeSet::from(expected));
}

#[actix::test]
async fn a_row_that_a_trigger_swallows_does_not_pass_for_a_duplicate() {
    for table in ["events", "event_resources"] {
        let (database, store) = migrated().await;
        let victim = any_event();
        let column = if table == "events" { "id" } else { "event_id" };
        database.execute(&format!(
            "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RETURN NULL; END $$; \
             CREATE TRIGGER swallow BEFORE INSERT ON {table} FOR EACH ROW \
             WHEN (NEW.{column} = '{}') EXECUTE FUNCTION swallow()",
            victim.id
        ));
        let known = any_event();
        store.write(of_events([known.clone()])).await.unwrap();
        let batch = of_events([any_event(), victim, known, any_event()]);
        let outcomes = store.write(batch).await.unwrap();
        let expected = [
            Outcome::Stored,
            Outcome::RefusedByStore(RefusalReason::Swallowed),
            Outcome::Duplicate,
            Outcome::Stored,
        ];
        assert_eq!(outcomes, expected, "{table}");
        let letters = all_letters(&store).await;
        assert!(letters[0].reason.contains("trigger"), "{letters:?}");
        assert_eq!(letters[0].sqlstate, None);
    }
}

/// Any number that nobody else locks.
const PAUSE: i64 = 17;

#[actix::test]
async fn an_event_whose_older_self_is_trimmed_while_it_is_written_is_stored() {
    let (database, store) = migrated().await;
    let event = any_event();
    store.write(of_events([event.clone()])).await.unwrap();
    // Stops every insert between its end and the look at what was there already.
    database.execute(&format!(
        "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_advisory_xact_lock_shared({PAUSE}); RETURN NULL; END $$; \
         CREATE TRIGGER pause AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION pause()"
    ));
    let (client, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    client
        .batch_execute(&format!("SELECT pg_advisory_lock({PAUSE})"))
        .await
        .unwrap();
    let trim = async {
        let waits = format!(
            "SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database \
             WHERE datname = current_database() AND objid = {PAUSE} AND NOT granted"
        );
        while client.query(&waits, &[]).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let trim = "DELETE FROM event_resources; DELETE FROM events";
        client.batch_execute(trim).await.unwrap();
        // Only now: within one call, the lock would be given back before the rows were gone.
        let go_on = format!("SELECT pg_advisory_unlock({PAUSE})");
        client.batch_execute(&go_on).await.unwrap();
    };
    let (outcomes, ()) = tokio::join!(store.write(of_events([event])), trim);
    connection.abort();
    assert_eq!(outcomes.unwrap(), [Outcome::Stored]);
    assert_eq!(all_letters(&store).await, []);
    let resources = "SELECT count(*) FROM event_resources";
    assert_eq!(database.value(resources), "2");
}

#[actix::test]
async fn constraints_of_an_operator_refuse_single_events_even_when_deferred() {
    let (database, store) = migrated().await;
    database.execute(
        "ALTER TABLE events ADD CONSTRAINT no_evil CHECK (event <> 'evil'); \
         ALTER TABLE events ADD CONSTRAINT once UNIQUE (follows) DEFERRABLE INITIALLY DEFERRED",
    );
    let evil = EventFixture {
        event: "evil".to_owned(),
        ..EventFixture::default()
    };
    let follows = Some(Uuid::new_v4());
    let [one, two] = [1, 2].map(|id| EventFixture {
        id: Uuid::from_u128(id),
        follows,
        ..EventFixture::default()
    });
    let batch = of_events([evil.build(), one.build(), two.build(), any_event()]);
    let outcomes = store.write(batch).await.unwrap();
    let expected = [
        Outcome::RefusedByStore(RefusalReason::Constraint),
        Outcome::Stored,
        Outcome::RefusedByStore(RefusalReason::Constraint),
        Outcome::Stored,
    ];
    assert_eq!(outcomes, expected);
}

#[actix::test]
async fn a_column_that_is_not_known_makes_no_dead_letters() {
    let (database, store) = migrated().await;
    store.write(of_events([any_event()])).await.unwrap();
    database.execute(
        "ALTER TABLE events ADD COLUMN tenant text; \
         ALTER TABLE events ADD CONSTRAINT filled CHECK (true), ALTER tenant SET DEFAULT 'a'; \
         UPDATE events SET tenant = 'a'; \
         ALTER TABLE events ALTER tenant SET NOT NULL, ALTER tenant DROP DEFAULT",
    );
    let batch = of_events([any_event(), with_payload(NUL)]);
    let error = store.write(Arc::clone(&batch)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(chain(&error).contains("tenant"), "{}", chain(&error));
    // From now on it is known by the check of a new connection.
    let error = store.write(Arc::clone(&batch)).await.unwrap_err();
    assert!(error.to_string().contains("column tenant"), "{error}");
    assert_eq!(
        database.value("SELECT count(*) FROM event_persister_dead_letters"),
        "0"
    );
    database.execute("ALTER TABLE events DROP COLUMN tenant");
    let outcomes = store.write(batch).await.unwrap();
    assert_eq!(
        outcomes,
        [
            Outcome::Stored,
            Outcome::RefusedByStore(RefusalReason::InvalidData)
        ]
    );
}

#[actix::test]
async fn a_locked_table_is_waited_for_and_its_holder_named() {
    let database = Server::shared().database();
    let mut settings = database.settings();
    settings.lock_timeout = Duration::from_millis(200);
    let store = store(settings);
    store.check().await.unwrap();
    let (client, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    actix::spawn(connection);
    client
        .batch_execute("SET application_name = 'the holder'; BEGIN; LOCK TABLE events")
        .await
        .unwrap();
    let batch = of_events([any_event()]);
    let error = store.write(Arc::clone(&batch)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("(the holder)"), "{error}");
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(store.write(batch).await.unwrap(), [Outcome::Stored]);
}

/// What a write comes to.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Refused,
    Unavailable,
    TooSlow,
    OutcomeUnknown,
}

/// What a refusal with this code counts as.
fn refusal(code: &str) -> RefusalReason {
    match &code[..2] {
        "22" => RefusalReason::InvalidData,
        "23" => RefusalReason::Constraint,
        "54" => RefusalReason::TooLarge,
        _ => RefusalReason::Raised,
    }
}

#[actix::test]
async fn every_sqlstate_is_of_one_kind() {
    every_sqlstate_beside(1).await;
}

#[actix::test]
async fn every_sqlstate_is_of_the_same_kind_where_batches_are_copied() {
    every_sqlstate_beside(copying::MANY).await;
}

/// In a batch with so many other events.
async fn every_sqlstate_beside(num_others: usize) {
    const KINDS: [(Kind, &[&str]); 4] = [
        (
            Kind::Refused,
            &[
                "22000", "22001", "22003", "22008", "22021", "22P02", "22P05", "23000", "23001",
                "23503", "23505", "23514", "23P01", "54000", "54001", "54011", "54023", "P0001",
            ],
        ),
        (
            Kind::Unavailable,
            &[
                "08000", "08003", "08006", "0A000", "21000", "23502", "24000", "25006", "25P02",
                "26000", "28000", "28P01", "2F000", "34000", "38000", "39000", "3D000", "3F000",
                "40000", "40001", "40P01", "42000", "42501", "42601", "42703", "42883", "42P01",
                "44000", "53000", "53100", "53200", "53300", "53400", "55000", "55006", "55P03",
                "57000", "57P01", "57P02", "57P03", "58000", "58030", "72000", "F0000", "HV000",
                "P0000", "P0002", "XX000", "XX001", "XX002", "ZZ999",
            ],
        ),
        (Kind::TooSlow, &["57014"]),
        (Kind::OutcomeUnknown, &["08007", "40003"]),
    ];
    let (database, store) = migrated().await;
    database.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF NEW.event LIKE 'fail %' THEN \
         RAISE EXCEPTION 'as the test wants' USING ERRCODE = split_part(NEW.event, ' ', 2); \
         END IF; RETURN NEW; END $$; \
         CREATE TRIGGER fail BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION fail()",
    );
    for (expected, codes) in KINDS {
        for code in codes {
            let failing = EventFixture {
                event: format!("fail {code}"),
                ..EventFixture::default()
            };
            let others = (0..num_others).map(|_| any_event());
            let batch = of_events(others.chain([failing.build()]));
            // So that each of them is tried by COPY first, where it is large enough.
            let ordinary = (0..num_others).map(|_| any_event());
            store.write(of_events(ordinary)).await.unwrap();
            let kind = match store.write(batch).await {
                Ok(outcomes) => {
                    let (refused, stored) = outcomes.split_last().unwrap();
                    assert!(stored.iter().all(|one| *one == Outcome::Stored), "{code}");
                    assert_eq!(*refused, Outcome::RefusedByStore(refusal(code)), "{code}");
                    Kind::Refused
                }
                Err(StoreError::Unavailable { .. }) => Kind::Unavailable,
                Err(StoreError::TooSlow { .. }) => Kind::TooSlow,
                Err(StoreError::OutcomeUnknown { .. }) => Kind::OutcomeUnknown,
            };
            assert_eq!(kind, expected, "{code}");
        }
    }
    let counts = "SELECT (SELECT count(*) FROM events) || ' ' || \
        (SELECT count(*) FROM event_persister_dead_letters)";
    let num_refused = KINDS[0].1.len();
    let num_codes: usize = KINDS.iter().map(|(_, codes)| codes.len()).sum();
    let num_stored = num_others * (num_codes + num_refused);
    assert_eq!(
        database.value(counts),
        format!("{num_stored} {num_refused}")
    );
}

#[actix::test]
async fn a_batch_that_takes_longer_than_a_statement_may_is_too_slow_and_its_halves_are_not() {
    let database = Server::shared().database();
    let mut settings = database.settings();
    settings.statement_timeout = Duration::from_secs(1);
    let store = store(settings);
    store.check().await.unwrap();
    database.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF (SELECT count(*) FROM new_rows) > 2 THEN PERFORM pg_sleep(60); END IF; \
         RETURN NULL; END $$; \
         CREATE TRIGGER slow AFTER INSERT ON events REFERENCING NEW TABLE AS new_rows \
         FOR EACH STATEMENT EXECUTE FUNCTION slow()",
    );
    let events: Vec<_> = (0..4).map(|_| any_event()).collect();
    let whole = of_events(events.iter().cloned());
    let error = store.write(whole).await.unwrap_err();
    assert!(matches!(error, StoreError::TooSlow { .. }), "{error:?}");
    assert_eq!(database.value("SELECT count(*) FROM events"), "0");
    for half in events.chunks(2) {
        let outcomes = store.write(of_events(half.iter().cloned())).await.unwrap();
        assert_eq!(outcomes, [Outcome::Stored, Outcome::Stored]);
    }
}

#[actix::test]
async fn a_connection_killed_in_the_middle_loses_and_doubles_nothing() {
    let (database, store) = migrated().await;
    store.write(of_events([any_event()])).await.unwrap();
    database.execute(
        "CREATE FUNCTION kill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$; \
         CREATE TRIGGER kill AFTER INSERT ON event_resources EXECUTE FUNCTION kill()",
    );
    let batch = of_events([any_event(), any_event()]);
    let error = store.write(Arc::clone(&batch)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    database.execute("DROP TRIGGER kill ON event_resources");
    let outcomes = store.write(batch).await.unwrap();
    assert_eq!(outcomes, [Outcome::Stored, Outcome::Stored]);
    assert_eq!(database.value("SELECT count(*) FROM event_resources"), "6");
}

#[actix::test]
async fn a_connection_that_died_while_idle_is_made_again_at_once() {
    let (database, store) = migrated().await;
    store.write(of_events([any_event()])).await.unwrap();
    let kill = format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {ARE_OF_OTHERS}"
    );
    assert_eq!(database.value(&kill), "t");
    let outcomes = store.write(of_events([any_event()])).await.unwrap();
    assert_eq!(outcomes, [Outcome::Stored]);
}

/// Passes everything on to `port`, and cuts the connection when the server has answered a COMMIT; the
/// first of a connection ends its set-up and gets through. Returns its own port.
async fn cut_after_commit(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own_port = listener.local_addr().unwrap().port();
    actix::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let mut num_commits = 0;
            let (mut sent, mut answer) = ([0; 65_536], [0; 65_536]);
            loop {
                tokio::select! {
                    Ok(length) = client.read(&mut sent) => {
                        if length == 0 { break; }
                        let sent = &sent[..length];
                        num_commits += usize::from(sent.windows(7).any(|text| text == b"COMMIT\0"));
                        server.write_all(sent).await.unwrap();
                    }
                    Ok(length) = server.read(&mut answer) => {
                        if length == 0 || num_commits == 4 { break; }
                        client.write_all(&answer[..length]).await.unwrap();
                    }
                }
            }
        }
    });
    own_port
}

#[actix::test]
async fn a_commit_whose_answer_is_lost_may_have_happened_and_is_found_again() {
    let (database, _store) = migrated().await;
    let port = Server::shared().port();
    let proxy = cut_after_commit(port).await;
    let url = database
        .url
        .replace(&format!(":{port}/"), &format!(":{proxy}/"));
    let store = store(PostgresSettings::from_url(&url).unwrap());
    let batch = of_events([any_event(), with_payload(NUL)]);
    let error = store.write(Arc::clone(&batch)).await.unwrap_err();
    assert!(
        matches!(error, StoreError::OutcomeUnknown { .. }),
        "{error:?}"
    );
    let store = self::store(database.settings());
    let outcomes = store.write(batch).await.unwrap();
    assert_eq!(
        outcomes,
        [
            Outcome::Duplicate,
            Outcome::RefusedByStore(RefusalReason::InvalidData)
        ]
    );
    let letters = all_letters(&store).await;
    assert_eq!((letters.len(), letters[0].attempts), (1, 2));
}

#[actix::test]
async fn a_write_that_nobody_waits_for_leaves_the_store_usable() {
    let (database, store) = migrated().await;
    let batch = of_events((0..100).map(|_| any_event()));
    for millis in [0, 1, 3, 8] {
        let write = store.write(Arc::clone(&batch));
        let limit = Duration::from_millis(millis);
        drop(tokio::time::timeout(limit, write).await);
    }
    store.write(batch).await.unwrap();
    let counts = "SELECT count(DISTINCT e.id) || ' ' || count(*) FROM events e \
        JOIN event_resources r ON r.event_id = e.id";
    assert_eq!(database.value(counts), "100 200");
}

#[actix::test]
async fn writers_that_meet_the_same_ids_do_not_deadlock() {
    let (database, _) = migrated().await;
    let events: Vec<_> = (0..300).map(|_| any_event()).collect();
    let bad: Vec<_> = (0..10).map(|_| with_payload(NUL)).collect();
    let forwards: Vec<_> = events.iter().chain(&bad).cloned().collect();
    let backwards: Vec<_> = forwards.iter().rev().cloned().collect();
    let write = async |events: Vec<ReceivedEvent>| {
        let store = store(database.settings());
        let mut num_stored = 0;
        for chunk in events.chunks(62) {
            let outcomes = store.write(of_events(chunk.to_vec())).await.unwrap();
            let stored = outcomes
                .iter()
                .filter(|outcome| **outcome == Outcome::Stored);
            num_stored += stored.count();
        }
        num_stored
    };
    let (one, two, three) =
        tokio::join!(write(forwards.clone()), write(backwards), write(forwards));
    assert_eq!(one + two + three, 300);
    let counts = "SELECT (SELECT count(*) FROM events) || ' ' || \
        (SELECT count(*) FROM event_resources) || ' ' || \
        (SELECT count(*) || ' ' || sum(attempts) FROM event_persister_dead_letters)";
    assert_eq!(database.value(counts), "300 600 10 30");
}
