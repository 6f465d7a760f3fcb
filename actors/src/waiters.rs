//! Replies that an actor gives later, to all that wait for the same news.

use actix::dev::{MessageResponse, OneshotSender};
use actix::prelude::*;
use tokio::sync::oneshot;

/// The replies that are still to come. If the actor dies first, all that wait hear that it is gone, and
/// never that all is well.
#[derive(Debug)]
pub(crate) struct Waiters<T>(Vec<oneshot::Sender<T>>);

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> Waiters<T> {
    pub(crate) fn wait(&mut self) -> LateReply<T> {
        let (waiting, reply) = oneshot::channel();
        self.0.push(waiting);
        LateReply(reply)
    }

    /// Answers all; one who has given up does not mind.
    pub(crate) fn answer(&mut self, with: &T) {
        for waiting in self.0.drain(..) {
            waiting.send(with.clone()).ok();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A reply that may come later than the actor's next message, or not at all: then the sender gets a
/// [`MailboxError`], which a future of actix's own could not give.
#[derive(Debug)]
pub struct LateReply<T>(oneshot::Receiver<T>);

impl<T> LateReply<T> {
    pub(crate) fn at_once(reply: T) -> Self {
        let (waiting, owed) = oneshot::channel();
        waiting.send(reply).ok();
        Self(owed)
    }
}

impl<A, M> MessageResponse<A, M> for LateReply<M::Result>
where
    A: Actor,
    M: Message,
{
    fn handle(self, _: &mut A::Context, tx: Option<OneshotSender<M::Result>>) {
        actix_rt::spawn(async move {
            if let (Ok(reply), Some(tx)) = (self.0.await, tx) {
                // Whoever asked may have gone.
                tx.send(reply).ok();
            }
        });
    }
}
