//! This process as one of those who share the consumer: what the reads, the keeper and the callers of the
//! source share.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::delivery::Receipt;
use crate::primary::Primary;
use crate::rate_limited_log::RateLimitedLog;
use crate::source::{More, SourceError, lock};

use super::api::{ConsumerInfo, StoredMessage, StreamInfo, durable};
use super::connection::{Connections, Link};
use super::failure::NatsError;
use super::fitness;
use super::pending::Pending;
use super::positions::{Positions, Seen};
use super::settings::NatsSettings;
use super::stats::NatsStats;

/// A replicated consumer tells what most of its servers know that it has given, a moment later. Shorter would have
/// messages read twice that it only does not tell of yet; those of so long before a server was killed cost an
/// acknowledgement without an answer.
const KNOWN_AFTER: Duration = Duration::from_millis(250);

/// A message is told to be worked on after this part of the time that the server waits: two may be lost.
const PARTS_OF_PATIENCE: u32 = 3;

pub(super) struct Member {
    pub(super) settings: NatsSettings,
    pub(super) stats: NatsStats,
    pub(super) connections: Connections,
    pub(super) changed: Notify,
    /// Held while acknowledgements are sent, so that none is sent twice at once.
    pub(super) acknowledging: tokio::sync::Mutex<()>,
    /// Held during a look, so that looks are taken in in the order in which they were made.
    looking: tokio::sync::Mutex<()>,
    /// Neither of these two is locked across an await, nor while the other is.
    reading: Mutex<Reading>,
    keeping: Mutex<Keeping>,
}

pub(super) struct Reading {
    pub(super) pending: Pending,
    /// Of the last fetch, for the next read.
    pub(super) outcome: Option<Result<(), SourceError>>,
    pub(super) more: More,
    pub(super) is_fetching: bool,
    pub(super) is_stopping: bool,
    pub(super) is_closed: bool,
    /// The consumer was found or made, and nothing has failed since.
    pub(super) has_joined: bool,
    /// It was found or made before.
    pub(super) had_joined: bool,
    pub(super) limits: Limits,
    pub(super) last_read: Instant,
    /// The last read brought some, and left none.
    pub(super) last_was_short: bool,
    /// After how long the server is told that a message is still being worked on.
    pub(super) tell_after: Duration,
    made: Option<Made>,
    primary: Option<Primary>,
}

/// What a request for messages may ask of the consumer; 0 is without a limit.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    pub(super) max_batch: usize,
    pub(super) max_bytes: usize,
    pub(super) max_expires: u64,
}

/// Which stream and which consumer it is: another one may bear the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Made {
    stream: DateTime<Utc>,
    consumer: DateTime<Utc>,
}

#[derive(Default)]
struct Keeping {
    positions: Positions,
    lost: RateLimitedLog,
    /// The number of the oldest message that is not acknowledged, and when it was stored.
    oldest: Option<(u64, Option<u64>)>,
}

pub(super) struct Look {
    pub(super) stream: StreamInfo,
    pub(super) consumer: ConsumerInfo,
}

impl Member {
    pub(super) fn new(settings: NatsSettings) -> Self {
        Self {
            stats: NatsStats::default(),
            connections: Connections::new(settings.clone()),
            changed: Notify::new(),
            acknowledging: tokio::sync::Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            reading: Mutex::new(Reading {
                pending: Pending::default(),
                outcome: None,
                more: More::Later,
                is_fetching: false,
                is_stopping: false,
                is_closed: false,
                has_joined: false,
                had_joined: false,
                limits: Limits::default(),
                last_read: Instant::now(),
                last_was_short: false,
                tell_after: settings.ack_wait / PARTS_OF_PATIENCE,
                made: None,
                primary: None,
            }),
            keeping: Mutex::default(),
            settings,
        }
    }

