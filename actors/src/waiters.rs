//! Those who wait for the same news of an actor.

use actix::ResponseFuture;
use tokio::sync::oneshot;

/// Replies that are owed; dropping them answers with what each was promised otherwise.
#[derive(Debug)]
pub(crate) struct Waiters<T>(Vec<oneshot::Sender<T>>);

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone + 'static> Waiters<T> {
    /// A reply that comes with the next [`Waiters::answer`]; `otherwise` if that never comes.
    pub(crate) fn wait(&mut self, otherwise: T) -> ResponseFuture<T> {
        let (waiting, reply) = oneshot::channel();
        self.0.push(waiting);
        Box::pin(async move { reply.await.unwrap_or(otherwise) })
    }

    /// Answers all; one who has given up does not mind.
    pub(crate) fn answer(&mut self, with: &T) {
        for waiting in self.0.drain(..) {
            waiting.send(with.clone()).ok();
        }
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
