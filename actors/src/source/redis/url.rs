//! Where a Redis server is, as a URL of redis-py or of prefect-redis. The password in it never reaches a log or an
//! error.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::address::{self, Parts, encode, host_and_port, port, unknown_parameter};
use crate::settings::InvalidUrl;
use crate::tls::{Check, Versions};

const EXPECTED: &str = "give redis://USER:PASSWORD@HOST:PORT/DATABASE, rediss:// for TLS, unix:///PATH for a \
     socket, or redis+sentinel://USER:PASSWORD@SENTINEL,SENTINEL/SERVICE/DATABASE";
const DEFAULT_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Parameters of Python's client that tune that client.
const HARMLESS: [&str; 17] = [
    "client_name",
    "decode_responses",
    "encoding",
    "encoding_errors",
    "health_check_interval",
    "legacy_responses",
    "lib_name",
    "lib_version",
    "max_connections",
    // At least half of the sentinels must agree here in any case.
    "min_other_sentinels",
    "protocol",
    "retry_on_error",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_read_size",
    "socket_timeout",
];

/// Those of them that are a number.
const NUMBERS: [&str; 5] = [
    "health_check_interval",
    "max_connections",
    "socket_connect_timeout",
    "socket_read_size",
    "socket_timeout",
];

/// What protects a connection in Python and cannot be done here, each with the way round it.
const NOT_DONE: [(&str, &str); 11] = [
    (
        "ssl_ca_path",
        "name one file with all authorities as ssl_ca_certs",
    ),
    (
        "ssl_ca_data",
        "put it into a file and name that as ssl_ca_certs",
    ),
    (
        "ssl_password",
        "decrypt the key with `openssl pkey`, and name the file as ssl_keyfile",
    ),
    (
        "ssl_ciphers",
        "only safe ones are spoken here; leave it out",
    ),
    (
        "ssl",
        "with rediss:// and rediss+sentinel:// all is encrypted, to servers and sentinels alike",
    ),
    ("ssl_include_verify_flags", "leave it out"),
    ("ssl_exclude_verify_flags", "leave it out"),
    ("ssl_validate_ocsp", "leave it out"),
    ("ssl_validate_ocsp_stapled", "leave it out"),
    ("ssl_ocsp_context", "leave it out"),
    ("ssl_ocsp_expected_cert", "leave it out"),
];

/// Where a Redis server is and as whom it is used.
///
/// `redis://` or `rediss://` (TLS), then `user:password@`, host, port and `/database`, each of which may
/// be missing; `unix:///path`; or `redis+sentinel://` and `rediss+sentinel://`, whose hosts are sentinels that
/// know the master of the service.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub(super) place: Place,
    pub(super) database: i64,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) tls: bool,
    /// What is checked of a server's certificate.
    pub(super) check: Check,
    pub(super) tls_versions: Versions,
    settings: Vec<(&'static str, String)>,
    ignored: Vec<String>,
}

/// How the server is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A host, with its port.
    Host(String, u16),
    /// A socket of this machine.
    Socket(PathBuf),
    /// By asking others.
    Sentinels(Sentinels),
}

/// Those who know where the master of a service is.
#[derive(Clone, PartialEq, Eq)]
pub struct Sentinels {
    /// Each with its port.
    pub members: Vec<(String, u16)>,
    /// The name under which they watch the master.
    pub service: String,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
}

/// Without its password.
impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.service, hosts(&self.members))
    }
}

impl Default for RedisUrl {
    fn default() -> Self {
        Self {
            place: Place::Host("localhost".to_owned(), DEFAULT_PORT),
            database: 0,
            username: None,
            password: None,
            tls: false,
            check: Check::AuthorityAndName,
            tls_versions: Versions::default(),
            settings: Vec::new(),
            ignored: Vec::new(),
        }
    }
}

