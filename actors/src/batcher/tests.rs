use std::num::NonZeroUsize;

use bytes::Bytes;
use uuid::Uuid;

use super::*;
use crate::clock::SystemClock;
use crate::delivery::{Content, Delivery, Entry, Position, Receipt, Rejection};
use crate::lifeline::lifeline;
use crate::messages::Retire;
use crate::store::StoreError;
use crate::testing::{Asked, Inbox, event, pause_time, probe};

mod isolation;
mod outage;
mod refusals;

const SOURCE: SourceIndex = SourceIndex(0);

fn deliveries(numbers: std::ops::Range<u64>) -> Vec<Delivery> {
    numbers
        .map(|number| Delivery {
            source: SOURCE,
            came: Instant::now(),
            receipt: Receipt(number),
            entry: Arc::new(Entry {
                source: Arc::from("test"),
                position: Position::new(number.to_string()),
                content: Content::Rejected(Rejection {
                    raw: Bytes::from_static(b"message"),
                    reason: "for the test".to_owned(),
                    event_id: None,
                }),
            }),
        })
        .collect()
}

fn committed(asked: &Asked<Flush>) -> Flushed {
    Flushed {
        rejected_at_parse: asked.message.batch.len() as u64,
        ..Flushed::default()
    }
}

fn commit(asked: Asked<Flush>) {
    let flushed = committed(&asked);
    asked.answer(Ok(flushed));
}

fn positions(asked: &Asked<Flush>) -> Vec<String> {
    let entries = asked.message.batch.entries().iter();
    entries.map(|entry| entry.position.to_string()).collect()
}

fn events(numbers: std::ops::Range<u64>) -> Vec<Delivery> {
    let mut deliveries = deliveries(numbers);
    for delivery in &mut deliveries {
        let id = Uuid::from_u128(delivery.receipt.0.into());
        let entry = Entry::clone(&delivery.entry);
        delivery.entry = Arc::new(Entry {
            content: Content::Event(event(id)),
            ..entry
        });
    }
    deliveries
}

/// Fails while a control passes.
fn refuse(asked: Asked<Flush>, error: StoreError) {
    asked.answer(Err(FlushError {
        error,
        control: Control::Passed,
    }));
}

fn waits_for_a_lock() -> StoreError {
    StoreError::Unavailable {
        what: "a lock".to_owned(),
        fault: Some(Fault {
            kind: FaultKind::Contention,
            code: None,
        }),
        source: None,
    }
}

/// A batcher between a consumer and writers that the test plays.
struct Bench {
    batcher: Addr<BatcherActor>,
    writers: Vec<Inbox<Flush>>,
    acks: Inbox<Ack>,
    metrics: Metrics,
    store: Component,
    refusals: Component,
}

impl Bench {
    async fn start(num_writers: usize, max_events: usize) -> Self {
        Self::beside(Contention::Log, num_writers, max_events).await
    }

    async fn beside(contention: Contention, num_writers: usize, max_events: usize) -> Self {
        pause_time();
        let (recipients, writers): (Vec<_>, _) = (0..num_writers).map(|_| probe()).unzip();
        let (ack, acks) = probe();
        let metrics = Metrics::new().unwrap();
        let (store, refusals) = (Component::new("store"), Component::new("store.refusals"));
        let parts = BatcherParts {
            max_bytes_in_flight: NonZeroUsize::new(64 << 20).unwrap(),
            store: store.clone(),
            contention,
            refusals: refusals.clone(),
            held_up: HeldUp::default(),
            metrics: metrics.clone(),
            clock: Arc::new(SystemClock),
        };
        let settings = BatcherSettings {
            max_events: NonZeroUsize::new(max_events).unwrap(),
            ..BatcherSettings::default()
        };
        let (alive, _) = lifeline();
        let batcher = BatcherActor::new(settings, parts, 1, recipients, alive).start();
        let join = Join {
            source: SOURCE,
            acks: ack,
        };
        batcher.send(join).await.unwrap().expect("a first permit");
        Self {
            batcher,
            writers,
            acks,
            metrics,
            store,
            refusals,
        }
    }

