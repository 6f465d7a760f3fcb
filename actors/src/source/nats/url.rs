//! Where the NATS servers are, as a URL of the NATS clients. The password in it never reaches a log or an error.

use std::fmt;
use std::str::FromStr;

use crate::address::{Parts, host_and_port};
use crate::settings::InvalidUrl;

const EXPECTED: &str =
    "give nats://USER:PASSWORD@HOST:PORT,HOST:PORT, nats://TOKEN@HOST, or tls:// for TLS";
const DEFAULT_PORT: u16 = 4222;

/// Where NATS servers are and as whom they are used.
///
/// `nats://` or `tls://`, then `user:password@` or `token@`, and hosts with their ports between commas. Each may
/// also be a URL of its own.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsUrl {
    servers: Vec<(String, u16)>,
    /// Whether TLS is insisted upon; a server may ask for it in any case.
    pub(super) tls: bool,
    pub(super) login: Option<Login>,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    User { name: String, password: String },
    Token(String),
}

impl Default for NatsUrl {
    fn default() -> Self {
        Self {
            servers: vec![("localhost".to_owned(), DEFAULT_PORT)],
            tls: false,
            login: None,
        }
    }
}

impl NatsUrl {
    /// Each server as the client takes it.
    pub(super) fn addresses(&self) -> Vec<String> {
        let scheme = if self.tls { "tls" } else { "nats" };
        let servers = self.servers.iter();
        servers
            .map(|server| format!("{scheme}://{}", host(server)))
            .collect()
    }

    pub(super) fn has_login(&self) -> bool {
        self.login.is_some()
    }

    /// The whole, its secrets masked.
    pub fn masked(&self) -> String {
        let scheme = if self.tls { "tls" } else { "nats" };
        let login = match &self.login {
            None => String::new(),
            Some(Login::User { name, .. }) => format!("{name}:***@"),
            Some(Login::Token(_)) => "***@".to_owned(),
        };
        format!("{scheme}://{login}{self}")
    }
}

fn host((host, port): &(String, u16)) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// The servers, without a login.
impl fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.servers.iter().map(host).collect();
        f.write_str(&hosts.join(","))
    }
}

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl FromStr for NatsUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let mut all: Option<Self> = None;
        for one in each(text.trim()) {
            let one = of_one(one)?;
            match &mut all {
                None => all = Some(one),
                Some(all) => all.join(one)?,
            }
        }
        all.ok_or_else(|| EXPECTED.into())
    }
}

/// A comma divides only before another URL: within one it divides hosts.
fn each(text: &str) -> Vec<&str> {
    let mut all = Vec::new();
    let mut rest = text;
    let next = |rest: &str| {
        let begins = [",nats://", ",tls://"];
        begins.iter().filter_map(|begin| rest.find(begin)).min()
    };
    while let Some(end) = next(rest) {
        all.push(&rest[..end]);
        rest = &rest[end + 1..];
    }
    all.push(rest);
    all
}

fn of_one(text: &str) -> Result<NatsUrl, InvalidUrl> {
    let (tls, rest) = match text.split_once("://") {
        Some(("nats", rest)) => (false, rest),
        Some(("tls", rest)) => (true, rest),
        Some(("ws" | "wss", _)) => {
            return Err(
                "NATS by WebSocket is not supported here: give nats:// or tls://, with the servers' port for \
                 clients"
                    .into(),
            );
        }
        _ => return Err(EXPECTED.into()),
    };
    let parts = Parts::of(rest)?;
    if let Some(parameter) = parts.parameters().next() {
        let (name, _) = parameter?;
        return Err(crate::address::unknown_parameter(&name));
    }
    if !parts.path.is_empty() {
        return Err(format!("{EXPECTED}; there is no path behind the hosts").into());
    }
    let servers: Result<Vec<_>, _> = parts
        .hosts
        .split(',')
        .map(|host| host_and_port(host, DEFAULT_PORT))
        .collect();
    let servers = servers?;
    let login = match (parts.user, parts.password) {
        (None, None) => None,
        (Some(token), None) => Some(Login::Token(token)),
        (Some(name), Some(password)) => Some(Login::User { name, password }),
        (None, Some(_)) => return Err("there is a password without a user in it".into()),
    };
    Ok(NatsUrl {
        servers,
        tls,
        login,
    })
}

impl NatsUrl {
    fn join(&mut self, other: Self) -> Result<(), InvalidUrl> {
        if other.tls != self.tls {
            return Err("give nats:// for all servers or tls:// for all".into());
        }
        match (&self.login, other.login) {
            (None, login) => self.login = login,
            (Some(ours), Some(theirs)) if *ours != theirs => {
                return Err("all servers take the same login; give it once".into());
            }
            _ => {}
        }
        self.servers.extend(other.servers);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        match text.parse::<NatsUrl>() {
            Ok(url) => url.masked(),
            Err(error) => format!("ERROR {error}"),
        }
    }

    #[test]
    fn names_servers_and_a_login_that_is_never_shown() {
        for (text, shown) in [
            ("nats://host", "nats://host:4222"),
            (" nats://host:14222/ ", "nats://host:14222"),
            ("tls://[::1]:5", "tls://[::1]:5"),
            ("nats://token@host", "nats://***@host:4222"),
            ("nats://me:p@ss:w@a,b:1", "nats://me:***@a:4222,b:1"),
            (
                "nats://me:secret@a,nats://me:secret@b:1,nats://c",
                "nats://me:***@a:4222,b:1,c:4222",
            ),
        ] {
            assert_eq!(masked(text), shown, "{text}");
        }
        let url: NatsUrl = "tls://me:secret@a,b".parse().unwrap();
        assert_eq!(url.addresses(), ["tls://a:4222", "tls://b:4222"]);
        assert_eq!(url.to_string(), "a:4222,b:4222");
        assert!(!format!("{url:?}").contains("secret"));
    }

    #[test]
    fn what_would_be_ignored_is_an_error() {
        for (text, why) in [
            ("", "give nats://"),
            ("host:4222", "give nats://"),
            ("wss://host", "WebSocket"),
            ("nats://host?name=x", "name"),
            ("nats://host/path", "no path"),
            ("nats://a,tls://b", "for all"),
            ("nats://a@h,nats://b@i", "same login"),
            ("nats://a,", "host is missing"),
        ] {
            let shown = masked(text);
            assert!(
                shown.starts_with("ERROR") && shown.contains(why),
                "{text}: {shown}"
            );
        }
    }
}
