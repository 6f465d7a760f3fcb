//! The operator's port of this database. Nothing on an event's way imports this.

use std::num::NonZeroUsize;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::future::LocalBoxFuture;

use super::connection::{Connection, Failure, Missing};
use super::{SqliteStore, blocking, schema};
use crate::delivery::Entry;
use crate::finding::Finding;
use crate::store::operator::answers::with_refused;
use crate::store::operator::{
    Answer, Compared, Cursor, DatabaseInfo, DeadLetter, EventRows, LetterCounts, LetterFilter,
    LetterVersion, Needs, OpenLetter, Page, StoreOperator, Strays,
};
use crate::store::prefect::REVISIONS_ON_SQLITE;
use crate::store::{CreateSchema, Cutoffs, StoreError, Trimmed};

mod audit;
mod comparison;
mod content;
mod dead_letters;
mod expired;
mod inspection;

const READ_LETTERS: &str = "read dead letters of";

impl StoreOperator for SqliteStore {
    fn migrate(&self) -> Answer<'_, Vec<String>> {
        Box::pin(self.on_file(Missing::Create, "migrate", |connection| {
            schema::prepare(connection, CreateSchema::Everything)
        }))
    }

    fn describe(&self) -> Answer<'_, DatabaseInfo> {
        Box::pin(self.on_file(Missing::Refuse, "read", |connection| {
            Ok(DatabaseInfo {
                prefect_revision: schema::prefect_revision(connection)?,
                tested_revisions: &REVISIONS_ON_SQLITE,
                ..DatabaseInfo::default()
            })
        }))
    }

    fn inspect(&self, _: Needs) -> LocalBoxFuture<'_, Vec<Finding>> {
        let settings = self.shared.settings.clone();
        Box::pin(async move {
            let inspected = blocking(move || inspection::inspect(&settings)).await;
            inspected.unwrap_or_else(|error| vec![Finding::of_error("sqlite.file", &error)])
        })
    }

    fn list_letters<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
        limit: NonZeroUsize,
    ) -> Answer<'a, Vec<DeadLetter>> {
        let filter = filter.clone();
        Box::pin(self.on_letters(READ_LETTERS, move |connection| {
            dead_letters::list(connection, &filter, before, limit)
        }))
    }

    fn count_letters<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
    ) -> Answer<'a, u64> {
        let filter = filter.clone();
        Box::pin(self.on_letters(READ_LETTERS, move |connection| {
            dead_letters::count(connection, &filter, before)
        }))
    }

    fn open_letters<'a>(&'a self, ids: &'a [i64]) -> Answer<'a, Vec<OpenLetter>> {
        let ids = ids.to_vec();
        Box::pin(self.on_letters(READ_LETTERS, move |connection| {
            dead_letters::open(connection, &ids)
        }))
    }

    fn peek_letter(&self, id: i64, num_bytes: usize) -> Answer<'_, Option<OpenLetter>> {
        Box::pin(self.on_letters(READ_LETTERS, move |connection| {
            dead_letters::peek(connection, id, num_bytes)
        }))
    }

    fn remove_letters<'a>(&'a self, letters: &'a [LetterVersion]) -> Answer<'a, u64> {
        let letters = letters.to_vec();
        Box::pin(
            self.on_letters("remove dead letters from", move |connection| {
                dead_letters::remove(connection, &letters)
            }),
        )
    }

    fn count_curable_letters(&self, limit: usize) -> Answer<'_, LetterCounts> {
        Box::pin(self.with_connection(READ_LETTERS, move |connection| {
            audit::count_curable(connection, limit)
        }))
    }

    fn letters_at<'a>(
        &'a self,
        source: &'a str,
        positions: Vec<String>,
    ) -> Answer<'a, Vec<String>> {
        let source = source.to_owned();
        Box::pin(self.with_connection(READ_LETTERS, move |connection| {
            audit::letters_at(connection, &source, &positions)
        }))
    }

    fn look_up(&self, event_ids: Vec<String>) -> Answer<'_, Vec<EventRows>> {
        Box::pin(self.with_connection("read", move |connection| {
            audit::look_up(connection, &event_ids)
        }))
    }

    fn walk<'a>(
        &'a self,
        since: Option<DateTime<Utc>>,
        from: Option<&'a Cursor>,
    ) -> Answer<'a, Page> {
        let from = from.cloned();
        Box::pin(self.with_connection("read", move |connection| {
            audit::walk(connection, since, from)
        }))
    }

    fn orphans(&self, since: Option<DateTime<Utc>>, limit: NonZeroUsize) -> Answer<'_, Strays> {
        Box::pin(self.with_connection("read", move |connection| {
            audit::orphans(connection, since, limit)
        }))
    }

    fn repeated(&self, since: Option<DateTime<Utc>>, limit: NonZeroUsize) -> Answer<'_, Strays> {
        Box::pin(self.with_connection("read", move |connection| {
            audit::repeated(connection, since, limit)
        }))
    }

    fn compare<'a>(&'a self, entries: &'a [Arc<Entry>]) -> Answer<'a, Vec<Compared>> {
        Box::pin(async move {
            let (given, now) = (entries.to_vec(), self.shared.clock.now());
            let compared = self.with_connection("read", move |connection| {
                comparison::compare(connection, &given, now)
            });
            with_refused(self, entries, compared.await?).await
        })
    }

    fn count_expired<'a>(&'a self, cutoffs: &'a Cutoffs) -> Answer<'a, Trimmed> {
        Box::pin(async move {
            cutoffs.refuse_future(self.shared.clock.now())?;
            let cutoffs = cutoffs.clone();
            let count = move |connection: &mut Connection| expired::count(connection, &cutoffs);
            self.with_connection("read", count).await
        })
    }
}

impl SqliteStore {
    /// Runs `work` on a connection of its own, whatever tables the file has.
    async fn on_file<T: Send + 'static>(
        &self,
        missing: Missing,
        doing: &'static str,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let settings = self.shared.settings.clone();
        blocking(move || {
            let mut connection = Connection::open(&settings, missing)?;
            work(&mut connection).map_err(|failure| connection.store_error(doing, failure))
        })
        .await?
    }

    /// The same for the dead letters; where their table is not there yet there are none.
    async fn on_letters<T: Default + Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.on_file(Missing::Refuse, doing, |connection| {
            if schema::has_letters(connection)? {
                work(connection)
            } else {
                Ok(T::default())
            }
        })
        .await
    }
}
