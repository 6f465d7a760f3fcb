use std::collections::HashMap;

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::clock::SystemClock;
use crate::delivery::Receipt;
use crate::messages::Retire;
use crate::status::PipelineStatus;
use crate::testing::{ManualClock, MemorySource, MemoryStore, pause_time};

mod degraded;
mod drain;
mod generations;
mod refusals;

fn message(id: u128) -> Bytes {
    let id = Uuid::from_u128(id);
    format!(
        r#"{{"occurred":"2026-11-24T03:00:00Z","event":"e","resource":{{"prefect.resource.id":"r"}},"id":"{id}"}}"#
    )
    .into()
}

fn settings(writers: usize, max_events: usize) -> PipelineSettings {
    PipelineSettings {
        writers: NonZeroUsize::new(writers).unwrap(),
        batch: BatcherSettings {
            max_events: NonZeroUsize::new(max_events).unwrap(),
            ..BatcherSettings::default()
        },
        trim: None,
        retention: None,
        placement: Placement::SameArbiter,
        ..PipelineSettings::default()
    }
}

/// A pipeline between a memory source and a memory store.
struct Bench {
    source: Arc<MemorySource>,
    store: MemoryStore,
    metrics: Metrics,
    parts: PipelineParts,
}

impl Bench {
    fn new() -> Self {
        pause_time();
        let source = Arc::new(MemorySource::default());
        let store = MemoryStore::new();
        let metrics = Metrics::new().unwrap();
        let parts = PipelineParts {
            sources: vec![source.clone()],
            open_store: store.open_store(),
            event_limits: EventLimits::default(),
            clock: Arc::new(SystemClock),
            metrics: metrics.clone(),
        };
        Self {
            source,
            store,
            metrics,
            parts,
        }
    }

    fn pipeline(&self, settings: PipelineSettings) -> PipelineActor {
        PipelineActor::new(settings, self.parts.clone())
    }

    fn push(&self, ids: std::ops::Range<u128>) {
        for id in ids {
            self.source.push(message(id));
        }
    }
}

async fn status(pipeline: &Addr<PipelineActor>) -> PipelineStatus {
    pipeline.send(Status).await.unwrap()
}

/// Looks once a (paused) millisecond until it is so.
async fn until(pipeline: &Addr<PipelineActor>, so: impl Fn(&PipelineStatus) -> bool) {
    timeout(Duration::from_secs(60), async {
        while !so(&status(pipeline).await) {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the pipeline gets there within a minute");
}

fn a_minute() -> Drain {
    Drain {
        timeout: Duration::from_secs(60),
    }
}

#[actix::test]
async fn stores_everything_and_acknowledges_it() {
    let bench = Bench::new();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..95);
    bench.source.push("no event at all");
    bench.source.wait_for_acknowledged(96).await;
    assert_eq!(bench.store.num_events(), 95);
    assert_eq!(bench.store.dead_letters().len(), 1);
    let status = status(&pipeline).await;
    assert!(status.ready, "{:?}", status.reason);
    assert!(status.ledger.balances());
    assert_eq!((status.ledger.stored, status.ledger.dead_lettered), (95, 1));
}

#[actix::test]
async fn a_panicking_writer_is_replaced_and_its_batch_written() {
    let bench = Bench::new();
    bench.store.panic_next(5);
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..50);
    bench.source.wait_for_acknowledged(50).await;
    assert_eq!(bench.store.num_events(), 50);
    let status = status(&pipeline).await;
    assert_eq!(status.generation, 1, "a writer alone was replaced");
    assert_eq!(status.ledger.redelivered, 0);
    // Two writers, five replacements, and one to probe with.
    until(&pipeline, |_| bench.store.num_opened() == 8).await;
}

/// The first of so many events panics every writer that it is given to.
async fn one_panics_every_writer(num_events: u128) {
    let bench = Bench::new();
    bench.store.panic_on(Uuid::from_u128(0));
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..num_events);
    let all = bench.source.wait_for_acknowledged(num_events as usize);
    timeout(Duration::from_secs(60), all)
        .await
        .expect("in time");
    assert_eq!(bench.store.num_events() as u128, num_events - 1);
    let letters = bench.store.dead_letters();
    let ids: Vec<_> = letters.iter().map(|(letter, _)| letter.event_id).collect();
    assert_eq!(ids, [Some(Uuid::from_u128(0))]);
    assert_eq!(status(&pipeline).await.generation, 1);
    assert!(bench.metrics.ledger().balances());
}

