use std::collections::BTreeMap;

use super::*;
use crate::clock::SystemClock;
use crate::delivery::Content;
use crate::lifeline::lifeline;
use crate::messages::{AwaitEnd, StopReading};
use crate::status::ComponentState;
use crate::testing::{Asked, Inbox, MemorySource, pause_time, probe};

const EVENT: &str = r#"{"occurred":"2026-11-24T03:00:00Z","event":"e","resource":{"prefect.resource.id":"r"},"id":"11111111-1111-4111-8111-111111111111"}"#;

const PERMIT: Permit = Permit {
    max_messages: 3,
    max_bytes: 1_000_000,
};

/// A consumer between a memory source and a batcher that the test plays.
struct Bench {
    source: Arc<MemorySource>,
    consumer: Addr<ConsumerActor>,
    joins: Inbox<Join>,
    chunks: Inbox<Enqueue>,
    component: Component,
    metrics: Metrics,
}

impl Bench {
    /// A consumer that has its first permit.
    async fn start() -> Self {
        let mut bench = Self::start_joining();
        let join = bench.joins.next().await.expect("a consumer that joins");
        join.answer(Ok(PERMIT));
        bench
    }

    fn start_joining() -> Self {
        Self::start_rewinding(|_| {})
    }

    /// A consumer that is about to rewind its source, which is prepared first.
    fn start_rewinding(prepare: impl FnOnce(&MemorySource)) -> Self {
        pause_time();
        let source = Arc::new(MemorySource::default());
        prepare(&source);
        let (join, joins) = probe();
        let (enqueue, chunks) = probe();
        let component = Component::new("source.memory");
        let metrics = Metrics::new().unwrap();
        let parts = ConsumerParts {
            component: component.clone(),
            limits: EventLimits::default(),
            metrics: metrics.clone(),
            clock: Arc::new(SystemClock),
            backoff: Backoff::default(),
            retention: Some(Retention {
                default: Duration::from_secs(60),
                overrides: BTreeMap::new(),
            }),
        };
        let downstream = Downstream {
            index: SourceIndex(0),
            join,
            enqueue,
        };
        let (alive, _) = lifeline();
        let shared: Arc<dyn EventSource> = source.clone();
        let consumer = ConsumerActor::new(shared, downstream, parts, alive).start();
        Self {
            source,
            consumer,
            joins,
            chunks,
            component,
            metrics,
        }
    }

    async fn chunk(&mut self) -> Asked<Enqueue> {
        self.chunks.next().await.expect("a chunk")
    }

    async fn ack(&self, receipts: Vec<Receipt>) {
        let ack = Ack {
            receipts,
            dead_letters: Vec::new(),
        };
        self.consumer.send(ack).await.unwrap();
    }
}

fn receipts(chunk: &Enqueue) -> Vec<Receipt> {
    chunk.deliveries.iter().map(|d| d.receipt).collect()
}

async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[actix::test]
async fn rewinds_its_source_before_it_reads() {
    let mut bench = Bench::start().await;
    bench.source.push(EVENT);
    bench.chunk().await;
    assert_eq!(bench.source.rewinds(), 1);
}

#[actix::test]
async fn reads_nothing_before_it_has_a_permit_and_no_more_than_it_allows() {
    let mut bench = Bench::start_joining();
    for _ in 0..7 {
        bench.source.push(EVENT);
    }
    settle().await;
    assert_eq!(bench.source.num_reads(), 0, "read without a permit");
    bench.joins.next().await.unwrap().answer(Ok(PERMIT));
    let chunk = bench.chunk().await;
    assert_eq!(chunk.message.deliveries.len(), 3);
    assert!(chunk.message.more_ready);
    settle().await;
    assert_eq!(bench.source.num_reads(), 1, "read on without a permit");
    chunk.answer(Ok(PERMIT));
    let chunk = bench.chunk().await;
    assert_eq!(chunk.message.deliveries.len(), 3);
    chunk.answer(Ok(PERMIT));
    let chunk = bench.chunk().await;
    assert_eq!(chunk.message.deliveries.len(), 1);
    assert!(!chunk.message.more_ready);
}

#[actix::test]
async fn acknowledges_only_what_the_batcher_says() {
    let mut bench = Bench::start().await;
    let pushed = [(); 3].map(|()| bench.source.push(EVENT));
    let chunk = bench.chunk().await;
    assert_eq!(receipts(&chunk.message), pushed);
    chunk.answer(Ok(PERMIT));
    settle().await;
    assert!(bench.source.acknowledged().is_empty());
    bench.ack(vec![pushed[1]]).await;
    bench.source.wait_for_acknowledged(1).await;
    assert_eq!(bench.source.acknowledged(), [pushed[1]]);
}

