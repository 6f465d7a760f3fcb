//! Source: a stream of Redis, read as one consumer of a group.
//!
//! Any number of processes share the group: Redis gives each entry to one of them, and what a dead
//! one leaves is claimed by another. An entry is acknowledged (XACK) once it is durable; until then
//! it is pending in Redis, in the name of this process's consumer.
//!
//! Guarantee: everything that was taken from the stream is in flight, or committed while XACK is
//! not confirmed, or will be read again. After any failure, and once a minute, what Redis has
//! pending for us is compared with these two sets, and what is in neither is taken again. What is
//! held for long is marked as ours every two seconds, whether anyone reads or not.
//!
//! A stream or a group that vanishes is made again, at `0-1`, and everything that is still in the
//! stream comes again: the store knows what it has.
//!
//! # What can be lost, and is counted
//!
//! Others trim the stream, by rules that do not know what is committed; the [trim guard](RedisGuard)
//! keeps them from it. What was removed nevertheless before it was read is counted as far as Redis
//! lets it be counted, and logged. How much was read Redis does not write down by itself; the source
//! has it do so with large reads and every second. So right after a restart or a failover of Redis, what was
//! read within the last second may be counted too, until all is read again.
//!
//! A group that somebody set ahead of the stream's last id is believed as little as a lost one: reading
//! ends in an error that says where to set it back, and the guard stays where it is until then.
//!
//! # Why the reads have a task of their own
//!
//! Every future of a source may be dropped, but a command that was sent cannot be taken back: it
//! would take entries that nobody hears of, and hold up the next one. So the read of the stream
//! runs on, and what it takes waits for the next [`EventSource::read`]. At the end of all reads it is
//! told to be quick, and what it took nevertheless is handed out before [`More::Ended`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::delivery::Receipt;

use super::{Chunk, EventSource, More, Permit, SourceError};

mod audit;
mod commands;
mod connection;
mod ending;
mod entries;
mod failure;
mod fetch;
mod guard;
mod inspection;
mod keeper;
mod position;
mod reads;
mod replies;
mod scripts;
mod settings;
mod shadow;
mod shared;
mod sizes;
mod stats;
mod stream_id;
mod taken;
mod url;

use shared::{Outcome, Shared};

pub use audit::{RedisAudit, StreamPage, StreamWalk};
pub use guard::{GroupState, GuardReport, RedisGuard};
pub use inspection::RedisInspection;
pub use settings::{RedisSettings, RedisSettingsError, consumer_name};
pub use shadow::{GroupProgress, RedisShadow, ShadowRead};
pub use stats::{RedisStats, RedisStatus};
pub use url::RedisUrl;

/// The source's name in dead letters, metrics and logs.
pub const SOURCE_NAME: &str = "redis";

/// How long a close waits for Redis, beyond a read that is under way; then the rest is left for
/// others to claim.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Hands out the entries of one stream, as one consumer of its group.
pub struct RedisSource {
    shared: Arc<Shared>,
    tasks: Mutex<Tasks>,
}

/// What runs beside the calls; ended with the source.
#[derive(Default)]
struct Tasks {
    keeper: Option<AbortHandle>,
    fetch: Option<AbortHandle>,
}

impl RedisSource {
    /// A source that connects with its first read.
    ///
    /// # Errors
    ///
    /// The settings cannot work.
    pub fn new(settings: RedisSettings) -> Result<Self, RedisSettingsError> {
        settings.check()?;
        Ok(Self {
            shared: Arc::new(Shared::new(settings)),
            tasks: Mutex::default(),
        })
    }

