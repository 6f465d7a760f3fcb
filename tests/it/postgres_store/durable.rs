//! A commit counts once the synchronous standby has it, and so does what was found there already.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use event_persister_actors::store::operator::LetterVersion;
use event_persister_actors::store::{EventStore as _, Outcome, RefusalReason};
use event_persister_actors::testing::rejected_entry;

use super::connect::Bouncer;
use super::copying::{MANY, note_rows, ways};
use super::*;

/// A server whose standby never comes. Only those wait for it who are told to.
fn server() -> &'static Server {
    static WITHOUT_STANDBY: OnceLock<Server> = OnceLock::new();
    WITHOUT_STANDBY.get_or_init(|| {
        Server::start("synchronous_standby_names = 'nobody'\nsynchronous_commit = local\n")
    })
}

/// A database with all tables, and a store of it.
async fn prepared() -> (Database, PostgresStore) {
    let database = server().database();
    let store = store(database.settings());
    store.migrate().await.unwrap();
    (database, store)
}

/// What sessions wait for that come from now on.
fn commits_wait_for(database: &Database, level: &str) {
    let name = &database.name;
    database.execute(&format!(
        "SET synchronous_commit = local; ALTER DATABASE {name} SET synchronous_commit = {level}"
    ));
    if level == "on" {
        database.until_commits_wait();
    }
}

/// Runs it until its commit waits for the standby, and then calls this function for its process.
async fn with_commit_ended<T>(
    database: &Database,
    by: &str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let end = async {
        let mut waiting = BTreeSet::new();
        while waiting.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            waiting = database.committing();
        }
        for process in waiting {
            database.execute(&format!("SELECT {by}({process})"));
        }
    };
    // What returns without having waited must not be waited for.
    tokio::select! {
        done = work => done,
        never = async { end.await; std::future::pending().await } => never,
    }
}

#[track_caller]
fn is_unknown<T: std::fmt::Debug>(written: Result<T, StoreError>) -> String {
    match written {
        Err(error @ StoreError::OutcomeUnknown { .. }) => chain(&error),
        other => panic!("{other:?}"),
    }
}

/// The wait is ended twice: that of the first attempt, and that of the second, which finds everything
/// there. Without a wait of its own that one would acknowledge what the standby may never have got.
async fn is_waited_for(events: Vec<ReceivedEvent>, by: &str) -> (Database, Vec<Outcome>) {
    let (database, store) = prepared().await;
    note_rows(&database);
    commits_wait_for(&database, "on");
    store.close().await.unwrap();
    let batch = of_events(events);
    for attempt in 0..2 {
        let written = with_commit_ended(&database, by, store.write(Arc::clone(&batch))).await;
        let told = is_unknown(written);
        assert!(
            told.contains("a standby may not have it"),
            "{attempt}: {told}"
        );
        // That is what makes it dangerous: everybody sees it.
        let there = "SELECT count(DISTINCT id) > 0 FROM events";
        assert_eq!(database.value(there), "t", "{attempt}");
    }
    commits_wait_for(&database, "local");
    let outcomes = store.write(batch).await.unwrap();
    (database, outcomes)
}

#[actix::test]
async fn a_single_event() {
    for by in ["pg_cancel_backend", "pg_terminate_backend"] {
        let (database, outcomes) = is_waited_for(vec![any_event()], by).await;
        assert_eq!(outcomes, [Outcome::Duplicate]);
        assert!(ways(&database).starts_with("call"));
    }
}

#[actix::test]
async fn an_event_that_comes_twice_at_once() {
    for by in ["pg_cancel_backend", "pg_terminate_backend"] {
        let event = any_event();
        let (_, outcomes) = is_waited_for(vec![event.clone(), event], by).await;
        assert_eq!(outcomes, [Outcome::Duplicate, Outcome::Duplicate]);
    }
}

#[actix::test]
async fn many_events_that_are_copied() {
    for by in ["pg_cancel_backend", "pg_terminate_backend"] {
        let events = (0..MANY).map(|_| any_event()).collect();
        let (database, outcomes) = is_waited_for(events, by).await;
        assert_eq!(outcomes, vec![Outcome::Duplicate; MANY]);
        assert!(ways(&database).starts_with("copy"));
    }
}

