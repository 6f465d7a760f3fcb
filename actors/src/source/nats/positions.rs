//! How far the consumer is, held against what the stream still has: plain data, no waiting.
//!
//! A consumer counts its deliveries, and each of them has a number in the stream. Numbers that it passed over
//! without a delivery were removed before they were read: by the limits of the stream, or by a purge, which also
//! moves the consumer. What is gone ahead of its position it will pass over.

use super::api::{ConsumerInfo, SequencePair, StreamInfo};

/// The stream is asked before the consumer each time: what is delivered in between makes no gap.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// Where the consumer was at the last look.
    delivered: Option<SequencePair>,
    /// What was gone ahead of that, and was counted.
    ahead: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen {
    /// Messages that are gone and that the consumer was never given: up to so many where the stream has gaps, and
    /// at least so many where some were delivered more than once meanwhile.
    pub(super) num_lost: u64,
    /// The end of the stream, if the consumer had been given messages behind it.
    pub(super) went_back_to: Option<u64>,
}

impl Positions {
    pub(super) fn see(&mut self, stream: &StreamInfo, consumer: &ConsumerInfo) -> Seen {
        let state = &stream.state;
        let now = consumer.delivered;
        let before = self.delivered.replace(now);
        let went_back = before.is_some_and(|before| state.last_seq < before.stream_seq);
        let begins_anew = before.is_none_or(|before| now.consumer_seq < before.consumer_seq);
        // One that is given some subjects alone passes over the others.
        let passed_over = match before {
            Some(before) if !begins_anew && consumer.config.filters().is_empty() => {
                let numbers = now.stream_seq.saturating_sub(before.stream_seq);
                let in_front = state.first_seq.saturating_sub(1).min(now.stream_seq);
                let gone = in_front.saturating_sub(before.stream_seq) + state.num_deleted;
                // A consumer that has gone back meanwhile counts some of its deliveries once more.
                let unaccounted = numbers.saturating_sub(now.consumer_seq - before.consumer_seq);
                unaccounted.min(gone)
            }
            _ => 0,
        };
        let counted = if begins_anew || went_back {
            0
        } else {
            self.ahead
        };
        let gone = state.first_seq.saturating_sub(1);
        self.ahead = gone.saturating_sub(now.stream_seq);
        Seen {
            num_lost: (passed_over + self.ahead).saturating_sub(counted),
            went_back_to: went_back.then_some(state.last_seq),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first and the last number of the stream; the last that was delivered, after so many deliveries.
    fn see(positions: &mut Positions, stream: (u64, u64), delivered: (u64, u64)) -> Seen {
        let mut info = StreamInfo::default();
        (info.state.first_seq, info.state.last_seq) = stream;
        let consumer = ConsumerInfo {
            delivered: SequencePair {
                stream_seq: delivered.0,
                consumer_seq: delivered.1,
            },
            ..ConsumerInfo::default()
        };
        positions.see(&info, &consumer)
    }

    fn lost(num_lost: u64) -> Seen {
        Seen {
            num_lost,
            went_back_to: None,
        }
    }

    #[test]
    fn what_goes_unread_is_counted_once() {
        let mut positions = Positions::default();
        assert_eq!(
            see(&mut positions, (0, 0), (0, 0)),
            lost(0),
            "an empty stream"
        );
        assert_eq!(see(&mut positions, (1, 30), (20, 20)), lost(0));
        assert_eq!(see(&mut positions, (25, 40), (20, 20)), lost(4), "21 to 24");
        assert_eq!(see(&mut positions, (25, 40), (20, 20)), lost(0));
        assert_eq!(see(&mut positions, (28, 40), (20, 20)), lost(3));
        let read_on = see(&mut positions, (28, 41), (35, 28));
        assert_eq!(read_on, lost(0), "passed over what was counted");
        assert_eq!(
            see(&mut positions, (50, 60), (55, 38)),
            lost(10),
            "while it was read"
        );
        assert_eq!(
            see(&mut positions, (50, 60), (55, 44)),
            lost(0),
            "redelivered"
        );
        assert_eq!(see(&mut positions, (61, 60), (60, 44)), lost(5), "purged");
        assert_eq!(see(&mut positions, (61, 70), (70, 54)), lost(0));
    }

    #[test]
    fn a_consumer_that_begins_anew_has_lost_nothing() {
        let mut positions = Positions::default();
        assert_eq!(see(&mut positions, (11, 30), (10, 0)), lost(0));
        assert_eq!(see(&mut positions, (11, 30), (30, 20)), lost(0));
        assert_eq!(
            see(&mut positions, (21, 40), (20, 0)),
            lost(0),
            "made again"
        );
        assert_eq!(see(&mut positions, (26, 40), (20, 0)), lost(5));
    }

    #[test]
    fn what_is_still_there_is_not_lost() {
        let mut positions = Positions::default();
        assert_eq!(see(&mut positions, (1, 200), (100, 110)), lost(0));
        // It went back to (90, 90), and on.
        assert_eq!(see(&mut positions, (1, 200), (120, 120)), lost(0));
        assert_eq!(see(&mut positions, (126, 200), (140, 125)), lost(5));
    }

    #[test]
    fn a_stream_that_ends_before_what_was_read_went_back() {
        let mut positions = Positions::default();
        let in_between = see(&mut positions, (1, 90), (100, 100));
        assert_eq!(in_between, lost(0));
        let seen = see(&mut positions, (1, 95), (100, 100));
        assert_eq!(seen.went_back_to, Some(95));
    }
}
