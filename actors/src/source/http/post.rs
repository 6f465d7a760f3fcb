//! `POST /api/events`: a list of events, answered once it is durable.

use std::fmt::Display;
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_ENCODING, HeaderName, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use bytestring::ByteString;
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::access::Access;
use crate::delivery::{Content, Entry};
use crate::source::encoding::{self, Encoding};
use crate::source::intake::{NotCommitted, SubmitError};

use super::buffers::{Arrival, Late, NoRoom, SMALL_BYTES, Share, grown};
use super::list::{self, ListError};
use super::{AuthString, MAX_INLINE_BYTES, RouteState, cut};

/// Room comes back with the next batch that is written.
const RETRY_SOON: u64 = 1;
/// The store or the service is away: its return takes longer than a batch.
const RETRY_LATER: u64 = 5;

const DEAD_LETTERS: HeaderName = HeaderName::from_static("event-persister-dead-letters");
const OLDER_THAN_RETENTION: HeaderName =
    HeaderName::from_static("event-persister-older-than-retention");

pub(super) async fn create(
    request: HttpRequest,
    body: web::Payload,
    shared: web::Data<RouteState>,
) -> HttpResponse {
    if let Some(auth) = &shared.settings.auth
        && !auth.allows(request.headers())
    {
        return AuthString::unauthorized();
    }
    // A browser sends the body that any page makes up, without asking first where it is plain text.
    if let Some(refused) = Access::refuse_foreign(&request) {
        return refused;
    }
    match take(&request, body, shared.into_inner()).await {
        Ok(stored) => stored.respond(),
        Err(refusal) => refusal.respond(),
    }
}

async fn take(
    request: &HttpRequest,
    body: web::Payload,
    shared: Arc<RouteState>,
) -> Result<Stored, Refusal> {
    let encoding = request.headers().get(CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "compressed bodies are not taken: send the JSON list of events as it is, without \
             Content-Encoding",
        ));
    }
    let body = read(request, body, &shared).await?;
    let timeout = shared.settings.request_timeout;
    let keeps_letters = shared.settings.keeps_letters;
    let intake = shared.intake.clone();
    let list = if body.data.len() > MAX_INLINE_BYTES {
        // The body goes along, and its share of the room with it.
        web::block(move || {
            let body = body;
            shared.events(&body)
        })
        .await
        .map_err(|_| Refusal::busy(SubmitError::Closed, RETRY_LATER))??
    } else {
        let list = shared.events(&body)?;
        // From here on the intake has a bound of its own.
        drop(body);
        list
    };
    let commit = intake.submit(list.entries).map_err(|error| match error {
        SubmitError::Full => Refusal::busy(error, RETRY_SOON),
        SubmitError::TooLarge => Refusal::too_large(error),
        SubmitError::Closed => Refusal::busy(error, RETRY_LATER),
    })?;
    match tokio::time::timeout(timeout, commit).await {
        Ok(Ok(committed)) if committed.dead_letters > 0 && !keeps_letters => {
            Err(Refusal::not_taken(committed.dead_letters))
        }
        Ok(Ok(committed)) => Ok(Stored {
            dead_letters: committed.dead_letters,
            older_than_retention: list.older_than_retention,
        }),
        Ok(Err(not_committed @ NotCommitted)) => Err(Refusal::busy(not_committed, RETRY_LATER)),
        Err(_elapsed) => {
            let what = match keeps_letters {
                true => "stored, since the store",
                false => "published, since the bus",
            };
            let reason = format!(
                "the events are taken but not yet {what} is slow or away; send them again to learn when they are"
            );
            Err(Refusal::busy(reason, RETRY_LATER))
        }
    }
}

/// Every event of a list is durable. Prefect's client knows no other answer than 204, so everything else is
/// told in headers.
struct Stored {
    dead_letters: usize,
    older_than_retention: usize,
}

impl Stored {
    fn respond(&self) -> HttpResponse {
        let mut response = HttpResponse::NoContent();
        for (name, number) in [
            (DEAD_LETTERS, self.dead_letters),
            (OLDER_THAN_RETENTION, self.older_than_retention),
        ] {
            if number > 0 {
                response.insert_header((name, number));
            }
        }
        response.finish()
    }
}

pub(super) async fn wrong_method(request: HttpRequest) -> HttpResponse {
    let reason = format!(
        "/api/events does not take {}: send a JSON list of events with POST, or events one by one by \
         WebSocket at /api/events/in",
        request.method()
    );
    super::refuse(StatusCode::METHOD_NOT_ALLOWED, Some("POST"), &reason)
}

struct ReceivedBody {
    data: Bytes,
    share: Share,
}

async fn read(
    request: &HttpRequest,
    mut payload: web::Payload,
    shared: &RouteState,
) -> Result<ReceivedBody, Refusal> {
    let limit = shared.settings.max_body_bytes.get();
    let too_large = || Refusal::large_body(limit);
    let announced = request
        .headers()
        .get(actix_web::http::header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|announced| announced > limit) {
        return Err(too_large());
    }
    let mut data = Vec::new();
    let mut share = Share::none(&shared.buffers);
    let patience = shared.settings.patience();
    let mut arrival = Arrival::now();
    loop {
        let chunk = tokio::select! {
            biased;
            chunk = payload.next() => chunk,
            late = arrival.late(patience, &share) => return Err(late.into()),
        };
        let Some(chunk) = chunk else { break };
        let chunk =
            chunk.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
        arrival.came();
        let needed = data.len() + chunk.len();
        if needed > limit {
            return Err(too_large());
        }
        if needed > data.capacity() {
            // An announced length counts only where it is small.
            let capacity = match announced {
                Some(announced) if announced <= SMALL_BYTES => announced.max(needed),
                announced => grown(data.capacity(), needed, announced.unwrap_or(limit)),
            };
            // Never waits: a client of HTTP knows how to come again. So much every connection may have.
            if capacity > SMALL_BYTES {
                share.grow_or_refuse(capacity)?;
            }
            data.reserve_exact(capacity - data.len());
        }
        data.extend_from_slice(&chunk);
    }
    data.shrink_to_fit();
    Ok(ReceivedBody {
        data: data.into(),
        share,
    })
}

