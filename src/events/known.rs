//! The events that are known, so that looking back prints none of them again.

use std::collections::{HashSet, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

/// So many ids are remembered, in some 4 MB: those of a quarter of an hour at 50 events a second. With fewer, a
/// busier service is looked back for less; with more, looking back takes longer.
const MAX_REMEMBERED: usize = 50_000;

/// An event is stored behind others that occurred up to so much later. No service looks back further.
const STORED_WITHIN: TimeDelta = TimeDelta::minutes(15);

/// How much earlier than it was received an event usually occurred.
const RECEIVED_WITHIN: TimeDelta = TimeDelta::minutes(1);

pub(super) struct Known {
    /// Whoever follows asks for what is stored from then on.
    began: DateTime<Utc>,
    ids: HashSet<Uuid>,
    in_order: VecDeque<(Uuid, DateTime<Utc>)>,
    /// When the last of those was received whose ids are no longer remembered.
    forgotten: Option<DateTime<Utc>>,
}

impl Known {
    pub(super) fn new(began: DateTime<Utc>) -> Self {
        Self {
            began,
            ids: HashSet::new(),
            in_order: VecDeque::new(),
            forgotten: None,
        }
    }

    /// Remembers an event; whether it is new.
    pub(super) fn insert(&mut self, id: Uuid, received: DateTime<Utc>) -> bool {
        let is_new = self.ids.insert(id);
        if is_new {
            self.in_order.push_back((id, received));
        }
        if self.in_order.len() > MAX_REMEMBERED
            && let Some((oldest, received)) = self.in_order.pop_front()
        {
            self.ids.remove(&oldest);
            self.forgotten = self.forgotten.max(Some(received));
        }
        is_new
    }

    /// Whether an event that was received then was stored before, or printed and forgotten.
    pub(super) fn is_old(&self, received: DateTime<Utc>) -> bool {
        received < self.began || self.forgotten.is_some_and(|last| received <= last)
    }

    /// Since when is looked back for what was stored after `heard`.
    pub(super) fn look_back(&self, heard: DateTime<Utc>) -> DateTime<Utc> {
        let since = heard - STORED_WITHIN;
        let known = self.forgotten.map(|last| last - RECEIVED_WITHIN);
        known.map_or(since, |known| known.max(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_is_known_by_its_time() {
        let second = |second: i64| DateTime::UNIX_EPOCH + TimeDelta::seconds(10_000 + second);
        let id = |number: usize| Uuid::from_u128(number as u128);
        let mut known = Known::new(second(0));
        assert!(known.is_old(second(-1)) && !known.is_old(second(0)));
        for number in 0..MAX_REMEMBERED {
            assert!(known.insert(id(number), second(number as i64)));
        }
        assert!(!known.insert(id(0), second(0)), "it is remembered");
        let heard = second(60_000);
        assert_eq!(known.look_back(heard), heard - STORED_WITHIN);
        for number in 0..600 {
            known.insert(id(MAX_REMEMBERED + number), second(60_000));
        }
        assert!(known.is_old(second(599)) && !known.is_old(second(600)));
        assert_eq!(known.look_back(second(700)), second(599) - RECEIVED_WITHIN);
        assert_eq!(known.ids.len(), MAX_REMEMBERED);
    }
}
