//! A batcher and real writers on a store in memory, in which events and the store itself fail.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use super::*;
use crate::db_writer::DbWriterActor;
use crate::isolation::Control;
use crate::store::{Fault, FaultKind};
use crate::testing::{MemoryStore, event, event_entry};

/// How long an innocent may wait beside outages of the store. What it waits for are the splitting of the
/// batches that it is in, back-offs that the last outage left, and its turn.
const BOUND: Duration = Duration::from_secs(8);

/// When a culprit must be a letter at the latest, once the store stays up.
const FOUND_OUT_WITHIN: Duration = Duration::from_secs(120);

struct World {
    store: MemoryStore,
    batcher: Addr<BatcherActor>,
    metrics: Metrics,
    parts: BatcherParts,
    _acks: Inbox<Ack>,
}

fn fault(kind: FaultKind) -> Fault {
    Fault {
        kind,
        code: Some("F0000".to_owned()),
    }
}

impl World {
    /// Time must have been paused.
    async fn new(num_writers: usize) -> Self {
        let store = MemoryStore::new();
        store.set_latency(Duration::from_millis(10));
        let metrics = Metrics::new().unwrap();
        let parts = BatcherParts {
            max_bytes_in_flight: NonZeroUsize::new(64 << 20).unwrap(),
            store: Component::new("store"),
            contention: Contention::Log,
            refusals: Component::new("store.refusals"),
            held_up: HeldUp::default(),
            metrics: metrics.clone(),
            clock: Arc::new(SystemClock),
        };
        let writers = (0..num_writers).map(|_| {
            let (alive, _) = lifeline();
            let clock = Arc::new(SystemClock);
            let writer = DbWriterActor::new((store.open_store())(), clock, alive);
            writer.start().recipient()
        });
        let settings = BatcherSettings::default();
        let (alive, _) = lifeline();
        let writers = writers.collect();
        let batcher = BatcherActor::new(settings, parts.clone(), 1, writers, alive).start();
        let (acks, inbox) = probe();
        let join = Join {
            source: SOURCE,
            acks,
        };
        batcher.send(join).await.unwrap().expect("a first permit");
        Self {
            store,
            batcher,
            metrics,
            parts,
            _acks: inbox,
        }
    }

    /// Hands over the events with these ids; whether there is room for more does not matter here.
    fn enqueue(&self, ids: &[u128]) {
        let deliveries: Vec<_> = ids
            .iter()
            .map(|id| Delivery {
                source: SOURCE,
                came: Instant::now(),
                receipt: Receipt(u64::try_from(*id).unwrap()),
                entry: event_entry(event(Uuid::from_u128(*id))),
            })
            .collect();
        self.metrics.received(deliveries.len(), 0);
        drop(actix_rt::spawn(self.batcher.send(Enqueue {
            source: SOURCE,
            deliveries,
            more_ready: false,
        })));
    }

    fn is_stored(&self, id: u128) -> bool {
        self.store.event(Uuid::from_u128(id)).is_some()
    }

    fn letters(&self) -> Vec<u128> {
        let letters = self.store.dead_letters().into_iter();
        letters
            .map(|(letter, _)| letter.event_id.unwrap().as_u128())
            .collect()
    }
}

/// Of everything that an event or the store may fail with: all but somebody else's lock.
const KINDS: [FaultKind; 3] = [
    FaultKind::Lasting,
    FaultKind::Transient,
    FaultKind::Resources,
];