    /// Hands a chunk over; what comes back is the next permit, when there is room.
    fn enqueue(
        &self,
        numbers: std::ops::Range<u64>,
        more_ready: bool,
    ) -> impl Future<Output = Result<Permit, EnqueueRefused>> + use<> {
        self.enqueue_these(deliveries(numbers), more_ready)
    }

    fn enqueue_these(
        &self,
        deliveries: Vec<Delivery>,
        more_ready: bool,
    ) -> impl Future<Output = Result<Permit, EnqueueRefused>> + use<> {
        self.metrics.received(deliveries.len(), 0);
        let reply = self.batcher.send(Enqueue {
            source: SOURCE,
            deliveries,
            more_ready,
        });
        // Polled at once, so that the message is on its way even if nobody waits for the permit.
        let reply = actix_rt::spawn(reply);
        async move { reply.await.unwrap().unwrap() }
    }

    async fn flush(&mut self, writer: usize) -> Asked<Flush> {
        self.writers[writer].next().await.expect("a batch")
    }

    async fn acknowledged(&mut self) -> Vec<u64> {
        let ack = self.acks.next().await.expect("an acknowledgement");
        ack.message.receipts.iter().map(|r| r.0).collect()
    }
}

/// Lets everything happen that can happen without time passing.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[actix::test]
async fn acknowledges_only_after_commit() {
    let mut bench = Bench::start(1, 10).await;
    drop(bench.enqueue(0..3, false));
    let flush = bench.flush(0).await;
    settle().await;
    assert!(bench.acks.try_next().is_none(), "acknowledged too early");
    commit(flush);
    assert_eq!(bench.acknowledged().await, [0, 1, 2]);
    assert!(bench.metrics.ledger().balances());
}

#[actix::test]
async fn where_one_writes_at_a_time_a_batch_grows_while_another_is_written() {
    let mut bench = Bench::beside(Contention::WriteLock, 2, 10).await;
    drop(bench.enqueue(0..1, false));
    let first = bench.flush(0).await;
    drop(bench.enqueue(1..3, false));
    drop(bench.enqueue(3..5, true));
    settle().await;
    assert!(bench.writers[1].try_next().is_none());
    commit(first);
    let second = bench.flush(0).await;
    assert_eq!(positions(&second), ["1", "2", "3", "4"]);
    // A full one cannot grow, and is made ready meanwhile.
    drop(bench.enqueue(5..15, false));
    assert_eq!(bench.flush(1).await.message.batch.len(), 10);
}

#[actix::test]
async fn where_several_write_a_batch_waits_for_no_other() {
    let mut bench = Bench::start(2, 10).await;
    drop(bench.enqueue(0..1, false));
    let _first = bench.flush(0).await;
    drop(bench.enqueue(1..3, false));
    assert_eq!(positions(&bench.flush(1).await), ["1", "2"]);
}

#[actix::test]
async fn what_has_not_left_yet_is_the_oldest_too() {
    let bench = Bench::start(1, 100).await;
    assert_eq!(bench.metrics.oldest_unflushed(), None);
    drop(bench.enqueue(0..3, true));
    settle().await;
    assert_eq!(bench.metrics.oldest_unflushed(), Some(Duration::ZERO));
}

#[actix::test]
async fn tells_whose_messages_became_dead_letters() {
    let mut bench = Bench::start(1, 10).await;
    drop(bench.enqueue(0..4, false));
    let flush = bench.flush(0).await;
    let letters = vec![1, 3];
    let flushed = Flushed {
        letters,
        ..committed(&flush)
    };
    flush.answer(Ok(flushed));
    let ack = bench.acks.next().await.expect("an acknowledgement").message;
    assert_eq!(ack.receipts.len(), 4);
    assert_eq!(ack.dead_letters, [Receipt(1), Receipt(3)]);
}

