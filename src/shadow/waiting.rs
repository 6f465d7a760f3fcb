//! Messages that wait until they can be compared: plain data, bounded in number and bytes.
//!
//! Each waits until the group at work has acknowledged it, and then for the delay, since Prefect acknowledges
//! what it holds in memory; and once more where the first look saw something unexpected.

use std::collections::VecDeque;
use std::time::Duration;

use event_persister_actors::source::{Body, Permit};
use tokio::time::Instant;

const MAX_MESSAGES: usize = 50_000;
/// Bytes that are held at once, but for a single larger message.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of one read: what is in memory more than once.
const READ_BYTES: usize = 4 * 1024 * 1024;
const AT_ONCE: usize = 500;

/// How long an acknowledgement is waited for: Prefect's consumer never acknowledges some entries.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    First,
    Second,
}

#[derive(Debug)]
pub(crate) struct HeldMessage {
    pub(crate) body: Body,
    pub(crate) look: Look,
    read_at: Instant,
}

impl HeldMessage {
    pub(crate) fn position(&self) -> &str {
        self.body.position().as_str()
    }

    fn num_bytes(&self) -> usize {
        self.body.num_bytes()
    }
}

#[derive(Debug)]
pub(crate) struct WaitingMessages {
    delay: Duration,
    /// Not acknowledged as far as is known, in the stream's order.
    unacknowledged: VecDeque<HeldMessage>,
    /// To be compared from their moments on, which ascend.
    scheduled: VecDeque<(Instant, HeldMessage)>,
    num_bytes: usize,
}

