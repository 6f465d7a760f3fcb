//! One open connection: how it is made, and what its transactions are.
//!
//! Everything runs inside an explicit transaction with its settings, the connection's own set-up
//! included: behind PgBouncer in transaction mode nothing else stays with one server.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection as _};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::copy_rows::CopyRows;
use super::copying::{Copied, Copier};
use super::driver::Driver;
use super::failure::{Failure, connect_error};
use super::reach::{Adopt, ConnectError, Resolved, reach};
use super::settings::PostgresSettings;
use crate::status::error_chain;
use crate::store::StoreError;

/// Where no connection for COPY can be had, the next attempt is made this much later: longer leaves the
/// store slow after a moment without connections, shorter says so too often.
const TRY_COPYING_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// A batch waits for that connection, and must not take it for an outage.
const COPYING_CONNECTS_WITHIN: Duration = Duration::from_secs(3);

/// A connection with our settings.
pub(super) struct Connection {
    pub(super) pg: AsyncPgConnection,
    pub(super) driver: Driver,
    /// The server that it leads to.
    pub(super) address: Resolved,
    pub(super) configure: String,
    /// Whether the last batch held events that were there already.
    pub(super) expects_duplicates: bool,
    /// For batches that hold nothing special.
    pub(super) copying: Copying,
}

pub(super) enum Copying {
    /// As soon as one is large enough, but not before this moment.
    From(Instant),
    /// Through this connection, unless the batch before it held something special.
    Possible {
        copier: Box<Copier>,
        is_due: bool,
    },
    Impossible,
}

impl Copying {
    async fn open(settings: &PostgresSettings, address: &Resolved) -> Self {
        let limit = settings.connect_timeout.min(COPYING_CONNECTS_WITHIN);
        let opened = tokio::time::timeout(limit, Copier::open(settings, address)).await;
        let (why, otherwise) = match opened.unwrap_or(Err(ConnectError::Late(limit))) {
            Ok(Some(copier)) => {
                return Self::Possible {
                    copier: Box::new(copier),
                    is_due: true,
                };
            }
            Ok(None) => {
                let why = "a rule on events or event_resources would not be heeded";
                (why.to_owned(), Self::Impossible)
            }
            Err(error) => {
                let later = Self::From(Instant::now() + TRY_COPYING_AGAIN_AFTER);
                (error_chain(&error), later)
            }
        };
        let place = settings.place();
        log::info!(
            "large batches are written by the store function, which is slower than COPY \
             store.host={} store.database={} reason={why}",
            place.host,
            place.database,
        );
        otherwise
    }
}

impl Connection {
    /// Connects; the transaction that it was set up in is over when this returns.
    pub(super) async fn open(settings: &PostgresSettings) -> Result<Self, StoreError> {
        let place = settings.place();
        let opened = for_diesel(settings).await;
        opened.map_err(|error| connect_error(&place, error))
    }

    /// Copies a batch, if that is possible and promises to succeed.
    pub(super) async fn copy(
        &mut self,
        settings: &PostgresSettings,
        rows: CopyRows,
        now: DateTime<Utc>,
    ) -> Result<Copied, Failure> {
        if matches!(self.copying, Copying::From(moment) if moment <= Instant::now()) {
            self.copying = Copying::open(settings, &self.address).await;
        }
        let copied = match &self.copying {
            Copying::Possible {
                copier,
                is_due: true,
            } => copier.copy(rows, now).await?,
            Copying::Possible { .. } | Copying::From(_) | Copying::Impossible => Copied::Refused,
        };
        match copied {
            Copied::All | Copied::NothingNew | Copied::Refused => {}
            Copied::Impossible => self.copying = Copying::Impossible,
            Copied::Lost => self.copying = Copying::From(Instant::now()),
        }
        Ok(copied)
    }

    /// A batch with something special is seldom alone: the store function then finds it sooner.
    pub(super) fn copies_next(&mut self, was_clean: bool) {
        if let Copying::Possible { is_due, .. } = &mut self.copying {
            *is_due = was_clean;
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

    /// Ends the transaction and undoes what it did.
    pub(super) async fn roll_back(&mut self) -> Result<(), Failure> {
        Ok(self.pg.batch_execute("ROLLBACK").await?)
    }

    /// Ends the transaction; from here on it is durable, on a synchronous standby as well.
    pub(super) async fn commit(&mut self) -> Result<(), Failure> {
        self.driver.commit(self.pg.batch_execute("COMMIT")).await
    }

    /// As [`Self::commit`], for a transaction that goes by rows that others have committed: from here on
    /// these are as durable as its own.
    ///
    /// A standby may not have them yet, where the wait for it was cancelled, nor the disk, where the session that wrote
    /// them did not wait for it. A transaction that has written nothing waits for neither, not even with an id
    /// of its own; one with a record in the log waits for all that was logged before it. That costs what any
    /// commit costs, so it is done whatever the server's settings are.
    pub(super) async fn commit_behind_others(&mut self) -> Result<(), Failure> {
        const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'event_persister', ''); COMMIT";
        self.driver.commit(self.pg.batch_execute(COMMIT)).await
    }

    /// Tells of a connection that was lost what ended it.
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
        // A client that went away in the middle must not hold locks for ever.
        ("idle_in_transaction_session_timeout", "60000".to_owned()),
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
fn lock_timeout(settings: &PostgresSettings) -> Duration {
    let longest = settings.statement_timeout / 4 * 3;
    match (settings.lock_timeout, longest) {
        (timeout, Duration::ZERO) => timeout,
        (Duration::ZERO, longest) => longest,
        (timeout, longest) => timeout.min(longest),
    }
}

async fn for_diesel(settings: &PostgresSettings) -> Result<Connection, ConnectError> {
    let configure = configure(settings);
    let ((mut pg, driver), address) = reach(settings, ForDiesel).await?;
    if !settings.prepared_statements {
        use diesel_async::AsyncConnection as _;
        pg.set_prepared_statement_cache_size(diesel::connection::CacheSize::Disabled);
    }
    pg.batch_execute("COMMIT")
        .await
        .map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
    Ok(Connection {
        pg,
        driver,
        address,
        configure,
        expects_duplicates: false,
        copying: if settings.prepared_statements {
            Copying::From(Instant::now())
        } else {
            Copying::Impossible
        },
    })
}

#[derive(Clone, Copy)]
struct ForDiesel;

impl Adopt for ForDiesel {
    type Adopted = (AsyncPgConnection, Driver);

    /// Makes it diesel's, inside a transaction that is left open: diesel prepares statements of its own
    /// here, which PgBouncer must not spread over several servers.
    async fn adopt(
        self,
        client: Client,
        driver: Driver,
        begin: &str,
    ) -> Result<Self::Adopted, ConnectError> {
        if let Err(error) = client.batch_execute(begin).await {
            let end = error.is_closed().then(|| driver.take_end());
            return Err(end.flatten().unwrap_or(error).into());
        }
        Ok((AsyncPgConnection::try_from(client).await?, driver))
    }
}
