//! The task that drives a connection, and what the server says there unasked.
//!
//! # A commit that is only half durable
//!
//! With synchronous replication, COMMIT waits until a standby has the transaction. Where that wait is
//! cancelled (`pg_cancel_backend`, `pg_terminate_backend`, a shutdown), the transaction stays committed here,
//! perhaps not there, and COMMIT *succeeds with a warning*. So a commit that came with any warning is one of
//! an unknown outcome: it is not acknowledged, and its batch is written again. That finds duplicates, and a
//! commit that has written nothing waits for nothing. So a batch in which events were there already commits
//! through `Connection::commit_behind_others`, which writes a record to the log; the log is replicated in
//! order.
//!
//! Whether a warning is about replication only its words could tell, and words are translated. What else
//! may warn at COMMIT is rare (a queue of notifications that is half full), and costs one more write.
//!
//! # Which commits must heed it
//!
//! Those of batches, with events or dead letters, since something is acknowledged after them. All others
//! go the same way, and none of them would lose anything:
//! - A replayed letter is removed after its event was committed, so wherever the removal is, the event is.
//!   A removal that was lost brings the letter back, and its event is a duplicate. The same goes for a purge,
//!   which fails then and says why.
//! - Retention commits with `synchronous_commit = off` and never waits. What comes back is removed again.
//! - Halves of events that were removed and come back are found again.
//! - Migrations are diesel's own transaction, whose warnings nobody hears: every new connection looks at the
//!   tables before it is used, and makes what is missing or says so.
//! - What only reads waits for nothing.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{AsyncMessage, Connection, Error, Socket};

use super::failure::{Cause, Failure};

/// Drives a connection until it is dropped, and with it the connection.
pub(super) struct Driver {
    heard: Arc<Mutex<Heard>>,
    task: AbortHandle,
}

/// Messages of the server since they were last asked for.
#[derive(Default)]
struct Heard {
    warning: Option<Warned>,
    end: Option<Error>,
}

/// The server committed, but not without a warning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server committed with a warning, so a standby may not have it ({code}: {message})")]
struct Warned {
    code: String,
    message: String,
}

impl Driver {
    /// Must be called inside a runtime.
    pub(super) fn start<S>(mut connection: Connection<Socket, S>) -> Self
    where
        S: TlsStream + Unpin + Send + 'static,
    {
        let heard = Arc::<Mutex<Heard>>::default();
        let hearing = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            let end = loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notice(notice))) if is_warning(&notice) => {
                        lock(&hearing).warning = Some(Warned::new(&notice));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break Some(error),
                    None => break None,
                }
            };
            // Before the connection is dropped, which tells those who wait for an answer.
            lock(&hearing).end = end;
            drop(connection);
        });
        Self {
            heard,
            task: task.abort_handle(),
        }
    }

    /// Sends a COMMIT, and fails if it came with a warning.
    pub(super) async fn commit<E: Into<Cause>>(
        &self,
        commit: impl Future<Output = Result<(), E>>,
    ) -> Result<(), Failure> {
        // All that was asked before is answered, so what is heard from here on belongs to the commit.
        lock(&self.heard).warning = None;
        let committed = commit.await;
        match (lock(&self.heard).warning.take(), committed) {
            (Some(warned), _) => Err(Failure::commit(warned)),
            (None, committed) => committed.map_err(Failure::commit),
        }
    }

    /// Why the connection ended, if it did: a call that waits for an answer only hears that it is closed.
    pub(super) fn take_end(&self) -> Option<Error> {
        lock(&self.heard).end.take()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Warned {
    fn new(notice: &DbError) -> Self {
        Self {
            code: notice.code().code().to_owned(),
            message: notice.message().to_owned(),
        }
    }
}

/// Whether it is more than a note; one without a known severity counts as more.
fn is_warning(notice: &DbError) -> bool {
    !matches!(
        notice.parsed_severity(),
        Some(Severity::Notice | Severity::Debug | Severity::Info | Severity::Log)
    )
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    // Every change is one assignment.
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}
