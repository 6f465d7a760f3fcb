//! URLs of PostgreSQL: libpq's form, and SQLAlchemy's with the parameters of its driver.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use tokio_postgres::Config;
use tokio_postgres::config::SslNegotiation;

use super::environment::PgEnvironment;
use super::settings::TlsMode;
use crate::address::{Parts, decode, host_and_port, port, unknown_parameter};
use crate::settings::{InvalidUrl, OneOf, Spelling as _};
use crate::tls::Versions;

const DEFAULT_PORT: u16 = 5432;

/// Where a server of this machine is looked for when nothing says where it is.
const LOCAL: [&str; 5] = [
    "/run/postgresql",
    "/var/run/postgresql",
    "/tmp",
    "/private/tmp",
    "localhost",
];

/// Parameters of Python's driver and of libpq that tune these, or that change nothing here.
const HARMLESS: [&str; 15] = [
    "async_fallback",
    "client_encoding",
    "command_timeout",
    "default_transaction_isolation",
    "fallback_application_name",
    "gssencmode",
    "gsslib",
    "krbsrvname",
    "loop",
    "max_cacheable_statement_size",
    "max_cached_statement_lifetime",
    "prepared_statement_name_func",
    "service",
    "servicefile",
    "timeout",
];

/// Parameters that the driver here reads itself.
const OF_THE_DRIVER: [&str; 9] = [
    "channel_binding",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "sslnegotiation",
    "tcp_user_timeout",
];

/// Where a PostgreSQL server is and as whom it is used:
/// `postgresql://user:password@host:port/database?parameters`.
///
/// More hosts than one stand between commas, or as `?host=a:1&host=b:2` or `?host=a,b&port=1,2`; a host that
/// begins with a slash is the folder of a socket. A driver's name behind a `+`, as SQLAlchemy has it, is
/// ignored. Without a host it is this machine: its sockets, then `localhost`.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// All but the addresses.
    pub(super) config: Config,
    /// In the order of trying.
    pub(super) addresses: Vec<Address>,
    pub(super) target: Target,
    pub(super) tls_versions: Versions,
    settings: Vec<(&'static str, String)>,
    ignored: Vec<String>,
}

/// One of the places where the server may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name, a number, or a folder with a socket in it.
    pub host: String,
    /// The port, or the number in the name of the socket.
    pub port: u16,
    /// What is asked for in the file of passwords, as by Prefect's driver: a socket that names its own number may
    /// have another beside it.
    pub(super) given_port: u16,
    /// The number that the host's name stands for, where the URL says so.
    pub(super) number: Option<IpAddr>,
}

/// What a server must be like to be the one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Target {
    /// Any that answers.
    #[default]
    Any,
    /// One that follows no other.
    Primary,
    /// The same, and transactions may write there unless they say otherwise.
    ReadWrite,
}

impl Address {
    pub(super) fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    /// Of a folder; or of a socket itself, whose name says its number.
    fn new(host: String, port: u16) -> Result<Self, InvalidUrl> {
        let path = Path::new(&host);
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix(".s.PGSQL."));
        match (number, path.parent()) {
            (Some(number), Some(folder)) if host.starts_with('/') => Ok(Self {
                host: folder.display().to_string(),
                port: self::port(number)?,
                given_port: port,
                number: None,
            }),
            _ => Ok(Self {
                host,
                port,
                given_port: port,
                number: None,
            }),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        write!(f, "{host}:{port}")
    }
}

