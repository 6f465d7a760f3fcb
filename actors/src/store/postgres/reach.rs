//! How a server is reached: the addresses one after another, until one is the right one.
//!
//! Each address has a time limit of its own, for everything: the connection, encryption, the login, our own
//! set-up, and the question whether it is the one that is wanted. So one that takes connections and says
//! nothing costs that time, and the next is tried. A server that answers with a refusal is not passed over,
//! unless it only says that it cannot yet, or no longer: to write elsewhere what this one was meant to have would be
//! a surprise.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use rustls::Error as TlsError;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_postgres::config::{LoadBalanceHosts, SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::connection::{begin, configure};
use super::driver::Driver;
use super::settings::{PostgresSettings, TlsMode};
use super::url::{Address, Target};
use crate::status::error_chain;
use crate::tls;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Diesel(#[from] diesel::ConnectionError),
    #[error("nothing was heard of it for {0:?}")]
    Late(Duration),
    #[error("{0}")]
    Tls(String),
    #[error("the name {0} has no address: {1}")]
    Unknown(String, std::io::Error),
    #[error("{0} {1}")]
    Unsuitable(Resolved, &'static str),
    #[error("{all}")]
    Several {
        first: Box<ConnectError>,
        all: String,
    },
}

impl ConnectError {
    pub(super) fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(error) => error.code(),
            Self::Several { first, .. } => first.code(),
            _ => None,
        }
    }

    /// Whether a server has answered, and will say the same the next time.
    fn is_final(&self) -> bool {
        let passes = |code: &SqlState| {
            // Shutting down, starting up, no room for another connection.
            code.code().starts_with("57P") || code.code().starts_with("53")
        };
        self.code().is_some_and(|code| !passes(code))
    }

    /// Whether encryption may be the reason, so that the other way is worth a try.
    fn may_be_encryption(&self) -> bool {
        self.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) || self.is_tls()
    }

    /// Whether the two could not agree on encryption.
    pub(super) fn is_tls(&self) -> bool {
        if let Self::Several { first, .. } = self {
            return first.is_tls();
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let inner = error
                .downcast_ref::<std::io::Error>()
                .and_then(|io| io.get_ref());
            if error.is::<TlsError>() || inner.is_some_and(|inner| inner.is::<TlsError>()) {
                return true;
            }
            cause = error.source();
        }
        matches!(self, Self::Tls(_))
    }
}

/// An address with the number that its name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    address: Address,
    number: Option<IpAddr>,
}

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, number } = self;
        match number {
            Some(number) if number.to_string() != address.host => write!(f, "{address} ({number})"),
            _ => write!(f, "{address}"),
        }
    }
}

/// A connection in an open transaction with our settings, to the first server that can be had, and which that
/// is.
pub(super) async fn reach(
    settings: &PostgresSettings,
) -> Result<(Client, Driver, Resolved), ConnectError> {
    let url = &settings.url;
    let mut addresses: Vec<&Address> = url.addresses.iter().collect();
    if url.config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut addresses);
    }
    let mut failed: Vec<(Resolved, ConnectError)> = Vec::new();
    for address in addresses {
        let resolved = match resolve(settings, address).await {
            Ok(resolved) => resolved,
            Err(error) => {
                let number = None;
                failed.push((
                    Resolved {
                        address: address.clone(),
                        number,
                    },
                    error,
                ));
                continue;
            }
        };
        for place in resolved {
            match reach_at(settings, &place).await {
                Ok((client, driver)) => {
                    tell_of(&failed, &place);
                    return Ok((client, driver, place));
                }
                Err(error) if error.is_final() => return Err(error),
                Err(error) => failed.push((place, error)),
            }
        }
    }
    let all = failed.iter();
    let all: Vec<String> = all
        .map(|(place, error)| format!("{place}: {}", error_chain(error)))
        .collect();
    let mut failed = failed.into_iter().map(|(_, error)| error);
    match (failed.next(), failed.next()) {
        (Some(alone), None) => Err(alone),
        (Some(first), Some(_)) => Err(ConnectError::Several {
            first: Box::new(first),
            all: all.join("; "),
        }),
        (None, _) => Err(ConnectError::Late(Duration::ZERO)),
    }
}

/// The same to one server.
pub(super) async fn reach_at(
    settings: &PostgresSettings,
    place: &Resolved,
) -> Result<(Client, Driver), ConnectError> {
    let mut config = settings.url.config.clone();
    config
        .host(&place.address.host)
        .port(place.address.port)
        .application_name(&settings.application_name)
        // A peer that is gone without a word is noticed within a minute.
        .keepalives_idle(Duration::from_secs(30))
        .keepalives_interval(Duration::from_secs(10))
        .keepalives_retries(3);
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(Duration::from_secs(60));
    }
    let limit = settings.connect_timeout;
    let connected = timeout(limit, encrypted_or_not(config, settings, place)).await;
    connected.unwrap_or(Err(ConnectError::Late(limit)))
}

