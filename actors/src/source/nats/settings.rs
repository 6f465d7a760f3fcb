//! How the NATS source works, and which settings it refuses.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::url::NatsUrl;
use crate::primary::KnownPrimary;
use crate::settings::{As, File, InvalidUrl, LongerThanZero, Text};

/// How a stream of NATS JetStream is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NatsSettings {
    /// The servers.
    #[serde(skip)]
    pub url: NatsUrl,
    /// The JetStream stream to read. It must be there: how much it keeps is your decision.
    #[serde(with = "As::<Text>")]
    pub stream: String,
    /// The durable pull consumer to read as; all replicas share one. It is made if it is missing.
    #[serde(with = "As::<Text>")]
    pub consumer: String,
    /// After how long without a sign of life the messages of a replica are handed out again, at least 3 s. It is
    /// given to the consumer when that is made; one that is there keeps its own.
    #[serde(with = "As::<LongerThanZero>")]
    pub ack_wait: Duration,
    /// The JetStream domain, where the servers are a leaf of those that have the stream.
    #[serde(with = "As::<Option<Text>>")]
    #[schemars(example = &"hub")]
    pub domain: Option<String>,
    /// How the subjects begin at which answers are awaited; for a user that may subscribe to no other.
    #[serde(with = "As::<Text>")]
    pub inbox_prefix: String,
    /// The subject under which events are published to the stream, by `import --to` or `http.publish`; by default
    /// the first of the stream's that is no pattern.
    #[serde(with = "As::<Option<Text>>")]
    #[schemars(example = &"events.imported")]
    pub publish_subject: Option<String>,
    /// A credentials file (JWT and seed), as `nsc` makes them. User and password, or a token, stand in the URL.
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/event-persister/nats.creds")]
    pub creds_file: Option<PathBuf>,
    /// With TLS: the authorities that may sign the servers' certificates (PEM); the system's if not set.
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/ssl/nats-ca.pem")]
    pub ca_file: Option<PathBuf>,
    /// With TLS: the certificate to show (PEM), with `key_file`.
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/event-persister/client.pem")]
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file` (PEM).
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/event-persister/client-key.pem")]
    pub key_file: Option<PathBuf>,
    /// The name of the connection, for people who look at those of a server.
    #[serde(skip)]
    pub name: String,
    /// How long a read waits for the first message (1 s). Longer saves requests on a quiet stream, and delays
    /// the stop of the process by as much.
    #[serde(skip)]
    pub block: Duration,
    /// The primary that the events are written to, if the store shares what it knows of that.
    #[serde(skip)]
    pub primary: KnownPrimary,
}

impl Default for NatsSettings {
    fn default() -> Self {
        Self {
            url: NatsUrl::default(),
            stream: "events".to_owned(),
            consumer: "event-persister".to_owned(),
            ack_wait: Duration::from_secs(20),
            domain: None,
            inbox_prefix: "_INBOX".to_owned(),
            publish_subject: None,
            creds_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            name: "event-persister".to_owned(),
            block: Duration::from_secs(1),
            primary: KnownPrimary::default(),
        }
    }
}

/// Below this a replica that stalls for a moment would have its messages taken, and they would be written twice
/// as often as needed.
pub(super) const SHORTEST_ACK_WAIT: Duration = Duration::from_secs(3);

/// Which settings cannot work, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NatsSettingsError(String);

impl NatsSettings {
    /// The defaults, but for what a URL `nats://user:password@host:port,host:port` says.
    ///
    /// # Errors
    ///
    /// It is no such URL.
    pub fn from_url(url: &str) -> Result<Self, InvalidUrl> {
        let url = url.parse()?;
        Ok(Self {
            url,
            ..Self::default()
        })
    }

    /// How the subjects of JetStream's API begin.
    pub(super) fn api_prefix(&self) -> String {
        match &self.domain {
            None => "$JS.API".to_owned(),
            Some(domain) => format!("$JS.{domain}.API"),
        }
    }

    /// Whether a source can work with these; an error says which of them cannot, and why.
    pub fn check(&self) -> Result<(), NatsSettingsError> {
        self.fault()
            .map_or(Ok(()), |fault| Err(NatsSettingsError(fault)))
    }

    fn fault(&self) -> Option<String> {
        let names = [
            ("nats.stream", Some(&self.stream)),
            ("nats.consumer", Some(&self.consumer)),
            ("nats.domain", self.domain.as_ref()),
        ];
        for (what, name) in names {
            let name = name.map_or("-", String::as_str);
            let is_wrong = |char: char| ".*>/\\".contains(char) || !char.is_ascii_graphic();
            if name.is_empty() || name.contains(is_wrong) {
                return Some(format!(
                    "{what} is {name:?}: give a name of ASCII letters, digits, - and _: it may hold no blank and none \
                     of . * > / \\"
                ));
            }
        }
        let is_wrong = |char: char| "*>".contains(char) || !char.is_ascii_graphic();
        if let Some(subject) = &self.publish_subject
            && (subject.contains(is_wrong) || subject.split('.').any(str::is_empty))
        {
            return Some(format!(
                "nats.publish_subject is {subject:?}: give a subject without wildcards, such as events.imported"
            ));
        }
        let prefix = &self.inbox_prefix;
        if prefix.is_empty() || prefix.ends_with('.') || prefix.contains(is_wrong) {
            return Some(format!(
                "nats.inbox_prefix is {prefix:?}: give the beginning of a subject without wildcards, such as \
                 _INBOX_persister"
            ));
        }
        let ack_wait = self.ack_wait;
        if ack_wait < SHORTEST_ACK_WAIT {
            return Some(format!(
                "nats.ack_wait ({ack_wait:?}) must be at least {SHORTEST_ACK_WAIT:?}: a replica that stalls for a \
                 moment would have its messages taken"
            ));
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Some(
                "nats.cert_file and nats.key_file are used together; set both or neither"
                    .to_owned(),
            );
        }
        (self.creds_file.is_some() && self.url.has_login()).then(|| {
            "nats.creds_file and the login in nats.url say both who we are; keep one".to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work() {
        assert_eq!(NatsSettings::default().check(), Ok(()));
        assert_eq!(NatsSettings::default().api_prefix(), "$JS.API");
    }

    #[test]
    fn refuses_what_cannot_work() {
        let refused = |change: fn(&mut NatsSettings)| {
            let mut settings = NatsSettings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert!(refused(|s| s.stream = "a.b".into()).starts_with("nats.stream is \"a.b\""));
        assert!(refused(|s| s.consumer.clear()).starts_with("nats.consumer"));
        assert!(refused(|s| s.domain = Some("a b".into())).starts_with("nats.domain"));
        assert!(refused(|s| s.inbox_prefix = "in.>".into()).starts_with("nats.inbox_prefix"));
        let subject = refused(|s| s.publish_subject = Some("a..b".into()));
        assert!(subject.starts_with("nats.publish_subject"));
        assert!(refused(|s| s.ack_wait = Duration::from_secs(1)).contains("at least 3s"));
        assert!(refused(|s| s.cert_file = Some("c".into())).contains("together"));
        let twice = refused(|s| {
            s.url = "nats://token@host".parse().unwrap();
            s.creds_file = Some("f".into());
        });
        assert!(twice.contains("keep one"), "{twice}");
    }
}
