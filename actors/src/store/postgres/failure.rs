//! Failures as the port tells them: what was tried, where, and what to do next.
//!
//! The SQLSTATE chooses the advice, and how much has to be seen before an event is held responsible.

use std::time::Duration;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use tokio_postgres::error::SqlState;

use super::connection::Connection;
use super::reach::{ConnectError, Resolved};
use super::settings::Place;
use crate::primary::Primary;
use crate::store::{Fault, FaultKind, StoreError};

pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug)]
pub(super) enum Failure {
    /// PostgreSQL or diesel said no, and nothing was written.
    Database(DieselError),
    /// The connection ended before an answer came, and nothing was written.
    Ended(DieselError),
    /// PostgreSQL cancelled a statement, as one that takes longer than it may, and nothing was written.
    Cancelled(DieselError),
    /// PostgreSQL said no to a COPY, for no fault of an event, and nothing was written.
    Copy(tokio_postgres::Error),
    /// COMMIT failed: it may have happened all the same.
    Commit(Cause),
    Late(Duration),
    /// Nothing was heard of the server for so long, on a new connection either.
    Silent {
        server: Resolved,
        lasted: Duration,
    },
    /// Events are written to another server by now.
    LeftBehind {
        server: Resolved,
        own: Primary,
        known: Primary,
    },
    /// A call ended without saying what it did.
    Lost(tokio::task::JoinError),
    /// The database is not what it should be; says what and what to do.
    Unfit(String),
}

impl From<DieselError> for Failure {
    fn from(error: DieselError) -> Self {
        Self::Database(error)
    }
}

impl Failure {
    pub(super) fn commit(error: impl Into<Cause>) -> Self {
        Self::Commit(error.into())
    }

    fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Database(error) => sqlstate(error),
            Self::Copy(error) => error.code().map(SqlState::code),
            Self::Cancelled(_) => Some("57014"),
            Self::Ended(_)
            | Self::Commit(_)
            | Self::Late(_)
            | Self::Silent { .. }
            | Self::LeftBehind { .. }
            | Self::Lost(_)
            | Self::Unfit(_) => None,
        }
    }

    pub(super) fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::Ended(_)
                | Self::Database(DieselError::DatabaseError(
                    DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection,
                    _,
                ))
        )
    }

    /// The same, or that the connection was lost: what the server says while it ends one comes without its
    /// code.
    pub(super) async fn seen_with(self, connection: &mut Connection) -> Self {
        match self {
            Self::Database(error) if sqlstate(&error).is_none() && connection.is_lost().await => {
                Self::Ended(error)
            }
            failure => failure,
        }
    }

    /// The same, or that a statement was cancelled, if there was time for that: diesel does not show its code.
    pub(super) fn after(self, lasted: Duration, statement_timeout: Duration) -> Self {
        let may_be = !statement_timeout.is_zero() && lasted >= statement_timeout;
        match self {
            Self::Database(error @ DieselError::DatabaseError(DatabaseErrorKind::Unknown, _))
                if may_be && sqlstate(&error).is_none() =>
            {
                Self::Cancelled(error)
            }
            failure => failure,
        }
    }

    pub(super) fn is_before_commit(&self) -> bool {
        matches!(
            self,
            Self::Database(_) | Self::Ended(_) | Self::Cancelled(_) | Self::Copy(_)
        )
    }

    pub(super) fn is_lock_timeout(&self) -> bool {
        self.sqlstate() == Some("55P03")
    }

    /// Whether the statement was cancelled, as one is that takes longer than it may.
    pub(super) fn is_cancelled(&self) -> bool {
        self.sqlstate() == Some("57014")
    }

    pub(super) fn into_store_error(
        self,
        doing: &str,
        place: &Place,
        holders: Option<&str>,
    ) -> StoreError {
        let mut advice = advice(self.sqlstate(), self.is_loss(), place);
        // A command that reads ends here.
        if !doing.starts_with("read") {
            advice.push_str(again(self.sqlstate(), self.is_loss()));
        }
        let code = match self.sqlstate() {
            None if self.is_loss() => Some(CONNECTION_FAILURE),
            code => code,
        };
        let code = code.map(str::to_owned);
        let undone = |cause: Cause| {
            let what = format!(
                "cannot {doing} {place}: {advice}{}",
                holders.unwrap_or_default()
            );
            let source = Some(cause);
            match code.as_deref() {
                // query_canceled: by statement_timeout, for the most part.
                Some("57014") => StoreError::TooSlow { what, code, source },
                // statement_completion_unknown and transaction_resolution_unknown.
                Some("40003" | "08007") => StoreError::OutcomeUnknown {
                    what,
                    fault: Some(fault(code)),
                    source,
                },
                _ => StoreError::Unavailable {
                    what,
                    fault: Some(fault(code)),
                    source,
                },
            }
        };
        match self {
            Self::Unfit(what) => StoreError::unavailable(what),
            Self::Database(error) | Self::Ended(error) | Self::Cancelled(error) => {
                undone(error.into())
            }
            Self::Copy(error) => undone(error.into()),
            Self::Commit(error) => StoreError::OutcomeUnknown {
                what: format!(
                    "the commit to {place} failed, and it may have happened all the same; it is made \
                     again, which doubles nothing"
                ),
                fault: None,
                source: Some(error),
            },
            Self::Late(limit) => StoreError::TooSlow {
                what: format!(
                    "{place} did not answer for {limit:?}, and what was asked of it may have happened \
                     all the same; it is made again, which doubles nothing: look at the server, the \
                     standby that its commits wait for, if any, and the network"
                ),
                code: None,
                source: None,
            },
            Self::Silent { server, lasted } => StoreError::OutcomeUnknown {
                what: format!(
                    "{place}: nothing was heard of the server {server} for {} s, on a new connection \
                     either, and what was asked of it may have happened all the same; it is made again, \
                     which doubles nothing: look at the server and the network",
                    lasted.as_secs()
                ),
                fault: None,
                source: None,
            },
            Self::LeftBehind { server, own, known } => StoreError::OutcomeUnknown {
                what: format!(
                    "{place}: the server {server} is on {own}, and events are written to {known} by now; \
                     it is made again there, which doubles nothing"
                ),
                fault: None,
                source: None,
            },
            Self::Lost(error) => StoreError::OutcomeUnknown {
                what: format!(
                    "a call to {place} ended before it could say what it did; it is made again"
                ),
                fault: None,
                source: Some(Box::new(error)),
            },
        }
    }
}