    pub(super) fn reading(&self) -> MutexGuard<'_, Reading> {
        lock(&self.reading)
    }

    fn keeping(&self) -> MutexGuard<'_, Keeping> {
        lock(&self.keeping)
    }

    /// A connection, with the consumer found or made.
    pub(super) async fn joined(&self) -> Result<Link, NatsError> {
        let link = self.connections.link().await?;
        if !self.reading().has_joined {
            self.look(&link).await?;
        }
        Ok(link)
    }

    /// Looks at the stream and the consumer, which is made if it is missing.
    pub(super) async fn look(&self, link: &Link) -> Result<(), NatsError> {
        let _looking = self.looking.lock().await;
        let asked_at = Instant::now();
        let stream = stream_info(link, &self.settings).await?;
        let consumer = match consumer_info(link, &self.settings).await {
            Err(error) if error.is_missing_consumer() => self.make_consumer(link).await?,
            consumer => consumer?,
        };
        let look = Look { stream, consumer };
        self.enter(&look, asked_at);
        let warnings = fitness::judge(&look.consumer, &self.settings)?;
        let oldest_millis = self.look_for_oldest(link, &look).await;
        self.count(&look, oldest_millis, warnings);
        Ok(())
    }

    async fn make_consumer(&self, link: &Link) -> Result<ConsumerInfo, NatsError> {
        let NatsSettings {
            stream, consumer, ..
        } = &self.settings;
        let what = format!("CONSUMER.DURABLE.CREATE.{stream}.{consumer}");
        let made = link.ask(&what, Some(&durable(&self.settings))).await?;
        log::info!(
            "made the consumer nats.servers={} nats.stream={stream} nats.consumer={consumer}",
            self.settings.url
        );
        Ok(made)
    }

    /// Takes note of the stream and the consumer that are there.
    ///
    /// Numbers of a stream that was made anew begin again: nothing of the old one is acknowledged there.
    ///
    /// A server writes the state of a consumer a moment after it has given messages. One that was killed, or a new
    /// leader, goes on at an older position, and gives what is behind that again. An acknowledgement of such a
    /// message gets no answer from servers since 2.10.26. Some before them take it for a reason to pass over what
    /// lies between, which then nobody is given.
    fn enter(&self, look: &Look, asked_at: Instant) {
        let made = Made {
            stream: look.stream.created,
            consumer: look.consumer.created,
        };
        let config = &look.consumer.config;
        let limit = |limit: i64| usize::try_from(limit).unwrap_or_default();
        let mut reading = self.reading();
        let before = reading.made.replace(made);
        let is_other_stream = before.is_some_and(|before| before.stream != made.stream);
        if is_other_stream {
            reading.pending.release();
        }
        reading.limits = Limits {
            max_batch: limit(config.max_batch),
            max_bytes: limit(config.max_bytes),
            max_expires: config.max_expires,
        };
        reading.tell_after = config.patience() / PARTS_OF_PATIENCE;
        let num_forgotten = match std::mem::replace(&mut reading.has_joined, true) {
            true => 0,
            false => {
                let position = look.consumer.delivered.stream_seq;
                let known_since = asked_at.checked_sub(KNOWN_AFTER).unwrap_or(asked_at);
                reading.pending.withdraw(position, known_since)
            }
        };
        reading.had_joined = true;
        drop(reading);
        if is_other_stream {
            *self.keeping() = Keeping::default();
        }
        if num_forgotten > 0 {
            log::info!(
                "the consumer does not know that it gave some messages, and hands them out again \
                 messages={num_forgotten} nats.stream={}",
                self.settings.stream
            );
        }
        if before.is_some_and(|before| before != made) {
            self.stats.update(|seen| seen.num_rejoined += 1);
            let what = if is_other_stream {
                "the stream was deleted and made anew; what nobody had read of it is lost"
            } else {
                "the consumer had vanished and was made again; everything that is still in the stream is read \
                 once more"
            };
            let NatsSettings {
                url,
                stream,
                consumer,
                ..
            } = &self.settings;
            log::warn!("{what} nats.servers={url} nats.stream={stream} nats.consumer={consumer}");
        }
    }

    fn count(&self, look: &Look, oldest_millis: Option<u64>, mut warnings: Vec<String>) {
        let Seen {
            num_lost,
            went_back_to,
        } = self.keeping().positions.see(&look.stream, &look.consumer);
        let NatsSettings { url, stream, .. } = &self.settings;
        if let Some(last) = went_back_to {
            let misplaced = misplaced(&self.settings, &look.consumer, last);
            log::error!("{misplaced} nats.servers={url} nats.stream={stream}");
            warnings.push(misplaced);
        }
        let own_pending = self.reading().pending.len() as u64;
        self.stats.update(|seen| {
            seen.num_lost += num_lost;
            seen.own_pending = own_pending;
            seen.consumer_pending = look.consumer.num_ack_pending;
            seen.stream_messages = look.stream.state.messages;
            seen.stream_bytes = look.stream.state.bytes;
            seen.lag = look.consumer.num_pending;
            seen.oldest_millis = oldest_millis;
        });
        for warning in self.stats.warn(warnings) {
            log::warn!("{warning} nats.servers={url}");
        }
        let untold = self.keeping().lost.add(num_lost, Instant::now());
        if let Some(num_lost) = untold {
            log::error!(
                "events are lost: the limits of the stream, or a purge, removed messages before they were read (up \
                 to so many); let it keep more, or see why they are not stored in time num_lost={num_lost} \
                 nats.servers={url} nats.stream={stream}"
            );
        }
    }

    /// Finds out when the oldest message was stored that is not acknowledged. It is asked for once.
    async fn look_for_oldest(&self, link: &Link, look: &Look) -> Option<u64> {
        let consumer = &look.consumer;
        let is_idle = consumer.num_pending == 0 && consumer.num_ack_pending == 0;
        let sequence = consumer.ack_floor.stream_seq + 1;
        let known = self.keeping().oldest;
        let stored_at = match known {
            _ if is_idle => None,
            Some((known, stored_at)) if known == sequence => stored_at,
            _ => {
                let held = self.reading().pending.stored_at(sequence);
                held.map(|nanos| nanos / 1_000_000)
            }
        };
        let stored_at = match (is_idle, stored_at) {
            (false, None) => stored_from(link, &self.settings, sequence).await,
            (_, stored_at) => stored_at,
        };
        self.keeping().oldest = Some((sequence, stored_at));
        stored_at
    }

    /// After any failure: a new connection, unless the server answered on a sound one, and nothing is taken for
    /// granted.
    pub(super) fn failed(&self, doing: &str, error: NatsError) -> SourceError {
        if !error.leaves_connection_sound() {
            self.connections.reset();
        }
        self.reading().has_joined = false;
        error.into_source_error(&self.settings, doing)
    }

    /// Takes receipts back; returns whether the primary of the database has changed since the last ones.
    ///
    /// What was written to the one before may be lost there. So nothing that is not acknowledged by now will be:
    /// it comes again.
    pub(super) fn commit(&self, receipts: &[Receipt]) -> Option<Vec<String>> {
        let now = self.settings.primary.get();
        let mut reading = self.reading();
        let before = reading.primary;
        reading.primary = now.or(before);
        if before.is_some() && before != reading.primary {
            return Some(reading.pending.release());
        }
        reading.pending.commit(receipts);
        None
    }

    pub(super) async fn send_committed(&self) -> Result<(), SourceError> {
        let _acknowledging = self.acknowledging.lock().await;
        if !self.reading().pending.has_committed() {
            return Ok(());
        }
        let sent = async {
            let link = self.joined().await?;
            // The stream may have turned out to be another one.
            let committed = self.reading().pending.committed();
            let confirmed = |sequence| self.reading().pending.confirm(sequence);
            link.acknowledge(&committed, confirmed).await
        };
        sent.await
            .map_err(|error| self.failed("acknowledging", error))
    }

    /// Has messages handed out again, by this process or another.
    pub(super) async fn give_back(&self, replies: Vec<String>) -> Result<(), SourceError> {
        if replies.is_empty() {
            return Ok(());
        }
        let given = async { self.connections.link().await?.give_back(replies).await };
        given
            .await
            .map_err(|error| self.failed("giving back what is held", error))
    }

    /// Tells the server of what is held for long.
    pub(super) async fn keep_held(&self) -> Result<(), NatsError> {
        let replies = {
            let mut reading = self.reading();
            let tell_after = reading.tell_after;
            reading.pending.keep(Instant::now(), tell_after)
        };
        if replies.is_empty() {
            return Ok(());
        }
        self.connections.link().await?.keep(replies).await
    }

    /// Tells of losses that the log has not told of yet.
    pub(super) fn tell_the_rest(&self) {
        let untold = self.keeping().lost.rest();
        if let Some(num_lost) = untold {
            log::error!(
                "more events are lost in the same way num_lost={num_lost} nats.servers={} nats.stream={}",
                self.settings.url,
                self.settings.stream
            );
        }
    }
}

