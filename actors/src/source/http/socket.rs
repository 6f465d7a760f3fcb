//! `WS /api/events/in`: one event a message; a ping is answered once all before it is durable.
//!
//! With the subprotocol `prefect` the first message must be `{"type":"auth","token":…}`; it is
//! answered by `{"type":"auth_success"}`. Older clients do without, and get in only where no auth
//! string is set. A message that is no event becomes a dead letter and the connection stays: a
//! client whose connection is closed would send it again for ever. Where no dead letters are kept, one that is too
//! large closes the connection: it is durable nowhere, and the client must hear of it.

use std::sync::Arc;
use std::time::Duration;

use actix_http::Response;
use actix_http::body::{BodyStream, MessageBody};
use actix_http::ws::{CloseCode, CloseReason, HandshakeError, Message as Outgoing};
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use bytestring::ByteString;
use futures_util::future::{Fuse, FusedFuture, FutureExt};
use serde::Deserialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use crate::access::Access;
use crate::delivery::{Content, Rejection};
use crate::event::ParseError;
use crate::lock::lock;
use crate::source::intake::{Commit, SubmitError};

use super::buffers::Share;
use super::frames::{FrameError, FrameWriter, Gone, Incoming, MessageReader};
use super::pongs::{NoPong, PongQueue};
use super::{MAX_INLINE_BYTES, RouteState};

pub(super) const SUBPROTOCOL: &str = "prefect";

/// The first message holds a token; nobody who is not yet known may fill more memory.
pub(super) const MAX_AUTH_BYTES: usize = 16 * 1024;

/// Events and pings of one connection that wait; see [`PongQueue::is_full`]. Prefect's client
/// pings after 700 events.
const MAX_WAITING: usize = 16 * 1024;

/// How long a client may take to answer a close. Cut off at once, it would often not see why.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn connect(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<RouteState>,
) -> actix_web::Result<HttpResponse> {
    // Any page could open one.
    if let Some(refused) = Access::refuse_foreign(&request) {
        return Ok(refused);
    }
    let mut response = match actix_http::ws::handshake(request.head()) {
        Ok(response) => response,
        Err(error) => return Ok(no_websocket(error, request.path())),
    };
    let with_handshake = offers_subprotocol(&request);
    if with_handshake {
        let subprotocol = HeaderValue::from_static(SUBPROTOCOL);
        response.insert_header((SEC_WEBSOCKET_PROTOCOL, subprotocol));
    } else if shared.settings.auth.is_some() {
        return Ok(HttpResponse::Forbidden().json(serde_json::json!({
            "detail": "an auth string is set, so the subprotocol 'prefect' is required",
        })));
    }
    let shared = shared.into_inner();
    let (writer, body) = FrameWriter::new();
    let connection = Connection {
        reader: MessageReader::new(payload, MAX_AUTH_BYTES, &shared.buffers, &shared.settings),
        writer,
        shared,
        // A host's listener may have no addresses.
        peer: (request.peer_addr()).map_or_else(|| "unknown".to_owned(), |peer| peer.to_string()),
        is_admitted: false,
    };
    log::debug!("websocket opened peer={}", connection.peer);
    actix_web::rt::spawn(connection.run(with_handshake));
    let body = BodyStream::new(body).boxed();
    Ok(response.message_body(body)?.into())
}

pub(super) async fn wrong_method(request: HttpRequest) -> HttpResponse {
    let reason = format!(
        "/api/events/in does not take {}: open a WebSocket there, or send a JSON list of events with \
         POST to /api/events",
        request.method()
    );
    super::refuse(StatusCode::METHOD_NOT_ALLOWED, Some("GET"), &reason)
}

/// A request that opens no WebSocket, or not as it should.
pub(super) fn no_websocket(error: HandshakeError, path: &str) -> HttpResponse {
    let reason = format!(
        "this is no request for a WebSocket ({error}): open one at {path}, version 13, with the \
         subprotocol 'prefect'; or send a JSON list of events with POST to /api/events"
    );
    // Status and headers are those that the protocol wants.
    let protocols: HttpResponse = Response::from(error).map_into_boxed_body().into();
    let mut refused = super::refuse(protocols.status(), None, &reason);
    for (name, value) in protocols.headers() {
        refused.headers_mut().insert(name.clone(), value.clone());
    }
    refused
}

pub(super) fn offers_subprotocol(request: &HttpRequest) -> bool {
    request
        .headers()
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|protocols| protocols.to_str().ok())
        .flat_map(|protocols| protocols.split(','))
        .any(|protocol| protocol.trim() == SUBPROTOCOL)
}

struct Connection {
    reader: MessageReader,
    writer: FrameWriter,
    shared: Arc<RouteState>,
    peer: String,
    is_admitted: bool,
}

#[derive(Debug)]
enum End {
    Gone,
    ClosedByClient(Option<CloseReason>),
    Close(CloseCode, String),
}

