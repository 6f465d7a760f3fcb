//! What the listener serves for a shadow: health and metrics as the service has them, and no events.

use std::sync::Arc;

use actix_web::{HttpResponse, web};
use futures_util::future::{LocalBoxFuture, ready};
use serde_json::json;

use super::health::Health;
use super::metrics::ShadowMetrics;
use crate::config::Config;
use crate::http::{Listener, Served};

/// What the listener needs from a shadow.
pub(super) fn listener(config: &Config, health: &Health, metrics: &ShadowMetrics) -> Listener {
    Listener {
        served: Arc::new(Shadowed(health.clone())),
        auth: config.http.routes.auth.clone(),
        registry: metrics.registry(),
        refusals: metrics.refusals(),
    }
}

struct Shadowed(Health);

impl Served for Shadowed {
    /// Whether all that it compares answers.
    fn ready(&self) -> LocalBoxFuture<'static, HttpResponse> {
        let Self(health) = self;
        let is_ready = health.is_ready();
        let document = json!({
            "ready": is_ready,
            "shadow": true,
            "reason": health.failure(),
            "components": health.components(),
        });
        let answer = if is_ready {
            HttpResponse::Ok().json(document)
        } else {
            HttpResponse::ServiceUnavailable().json(document)
        };
        Box::pin(ready(answer))
    }

    fn mount(&self, config: &mut web::ServiceConfig) {
        config
            .route("/api/events", web::to(takes_nothing))
            .route("/api/events/in", web::to(takes_nothing));
    }
}

async fn takes_nothing() -> HttpResponse {
    HttpResponse::ServiceUnavailable().json(json!({
        "exception_message": "this is a shadow, which writes nothing: send events to Prefect's server",
    }))
}
