//! The end of an actor: how others hear of it, and how its store is closed.
//!
//! An actor that panics is dropped without a word to anyone. What it owns is dropped with it, so
//! the other end of a channel that the actor owns hears of it at once.

use std::sync::Arc;

use tokio::sync::watch;

use crate::messages::Drained;
use crate::status::error_chain;
use crate::store::EventStore;

/// Owned by an actor; when it is dropped, the actor is gone.
#[derive(Debug)]
pub(crate) struct Lifeline(
    #[expect(dead_code, reason = "dropping it is its use")] watch::Sender<()>,
);

#[derive(Debug, Clone)]
pub(crate) struct Watch(watch::Receiver<()>);

pub(crate) fn lifeline() -> (Lifeline, Watch) {
    let (alive, gone) = watch::channel(());
    (Lifeline(alive), Watch(gone))
}

impl Watch {
    pub(crate) async fn gone(mut self) {
        // Nothing is ever sent: the only news is that the sender was dropped.
        while self.0.changed().await.is_ok() {}
    }
}

/// Closes the store of an actor that is at an end; a failure is logged.
pub(crate) async fn close(store: Arc<dyn EventStore>, level: log::Level) -> Drained {
    if let Err(error) = store.close().await {
        let error = error_chain(&error);
        log::log!(level, "the store did not close cleanly error={error}");
    }
    Drained { released: 0 }
}
