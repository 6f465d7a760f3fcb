//! The last events that somebody was told, against telling one twice.

use std::collections::{HashSet, VecDeque};

use uuid::Uuid;

/// More than are kept for those who watch, and may come a second time.
const MAX_REMEMBERED: usize = 20_000;

/// The ids of the last events that somebody was told.
#[derive(Debug, Default)]
pub struct RecentIds {
    ids: HashSet<Uuid>,
    in_order: VecDeque<Uuid>,
}

impl RecentIds {
    /// Remembers an id, in place of the oldest; whether it is new.
    pub fn insert(&mut self, id: Uuid) -> bool {
        let is_new = self.ids.insert(id);
        if is_new {
            self.in_order.push_back(id);
        }
        if self.in_order.len() > MAX_REMEMBERED
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        is_new
    }

    /// Whether it is remembered.
    pub fn contains(&self, id: &Uuid) -> bool {
        self.ids.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered_and_the_oldest_forgotten() {
        let id = |number: usize| Uuid::from_u128(number as u128);
        let mut recent = RecentIds::default();
        for number in 0..=MAX_REMEMBERED {
            assert!(recent.insert(id(number)));
        }
        assert!(!recent.insert(id(1)) && recent.contains(&id(MAX_REMEMBERED)));
        assert!(recent.insert(id(0)), "it was the oldest");
        assert_eq!(recent.ids.len(), MAX_REMEMBERED);
    }
}
