//! Where a Redis server is, as a URL. The password in it never reaches a log or an error.

use std::fmt;
use std::str::FromStr;

use crate::address::{Parts, encode, host_and_port, unknown_parameter};
use crate::settings::InvalidUrl;

const EXPECTED: &str = "give redis://USER:PASSWORD@HOST:PORT/DATABASE, or rediss:// for TLS";
const DEFAULT_PORT: u16 = 6379;

/// Parameters of Python's client that tune that client.
const HARMLESS: [&str; 16] = [
    "client_name",
    "decode_responses",
    "encoding",
    "encoding_errors",
    "health_check_interval",
    "lib_name",
    "lib_version",
    "max_connections",
    "protocol",
    "retry_on_error",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_read_size",
    "socket_timeout",
    "timeout",
];

/// Where a Redis server is and as whom it is used.
///
/// `redis://` or `rediss://` (TLS), then `user:password@`, host, port and `/database`, each of which may
/// be missing.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: i64,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) tls: bool,
    /// Trusts any certificate of anyone: protects from nobody who can redirect traffic.
    pub(super) insecure: bool,
    settings: Vec<(&'static str, String)>,
}

impl Default for RedisUrl {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: DEFAULT_PORT,
            database: 0,
            username: None,
            password: None,
            tls: false,
            insecure: false,
            settings: Vec::new(),
        }
    }
}

impl FromStr for RedisUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
        let tls = check_scheme(&scheme.to_ascii_lowercase())?;
        let (rest, insecure) = match rest.strip_suffix("#insecure") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let parts = Parts::of(rest)?;
        if parts.hosts.contains(',') {
            return Err(unsupported("a list of Redis servers"));
        }
        let mut url = Self {
            username: parts.user.clone(),
            password: parts.password.clone(),
            tls,
            insecure,
            ..Self::default()
        };
        if !parts.hosts.is_empty() {
            (url.host, url.port) = host_and_port(parts.hosts, DEFAULT_PORT)?;
        }
        if !parts.path.is_empty() {
            url.database = database(parts.path.trim_end_matches('/'))?;
        }
        for parameter in parts.parameters() {
            let (name, value) = parameter?;
            url.take(name, value)?;
        }
        Ok(url)
    }
}

impl RedisUrl {
    /// What its parameters say about fields of [`RedisSettings`](super::RedisSettings), by key.
    pub fn settings(&self) -> &[(&'static str, String)] {
        &self.settings
    }

    /// The whole URL in one form, however it was written, with the password masked.
    pub fn masked(&self) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let user = self.username.as_deref().map(encode).unwrap_or_default();
        let login = match &self.password {
            Some(_) => format!("{user}:***@"),
            None if user.is_empty() => String::new(),
            None => format!("{user}@"),
        };
        let query = if self.insecure {
            "?ssl_cert_reqs=none"
        } else {
            ""
        };
        format!("{scheme}://{login}{self}{query}")
    }

    fn take(&mut self, name: &str, value: Option<String>) -> Result<(), InvalidUrl> {
        match (name, value) {
            ("username", value) => self.username = value,
            ("password", value) => self.password = value,
            ("ssl_cert_reqs", value) => self.insecure = value.as_deref() == Some("none"),
            // Empty is unset.
            (_, None) => {}
            ("db", Some(value)) => self.database = database(&value)?,
            ("ssl_ca_certs", Some(file)) => self.settings.push(("ca_file", file)),
            ("ssl_certfile", Some(file)) => self.settings.push(("cert_file", file)),
            ("ssl_keyfile", Some(file)) => self.settings.push(("key_file", file)),
            (name, _) if name.starts_with("ssl_") || HARMLESS.contains(&name) => {}
            (name, _) => return Err(unknown_parameter(name)),
        }
        Ok(())
    }
}

/// Host, port and database: what errors and logs may say.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}/{}", self.host, self.port, self.database)
        } else {
            write!(f, "{}:{}/{}", self.host, self.port, self.database)
        }
    }
}

/// The same, so that settings can be printed without their password.
impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        write!(f, "{scheme}://{self}")
    }
}

