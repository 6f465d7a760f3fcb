//! Failures of NATS as errors of the port, with what to do about them.

use std::time::Duration;

use async_nats::{ConnectError, ConnectErrorKind};

use crate::source::SourceError;
use crate::status::error_chain;
use crate::tls::TlsFault;

use super::api::Refusal;
use super::settings::NatsSettings;

#[derive(Debug, thiserror::Error)]
pub(super) enum NatsError {
    #[error("{0}")]
    Connecting(ConnectError),
    #[error("{0}")]
    Tls(TlsFault),
    #[error("the credentials file cannot be used: {0}")]
    Credentials(String),
    /// With the server's last complaint: it answers no request that the user may not make.
    #[error("no answer within {} s{}", .0.as_secs(), said(.1.as_deref()))]
    TimedOut(Duration, Option<String>),
    /// No request for messages ends as it should.
    #[error("no messages were handed out for {} s: {}", .0.as_secs(), .1)]
    Unserved(Duration, String),
    #[error("nobody there takes such requests")]
    NoResponders,
    /// What is published has no stream to go to.
    #[error("no stream takes the subject {0} now")]
    Untaken(String),
    #[error("the connection was lost{}", said(.0.as_deref()))]
    Lost(Option<String>),
    #[error("{0}")]
    Refused(Refusal),
    #[error("the answer has another form than JetStream documents: {0}")]
    Unexpected(String),
    /// The consumer that is there would lose events.
    #[error("{what}")]
    Unfit { what: String, remedy: String },
}

fn said(complaint: Option<&str>) -> String {
    complaint.map_or_else(String::new, |said| format!(", and the server says: {said}"))
}

impl NatsError {
    /// Whether it is no use to connect anew.
    pub(super) fn leaves_connection_sound(&self) -> bool {
        matches!(
            self,
            Self::NoResponders | Self::Untaken(_) | Self::Refused(_) | Self::Unfit { .. }
        )
    }

    pub(super) fn is_missing_stream(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.is_missing_stream())
    }

    pub(super) fn is_missing_consumer(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.is_missing_consumer())
    }

    pub(super) fn is_missing_message(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.is_missing_message())
    }

    pub(super) fn remedy(&self, settings: &NatsSettings) -> String {
        match self {
            Self::Connecting(error) => of_connecting(error).to_owned(),
            Self::Tls(_) => "see the settings of TLS".to_owned(),
            Self::Credentials(_) => {
                "name a file as `nsc generate creds` makes it in nats.creds_file".to_owned()
            }
            Self::TimedOut(_, Some(said)) | Self::Unserved(_, said)
                if said.to_lowercase().contains("permissions") =>
            {
                permissions(settings)
            }
            Self::Unserved(..) => format!(
                "see what the consumer wants of those who read it (`nats consumer info {} {}`), and who else reads it",
                settings.stream, settings.consumer
            ),
            Self::TimedOut(..) => {
                "see whether the servers are stalled, or the stream has no leader".to_owned()
            }
            Self::NoResponders => format!(
                "see that JetStream is on (`jetstream {{}}` in the server's configuration), for this account too{}",
                match settings.domain {
                    None => "",
                    Some(_) => ", and that nats.domain is right",
                }
            ),
            Self::Untaken(_) => {
                "see that it is one of the stream's subjects (`nats stream info`), and that the stream has a leader"
                    .to_owned()
            }
            Self::Lost(_) => "it is connected anew; if it goes on, see the servers' log".to_owned(),
            Self::Refused(_) if self.is_missing_stream() => make_stream(settings),
            Self::Refused(refusal) => of_refusal(refusal).to_owned(),
            Self::Unexpected(_) => "see what listens there".to_owned(),
            Self::Unfit { remedy, .. } => remedy.clone(),
        }
    }

    pub(super) fn into_source_error(self, settings: &NatsSettings, doing: &str) -> SourceError {
        let remedy = self.remedy(settings);
        let server = &settings.url;
        SourceError::unavailable(format!("NATS at {server}: {doing} failed; {remedy}"), self)
    }
}

