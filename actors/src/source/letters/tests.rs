use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::*;
use crate::delivery::{Batch, BatchId, Content, Rejection};
use crate::source::Message;
use crate::store::{EventStore as _, Outcome, RefusalReason, Stage};
use crate::testing::{ManualClock, MemoryStore, rejected_entry};

const WIDE: Permit = Permit {
    max_messages: 100,
    max_bytes: 1_000_000,
};

fn entry(position: &str, raw: &str) -> Arc<Entry> {
    Arc::new(Entry::parse(
        "redis".into(),
        Position::new(position),
        raw.to_owned().into(),
        &EventLimits::default(),
        Received::FromText {
            default: DateTime::UNIX_EPOCH,
        },
    ))
}

/// An event's text without `received`.
fn text(id: Uuid) -> String {
    format!(
        r#"{{"id": "{id}", "occurred": "2026-01-01T00:00:00Z", "event": "e",
            "resource": {{"prefect.resource.id": "r"}}}}"#
    )
}

async fn write(store: &MemoryStore, entries: Vec<Arc<Entry>>) -> Vec<Outcome> {
    let batch = Batch::new(BatchId(0), entries);
    store.write(Arc::new(batch)).await.unwrap()
}

/// A store that has refused an event for as long as it is not told to accept it.
async fn with_refused() -> (MemoryStore, Uuid) {
    let (store, id) = (MemoryStore::new(), Uuid::new_v4());
    store.refuse(id);
    let outcomes = write(&store, vec![entry("1-1", &text(id))]).await;
    assert_eq!(outcomes, [Outcome::RefusedByStore(RefusalReason::Raised)]);
    (store, id)
}

fn source(store: &MemoryStore) -> LetterSource {
    let store = Arc::new(store.clone());
    LetterSource::new(store, LetterFilter::default(), None, EventLimits::default())
}

async fn read(source: &LetterSource) -> Vec<Message> {
    source.read(WIDE).await.unwrap().messages
}

fn entry_of(message: &Message) -> Arc<Entry> {
    match &message.body {
        Body::Entry(entry) => Arc::clone(entry),
        Body::Raw { .. } => panic!("not parsed"),
    }
}

/// What a pipeline does with the first message; returns what became of it.
async fn write_and_acknowledge(store: &MemoryStore, source: &LetterSource) -> Outcome {
    let messages = read(source).await;
    let outcomes = write(store, vec![entry_of(&messages[0])]).await;
    source.acknowledge(&[messages[0].receipt]).await.unwrap();
    outcomes[0].clone()
}

#[actix::test]
async fn a_letter_comes_as_the_message_that_it_was() {
    let first_seen: DateTime<Utc> = "2026-01-02T03:04:05Z".parse().unwrap();
    let store = MemoryStore::with_clock(Arc::new(ManualClock::at(first_seen)));
    let (id, raw) = (Uuid::new_v4(), text(Uuid::nil()));
    let raw = raw.replace(&Uuid::nil().to_string(), &id.to_string());
    store.refuse(id);
    write(&store, vec![entry("1-1", &raw)]).await;
    write(&store, vec![entry("1-2", "{")]).await;
    let messages = read(&source(&store)).await;
    let [no_event, event] = [0, 1].map(|at| entry_of(&messages[at]));
    assert_eq!((&*event.source, event.position.as_str()), ("redis", "1-1"));
    assert_eq!(event.raw(), raw.as_bytes());
    let parsed = event.event().unwrap();
    assert_eq!((parsed.id, parsed.received), (id, first_seen));
    assert_eq!(no_event.position.as_str(), "1-2");
    assert!(matches!(
        &no_event.content,
        Content::Rejected(Rejection { raw, .. }) if *raw == "{"
    ));
}

#[actix::test]
async fn a_letter_goes_once_its_event_is_stored() {
    let (store, id) = with_refused().await;
    store.accept(id);
    let outcome = write_and_acknowledge(&store, &source(&store)).await;
    assert_eq!(outcome, Outcome::Stored);
    assert_eq!(store.dead_letters(), []);
    assert!(store.event(id).is_some());
}

#[actix::test]
async fn a_letter_that_is_refused_again_stays_and_has_come_once_more() {
    let (store, _) = with_refused().await;
    for attempts in [2, 3] {
        let outcome = write_and_acknowledge(&store, &source(&store)).await;
        assert_eq!(outcome, Outcome::RefusedByStore(RefusalReason::Raised));
        let letters = store.dead_letters();
        assert_eq!(letters.len(), 1);
        assert_eq!(letters[0].0.attempts, attempts);
    }
}

#[actix::test]
async fn a_letter_that_the_parser_would_now_take_shows_what_the_database_says() {
    let (store, id) = (MemoryStore::new(), Uuid::new_v4());
    let rejected = rejected_entry("1", text(id).as_bytes(), "too long a name");
    write(&store, vec![rejected]).await;
    store.refuse(id);
    write_and_acknowledge(&store, &source(&store)).await;
    let (letter, _) = &store.dead_letters()[0];
    assert_eq!((letter.stage, letter.attempts), (Stage::Store, 2));
    assert_ne!(letter.reason, "too long a name");
}

#[actix::test]
async fn a_crash_between_commit_and_removal_leaves_a_duplicate_that_the_next_replay_removes() {
    let (store, id) = with_refused().await;
    store.accept(id);
    let messages = read(&source(&store)).await;
    write(&store, vec![entry_of(&messages[0])]).await;
    assert_eq!(store.dead_letters().len(), 1);
    let outcome = write_and_acknowledge(&store, &source(&store)).await;
    assert_eq!(outcome, Outcome::Duplicate);
    assert_eq!(store.dead_letters(), []);
}

#[actix::test]
async fn a_removal_that_failed_is_made_up_for() {
    let (store, id) = with_refused().await;
    store.accept(id);
    let source = source(&store);
    let messages = read(&source).await;
    write(&store, vec![entry_of(&messages[0])]).await;
    store.set_available(false);
    let receipts = [messages[0].receipt];
    source.acknowledge(&receipts).await.unwrap_err();
    source.read(WIDE).await.unwrap_err();
    store.set_available(true);
    source.acknowledge(&receipts).await.unwrap();
    assert_eq!(store.dead_letters(), []);
    assert_eq!(source.read(WIDE).await.unwrap().more, More::Ended);
}

#[actix::test]
async fn what_comes_meanwhile_is_left_alone() {
    let store = MemoryStore::new();
    write(&store, vec![entry("1", "{"), entry("2", "{")]).await;
    let source = source(&store);
    let one = Permit {
        max_messages: 1,
        ..WIDE
    };
    let first = source.read(one).await.unwrap().messages;
    write(&store, vec![entry("3", "{")]).await;
    let rest = read(&source).await;
    let positions = [&first[0], &rest[0]].map(|message| entry_of(message).position.clone());
    assert_eq!(positions.map(|position| position.to_string()), ["2", "1"]);
    assert_eq!(rest.len(), 1);
    assert!(read(&source).await.is_empty());
}

#[actix::test]
async fn reads_no_more_bytes_than_it_may_keep() {
    let store = MemoryStore::new();
    let long = "x".repeat(600);
    for position in ["1", "2", "3"] {
        write(&store, vec![entry(position, &long)]).await;
    }
    let source = source(&store);
    let narrow = Permit {
        max_bytes: 1_000,
        ..WIDE
    };
    assert_eq!(source.read(narrow).await.unwrap().messages.len(), 1);
    assert_eq!(source.lock().kept.len(), 1);
}
