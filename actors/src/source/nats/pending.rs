//! The messages that this process was given and that are not acknowledged: plain data, no waiting.
//!
//! A message is held from the moment it comes until its receipt comes back, then committed until the server
//! has confirmed its acknowledgement. Its text is kept while it is held; the event that is made of it shares
//! that text, so it takes no memory twice.
//!
//! A server that was killed may have forgotten what it gave last: see [`Pending::withdraw`].

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::delivery::{Position, Receipt};
use crate::source::{Body, Chunk, More, Permit, Retain, Retained};

use super::delivery::{Delivered, Identity};

#[derive(Default)]
pub(super) struct Pending {
    held: Retained<Held>,
    by_sequence: HashMap<u64, Receipt>,
    /// By the number in the stream.
    committed: BTreeMap<u64, Unconfirmed>,
    /// The one with the highest number that came from this stream through this consumer.
    highest: Option<Identity>,
}

struct Held {
    identity: Identity,
    position: Position,
    data: Bytes,
    came_before: bool,
    /// `None` where the server does not know of it any more.
    given: Option<Given>,
    /// When the server last heard that it is ours.
    kept_at: Instant,
}

struct Unconfirmed {
    identity: Identity,
    given: Given,
}

/// The last delivery of a message: the one to answer.
struct Given {
    reply: String,
    at: Instant,
}

impl Retain for Held {
    fn num_bytes(&self) -> usize {
        self.data.len()
    }

    fn body(&self) -> Body {
        Body::Raw {
            position: self.position.clone(),
            data: self.data.clone(),
        }
    }

    fn came_before(&self) -> bool {
        self.came_before
    }
}

impl Pending {
    /// Takes a message in, unless it is here already; whether it was not.
    pub(super) fn add(&mut self, delivered: Delivered, data: Bytes, now: Instant) -> bool {
        let Delivered {
            identity,
            num_deliveries,
            reply,
        } = delivered;
        let sequence = identity.sequence;
        if self
            .highest
            .is_none_or(|highest| highest.sequence < sequence)
        {
            self.highest = Some(identity);
        }
        let given = Given { reply, at: now };
        let known = self.by_sequence.get(&sequence).copied();
        if let Some(held) = known.and_then(|receipt| self.held.get_mut(receipt))
            && held.identity == identity
        {
            // The server thought that it was lost, or has forgotten that it gave it.
            held.given = Some(given);
            held.kept_at = now;
            return false;
        }
        if let Some(unconfirmed) = self.committed.get_mut(&sequence)
            && unconfirmed.identity == identity
        {
            unconfirmed.given = given;
            return false;
        }
        // Another message of this number is in the stream no more.
        self.disown(sequence);
        let receipt = self.held.push(Held {
            identity,
            position: Position::new(sequence.to_string()),
            data,
            came_before: num_deliveries > 1,
            given: Some(given),
            kept_at: now,
        });
        self.by_sequence.insert(sequence, receipt);
        true
    }

    /// The message of this number is nowhere but here by now: there is nothing to acknowledge.
    fn disown(&mut self, sequence: u64) {
        let receipt = self.by_sequence.remove(&sequence);
        if let Some(held) = receipt.and_then(|receipt| self.held.get_mut(receipt)) {
            held.given = None;
        }
        self.committed.remove(&sequence);
    }

    /// How many that the server gave are in the stream no more, which begins there by now.
    pub(super) fn num_before(&self, first: u64) -> usize {
        self.by_sequence
            .keys()
            .filter(|sequence| **sequence < first)
            .count()
    }

    /// The same for all of them.
    pub(super) fn disown_before(&mut self, first: u64) {
        let sequences = self.by_sequence.keys().copied();
        let gone: Vec<u64> = sequences.filter(|sequence| *sequence < first).collect();
        for sequence in gone {
            self.disown(sequence);
        }
    }

    /// The same for all of them: the stream is no more. Their texts are kept until they are stored.
    pub(super) fn disown_all(&mut self) {
        self.by_sequence.clear();
        self.committed.clear();
        for held in self.held.all_mut() {
            held.given = None;
        }
    }

    /// Whether the message of this number is held or committed.
    pub(super) fn has(&self, sequence: u64) -> bool {
        self.by_sequence.contains_key(&sequence) || self.committed.contains_key(&sequence)
    }

    pub(super) fn highest(&self) -> Option<Identity> {
        self.highest
    }

    /// The stream or the consumer is another one.
    pub(super) fn forget_highest(&mut self) {
        self.highest = None;
    }

    pub(super) fn hand_out(&mut self, permit: Permit, when_empty: More) -> Option<Chunk> {
        let chunk = self.held.hand_out(permit, when_empty)?;
        (!chunk.messages.is_empty()).then_some(chunk)
    }

