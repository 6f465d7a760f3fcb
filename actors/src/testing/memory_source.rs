//! A source in memory that does what a test tells it.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use tokio::sync::{Notify, watch};

use crate::delivery::{Entry, Position, Receipt};
use crate::lock::lock;
use crate::source::{Body, Chunk, EventSource, More, Permit, Retain, Retained, SourceError};

/// A source that a test fills, watches and breaks; share it with `Arc`.
pub struct MemorySource {
    name: String,
    state: Mutex<SourceState>,
    available: Notify,
    num_acknowledged: watch::Sender<usize>,
    num_rewinds: watch::Sender<usize>,
    acks_held: watch::Sender<bool>,
}

#[derive(Default)]
struct SourceState {
    messages: Retained<Stored>,
    acknowledged: Vec<Receipt>,
    dead_letters: Vec<Receipt>,
    failing_reads: usize,
    failing_acks: usize,
    failing_rewinds: usize,
    warning: Option<String>,
    panic_next_read: bool,
    max_chunk: Option<usize>,
    always_short: bool,
    hands_out_the_rest: bool,
    num_reads: usize,
    permits: VecDeque<Permit>,
    ended: bool,
    closed: bool,
}

impl Default for MemorySource {
    fn default() -> Self {
        Self::new("memory")
    }
}

impl MemorySource {
    /// An empty source.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            state: Mutex::new(SourceState::default()),
            available: Notify::new(),
            num_acknowledged: watch::Sender::new(0),
            num_rewinds: watch::Sender::new(0),
            acks_held: watch::Sender::new(false),
        }
    }

    /// Adds a message that the consumer has to parse; its position is the number of its receipt.
    pub fn push(&self, data: impl Into<Bytes>) -> Receipt {
        let data = data.into();
        self.push_stored(|receipt| Stored::Raw {
            position: Position::new(receipt.0.to_string()),
            data,
        })
    }

    /// Adds a message that is parsed or rejected already.
    pub fn push_entry(&self, entry: impl Into<Arc<Entry>>) -> Receipt {
        self.push_stored(|_| Stored::Entry(entry.into()))
    }

    fn push_stored(&self, message: impl FnOnce(Receipt) -> Stored) -> Receipt {
        let receipt = {
            let mut state = self.lock();
            let next = state.messages.next_receipt();
            state.messages.push(message(next))
        };
        self.available.notify_one();
        receipt
    }

    /// Nothing more will be pushed: what is here is handed out, then the source has ended.
    pub fn end(&self) {
        self.lock().ended = true;
        self.available.notify_one();
    }

    /// The next `num` reads fail, and take nothing.
    pub fn fail_reads(&self, num: usize) {
        self.lock().failing_reads = num;
        self.available.notify_one();
    }

    /// The next `num` acknowledgements fail, and forget nothing.
    pub fn fail_acks(&self, num: usize) {
        self.lock().failing_acks = num;
    }

    /// Makes acknowledgements wait, before they do anything, until [`Self::release_acks`].
    pub fn hold_acks(&self) {
        self.acks_held.send_replace(true);
    }

    /// Lets held acknowledgements go on.
    pub fn release_acks(&self) {
        self.acks_held.send_replace(false);
    }

    /// The next `num` rewinds fail, and change nothing.
    pub fn fail_rewinds(&self, num: usize) {
        self.lock().failing_rewinds = num;
    }

    /// The next read panics, or the one that waits now.
    pub fn panic_next_read(&self) {
        self.lock().panic_next_read = true;
        self.available.notify_one();
    }

    /// From now on this is to be looked at, or nothing.
    pub fn warn(&self, warning: Option<&str>) {
        self.lock().warning = warning.map(str::to_owned);
    }

    /// Hands out at most `num` messages a read, whatever the permit allows.
    pub fn max_chunk(&self, num: usize) {
        self.lock().max_chunk = Some(num.max(1));
    }

    /// Every chunk says that nothing more is to be had at once, even if there is.
    pub fn always_short(&self, short: bool) {
        self.lock().always_short = short;
    }

    /// When reading is ended, what is here is handed out before the end.
    pub fn hands_out_the_rest(&self, does: bool) {
        self.lock().hands_out_the_rest = does;
    }

    /// Every receipt that was acknowledged for the first time, in order.
    pub fn acknowledged(&self) -> Vec<Receipt> {
        self.lock().acknowledged.clone()
    }

    /// Every receipt that was told of as a dead letter while it was not acknowledged yet, in order.
    pub fn dead_letters(&self) -> Vec<Receipt> {
        self.lock().dead_letters.clone()
    }

    /// How many messages are here that were not acknowledged, handed out or not.
    pub fn num_held(&self) -> usize {
        self.lock().messages.len()
    }

    /// How many reads returned or failed.
    pub fn num_reads(&self) -> usize {
        self.lock().num_reads
    }

    /// The permits of the reads so far, in order.
    pub fn permits(&self) -> Vec<Permit> {
        self.lock().permits.iter().copied().collect()
    }

    /// How often it was rewound.
    pub fn rewinds(&self) -> usize {
        *self.num_rewinds.borrow()
    }

    /// Whether it was told that nothing more will come, or that nothing more is wanted.
    pub fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Resolves once at least `num` messages are acknowledged.
    pub fn wait_for_acknowledged(&self, num: usize) -> impl Future<Output = ()> + use<> {
        reaches(&self.num_acknowledged, num)
    }

    /// Resolves once it was rewound at least `num` times.
    pub fn wait_for_rewinds(&self, num: usize) -> impl Future<Output = ()> + use<> {
        reaches(&self.num_rewinds, num)
    }

    fn lock(&self) -> MutexGuard<'_, SourceState> {
        // A read that panics on demand has changed nothing before.
        lock(&self.state)
    }
}

