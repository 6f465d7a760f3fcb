use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::delivery::Position;

fn id(number: u64) -> StreamId {
    StreamId { millis: 1, number }
}

fn entry(number: u64) -> Fetched {
    let data = Bytes::from(format!("entry {number}"));
    Fetched {
        id: id(number),
        num_bytes: data.len(),
        body: Body::Raw {
            position: Position::new(id(number).to_string()),
            data,
        },
    }
}

fn entries(numbers: impl IntoIterator<Item = u64>) -> Vec<Fetched> {
    numbers.into_iter().map(entry).collect()
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
        .map(|message| match &message.body {
            Body::Raw { position, .. } => position.to_string(),
            Body::Entry(entry) => entry.position.to_string(),
        })
        .collect()
}

/// Everything that waits.
fn hand_out(taken: &mut Taken) -> Vec<(String, bool, Receipt)> {
    let Some(chunk) = taken.hand_out(permit(1000), More::Later) else {
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

#[tokio::test]
async fn is_in_flight_until_committed_and_committed_until_confirmed() {
    let mut taken = Taken::default();
    let now = Instant::now();
    taken.take_new(entries(1..4), now);
    let out = hand_out(&mut taken);
    assert_eq!(taken.commit(&[out[0].2, out[2].2]), ids([1, 3]));
    assert_eq!(taken.commit(&[out[0].2, Receipt(99)]), ids([1, 3]));
    // What is in either set is not read again.
    assert_eq!(taken.take_again(entries(1..4), now), 0);
    assert!(taken.plan_recovery(&ids(1..4)).is_empty());
    taken.confirm(&ids([1]));
    assert_eq!(taken.committed(), ids([3]));
    assert!(!taken.has(id(1)));
}

#[tokio::test]
async fn what_is_in_neither_set_is_read_again_and_only_that() {
    let mut taken = Taken::default();
    let now = Instant::now();
    taken.take_new(entries(3..5), now);
    let run = |first, num| Run {
        first: id(first),
        num,
    };
    let plan = taken.plan_recovery(&ids([1, 2, 3, 4, 5, 7, 8]));
    assert_eq!(plan, [run(1, 2), run(5, 3)]);
    assert_eq!(taken.take_again(entries([1, 2, 3]), now), 2);
    let out = hand_out(&mut taken);
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
    let mut taken = Taken::default();
    let now = Instant::now();
    taken.take_new(entries(1..6), now);
    let first = taken.hand_out(permit(3), More::Later).unwrap();
    assert_eq!(first.more, More::Ready);
    let receipts: Vec<Receipt> = first.messages.iter().map(|m| m.receipt).collect();
    taken.rewind();
    assert!(hand_out(&mut taken).is_empty(), "not before it is read");
    taken.commit(&receipts[..1]);
    let plan = taken.plan_recovery(&ids(1..6));
    assert_eq!(plan.iter().map(|run| run.num).sum::<usize>(), 2);
    assert_eq!(taken.take_again(entries(1..4), now), 2);
    let again = hand_out(&mut taken);
    assert_eq!(again[0], ("1-2".to_owned(), true, receipts[1]));
    assert_eq!(again.len(), 2);
    taken.recovered();
    let rest = hand_out(&mut taken);
    assert_eq!((rest.len(), rest[0].1), (2, false));
}

#[tokio::test]
async fn what_was_rewound_and_is_no_longer_ours_is_forgotten() {
    let mut taken = Taken::default();
    taken.take_new(entries(1..3), Instant::now());
    let out = hand_out(&mut taken);
    taken.rewind();
    assert_eq!(taken.plan_recovery(&ids([2])).len(), 1);
    assert!(taken.commit(&[out[0].2]).is_empty());
    assert_eq!(taken.to_keep(Instant::now(), Duration::ZERO), ids([2]));
}

#[tokio::test]
async fn what_is_confirmed_while_a_reply_is_under_way_does_not_come_again() {
    let mut taken = Taken::default();
    let now = Instant::now();
    taken.take_new(entries(1..2), now);
    let out = hand_out(&mut taken);
    taken.watch();
    let committed = taken.commit(&[out[0].2]);
    taken.confirm(&committed);
    assert_eq!(taken.take_again(entries(1..2), now), 0);
    taken.end_watch();
    assert_eq!(taken.take_again(entries(1..2), now), 1);
}

#[tokio::test]
async fn an_id_that_a_new_stream_uses_again_is_a_new_entry() {
    let mut taken = Taken::default();
    let now = Instant::now();
    taken.take_new(entries(1..3), now);
    let old = hand_out(&mut taken);
    taken.commit(&[old[1].2]);
    taken.take_new(entries(1..3), now);
    let new = hand_out(&mut taken);
    assert_eq!(new.len(), 2);
    // The old receipts acknowledge nothing of the new stream.
    assert!(taken.commit(&[old[0].2, old[1].2]).is_empty());
    assert_eq!(taken.commit(&[new[0].2]), ids([1]));
}

#[tokio::test(start_paused = true)]
async fn names_what_has_to_be_kept() {
    let mut taken = Taken::default();
    let every = Duration::from_secs(2);
    taken.take_new(entries(1..3), Instant::now());
    tokio::time::advance(Duration::from_secs(1)).await;
    taken.take_new(entries(3..4), Instant::now());
    assert!(taken.to_keep(Instant::now(), every).is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(taken.to_keep(Instant::now(), every), ids([1, 2]));
    taken.kept(&ids([1, 2, 9]), Instant::now());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(taken.to_keep(Instant::now(), every), ids([3]));
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

/// Redis and the pipeline around what was taken.
#[derive(Default)]
struct Model {
    taken: Taken,
    next: u64,
    /// Pending in Redis.
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
        for run in self.taken.plan_recovery(&pending) {
            let numbers = self.pending.range(run.first.number..).take(run.num);
            let entries = numbers.map(|n| entry(*n)).collect();
            self.taken.take_again(entries, now);
        }
        self.taken.recovered();
    }

    fn hand_out(&mut self, num: usize) {
        let Some(chunk) = self.taken.hand_out(permit(num), More::Later) else {
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
            self.taken.commit(&[receipt]);
        }
    }

    fn confirm(&mut self) {
        let committed = self.taken.committed();
        for id in &committed {
            self.pending.remove(&id.number);
        }
        self.taken.confirm(&committed);
    }

    fn step(&mut self, step: Step) {
        let now = self.now.unwrap();
        match step {
            Step::Deliver(num) => {
                let numbers = self.deliver(num);
                self.taken.take_new(entries(numbers), now);
            }
            Step::LoseReply(num) => drop(self.deliver(num)),
            Step::HandOut(num) => self.hand_out(usize::from(num)),
            Step::Acknowledge(which) => self.acknowledge(which),
            Step::Confirm => self.confirm(),
            Step::Recover => self.recover(now),
            Step::Rewind => {
                self.taken.rewind();
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
        prop_assert!(model.taken.to_keep(model.now.unwrap(), Duration::ZERO).is_empty());
    }
}

#[test]
fn what_was_read_over_is_read_again_whatever_is_known_by_its_id() {
    let mut taken = Taken::default();
    taken.watch();
    taken.take_new(entries(1..=3), Instant::now());
    let receipts: Vec<_> = hand_out(&mut taken).into_iter().map(|one| one.2).collect();
    let committed = taken.commit(&receipts[..2]);
    taken.confirm(&committed[..1]);
    // A stream that began anew brings the same ids once more.
    taken.leave_new(&[1, 2, 3].map(|number| (id(number), 10)));
    let runs = taken.plan_recovery(&ids(1..=3));
    assert_eq!(
        runs,
        [Run {
            first: id(1),
            num: 3
        }]
    );
    assert!(
        taken.commit(&receipts).is_empty(),
        "the old receipts are void"
    );
}
