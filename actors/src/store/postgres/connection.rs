//! One open connection: how it is made, and what its transactions are.
//!
//! Everything runs inside an explicit transaction with its settings, the connection's own set-up
//! included: behind PgBouncer in transaction mode nothing else stays with one server.

use std::time::Duration;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection as _};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::copying::Copying;
use super::driver::Driver;
use super::failure::{Failure, connect_error};
use super::partitions::Known;
use super::reach::{ConnectError, Reached, Resolved, reach};
use super::settings::PostgresSettings;
use crate::primary::Primary;
use crate::store::StoreError;

pub(super) struct Connection {
    pub(super) pg: AsyncPgConnection,
    pub(super) driver: Driver,
    /// The server that it leads to.
    pub(super) address: Resolved,
    pub(super) primary: Option<Primary>,
    pub(super) configure: String,
    pub(super) statement_timeout: Duration,
    pub(super) expects_duplicates: bool,
    pub(super) copying: Copying,
    pub(super) partitions: Known,
}

impl Connection {
    /// Connects; the transaction that it was set up in is over when this returns.
    pub(super) async fn open(settings: &PostgresSettings) -> Result<Self, StoreError> {
        let place = settings.place();
        let opened = for_diesel(settings).await;
        opened.map_err(|error| connect_error(&place, error))
    }

    /// An error once events are written to another server than this.
    pub(super) fn still_counts(&self, settings: &PostgresSettings) -> Result<(), Failure> {
        let known = settings.servers.primary();
        match (self.primary, known.get()) {
            (Some(own), Some(known)) if own != known => Err(Failure::LeftBehind {
                server: self.address.clone(),
                own,
                known,
            }),
            _ => Ok(()),
        }
    }

    pub(super) async fn begin(&mut self) -> Result<(), Failure> {
        let begin = begin(&self.configure);
        Ok(self.pg.batch_execute(&begin).await?)
    }

    /// Starts a transaction whose commit does not wait for the disk: for what is done again if a crash
    /// of the server undoes it, and must not make others wait.
    pub(super) async fn begin_repeatable(&mut self) -> Result<(), Failure> {
        let begin = format!(
            "{}; SET LOCAL synchronous_commit = off",
            begin(&self.configure)
        );
        Ok(self.pg.batch_execute(&begin).await?)
    }

    /// Starts a transaction that only reads, sees one moment, and may take its time.
    pub(super) async fn begin_snapshot(&mut self) -> Result<(), Failure> {
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}; SET LOCAL statement_timeout = 0",
            self.configure
        );
        Ok(self.pg.batch_execute(&begin).await?)
    }

    /// The same for a question that is asked page by page: to compile it would take longer than to
    /// answer it.
    pub(super) async fn begin_page(&mut self) -> Result<(), Failure> {
        self.begin_snapshot().await?;
        Ok(self.pg.batch_execute("SET LOCAL jit = off").await?)
    }

    /// Whether the server no longer answers, after a failure.
    pub(super) async fn is_lost(&mut self) -> bool {
        // A server that is there answers this at once.
        let rolled_back = self.pg.batch_execute("ROLLBACK");
        let answer = tokio::time::timeout(Duration::from_secs(1), rolled_back).await;
        !matches!(answer, Ok(Ok(())))
    }

    pub(super) async fn roll_back(&mut self) -> Result<(), Failure> {
        Ok(self.pg.batch_execute("ROLLBACK").await?)
    }

    /// Ends the transaction; from here on it is durable, on a synchronous standby as well.
    pub(super) async fn commit(&mut self) -> Result<(), Failure> {
        self.driver.commit(self.pg.batch_execute("COMMIT")).await
    }

    /// As [`Self::commit`], and the rows of others that the transaction went by are as durable as its own.
    ///
    /// A standby, or the disk, may not have them yet. A transaction that has written nothing waits for neither;
    /// one with a record in the log waits for all that was logged before it. That costs what any commit costs,
    /// so it is done whatever the server's settings are.
    pub(super) async fn commit_behind_others(&mut self) -> Result<(), Failure> {
        const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'event_persister', ''); COMMIT";
        self.driver.commit(self.pg.batch_execute(COMMIT)).await
    }

    /// Tells a statement that was cancelled, in a transaction whose statements may take as long as usual.
    pub(super) fn or_cancelled(&self, failure: Failure, asked: Instant) -> Failure {
        failure.after(asked.elapsed(), self.statement_timeout)
    }

    pub(super) fn explain(&self, failure: Failure) -> Failure {
        if !failure.is_loss() {
            return failure;
        }
        let Some(end) = self.driver.take_end() else {
            return failure;
        };
        let kind = DatabaseErrorKind::UnableToSendCommand;
        Failure::Database(DieselError::DatabaseError(kind, Box::new(end.to_string())))
    }
}

