//! Source: a stream of NATS JetStream, read through a durable pull consumer.
//!
//! Any number of processes share the consumer: the server gives each message to one of them, and what a dead one
//! leaves it hands out again once the consumer's `ack_wait` is over. A message is acknowledged once it is durable,
//! and counts as acknowledged once the server has confirmed that. It is never terminated, and given back (`nak`)
//! only when this process lets go of it: at its end, or when the database's primary has changed.
//!
//! Guarantee: every message that this process was given is held, or committed while its acknowledgement is not
//! confirmed, or will be handed out again. A consumer that vanishes is made again and begins with what is in the
//! stream; the store knows what it has. A stream is never made here: how much it keeps, and for how long, says
//! how long an outage may last, and that is the operator's decision.
//!
//! # What can be lost, and is counted
//!
//! The limits of the stream remove messages whether they were read or not. Once a second the consumer's position
//! is held against its number of deliveries and against the first message of the stream; what is missing is counted
//! and logged. A purge while no replica runs leaves no trace.
//!
//! # Why a message's text is kept
//!
//! The server would hand out again only what was given back, perhaps to another replica. The event that is made
//! of a message shares its text, so to keep it until the acknowledgement takes hardly any memory.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::delivery::Receipt;

use super::{Chunk, EventSource, More, Permit, SourceError, lock};

mod apart;
mod api;
mod connection;
mod delivery;
mod failure;
mod fetch;
mod fitness;
mod keeper;
mod member;
mod operator;
mod pending;
mod positions;
mod publisher;
mod settings;
mod stats;
mod url;

use member::Member;

pub use operator::NatsOperator;
pub use publisher::NatsPublisher;
pub use settings::{NatsSettings, NatsSettingsError};
pub use stats::{NatsStats, NatsStatus};
pub use url::NatsUrl;

/// The source's name in dead letters, metrics and logs.
pub const SOURCE_NAME: &str = "nats";

/// How long a close waits for the servers, beyond a read that is under way. With that it is less than a pipeline
/// allows, which would drop the close before it can say what is left.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Hands out the messages of one stream, as one of those who share its consumer.
pub struct NatsSource {
    member: Arc<Member>,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    keeper: Option<AbortHandle>,
    fetch: Option<AbortHandle>,
}

impl NatsSource {
    /// A source that connects with its first read.
    ///
    /// # Errors
    ///
    /// The settings cannot work.
    pub fn new(settings: NatsSettings) -> Result<Self, NatsSettingsError> {
        settings.check()?;
        Ok(Self {
            member: Arc::new(Member::new(settings)),
            tasks: Mutex::default(),
        })
    }

    /// The state of the stream as the source last saw it; the handle may outlive the source.
    pub fn stats(&self) -> NatsStats {
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
            return Some(Ok(chunk));
        }
        match reading.outcome.take() {
            Some(Err(error)) => Some(Err(error)),
            _ if reading.is_stopping && !reading.is_fetching => {
                Some(Ok(Chunk::nothing(More::Ended)))
            }
            Some(Ok(())) => Some(Ok(Chunk::nothing(More::Later))),
            None => None,
        }
    }

    async fn take_back(&self, receipts: &[Receipt]) -> Result<(), SourceError> {
        if self.member.reading().is_closed {
            return Ok(());
        }
        self.member.commit(receipts);
        self.member.send_committed().await
    }

    /// Ends what runs, acknowledges what is committed, and gives back what is not.
    async fn leave(&self) -> Result<(), SourceError> {
        // A request for messages that goes on would take some in our name after we have left.
        while self.member.reading().is_fetching {
            self.member.changed.notified().await;
        }
        if self.member.send_committed().await.is_err() {
            // The connection may have gone with the thread that it was opened on.
            self.member.send_committed().await?;
        }
        let (replies, num_alone) = {
            let mut reading = self.member.reading();
            let first = reading.first_in_stream;
            reading.pending.disown_before(first);
            let replies = reading.pending.release();
            (replies, reading.pending.len())
        };
        let num = replies.len();
        if num_alone > 0 {
            log::error!(
                "events are lost if this process ends now: the stream has removed messages that were read and are \
                 not stored; let it keep more num_lost={num_alone} nats.stream={}",
                self.member.settings.stream
            );
        }
        self.member.give_back(replies).await?;
        if num > 0 {
            log::info!(
                "some messages are given back; another replica will be given them messages={num} nats.stream={}",
                self.member.settings.stream
            );
        }
        Ok(())
    }

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
        self.member.reading().pending.release();
        self.member.changed.notify_one();
    }
}

impl EventSource for NatsSource {
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
                self.member.changed.notified().await;
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
        Box::pin(self.take_back(receipts))
    }

    fn rewind(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            self.member.reading().pending.rewind();
            Ok(())
        })
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            {
                let mut reading = self.member.reading();
                reading.is_stopping = true;
                if reading.is_closed {
                    return Ok(());
                }
            }
            let patience = self.member.settings.block + CLOSE_TIMEOUT;
            let left = timeout(patience, self.leave()).await;
            self.end();
            match left {
                Ok(left) => left,
                Err(_) => Err(SourceError::Unavailable {
                    what: format!(
                        "NATS at {}: letting go of the stream took too long; what is not acknowledged is handed out \
                         again later",
                        self.member.settings.url
                    ),
                    source: None,
                }),
            }
        })
    }
}

impl Drop for NatsSource {
    fn drop(&mut self) {
        self.end();
    }
}
