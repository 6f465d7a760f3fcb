use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::delivery::{Condemned, Content, Entry, Position, Rejection};
use crate::testing::{event, event_entry};

const SOURCE: SourceIndex = SourceIndex(0);

const ANY: Preference = Preference {
    new_first: false,
    quick_only: false,
    full_only: false,
};

fn new_first(new_first: bool) -> Preference {
    Preference { new_first, ..ANY }
}

fn delivery(number: u64, num_bytes: usize, came: Instant) -> Delivery {
    Delivery {
        source: SOURCE,
        came,
        receipt: Receipt(number),
        entry: Arc::new(Entry {
            source: Arc::from("test"),
            position: Position::new(number.to_string()),
            content: Content::Rejected(Rejection {
                raw: Bytes::from(vec![b'x'; num_bytes]),
                reason: String::new(),
                event_id: None,
            }),
        }),
    }
}

fn deliveries(count: u64, came: Instant) -> Vec<Delivery> {
    (0..count)
        .map(|number| delivery(number, 10, came))
        .collect()
}

fn queue(max_events: usize, max_bytes: usize) -> BatchQueue {
    BatchQueue::new(BatchLimits {
        max_events: NonZeroUsize::new(max_events).unwrap(),
        max_bytes: NonZeroUsize::new(max_bytes).unwrap(),
        linger: Duration::from_millis(5),
        max_age: Duration::from_secs(1),
    })
}

fn write(next: Next) -> (HeldBatch, FlushReason) {
    match next {
        Next::Write(held, reason) => (held, reason),
        other => panic!("expected a batch, got {other:?}"),
    }
}

fn wait(next: Next) -> Instant {
    match next {
        Next::WaitUntil(at) => at,
        other => panic!("expected to wait, got {other:?}"),
    }
}

#[test]
fn flushes_by_size() {
    let now = Instant::now();
    let mut queue = queue(3, 1_000);
    queue.push(deliveries(7, now), true, now);
    for _ in 0..2 {
        let (held, reason) = write(queue.next(now, ANY));
        assert_eq!((held.batch.len(), reason), (3, FlushReason::MaxEvents));
    }
    wait(queue.next(now, ANY));
}

#[test]
fn flushes_by_bytes_and_lets_a_larger_event_go_alone() {
    let now = Instant::now();
    let mut queue = queue(100, 25);
    queue.push(deliveries(3, now), true, now);
    queue.push(vec![delivery(3, 500, now), delivery(4, 10, now)], true, now);
    let (held, reason) = write(queue.next(now, ANY));
    assert_eq!((held.batch.len(), reason), (2, FlushReason::MaxBytes));
    let lens: Vec<_> = std::iter::from_fn(|| match queue.next(now + Duration::from_secs(1), ANY) {
        Next::Write(held, _) => Some((held.batch.len(), held.batch.num_bytes())),
        Next::WaitUntil(_) | Next::Nothing => None,
    })
    .collect();
    assert_eq!(lens, [(1, 10), (1, 500), (1, 10)]);
}

#[test]
fn entries_that_total_exactly_the_bytes_of_a_batch_leave_as_one() {
    let now = Instant::now();
    let mut queue = queue(100, 30);
    queue.push(deliveries(4, now), true, now);
    let (held, reason) = write(queue.next(now, ANY));
    let size = (held.batch.len(), held.batch.num_bytes());
    assert_eq!((size, reason), ((3, 30), FlushReason::MaxBytes));
    wait(queue.next(now, ANY));
}

#[test]
fn flushes_at_once_when_the_source_has_no_more() {
    let now = Instant::now();
    let mut queue = queue(100, 1_000);
    queue.push(deliveries(1, now), false, now);
    assert_eq!(write(queue.next(now, ANY)).1, FlushReason::SourceIdle);
    assert!(matches!(queue.next(now, ANY), Next::Nothing));
}

