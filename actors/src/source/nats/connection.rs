//! The connection to the servers: made when it is needed, and dropped after a failure.
//!
//! The client connects anew by itself. Here that only serves to find out: what was under way is lost either
//! way, and the files of TLS and credentials count anew with a new client.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::header::{NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use async_nats::{
    Client, ConnectOptions, Event, HeaderMap, Message, Request, RequestError, RequestErrorKind,
    StatusCode, Subject, Subscriber,
};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::source::lock;
use crate::tls;

use super::api::{self, PublishAck, Pull};
use super::delivery::Delivered;
use super::failure::NatsError;
use super::settings::NatsSettings;
use super::url::Login;

/// How long an answer may take: longer than an election among the servers of a stream.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How much later than it should a request for messages may end.
const PULL_GRACE: Duration = Duration::from_secs(1);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that says nothing for twice as long is taken for gone.
const PING_EVERY: Duration = Duration::from_secs(5);

/// How often it is looked whether something is under way.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Between two such looks. Less may be a sign of life of the other side, which answers nothing.
const MORE_THAN_PINGS: u64 = 64;

/// However much is under way, an answer that is not here by then was lost.
const LONGEST: Duration = Duration::from_secs(60);

/// What a server complained of longer ago has nothing to do with a failure of now.
const SAID_LATELY: Duration = Duration::from_secs(10);

/// What the headers of a message that we publish take at most.
const HEADERS_LENGTH: usize = 512;

/// Acknowledgements that are under way at once. More would only wait in memory.
const CONFIRMED_AT_ONCE: usize = 1_000;

const ACK: Bytes = Bytes::from_static(b"+ACK");
const IN_PROGRESS: Bytes = Bytes::from_static(b"+WPI");
const GIVE_BACK: Bytes = Bytes::from_static(b"-NAK");

pub(super) struct Connections {
    pub(super) settings: NatsSettings,
    link: Mutex<Option<Link>>,
    /// Held while a connection is made, so that there is one.
    connecting: tokio::sync::Mutex<()>,
    /// Servers of the cluster that a server told of, and nobody named.
    discovered: Mutex<Vec<String>>,
}

/// A connection, with what is known of its state. Clones share it.
#[derive(Clone)]
pub(super) struct Link {
    client: Client,
    state: Arc<LinkState>,
    api_prefix: Arc<str>,
}

#[derive(Default)]
struct LinkState {
    is_lost: watch::Sender<bool>,
    /// Whether the stream and the consumer were looked at over this connection.
    is_known: AtomicBool,
    /// What the server complained of last, and when.
    said: Mutex<Option<(Instant, String)>>,
}

/// What has gone over a connection.
#[derive(Debug, Clone, Copy, Default)]
struct Traffic {
    bytes_read: u64,
    messages_read: u64,
    bytes_written: u64,
}

impl Traffic {
    /// Whether a large message is under way to us: nothing else comes meanwhile.
    fn is_arriving_since(&self, before: &Self) -> bool {
        self.messages_read == before.messages_read
            && self.bytes_read > before.bytes_read + MORE_THAN_PINGS
    }

    fn is_leaving_since(&self, before: &Self) -> bool {
        self.bytes_written > before.bytes_written + MORE_THAN_PINGS
    }

    fn is_under_way_since(&self, before: &Self) -> bool {
        self.is_arriving_since(before) || self.is_leaving_since(before)
    }
}

/// What a request for messages brings.
pub(super) enum Pulled {
    Message(Delivered, Bytes),
    /// The next message is not here yet.
    Pause,
}

/// How a request for messages ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PullEnd {
    /// As many came as were asked for.
    Full,
    /// There are no more for the moment.
    NoMore,
    /// The next message is larger than what was allowed.
    TooLarge,
    /// The consumer or its leader is gone, or the server did not like it.
    Ended(String),
}

impl Connections {
    pub(super) fn new(settings: NatsSettings) -> Self {
        Self {
            settings,
            link: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            discovered: Mutex::default(),
        }
    }