#[actix::test]
async fn forwards_what_is_no_event_as_a_rejection() {
    let mut bench = Bench::start().await;
    bench.source.push("{\"event\": 1");
    bench.source.push(&b"\xff\xfe"[..]);
    let mut rejections = Vec::new();
    while rejections.len() < 2 {
        let chunk = bench.chunk().await;
        for delivery in &chunk.message.deliveries {
            match &delivery.entry.content {
                Content::Rejected(rejection) => rejections.push(rejection.clone()),
                Content::Event(_) => panic!("took garbage for an event"),
            }
        }
        chunk.answer(Ok(PERMIT));
    }
    assert_eq!(rejections[0].raw, "{\"event\": 1");
    assert!(!rejections[0].reason.is_empty());
    assert_eq!(&rejections[1].raw[..], b"\xff\xfe");
    assert!(rejections[1].reason.contains("UTF-8"), "{rejections:?}");
}

#[actix::test]
async fn ignores_empty_messages_and_acknowledges_them() {
    let mut bench = Bench::start().await;
    let empty = bench.source.push("");
    bench.source.wait_for_acknowledged(1).await;
    assert_eq!(bench.source.acknowledged(), [empty]);
    assert!(bench.chunks.try_next().is_none());
    let ledger = bench.metrics.ledger();
    assert_eq!(
        (ledger.received, ledger.ignored, ledger.in_flight),
        (1, 1, 0)
    );
    bench.source.push(EVENT);
    assert_eq!(bench.chunk().await.message.deliveries.len(), 1, "reads on");
}

#[actix::test]
async fn keeps_reading_after_errors_with_the_same_permit() {
    let mut bench = Bench::start().await;
    bench.source.fail_reads(20);
    settle().await;
    let status = bench.component.snapshot();
    assert_eq!(status.state, ComponentState::Failing);
    assert!(status.last_error.is_some());
    bench.source.push(EVENT);
    let chunk = bench.chunk().await;
    assert_eq!(chunk.message.deliveries.len(), 1);
    assert_eq!(bench.component.snapshot().state, ComponentState::Ok);
    assert!(
        bench
            .source
            .permits()
            .iter()
            .all(|permit| *permit == PERMIT)
    );
}

#[actix::test]
async fn waits_longer_after_each_read_that_fails() {
    let mut bench = Bench::start().await;
    bench.source.fail_reads(5);
    bench.source.push(EVENT);
    let begun = Instant::now();
    bench.chunk().await;
    let backoff = Backoff::default();
    let least: Duration = (1..=5).map(|attempt| backoff.delay(attempt, 0.0)).sum();
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
}

#[actix::test]
async fn a_source_that_hands_out_its_rest_is_back() {
    let mut bench = Bench::start().await;
    bench.source.hands_out_the_rest(true);
    bench.source.fail_reads(1);
    bench.source.push(EVENT);
    settle().await; // Now it waits for the end of a back-off.
    assert_eq!(bench.component.snapshot().state, ComponentState::Failing);
    let stopped = actix_rt::spawn(bench.consumer.send(StopReading));
    let rest = bench.chunk().await;
    assert_eq!(bench.component.snapshot().state, ComponentState::Ok);
    rest.answer(Ok(PERMIT));
    stopped.await.unwrap().unwrap();
}

#[actix::test]
async fn a_read_that_succeeds_does_not_hide_that_acknowledgements_fail() {
    let mut bench = Bench::start().await;
    let pushed = bench.source.push(EVENT);
    bench.chunk().await.answer(Ok(PERMIT));
    bench.source.fail_acks(usize::MAX);
    bench.ack(vec![pushed]).await;
    settle().await;
    assert_eq!(bench.component.snapshot().state, ComponentState::Failing);
    bench.source.push(EVENT);
    bench.chunk().await.answer(Ok(PERMIT));
    settle().await;
    assert_eq!(bench.component.snapshot().state, ComponentState::Failing);
    bench.source.fail_acks(0);
    bench.source.wait_for_acknowledged(1).await;
    settle().await;
    assert_eq!(bench.component.snapshot().state, ComponentState::Ok);
}