impl FromStr for RedisUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = text.split_once(':').ok_or(EXPECTED)?;
        let scheme = Scheme::of(&scheme.to_ascii_lowercase())?;
        let is_relative = scheme == Scheme::Socket && !rest.starts_with('/');
        let rest = match rest.strip_prefix("//") {
            Some(rest) => rest.to_owned(),
            None if is_relative => format!("/{rest}"),
            None if scheme == Scheme::Socket => rest.to_owned(),
            None => return Err(EXPECTED.into()),
        };
        let (rest, is_insecure) = match rest.strip_suffix("#insecure") {
            Some(rest) => (rest, true),
            None => (&rest[..], false),
        };
        let user = rest.split([':', '/', '?', '@']).next();
        if rest.contains('@') && user.is_some_and(|user| user.contains('#')) {
            // Python's client reads the address only as far as there.
            return Err("a # in the name of the user is written as %23".into());
        }
        let mut url = Self {
            tls: matches!(
                scheme,
                Scheme::Host { tls: true } | Scheme::Sentinel { tls: true }
            ),
            ..Self::default()
        };
        // Python's client reads none of it either.
        let (login, rest) = split_login(scheme, rest)?;
        let (parts, has_fragment) = Parts::behind(login, rest)?.without_fragment();
        if has_fragment {
            url.ignored.push("what stands behind the #".to_owned());
        }
        let mut given = Given::default();
        for parameter in parts.parameters() {
            // Empty is unset.
            if let (name, Some(value)) = parameter? {
                given.take(&mut url, &name, value)?;
            }
        }
        let (place, database) = match scheme {
            Scheme::Host { .. } => given.host(&mut url, parts.hosts, parts.path)?,
            Scheme::Socket => {
                let path = percent_decode_str(parts.path).decode_utf8_lossy();
                let root = if is_relative { "" } else { "/" };
                let path = match given.path.take() {
                    Some(given) if path.is_empty() => given,
                    _ => format!("{root}{path}").into(),
                };
                (Place::Socket(path), None)
            }
            Scheme::Sentinel { .. } => given.sentinels(parts.hosts, parts.path)?,
        };
        url.place = place;
        url.database = match given.database.or(database) {
            Some(number) if number < 0 => return Err(no_database(&number.to_string())),
            number => number.unwrap_or(0),
        };
        // A certificate without a key has it in the same file.
        if let Some(file) = said(&url.settings, "cert_file")
            && said(&url.settings, "key_file").is_none()
        {
            url.settings.push(("key_file", file));
        }
        url.username = parts.user.clone().or(given.username);
        url.password = parts.password.clone().or(given.password);
        if is_insecure || given.trusts_anyone {
            url.check = Check::Nothing;
        }
        Ok(url)
    }
}

/// What the parameters say that does not count alone.
#[derive(Default)]
struct Given {
    seen: Vec<(String, String)>,
    host: Option<String>,
    port: Option<u16>,
    path: Option<PathBuf>,
    database: Option<i64>,
    username: Option<String>,
    password: Option<String>,
    trusts_anyone: bool,
    of_sentinels: [Option<String>; 2],
}

impl Given {
    fn take(&mut self, url: &mut RedisUrl, name: &str, value: String) -> Result<(), InvalidUrl> {
        match self.seen.iter().find(|(seen, _)| seen == name) {
            Some((_, first)) if *first == value => return Ok(()),
            Some(_) => return Err(format!("{name} is given twice, and not the same").into()),
            None => self.seen.push((name.to_owned(), value.clone())),
        }
        match name {
            "username" => self.username = Some(value),
            "password" => self.password = Some(value),
            "host" => self.host = Some(value),
            "port" => self.port = Some(port(&value)?),
            // Where a socket is named by nothing else.
            "path" => {
                url.ignored.push(name.to_owned());
                self.path = Some(value.into());
            }
            "db" => self.database = Some(database(&value)?),
            "sentinel_username" => self.of_sentinels[0] = Some(value),
            "sentinel_password" => self.of_sentinels[1] = Some(value),
            name if name.starts_with("ssl_") && !url.tls => {
                return Err(format!("{name} protects nothing without TLS: write rediss").into());
            }
            "ssl_cert_reqs" => match value.as_str() {
                "none" => self.trusts_anyone = true,
                // A server always shows one, so that both ask for the same.
                "optional" | "required" => {}
                _ => return Err("ssl_cert_reqs is none, optional or required".into()),
            },
            "ssl_check_hostname" => {
                // No other word is a no to Python's client.
                let no = ["0", "F", "FALSE", "N", "NO"];
                if no.contains(&value.to_ascii_uppercase().as_str()) {
                    url.check = Check::Authority;
                }
            }
            "ssl_min_version" => {
                let version = match value.trim() {
                    "771" => "TLSv1.2",
                    "772" => "TLSv1.3",
                    _ => return Err("ssl_min_version is 771 (TLS 1.2) or 772 (TLS 1.3)".into()),
                };
                url.tls_versions = Versions::of(Some((name, version)), None)?;
            }
            "ssl_ca_certs" => url.settings.push(("ca_file", value)),
            "ssl_certfile" => url.settings.push(("cert_file", value)),
            "ssl_keyfile" => url.settings.push(("key_file", value)),
            "protocol" if !["2", "3"].contains(&value.as_str()) => {
                return Err("protocol is 2 or 3".into());
            }
            name if NUMBERS.contains(&name) && !is_number(name, &value) => {
                return Err(format!("{name} is a number, not {value:?}").into());
            }
            name if HARMLESS.contains(&name) => url.ignored.push(name.to_owned()),
            name => {
                let known = NOT_DONE.iter().find(|(known, _)| *known == name);
                return Err(known.map_or_else(
                    || unknown_parameter(name),
                    |(_, way)| format!("{name} is not done here: {way}").into(),
                ));
            }
        }
        Ok(())
    }