/// SQLSTATE of a connection that ended before an answer came, as the server itself would tell it.
const CONNECTION_FAILURE: &str = "08006";

fn fault(sqlstate: Option<String>) -> Fault {
    let kind = match sqlstate.as_deref() {
        // lock_not_available, deadlock_detected
        Some("55P03" | "40P01") => FaultKind::Contention,
        // A pooler may lead to one server that only takes reads and to one that does not.
        Some("25006") => FaultKind::Transient,
        Some(code) => match code.get(..2) {
            Some("53") => FaultKind::Resources,
            Some("08" | "26" | "28" | "40" | "57" | "58" | "XX") => FaultKind::Transient,
            _ => FaultKind::Lasting,
        },
        // diesel does not show every code.
        None => FaultKind::Transient,
    };
    Fault {
        kind,
        code: sqlstate,
    }
}

/// The code that the store function tells in the detail of what it raises again.
fn sqlstate(error: &DieselError) -> Option<&str> {
    let DieselError::DatabaseError(kind, information) = error else {
        return None;
    };
    match kind {
        DatabaseErrorKind::ReadOnlyTransaction => Some("25006"),
        DatabaseErrorKind::SerializationFailure => Some("40001"),
        DatabaseErrorKind::NotNullViolation => Some("23502"),
        _ => information.details()?.strip_prefix("SQLSTATE ")?.get(..5),
    }
}

fn advice(sqlstate: Option<&str>, is_loss: bool, place: &Place) -> String {
    let known = match sqlstate {
        Some("55P03") => {
            let timeout = place.lock_timeout;
            return format!(
                "another session kept what it needs locked for longer than {timeout:?}"
            );
        }
        Some("25006") => "it only takes reads: connect to the primary, or end its read-only mode",
        Some("40001" | "40P01") => "another session was in the way",
        Some("23502") => {
            "a column that this version does not write must have a value: upgrade event-persister"
        }
        Some("42501") => "the role lacks a privilege: GRANT what the error names",
        Some("57014") => {
            "the server cancelled it, after its statement_timeout or because someone asked for it"
        }
        Some("40003" | "08007") => "whether it was done is not known",
        Some("53100") => "its disk is full: make room",
        Some("53200" | "53400") => "it is short of memory: look at its limits and its log",
        Some("42P01" | "42703" | "42883") => {
            "the schema has changed: see `event-persister check`, then run `event-persister migrate`"
        }
        _ if is_loss => "the connection was lost",
        _ => "the server refused, and its own words and log say why",
    };
    known.to_owned()
}

/// What follows of a failure that may pass.
fn again(sqlstate: Option<&str>, is_loss: bool) -> &'static str {
    match fault(sqlstate.map(str::to_owned)).kind {
        FaultKind::Transient if sqlstate == Some("57014") => {
            "; it is tried again with fewer events"
        }
        FaultKind::Transient if is_loss => "; it is made again",
        FaultKind::Transient => "; it is tried again",
        FaultKind::Contention | FaultKind::Resources | FaultKind::Lasting => "",
    }
}

/// A connection was lost at work, and no other could be made: the work may be the reason for both.
pub(super) fn after_loss(mut error: StoreError) -> StoreError {
    if let StoreError::Unavailable {
        fault: unknown @ None,
        ..
    } = &mut error
    {
        *unknown = Some(fault(Some(CONNECTION_FAILURE.to_owned())));
    }
    error
}

/// With a process that starts anew it is forgotten, unless replicas have agreed on it in Redis.
const LEFT_BEHIND: &str = "what is written to a primary that was left behind is lost to the one that took over: \
    fence it, and lead us to the other; if it is to be used all the same, see the handbook on failover";

pub(super) fn connect_error(place: &Place, error: ConnectError) -> StoreError {
    let advice = match error.code() {
        Some(code) if code.code().starts_with("28") => {
            "user, password or pg_hba.conf do not fit together; encryption is part of that"
        }
        Some(code) if *code == SqlState::INVALID_CATALOG_NAME => {
            "there is no such database: create it, or correct the URL"
        }
        Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => {
            "it has no connection left: raise max_connections, or use fewer writers"
        }
        Some(code) if *code == SqlState::CANNOT_CONNECT_NOW => "it is starting or stopping",
        Some(_) => "the server refused",
        None if error.is_left_behind() => LEFT_BEHIND,
        None if error.is_tls() => {
            "encryption failed: sslmode, the certificates and the host's name must fit together"
        }
        None if error.is_disagreement() => {
            "the server answers, but wants another login or encryption: see sslmode and the password in the URL, \
             PGPASSWORD, or a file of passwords, which counts with mode 0600 alone"
        }
        None => "is the server running there, and does the network let us through?",
    };
    StoreError::Unavailable {
        what: format!("cannot connect to {place}: {advice}"),
        fault: None,
        source: Some(Box::new(error)),
    }
}
