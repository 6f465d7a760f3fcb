//! URLs of PostgreSQL: libpq's form, and SQLAlchemy's with the parameters of its driver.

use std::fmt;
use std::str::FromStr;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use super::settings::TlsMode;
use crate::address::{Parts, decode, host_and_port, port, unknown_parameter};
use crate::settings::{InvalidUrl, OneOf, Spelling as _};

const DEFAULT_PORT: u16 = 5432;

/// Parameters of Python's driver and of libpq that tune these, or that change nothing here.
const HARMLESS: [&str; 12] = [
    "async_fallback",
    "client_encoding",
    "command_timeout",
    "default_transaction_isolation",
    "fallback_application_name",
    "gssencmode",
    "gsslib",
    "krbsrvname",
    "max_cacheable_statement_size",
    "max_cached_statement_lifetime",
    "prepared_statement_name_func",
    "timeout",
];

/// Parameters that the driver here reads itself.
const OF_THE_DRIVER: [&str; 11] = [
    "channel_binding",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "sslnegotiation",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// Where a PostgreSQL server is and as whom it is used:
/// `postgresql://user:password@host:port/database?parameters`.
///
/// More hosts than one stand between commas. A driver's name behind a `+`, as SQLAlchemy has it, is
/// ignored. Without a host it is this machine.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    pub(super) config: Config,
    settings: Vec<(&'static str, String)>,
}

impl PostgresUrl {
    /// What its parameters say about fields of [`PostgresSettings`](super::PostgresSettings), by key.
    pub fn settings(&self) -> &[(&'static str, String)] {
        &self.settings
    }

    /// The hosts with their ports, the database, and the user.
    pub(super) fn place(&self) -> (String, String, String) {
        let ports = self.config.get_ports();
        let hosts = self.config.get_hosts().iter().enumerate();
        let hosts: Vec<_> = hosts
            .map(|(index, host)| {
                let port = ports.get(index).or(ports.first()).copied();
                let port = port.unwrap_or(DEFAULT_PORT);
                match host {
                    Host::Tcp(name) => format!("{name}:{port}"),
                    #[cfg(unix)]
                    Host::Unix(path) => format!("{}:{port}", path.display()),
                }
            })
            .collect();
        let user = self.config.get_user().unwrap_or("the system's user");
        // The server takes the user's name where no database is named.
        let database = self.config.get_dbname().unwrap_or(user).to_owned();
        (hosts.join(","), database, user.to_owned())
    }
}

impl Default for PostgresUrl {
    fn default() -> Self {
        let mut config = Config::new();
        config.host("localhost").port(DEFAULT_PORT);
        Self {
            config,
            settings: Vec::new(),
        }
    }
}

impl FromStr for PostgresUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let dialect = scheme.split('+').next().unwrap_or_default();
        if !["postgresql", "postgres"].contains(&dialect.to_ascii_lowercase().as_str()) {
            return Err("it begins with postgresql://".into());
        }
        let mut found = Found::default();
        let parts = Parts::of(rest)?;
        for host in parts.hosts.split(',').filter(|host| !host.is_empty()) {
            found.hosts.push(host_and_port(host, DEFAULT_PORT)?);
        }
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
                found.take(name, value)?;
            }
        }
        Ok(Self {
            config: found.config()?,
            settings: found.settings,
        })
    }
}

/// What a URL says, by the part that it is for.
#[derive(Default)]
struct Found {
    hosts: Vec<(String, u16)>,
    driver: Vec<(&'static str, String)>,
    settings: Vec<(&'static str, String)>,
}

impl Found {
    fn take(&mut self, name: &str, value: String) -> Result<(), InvalidUrl> {
        let setting = match name {
            "ssl" | "sslmode" => {
                OneOf::<TlsMode>::read(&value.as_str().into())
                    .map_err(|expected| format!("{name}: {expected}"))?;
                ("tls", value)
            }
            "sslrootcert" => ("tls_ca_file", value),
            "sslcert" => ("tls_cert_file", value),
            "sslkey" => ("tls_key_file", value),
            "application_name" => ("application_name", value),
            "connect_timeout" => match value.parse::<u32>() {
                Ok(seconds) if seconds > 0 => ("connect_timeout", format!("{seconds}s")),
                _ => return Err(format!("{name} is a number of seconds of at least 1").into()),
            },
            "statement_cache_size" | "prepared_statement_cache_size" if value == "0" => {
                ("prepared_statements", "off".to_owned())
            }
            "statement_cache_size" | "prepared_statement_cache_size" => return Ok(()),
            _ => return self.take_for_driver(name, value),
        };
        self.settings.push(setting);
        Ok(())
    }

    fn take_for_driver(&mut self, name: &str, value: String) -> Result<(), InvalidUrl> {
        let name = match name {
            "host" => {
                for host in value.split(',') {
                    self.hosts.push(host_and_port(host, DEFAULT_PORT)?);
                }
                return Ok(());
            }
            "port" => {
                let port = port(&value)?;
                if self.hosts.is_empty() {
                    self.hosts.push(("localhost".to_owned(), port));
                }
                self.hosts.iter_mut().for_each(|host| host.1 = port);
                return Ok(());
            }
            "user" => "user",
            "password" | "passwd" => "password",
            "dbname" | "database" => "dbname",
            name if HARMLESS.contains(&name) => return Ok(()),
            name => OF_THE_DRIVER
                .into_iter()
                .find(|known| *known == name)
                .ok_or_else(|| unknown_parameter(name))?,
        };
        self.driver.push((name, value));
        Ok(())
    }

    /// In the driver's own form of pairs, where every value can be quoted and a later one counts.
    fn config(&self) -> Result<Config, InvalidUrl> {
        let (hosts, ports) = if self.hosts.is_empty() {
            ("localhost".to_owned(), DEFAULT_PORT.to_string())
        } else {
            let hosts: Vec<&str> = self.hosts.iter().map(|(host, _)| host.as_str()).collect();
            let ports: Vec<String> = self.hosts.iter().map(|host| host.1.to_string()).collect();
            (hosts.join(","), ports.join(","))
        };
        let places = [("host", &hosts), ("port", &ports)].into_iter();
        let others = self.driver.iter().map(|(name, value)| (*name, value));
        let pairs: Vec<String> = places
            .chain(others)
            .map(|(name, value)| {
                let value = value.replace('\\', r"\\").replace('\'', r"\'");
                format!("{name}='{value}'")
            })
            .collect();
        pairs
            .join(" ")
            .parse()
            .map_err(|error: tokio_postgres::Error| {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                cause.unwrap_or_else(|| error.to_string()).into()
            })
    }
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
        let config = parse(rest).config;
        let password = config.get_password().unwrap_or_default().to_owned();
        let host = match &config.get_hosts()[0] {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        };
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

    #[test]
    fn the_parts_of_a_url_that_is_wrong_are_named() {
        for (url, reason) in [
            ("mysql://ada:hush@db/prefect", "begins with postgresql://"),
            ("postgresql://ada:hush@db/prefect?ssl=yes", "verify-full"),
            ("postgresql://ada:hush@db/prefect?sslmod=x", "\"sslmod\""),
            ("postgresql://ada:hush@db/d?keepalives=x", "keepalives"),
            ("postgresql://ada:hush@db:port/prefect", "not a port"),
            ("postgresql://u:p@w:x/d", "%3A"),
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