#[actix::test]
async fn an_event_that_panics_every_writer_becomes_a_letter_where_there_is_no_other() {
    one_panics_every_writer(1).await;
}

#[actix::test]
async fn an_event_that_panics_every_writer_becomes_a_letter_among_others() {
    one_panics_every_writer(50).await;
}

#[actix::test]
async fn a_panicking_source_starts_a_new_generation_and_loses_nothing() {
    let bench = Bench::new();
    bench.store.hold();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..50);
    bench.store.wait_for_write_started().await;
    bench.source.panic_next_read();
    bench.store.release();
    until(&pipeline, |status| status.generation == 2).await;
    bench.source.wait_for_acknowledged(50).await;
    assert_eq!(bench.store.num_events(), 50);
    assert_eq!(bench.source.rewinds(), 2, "at the start and at the restart");
    assert!(bench.metrics.ledger().balances());
    until(&pipeline, |status| status.ready).await;
}

#[actix::test]
async fn an_outage_loses_nothing_and_is_told() {
    let bench = Bench::new();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    until(&pipeline, |status| status.ready).await;
    bench.store.set_available(false);
    bench.push(0..500);
    until(&pipeline, |status| !status.ready).await;
    sleep(Duration::from_secs(600)).await;
    let during = status(&pipeline).await;
    let reason = during.reason.expect("a reason");
    assert!(reason.contains("switched off"), "{reason}");
    assert!(during.oldest_unflushed.unwrap() >= Duration::from_secs(600));
    assert!(during.ledger.in_flight <= 40, "reads on without end");
    assert!(bench.source.acknowledged().is_empty());
    bench.store.set_available(true);
    let back = Instant::now();
    bench.source.wait_for_acknowledged(500).await;
    assert!(
        back.elapsed() <= Duration::from_secs(4),
        "{:?}",
        back.elapsed()
    );
    assert_eq!(bench.store.num_events(), 500);
    until(&pipeline, |status| status.ready).await;
}

#[actix::test]
async fn an_idle_pipeline_notices_that_the_store_has_gone_and_come_back() {
    let bench = Bench::new();
    bench.store.set_available(false);
    let pipeline = bench.pipeline(settings(1, 10)).start();
    sleep(Duration::from_secs(1)).await;
    assert!(!status(&pipeline).await.ready);
    bench.store.set_available(true);
    sleep(Duration::from_secs(2)).await;
    assert!(status(&pipeline).await.ready);
    bench.store.set_available(false);
    sleep(Duration::from_secs(6)).await;
    assert!(!status(&pipeline).await.ready);
}

#[actix::test]
async fn is_ready_again_once_a_source_takes_its_receipts_back() {
    let bench = Bench::new();
    let pipeline = bench.pipeline(settings(1, 10)).start();
    bench.source.fail_acks(3);
    bench.push(0..1);
    until(&pipeline, |status| !status.ready).await;
    bench.source.wait_for_acknowledged(1).await;
    // The source has nothing more to read, so that no read can tell that it is back.
    until(&pipeline, |status| status.ready).await;
}

#[actix::test]
async fn a_store_that_does_not_answer_shows_within_five_seconds() {
    let bench = Bench::new();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    until(&pipeline, |status| status.ready).await;
    bench.store.hold();
    bench.push(0..5);
    sleep(Duration::from_secs(3)).await;
    assert!(status(&pipeline).await.ready, "a slow write is no outage");
    sleep(Duration::from_secs(2)).await;
    let reason = status(&pipeline).await.reason.expect("not ready");
    assert!(reason.contains("nothing was committed"), "{reason}");
    assert!(reason.ends_with(" (memory)"), "{reason}");
    bench.store.release();
    bench.source.wait_for_acknowledged(5).await;
    assert!(status(&pipeline).await.ready);
}

#[actix::test]
async fn it_is_ready_by_its_first_probe_although_the_first_write_takes_long() {
    let bench = Bench::new();
    bench.store.hold();
    bench.push(0..5);
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.store.wait_for_write_started().await;
    sleep(Duration::from_secs(3)).await;
    let status = status(&pipeline).await;
    assert!(status.ready, "{:?}", status.reason);
    bench.store.release();
    bench.source.wait_for_acknowledged(5).await;
}

