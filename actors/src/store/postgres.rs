//! Store: PostgreSQL, version 13 or newer, in the tables of a Prefect server or in tables like them.
//!
//! A batch is copied, or written by a function that our own migrations install: it isolates the events
//! that the database refuses inside the transaction, so that all others and the dead letters commit
//! together. A call takes the connection out, and puts it back only if it succeeds. Otherwise the
//! connection is closed, and the next call opens another.
//!
//! # Why a function
//!
//! Only the SQLSTATE tells whether an error is an event's own fault or the server's. Savepoints would cost
//! a round trip for each event. Inside the server the code is known, a culprit is found by splitting the
//! batch, and a batch without a culprit costs nothing more.
//!
//! # PgBouncer
//!
//! Everything runs in explicit transactions with settings that end with them, without session locks and
//! temporary tables. In transaction mode, prepared statements need PgBouncer 1.21 with
//! `max_prepared_statements`, else `prepared_statements: false`.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::LocalBoxFuture;
use tokio::time::Instant;

use self::connection::Connection;
pub use self::environment::PgEnvironment;
use self::failure::Failure;
use self::liveness::while_heard_of;
use self::reach::Resolved;
pub use self::reader::PostgresReader;
pub use self::servers::Servers;
pub use self::settings::{PostgresSettings, TlsMode};
use self::trim::Resume;
pub use self::url::{Address, PostgresUrl, Target};
use crate::clock::Clock;
use crate::delivery::Batch;
use crate::lock::lock;
pub use crate::store::CreateSchema;
use crate::store::{
    Cutoffs, EventCounts, EventStore, LastPass, OpenStore, Outcome, StoreError, TrimStep,
};

#[cfg(feature = "archive")]
mod archiving;
mod arrays;
mod conditions;
mod connection;
mod copying;
mod driver;
mod encryption;
mod environment;
mod failure;
mod letters;
mod liveness;
mod lock_holder;
mod operator;
mod partitions;
mod passes;
mod reach;
mod reader;
mod rows;
mod schema;
mod servers;
mod settings;
mod text_length;
mod trim;
mod url;
mod write;

/// The time that a call may take beyond the statement's own limit before the connection counts as dead.
const GRACE: Duration = Duration::from_secs(10);

/// The connection of a removal, and that of an archive which reads beside it. Others are closed after use.
const MAX_IDLE: usize = 2;

/// One connection to a PostgreSQL database; another one while an archive reads beside a removal.
pub struct PostgresStore {
    settings: Arc<PostgresSettings>,
    clock: Arc<dyn Clock>,
    idle: Mutex<Vec<Connection>>,
    resume: Mutex<Resume>,
    /// What the last look at its tables found that will do harm.
    danger: Mutex<Option<String>>,
}

impl PostgresStore {
    /// A store that connects when it is first used.
    pub fn new(settings: PostgresSettings, clock: Arc<dyn Clock>) -> Self {
        Self::sharing(Arc::new(settings), clock)
    }

    /// Opens stores with the same settings.
    pub fn open_store(settings: PostgresSettings, clock: Arc<dyn Clock>) -> OpenStore {
        let settings = Arc::new(settings);
        Arc::new(move || {
            let (settings, clock) = (Arc::clone(&settings), Arc::clone(&clock));
            Arc::new(Self::sharing(settings, clock))
        })
    }

    fn sharing(settings: Arc<PostgresSettings>, clock: Arc<dyn Clock>) -> Self {
        Self {
            settings,
            clock,
            idle: Mutex::default(),
            resume: Mutex::default(),
            danger: Mutex::default(),
        }
    }

    async fn connect(&self) -> Result<Connection, StoreError> {
        let connection = Connection::open(&self.settings).await?;
        let server = connection.address.clone();
        let prepare = self.make_tables(connection, self.settings.create_schema);
        // A server that stalls in the middle of this must not hold us for ever either.
        let prepared = self.limited(&server, self.limit(), prepare).await;
        let prepared = prepared.map_err(|failure| self.store_error("look at", failure, None));
        let (connection, run) = prepared??;
        if !run.is_empty() {
            let place = self.settings.place();
            log::info!(
                "tables made store.host={} store.database={} store.migrations={}",
                place.host,
                place.database,
                run.join(",")
            );
        }
        Ok(connection)
    }

    /// Makes what is missing and may be made, then checks the whole; the migrations that were run.
    async fn make_tables(
        &self,
        connection: Connection,
        create: CreateSchema,
    ) -> Result<(Connection, Vec<String>), StoreError> {
        schema::prepare(connection, create, &self.settings.place())
            .await
            .map_err(|failure| self.store_error("make the tables of", failure, None))
    }