    pub(super) fn rewind(&mut self) {
        self.held.rewind();
    }

    /// Takes receipts back; what they are of is to be acknowledged.
    pub(super) fn commit(&mut self, receipts: &[Receipt]) {
        for receipt in receipts {
            if let Some(held) = self.held.acknowledge(*receipt) {
                let Held {
                    identity, given, ..
                } = held;
                if self.by_sequence.get(&identity.sequence) == Some(receipt) {
                    self.by_sequence.remove(&identity.sequence);
                }
                if let Some(given) = given {
                    let unconfirmed = Unconfirmed { identity, given };
                    self.committed.insert(identity.sequence, unconfirmed);
                }
            }
        }
    }

    pub(super) fn has_committed(&self) -> bool {
        !self.committed.is_empty()
    }

    /// The numbers of what is to be acknowledged, each with where that goes.
    pub(super) fn committed(&self) -> Vec<(u64, String)> {
        let committed = self.committed.iter();
        committed
            .map(|(sequence, unconfirmed)| (*sequence, unconfirmed.given.reply.clone()))
            .collect()
    }

    pub(super) fn confirm(&mut self, sequence: u64) {
        self.committed.remove(&sequence);
    }

    /// Where to say that a message is still being worked on, for those of which the server has not heard for
    /// that long; they count as told.
    pub(super) fn keep(&mut self, now: Instant, longer_than: Duration) -> Vec<String> {
        let due = self.held.all_mut().filter(|held| {
            let since = now.duration_since(held.kept_at);
            since >= longer_than
        });
        due.filter_map(|held| {
            held.kept_at = now;
            held.given.as_ref().map(|given| given.reply.clone())
        })
        .collect()
    }

    /// When the message of this number was stored, if it is held.
    pub(super) fn stored_at(&mut self, sequence: u64) -> Option<u64> {
        let receipt = *self.by_sequence.get(&sequence)?;
        let held = self.held.get_mut(receipt)?;
        Some(held.identity.stored_at)
    }

    /// How many the server was given no acknowledgement for that it has confirmed.
    pub(super) fn len(&self) -> usize {
        self.held.len() + self.committed.len()
    }

    /// Lets go of everything that the server hands out again; returns where to give it back. All receipts are
    /// void, and what nobody hands out again is to be handed out from here once more.
    pub(super) fn release(&mut self) -> Vec<String> {
        self.by_sequence.clear();
        let committed = std::mem::take(&mut self.committed).into_values();
        let mut replies: Vec<String> = committed.map(|it| it.given.reply).collect();
        for held in self.held.clear().into_values() {
            match held.given {
                Some(given) => replies.push(given.reply),
                None => {
                    self.held.push(held);
                }
            }
        }
        replies
    }

