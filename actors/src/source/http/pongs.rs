//! The pongs of a connection, each due once the events that came before its ping are durable.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::source::intake::{Commit, NotCommitted};

/// On all connections together. Repeated events take no room in the intake, and pings never do;
/// each takes some 200 bytes.
const MAX_WAITING: usize = 64 * 1024;
/// So many may wait on each connection, however many wait on others.
const FEW: usize = 64;

#[derive(Debug, Clone, Default)]
pub(super) struct TotalWaiting(Arc<AtomicUsize>);

impl TotalWaiting {
    fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= MAX_WAITING
    }
}

/// Events and pings of one connection, in order. A ping is due when every event before it is
/// durable.
pub(super) struct PongQueue {
    queue: VecDeque<Queued>,
    limit: usize,
    all: TotalWaiting,
    keeps_letters: bool,
    abandoned: bool,
}

/// Why no later pong will ever be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPong {
    #[error(transparent)]
    NotCommitted(NotCommitted),
    #[error("the bus does not take an event that was sent: it is larger than it allows")]
    NotTaken,
    #[error(
        "an event of {num_bytes} bytes is not published: the limit is {limit} (http.max_event_bytes)"
    )]
    TooLarge {
        num_bytes: usize,
        limit: NonZeroUsize,
    },
}

enum Queued {
    Event(Commit),
    Refused(NoPong),
    Ping(Bytes),
}

impl PongQueue {
    /// Where no dead letters are kept, what became none is durable nowhere.
    pub(super) fn new(limit: usize, all: TotalWaiting, keeps_letters: bool) -> Self {
        Self {
            queue: VecDeque::new(),
            limit,
            all,
            keeps_letters,
            abandoned: false,
        }
    }

    pub(super) fn event(&mut self, commit: Commit) {
        self.push(Queued::Event(commit));
    }

    /// An event that was not taken in: only what came before it is still answered.
    pub(super) fn refused(&mut self, why: NoPong) {
        self.push(Queued::Refused(why));
    }

    pub(super) fn ping(&mut self, data: Bytes) {
        self.push(Queued::Ping(data));
    }

