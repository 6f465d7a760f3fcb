//! SQLite's extended result codes, and the one place that decides what a failure means.
//!
//! Diesel shows the text of an error, and text must not decide. The code can be asked of SQLite only before
//! the next call on the same connection, which diesel itself makes when it unbinds the parameters. So the
//! question is asked from diesel's instrumentation, with the connection's handle, which an automatic
//! extension sees while the connection is opened.
//!
//! This file holds all unsafe code of the crate.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use diesel::connection::{Connection as _, Instrumentation, InstrumentationEvent};
use diesel::{ConnectionError, QueryResult, SqliteConnection};
use libsqlite3_sys as ffi;
use tokio::time::Instant;

use crate::lock::lock;
use crate::store::{Fault, FaultKind, RefusalReason};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResultCode(c_int);

impl ResultCode {
    /// No code is known: the failure was diesel's, or its code was gone before it could be asked.
    pub(super) const NONE: Self = Self(ffi::SQLITE_OK);
    /// A value is longer than this connection allows.
    pub(super) const TOO_BIG: Self = Self(ffi::SQLITE_TOOBIG);

    /// The code without its extension.
    pub(super) fn primary(self) -> c_int {
        self.0 & 0xff
    }

    /// Whether the values of the failed statement can never be stored: the event becomes a dead letter.
    ///
    /// A primary key that is taken is not the event's fault: events are inserted with a conflict
    /// clause for it, and the keys of resources are made anew at every attempt. Neither is a column
    /// that must not be null: we fill every column that we know, so the schema has grown.
    pub(super) fn refuses_values(self) -> bool {
        !matches!(
            self.0,
            ffi::SQLITE_CONSTRAINT_NOTNULL
                | ffi::SQLITE_CONSTRAINT_PRIMARYKEY
                | ffi::SQLITE_CONSTRAINT_ROWID
        ) && matches!(
            self.primary(),
            ffi::SQLITE_CONSTRAINT | ffi::SQLITE_TOOBIG | ffi::SQLITE_MISMATCH
        )
    }

    /// The likely cause of a failure that is not for sure an event's fault.
    pub(super) fn fault(self) -> Fault {
        let kind = match self.primary() {
            ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => FaultKind::Contention,
            ffi::SQLITE_FULL | ffi::SQLITE_NOMEM => FaultKind::Resources,
            ffi::SQLITE_ABORT
            | ffi::SQLITE_CANTOPEN
            | ffi::SQLITE_CORRUPT
            | ffi::SQLITE_INTERNAL
            | ffi::SQLITE_INTERRUPT
            | ffi::SQLITE_IOERR
            | ffi::SQLITE_OK
            | ffi::SQLITE_PROTOCOL => FaultKind::Transient,
            _ => FaultKind::Lasting,
        };
        Fault {
            kind,
            code: (self != Self::NONE).then(|| self.name()),
        }
    }

    pub(super) fn refusal(self) -> RefusalReason {
        match (self.0, self.primary()) {
            (ffi::SQLITE_CONSTRAINT_TRIGGER, _) => RefusalReason::Raised,
            (_, ffi::SQLITE_CONSTRAINT) => RefusalReason::Constraint,
            (_, ffi::SQLITE_TOOBIG) => RefusalReason::TooLarge,
            (_, ffi::SQLITE_MISMATCH) => RefusalReason::InvalidData,
            _ => RefusalReason::Other,
        }
    }

    /// SQLite's name of the code, such as `SQLITE_CONSTRAINT_CHECK`; for an extended code that an
    /// operator would not look up, the primary name and the number.
    pub(super) fn name(self) -> String {
        NAMES
            .iter()
            .find(|(code, _)| *code == self.0)
            .map(|(_, name)| (*name).to_owned())
            .or_else(|| {
                let primary = self.primary();
                let (_, name) = NAMES.iter().find(|(code, _)| *code == primary)?;
                Some(format!("{name} ({})", self.0))
            })
            .unwrap_or_else(|| format!("SQLite code {}", self.0))
    }
}

