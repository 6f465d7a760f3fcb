//! How far the consumer is, held against what the stream still has: plain data, no waiting.
//!
//! A consumer counts its deliveries, and each of them has a number in the stream. Numbers that it passed over
//! without a delivery were removed before they were read: by the limits of the stream, or by a purge, which also
//! moves the consumer. What is gone ahead of its position it will pass over.

use chrono::{DateTime, TimeDelta, Utc};

use super::api::{ConsumerInfo, SequencePair, StoredHead, StreamInfo};

/// How far our clock may be from that of a server that does not tell its time, with the way of its answer.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::seconds(5);

/// The stream is asked before the consumer each time: what is delivered in between makes no gap.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// The consumer at the last look.
    before: Option<Before>,
    /// What was gone ahead of that, and was counted.
    ahead: u64,
}

#[derive(Debug, Clone, Copy)]
struct Before {
    created: DateTime<Utc>,
    delivered: SequencePair,
}

impl Positions {
    /// Takes note of what was given since the last look.
    pub(super) fn were_given_up_to(&mut self, sequence: u64) {
        if let Some(before) = &mut self.before {
            before.delivered.stream_seq = before.delivered.stream_seq.max(sequence);
        }
    }

    /// How many messages are gone, since the last look, that the consumer was never given: up to so many where the
    /// stream has gaps, and at least so many where some were delivered more than once meanwhile.
    pub(super) fn count_lost(&mut self, stream: &StreamInfo, consumer: &ConsumerInfo) -> u64 {
        let state = &stream.state;
        let ConsumerInfo {
            created, delivered, ..
        } = *consumer;
        let before = self.before.replace(Before { created, delivered });
        if !consumer.config.takes_all_of(&stream.config) {
            // What it is not given may be of other subjects.
            return 0;
        }
        let gone = state.first_seq.saturating_sub(1);
        let begins_anew = before.is_none_or(|before| {
            before.created != created || delivered.consumer_seq < before.delivered.consumer_seq
        });
        let drops_with_consumer = stream.config.keeps_for_consumers_alone();
        let (passed_over, counted) = match before.map(|before| before.delivered) {
            Some(before) if !begins_anew => {
                let numbers = delivered.stream_seq.saturating_sub(before.stream_seq);
                let in_front = gone.min(delivered.stream_seq);
                let gone = in_front.saturating_sub(before.stream_seq) + state.num_deleted;
                // A consumer that has gone back meanwhile counts some of its deliveries once more.
                let unaccounted =
                    numbers.saturating_sub(delivered.consumer_seq - before.consumer_seq);
                (unaccounted.min(gone), self.ahead)
            }
            // What it had not been given went with the one before.
            Some(before) if drops_with_consumer => {
                let in_front = gone.min(delivered.stream_seq);
                (in_front.saturating_sub(before.stream_seq), self.ahead)
            }
            _ => (0, 0),
        };
        self.ahead = gone.saturating_sub(delivered.stream_seq);
        (passed_over + self.ahead).saturating_sub(counted)
    }
}

/// The consumer was ahead of the stream. What is published under the numbers in between it is never given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Where the stream ended.
    pub(super) last: u64,
    delivered: u64,
    /// By the clock of the servers, or a little before.
    seen_at: DateTime<Utc>,
}

impl Ahead {
    pub(super) fn new(stream: &StreamInfo, consumer: &ConsumerInfo, now: DateTime<Utc>) -> Self {
        Self {
            last: stream.state.last_seq,
            delivered: consumer.delivered.stream_seq,
            seen_at: stream.ts.unwrap_or(now - CLOCKS_DIFFER),
        }
    }

    /// Whether the first message behind that end is a new one that the consumer passes over. Where it is older, the
    /// stream had only not told of it.
    pub(super) fn passes_over(&self, first: &StoredHead) -> bool {
        first.seq <= self.delivered && first.time >= self.seen_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_messages_under_numbers_that_were_given_are_told_from_those_that_come_back() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let message = |seq, seconds| StoredHead {
            seq,
            time: at(seconds),
            subject: String::new(),
            hdrs: None,
            data: None,
        };
        let mut stream = stream_of((1, 5));
        let untold = Ahead::new(&stream, &consumer_at((10, 10)), at(100));
        assert!(untold.passes_over(&message(6, 96)) && !untold.passes_over(&message(6, 94)));
        stream.ts = Some(at(200));
        let ahead = Ahead::new(&stream, &consumer_at((10, 10)), at(100));
        assert!(ahead.passes_over(&message(6, 201)));
        assert!(ahead.passes_over(&message(10, 201)));
        assert!(!ahead.passes_over(&message(6, 199)), "it was there before");
        assert!(!ahead.passes_over(&message(11, 201)), "it is read");
    }

