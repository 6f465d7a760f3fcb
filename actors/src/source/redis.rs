//! Source: a stream of Redis, read as one consumer of a group.
//!
//! Any number of processes share the group: Redis gives each entry to one of them, and what a dead
//! one leaves is claimed by another. An entry is acknowledged (XACK) once it is durable; until then
//! it is pending in Redis, in the name of this process's consumer.
//!
//! Guarantee: every entry that this consumer was given is in flight, or committed while its XACK is not
//! confirmed, or will be read again. After any failure, and once a minute, what Redis has pending for us is
//! compared with the first two, and the rest is read again. A stream or a group that vanishes is made again,
//! at `0-1`; what is still in the stream comes again, and the store knows what it has.
//!
//! # What can be lost, and is counted
//!
//! Others trim the stream by rules that do not know what is committed; the trim guard keeps them from it.
//! Entries that were removed before they were read are counted, as far as Redis lets them be counted, and
//! logged. Right after a restart or a failover of Redis, entries that were read within the last second may
//! be counted too.
//!
//! # Why the reads have a task of their own
//!
//! Every future of a source may be dropped, but a command that was sent cannot be taken back: it
//! would take entries that nobody hears of, and hold up the next one. So the read of the stream
//! runs on, and the entries that it brings wait for the next [`EventSource::read`]. At the end of all reads
//! Redis is told to answer at once, and what the read took until then is handed out before [`More::Ended`].
//!
//! The path through these files is told in `README.md`, "One event, file by file".

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, select};
use redis::RedisResult;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::delivery::Receipt;

use super::{Chunk, EventSource, More, Permit, SourceError, lock};

mod connection;
mod entry_reader;
mod failure;
mod fetch;
mod idleness;
mod keeper;
mod member;
mod old_master;
mod operator;
mod pending;
mod position;
mod publisher;
mod reach;
mod scripts;
mod sentinel;
mod settings;
mod sizes;
mod snapshot;
mod stats;
mod stream_id;
mod url;

use fetch::Outcome;
use member::Member;
use stream_id::StreamId;

pub use operator::RedisOperator;
pub use publisher::RedisPublisher;
pub use settings::{RedisSettings, RedisSettingsError, consumer_name};
pub use stats::{RedisStats, RedisStatus};
pub use url::{Place, RedisUrl, Sentinels};

/// The source's name in dead letters, metrics and logs.
pub const SOURCE_NAME: &str = "redis";

/// How long a close waits for Redis, beyond a read that is under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often Redis is told to end a read that waits: it may not have arrived there the last time.
const UNBLOCK_EVERY: Duration = Duration::from_millis(20);

