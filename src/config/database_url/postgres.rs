//! URLs of PostgreSQL: libpq's form, and SQLAlchemy's with the parameters of its driver.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::url_parts::{encode, host_and_port, part, split_userinfo, wrong_port};
use crate::config::value::{Secret, TlsMode};

const DEFAULT_PORT: u16 = 5432;

/// Parameters of Python's driver and of libpq that tune these, or that change nothing here.
const HARMLESS_PARAMETERS: [&str; 12] = [
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
const PASSED_ON: [&str; 11] = [
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

/// Where a PostgreSQL server is, and what its URL says about the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PostgresUrl {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    /// In the order in which they are tried; a host that begins with a slash is the folder of a
    /// socket. None means this machine.
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) database: Option<String>,
    pub(crate) parameters: Parameters,
}

/// What the query of the URL says; each has a setting that comes before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) tls: Option<TlsMode>,
    pub(crate) tls_ca_file: Option<PathBuf>,
    pub(crate) tls_cert_file: Option<PathBuf>,
    pub(crate) tls_key_file: Option<PathBuf>,
    pub(crate) application_name: Option<String>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) prepared_statements: Option<bool>,
    /// For the driver, by name.
    passed_on: Vec<(&'static str, String)>,
}

impl PostgresUrl {
    /// Reads what follows `postgresql://`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        let (userinfo, rest) = split_userinfo(rest);
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
        let mut url = Self {
            hosts: hosts
                .split(',')
                .filter(|host| !host.is_empty())
                .map(|host| host_and_port(host, DEFAULT_PORT))
                .collect::<Result<_, _>>()?,
            database: part(database)?,
            ..Self::default()
        };
        if let Some(userinfo) = userinfo {
            let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
            url.user = part(user)?;
            url.password = part(password)?.map(Secret::new);
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            url.read_parameter(name, part(value)?.unwrap_or_default())?;
        }
        Ok(url)
    }

    fn read_parameter(&mut self, name: &str, value: String) -> Result<(), String> {
        let parameters = &mut self.parameters;
        let value = (!value.is_empty()).then_some(value);
        match (name, value) {
            // Empty is unset.
            (_, None) => {}
            ("ssl" | "sslmode", Some(value)) => parameters.tls = Some(tls_mode(name, &value)?),
            ("sslrootcert", Some(path)) => parameters.tls_ca_file = Some(path.into()),
            ("sslcert", Some(path)) => parameters.tls_cert_file = Some(path.into()),
            ("sslkey", Some(path)) => parameters.tls_key_file = Some(path.into()),
            ("application_name", Some(value)) => parameters.application_name = Some(value),
            ("connect_timeout", Some(value)) => {
                parameters.connect_timeout = Some(whole_seconds(name, &value)?);
            }
            ("statement_cache_size" | "prepared_statement_cache_size", Some(value)) => {
                if value == "0" {
                    parameters.prepared_statements = Some(false);
                }
            }
            ("host", Some(value)) => {
                for host in value.split(',') {
                    self.hosts.push(host_and_port(host, DEFAULT_PORT)?);
                }
            }
            ("port", Some(value)) => {
                let port = value.parse().map_err(|_| wrong_port(&value))?;
                for (_, host_port) in &mut self.hosts {
                    *host_port = port;
                }
                if self.hosts.is_empty() {
                    self.hosts.push(("localhost".to_owned(), port));
                }
            }
            ("user", value) => self.user = value,
            ("password" | "passwd", value) => self.password = value.map(Secret::new),
            ("dbname" | "database", value) => self.database = value,
            (name, _) if HARMLESS_PARAMETERS.contains(&name) => {}
            (name, Some(value)) => match PASSED_ON.iter().find(|known| **known == name) {
                Some(name) => parameters.passed_on.push((name, value)),
                None => {
                    return Err(format!(
                        "the parameter {name:?} has no meaning here; remove it"
                    ));
                }
            },
        }
        Ok(())
    }

    /// For the driver: everything escaped, the password included, and no parameter that has a
    /// setting.
    pub(crate) fn reveal(&self) -> String {
        let mut login = String::new();
        if let Some(user) = &self.user {
            login.push_str(&encode(user));
            if let Some(password) = &self.password {
                login.push(':');
                login.push_str(&encode(password.reveal()));
            }
            login.push('@');
        }
        let hosts: Vec<String> = self
            .hosts
            .iter()
            .map(|(host, port)| {
                if host.contains(':') {
                    format!("[{host}]:{port}")
                } else {
                    format!("{}:{port}", encode(host))
                }
            })
            .collect();
        let hosts = if hosts.is_empty() {
            format!("localhost:{DEFAULT_PORT}")
        } else {
            hosts.join(",")
        };
        let database = encode(self.database.as_deref().unwrap_or_default());
        let query: Vec<String> = self
            .parameters
            .passed_on
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value)))
            .collect();
        let mark = if query.is_empty() { "" } else { "?" };
        format!(
            "postgresql://{login}{hosts}/{database}{mark}{}",
            query.join("&")
        )
    }
}

fn tls_mode(name: &str, value: &str) -> Result<TlsMode, String> {
    TlsMode::parse(value).ok_or_else(|| {
        format!("{name} is one of disable, allow, prefer, require, verify-ca, verify-full")
    })
}

