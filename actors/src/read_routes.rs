//! Stored events, for an actix-web app of the host: Prefect's routes, and one that Prefect has not.
//!
//! - `POST /api/events/filter` and `GET /api/events/filter/next` list events page by page.
//! - `POST /api/events/count-by/{day|time|event|resource}` counts them.
//! - `GET /api/events/{id}` is one event.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use actix_web::App;
//! # use event_persister_actors::access::Access;
//! # use event_persister_actors::clock::SystemClock;
//! # use event_persister_actors::read_routes::ReadRoutes;
//! # use event_persister_actors::reader::EventReader;
//! # fn mount(reader: Arc<dyn EventReader>) {
//! let clock = Arc::new(SystemClock);
//! let routes = ReadRoutes::new(reader, Access::new(None, clock.clone()), clock);
//! let app = App::new().configure(|app| routes.configure(app));
//! # drop(app);
//! # }
//! ```
//!
//! # Memory
//!
//! Two answers are made at a time, each of at most [`MAX_PAGE_BYTES`] twice over; answers that are being sent hold
//! [`MAX_UNSENT_BYTES`] together. A client that reads slowly holds up others that read, and none that write.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix_web::body::SizedStream;
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CACHE_CONTROL, ContentType, HeaderValue, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use uuid::Uuid;

use crate::access::Access;
use crate::clock::Clock;
use crate::health::read_only;
use crate::live::MAX_KEPT_BYTES;
use crate::reader::{
    CountRequest, EventPage, EventReader, MAX_PAGE_BYTES, MAX_READERS, PageRequest, PageToken,
    Part, Problems,
};
use crate::source::http::MAX_LOOKED_BACK_BYTES;
use crate::store::StoreError;

/// The largest body of a request: a filter of some thousand names.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Answers that wait for their clients hold so much at most, all together.
pub const MAX_UNSENT_BYTES: usize = 2 * MAX_PAGE_BYTES;

/// So much is in memory for all who read: rows and their JSON while answers are made, answers that are being sent,
/// pages of those who look back, and events that are told live, each also as it is told.
pub const MAX_READING_BYTES: usize = 2 * MAX_READERS * MAX_PAGE_BYTES
    + MAX_UNSENT_BYTES
    + MAX_LOOKED_BACK_BYTES
    + 2 * MAX_KEPT_BYTES;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a request waits until others have been answered.
const WAITS_FOR_OTHERS: Duration = Duration::from_secs(10);

/// An answer is sent in parts of this size.
const PART: usize = 64 * 1024;

const KIB: usize = 1024;

/// The routes; cheap to clone, one value for all of a server's workers.
#[derive(Clone)]
pub struct ReadRoutes {
    shared: web::Data<Shared>,
}

struct Shared {
    reader: Arc<dyn EventReader>,
    access: Access,
    clock: Arc<dyn Clock>,
    /// Answers that are being made.
    turns: Semaphore,
    /// KiB of answers that are being sent.
    room: Arc<Semaphore>,
}

impl ReadRoutes {
    /// Serves what this reader finds to those who may ask.
    pub fn new(reader: Arc<dyn EventReader>, access: Access, clock: Arc<dyn Clock>) -> Self {
        let shared = Shared {
            reader,
            access,
            clock,
            turns: Semaphore::new(MAX_READERS),
            room: Arc::new(Semaphore::new(MAX_UNSENT_BYTES / KIB)),
        };
        Self {
            shared: web::Data::new(shared),
        }
    }

    /// Mounts the routes.
    pub fn configure(&self, app: &mut web::ServiceConfig) {
        let post = |path: &str, route: actix_web::Route| {
            web::resource(path)
                .app_data(self.shared.clone())
                .route(route)
                .default_service(web::to(only_post))
        };
        let get = |path: &str, route: actix_web::Route| {
            read_only(path, route).app_data(self.shared.clone())
        };
        app.service(post("/api/events/filter", web::post().to(filter)))
            .service(post(
                "/api/events/count-by/{countable}",
                web::post().to(count),
            ))
            .service(get("/api/events/filter/next", web::to(next)))
            .service(get("/api/events/{id:[0-9a-fA-F-]{32,36}}", web::to(one)));
    }
}