    /// Runs `work` on the connection, which is made if there is none, and made again if the one that
    /// was kept has died meanwhile.
    async fn with_connection<T>(
        &self,
        doing: &'static str,
        limit: Option<Duration>,
        work: impl AsyncFn(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let kept = self.lock_idle().pop();
        let kept = kept.filter(|kept| kept.still_counts(&self.settings).is_ok());
        let mut was_kept = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        loop {
            let server = connection.address.clone();
            let worked = self.limited(&server, limit, work(&mut connection)).await;
            let counts = || connection.still_counts(&self.settings);
            match worked.flatten().and_then(|done| counts().map(|()| done)) {
                Ok(done) => {
                    self.settings.servers.heard(&server);
                    let mut idle = self.lock_idle();
                    if idle.len() < MAX_IDLE {
                        idle.push(connection);
                    }
                    return Ok(done);
                }
                Err(failure)
                    if was_kept && failure.is_before_commit() && connection.is_lost().await =>
                {
                    was_kept = false;
                    connection = self.connect().await.map_err(failure::after_loss)?;
                }
                Err(failure) => {
                    let failure = connection.explain(failure);
                    let failure = failure.seen_with(&mut connection).await;
                    let holders = lock_holder::describe(&mut connection, &failure);
                    // Good to know, but not worth waiting for.
                    let holders = tokio::time::timeout(GRACE, holders).await.unwrap_or(None);
                    return Err(self.store_error(doing, failure, holders.as_deref()));
                }
            }
        }
    }

    /// What `work` at a server gives, if it is done in time and the server is there.
    async fn limited<T>(
        &self,
        server: &Resolved,
        limit: Option<Duration>,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let work = async {
            match limit {
                None => Ok(work.await),
                Some(limit) => tokio::time::timeout(limit, work)
                    .await
                    .map_err(|_| Failure::Late(limit)),
            }
        };
        while_heard_of(&self.settings, server, work).await.flatten()
    }

    /// The same in a transaction.
    async fn in_transaction<T>(
        &self,
        doing: &'static str,
        work: impl AsyncFn(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let work = async |connection: &mut Connection| {
            connection.begin().await?;
            let done = work(connection).await?;
            connection.commit().await?;
            Ok(done)
        };
        self.with_connection(doing, self.limit(), work).await
    }

    /// Makes a step of retention with so many statements that may take long. If one did, the step may be made
    /// smaller.
    async fn trimming<T>(
        &self,
        num_statements: u32,
        step: impl AsyncFn(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let step = async |connection: &mut Connection| {
            let asked = Instant::now();
            let made = step(connection).await;
            made.map_err(|failure| connection.or_cancelled(failure, asked))
        };
        let limit = self.limit_of(num_statements);
        self.with_connection("trim", limit, step).await
    }

    /// Reads in a transaction that sees one moment, and may take its time.
    async fn in_snapshot<T>(
        &self,
        doing: &'static str,
        limit: Option<Duration>,
        read: impl AsyncFn(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let read = async |connection: &mut Connection| {
            connection.begin_snapshot().await?;
            let answer = read(connection).await?;
            connection.commit().await?;
            Ok(answer)
        };
        self.with_connection(doing, limit, read).await
    }

    fn store_error(&self, doing: &str, failure: Failure, holders: Option<&str>) -> StoreError {
        failure.into_store_error(doing, &self.settings.place(), holders)
    }

    /// How long a call with few statements may take; `None` where a statement may take for ever.
    fn limit(&self) -> Option<Duration> {
        self.limit_of(2)
    }

    /// The same for one with so many that may take long.
    fn limit_of(&self, num_statements: u32) -> Option<Duration> {
        let timeout = self.settings.statement_timeout;
        let all = timeout.saturating_mul(num_statements);
        (!timeout.is_zero()).then(|| all.saturating_add(GRACE))
    }

    fn lock_idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        lock(&self.idle)
    }

    /// Logged once, and told as long as it lasts.
    fn note_danger(&self, danger: Option<String>) {
        let mut noted = self.lock_danger();
        if *noted != danger {
            *noted = danger;
            noted.iter().for_each(|danger| log::warn!("{danger}"));
        }
    }

    fn lock_danger(&self) -> MutexGuard<'_, Option<String>> {
        lock(&self.danger)
    }

    fn lock_resume(&self) -> MutexGuard<'_, Resume> {
        lock(&self.resume)
    }
}

impl EventStore for PostgresStore {
    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        let write = async move |connection: &mut Connection| {
            write::write(connection, &self.settings, &batch, self.clock.now()).await
        };
        Box::pin(self.with_connection("write to", self.limit(), write))
    }

    fn rehearse(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        let rehearse = async move |connection: &mut Connection| {
            write::rehearse(connection, &batch, self.clock.now()).await
        };
        Box::pin(self.with_connection("write to", self.limit(), rehearse))
    }

    fn trim<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_events: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>> {
        Box::pin(async move {
            cutoffs.refuse_future(self.clock.now())?;
            let resume = std::mem::take(&mut *self.lock_resume());
            let trim = async |connection: &mut Connection| {
                let mut resume = resume.clone();
                let now = self.clock.now();
                let step = trim::step(connection, cutoffs, max_events, &mut resume, now).await?;
                Ok((step, resume))
            };
            let (step, resume) = self.trimming(trim::NUM_STATEMENTS, trim).await?;
            *self.lock_resume() = resume;
            Ok(step)
        })
    }

    fn last_pass(&self, before: DateTime<Utc>) -> LocalBoxFuture<'_, Result<LastPass, StoreError>> {
        Box::pin(self.read_last_pass(before))
    }

    fn note_pass(&self, at: DateTime<Utc>) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write_last_pass(at))
    }

    fn count_events<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        until: DateTime<Utc>,
    ) -> LocalBoxFuture<'a, Result<EventCounts, StoreError>> {
        Box::pin(self.count_events_until(cutoffs, until))
    }

    fn check(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        let (create, place) = (self.settings.create_schema, self.settings.place());
        let check = async move |connection: &mut Connection| {
            schema::check(connection, create, &place).await?;
            connection.begin().await?;
            let danger = partitions::danger(connection, self.clock.now()).await?;
            connection.commit().await?;
            self.note_danger(danger);
            Ok(())
        };
        Box::pin(self.with_connection("read", self.limit(), check))
    }

    fn warnings(&self) -> Vec<String> {
        self.lock_danger().clone().into_iter().collect()
    }

    fn place(&self) -> Option<String> {
        let used = self.settings.servers.used()?;
        Some(used.to_string())
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        drop(std::mem::take(&mut *self.lock_idle()));
        Box::pin(async { Ok(()) })
    }
}