fn whole_seconds(name: &str, value: &str) -> Result<Duration, String> {
    match value.parse() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{name} is a number of seconds of at least 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> PostgresUrl {
        PostgresUrl::parse(rest).unwrap()
    }

    fn login(rest: &str) -> (String, String, String) {
        let url = parse(rest);
        let password = url.password.map(|secret| secret.reveal().to_owned());
        (
            url.user.unwrap_or_default(),
            password.unwrap_or_default(),
            url.hosts
                .first()
                .map_or_else(String::new, |host| host.0.clone()),
        )
    }

    fn owned(parts: (&str, &str, &str)) -> (String, String, String) {
        (parts.0.to_owned(), parts.1.to_owned(), parts.2.to_owned())
    }

    #[test]
    fn all_parts_are_read() {
        let url = parse("prefect:s3cret@db.example:6432/prefect");
        assert_eq!(url.user.as_deref(), Some("prefect"));
        assert_eq!(url.password.unwrap().reveal(), "s3cret");
        assert_eq!(url.hosts, [("db.example".to_owned(), 6432)]);
        assert_eq!(url.database.as_deref(), Some("prefect"));
        assert_eq!(parse("db/prefect").user, None);
        assert_eq!(parse(""), PostgresUrl::default());
    }

    /// As SQLAlchemy reads them, which is more than a URL may hold.
    #[test]
    fn passwords_need_no_escapes_and_may_have_them() {
        for (rest, expected) in [
            ("u:p%40x@h/db", ("u", "p@x", "h")),
            ("u:p@ss@h:5433/db", ("u", "p@ss", "h")),
            ("u:p/x@h/db", ("u", "p/x", "h")),
            ("u:p?x@h/d", ("u", "p?x", "h")),
            ("u:p#x@h/d?ssl=require", ("u", "p#x", "h")),
            ("u:a+b%2Bc@[::1]:5/db", ("u", "a+b+c", "::1")),
            ("u:a:b@h/d", ("u", "a:b", "h")),
            ("u@h", ("u", "", "h")),
            ("h/d?application_name=a@b", ("", "", "h")),
        ] {
            assert_eq!(login(rest), owned(expected), "{rest}");
        }
    }

    #[test]
    fn sockets_and_several_hosts_can_be_named() {
        let host = |rest| parse(rest).hosts;
        let socket = [("/var/run/postgresql".to_owned(), 5432)];
        assert_eq!(host("/db?host=/var/run/postgresql"), socket);
        assert_eq!(host("%2Fvar%2Frun%2Fpostgresql/db"), socket);
        assert_eq!(
            host("a:1,b/db"),
            [("a".to_owned(), 1), ("b".to_owned(), 5432)]
        );
        assert_eq!(
            host("/db?host=a:1&host=b:2"),
            [("a".to_owned(), 1), ("b".to_owned(), 2)]
        );
        assert_eq!(host("/db?port=7"), [("localhost".to_owned(), 7)]);
    }

    #[test]
    fn parameters_of_libpq_and_of_pythons_driver_are_understood() {
        let tls = |rest| parse(rest).parameters.tls;
        assert_eq!(tls("h/d?sslmode=verify-full"), Some(TlsMode::VerifyFull));
        assert_eq!(tls("h/d?ssl=require"), Some(TlsMode::Require));
        assert_eq!(tls("h/d?ssl=allow"), Some(TlsMode::Allow));
        assert_eq!(tls("h/d?ssl="), None);
        let parameters = parse(
            "h/d?sslrootcert=/ca&sslcert=/c&sslkey=/k&application_name=a%20b&connect_timeout=3\
             &statement_cache_size=0&options=-c%20x%3Dy&timeout=9",
        )
        .parameters;
        assert_eq!(
            parameters,
            Parameters {
                tls: None,
                tls_ca_file: Some("/ca".into()),
                tls_cert_file: Some("/c".into()),
                tls_key_file: Some("/k".into()),
                application_name: Some("a b".to_owned()),
                connect_timeout: Some(Duration::from_secs(3)),
                prepared_statements: Some(false),
                passed_on: vec![("options", "-c x=y".to_owned())],
            }
        );
    }

    #[test]
    fn the_drivers_form_is_escaped_and_has_no_settings() {
        for (rest, expected) in [
            (
                "u:p@ss@h:5433/db?ssl=require&options=-c%20x%3Dy",
                "postgresql://u:p%40ss@h:5433/db?options=-c%20x%3Dy",
            ),
            ("", "postgresql://localhost:5432/"),
            ("u@[::1],b:1/d%20b", "postgresql://u@[::1]:5432,b:1/d%20b"),
            ("/db?host=/run/pg", "postgresql://%2Frun%2Fpg:5432/db"),
        ] {
            assert_eq!(parse(rest).reveal(), expected, "{rest}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |rest| PostgresUrl::parse(rest).unwrap_err();
        assert!(error("h/d?sslmod=require").contains("\"sslmod\""));
        assert!(error("h/d?ssl=yes").contains("verify-full"));
        assert!(error("u:p@w:x/d").contains("%3A"));
        assert!(error("h:x/d").contains("not a port"));
    }

    #[test]
    fn passwords_are_not_shown() {
        assert!(!format!("{:?}", parse("u:hunter2@h/d")).contains("hunter2"));
    }
}