impl From<Gone> for End {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        Self::Close(error.close_code(), error.to_string())
    }
}

impl From<SubmitError> for End {
    fn from(error: SubmitError) -> Self {
        Self::Close(CloseCode::Away, error.to_string())
    }
}

impl From<NoPong> for End {
    fn from(error: NoPong) -> Self {
        let code = match error {
            NoPong::NotCommitted(_) => CloseCode::Away,
            NoPong::NotTaken | NoPong::TooLarge { .. } => CloseCode::Size,
        };
        Self::Close(code, error.to_string())
    }
}

impl Connection {
    async fn run(mut self, with_handshake: bool) {
        let mut admitted = Ok(());
        if with_handshake {
            let intake = self.shared.intake.clone();
            admitted = tokio::select! {
                biased;
                admitted = self.admit() => admitted,
                () = intake.stopped() => Err(SubmitError::Closed.into()),
            };
        }
        let end = match admitted {
            Ok(()) => {
                self.is_admitted = true;
                self.receive().await
            }
            Err(end) => end,
        };
        self.end(end).await;
    }

    async fn admit(&mut self) -> Result<(), End> {
        let timeout = self.shared.settings.auth_timeout;
        tokio::time::timeout(timeout, self.authenticate())
            .await
            .unwrap_or_else(|_| Err(refused("the 'auth' message did not come in time")))
    }

    /// Takes the first message. Pings before it are answered at once: Prefect's client tries its
    /// connection so.
    async fn authenticate(&mut self) -> Result<(), End> {
        let message = loop {
            match self.reader.next().await? {
                Some(Incoming::Data(data)) => break data,
                Some(Incoming::Ping(data)) => self.writer.send(Outgoing::Pong(data)).await?,
                Some(Incoming::Pong) => {}
                Some(Incoming::Close(reason)) => return Err(End::ClosedByClient(reason)),
                None => return Err(End::Gone),
            }
        };
        let auth = Auth::read(&message).ok_or_else(|| refused("expected an 'auth' message"))?;
        self.answer(&auth).await
    }

    async fn answer(&mut self, auth: &Auth) -> Result<(), End> {
        auth.check(&self.shared)?;
        let success = ByteString::from_static(r#"{"type":"auth_success"}"#);
        self.writer.send(Outgoing::Text(success)).await?;
        Ok(())
    }

    async fn receive(&mut self) -> End {
        self.reader
            .set_limit(self.shared.settings.max_frame_bytes.get());
        let Err(end) = self.exchange().await;
        end
    }

    async fn exchange(&mut self) -> Result<std::convert::Infallible, End> {
        let keeps_letters = self.shared.settings.keeps_letters;
        let mut pongs = PongQueue::new(MAX_WAITING, self.shared.waiting.clone(), keeps_letters);
        let mut draining = false;
        let mut pings = pings(self.shared.settings.ping_every);
        let mut left_until: Option<Instant> = None;
        // At most one event waits for room: meanwhile nothing is read, and the client feels it.
        let mut submission = std::pin::pin!(Fuse::terminated());
        loop {
            if draining && pongs.is_empty() {
                return Err(SubmitError::Closed.into());
            }
            let reads = !draining && submission.is_terminated() && !pongs.is_full();
            tokio::select! {
                biased;
                due = pongs.next(), if !pongs.is_empty() => {
                    if let Some(data) = due? {
                        self.writer.send(Outgoing::Pong(data)).await?;
                    }
                }
                submitted = &mut submission, if !submission.is_terminated() => match submitted {
                    Ok(Submitted::Event(commit)) => pongs.event(commit),
                    Ok(Submitted::Refused(why)) => pongs.refused(why),
                    Ok(Submitted::Auth(auth)) => self.answer(&auth).await?,
                    // The event was not admitted: the client will not get a pong for it.
                    Err(_closed) => draining = true,
                },
                () = self.shared.intake.stopped(), if !draining => draining = true,
                _ = pings.tick() => self.writer.ping(),
                message = self.reader.next(), if reads => match message? {
                    Some(Incoming::Data(data)) => {
                        let share = self.reader.take_share();
                        let shared = Arc::clone(&self.shared);
                        submission.set(submit(shared, data, share).fuse());
                    }
                    Some(Incoming::Ping(data)) => pongs.ping(data),
                    Some(Incoming::Pong) => {}
                    Some(Incoming::Close(reason)) => return Err(End::ClosedByClient(reason)),
                    None => return Err(End::Gone),
                },
                () = self.writer.gone(), if left_until.is_none() => {
                    // When there is nothing left to read: what came before the end still counts.
                    if reads { return Err(End::Gone) }
                    // It comes again, and again, while the store is away: nobody may stay for ever.
                    pongs.abandon();
                    left_until = Some(Instant::now() + self.shared.settings.request_timeout);
                }
                () = until(left_until), if left_until.is_some() => return Err(End::Gone),
            }
        }
    }

    /// Says good-bye. Messages that were read stay in the pipeline, however the connection ends.
    async fn end(self, end: End) {
        let peer = &self.peer;
        let (reason, wait) = match end {
            End::Gone => {
                log::debug!("websocket gone peer={peer}");
                return;
            }
            End::ClosedByClient(reason) => {
                log::debug!("websocket closed by its client peer={peer}");
                (reason, false)
            }
            End::Close(code, reason) => {
                self.say(code, &reason);
                (Some(CloseReason::from((code, reason))), true)
            }
        };
        let Self {
            reader, mut writer, ..
        } = self;
        // Whether the client reads this and closes in time or not, the connection is over.
        let farewell = async {
            let sent = writer.send(Outgoing::Close(reason)).await;
            if sent.is_ok() && wait {
                reader.discard().await;
            }
        };
        tokio::time::timeout(CLOSE_TIMEOUT, farewell)
            .await
            .unwrap_or(());
    }

    /// Logs why we end it; rate-limited before it was let in, since such a client may come again at
    /// once.
    fn say(&self, code: CloseCode, reason: &str) {
        let (peer, code) = (&self.peer, u16::from(code));
        if self.is_admitted {
            log::info!("websocket closed peer={peer} code={code} reason={reason:?}");
            return;
        }
        match lock(&self.shared.refused).add(1, Instant::now()) {
            Some(num) => log::info!(
                "websocket not let in peer={peer} code={code} reason={reason:?} others={}",
                num - 1
            ),
            None => log::debug!("websocket not let in peer={peer} code={code} reason={reason:?}"),
        }
    }
}

/// When the client is to be pinged: only a write finds out that it has gone while nothing is read.
fn pings(every: Duration) -> Interval {
    let mut pings = interval_at(Instant::now() + every, every);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings
}

/// The end of the time for which is still taken what a client had sent before it went.
async fn until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        sleep_until(deadline).await;
    }
}