#[test]
fn flushes_by_linger_when_the_source_is_slow() {
    let now = Instant::now();
    let mut queue = queue(100, 1_000);
    queue.push(deliveries(1, now), true, now);
    let lingered = now + Duration::from_millis(5);
    assert_eq!(wait(queue.next(now, ANY)), lingered);
    assert_eq!(write(queue.next(lingered, ANY)).1, FlushReason::Linger);
}

#[test]
fn flushes_by_age_however_busy_the_source() {
    let start = Instant::now();
    let mut queue = queue(100_000, 1_000_000);
    let step = Duration::from_millis(4);
    for number in 0..250 {
        let now = start + step * number;
        queue.push(deliveries(1, now), true, now);
        if now < start + Duration::from_secs(1) {
            wait(queue.next(now, ANY));
        }
    }
    let aged = start + Duration::from_secs(1);
    assert_eq!(write(queue.next(aged, ANY)).1, FlushReason::MaxAge);
}

#[test]
fn waits_until_a_batch_is_full_or_old_where_only_full_ones_may_leave() {
    let full_only = Preference {
        full_only: true,
        ..ANY
    };
    for more_ready in [false, true] {
        let now = Instant::now();
        let aged = now + Duration::from_secs(1);
        let mut queue = queue(3, 1_000);
        queue.push(deliveries(2, now), more_ready, now);
        assert_eq!(wait(queue.next(now, full_only)), aged);
        let almost = aged - Duration::from_nanos(1);
        assert_eq!(wait(queue.next(almost, full_only)), aged);
        assert_eq!(write(queue.next(aged, full_only)).0.batch.len(), 2);
        queue.push(deliveries(3, now), more_ready, now);
        assert_eq!(write(queue.next(now, full_only)).1, FlushReason::MaxEvents);
        queue.push(deliveries(1, now), more_ready, now);
        queue.start_draining();
        assert_eq!(write(queue.next(now, full_only)).1, FlushReason::Draining);
    }
}

#[test]
fn drains_without_waiting() {
    let now = Instant::now();
    let mut queue = queue(100, 1_000);
    queue.push(deliveries(1, now), true, now);
    queue.start_draining();
    assert_eq!(write(queue.next(now, ANY)).1, FlushReason::Draining);
    assert!(queue.is_empty());
}

#[test]
fn a_returned_batch_goes_first_and_is_not_overtaken() {
    let now = Instant::now();
    let mut queue = queue(2, 1_000);
    queue.push(deliveries(6, now), false, now);
    let (first, _) = write(queue.next(now, ANY));
    let (second, _) = write(queue.next(now, ANY));
    let later = now + Duration::from_secs(3);
    queue.put_back(second, later);
    queue.put_back(first, later);
    assert_eq!(wait(queue.next(now, ANY)), later);
    queue.end_backoff(now);
    let order: Vec<_> = (0..3)
        .map(|_| write(queue.next(now, ANY)))
        .map(|(held, reason)| (held.batch.id.0, reason))
        .collect();
    assert_eq!(
        order,
        [
            (1, FlushReason::Retry),
            (3, FlushReason::Retry),
            (5, FlushReason::MaxEvents)
        ]
    );
}

#[test]
fn a_batch_that_fails_again_and_again_holds_nothing_up() {
    let now = Instant::now();
    let mut queue = queue(2, 1_000);
    queue.push(deliveries(4, now), false, now);
    let (mut first, _) = write(queue.next(now, ANY));
    let later = now + Duration::from_secs(3);
    for failures in 1..3 {
        first.failures = failures;
        queue.put_back(first, later);
        assert_eq!(
            wait(queue.next(now, ANY)),
            later,
            "after {failures} failures"
        );
        first = write(queue.next(later, ANY)).0;
    }
    first.failures = 3;
    queue.put_back(first, later);
    assert_eq!(write(queue.next(now, ANY)).0.batch.id, BatchId(3));
    assert_eq!(wait(queue.next(now, ANY)), later, "and is not forgotten");
}

