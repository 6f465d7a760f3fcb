//! Source: HTTP and WebSocket routes that fill an [`intake`](super::intake), for any actix-web app.
//!
//! - `POST /api/events` takes a list of events and answers 204 once all of them are durable.
//! - `WS /api/events/in` takes one event a message and answers a ping once everything that came
//!   before it on that connection is durable.
//!
//! Nothing that was admitted is withdrawn when a client goes away: it may come again, and joins
//! what waits.
//!
//! Memory: the intake's bounds, and `max_buffered_bytes` for bodies and large messages on their way
//! in, twice where texts are copied out of a body. Each connection has 16 KiB for its small
//! message, beside the buffers of actix-http.
//!
//! The server that mounts the routes bounds connections, heads, and clients that read nothing.
//!
//! Positions are the same for every request: a dead letter is recognised by source, position and
//! text, and a client that did not hear of the outcome sends the same text in another request.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::ALLOW;
use actix_web::{HttpResponse, web};
use bytestring::ByteString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::delivery::{Content, Entry, Position};
use crate::event::{EventLimits, ParseError, Received, ReceivedEvent};
use crate::rate_limited_log::RateLimitedLog;
use crate::retention::Retention;
use crate::settings::{As, LongerThanZero, Size};

use super::intake::Intake;

mod auth;
mod buffers;
mod frames;
mod list;
mod out;
mod pongs;
mod post;
mod socket;

use buffers::{Buffers, Patience};
use pongs::TotalWaiting;

pub use auth::AuthString;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use frames::{CutMessages, cut_messages};
pub(crate) use out::MAX_LOOKED_BACK_BYTES;
pub use out::OutRoutes;

/// How often it is logged that a WebSocket was not let in: often enough to be seen while it goes on,
/// too seldom to fill a disk.
const REFUSED_EVERY: Duration = Duration::from_secs(10);

/// Texts longer than this are parsed by a thread for blocking work: on the connections' thread
/// they would hold up everybody else on it for milliseconds.
const MAX_INLINE_BYTES: usize = 256 * 1024;

const DEFAULT_MAX_BYTES: NonZeroUsize = NonZeroUsize::new(64 << 20).unwrap();
const DEFAULT_MAX_BUFFERED_BYTES: NonZeroUsize = NonZeroUsize::new(128 << 20).unwrap();

/// What the routes demand of clients, and how much they take in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// `user:password` that clients must send (Basic, or in the WebSocket's first message); guards all but
    /// the two health paths.
    #[serde(rename = "auth_string", with = "As::<Option<AuthString>>")]
    #[schemars(example = "user:password")]
    pub auth: Option<AuthString>,
    /// How long a body, or a large message on a WebSocket, may take from its first byte to its last; longer
    /// suits slow links, shorter gives the room for buffers back sooner.
    #[serde(with = "As::<LongerThanZero>")]
    pub body_timeout: Duration,
    /// The largest request body; larger ones are refused with 413. Raise it for larger lists, at that much
    /// memory a request.
    #[serde(with = "As::<Size>")]
    pub max_body_bytes: NonZeroUsize,
    /// The largest message on a WebSocket (64 MiB); a larger one closes the connection.
    #[serde(skip)]
    pub max_frame_bytes: NonZeroUsize,
    /// The largest single event by HTTP or WebSocket. A larger one by HTTP is refused with 422, and its list with it;
    /// one by WebSocket becomes a dead letter, which holds its text. With `http.publish` neither is published, and
    /// the WebSocket is closed with 1009.
    #[serde(with = "As::<Size>")]
    pub max_event_bytes: NonZeroUsize,
    /// Request bodies and WebSocket messages beyond 16 KiB that are being received, all together, by what
    /// has come of them; beyond it requests get 503 and WebSockets are read no further. At least the
    /// largest single one.
    #[serde(with = "As::<Size>")]
    pub max_buffered_bytes: NonZeroUsize,
    /// What is kept; a request is told of its events that are older than that. `None`, the default,
    /// tells of none.
    #[serde(skip)]
    pub retention: Option<Retention>,
    /// Whether what the store refuses becomes a dead letter (`true`). Where none is kept, as on the way to a bus, a
    /// request with such an event gets 422, and a WebSocket is closed.
    #[serde(skip)]
    pub keeps_letters: bool,
    /// How long a request waits for its commit before it gets 503; longer rides out longer outages, with
    /// more clients waiting. A body that comes to rest for so long is given up as well.
    #[serde(with = "As::<LongerThanZero>")]
    pub request_timeout: Duration,
    /// How long a WebSocket may take to authenticate (10 s).
    #[serde(skip)]
    pub auth_timeout: Duration,
    /// How often a WebSocket is pinged, which finds out who has gone without a word (20 s).
    #[serde(skip)]
    pub ping_every: Duration,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            auth: None,
            body_timeout: Duration::from_secs(120),
            max_body_bytes: DEFAULT_MAX_BYTES,
            max_frame_bytes: DEFAULT_MAX_BYTES,
            max_event_bytes: DEFAULT_MAX_BYTES,
            max_buffered_bytes: DEFAULT_MAX_BUFFERED_BYTES,
            retention: None,
            keeps_letters: true,
            request_timeout: Duration::from_secs(30),
            auth_timeout: Duration::from_secs(10),
            ping_every: Duration::from_secs(20),
        }
    }
}