/// Looks every few (paused) milliseconds until it is so.
async fn until(deadline: Instant, kind: FaultKind, what: &str, holds: impl Fn() -> bool) {
    while !holds() {
        assert!(Instant::now() < deadline, "{kind:?}: not yet {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[actix::test]
async fn a_culprit_becomes_a_letter_with_its_code_and_its_neighbours_are_stored() {
    pause_time();
    for kind in KINDS {
        let world = World::new(2).await;
        world.store.fail_with(Uuid::from_u128(11), fault(kind));
        let ids: Vec<_> = (1..=21).collect();
        world.enqueue(&ids);
        let started = Instant::now();
        until(
            started + Duration::from_secs(2),
            kind,
            "stored: the others",
            || world.store.num_events() >= 20,
        )
        .await;
        until(started + Duration::from_secs(10), kind, "found out", || {
            !world.letters().is_empty()
        })
        .await;
        assert_eq!(world.letters(), [11]);
        let (letter, _) = world.store.dead_letters().remove(0);
        assert_eq!(letter.sqlstate.as_deref(), Some("F0000"));
        assert!(
            letter
                .reason
                .starts_with("refused while others were stored: "),
            "{letter:?}"
        );
        assert!(world.metrics.ledger().balances());
        assert_eq!(
            world.parts.store.snapshot().state,
            crate::status::ComponentState::Ok
        );
    }
}

#[actix::test]
async fn a_culprit_that_is_all_there_is_becomes_a_letter() {
    pause_time();
    for kind in KINDS {
        let world = World::new(1).await;
        world.store.fail_with(Uuid::from_u128(1), fault(kind));
        world.enqueue(&[1]);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(world.letters(), [1], "{kind:?}");
    }
}

#[actix::test]
async fn what_waits_for_somebody_elses_lock_is_kept_stops_nobody_and_is_named() {
    pause_time();
    let world = World::new(2).await;
    world
        .store
        .fail_with(Uuid::from_u128(2), fault(FaultKind::Contention));
    world.enqueue(&[1, 2, 3]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.letters(), [0; 0]);
    assert!(world.is_stored(1) && world.is_stored(3));
    let held_up = world.parts.held_up.get().expect("named");
    assert!(
        held_up.contains(&Uuid::from_u128(2).to_string()),
        "{held_up}"
    );
    assert_eq!(
        world.parts.store.snapshot().state,
        crate::status::ComponentState::Ok
    );
    world.enqueue(&[4]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(world.is_stored(4));
}

#[actix::test]
async fn a_store_that_refuses_everything_makes_no_letters_and_is_told_as_failing() {
    pause_time();
    for kind in KINDS {
        let world = World::new(2).await;
        world.store.fail_all(Some(fault(kind)));
        for id in 1..=50 {
            world.enqueue(&[id]);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(world.letters(), [0; 0], "{kind:?}");
        let state = world.parts.store.snapshot().state;
        assert_eq!(state, crate::status::ComponentState::Failing, "{kind:?}");
        world.store.fail_all(None);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(world.store.num_events(), 50, "{kind:?}");
    }
}

/// What an event or the store fails with; nothing where the store is not even reached.
fn kinds() -> impl Strategy<Value = FaultKind> {
    proptest::sample::select(KINDS.to_vec())
}

#[derive(Debug, Clone)]
struct Story {
    num_writers: usize,
    /// Millisecond, and how many events come then.
    arrivals: Vec<(u64, u128)>,
    /// Which of every so many is a culprit, and of what kind.
    culprits: Vec<(u128, FaultKind)>,
    /// Milliseconds of rest before it, its length, and how it shows.
    outages: Vec<(u64, u64, Option<FaultKind>)>,
}

fn stories() -> impl Strategy<Value = Story> {
    (
        1_usize..4,
        prop::collection::vec((0_u64..20_000, 1_u128..40), 1..20),
        prop::collection::vec((0_u128..200, kinds()), 0..6),
        prop::collection::vec(
            (50_u64..6_000, 100_u64..8_000, prop::option::of(kinds())),
            0..6,
        ),
    )
        .prop_map(|(num_writers, arrivals, culprits, outages)| Story {
            num_writers,
            arrivals,
            culprits,
            outages,
        })
}

/// Plays a story to its end; how long innocents had to wait beside outages is held against the bound.
async fn plays_well(story: Story) -> Result<(), TestCaseError> {
    pause_time();
    let world = World::new(story.num_writers).await;
    let started = Instant::now();
    let mut arrivals = story.arrivals;
    arrivals.sort_unstable();
    let num_events: u128 = arrivals.iter().map(|(_, num)| num).sum();
    let culprits: BTreeMap<_, _> = story
        .culprits
        .into_iter()
        .map(|(id, kind)| (1 + id % num_events, kind))
        .collect();
    for (id, kind) in &culprits {
        world.store.fail_with(Uuid::from_u128(*id), fault(*kind));
    }
    let mut at = 0;
    let mut outages = Vec::new();
    for (rest, length, kind) in story.outages {
        outages.push((at + rest, at + rest + length, kind));
        at += rest + length;
    }
    let mut waited = BTreeMap::new();
    let mut next_id = 1;
    let mut millis = 0;
    loop {
        let now = started + Duration::from_millis(millis);
        tokio::time::sleep_until(now).await;
        let outage = outages
            .iter()
            .find(|(from, to, _)| (*from..*to).contains(&millis));
        world
            .store
            .set_available(!matches!(outage, Some((_, _, None))));
        world
            .store
            .fail_all(outage.and_then(|(_, _, kind)| kind.map(fault)));
        while let Some((_, num)) = arrivals.first().filter(|(at, _)| *at <= millis) {
            let ids: Vec<_> = (next_id..next_id + num).collect();
            next_id += num;
            world.enqueue(&ids);
            waited.extend(ids.into_iter().map(|id| (id, 0)));
            arrivals.remove(0);
        }
        waited.retain(|id, _| !world.is_stored(*id));
        for id in world.letters() {
            prop_assert!(
                culprits.contains_key(&id),
                "an innocent became a letter: {id}"
            );
            waited.remove(&id);
        }
        for (id, waited) in &mut waited {
            *waited += if outage.is_some() { 0 } else { 20 };
            let waited = Duration::from_millis(*waited);
            let bound = if culprits.contains_key(id) {
                FOUND_OUT_WITHIN
            } else {
                BOUND
            };
            prop_assert!(waited < bound, "{id} waited for {waited:?}");
        }
        if waited.is_empty() && arrivals.is_empty() {
            break;
        }
        millis += 20;
    }
    prop_assert_eq!(world.letters().len(), culprits.len());
    // The last commit is seen before its reply.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ledger = world.metrics.ledger();
    prop_assert!(ledger.balances() && ledger.in_flight == 0, "{ledger:?}");
    Ok(())
}

/// Random culprits, random outages, random arrivals.
#[test]
fn no_innocent_becomes_a_letter_and_none_waits_for_long() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: ProptestConfig::default().cases / 4,
        ..ProptestConfig::with_source_file(file!())
    });
    runner
        .run(&stories(), |story| {
            actix_rt::System::new().block_on(plays_well(story))
        })
        .unwrap();
}

/// Letters that cannot be written, though every control passes.
#[actix::test]
async fn what_fails_behind_controls_that_pass_and_is_no_event_is_tried_at_a_slow_pace() {
    let mut bench = Bench::start(1, 1).await;
    drop(bench.enqueue(0..2, false));
    let started = Instant::now();
    let mut attempts = 0;
    while started.elapsed() < Duration::from_secs(20) {
        let flush = bench.flush(0).await;
        attempts += 1;
        flush.answer(Err(FlushError {
            error: StoreError::Unavailable {
                what: "no letters".to_owned(),
                fault: Some(fault(FaultKind::Lasting)),
                source: None,
            },
            control: Control::Passed,
        }));
        settle().await;
    }
    assert!(attempts < 60, "{attempts} attempts in 20 s");
}

pub(super) fn fails_with(kind: FaultKind) -> StoreError {
    StoreError::Unavailable {
        what: "refused".to_owned(),
        fault: Some(fault(kind)),
        source: None,
    }
}

/// How often an event is refused before it is a letter, where one before it was answered so in the end.
async fn refusals_after_a_suspect_that_was(ended: Flushed) -> usize {
    let mut bench = Bench::start(1, 1).await;
    drop(bench.enqueue_these(events(0..1), false));
    refuse(bench.flush(0).await, fails_with(FaultKind::Lasting));
    bench.flush(0).await.answer(Ok(ended));
    drop(bench.enqueue_these(events(1..2), false));
    let mut num_refusals = 0;
    loop {
        let flush = bench.flush(0).await;
        assert_eq!(positions(&flush), ["1"]);
        if flush.message.batch.condemned().is_some() {
            return num_refusals;
        }
        num_refusals += 1;
        refuse(flush, fails_with(FaultKind::Lasting));
    }
}

#[actix::test]
async fn a_suspect_that_is_stored_after_all_makes_it_harder_to_convict_the_next() {
    let stored = Flushed {
        inserted: 1,
        ..Flushed::default()
    };
    assert_eq!(refusals_after_a_suspect_that_was(stored).await, 3);
}

#[actix::test]
async fn a_suspect_that_turns_out_to_be_a_duplicate_tells_nothing_of_the_store() {
    let known = Flushed {
        duplicates: 1,
        ..Flushed::default()
    };
    assert_eq!(refusals_after_a_suspect_that_was(known).await, 2);
}

#[actix::test]
async fn suspects_stop_no_reading() {
    let mut bench = Bench::start(1, 1).await;
    let started = Instant::now();
    // Three may be in flight.
    for number in 0..20 {
        let permit = actix_rt::spawn(bench.enqueue_these(events(number..number + 1), false));
        settle().await;
        while !permit.is_finished() {
            refuse(bench.flush(0).await, waits_for_a_lock());
            settle().await;
            assert!(started.elapsed() < Duration::from_secs(60), "{number}");
        }
        permit.await.unwrap().unwrap();
    }
}

#[actix::test]
async fn more_suspects_than_are_held_beside_the_rest_stop_reading() {
    let mut bench = Bench::start(1, 1).await;
    let mut num_read = 0;
    while num_read < 150 {
        let permit = actix_rt::spawn(bench.enqueue_these(events(num_read..num_read + 1), false));
        num_read += 1;
        let began = Instant::now();
        while !permit.is_finished() && began.elapsed() < Duration::from_secs(30) {
            refuse(bench.flush(0).await, waits_for_a_lock());
            settle().await;
        }
        if !permit.is_finished() {
            break;
        }
    }
    assert_eq!(num_read, 100 + 3, "beside the three that may be in flight");
}

#[actix::test]
async fn a_suspect_whose_failure_may_go_by_itself_is_left_alone_for_a_second() {
    let mut bench = Bench::start(1, 1).await;
    drop(bench.enqueue_these(events(0..1), false));
    let mut flush = bench.flush(0).await;
    for _ in 0..2 {
        refuse(flush, fails_with(FaultKind::Transient));
        tokio::time::sleep(Duration::from_millis(990)).await;
        assert!(bench.writers[0].try_next().is_none(), "too early");
        tokio::time::sleep(Duration::from_millis(20)).await;
        flush = bench.writers[0].try_next().expect("tried again");
        assert!(flush.message.batch.condemned().is_none());
    }
}
