//! Where the listener is, from looking that up to the last answer.

use std::future::pending;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::server::{Running, start};
use super::tls::Certificate;
use super::{Listen, Listener, Place};
use crate::config::Http;

/// Where to listen and what to show there. It is known before anything else is begun, so that a
/// wrong address or certificate ends the process while it has touched nothing.
pub(crate) struct Entrance<'a> {
    http: &'a Http,
    place: Place,
    certificate: Option<Arc<Certificate>>,
}

impl<'a> Entrance<'a> {
    /// As it is set; `None` where nobody is to listen.
    pub(crate) fn find(http: &'a Http) -> anyhow::Result<Option<Self>> {
        let Listen::At(address) = &http.listener.listen else {
            return Ok(None);
        };
        let files = http.listener.certificate();
        Ok(Some(Self {
            http,
            place: Place::resolve(address)?,
            certificate: files.map(Certificate::read).transpose()?,
        }))
    }

    /// Binds, and serves from now on.
    pub(crate) fn open(self, listener: &Listener) -> anyhow::Result<Listening> {
        let is_open = self.place.is_open(listener.auth.as_ref());
        let (server, running) = start(&self.place, self.http, self.certificate.as_ref(), listener)?;
        if let Some(certificate) = self.certificate {
            actix_rt::spawn(certificate.follow());
        }
        Ok(Listening {
            running,
            is_open,
            server: actix_rt::spawn(server),
        })
    }
}

/// A listener at work, and the task that it works in.
pub(crate) struct Listening {
    running: Running,
    is_open: bool,
    server: JoinHandle<std::io::Result<()>>,
}

impl Listening {
    /// Where somebody listens, for the log: `off` where nobody does.
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