    /// Lets go of what was given before that moment, and the consumer does not know of: what is behind its position.
    /// It answers no acknowledgement of that, and hands it out again. Returns how many those are.
    pub(super) fn withdraw(&mut self, position: u64, given_before: Instant) -> usize {
        let is_unknown =
            |sequence: u64, given: &Given| sequence > position && given.at < given_before;
        let num_before = self.committed.len();
        (self.committed).retain(|sequence, it| !is_unknown(*sequence, &it.given));
        let mut num = num_before - self.committed.len();
        for held in self.held.all_mut() {
            let sequence = held.identity.sequence;
            if (held.given.take_if(|given| is_unknown(sequence, given))).is_some() {
                num += 1;
            }
        }
        num
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Permit = Permit::UNLIMITED;

    fn delivered(sequence: u64, stored_at: u64, num_deliveries: u64) -> Delivered {
        Delivered {
            identity: Identity {
                sequence,
                stored_at,
            },
            num_deliveries,
            reply: format!("reply.{sequence}.{num_deliveries}"),
        }
    }

    fn add(pending: &mut Pending, sequence: u64, stored_at: u64, num_deliveries: u64) -> bool {
        let message = delivered(sequence, stored_at, num_deliveries);
        pending.add(message, Bytes::from_static(b"text"), Instant::now())
    }

    fn handed_out(pending: &mut Pending) -> Vec<(String, Receipt, bool)> {
        let chunk = pending.hand_out(WIDE, More::Later);
        let messages = chunk.map(|chunk| chunk.messages).unwrap_or_default();
        messages
            .iter()
            .map(|message| {
                let position = message.body.position().to_string();
                (position, message.receipt, message.redelivered)
            })
            .collect()
    }

    #[test]
    fn what_is_held_or_committed_is_taken_in_once() {
        let mut pending = Pending::default();
        assert!(add(&mut pending, 7, 70, 1));
        let out = handed_out(&mut pending);
        assert_eq!(out, [("7".to_owned(), Receipt(0), false)]);
        assert!(!add(&mut pending, 7, 70, 2), "it is held");
        pending.commit(&[Receipt(0)]);
        assert_eq!(pending.committed(), [(7, "reply.7.2".to_owned())]);
        assert!(!add(&mut pending, 7, 70, 3), "it is durable");
        assert_eq!(pending.committed(), [(7, "reply.7.3".to_owned())]);
        assert_eq!(pending.len(), 1);
        pending.confirm(7);
        assert_eq!(pending.len(), 0);
        assert!(add(&mut pending, 7, 70, 4), "it is nowhere any more");
        assert!(handed_out(&mut pending)[0].2, "another may have had it");
    }

    #[test]
    fn a_number_that_is_used_again_is_another_message() {
        let mut pending = Pending::default();
        add(&mut pending, 7, 70, 1);
        add(&mut pending, 8, 80, 1);
        handed_out(&mut pending);
        pending.commit(&[Receipt(1)]);
        assert!(add(&mut pending, 7, 71, 1));
        assert!(add(&mut pending, 8, 81, 1));
        pending.commit(&[Receipt(0)]);
        assert_eq!(pending.committed(), [], "its receipt is void");
        let out = handed_out(&mut pending);
        assert_eq!(out.len(), 2);
        pending.commit(&[out[0].1]);
        assert_eq!(pending.committed(), [(7, "reply.7.1".to_owned())]);
    }

    #[test]
    fn what_is_in_no_stream_any_more_is_still_stored() {
        let mut pending = Pending::default();
        add(&mut pending, 7, 70, 1);
        assert!(add(&mut pending, 7, 71, 1), "its number is used again");
        let out = handed_out(&mut pending);
        assert_eq!(out.len(), 2);
        pending.commit(&[out[0].1]);
        assert_eq!(pending.committed(), [], "the new one is not stored yet");
        pending.commit(&[out[1].1]);
        assert_eq!(pending.committed(), [(7, "reply.7.1".to_owned())]);

        add(&mut pending, 8, 80, 1);
        pending.disown_all();
        assert_eq!(pending.committed(), []);
        assert!(pending.release().is_empty(), "nobody hands it out again");
        let out = handed_out(&mut pending);
        assert_eq!(out.len(), 1);
        pending.commit(&[out[0].1]);
        assert_eq!((pending.committed().len(), pending.len()), (0, 0));
    }

    #[test]
    fn what_the_consumer_does_not_know_of_is_not_acknowledged_until_it_is_given_again() {
        let mut pending = Pending::default();
        for sequence in 7..=9 {
            add(&mut pending, sequence, 10 * sequence, 1);
        }
        let out = handed_out(&mut pending);
        pending.commit(&[out[0].1, out[1].1]);
        let before = Instant::now() + Duration::from_millis(1);
        assert_eq!(pending.withdraw(7, before), 2);
        assert_eq!(pending.committed(), [(7, "reply.7.1".to_owned())]);
        assert_eq!(pending.withdraw(7, before), 0);
        assert!(
            pending
                .keep(before + Duration::from_secs(9), Duration::ZERO)
                .is_empty()
        );
        assert!(add(&mut pending, 8, 80, 1), "the store knows it");
        assert!(!add(&mut pending, 9, 90, 1), "it is held");
        pending.commit(&[out[2].1]);
        assert_eq!(pending.committed().len(), 2);
        // Given to another: there is nothing to acknowledge.
        let again = handed_out(&mut pending);
        assert_eq!(again.len(), 1);
        let later = Instant::now() + Duration::from_millis(1);
        assert_eq!(pending.withdraw(0, later), 3);
        pending.commit(&[again[0].1]);
        assert_eq!((pending.committed().len(), pending.len()), (0, 0));
    }

    #[test]
    fn what_came_after_the_question_is_not_judged_by_its_answer() {
        let mut pending = Pending::default();
        let before = Instant::now();
        add(&mut pending, 7, 70, 1);
        assert_eq!(pending.withdraw(0, before), 0);
    }

    #[test]
    fn the_server_hears_in_time_of_what_is_held() {
        let mut pending = Pending::default();
        add(&mut pending, 7, 70, 1);
        assert_eq!(pending.stored_at(7), Some(70));
        let soon = Instant::now() + Duration::from_secs(3);
        let longer_than = Duration::from_secs(2);
        assert_eq!(pending.keep(soon, longer_than), ["reply.7.1"]);
        assert!(pending.keep(soon, longer_than).is_empty(), "just told");
        assert_eq!(pending.release(), ["reply.7.1"]);
        assert_eq!(pending.len(), 0);
    }
}