struct EventList {
    entries: Vec<Entry>,
    older_than_retention: usize,
}

impl RouteState {
    /// The text of a body, which may be in any encoding of Unicode that JSON ever had, as in Prefect's
    /// server.
    fn text(&self, body: &ReceivedBody) -> Result<(ByteString, Option<Share>), Refusal> {
        let (encoding, mark) = encoding::detect(&body.data);
        let wrong = || Refusal::not_json(format_args!("the body is not {}", encoding.name()));
        let bytes = body.data.slice(mark..);
        if encoding == Encoding::Utf8 {
            let text = ByteString::try_from(bytes).map_err(|_| wrong())?;
            return Ok((text, None));
        }
        // Known before it takes any room, so that a body which can never be taken is refused for good.
        let num_bytes = encoding.decoded_len(&bytes).ok_or_else(wrong)?;
        let limit = self.settings.max_body_bytes.get();
        if num_bytes > limit {
            return Err(Refusal::large_body(limit));
        }
        let share = body.share.beside(num_bytes)?;
        let text = encoding.decode(&bytes).ok_or_else(wrong)?;
        Ok((ByteString::from(text), Some(share)))
    }

    fn events(&self, body: &ReceivedBody) -> Result<EventList, Refusal> {
        let (text, _decoded) = self.text(body)?;
        let now = self.clock.now();
        let mut older_than_retention = 0;
        let elements = list::split(&text, self.intake.max_events())?;
        let mut entries = Vec::with_capacity(elements.len());
        let mut invalid = Vec::new();
        for (index, element) in elements.into_iter().enumerate() {
            match self.parse(cut(&text, element)) {
                Ok(event) => {
                    let retention = self.settings.retention.as_ref();
                    if retention.is_some_and(|kept| kept.is_over(event.occurred, &event.event, now))
                    {
                        older_than_retention += 1;
                    }
                    entries.push(self.entry(&self.post, Content::Event(event)));
                }
                Err(error) => {
                    if list::syntax_error(element).is_some() {
                        let what =
                            format_args!("the body is not JSON (in the event at index {index})");
                        return Err(Refusal::not_json(what));
                    }
                    invalid.push(Invalid {
                        index: Some(index),
                        reason: error.reason,
                    });
                }
            }
        }
        if invalid.is_empty() {
            Ok(EventList {
                entries,
                older_than_retention,
            })
        } else {
            Err(Refusal::invalid(&invalid))
        }
    }
}

/// One event that is wrong, or the body as a whole.
#[derive(Debug, Serialize)]
struct Invalid {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    reason: String,
}

/// Why a request is refused; nothing of it was taken unless the reason says so.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    detail: Json,
    retry_after: Option<u64>,
}

impl From<Late> for Refusal {
    fn from(late: Late) -> Self {
        let reason = format!("the body {late}; send it again, or in smaller portions");
        Self::new(StatusCode::REQUEST_TIMEOUT, reason)
    }
}

impl From<NoRoom> for Refusal {
    fn from(no_room: NoRoom) -> Self {
        match no_room {
            NoRoom::Now => Self::busy("too many large requests at once", RETRY_SOON),
            NoRoom::Ever => Self::too_large(
                "there is no room for the body and its text in UTF-8; send it in UTF-8, or in smaller \
                 portions",
            ),
        }
    }
}

impl From<ListError> for Refusal {
    fn from(error: ListError) -> Self {
        match error {
            ListError::NotJson { .. } => Self::not_json(error),
            ListError::TooLong { .. } => Self::too_large(error),
            ListError::NotAList => Self::invalid(&[Invalid {
                index: None,
                reason: error.to_string(),
            }]),
        }
    }
}

impl Refusal {
    fn new(status: StatusCode, detail: impl Into<Json>) -> Self {
        Self {
            status,
            detail: detail.into(),
            retry_after: None,
        }
    }

    fn not_json(what: impl Display) -> Self {
        let reason = format!("{what}; send a JSON list of events, in UTF-8");
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    fn too_large(reason: impl ToString) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, reason.to_string())
    }

    fn large_body(limit: usize) -> Self {
        Self::too_large(format_args!(
            "the body has more than {limit} bytes; send the events in smaller portions"
        ))
    }

    fn invalid(events: &[Invalid]) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, json!(events))
    }

    /// The bus says so only when it is asked: the rest of the list is there.
    fn not_taken(num: usize) -> Self {
        let reason = format!(
            "the bus does not take {num} of these events, which are larger than it allows; all others are published"
        );
        Self::invalid(&[Invalid {
            index: None,
            reason,
        }])
    }

    fn busy(reason: impl ToString, retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, reason.to_string())
        }
    }

    fn respond(self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(seconds) = self.retry_after {
            response.insert_header((RETRY_AFTER, seconds));
        }
        response.json(json!({ "detail": self.detail }))
    }
}