#[test]
fn a_stubborn_batch_keeps_its_back_off_whatever_others_do() {
    let now = Instant::now();
    let mut queue = queue(2, 1_000);
    queue.push(deliveries(4, now), false, now);
    let (mut first, _) = write(queue.next(now, ANY));
    let later = now + Duration::from_secs(3);
    first.failures = 2;
    first.is_stubborn = true;
    queue.put_back(first, later);
    queue.end_backoff(now);
    assert_eq!(write(queue.next(now, ANY)).0.batch.id, BatchId(3));
    assert_eq!(wait(queue.next(now, ANY)), later);
    assert_eq!(write(queue.next(later, ANY)).0.batch.id, BatchId(1));
}

#[test]
fn a_stubborn_batch_that_is_due_goes_before_new_ones() {
    let now = Instant::now();
    let mut queue = queue(1, 1_000);
    queue.push(deliveries(4, now), false, now);
    let (mut first, _) = write(queue.next(now, ANY));
    first.is_stubborn = true;
    let later = now + Duration::from_secs(3);
    queue.put_back(first, later);
    assert_eq!(write(queue.next(now, ANY)).0.batch.id, BatchId(2));
    let (again, reason) = write(queue.next(later, ANY));
    assert_eq!((again.batch.id, reason), (BatchId(1), FlushReason::Retry));
    assert_eq!(write(queue.next(later, ANY)).0.batch.id, BatchId(3));
}

#[test]
fn wakes_for_whatever_is_due_first_the_end_of_a_back_off_or_of_a_linger() {
    let now = Instant::now();
    let lingered = now + Duration::from_millis(5);
    for (not_before, expected) in [
        (
            now + Duration::from_millis(2),
            now + Duration::from_millis(2),
        ),
        (now + Duration::from_secs(3), lingered),
    ] {
        let mut queue = queue(2, 1_000);
        queue.push(deliveries(2, now), true, now);
        let (mut first, _) = write(queue.next(now, ANY));
        first.is_stubborn = true;
        queue.put_back(first, not_before);
        assert_eq!(wait(queue.next(now, ANY)), not_before, "nothing else waits");
        queue.push(deliveries(1, now), true, now);
        assert_eq!(wait(queue.next(now, ANY)), expected);
    }
}

#[test]
fn many_that_always_fail_take_turns_with_what_is_new() {
    let now = Instant::now();
    let mut queue = queue(1, 1_000);
    queue.push(deliveries(4, now), false, now);
    let failing: Vec<_> = (0..3).map(|_| write(queue.next(now, ANY)).0).collect();
    for (mut held, waited) in failing.into_iter().zip([1, 3, 2]) {
        held.failures = 3;
        queue.put_back(held, now - Duration::from_millis(waited));
    }
    let mut ids = Vec::new();
    for prefers_new in [false, true, true, false] {
        ids.push(write(queue.next(now, new_first(prefers_new))).0.batch.id.0);
    }
    assert_eq!(
        ids,
        [2, 4, 3, 1],
        "the longest due, the new one, the others"
    );
}

#[test]
fn a_batch_that_takes_too_long_is_halved_down_to_single_entries() {
    let now = Instant::now();
    let mut queue = queue(8, 1_000);
    queue.push(deliveries(8, now), false, now);
    let (whole, _) = write(queue.next(now, ANY));
    queue.shrink_to_halves_of(&whole);
    queue.put_back_in_halves(whole, now);
    let mut sizes = Vec::new();
    let mut receipts = Vec::new();
    while let Next::Write(held, _) = queue.next(now, ANY) {
        sizes.push(held.batch.len());
        if held.batch.len() > 1 {
            queue.shrink_to_halves_of(&held);
            queue.put_back_in_halves(held, now);
        } else {
            receipts.extend(held.receipts.iter().map(|(_, receipt)| receipt.0));
        }
    }
    assert_eq!(sizes, [4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1]);
    assert_eq!(receipts, (0..8).collect::<Vec<_>>());
}

