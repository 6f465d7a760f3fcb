//! Where the database is, how it is reached, and what its URL may say.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

use crate::store::CreateSchema;

/// Parameters of a URL that the client's library reads itself.
const PASSED_ON: [&str; 17] = [
    "channel_binding",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslnegotiation",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
    "connect_timeout",
];

/// Where the database is, how it is reached, and what may be made in it.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresSettings {
    /// Host, database, user and password: what the URL says.
    pub(super) config: Config,
    /// Which tables may be made.
    pub create_schema: CreateSchema,
    /// Where the tables are, as PostgreSQL's setting of that name; without one the server's or the
    /// role's own counts.
    pub search_path: Option<String>,
    /// What `pg_stat_activity` shows.
    pub application_name: String,
    /// How long one statement may take; zero means for ever. A batch takes well under a second on a
    /// healthy server: longer delays the message that something is wrong, shorter fails slow servers.
    pub statement_timeout: Duration,
    /// How long a statement waits for a lock; zero means as long as it may take. The pipeline tries
    /// again in any case.
    pub lock_timeout: Duration,
    /// How long it may take to reach each host.
    pub connect_timeout: Duration,
    /// Whether statements stay prepared. Off for PgBouncer in transaction mode before 1.21, or with
    /// its `max_prepared_statements` at 0.
    pub prepared_statements: bool,
    /// Encryption.
    pub tls: TlsSettings,
}

/// Encryption of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Whether there is any, and what is checked.
    pub mode: TlsMode,
    /// PEM file with the certificates to trust; without one, those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// PEM file with our own certificate and those that lead to it.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the key of our own certificate.
    pub key_file: Option<PathBuf>,
    /// Whether the certificate must be made out to the host; only less is possible than `mode` asks.
    pub check_hostname: bool,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            mode: TlsMode::Prefer,
            ca_file: None,
            cert_file: None,
            key_file: None,
            check_hostname: true,
        }
    }
}

/// Whether the connection is encrypted, as libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Disable,
    /// Only where the server insists.
    Allow,
    /// Where the server can.
    Prefer,
    /// Always, with whom ever; with a `ca_file` as [`VerifyCa`](Self::VerifyCa).
    Require,
    /// Always, with a certificate that is trusted.
    VerifyCa,
    /// Always, with a certificate that is trusted and made out to the host.
    VerifyFull,
}

impl TlsMode {
    const ALL: [(&'static str, Self); 6] = [
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];

    /// The name that URLs use.
    pub fn as_str(self) -> &'static str {
        let named = Self::ALL.into_iter().find(|(_, mode)| *mode == self);
        named.map_or("prefer", |(name, _)| name)
    }
}

impl std::str::FromStr for TlsMode {
    type Err = InvalidUrl;

    fn from_str(name: &str) -> Result<Self, InvalidUrl> {
        let named = Self::ALL.into_iter().find(|(known, _)| *known == name);
        named.map(|(_, mode)| mode).ok_or_else(|| {
            InvalidUrl(
                "sslmode is one of disable, allow, prefer, require, verify-ca and verify-full"
                    .to_owned(),
            )
        })
    }
}

/// What is wrong with a URL; never repeats it, since it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a PostgreSQL URL that can be used: {0}")]
pub struct InvalidUrl(String);

impl PostgresSettings {
    /// From a URL `postgresql://user:password@host:port/database?parameters`; more hosts than one are
    /// separated by commas, and a driver's name after a `+`, as SQLAlchemy has it, is ignored.
    ///
    /// Of libpq's parameters those for TLS, `application_name` and all that tokio-postgres knows are
    /// heeded; of asyncpg's, `ssl` and a `prepared_statement_cache_size` of 0.
    ///
    /// # Errors
    ///
    /// It is no such URL, or has a parameter that would be ignored.
    pub fn from_url(url: &str) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| InvalidUrl("it begins with postgresql://".to_owned()))?;
        let database = scheme.split('+').next().unwrap_or_default();
        if !matches!(database, "postgresql" | "postgres") {
            return Err(InvalidUrl("it begins with postgresql://".to_owned()));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut found = Parameters::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            found.take(pair)?;
        }
        let config: Config = format!("postgresql://{place}?{}", found.passed_on.join("&"))
            .parse()
            .map_err(|error: tokio_postgres::Error| {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                InvalidUrl(cause.unwrap_or_else(|| error.to_string()))
            })?;
        if config.get_hosts().is_empty() {
            return Err(InvalidUrl("it names no host".to_owned()));
        }
        Ok(Self {
            create_schema: CreateSchema::OwnOnly,
            search_path: None,
            application_name: found
                .application_name
                .unwrap_or_else(|| "event-persister".to_owned()),
            statement_timeout: Duration::from_secs(60),
            lock_timeout: Duration::from_secs(10),
            connect_timeout: config
                .get_connect_timeout()
                .copied()
                .unwrap_or(Duration::from_secs(10)),
            prepared_statements: !found.without_prepared_statements,
            tls: found.tls,
            config,
        })
    }

    /// The place without secrets, for people.
    pub(super) fn place(&self) -> Place {
        let ports = self.config.get_ports();
        let hosts = self.config.get_hosts().iter().enumerate();
        let hosts: Vec<_> = hosts
            .map(|(index, host)| {
                let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
                match host {
                    Host::Tcp(name) => format!("{name}:{port}"),
                    #[cfg(unix)]
                    Host::Unix(path) => format!("{}:{port}", path.display()),
                }
            })
            .collect();
        let user = self.config.get_user().unwrap_or("the system's user");
        Place {
            host: hosts.join(","),
            // What the server takes where none is given.
            database: self.config.get_dbname().unwrap_or(user).to_owned(),
            user: user.to_owned(),
            lock_timeout: self.lock_timeout,
        }
    }
}