#[actix::test]
async fn retention_that_fails_is_a_warning_until_it_works_again() {
    let bench = Bench::new();
    let every = Duration::from_secs(60);
    let settings = PipelineSettings {
        trim: Some(TrimSettings {
            every: Some(every),
            ..TrimSettings::default()
        }),
        ..settings(2, 10)
    };
    let pipeline = bench.pipeline(settings).start();
    sleep(2 * every).await;
    assert_eq!(status(&pipeline).await.warnings, [""; 0]);
    bench.store.trim_too_slowly_above(Some(0));
    sleep(2 * every).await;
    let warnings = status(&pipeline).await.warnings;
    assert!(
        warnings[0].starts_with("trim: the retention pass"),
        "{warnings:?}"
    );
    bench.store.trim_too_slowly_above(None);
    sleep(2 * every).await;
    assert_eq!(status(&pipeline).await.warnings, [""; 0]);
}

#[actix::test]
async fn while_there_is_something_to_write_no_probe_speaks_for_the_writers() {
    let bench = Bench::new();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    until(&pipeline, |status| status.ready).await;
    bench.store.hold();
    bench.push(0..5);
    bench.store.wait_for_write_started().await;
    bench.store.set_available(false);
    sleep(Duration::from_secs(3)).await;
    let status = status(&pipeline).await;
    assert!(status.ready, "{:?}", status.reason);
    bench.store.set_available(true);
    bench.store.release();
    bench.source.wait_for_acknowledged(5).await;
}

/// As the library's README says.
async fn goes_on_without_an_address(start: impl FnOnce(PipelineActor) -> Addr<PipelineActor>) {
    let bench = Bench::new();
    let pipeline = start(bench.pipeline(settings(2, 10)));
    bench.push(0..5);
    bench.source.wait_for_acknowledged(5).await;
    drop(pipeline);
    sleep(Duration::from_secs(3600)).await;
    bench.push(5..15);
    bench.source.wait_for_acknowledged(15).await;
    assert_eq!(bench.store.num_events(), 15);
}

#[actix::test]
async fn goes_on_when_its_last_address_is_dropped() {
    goes_on_without_an_address(Actor::start).await;
}

#[actix::test]
async fn goes_on_when_its_last_address_is_dropped_under_a_supervisor() {
    goes_on_without_an_address(|actor| Supervisor::start(|_| actor)).await;
}

#[actix::test]
async fn drain_flushes_what_is_held_and_closes_everything() {
    let bench = Bench::new();
    bench.store.hold();
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..15);
    bench.store.wait_for_write_started().await;
    let drained = actix_rt::spawn(pipeline.send(a_minute()));
    sleep(Duration::from_secs(1)).await;
    assert!(!drained.is_finished());
    bench.store.release();
    assert_eq!(drained.await.unwrap().unwrap(), Drained { released: 0 });
    assert_eq!(bench.store.num_events(), bench.source.acknowledged().len());
    assert_eq!(bench.store.num_events(), 15);
    assert!(bench.source.is_closed());
    assert_eq!(bench.store.num_closed(), 3, "two writers and the probe");
    let again = pipeline.send(a_minute()).await.unwrap();
    assert_eq!(again, Drained { released: 0 });
}

#[actix::test]
async fn drain_leaves_to_the_source_what_the_store_does_not_take_in_time() {
    let bench = Bench::new();
    bench.store.set_available(false);
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..15);
    until(&pipeline, |status| status.ledger.in_flight == 15).await;
    let started = Instant::now();
    let drained = pipeline.send(a_minute()).await.unwrap();
    assert_eq!(drained, Drained { released: 15 });
    assert!(started.elapsed() >= Duration::from_secs(60));
    assert!(bench.source.acknowledged().is_empty());
    let ledger = bench.metrics.ledger();
    assert!(ledger.balances() && ledger.in_flight == 0, "{ledger:?}");
}

#[actix::test]
async fn finish_waits_for_the_end_of_every_source_and_for_the_store() {
    let bench = Bench::new();
    bench.store.set_available(false);
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..95);
    let finished = actix_rt::spawn(pipeline.send(Finish));
    sleep(Duration::from_secs(100)).await;
    bench.source.panic_next_read();
    sleep(Duration::from_secs(100)).await;
    bench.store.set_available(true);
    sleep(Duration::from_secs(100)).await;
    assert!(!finished.is_finished(), "the source has not ended");
    bench.push(95..100);
    bench.source.end();
    assert_eq!(finished.await.unwrap().unwrap(), Drained { released: 0 });
    assert_eq!(bench.store.num_events(), 100);
    assert_eq!(bench.source.acknowledged().len(), 100);
}

