//! An actor that shows a test what it is sent, and answers what the test tells it to.

use actix::prelude::*;
use tokio::sync::{mpsc, oneshot};

use crate::lifeline::{Lifeline, Watch, lifeline};

/// Starts a probe on the current arbiter: an address to send to, and what was sent.
pub fn probe<M>() -> (Recipient<M>, Inbox<M>)
where
    M: Message + Send + 'static,
    M::Result: Send + 'static,
{
    let (seen, messages) = mpsc::unbounded_channel();
    let (kill, killed) = oneshot::channel();
    let (lifeline, watch) = lifeline();
    let addr = ProbeActor {
        seen,
        killed: Some(killed),
        _lifeline: lifeline,
    }
    .start();
    let inbox = Inbox {
        messages,
        kill,
        watch,
    };
    (addr.recipient(), inbox)
}

/// The messages that a probe was sent, in order.
pub struct Inbox<M: Message> {
    messages: mpsc::UnboundedReceiver<Asked<M>>,
    kill: oneshot::Sender<()>,
    watch: Watch,
}

/// One message that waits for its answer.
pub struct Asked<M: Message> {
    /// The message.
    pub message: M,
    reply: oneshot::Sender<M::Result>,
}

impl<M: Message> Asked<M> {
    /// Answers; whoever asked may have gone.
    pub fn answer(self, result: M::Result) {
        self.reply.send(result).ok();
    }
}

impl<M> Inbox<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    /// Waits for the next message; `None` once the probe was killed and all was seen.
    pub async fn next(&mut self) -> Option<Asked<M>> {
        self.messages.recv().await
    }

    /// The next message if there is one already.
    pub fn try_next(&mut self) -> Option<Asked<M>> {
        self.messages.try_recv().ok()
    }

    /// Stops the probe without answering, as a panic would.
    pub async fn kill(self) {
        self.kill.send(()).ok();
        self.watch.gone().await;
    }
}

struct ProbeActor<M: Message> {
    seen: mpsc::UnboundedSender<Asked<M>>,
    killed: Option<oneshot::Receiver<()>>,
    _lifeline: Lifeline,
}

impl<M> Actor for ProbeActor<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Some(killed) = self.killed.take() {
            ctx.spawn(killed.into_actor(self).map(|killed, _, ctx| {
                if killed.is_ok() {
                    ctx.stop();
                }
            }));
        }
    }
}

impl<M> Handler<M> for ProbeActor<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    type Result = ResponseActFuture<Self, M::Result>;

    fn handle(&mut self, message: M, _: &mut Self::Context) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        self.seen.send(Asked { message, reply }).ok();
        let answered = async move {
            match answer.await {
                Ok(result) => result,
                // The test dropped the question: it will never be answered.
                Err(_) => std::future::pending().await,
            }
        };
        Box::pin(answered.into_actor(self))
    }
}
