//! A batch as it is sent.

use super::arrays::Arrays;
use super::copy_rows::CopyRows;
use super::rows::{Refusal, Rows};
use crate::batch::Batch;

/// From so many events on, a batch is copied. Fewer are written by the store function, which takes two
/// round trips where COPY takes six.
const MANY: usize = 200;

/// All that can be made of a batch without the database.
pub(super) enum Encoded {
    /// Of many events, and nothing special about any of them.
    Rows(CopyRows),
    Call(Box<Call>),
}

/// What the store function is given.
pub(super) struct Call {
    pub(super) arrays: Arrays,
    /// Which entry of the batch each event is.
    pub(super) indexes: Vec<usize>,
    pub(super) num_resources: usize,
    /// Whether an id stands in the batch more than once.
    pub(super) repeats_ids: bool,
    /// What need not be sent to be refused.
    pub(super) refused: Vec<Refusal>,
}

impl Encoded {
    pub(super) fn new(batch: &Batch) -> Self {
        let rows = Rows::new(batch.entries());
        let is_ordinary = rows.events.len() == batch.len() && !rows.repeats_ids;
        if is_ordinary && batch.len() >= MANY {
            // What is too long for either way is told by the store function's.
            if let Ok(rows) = CopyRows::new(&rows) {
                return Self::Rows(rows);
            }
        }
        Self::Call(Box::new(Call::of(rows)))
    }
}

impl Call {
    pub(super) fn new(batch: &Batch) -> Self {
        Self::of(Rows::new(batch.entries()))
    }

    fn of(rows: Rows<'_>) -> Self {
        Self {
            arrays: Arrays::new(&rows),
            indexes: rows.events.iter().map(|row| row.index).collect(),
            num_resources: rows.resources.len(),
            repeats_ids: rows.repeats_ids,
            refused: rows.refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::*;
    use crate::batch::BatchId;
    use crate::testing::{EventFixture, event, event_entry, rejected_entry};

    fn batch(num_events: usize) -> Arc<Batch> {
        let entries = (0..num_events).map(|_| event_entry(event(Uuid::new_v4())));
        Arc::new(Batch::new(BatchId(1), entries.collect()))
    }

    #[test]
    fn only_what_is_large_and_ordinary_is_copied() {
        let is_copied = |entries: Vec<_>| {
            let batch = Batch::new(BatchId(1), entries);
            matches!(Encoded::new(&batch), Encoded::Rows(_))
        };
        let many = || batch(MANY).entries().to_vec();
        assert!(is_copied(many()));
        assert!(!is_copied(batch(MANY - 1).entries().to_vec()));
        let rejected = rejected_entry("1", b"{", "no JSON");
        assert!(!is_copied([many(), vec![rejected]].concat()));
        let twice = many()[..1].to_vec();
        assert!(is_copied([many(), batch(1).entries().to_vec()].concat()));
        assert!(!is_copied([twice.clone(), many(), twice].concat()));
        let nul = EventFixture {
            event: "a\0b".to_owned(),
            ..EventFixture::default()
        };
        assert!(!is_copied(
            [many(), vec![event_entry(nul.build())]].concat()
        ));
    }
}