impl PostgresUrl {
    /// Of a URL, and of what the environment says beside it.
    ///
    /// # Errors
    ///
    /// It is no such URL, or the two say what cannot be done here.
    pub fn in_environment(text: &str, environment: &PgEnvironment) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let dialect = scheme.split('+').next().unwrap_or_default();
        if !["postgresql", "postgres"].contains(&dialect.to_ascii_lowercase().as_str()) {
            return Err("it begins with postgresql://".into());
        }
        let mut found = Found::default();
        let parts = Parts::of(rest)?;
        if parts.password.is_some() && parts.path.contains('@') {
            // It may be the rest of a password, and is shown as the name of the database.
            return Err("an @ stands behind the host: in a password `@` is written as %40 and `/` as %2F, and in the \
                 name of a database `@` as %40"
                .into());
        }
        found.authority = parts.hosts.to_owned();
        let database = decode(parts.path)?;
        for (name, value) in [
            ("user", &parts.user),
            ("password", &parts.password),
            ("dbname", &database),
        ] {
            found
                .driver
                .extend(value.clone().map(|value| (name, value)));
        }
        for parameter in parts.parameters() {
            // Empty is unset.
            if let (name, Some(value)) = parameter? {
                found.take(&name, value)?;
            }
        }
        found.url(environment)
    }

    /// Whether this mode goes with it: TLS may begin without a question only where it must begin.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn goes_with(&self, mode: TlsMode) -> Result<(), InvalidUrl> {
        let is_optional = matches!(mode, TlsMode::Disable | TlsMode::Allow | TlsMode::Prefer);
        if is_optional && self.config.get_ssl_negotiation() == SslNegotiation::Direct {
            return Err("TLS without asking first needs sslmode=require or more".into());
        }
        Ok(())
    }

    /// What its parameters say about fields of [`PostgresSettings`](super::PostgresSettings), by key.
    pub fn settings(&self) -> &[(&'static str, String)] {
        &self.settings
    }

    /// Its parameters that change nothing here.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// The places, in the order of trying.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// What the server must be like.
    pub fn target(&self) -> Target {
        self.target
    }

    /// User, password and database.
    pub fn login(&self) -> (Option<&str>, Option<&[u8]>, Option<&str>) {
        let config = &self.config;
        (
            config.get_user(),
            config.get_password(),
            config.get_dbname(),
        )
    }

    /// The hosts with their ports, the database, and the user.
    pub(super) fn place(&self) -> (String, String, String) {
        let hosts: Vec<String> = if is_local(&self.addresses) {
            let last = self.addresses.last();
            last.map(ToString::to_string).into_iter().collect()
        } else {
            self.addresses.iter().map(ToString::to_string).collect()
        };
        let user = self.config.get_user().unwrap_or("the system's user");
        // The server takes the user's name where no database is named.
        let database = self.config.get_dbname().unwrap_or(user).to_owned();
        (hosts.join(","), database, user.to_owned())
    }
}

/// Whether nothing said where the server is.
fn is_local(addresses: &[Address]) -> bool {
    addresses.iter().map(|address| &address.host).eq(LOCAL)
}

impl Default for PostgresUrl {
    fn default() -> Self {
        let local = LOCAL.map(|host| Address {
            host: host.to_owned(),
            port: DEFAULT_PORT,
            given_port: DEFAULT_PORT,
            number: None,
        });
        Self {
            config: Config::new(),
            addresses: local.into(),
            target: Target::Any,
            tls_versions: Versions::default(),
            settings: Vec::new(),
            ignored: Vec::new(),
        }
    }
}

impl FromStr for PostgresUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        Self::in_environment(text, &PgEnvironment::default())
    }
}