enum Submitted {
    Event(Commit),
    Refused(NoPong),
    /// Authentication once more: Prefect's client may reconnect twice at once and authenticate
    /// twice on one connection. The token is answered, and must not become a dead letter.
    Auth(Auth),
}

async fn submit(
    shared: Arc<RouteState>,
    data: Bytes,
    share: Share,
) -> Result<Submitted, SubmitError> {
    let intake = shared.intake.clone();
    let (content, share) = if data.len() > MAX_INLINE_BYTES {
        let shared = Arc::clone(&shared);
        // The share goes along: when this future is dropped, the message stays in memory for a while.
        web::block(move || (shared.event_or_rejection(data), share))
            .await
            .map_err(|_| SubmitError::Closed)?
    } else {
        (shared.event_or_rejection(data), share)
    };
    if let Content::Rejected(rejection) = &content {
        let raw = &rejection.raw;
        if let Some(auth) = Auth::read(raw) {
            return Ok(Submitted::Auth(auth));
        }
        let (num_bytes, limit) = (raw.len(), shared.settings.max_event_bytes);
        if num_bytes > limit.get() && !shared.settings.keeps_letters {
            return Ok(Submitted::Refused(NoPong::TooLarge { num_bytes, limit }));
        }
    }
    let commit = intake
        .submit_when_room(shared.entry(&shared.socket, content))
        .await?;
    drop(share);
    Ok(Submitted::Event(commit))
}

impl RouteState {
    fn event_or_rejection(&self, data: Bytes) -> Content {
        let parsed = match ByteString::try_from(data.clone()) {
            Ok(text) => self.parse(text),
            Err(_) => Err(ParseError {
                reason: "the message is not UTF-8".to_owned(),
                event_id: None,
            }),
        };
        match parsed {
            Ok(event) => Content::Event(event),
            Err(error) => Content::Rejected(Rejection {
                raw: data,
                reason: error.reason,
                event_id: error.event_id,
            }),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Auth {
    r#type: String,
    #[serde(default)]
    token: serde_json::Value,
}

impl Auth {
    /// `None` if the message is another one.
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        if message.len() > MAX_AUTH_BYTES {
            return None;
        }
        let auth: Self = serde_json::from_slice(message).ok()?;
        (auth.r#type == "auth").then_some(auth)
    }

    /// The token, where there is one.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_str().filter(|token| !token.is_empty())
    }

    fn check(&self, shared: &RouteState) -> Result<(), End> {
        let Some(secret) = &shared.settings.auth else {
            return Ok(());
        };
        match self.token() {
            None => Err(refused("a token is required")),
            Some(token) if secret.is(token.as_bytes()) => Ok(()),
            Some(_) => Err(refused("the token is wrong")),
        }
    }
}

fn refused(why: &str) -> End {
    End::Close(CloseCode::Policy, why.to_owned())
}
