//! This process as one of those who share the consumer: what the reads, the keeper and the callers of the
//! source share.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::{Clock as _, SystemClock};
use crate::delivery::Receipt;
use crate::primary::Primary;
use crate::rate_limited_log::RateLimitedLog;
use crate::source::{More, SourceError, lock};

use super::api::{ConsumerConfig, ConsumerInfo, StoredHead, StoredMessage, StreamInfo, durable};
use super::connection::{Connections, Link};
use super::delivery::Identity;
use super::failure::NatsError;
use super::fitness::{self, Flaw, misplaced};
use super::pending::Pending;
use super::positions::{Ahead, Positions};
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
    /// The consumer was found or made and is fit, and nothing has failed since.
    has_joined: bool,
    /// How often something has failed: a look that began before proves nothing.
    num_doubts: u64,
    /// The highest message that was given before the last failure.
    last_known: Option<Identity>,
    /// It was found or made before.
    pub(super) had_joined: bool,
    pub(super) limits: Limits,
    /// Where the stream began at the last look; 0 where it removes what is acknowledged.
    pub(super) first_in_stream: u64,
    pub(super) last_read: Instant,
    /// The last read brought some, and left none.
    pub(super) last_was_short: bool,
    /// The connection was lost while messages came.
    pub(super) was_cut_off: bool,
    /// The first that was given and was not here after it was lost last.
    pub(super) missing_at_cut_off: Option<u64>,
    /// Since when no request for messages has ended well; `None` if the last one has.
    pub(super) unserved_since: Option<Instant>,
    /// After how long the server is told that a message is still being worked on.
    pub(super) tell_after: Duration,
    made: Option<Made>,
    /// The one that was there when receipts came last.
    primary: Option<Primary>,
    /// Where to give back what another primary may lack.
    to_give_back: Vec<String>,
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
    /// Until what the consumer gave is found to be there again, or the consumer is made anew.
    ahead: Option<Ahead>,
    /// The number of the oldest message that is not acknowledged, and when it was stored.
    oldest: Option<(u64, Option<u64>)>,
}

pub(super) struct Look {
    pub(super) stream: StreamInfo,
    pub(super) consumer: ConsumerInfo,
}

impl Reading {
    /// The stream and the consumer are to be looked at before anything else.
    pub(super) fn doubt(&mut self) {
        self.num_doubts += 1;
        if std::mem::take(&mut self.has_joined) {
            self.last_known = self.pending.highest();
        }
    }