pub(super) async fn stream_info(
    link: &Link,
    settings: &NatsSettings,
) -> Result<StreamInfo, NatsError> {
    let what = format!("STREAM.INFO.{}", settings.stream);
    link.ask(&what, None).await
}

pub(super) async fn consumer_info(
    link: &Link,
    settings: &NatsSettings,
) -> Result<ConsumerInfo, NatsError> {
    let NatsSettings {
        stream, consumer, ..
    } = settings;
    let what = format!("CONSUMER.INFO.{stream}.{consumer}");
    link.ask(&what, None).await
}

/// When the first message from this number on was stored, in milliseconds; `None` where nobody says.
pub(super) async fn stored_from(
    link: &Link,
    settings: &NatsSettings,
    sequence: u64,
) -> Option<u64> {
    let what = format!("STREAM.MSG.GET.{}", settings.stream);
    let body = serde_json::json!({ "seq": sequence, "next_by_subj": ">" });
    match link.ask::<StoredMessage>(&what, Some(&body)).await {
        Ok(stored) => u64::try_from(stored.message.time.timestamp_millis()).ok(),
        Err(error) => {
            if !error.is_missing_message() {
                log::debug!("the age of the oldest message is not known error={error}");
            }
            None
        }
    }
}

/// What it means that the consumer is ahead of the stream, and what to do about it.
pub(super) fn misplaced(settings: &NatsSettings, consumer: &ConsumerInfo, last: u64) -> String {
    let NatsSettings {
        stream,
        consumer: name,
        ..
    } = settings;
    format!(
        "the consumer {name} was given messages up to {}, and the stream {stream} ends at {last}: the stream has lost \
         what was published last, in a failover or a restart, and new messages may be taken for old ones; remove the \
         consumer (`nats consumer rm {stream} {name}`), and all that is in the stream is read once more",
        consumer.delivered.stream_seq
    )
}