async fn only_post(request: HttpRequest) -> HttpResponse {
    let (method, path) = (request.method(), request.path());
    let reason = format!("{method} means nothing at {path}: ask with POST");
    let mut refused = sentence(StatusCode::METHOD_NOT_ALLOWED, &reason);
    let allow = HeaderValue::from_static("POST");
    refused.headers_mut().insert(ALLOW, allow);
    refused
}

async fn filter(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let body = match shared.body(&request, payload).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let asked = match PageRequest::parse(&body, shared.clock.now()) {
        Ok(asked) => asked,
        Err(problems) => return invalid(&problems),
    };
    let base = base(&request);
    shared
        .into_inner()
        .answer(move |reader| async move {
            let part = Part {
                limit: asked.limit,
                after: None,
                counts: true,
            };
            let page = reader.page(&asked.filter, part).await?;
            let token = PageToken {
                filter: asked.filter,
                limit: asked.limit,
                total: page.total.unwrap_or_default(),
                num_shown: 0,
                after: None,
            };
            Ok(Some(page_json(token, &page, &base)))
        })
        .await
}

async fn next(request: HttpRequest, shared: web::Data<Shared>) -> HttpResponse {
    if let Some(refused) = shared.access.refuse(&request) {
        return refused;
    }
    let query = web::Query::<HashMap<String, String>>::from_query(request.query_string());
    let given = query
        .ok()
        .and_then(|mut query| query.0.remove("page-token"));
    let Some(token) = given else {
        let problem = json!({
            "type": "missing", "loc": ["query", "page-token"], "msg": "this is missing",
        });
        return refused(&json!([problem]));
    };
    let text = BASE64_URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
    let token = match PageToken::parse(&text) {
        Ok(token) => token,
        Err(error) => return sentence(StatusCode::FORBIDDEN, &error.to_string()),
    };
    let base = base(&request);
    shared
        .into_inner()
        .answer(move |reader| async move {
            let page = reader.page(&token.filter, token.part()).await?;
            Ok(Some(page_json(token, &page, &base)))
        })
        .await
}

async fn count(
    request: HttpRequest,
    payload: web::Payload,
    what: web::Path<String>,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let body = match shared.body(&request, payload).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let now = shared.clock.now();
    let asked = match CountRequest::parse(&what, &body, now) {
        Ok(asked) => asked,
        Err(problems) => return invalid(&problems),
    };
    let countable = match asked.countable(now) {
        Ok(countable) => countable,
        Err(error) => {
            let said = json!({ "detail": error.to_string() });
            return HttpResponse::UnprocessableEntity().json(said);
        }
    };
    shared
        .into_inner()
        .answer(move |reader| async move {
            let counts = reader.count(&asked.filter, &countable).await?;
            // Texts and numbers always are JSON.
            Ok(Some(serde_json::to_string(&counts).unwrap_or_default()))
        })
        .await
}

async fn one(
    request: HttpRequest,
    id: web::Path<String>,
    shared: web::Data<Shared>,
) -> HttpResponse {
    if let Some(refused) = shared.access.refuse(&request) {
        return refused;
    }
    let Ok(id) = Uuid::try_parse(&id) else {
        return sentence(StatusCode::NOT_FOUND, "this is no id of an event");
    };
    shared
        .into_inner()
        .answer(move |reader| async move {
            let event = reader.event(id).await?;
            Ok(event.map(|event| event.to_json()))
        })
        .await
}