/// Its limits are a decision: they say for how long an outage may last.
pub(super) fn make_stream(settings: &NatsSettings) -> String {
    let stream = &settings.stream;
    format!(
        "make the stream, for instance with `nats stream add {stream} --subjects {stream} --storage file \
         --retention limits --max-age 7d --discard old --dupe-window 2m --defaults`, and `--replicas 3` on a cluster; \
         or name another in nats.stream"
    )
}

pub(super) fn permissions(settings: &NatsSettings) -> String {
    let NatsSettings {
        stream,
        consumer,
        inbox_prefix,
        ..
    } = settings;
    let api = settings.api_prefix();
    format!(
        "allow the user to publish {api}.STREAM.INFO.{stream}, {api}.STREAM.MSG.GET.{stream}, \
         {api}.CONSUMER.*.{stream}.{consumer}, {api}.CONSUMER.DURABLE.CREATE.{stream}.{consumer}, \
         {api}.CONSUMER.MSG.NEXT.{stream}.{consumer} and $JS.ACK.>, and to subscribe to {inbox_prefix}.>; whoever \
         publishes needs the stream's subject as well, and `verify` {api}.CONSUMER.CREATE.{stream}, \
         {api}.CONSUMER.MSG.NEXT.{stream}.* and {api}.CONSUMER.DELETE.{stream}.*"
    )
}

fn of_connecting(error: &ConnectError) -> &'static str {
    let text = error_chain(error);
    if text.contains("invalid peer certificate") {
        return "its certificate is not trusted, or is of another host: correct nats.ca_file, or the host in nats.url";
    }
    if text.contains("received corrupt message") {
        return "it does not speak TLS: use nats:// in nats.url, or switch TLS on there";
    }
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            "user, password, token or credentials are wrong: correct nats.url or nats.creds_file"
        }
        ConnectErrorKind::Dns | ConnectErrorKind::ServerParse => "no such host: correct nats.url",
        ConnectErrorKind::Tls => "see the settings of TLS, and whether the server wants it",
        ConnectErrorKind::TimedOut => {
            "it does not answer in time: see whether it is stalled or the network is down"
        }
        ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => {
            "start it, or correct host, port and TLS in nats.url"
        }
    }
}

fn of_refusal(refusal: &Refusal) -> &'static str {
    match refusal.err_code {
        10_008 | 10_009 => "the cluster has no leader for it now: see that most of the servers run",
        10_023 | 10_028 | 10_047 => "the server is out of memory or disk for streams: make room",
        10_076 | 10_039 => "JetStream is off for this account: switch it on",
        10_099 | 10_100 => {
            "the stream is a work queue, which gives each message to one consumer: name the one that is \
             there in nats.consumer, or remove it"
        }
        _ => "see what it answered",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::error_chain;

    #[test]
    fn says_where_what_and_what_to_do() {
        let settings = NatsSettings::from_url("nats://me:secret@a,b").unwrap();
        let missing = NatsError::Refused(Refusal {
            err_code: 10_059,
            description: "stream not found".to_owned(),
        });
        assert!(missing.leaves_connection_sound());
        let error = missing.into_source_error(&settings, "looking at the stream");
        let text = error_chain(&error);
        assert!(
            text.starts_with(
                "NATS at a:4222,b:4222: looking at the stream failed; make the stream"
            ),
            "{text}"
        );
        assert!(text.contains("nats stream add events"), "{text}");
        assert!(text.ends_with("stream not found (code 10059)"), "{text}");
        let said = "Permissions Violation for Publish to \"$JS.API.INFO\"".to_owned();
        let slow = NatsError::TimedOut(Duration::from_secs(5), Some(said));
        assert!(slow.remedy(&settings).contains("allow the user"));
        assert!(slow.to_string().contains("server says: Permissions"));
    }
}