/// Another replica has been handed the same events.
#[actix::test]
async fn what_somebody_else_has_stored_is_waited_for() {
    let (database, first) = prepared().await;
    commits_wait_for(&database, "on");
    first.close().await.unwrap();
    let second = store(database.settings());
    let batch = of_events([any_event(), any_event()]);
    let cancel = "pg_cancel_backend";
    is_unknown(with_commit_ended(&database, cancel, first.write(Arc::clone(&batch))).await);
    is_unknown(with_commit_ended(&database, cancel, second.write(batch)).await);
}

/// Which passes warnings on.
#[actix::test]
async fn behind_pgbouncer() {
    let (database, _) = prepared().await;
    commits_wait_for(&database, "on");
    let bouncer = Bouncer::start(server(), 4).await;
    let (direct, pooled) = (
        format!(":{}/", server().port()),
        format!(":{}/", bouncer.port),
    );
    let url = database.url.replace(&direct, &pooled);
    let mut settings = PostgresSettings::from_url(&url).unwrap();
    settings.prepared_statements = false;
    let store = store(settings);
    let event = any_event();
    let batch = of_events([event.clone(), event]);
    for by in ["pg_cancel_backend", "pg_terminate_backend"] {
        is_unknown(with_commit_ended(&database, by, store.write(Arc::clone(&batch))).await);
    }
}

#[actix::test]
async fn dead_letters_and_their_removal() {
    let (database, store) = prepared().await;
    commits_wait_for(&database, "on");
    store.close().await.unwrap();
    let rejected = rejected_entry("1", b"no event", "no event");
    let bad = with_payload(r#"{"k": "\u0000"}"#);
    let batch = batch(vec![rejected, event_entry(bad)]);
    let cancel = "pg_cancel_backend";
    for _ in 0..2 {
        is_unknown(with_commit_ended(&database, cancel, store.write(Arc::clone(&batch))).await);
    }
    let letters: Vec<_> = (all_letters(&store).await.into_iter())
        .map(|letter| LetterVersion {
            id: letter.id,
            attempts: letter.attempts,
        })
        .collect();
    assert_eq!(letters.len(), 2);
    let removed = with_commit_ended(&database, cancel, store.remove_letters(&letters)).await;
    is_unknown(removed);
    assert_eq!(store.remove_letters(&letters).await.unwrap(), 0);
    commits_wait_for(&database, "local");
    store.close().await.unwrap();
    let outcomes = store.write(batch).await.unwrap();
    let refused = Outcome::RefusedByStore(RefusalReason::InvalidData);
    assert_eq!(outcomes, [Outcome::RejectedAtParse, refused]);
}

#[actix::test]
async fn a_role_that_would_hear_of_errors_alone() {
    for num_events in [1, MANY] {
        let (database, store) = prepared().await;
        database.execute(&format!(
            "ALTER DATABASE {} SET client_min_messages = error",
            database.name
        ));
        commits_wait_for(&database, "on");
        store.close().await.unwrap();
        let batch = of_events((0..num_events).map(|_| any_event()));
        is_unknown(with_commit_ended(&database, "pg_cancel_backend", store.write(batch)).await);
    }
}

/// A trigger's warnings come before the commit and have nothing to do with it.
#[actix::test]
async fn warnings_of_others_do_not_count() {
    let (database, store) = prepared().await;
    database.execute(
        "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE WARNING 'a warning' USING ERRCODE = '57P01'; RETURN NEW; END $$; \
         CREATE TRIGGER warn BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION warn(); \
         CREATE CONSTRAINT TRIGGER late AFTER INSERT ON event_resources \
         DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION warn()",
    );
    for num_events in [1, MANY] {
        let batch = of_events((0..num_events).map(|_| any_event()));
        let outcomes = store.write(Arc::clone(&batch)).await.unwrap();
        assert_eq!(outcomes, vec![Outcome::Stored; num_events]);
        let outcomes = store.write(batch).await.unwrap();
        assert_eq!(outcomes, vec![Outcome::Duplicate; num_events]);
    }
}