    pub(super) async fn link(&self) -> Result<Link, NatsError> {
        let _connecting = self.connecting.lock().await;
        if let Some(link) = self.sound_link() {
            return Ok(link);
        }
        let made = self.connect().await?;
        *lock(&self.link) = Some(made.clone());
        Ok(made)
    }

    fn sound_link(&self) -> Option<Link> {
        let link = lock(&self.link);
        link.clone().filter(|link| !link.is_lost())
    }

    /// After a failure: the next use connects anew.
    pub(super) fn reset(&self) {
        lock(&self.link).take();
    }

    async fn connect(&self) -> Result<Link, NatsError> {
        let state = Arc::new(LinkState::default());
        let told = Arc::clone(&state);
        let addresses = self.addresses();
        let mut options = self
            .authenticated()
            .await?
            .name(&self.settings.name)
            .custom_inbox_prefix(&self.settings.inbox_prefix)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_EVERY)
            // For each address twice; then its task ends, if all servers are gone.
            .max_reconnects(addresses.len() * 2)
            .event_callback(move |event| {
                told.hear(event);
                std::future::ready(())
            });
        if let Some(config) = self.tls()? {
            options = options.tls_client_config(config);
        }
        options = options.require_tls(self.wants_tls());
        let client = options
            .connect(addresses)
            .await
            .map_err(NatsError::Connecting)?;
        *lock(&self.discovered) = client.server_info().connect_urls;
        Ok(Link {
            client,
            state,
            api_prefix: self.settings.api_prefix().into(),
        })
    }

    fn addresses(&self) -> Vec<String> {
        let mut addresses = self.settings.url.addresses();
        let scheme = if self.settings.url.tls { "tls" } else { "nats" };
        for host in lock(&self.discovered).iter() {
            let address = format!("{scheme}://{host}");
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    async fn authenticated(&self) -> Result<ConnectOptions, NatsError> {
        let options = ConnectOptions::new();
        if let Some(file) = &self.settings.creds_file {
            let options = options.credentials_file(file).await;
            return options
                .map_err(|error| NatsError::Credentials(format!("{}: {error}", file.display())));
        }
        Ok(match &self.settings.url.login {
            None => options,
            Some(Login::Token(token)) => options.token(token.clone()),
            Some(Login::User { name, password }) => {
                options.user_and_password(name.clone(), password.clone())
            }
        })
    }

    fn wants_tls(&self) -> bool {
        let NatsSettings {
            url,
            ca_file,
            cert_file,
            ..
        } = &self.settings;
        url.tls || ca_file.is_some() || cert_file.is_some()
    }

    /// How to speak TLS. Without any authority that is trusted it is an error only where TLS is insisted upon.
    fn tls(&self) -> Result<Option<rustls::ClientConfig>, NatsError> {
        let files = tls::Files {
            ca: self.settings.ca_file.as_deref(),
            cert: self.settings.cert_file.as_deref(),
            key: self.settings.key_file.as_deref(),
        };
        let versions = tls::Versions::Safe;
        match tls::client(tls::Check::AuthorityAndName, files, versions) {
            Ok(config) => Ok(Some(config)),
            Err(fault) if self.wants_tls() => Err(NatsError::Tls(fault)),
            Err(_) => Ok(None),
        }
    }
}

impl LinkState {
    fn hear(&self, event: Event) {
        match event {
            Event::Disconnected | Event::Closed => {
                self.is_lost.send_replace(true);
            }
            Event::ServerError(error) => {
                log::debug!("the server of NATS complains error={error}");
                *lock(&self.said) = Some((Instant::now(), error.to_string()));
            }
            event => log::debug!("the connection to NATS changes event=\"{event}\""),
        }
    }
}

impl Link {
    fn is_lost(&self) -> bool {
        *self.state.is_lost.borrow()
    }

    /// Never resolves while the connection holds.
    async fn lost(&self) {
        let mut is_lost = self.state.is_lost.subscribe();
        if is_lost.wait_for(|lost| *lost).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn said(&self) -> Option<String> {
        let said = lock(&self.state.said).clone();
        said.and_then(|(when, what)| (when.elapsed() < SAID_LATELY).then_some(what))
    }

    /// Whether nothing was looked at over this connection yet; from now on it counts as looked at.
    pub(super) fn is_new(&self) -> bool {
        !self.state.is_known.swap(true, Ordering::Relaxed)
    }

    fn traffic(&self) -> Traffic {
        let statistics = self.client.statistics();
        Traffic {
            bytes_read: statistics.in_bytes.load(Ordering::Relaxed),
            messages_read: statistics.in_messages.load(Ordering::Relaxed),
            bytes_written: statistics.out_bytes.load(Ordering::Relaxed),
        }
    }

    /// The work, as long as the connection holds and it takes no longer than that, but for a message that is on
    /// its way to us.
    async fn within<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, NatsError> {
        self.while_it_goes_on(patience, Traffic::is_arriving_since, work)
            .await
    }

    async fn while_it_goes_on<T>(
        &self,
        patience: Duration,
        goes_on: fn(&Traffic, &Traffic) -> bool,
        work: impl Future<Output = T>,
    ) -> Result<T, NatsError> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.lost() => Err(NatsError::Lost(self.said())),
            () = self.stands_still(patience, goes_on) => Err(NatsError::TimedOut(patience, self.said())),
        }
    }

    async fn stands_still(&self, patience: Duration, goes_on: fn(&Traffic, &Traffic) -> bool) {
        let began = Instant::now();
        let mut since = began;
        let mut before = self.traffic();
        while let Some(rest) = patience.checked_sub(since.elapsed()) {
            sleep(rest.min(LOOK_EVERY)).await;
            let now = self.traffic();
            if goes_on(&now, &before) && began.elapsed() < LONGEST {
                since = Instant::now();
            }
            before = now;
        }
    }

    async fn request(&self, subject: String, payload: Bytes) -> Result<Message, NatsError> {
        let request = Request::new().payload(payload).timeout(None);
        let answer = self.client.send_request(subject, request);
        let answer = self.within(RESPONSE_TIMEOUT, answer).await?;
        answer.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &RequestError) -> NatsError {
        match error.kind() {
            RequestErrorKind::NoResponders => NatsError::NoResponders,
            RequestErrorKind::TimedOut => NatsError::TimedOut(RESPONSE_TIMEOUT, self.said()),
            RequestErrorKind::InvalidSubject
            | RequestErrorKind::MaxPayloadExceeded
            | RequestErrorKind::Other => NatsError::Lost(self.said()),
        }
    }

    /// Asks JetStream's API.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        what: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<T, NatsError> {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let subject = format!("{}.{what}", self.api_prefix);
        let answer = self.request(subject, body.into()).await?;
        match api::read(&answer.payload) {
            Ok(answer) => answer.map_err(NatsError::Refused),
            Err(error) => Err(NatsError::Unexpected(error.to_string())),
        }
    }

    pub(super) fn server_version(&self) -> String {
        self.client.server_info().version
    }

    /// Has the server acknowledge messages, and tells of each that it has confirmed.
    pub(super) async fn acknowledge(
        &self,
        messages: &[(u64, String)],
        mut confirmed: impl FnMut(u64),
    ) -> Result<(), NatsError> {
        for messages in messages.chunks(CONFIRMED_AT_ONCE) {
            let under_way = messages.iter().map(async |(sequence, reply)| {
                let request = Request::new().payload(ACK).timeout(None);
                let subject = Subject::from(reply.clone());
                let answer = self.client.send_request(subject, request).await;
                answer.map(|_| *sequence)
            });
            let mut under_way: FuturesUnordered<_> = under_way.collect();
            while let Some(answer) = self.within(RESPONSE_TIMEOUT, under_way.next()).await? {
                confirmed(answer.map_err(|error| self.failed(&error))?);
            }
        }
        Ok(())
    }

    /// The largest text that the server takes.
    pub(super) fn max_message(&self) -> usize {
        self.client.max_payload().saturating_sub(HEADERS_LENGTH)
    }

    /// Publishes messages, with their ids if they have any, to a stream. Returns for each that it is there, or why it was
    /// refused.
    ///
    /// A stream drops a message whose id it was given within its window. It may have had another text under that id, or
    /// have removed it since. So such a message is sent once more, without the id: an event that comes twice is stored
    /// once.
    pub(super) async fn publish<'a>(
        &self,
        subject: &str,
        stream: &str,
        messages: impl Iterator<Item = (Option<String>, &'a [u8])>,
    ) -> Result<Vec<Result<(), String>>, NatsError> {
        let max_bytes = self.max_message();
        let under_way = messages.enumerate().map(async |(at, (id, text))| {
            // Its headers count as well.
            if text.len() > max_bytes {
                let reason = format!(
                    "it is larger than the server takes, {max_bytes} bytes beside the headers (max_payload)"
                );
                return Ok((at, Err(reason)));
            }
            let mut taken = self.publish_one(subject, stream, id.as_deref(), text).await?;
            if matches!(taken, Ok(PublishAck { duplicate: true })) {
                taken = self.publish_one(subject, stream, None, text).await?;
            }
            Ok::<_, NatsError>((at, taken.map(|_| ())))
        });
        let mut under_way: FuturesUnordered<_> = under_way.collect();
        let mut published = vec![Ok(()); under_way.len()];
        // A slow line takes its time; each answer, and each byte that leaves, is a sign that it goes on.
        while let Some(answer) = self
            .while_it_goes_on(
                RESPONSE_TIMEOUT,
                Traffic::is_under_way_since,
                under_way.next(),
            )
            .await?
        {
            let (at, taken) = answer?;
            published[at] = taken;
        }
        Ok(published)
    }

    async fn publish_one(
        &self,
        subject: &str,
        stream: &str,
        id: Option<&str>,
        text: &[u8],
    ) -> Result<Result<PublishAck, String>, NatsError> {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert(NATS_MESSAGE_ID, id);
        }
        headers.insert(NATS_EXPECTED_STREAM, stream);
        let request = Request::new()
            .headers(headers)
            .payload(Bytes::copy_from_slice(text))
            .timeout(None);
        let subject = Subject::from(subject.to_owned());
        let answer = self.client.send_request(subject.clone(), request).await;
        let answer = answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => NatsError::Untaken(subject.to_string()),
            _ => self.failed(&error),
        })?;
        match api::read::<PublishAck>(&answer.payload) {
            Ok(Ok(taken)) => Ok(Ok(taken)),
            Ok(Err(refusal)) if refusal.is_about_the_message() => Ok(Err(refusal.to_string())),
            Ok(Err(refusal)) => Err(NatsError::Refused(refusal)),
            Err(error) => Err(NatsError::Unexpected(error.to_string())),
        }
    }

    /// Tells the server that messages are still being worked on.
    pub(super) async fn keep(&self, replies: Vec<String>) -> Result<(), NatsError> {
        self.tell(replies, IN_PROGRESS).await
    }

    /// Has messages handed out again at once, to whoever asks next.
    pub(super) async fn give_back(&self, replies: Vec<String>) -> Result<(), NatsError> {
        self.tell(replies, GIVE_BACK).await
    }

    async fn tell(&self, replies: Vec<String>, what: Bytes) -> Result<(), NatsError> {
        if replies.is_empty() {
            return Ok(());
        }
        let told = async {
            for reply in replies {
                let published = self.client.publish(reply, what.clone()).await;
                published.map_err(|_| NatsError::Lost(self.said()))?;
            }
            let flushed = self.client.flush().await;
            flushed.map_err(|_| NatsError::Lost(self.said()))
        };
        self.within(RESPONSE_TIMEOUT, told).await?
    }

    /// Asks a consumer for messages and hands each on as it comes, until the request has ended.
    pub(super) async fn pull(
        &self,
        stream: &str,
        consumer: &str,
        pull: Pull,
        mut take: impl FnMut(Pulled) -> Result<(), NatsError>,
    ) -> Result<PullEnd, NatsError> {
        let lost = || NatsError::Lost(self.said());
        let inbox = self.client.new_inbox();
        let mut answers: Subscriber = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|_| lost())?;
        let subject = format!("{}.CONSUMER.MSG.NEXT.{stream}.{consumer}", self.api_prefix);
        let body =
            serde_json::to_vec(&pull).map_err(|error| NatsError::Unexpected(error.to_string()))?;
        self.client
            .publish_with_reply(subject, Subject::from(inbox), body.into())
            .await
            .map_err(|_| lost())?;
        let patience = Duration::from_nanos(pull.expires) + PULL_GRACE;
        let mut num = 0;
        while num < pull.batch {
            let answer = match answers.next().now_or_never() {
                Some(answer) => answer,
                None => {
                    take(Pulled::Pause)?;
                    match self.within(patience, answers.next()).await {
                        // The server of a consumer that is gone may say nothing.
                        Err(error @ NatsError::TimedOut(..)) => {
                            return Ok(PullEnd::Ended(error.to_string()));
                        }
                        answer => answer?,
                    }
                }
            };
            let Some(answer) = answer else {
                return Err(lost());
            };
            let delivered = answer.reply.as_deref().and_then(Delivered::of);
            match (delivered, answer.status) {
                // Whatever its headers say: a status among them is of those who published it.
                (Some(delivered), _) => {
                    num += 1;
                    take(Pulled::Message(delivered, answer.payload))?;
                }
                (None, Some(StatusCode::IDLE_HEARTBEAT)) => {}
                (None, None | Some(StatusCode::OK)) => {
                    let what = "a message cannot be acknowledged";
                    return Err(NatsError::Unexpected(what.to_owned()));
                }
                (None, Some(status)) => return Ok(end_of(status, answer.description)),
            }
        }
        Ok(PullEnd::Full)
    }
}

