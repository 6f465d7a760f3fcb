//! Where a Redis server is, as a URL. The password in it never reaches a log or an error.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::{Host, Url};

/// Where a Redis server is and who we are to it.
///
/// `redis://` or `rediss://` (TLS), then `user:password@`, host, port and `/database`, each of
/// which may be missing.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: i64,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) tls: bool,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) insecure: bool,
}

/// Why a text is no Redis URL that can be used; never holds the text, which may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// Not a URL at all.
    #[error(
        "not a URL ({0}); write redis://user:password@host:6379/0, with %XX for characters such \
         as @, / and # in the password"
    )]
    Syntax(String),
    /// A way to find servers that is not supported.
    #[error(
        "{0} is not supported yet; give the URL of one server, redis://host:6379/0 or \
         rediss://host:6379/0 for TLS"
    )]
    Unsupported(&'static str),
    /// Another scheme.
    #[error("`{0}:` is no scheme of Redis; use redis:// or, for TLS, rediss://")]
    Scheme(String),
    /// The path is no number.
    #[error("the path of the URL is no database number; write /0 or leave it out")]
    Database,
    /// The user or the password cannot be decoded.
    #[error("the user or the password of the URL is not percent-encoded UTF-8")]
    Credentials,
    /// Something behind the question mark that means nothing to us.
    #[error(
        "the option `{0}` of the URL is not known or has no such value; known are db, \
         ssl_ca_certs and ssl_cert_reqs (`required` or `none`)"
    )]
    Option(String),
}

/// Options that other clients understand in a URL and that change nothing about what we do.
const OF_OTHER_CLIENTS: &[&str] = &[
    "client_name",
    "decode_responses",
    "health_check_interval",
    "max_connections",
    "protocol",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_timeout",
    "ssl_check_hostname",
    "timeout",
];

const DEFAULT_PORT: u16 = 6379;

impl Default for RedisUrl {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: DEFAULT_PORT,
            database: 0,
            username: None,
            password: None,
            tls: false,
            ca_file: None,
            insecure: false,
        }
    }
}

impl FromStr for RedisUrl {
    type Err = RedisUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let tls = check_scheme(text)?;
        let url = Url::parse(text).map_err(|error| RedisUrlError::Syntax(error.to_string()))?;
        let host = match url.host() {
            None | Some(Host::Domain("")) => "localhost".to_owned(),
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
        };
        let mut parsed = Self {
            host,
            port: url.port().unwrap_or(DEFAULT_PORT),
            database: database(url.path())?,
            username: decoded(url.username())?,
            password: decoded(url.password().unwrap_or_default())?,
            tls,
            ..Self::default()
        };
        for (name, value) in url.query_pairs() {
            parsed.take_option(&name, &value)?;
        }
        match url.fragment() {
            Some("insecure") => parsed.insecure = true,
            Some(_) => return Err(RedisUrlError::Option("#".to_owned())),
            None => {}
        }
        Ok(parsed)
    }
}

impl RedisUrl {
    fn take_option(&mut self, name: &str, value: &str) -> Result<(), RedisUrlError> {
        match (name, value) {
            ("db", number) => self.database = database(number)?,
            ("ssl_ca_certs", path) => self.ca_file = Some(path.into()),
            ("ssl_cert_reqs", "none") => self.insecure = true,
            ("ssl_cert_reqs", "required" | "optional") => {}
            (name, _) if OF_OTHER_CLIENTS.contains(&name) => {}
            (name, _) => return Err(RedisUrlError::Option(name.to_owned())),
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

/// The same; whoever prints settings prints no password.
impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        write!(f, "{scheme}://{self}")
    }
}

/// Whether the scheme asks for TLS.
fn check_scheme(text: &str) -> Result<bool, RedisUrlError> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(RedisUrlError::Syntax("there is no ://".to_owned()));
    };
    let scheme = scheme.to_ascii_lowercase();
    if scheme.contains("sentinel") {
        return Err(RedisUrlError::Unsupported("Redis Sentinel"));
    }
    if scheme.contains("cluster") {
        return Err(RedisUrlError::Unsupported("Redis Cluster"));
    }
    if scheme.contains("unix") {
        return Err(RedisUrlError::Unsupported("a Unix socket"));
    }
    let hosts = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let hosts = hosts.rsplit_once('@').map_or(hosts, |(_, hosts)| hosts);
    if hosts.contains(',') {
        return Err(RedisUrlError::Unsupported("a list of Redis servers"));
    }
    match scheme.as_str() {
        "redis" | "valkey" => Ok(false),
        "rediss" | "valkeys" => Ok(true),
        // A password before a wrong `://` must not become a scheme in an error.
        other if other.len() <= 16 && other.chars().all(|c| c.is_ascii_alphanumeric()) => {
            Err(RedisUrlError::Scheme(other.to_owned()))
        }
        _ => Err(RedisUrlError::Scheme("…".to_owned())),
    }
}

fn database(path: &str) -> Result<i64, RedisUrlError> {
    let number = path.trim_matches('/');
    if number.is_empty() {
        return Ok(0);
    }
    match number.parse() {
        Ok(number) if number >= 0 => Ok(number),
        _ => Err(RedisUrlError::Database),
    }
}

/// Percent-decoded text; nothing if it is empty.
fn decoded(text: &str) -> Result<Option<String>, RedisUrlError> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let escaped = (byte == b'%')
            .then(|| behind.split_at_checked(2))
            .flatten()
            .and_then(|(digits, behind)| {
                let digits = std::str::from_utf8(digits).ok()?;
                Some((u8::from_str_radix(digits, 16).ok()?, behind))
            });
        let (byte, behind) = escaped.unwrap_or((byte, behind));
        decoded.push(byte);
        rest = behind;
    }
    String::from_utf8(decoded)
        .map(Some)
        .map_err(|_| RedisUrlError::Credentials)
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
        assert_eq!(parsed("redis://host?db=4&socket_timeout=3").database, 4);
        let ca = parsed("rediss://host?ssl_ca_certs=/etc/ca.pem").ca_file;
        assert_eq!(ca, Some("/etc/ca.pem".into()));
    }

    #[test]
    fn refuses_what_it_cannot_do_and_says_so() {
        let refused = |text: &str| text.parse::<RedisUrl>().unwrap_err().to_string();
        for text in [
            "redis+sentinel://a,b/mymaster",
            "sentinel://a",
            "redis+cluster://a",
            "redis://a:1,b:2",
            "unix:///run/redis.sock",
        ] {
            assert!(refused(text).contains("not supported yet"), "{text}");
        }
        assert!(refused("http://a").contains("`http:` is no scheme"));
        assert!(refused("redis://a/one").contains("database number"));
        assert!(refused("redis://a?colour=red").contains("`colour`"));
        assert!(refused("host:6379").contains("redis://user:password@host"));
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
            "redis://ann:sec#secret@host:1/2",
        ] {
            if let Err(error) = text.parse::<RedisUrl>() {
                assert!(!error.to_string().contains("secret"), "{error}");
            }
        }
    }
}