#[actix::test]
async fn does_not_acknowledge_what_could_not_be_written() {
    let mut bench = Bench::start(1, 10).await;
    drop(bench.enqueue(0..3, false));
    for _ in 0..20 {
        let flush = bench.flush(0).await;
        assert_eq!(positions(&flush), ["0", "1", "2"]);
        flush.answer(Err(StoreError::unavailable("away").into()));
        settle().await;
        assert!(bench.acks.try_next().is_none());
        assert_eq!(bench.metrics.ledger().in_flight, 3);
    }
    commit(bench.flush(0).await);
    assert_eq!(bench.acknowledged().await, [0, 1, 2]);
}

#[actix::test]
async fn writes_again_after_an_unknown_outcome() {
    let mut bench = Bench::start(1, 10).await;
    drop(bench.enqueue(0..2, false));
    bench
        .flush(0)
        .await
        .answer(Err(FlushError::from(StoreError::OutcomeUnknown {
            what: "the connection broke during COMMIT".to_owned(),
            fault: None,
            source: None,
        })));
    let flush = bench.flush(0).await;
    assert_eq!(positions(&flush), ["0", "1"]);
    assert!(bench.acks.try_next().is_none());
    commit(flush);
    assert_eq!(bench.acknowledged().await, [0, 1]);
}

#[actix::test]
async fn a_store_too_slow_for_large_batches_gets_smaller_ones_each_acknowledged_after_its_commit() {
    let mut bench = Bench::start(1, 8).await;
    drop(bench.enqueue(0..20, false));
    let (mut sizes, mut acknowledged) = (Vec::new(), Vec::new());
    while acknowledged.len() < 20 {
        let flush = bench.flush(0).await;
        settle().await;
        assert!(bench.acks.try_next().is_none(), "acknowledged too early");
        sizes.push(flush.message.batch.len());
        if flush.message.batch.len() > 2 {
            flush.answer(Err(FlushError::from(StoreError::TooSlow {
                what: "took too long".to_owned(),
                code: None,
                source: None,
            })));
        } else {
            commit(flush);
            acknowledged.extend(bench.acknowledged().await);
        }
    }
    assert_eq!(sizes[..4], [8, 4, 2, 2], "{sizes:?}");
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, (0..20).collect::<Vec<_>>());
    let ledger = bench.metrics.ledger();
    assert!(ledger.balances() && ledger.in_flight == 0, "{ledger:?}");
}

#[actix::test]
async fn a_failed_batch_goes_back_to_the_front() {
    let mut bench = Bench::start(1, 2).await;
    drop(bench.enqueue(0..6, false));
    let first = bench.flush(0).await;
    first.answer(Err(StoreError::unavailable("away").into()));
    let mut order = Vec::new();
    for _ in 0..3 {
        let flush = bench.flush(0).await;
        order.extend(positions(&flush));
        commit(flush);
    }
    assert_eq!(order, ["0", "1", "2", "3", "4", "5"]);
}

/// A minute in which an event comes every twentieth of a second, and the first one always fails.
async fn one_that_always_fails(num_writers: usize) {
    let mut bench = Bench::start(num_writers, 1).await;
    let (mut attempts, mut stored) = (0, 0);
    drop(bench.enqueue(0..1, false));
    for number in 1..=1_200 {
        drop(bench.enqueue(number..number + 1, false));
        tokio::time::sleep(Duration::from_millis(50)).await;
        while let Some(flush) = bench.writers.iter_mut().find_map(Inbox::try_next) {
            if positions(&flush) == ["0"] {
                attempts += 1;
                flush.answer(Err(StoreError::unavailable("this one never").into()));
            } else {
                stored += 1;
                commit(flush);
            }
            settle().await;
        }
    }
    assert!(attempts <= 60, "{attempts} attempts in a minute");
    assert!(attempts >= 15, "{attempts} attempts: given up");
    assert!(stored >= 1_150, "{stored} others were stored");
}

#[actix::test]
async fn a_batch_that_alone_always_fails_holds_up_nothing_for_long() {
    one_that_always_fails(1).await;
}

#[actix::test]
async fn a_batch_that_alone_always_fails_does_not_spin_while_others_succeed() {
    one_that_always_fails(2).await;
}

