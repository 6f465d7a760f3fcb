use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use bytestring::ByteString;
use chrono::DateTime;
use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::delivery::{Position, Rejection};
use crate::event::{ID_LABEL, ReceivedEvent, Resource};

const ALL: Permit = Permit {
    max_messages: usize::MAX,
    max_bytes: usize::MAX,
};

fn intake(max_events: usize, max_bytes: usize) -> (Arc<IntakeSource>, Intake) {
    let settings = IntakeSettings {
        max_events: max_events.try_into().unwrap(),
        max_bytes: max_bytes.try_into().unwrap(),
    };
    IntakeSource::new("test", settings)
}

fn event(id: u128, text: &str) -> Entry {
    entry(Content::Event(ReceivedEvent {
        id: Uuid::from_u128(id),
        occurred: DateTime::UNIX_EPOCH,
        received: DateTime::UNIX_EPOCH,
        event: "test".into(),
        resource: Resource::from_checked(&[(ID_LABEL, "r")]),
        related: Vec::new(),
        follows: None,
        payload: ByteString::from_static("{}"),
        text: ByteString::from(text),
    }))
}

fn rejection(raw: &'static str) -> Entry {
    entry(Content::Rejected(Rejection {
        raw: Bytes::from_static(raw.as_bytes()),
        reason: "not an event".into(),
        event_id: None,
    }))
}

fn entry(content: Content) -> Entry {
    Entry {
        source: "test".into(),
        position: Position::new("here"),
        content,
    }
}

fn read(source: &IntakeSource, permit: Permit) -> Option<Chunk> {
    source.read(permit).now_or_never().map(Result::unwrap)
}

fn receipts(chunk: &Chunk) -> Vec<Receipt> {
    chunk
        .messages
        .iter()
        .map(|message| message.receipt)
        .collect()
}

fn acknowledge(source: &IntakeSource, receipts: &[Receipt]) {
    source
        .acknowledge(receipts)
        .now_or_never()
        .unwrap()
        .unwrap();
}

#[test]
fn commits_only_after_every_entry_is_acknowledged() {
    let (source, intake) = intake(10, 1000);
    let mut commit = intake.submit(vec![event(1, "a"), event(2, "b")]).unwrap();
    let chunk = read(&source, ALL).unwrap();
    assert_eq!((&mut commit).now_or_never(), None);
    acknowledge(&source, &receipts(&chunk)[..1]);
    assert_eq!((&mut commit).now_or_never(), None);
    acknowledge(&source, &receipts(&chunk)[..1]);
    assert_eq!(
        (&mut commit).now_or_never(),
        None,
        "acknowledging twice counts once"
    );
    acknowledge(&source, &receipts(&chunk)[1..]);
    assert_eq!((&mut commit).now_or_never(), Some(Ok(Committed::default())));
    assert_eq!(intake.usage(), IntakeUsage::default());
}

/// Each one who waits is told of their own, those who joined included.
#[test]
fn a_commit_tells_how_many_became_dead_letters() {
    let (source, intake) = intake(10, 100);
    let list = intake.submit(vec![event(1, "a"), event(2, "b")]).unwrap();
    let joined = intake.submit(vec![event(2, "b")]).unwrap();
    let other = intake.submit(vec![event(3, "c")]).unwrap();
    let read = receipts(&read(&source, ALL).unwrap());
    source.note_dead_letters(&read[1..2]);
    acknowledge(&source, &read);
    let dead_letters = |commit: Commit| commit.now_or_never().unwrap().unwrap().dead_letters;
    assert_eq!([list, joined, other].map(dead_letters), [1, 1, 0]);
}

#[test]
fn nothing_to_commit_is_committed() {
    let (_source, intake) = intake(10, 1000);
    let commit = intake.submit(Vec::new()).unwrap();
    assert_eq!(commit.now_or_never(), Some(Ok(Committed::default())));
}

