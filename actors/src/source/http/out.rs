//! `WS /api/events/out`: events as they are committed, in Prefect's own protocol.
//!
//! After the handshake the client sends a filter, and is sent the events that it asks for: first, if it wants, those
//! of the last quarter of an hour, then new ones. A client that reads too slowly misses some. If its message with the
//! filter says `"missed": true`, it is told how many events of any kind: `{"type":"missed","count":7}`. Any other one
//! is sent away, for Prefect's client knows no such message: it connects again, and looks back. `"at_most": 250` asks
//! for no more events a second, the newest of them; the others count as missed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use actix_http::ws::{CloseCode, CloseReason, Item, Message as Outgoing};
use actix_web::body::{BodyStream, MessageBody as _};
use actix_web::http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout, timeout_at};
use uuid::Uuid;

use super::HttpSettings;
use super::buffers::Buffers;
use super::frames::{FrameWriter, Gone, Incoming, MessageReader};
use super::socket::{Auth, MAX_AUTH_BYTES, SUBPROTOCOL, no_websocket, offers_subprotocol};
use crate::access::Access;
use crate::clock::Clock;
use crate::live::{Live, LiveEvent, LiveEvents, RecentIds, Watching, message_of};
use crate::reader::{
    EventFilter, EventPage, EventReader, MAX_PAGE, MAX_PAGE_BYTES, Order, PageToken, StoredEvent,
};
use crate::store::StoreError;

/// How far back a client may look.
const MAX_BACKFILL: TimeDelta = TimeDelta::minutes(15);

/// So often is looked back for what came meanwhile. Each look is shorter than the one before, unless events come
/// faster than they can be read.
const MAX_LOOKS_BACK: usize = 5;

/// Events are not committed in the order in which they occurred: one may come behind others that occurred so much
/// later.
const COMMITTED_WITHIN: TimeDelta = TimeDelta::seconds(5);

/// Events that are there already are sent together, up to about this size. A larger one is sent in frames of it, so
/// that a client that does not read holds a few of these, however large events are.
const PIECE: usize = 32 * 1024;

/// Pages of clients that look back, and large events of those that read slowly, hold so much at most, all together.
pub(crate) const MAX_LOOKED_BACK_BYTES: usize = 2 * MAX_PAGE_BYTES;

/// A page is held for a client that reads a piece of it in this time.
const READS_WITHIN: Duration = Duration::from_millis(250);

/// A large event is held for so long at most.
const HELD_FOR: Duration = Duration::from_secs(60);

const PAGE_KIB: usize = MAX_PAGE_BYTES / KIB;

const KIB: usize = 1024;

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
    /// KiB of pages and large events that are being sent.
    room: Arc<Semaphore>,
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
            room: Arc::new(Semaphore::new(MAX_LOOKED_BACK_BYTES / KIB)),
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

impl OutState {
    /// Room for a page.
    async fn room(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        let size = u32::try_from(PAGE_KIB).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(size).await;
        // It is never closed.
        room.map_err(|error| StoreError::unavailable(error.to_string()))
    }

