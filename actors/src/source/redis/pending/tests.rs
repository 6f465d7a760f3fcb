use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::delivery::Position;

fn id(number: u64) -> StreamId {
    StreamId { millis: 1, number }
}

fn entry(number: u64) -> (StreamId, Body) {
    let body = Body::Raw {
        position: Position::new(id(number).to_string()),
        data: Bytes::from(format!("entry {number}")),
    };
    (id(number), body)
}

fn entries(numbers: impl IntoIterator<Item = u64>) -> Vec<(StreamId, Body)> {
    numbers.into_iter().map(entry).collect()
}

impl PendingEntries {
    fn add_all_new(&mut self, entries: Vec<(StreamId, Body)>, now: Instant) {
        for (id, body) in entries {
            self.add_new(id, body, now);
        }
    }

    /// Returns how many were not here.
    fn add_all_again(&mut self, entries: Vec<(StreamId, Body)>, now: Instant) -> usize {
        let added = entries
            .into_iter()
            .map(|(id, body)| self.add_again(id, body, now));
        added.filter(|is_added| *is_added).count()
    }
}

fn ids(numbers: impl IntoIterator<Item = u64>) -> Vec<StreamId> {
    numbers.into_iter().map(id).collect()
}

fn permit(max_messages: usize) -> Permit {
    Permit {
        max_messages,
        max_bytes: 1_000_000,
    }
}

fn positions(chunk: &Chunk) -> Vec<String> {
    chunk
        .messages
        .iter()
        .map(|message| message.body.position().to_string())
        .collect()
}

fn hand_out(pending: &mut PendingEntries) -> Vec<(String, bool, Receipt)> {
    let Some(chunk) = pending.hand_out(permit(1000), More::Later) else {
        return Vec::new();
    };
    let positions = positions(&chunk);
    let messages = chunk.messages.iter();
    positions
        .into_iter()
        .zip(messages)
        .map(|(position, message)| (position, message.redelivered, message.receipt))
        .collect()
}

#[test]
fn what_an_old_master_has_is_handed_out_though_its_ids_mean_nothing_here() {
    let mut pending = PendingEntries::default();
    let now = Instant::now();
    pending.add_all_new(entries([1]), now);
    pending.add_of_old_master(entry(1).1, true);
    pending.add_of_old_master(entry(2).1, false);
    // Another master, of which nothing else is known.
    pending.clear();
    pending.add_all_new(entries([2]), now);
    let room = |max_messages, max_bytes| Permit {
        max_messages,
        max_bytes,
    };
    assert!(!pending.has_room_of_old_master(room(2, 1 << 20)));
    assert!(!pending.has_room_of_old_master(room(3, 2)));
    assert!(pending.has_room_of_old_master(room(3, 1 << 20)));
    let handed_out = hand_out(&mut pending);
    let (positions, receipts): (Vec<_>, Vec<_>) = handed_out
        .into_iter()
        .map(|(position, redelivered, receipt)| ((position, redelivered), receipt))
        .unzip();
    let expected = [("1-1", true), ("1-2", false), ("1-2", false)];
    assert_eq!(
        positions,
        expected.map(|(at, again)| (at.to_owned(), again))
    );
    assert!(pending.has_room_of_old_master(room(1, 1)));
    assert_eq!(
        pending.commit(&receipts[..2]),
        [],
        "nothing is acknowledged"
    );
    assert_eq!(pending.commit(&receipts[2..]), [id(2)]);
}

#[tokio::test]
async fn is_in_flight_until_committed_and_committed_until_confirmed() {
    let mut pending = PendingEntries::default();
    let now = Instant::now();
    pending.add_all_new(entries(1..4), now);
    let out = hand_out(&mut pending);
    assert_eq!(pending.commit(&[out[0].2, out[2].2]), ids([1, 3]));
    assert_eq!(pending.commit(&[out[0].2, Receipt(99)]), ids([1, 3]));
    // What is in either set is not read again.
    assert_eq!(pending.add_all_again(entries(1..4), now), 0);
    assert!(pending.plan_recovery(&ids(1..4)).is_empty());
    pending.confirm(&ids([1]));
    assert_eq!(pending.committed(), ids([3]));
    assert!(!pending.has(id(1)));
}