#[test]
fn admits_all_or_none() {
    let (source, intake) = intake(3, 1000);
    let first = intake.submit(vec![event(1, "a"), event(2, "b")]).unwrap();
    let refused = intake.submit(vec![event(3, "c"), event(4, "d")]);
    assert_eq!(refused.unwrap_err(), SubmitError::Full);
    assert_eq!(
        intake.usage(),
        IntakeUsage {
            num_events: 2,
            num_bytes: 2
        }
    );
    let too_many = (10..14).map(|id| event(id, "a")).collect();
    assert_eq!(intake.submit(too_many).unwrap_err(), SubmitError::TooLarge);
    acknowledge(&source, &receipts(&read(&source, ALL).unwrap()));
    assert_eq!(first.now_or_never(), Some(Ok(Committed::default())));
    assert!(
        intake
            .submit(vec![event(3, "c"), event(4, "d"), event(5, "e")])
            .is_ok()
    );
}

#[test]
fn an_entry_larger_than_the_intake_comes_alone() {
    let (source, intake) = intake(3, 4);
    let small = intake.submit(vec![event(1, "a")]).unwrap();
    assert_eq!(
        intake.submit(vec![event(2, "123456")]).unwrap_err(),
        SubmitError::Full
    );
    acknowledge(&source, &receipts(&read(&source, ALL).unwrap()));
    assert_eq!(small.now_or_never(), Some(Ok(Committed::default())));
    let _large = intake.submit(vec![event(2, "123456")]).unwrap();
    assert_eq!(
        intake.submit(vec![event(3, "a")]).unwrap_err(),
        SubmitError::Full
    );
    let two = vec![event(4, "1234"), event(5, "5")];
    assert_eq!(intake.submit(two).unwrap_err(), SubmitError::TooLarge);
}

#[test]
fn the_same_message_joins_the_one_that_waits() {
    let (source, intake) = intake(2, 1000);
    let first = intake.submit(vec![event(1, "a"), event(1, "a")]).unwrap();
    let letter = intake.submit(vec![rejection("x")]).unwrap();
    let again = intake.submit(vec![event(1, "a"), rejection("x")]).unwrap();
    let waited = intake
        .submit_when_room(event(1, "a"))
        .now_or_never()
        .unwrap()
        .unwrap();
    assert_eq!(
        intake.usage(),
        IntakeUsage {
            num_events: 2,
            num_bytes: 2
        }
    );
    let chunk = read(&source, ALL).unwrap();
    assert_eq!(chunk.messages.len(), 2);
    let late = intake.submit(vec![event(1, "a")]).unwrap();
    acknowledge(&source, &receipts(&chunk));
    for commit in [first, letter, again, waited, late] {
        assert_eq!(commit.now_or_never(), Some(Ok(Committed::default())));
    }
    let anew = intake.submit(vec![event(1, "a")]).unwrap();
    assert_eq!(anew.now_or_never(), None, "what is durable is not joined");
}

#[test]
fn another_text_with_the_same_id_stands_for_itself() {
    let (source, intake) = intake(3, 1000);
    let first = intake.submit(vec![event(1, "a")]).unwrap();
    let mut second = intake.submit(vec![event(1, "b")]).unwrap();
    let chunk = read(&source, ALL).unwrap();
    acknowledge(&source, &receipts(&chunk)[..1]);
    assert_eq!(first.now_or_never(), Some(Ok(Committed::default())));
    assert_eq!((&mut second).now_or_never(), None);
    acknowledge(&source, &receipts(&chunk)[1..]);
    assert_eq!(second.now_or_never(), Some(Ok(Committed::default())));
}

#[test]
fn another_text_earlier_in_the_same_list_does_not_hide_what_waits() {
    let (source, intake) = intake(2, 1000);
    let _first = intake.submit(vec![event(1, "a")]).unwrap();
    let second = intake.submit(vec![event(1, "b"), event(1, "a")]).unwrap();
    let chunk = read(&source, ALL).unwrap();
    assert_eq!(chunk.messages.len(), 2);
    acknowledge(&source, &receipts(&chunk));
    assert_eq!(second.now_or_never(), Some(Ok(Committed::default())));
}

#[test]
fn dropping_a_commit_withdraws_nothing() {
    let (source, intake) = intake(3, 1000);
    drop(intake.submit(vec![event(1, "a")]).unwrap());
    assert_eq!(read(&source, ALL).unwrap().messages.len(), 1);
}

#[test]
fn abandoned_waiters_do_not_pile_up() {
    let (_source, intake) = intake(3, 1000);
    for _ in 0..10_000 {
        drop(intake.submit(vec![event(1, "a")]).unwrap());
    }
    let mut state = intake.shared.lock();
    let waiting = state.messages.get_mut(Receipt(0)).unwrap();
    assert!(waiting.waiters.len() < 10, "{}", waiting.waiters.len());
}