/// The log names those that were passed over, for a silent one costs its time at every connection. That a host has
/// a number where nobody listens is common, and costs nothing.
fn tell_of(failed: &[(Resolved, ConnectError)], used: &Resolved) {
    let is_news = |place: &Resolved, error: &ConnectError| {
        !place.address.is_socket()
            && (place.address != used.address || matches!(error, ConnectError::Late(_)))
    };
    for (place, error) in failed.iter().filter(|(place, error)| is_news(place, error)) {
        log::warn!(
            "a host of the database was passed over store.host={place} store.used={used} reason=\"{}\"",
            error_chain(error)
        );
    }
}

async fn resolve(
    settings: &PostgresSettings,
    address: &Address,
) -> Result<Vec<Resolved>, ConnectError> {
    let resolved = |number| Resolved {
        address: address.clone(),
        number,
    };
    if address.is_socket() {
        return Ok(vec![resolved(None)]);
    }
    if let Some(number) = address.number.or_else(|| address.host.parse().ok()) {
        return Ok(vec![resolved(Some(number))]);
    }
    let limit = settings.connect_timeout;
    let looked_up = timeout(limit, lookup_host((address.host.as_str(), address.port))).await;
    let looked_up = looked_up.map_err(|_| ConnectError::Late(limit))?;
    let unknown = |error| ConnectError::Unknown(address.host.clone(), error);
    let numbers = looked_up.map_err(unknown)?;
    Ok(numbers.map(|number| resolved(Some(number.ip()))).collect())
}

/// Tries the ways that the mode allows, one after another.
async fn encrypted_or_not(
    mut config: Config,
    settings: &PostgresSettings,
    place: &Resolved,
) -> Result<(Client, Driver), ConnectError> {
    // Nobody listens between the two ends of a socket of this machine, and no server encrypts there.
    let mode = if place.address.is_socket() {
        TlsMode::Disable
    } else {
        settings.tls
    };
    let (first, second) = match mode {
        TlsMode::Disable => (SslMode::Disable, None),
        TlsMode::Allow => (SslMode::Disable, Some(SslMode::Require)),
        TlsMode::Prefer => (SslMode::Prefer, Some(SslMode::Disable)),
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => (SslMode::Require, None),
    };
    let tls = match mode {
        TlsMode::Disable => {
            config.ssl_negotiation(SslNegotiation::Postgres);
            None
        }
        _ => {
            let (check, files) = settings.encryption();
            let config = tls::client(check, files, settings.url.tls_versions)
                .map_err(|fault| ConnectError::Tls(fault.to_string()))?;
            Some(MakeRustlsConnect::new(config))
        }
    };
    let target = settings.url.target;
    let begin = begin(&configure(settings));
    config.ssl_mode(first);
    let connected = connect(&config, place, tls.clone(), target, &begin).await;
    match (connected, second) {
        (Err(error), Some(second)) if error.may_be_encryption() => {
            config.ssl_mode(second);
            // The first answer tells more than that the other way is barred too.
            connect(&config, place, tls, target, &begin)
                .await
                .map_err(|_| error)
        }
        (connected, _) => connected,
    }
}

async fn connect(
    config: &Config,
    place: &Resolved,
    tls: Option<MakeRustlsConnect>,
    target: Target,
    begin: &str,
) -> Result<(Client, Driver), ConnectError> {
    let mut config = config.clone();
    if let Some(number) = place.number {
        config.hostaddr(number);
    }
    let (client, driver) = match tls {
        None => {
            let (client, connection) = config.connect(NoTls).await?;
            (client, Driver::start(connection))
        }
        Some(tls) => {
            let (client, connection) = config.connect(tls).await?;
            (client, Driver::start(connection))
        }
    };
    if let Some(why) = unsuitable(&client, target).await? {
        return Err(ConnectError::Unsuitable(place.clone(), why));
    }
    if let Err(error) = client.batch_execute(begin).await {
        let end = error.is_closed().then(|| driver.take_end());
        return Err(end.flatten().unwrap_or(error).into());
    }
    Ok((client, driver))
}

/// Why this is not the server that is wanted.
async fn unsuitable(client: &Client, target: Target) -> Result<Option<&'static str>, ConnectError> {
    let (question, why) = match target {
        Target::Any => return Ok(None),
        Target::Primary => ("pg_catalog.pg_is_in_recovery()", "is a standby"),
        Target::ReadWrite => (
            "pg_catalog.pg_is_in_recovery() \
             OR pg_catalog.current_setting('default_transaction_read_only')::pg_catalog.bool",
            "lets nobody write",
        ),
    };
    let answers = client.simple_query(&format!("SELECT {question}")).await?;
    let is_so = answers
        .iter()
        .any(|answer| matches!(answer, SimpleQueryMessage::Row(row) if row.get(0) == Some("t")));
    Ok(is_so.then_some(why))
}
