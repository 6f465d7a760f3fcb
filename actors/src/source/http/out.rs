//! `WS /api/events/out`: events as they are committed, in Prefect's own protocol.
//!
//! After the handshake the client sends a filter, and is sent the events that it asks for: first, if it wants, those
//! of the last quarter of an hour, then new ones. A client that reads too slowly is told how many events, of any
//! kind, it has missed: `{"type":"missed","count":7}`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use actix_http::ws::{CloseCode, CloseReason, Message as Outgoing};
use actix_web::body::{BodyStream, MessageBody as _};
use actix_web::http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use actix_web::{HttpRequest, HttpResponse, web};
use bytestring::ByteString;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use super::HttpSettings;
use super::buffers::Buffers;
use super::frames::{FrameWriter, Gone, Incoming, MessageReader};
use super::socket::{Auth, MAX_AUTH_BYTES, SUBPROTOCOL, no_websocket, offers_subprotocol};
use crate::access::Access;
use crate::clock::Clock;
use crate::live::{Live, LiveEvents, Watching};
use crate::reader::{EventFilter, EventPage, EventReader, MAX_PAGE, Order, PageToken, Part};

/// How far back a client may look.
const MAX_BACKFILL: TimeDelta = TimeDelta::minutes(15);

/// Events that may come twice, by looking back and live: more than come while somebody looks back.
const MAX_REMEMBERED: usize = 20_000;

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
        let (filter, wants_backfill) = read_filter(&asked, self.shared.clock.now())?;
        // Before looking back, so that nothing falls between the two.
        let watching = self.shared.live.watch();
        let mut told = HashSet::new();
        if wants_backfill {
            self.look_back(&filter, &mut told).await?;
        }
        self.follow(&filter, watching, told).await
    }

    async fn admit(&mut self) -> Result<(), End> {
        let message = self.message().await?;
        let auth = Auth::read(&message).ok_or_else(|| refused("expected an 'auth' message"))?;
        if !self.shared.access.allows_token(&self.request, auth.token()) {
            return Err(refused("the token is wrong, or missing"));
        }
        self.send(r#"{"type":"auth_success"}"#.to_owned()).await
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

    async fn send(&mut self, json: String) -> Result<(), End> {
        Ok(self
            .writer
            .send(Outgoing::Text(ByteString::from(json)))
            .await?)
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
                self.send(event_message(&event.to_json())).await?;
            }
            token = asked.behind(&page);
        }
        Ok(())
    }

    async fn follow(
        &mut self,
        filter: &EventFilter,
        mut watching: Watching,
        mut told: HashSet<Uuid>,
    ) -> Result<std::convert::Infallible, End> {
        let mut pings = interval(self.shared.settings.ping_every);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                live = watching.next() => match live {
                    Live::Missed(count) => {
                        self.send(format!(r#"{{"type":"missed","count":{count}}}"#)).await?;
                    }
                    Live::Event(live) if filter.matches(&live.event) => {
                        if !told.remove(&live.event.id) {
                            self.send(event_message(live.json())).await?;
                        }
                    }
                    // Others have their turn where many events come that nobody here asked for.
                    Live::Event(_) => tokio::task::yield_now().await,
                },
                // A message of the client means nothing now.
                heard = self.hear() => drop(heard?),
                _ = pings.tick() => self.writer.ping(),
            }
        }
    }
}

fn event_message(json: &str) -> String {
    format!(r#"{{"type":"event","event":{json}}}"#)
}

/// The filter of a `filter` message, and whether the client wants what was before.
fn read_filter(message: &[u8], now: DateTime<Utc>) -> Result<(EventFilter, bool), End> {
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
    Ok((filter, message["backfill"].as_bool().unwrap_or(true)))
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
