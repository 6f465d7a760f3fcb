//! How a PostgreSQL database is reached.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::connection::lock_timeout;
use super::servers::Servers;
use super::url::PostgresUrl;
use crate::address::said;
use crate::settings::{As, File, InvalidUrl, LongerThanZero, Named, OneOf, Text, Toggle};
use crate::store::CreateSchema;
use crate::tls;

/// How a PostgreSQL database is reached, and what may be made in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresSettings {
    /// Host, database, user and password.
    #[serde(skip)]
    pub url: PostgresUrl,
    /// Which tables may be made.
    #[serde(skip)]
    pub create_schema: CreateSchema,
    /// What is known of the servers; clones share it.
    #[serde(skip)]
    pub servers: Servers,
    /// PostgreSQL: how long a connection to one host may take. A server that is silent for a second is
    /// probed by a new connection, and given up if that takes longer too.
    #[serde(with = "As::<LongerThanZero>")]
    pub connect_timeout: Duration,
    /// PostgreSQL: how long one statement may take before the batch is tried again; longer suits a slow
    /// server, shorter finds a hung one sooner.
    #[serde(with = "As::<LongerThanZero>")]
    pub statement_timeout: Duration,
    /// PostgreSQL: how long a statement waits for a lock before it backs off, at most three quarters of
    /// `statement_timeout`; longer hides contention, shorter reports it sooner.
    #[serde(with = "As::<LongerThanZero>")]
    pub lock_timeout: Duration,
    /// PostgreSQL: the schemas to look for tables in, such as `prefect, public`; the server's own if not
    /// set.
    #[serde(with = "As::<Option<Text>>")]
    #[schemars(example = "prefect, public")]
    pub search_path: Option<String>,
    /// PostgreSQL: the name of the connections in `pg_stat_activity`.
    #[serde(with = "As::<Text>")]
    pub application_name: String,
    /// PostgreSQL: `off` behind a PgBouncer in transaction mode that knows no prepared statements (older
    /// than 1.21, or `max_prepared_statements` is 0), or whose version keeps a server connection busy
    /// after a COPY that failed; costs some speed, since nothing is copied then.
    #[serde(with = "As::<Toggle>")]
    pub prepared_statements: bool,
    /// PostgreSQL: `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`, as libpq's
    /// `sslmode`. Only the last two know whom they talk to.
    #[serde(with = "As::<OneOf<TlsMode>>")]
    pub tls: TlsMode,
    /// PostgreSQL: `off` makes `verify-full` a `verify-ca`.
    #[serde(with = "As::<Toggle>")]
    pub tls_check_hostname: bool,
    /// PostgreSQL: the authorities that may sign the server's certificate (PEM); the system's if not set,
    /// or if it is `system`.
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/ssl/postgresql-ca.pem")]
    pub tls_ca_file: Option<PathBuf>,
    /// PostgreSQL: the certificate to log in with (PEM), with `tls_key_file`.
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/event-persister/client.pem")]
    pub tls_cert_file: Option<PathBuf>,
    /// PostgreSQL: the key of `tls_cert_file` (PEM).
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/event-persister/client-key.pem")]
    pub tls_key_file: Option<PathBuf>,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            url: PostgresUrl::default(),
            create_schema: CreateSchema::OwnOnly,
            servers: Servers::default(),
            connect_timeout: Duration::from_secs(3),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(4),
            search_path: None,
            application_name: "event-persister".to_owned(),
            prepared_statements: true,
            tls: TlsMode::Prefer,
            tls_check_hostname: true,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
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
    /// Always, with any server; with a `tls_ca_file` as [`VerifyCa`](Self::VerifyCa).
    Require,
    /// Always, with a certificate that is trusted.
    VerifyCa,
    /// Always, with a certificate that is trusted and made out to the host.
    VerifyFull,
}

impl Named for TlsMode {
    const ALL: &'static [(&'static str, Self)] = &[
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];
}

