//! What the listener serves for a shadow: health and metrics as the service has them, and no events.

use std::sync::Arc;

use actix_web::{HttpResponse, web};
use event_persister_actors::health::HealthRoutes;
use futures_util::future::ready;
use serde_json::json;

use super::health::Health;
use super::metrics::ShadowMetrics;
use crate::config::Config;
use crate::http::{ListenerParts, Served};
use crate::wiring;

pub(super) fn listener(config: &Config, health: &Health, metrics: &ShadowMetrics) -> ListenerParts {
    ListenerParts {
        served: Arc::new(Shadowed(health.clone())),
        access: wiring::access(config),
        registry: metrics.registry(),
        refusals: metrics.refusals(),
    }
}

#[derive(Clone)]
struct Shadowed(Health);

impl Served for Shadowed {
    /// It is ready while everything that it compares answers.
    fn health(&self) -> HealthRoutes {
        let Self(health) = self.clone();
        HealthRoutes::with_ready(move || Box::pin(ready(answer(&health))))
    }

    fn mount(&self, config: &mut web::ServiceConfig) {
        config
            .route("/api/events", web::to(takes_nothing))
            .route("/api/events/in", web::to(takes_nothing));
    }
}

fn answer(health: &Health) -> HttpResponse {
    let is_ready = health.is_ready();
    let document = json!({
        "ready": is_ready,
        "shadow": true,
        "reason": health.failure(),
        "components": health.components(),
    });
    if is_ready {
        HttpResponse::Ok().json(document)
    } else {
        HttpResponse::ServiceUnavailable().json(document)
    }
}

async fn takes_nothing() -> HttpResponse {
    HttpResponse::ServiceUnavailable().json(json!({
        "exception_message": "this is a shadow, which writes nothing: send events to Prefect's server",
    }))
}