#[test]
fn closing_fails_every_commit_that_is_left() {
    let (source, intake) = intake(3, 1000);
    let read_already = intake.submit(vec![event(1, "a")]).unwrap();
    read(&source, ALL).unwrap();
    let unread = intake.submit(vec![event(2, "b")]).unwrap();
    source.close().now_or_never().unwrap().unwrap();
    assert_eq!(read_already.now_or_never(), Some(Err(NotCommitted)));
    assert_eq!(unread.now_or_never(), Some(Err(NotCommitted)));
    assert_eq!(
        intake.submit(vec![event(3, "c")]).unwrap_err(),
        SubmitError::Closed
    );
    let chunk = read(&source, ALL).unwrap();
    assert_eq!((chunk.messages.len(), chunk.more), (0, More::Ended));
    acknowledge(&source, &[Receipt(0), Receipt(1)]);
    assert_eq!(intake.usage(), IntakeUsage::default());
}

#[test]
fn a_dropped_source_fails_every_commit() {
    let (source, intake) = intake(3, 1000);
    let commit = intake.submit(vec![event(1, "a")]).unwrap();
    drop(source);
    assert_eq!(commit.now_or_never(), Some(Err(NotCommitted)));
    assert_eq!(intake.submit(Vec::new()).unwrap_err(), SubmitError::Closed);
}

#[tokio::test]
async fn draining_takes_nothing_more_and_commits_what_is_inside() {
    let (source, intake) = intake(1, 1000);
    let commit = intake.submit(vec![event(1, "a")]).unwrap();
    let (waiting, ()) = tokio::join!(intake.submit_when_room(event(2, "b")), async {
        tokio::task::yield_now().await;
        intake.stop_accepting();
    });
    assert_eq!(waiting.unwrap_err(), SubmitError::Closed);
    intake.stopped().await;
    assert_eq!(
        intake.submit(vec![event(3, "c")]).unwrap_err(),
        SubmitError::Closed
    );
    let chunk = source.read(ALL).await.unwrap();
    assert_eq!((chunk.messages.len(), chunk.more), (1, More::Ended));
    acknowledge(&source, &receipts(&chunk));
    assert_eq!(commit.await, Ok(Committed::default()));
    source.rewind().await.unwrap();
    let chunk = source.read(ALL).await.unwrap();
    assert_eq!((chunk.messages.len(), chunk.more), (0, More::Ended));
}

#[tokio::test]
async fn those_who_wait_for_room_are_served_in_order_and_large_ones_are_not_overtaken() {
    let (source, intake) = intake(10, 4);
    let _first = intake.submit(vec![event(1, "1"), event(2, "22")]).unwrap();
    let mut large = Box::pin(intake.submit_when_room(event(3, "333")));
    assert!((&mut large).now_or_never().is_none());
    let mut small = Box::pin(intake.submit_when_room(event(4, "4")));
    assert!((&mut small).now_or_never().is_none(), "it would overtake");
    let chunk = source.read(ALL).await.unwrap();
    acknowledge(&source, &receipts(&chunk)[..1]);
    assert!((&mut large).now_or_never().is_none());
    acknowledge(&source, &receipts(&chunk)[1..]);
    let _large = large.await.unwrap();
    let _small = small.await.unwrap();
    let chunk = source.read(ALL).await.unwrap();
    let texts: Vec<_> = chunk
        .messages
        .iter()
        .map(|message| match &message.body {
            Body::Entry(entry) => entry.raw().to_vec(),
            Body::Raw { .. } => panic!("an intake hands out entries"),
        })
        .collect();
    assert_eq!(texts, [b"333".to_vec(), b"4".to_vec()]);
}

#[tokio::test]
async fn a_dropped_wait_for_room_leaves_no_trace() {
    let (source, intake) = intake(1, 10);
    let _first = intake.submit(vec![event(1, "1")]).unwrap();
    let mut waiting = Box::pin(intake.submit_when_room(event(2, "2")));
    assert!((&mut waiting).now_or_never().is_none());
    drop(waiting);
    acknowledge(&source, &receipts(&source.read(ALL).await.unwrap()));
    assert_eq!(intake.usage(), IntakeUsage::default());
    assert!(intake.submit(vec![event(3, "3")]).is_ok());
}

