//! Asks listeners of ours. One on this machine is known by its place, or by the certificate that it is
//! configured to show: certificates name the machine as others reach it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use event_persister_actors::tls;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};

use super::connection::Stream;
use super::{CertificateFiles, HEALTH_PATH, READY_PATH};

/// More than any answer of ours: whoever else is there may send without end.
const MAX_BYTES: u64 = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// Whether the process is alive.
    Health,
    /// Whether it does what it is there for.
    Ready,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    /// It is not, and why, if it says so.
    No(Option<String>),
    /// This is no answer of ours: another program listens there.
    Foreign,
}

impl Question {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Health => HEALTH_PATH,
            Self::Ready => READY_PATH,
        }
    }

    /// No certificate is refused: nothing secret is sent or believed.
    pub(crate) async fn ask(self, at: SocketAddr, encrypted: bool) -> io::Result<Answer> {
        let stream = TcpStream::connect(at).await?;
        let mut stream: Box<dyn Stream> = if encrypted {
            let name = ServerName::IpAddress(at.ip().into());
            let config = tls::trusting_anyone().map_err(io::Error::other)?;
            let connector = TlsConnector::from(Arc::new(config));
            Box::new(connector.connect(name, stream).await?)
        } else {
            Box::new(stream)
        };
        let path = self.path();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = Vec::new();
        match stream.take(MAX_BYTES).read_to_end(&mut text).await {
            // Whether all of it has come shows in the answer itself.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            read => drop(read?),
        }
        Ok(self.read(&text))
    }

    /// Nobody else has a field `ready` at `/api/ready`. At `/api/health` a Prefect server answers as we
    /// do, and is alive as well.
    fn read(self, text: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(text);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return Answer::Foreign;
        };
        let is_ok = head.starts_with("HTTP/1.1 200 ");
        let said = serde_json::from_str::<Value>(body).unwrap_or_default();
        let yes = match self {
            Self::Health => &said,
            Self::Ready => &said["ready"],
        };
        match yes.as_bool() {
            Some(true) if is_ok => Answer::Yes,
            Some(false) if self == Self::Ready && !is_ok => {
                Answer::No(said["reason"].as_str().map(str::to_owned))
            }
            _ => Answer::Foreign,
        }
    }
}

/// A connection over which something secret may be sent.
pub(crate) type SafeStream = Box<dyn Stream>;

/// Connects to a listener on this machine that shows this certificate, where it has one.
pub(crate) async fn connect_here(
    at: SocketAddr,
    certificate: Option<&CertificateFiles>,
) -> anyhow::Result<SafeStream> {
    let stream = TcpStream::connect(at).await?;
    let Some(files) = certificate else {
        return Ok(Box::new(stream));
    };
    let own = CertificateDer::from_pem_file(&files.cert)
        .with_context(|| format!("cannot read {}", files.cert.display()))?;
    let connector = TlsConnector::from(Arc::new(tls::trusting_anyone()?));
    let name = ServerName::IpAddress(at.ip().into());
    let stream = connector.connect(name, stream).await?;
    let (_, session) = stream.get_ref();
    let shown = session.peer_certificates().and_then(<[_]>::first);
    if shown != Some(&own) {
        bail!("it shows another certificate than the one that is configured");
    }
    Ok(Box::new(stream))
}

/// Connects to any host. Its certificate must be made out to it.
pub(crate) async fn connect(host: &str, port: u16, encrypted: bool) -> anyhow::Result<SafeStream> {
    let stream = TcpStream::connect((host, port)).await?;
    if !encrypted {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(host.to_owned()).context("no certificate has such a name")?;
    let connector = TlsConnector::from(Arc::new(tls::trusting_authorities()?));
    Ok(Box::new(connector.connect(name, stream).await?))
}

/// Where to ask who listens at this address: who listens at all of them is asked at loopback.
pub(crate) fn reachable(at: SocketAddr) -> Vec<SocketAddr> {
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let ips = match at.ip().to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![V4],
        // Such a socket takes the other kind in too, and there may be no loopback of its own kind.
        IpAddr::V6(ip) if ip.is_unspecified() => vec![V6, V4],
        _ => return vec![at],
    };
    let ips = ips.into_iter();
    ips.map(|ip| SocketAddr::new(ip, at.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_answers_count() {
        let read = |question: Question, status: &str, body: &str| {
            question.read(format!("HTTP/1.1 {status} x\r\na: b\r\n\r\n{body}").as_bytes())
        };
        let why = Answer::No(Some("x".to_owned()));
        for (question, status, body, expected) in [
            (Question::Health, "200", "true", Answer::Yes),
            (Question::Health, "200", "\"true\"", Answer::Foreign),
            (Question::Health, "200", "<html>", Answer::Foreign),
            (Question::Health, "503", "true", Answer::Foreign),
            (Question::Health, "503", "false", Answer::Foreign),
            (Question::Ready, "200", r#"{"ready":true}"#, Answer::Yes),
            (
                Question::Ready,
                "503",
                r#"{"ready":false,"reason":"x"}"#,
                why,
            ),
            (
                Question::Ready,
                "503",
                r#"{"ready":false}"#,
                Answer::No(None),
            ),
            (Question::Ready, "503", r#"{"ready":true}"#, Answer::Foreign),
            (
                Question::Ready,
                "200",
                r#"{"message":"OK"}"#,
                Answer::Foreign,
            ),
            (Question::Ready, "200", "true", Answer::Foreign),
        ] {
            assert_eq!(read(question, status, body), expected, "{status} {body}");
        }
        assert_eq!(Question::Health.read(b"SSH-2.0-x\r\n"), Answer::Foreign);
    }

    #[test]
    fn who_listens_everywhere_is_asked_at_loopback() {
        for (at, expected) in [
            ("0.0.0.0:80", &["127.0.0.1:80"][..]),
            ("[::]:80", &["[::1]:80", "127.0.0.1:80"]),
            ("[::ffff:0.0.0.0]:80", &["127.0.0.1:80"]),
            ("10.0.0.1:80", &["10.0.0.1:80"]),
            ("[::1]:80", &["[::1]:80"]),
        ] {
            let reachable = reachable(at.parse().unwrap());
            let reachable: Vec<String> = reachable.iter().map(ToString::to_string).collect();
            assert_eq!(reachable, expected);
        }
    }
}
