//! The listener, from looking its address up to the last answer.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use actix_server::ServerHandle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::server;
use super::tls::Certificate;
use super::{Listen, ListenAddress, ListenerParts};
use crate::config::Http;

/// The address and the certificate of the listener. They are read before anything else is begun, so that
/// a wrong one ends the process while it has touched nothing.
pub(crate) struct ListenerSetup<'a> {
    http: &'a Http,
    address: ListenAddress,
    certificate: Option<Arc<Certificate>>,
}

impl<'a> ListenerSetup<'a> {
    /// `None` where the listener is off.
    pub(crate) fn find(http: &'a Http) -> anyhow::Result<Option<Self>> {
        let Listen::At(address) = &http.listener.listen else {
            return Ok(None);
        };
        let files = http.listener.certificate();
        Ok(Some(Self {
            http,
            address: ListenAddress::resolve(address)?,
            certificate: files.map(Certificate::read).transpose()?,
        }))
    }

    pub(crate) fn open(self, listener: &ListenerParts) -> anyhow::Result<RunningListener> {
        let certificate = self.certificate.as_ref();
        let running = server::start(&self.address, self.http, certificate, listener)?;
        if let Some(certificate) = self.certificate {
            actix_rt::spawn(certificate.follow());
        }
        Ok(running)
    }
}

pub(crate) struct RunningListener {
    /// Port 0 has become one that was free.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) scheme: &'static str,
    pub(super) is_open: bool,
    pub(super) handle: ServerHandle,
    pub(super) closing: watch::Sender<bool>,
    pub(super) server: JoinHandle<std::io::Result<()>>,
}

impl RunningListener {
    /// The addresses for the log, or `off`.
    pub(crate) fn addresses(listening: Option<&Self>) -> String {
        let Some(Self {
            addresses, scheme, ..
        }) = listening
        else {
            return "off".to_owned();
        };
        let urls = addresses
            .iter()
            .map(|address| format!("{scheme}://{address}"));
        let urls: Vec<String> = urls.collect();
        urls.join(",")
    }

    /// Says so where only the two health paths are served.
    pub(crate) fn warn(&self) {
        if !self.is_open {
            log::warn!(
                "reachable from beyond this machine without an auth string: only /api/health and \
                 /api/ready are served; set http.auth_string (EVENT_PERSISTER_HTTP_AUTH_STRING), \
                 or listen on 127.0.0.1"
            );
        }
    }

    /// Resolves when it is no longer there, which it never should.
    pub(crate) async fn ended(listening: Option<&mut Self>) {
        let Some(listening) = listening else {
            return pending().await;
        };
        match (&mut listening.server).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error!("the listener has failed error={error}"),
            Err(error) => log::error!("the listener has failed error={error}"),
        }
    }

    pub(crate) async fn stop(self) {
        self.closing.send_replace(true);
        self.handle.stop(true).await;
    }
}
