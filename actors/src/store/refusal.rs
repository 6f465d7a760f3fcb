//! Why databases refuse events, as coarsely as all of them can tell, and how often they did.

/// Why the database refused an event. The dead letter has its own words and its code; this is for
/// counting, so there are few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// A value that its column cannot hold, such as a NUL in a text or a year out of range
    /// (SQLSTATE 22).
    InvalidData,
    /// A constraint or a unique index that is not ours (SQLSTATE 23).
    Constraint,
    /// Larger than a row, an index or a limit allows (SQLSTATE 54).
    TooLarge,
    /// A trigger raised an error (SQLSTATE P0001).
    Raised,
    /// A trigger left the row out without a word.
    Swallowed,
    /// Anything else that the database blames on the event.
    Other,
}

impl RefusalReason {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 6] = [
        Self::InvalidData,
        Self::Constraint,
        Self::TooLarge,
        Self::Raised,
        Self::Swallowed,
        Self::Other,
    ];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidData => "invalid_data",
            Self::Constraint => "constraint",
            Self::TooLarge => "too_large",
            Self::Raised => "raised",
            Self::Swallowed => "swallowed",
            Self::Other => "other",
        }
    }
}

/// How many events the database refused, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RefusalCounts([u64; RefusalReason::ALL.len()]);

impl RefusalCounts {
    /// So many for one reason, and none for any other.
    pub fn of(reason: RefusalReason, num_events: u64) -> Self {
        let mut counts = Self::default();
        counts.0[reason as usize] = num_events;
        counts
    }

    /// Counts one more.
    pub fn add(&mut self, reason: RefusalReason) {
        self.0[reason as usize] += 1;
    }

    /// For all reasons together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (RefusalReason, u64)> {
        RefusalReason::ALL.into_iter().zip(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_count_of_its_own() {
        let mut counts = RefusalCounts::default();
        for (index, reason) in RefusalReason::ALL.into_iter().enumerate() {
            for _ in 0..=index {
                counts.add(reason);
            }
        }
        let expected: Vec<_> = RefusalReason::ALL.into_iter().zip(1..).collect();
        assert_eq!(counts.iter().collect::<Vec<_>>(), expected);
        assert_eq!(counts.total(), 21);
        assert_eq!(RefusalCounts::of(RefusalReason::Raised, 3).total(), 3);
    }
}