    fn host(
        &self,
        url: &mut RedisUrl,
        hosts: &str,
        path: &str,
    ) -> Result<(Place, Option<i64>), InvalidUrl> {
        if hosts.contains(',') {
            return Err(format!("one server is named, not a list; {EXPECTED}").into());
        }
        let default = self.port.unwrap_or(DEFAULT_PORT);
        let given = self.host.clone().unwrap_or_else(|| "localhost".to_owned());
        let (host, port) = match hosts.strip_prefix(':') {
            Some("") => (given, default),
            Some(alone) => (given, port(alone)?),
            None if hosts.is_empty() => (given, default),
            None => host_and_port(hosts, default)?,
        };
        if hosts.starts_with('[') && host.parse::<Ipv6Addr>().is_err() && !host.contains('%') {
            return Err("brackets stand around a whole IPv6 address".into());
        }
        // As Python's client has it.
        let port = if port == 0 { default } else { port };
        // As Python's client reads it, which goes to 0 with what is no number.
        let digits = percent_decode_str(path)
            .decode_utf8_lossy()
            .replace('/', "");
        let database = digits.trim().parse::<i64>().ok();
        // Python reads `1_0`, and digits of other scripts.
        let is_odd = |c: char| c == '_' || (c.is_numeric() && !c.is_ascii_digit());
        if database.is_none()
            && digits.chars().all(|c| is_odd(c) || c.is_ascii_digit())
            && !digits.is_empty()
        {
            return Err(no_database(&digits));
        }
        if database.is_none() && !digits.is_empty() {
            url.ignored
                .push("the path, which is no number of a database".to_owned());
        }
        Ok((Place::Host(host.to_lowercase(), port), database))
    }

    fn sentinels(&self, hosts: &str, path: &str) -> Result<(Place, Option<i64>), InvalidUrl> {
        let mut members = Vec::new();
        for member in hosts
            .split(',')
            .map(str::trim)
            .filter(|member| !member.is_empty())
        {
            members.push(self::member(member)?);
        }
        if members.is_empty() {
            return Err(format!("a sentinel is missing; {EXPECTED}").into());
        }
        let mut segments = path.split('/').filter(|segment| !segment.is_empty());
        let service = segments
            .next()
            .ok_or_else(|| format!("the name of the service is missing; {EXPECTED}"))?;
        let database = segments.next().map(self::database).transpose()?;
        if segments.next().is_some() {
            return Err(
                format!("the path is longer than a service and a database; {EXPECTED}").into(),
            );
        }
        let [username, password] = self.of_sentinels.clone();
        let sentinels = Sentinels {
            members,
            service: service.to_owned(),
            username,
            password,
        };
        Ok((Place::Sentinels(sentinels), database))
    }
}

/// A sentinel with its port; IPv6 stands in brackets.
fn member(text: &str) -> Result<(String, u16), InvalidUrl> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').unwrap_or((rest, ""));
            (host, rest.strip_prefix(':').unwrap_or(rest))
        }
        None => text.rsplit_once(':').unwrap_or((text, "")),
    };
    let port = match port.trim() {
        "" => SENTINEL_PORT,
        port => self::port(port.strip_prefix('+').unwrap_or(port))?,
    };
    if host.is_empty() {
        return Err("the host of a sentinel is missing".into());
    }
    Ok((host.to_owned(), port))
}

