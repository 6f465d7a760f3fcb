//! `WS /api/events/out`: events as they are committed, in Prefect's own protocol.
//!
//! After the handshake the client sends a filter, and is sent the events that it asks for: first, if it wants, those
//! of the last quarter of an hour, then new ones. A client that reads too slowly misses some. If its message with the
//! filter says `"missed": true`, it is told how many events of any kind: `{"type":"missed","count":7}`. Any other one
//! is sent away, for Prefect's client knows no such message: it connects again, and looks back. `"at_most": 250` asks
//! for no more events a second, the newest of them; the others count as missed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use actix_http::ws::{CloseCode, CloseReason, Message as Outgoing};
use actix_web::body::{BodyStream, MessageBody as _};
use actix_web::http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::BytesMut;
use bytestring::ByteString;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use uuid::Uuid;

use super::HttpSettings;
use super::buffers::Buffers;
use super::frames::{FrameWriter, Gone, Incoming, MessageReader};
use super::socket::{Auth, MAX_AUTH_BYTES, SUBPROTOCOL, no_websocket, offers_subprotocol};
use crate::access::Access;
use crate::clock::Clock;
use crate::live::{Live, LiveEvents, Watching, message_of};
use crate::reader::{EventFilter, EventPage, EventReader, MAX_PAGE, Order, PageToken, Part};

/// How far back a client may look.
const MAX_BACKFILL: TimeDelta = TimeDelta::minutes(15);

/// Events that may come twice, by looking back and live: more than come while somebody looks back.
const MAX_REMEMBERED: usize = 20_000;

/// Events that are there already are sent together, up to about this size.
const PIECE: usize = 32 * 1024;

/// So many are looked at before others have their turn.
const MAX_SEEN: usize = 256;

/// The time in which a client that asks for a pace is told so many events.
const PACE: Duration = Duration::from_secs(1);

/// How long a client may take to answer a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The route; cheap to clone.
#[derive(Clone)]
pub struct OutRoutes {
    shared: web::Data<OutState>,
}

struct OutState {
    live: LiveEvents,
    reader: Arc<dyn EventReader>,
    access: Access,
    clock: Arc<dyn Clock>,
    settings: HttpSettings,
    buffers: Arc<Buffers>,
}

impl OutRoutes {
    /// Serves what is told live, and what this reader finds of before, to those who may ask.
    pub fn new(
        live: LiveEvents,
        reader: Arc<dyn EventReader>,
        access: Access,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let shared = OutState {
            live,
            reader,
            access,
            clock,
            settings: HttpSettings::default(),
            // Messages of clients are small, and need none of it.
            buffers: Buffers::new(MAX_AUTH_BYTES, MAX_AUTH_BYTES),
        };
        Self {
            shared: web::Data::new(shared),
        }
    }

    /// Mounts the route.
    pub fn configure(&self, app: &mut web::ServiceConfig) {
        app.service(
            web::resource("/api/events/out")
                .app_data(self.shared.clone())
                .route(web::get().to(connect)),
        );
    }
}

async fn connect(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<OutState>,
) -> actix_web::Result<HttpResponse> {
    // Any page could open one, and read what is told.
    let refused = Access::refuse_foreign(&request);
    if let Some(refused) = refused.or_else(|| shared.access.refuse_name(&request)) {
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
    } else if let Some(refused) = shared.access.refuse(&request) {
        return Ok(refused);
    }
    let shared = shared.into_inner();
    let (writer, body) = FrameWriter::new();
    let connection = Connection {
        reader: MessageReader::new(payload, MAX_AUTH_BYTES, &shared.buffers, &shared.settings),
        writer,
        request,
        shared,
    };
    actix_web::rt::spawn(connection.run(with_handshake));
    let body = BodyStream::new(body).boxed();
    Ok(response.message_body(body)?.into())
}

struct Connection {
    reader: MessageReader,
    writer: FrameWriter,
    /// For its session.
    request: HttpRequest,
    shared: Arc<OutState>,
}

/// Why a connection is over.
enum End {
    Gone,
    Closed(Option<CloseReason>),
    Close(CloseCode, String),
}