fn reaches(counter: &watch::Sender<usize>, num: usize) -> impl Future<Output = ()> + use<> {
    let mut counter = counter.subscribe();
    async move {
        // When the source has gone, the number will not be reached: never resolve.
        if counter.wait_for(|reached| *reached >= num).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl fmt::Debug for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySource")
            .field("name", &self.name)
            .field("num_held", &self.num_held())
            .finish_non_exhaustive()
    }
}

impl SourceState {
    fn take(&mut self, permit: Permit) -> Option<Result<Chunk, SourceError>> {
        if self.failing_reads > 0 {
            self.failing_reads -= 1;
            return Some(Err(failure("read")));
        }
        let when_empty = if self.ended || self.closed {
            More::Ended
        } else {
            More::Later
        };
        let permit = Permit {
            max_messages: self
                .max_chunk
                .unwrap_or(usize::MAX)
                .min(permit.max_messages),
            ..permit
        };
        let mut chunk = self.messages.hand_out(permit, when_empty)?;
        if self.always_short && chunk.more == More::Ready {
            chunk.more = More::Later;
        }
        Some(Ok(chunk))
    }
}

fn failure(what: &str) -> SourceError {
    SourceError::unavailable(
        format!("the memory source was told to fail this {what}"),
        io::Error::from(io::ErrorKind::ConnectionReset),
    )
}

impl EventSource for MemorySource {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<Chunk, SourceError>> {
        Box::pin(async move {
            self.lock().permits.push_back(permit);
            loop {
                {
                    let mut state = self.lock();
                    if std::mem::take(&mut state.panic_next_read) {
                        drop(state);
                        #[expect(clippy::panic, reason = "a test asked for it")]
                        {
                            panic!("the memory source was told to panic");
                        }
                    }
                    if let Some(taken) = state.take(permit) {
                        state.num_reads += 1;
                        return taken;
                    }
                }
                self.available.notified().await;
            }
        })
    }

    fn warnings(&self) -> Vec<String> {
        self.lock().warning.iter().cloned().collect()
    }

    fn end_reading(&self) -> bool {
        let does = self.lock().hands_out_the_rest;
        if does {
            self.end();
        }
        does
    }

    fn note_dead_letters(&self, receipts: &[Receipt]) {
        let mut state = self.lock();
        for &receipt in receipts {
            if state.messages.handed_out(receipt).is_some() {
                state.dead_letters.push(receipt);
            }
        }
    }

    fn acknowledge<'a>(
        &'a self,
        receipts: &'a [Receipt],
    ) -> LocalBoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            // The sender lives as long as the source, so that the wait ends only with the hold.
            self.acks_held.subscribe().wait_for(|held| !held).await.ok();
            let num = {
                let mut state = self.lock();
                if state.failing_acks > 0 {
                    state.failing_acks -= 1;
                    return Err(failure("acknowledgement"));
                }
                for &receipt in receipts {
                    if state.messages.acknowledge(receipt).is_some() {
                        state.acknowledged.push(receipt);
                    }
                }
                state.acknowledged.len()
            };
            self.num_acknowledged.send_replace(num);
            Ok(())
        })
    }

    fn rewind(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            {
                let mut state = self.lock();
                if state.failing_rewinds > 0 {
                    state.failing_rewinds -= 1;
                    return Err(failure("rewind"));
                }
                state.messages.rewind();
            }
            self.num_rewinds.send_modify(|num| *num += 1);
            Ok(())
        })
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            {
                let mut state = self.lock();
                state.closed = true;
                state.messages.clear();
            }
            self.available.notify_one();
            Ok(())
        })
    }
}

enum Stored {
    Raw { position: Position, data: Bytes },
    Entry(Arc<Entry>),
}

impl Retain for Stored {
    fn num_bytes(&self) -> usize {
        match self {
            Self::Raw { data, .. } => data.len(),
            Self::Entry(entry) => entry.num_bytes(),
        }
    }

    fn body(&self) -> Body {
        match self {
            Self::Raw { position, data } => Body::Raw {
                position: position.clone(),
                data: data.clone(),
            },
            Self::Entry(entry) => Body::Entry(Arc::clone(entry)),
        }
    }
}