    fn push(&mut self, queued: Queued) {
        if !self.abandoned {
            self.queue.push_back(queued);
            self.all.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pop(&mut self) {
        if self.queue.pop_front().is_some() {
            self.all.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The client has gone: no pong is wanted any more, and nothing is kept for one.
    pub(super) fn abandon(&mut self) {
        self.abandoned = true;
        let waiting = std::mem::take(&mut self.queue);
        self.all.0.fetch_sub(waiting.len(), Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether nothing more should be read, or pings and repeated events could fill the memory.
    pub(super) fn is_full(&self) -> bool {
        let num = self.queue.len();
        num >= self.limit || (num >= FEW && self.all.is_full())
    }

    /// Waits until a pong is due, or events became durable (`None`). Loses nothing when dropped.
    /// After an error no later pong will ever be due.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, NoPong> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, NoPong>> {
        let mut changed = false;
        while let Some(first) = self.queue.front_mut() {
            match first {
                Queued::Ping(data) => {
                    let data = std::mem::take(data);
                    self.pop();
                    return Poll::Ready(Ok(Some(data)));
                }
                Queued::Refused(why) => return Poll::Ready(Err(*why)),
                Queued::Event(commit) => match Pin::new(commit).poll(cx) {
                    Poll::Ready(Ok(done)) if done.dead_letters > 0 && !self.keeps_letters => {
                        return Poll::Ready(Err(NoPong::NotTaken));
                    }
                    Poll::Ready(Ok(_)) => {
                        self.pop();
                        changed = true;
                    }
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(NoPong::NotCommitted(error)));
                    }
                    Poll::Pending => break,
                },
            }
        }
        if changed {
            Poll::Ready(Ok(None))
        } else {
            Poll::Pending
        }
    }
}

impl Drop for PongQueue {
    fn drop(&mut self) {
        self.abandon();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::delivery::{Content, Entry, Position, Receipt, Rejection};
    use crate::source::EventSource;
    use crate::source::Permit;
    use crate::source::intake::{Intake, IntakeSettings, IntakeSource};

    struct Fixture {
        source: Arc<IntakeSource>,
        intake: Intake,
        pongs: PongQueue,
        num_events: usize,
    }

    impl Fixture {
        fn new(limit: usize) -> Self {
            let (source, intake) = IntakeSource::new("test", IntakeSettings::default());
            Self {
                source,
                intake,
                pongs: PongQueue::new(limit, TotalWaiting::default(), true),
                num_events: 0,
            }
        }

        fn event(&mut self) {
            self.num_events += 1;
            let entry = Entry {
                source: "test".into(),
                position: Position::new("here"),
                content: Content::Rejected(Rejection {
                    raw: Bytes::from(self.num_events.to_string()),
                    reason: String::new(),
                    event_id: None,
                }),
            };
            self.pongs.event(self.intake.submit(vec![entry]).unwrap());
        }

        fn durable(&self, receipts: &[u64]) {
            let permit = Permit {
                max_messages: usize::MAX,
                max_bytes: usize::MAX,
            };
            drop(self.source.read(permit).now_or_never());
            let receipts: Vec<_> = receipts.iter().copied().map(Receipt).collect();
            self.source
                .acknowledge(&receipts)
                .now_or_never()
                .unwrap()
                .unwrap();
        }

        /// Every pong that is due now.
        fn due(&mut self) -> Vec<Bytes> {
            let mut due = Vec::new();
            while let Some(next) = self.pongs.next().now_or_never() {
                due.extend(next.unwrap());
            }
            due
        }
    }

    #[test]
    fn a_ping_with_nothing_before_it_is_due_at_once() {
        let mut fixture = Fixture::new(10);
        fixture.pongs.ping(Bytes::from_static(b"1"));
        fixture.event();
        assert_eq!(fixture.due(), ["1"]);
    }

    #[test]
    fn a_ping_waits_for_every_event_before_it_and_for_no_other() {
        let mut fixture = Fixture::new(10);
        fixture.event();
        fixture.event();
        fixture.pongs.ping(Bytes::from_static(b"after 2"));
        fixture.event();
        fixture.pongs.ping(Bytes::from_static(b"after 3"));
        fixture.durable(&[1, 2]);
        assert!(fixture.due().is_empty());
        fixture.durable(&[0]);
        assert_eq!(fixture.due(), ["after 2", "after 3"]);
        assert!(fixture.pongs.is_empty());
    }

    #[test]
    fn tells_of_events_that_became_durable_without_a_ping() {
        let mut fixture = Fixture::new(1);
        fixture.event();
        assert!(fixture.pongs.is_full());
        assert_eq!(fixture.pongs.next().now_or_never(), None);
        fixture.durable(&[0]);
        assert_eq!(fixture.pongs.next().now_or_never(), Some(Ok(None)));
        assert!(!fixture.pongs.is_full());
    }

    #[test]
    fn what_waits_on_all_connections_is_bounded_and_each_may_have_a_few() {
        let all = TotalWaiting::default();
        let mut queues: Vec<PongQueue> = (0..2 * MAX_WAITING / 1_000)
            .map(|_| PongQueue::new(1_000, all.clone(), true))
            .collect();
        let num_waiting = || all.0.load(Ordering::Relaxed);
        for queue in &mut queues {
            while !queue.is_full() {
                queue.ping(Bytes::new());
            }
            assert!(queue.queue.len() >= FEW);
        }
        let most = MAX_WAITING + queues.len() * FEW;
        assert!(num_waiting() <= most, "{}", num_waiting());
        for queue in &mut queues {
            while queue.next().now_or_never().is_some() {}
        }
        assert_eq!(num_waiting(), 0);
        queues[0].ping(Bytes::new());
        queues[1].ping(Bytes::new());
        queues[1].abandon();
        drop(queues);
        assert_eq!(num_waiting(), 0);
    }

    #[test]
    fn keeps_nothing_for_a_client_that_has_gone() {
        let mut fixture = Fixture::new(1);
        fixture.event();
        assert!(fixture.pongs.is_full());
        fixture.pongs.abandon();
        fixture.event();
        fixture.pongs.ping(Bytes::from_static(b"1"));
        assert!(fixture.pongs.is_empty());
    }

    #[test]
    fn no_pong_is_due_once_an_event_before_it_cannot_become_durable() {
        let mut fixture = Fixture::new(10);
        fixture.event();
        fixture.pongs.ping(Bytes::from_static(b"1"));
        fixture.source.close().now_or_never().unwrap().unwrap();
        let gone = Err(NoPong::NotCommitted(NotCommitted));
        assert_eq!(fixture.pongs.next().now_or_never(), Some(gone));
    }
}
