//! The listener: the event routes, health, and metrics.
//!
//! An auth string guards all but the two health paths. Beyond loopback without one, only those two
//! are there: whoever forgets the auth string opens nothing to the network.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use actix::Addr;
use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, guard, web};
use anyhow::{Context as _, bail};
use event_persister_actors::messages::Status;
use event_persister_actors::pipeline::PipelineActor;
use prometheus::{Encoder as _, Registry, TextEncoder};
use serde_json::json;

use crate::metrics::Refusals;
use crate::wiring::{AuthString, EventRoutes};

mod connection;
mod server;
mod tls;

pub(crate) use server::{Running, start};
pub(crate) use tls::Certificate;

/// What is served to anyone, whatever the load.
const HEALTH_PATHS: [&str; 2] = ["/api/health", "/api/ready"];

/// How long the pipeline may take to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// What the listener needs from the rest.
#[derive(Clone)]
pub(crate) struct Listener {
    pub(crate) pipeline: Addr<PipelineActor>,
    pub(crate) events: EventRoutes,
    /// What requests have to carry, beside those for the two health paths.
    pub(crate) auth: Option<AuthString>,
    /// Whether more than the two health paths is served.
    pub(crate) open: bool,
    pub(crate) registry: Registry,
    pub(crate) refusals: Refusals,
}

/// An address that is resolved and to be bound.
#[derive(Debug)]
pub(crate) struct Place {
    addresses: Vec<SocketAddr>,
}

impl Place {
    /// Looks the host up.
    pub(crate) fn resolve(address: &str) -> anyhow::Result<Self> {
        let addresses: Vec<SocketAddr> = address
            .to_socket_addrs()
            .with_context(|| format!("cannot look up {address} to listen there"))?
            .collect();
        if addresses.is_empty() {
            bail!("{address} has no address to listen at");
        }
        Ok(Self { addresses })
    }

    /// Whether only this machine can connect.
    pub(crate) fn is_loopback(&self) -> bool {
        self.addresses
            .iter()
            .all(|address| address.ip().to_canonical().is_loopback())
    }
}

fn configure(config: &mut web::ServiceConfig, listener: &Listener) {
    config
        .app_data(web::Data::new(listener.clone()))
        .service(readable(HEALTH_PATHS[0], web::to(health)))
        .service(readable(HEALTH_PATHS[1], web::to(ready)));
    if listener.open {
        config.service(readable("/metrics", web::to(metrics)));
        listener.events.configure(config);
        config.default_service(web::to(not_found));
    } else {
        config.default_service(web::to(closed));
    }
}

fn readable(path: &str, route: actix_web::Route) -> actix_web::Resource {
    let reads = guard::Any(guard::Get()).or(guard::Head());
    web::resource(path).route(route.guard(reads))
}

/// The process is alive; Prefect's own answer, for whatever polls it.
async fn health() -> HttpResponse {
    HttpResponse::Ok().json(true)
}

/// Whether events that are sent now will be stored, and how each part is doing.
async fn ready(listener: web::Data<Listener>) -> HttpResponse {
    let status = actix_rt::time::timeout(STATUS_TIMEOUT, listener.pipeline.send(Status)).await;
    match status {
        Ok(Ok(status)) if status.ready => HttpResponse::Ok().json(status),
        Ok(Ok(status)) => HttpResponse::ServiceUnavailable().json(status),
        Ok(Err(_)) => not_ready("the pipeline has stopped"),
        Err(_) => not_ready("the pipeline does not answer"),
    }
}

fn not_ready(reason: &str) -> HttpResponse {
    HttpResponse::ServiceUnavailable().json(json!({ "ready": false, "reason": reason }))
}

async fn metrics(request: HttpRequest, listener: web::Data<Listener>) -> HttpResponse {
    expose(&listener.registry, listener.auth.as_ref(), &request)
}

/// The metrics as text, for who may read them.
pub(crate) fn expose(
    registry: &Registry,
    auth: Option<&AuthString>,
    request: &HttpRequest,
) -> HttpResponse {
    if auth.is_some_and(|auth| !auth.allows(request.headers())) {
        return AuthString::unauthorized();
    }
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&registry.gather(), &mut text) {
        Ok(()) => HttpResponse::Ok()
            .content_type(encoder.format_type())
            .body(text),
        Err(error) => {
            log::error!("cannot write the metrics error={error}");
            HttpResponse::InternalServerError().finish()
        }
    }
}

async fn not_found() -> HttpResponse {
    refuse(StatusCode::NOT_FOUND, "Not Found")
}

async fn closed() -> HttpResponse {
    refuse(
        StatusCode::NOT_FOUND,
        "beyond loopback only /api/health and /api/ready are served until http.auth_string is set",
    )
}

fn refuse(status: StatusCode, reason: &str) -> HttpResponse {
    HttpResponse::build(status).json(json!({ "exception_message": reason }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_are_loopback() {
        for (address, expected) in [
            ("127.0.0.1:0", true),
            ("127.9.9.9:0", true),
            ("[::1]:0", true),
            ("[::ffff:127.0.0.1]:0", true),
            ("0.0.0.0:0", false),
            ("[::]:0", false),
            ("10.0.0.1:0", false),
        ] {
            assert_eq!(
                Place::resolve(address).unwrap().is_loopback(),
                expected,
                "{address}"
            );
        }
    }
}
