//! `POST /api/events`: a list of events, answered once it is durable.

use std::sync::Arc;
use std::time::Duration;

use actix_web::error::PayloadError;
use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_ENCODING, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::delivery::{Content, Entry};
use crate::source::intake::{NotCommitted, SubmitError};

use super::list::{self, ListError};
use super::{AuthString, MAX_INLINE_BYTES, Shared, cut};

/// Room comes back with the next batch that is written.
const RETRY_SOON: u64 = 1;
/// The store or the service is away: its return takes longer than a batch.
const RETRY_LATER: u64 = 5;

pub(super) async fn create(
    request: HttpRequest,
    body: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    match take(&request, body, shared.into_inner()).await {
        Ok(()) => HttpResponse::NoContent().finish(),
        Err(refusal) => refusal.respond(),
    }
}

async fn take(
    request: &HttpRequest,
    body: web::Payload,
    shared: Arc<Shared>,
) -> Result<(), Refusal> {
    admit(request, &shared)?;
    let body = read(request, body, &shared).await?;
    let timeout = shared.settings.request_timeout;
    let intake = shared.intake.clone();
    let entries = if body.data.len() > MAX_INLINE_BYTES {
        // The body goes along, and its bytes of the budget with it.
        web::block(move || shared.entries(&body.data))
            .await
            .map_err(|_| Refusal::busy(SubmitError::Closed, RETRY_LATER))??
    } else {
        shared.entries(&body.data)?
    };
    let commit = intake.submit(entries).map_err(|error| match error {
        SubmitError::Full => Refusal::busy(error, RETRY_SOON),
        SubmitError::TooLarge => Refusal::TooLarge(error.to_string()),
        SubmitError::Closed => Refusal::busy(error, RETRY_LATER),
    })?;
    match tokio::time::timeout(timeout, commit).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(not_committed @ NotCommitted)) => Err(Refusal::busy(not_committed, RETRY_LATER)),
        Err(_elapsed) => Err(Refusal::busy(
            "the events are taken but not yet stored, since the store is slow or away; send them \
             again to learn when they are",
            RETRY_LATER,
        )),
    }
}

/// Only POST brings events.
pub(super) async fn wrong_method(request: HttpRequest) -> HttpResponse {
    let reason = format!(
        "{} means nothing at /api/events: send a JSON list of events with POST, or events one by one by \
         WebSocket at /api/events/in",
        request.method()
    );
    super::refuse(StatusCode::METHOD_NOT_ALLOWED, Some("POST"), &reason)
}

/// What can be told from the head of the request alone.
fn admit(request: &HttpRequest, shared: &Shared) -> Result<(), Refusal> {
    if let Some(auth) = &shared.settings.auth
        && !auth.allows(request.headers())
    {
        return Err(Refusal::Unauthorized);
    }
    let encoding = request.headers().get(CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Refusal::Encoded);
    }
    Ok(())
}

/// A body, and what it takes of the budget for buffers for as long as it lives.
struct Body {
    data: Bytes,
    _buffered: Option<OwnedSemaphorePermit>,
}