/// Rows that others committed meanwhile must be seen by the next statement, and an error of a
/// deferred constraint must come up where it can be told whose it is.
pub(super) fn begin(configure: &str) -> String {
    format!("BEGIN ISOLATION LEVEL READ COMMITTED; SET CONSTRAINTS ALL IMMEDIATE; {configure}")
}

/// The settings as one statement; they end with the transaction.
pub(super) fn configure(settings: &PostgresSettings) -> String {
    let millis = |duration: Duration| duration.as_millis().min(i32::MAX as u128).to_string();
    let mut values = vec![
        ("statement_timeout", millis(settings.statement_timeout)),
        ("lock_timeout", millis(lock_timeout(settings))),
        // A client that went away in the middle must not hold locks for ever. In the middle of a COPY no
        // time-out of a session ends, so the server has to ask for signs of life.
        ("idle_in_transaction_session_timeout", "60000".to_owned()),
        ("tcp_keepalives_idle", "30".to_owned()),
        ("tcp_keepalives_interval", "10".to_owned()),
        ("tcp_keepalives_count", "3".to_owned()),
        ("timezone", "UTC".to_owned()),
        // A role may have been told to hear of errors alone, but a commit's warnings must be heard.
        ("client_min_messages", "warning".to_owned()),
    ];
    if let Some(search_path) = &settings.search_path {
        values.push(("search_path", search_path.replace('\'', "''")));
    }
    let calls: Vec<_> = values
        .into_iter()
        .map(|(name, value)| format!("set_config('{name}', '{value}', true)"))
        .collect();
    format!("SELECT {}", calls.join(", "))
}

/// How long a statement waits for a lock: always shorter than it may take, so that one that waits for
/// somebody else is never told as one that is slow by itself.
pub(super) fn lock_timeout(settings: &PostgresSettings) -> Duration {
    let longest = settings.statement_timeout / 4 * 3;
    match (settings.lock_timeout, longest) {
        (timeout, Duration::ZERO) => timeout,
        (Duration::ZERO, longest) => longest,
        (timeout, longest) => timeout.min(longest),
    }
}

async fn for_diesel(settings: &PostgresSettings) -> Result<Connection, ConnectError> {
    let configure = configure(settings);
    let (reached, address) = reach(settings).await?;
    let Reached {
        client,
        driver,
        primary,
    } = reached;
    let limit = settings.connect_timeout;
    let set_up = tokio::time::timeout(limit, set_up(client, settings)).await;
    Ok(Connection {
        pg: set_up.unwrap_or(Err(ConnectError::Late(limit)))?,
        driver,
        address,
        primary,
        configure,
        statement_timeout: settings.statement_timeout,
        expects_duplicates: false,
        copying: if settings.prepared_statements {
            Copying::From(Instant::now())
        } else {
            Copying::Impossible
        },
        partitions: Known::default(),
    })
}

async fn set_up(
    client: Client,
    settings: &PostgresSettings,
) -> Result<AsyncPgConnection, ConnectError> {
    // Inside the transaction: diesel prepares statements of its own here, which PgBouncer must not spread
    // over several servers.
    let mut pg = AsyncPgConnection::try_from(client).await?;
    if !settings.prepared_statements {
        use diesel_async::AsyncConnection as _;
        pg.set_prepared_statement_cache_size(diesel::connection::CacheSize::Disabled);
    }
    pg.batch_execute("COMMIT")
        .await
        .map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
    Ok(pg)
}