#[test]
fn new_batches_are_small_after_one_took_too_long_and_grow_again() {
    let now = Instant::now();
    let mut queue = queue(8, 1_000);
    queue.push(deliveries(100, now), false, now);
    let (whole, _) = write(queue.next(now, ANY));
    queue.shrink_to_halves_of(&whole);
    queue.put_back_in_halves(whole, now);
    let lens: Vec<_> = (0..9)
        .map(|_| {
            let (held, _) = write(queue.next(now, ANY));
            queue.grow();
            held.batch.len()
        })
        .collect();
    assert_eq!(lens, [4, 4, 6, 7, 8, 8, 8, 8, 8]);
}

#[derive(Debug, Clone)]
enum Step {
    Push {
        sizes: Vec<usize>,
        more_ready: bool,
    },
    Next {
        prefers_new: bool,
    },
    PutBack {
        which: usize,
        after_millis: u64,
        is_stubborn: bool,
        in_halves: bool,
    },
    Commit {
        which: usize,
    },
    EndBackoff,
    Wait {
        millis: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (prop::collection::vec(0_usize..60, 0..9), any::<bool>())
            .prop_map(|(sizes, more_ready)| Step::Push { sizes, more_ready }),
        4 => any::<bool>().prop_map(|prefers_new| Step::Next { prefers_new }),
        2 => (any::<usize>(), 0_u64..3_000, any::<bool>(), any::<bool>())
            .prop_map(|(which, after_millis, is_stubborn, in_halves)| {
                Step::PutBack { which, after_millis, is_stubborn, in_halves }
            }),
        2 => any::<usize>().prop_map(|which| Step::Commit { which }),
        1 => Just(Step::EndBackoff),
        2 => (0_u64..1_500).prop_map(|millis| Step::Wait { millis }),
    ]
}

/// Plays steps against a queue and holds it to its promises at each of them.
struct Game {
    queue: BatchQueue,
    now: Instant,
    pushed: u64,
    out: Vec<HeldBatch>,
    /// Ids that were put back and wait, and whether they hold up others.
    back: BTreeMap<BatchId, bool>,
    highest: u64,
    committed: Vec<u64>,
}

impl Game {
    fn play(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Push { sizes, more_ready } => {
                let chunk = sizes.into_iter().map(|size| {
                    self.pushed += 1;
                    delivery(self.pushed, size, self.now)
                });
                let chunk = chunk.collect();
                self.queue.push(chunk, more_ready, self.now);
            }
            Step::Next { prefers_new } => self.next(prefers_new)?,
            Step::PutBack {
                which,
                after_millis,
                is_stubborn,
                in_halves,
            } if !self.out.is_empty() => {
                let mut held = self.out.swap_remove(which % self.out.len());
                held.failures += 1;
                held.is_stubborn = is_stubborn;
                let holds_up = held.holds_up_others();
                self.back.insert(held.batch.id, holds_up);
                let not_before = self.now + Duration::from_millis(after_millis);
                if in_halves {
                    let (first, second) = held.clone().halves();
                    prop_assert!(first.batch.len() <= held.batch.len().div_ceil(2));
                    self.back
                        .extend(second.map(|half| (half.batch.id, holds_up)));
                    self.queue.shrink_to_halves_of(&held);
                    self.queue.put_back_in_halves(held, not_before);
                } else {
                    self.queue.put_back(held, not_before);
                }
            }
            Step::Commit { which } if !self.out.is_empty() => {
                let held = self.out.swap_remove(which % self.out.len());
                self.queue.grow();
                self.committed
                    .extend(held.receipts.iter().map(|(_, receipt)| receipt.0));
            }
            Step::PutBack { .. } | Step::Commit { .. } => {}
            Step::EndBackoff => self.queue.end_backoff(self.now),
            Step::Wait { millis } => self.now += Duration::from_millis(millis),
        }
        Ok(())
    }

    fn next(&mut self, prefers_new: bool) -> Result<(), TestCaseError> {
        let (held, reason) = match self.queue.next(self.now, new_first(prefers_new)) {
            Next::Write(held, reason) => (held, reason),
            Next::WaitUntil(at) => {
                prop_assert!(at > self.now, "told to wait for what is due");
                return Ok(());
            }
            Next::Nothing => return Ok(()),
        };
        let limits = self.queue.limits;
        prop_assert!(!held.batch.is_empty());
        prop_assert!(held.batch.len() <= limits.max_events.get());
        prop_assert!(held.batch.num_bytes() <= limits.max_bytes.get() || held.batch.len() == 1);
        prop_assert_eq!(held.receipts.len(), held.batch.len());
        let in_order = held
            .receipts
            .windows(2)
            .all(|pair| pair[0].1.0 + 1 == pair[1].1.0);
        prop_assert!(in_order, "entries out of order");
        prop_assert_eq!(held.batch.id.0, held.receipts[0].1.0, "not in its place");
        let overtaken = self.back.range(..held.batch.id);
        let held_up = overtaken.filter(|(_, holds_up)| **holds_up).count();
        prop_assert_eq!(held_up, 0, "overtook a batch that others wait for");
        if self.back.remove(&held.batch.id).is_some() {
            prop_assert_eq!(reason, FlushReason::Retry);
        } else {
            prop_assert_eq!(held.batch.id.0, self.highest + 1, "out of sequence");
            self.highest += held.batch.len() as u64;
        }
        self.out.push(held);
        Ok(())
    }
}