impl RedisUrl {
    /// What its parameters say about fields of [`RedisSettings`](super::RedisSettings), by key.
    pub fn settings(&self) -> &[(&'static str, String)] {
        &self.settings
    }

    /// Its parameters that change nothing here.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// How the server is found.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The number of the database.
    pub fn database(&self) -> i64 {
        self.database
    }

    /// Whether the connections are encrypted; whether then a certificate must be trusted, and made out to the host.
    pub fn encryption(&self) -> Option<(bool, bool)> {
        let check = self.check;
        self.tls
            .then_some((check != Check::Nothing, check == Check::AuthorityAndName))
    }

    /// A user that is named without a password logs in with an empty one.
    pub fn login(&self) -> Option<(Option<&str>, &str)> {
        login(self.username.as_deref(), self.password.as_deref())
    }

    /// The whole URL in one form, however it was written, with the password masked.
    pub fn masked(&self) -> String {
        let user = self.username.as_deref().map(encode).unwrap_or_default();
        let login = match &self.password {
            Some(_) => format!("{user}:***@"),
            None if user.is_empty() => String::new(),
            None => format!("{user}@"),
        };
        let scheme = self.scheme();
        let mut query = match self.check {
            Check::Nothing => "?ssl_cert_reqs=none".to_owned(),
            Check::Authority => "?ssl_check_hostname=false".to_owned(),
            Check::AuthorityAndName => String::new(),
        };
        let place = match &self.place {
            Place::Socket(path) => {
                query = format!("?db={}", self.database);
                path.display().to_string()
            }
            Place::Host(..) => self.to_string(),
            Place::Sentinels(sentinels) => {
                let members = hosts(&sentinels.members);
                format!("{members}/{}/{}", sentinels.service, self.database)
            }
        };
        format!("{scheme}://{login}{place}{query}")
    }

    fn scheme(&self) -> &'static str {
        match (&self.place, self.tls) {
            (Place::Host(..), false) => "redis",
            (Place::Host(..), true) => "rediss",
            (Place::Socket(_), _) => "unix",
            (Place::Sentinels(_), false) => "redis+sentinel",
            (Place::Sentinels(_), true) => "rediss+sentinel",
        }
    }
}

impl Sentinels {
    /// As whom they are asked.
    pub fn login(&self) -> Option<(Option<&str>, &str)> {
        login(self.username.as_deref(), self.password.as_deref())
    }
}

fn login<'a>(
    user: Option<&'a str>,
    password: Option<&'a str>,
) -> Option<(Option<&'a str>, &'a str)> {
    (user.is_some() || password.is_some()).then(|| (user, password.unwrap_or_default()))
}

/// The place and the database: what errors and logs may say.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.database;
        match &self.place {
            Place::Host(host, port) => write!(f, "{}/{database}", host_with_port(host, *port)),
            Place::Socket(path) => write!(f, "{}/{database}", path.display()),
            Place::Sentinels(sentinels) => write!(
                f,
                "{}/{database} (sentinels {})",
                sentinels.service,
                hosts(&sentinels.members)
            ),
        }
    }
}

/// The same, so that settings can be printed without their password.
impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{self}", self.scheme())
    }
}

fn hosts(members: &[(String, u16)]) -> String {
    let members = members.iter();
    let members: Vec<String> = members
        .map(|(host, port)| host_with_port(host, *port))
        .collect();
    members.join(",")
}

pub(super) fn host_with_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Host { tls: bool },
    Socket,
    Sentinel { tls: bool },
}

impl Scheme {
    fn of(scheme: &str) -> Result<Self, InvalidUrl> {
        match scheme {
            "redis" => Ok(Self::Host { tls: false }),
            "rediss" => Ok(Self::Host { tls: true }),
            "unix" => Ok(Self::Socket),
            "redis+sentinel" => Ok(Self::Sentinel { tls: false }),
            "rediss+sentinel" => Ok(Self::Sentinel { tls: true }),
            _ if scheme.contains("cluster") => {
                let who = "Redis Cluster is used neither by Prefect nor here";
                Err(format!("{who}; {EXPECTED}").into())
            }
            // It may be anything, a password too, and is not repeated.
            _ => Err(EXPECTED.into()),
        }
    }
}

