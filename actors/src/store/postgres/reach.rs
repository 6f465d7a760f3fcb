//! How a server is reached: the addresses one after another, until one is the right one.
//!
//! Each address has a time limit of its own, for everything: the connection, encryption, the login, our own
//! set-up, and the question whether it is the one that is wanted. So one that takes connections and says
//! nothing costs that time, and the next is tried; for a while it is tried last then. A server that answers with
//! a refusal is not passed over, unless it only says that it cannot yet, or no longer: to write elsewhere what
//! this one was meant to have would be a surprise.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use rustls::Error as TlsError;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_postgres::config::{LoadBalanceHosts, SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::connection::{begin, configure};
use super::driver::Driver;
use super::encryption::Noted;
use super::settings::{PostgresSettings, TlsMode};
use super::url::{Address, Target};
use crate::primary::Primary;
use crate::status::error_chain;
use crate::tls;

/// So long a TCP connection may take before it is begun anew. The system repeats its attempt ever more seldom, and
/// would notice late that a network is back. Shorter gives up on networks that are only slow.
const ATTEMPT: Duration = Duration::from_secs(1);

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
    #[error(
        "the server {place} is on {found}, and events are written to {known}: it was left behind in a \
         failover, or is another database's"
    )]
    LeftBehind {
        place: Resolved,
        found: Primary,
        known: Primary,
    },
    #[error("{all}")]
    Several {
        first: Box<ConnectError>,
        any_left_behind: bool,
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

    /// Whether no server may take events that could.
    pub(super) fn is_left_behind(&self) -> bool {
        match self {
            Self::LeftBehind { .. } => true,
            Self::Several {
                any_left_behind, ..
            } => *any_left_behind,
            _ => false,
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

    /// Whether nothing came back, so that nobody may be there.
    fn is_silence(&self) -> bool {
        use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        let kind = self.causes().find_map(io_error).map(io::Error::kind);
        matches!(self, Self::Late(_))
            || matches!(kind, Some(TimedOut | HostUnreachable | NetworkUnreachable))
    }

    /// Whether an attempt at a connection was given up by us, to make it anew.
    fn was_given_up(&self) -> bool {
        let mut io_errors = self.causes().filter_map(io_error);
        io_errors
            .any(|error| error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none())
    }

    fn causes(&self) -> impl Iterator<Item = &(dyn Error + 'static)> {
        fn source<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            (*error).source()
        }
        std::iter::successors(Some(self as &(dyn Error + 'static)), source)
    }

    /// Whether the two have spoken, and what we were told to say does not suit the server: it does not encrypt, or
    /// wants a password that nobody gave us.
    pub(super) fn is_disagreement(&self) -> bool {
        match self {
            Self::Several { first, .. } => first.is_disagreement(),
            Self::Postgres(error) => {
                !error.is_closed() && !self.causes().any(|cause| cause.is::<io::Error>())
            }
            _ => false,
        }
    }

    /// Whether the other way, with TLS or without, is worth a try: the server has refused the login, whatever it says
    /// of it, or has hung up. A server may ask for a password in one way, and for none in the other.
    fn may_be_encryption(&self) -> bool {
        match self.code() {
            Some(_) => self.is_final(),
            None => self.is_disagreement() || self.is_tls() || self.is_cut_off(),
        }
    }

    /// Whether the server lets nobody in this way.
    fn is_barred(&self) -> bool {
        self.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
    }

    /// Whether the server has hung up without a word.
    fn is_cut_off(&self) -> bool {
        use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let kind = self.causes().find_map(io_error).map(io::Error::kind);
        matches!(self, Self::Postgres(error) if error.is_closed())
            || matches!(
                kind,
                Some(BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
            )
    }

    /// Whether the two could not agree on encryption.
    pub(super) fn is_tls(&self) -> bool {
        if let Self::Several { first, .. } = self {
            return first.is_tls();
        }
        let is_tls = |error: &(dyn Error + 'static)| {
            let inner = io_error(error).and_then(io::Error::get_ref);
            error.is::<TlsError>() || inner.is_some_and(|inner| inner.is::<TlsError>())
        };
        matches!(self, Self::Tls(_)) || self.causes().any(is_tls)
    }
}

fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    error.downcast_ref()
}

/// An address with the number that its name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    address: Address,
    number: Option<IpAddr>,
}

impl Resolved {
    pub(super) fn new(address: &Address, number: Option<IpAddr>) -> Self {
        Self {
            address: address.clone(),
            number,
        }
    }

    pub(super) fn is_at(&self, address: &Address) -> bool {
        self.address == *address
    }
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

/// A connection in an open transaction with our settings.
pub(super) struct Reached {
    pub(super) client: Client,
    pub(super) driver: Driver,
    /// What the server is, unless it is a standby or does not say.
    pub(super) primary: Option<Primary>,
}

/// A connection to the first server that can be had, and which that is.
pub(super) async fn reach(
    settings: &PostgresSettings,
) -> Result<(Reached, Resolved), ConnectError> {
    let url = &settings.url;
    let mut addresses: Vec<&Address> = url.addresses.iter().collect();
    if url.config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut addresses);
    }
    let servers = &settings.servers;
    let before = servers.primary().get();
    if addresses.len() > 1 && servers.begin_survey() {
        survey(settings, &addresses).await;
    }
    addresses.sort_by_key(|address| servers.has_silent(address));
    let mut failed: Vec<(Resolved, ConnectError)> = Vec::new();
    for address in addresses {
        let mut resolved = match resolve(settings, address).await {
            Ok(resolved) => resolved,
            Err(error) => {
                failed.push((Resolved::new(address, None), error));
                continue;
            }
        };
        resolved.sort_by_key(|place| servers.is_silent(place));
        for place in resolved {
            match reach_at(settings, &place).await {
                Ok(reached) => {
                    servers.heard(&place);
                    tell_of(&failed, &place);
                    if let (Some(before), Some(now)) = (before, reached.primary)
                        && before != now
                    {
                        log::warn!(
                            "another server takes the events; connections to the one before are given up \
                             store.used={place} store.primary=\"{now}\" store.before=\"{before}\""
                        );
                    }
                    return Ok((reached, place));
                }
                Err(error) if error.is_final() => return Err(error),
                Err(error) => {
                    if error.is_silence() {
                        servers.found_silent(&place);
                    }
                    failed.push((place, error));
                }
            }
        }
    }
    let all = failed.iter();
    let all: Vec<String> = all
        .map(|(place, error)| format!("{place}: {}", error_chain(error)))
        .collect();
    let any_left_behind = failed.iter().any(|(_, error)| error.is_left_behind());
    let mut failed = failed.into_iter().map(|(_, error)| error);
    match (failed.next(), failed.next()) {
        (Some(alone), None) => Err(alone),
        (Some(first), Some(_)) => Err(ConnectError::Several {
            first: Box::new(first),
            any_left_behind,
            all: all.join("; "),
        }),
        (None, _) => Err(ConnectError::Late(Duration::ZERO)),
    }
}

/// Looks for the latest primary of several, before the first of them that takes writes is believed.
async fn survey(settings: &PostgresSettings, addresses: &[&Address]) {
    let looked = addresses.iter().map(async |address| {
        for place in resolve(settings, address).await.ok()? {
            match connect_to(settings, &place, Wanted::Identity).await {
                Ok(reached) => return reached.primary,
                Err(error) if error.is_silence() => settings.servers.found_silent(&place),
                Err(_) => {}
            }
        }
        None
    });
    for found in join_all(looked).await.into_iter().flatten() {
        // One that is not the latest is refused once it is the turn of it.
        settings.servers.primary().meet(found).ok();
    }
}

/// The same to one server.
pub(super) async fn reach_at(
    settings: &PostgresSettings,
    place: &Resolved,
) -> Result<Reached, ConnectError> {
    connect_to(settings, place, Wanted::Transaction).await
}

/// Whether somebody who logs in at a server hears nothing of it.
pub(super) async fn is_silent(settings: &PostgresSettings, place: &Resolved) -> bool {
    match connect_to(settings, place, Wanted::Login).await {
        Ok(_) => false,
        Err(error) => error.is_silence(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// An open transaction at the right server.
    Transaction,
    /// To know which server it is.
    Identity,
    /// Nothing but to be let in. A pooler answers that although it has no connection of its own left.
    Login,
}

async fn connect_to(
    settings: &PostgresSettings,
    place: &Resolved,
    wanted: Wanted,
) -> Result<Reached, ConnectError> {
    let limit = settings.connect_timeout;
    let mut config = settings.url.config.clone();
    config
        .host(&place.address.host)
        .port(place.address.port)
        .application_name(&settings.application_name)
        .connect_timeout(ATTEMPT.min(limit))
        // A peer that is gone without a word is noticed within a minute.
        .keepalives_idle(Duration::from_secs(30))
        .keepalives_interval(Duration::from_secs(10))
        .keepalives_retries(3);
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(Duration::from_secs(60));
    }
    let connected = async {
        loop {
            match connect(config.clone(), settings, place, wanted).await {
                Err(error) if error.was_given_up() => {}
                connected => return connected,
            }
        }
    };
    let connected = timeout(limit, connected).await;
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
    let resolved = |number| Resolved::new(address, number);
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

/// Tries the ways that the mode allows, one after another, as Python's driver does.
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
            Some(Noted::new(MakeRustlsConnect::new(config)))
        }
    };
    config.ssl_mode(first);
    let error = match log_in(&config, place, tls.clone()).await {
        Ok(logged_in) => return Ok(logged_in),
        Err(error) => error,
    };
    let Some(second) = second.filter(|_| error.may_be_encryption()) else {
        return Err(error);
    };
    // A server that does not encrypt was spoken to in plain text already.
    if first == SslMode::Prefer && !tls.as_ref().is_some_and(Noted::was_begun) {
        return Err(error);
    }
    config.ssl_mode(second);
    match log_in(&config, place, tls).await {
        Ok(logged_in) => {
            if second == SslMode::Disable && !error.is_barred() {
                log::warn!(
                    "the connection to the database is not encrypted, for with TLS it has failed; database.tls=require \
                     or more allows no other store.host={place} reason=\"{}\"",
                    error_chain(&error)
                );
            }
            Ok(logged_in)
        }
        // That a way is barred tells the least.
        Err(other) if other.is_barred() || other.is_cut_off() => Err(error),
        Err(other) => Err(other),
    }
}

async fn log_in(
    config: &Config,
    place: &Resolved,
    tls: Option<Noted>,
) -> Result<(Client, Driver), ConnectError> {
    let mut config = config.clone();
    if let Some(number) = place.number {
        config.hostaddr(number);
    }
    Ok(match tls {
        None => {
            let (client, connection) = config.connect(NoTls).await?;
            (client, Driver::start(connection))
        }
        Some(tls) => {
            let (client, connection) = config.connect(tls).await?;
            (client, Driver::start(connection))
        }
    })
}

/// What the connection is wanted for, once the server has let us in.
async fn connect(
    config: Config,
    settings: &PostgresSettings,
    place: &Resolved,
    wanted: Wanted,
) -> Result<Reached, ConnectError> {
    let (client, driver) = encrypted_or_not(config, settings, place).await?;
    let mut reached = Reached {
        client,
        driver,
        primary: None,
    };
    if wanted == Wanted::Login {
        return Ok(reached);
    }
    let client = &reached.client;
    reached.primary = identity(client).await?;
    if wanted == Wanted::Identity {
        return Ok(reached);
    }
    if let Some(why) = unsuitable(client, settings.url.target).await? {
        return Err(ConnectError::Unsuitable(place.clone(), why));
    }
    if let Some(found) = reached.primary {
        let known = settings.servers.primary();
        known
            .meet(found)
            .map_err(|known| ConnectError::LeftBehind {
                place: place.clone(),
                found,
                known,
            })?;
    }
    let begin = begin(&configure(settings));
    if let Err(error) = client.batch_execute(&begin).await {
        let end = error.is_closed().then(|| reached.driver.take_end());
        return Err(end.flatten().unwrap_or(error).into());
    }
    Ok(reached)
}

/// What tells a primary from others: its system, and the name of the file that it logs to, which begins with the
/// timeline. Anybody may ask unless somebody has forbidden it.
const IDENTITY: &str = "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), system_identifier \
    FROM pg_catalog.pg_control_system() WHERE NOT pg_catalog.pg_is_in_recovery()";

/// Which server it is; `None` for a standby, and where the server does not say.
async fn identity(client: &Client) -> Result<Option<Primary>, ConnectError> {
    let answers = match client.simple_query(IDENTITY).await {
        Ok(answers) => answers,
        Err(error) if error.code().is_some() => {
            log::debug!("the server does not say which it is error={error}");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let found = answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => parse_identity(row.get(0)?, row.get(1)?),
        _ => None,
    });
    Ok(found)
}

fn parse_identity(file: &str, system: &str) -> Option<Primary> {
    let timeline = u32::from_str_radix(file.get(..8)?, 16).ok()?;
    // PostgreSQL shows it as a signed number.
    let system = system.parse::<i64>().ok()?.cast_unsigned();
    Some(Primary { system, timeline })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_its_system_and_its_log() {
        let primary = |timeline| Primary {
            system: 7_713_397_125_707_376_733,
            timeline,
        };
        let system = "7713397125707376733";
        let parsed = |file| parse_identity(file, system);
        assert_eq!(parsed("000000010000000000000001"), Some(primary(1)));
        assert_eq!(parsed("0000001F000000A200000001"), Some(primary(31)));
        assert_eq!(parsed("0000"), None);
        assert_eq!(parse_identity("000000010000000000000001", "?"), None);
    }
}