/// Whether the scheme asks for TLS.
fn check_scheme(scheme: &str) -> Result<bool, InvalidUrl> {
    match scheme {
        "redis" | "valkey" => Ok(false),
        "rediss" | "valkeys" => Ok(true),
        _ if scheme.contains("sentinel") => Err(unsupported("Redis Sentinel")),
        _ if scheme.contains("cluster") => Err(unsupported("Redis Cluster")),
        _ if scheme.contains("unix") => Err(unsupported("a Unix socket")),
        // It may be anything, a password too, and is not repeated.
        _ => Err(EXPECTED.into()),
    }
}

fn unsupported(what: &str) -> InvalidUrl {
    format!("{what} is not built in yet; {EXPECTED}, of one server, the master itself").into()
}

fn database(text: &str) -> Result<i64, InvalidUrl> {
    text.parse()
        .ok()
        .filter(|number| *number >= 0)
        .ok_or_else(|| format!("{text:?} is not the number of a database; {EXPECTED}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> RedisUrl {
        text.parse().unwrap()
    }

    #[test]
    fn takes_every_part_and_defaults_the_rest() {
        let url = parsed("redis://");
        assert_eq!(url, RedisUrl::default());
        assert_eq!(parsed("redis://localhost"), url);
        let url = parsed("rediss://ann:p%40s%2Fs@[::1]:7000/3?ssl_cert_reqs=none");
        assert_eq!(url.username.as_deref(), Some("ann"));
        assert_eq!(url.password.as_deref(), Some("p@s/s"));
        assert!(url.tls && url.insecure);
        assert_eq!(url.to_string(), "[::1]:7000/3");
        assert_eq!(parsed("redis://:secret@host").username, None);
        assert_eq!(
            parsed("redis://:p/q@s@r:1"),
            parsed("redis://:p%2Fq%40s@r:1")
        );
        assert_eq!(parsed("redis://host?db=4&socket_timeout=3").database, 4);
        assert!(parsed("rediss://host/1#insecure").insecure);
        let files = "rediss://h?ssl_ca_certs=/etc/ca.pem&ssl_certfile=/cert&ssl_keyfile=/key";
        let expected = [
            ("ca_file", "/etc/ca.pem"),
            ("cert_file", "/cert"),
            ("key_file", "/key"),
        ];
        let expected = expected.map(|(key, value)| (key, value.to_owned()));
        assert_eq!(parsed(files).settings(), expected);
    }

    #[test]
    fn all_forms_are_shown_as_one() {
        for (text, expected) in [
            ("redis://r", "redis://r:6379/0"),
            ("redis://", "redis://localhost:6379/0"),
            ("REDISS://u:p@r:6380/2", "rediss://u:***@r:6380/2"),
            ("valkey://u@r", "redis://u@r:6379/0"),
            ("redis://:p@r", "redis://:***@r:6379/0"),
            ("redis://[::1]:7/", "redis://[::1]:7/0"),
            ("redis://r?db=3&socket_timeout=5", "redis://r:6379/3"),
            (
                "rediss://r/1?ssl_cert_reqs=none",
                "rediss://r:6379/1?ssl_cert_reqs=none",
            ),
        ] {
            assert_eq!(parsed(text).masked(), expected, "{text}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_do_and_says_so() {
        for (text, expected) in [
            (
                "redis+sentinel://a,b/mymaster",
                "Redis Sentinel is not built in yet",
            ),
            ("sentinel://a", "Redis Sentinel"),
            ("redis+cluster://a", "Redis Cluster"),
            ("redis://a:1,b:2", "a list of Redis servers"),
            ("unix:///run/redis.sock", "a Unix socket"),
            ("http://a", "redis://"),
            ("redis:6379", "redis://"),
            ("redis://a/one", "\"one\" is not the number of a database"),
            ("redis://a?colour=red", "\"colour\""),
            ("redis://a:x", "not a port"),
        ] {
            let refused = text.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(refused.contains(expected), "{text}: {refused}");
        }
    }

    #[test]
    fn never_tells_a_password() {
        let url = parsed("redis://ann:secret@host:1/2");
        assert_eq!(format!("{url} {url:?}"), "host:1/2 redis://host:1/2");
        for text in [
            "redis://ann:secret@host:port",
            "ann:secret@host",
            "redis://ann:secret@host/x",
            "ann-secret-password://host",
            "redis://ann:sec#secret@host:1/x",
        ] {
            let error = text.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