impl Shared {
    /// The body of a request that may be answered.
    async fn body(
        &self,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Result<Bytes, HttpResponse> {
        if let Some(refused) = self.access.refuse(request) {
            return Err(refused);
        }
        let body = timeout(BODY_TIMEOUT, payload.to_bytes_limited(MAX_BODY_BYTES));
        match body.await {
            Ok(Ok(Ok(body))) => Ok(body),
            Ok(Ok(Err(_))) | Err(_) => Err(sentence(
                StatusCode::BAD_REQUEST,
                "the body did not come whole",
            )),
            Ok(Err(_)) => {
                let reason = format!("the body is larger than {MAX_BODY_BYTES} bytes");
                Err(sentence(StatusCode::PAYLOAD_TOO_LARGE, &reason))
            }
        }
    }

    /// Reads, and sends what was read. A client that goes away ends neither: the database would go on with
    /// the question all the same, and another one would join it.
    async fn answer<F>(
        self: Arc<Self>,
        read: impl FnOnce(Arc<dyn EventReader>) -> F + 'static,
    ) -> HttpResponse
    where
        F: Future<Output = Result<Option<String>, StoreError>> + 'static,
    {
        let busy = || {
            let mut busy = sentence(
                StatusCode::SERVICE_UNAVAILABLE,
                "others are reading; ask again in a moment",
            );
            busy.headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
            busy
        };
        let answer = actix_web::rt::spawn(async move {
            let waited = timeout(WAITS_FOR_OTHERS, self.turns.acquire()).await;
            let Ok(Ok(turn)) = waited else {
                return busy();
            };
            let json = match read(Arc::clone(&self.reader)).await {
                Ok(Some(json)) => Bytes::from(json),
                Ok(None) => return sentence(StatusCode::NOT_FOUND, "there is no such event"),
                Err(error) => return unavailable(&error),
            };
            let size = json.len().div_ceil(KIB).min(MAX_UNSENT_BYTES / KIB);
            let size = u32::try_from(size).unwrap_or(u32::MAX);
            let room = Arc::clone(&self.room).acquire_many_owned(size);
            let Ok(Ok(room)) = timeout(WAITS_FOR_OTHERS, room).await else {
                return busy();
            };
            drop(turn);
            let length = json.len() as u64;
            // The room is given back with the last part, or when the connection ends.
            let parts = stream::unfold((json, room), |(mut rest, room)| async move {
                let part = rest.split_to(rest.len().min(PART));
                (!part.is_empty()).then_some((Ok::<_, std::io::Error>(part), (rest, room)))
            });
            HttpResponse::Ok()
                .insert_header(ContentType::json())
                .insert_header((CACHE_CONTROL, "no-store"))
                .body(SizedStream::new(length, Box::pin(parts)))
        });
        answer.await.unwrap_or_else(|_| {
            sentence(
                StatusCode::SERVICE_UNAVAILABLE,
                "the answer could not be made",
            )
        })
    }
}

/// A page as Prefect answers it.
fn page_json(token: PageToken, page: &EventPage, base: &str) -> String {
    let total = token.total;
    let mut json = String::from(r#"{"events":["#);
    for (number, event) in page.events.iter().enumerate() {
        if number > 0 {
            json.push(',');
        }
        event.write_json(&mut json);
    }
    let next = token.behind(page).map(|token| {
        let token = BASE64_URL_SAFE_NO_PAD.encode(token.to_json());
        format!("{base}/api/events/filter/next?page-token={token}")
    });
    json.push_str(&format!(
        r#"],"total":{total},"next_page":{}}}"#,
        json!(next)
    ));
    json
}

/// The address under which the client knows us.
fn base(request: &HttpRequest) -> String {
    let connection = request.connection_info();
    format!("{}://{}", connection.scheme(), connection.host())
}

fn invalid(problems: &Problems) -> HttpResponse {
    refused(&json!(problems))
}

fn refused(detail: &serde_json::Value) -> HttpResponse {
    HttpResponse::UnprocessableEntity().json(json!({
        "exception_message": "Invalid request received.",
        "exception_detail": detail,
    }))
}

fn unavailable(error: &StoreError) -> HttpResponse {
    log::warn!(
        "events could not be read error={}",
        crate::status::error_chain(error)
    );
    // Prefect's client asks again after a 503, and the next time would take as long.
    if let StoreError::TooSlow { .. } = error {
        return sentence(StatusCode::GATEWAY_TIMEOUT, &error.to_string());
    }
    let mut answer = sentence(StatusCode::SERVICE_UNAVAILABLE, &error.to_string());
    answer
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn sentence(status: StatusCode, reason: &str) -> HttpResponse {
    HttpResponse::build(status).json(json!({ "exception_message": reason }))
}
