use super::*;
use crate::clock::SystemClock;
use crate::delivery::{Batch, BatchId};
use crate::event::{EventLimits, ReceivedEvent, Resource};
use crate::lifeline::lifeline;
use crate::store::{Fault, RefusalCounts, RefusalReason};
use crate::testing::{MemoryStore, event, event_entry, pause_time, rejected_entry};
use uuid::Uuid;

fn batch(ids: std::ops::Range<u128>) -> Arc<Batch> {
    let entries = ids.map(|id| event_entry(event(Uuid::from_u128(id))));
    Arc::new(Batch::new(BatchId(1), entries.collect()))
}

fn flush(batch: Arc<Batch>) -> Flush {
    Flush::alone(batch, Purpose::Write)
}

fn writer(store: &MemoryStore) -> (Addr<DbWriterActor>, crate::lifeline::Watch) {
    let (alive, watch) = lifeline();
    let writer = DbWriterActor::new((store.open_store())(), Arc::new(SystemClock), alive).start();
    (writer, watch)
}

#[actix::test]
async fn answers_only_after_the_commit() {
    let store = MemoryStore::new();
    let (writer, _) = writer(&store);
    store.hold();
    let reply = actix_rt::spawn(writer.send(flush(batch(0..3))));
    store.wait_for_write_started().await;
    assert!(!reply.is_finished());
    assert_eq!(store.num_events(), 0);
    store.release();
    let flushed = reply.await.unwrap().unwrap().unwrap();
    assert_eq!(flushed.inserted, 3);
    assert_eq!(store.num_events(), 3);
}

#[actix::test]
async fn tells_what_became_of_each() {
    let store = MemoryStore::new();
    let (writer, _) = writer(&store);
    store.refuse(Uuid::from_u128(1));
    let mut entries = batch(0..3).entries().to_vec();
    entries.push(Arc::clone(&entries[0]));
    entries.push(rejected_entry("here", b"garbage", "not JSON"));
    let batch = Arc::new(Batch::new(BatchId(1), entries));
    let flushed = writer.send(flush(batch)).await.unwrap().unwrap();
    let expected = Flushed {
        inserted: 2,
        duplicates: 1,
        rejected_at_parse: 1,
        refused_by_store: RefusalCounts::of(RefusalReason::Raised, 1),
        letters: vec![1, 4],
    };
    assert_eq!(flushed, expected);
}

#[actix::test]
async fn writes_one_batch_at_a_time() {
    let store = MemoryStore::new();
    let (writer, _) = writer(&store);
    store.hold();
    let first = actix_rt::spawn(writer.send(flush(batch(0..1))));
    let second = actix_rt::spawn(writer.send(flush(batch(1..2))));
    store.wait_for_write_started().await;
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.num_writes(), 1, "began a second write");
    store.release();
    first.await.unwrap().unwrap().unwrap();
    second.await.unwrap().unwrap().unwrap();
}

#[actix::test]
async fn goes_on_after_an_error() {
    let store = MemoryStore::new();
    let (writer, _) = writer(&store);
    store.fail_next(1);
    let failed = writer.send(flush(batch(0..1))).await.unwrap();
    let failed = failed.unwrap_err();
    assert!(matches!(failed.error, StoreError::Unavailable { .. }));
    assert_eq!(failed.control, Control::NotTried, "it was not reached");
    let flushed = writer.send(flush(batch(0..1))).await.unwrap();
    assert_eq!(flushed.unwrap().inserted, 1);
}

#[actix::test]
async fn the_control_beside_a_lost_connection_is_as_large_as_the_event() {
    let store = MemoryStore::new();
    let (writer, _) = writer(&store);
    let large = rejected_entry("here", &[b'x'; 4_000], "not JSON");
    let batch = Arc::new(Batch::new(BatchId(1), vec![large]));
    let flush = || Flush {
        template: Some(event_entry(event(Uuid::from_u128(1)))),
        ..flush(Arc::clone(&batch))
    };
    store.lose_connections_above(Some(2_000));
    let failed = writer.send(flush()).await.unwrap().unwrap_err();
    assert_eq!(failed.control, Control::Failed, "the path is to blame");
    store.lose_connections_above(None);
    assert!(writer.send(flush()).await.unwrap().is_ok());
}

#[actix::test]
async fn where_room_is_short_a_small_event_that_is_taken_tells_nothing() {
    let store = MemoryStore::new();
    let (writer, _) = writer(&store);
    let fault = Fault {
        kind: FaultKind::Resources,
        code: None,
    };
    store.fail_with(Uuid::from_u128(0), fault);
    // Room for one event, and not for as many as a control has there.
    store.lose_connections_above(Some(2_000));
    let flush = Flush {
        template: Some(event_entry(event(Uuid::from_u128(1)))),
        ..flush(batch(0..1))
    };
    let failed = writer.send(flush).await.unwrap().unwrap_err();
    assert_eq!(failed.control, Control::Failed);
}