    /// The event with room for it and its message, if there is more than a page needs.
    fn hold(&self, live: Arc<LiveEvent>) -> Option<(Arc<LiveEvent>, OwnedSemaphorePermit)> {
        let num_kib = (2 * live.message().len()).div_ceil(KIB);
        if num_kib + PAGE_KIB > self.room.available_permits() {
            return None;
        }
        let room = Arc::clone(&self.room).try_acquire_many_owned(u32::try_from(num_kib).ok()?);
        Some((live, room.ok()?))
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

/// An event that a client has taken a part of.
struct Begun {
    id: Uuid,
    num_sent: usize,
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
        let shared = Arc::clone(&self.shared);
        let end = tokio::select! {
            // What is there already is told first.
            biased;
            talked = self.talk(with_handshake) => match talked {
                Ok(never) => match never {},
                Err(end) => end,
            },
            () = shared.live.ended() => {
                End::Close(CloseCode::Away, "the service is stopping; connect again".to_owned())
            }
        };
        let (reason, wait) = match end {
            End::Gone => return,
            End::Closed(reason) => (reason, false),
            End::Close(code, why) => (Some(CloseReason::from((code, shortened(why)))), true),
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
        let asked = timeout(patience, self.hear()).await;
        let asked =
            asked.unwrap_or_else(|_| Err(protocol("the 'filter' message did not come in time")))?;
        let asked = Asked::read(&asked, self.shared.clock.now())?;
        // Before looking back, so that nothing falls between the two.
        let mut watching = self.shared.live.watch();
        let told = match asked.wants_backfill {
            true => self.look_back(&asked.filter, &mut watching).await?,
            false => RecentIds::default(),
        };
        self.follow(&asked, watching, told).await
    }

    async fn admit(&mut self) -> Result<(), End> {
        let message = self.hear().await?;
        let auth = Auth::read(&message).ok_or_else(|| refused("expected an 'auth' message"))?;
        if !self.shared.access.allows_token(&self.request, auth.token()) {
            return Err(refused("the token is wrong, or missing"));
        }
        self.send(ByteString::from_static(r#"{"type":"auth_success"}"#))
            .await
    }

    /// The client's next message; pings before it are answered. Loses nothing when dropped.
    async fn hear(&mut self) -> Result<Bytes, End> {
        loop {
            let heard = tokio::select! {
                answered = self.writer.send_pong() => {
                    answered?;
                    continue;
                }
                heard = self.reader.next() => heard,
            };
            match heard {
                Ok(Some(Incoming::Data(data))) => return Ok(data),
                Ok(Some(Incoming::Ping(data))) => self.writer.owe_pong(data)?,
                Ok(Some(Incoming::Pong)) => {}
                Ok(Some(Incoming::Close(reason))) => return Err(End::Closed(reason)),
                Ok(None) => return Err(End::Gone),
                Err(error) => return Err(End::Close(error.close_code(), error.to_string())),
            }
        }
    }

    /// Waits for an answer of the database, and hears the client meanwhile.
    async fn wait_for<T>(
        &mut self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, End> {
        let mut answer = pin!(answer);
        loop {
            tokio::select! {
                answer = &mut answer => {
                    return answer.map_err(|error| End::Close(CloseCode::Again, error.to_string()));
                }
                // A message of the client means nothing now.
                heard = self.hear() => if let Err(end) = heard {
                    // The database goes on with the question all the same: the next one has to wait for it.
                    drop(answer.await);
                    return Err(end);
                },
            }
        }
    }

    async fn send(&mut self, json: ByteString) -> Result<(), End> {
        Ok(self.writer.send(Outgoing::Text(json)).await?)
    }

    /// Sends what occurred before, and what has come meanwhile. Where more came than is kept, that is looked back
    /// for again.
    async fn look_back(
        &mut self,
        filter: &EventFilter,
        watching: &mut Watching,
    ) -> Result<RecentIds, End> {
        let shared = Arc::clone(&self.shared);
        let now = shared.clock.now();
        self.wait_for(shared.live.note_what_is_there(&*shared.reader, now))
            .await?;
        let (mut stored, mut told) = (filter.clone(), RecentIds::default());
        for _ in 0..MAX_LOOKS_BACK {
            let newest = self.send_stored(&stored, &mut told).await?;
            if !self.send_waiting(filter, watching, &mut told).await? {
                return Ok(told);
            }
            if let Some(newest) = newest {
                let reached = newest.min(shared.clock.now()) - COMMITTED_WITHIN;
                stored.occurred.since = stored.occurred.since.max(reached);
            }
        }
        let why =
            "events come faster than they can be looked back for; connect again, or ask for fewer";
        Err(End::Close(CloseCode::Again, why.to_owned()))
    }

    /// Sends what was committed meanwhile; whether some of it is no longer kept.
    async fn send_waiting(
        &mut self,
        filter: &EventFilter,
        watching: &mut Watching,
        told: &mut RecentIds,
    ) -> Result<bool, End> {
        let mut is_some_gone = false;
        for _ in 0..watching.num_waiting() {
            match watching.now() {
                Some(Live::Missed(_)) => is_some_gone = true,
                Some(Live::Event(live)) if live.is_asked_for(filter) && told.insert(live.id) => {
                    self.send_live(live).await?;
                }
                Some(Live::Event(_)) => {}
                None => break,
            }
        }
        Ok(is_some_gone)
    }

    /// Sends what is stored, the oldest first, but for what was told already; when the last of it occurred. While the
    /// client does not read, no page is held: it is read again from where the client stands.
    async fn send_stored(
        &mut self,
        filter: &EventFilter,
        told: &mut RecentIds,
    ) -> Result<Option<DateTime<Utc>>, End> {
        let shared = Arc::clone(&self.shared);
        let reader = &shared.reader;
        let mut newest = None;
        let mut begun = None;
        let mut token = Some(PageToken {
            filter: filter.clone(),
            limit: MAX_PAGE,
            total: u64::MAX,
            num_shown: 0,
            after: None,
        });
        while let Some(asked) = token {
            let mut room = self.wait_for(shared.room()).await?;
            let page = self
                .wait_for(reader.page(&asked.filter, asked.part()))
                .await?;
            // Most pages are small, and others have the rest.
            let held = room.split(num_kib(&page));
            drop(room);
            let num_told;
            (num_told, begun) = self.send_page(&page, told, begun).await?;
            let last = page.events[..num_told].last();
            newest = last.map(|event| event.occurred).or(newest);
            if begun.is_none() {
                token = asked.behind(&page);
                continue;
            }
            let after = last.map(StoredEvent::place).or(asked.after);
            token = Some(PageToken { after, ..asked });
            drop((page, held));
            self.writer.all_sent().await?;
        }
        Ok(newest)
    }

    /// Sends a page, as far as the client reads; how many events it has taken, and what it has of the next one.
    async fn send_page(
        &mut self,
        page: &EventPage,
        told: &mut RecentIds,
        mut begun: Option<Begun>,
    ) -> Result<(usize, Option<Begun>), End> {
        for (number, event) in page.events.iter().enumerate() {
            let mut num_sent = match begun.take() {
                Some(begun) if begun.id == event.id => begun.num_sent,
                Some(_) => return Err(too_slow()),
                None if !told.insert(event.id) => continue,
                None => 0,
            };
            let message = message_of(event);
            while num_sent < message.len() {
                let room = timeout(READS_WITHIN, self.writer.room()).await;
                if room.is_err() {
                    let id = event.id;
                    return Ok((number, Some(Begun { id, num_sent })));
                }
                self.writer.send(frame(&message, &mut num_sent)).await?;
            }
        }
        if begun.is_some() {
            return Err(too_slow());
        }
        Ok((page.events.len(), None))
    }

    /// Holds a large event while there is room for it. Otherwise only those who keep it hold it, and where it goes
    /// before the client has taken all of it, the client reads too slowly.
    async fn send_live(&mut self, live: Arc<LiveEvent>) -> Result<(), End> {
        let message = live.message();
        if message.len() <= PIECE {
            return self.send(message.clone()).await;
        }
        let (length, mut num_sent) = (message.len(), 0);
        let kept = Arc::downgrade(&live);
        let mut held = self.shared.hold(live);
        let held_until = Instant::now() + HELD_FOR;
        while num_sent < length {
            if held.is_some() && timeout_at(held_until, self.writer.room()).await.is_err() {
                held = None;
            }
            self.writer.room().await?;
            let live = kept.upgrade().ok_or_else(too_slow)?;
            let frame = frame(live.message(), &mut num_sent);
            drop(live);
            self.writer.send(frame).await?;
        }
        Ok(())
    }

    async fn follow(
        &mut self,
        asked: &Asked,
        watching: Watching,
        told: RecentIds,
    ) -> Result<std::convert::Infallible, End> {
        let every = self.shared.settings.ping_every;
        let mut pings = interval_at(Instant::now() + every, every);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut paced = Paced::new(watching, asked.at_most);
        loop {
            tokio::select! {
                live = paced.next() => self.tell(live, asked, &mut paced, &told).await?,
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
        told: &RecentIds,
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
                Live::Event(live)
                    if live.is_asked_for(&asked.filter) && !told.contains(&live.id) =>
                {
                    paced.count();
                    let message = live.message();
                    if message.len() <= PIECE {
                        let message = Outgoing::Text(message.clone());
                        self.writer.push(message, &mut frames)?;
                    } else {
                        // Those before it first.
                        self.send_frames(&mut frames).await?;
                        self.send_live(live).await?;
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
        }
        self.send_frames(&mut frames).await
    }

    async fn send_frames(&mut self, frames: &mut BytesMut) -> Result<(), End> {
        if frames.is_empty() {
            return Ok(());
        }
        Ok(self.writer.send_frames(frames.split().freeze()).await?)
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

/// The next frame of a text.
fn frame(text: &ByteString, num_sent: &mut usize) -> Outgoing {
    if text.len() <= PIECE {
        *num_sent = text.len();
        return Outgoing::Text(text.clone());
    }
    let from = std::mem::replace(num_sent, text.len().min(*num_sent + PIECE));
    let piece = Bytes::copy_from_slice(&text.as_bytes()[from..*num_sent]);
    Outgoing::Continuation(match from {
        0 => Item::FirstText(piece),
        _ if *num_sent == text.len() => Item::Last(piece),
        _ => Item::Continue(piece),
    })
}

/// What a page holds of the room, which is more than that where one event is larger.
fn num_kib(page: &EventPage) -> usize {
    let num_bytes: usize = page.events.iter().map(StoredEvent::num_bytes).sum();
    num_bytes.div_ceil(KIB).min(PAGE_KIB)
}

fn too_slow() -> End {
    let why = "events were not read in time; connect again and look back";
    End::Close(CloseCode::Again, why.to_owned())
}

fn refused(why: &str) -> End {
    End::Close(CloseCode::Policy, why.to_owned())
}

fn protocol(why: &str) -> End {
    End::Close(CloseCode::Protocol, why.to_owned())
}

/// A close has room for 123 bytes.
fn shortened(mut why: String) -> String {
    let mut end = why.len().min(120);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why.truncate(end);
    why
}
