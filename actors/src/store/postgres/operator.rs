//! The operator's port of this database. Nothing on an event's way imports this.

use std::num::NonZeroUsize;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::sql_query;
use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl as _;
use futures_util::future::LocalBoxFuture;

use super::PostgresStore;
use super::arrays::Arrays;
use super::conditions::{FIND, Found};
use super::connection::Connection;
use super::failure::Failure;
use crate::delivery::Entry;
use crate::finding::Finding;
use crate::store::operator::answers::with_refused;
use crate::store::operator::{
    Answer, Compared, Cursor, DatabaseInfo, DeadLetter, EventRows, HalfEvents, LetterCounts,
    LetterFilter, LetterVersion, Needs, OpenLetter, Page, StoreOperator, Strays,
};
use crate::store::prefect::REVISIONS_ON_POSTGRES;
use crate::store::{CreateSchema, Cutoffs, Period, StoreError, Trimmed};

mod audit;
mod comparison;
mod dead_letters;
mod expired;
mod half_events;
mod inspection;
mod partitioning;

use comparison::MakeArrays;

const READ_LETTERS: &str = "read dead letters of";

impl StoreOperator for PostgresStore {
    fn migrate(&self) -> Answer<'_, Vec<String>> {
        Box::pin(async move {
            let connection = Connection::open(&self.settings).await?;
            let made = self.make_tables(connection, CreateSchema::Everything);
            let (_, run) = made.await?;
            Ok(run)
        })
    }

    fn partition(&self, period: Period) -> Answer<'_, Vec<String>> {
        Box::pin(self.partition_by(period))
    }

    fn describe(&self) -> Answer<'_, DatabaseInfo> {
        Box::pin(async move {
            let mut connection = Connection::open(&self.settings).await?;
            describe(&mut connection)
                .await
                .map_err(|failure| self.store_error("read", failure, None))
        })
    }

    fn inspect(&self, needs: Needs) -> LocalBoxFuture<'_, Vec<Finding>> {
        Box::pin(inspection::inspect(
            &self.settings,
            needs,
            self.clock.as_ref(),
        ))
    }

    fn list_letters<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
        limit: NonZeroUsize,
    ) -> Answer<'a, Vec<DeadLetter>> {
        let list = async move |connection: &mut Connection| {
            dead_letters::list(connection, filter, before, limit).await
        };
        Box::pin(self.in_transaction(READ_LETTERS, list))
    }

    fn count_letters<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
    ) -> Answer<'a, u64> {
        let count = async move |connection: &mut Connection| {
            dead_letters::count(connection, filter, before).await
        };
        Box::pin(self.in_transaction(READ_LETTERS, count))
    }

    fn open_letters<'a>(&'a self, ids: &'a [i64]) -> Answer<'a, Vec<OpenLetter>> {
        let open =
            async move |connection: &mut Connection| dead_letters::open(connection, ids).await;
        Box::pin(self.in_transaction(READ_LETTERS, open))
    }

    fn peek_letter(&self, id: i64, num_bytes: usize) -> Answer<'_, Option<OpenLetter>> {
        let peek = async move |connection: &mut Connection| {
            dead_letters::peek(connection, id, num_bytes).await
        };
        Box::pin(self.in_transaction(READ_LETTERS, peek))
    }

    fn remove_letters<'a>(&'a self, letters: &'a [LetterVersion]) -> Answer<'a, u64> {
        let remove = async move |connection: &mut Connection| {
            dead_letters::remove(connection, letters).await
        };
        Box::pin(self.in_transaction("remove dead letters from", remove))
    }

    fn count_curable_letters(&self, limit: usize) -> Answer<'_, LetterCounts> {
        let count =
            async move |connection: &mut Connection| audit::count_curable(connection, limit).await;
        Box::pin(self.in_snapshot(READ_LETTERS, None, count))
    }

    fn letters_at<'a>(
        &'a self,
        source: &'a str,
        positions: Vec<String>,
    ) -> Answer<'a, Vec<String>> {
        let find = async move |connection: &mut Connection| {
            audit::letters_at(connection, source, &positions).await
        };
        Box::pin(self.in_snapshot(READ_LETTERS, self.limit(), find))
    }

    fn look_up(&self, event_ids: Vec<String>) -> Answer<'_, Vec<EventRows>> {
        let look_up =
            async move |connection: &mut Connection| audit::look_up(connection, &event_ids).await;
        Box::pin(self.with_connection("read", self.limit(), look_up))
    }

    fn walk<'a>(
        &'a self,
        since: Option<DateTime<Utc>>,
        from: Option<&'a Cursor>,
    ) -> Answer<'a, Page> {
        let walk =
            async move |connection: &mut Connection| audit::walk(connection, since, from).await;
        Box::pin(self.with_connection("read", None, walk))
    }

    fn orphans(&self, since: Option<DateTime<Utc>>, limit: NonZeroUsize) -> Answer<'_, Strays> {
        let find =
            async move |connection: &mut Connection| audit::orphans(connection, since, limit).await;
        Box::pin(self.in_snapshot("read", None, find))
    }

    fn repeated(&self, since: Option<DateTime<Utc>>, limit: NonZeroUsize) -> Answer<'_, Strays> {
        let find = async move |connection: &mut Connection| {
            audit::repeated(connection, since, limit).await
        };
        Box::pin(self.in_snapshot("read", None, find))
    }

    fn compare<'a>(&'a self, entries: &'a [Arc<Entry>]) -> Answer<'a, Vec<Compared>> {
        Box::pin(self.compare_with(entries, Arrays::new))
    }

    fn compare_as_prefect<'a>(&'a self, entries: &'a [Arc<Entry>]) -> Answer<'a, Vec<Compared>> {
        Box::pin(self.compare_with(entries, Arrays::as_prefect))
    }

    fn count_expired<'a>(&'a self, cutoffs: &'a Cutoffs) -> Answer<'a, Trimmed> {
        Box::pin(async move {
            cutoffs.refuse_future(self.clock.now())?;
            let count = async |connection: &mut Connection| {
                expired::count(connection, cutoffs, self.clock.now()).await
            };
            self.in_snapshot("read", None, count).await
        })
    }

    fn half_events(&self) -> Answer<'_, Option<HalfEvents>> {
        Box::pin(async move {
            let counted = self.in_snapshot("read", None, half_events::count);
            counted.await.map(Some)
        })
    }

    fn remove_half_events(&self) -> Answer<'_, Option<HalfEvents>> {
        Box::pin(async move {
            let remove = async |connection: &mut Connection| half_events::remove(connection).await;
            let removed = self.with_connection("remove half events from", None, remove);
            removed.await.map(Some)
        })
    }
}