impl From<Gone> for End {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

impl Connection {
    async fn run(mut self, with_handshake: bool) {
        let end = match self.talk(with_handshake).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let (reason, wait) = match end {
            End::Gone => return,
            End::Closed(reason) => (reason, false),
            End::Close(code, why) => (Some(CloseReason::from((code, why))), true),
        };
        let farewell = async {
            let sent = self.writer.send(Outgoing::Close(reason)).await;
            if sent.is_ok() && wait {
                self.reader.discard().await;
            }
        };
        timeout(CLOSE_TIMEOUT, farewell).await.unwrap_or(());
    }

    async fn talk(&mut self, with_handshake: bool) -> Result<std::convert::Infallible, End> {
        let patience = self.shared.settings.auth_timeout;
        if with_handshake {
            timeout(patience, self.admit())
                .await
                .unwrap_or_else(|_| Err(refused("the 'auth' message did not come in time")))?;
        }
        let asked = timeout(patience, self.message()).await;
        let asked =
            asked.unwrap_or_else(|_| Err(protocol("the 'filter' message did not come in time")))?;
        let asked = Asked::read(&asked, self.shared.clock.now())?;
        // Before looking back, so that nothing falls between the two.
        let watching = self.shared.live.watch();
        let mut told = HashSet::new();
        if asked.wants_backfill {
            self.look_back(&asked.filter, &mut told).await?;
        }
        self.follow(&asked, watching, told).await
    }

