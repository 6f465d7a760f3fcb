//! The listener, from looking its address up to the last answer.

use std::future::pending;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::server::{RunningServer, start};
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

    /// Binds, and serves from now on.
    pub(crate) fn open(self, listener: &ListenerParts) -> anyhow::Result<RunningListener> {
        let is_open = self.address.is_open(listener.auth.as_ref());
        let (server, running) = start(
            &self.address,
            self.http,
            self.certificate.as_ref(),
            listener,
        )?;
        if let Some(certificate) = self.certificate {
            actix_rt::spawn(certificate.follow());
        }
        Ok(RunningListener {
            running,
            is_open,
            server: actix_rt::spawn(server),
        })
    }
}

/// A listener at work, and the task that it works in.
pub(crate) struct RunningListener {
    running: RunningServer,
    is_open: bool,
    server: JoinHandle<std::io::Result<()>>,
}

impl RunningListener {
    /// The addresses for the log, or `off`.
    pub(crate) fn addresses(listening: Option<&Self>) -> String {
        let Some(Self { running, .. }) = listening else {
            return "off".to_owned();
        };
        let addresses = running.addresses.iter();
        let urls: Vec<String> = addresses
            .map(|address| format!("{}://{address}", running.scheme))
            .collect();
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

    /// Lets requests that are at work have their answers, and ends.
    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }
}