proptest! {
    #[test]
    fn never_loses_never_reorders_never_exceeds_a_bound(
        steps in prop::collection::vec(step(), 0..120),
        max_events in 1_usize..8,
        max_bytes in 1_usize..120,
    ) {
        let mut game = Game {
            queue: queue(max_events, max_bytes),
            now: Instant::now(),
            pushed: 0,
            out: Vec::new(),
            back: BTreeMap::new(),
            highest: 0,
            committed: Vec::new(),
        };
        for step in steps {
            game.play(step)?;
        }
        game.queue.start_draining();
        game.now += Duration::from_secs(10);
        while !game.queue.is_empty() {
            game.next(false)?;
        }
        for held in game.out {
            game.committed.extend(held.receipts.iter().map(|(_, receipt)| receipt.0));
        }
        game.committed.sort_unstable();
        prop_assert_eq!(game.committed, (1..=game.pushed).collect::<Vec<_>>());
    }
}

#[test]
fn a_batch_that_is_split_goes_out_at_once_and_new_batches_stay_large() {
    let now = Instant::now();
    let mut queue = queue(4, 1_000);
    queue.push(deliveries(8, now), false, now);
    let mut held = write(queue.next(now, ANY)).0;
    held.failures = 3;
    queue.put_back_to_isolate(held, now);
    let halves = [(); 2].map(|()| write(queue.next(now, ANY)).0);
    assert_eq!(halves.each_ref().map(|half| half.batch.id.0), [1, 3]);
    assert_eq!(halves.map(|half| half.failures), [0, 0]);
    assert_eq!(write(queue.next(now, ANY)).0.batch.len(), 4);
}

#[test]
fn a_suspect_holds_nothing_up_and_waits_where_it_must() {
    let now = Instant::now();
    let mut queue = queue(1, 1_000);
    queue.push(deliveries(2, now), false, now);
    let mut held = write(queue.next(now, ANY)).0;
    held.suspect = Some(Suspect::default());
    queue.put_back(held, now);
    let quick_only = Preference {
        quick_only: true,
        ..ANY
    };
    let other = write(queue.next(now, quick_only)).0;
    assert_eq!(other.batch.id, BatchId(2));
    assert_eq!(queue.oldest_open(), None);
    assert_eq!(queue.returned().map(|held| held.oldest).min(), Some(now));
    assert!(matches!(queue.next(now, quick_only), Next::Nothing));
    assert_eq!(write(queue.next(now, ANY)).0.batch.id, BatchId(1));
}

fn away() -> StoreError {
    StoreError::unavailable("away")
}