fn end_of(status: StatusCode, description: Option<String>) -> PullEnd {
    let description = description.unwrap_or_default();
    match status {
        StatusCode::NOT_FOUND | StatusCode::TIMEOUT => PullEnd::NoMore,
        StatusCode::REQUEST_TERMINATED if description.contains("Size") => PullEnd::TooLarge,
        StatusCode::NO_RESPONDERS => PullEnd::Ended("no responders".to_owned()),
        _ => PullEnd::Ended(description),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_request_is_understood() {
        let end = |status, description: &str| end_of(status, Some(description.to_owned()));
        let terminated = StatusCode::REQUEST_TERMINATED;
        assert_eq!(end(StatusCode::NOT_FOUND, "No Messages"), PullEnd::NoMore);
        assert_eq!(end(StatusCode::TIMEOUT, "Request Timeout"), PullEnd::NoMore);
        assert_eq!(
            end(terminated, "Message Size Exceeds MaxBytes"),
            PullEnd::TooLarge
        );
        let gone = "Consumer Deleted";
        assert_eq!(end(terminated, gone), PullEnd::Ended(gone.to_owned()));
    }

    #[test]
    fn what_is_under_way_is_waited_for_and_signs_of_life_are_no_answer() {
        let traffic = |bytes_read, messages_read, bytes_written| Traffic {
            bytes_read,
            messages_read,
            bytes_written,
        };
        let before = traffic(1000, 5, 1000);
        assert!(!traffic(1006, 5, 9000).is_arriving_since(&before), "a ping");
        assert!(traffic(9000, 5, 1000).is_arriving_since(&before), "a part");
        let others = traffic(9000, 6, 1000);
        assert!(!others.is_arriving_since(&before), "answers to others");
        assert!(!traffic(1006, 5, 1006).is_under_way_since(&before));
        assert!(traffic(1006, 5, 9000).is_under_way_since(&before));
    }
}