/// A minute in which a new batch always waits, and the first one always fails: how often it was tried.
async fn attempts_beside_new_ones(fail: impl Fn(Asked<Flush>)) -> usize {
    let mut bench = Bench::start(1, 1).await;
    drop(bench.enqueue_these(events(0..50), false));
    let (mut attempts, mut number) = (0, 50);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        let flush = bench.flush(0).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(bench.enqueue_these(events(number..number + 1), false));
        number += 1;
        if positions(&flush) == ["0"] {
            attempts += 1;
            fail(flush);
        } else {
            commit(flush);
        }
    }
    attempts
}

#[actix::test]
async fn a_stubborn_batch_that_is_due_is_tried_again_however_many_new_ones_come() {
    let fails = |flush: Asked<Flush>| {
        flush.answer(Err(StoreError::unavailable("this one never").into()));
    };
    let attempts = attempts_beside_new_ones(fails).await;
    assert!((12..=60).contains(&attempts), "{attempts} in a minute");
}

#[actix::test]
async fn a_suspect_that_is_due_is_tried_again_however_many_new_ones_come() {
    let attempts = attempts_beside_new_ones(|flush| refuse(flush, waits_for_a_lock())).await;
    assert!((12..=60).contains(&attempts), "{attempts} in a minute");
}

#[actix::test]
async fn an_entry_that_lingers_leaves_on_time_beside_a_batch_in_a_long_back_off() {
    let mut bench = Bench::start(1, 10).await;
    drop(bench.enqueue(0..1, false));
    let (mut failures, mut number) = (0, 1);
    while failures < 8 {
        let flush = bench.flush(0).await;
        if positions(&flush) == ["0"] {
            failures += 1;
            drop(bench.enqueue(number..number + 1, false));
            number += 1;
            flush.answer(Err(StoreError::unavailable("this one never").into()));
        } else {
            commit(flush);
        }
    }
    commit(bench.flush(0).await);
    settle().await;
    let enqueued = Instant::now();
    drop(bench.enqueue(number..number + 1, true));
    let flush = bench.flush(0).await;
    assert_eq!(positions(&flush), [number.to_string()]);
    let waited = enqueued.elapsed();
    let expected = Duration::from_millis(5)..Duration::from_millis(8);
    assert!(expected.contains(&waited), "{waited:?}");
}

#[actix::test]
async fn back_off_grows_is_capped_and_resets() {
    let mut bench = Bench::start(1, 10).await;
    drop(bench.enqueue(0..1, false));
    let mut delays = Vec::new();
    let mut failed_at = None;
    for _ in 0..12 {
        let flush = bench.flush(0).await;
        delays.extend(failed_at.map(|at: Instant| at.elapsed()));
        failed_at = Some(Instant::now());
        flush.answer(Err(StoreError::unavailable("away").into()));
    }
    let millis = |ms| Duration::from_millis(ms);
    assert!(delays[0] <= millis(102), "{delays:?}");
    assert!(delays[2] > delays[0], "{delays:?}");
    let capped = millis(1_500)..=millis(3_002);
    assert!(delays[6..].iter().all(|d| capped.contains(d)), "{delays:?}");

    commit(bench.flush(0).await);
    drop(bench.enqueue(1..2, false));
    bench
        .flush(0)
        .await
        .answer(Err(StoreError::unavailable("away").into()));
    let failed_at = Instant::now();
    commit(bench.flush(0).await);
    assert!(
        failed_at.elapsed() <= millis(102),
        "starts over after a success"
    );
}

#[actix::test]
async fn a_success_ends_the_back_off_of_the_others() {
    let mut bench = Bench::start(2, 2).await;
    drop(bench.enqueue(0..2, true));
    let mut first = bench.flush(0).await;
    drop(bench.enqueue(2..4, true));
    let second = bench.flush(1).await;
    for _ in 0..8 {
        first.answer(Err(StoreError::unavailable("away").into()));
        first = bench.flush(0).await;
    }
    first.answer(Err(StoreError::unavailable("away").into()));
    settle().await;
    let failed_at = Instant::now();
    commit(second);
    assert_eq!(positions(&bench.flush(0).await), ["0", "1"]);
    let waited = failed_at.elapsed();
    assert!(
        waited < Duration::from_millis(10),
        "{waited:?} of 1.5 s or more"
    );
}