#[actix::test]
async fn an_acknowledgement_that_succeeds_does_not_hide_that_reads_fail() {
    let mut bench = Bench::start().await;
    let pushed = bench.source.push(EVENT);
    bench.chunk().await.answer(Ok(PERMIT));
    bench.source.fail_reads(usize::MAX);
    bench.source.fail_acks(1);
    bench.ack(vec![pushed]).await;
    bench.source.wait_for_acknowledged(1).await;
    settle().await;
    assert_eq!(bench.component.snapshot().state, ComponentState::Failing);
    bench.source.fail_reads(0);
    bench.source.push(EVENT);
    bench.chunk().await;
    assert_eq!(bench.component.snapshot().state, ComponentState::Ok);
}

#[actix::test]
async fn gives_receipts_back_until_the_source_takes_them() {
    let mut bench = Bench::start().await;
    let pushed = [(); 3].map(|()| bench.source.push(EVENT));
    bench.chunk().await.answer(Ok(PERMIT));
    bench.source.fail_acks(10);
    bench.ack(vec![pushed[0]]).await;
    bench.ack(vec![pushed[2], pushed[1]]).await;
    bench.source.wait_for_acknowledged(3).await;
    let mut acknowledged = bench.source.acknowledged();
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, pushed);
}

#[actix::test]
async fn stops_reading_when_told_and_leaves_the_rest() {
    let mut bench = Bench::start().await;
    settle().await; // Now it waits for the source.
    bench.consumer.send(StopReading).await.unwrap();
    bench.source.push(EVENT);
    settle().await;
    assert_eq!(bench.source.num_reads(), 0, "took what it should have left");
    assert!(bench.chunks.try_next().is_none());
}

#[actix::test]
async fn one_that_is_told_to_stop_leaves_its_first_permit_unused() {
    let mut bench = Bench::start_joining();
    let join = bench.joins.next().await.expect("a consumer that joins");
    bench.source.push(EVENT);
    let stopped = actix_rt::spawn(bench.consumer.send(StopReading));
    settle().await;
    assert!(!stopped.is_finished(), "it is at the batcher");
    join.answer(Ok(PERMIT));
    settle().await;
    assert_eq!(bench.source.num_reads(), 0, "read although it stops");
    stopped.await.unwrap().unwrap();
}

#[actix::test]
async fn one_that_is_told_to_stop_leaves_a_permit_that_comes_then_unused() {
    let mut bench = Bench::start().await;
    bench.source.push(EVENT);
    let chunk = bench.chunk().await;
    let stopped = actix_rt::spawn(bench.consumer.send(StopReading));
    settle().await;
    bench.source.push(EVENT);
    chunk.answer(Ok(PERMIT));
    settle().await;
    assert_eq!(bench.source.num_reads(), 1, "read although it stops");
    stopped.await.unwrap().unwrap();
}

#[actix::test]
async fn stops_only_once_its_last_chunk_is_with_the_batcher() {
    let mut bench = Bench::start().await;
    bench.source.push(EVENT);
    let chunk = bench.chunk().await;
    let stopped = actix_rt::spawn(bench.consumer.send(StopReading));
    settle().await;
    assert!(!stopped.is_finished());
    chunk.answer(Err(EnqueueRefused));
    stopped.await.unwrap().unwrap();
}

#[actix::test]
async fn hands_on_what_its_source_has_taken_before_it_stops() {
    let mut bench = Bench::start().await;
    bench.source.hands_out_the_rest(true);
    for _ in 0..5 {
        bench.source.push(EVENT);
    }
    let chunk = bench.chunk().await;
    assert_eq!(chunk.message.deliveries.len(), 3);
    let stopped = actix_rt::spawn(bench.consumer.send(StopReading));
    settle().await;
    chunk.answer(Err(EnqueueRefused));
    let chunk = bench.chunk().await;
    assert_eq!(chunk.message.deliveries.len(), 2, "the rest, unasked");
    assert!(!stopped.is_finished(), "it is not with the batcher yet");
    chunk.answer(Err(EnqueueRefused));
    stopped.await.unwrap().unwrap();
}

#[actix::test]
async fn ends_a_read_that_waits_and_hands_on_nothing_empty() {
    let mut bench = Bench::start().await;
    bench.source.hands_out_the_rest(true);
    settle().await; // Now it waits for the source.
    bench.consumer.send(StopReading).await.unwrap();
    assert_eq!(bench.source.num_reads(), 1, "the read came to its end");
    assert!(bench.chunks.try_next().is_none());
}