    /// What is known about the stream, for as long as anyone wants to know.
    pub fn stats(&self) -> RedisStats {
        self.shared.stats.clone()
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        // Every change is complete before anything that could panic.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the keeper unless it runs; it ends with the thread that it was started on.
    fn ensure_keeper(&self) {
        let mut tasks = self.tasks();
        if tasks.keeper.as_ref().is_none_or(AbortHandle::is_finished) {
            tasks.keeper = Some(self.shared.start_keeper());
        }
    }

    /// Starts a fetch unless one runs.
    fn ensure_fetch(&self, permit: Permit) {
        let mut state = self.shared.lock();
        if state.fetching || state.stopping {
            return;
        }
        state.fetching = true;
        drop(state);
        let turn = fetch::Turn::new(Arc::clone(&self.shared));
        let task = tokio::spawn(fetch::fetch(turn, permit));
        self.tasks().fetch = Some(task.abort_handle());
    }

    /// What a read returns at once; `None` if something has to be fetched first.
    fn take(&self, permit: Permit) -> Option<Result<Chunk, SourceError>> {
        let mut state = self.shared.lock();
        if state.closed {
            return Some(Ok(nothing(More::Ended)));
        }
        let more = state.more;
        if let Some(chunk) = state.taken.hand_out(permit, more) {
            return Some(Ok(chunk));
        }
        match state.outcome.take() {
            Some(Err(error)) => Some(Err(error)),
            _ if state.stopping && !state.fetching => Some(Ok(nothing(More::Ended))),
            Some(Ok(Outcome::Nothing)) => Some(Ok(nothing(More::Later))),
            Some(Ok(Outcome::Misplaced(what))) => {
                Some(Err(SourceError::Unavailable { what, source: None }))
            }
            Some(Ok(Outcome::Some)) | None => None,
        }
    }

    /// Waits until there may be something to take, or the end.
    async fn changed(&self) {
        if self.shared.lock().stopping {
            self.shared.hastened_change().await;
        } else {
            self.shared.changed.notified().await;
        }
    }

    async fn send_receipts(&self, receipts: &[Receipt]) -> Result<(), SourceError> {
        let ids = {
            let mut state = self.shared.lock();
            if state.closed {
                return Ok(());
            }
            state.taken.commit(receipts)
        };
        self.send_committed(&ids).await
    }

    async fn send_committed(&self, ids: &[stream_id::StreamId]) -> Result<(), SourceError> {
        if ids.is_empty() {
            return Ok(());
        }
        let sent = async {
            let mut commands = self.shared.commands().await?;
            self.shared.acknowledge(&mut commands, ids).await
        };
        sent.await
            .map_err(|error| self.shared.failed("acknowledging", error))
    }

    /// Ends what runs, sends what is committed, and takes our name off the group if nothing is
    /// pending in it.
    async fn leave(&self) -> Result<(), SourceError> {
        // A read that waits in Redis would take entries in our name after we have left.
        while self.shared.lock().fetching {
            self.changed().await;
        }
        let committed = self.shared.lock().taken.committed();
        if self.send_committed(&committed).await.is_err() {
            // The connection may have gone with the thread that it was opened on.
            self.send_committed(&committed).await?;
        }
        if !self.shared.lock().joined_before {
            return Ok(());
        }
        let removed = async {
            let mut commands = self.shared.commands().await?;
            commands.remove_own_consumer().await
        };
        let removed = removed
            .await
            .map_err(|error| self.shared.failed("leaving the consumer group", error))?;
        if !removed {
            log::info!(
                "some entries stay pending for this consumer; another will claim them \
                 redis.server={} redis.consumer={}",
                self.shared.server,
                self.shared.settings.consumer_name
            );
        }
        Ok(())
    }
}

impl EventSource for RedisSource {
    fn name(&self) -> &str {
        SOURCE_NAME
    }

    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<Chunk, SourceError>> {
        Box::pin(async move {
            self.ensure_keeper();
            loop {
                // One poll looks and takes, so a dropped read has taken nothing.
                if let Some(taken) = self.take(permit) {
                    return taken;
                }
                self.ensure_fetch(permit);
                self.changed().await;
            }
        })
    }

    fn warnings(&self) -> Vec<String> {
        self.shared.stats.warnings()
    }

    fn end_reading(&self) -> bool {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_one();
        true
    }

    fn acknowledge<'a>(
        &'a self,
        receipts: &'a [Receipt],
    ) -> LocalBoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.send_receipts(receipts))
    }

    fn rewind(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let mut state = self.shared.lock();
            if !state.closed {
                state.taken.rewind();
                state.recovery.due = true;
                state.recovery.runs = None;
            }
            Ok(())
        })
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let was_closed = {
                let mut state = self.shared.lock();
                state.stopping = true;
                std::mem::replace(&mut state.closed, true)
            };
            if was_closed {
                return Ok(());
            }
            if let Some(keeper) = self.tasks().keeper.take() {
                keeper.abort();
            }
            let patience = self.shared.settings.block + CLOSE_TIMEOUT;
            let left = timeout(patience, self.leave()).await;
            self.end();
            match left {
                Ok(left) => left,
                Err(_) => Err(SourceError::Unavailable {
                    what: format!(
                        "Redis at {}: leaving the consumer group took too long; what is pending \
                         there will be claimed by another consumer",
                        self.shared.server
                    ),
                    source: None,
                }),
            }
        })
    }
}

impl RedisSource {
    /// Lets go of everything, at once.
    fn end(&self) {
        {
            let mut state = self.shared.lock();
            state.stopping = true;
            state.closed = true;
        }
        let tasks = std::mem::take(&mut *self.tasks());
        for task in [tasks.keeper, tasks.fetch].into_iter().flatten() {
            task.abort();
        }
        self.shared.connections.reset();
        self.shared.tell_the_rest();
        self.shared.lock().taken.clear();
        self.shared.changed.notify_one();
    }
}

/// Nothing runs on without its source.
impl Drop for RedisSource {
    fn drop(&mut self) {
        self.end();
    }
}

fn nothing(more: More) -> Chunk {
    Chunk {
        messages: Vec::new(),
        more,
    }
}