#[actix::test]
async fn an_outage_is_told_once_and_its_end_too() {
    let mut bench = Bench::start(1, 10).await;
    drop(bench.enqueue(0..1, false));
    bench
        .flush(0)
        .await
        .answer(Err(StoreError::unavailable("away").into()));
    let flush = bench.flush(0).await;
    let status = bench.store.snapshot();
    assert_eq!(status.state, crate::status::ComponentState::Failing);
    assert_eq!(status.last_error.as_deref(), Some("away"));
    commit(flush);
    bench.acknowledged().await;
    assert_eq!(
        bench.store.snapshot().state,
        crate::status::ComponentState::Ok
    );
}

#[actix::test]
async fn after_a_suspect_it_is_the_turn_of_a_new_batch() {
    let mut bench = Bench::start(1, 1).await;
    drop(bench.enqueue_these(events(0..2), false));
    for expected in ["0", "1"] {
        let flush = bench.flush(0).await;
        assert_eq!(positions(&flush), [expected]);
        refuse(flush, waits_for_a_lock());
    }
    let suspect = bench.flush(0).await;
    assert!(matches!(suspect.message.purpose, Purpose::Examine { .. }));
    drop(bench.enqueue_these(events(2..4), false));
    tokio::time::sleep(Duration::from_secs(1)).await;
    refuse(suspect, waits_for_a_lock());
    let mut order = Vec::new();
    for _ in 0..3 {
        let flush = bench.flush(0).await;
        order.push(positions(&flush).concat());
        match flush.message.purpose {
            Purpose::Write => commit(flush),
            _ => refuse(flush, waits_for_a_lock()),
        }
    }
    assert_eq!(order[0], "2", "{order:?}");
    assert!(["0", "1"].contains(&&*order[1]), "{order:?}");
    assert_eq!(order[2], "3", "{order:?}");
}

#[actix::test]
async fn nothing_new_waits_for_a_suspect_where_one_writes_at_a_time() {
    let mut bench = Bench::beside(Contention::WriteLock, 2, 10).await;
    drop(bench.enqueue_these(events(0..1), false));
    refuse(bench.flush(0).await, waits_for_a_lock());
    let suspect = bench.flush(0).await;
    assert!(matches!(suspect.message.purpose, Purpose::Examine { .. }));
    drop(bench.enqueue_these(events(1..2), false));
    settle().await;
    assert!(bench.writers[1].try_next().is_some());
}

#[actix::test]
async fn the_halves_of_a_batch_that_took_too_long_leave_a_writer_to_the_others() {
    let mut bench = Bench::start(2, 4).await;
    drop(bench.enqueue(0..4, false));
    refuse(
        bench.flush(0).await,
        StoreError::TooSlow {
            what: "cancelled".to_owned(),
            code: Some("57014".to_owned()),
            source: None,
        },
    );
    let half = bench.flush(0).await;
    assert_eq!(positions(&half), ["0", "1"]);
    settle().await;
    assert!(bench.writers[1].try_next().is_none(), "both are taken");
    drop(bench.enqueue(4..6, false));
    let other = bench.flush(1).await;
    assert_eq!(positions(&other), ["4", "5"]);
    commit(other);
    settle().await;
    assert!(bench.writers[1].try_next().is_none());
    commit(half);
    assert_eq!(positions(&bench.flush(0).await), ["2", "3"]);
}

#[actix::test]
async fn hands_batches_to_all_writers_and_puts_them_back_in_order() {
    let mut bench = Bench::start(2, 2).await;
    drop(bench.enqueue(0..2, true));
    let first = bench.flush(0).await;
    drop(bench.enqueue(2..4, true));
    let second = bench.flush(1).await;
    second.answer(Err(StoreError::unavailable("away").into()));
    settle().await;
    first.answer(Err(StoreError::unavailable("away").into()));
    let one = bench.flush(0).await;
    let other = bench.flush(1).await;
    let order = [&one, &other].map(|flush| flush.message.batch.id.0);
    assert_eq!(order, [1, 3]);
}