#[actix::test]
async fn one_that_is_gone_never_says_that_it_has_finished_or_drained() {
    let bench = Bench::new();
    bench.store.set_available(false);
    let pipeline = bench.pipeline(settings(2, 10)).start();
    bench.push(0..5);
    bench.source.end();
    until(&pipeline, |status| status.ledger.in_flight == 5).await;
    let finished = actix_rt::spawn(pipeline.send(Finish));
    let drained = actix_rt::spawn(pipeline.send(a_minute()));
    until(&pipeline, |status| status.draining).await;
    pipeline.send(Retire).await.unwrap();
    assert!(finished.await.unwrap().is_err(), "nothing is stored");
    assert!(drained.await.unwrap().is_err(), "nothing is stored");
}

#[actix::test]
async fn a_host_supervisor_can_restart_it() {
    let bench = Bench::new();
    bench.store.hold();
    let actor = bench.pipeline(settings(2, 10));
    let pipeline = Supervisor::start(|_| actor);
    bench.push(0..50);
    bench.store.wait_for_write_started().await;
    pipeline.send(Retire).await.unwrap();
    bench.store.release();
    bench.source.wait_for_acknowledged(50).await;
    assert_eq!(bench.store.num_events(), 50);
    let status = status(&pipeline).await;
    assert_eq!(status.generation, 2);
    assert!(status.ledger.balances());
}

#[actix::test]
async fn runs_on_threads_of_its_own() {
    // No paused time here: other arbiters would not share it.
    let source = Arc::new(MemorySource::default());
    let store = MemoryStore::new();
    let parts = PipelineParts {
        sources: vec![source.clone()],
        open_store: store.open_store(),
        event_limits: EventLimits::default(),
        // An hour after its events, which retention keeps.
        clock: Arc::new(ManualClock::at("2026-11-24T04:00:00Z".parse().unwrap())),
        metrics: Metrics::new().unwrap(),
    };
    let settings = PipelineSettings {
        placement: Placement::OwnArbiters,
        trim: Some(TrimSettings::default()),
        ..settings(2, 10)
    };
    store.panic_next(2);
    let pipeline = PipelineActor::new(settings, parts).start();
    for id in 0..100 {
        source.push(message(id));
    }
    source.wait_for_acknowledged(100).await;
    assert_eq!(store.num_events(), 100);
    let trimmed = pipeline.send(Trim).await.unwrap().unwrap();
    assert_eq!(trimmed, Trimmed::default());
    pipeline.send(a_minute()).await.unwrap();
    assert!(matches!(
        pipeline.send(Trim).await.unwrap(),
        Err(TrimError::Off)
    ));
}

#[derive(Debug, Clone)]
enum Step {
    Events(u8),
    /// An event that was sent before.
    Again(u8),
    Garbage,
    Empty,
    FailWrites(u8),
    PanicWrites(u8),
    HideOutcomes(u8),
    StoreAway,
    StoreBack,
    FailReads(u8),
    FailAcks(u8),
    PanicRead,
    ShortReads(bool),
    SmallReads(u8),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u8..40).prop_map(Step::Events),
        1 => any::<u8>().prop_map(Step::Again),
        1 => Just(Step::Garbage),
        1 => Just(Step::Empty),
        1 => (1_u8..6).prop_map(Step::FailWrites),
        1 => (1_u8..4).prop_map(Step::PanicWrites),
        1 => (1_u8..4).prop_map(Step::HideOutcomes),
        1 => Just(Step::StoreAway),
        1 => Just(Step::StoreBack),
        1 => (1_u8..4).prop_map(Step::FailReads),
        1 => (1_u8..4).prop_map(Step::FailAcks),
        1 => Just(Step::PanicRead),
        1 => any::<bool>().prop_map(Step::ShortReads),
        1 => (1_u8..9).prop_map(Step::SmallReads),
        4 => (0_u16..3_000).prop_map(Step::Wait),
    ]
}

/// What the test knows of every message, to hold the pipeline to.
#[derive(Default)]
struct Expected {
    events: u128,
    events_by_receipt: HashMap<Receipt, u128>,
    garbage_by_receipt: HashMap<Receipt, String>,
    num_empty: usize,
}