/// Splits before the host, where Python's client does: at the last `@` before the first `/`, `?` or `#`. An `@`
/// behind that is a part of something else, unless what stands before can be no host; then it is a password
/// that nobody has escaped.
fn split_login(scheme: Scheme, text: &str) -> Result<(Option<&str>, &str), InvalidUrl> {
    let end = text.find(['/', '?', '#']).unwrap_or(text.len());
    let (authority, behind) = text.split_at(end);
    if let Some(at) = authority.rfind('@') {
        return Ok((Some(&text[..at]), &text[at + 1..]));
    }
    let end = behind.find(['?', '#']).unwrap_or(behind.len());
    let (path, parameters) = behind.split_at(end);
    let is_login = match scheme {
        // It has no host.
        Scheme::Socket => path.contains('@') || path.is_empty(),
        Scheme::Host { .. } | Scheme::Sentinel { .. } => {
            let mut hosts = authority.split(',').map(str::trim);
            !hosts.all(|host| match host.strip_prefix(':') {
                Some(alone) => alone.is_empty() || port(alone).is_ok(),
                None => host.is_empty() || host_and_port(host, 0).is_ok(),
            })
        }
    };
    if is_login {
        return Ok(address::split_login(text));
    }
    // It may be meant for a password of digits. A number of a database has none, nor has a parameter's name.
    let is_odd = matches!(scheme, Scheme::Host { .. }) && path.contains('@');
    let mut names = parameters
        .split('&')
        .filter_map(|pair| pair.split('=').next());
    if authority.contains(':') && (is_odd || names.any(|name| name.contains('@'))) {
        return Err(
            "an @ stands behind the host, where it means nothing; in a password a `/` is written as %2F, \
             a `?` as %3F, and a `#` as %23"
                .into(),
        );
    }
    Ok((None, text))
}