#[actix::test]
async fn stops_although_the_last_read_fails() {
    let mut bench = Bench::start().await;
    bench.source.hands_out_the_rest(true);
    let pushed = bench.source.push(EVENT);
    let chunk = bench.chunk().await;
    assert_eq!(receipts(&chunk.message), [pushed]);
    let stopped = actix_rt::spawn(bench.consumer.send(StopReading));
    settle().await;
    bench.source.fail_reads(usize::MAX);
    chunk.answer(Err(EnqueueRefused));
    stopped.await.unwrap().unwrap();
    assert_eq!(bench.source.num_reads(), 2, "not tried again");
}

#[actix::test]
async fn hands_on_what_its_source_has_taken_although_it_waits_after_a_failure() {
    let mut bench = Bench::start().await;
    bench.source.hands_out_the_rest(true);
    bench.source.fail_reads(1);
    settle().await; // Now it waits for the end of a back-off.
    assert_eq!(bench.component.snapshot().state, ComponentState::Failing);
    let pushed = bench.source.push(EVENT);
    let stopped = actix_rt::spawn(bench.consumer.send(StopReading));
    let chunk = bench.chunk().await;
    assert_eq!(receipts(&chunk.message), [pushed]);
    assert!(!stopped.is_finished(), "it is not with the batcher yet");
    chunk.answer(Err(EnqueueRefused));
    stopped.await.unwrap().unwrap();
    assert_eq!(bench.source.permits().last(), Some(&Permit::UNLIMITED));
}

#[actix::test]
async fn ends_its_source_although_that_cannot_be_rewound() {
    let mut bench = Bench::start_rewinding(|source| source.fail_rewinds(usize::MAX));
    bench.source.hands_out_the_rest(true);
    settle().await;
    assert_eq!(bench.component.snapshot().state, ComponentState::Failing);
    bench.source.push(EVENT);
    bench.consumer.send(StopReading).await.unwrap();
    assert!(bench.source.has_ended(), "the source would go on");
    settle().await;
    assert_eq!(bench.source.num_reads(), 0, "nobody would acknowledge it");
    assert!(bench.joins.try_next().is_none());
}

#[actix::test]
async fn drains_once_every_receipt_is_back() {
    let mut bench = Bench::start().await;
    let pushed = bench.source.push(EVENT);
    bench.chunk().await.answer(Err(EnqueueRefused));
    bench.source.fail_acks(3);
    bench.ack(vec![pushed]).await;
    let timeout = Duration::from_secs(1);
    bench.consumer.send(Drain { timeout }).await.unwrap();
    assert_eq!(bench.source.acknowledged(), [pushed]);
}

#[actix::test]
async fn drains_once_an_acknowledgement_under_way_and_the_one_behind_it_are_back() {
    let mut bench = Bench::start().await;
    let pushed = [(); 2].map(|()| bench.source.push(EVENT));
    bench.chunk().await.answer(Ok(PERMIT));
    bench.source.hold_acks();
    bench.ack(vec![pushed[0]]).await;
    let timeout = Duration::from_secs(1);
    let drained = actix_rt::spawn(bench.consumer.send(Drain { timeout }));
    settle().await;
    assert!(!drained.is_finished(), "one is under way");
    bench.ack(vec![pushed[1]]).await;
    bench.source.release_acks();
    drained.await.unwrap().unwrap();
    assert_eq!(bench.source.acknowledged(), pushed);
}

#[actix::test]
async fn tells_when_the_source_has_ended() {
    let mut bench = Bench::start().await;
    let ended = actix_rt::spawn(bench.consumer.send(AwaitEnd));
    bench.source.push(EVENT);
    bench.source.end();
    let chunk = bench.chunk().await;
    settle().await;
    assert!(
        !ended.is_finished(),
        "its last chunk is not with the batcher"
    );
    let receipts = receipts(&chunk.message);
    chunk.answer(Ok(PERMIT));
    ended.await.unwrap().unwrap();
    assert_eq!(bench.component.snapshot().state, ComponentState::Ended);
    bench.consumer.send(AwaitEnd).await.expect("told again");
    bench.ack(receipts).await;
    bench.source.wait_for_acknowledged(1).await;
    settle().await;
    let state = bench.component.snapshot().state;
    assert_eq!(state, ComponentState::Ended, "also once all is back");
}

