//! The two health paths, for an actix-web app of the host.
//!
//! - `GET /api/health` answers `true` while the process is alive, as Prefect's own server does.
//! - `GET /api/ready` answers 200 while events that are sent are stored, and 503 otherwise. The body is the
//!   pipeline's [`PipelineStatus`].
//!
//! ```no_run
//! # use actix::prelude::*;
//! # use actix_web::App;
//! # use event_persister_actors::health::HealthRoutes;
//! # use event_persister_actors::pipeline::PipelineActor;
//! # fn mount(pipeline: Addr<PipelineActor>) {
//! let health = HealthRoutes::new(pipeline);
//! let app = App::new().configure(|config| health.configure(config));
//! # drop(app);
//! # }
//! ```

use std::sync::Arc;
use std::time::Duration;

use actix::{Addr, MailboxError};
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, guard, web};
use futures_util::future::LocalBoxFuture;
use serde_json::json;
use tokio::time::timeout;

use crate::messages::Status;
use crate::pipeline::PipelineActor;
use crate::status::PipelineStatus;

/// Whether the process is alive.
pub const HEALTH_PATH: &str = "/api/health";
/// Whether events that are sent are stored.
pub const READY_PATH: &str = "/api/ready";

const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// The status, once it is known; an error where nobody is left to tell it.
pub type Asked = LocalBoxFuture<'static, Result<PipelineStatus, MailboxError>>;

type Ready = Arc<dyn Fn() -> LocalBoxFuture<'static, HttpResponse> + Send + Sync>;

/// The routes; cheap to clone.
#[derive(Clone)]
pub struct HealthRoutes {
    ready: Ready,
}

impl HealthRoutes {
    /// The health of this pipeline.
    pub fn new(pipeline: Addr<PipelineActor>) -> Self {
        Self::of_status(move || {
            let pipeline = pipeline.clone();
            Box::pin(async move { pipeline.send(Status).await })
        })
    }

    /// The health of whatever has such a status.
    pub fn of_status(ask: impl Fn() -> Asked + Send + Sync + 'static) -> Self {
        Self::with_ready(move || Box::pin(is_ready(ask())))
    }

    /// The health of something else, which answers for its readiness itself.
    pub fn with_ready(
        ready: impl Fn() -> LocalBoxFuture<'static, HttpResponse> + Send + Sync + 'static,
    ) -> Self {
        Self {
            ready: Arc::new(ready),
        }
    }

    /// `App::new().configure(|app| routes.configure(app))` mounts both paths.
    pub fn configure(&self, config: &mut web::ServiceConfig) {
        let ready = Arc::clone(&self.ready);
        config
            .service(read_only(HEALTH_PATH, web::to(is_alive)))
            .service(read_only(READY_PATH, web::to(move || ready())));
    }
}

/// A path that is asked with GET or HEAD.
#[doc(hidden)]
pub fn read_only(path: &str, route: actix_web::Route) -> actix_web::Resource {
    let reads = guard::Any(guard::Get()).or(guard::Head());
    web::resource(path)
        .route(route.guard(reads))
        .default_service(web::to(only_read))
}

async fn only_read(request: HttpRequest) -> HttpResponse {
    let (method, path) = (request.method(), request.path());
    let reason = format!("{method} means nothing at {path}: ask with GET or HEAD");
    let mut refused = HttpResponse::MethodNotAllowed().json(json!({ "exception_message": reason }));
    let allow = HeaderValue::from_static("GET, HEAD");
    refused.headers_mut().insert(ALLOW, allow);
    refused
}

async fn is_alive() -> HttpResponse {
    HttpResponse::Ok().json(true)
}

async fn is_ready(asked: Asked) -> HttpResponse {
    match timeout(ANSWERS_WITHIN, asked).await {
        Ok(Ok(status)) if status.ready => HttpResponse::Ok().json(status),
        Ok(Ok(status)) => HttpResponse::ServiceUnavailable().json(status),
        Ok(Err(_)) => not_ready("the pipeline has stopped"),
        Err(_) => not_ready("the pipeline does not answer"),
    }
}

fn not_ready(reason: &str) -> HttpResponse {
    HttpResponse::ServiceUnavailable().json(json!({ "ready": false, "reason": reason }))
}

#[cfg(test)]
mod tests {
    use actix::prelude::*;
    use actix_web::App;
    use actix_web::http::StatusCode;
    use actix_web::test::{TestRequest, call_service, init_service};

    use super::*;
    use crate::messages::Drain;
    use crate::pipeline::{PipelineParts, PipelineSettings};
    use crate::testing::{MemorySource, MemoryStore};

    #[actix::test]
    async fn a_hosts_app_tells_how_the_pipeline_is() {
        tokio::time::pause();
        let settings = PipelineSettings::default().on_one_thread();
        let source = Arc::new(MemorySource::default());
        let parts = PipelineParts::new(vec![source], MemoryStore::new().open_store()).unwrap();
        let pipeline = PipelineActor::new(settings, parts).start();
        let routes = HealthRoutes::new(pipeline.clone());
        let app = init_service(App::new().configure(|config| routes.configure(config))).await;
        let status =
            async |request: TestRequest| call_service(&app, request.to_request()).await.status();
        assert_eq!(
            status(TestRequest::get().uri(HEALTH_PATH)).await,
            StatusCode::OK
        );
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(
            status(TestRequest::get().uri(READY_PATH)).await,
            StatusCode::OK
        );
        let posted = status(TestRequest::post().uri(READY_PATH)).await;
        assert_eq!(posted, StatusCode::METHOD_NOT_ALLOWED);
        let timeout = Duration::from_secs(1);
        pipeline.send(Drain { timeout }).await.unwrap();
        let drained = status(TestRequest::get().uri(READY_PATH)).await;
        assert_eq!(drained, StatusCode::SERVICE_UNAVAILABLE);
    }
}