fn said(settings: &[(&'static str, String)], key: &str) -> Option<String> {
    let mut settings = settings.iter();
    settings.find_map(|(said, value)| (*said == key).then(|| value.clone()))
}

fn is_number(name: &str, value: &str) -> bool {
    match value.trim().parse::<f64>() {
        Ok(number) => name != "max_connections" || number >= 1.0,
        Err(_) => false,
    }
}

/// One below 0 is none either, where it counts.
fn database(text: &str) -> Result<i64, InvalidUrl> {
    text.trim().parse().map_err(|_| no_database(text))
}

fn no_database(text: &str) -> InvalidUrl {
    format!("{text:?} is not the number of a database; {EXPECTED}").into()
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
        assert!(url.tls && url.check == Check::Nothing);
        assert_eq!(url.to_string(), "[::1]:7000/3");
        assert_eq!(parsed("redis://:secret@host").username, None);
        assert_eq!(
            parsed("redis://:p/q@s@r:1"),
            parsed("redis://:p%2Fq%40s@r:1")
        );
        assert_eq!(parsed("redis://host?db=4&socket_timeout=3").database, 4);
        assert_eq!(parsed("rediss://host/1#insecure").check, Check::Nothing);
        let url = parsed("rediss://:a#b@host/1#x?ssl_cert_reqs=none&db=2");
        assert_eq!(url.check, Check::AuthorityAndName);
        assert_eq!((url.database, url.password.as_deref()), (1, Some("a#b")));
        assert_eq!(url.ignored(), ["what stands behind the #"]);
        let files = "rediss://h?ssl_ca_certs=/etc/ca.pem&ssl_certfile=/cert&ssl_keyfile=/key";
        let expected = [
            ("ca_file", "/etc/ca.pem"),
            ("cert_file", "/cert"),
            ("key_file", "/key"),
        ];
        let expected = expected.map(|(key, value)| (key, value.to_owned()));
        assert_eq!(parsed(files).settings(), expected);
        let both = parsed("rediss://h?ssl_certfile=/both").settings().to_vec();
        let expected = ["cert_file", "key_file"].map(|key| (key, "/both".to_owned()));
        assert_eq!(both, expected);
    }

    #[test]
    fn an_at_behind_the_host_ends_no_login() {
        for (text, expected) in [
            ("redis://h:1/2?password=p@s", "redis://:***@h:1/2"),
            ("redis://h:1?client_name=a@b", "redis://h:1/0"),
            ("redis://[::1]:1/2?password=p@s", "redis://:***@[::1]:1/2"),
            ("redis://:1?password=p@s", "redis://:***@localhost:1/0"),
            ("redis://h/a@b", "redis://h:6379/0"),
            ("redis://u:p@h/2?client_name=a@b", "redis://u:***@h:6379/2"),
            ("redis://u:p@h/2#a@b", "redis://u:***@h:6379/2"),
            (
                "redis+sentinel://a:1,b:2/m?password=p@s,c",
                "redis+sentinel://:***@a:1,b:2/m/0",
            ),
            (
                "redis+sentinel://a:1,b:2/@m",
                "redis+sentinel://a:1,b:2/@m/0",
            ),
            (
                "unix://x:1/r.sock?username=a@b&password=p@q",
                "unix://a%40b:***@/r.sock?db=0",
            ),
        ] {
            assert_eq!(parsed(text).masked(), expected, "{text}");
        }
        let url = parsed("redis://h:1/2?password=p@s");
        assert_eq!(url.password.as_deref(), Some("p@s"));
    }

    #[test]
    fn all_forms_are_shown_as_one() {
        for (text, expected) in [
            ("redis://r", "redis://r:6379/0"),
            ("redis://", "redis://localhost:6379/0"),
            ("REDISS://u:p@r:6380/2", "rediss://u:***@r:6380/2"),
            ("redis://u@r", "redis://u@r:6379/0"),
            (
                "unix://u:p@/run/r.sock?db=2",
                "unix://u:***@/run/r.sock?db=2",
            ),
            (
                "unix://u:p@?path=/run/r.sock",
                "unix://u:***@/run/r.sock?db=0",
            ),
            ("unix:///run/a?path=/run/b", "unix:///run/a?db=0"),
            (
                "REDIS+Sentinel://:p@a,[::1]:1/m/2",
                "redis+sentinel://:***@a:26379,[::1]:1/m/2",
            ),
            ("redis://:p@r", "redis://:***@r:6379/0"),
            ("redis://[::1]:7/", "redis://[::1]:7/0"),
            ("redis://r?db=3&socket_timeout=5", "redis://r:6379/3"),
            ("redis://r/-1?db=3", "redis://r:6379/3"),
            (
                "redis+sentinel://a/m/-1?db=3",
                "redis+sentinel://a:26379/m/3",
            ),
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
            ("redis+sentinel://a,b", "the name of the service"),
            ("redis+sentinel://,/m", "a sentinel is missing"),
            ("redis+sentinel://a/m/1/2", "the path is longer"),
            ("valkey://a", "redis://"),
            ("redis+cluster://a", "Redis Cluster"),
            ("redis://a:1,b:2", "not a list"),
            ("rediss://a?ssl_ca_path=/etc", "ssl_ca_certs"),
            ("redis://a?ssl_cert_reqs=none", "rediss"),
            (
                "rediss://a?ssl_cert_reqs=none&ssl_cert_reqs=required",
                "twice",
            ),
            ("http://a", "redis://"),
            ("redis:6379", "redis://"),
            (
                "redis://a?db=one",
                "\"one\" is not the number of a database",
            ),
            ("redis://a?colour=red", "\"colour\""),
            ("redis://a:x", "not a port"),
            ("redis://u:p[::1]:1", "not a port"),
            ("redis://u[::1]:1", "not a port"),
            ("redis://u[:1", "whole IPv6 address"),
            ("redis://[2001:d b8::7]", "whole IPv6 address"),
            ("redis://[::1]a:1", "whole IPv6 address"),
            ("redis://a/1_0", "\"1_0\" is not"),
            ("redis+sentinel://a/m?ssl=true", "rediss+sentinel"),
            ("redis://[2001:db8:7]", "whole IPv6 address"),
            ("redis://h?x:p@ss=1", "%3F"),
            ("redis://a#b:c@h", "%23"),
            ("redis://a/-1", "\"-1\" is not the number of a database"),
            ("redis+sentinel://a/m/-1", "\"-1\" is not"),
            ("redis+sentinel://a/m/1?db=-1", "\"-1\" is not"),
            ("redis+sentinel://a/m/x?db=1", "\"x\" is not"),
            ("redis://ann:12/5@h:1/0", "behind the host"),
            ("redis://ann:12?5@h:1/0", "behind the host"),
            ("redis://ann:12#5@h:1/0", "behind the host"),
            ("redis+sentinel://ann:12?5@h/m", "behind the host"),
        ] {
            let refused = text.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(refused.contains(expected), "{text}: {refused}");
        }
    }

    #[test]
    fn never_tells_a_password() {
        let url = parsed("redis://ann:secret@host:1/2");
        assert_eq!(format!("{url} {url:?}"), "host:1/2 redis://host:1/2");
        let url = parsed("redis://host:1/2?us%65rname=ann&p%61ssword=secret");
        assert_eq!(url.login(), Some((Some("ann"), "secret")));
        assert_eq!(format!("{url} {url:?}"), "host:1/2 redis://host:1/2");
        for text in [
            "redis://ann:secret@host:port",
            "redis://ann:secret",
            "redis://ann:secret:1/0",
            "ann:secret@host",
            "redis://ann:secret@host/?db=x",
            "ann-secret-password://host",
            "redis://ann:sec#secret@host:1/?db=x",
            "redis://host:1/?p%61ss=secret",
        ] {
            let error = text.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
