//! The listener: the event routes, health, and metrics.
//!
//! An auth string guards all but the two health paths. Beyond loopback without one, only those two
//! are there: an auth string that was forgotten opens nothing to the network.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use anyhow::{Context as _, bail};
use event_persister_actors::access::Access;
use event_persister_actors::health::{HEALTH_PATH, HealthRoutes, READY_PATH, read_only};
use prometheus::{Encoder as _, Registry, TextEncoder};
use serde_json::json;

use crate::metrics::Refusals;

mod binding;
pub(crate) mod client;
mod connection;
mod framing;
mod listener;
mod page;
mod server;
mod settings;
mod tls;

pub(crate) use binding::Unbindable;
pub(crate) use listener::{ListenerSetup, RunningListener};
pub(crate) use settings::{CertificateFiles, Listen, ListenerSettings, Publish};

/// The paths that are served to anyone, whatever the load.
const HEALTH_PATHS: [&str; 2] = [HEALTH_PATH, READY_PATH];

pub(crate) trait Served: Send + Sync {
    fn health(&self) -> HealthRoutes;

    fn mount(&self, config: &mut web::ServiceConfig);

    /// Whether there is something to look at on the page.
    fn has_page(&self) -> bool {
        false
    }
}

#[derive(Clone)]
pub(crate) struct ListenerParts {
    pub(crate) served: Arc<dyn Served>,
    /// Guards all paths but the two of health, and those that take events in, which have the auth string of
    /// their own.
    pub(crate) access: Access,
    pub(crate) registry: Registry,
    pub(crate) refusals: Refusals,
}

/// An address that is resolved and to be bound.
#[derive(Debug)]
pub(crate) struct ListenAddress {
    pub(crate) addresses: Vec<SocketAddr>,
}

impl ListenAddress {
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

    pub(crate) fn is_loopback(&self) -> bool {
        self.addresses
            .iter()
            .all(|address| address.ip().to_canonical().is_loopback())
    }

    /// Whether more than the two health paths is served.
    fn is_open(&self, access: &Access) -> bool {
        self.is_loopback() || access.wants_auth()
    }
}

fn configure(config: &mut web::ServiceConfig, listener: &ListenerParts, is_open: bool) {
    config.app_data(web::Data::new(listener.clone()));
    listener.served.health().configure(config);
    if is_open {
        config.service(read_only("/metrics", web::to(metrics)));
        listener.served.mount(config);
        if listener.served.has_page() {
            page::configure(config);
        }
        config.default_service(web::to(not_found));
    } else {
        config.default_service(web::to(closed));
    }
}

/// The metrics as text.
async fn metrics(request: HttpRequest, listener: web::Data<ListenerParts>) -> HttpResponse {
    if let Some(refused) = listener.access.refuse(&request) {
        return refused;
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
                ListenAddress::resolve(address).unwrap().is_loopback(),
                expected,
                "{address}"
            );
        }
    }
}