#[derive(Default)]
struct Found {
    /// Hosts with their ports before the path.
    authority: String,
    /// Each parameter `host`.
    hosts: Vec<String>,
    /// Those of the parameters `port`.
    ports: Vec<u16>,
    numbers: Vec<IpAddr>,
    target: Option<String>,
    passfile: Option<String>,
    driver: Vec<(&'static str, String)>,
    settings: Vec<(&'static str, String)>,
    ignored: Vec<String>,
}

impl Found {
    fn take(&mut self, name: &str, value: String) -> Result<(), InvalidUrl> {
        let setting = match name {
            "ssl" | "sslmode" => ("tls", tls_mode(name, &value)?),
            "sslrootcert" => ("tls_ca_file", value),
            "sslcert" => ("tls_cert_file", value),
            "sslkey" => ("tls_key_file", value),
            "application_name" => ("application_name", value),
            "connect_timeout" => match value.parse::<u32>() {
                Ok(seconds) if seconds > 0 => ("connect_timeout", format!("{seconds}s")),
                _ => return Err(format!("{name} is a number of seconds of at least 1").into()),
            },
            "statement_cache_size" | "prepared_statement_cache_size" => {
                let size = value.trim().parse::<u64>();
                match size.map_err(|_| format!("{name} is a number, not {value:?}"))? {
                    0 => ("prepared_statements", "off".to_owned()),
                    _ => {
                        self.ignored.push(name.to_owned());
                        return Ok(());
                    }
                }
            }
            _ => return self.take_elsewhere(name, value),
        };
        if self
            .settings
            .iter()
            .any(|(key, value)| *key == setting.0 && *value != setting.1)
        {
            return Err(format!("{name} is given twice, and not the same").into());
        }
        self.settings.push(setting);
        Ok(())
    }

    fn take_elsewhere(&mut self, name: &str, value: String) -> Result<(), InvalidUrl> {
        match name {
            "host" => self.hosts.push(value),
            "port" => {
                let ports = value.split(',').map(str::trim).map(port);
                self.ports.extend(ports.collect::<Result<Vec<_>, _>>()?);
            }
            "hostaddr" => {
                let numbers = value.split(',').map(str::parse);
                let numbers: Result<Vec<_>, _> = numbers.collect();
                self.numbers = numbers.map_err(|_| format!("{name} is the number of a host"))?;
            }
            "target_session_attrs" if self.target.is_none() => self.target = Some(value),
            "passfile" => self.passfile = Some(value),
            "user" => self.driver.push(("user", value)),
            "password" | "passwd" => self.driver.push(("password", value)),
            "dbname" | "database" => self.driver.push(("dbname", value)),
            // Any word is a yes to Python's driver.
            "direct_tls" => self.driver.push(("sslnegotiation", "direct".to_owned())),
            "gsslib" if !["gssapi", "sspi"].contains(&value.as_str()) => {
                return Err("gsslib is gssapi or sspi".into());
            }
            name if HARMLESS.contains(&name) => self.ignored.push(name.to_owned()),
            name => {
                let mut known = OF_THE_DRIVER.into_iter();
                let known = known.find(|known| *known == name);
                let known = known.ok_or_else(|| unknown_parameter(name))?;
                self.driver.push((known, value));
            }
        }
        Ok(())
    }

    fn url(mut self, environment: &PgEnvironment) -> Result<PostgresUrl, InvalidUrl> {
        let addresses = self.addresses(environment)?;
        let target = self
            .target
            .as_deref()
            .map(|value| ("target_session_attrs", value));
        let target = target.or_else(|| variable(environment, "PGTARGETSESSIONATTRS"));
        let target = target.map_or(Ok(Target::Any), |(name, value)| self::target(name, value))?;
        if self.tls_mode().is_none()
            && let Some((name, value)) = variable(environment, "PGSSLMODE")
        {
            self.settings.push(("tls", tls_mode(name, value)?));
        }
        let mut config = self.config()?;
        self.log_in(&mut config, environment, &addresses)?;
        self.negotiate(&mut config, environment)?;
        let limit = |name| variable(environment, name).filter(|_| self.may_encrypt(&addresses));
        let tls_versions = Versions::of(
            limit("PGSSLMINPROTOCOLVERSION"),
            limit("PGSSLMAXPROTOCOLVERSION"),
        )?;
        Ok(PostgresUrl {
            config,
            addresses,
            target,
            tls_versions,
            settings: self.settings,
            ignored: self.ignored,
        })
    }

    /// As SQLAlchemy and asyncpg have it: a parameter before the part in front of the path, and both before the
    /// environment. There, ports of the URL hold for its hosts too.
    fn addresses(&self, environment: &PgEnvironment) -> Result<Vec<Address>, InvalidUrl> {
        // A parameter in place of the hosts leaves the port before the path.
        let mut authority = Vec::new();
        let mut behind = None;
        match self.authority.strip_prefix(':') {
            Some("") => {}
            // None that is 0 can be reached, and Python's driver takes it for none.
            Some(alone) => behind = Some(port(alone)?).filter(|port| *port != 0),
            None => {
                for host in self.authority.split(',').filter(|host| !host.is_empty()) {
                    authority.push(split(host)?);
                }
                // Only the last one's; else there are several ports, of which none is a parameter's.
                if let Some(((_, port), others)) = authority.split_last()
                    && others.iter().all(|(_, port)| port.is_none())
                {
                    behind = *port;
                }
            }
        }
        let mut ports = self.ports.clone();
        let mut hosts = match &self.hosts[..] {
            [] if ports.is_empty() => authority,
            // A parameter counts more than what stands before the path.
            [] => authority
                .into_iter()
                .map(|(host, _)| (host, None))
                .collect(),
            [alone]
                if ports.is_empty()
                    && alone.starts_with(':')
                    && alone.parse::<IpAddr>().is_err() =>
            {
                ports.push(port(&alone[1..])?);
                Vec::new()
            }
            [one] => of_one_parameter(one, !self.ports.is_empty())?,
            several => several
                .iter()
                .map(|host| of_several(host))
                .collect::<Result<_, _>>()?,
        };
        if ports.is_empty() && hosts.len() < 2 {
            ports.extend(behind.filter(|_| hosts.iter().all(|(_, port)| port.is_none())));
        }
        if hosts.is_empty() {
            let numbers = self.numbers.iter();
            hosts.extend(numbers.map(|number| (number.to_string(), None)));
        }
        if hosts.is_empty()
            && let Some((name, value)) = variable(environment, "PGHOST")
        {
            for host in value.split(',') {
                let (host, port) = of_variable(host).map_err(|error| format!("{name}: {error}"))?;
                hosts.push((host, port.filter(|_| ports.is_empty())));
            }
        }
        let lacks_port = hosts.is_empty() || hosts.iter().any(|(_, port)| port.is_none());
        if ports.is_empty()
            && lacks_port
            && let Some((name, value)) = variable(environment, "PGPORT")
        {
            let read = value.split(',').map(str::trim).map(port);
            let read = read.collect::<Result<Vec<_>, _>>();
            ports = read.map_err(|error| format!("{name}: {error}"))?;
        }
        if hosts.is_empty() {
            hosts = LOCAL.map(|host| (host.to_owned(), None)).into();
        }
        if ports.len() > 1 && ports.len() != hosts.len() {
            return Err(
                format!("{} hosts and {} ports are given", hosts.len(), ports.len()).into(),
            );
        }
        let numbered = hosts.into_iter().enumerate();
        let addresses = numbered.map(|(index, (host, own))| {
            let given = ports
                .get(index)
                .or(ports.first().filter(|_| ports.len() == 1));
            let address = Address::new(host, own.or(given.copied()).unwrap_or(DEFAULT_PORT))?;
            let number = self.numbers.get(index).copied();
            Ok(Address { number, ..address })
        });
        addresses.collect()
    }

    /// In the driver's own form of pairs, where every value can be quoted and a later one counts.
    fn config(&self) -> Result<Config, InvalidUrl> {
        let pairs = self.driver.iter().map(|(name, value)| {
            let value = value.replace('\\', r"\\").replace('\'', r"\'");
            format!("{name}='{value}'")
        });
        let pairs: Vec<String> = pairs.collect();
        pairs
            .join(" ")
            .parse()
            .map_err(|error: tokio_postgres::Error| {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                cause.unwrap_or_else(|| error.to_string()).into()
            })
    }

    /// What the URL leaves open.
    fn log_in(
        &self,
        config: &mut Config,
        environment: &PgEnvironment,
        addresses: &[Address],
    ) -> Result<(), InvalidUrl> {
        if let (None, Some(user)) = (config.get_user(), environment.user()) {
            config.user(user);
        }
        if let (None, Some(database)) = (config.get_dbname(), environment.get("PGDATABASE")) {
            config.dbname(database);
        }
        if config.get_password().is_none() {
            let user = config.get_user();
            let database = config.get_dbname().or(user);
            let password = match environment.get("PGPASSWORD") {
                Some(password) => Some(password.to_owned()),
                None => {
                    environment.password(self.passfile.as_deref(), addresses, database, user)?
                }
            };
            if let Some(password) = password {
                config.password(password);
            }
        }
        Ok(())
    }

    fn tls_mode(&self) -> Option<&str> {
        let mode = self.settings.iter().find(|(key, _)| *key == "tls")?;
        Some(&mode.1)
    }

    /// Whether the variables about TLS are read: not for sockets alone of which nobody says anything.
    fn may_encrypt(&self, addresses: &[Address]) -> bool {
        match self.tls_mode() {
            Some(mode) => mode != "disable",
            None => addresses.iter().any(|address| !address.is_socket()),
        }
    }

    /// Whether TLS begins without a question.
    fn negotiate(
        &self,
        config: &mut Config,
        environment: &PgEnvironment,
    ) -> Result<(), InvalidUrl> {
        if config.get_ssl_negotiation() != SslNegotiation::Direct
            && let Some((name, value)) = variable(environment, "PGSSLNEGOTIATION")
        {
            match value {
                "postgres" => {}
                "direct" => {
                    config.ssl_negotiation(SslNegotiation::Direct);
                }
                _ => return Err(format!("{name} is postgres or direct").into()),
            }
        }
        Ok(())
    }
}

/// The value of a variable with its name, for errors.
fn variable<'a>(
    environment: &'a PgEnvironment,
    name: &'static str,
) -> Option<(&'static str, &'a str)> {
    Some((name, environment.get(name)?))
}

fn tls_mode(name: &str, value: &str) -> Result<String, InvalidUrl> {
    let mode = value.replace('_', "-");
    match OneOf::<TlsMode>::read(&mode.as_str().into()) {
        Ok(_) => Ok(mode),
        Err(expected) => Err(format!("{name}: {expected}").into()),
    }
}

/// A writer is of no use on a standby: where one is asked for, that is said at once. `prefer-standby` is
/// satisfied by a primary, and by nothing else here.
fn target(name: &str, value: &str) -> Result<Target, InvalidUrl> {
    match value {
        "any" => Ok(Target::Any),
        "primary" | "prefer-standby" => Ok(Target::Primary),
        "read-write" => Ok(Target::ReadWrite),
        "standby" | "read-only" => Err(format!(
            "{name}={value} asks for a server that takes no events; give primary or read-write"
        )
        .into()),
        _ => Err(format!("{name} is any, primary, read-write or prefer-standby").into()),
    }
}

/// A host and its port, as they stand before the path.
fn split(text: &str) -> Result<(String, Option<u16>), InvalidUrl> {
    let (host, port) = host_and_port(text, 0)?;
    // None that is written is 0, and none that is 0 can be reached.
    Ok((host, Some(port).filter(|port| *port != 0)))
}

/// The only parameter `host`: a list between commas, or one host that may have its port behind it.
fn of_one_parameter(text: &str, has_ports: bool) -> Result<Vec<(String, Option<u16>)>, InvalidUrl> {
    if !text.contains(',') {
        let is_name = |host: &str| {
            host.chars()
                .all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
        };
        return match text.rsplit_once(':') {
            Some((host, _)) if is_name(host) && !has_ports => Ok(vec![split(text)?]),
            _ if text.starts_with('[') => Ok(vec![split(text)?]),
            _ => Ok(vec![(text.to_owned(), None)]),
        };
    }
    let hosts = text.split(',').map(str::trim).map(|host| match host {
        "" => Err("a host is missing between the commas".into()),
        host if host.starts_with('/') || has_ports => Ok((host.to_owned(), None)),
        host => split(host),
    });
    hosts.collect()
}

/// One of several parameters `host`: its port stands behind the one colon that is in it.
fn of_several(text: &str) -> Result<(String, Option<u16>), InvalidUrl> {
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => Ok((host.to_owned(), Some(self::port(port)?))),
        _ if text.contains(',') => Err(
            "give several hosts as host=a,b&port=1,2 or as host=a:1&host=b:2, not both ways".into(),
        ),
        _ if text.starts_with('[') => split(text),
        _ => Ok((text.to_owned(), None)),
    }
}

