//! The task that drives a connection, and what the server says there unasked.
//!
//! # A commit that is only half durable
//!
//! With synchronous replication, COMMIT waits until a standby has the transaction. Where that wait is
//! cancelled, the transaction stays committed here, perhaps not there, and COMMIT *succeeds with a warning*.
//! So a commit that came with any warning is one of an unknown outcome: it is not acknowledged, and its batch
//! is written again. That finds duplicates, and a commit that has written nothing waits for nothing. So a
//! batch with duplicates commits through `Connection::commit_behind_others`, which writes to the log.
//!
//! Whether a warning is about replication only its words could tell, and words are translated. What else
//! may warn at COMMIT is rare, and costs one more write.
//!
//! # Which commits must heed it
//!
//! Those of batches, since something is acknowledged after them. All others go the same way, and would lose
//! nothing:
//! - A letter is removed after its event was committed. A removal that was lost brings it back as a duplicate.
//! - What retention or a removal of half events loses is removed again.
//! - Migrations are diesel's own transaction, whose warnings nobody hears: every new connection looks at the
//!   tables before it is used, and makes what is missing or says so.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};

use tokio::task::AbortHandle;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{AsyncMessage, Connection, Error, Socket};

use super::failure::{Cause, Failure};
use crate::lock::lock;

/// Drives a connection until it is dropped, and with it the connection.
pub(super) struct Driver {
    heard: Arc<Mutex<Heard>>,
    task: AbortHandle,
}

#[derive(Default)]
struct Heard {
    warning: Option<String>,
    end: Option<Error>,
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
                        lock(&hearing).warning = Some(warned(&notice));
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
            (Some(warning), _) => Err(Failure::commit(warning)),
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

fn warned(notice: &DbError) -> String {
    format!(
        "the server committed with a warning, so a standby may not have it ({}: {})",
        notice.code().code(),
        notice.message()
    )
}

/// Whether it is more than a note; one without a known severity counts as more.
fn is_warning(notice: &DbError) -> bool {
    !matches!(
        notice.parsed_severity(),
        Some(Severity::Notice | Severity::Debug | Severity::Info | Severity::Log)
    )
}
