//! Whether the listener could listen, and to whom it would be open.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::config::{Config, Listen};
use crate::http::Place;
use crate::wiring::Finding;

/// A service that stalls takes 5 s to say that it does.
const PATIENCE: Duration = Duration::from_secs(6);

pub(super) async fn judge(config: &Config) -> Vec<Finding> {
    const ID: &str = "http.listen";
    let address = match &config.http.listen {
        Listen::Off => return vec![Finding::ok(ID, "the listener is off")],
        Listen::At(address) => address,
    };
    let (place, addresses) = match (Place::resolve(address), address.to_socket_addrs()) {
        (Ok(place), Ok(addresses)) => (place, addresses),
        (Err(error), _) => return vec![no_such_address(address, &format!("{error:#}"))],
        (_, Err(error)) => return vec![no_such_address(address, &error.to_string())],
    };
    let mut findings = Vec::new();
    for at in addresses {
        findings.push(match bind(at) {
            Ok(()) => Finding::ok(ID, format!("{at} is free")),
            Err(error) if error.kind() == ErrorKind::AddrInUse => in_use(at).await,
            Err(error) => refused(at, &error),
        });
    }
    findings.push(auth(address, &place, config));
    findings
}

/// Binds without listening, so that two checks at the same time are not in each other's way.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

fn no_such_address(address: &str, error: &str) -> Finding {
    Finding::error(
        "http.listen",
        format!("{address} cannot be listened at ({error})"),
        "correct http.listen, or the name in it",
    )
}

fn refused(at: SocketAddr, error: &io::Error) -> Finding {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => {
            "choose a port above 1023, or give the process CAP_NET_BIND_SERVICE"
        }
        ErrorKind::AddrNotAvailable => "name an address of this machine in http.listen",
        _ => "choose another address with http.listen",
    };
    Finding::error(
        "http.listen",
        format!("{at} cannot be bound ({error})"),
        remedy,
    )
}

async fn in_use(at: SocketAddr) -> Finding {
    const ID: &str = "http.listen";
    let answer = actix_rt::time::timeout(PATIENCE, ask_ready(at)).await;
    if matches!(&answer, Ok(Ok(answer)) if is_ours(answer)) {
        return Finding::ok(ID, format!("event-persister listens at {at} already"));
    }
    Finding::error(
        ID,
        format!("another process listens at {at}: `serve` would not start"),
        "stop it, or choose another address with --listen or EVENT_PERSISTER_LISTEN",
    )
}

async fn ask_ready(at: SocketAddr) -> io::Result<Vec<u8>> {
    const MOST: u64 = 64 * 1024;
    let mut stream = TcpStream::connect(at).await?;
    let request = format!("GET /api/ready HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Nobody else tells there whether it is ready, and how each writer is.
fn is_ours(answer: &[u8]) -> bool {
    let answer = String::from_utf8_lossy(answer);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    let status = body.and_then(|body| serde_json::from_str::<serde_json::Value>(body).ok());
    status.is_some_and(|status| status["ready"].is_boolean())
}

fn auth(address: &str, place: &Place, config: &Config) -> Finding {
    const ID: &str = "http.auth";
    if config.http.auth_string.is_some() {
        return Finding::ok(ID, "an auth string guards all but the two health paths");
    }
    if place.is_loopback() {
        return Finding::ok(ID, "only this machine can connect");
    }
    Finding::warning(
        ID,
        format!(
            "{address} is open to the network and there is no auth string: only the two health \
             paths are served, and no events are taken in"
        ),
        "set EVENT_PERSISTER_HTTP_AUTH_STRING, or a file with EVENT_PERSISTER_HTTP_AUTH_STRING_FILE",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_answer_is_ours() {
        let answer = |body: &str| format!("HTTP/1.1 200 OK\r\nx: y\r\n\r\n{body}").into_bytes();
        assert!(is_ours(&answer(r#"{"ready":false,"reason":"x"}"#)));
        assert!(!is_ours(&answer(r#"{"message":"OK"}"#)));
        assert!(!is_ours(&answer("<html>")));
        assert!(!is_ours(b"SSH-2.0-x\r\n"));
    }
}