#[tokio::test]
async fn what_is_in_neither_set_is_read_again_and_only_that() {
    let mut pending = PendingEntries::default();
    let now = Instant::now();
    pending.add_all_new(entries(3..5), now);
    let run = |first, num| PendingRun {
        first: id(first),
        num,
    };
    let plan = pending.plan_recovery(&ids([1, 2, 3, 4, 5, 7, 8]));
    assert_eq!(plan, [run(1, 2), run(5, 3)]);
    assert_eq!(pending.add_all_again(entries([1, 2, 3]), now), 2);
    let out = hand_out(&mut pending);
    let seen: Vec<_> = out
        .iter()
        .map(|(at, again, _)| (at.as_str(), *again))
        .collect();
    assert_eq!(
        seen,
        [("1-1", true), ("1-2", true), ("1-3", false), ("1-4", false)]
    );
}

#[tokio::test]
async fn a_rewind_keeps_receipts_and_holds_back_what_is_new() {
    let mut pending = PendingEntries::default();
    let now = Instant::now();
    pending.add_all_new(entries(1..6), now);
    let first = pending.hand_out(permit(3), More::Later).unwrap();
    assert_eq!(first.more, More::Ready);
    let receipts: Vec<Receipt> = first.messages.iter().map(|m| m.receipt).collect();
    pending.rewind();
    assert!(hand_out(&mut pending).is_empty(), "not before it is read");
    pending.commit(&receipts[..1]);
    let plan = pending.plan_recovery(&ids(1..6));
    assert_eq!(plan.iter().map(|run| run.num).sum::<usize>(), 2);
    assert_eq!(pending.add_all_again(entries(1..4), now), 2);
    let again = hand_out(&mut pending);
    assert_eq!(again[0], ("1-2".to_owned(), true, receipts[1]));
    assert_eq!(again.len(), 2);
    pending.recovered();
    let rest = hand_out(&mut pending);
    assert_eq!((rest.len(), rest[0].1), (2, false));
}

#[tokio::test]
async fn what_was_rewound_and_is_no_longer_ours_is_forgotten() {
    let mut pending = PendingEntries::default();
    pending.add_all_new(entries(1..3), Instant::now());
    let out = hand_out(&mut pending);
    pending.rewind();
    assert_eq!(pending.plan_recovery(&ids([2])).len(), 1);
    assert!(pending.commit(&[out[0].2]).is_empty());
    assert_eq!(pending.to_keep(Instant::now(), Duration::ZERO), ids([2]));
}

#[tokio::test]
async fn what_is_confirmed_while_a_reply_is_under_way_does_not_come_again() {
    let mut pending = PendingEntries::default();
    let now = Instant::now();
    pending.add_all_new(entries(1..2), now);
    let out = hand_out(&mut pending);
    pending.begin_replies();
    let committed = pending.commit(&[out[0].2]);
    pending.confirm(&committed);
    assert_eq!(pending.add_all_again(entries(1..2), now), 0);
    pending.end_replies();
    assert_eq!(pending.add_all_again(entries(1..2), now), 1);
}

#[tokio::test]
async fn an_id_that_a_new_stream_uses_again_is_a_new_entry() {
    let mut pending = PendingEntries::default();
    let now = Instant::now();
    pending.add_all_new(entries(1..3), now);
    let old = hand_out(&mut pending);
    pending.commit(&[old[1].2]);
    pending.add_all_new(entries(1..3), now);
    let new = hand_out(&mut pending);
    assert_eq!(new.len(), 2);
    // The old receipts acknowledge nothing of the new stream.
    assert!(pending.commit(&[old[0].2, old[1].2]).is_empty());
    assert_eq!(pending.commit(&[new[0].2]), ids([1]));
}

#[tokio::test(start_paused = true)]
async fn names_what_has_to_be_kept() {
    let mut pending = PendingEntries::default();
    let every = Duration::from_secs(2);
    pending.add_all_new(entries(1..3), Instant::now());
    tokio::time::advance(Duration::from_secs(1)).await;
    pending.add_all_new(entries(3..4), Instant::now());
    assert!(pending.to_keep(Instant::now(), every).is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(pending.to_keep(Instant::now(), every), ids([1, 2]));
    pending.kept(&ids([1, 2, 9]), Instant::now());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(pending.to_keep(Instant::now(), every), ids([3]));
}

#[derive(Debug, Clone)]
enum Step {
    Deliver(u8),
    LoseReply(u8),
    HandOut(u8),
    Acknowledge(u8),
    Confirm,
    Recover,
    Rewind,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..5_u8).prop_map(Step::Deliver),
        (1..5_u8).prop_map(Step::LoseReply),
        (1..6_u8).prop_map(Step::HandOut),
        any::<u8>().prop_map(Step::Acknowledge),
        Just(Step::Confirm),
        Just(Step::Recover),
        Just(Step::Rewind),
    ]
}