async fn read(
    request: &HttpRequest,
    mut payload: web::Payload,
    shared: &Shared,
) -> Result<Body, Refusal> {
    let limit = shared.settings.max_body_bytes.get();
    let too_large = || {
        Refusal::TooLarge(format!(
            "the body has more than {limit} bytes; send the events in smaller portions"
        ))
    };
    let announced = request
        .headers()
        .get(actix_web::http::header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or(0);
    if announced > limit {
        return Err(too_large());
    }
    // Memory that is never written costs nothing: what counts is what arrives.
    let mut data = BytesMut::with_capacity(announced);
    let mut buffered: Option<OwnedSemaphorePermit> = None;
    let until = Instant::now() + shared.settings.body_timeout;
    while let Some(chunk) = next_chunk(&mut payload, until, shared).await? {
        let chunk = chunk.map_err(|error| Refusal::Unreadable(error.to_string()))?;
        if data.len() + chunk.len() > limit {
            return Err(too_large());
        }
        let more = reserve(&shared.buffered, chunk.len())?;
        match &mut buffered {
            Some(buffered) => buffered.merge(more),
            None => buffered = Some(more),
        }
        data.extend_from_slice(&chunk);
    }
    Ok(Body {
        data: data.freeze(),
        _buffered: buffered,
    })
}

/// A client that stops in the middle, or lets a body trickle, must not keep the budget from all
/// others.
async fn next_chunk(
    payload: &mut web::Payload,
    until: Instant,
    shared: &Shared,
) -> Result<Option<Result<Bytes, PayloadError>>, Refusal> {
    let stall_timeout = shared.settings.request_timeout;
    let stalled = Instant::now() + stall_timeout;
    timeout_at(stalled.min(until), payload.next())
        .await
        .map_err(|_elapsed| match stalled < until {
            true => Refusal::Stalled(stall_timeout),
            false => Refusal::Slow(shared.settings.body_timeout),
        })
}

/// Never waits: two bodies that each held half of the budget would wait for each other.
fn reserve(budget: &Arc<Semaphore>, num: usize) -> Result<OwnedSemaphorePermit, Refusal> {
    let num = u32::try_from(num).unwrap_or(u32::MAX);
    Arc::clone(budget)
        .try_acquire_many_owned(num)
        .map_err(|_| Refusal::busy("too many large requests at once", RETRY_SOON))
}

impl Shared {
    /// Every event of a body, or all that is wrong with it.
    fn entries(&self, body: &Bytes) -> Result<Vec<Entry>, Refusal> {
        let text = ByteString::try_from(body.clone())
            .map_err(|_| Refusal::NotJson("the body is not UTF-8".to_owned()))?;
        let elements = list::split(&text, self.intake.max_events())?;
        let mut entries = Vec::with_capacity(elements.len());
        let mut invalid = Vec::new();
        for (index, element) in elements.into_iter().enumerate() {
            match self.parse(cut(&text, element)) {
                Ok(event) => entries.push(self.entry(&self.post, Content::Event(event))),
                Err(error) => {
                    if list::syntax_error(element).is_some() {
                        let what = format!("the body is not JSON (in the event at index {index})");
                        return Err(Refusal::NotJson(what));
                    }
                    invalid.push(Invalid {
                        index: Some(index),
                        reason: error.reason,
                    });
                }
            }
        }
        if invalid.is_empty() {
            Ok(entries)
        } else {
            Err(Refusal::Invalid(invalid))
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
enum Refusal {
    Unauthorized,
    Encoded,
    Unreadable(String),
    Stalled(Duration),
    Slow(Duration),
    NotJson(String),
    TooLarge(String),
    Invalid(Vec<Invalid>),
    Busy { reason: String, retry_after: u64 },
}

impl From<ListError> for Refusal {
    fn from(error: ListError) -> Self {
        let reason = error.to_string();
        match error {
            ListError::NotJson { .. } => Self::NotJson(reason),
            ListError::TooLong { .. } => Self::TooLarge(reason),
            ListError::NotAList => Self::Invalid(vec![Invalid {
                index: None,
                reason,
            }]),
        }
    }
}

impl Refusal {
    fn busy(reason: impl ToString, retry_after: u64) -> Self {
        Self::Busy {
            reason: reason.to_string(),
            retry_after,
        }
    }

    fn respond(self) -> HttpResponse {
        let (status, reason) = match self {
            Self::Unauthorized => return AuthString::unauthorized(),
            Self::Invalid(detail) => {
                return HttpResponse::UnprocessableEntity()
                    .json(serde_json::json!({ "detail": detail }));
            }
            Self::Busy {
                reason,
                retry_after,
            } => {
                return HttpResponse::ServiceUnavailable()
                    .insert_header((RETRY_AFTER, retry_after))
                    .json(serde_json::json!({ "detail": reason }));
            }
            Self::Encoded => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "compressed bodies are not taken: send the JSON list of events as it is, without \
                 Content-Encoding"
                    .to_owned(),
            ),
            Self::Stalled(timeout) => (
                StatusCode::REQUEST_TIMEOUT,
                format!("the body stopped in its middle for {timeout:?}; send it again"),
            ),
            Self::Slow(timeout) => (
                StatusCode::REQUEST_TIMEOUT,
                format!("the body was not there after {timeout:?}; send smaller portions"),
            ),
            Self::Unreadable(reason) => (StatusCode::BAD_REQUEST, reason),
            Self::NotJson(reason) => (
                StatusCode::BAD_REQUEST,
                format!("{reason}; send a JSON list of events, in UTF-8"),
            ),
            Self::TooLarge(reason) => (StatusCode::PAYLOAD_TOO_LARGE, reason),
        };
        HttpResponse::build(status).json(serde_json::json!({ "detail": reason }))
    }
}