#[actix::test]
async fn a_dead_writers_batch_is_written_by_its_replacement() {
    let mut bench = Bench::start(1, 10).await;
    drop(bench.enqueue(0..3, false));
    let unanswered = bench.flush(0).await;
    bench.writers.remove(0).kill().await;
    drop(unanswered);
    let (writer, mut inbox) = probe();
    let replace = ReplaceWriter { index: 0, writer };
    bench.batcher.send(replace).await.unwrap();
    let flush = inbox.next().await.expect("the dead writer's batch");
    assert_eq!(positions(&flush), ["0", "1", "2"]);
    assert!(bench.acks.try_next().is_none());
    commit(flush);
    assert_eq!(bench.acknowledged().await, [0, 1, 2]);
    assert!(bench.metrics.ledger().balances());
}

#[actix::test]
async fn a_replacement_before_the_reply_does_not_confuse_it() {
    let mut bench = Bench::start(1, 10).await;
    drop(bench.enqueue(0..3, false));
    let slow = bench.flush(0).await;
    let (writer, mut inbox) = probe();
    let replace = ReplaceWriter { index: 0, writer };
    bench.batcher.send(replace).await.unwrap();
    let flush = inbox.next().await.expect("the batch again");
    // The replaced writer answers after all: what it says is no longer asked for.
    commit(slow);
    settle().await;
    assert!(bench.acks.try_next().is_none());
    commit(flush);
    assert_eq!(bench.acknowledged().await, [0, 1, 2]);
    assert_eq!(bench.metrics.ledger().in_flight, 0);
}

#[actix::test]
async fn the_permit_waits_for_room() {
    let mut bench = Bench::start(1, 10).await;
    // One writer: thirty in flight at most, ten with each permit.
    let permit = bench.enqueue(0..10, true).await.unwrap();
    assert_eq!(permit.max_messages, 10);
    bench.enqueue(10..20, true).await.unwrap();
    let waiting = actix_rt::spawn(bench.enqueue(20..30, true));
    settle().await;
    assert!(!waiting.is_finished(), "granted without room");
    commit(bench.flush(0).await);
    waiting.await.unwrap().unwrap();
}

#[actix::test]
async fn drain_flushes_what_is_held() {
    let mut bench = Bench::start(1, 100).await;
    let permit = bench.enqueue(0..3, true);
    settle().await;
    let timeout = Duration::from_secs(1);
    let drained = actix_rt::spawn(bench.batcher.send(Drain { timeout }));
    let flush = bench.flush(0).await;
    assert_eq!(positions(&flush), ["0", "1", "2"]);
    settle().await;
    assert!(!drained.is_finished(), "drained before the commit");
    commit(flush);
    drained.await.unwrap().unwrap();
    assert_eq!(bench.acknowledged().await, [0, 1, 2]);
    permit.await.expect("granted before it drained");
    let late = bench.enqueue(3..4, false).await;
    assert_eq!(late, Err(EnqueueRefused));
    commit(bench.flush(0).await);
    assert_eq!(bench.acknowledged().await, [3], "refused, and yet not lost");
}

#[actix::test]
async fn one_that_dies_never_says_that_all_is_durable() {
    let mut bench = Bench::start(1, 10).await;
    drop(bench.enqueue(0..3, false));
    let _unanswered = bench.flush(0).await;
    let timeout = Duration::from_secs(1);
    let drained = actix_rt::spawn(bench.batcher.send(Drain { timeout }));
    settle().await;
    bench.batcher.send(Retire).await.unwrap();
    assert!(drained.await.unwrap().is_err());
}

#[actix::test]
async fn flushes_by_linger_through_its_timer() {
    let mut bench = Bench::start(1, 100).await;
    let enqueued = Instant::now();
    drop(bench.enqueue(0..3, true));
    let flush = bench.flush(0).await;
    let waited = enqueued.elapsed();
    let expected = Duration::from_millis(5)..Duration::from_millis(8);
    assert!(expected.contains(&waited), "{waited:?}");
    commit(flush);
}
