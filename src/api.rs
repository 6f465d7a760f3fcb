//! The paths that people and their tools ask besides Prefect's: dead letters, the state of everything, and
//! signing in.

use std::sync::Arc;

use actix_web::error::JsonPayloadError;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use event_persister_actors::access::Access;
use event_persister_actors::health::read_only;
use event_persister_actors::read_routes::ReadRoutes;
use event_persister_actors::store::operator::StoreOperator;
use serde::Deserialize;
use serde_json::json;

use crate::wiring::OutRoutes;

mod letters;
mod recent;
mod replays;
mod state;

pub(crate) use replays::Replays;
pub(crate) use state::{StateParts, StateSource};

/// The document of all paths. Written by hand: a test holds it against what is mounted and answered.
const OPENAPI: &str = include_str!("api/openapi.json");

/// Bodies are lists of ids at most.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The paths of one service; one value for all of a listener's workers.
#[derive(Clone)]
pub(crate) struct Api {
    shared: web::Data<Shared>,
    events: ReadRoutes,
    out: OutRoutes,
}

pub(crate) struct Shared {
    access: Access,
    letters: Arc<dyn StoreOperator>,
    replays: Replays,
    state: StateSource,
}

impl Api {
    pub(crate) fn new(
        access: Access,
        events: ReadRoutes,
        out: OutRoutes,
        letters: Arc<dyn StoreOperator>,
        replays: Replays,
        state: StateSource,
    ) -> Self {
        let shared = Shared {
            access,
            letters,
            replays,
            state,
        };
        Self {
            shared: web::Data::new(shared),
            events,
            out,
        }
    }

    /// Mounts all of them.
    pub(crate) fn configure(&self, config: &mut web::ServiceConfig) {
        let resource = |path: &str| {
            web::resource(path).app_data(self.shared.clone()).app_data(
                web::JsonConfig::default()
                    .limit(MAX_BODY_BYTES)
                    .error_handler(|error, _| {
                        let why = match &error {
                            JsonPayloadError::ContentType => {
                                "send JSON, with the header content-type: application/json"
                                    .to_owned()
                            }
                            other => other.to_string(),
                        };
                        let refused = refuse(StatusCode::BAD_REQUEST, &why);
                        actix_web::error::InternalError::from_response(error, refused).into()
                    }),
            )
        };
        let read = |path: &str, route: actix_web::Route| {
            read_only(path, route).app_data(self.shared.clone())
        };
        self.out.configure(config);
        self.events.configure(config);
        config
            .service(read("/api/openapi.json", web::to(openapi)))
            .service(read("/api/status", web::to(state::status)))
            .service(read("/api/dead-letters", web::to(letters::list)))
            .service(resource("/api/dead-letters/replay").route(web::post().to(letters::replay)))
            .service(resource("/api/dead-letters/purge").route(web::post().to(letters::purge)))
            .service(
                read("/api/dead-letters/{id:[0-9]+}", web::to(letters::show)).app_data(
                    // A number that no id can be.
                    web::PathConfig::default().error_handler(|error, _| {
                        let refused = refuse(StatusCode::NOT_FOUND, "no letter has this id");
                        actix_web::error::InternalError::from_response(error, refused).into()
                    }),
                ),
            )
            .service(
                resource("/api/session")
                    .route(web::post().to(sign_in))
                    .route(web::delete().to(sign_out)),
            );
    }
}

impl Shared {
    /// The answer to a request that only looks, where it may not.
    fn refuse_reader(&self, request: &HttpRequest) -> Option<HttpResponse> {
        self.access.refuse(request)
    }

    /// The same for one that changes something.
    fn refuse_writer(&self, request: &HttpRequest) -> Option<HttpResponse> {
        self.refuse_reader(request)
            .or_else(|| Access::refuse_foreign(request))
    }
}

async fn openapi(request: HttpRequest, shared: web::Data<Shared>) -> HttpResponse {
    let answer = || {
        HttpResponse::Ok()
            .content_type("application/json")
            .body(OPENAPI)
    };
    shared.refuse_reader(&request).unwrap_or_else(answer)
}

#[derive(Deserialize)]
struct Credentials {
    #[serde(default)]
    user: String,
    password: String,
}

async fn sign_in(
    request: HttpRequest,
    given: web::Json<Credentials>,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let Credentials { user, password } = given.into_inner();
    Access::refuse_foreign(&request)
        .unwrap_or_else(|| shared.access.sign_in(&request, &user, &password))
}

async fn sign_out(request: HttpRequest) -> HttpResponse {
    Access::refuse_foreign(&request).unwrap_or_else(|| Access::sign_out(&request))
}

/// An answer of this moment.
fn fresh(body: &impl serde::Serialize) -> HttpResponse {
    let mut answer = HttpResponse::Ok().json(body);
    let no_store = HeaderValue::from_static("no-store");
    answer.headers_mut().insert(CACHE_CONTROL, no_store);
    answer
}

fn refuse(status: StatusCode, reason: &str) -> HttpResponse {
    HttpResponse::build(status).json(json!({ "exception_message": reason }))
}