/// Hands out the entries of one stream, as one consumer of its group.
pub struct RedisSource {
    member: Arc<Member>,
    tasks: Mutex<Tasks>,
}

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
        if settings
            .url
            .encryption()
            .is_some_and(|(verifies, _)| !verifies)
        {
            log::warn!(
                "the certificate of Redis is not looked at (ssl_cert_reqs=none): who can redirect the traffic can \
                 read and change it redis.server={}",
                settings.url
            );
        }
        Ok(Self {
            member: Arc::new(Member::new(settings)),
            tasks: Mutex::default(),
        })
    }

    /// The state of the stream as the source last saw it; the handle may outlive the source.
    pub fn stats(&self) -> RedisStats {
        self.member.stats.clone()
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        lock(&self.tasks)
    }

    /// Starts the keeper unless it runs; it ends with the thread that it was started on.
    fn ensure_keeper(&self) {
        let mut tasks = self.tasks();
        if tasks.keeper.as_ref().is_none_or(AbortHandle::is_finished) {
            tasks.keeper = Some(self.member.start_keeper());
        }
    }

    fn ensure_fetch(&self, permit: Permit) {
        let mut reading = self.member.reading();
        if reading.is_fetching || reading.is_stopping {
            return;
        }
        reading.is_fetching = true;
        drop(reading);
        let task = tokio::spawn(fetch::begin(Arc::clone(&self.member), permit));
        self.tasks().fetch = Some(task.abort_handle());
    }

    /// The answer to a read, if there is one at once; `None` if something has to be fetched first.
    fn take(&self, permit: Permit) -> Option<Result<Chunk, SourceError>> {
        let mut reading = self.member.reading();
        if reading.is_closed {
            return Some(Ok(Chunk::nothing(More::Ended)));
        }
        let more = reading.more;
        if let Some(chunk) = reading.pending.hand_out(permit, more) {
            self.member.handed_out.notify_waiters();
            return Some(Ok(chunk));
        }
        match reading.outcome.take() {
            Some(Err(error)) => Some(Err(error)),
            _ if reading.is_stopping && !reading.is_fetching => {
                Some(Ok(Chunk::nothing(More::Ended)))
            }
            Some(Ok(Outcome::Nothing)) => Some(Ok(Chunk::nothing(More::Later))),
            Some(Ok(Outcome::Misplaced(what))) => {
                Some(Err(SourceError::Unavailable { what, source: None }))
            }
            Some(Ok(Outcome::Some)) | None => None,
        }
    }

    async fn changed(&self) {
        let changed = self.member.changed.notified();
        if self.member.reading().is_stopping {
            // A read that waits in Redis cannot be taken back, so its reply is awaited, and hastened.
            select(pin!(changed), pin!(self.unblock_reads())).await;
        } else {
            changed.await;
        }
    }

    /// A user may be forbidden to do this, and Redis may be away: then the read takes its time.
    async fn unblock_reads(&self) {
        while self.unblock_read().await.is_ok() {
            sleep(UNBLOCK_EVERY).await;
        }
        std::future::pending().await
    }

    async fn unblock_read(&self) -> RedisResult<()> {
        let Some(id) = self.member.connections.reader_id() else {
            return Ok(());
        };
        self.member.commands().await?.unblock(id).await
    }

    async fn send_receipts(&self, receipts: &[Receipt]) -> Result<(), SourceError> {
        let ids = {
            let mut reading = self.member.reading();
            if reading.is_closed {
                return Ok(());
            }
            reading.pending.commit(receipts)
        };
        self.send_committed(&ids).await
    }

    async fn send_committed(&self, ids: &[StreamId]) -> Result<(), SourceError> {
        if ids.is_empty() {
            return Ok(());
        }
        let sent = async {
            let mut commands = self.member.commands().await?;
            self.member.acknowledge(&mut commands, ids).await
        };
        sent.await
            .map_err(|error| self.member.failed("acknowledging", error))
    }

    /// Ends what runs, sends what is committed, and takes our name off the group if nothing is
    /// pending in it.
    async fn leave(&self) -> Result<(), SourceError> {
        // A read that waits in Redis would take entries in our name after we have left.
        while self.member.reading().is_fetching {
            self.changed().await;
        }
        let committed = self.member.reading().pending.committed();
        if self.send_committed(&committed).await.is_err() {
            // The connection may have gone with the thread that it was opened on.
            self.send_committed(&committed).await?;
        }
        if !self.member.reading().had_joined {
            return Ok(());
        }
        let left_behind = async {
            let mut commands = self.member.commands().await?;
            // A name that never read anything may not be in the group either.
            if commands.remove_own_consumer().await? {
                return Ok(0);
            }
            Ok(commands.own_pending().await?.len())
        };
        let left_behind = left_behind
            .await
            .map_err(|error| self.member.failed("leaving the consumer group", error))?;
        if left_behind > 0 {
            log::info!(
                "some entries stay pending for this consumer; another will claim them entries={left_behind} \
                 redis.server={} redis.consumer={}",
                self.member.server,
                self.member.settings.consumer_name
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
        self.member.stats.warnings()
    }

    fn end_reading(&self) -> bool {
        self.member.reading().is_stopping = true;
        self.member.changed.notify_one();
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
            let mut reading = self.member.reading();
            if !reading.is_closed {
                reading.pending.rewind();
                reading.recover();
            }
            Ok(())
        })
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let was_closed = {
                let mut reading = self.member.reading();
                reading.is_stopping = true;
                std::mem::replace(&mut reading.is_closed, true)
            };
            if was_closed {
                return Ok(());
            }
            if let Some(keeper) = self.tasks().keeper.take() {
                keeper.abort();
            }
            let patience = self.member.settings.block + CLOSE_TIMEOUT;
            let left = timeout(patience, self.leave()).await;
            self.end();
            match left {
                Ok(left) => left,
                Err(_) => Err(SourceError::Unavailable {
                    what: format!(
                        "Redis at {}: leaving the consumer group took too long; what is pending \
                         there will be claimed by another consumer",
                        self.member.server
                    ),
                    source: None,
                }),
            }
        })
    }
}

impl RedisSource {
    fn end(&self) {
        {
            let mut reading = self.member.reading();
            reading.is_stopping = true;
            reading.is_closed = true;
        }
        let tasks = std::mem::take(&mut *self.tasks());
        for task in [tasks.keeper, tasks.fetch].into_iter().flatten() {
            task.abort();
        }
        self.member.connections.reset();
        self.member.tell_the_rest();
        self.member.reading().pending.clear();
        self.member.changed.notify_one();
    }
}

impl Drop for RedisSource {
    fn drop(&mut self) {
        self.end();
    }
}
