//! Where Redis is.

use std::fmt;
use std::path::PathBuf;

use super::database_url::mask_url;
use super::url_parts::{encode, host_and_port, part, split_userinfo};
use super::value::{Input, SettingValue};

const EXPECTED: &str = "give redis://USER:PASSWORD@HOST:PORT/DATABASE, rediss:// for TLS, or off";
const DEFAULT_PORT: u16 = 6379;

/// Parameters of Python's client that tune that client.
const HARMLESS_PARAMETERS: [&str; 16] = [
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

/// A Redis server to read from, or none.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum RedisUrl {
    /// None, whatever another layer says.
    Off,
    /// This one.
    At(RedisAddress),
}

/// One Redis server.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RedisAddress {
    /// In one form whatever it was written in: everything escaped, the database in the path.
    url: String,
    /// The authorities that the URL itself names.
    pub(crate) ca_file: Option<PathBuf>,
    /// The certificate to show and its key, where the URL itself names them.
    pub(crate) certificate: [Option<PathBuf>; 2],
}

impl RedisAddress {
    /// With the password, for the one who connects.
    pub(crate) fn reveal(&self) -> &str {
        &self.url
    }
}

/// With the password masked.
impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&mask_url(&self.url))
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show())
    }
}

/// The parts of a URL before they are put together again.
#[derive(Default)]
struct Parts {
    user: Option<String>,
    password: Option<String>,
    database: i64,
    ca_file: Option<PathBuf>,
    certificate: [Option<PathBuf>; 2],
    /// Believes any certificate of anyone.
    is_insecure: bool,
}

impl RedisUrl {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
        let scheme = scheme.to_ascii_lowercase();
        match scheme.as_str() {
            "redis" | "rediss" => parse_address(&scheme, rest).map(Self::At),
            "redis+sentinel" | "rediss+sentinel" => Err(format!(
                "Redis Sentinel is not built in yet; {EXPECTED}, and name the master itself"
            )),
            "redis+cluster" | "rediss+cluster" => {
                Err(format!("Redis Cluster is not built in yet; {EXPECTED}"))
            }
            _ => Err(EXPECTED.to_owned()),
        }
    }
}

fn parse_address(scheme: &str, rest: &str) -> Result<RedisAddress, String> {
    let mut parts = Parts::default();
    let (userinfo, rest) = split_userinfo(rest);
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, database) = place.split_once('/').unwrap_or((place, ""));
    if let Some(userinfo) = userinfo {
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        parts.user = part(user)?;
        parts.password = part(password)?;
    }
    if !database.is_empty() {
        parts.database = database_number(database.trim_end_matches('/'))?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        parts.read_parameter(name, &part(value)?.unwrap_or_default())?;
    }
    let (host, port) = match host {
        "" => ("localhost".to_owned(), DEFAULT_PORT),
        host => host_and_port(host, DEFAULT_PORT)?,
    };
    let url = build(scheme, &host, port, &parts);
    Ok(RedisAddress {
        url,
        ca_file: parts.ca_file,
        certificate: parts.certificate,
    })
}

impl Parts {
    fn read_parameter(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = || (!value.is_empty()).then(|| value.to_owned());
        match name {
            "db" if !value.is_empty() => self.database = database_number(value)?,
            "username" => self.user = text(),
            "password" => self.password = text(),
            "ssl_ca_certs" => self.ca_file = text().map(PathBuf::from),
            "ssl_cert_reqs" => self.is_insecure = value == "none",
            "ssl_certfile" => self.certificate[0] = text().map(PathBuf::from),
            "ssl_keyfile" => self.certificate[1] = text().map(PathBuf::from),
            _ if name.starts_with("ssl_") || HARMLESS_PARAMETERS.contains(&name) => {}
            _ if value.is_empty() => {}
            _ => {
                return Err(format!(
                    "the parameter {name:?} has no meaning here; remove it"
                ));
            }
        }
        Ok(())
    }
}

fn database_number(text: &str) -> Result<i64, String> {
    text.parse()
        .ok()
        .filter(|number| *number >= 0)
        .ok_or_else(|| format!("{text:?} is not the number of a database; {EXPECTED}"))
}