impl PostgresStore {
    async fn compare_with(
        &self,
        entries: &[Arc<Entry>],
        arrays: MakeArrays,
    ) -> Result<Vec<Compared>, StoreError> {
        let compare = async |connection: &mut Connection| {
            comparison::compare(connection, entries, arrays).await
        };
        let compared = self.with_connection("read", self.limit(), compare).await?;
        with_refused(self, entries, compared).await
    }
}

async fn describe(connection: &mut Connection) -> Result<DatabaseInfo, Failure> {
    connection.begin().await?;
    let found: Found = sql_query(FIND).get_result(&mut connection.pg).await?;
    let revision = if found.alembic {
        "(SELECT max(version_num)::text FROM alembic_version)"
    } else {
        "NULL::text"
    };
    let query = format!(
        "SELECT current_setting('server_version'), \
         (SELECT relnamespace::regnamespace::text FROM pg_catalog.pg_class \
         WHERE oid = to_regclass('events')), {revision}"
    );
    let described = sql::<(Text, Nullable<Text>, Nullable<Text>)>(&query);
    let (version, schema, prefect_revision): (String, _, _) =
        described.get_result(&mut connection.pg).await?;
    connection.commit().await?;
    Ok(DatabaseInfo {
        server: Some(format!("PostgreSQL {version}")),
        schema,
        prefect_revision,
        tested_revisions: &REVISIONS_ON_POSTGRES,
    })
}
