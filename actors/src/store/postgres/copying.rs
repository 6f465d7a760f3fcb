//! Large batches without anything special about them, by COPY.
//!
//! COPY puts many rows into a page at once and keeps the server's buffers for the indexes, so that it costs
//! the server an eighth less than INSERTs of the same rows, and leaves more of that the larger the tables
//! are. It isolates no culprit: the first one ends it, with nothing written. So it is only tried where
//! nothing speaks against it, and whatever PostgreSQL refuses is written by the store function, which finds
//! out whose fault it is.
//!
//! # Why a connection of its own
//!
//! diesel speaks no COPY and hands its connection to nobody. A writer has two, then: this one is made with
//! the first large batch. Where it cannot be had, the store function writes everything.

use std::pin::pin;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::SinkExt as _;
use futures_util::future::join;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Statement};

use super::connection::{begin, configure};
use super::copy_rows::{CopyRows, INTO_EVENTS, INTO_RESOURCES, Sent};
use super::driver::Driver;
use super::failure::Failure;
use super::reach::{Adopt, ConnectError, Resolved, reach_at};
use super::settings::PostgresSettings;
use crate::failpoint;

/// As much as is sent at once: the server works on it while the next part is made ready. Larger parts
/// are held in memory twice for longer; smaller ones cost more of both sides.
const PART: usize = 64 * 1024;

/// The server, its tables and what it can, all at one moment.
const LOOK: &str = "SELECT \
     EXISTS (SELECT FROM pg_catalog.pg_settings WHERE name = 'default_toast_compression' \
         AND 'lz4' = ANY (enumvals)), \
     EXISTS (SELECT FROM pg_catalog.pg_class WHERE relhasrules \
         AND oid IN (to_regclass('events'), to_regclass('event_resources')))";

/// A connection for nothing else.
pub(super) struct Copier {
    client: Client,
    into_events: Statement,
    into_resources: Statement,
    begin: String,
    driver: Driver,
}

/// The result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    All,
    /// Nothing is written: some of it is there already.
    NothingNew,
    /// Nothing is written: something was refused, or left out by a trigger.
    Refused,
    /// Nothing is written, nor would be the next time.
    Impossible,
    /// Nothing is written; the connection is of no more use.
    Lost,
}

/// How a connection becomes one for COPY.
#[derive(Clone, Copy)]
struct ForCopy<'a>(&'a PostgresSettings);

impl Adopt for ForCopy<'_> {
    type Adopted = Option<Copier>;

    async fn adopt(
        self,
        client: Client,
        driver: Driver,
        begin_of_settings: &str,
    ) -> Result<Self::Adopted, ConnectError> {
        client.batch_execute(begin_of_settings).await?;
        let look = client.query_one(LOOK, &[]).await?;
        let (knows_lz4, has_rules) = (look.try_get(0)?, look.try_get::<_, bool>(1)?);
        if has_rules {
            // COPY would pass them by.
            return Ok(None);
        }
        let into_events = client.prepare(INTO_EVENTS).await?;
        let into_resources = client.prepare(INTO_RESOURCES).await?;
        client.batch_execute("COMMIT").await?;
        let mut configure = configure(self.0);
        if knows_lz4 {
            // As the store function has it.
            configure.push_str(", set_config('default_toast_compression', 'lz4', true)");
        }
        Ok(Some(Copier {
            client,
            into_events,
            into_resources,
            begin: begin(&configure),
            driver,
        }))
    }
}

impl Copier {
    /// A connection for COPY; `None` where COPY would do something else than INSERT.
    ///
    /// It leads to the server that is given: a batch goes one way or the other, and must not go elsewhere.
    pub(super) async fn open(
        settings: &PostgresSettings,
        address: &Resolved,
    ) -> Result<Option<Self>, ConnectError> {
        reach_at(settings, address, ForCopy(settings)).await
    }

    /// Writes all rows in one transaction, or none.
    ///
    /// # Errors
    ///
    /// It is not an event's fault, or the commit may have happened all the same. The copier must be
    /// dropped then.
    pub(super) async fn copy(&self, rows: CopyRows, now: DateTime<Utc>) -> Result<Copied, Failure> {
        let copied = match self.copy_both(rows.at(now)).await {
            Ok(true) => {
                failpoint::pass("postgres::before-commit");
                return self.commit().await.map(|()| Copied::All);
            }
            // A trigger has ignored rows.
            Ok(false) => Copied::Refused,
            Err(error) => of_error(error)?,
        };
        // A transaction that is not undone would be in the way of the next attempt.
        let undone = self.client.batch_execute("ROLLBACK").await;
        Ok(undone.map_or(Copied::Lost, |()| copied))
    }

    /// Fills both tables in a transaction, which stays open; whether the server took all rows.
    ///
    /// Each step is awaited: without its transaction one of them would be durable alone, and an error
    /// before the server expects rows is more than the client's library can take behind others.
    async fn copy_both(&self, [events, resources]: [Sent; 2]) -> Result<bool, Error> {
        let expected = (events.num_rows, resources.num_rows);
        self.client.batch_execute(&self.begin).await?;
        let num_events = self.send(&self.into_events, events).await?;
        let num_resources = self.send(&self.into_resources, resources).await?;
        Ok((num_events, num_resources) == expected)
    }

    /// Of a transaction that a late error has ended, such as a time-out behind the last row, COMMIT makes a
    /// rollback and no error. Any other statement is refused then, so one goes before it.
    async fn commit(&self) -> Result<(), Failure> {
        let commit = join(
            self.client.batch_execute("SELECT"),
            self.client.batch_execute("COMMIT"),
        );
        let commit = async {
            let (alive, committed) = commit.await;
            alive.and(committed)
        };
        self.driver.commit(commit).await
    }

    /// Returns how many rows the server took.
    async fn send(&self, into: &Statement, rows: Sent) -> Result<u64, Error> {
        let mut sink = pin!(self.client.copy_in::<_, Bytes>(into).await?);
        let mut rest = rows.bytes;
        while !rest.is_empty() {
            let part = rest.split_to(rest.len().min(PART));
            sink.send(part).await?;
        }
        sink.finish().await
    }
}

/// The meaning of an error before the commit.
fn of_error(error: Error) -> Result<Copied, Failure> {
    let Some(code) = error.code() else {
        return Ok(Copied::Lost);
    };
    if *code == SqlState::UNIQUE_VIOLATION {
        return Ok(Copied::NothingNew);
    }
    match code.code().get(..2) {
        // The same classes that the store function looks into.
        Some("22" | "23" | "54" | "P0") => Ok(Copied::Refused),
        // Row security, a view, a privilege or a column that is missing: it finds the words for that.
        Some("0A" | "42") => Ok(Copied::Impossible),
        _ => Err(Failure::Copy(error)),
    }
}