/// A batch of one event.
fn one_event(now: Instant) -> HeldBatch {
    let mut queue = queue(1, 1_000);
    let entry = event_entry(event(Uuid::from_u128(1)));
    queue.push(
        vec![Delivery {
            entry,
            ..delivery(1, 1, now)
        }],
        false,
        now,
    );
    write(queue.next(now, ANY)).0
}

#[test]
fn a_batch_is_stubborn_once_others_were_written_between_its_failures() {
    let mut held = one_event(Instant::now());
    held.failed(Some(FaultKind::Lasting), &away(), 7);
    assert!(!held.is_stubborn && !held.others_were_written(7));
    held.failed(None, &away(), 7);
    assert!(!held.is_stubborn, "nothing was written since");
    assert!(held.others_were_written(8));
    held.failed(None, &away(), 8);
    assert!(held.is_stubborn);
    assert_eq!(held.failures, 3);
    let fault = held.failure.and_then(|failure| failure.fault);
    assert_eq!(
        fault,
        Some(FaultKind::Lasting),
        "the last one that is known"
    );
}

#[test]
fn only_a_single_event_may_be_a_culprit() {
    let now = Instant::now();
    let held = one_event(now);
    assert!(held.may_be_a_culprit());
    let condemned = HeldBatch {
        batch: Arc::new(Batch::clone(&held.batch).condemn(Condemned {
            reason: String::new(),
            code: None,
        })),
        ..held.clone()
    };
    assert!(!condemned.may_be_a_culprit(), "it is a letter already");
    let mut queue = queue(2, 1_000);
    queue.push(vec![delivery(1, 1, now)], false, now);
    let rejected = write(queue.next(now, ANY)).0;
    assert!(!rejected.may_be_a_culprit(), "it is no event");
    let twice = vec![Arc::clone(&held.batch.entries()[0]); 2];
    let two = HeldBatch {
        batch: Arc::new(Batch::new(BatchId(1), twice)),
        ..held
    };
    assert!(!two.may_be_a_culprit());
}

#[test]
fn halves_keep_the_reason_and_start_over_where_the_culprit_is_searched() {
    let now = Instant::now();
    let mut queue = queue(4, 1_000);
    queue.push(deliveries(4, now), false, now);
    let mut held = write(queue.next(now, ANY)).0;
    for successes in 0..4 {
        held.failed(Some(FaultKind::Lasting), &away(), successes);
    }
    held.is_narrowed = true;
    queue.put_back_to_isolate(held, now);
    for id in [1, 3] {
        let half = write(queue.next(now, ANY)).0;
        assert_eq!((half.batch.id.0, half.batch.len()), (id, 2));
        assert_eq!(half.receipts.len(), 2);
        assert!(half.failures == 0 && !half.is_stubborn && !half.is_narrowed);
        let fault = half.failure.and_then(|failure| failure.fault);
        assert_eq!(fault, Some(FaultKind::Lasting));
    }
}

#[test]
fn tells_whether_all_that_waits_are_suspects_and_their_letters() {
    let now = Instant::now();
    let mut queue = queue(1, 1_000);
    let later = now + Duration::from_secs(3);
    let mut suspect = one_event(now);
    suspect.suspect = Some(Suspect::default());
    queue.put_back(suspect, later);
    assert!(queue.has_only_suspects());
    let mut letter = one_event(now);
    letter.batch = Arc::new(
        Batch::new(BatchId(2), letter.batch.entries().to_vec()).condemn(Condemned {
            reason: String::new(),
            code: None,
        }),
    );
    queue.put_back(letter, later);
    assert!(queue.has_only_suspects());
    queue.push(deliveries(1, now), true, now);
    assert!(!queue.has_only_suspects(), "one is new");
    let mut failed = one_event(now);
    failed.batch = Arc::new(Batch::new(BatchId(3), failed.batch.entries().to_vec()));
    let mut queue = self::queue(1, 1_000);
    queue.put_back(failed, later);
    assert!(!queue.has_only_suspects(), "one is no suspect");
}
