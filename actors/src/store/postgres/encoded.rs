//! A batch as it is sent, and the one that was made so before its turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

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
    /// For the store function.
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

/// The batch that was made ready last; shared by stores that were opened together, since any of them
/// may get to write it.
#[derive(Default)]
pub(super) struct Prepared(Mutex<State>);

#[derive(Default)]
struct State {
    ready: Option<(Arc<Batch>, Encoded)>,
    /// The batch that was asked for last: what comes too late for it is of no use.
    taken: Weak<Batch>,
}

impl Prepared {
    /// Makes a batch ready where others need not wait for it. It takes the place of the one before,
    /// which is made again should it ever be written.
    pub(super) async fn prepare(self: &Arc<Self>, batch: Arc<Batch>) {
        let prepared = Arc::clone(self);
        let prepare = move || prepared.set(Encoded::new(&batch), batch);
        // Whatever became of that call, the batch is made ready at its turn where it is not by then.
        drop(tokio::task::spawn_blocking(prepare).await);
    }

    /// The batch as it is sent; taken from here if it is this one that was made ready.
    pub(super) fn take(&self, batch: &Arc<Batch>) -> Encoded {
        let mut state = self.lock();
        state.taken = Arc::downgrade(batch);
        let ready = state.ready.take_if(|(of, _)| Arc::ptr_eq(of, batch));
        drop(state);
        ready.map_or_else(|| Encoded::new(batch), |(_, encoded)| encoded)
    }

    pub(super) fn clear(&self) {
        let ready = self.lock().ready.take();
        drop(ready);
    }

    fn set(&self, encoded: Encoded, batch: Arc<Batch>) {
        let mut state = self.lock();
        let is_too_late = state.taken.as_ptr() == Arc::as_ptr(&batch);
        let before = if is_too_late {
            None
        } else {
            state.ready.replace((batch, encoded))
        };
        drop(state);
        drop(before);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::batch::BatchId;
    use crate::testing::{EventFixture, event, event_entry, rejected_entry};

    fn num_events(encoded: Encoded) -> usize {
        match encoded {
            Encoded::Call(call) => call.indexes.len(),
            Encoded::Rows(_) => panic!("too many"),
        }
    }

    fn batch(num_events: usize) -> Arc<Batch> {
        let entries = (0..num_events).map(|_| event_entry(event(Uuid::new_v4())));
        Arc::new(Batch::new(BatchId(1), entries.collect()))
    }

    #[actix::test]
    async fn gives_what_was_made_ready_to_its_own_batch_and_once() {
        let prepared = Arc::<Prepared>::default();
        let is_there = || prepared.lock().ready.is_some();
        let (ready, other) = (batch(3), batch(2));
        prepared.prepare(Arc::clone(&ready)).await;
        assert_eq!(num_events(prepared.take(&other)), 2);
        assert!(is_there(), "taken for another batch");
        assert_eq!(num_events(prepared.take(&ready)), 3);
        assert!(!is_there());
        assert_eq!(num_events(prepared.take(&ready)), 3, "made again");
        prepared.prepare(Arc::clone(&ready)).await;
        assert!(!is_there(), "kept although it came too late");
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

    #[actix::test]
    async fn keeps_one_batch_at_most() {
        let prepared = Arc::<Prepared>::default();
        let (first, second) = (batch(1), batch(2));
        prepared.prepare(Arc::clone(&first)).await;
        prepared.prepare(Arc::clone(&second)).await;
        assert_eq!(Arc::strong_count(&first), 1);
        prepared.clear();
        assert_eq!(Arc::strong_count(&second), 1);
    }
}
