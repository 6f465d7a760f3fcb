//! How much may be in flight, as pure bookkeeping.
//!
//! Every source holds at most one permit, reserved from the credit until the chunk that it allowed
//! arrives. Used and reserved together never exceed the credit, but for single messages larger than
//! what a permit allows in bytes: those come alone, so the excess is one such message a source.

use crate::delivery::SourceIndex;
use crate::source::Permit;

#[derive(Debug)]
pub struct Credit {
    max_messages: usize,
    max_bytes: usize,
    used_messages: usize,
    used_bytes: usize,
    permit: Permit,
    has_permit: Vec<bool>,
}

impl Credit {
    /// A credit shared by `num_sources`, each of which reads at most `largest` at once. Permits are
    /// small enough that idle sources, which keep theirs, cannot starve a busy one.
    pub fn new(max_messages: usize, max_bytes: usize, largest: Permit, num_sources: usize) -> Self {
        let share = num_sources + 1;
        Self {
            max_messages: max_messages.max(share),
            max_bytes: max_bytes.max(share),
            used_messages: 0,
            used_bytes: 0,
            permit: Permit {
                max_messages: largest.max_messages.min(max_messages / share).max(1),
                max_bytes: largest.max_bytes.min(max_bytes / share).max(1),
            },
            has_permit: vec![false; num_sources],
        }
    }

    /// A permit for the source, if there is room for all that it allows.
    pub fn grant(&mut self, source: SourceIndex) -> Option<Permit> {
        let reserved = self.has_permit.iter().filter(|held| **held).count() + 1;
        let room = self.used_messages + reserved * self.permit.max_messages <= self.max_messages
            && self.used_bytes + reserved * self.permit.max_bytes <= self.max_bytes;
        let held = self.has_permit.get_mut(source.0)?;
        if *held || !room {
            return None;
        }
        *held = true;
        Some(self.permit)
    }

    /// The source's chunk has arrived: its permit is spent, what it brought is in use.
    pub fn spend(&mut self, source: SourceIndex, num_messages: usize, num_bytes: usize) {
        if let Some(held) = self.has_permit.get_mut(source.0) {
            *held = false;
        }
        self.used_messages += num_messages;
        self.used_bytes += num_bytes;
    }

    /// Bytes of what is in use.
    pub fn num_bytes(&self) -> usize {
        self.used_bytes
    }

    pub fn give_back(&mut self, num_messages: usize, num_bytes: usize) {
        self.used_messages = self.used_messages.saturating_sub(num_messages);
        self.used_bytes = self.used_bytes.saturating_sub(num_bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LARGEST: Permit = Permit {
        max_messages: 10,
        max_bytes: 1_000,
    };

    #[test]
    fn idle_sources_do_not_starve_a_busy_one() {
        let mut credit = Credit::new(40, 4_000, LARGEST, 3);
        assert!(credit.grant(SourceIndex(0)).is_some());
        assert!(credit.grant(SourceIndex(1)).is_some());
        for _ in 0..100 {
            let permit = credit
                .grant(SourceIndex(2))
                .expect("a permit for the busy one");
            credit.spend(SourceIndex(2), permit.max_messages, permit.max_bytes);
            credit.give_back(permit.max_messages, permit.max_bytes);
        }
    }

    #[test]
    fn a_source_holds_one_permit_at_a_time() {
        let mut credit = Credit::new(40, 4_000, LARGEST, 1);
        assert!(credit.grant(SourceIndex(0)).is_some());
        assert!(credit.grant(SourceIndex(0)).is_none());
        credit.spend(SourceIndex(0), 0, 0);
        assert!(credit.grant(SourceIndex(0)).is_some());
    }

    proptest! {
        #[test]
        fn never_exceeds_its_bounds(
            num_sources in 1_usize..4,
            // With the smaller ones it is the bytes that run out first.
            max_bytes in 2_000_usize..5_000,
            steps in prop::collection::vec((0_usize..4, 0.0..=1.0, any::<bool>()), 0..200),
        ) {
            let mut credit = Credit::new(37, max_bytes, LARGEST, num_sources);
            let mut in_flight: Vec<(usize, usize)> = Vec::new();
            let mut permits = vec![None; num_sources];
            for (source, fraction, settle) in steps {
                let index = source % num_sources;
                if settle && !in_flight.is_empty() {
                    let (messages, bytes) = in_flight.remove(0);
                    credit.give_back(messages, bytes);
                } else if let Some(Permit { max_messages, max_bytes }) = permits[index].take() {
                    let part = |whole: usize| (whole as f64 * fraction) as usize;
                    credit.spend(SourceIndex(index), part(max_messages), part(max_bytes));
                    in_flight.push((part(max_messages), part(max_bytes)));
                } else {
                    permits[index] = credit.grant(SourceIndex(index));
                }
                let held = permits.iter().flatten().map(|p| (p.max_messages, p.max_bytes));
                let all = in_flight.iter().copied().chain(held);
                let (messages, bytes) = all.fold((0, 0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
                prop_assert!(messages <= 37, "{messages} messages");
                prop_assert!(bytes <= max_bytes, "{bytes} bytes");
                let used: usize = in_flight.iter().map(|(_, bytes)| bytes).sum();
                prop_assert_eq!(credit.num_bytes(), used);
            }
            // Once everything has left there is room again.
            for (messages, bytes) in in_flight {
                credit.give_back(messages, bytes);
            }
            for (index, permit) in permits.iter().enumerate() {
                if permit.is_none() {
                    prop_assert!(credit.grant(SourceIndex(index)).is_some());
                }
            }
        }
    }
}
