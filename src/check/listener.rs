//! Whether the listener could listen, and to whom it would be open.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpSocket;

use crate::config::Config;
use crate::http::client::{Answer, Question, reachable};
use crate::http::{Listen, ListenAddress, Unbindable};
use crate::serve::no_source;
use crate::wiring::Finding;

/// A service that stalls takes 5 s to say that it does.
const PATIENCE: Duration = Duration::from_secs(6);

pub(super) async fn judge(config: &Config) -> Vec<Finding> {
    const ID: &str = "http.listen";
    let address = match &config.http.listener.listen {
        Listen::Off => {
            return vec![match no_source(config) {
                None => Finding::ok(ID, "the listener is off"),
                Some((what, remedy)) => Finding::error(ID, what, remedy),
            }];
        }
        Listen::At(address) => address,
    };
    let resolved = match ListenAddress::resolve(address) {
        Ok(resolved) => resolved,
        Err(error) => return vec![no_such_address(address, &format!("{error:#}"))],
    };
    let mut findings = Vec::new();
    let mut not_here = Vec::new();
    for at in resolved.addresses.iter().copied() {
        match bind(at) {
            Ok(()) => findings.push(Finding::ok(ID, format!("{at} is free"))),
            Err(error) if error.kind() == ErrorKind::AddrInUse => findings.push(in_use(at).await),
            Err(error) => {
                let error = Unbindable::new(at, error);
                let found = Finding::error(ID, error.what(), error.remedy());
                let list = match error.is_not_here() {
                    true => &mut not_here,
                    false => &mut findings,
                };
                list.push(found);
            }
        }
    }
    // Of a name with several addresses the service takes those that there are.
    if findings.is_empty() {
        findings = not_here;
    }
    findings.push(auth(address, &resolved, config));
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

async fn in_use(at: SocketAddr) -> Finding {
    const ID: &str = "http.listen";
    // The service may have other settings than these, and need not answer where it expects TLS.
    let how = match tokio::join!(is_ours(at, false), is_ours(at, true)) {
        (true, _) => "without TLS",
        (_, true) => "with TLS; its certificate was not verified",
        (false, false) => {
            return Finding::error(
                ID,
                format!("another process listens at {at}: `serve` would not start"),
                "stop it, or choose another address with --listen or EVENT_PERSISTER_LISTEN",
            );
        }
    };
    Finding::ok(
        ID,
        format!(
            "event-persister listens at {at} already, {how}; a second one needs another address"
        ),
    )
}

/// Whether an event persister answers there, ready or not.
async fn is_ours(at: SocketAddr, encrypted: bool) -> bool {
    for at in reachable(at) {
        let asked = actix_rt::time::timeout(PATIENCE, Question::Ready.ask(at, encrypted)).await;
        if matches!(asked, Ok(Ok(Answer::Yes | Answer::No(_)))) {
            return true;
        }
    }
    false
}

fn auth(address: &str, resolved: &ListenAddress, config: &Config) -> Finding {
    const ID: &str = "http.auth";
    if config.http.routes.auth.is_some() {
        return Finding::ok(ID, "an auth string guards all but the two health paths");
    }
    if resolved.is_loopback() {
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
