//! Who waits for a submission, and how they learn that it is durable.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// The intake was closed before the entries were durable. They may be all the same: send again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the service stopped before the events were stored; send them again once it is back")]
pub struct NotCommitted;

/// Resolves when every entry of a submission is durable.
///
/// Dropping it withdraws nothing.
#[derive(Debug)]
#[must_use = "entries are durable only once this resolves"]
pub struct Commit(oneshot::Receiver<()>);

impl Future for Commit {
    type Output = Result<(), NotCommitted>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|outcome| outcome.map_err(|_| NotCommitted))
    }
}

/// One submission: how many of its entries are not yet durable, and whom to tell.
pub(super) struct Waiter {
    remaining: AtomicUsize,
    done: Mutex<Option<oneshot::Sender<()>>>,
}

impl Waiter {
    pub(super) fn of(num_entries: usize) -> (Commit, Arc<Self>) {
        let (sender, receiver) = oneshot::channel();
        let waiter = Self {
            remaining: AtomicUsize::new(num_entries),
            done: Mutex::new(Some(sender)),
        };
        if num_entries == 0 {
            waiter.tell();
        }
        (Commit(receiver), Arc::new(waiter))
    }

    pub(super) fn one_is_durable(&self) {
        if self.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.tell();
        }
    }

    fn tell(&self) {
        let sender = self.lock().take();
        if let Some(sender) = sender {
            // Whoever waited may have gone: then nobody needs to know.
            sender.send(()).unwrap_or(());
        }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<oneshot::Sender<()>>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