/// Of an event with this name, beside one called `small` that the store took, where one of ours is too large.
async fn control_beside(name: &str, kind: FaultKind) -> Control {
    let store = MemoryStore::new();
    let (writer, _) = writer(&store);
    store.fail_with(Uuid::from_u128(0), Fault { kind, code: None });
    let now = SystemClock.now();
    let named = |name: &str| {
        let event = ReceivedEvent::builder(name, Resource::new("test.resource"));
        let event = event.id(Uuid::from_u128(0));
        event_entry(event.build(&EventLimits::default(), now).unwrap())
    };
    let entry = named(name);
    let ours = control::beside(&entry, kind, now).unwrap();
    assert!(ours.num_bytes() > entry.num_bytes());
    store.lose_connections_above(Some(entry.num_bytes()));
    let flush = Flush {
        template: Some(named("small")),
        ..flush(Arc::new(Batch::new(BatchId(1), vec![entry])))
    };
    writer.send(flush).await.unwrap().unwrap_err().control
}

#[actix::test]
async fn the_size_of_a_control_matters_beside_a_lost_connection_of_a_larger_event_alone() {
    let larger = "not.so.small";
    let control = control_beside(larger, FaultKind::Transient).await;
    assert_eq!(control, Control::Failed);
    let control = control_beside("equal", FaultKind::Transient).await;
    assert_eq!(control, Control::Passed);
    let control = control_beside(larger, FaultKind::Lasting).await;
    assert_eq!(control, Control::Passed);
}

#[actix::test]
async fn a_writer_tells_when_the_controls_before_an_attempt_have_passed() {
    let store = MemoryStore::new();
    let (writer, _) = writer(&store);
    store.set_available(false);
    let examine = || Flush {
        purpose: Purpose::Examine {
            fault: FaultKind::Transient,
        },
        ..flush(batch(0..1))
    };
    let early = examine();
    let passed = Arc::clone(&early.controls_passed);
    let failed = writer.send(early).await.unwrap().unwrap_err();
    assert_eq!(failed.control, Control::FailedBefore);
    assert!(!passed.load(Ordering::Acquire));
    store.set_available(true);
    store.panic_on(Uuid::from_u128(0));
    let late = examine();
    let passed = Arc::clone(&late.controls_passed);
    assert!(writer.send(late).await.is_err(), "it died");
    assert!(passed.load(Ordering::Acquire));
}

#[actix::test]
async fn a_panic_closes_the_mailbox_and_cuts_the_lifeline() {
    let store = MemoryStore::new();
    let (writer, watch) = writer(&store);
    store.panic_next(1);
    let reply = writer.send(flush(batch(0..1))).await;
    assert!(matches!(reply, Err(MailboxError::Closed)));
    watch.gone().await;
    assert!(!writer.connected());
}

#[actix::test]
async fn drain_closes_the_store() {
    let store = MemoryStore::new();
    let (writer, watch) = writer(&store);
    let timeout = std::time::Duration::from_secs(1);
    writer.send(Drain { timeout }).await.unwrap();
    assert_eq!(store.num_closed(), 1);
    watch.gone().await;
}

/// What a writer tells of a store that goes away for so long after an attempt, and how soon it does.
async fn told_of_a_store_that_goes(code: Option<&str>, away_for: Duration) -> (Control, Duration) {
    let store = MemoryStore::new();
    let (writer, _) = writer(&store);
    let fault = Fault {
        kind: FaultKind::Transient,
        code: code.map(str::to_owned),
    };
    store.fail_with(Uuid::from_u128(0), fault);
    store.set_latency(Duration::from_secs(1));
    let purpose = Purpose::Examine {
        fault: FaultKind::Transient,
    };
    let flush = Flush::alone(batch(0..1), purpose);
    let told = actix_rt::spawn(async move {
        let failed = writer.send(flush).await.unwrap().unwrap_err();
        (failed.control, Instant::now())
    });
    // Three controls and the attempt; the control behind it finds the store gone.
    sleep(Duration::from_millis(4_500)).await;
    let gone_at = Instant::now();
    store.set_available(false);
    sleep(away_for).await;
    store.set_available(true);
    let (control, told_at) = told.await.unwrap();
    (control, told_at - gone_at)
}

#[actix::test]
async fn waits_a_minute_for_a_server_that_went_down_with_an_attempt() {
    pause_time();
    let seconds = Duration::from_secs;
    let (control, took) = told_of_a_store_that_goes(None, seconds(30)).await;
    assert_eq!(control, Control::Passed);
    assert!((30..=32).contains(&took.as_secs()), "{took:?}");
    let (control, took) = told_of_a_store_that_goes(None, seconds(100)).await;
    assert_eq!(control, Control::Failed);
    assert!((59..=62).contains(&took.as_secs()), "{took:?}");
}

#[actix::test]
async fn asks_once_after_a_failure_that_leaves_the_connection() {
    pause_time();
    let for_a_while = Duration::from_secs(30);
    let (control, took) = told_of_a_store_that_goes(Some("57014"), for_a_while).await;
    assert_eq!(control, Control::Failed);
    assert!(took <= Duration::from_secs(1), "{took:?}");
}
