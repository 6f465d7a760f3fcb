//! Store: SQLite, in one file that any number of processes may use at once.
//!
//! Tables, texts and JSON are those that Prefect writes, to the letter. A batch is written in one blocking
//! call, in one transaction that takes the write lock at its beginning. A call takes the connection out,
//! and puts it back only if it succeeds. Otherwise it is closed, and the next call opens another.
//!
//! # Why one connection writes
//!
//! SQLite lets writers poll for its lock, so that one of two busy writers may wait for seconds. After a
//! commit of another connection, a connection forgets all pages that it has read. So stores that are
//! opened together write through one connection, in the order in which they asked for it. The lock is
//! polled for only where another process holds it, up to `busy_timeout`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::LocalBoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use self::connection::{Connection, Failure, Missing};
use self::in_place::{OpenFile, Token, moved, moved_meanwhile};
use self::log_size::LogWatch;
pub use self::reader::SqliteReader;
use self::rows::RowTexts;
use self::trim::Progress;
use self::write::End;
use crate::clock::Clock;
use crate::delivery::Batch;
use crate::lock::lock;
use crate::settings::{As, InvalidUrl, LongerThanZero};
pub use crate::store::CreateSchema;
use crate::store::{
    Contention, Cutoffs, EventCounts, EventStore, Fault, FaultKind, LastPass, OpenStore, Outcome,
    StoreError, TrimStep,
};

/// For a statement whose text is always the same: it is prepared once.
macro_rules! prepared_once {
    ($statement:ident) => {
        impl diesel::query_builder::QueryId for $statement<'_> {
            type QueryId = $statement<'static>;
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl diesel::RunQueryDsl<diesel::SqliteConnection> for $statement<'_> {}
    };
}

#[cfg(feature = "archive")]
mod archiving;
mod connection;
mod in_place;
mod letters;
mod lock_holder;
mod log_size;
mod operator;
mod passes;
mod reader;
mod result_code;
mod rows;
mod schema;
mod text;
mod trim;
mod url;
mod write;

/// Where the database is and what may be made in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SqliteSettings {
    /// The file; relative to the working directory.
    #[serde(skip)]
    pub path: PathBuf,
    /// How long a write waits for another process that holds the SQLite file before it backs off; longer
    /// hides contention, shorter reports it sooner.
    #[serde(with = "As::<LongerThanZero>")]
    pub busy_timeout: Duration,
    /// Which tables may be made.
    #[serde(skip)]
    pub create_schema: CreateSchema,
}

impl Default for SqliteSettings {
    fn default() -> Self {
        Self {
            path: "event-persister.db".into(),
            busy_timeout: Duration::from_secs(4),
            create_schema: CreateSchema::Everything,
        }
    }
}

impl SqliteSettings {
    /// For a database of our own: everything may be made in it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            ..Self::default()
        }
    }

    /// The same, of a URL: `sqlite://PATH`, or SQLAlchemy's `sqlite+aiosqlite:///PATH`.
    ///
    /// # Errors
    ///
    /// It is no such URL, or names no file.
    pub fn from_url(url: &str) -> Result<Self, InvalidUrl> {
        url::path(url).map(Self::new)
    }
}

struct Shared {
    settings: SqliteSettings,
    clock: Arc<dyn Clock>,
    /// The connection that writes, held while it does; fair, unlike SQLite's lock.
    writer: Arc<tokio::sync::Mutex<Option<OpenConnection>>>,
    /// Bounds how many have made their rows' texts and wait for their turn: memory, and threads.
    ready: Arc<Semaphore>,
    file: Arc<OpenFile>,
    log: LogWatch,
}

impl Shared {
    fn new(settings: SqliteSettings, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            settings,
            clock,
            writer: Arc::default(),
            ready: Arc::new(Semaphore::new(MAX_READY)),
            file: Arc::default(),
            log: LogWatch::default(),
        })
    }

    /// Runs `work` on the connection that is kept, or on a new one, and keeps it if it succeeds.
    ///
    /// One whose file was moved is kept too, and nothing else opened: what was acknowledged may still
    /// stand in the write-ahead log beside the path, which would be taken for that of another file.
    fn run<T>(
        &self,
        doing: &str,
        kept: &mut Option<OpenConnection>,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let path = &self.settings.path;
        let (mut connection, file) = match kept.take() {
            Some(open) => open,
            None => self.file.open(path, || connect(&self.settings))?,
        };
        if !file.is_at(path) {
            connection.write_log_back();
            *kept = Some((connection, file));
            return Err(moved(path));
        }
        match work(&mut connection) {
            Ok(done) => {
                let is_there = file.is_at(path);
                *kept = Some((connection, file));
                if is_there {
                    Ok(done)
                } else {
                    Err(moved_meanwhile(path))
                }
            }
            Err(failure) => Err(connection.store_error(doing, failure)),
        }
    }
}

type OpenConnection = (Connection, Token);

/// One that writes and one that gets ready meanwhile: more would only wait.
const MAX_READY: usize = 2;