impl WaitingMessages {
    pub(crate) fn new(delay: Duration) -> Self {
        Self {
            delay,
            unacknowledged: VecDeque::new(),
            scheduled: VecDeque::new(),
            num_bytes: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.unacknowledged.len() + self.scheduled.len()
    }

    pub(crate) fn room(&self) -> Option<Permit> {
        let max_messages = MAX_MESSAGES.saturating_sub(self.len()).min(AT_ONCE);
        let max_bytes = MAX_BYTES.saturating_sub(self.num_bytes).min(READ_BYTES);
        (max_messages > 0 && max_bytes > 0).then_some(Permit {
            max_messages,
            max_bytes,
        })
    }

    pub(crate) fn push(&mut self, body: Body, now: Instant) {
        let held = HeldMessage {
            body,
            look: Look::First,
            read_at: now,
        };
        self.num_bytes += held.num_bytes();
        self.unacknowledged.push_back(held);
    }

    pub(crate) fn first_unacknowledged(&self) -> Option<&str> {
        self.unacknowledged.front().map(HeldMessage::position)
    }

    pub(crate) fn acknowledged(&mut self, has: impl Fn(&str) -> bool, now: Instant) {
        let (due, rest) = std::mem::take(&mut self.unacknowledged)
            .into_iter()
            .partition(|held| has(held.position()));
        self.unacknowledged = rest;
        let due: VecDeque<HeldMessage> = due;
        self.scheduled
            .extend(due.into_iter().map(|held| (now + self.delay, held)));
    }

    /// Lets go of what was delivered long ago and never acknowledged; how many there were.
    pub(crate) fn give_up(&mut self, was_delivered: impl Fn(&str) -> bool, now: Instant) -> usize {
        let before = self.unacknowledged.len();
        let num_bytes = &mut self.num_bytes;
        self.unacknowledged.retain(|held| {
            let is_late = now.duration_since(held.read_at) > GIVE_UP_AFTER;
            let gone = is_late && was_delivered(held.position());
            if gone {
                *num_bytes -= held.num_bytes();
            }
            !gone
        });
        before - self.unacknowledged.len()
    }

    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<HeldMessage> {
        let mut taken: Vec<HeldMessage> = Vec::new();
        let mut num_bytes = 0;
        while let Some((at, held)) = self.scheduled.front() {
            let fits = taken.is_empty() || num_bytes + held.num_bytes() <= READ_BYTES;
            if *at > now || taken.len() >= AT_ONCE || !fits {
                break;
            }
            num_bytes += held.num_bytes();
            taken.extend(self.scheduled.pop_front().map(|(_, held)| held));
        }
        self.num_bytes -= num_bytes;
        taken
    }

    pub(crate) fn look_again(&mut self, held: HeldMessage, now: Instant) {
        self.num_bytes += held.num_bytes();
        let held = HeldMessage {
            look: Look::Second,
            ..held
        };
        self.scheduled.push_back((now + self.delay, held));
    }

    pub(crate) fn put_back(&mut self, taken: Vec<HeldMessage>, now: Instant) {
        // What could not be taken with it may have been due before.
        let at = self.scheduled.front().map_or(now, |(at, _)| now.min(*at));
        for held in taken.into_iter().rev() {
            self.num_bytes += held.num_bytes();
            self.scheduled.push_front((at, held));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use event_persister_actors::delivery::Position;
    use proptest::prelude::*;

    use super::*;

    const DELAY: Duration = Duration::from_secs(10);

    fn body(position: &str, num_bytes: usize) -> Body {
        Body::Raw {
            position: Position::new(position),
            data: Bytes::from(vec![b'x'; num_bytes]),
        }
    }

    fn positions(held: &[HeldMessage]) -> Vec<&str> {
        held.iter().map(HeldMessage::position).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn compares_only_after_the_acknowledgement_and_the_delay() {
        let (mut waiting, start) = (WaitingMessages::new(DELAY), Instant::now());
        for position in ["1-1", "1-2", "1-3"] {
            waiting.push(body(position, 5), start);
        }
        assert!(
            waiting.take_due(start + 9 * DELAY).is_empty(),
            "nobody has it"
        );
        waiting.acknowledged(|position| position != "1-2", start);
        assert_eq!(waiting.first_unacknowledged(), Some("1-2"));
        let early = start + DELAY - Duration::from_millis(1);
        assert!(waiting.take_due(early).is_empty());
        let mut due = waiting.take_due(start + DELAY);
        assert_eq!(positions(&due), ["1-1", "1-3"]);
        waiting.look_again(due.remove(0), start + DELAY);
        waiting.put_back(due, start + DELAY);
        let due = waiting.take_due(start + DELAY);
        assert_eq!((positions(&due), due[0].look), (vec!["1-3"], Look::First));
        let due = waiting.take_due(start + 2 * DELAY);
        assert_eq!((positions(&due), due[0].look), (vec!["1-1"], Look::Second));
        assert_eq!((waiting.len(), waiting.num_bytes), (1, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_only_what_was_delivered_and_never_acknowledged() {
        let (mut waiting, start) = (WaitingMessages::new(DELAY), Instant::now());
        waiting.push(body("1-1", 5), start);
        waiting.push(body("1-2", 7), start);
        let delivered = |position: &str| position == "1-1";
        assert_eq!(waiting.give_up(delivered, start + GIVE_UP_AFTER), 0);
        let late = start + GIVE_UP_AFTER + Duration::from_secs(1);
        assert_eq!(waiting.give_up(delivered, late), 1);
        assert_eq!(waiting.first_unacknowledged(), Some("1-2"));
        assert_eq!(waiting.num_bytes, 7);
    }

    /// What may happen to what is held.
    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Acknowledge(usize),
        Wait(u64),
        Settle { again: usize, back: bool },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..10_000_usize).prop_map(Step::Push),
            (1..4_usize).prop_map(Step::Acknowledge),
            (0..15_u64).prop_map(Step::Wait),
            (1..4_usize, any::<bool>()).prop_map(|(again, back)| Step::Settle { again, back }),
        ]
    }

    proptest! {
        /// Each message is settled or still held, looked at twice at most, and counted in bytes.
        #[test]
        fn loses_nothing_and_counts_every_byte(steps in prop::collection::vec(step(), 1..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _entered = runtime.enter();
            let (mut waiting, mut now) = (WaitingMessages::new(DELAY), Instant::now());
            let (mut num_pushed, mut num_settled) = (0, 0);
            for step in steps {
                match step {
                    Step::Push(num_bytes) => {
                        num_pushed += 1;
                        waiting.push(body(&format!("1-{num_pushed}"), num_bytes), now);
                    }
                    Step::Acknowledge(every) => {
                        let has = |position: &str| position.len().is_multiple_of(every);
                        waiting.acknowledged(has, now);
                    }
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                    Step::Settle { back: true, .. } => {
                        let due = waiting.take_due(now);
                        waiting.put_back(due, now);
                    }
                    Step::Settle { again, .. } => {
                        for (number, held) in waiting.take_due(now).into_iter().enumerate() {
                            if held.look == Look::First && number % again == 0 {
                                waiting.look_again(held, now);
                            } else {
                                num_settled += 1;
                            }
                        }
                    }
                }
                let scheduled = waiting.scheduled.iter();
                prop_assert!(scheduled.clone().map(|(at, _)| at).is_sorted());
                let held = scheduled.map(|(_, held)| held).chain(&waiting.unacknowledged);
                prop_assert_eq!(waiting.num_bytes, held.map(HeldMessage::num_bytes).sum::<usize>());
                prop_assert_eq!(waiting.len() + num_settled, num_pushed);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn holds_no_more_than_its_bounds() {
        let (mut waiting, now) = (WaitingMessages::new(DELAY), Instant::now());
        while let Some(permit) = waiting.room() {
            assert!(permit.max_bytes <= READ_BYTES && permit.max_messages <= AT_ONCE);
            waiting.push(body("1-1", permit.max_bytes), now);
        }
        assert_eq!(waiting.num_bytes, MAX_BYTES);
        waiting.acknowledged(|_| true, now);
        assert_eq!(
            waiting.take_due(now + DELAY).len(),
            1,
            "bytes bound a question too"
        );
        assert!(waiting.room().is_some());
        let mut waiting = WaitingMessages::new(DELAY);
        while let Some(permit) = waiting.room() {
            for _ in 0..permit.max_messages {
                waiting.push(body("1-1", 0), now);
            }
        }
        assert_eq!(waiting.len(), MAX_MESSAGES);
        waiting.acknowledged(|_| true, now);
        assert_eq!(waiting.take_due(now + DELAY).len(), AT_ONCE);
    }
}