    fn trust(&mut self, num_doubts: u64) {
        if self.num_doubts == num_doubts {
            self.has_joined = true;
            self.last_known = None;
        }
    }
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
                num_doubts: 0,
                last_known: None,
                had_joined: false,
                limits: Limits::default(),
                first_in_stream: 0,
                last_read: Instant::now(),
                last_was_short: false,
                was_cut_off: false,
                missing_at_cut_off: None,
                unserved_since: None,
                tell_after: settings.ack_wait / PARTS_OF_PATIENCE,
                made: None,
                primary: None,
                to_give_back: Vec::new(),
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
        if link.is_new() {
            // Other servers may be there, which know less of the consumer.
            self.reading().doubt();
        }
        if !self.reading().has_joined {
            let _looking = self.looking.lock().await;
            // Another may have looked meanwhile.
            if !self.reading().has_joined {
                self.look_now(&link).await?;
            }
        }
        Ok(link)
    }

    /// Looks at the stream and the consumer, which is made if it is missing.
    pub(super) async fn look(&self, link: &Link) -> Result<(), NatsError> {
        let _looking = self.looking.lock().await;
        self.look_now(link).await
    }

    async fn look_now(&self, link: &Link) -> Result<(), NatsError> {
        let asked_at = Instant::now();
        let num_doubts = self.reading().num_doubts;
        let stream = stream_info(link, &self.settings).await?;
        let consumer = match consumer_info(link, &self.settings).await {
            Err(error) if error.is_missing_consumer() => self.make_consumer(link).await?,
            consumer => consumer?,
        };
        let look = Look { stream, consumer };
        self.enter(&look, asked_at);
        let mut warnings = fitness::judge(&look.consumer, &look.stream.config, &self.settings)?;
        let version = fitness::flaw_of_version(&link.server_version());
        warnings.extend(version.map(Flaw::what_and_remedy));
        self.judge_position(link, &look).await?;
        let oldest = self.look_for_oldest(link, &look).await;
        warnings.extend(oldest.as_ref().err().map(|error| {
            let remedy = error.remedy(&self.settings);
            format!("how old the oldest message is is not known ({error}); {remedy}")
        }));
        self.count(&look, oldest.ok(), warnings);
        self.reading().trust(num_doubts);
        Ok(())
    }

    /// Whether what the consumer gives next comes after what it gave before.
    async fn judge_position(&self, link: &Link, look: &Look) -> Result<(), NatsError> {
        let settings = &self.settings;
        if misplaced(&look.stream, &look.consumer, settings).is_some() {
            // What was published and delivered between the two questions is no fault.
            let stream = stream_info(link, settings).await?;
            if let Some(flaw) = misplaced(&stream, &look.consumer, settings) {
                let ahead = Ahead::new(&stream, &look.consumer, SystemClock.now());
                self.keeping().ahead.get_or_insert(ahead);
                return Err(flaw.into_error());
            }
        }
        if let Some(sequence) = self.find_replaced(link).await? {
            let flaw = fitness::replaced(sequence, &look.stream.config, settings);
            return Err(flaw.into_error());
        }
        self.keeping().ahead = None;
        Ok(())
    }

    /// The number of a message that was given, where another message has it by now. What is not there any more may
    /// have been acknowledged.
    async fn find_replaced(&self, link: &Link) -> Result<Option<u64>, NatsError> {
        let settings = &self.settings;
        let (last_known, ahead) = (self.reading().last_known, self.keeping().ahead);
        if let Some(known) = last_known {
            let of_its_number = stored(link, settings, &json!({ "seq": known.sequence })).await?;
            if of_its_number.is_some_and(|it| it.stored_at() != Some(known.stored_at)) {
                return Ok(Some(known.sequence));
            }
        }
        let Some(ahead) = ahead else {
            return Ok(None);
        };
        let behind = json!({ "seq": ahead.last + 1, "next_by_subj": ">" });
        let first = stored(link, settings, &behind).await?;
        let new = first.filter(|first| ahead.passes_over(first));
        Ok(new.map(|new| new.seq))
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
            reading.pending.disown_all();
        }
        let is_other = before != Some(made);
        let highest = reading.pending.highest();
        if is_other {
            reading.pending.forget_highest();
            reading.last_known = None;
            reading.missing_at_cut_off = None;
        }
        reading.limits = Limits {
            max_batch: limit(config.max_batch),
            max_bytes: limit(config.max_bytes),
            max_expires: config.max_expires,
        };
        reading.tell_after = config.patience() / PARTS_OF_PATIENCE;
        let num_forgotten = match reading.has_joined {
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
        } else if is_other {
            let mut keeping = self.keeping();
            keeping.ahead = None;
            if let Some(highest) = highest {
                keeping.positions.were_given_up_to(highest.sequence);
            }
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

    fn count(&self, look: &Look, oldest: Option<Option<u64>>, mut warnings: Vec<String>) {
        let num_lost = (self.keeping().positions).count_lost(&look.stream, &look.consumer);
        let NatsSettings { url, stream, .. } = &self.settings;
        let (own_pending, num_alone) = {
            let mut reading = self.reading();
            // The others remove what a replica has acknowledged, also one that was given it after us.
            let removes_by_limits_alone = look.stream.config.retention == "limits";
            reading.first_in_stream = match removes_by_limits_alone {
                true => look.stream.state.first_seq,
                false => 0,
            };
            let num_alone = reading.pending.num_before(reading.first_in_stream);
            (reading.pending.len() as u64, num_alone)
        };
        if num_alone > 0 {
            warnings.push(format!(
                "the stream {stream} has removed messages that are read and not yet stored: they are in this process \
                 alone, so do not end it before they are; let the stream keep more"
            ));
        }
        self.stats.update(|seen| {
            seen.num_lost += num_lost;
            seen.own_pending = own_pending;
            seen.consumer_pending = look.consumer.num_ack_pending;
            seen.stream_messages = look.stream.state.messages;
            seen.stream_bytes = look.stream.state.bytes;
            seen.lag = look.consumer.num_pending;
            seen.oldest_millis = oldest.flatten();
            seen.is_oldest_unknown = oldest.is_none();
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
    async fn look_for_oldest(&self, link: &Link, look: &Look) -> Result<Option<u64>, NatsError> {
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
            (false, None) => stored_from(link, &self.settings, &consumer.config, sequence).await?,
            (_, stored_at) => stored_at,
        };
        self.keeping().oldest = Some((sequence, stored_at));
        Ok(stored_at)
    }

    /// After any failure: a new connection, unless the server answered on a sound one, and nothing is taken for
    /// granted.
    pub(super) fn failed(&self, doing: &str, error: NatsError) -> SourceError {
        if !error.leaves_connection_sound() {
            self.connections.reset();
        }
        self.reading().doubt();
        error.into_source_error(&self.settings, doing)
    }

    /// Takes receipts back; what they are of is to be acknowledged.
    pub(super) fn commit(&self, receipts: &[Receipt]) {
        let mut reading = self.reading();
        self.follow_primary(&mut reading);
        reading.pending.commit(receipts);
    }

    /// What was written to the primary before may be lost there. So nothing that is not acknowledged by now will be:
    /// it comes again, and its receipts are void.
    fn follow_primary(&self, reading: &mut Reading) {
        let before = reading.primary;
        reading.primary = self.settings.primary.get().or(before);
        if before.is_none() || before == reading.primary {
            return;
        }
        let replies = reading.pending.release();
        log::warn!(
            "events are written to another primary of the database; what is not acknowledged is read once more \
             messages={} nats.stream={}",
            replies.len(),
            self.settings.stream
        );
        reading.to_give_back.extend(replies);
    }

    pub(super) async fn send_committed(&self) -> Result<(), SourceError> {
        let _acknowledging = self.acknowledging.lock().await;
        {
            let reading = self.reading();
            if !reading.pending.has_committed() && reading.to_give_back.is_empty() {
                return Ok(());
            }
        }
        let sent = async {
            let link = self.joined().await?;
            // By now the stream may be another one, and the primary too.
            let (committed, to_give_back) = {
                let mut reading = self.reading();
                self.follow_primary(&mut reading);
                let to_give_back = std::mem::take(&mut reading.to_give_back);
                (reading.pending.committed(), to_give_back)
            };
            link.give_back(to_give_back).await?;
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

/// When the first message from this number on was stored of those that the consumer is given, in milliseconds;
/// `None` if there is none.
pub(super) async fn stored_from(
    link: &Link,
    settings: &NatsSettings,
    config: &ConsumerConfig,
    sequence: u64,
) -> Result<Option<u64>, NatsError> {
    let first = first_of_each_subject(link, settings, config, sequence).await?;
    let millis = first
        .iter()
        .filter_map(|first| u64::try_from(first.time.timestamp_millis()).ok());
    Ok(millis.min())
}

/// The first message from this number on, of each subject that the consumer is given.
pub(super) async fn first_of_each_subject(
    link: &Link,
    settings: &NatsSettings,
    config: &ConsumerConfig,
    sequence: u64,
) -> Result<Vec<StoredHead>, NatsError> {
    let mut subjects = config.filters();
    if subjects.is_empty() {
        subjects.push(">");
    }
    let mut found = Vec::new();
    for subject in subjects {
        let first = json!({ "seq": sequence, "next_by_subj": subject });
        found.extend(stored(link, settings, &first).await?);
    }
    Ok(found)
}

/// A message that is in the stream; `None` if it is not.
pub(super) async fn stored(
    link: &Link,
    settings: &NatsSettings,
    which: &Value,
) -> Result<Option<StoredHead>, NatsError> {
    let what = format!("STREAM.MSG.GET.{}", settings.stream);
    match link.ask::<StoredMessage>(&what, Some(which)).await {
        Ok(stored) => Ok(Some(stored.message)),
        Err(error) if error.is_missing_message() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::nats::delivery::Delivered;

    #[test]
    fn a_look_that_began_before_a_failure_proves_nothing_nor_does_what_came_after() {
        let member = Member::new(NatsSettings::default());
        let mut reading = member.reading();
        let give = |reading: &mut Reading, sequence: u64| {
            let reply = format!("$JS.ACK.events.persister.1.{sequence}.1.1.0");
            let delivered = Delivered::of(&reply).unwrap();
            reading
                .pending
                .add(delivered, "text".into(), Instant::now());
        };
        let num_doubts = reading.num_doubts;
        reading.trust(num_doubts);
        assert!(reading.has_joined);
        give(&mut reading, 7);
        reading.doubt();
        give(&mut reading, 11);
        reading.doubt();
        reading.trust(num_doubts);
        assert!(!reading.has_joined);
        assert_eq!(reading.last_known.map(|known| known.sequence), Some(7));
    }
}
