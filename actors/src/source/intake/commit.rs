//! The client that waits for a submission, and how it learns that the entries are durable.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::lock::lock;

/// The intake was closed before the entries were durable. They may be all the same: send again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the service stopped before the events were stored; send them again once it is back")]
pub struct NotCommitted;

/// Every entry of a submission is durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Committed {
    /// How many of them are dead letters: the database refused them, and they are no rows of `events`.
    pub dead_letters: usize,
}

/// Resolves when every entry of a submission is durable.
///
/// Dropping it withdraws nothing.
#[derive(Debug)]
#[must_use = "entries are durable only once this resolves"]
pub struct Commit(oneshot::Receiver<Committed>);

impl Future for Commit {
    type Output = Result<Committed, NotCommitted>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|outcome| outcome.map_err(|_| NotCommitted))
    }
}

pub(super) struct Waiter {
    remaining: AtomicUsize,
    dead_letters: AtomicUsize,
    done: Mutex<Option<oneshot::Sender<Committed>>>,
}

impl Waiter {
    pub(super) fn of(num_entries: usize) -> (Commit, Arc<Self>) {
        let (sender, receiver) = oneshot::channel();
        let waiter = Self {
            remaining: AtomicUsize::new(num_entries),
            dead_letters: AtomicUsize::new(0),
            done: Mutex::new(Some(sender)),
        };
        if num_entries == 0 {
            waiter.tell();
        }
        (Commit(receiver), Arc::new(waiter))
    }

    pub(super) fn one_is_durable(&self, is_dead_letter: bool) {
        if is_dead_letter {
            self.dead_letters.fetch_add(1, Ordering::AcqRel);
        }
        if self.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.tell();
        }
    }

    fn tell(&self) {
        let sender = lock(&self.done).take();
        if let Some(sender) = sender {
            // The client may have gone: then nobody needs to know.
            let dead_letters = self.dead_letters.load(Ordering::Acquire);
            sender.send(Committed { dead_letters }).ok();
        }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        lock(&self.done)
            .as_ref()
            .is_none_or(oneshot::Sender::is_closed)
    }
}
