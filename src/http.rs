//! The listener: the event routes, health, and metrics.
//!
//! An auth string guards all but the two health paths. Beyond loopback without one, only those two
//! are there: whoever forgets the auth string opens nothing to the network.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, guard, web};
use anyhow::{Context as _, bail};
use futures_util::future::LocalBoxFuture;
use prometheus::{Encoder as _, Registry, TextEncoder};
use serde_json::json;

use crate::metrics::Refusals;
use crate::wiring::AuthString;

mod binding;
pub(crate) mod client;
mod connection;
mod entrance;
mod server;
mod settings;
mod tls;
mod turns;

pub(crate) use binding::Unbindable;
pub(crate) use entrance::{Entrance, Listening};
pub(crate) use settings::{CertificateFiles, Listen, ListenerSettings};

/// The process is alive.
const HEALTH_PATH: &str = "/api/health";
/// It does what it is there for.
const READY_PATH: &str = "/api/ready";

/// What is served to anyone, whatever the load.
const HEALTH_PATHS: [&str; 2] = [HEALTH_PATH, READY_PATH];

/// Who is behind the listener.
pub(crate) trait Served: Send + Sync {
    /// The answer to the question whether it is ready.
    fn ready(&self) -> LocalBoxFuture<'static, HttpResponse>;

    /// Mounts the routes for events.
    fn mount(&self, config: &mut web::ServiceConfig);
}

/// What the listener needs from the rest.
#[derive(Clone)]
pub(crate) struct Listener {
    pub(crate) served: Arc<dyn Served>,
    /// What requests have to carry, beside those for the two health paths.
    pub(crate) auth: Option<AuthString>,
    pub(crate) registry: Registry,
    pub(crate) refusals: Refusals,
}

/// An address that is resolved and to be bound.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) addresses: Vec<SocketAddr>,
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

    /// Whether more than the two health paths is served: whoever forgets the auth string opens
    /// nothing to the network.
    fn is_open(&self, auth: Option<&AuthString>) -> bool {
        self.is_loopback() || auth.is_some()
    }
}

/// Mounts the two health paths, and where it is open the rest.
fn configure(config: &mut web::ServiceConfig, listener: &Listener, is_open: bool) {
    config
        .app_data(web::Data::new(listener.clone()))
        .service(readable(HEALTH_PATH, web::to(health)))
        .service(readable(READY_PATH, web::to(ready)));
    if is_open {
        config.service(readable("/metrics", web::to(metrics)));
        listener.served.mount(config);
        config.default_service(web::to(not_found));
    } else {
        config.default_service(web::to(closed));
    }
}

fn readable(path: &str, route: actix_web::Route) -> actix_web::Resource {
    let reads = guard::Any(guard::Get()).or(guard::Head());
    web::resource(path)
        .route(route.guard(reads))
        .default_service(web::to(only_read))
}

async fn only_read(request: HttpRequest) -> HttpResponse {
    let (method, path) = (request.method(), request.path());
    let reason = format!("{path} does not take {method}: ask with GET or HEAD");
    let mut refused = refuse(StatusCode::METHOD_NOT_ALLOWED, &reason);
    let allow = HeaderValue::from_static("GET, HEAD");
    refused.headers_mut().insert(ALLOW, allow);
    refused
}

/// The process is alive; Prefect's own answer, for whatever polls it.
async fn health() -> HttpResponse {
    HttpResponse::Ok().json(true)
}

/// Whether it does what it is there for, and how each part is doing.
async fn ready(listener: web::Data<Listener>) -> HttpResponse {
    listener.served.ready().await
}

/// The metrics as text, for who may read them.
async fn metrics(request: HttpRequest, listener: web::Data<Listener>) -> HttpResponse {
    let auth = listener.auth.as_ref();
    if auth.is_some_and(|auth| !auth.allows(request.headers())) {
        return AuthString::unauthorized();
    }
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&listener.registry.gather(), &mut text) {
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