impl Expected {
    fn play(&mut self, step: &Step, bench: &Bench) {
        let (source, store) = (&bench.source, &bench.store);
        match *step {
            Step::Events(count) => {
                for _ in 0..count {
                    let receipt = source.push(message(self.events));
                    self.events_by_receipt.insert(receipt, self.events);
                    self.events += 1;
                }
            }
            Step::Again(which) if self.events > 0 => {
                let id = u128::from(which) % self.events;
                self.events_by_receipt.insert(source.push(message(id)), id);
            }
            Step::Again(_) => {}
            Step::Garbage => {
                let receipt = source.push("garbage");
                self.garbage_by_receipt
                    .insert(receipt, receipt.0.to_string());
            }
            Step::Empty => {
                source.push("");
                self.num_empty += 1;
            }
            Step::FailWrites(n) => store.fail_next(n.into()),
            Step::PanicWrites(n) => store.panic_next(n.into()),
            Step::HideOutcomes(n) => store.outcome_unknown_next(n.into()),
            Step::StoreAway => store.set_available(false),
            Step::StoreBack => store.set_available(true),
            Step::FailReads(n) => source.fail_reads(n.into()),
            Step::FailAcks(n) => source.fail_acks(n.into()),
            Step::PanicRead => source.panic_next_read(),
            Step::ShortReads(short) => source.always_short(short),
            Step::SmallReads(most) => source.max_chunk(most.into()),
            Step::Wait(_) => {}
        }
    }

    fn num_messages(&self) -> usize {
        self.events_by_receipt.len() + self.garbage_by_receipt.len() + self.num_empty
    }

    /// Nothing is acknowledged that is not durable.
    fn check(&self, bench: &Bench) -> Result<(), TestCaseError> {
        let stored = bench.store.events();
        let letters = bench.store.dead_letters();
        for receipt in bench.source.acknowledged() {
            if let Some(id) = self.events_by_receipt.get(&receipt) {
                prop_assert!(stored.contains_key(&Uuid::from_u128(*id)));
            } else if let Some(position) = self.garbage_by_receipt.get(&receipt) {
                prop_assert!(
                    letters
                        .iter()
                        .any(|(letter, _)| letter.position == *position)
                );
            }
        }
        Ok(())
    }
}

async fn play(steps: Vec<Step>, writers: usize, max_events: usize) -> Result<(), TestCaseError> {
    let bench = Bench::new();
    let pipeline = bench.pipeline(settings(writers, max_events)).start();
    let credit = ((writers + 2) * max_events) as u64;
    let mut expected = Expected::default();
    for step in steps {
        expected.play(&step, &bench);
        if let Step::Wait(millis) = step {
            sleep(Duration::from_millis(millis.into())).await;
        }
        expected.check(&bench)?;
        let ledger = bench.metrics.ledger();
        prop_assert!(ledger.balances(), "{ledger:?}");
        prop_assert!(ledger.in_flight <= credit, "{ledger:?}, credit {credit}");
    }
    // Every fault has its end.
    for cure in [
        Step::StoreBack,
        Step::FailWrites(0),
        Step::PanicWrites(0),
        Step::FailReads(0),
        Step::FailAcks(0),
    ] {
        expected.play(&cure, &bench);
    }
    let all = bench.source.wait_for_acknowledged(expected.num_messages());
    let recovered = timeout(Duration::from_secs(600), all).await;
    prop_assert!(recovered.is_ok(), "does not recover unaided");
    expected.check(&bench)?;
    prop_assert_eq!(bench.store.num_events() as u128, expected.events);
    prop_assert_eq!(
        bench.store.dead_letters().len(),
        expected.garbage_by_receipt.len()
    );
    let drained = pipeline.send(a_minute()).await;
    prop_assert_eq!(drained.ok(), Some(Drained { released: 0 }));
    let ledger = bench.metrics.ledger();
    prop_assert!(ledger.balances() && ledger.in_flight == 0, "{ledger:?}");
    prop_assert!(ledger.stored as u128 <= expected.events, "{ledger:?}");
    Ok(())
}

proptest! {
    /// Whatever fails, in whatever order: what is acknowledged is durable, what is in flight stays
    /// within the credit, the ledger balances, and in the end every message has arrived.
    #[test]
    fn never_loses_an_event_and_never_exceeds_a_bound(
        steps in prop::collection::vec(step(), 1..40),
        writers in 1_usize..4,
        max_events in 1_usize..20,
    ) {
        actix_rt::System::new().block_on(play(steps, writers, max_events))?;
    }
}

#[actix::test]
async fn is_ready_although_a_source_has_something_to_be_looked_at() {
    let bench = Bench::new();
    let pipeline = bench.pipeline(settings(1, 10)).start();
    until(&pipeline, |status| status.ready).await;
    bench.source.warn(Some("its guard stands still"));
    let warned = status(&pipeline).await;
    assert_eq!(warned.warnings, ["source.memory: its guard stands still"]);
    assert!(warned.ready);
    bench.source.warn(None);
    assert!(status(&pipeline).await.warnings.is_empty());
}
