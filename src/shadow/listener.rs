//! The shadow's listener: health and metrics as the service has them, and no events.

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use anyhow::Context as _;
use prometheus::Registry;
use serde_json::json;
use tokio::task::JoinHandle;

use super::health::Health;
use super::metrics::ShadowMetrics;
use crate::config::{Config, Listen};
use crate::http::{Place, expose};
use crate::wiring::AuthString;

/// A listener at work.
pub(crate) struct Running {
    addresses: String,
    handle: ServerHandle,
    server: JoinHandle<std::io::Result<()>>,
}

impl Running {
    /// Where it listens; port 0 takes any that is free.
    pub(crate) fn addresses(&self) -> String {
        self.addresses.clone()
    }

    pub(crate) async fn stop(self) {
        self.handle.stop(true).await;
    }

    /// Resolves when it is no longer there, which it never should.
    pub(crate) async fn ended(&mut self) {
        match (&mut self.server).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error!("the listener has failed error={error}"),
            Err(error) => log::error!("the listener has failed error={error}"),
        }
    }
}

#[derive(Clone)]
struct Served {
    health: Health,
    registry: Registry,
    auth: Option<AuthString>,
    /// Whether more than the two health paths is served.
    open: bool,
}

/// Starts it, if there is to be one.
pub(crate) fn start(
    config: &Config,
    health: Health,
    metrics: &ShadowMetrics,
) -> anyhow::Result<Option<Running>> {
    let Listen::At(address) = &config.http.listen else {
        return Ok(None);
    };
    let auth = config.http.auth_string.as_ref();
    let auth = auth.map(|secret| AuthString::new(secret.reveal()));
    let served = Served {
        health,
        registry: metrics.registry(),
        // Whoever forgets the auth string opens nothing to the network; and a shadow does not speak
        // TLS, so where that is wanted no credential may cross the network.
        open: Place::resolve(address)?.is_loopback()
            || (auth.is_some() && config.http.tls.is_none()),
        auth,
    };
    let server = HttpServer::new(move || {
        let served = served.clone();
        App::new().configure(move |config| configure(config, served))
    })
    .workers(1)
    .disable_signals()
    .bind(address.as_str())
    .with_context(|| {
        format!(
            "cannot listen on {address}; choose another address with --listen or \
             EVENT_PERSISTER_LISTEN, or `off`"
        )
    })?;
    let addresses: Vec<String> = (server.addrs().iter())
        .map(|address| format!("http://{address}"))
        .collect();
    let server = server.run();
    Ok(Some(Running {
        addresses: addresses.join(","),
        handle: server.handle(),
        server: actix_rt::spawn(server),
    }))
}

fn configure(config: &mut web::ServiceConfig, served: Served) {
    let open = served.open;
    config
        .app_data(web::Data::new(served))
        .route(
            "/api/health",
            web::get().to(async || HttpResponse::Ok().json(true)),
        )
        .route("/api/ready", web::get().to(ready));
    if open {
        config
            .route("/metrics", web::get().to(metrics))
            .route("/api/events", web::to(takes_nothing))
            .route("/api/events/in", web::to(takes_nothing));
    }
}

async fn ready(served: web::Data<Served>) -> HttpResponse {
    let ready = served.health.is_ready();
    let document = json!({
        "ready": ready,
        "shadow": true,
        "reason": served.health.failure(),
        "components": served.health.components(),
    });
    if ready {
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

async fn metrics(request: HttpRequest, served: web::Data<Served>) -> HttpResponse {
    expose(&served.registry, served.auth.as_ref(), &request)
}
