//! Large batches without anything special about them, by COPY.
//!
//! COPY puts many rows into a page at once, and costs the server an eighth less than INSERTs of the same
//! rows. It isolates no culprit: the first one ends it, with nothing written. Whatever PostgreSQL refuses
//! is then written by the store function, which finds out whose fault it is.
//!
//! diesel speaks no COPY and hands its connection to nobody. So a writer has a second connection, made
//! with the first large batch. Where it cannot be had, the store function writes everything.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::SinkExt as _;
use futures_util::future::join;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Statement};

use super::connection::{begin, configure};
use super::driver::Driver;
use super::failure::Failure;
use super::reach::{ConnectError, Reached, Resolved, reach_at};
use super::rows::{COPY_EVENTS, COPY_RESOURCES, CopyRows, Rows};
use super::settings::PostgresSettings;
use crate::failpoint;
use crate::status::error_chain;

/// As much as is sent at once: the server works on it while the next part is made ready. Larger parts
/// are held in memory twice for longer; smaller ones cost more of both sides.
const PART: usize = 64 * 1024;

const LOOK: &str = "SELECT \
     EXISTS (SELECT FROM pg_catalog.pg_settings WHERE name = 'default_toast_compression' \
         AND 'lz4' = ANY (enumvals)), \
     EXISTS (SELECT FROM pg_catalog.pg_class WHERE relhasrules \
         AND oid IN (to_regclass('events'), to_regclass('event_resources')))";

/// Where no connection for COPY can be had, the next attempt is made this much later: longer leaves the
/// store slow after a moment without connections, shorter says so too often.
const TRY_COPYING_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// A batch waits for that connection, and must not take it for an outage.
const COPYING_CONNECTS_WITHIN: Duration = Duration::from_secs(3);

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

pub(super) struct Copier {
    client: Client,
    into_events: Statement,
    into_resources: Statement,
    begin: String,
    driver: Driver,
}

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

    pub(super) async fn copy(
        &mut self,
        settings: &PostgresSettings,
        address: &Resolved,
        rows: &Rows<'_>,
        now: DateTime<Utc>,
    ) -> Result<Copied, Failure> {
        if matches!(self, Self::From(moment) if *moment <= Instant::now()) {
            *self = Self::open(settings, address).await;
        }
        let Self::Possible {
            copier,
            is_due: true,
        } = self
        else {
            return Ok(Copied::Refused);
        };
        let tables = (
            CopyRows::of_events(rows, now),
            CopyRows::of_resources(rows, now),
        );
        let (Ok(events), Ok(resources)) = tables else {
            // What is too long is told by the store function.
            return Ok(Copied::Refused);
        };
        let copied = copier.copy(events, resources).await?;
        match copied {
            Copied::All | Copied::NothingNew | Copied::Refused => {}
            Copied::Impossible => *self = Self::Impossible,
            Copied::Lost => *self = Self::From(Instant::now()),
        }
        Ok(copied)
    }

    /// A batch with something special is seldom alone: the store function then finds it sooner.
    pub(super) fn goes_on(&mut self, was_clean: bool) {
        if let Self::Possible { is_due, .. } = self {
            *is_due = was_clean;
        }
    }
}

impl Copier {
    /// A connection for COPY; `None` where COPY would do something else than INSERT.
    ///
    /// It leads to the same server: a batch goes one way or the other, and must not go elsewhere.
    async fn open(
        settings: &PostgresSettings,
        address: &Resolved,
    ) -> Result<Option<Self>, ConnectError> {
        let Reached { client, driver, .. } = reach_at(settings, address).await?;
        let look = client.query_one(LOOK, &[]).await?;
        let (knows_lz4, has_rules) = (look.try_get(0)?, look.try_get::<_, bool>(1)?);
        if has_rules {
            // COPY would pass them by.
            return Ok(None);
        }
        let into_events = client.prepare(COPY_EVENTS).await?;
        let into_resources = client.prepare(COPY_RESOURCES).await?;
        client.batch_execute("COMMIT").await?;
        let mut configure = configure(settings);
        if knows_lz4 {
            // As the store function has it.
            configure.push_str(", set_config('default_toast_compression', 'lz4', true)");
        }
        Ok(Some(Self {
            client,
            into_events,
            into_resources,
            begin: begin(&configure),
            driver,
        }))
    }

    /// Writes all rows in one transaction, or none.
    ///
    /// # Errors
    ///
    /// It is not an event's fault, or the commit may have happened all the same. The copier must be
    /// dropped then.
    async fn copy(&self, events: CopyRows, resources: CopyRows) -> Result<Copied, Failure> {
        let copied = match self.copy_both(events, resources).await {
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
    async fn copy_both(&self, events: CopyRows, resources: CopyRows) -> Result<bool, Error> {
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

    async fn send(&self, into: &Statement, rows: CopyRows) -> Result<u64, Error> {
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