fn build(scheme: &str, host: &str, port: u16, parts: &Parts) -> String {
    let login = match (&parts.user, &parts.password) {
        (None, None) => String::new(),
        (user, password) => format!(
            "{}{}@",
            encode(user.as_deref().unwrap_or_default()),
            password
                .as_ref()
                .map_or_else(String::new, |password| format!(":{}", encode(password)))
        ),
    };
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let query = if parts.is_insecure {
        "?ssl_cert_reqs=none"
    } else {
        ""
    };
    format!("{scheme}://{login}{host}:{port}/{}{query}", parts.database)
}

/// The URL of what stands in settings of their own, as Prefect has them.
pub(super) struct Discrete<'a> {
    pub(super) is_tls: bool,
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: i64,
    pub(super) user: &'a str,
    /// Without one nobody logs in.
    pub(super) password: &'a str,
}

impl Discrete<'_> {
    pub(super) fn url(&self) -> String {
        let login = (!self.password.is_empty()).then(|| Parts {
            user: Some(self.user.to_owned()).filter(|user| !user.is_empty()),
            password: Some(self.password.to_owned()),
            ..Parts::default()
        });
        let parts = Parts {
            database: self.database,
            ..login.unwrap_or_default()
        };
        let scheme = if self.is_tls { "rediss" } else { "redis" };
        build(scheme, self.host, self.port, &parts)
    }
}

impl SettingValue for RedisUrl {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Text(text) => Self::parse(text.trim()),
            _ => Err(EXPECTED.to_owned()),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::At(address) => address.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> String {
        match RedisUrl::parse(text).unwrap() {
            RedisUrl::At(address) => address.reveal().to_owned(),
            RedisUrl::Off => "off".to_owned(),
        }
    }

    fn error(text: &str) -> String {
        RedisUrl::parse(text).unwrap_err()
    }

    #[test]
    fn all_forms_become_one() {
        for (text, expected) in [
            ("redis://r", "redis://r:6379/0"),
            ("redis://", "redis://localhost:6379/0"),
            ("REDISS://u:p@r:6380/2", "rediss://u:p@r:6380/2"),
            ("redis://:p@r", "redis://:p@r:6379/0"),
            ("redis://:p/q@s@r:1", "redis://:p%2Fq%40s@r:1/0"),
            ("redis://[::1]:7/", "redis://[::1]:7/0"),
            ("redis://r?db=3&socket_timeout=5", "redis://r:6379/3"),
            (
                "rediss://r/1?ssl_cert_reqs=none",
                "rediss://r:6379/1?ssl_cert_reqs=none",
            ),
            ("off", "off"),
        ] {
            assert_eq!(url(text), expected, "{text}");
        }
    }

    #[test]
    fn the_authorities_of_pythons_form_are_kept() {
        let RedisUrl::At(address) = RedisUrl::parse("rediss://r?ssl_ca_certs=/ca").unwrap() else {
            panic!("off");
        };
        assert_eq!(address.ca_file, Some(PathBuf::from("/ca")));
        let shows = "rediss://r?ssl_certfile=/cert&ssl_keyfile=/key";
        let RedisUrl::At(address) = RedisUrl::parse(shows).unwrap() else {
            panic!("an address");
        };
        let files = ["/cert", "/key"].map(|file| Some(PathBuf::from(file)));
        assert_eq!(address.certificate, files);
    }

    #[test]
    fn what_cannot_be_read_yet_is_named() {
        assert!(error("redis+sentinel://a,b/mymaster").contains("Sentinel"));
        assert!(error("redis+cluster://a").contains("Cluster"));
        assert!(error("http://r").contains("redis://"));
        assert!(error("redis:6379").contains("redis://"));
        assert!(error("redis://r/x").contains("\"x\""));
        assert!(error("redis://r?dbb=1").contains("\"dbb\""));
    }

    #[test]
    fn single_settings_make_a_url() {
        let discrete = Discrete {
            is_tls: true,
            host: "r",
            port: 6380,
            database: 2,
            user: "default",
            password: "p@ss",
        };
        assert_eq!(discrete.url(), "rediss://default:p%40ss@r:6380/2");
        let open = Discrete {
            is_tls: false,
            password: "",
            ..discrete
        };
        assert_eq!(open.url(), "redis://r:6380/2");
    }

    #[test]
    fn passwords_are_not_shown() {
        let url = RedisUrl::parse("redis://:hunter2@r").unwrap();
        assert_eq!(url.show(), "redis://:***@r:6379/0");
        assert!(!format!("{url:?}").contains("hunter2"));
    }
}
