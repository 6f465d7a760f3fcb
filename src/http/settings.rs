//! Where the listener listens, what it shows there, and for how many it is there.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use event_persister_actors::settings::{
    As, Count, File, LongerThanZero, Named, OneOf, Spelling, Toggle,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where and for how many the listener is there.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ListenerSettings {
    /// Where the listener listens, or `off`. Beyond loopback without an auth string it serves only the two
    /// health paths.
    #[serde(with = "As::<Listen>")]
    pub(crate) listen: Listen,
    /// The certificate to show, with those that vouch for it (PEM): then the listener speaks `https` and
    /// `wss` alone. Read again when the file changes.
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/event-persister/server.pem")]
    tls_cert_file: Option<PathBuf>,
    /// The key of `tls_cert_file` (PEM).
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/event-persister/server-key.pem")]
    tls_key_file: Option<PathBuf>,
    /// Connections at a time; 64 more are only told so (503) or asked for health, the rest wait. Raise it
    /// for more clients, at up to 256 KiB each.
    #[serde(with = "As::<Count>")]
    pub(crate) max_connections: NonZeroUsize,
    /// How long a client may take for the head of its first or next request before its connection is
    /// closed; Prefect's client gives an idle one up after 5s. WebSockets may idle.
    #[serde(with = "As::<LongerThanZero>")]
    pub(crate) idle_timeout: Duration,
    /// Whether what comes in by HTTP and WebSocket is published to the bus instead of being stored here: `on`, for
    /// services that read the bus, of which this is one; or `only`, where this service reads no bus, and needs no
    /// database.
    #[serde(with = "As::<OneOf<Publish>>")]
    pub(crate) publish: Publish,
    /// Whether what is stored can be read here, and dead letters be replayed and purged: the paths under
    /// `/api/events`, `/api/dead-letters`, `/api/status` and `/api/session`.
    #[serde(with = "As::<Toggle>")]
    pub(crate) read_api: bool,
    /// Whether `/` is a page to look at it all; needs `read_api`.
    #[serde(with = "As::<Toggle>")]
    pub(crate) page: bool,
}

impl Default for ListenerSettings {
    fn default() -> Self {
        Self {
            listen: Listen::At("127.0.0.1:4280".to_owned()),
            tls_cert_file: None,
            tls_key_file: None,
            max_connections: NonZeroUsize::MIN.saturating_add(1_023),
            idle_timeout: Duration::from_secs(10),
            publish: Publish::Off,
            read_api: true,
            page: true,
        }
    }
}

impl ListenerSettings {
    /// Whether what is stored can be read here.
    pub(crate) fn reads(&self) -> bool {
        self.read_api && self.listen != Listen::Off && self.publish != Publish::Only
    }

    /// The certificate to show; `None` for a listener without TLS.
    pub(crate) fn certificate(&self) -> Option<CertificateFiles> {
        let files = self.tls_cert_file.clone().zip(self.tls_key_file.clone());
        files.map(|(cert, key)| CertificateFiles { cert, key })
    }
}

/// Whether the bus is given what comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Publish {
    Off,
    On,
    Only,
}

impl Named for Publish {
    const ALL: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("on", Self::On), ("only", Self::Only)];
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    Off,
    /// At this host and port; port 0 takes any that is free.
    At(String),
}

impl Spelling for Listen {
    type Value = Self;

    fn read(given: &Value) -> Result<Self, String> {
        let text = given.as_str().unwrap_or_default().trim();
        if text == "off" {
            return Ok(Self::Off);
        }
        // A name is looked up when the listener starts.
        let is_name_and_port = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
                && port.parse::<u16>().is_ok()
        });
        if is_name_and_port || text.parse::<SocketAddr>().is_ok() {
            return Ok(Self::At(text.to_owned()));
        }
        Err(
            "give an address and a port, such as 127.0.0.1:4280, [::1]:4280 or 0.0.0.0:80, or off"
                .to_owned(),
        )
    }

    fn write(value: &Self) -> Value {
        match value {
            Self::Off => "off".into(),
            Self::At(address) => address.clone().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_needs_a_host_and_a_port() {
        for text in [
            "127.0.0.1:4280",
            "[::1]:0",
            "0.0.0.0:80",
            "localhost:4280",
            "off",
        ] {
            assert_eq!(
                Listen::read(&text.into()).map(|at| Listen::write(&at)),
                Ok(text.into())
            );
        }
        for text in [
            "4280",
            ":4280",
            "127.0.0.1",
            "::1:4280",
            "host:99999",
            "a b:1",
            "OFF",
        ] {
            assert!(Listen::read(&text.into()).is_err(), "{text}");
        }
    }
}