#[test]
fn works_from_many_threads() {
    const THREADS: u128 = 4;
    const EACH: u128 = 500;
    let (source, intake) = intake(37, 10_000);
    let consumer = std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        block_on(async {
            loop {
                let chunk = source
                    .read(Permit {
                        max_messages: 10,
                        max_bytes: 1000,
                    })
                    .await
                    .unwrap();
                for receipt in receipts(&chunk) {
                    assert!(seen.insert(receipt), "handed out twice");
                }
                acknowledge(&source, &receipts(&chunk));
                if chunk.more == More::Ended {
                    return seen.len();
                }
            }
        })
    });
    let submitters: Vec<_> = (0..THREADS)
        .map(|thread| {
            let intake = intake.clone();
            std::thread::spawn(move || {
                block_on(async {
                    for num in 0..EACH {
                        let id = thread * EACH + num;
                        let commit = intake.submit_when_room(event(id, "12345")).await.unwrap();
                        if num % 10 == 0 {
                            commit.await.unwrap();
                        }
                    }
                });
            })
        })
        .collect();
    for submitter in submitters {
        submitter.join().unwrap();
    }
    intake.stop_accepting();
    assert_eq!(
        consumer.join().unwrap(),
        usize::try_from(THREADS * EACH).unwrap()
    );
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

#[derive(Debug, Clone)]
enum Step {
    /// Texts by (id, variant, length).
    Submit(Vec<(u8, u8, usize)>),
    Read(usize, usize),
    /// Which of those handed out.
    Acknowledge(Vec<prop::sample::Index>),
    Rewind,
    DropCommit(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let message = (0_u8..12, 0_u8..2, 1_usize..8);
    prop_oneof![
        4 => prop::collection::vec(message, 0..5).prop_map(Step::Submit),
        3 => (1_usize..6, 1_usize..20).prop_map(|(num, bytes)| Step::Read(num, bytes)),
        3 => prop::collection::vec(any::<prop::sample::Index>(), 1..5).prop_map(Step::Acknowledge),
        1 => Just(Step::Rewind),
        1 => any::<prop::sample::Index>().prop_map(Step::DropCommit),
    ]
}

/// What an intake must do, said again in the plainest way.
#[derive(Default)]
struct Model {
    /// Not acknowledged, in order: receipt → (id, text).
    held: BTreeMap<u64, (u128, String)>,
    /// Not handed out since the last rewind.
    queue: VecDeque<u64>,
    ever_handed_out: BTreeSet<u64>,
    next: u64,
    /// The last receipt that each id got.
    last: BTreeMap<u128, u64>,
    /// Commits that a submitter still holds, with the receipts that they wait for.
    commits: Vec<(Commit, BTreeSet<u64>)>,
}

const MAX_EVENTS: usize = 8;
const MAX_BYTES: usize = 30;

impl Model {
    fn num_bytes(&self) -> usize {
        self.held.values().map(|(_, text)| text.len()).sum()
    }

    /// The last one with this id is joined if it is there and its text is the same.
    fn find(&self, id: u128, text: &str) -> Option<u64> {
        let receipt = *self.last.get(&id)?;
        let (_, held) = self.held.get(&receipt)?;
        (held == text).then_some(receipt)
    }

    fn submit(&mut self, intake: &Intake, messages: &[(u8, u8, usize)]) {
        let messages: Vec<(u128, String)> = messages
            .iter()
            .map(|&(id, variant, len)| (u128::from(id), format!("{variant}").repeat(len)))
            .collect();
        let before = intake.usage();
        let entries = messages.iter().map(|(id, text)| event(*id, text)).collect();
        match intake.submit(entries) {
            Ok(commit) => {
                let mut waits_for = BTreeSet::new();
                // What was there before is joined, and what the same list brought.
                let before: Vec<_> = messages
                    .iter()
                    .map(|(id, text)| self.find(*id, text))
                    .collect();
                for ((id, text), before) in messages.into_iter().zip(before) {
                    let receipt = before.or_else(|| self.find(id, &text)).unwrap_or_else(|| {
                        let receipt = self.next;
                        self.next += 1;
                        self.last.insert(id, receipt);
                        self.queue.push_back(receipt);
                        self.held.insert(receipt, (id, text));
                        receipt
                    });
                    waits_for.insert(receipt);
                }
                self.commits.push((commit, waits_for));
            }
            Err(error) => {
                assert_ne!(error, SubmitError::Closed);
                assert_eq!(intake.usage(), before, "all or nothing");
                let bytes: usize = messages.iter().map(|(_, text)| text.len()).sum();
                assert!(
                    before.num_events + messages.len() > MAX_EVENTS
                        || before.num_bytes + bytes > MAX_BYTES,
                    "refused although there was room"
                );
            }
        }
    }