/// Redis and the pipeline around it.
#[derive(Default)]
struct Model {
    known: PendingEntries,
    next: u64,
    pending: BTreeSet<u64>,
    /// Handed out and not acknowledged.
    out: Vec<(u64, Receipt)>,
    durable: BTreeSet<u64>,
    now: Option<Instant>,
}

impl Model {
    fn deliver(&mut self, num: u8) -> Vec<u64> {
        let numbers: Vec<u64> = (self.next..self.next + u64::from(num)).collect();
        self.next += u64::from(num);
        self.pending.extend(&numbers);
        numbers
    }

    fn recover(&mut self, now: Instant) {
        let pending: Vec<StreamId> = self.pending.iter().map(|n| id(*n)).collect();
        for run in self.known.plan_recovery(&pending) {
            let numbers = self.pending.range(run.first.number..).take(run.num);
            let entries = numbers.map(|n| entry(*n)).collect();
            self.known.add_all_again(entries, now);
        }
        self.known.recovered();
    }

    fn hand_out(&mut self, num: usize) {
        let Some(chunk) = self.known.hand_out(permit(num), More::Later) else {
            return;
        };
        assert!(chunk.messages.len() <= num);
        for (position, message) in positions(&chunk).iter().zip(&chunk.messages) {
            let number = position[2..].parse().unwrap();
            assert!(!self.durable.contains(&number), "{number} is durable");
            assert!(
                self.out.iter().all(|(other, _)| *other != number),
                "{number} is already handed out"
            );
            self.out.push((number, message.receipt));
        }
    }

    fn acknowledge(&mut self, which: u8) {
        if !self.out.is_empty() {
            let (number, receipt) = self.out.remove(usize::from(which) % self.out.len());
            self.durable.insert(number);
            self.known.commit(&[receipt]);
        }
    }

    fn confirm(&mut self) {
        let committed = self.known.committed();
        for id in &committed {
            self.pending.remove(&id.number);
        }
        self.known.confirm(&committed);
    }

    fn step(&mut self, step: Step) {
        let now = self.now.unwrap();
        match step {
            Step::Deliver(num) => {
                let numbers = self.deliver(num);
                self.known.add_all_new(entries(numbers), now);
            }
            Step::LoseReply(num) => drop(self.deliver(num)),
            Step::HandOut(num) => self.hand_out(usize::from(num)),
            Step::Acknowledge(which) => self.acknowledge(which),
            Step::Confirm => self.confirm(),
            Step::Recover => self.recover(now),
            Step::Rewind => {
                self.known.rewind();
                self.out.clear();
            }
        }
    }
}

proptest! {
    #[test]
    fn loses_and_doubles_nothing(steps in prop::collection::vec(step(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let mut model = Model { now: Some(Instant::now()), ..Model::default() };
        for step in steps {
            model.step(step);
        }
        // In the end everything can be made durable, and nothing stays pending.
        model.recover(model.now.unwrap());
        model.hand_out(10_000);
        model.hand_out(10_000);
        while !model.out.is_empty() {
            model.acknowledge(0);
        }
        model.confirm();
        prop_assert_eq!(model.durable.len() as u64, model.next);
        prop_assert!(model.pending.is_empty());
        prop_assert!(model.known.to_keep(model.now.unwrap(), Duration::ZERO).is_empty());
    }
}

#[test]
fn what_was_read_over_is_read_again_whatever_is_known_by_its_id() {
    let mut pending = PendingEntries::default();
    pending.begin_replies();
    pending.add_all_new(entries(1..=3), Instant::now());
    let receipts: Vec<_> = hand_out(&mut pending)
        .into_iter()
        .map(|one| one.2)
        .collect();
    let committed = pending.commit(&receipts[..2]);
    pending.confirm(&committed[..1]);
    // A stream that began anew brings the same ids once more.
    for id in ids(1..=3) {
        pending.skip_new(id);
    }
    let runs = pending.plan_recovery(&ids(1..=3));
    assert_eq!(
        runs,
        [PendingRun {
            first: id(1),
            num: 3
        }]
    );
    assert!(
        pending.commit(&receipts).is_empty(),
        "the old receipts are void"
    );
}