    /// The first and the last number of the stream; the last that was delivered, after so many deliveries.
    fn see(positions: &mut Positions, stream: (u64, u64), delivered: (u64, u64)) -> u64 {
        positions.count_lost(&stream_of(stream), &consumer_at(delivered))
    }

    fn stream_of(numbers: (u64, u64)) -> StreamInfo {
        let mut info = StreamInfo::default();
        (info.state.first_seq, info.state.last_seq) = numbers;
        info
    }

    fn consumer_at((stream_seq, consumer_seq): (u64, u64)) -> ConsumerInfo {
        ConsumerInfo {
            delivered: SequencePair {
                stream_seq,
                consumer_seq,
            },
            ..ConsumerInfo::default()
        }
    }

    #[test]
    fn what_goes_unread_is_counted_once() {
        let mut positions = Positions::default();
        assert_eq!(see(&mut positions, (0, 0), (0, 0)), 0, "an empty stream");
        assert_eq!(see(&mut positions, (1, 30), (20, 20)), 0);
        assert_eq!(see(&mut positions, (25, 40), (20, 20)), 4, "21 to 24");
        assert_eq!(see(&mut positions, (25, 40), (20, 20)), 0);
        assert_eq!(see(&mut positions, (28, 40), (20, 20)), 3);
        let read_on = see(&mut positions, (28, 41), (35, 28));
        assert_eq!(read_on, 0, "passed over what was counted");
        assert_eq!(
            see(&mut positions, (50, 60), (55, 38)),
            10,
            "while it was read"
        );
        assert_eq!(see(&mut positions, (50, 60), (55, 44)), 0, "redelivered");
        assert_eq!(see(&mut positions, (61, 60), (60, 44)), 5, "purged");
        assert_eq!(see(&mut positions, (61, 70), (70, 54)), 0);
    }

    #[test]
    fn a_consumer_that_begins_anew_has_lost_nothing() {
        let mut positions = Positions::default();
        assert_eq!(see(&mut positions, (11, 30), (10, 0)), 0);
        assert_eq!(see(&mut positions, (11, 30), (30, 20)), 0);
        assert_eq!(see(&mut positions, (21, 40), (20, 0)), 0, "made again");
        assert_eq!(see(&mut positions, (26, 40), (20, 0)), 5);
    }

    #[test]
    fn what_is_still_there_is_not_lost() {
        let mut positions = Positions::default();
        assert_eq!(see(&mut positions, (1, 200), (100, 110)), 0);
        // It went back to (90, 90), and on.
        assert_eq!(see(&mut positions, (1, 200), (120, 120)), 0);
        assert_eq!(see(&mut positions, (126, 200), (140, 125)), 5);
    }

    #[test]
    fn what_an_interest_stream_drops_with_its_consumer_is_lost() {
        for (retention, num_lost) in [("interest", 20), ("limits", 0)] {
            let mut positions = Positions::default();
            let mut look = |stream, delivered, created| {
                let mut info = stream_of(stream);
                info.config.retention = retention.to_owned();
                let mut consumer = consumer_at(delivered);
                consumer.created = DateTime::from_timestamp_nanos(created);
                positions.count_lost(&info, &consumer)
            };
            assert_eq!(look((1, 30), (10, 10), 1), 0);
            assert_eq!(look((31, 30), (30, 0), 2), num_lost);
            assert_eq!(look((31, 50), (50, 20), 2), 0);
        }
    }

    #[test]
    fn what_was_read_since_the_last_look_did_not_go_with_the_consumer() {
        let mut positions = Positions::default();
        let mut stream = stream_of((1, 30));
        stream.config.retention = "interest".to_owned();
        let mut consumer = consumer_at((10, 10));
        assert_eq!(positions.count_lost(&stream, &consumer), 0);
        positions.were_given_up_to(25);
        stream.state.first_seq = 31;
        consumer = consumer_at((30, 0));
        consumer.created = DateTime::from_timestamp_nanos(1);
        assert_eq!(positions.count_lost(&stream, &consumer), 5, "26 to 30");
    }

    #[test]
    fn what_others_are_given_is_not_lost() {
        let mut consumer = consumer_at((10, 10));
        for (filter, taken, num_lost) in [
            ("events.a", &["events.>"][..], 0),
            ("events.a", &["events.a", "other"], 0),
            ("events.a", &[], 0),
            ("events.a", &["events.a"], 10),
            ("events.>", &["events.a", "events.*.b"], 10),
            (">", &[], 10),
        ] {
            let mut positions = Positions::default();
            consumer.config.filter_subject = Some(filter.to_owned());
            let mut look = |first| {
                let mut stream = stream_of((first, 30));
                stream.config.subjects = taken.iter().copied().map(str::to_owned).collect();
                positions.count_lost(&stream, &consumer)
            };
            assert_eq!((look(1), look(21)), (0, num_lost), "{filter} of {taken:?}");
        }
    }
}