/// What the parameters of a URL say.
#[derive(Default)]
struct Parameters<'a> {
    passed_on: Vec<&'a str>,
    application_name: Option<String>,
    without_prepared_statements: bool,
    tls: TlsSettings,
}

impl<'a> Parameters<'a> {
    fn take(&mut self, pair: &'a str) -> Result<(), InvalidUrl> {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| InvalidUrl(format!("the parameter {key} is not UTF-8")))?;
        let file = || Some(PathBuf::from(&*value));
        match key {
            "sslmode" | "ssl" => self.tls.mode = value.parse()?,
            // What the system trusts is what counts without a file.
            "sslrootcert" if value == "system" => self.tls.ca_file = None,
            "sslrootcert" => self.tls.ca_file = file(),
            "sslcert" => self.tls.cert_file = file(),
            "sslkey" => self.tls.key_file = file(),
            "application_name" => self.application_name = Some(value.into_owned()),
            "prepared_statement_cache_size" | "statement_cache_size" => {
                self.without_prepared_statements = value == "0";
            }
            key if PASSED_ON.contains(&key) => self.passed_on.push(pair),
            key => {
                return Err(InvalidUrl(format!(
                    "the parameter {key} is not known here; leave it out"
                )));
            }
        }
        Ok(())
    }
}

/// Everything but what may be secret.
impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSettings")
            .field("place", &self.place().to_string())
            .field("create_schema", &self.create_schema)
            .field("search_path", &self.search_path)
            .field("application_name", &self.application_name)
            .field("statement_timeout", &self.statement_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("prepared_statements", &self.prepared_statements)
            .field("tls", &self.tls)
            .finish()
    }
}

/// Where a database is and as whom: what every error names.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) database: String,
    pub(super) user: String,
    pub(super) lock_timeout: Duration,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            database,
            user,
            ..
        } = self;
        write!(
            f,
            "the PostgreSQL database {database} at {host} as user {user}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> PostgresSettings {
        PostgresSettings::from_url(url).unwrap()
    }

    #[test]
    fn reads_urls_of_libpq_and_of_sqlalchemy() {
        for url in [
            "postgresql://ada:se%40cret@db.example:6432/prefect",
            "postgres://ada:se%40cret@db.example:6432/prefect",
            "postgresql+asyncpg://ada:se%40cret@db.example:6432/prefect",
        ] {
            let settings = settings(url);
            assert_eq!(settings.config.get_password(), Some(&b"se@cret"[..]));
            assert_eq!(
                settings.place().to_string(),
                "the PostgreSQL database prefect at db.example:6432 as user ada"
            );
        }
        let several = settings("postgresql://ada@one:1,two:2/prefect?target_session_attrs=any");
        assert_eq!(several.place().host, "one:1,two:2");
    }

    #[test]
    fn reads_the_parameters_of_a_url() {
        let settings = settings(
            "postgresql://ada@db/prefect?sslmode=verify-full&sslrootcert=/tls/ca%20file.pem\
             &sslcert=c.pem&sslkey=k.pem&application_name=other&connect_timeout=3\
             &prepared_statement_cache_size=0&options=-c%20work_mem%3D1MB",
        );
        let expected = TlsSettings {
            mode: TlsMode::VerifyFull,
            ca_file: Some("/tls/ca file.pem".into()),
            cert_file: Some("c.pem".into()),
            key_file: Some("k.pem".into()),
            check_hostname: true,
        };
        assert_eq!(settings.tls, expected);
        assert_eq!(settings.application_name, "other");
        assert_eq!(settings.connect_timeout, Duration::from_secs(3));
        assert_eq!(settings.config.get_options(), Some("-c work_mem=1MB"));
        assert!(!settings.prepared_statements);
    }

    #[test]
    fn says_what_is_wrong_with_a_url_and_keeps_its_secrets() {
        for (url, reason) in [
            ("mysql://ada:hush@db/prefect", "begins with postgresql://"),
            ("postgresql://ada:hush@db/prefect?sslmode=yes", "verify-ca"),
            (
                "postgresql://ada:hush@db/prefect?gssencmode=1",
                "gssencmode",
            ),
            ("postgresql://ada:hush@db:port/prefect", "port"),
            ("postgresql:///prefect", "no host"),
        ] {
            let error = PostgresSettings::from_url(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
        let debug = format!("{:?}", settings("postgresql://ada:hush@db/prefect"));
        assert!(!debug.contains("hush"), "{debug}");
    }
}