impl PostgresSettings {
    /// The defaults, but for what a URL `postgresql://user:password@host:port/database?parameters` says.
    ///
    /// # Errors
    ///
    /// It is no such URL, or has a parameter that would be ignored.
    pub fn from_url(url: &str) -> Result<Self, InvalidUrl> {
        let url: PostgresUrl = url.parse()?;
        let settings: Self = said(url.settings())?;
        url.goes_with(settings.tls)?;
        Ok(Self { url, ..settings })
    }

    /// The place without secrets, for people.
    pub(super) fn place(&self) -> Place {
        let (host, database, user) = self.url.place();
        Place {
            host,
            database,
            user,
            lock_timeout: lock_timeout(self),
        }
    }

    /// What of the server's certificate is checked, and by which files.
    pub(super) fn encryption(&self) -> (tls::Check, tls::Files<'_>) {
        let files = tls::Files {
            ca: (self.tls_ca_file.as_deref()).filter(|file| *file != Path::new("system")),
            cert: self.tls_cert_file.as_deref(),
            key: self.tls_key_file.as_deref(),
        };
        let check = match self.tls {
            TlsMode::VerifyFull if self.tls_check_hostname => tls::Check::AuthorityAndName,
            TlsMode::VerifyFull | TlsMode::VerifyCa => tls::Check::Authority,
            // As libpq does: an authority that is named is meant to count.
            TlsMode::Require if files.ca.is_some() => tls::Check::Authority,
            TlsMode::Require | TlsMode::Prefer | TlsMode::Allow | TlsMode::Disable => {
                tls::Check::Nothing
            }
        };
        (check, files)
    }
}

/// Where a database is and as whom: every error names it.
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
    use crate::settings::Spelling as _;

    #[test]
    fn a_url_sets_what_it_says() {
        let settings = PostgresSettings::from_url(
            "postgresql://ada@db/prefect?sslmode=verify-full&sslrootcert=/tls/ca%20file.pem\
             &sslcert=c.pem&sslkey=k.pem&application_name=other&connect_timeout=3\
             &prepared_statement_cache_size=0",
        )
        .unwrap();
        let expected = PostgresSettings {
            url: settings.url.clone(),
            tls: TlsMode::VerifyFull,
            tls_ca_file: Some("/tls/ca file.pem".into()),
            tls_cert_file: Some("c.pem".into()),
            tls_key_file: Some("k.pem".into()),
            application_name: "other".to_owned(),
            connect_timeout: Duration::from_secs(3),
            prepared_statements: false,
            ..PostgresSettings::default()
        };
        assert_eq!(settings, expected);
        assert_eq!(
            settings.place().to_string(),
            "the PostgreSQL database prefect at db:5432 as user ada"
        );
    }

    #[test]
    fn what_the_system_trusts_counts_where_it_is_named() {
        let ca = |file: &str| {
            let url = format!("postgresql://h/d?sslmode=require&sslrootcert={file}");
            let settings = PostgresSettings::from_url(&url).unwrap();
            let (check, files) = settings.encryption();
            (check, files.ca.map(Path::to_owned))
        };
        assert_eq!(ca("system"), (tls::Check::Nothing, None));
        assert_eq!(ca("/ca"), (tls::Check::Authority, Some("/ca".into())));
    }

    #[test]
    fn tls_modes_are_libpqs() {
        for (name, mode) in TlsMode::ALL {
            assert_eq!(OneOf::<TlsMode>::read(&(*name).into()), Ok(*mode));
            assert_eq!(OneOf::write(mode), *name);
        }
        assert_eq!(
            OneOf::<TlsMode>::read(&"on".into()).unwrap_err(),
            "give disable, allow, prefer, require, verify-ca or verify-full"
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let settings = PostgresSettings::from_url("postgresql://ada:hush@db/prefect").unwrap();
        assert!(!format!("{settings:?}").contains("hush"));
    }
}