/// One of the hosts in a variable, where IPv6 stands in brackets.
fn of_variable(text: &str) -> Result<(String, Option<u16>), InvalidUrl> {
    if text.is_empty() {
        return Err("a host is missing between the commas".into());
    }
    if text.starts_with('/') {
        return Ok((text.to_owned(), None));
    }
    if !text.starts_with('[') && text.matches(':').count() > 1 {
        return Err("an IPv6 address stands in brackets".into());
    }
    split(text)
}

/// Everything but what may be secret.
impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, database, user) = self.place();
        write!(f, "{database} at {host} as user {user}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> PostgresUrl {
        format!("postgresql://{rest}").parse().unwrap()
    }

    fn login(rest: &str) -> (String, String, String) {
        let url = parse(rest);
        let config = &url.config;
        let password = config.get_password().unwrap_or_default().to_owned();
        let host = url.addresses[0].host.clone();
        let user = config.get_user().unwrap_or_default().to_owned();
        (user, String::from_utf8(password).unwrap(), host)
    }

    #[test]
    fn all_parts_are_read() {
        for scheme in [
            "postgresql",
            "postgres",
            "postgresql+asyncpg",
            "postgresql+psycopg2",
            "PostgreSQL",
        ] {
            let url = format!("{scheme}://ada:se%40cret@db.example:6432/prefect");
            let url: PostgresUrl = url.parse().unwrap();
            assert_eq!(url.config.get_password(), Some(&b"se@cret"[..]));
            assert_eq!(format!("{url:?}"), "prefect at db.example:6432 as user ada");
        }
        assert_eq!(parse("db/prefect").config.get_user(), None);
        assert_eq!(parse(""), PostgresUrl::default());
    }

    /// As SQLAlchemy reads them, which is more than a URL may hold.
    #[test]
    fn passwords_need_no_escapes_and_may_have_them() {
        for (rest, (user, password, host)) in [
            ("u:p%40x@h/db", ("u", "p@x", "h")),
            ("u:p@ss@h:5433/db", ("u", "p@ss", "h")),
            ("u:p/x@h/db", ("u", "p/x", "h")),
            ("u:p?x@h/d", ("u", "p?x", "h")),
            ("u:p#x@h/d?ssl=require", ("u", "p#x", "h")),
            ("u:a+b%2Bc@[::1]:5/db", ("u", "a+b+c", "::1")),
            ("u:a:b@h/d", ("u", "a:b", "h")),
            ("u:'a\\@h/d", ("u", "'a\\", "h")),
            ("u@h", ("u", "", "h")),
            ("h/d?application_name=a@b", ("", "", "h")),
            ("h/d?user=q&password=p%40s+s%2B", ("q", "p@s s+", "h")),
            ("h/d?us%65r=q&p%61ssw%6Frd=p", ("q", "p", "h")),
        ] {
            let expected = (user.to_owned(), password.to_owned(), host.to_owned());
            assert_eq!(login(rest), expected, "{rest}");
        }
    }

    #[test]
    fn sockets_and_several_hosts_can_be_named() {
        for (rest, expected) in [
            ("/db?host=/var/run/postgresql", "/var/run/postgresql:5432"),
            ("%2Fvar%2Frun%2Fpostgresql/db", "/var/run/postgresql:5432"),
            ("a:1,b/db", "a:1,b:5432"),
            ("/db?host=a:1&host=b:2", "a:1,b:2"),
            ("/db?port=7", "localhost:7"),
            ("a,b:6000/db?host=::1", "::1:6000"),
            (":0/db", "localhost:5432"),
        ] {
            assert_eq!(parse(rest).place().0, expected, "{rest}");
        }
    }

    #[test]
    fn parameters_of_libpq_and_of_pythons_driver_are_understood() {
        let tls = |rest| parse(rest).settings.first().map(|(_, mode)| mode.clone());
        assert_eq!(
            tls("h/d?sslmode=verify-full").as_deref(),
            Some("verify-full")
        );
        assert_eq!(tls("h/d?ssl=require").as_deref(), Some("require"));
        assert_eq!(tls("h/d?ssl=allow").as_deref(), Some("allow"));
        assert_eq!(tls("h/d?ssl="), None);
        let url = parse(
            "h/d?sslrootcert=/ca&sslcert=/c&sslkey=/k&application_name=a%20b&connect_timeout=3\
             &statement_cache_size=0&options=-c%20x%3Dy&timeout=9&user=u&password=%27p",
        );
        let expected = [
            ("tls_ca_file", "/ca"),
            ("tls_cert_file", "/c"),
            ("tls_key_file", "/k"),
            ("application_name", "a b"),
            ("connect_timeout", "3s"),
            ("prepared_statements", "off"),
        ];
        assert_eq!(
            url.settings,
            expected.map(|(key, value)| (key, value.to_owned()))
        );
        assert_eq!(url.config.get_options(), Some("-c x=y"));
        assert_eq!(url.config.get_user(), Some("u"));
        assert_eq!(url.config.get_password(), Some(&b"'p"[..]));
    }

    /// A value that nothing is made of is not looked at.
    #[test]
    fn variables_about_tls_are_read_where_something_may_be_encrypted() {
        for (variable, read, unread) in [
            (
                "PGSSLMINPROTOCOLVERSION",
                &["h/d", "/d?host=/run&ssl=require"][..],
                &["/d?host=/run", "h/d?ssl=disable"][..],
            ),
            (
                "PGSSLNEGOTIATION",
                &["h/d?ssl=require"],
                &["h/d?ssl=require&direct_tls=true"],
            ),
        ] {
            let environment = PgEnvironment::of([(variable, "x")]);
            let taken = |rest: &&str| {
                let url = format!("postgresql://{rest}");
                PostgresUrl::in_environment(&url, &environment).is_ok()
            };
            assert!(!read.iter().any(taken), "{variable}");
            assert!(unread.iter().all(taken), "{variable}");
        }
    }

    #[test]
    fn the_parts_of_a_url_that_is_wrong_are_named() {
        for (url, reason) in [
            ("mysql://ada:hush@db/prefect", "begins with postgresql://"),
            ("postgresql://ada:hush@db/prefect?ssl=yes", "verify-full"),
            ("postgresql://ada:hush@db/prefect?sslmod=x", "\"sslmod\""),
            ("postgresql://ada:hush@db/d?keepalives=x", "keepalives"),
            ("postgresql://ada:hush@db:port/prefect", "not a port"),
            ("postgresql://u:p@w:x/d", "%3A"),
            ("postgresql://db/d?p%61ss=hush", "\"pass\" has no meaning"),
            ("postgresql://db/d?%FFpassword=hush", "not UTF-8"),
        ] {
            let error = url.parse::<PostgresUrl>().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        assert!(!format!("{:?}", parse("u:hunter2@h/d")).contains("hunter2"));
    }
}