macro_rules! names {
    ($($name:ident)*) => { &[$((ffi::$name, stringify!($name))),*] };
}

const NAMES: &[(c_int, &str)] = names! {
    SQLITE_ERROR SQLITE_INTERNAL SQLITE_PERM SQLITE_ABORT SQLITE_BUSY SQLITE_LOCKED SQLITE_NOMEM
    SQLITE_READONLY SQLITE_INTERRUPT SQLITE_IOERR SQLITE_CORRUPT SQLITE_NOTFOUND SQLITE_FULL
    SQLITE_CANTOPEN SQLITE_PROTOCOL SQLITE_SCHEMA SQLITE_TOOBIG SQLITE_CONSTRAINT SQLITE_MISMATCH
    SQLITE_MISUSE SQLITE_NOLFS SQLITE_AUTH SQLITE_RANGE SQLITE_NOTADB
    SQLITE_BUSY_RECOVERY SQLITE_BUSY_SNAPSHOT SQLITE_BUSY_TIMEOUT
    SQLITE_CONSTRAINT_CHECK SQLITE_CONSTRAINT_COMMITHOOK SQLITE_CONSTRAINT_DATATYPE
    SQLITE_CONSTRAINT_FOREIGNKEY SQLITE_CONSTRAINT_FUNCTION SQLITE_CONSTRAINT_NOTNULL
    SQLITE_CONSTRAINT_PINNED SQLITE_CONSTRAINT_PRIMARYKEY SQLITE_CONSTRAINT_ROWID
    SQLITE_CONSTRAINT_TRIGGER SQLITE_CONSTRAINT_UNIQUE SQLITE_CONSTRAINT_VTAB
    SQLITE_IOERR_READ SQLITE_IOERR_WRITE SQLITE_IOERR_FSYNC SQLITE_IOERR_SHMMAP SQLITE_IOERR_LOCK
    SQLITE_READONLY_CANTINIT SQLITE_READONLY_CANTLOCK SQLITE_READONLY_DBMOVED
    SQLITE_READONLY_DIRECTORY SQLITE_READONLY_RECOVERY
    SQLITE_CANTOPEN_ISDIR SQLITE_CANTOPEN_SYMLINK
};

#[derive(Debug)]
struct Noted {
    code: AtomicI32,
    in_transaction: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Failed {
    pub(super) code: ResultCode,
    /// Whether the transaction outlived the failure; some failures roll it back.
    pub(super) in_transaction: bool,
    pub(super) error: diesel::result::Error,
}

pub(super) struct CodedConnection {
    connection: SqliteConnection,
    noted: Arc<Noted>,
    handle: Handle,
    max_length: usize,
    /// Behind the connection, which looks at it until it is closed.
    deadline: Option<Box<Instant>>,
}

/// How many steps of its machine SQLite makes between two looks at the clock: a fraction of a millisecond.
const STEPS_BETWEEN_LOOKS: c_int = 10_000;

impl CodedConnection {
    pub(super) fn establish(url: &str) -> Result<Self, ConnectionError> {
        let (mut connection, opened) = establish_and_see_handle(url)?;
        let noted = Arc::new(Noted {
            code: AtomicI32::new(ffi::SQLITE_OK),
            in_transaction: AtomicBool::new(false),
        });
        connection.set_instrumentation(NoteCodes {
            handle: Handle(opened.handle),
            noted: Arc::clone(&noted),
        });
        Ok(Self {
            connection,
            noted,
            handle: Handle(opened.handle),
            deadline: None,
            max_length: usize::try_from(opened.max_length).unwrap_or(usize::MAX),
        })
    }

    pub(super) fn run<T>(
        &mut self,
        call: impl FnOnce(&mut SqliteConnection) -> QueryResult<T>,
    ) -> Result<T, Failed> {
        self.noted.code.store(ffi::SQLITE_OK, Ordering::Relaxed);
        call(&mut self.connection).map_err(|error| Failed {
            code: ResultCode(self.noted.code.load(Ordering::Relaxed)),
            in_transaction: self.noted.in_transaction.load(Ordering::Relaxed),
            error,
        })
    }