    async fn admit(&mut self) -> Result<(), End> {
        let message = self.message().await?;
        let auth = Auth::read(&message).ok_or_else(|| refused("expected an 'auth' message"))?;
        if !self.shared.access.allows_token(&self.request, auth.token()) {
            return Err(refused("the token is wrong, or missing"));
        }
        self.send(ByteString::from_static(r#"{"type":"auth_success"}"#))
            .await
    }

    /// The client's next message, whatever else comes before it.
    async fn message(&mut self) -> Result<Vec<u8>, End> {
        loop {
            if let Some(message) = self.hear().await? {
                return Ok(message);
            }
        }
    }

    /// Hears what the client sends next, and answers it if it is a ping.
    async fn hear(&mut self) -> Result<Option<Vec<u8>>, End> {
        match self.reader.next().await {
            Ok(Some(Incoming::Data(data))) => return Ok(Some(data.to_vec())),
            Ok(Some(Incoming::Ping(data))) => self.writer.send(Outgoing::Pong(data)).await?,
            Ok(Some(Incoming::Pong)) => {}
            Ok(Some(Incoming::Close(reason))) => return Err(End::Closed(reason)),
            Ok(None) => return Err(End::Gone),
            Err(error) => return Err(End::Close(error.close_code(), error.to_string())),
        }
        Ok(None)
    }

    async fn send(&mut self, json: ByteString) -> Result<(), End> {
        Ok(self.writer.send(Outgoing::Text(json)).await?)
    }

    /// Sends what occurred before, the oldest first.
    async fn look_back(
        &mut self,
        filter: &EventFilter,
        told: &mut HashSet<Uuid>,
    ) -> Result<(), End> {
        let reader = Arc::clone(&self.shared.reader);
        let mut token = Some(PageToken {
            filter: filter.clone(),
            limit: MAX_PAGE,
            total: u64::MAX,
            num_shown: 0,
            after: None,
        });
        while let Some(asked) = token {
            let part: Part = asked.part();
            let page: EventPage = match reader.page(&asked.filter, part).await {
                Ok(page) => page,
                Err(error) => return Err(End::Close(CloseCode::Again, error.to_string())),
            };
            for event in &page.events {
                if told.len() < MAX_REMEMBERED {
                    told.insert(event.id);
                }
                self.send(message_of(event)).await?;
            }
            token = asked.behind(&page);
        }
        Ok(())
    }

    async fn follow(
        &mut self,
        asked: &Asked,
        watching: Watching,
        mut told: HashSet<Uuid>,
    ) -> Result<std::convert::Infallible, End> {
        let every = self.shared.settings.ping_every;
        let mut pings = interval_at(Instant::now() + every, every);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut paced = Paced::new(watching, asked.at_most);
        loop {
            tokio::select! {
                live = paced.next() => self.tell(live, asked, &mut paced, &mut told).await?,
                // A message of the client means nothing now.
                heard = self.hear() => drop(heard?),
                _ = pings.tick() => self.writer.ping(),
            }
        }
    }

    /// Tells this one, and those behind it that are there already, in one piece.
    async fn tell(
        &mut self,
        first: Live,
        asked: &Asked,
        paced: &mut Paced,
        told: &mut HashSet<Uuid>,
    ) -> Result<(), End> {
        let mut next = Some(first);
        let mut num_seen = 0;
        let mut frames = BytesMut::new();
        while let Some(live) = next {
            match live {
                Live::Missed(count) if asked.hears_missed => {
                    let message = format!(r#"{{"type":"missed","count":{count}}}"#);
                    self.writer
                        .push(Outgoing::Text(message.into()), &mut frames)?;
                }
                Live::Missed(count) => {
                    let why = format!("{count} events were missed; connect again and look back");
                    return Err(End::Close(CloseCode::Again, why));
                }
                Live::Event(live) if asked.filter.matches(&live.event) => {
                    if !told.remove(&live.event.id) {
                        let message = live.message().clone();
                        self.writer.push(Outgoing::Text(message), &mut frames)?;
                        paced.count();
                    }
                }
                Live::Event(_) => {}
            }
            num_seen += 1;
            let has_room = frames.len() < PIECE && num_seen < MAX_SEEN;
            next = if has_room { paced.now() } else { None };
        }
        if frames.is_empty() {
            // Others have their turn where many events come that nobody here asked for.
            tokio::task::yield_now().await;
            return Ok(());
        }
        Ok(self.writer.send_frames(frames.freeze()).await?)
    }
}

/// Who watches, and how much of it may be told in this second.
struct Paced {
    watching: Watching,
    at_most: Option<u64>,
    num_told: u64,
    ends: Instant,
}

impl Paced {
    fn new(watching: Watching, at_most: Option<u64>) -> Self {
        Self {
            watching,
            at_most,
            num_told: 0,
            ends: Instant::now() + PACE,
        }
    }

    /// The next message. Nothing is lost if the future is dropped.
    async fn next(&mut self) -> Live {
        if let Some(at_most) = self.at_most {
            let is_full = self.num_told >= at_most;
            if is_full {
                tokio::time::sleep_until(self.ends).await;
            }
            if Instant::now() >= self.ends {
                self.ends = Instant::now() + PACE;
                self.num_told = 0;
            }
            if is_full {
                let num_skipped = self.watching.skip(at_most);
                if num_skipped > 0 {
                    return Live::Missed(num_skipped);
                }
            }
        }
        self.watching.next().await
    }

    fn now(&mut self) -> Option<Live> {
        let is_full = self.at_most.is_some_and(|at_most| self.num_told >= at_most);
        (!is_full).then(|| self.watching.now())?
    }

    fn count(&mut self) {
        self.num_told += 1;
    }
}

/// What a `filter` message asks for.
struct Asked {
    filter: EventFilter,
    wants_backfill: bool,
    /// Whether it takes a message about what it has missed.
    hears_missed: bool,
    /// Events a second.
    at_most: Option<u64>,
}

impl Asked {
    fn read(message: &[u8], now: DateTime<Utc>) -> Result<Self, End> {
        let message: Value = serde_json::from_slice(message).unwrap_or_default();
        if message["type"] != "filter" {
            return Err(protocol("Expected 'filter' message"));
        }
        let mut filter = EventFilter::parse(&message["filter"], now, "filter")
            .map_err(|problems| protocol(&format!("Invalid filter: {problems}")))?;
        // An end that is not given is none: what is to come occurs later than now.
        if message["filter"]["occurred"]["until"].is_null() {
            filter.occurred.until = DateTime::<Utc>::MAX_UTC;
        }
        filter.occurred.since = filter.occurred.since.max(now - MAX_BACKFILL);
        filter.order = Order::Asc;
        Ok(Self {
            filter,
            wants_backfill: message["backfill"].as_bool().unwrap_or(true),
            hears_missed: message["missed"] == true,
            at_most: message["at_most"].as_u64().filter(|num| *num > 0),
        })
    }
}

fn refused(why: &str) -> End {
    End::Close(CloseCode::Policy, why.to_owned())
}

fn protocol(why: &str) -> End {
    // A close has room for 123 bytes.
    let mut why = why.to_owned();
    let mut end = why.len().min(120);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why.truncate(end);
    End::Close(CloseCode::Protocol, why)
}