#[actix::test]
async fn counts_what_comes_again_apart() {
    let mut bench = Bench::start().await;
    bench.source.push(EVENT);
    bench.chunk().await.answer(Ok(PERMIT));
    bench.source.rewind().await.unwrap();
    bench.source.push(EVENT);
    let chunk = bench.chunk().await;
    assert_eq!(chunk.message.deliveries.len(), 2);
    let ledger = bench.metrics.ledger();
    assert_eq!((ledger.received, ledger.redelivered), (2, 1));
}

#[actix::test]
async fn reads_no_further_while_too_many_receipts_are_not_taken_back() {
    let mut bench = Bench::start().await;
    bench.source.fail_acks(usize::MAX);
    for _ in 0..100 {
        bench.source.push(EVENT);
    }
    for _ in 0..MAX_UNCONFIRMED {
        let chunk = bench.chunk().await;
        bench.ack(receipts(&chunk.message)).await;
        chunk.answer(Ok(PERMIT));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.source.num_reads(), MAX_UNCONFIRMED, "piles up");
    assert!(bench.chunks.try_next().is_none());
    bench.source.fail_acks(0);
    let chunk = bench.chunk().await;
    assert_eq!(chunk.message.deliveries.len(), 3, "reads on");
    assert_eq!(bench.source.acknowledged().len(), 4 * 3);
}

#[actix::test]
async fn can_be_stopped_while_it_waits_for_receipts_to_be_taken_back() {
    let mut bench = Bench::start().await;
    bench.source.fail_acks(usize::MAX);
    for _ in 0..100 {
        bench.source.push(EVENT);
    }
    for _ in 0..MAX_UNCONFIRMED {
        let chunk = bench.chunk().await;
        bench.ack(receipts(&chunk.message)).await;
        chunk.answer(Ok(PERMIT));
    }
    settle().await;
    bench.consumer.send(StopReading).await.unwrap();
}

#[actix::test]
async fn counts_what_is_older_than_retention_once() {
    let bench = Bench::start().await;
    let new = EVENT.replace("2026-11-24T03:00:00Z", &SystemClock.now().to_rfc3339());
    for message in [EVENT, new.as_str(), "no event"] {
        bench.source.push(message.to_owned());
    }
    settle().await;
    assert_eq!(bench.metrics.older_than_retention(), 1);
}

#[actix::test]
async fn tells_the_source_what_became_dead_letters_before_it_acknowledges() {
    let mut bench = Bench::start().await;
    for _ in 0..2 {
        bench.source.push(EVENT);
    }
    let receipts = receipts(&bench.chunk().await.message);
    let ack = Ack {
        dead_letters: receipts[1..].to_vec(),
        receipts,
    };
    bench.consumer.send(ack).await.unwrap();
    settle().await;
    assert_eq!(bench.source.dead_letters().len(), 1);
}

#[test]
fn receipts_that_are_not_taken_back_stop_the_reading() {
    let permit = Permit {
        max_messages: 2,
        max_bytes: 100,
    };
    let mut acks = Acks {
        num_sent: 3,
        ..Acks::default()
    };
    acks.waiting.extend((0..4).map(Receipt));
    assert!(!acks.are_too_many(permit), "one more may come");
    acks.waiting.push(Receipt(4));
    assert!(acks.are_too_many(permit));
    assert!(
        !acks.are_too_many(Permit::UNLIMITED),
        "at the end all is read"
    );
}

#[actix::test]
async fn a_source_that_only_ends_its_reading_is_not_said_to_be_back() {
    let bench = Bench::start().await;
    bench.source.hands_out_the_rest(true);
    bench.source.fail_reads(1);
    settle().await; // Now it waits for the end of a back-off.
    bench.consumer.send(StopReading).await.unwrap();
    assert_eq!(
        bench.source.num_reads(),
        2,
        "one failed, one brought nothing"
    );
    assert_eq!(bench.component.snapshot().state, ComponentState::Failing);
}

#[actix::test]
async fn one_acknowledgement_is_under_way_at_a_time() {
    let mut bench = Bench::start().await;
    let pushed = [(); 3].map(|()| bench.source.push(EVENT));
    bench.chunk().await.answer(Ok(PERMIT));
    bench.source.hold_acks();
    for receipt in pushed {
        bench.ack(vec![receipt]).await;
        settle().await;
    }
    // The first fails; had the others been sent meanwhile, they would be back before it.
    bench.source.fail_acks(1);
    bench.source.release_acks();
    settle().await;
    assert!(bench.source.acknowledged().is_empty());
    bench.source.wait_for_acknowledged(3).await;
}