/// An SQLite database, written through one connection that stores opened together share.
pub struct SqliteStore {
    shared: Arc<Shared>,
    idle: Mutex<Option<OpenConnection>>,
    progress: Mutex<Progress>,
}

impl SqliteStore {
    /// A store that connects when it is first used.
    pub fn new(settings: SqliteSettings, clock: Arc<dyn Clock>) -> Self {
        Self::sharing(Shared::new(settings, clock))
    }

    /// Opens stores that take turns at writing.
    pub fn open_store(settings: SqliteSettings, clock: Arc<dyn Clock>) -> OpenStore {
        let shared = Shared::new(settings, clock);
        Arc::new(move || Arc::new(Self::sharing(Arc::clone(&shared))))
    }

    /// Another store of the same file, which takes turns with this one.
    pub fn beside(&self) -> Self {
        Self::sharing(Arc::clone(&self.shared))
    }

    /// A reader of the same file: one process must know all connections that it has to a file.
    pub fn reader(&self) -> SqliteReader {
        let Shared { settings, file, .. } = self.shared.as_ref();
        SqliteReader::of_file(settings.clone(), Arc::clone(file))
    }

    fn sharing(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            idle: Mutex::new(None),
            progress: Mutex::default(),
        }
    }

    /// Runs `work` on this store's own connection, which is made if there is none.
    async fn with_connection<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mut kept = self.lock_idle().take();
        let shared = Arc::clone(&self.shared);
        let (kept, done) = blocking(move || {
            let done = shared.run(doing, &mut kept, work);
            (kept, done)
        })
        .await?;
        *self.lock_idle() = kept;
        done
    }

    /// Runs `work` on the connection that writes, in turn.
    async fn with_writer<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        // Waited for here, where a caller that no longer wants it leaves the queue.
        let mut writer = Arc::clone(&shared.writer).lock_owned().await;
        blocking(move || shared.run(doing, &mut writer, work)).await?
    }

    fn lock_idle(&self) -> std::sync::MutexGuard<'_, Option<OpenConnection>> {
        lock(&self.idle)
    }
}

fn connect(settings: &SqliteSettings) -> Result<Connection, StoreError> {
    let create = settings.create_schema;
    let missing = match create {
        CreateSchema::Everything => Missing::Create,
        CreateSchema::OwnOnly => Missing::Await,
        CreateSchema::Nothing => Missing::Refuse,
    };
    let mut connection = Connection::open(settings, missing)?;
    let run = schema::prepare(&mut connection, create)
        .map_err(|failure| connection.store_error("make the tables of", failure))?;
    if !run.is_empty() {
        log::info!(
            "tables made store.path={} store.migrations={}",
            connection.path(),
            run.join(",")
        );
    }
    Ok(connection)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| StoreError::OutcomeUnknown {
            what:
                "a call to the SQLite database ended before it could say what it did; it is made \
                   again"
                    .to_owned(),
            fault: Some(Fault {
                kind: FaultKind::Transient,
                code: None,
            }),
            source: Some(Box::new(error)),
        })
}

impl EventStore for SqliteStore {
    fn write(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(self.write_and(End::Commit, batch))
    }

    fn rehearse(&self, batch: Arc<Batch>) -> LocalBoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(self.write_and(End::RollBack, batch))
    }

    fn trim<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_events: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>> {
        Box::pin(self.trim_step(cutoffs, max_events))
    }

    fn contention(&self) -> Contention {
        Contention::WriteLock
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
        let create = self.shared.settings.create_schema;
        // Not one more connection: what writes and trims here is to have no other open.
        let log = Arc::clone(&self.shared);
        Box::pin(self.with_writer("read", move |connection| {
            schema::check(connection, create)?;
            // Where nobody writes, nobody else would give it back.
            let path = &log.settings.path;
            if log_size::num_bytes(path) > log_size::LIMIT {
                connection.give_log_back()?;
            }
            log.log.look(path);
            Ok(())
        }))
    }

    fn warnings(&self) -> Vec<String> {
        self.shared.log.warning().into_iter().collect()
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        let idle = self.lock_idle().take();
        Box::pin(async move {
            let writer = self.shared.writer.lock().await.take();
            // The last connection writes the log back into the file, which may take its time.
            blocking(move || drop((idle, writer))).await
        })
    }
}

impl SqliteStore {
    async fn write_and(&self, end: End, batch: Arc<Batch>) -> Result<Vec<Outcome>, StoreError> {
        let Ok(ready) = Arc::clone(&self.shared.ready).acquire_owned().await else {
            return Err(StoreError::unavailable("the turns to write were closed"));
        };
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            // Kept until the transaction has ended, even if nobody waits for it any more.
            let _ready = ready;
            let (texts, refused) = RowTexts::new(batch.entries(), shared.clock.now())
                .map_err(StoreError::unavailable)?;
            let mut writer = shared.writer.blocking_lock();
            let written = shared.run("write to", &mut writer, |connection| {
                write::write(connection, &batch, &texts, refused, end)
            });
            drop(writer);
            shared.log.look(&shared.settings.path);
            written
        })
        .await?
    }

    fn lock_progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        lock(&self.progress)
    }
}

#[cfg(test)]
mod tests;
