//! The receipts that a consumer has not brought back to its source yet.

use crate::delivery::Receipt;
use crate::source::Permit;

/// Receipts that the source has not taken back, in messages of a permit: as much as two writers
/// have in flight, far more than one acknowledgement under way leaves behind.
pub(super) const MAX_UNCONFIRMED: usize = 4;

/// Receipts on their way back to the source, one call at a time.
#[derive(Default)]
pub(super) struct Acks {
    pub(super) waiting: Vec<Receipt>,
    /// How many are with the source now.
    pub(super) num_sent: usize,
    pub(super) under_way: bool,
    pub(super) failures: u32,
}

impl Acks {
    /// Whether to read on would let receipts pile up, here and in the source, for as long as the
    /// source takes none back: a user of Redis who may read and not acknowledge, say.
    pub(super) fn are_too_many(&self, permit: Permit) -> bool {
        self.waiting.len() + self.num_sent >= permit.max_messages.saturating_mul(MAX_UNCONFIRMED)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && !self.under_way
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_that_are_not_taken_back_stop_the_reading() {
        let permit = Permit {
            max_messages: 2,
            max_bytes: 100,
        };
        let mut acks = Acks {
            num_sent: 3,
            ..Acks::default()
        };
        acks.waiting.extend((0..4).map(Receipt));
        assert!(!acks.are_too_many(permit), "one more may come");
        acks.waiting.push(Receipt(4));
        assert!(acks.are_too_many(permit));
        assert!(
            !acks.are_too_many(Permit::UNLIMITED),
            "at the end all is read"
        );
    }
}