    fn read(&mut self, source: &IntakeSource, permit: Permit) {
        let Some(chunk) = read(source, permit) else {
            assert!(
                self.queue.is_empty(),
                "a read waits although there is something"
            );
            return;
        };
        let mut num_bytes = 0;
        for message in &chunk.messages {
            let expected = self
                .queue
                .pop_front()
                .expect("something was handed out twice");
            assert_eq!(message.receipt.0, expected, "order");
            assert_eq!(message.redelivered, !self.ever_handed_out.insert(expected));
            let Body::Entry(entry) = &message.body else {
                panic!("an intake hands out entries");
            };
            assert_eq!(entry.raw(), self.held[&expected].1.as_bytes());
            num_bytes += entry.num_bytes();
        }
        let num = chunk.messages.len();
        assert!(num > 0 && num <= permit.max_messages);
        assert!(num == 1 || num_bytes <= permit.max_bytes);
        let expected = if self.queue.is_empty() {
            More::Later
        } else {
            More::Ready
        };
        assert_eq!(chunk.more, expected);
        if let Some(next) = self.queue.front() {
            let full = num == permit.max_messages;
            let next_len = self.held[next].1.len();
            assert!(
                full || num_bytes + next_len > permit.max_bytes,
                "cut without need"
            );
        }
    }

    fn acknowledge(&mut self, source: &IntakeSource, which: &[prop::sample::Index]) {
        if self.next == 0 {
            return;
        }
        let all = usize::try_from(self.next).unwrap();
        let receipts: Vec<Receipt> = which
            .iter()
            .map(|index| Receipt(index.index(all) as u64))
            .collect();
        acknowledge(source, &receipts);
        for receipt in receipts {
            if self.ever_handed_out.contains(&receipt.0) {
                self.held.remove(&receipt.0);
                self.queue.retain(|queued| *queued != receipt.0);
            }
        }
    }

    fn rewind(&mut self, source: &IntakeSource) {
        source.rewind().now_or_never().unwrap().unwrap();
        self.queue = self.held.keys().copied().collect();
    }

    fn check(&mut self, intake: &Intake) {
        let held = intake.usage();
        assert_eq!(held.num_events, self.held.len());
        assert_eq!(held.num_bytes, self.num_bytes());
        assert!(
            held.num_events <= MAX_EVENTS && held.num_bytes <= MAX_BYTES,
            "bounds"
        );
        let held = &self.held;
        self.commits.retain_mut(|(commit, waits_for)| {
            let durable = waits_for.iter().all(|receipt| !held.contains_key(receipt));
            assert_eq!(
                commit.now_or_never(),
                durable.then_some(Ok(Committed::default()))
            );
            !durable
        });
    }
}

proptest! {
    #[test]
    fn loses_nothing_repeats_nothing_and_keeps_its_bounds(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let (source, intake) = intake(MAX_EVENTS, MAX_BYTES);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Submit(messages) => model.submit(&intake, &messages),
                Step::Read(max_messages, max_bytes) => {
                    model.read(&source, Permit { max_messages, max_bytes });
                }
                Step::Acknowledge(which) => model.acknowledge(&source, &which),
                Step::Rewind => model.rewind(&source),
                Step::DropCommit(which) => {
                    if !model.commits.is_empty() {
                        let which = which.index(model.commits.len());
                        drop(model.commits.remove(which));
                    }
                }
            }
            model.check(&intake);
        }
        // Everything that was admitted can be brought to its end.
        model.rewind(&source);
        while !model.queue.is_empty() {
            model.read(&source, ALL);
        }
        let all: Vec<Receipt> = model.held.keys().copied().map(Receipt).collect();
        acknowledge(&source, &all);
        model.held.clear();
        model.check(&intake);
        prop_assert!(model.commits.is_empty());
    }
}