    /// Makes calls fail with `SQLITE_INTERRUPT` from this moment on, the one at work included.
    pub(super) fn interrupt_at(&mut self, moment: Option<Instant>) {
        let deadline = moment.map(Box::new);
        let (steps, at) = match &deadline {
            Some(deadline) => (STEPS_BETWEEN_LOOKS, std::ptr::from_ref::<Instant>(deadline)),
            None => (0, std::ptr::null()),
        };
        let handle = self.handle.0.as_ptr();
        // SAFETY: the connection is open and not in use, since it is borrowed mutably; the moment stays where it
        // is until another takes its place here, or the connection is closed, whose field comes first.
        unsafe {
            ffi::sqlite3_progress_handler(handle, steps, Some(is_over), at.cast_mut().cast());
        }
        self.deadline = deadline;
    }

    /// The longest text or blob that SQLite takes on this connection.
    ///
    /// A longer one fails while it is bound, where diesel reports nothing to its instrumentation.
    pub(super) fn max_length(&self) -> usize {
        self.max_length
    }
}

/// SQLite asks this while it works, and gives up where the answer is not 0.
unsafe extern "C" fn is_over(deadline: *mut c_void) -> c_int {
    // SAFETY: it is given with the moment that its connection keeps.
    let deadline = unsafe { *deadline.cast::<Instant>() };
    c_int::from(Instant::now() >= deadline)
}

/// Asks for the code whenever a statement of its connection fails.
struct NoteCodes {
    handle: Handle,
    noted: Arc<Noted>,
}

impl Instrumentation for NoteCodes {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        let InstrumentationEvent::FinishQuery { error, .. } = event else {
            return;
        };
        let handle = self.handle.0.as_ptr();
        // SAFETY: the connection owns its instrumentation and reports events only while it is open,
        // from the thread that is using it; the function only reads the open connection's state.
        let code = unsafe { ffi::sqlite3_extended_errcode(handle) };
        // Diesel calls a query finished without an error when its rows could not be fetched.
        let failed =
            error.is_some() || !matches!(code, ffi::SQLITE_OK | ffi::SQLITE_ROW | ffi::SQLITE_DONE);
        // The first failure is the cause; a rollback that fails after it is not.
        if failed && self.noted.code.load(Ordering::Relaxed) == ffi::SQLITE_OK {
            // SAFETY: as above.
            let autocommit = unsafe { ffi::sqlite3_get_autocommit(handle) };
            self.noted.code.store(code, Ordering::Relaxed);
            self.noted
                .in_transaction
                .store(autocommit == 0, Ordering::Relaxed);
        }
    }
}

struct Handle(NonNull<ffi::sqlite3>);

// SAFETY: the handle moves only together with the connection that it belongs to, which is `Send`,
// and is used only by calls that hold that connection exclusively.
unsafe impl Send for Handle {}

#[derive(Clone, Copy)]
struct Opened {
    handle: NonNull<ffi::sqlite3>,
    max_length: c_int,
}

thread_local! {
    static OPENED: Cell<Option<Opened>> = const { Cell::new(None) };
}

/// Held while the automatic extension is registered, so that no thread cancels it under another.
static REGISTRATION: Mutex<()> = Mutex::new(());

/// SQLite calls this on the opening thread when a connection has been opened.
///
/// A connection that someone else opens meanwhile is noted for that thread, and never looked at.
unsafe extern "C" fn note_handle(
    db: *mut ffi::sqlite3,
    _message: *mut *mut c_char,
    _api: *const ffi::sqlite3_api_routines,
) -> c_int {
    if let Some(handle) = NonNull::new(db) {
        // SAFETY: SQLite passes the connection that it has just opened; a negative value only asks.
        let max_length = unsafe { ffi::sqlite3_limit(db, ffi::SQLITE_LIMIT_LENGTH, -1) };
        // A thread that is ending has no such variable any more, and opens nothing for us.
        OPENED
            .try_with(|opened| opened.set(Some(Opened { handle, max_length })))
            .ok();
    }
    ffi::SQLITE_OK
}

