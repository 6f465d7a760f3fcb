//! Tells when an actor is gone, however it went.
//!
//! An actor that panics is dropped without a word to anyone. What it owns is dropped with it, so
//! whoever holds the other end of a channel that the actor owns hears of it at once.

use tokio::sync::watch;

/// Owned by an actor; when it is dropped, the actor is gone.
#[derive(Debug)]
pub(crate) struct Lifeline(
    #[expect(dead_code, reason = "dropping it is its use")] watch::Sender<()>,
);

/// The other end; clones watch the same actor.
#[derive(Debug, Clone)]
pub(crate) struct Watch(watch::Receiver<()>);

pub(crate) fn lifeline() -> (Lifeline, Watch) {
    let (alive, gone) = watch::channel(());
    (Lifeline(alive), Watch(gone))
}

impl Watch {
    /// Returns when the actor is gone.
    pub(crate) async fn gone(mut self) {
        // Nothing is ever sent: the only news is that the sender was dropped.
        while self.0.changed().await.is_ok() {}
    }
}