impl HttpSettings {
    fn patience(&self) -> Patience {
        Patience {
            stall: self.request_timeout,
            whole: self.body_timeout,
        }
    }
}

/// The routes; cheap to clone, one value for all of a server's workers.
#[derive(Clone)]
pub struct EventRoutes {
    shared: web::Data<RouteState>,
}

impl EventRoutes {
    /// Routes that fill this intake.
    pub fn new(
        intake: Intake,
        settings: HttpSettings,
        limits: EventLimits,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let largest = settings.max_body_bytes.max(settings.max_frame_bytes);
        let buffered = settings.max_buffered_bytes.max(largest);
        let shared = RouteState {
            intake,
            settings,
            limits,
            clock,
            buffers: Buffers::new(buffered.get(), largest.get()),
            waiting: TotalWaiting::default(),
            post: Position::new("POST /api/events"),
            socket: Position::new("WS /api/events/in"),
            refused: Mutex::new(RateLimitedLog::new(REFUSED_EVERY)),
        };
        Self {
            shared: web::Data::new(shared),
        }
    }

    /// Mounts the routes: `App::new().configure(|app| routes.configure(app))`.
    pub fn configure(&self, app: &mut web::ServiceConfig) {
        app.service(
            web::resource("/api/events")
                .app_data(self.shared.clone())
                .route(web::post().to(post::create))
                .default_service(web::to(post::wrong_method)),
        )
        .service(
            web::resource("/api/events/in")
                .app_data(self.shared.clone())
                .route(web::get().to(socket::connect))
                .default_service(web::to(socket::wrong_method)),
        );
    }
}

struct RouteState {
    intake: Intake,
    settings: HttpSettings,
    limits: EventLimits,
    clock: Arc<dyn Clock>,
    buffers: Arc<Buffers>,
    waiting: TotalWaiting,
    post: Position,
    socket: Position,
    refused: Mutex<RateLimitedLog>,
}

impl RouteState {
    fn parse(&self, text: ByteString) -> Result<ReceivedEvent, ParseError> {
        let limit = self.settings.max_event_bytes;
        if text.len() > limit.get() {
            return Err(ParseError {
                reason: format!(
                    "the event has {} bytes, more than the limit of {limit}",
                    text.len()
                ),
                event_id: None,
            });
        }
        ReceivedEvent::parse(text, &self.limits, Received::Now(self.clock.now()))
    }

    fn entry(&self, position: &Position, content: Content) -> Entry {
        Entry {
            source: Arc::clone(self.intake.name()),
            position: position.clone(),
            content,
        }
    }
}

/// The answer to a request that is not understood, with how it should have been.
fn refuse(status: StatusCode, allow: Option<&'static str>, reason: &str) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    if let Some(allow) = allow {
        response.insert_header((ALLOW, allow));
    }
    response.json(serde_json::json!({ "detail": reason }))
}

/// Cuts one event's text out of its buffer. A slice keeps the whole buffer alive while the event
/// waits, so it must be most of it; a smaller text is copied.
fn cut(buffer: &ByteString, text: &str) -> ByteString {
    if text.len() >= buffer.len() / 2 {
        buffer.slice_ref(text)
    } else {
        ByteString::from(text)
    }
}