fn establish_and_see_handle(url: &str) -> Result<(SqliteConnection, Opened), ConnectionError> {
    let _registered = lock(&REGISTRATION);
    OPENED.set(None);
    // SAFETY: the function has the signature of an entry point and lives as long as the program.
    let registered = unsafe { ffi::sqlite3_auto_extension(Some(note_handle)) };
    let connection = SqliteConnection::establish(url);
    // SAFETY: as above; this removes exactly what was registered.
    unsafe { ffi::sqlite3_cancel_auto_extension(Some(note_handle)) };
    match (connection?, OPENED.take()) {
        (connection, Some(opened)) => Ok((connection, opened)),
        (_, None) => Err(ConnectionError::BadConnection(format!(
            "SQLite did not show the handle of the connection (code {registered})"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection as _;
    use diesel::prelude::*;
    use diesel::sql_query;
    use diesel::sql_types::{Nullable, Text};

    use super::*;

    fn connection() -> CodedConnection {
        let mut connection = CodedConnection::establish(":memory:").unwrap();
        let sql = "CREATE TABLE t (a TEXT PRIMARY KEY, b TEXT NOT NULL CHECK (b <> 'no')); \
                   CREATE UNIQUE INDEX i ON t (b)";
        connection
            .run(|connection| connection.batch_execute(sql))
            .unwrap();
        connection
    }

    fn insert(connection: &mut CodedConnection, a: &str, b: Option<&str>) -> Result<usize, Failed> {
        connection.run(|connection| {
            sql_query("INSERT INTO t VALUES (?, ?)")
                .bind::<Text, _>(a)
                .bind::<Nullable<Text>, _>(b)
                .execute(connection)
        })
    }

    #[test]
    fn knows_the_extended_code_of_each_failure() {
        let mut connection = connection();
        insert(&mut connection, "a", Some("b")).unwrap();
        for (a, b, name, refuses_values) in [
            ("c", Some("no"), "SQLITE_CONSTRAINT_CHECK", true),
            ("c", Some("b"), "SQLITE_CONSTRAINT_UNIQUE", true),
            ("c", None, "SQLITE_CONSTRAINT_NOTNULL", false),
            ("a", Some("c"), "SQLITE_CONSTRAINT_PRIMARYKEY", false),
        ] {
            let failed = insert(&mut connection, a, b).unwrap_err();
            assert_eq!(failed.code.name(), name);
            assert_eq!(failed.code.refuses_values(), refuses_values, "{name}");
            assert!(!failed.in_transaction, "{name}");
        }
        insert(&mut connection, "d", Some("d")).unwrap();
    }

    #[test]
    fn knows_the_code_of_what_fails_before_it_runs() {
        let mut connection = connection();
        let syntax = connection.run(|connection| connection.batch_execute("SELEC"));
        assert_eq!(syntax.unwrap_err().code.name(), "SQLITE_ERROR");
        let prepared = connection.run(|connection| sql_query("SELECT x").execute(connection));
        assert_eq!(prepared.unwrap_err().code.name(), "SQLITE_ERROR");
        // A failure of diesel's own has no code, and one of before does not count.
        let none = connection.run(|_| QueryResult::<()>::Err(diesel::result::Error::NotFound));
        assert_eq!(none.unwrap_err().code, ResultCode::NONE);
    }

    #[test]
    fn a_call_is_given_up_at_its_moment_and_the_connection_goes_on() {
        let mut connection = connection();
        let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        connection.interrupt_at(Some(Instant::now() + std::time::Duration::from_millis(20)));
        let failed = connection.run(|connection| sql_query(endless).execute(connection));
        assert_eq!(failed.unwrap_err().code.name(), "SQLITE_INTERRUPT");
        connection.interrupt_at(None);
        insert(&mut connection, "a", Some("b")).unwrap();
    }

    #[test]
    fn knows_whether_the_transaction_goes_on() {
        let mut connection = connection();
        let mut run = |sql: &str| connection.run(|connection| connection.batch_execute(sql));
        run("BEGIN IMMEDIATE; INSERT INTO t VALUES ('a', 'a')").unwrap();
        let failed = run("INSERT INTO t VALUES ('b', 'a')").unwrap_err();
        assert!(failed.in_transaction);
        let failed = run("INSERT OR ROLLBACK INTO t VALUES ('b', 'a')").unwrap_err();
        assert!(!failed.in_transaction);
    }

    #[test]
    fn connections_that_are_opened_at_once_know_their_own_codes() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let mut connection = connection();
                        // Someone else's, which is not watched.
                        let _other = SqliteConnection::establish(":memory:").unwrap();
                        let failed = insert(&mut connection, "a", Some("no")).unwrap_err();
                        assert_eq!(failed.code.name(), "SQLITE_CONSTRAINT_CHECK");
                    }
                });
            }
        });
    }

    #[test]
    fn only_bad_values_are_rejected() {
        for code in [
            ffi::SQLITE_TOOBIG,
            ffi::SQLITE_MISMATCH,
            ffi::SQLITE_CONSTRAINT,
            ffi::SQLITE_CONSTRAINT_CHECK,
            ffi::SQLITE_CONSTRAINT_COMMITHOOK,
            ffi::SQLITE_CONSTRAINT_DATATYPE,
            ffi::SQLITE_CONSTRAINT_FOREIGNKEY,
            ffi::SQLITE_CONSTRAINT_FUNCTION,
            ffi::SQLITE_CONSTRAINT_PINNED,
            ffi::SQLITE_CONSTRAINT_TRIGGER,
            ffi::SQLITE_CONSTRAINT_UNIQUE,
            ffi::SQLITE_CONSTRAINT_VTAB,
        ] {
            assert!(ResultCode(code).refuses_values(), "{code}");
        }
        for code in [
            ffi::SQLITE_OK,
            ffi::SQLITE_ERROR,
            ffi::SQLITE_INTERNAL,
            ffi::SQLITE_PERM,
            ffi::SQLITE_ABORT,
            ffi::SQLITE_BUSY,
            ffi::SQLITE_BUSY_RECOVERY,
            ffi::SQLITE_BUSY_SNAPSHOT,
            ffi::SQLITE_BUSY_TIMEOUT,
            ffi::SQLITE_LOCKED,
            ffi::SQLITE_LOCKED_SHAREDCACHE,
            ffi::SQLITE_NOMEM,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_READONLY_DBMOVED,
            ffi::SQLITE_READONLY_ROLLBACK,
            ffi::SQLITE_INTERRUPT,
            ffi::SQLITE_IOERR,
            ffi::SQLITE_IOERR_FSYNC,
            ffi::SQLITE_IOERR_WRITE,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_CORRUPT_INDEX,
            ffi::SQLITE_NOTFOUND,
            ffi::SQLITE_FULL,
            ffi::SQLITE_CANTOPEN,
            ffi::SQLITE_PROTOCOL,
            ffi::SQLITE_SCHEMA,
            ffi::SQLITE_MISUSE,
            ffi::SQLITE_NOLFS,
            ffi::SQLITE_AUTH,
            ffi::SQLITE_RANGE,
            ffi::SQLITE_NOTADB,
            ffi::SQLITE_CONSTRAINT_NOTNULL,
            ffi::SQLITE_CONSTRAINT_PRIMARYKEY,
            ffi::SQLITE_CONSTRAINT_ROWID,
            12_345,
        ] {
            assert!(!ResultCode(code).refuses_values(), "{code}");
        }
    }

    #[test]
    fn names_codes_as_sqlite_does() {
        assert_eq!(ResultCode::TOO_BIG.name(), "SQLITE_TOOBIG");
        let seek = ResultCode(ffi::SQLITE_IOERR_SEEK);
        assert_eq!(seek.name(), "SQLITE_IOERR (5642)");
        assert_eq!(ResultCode(200).name(), "SQLite code 200");
    }
}
