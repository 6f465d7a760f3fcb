//! The operator's port of this database. Nothing on an event's way imports this.

use std::num::NonZeroUsize;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::QueryableByName;
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
use crate::store::{CreateSchema, Cutoffs, StoreError, Trimmed};

mod audit;
mod comparison;
mod dead_letters;
mod expired;
mod half_events;
mod inspection;

use comparison::MakeArrays;

/// The last revisions of Prefect 3.8.0 and 3.8.8.
const TESTED_REVISIONS: [&str; 2] = ["9e9dadc36797", "d4a7e1c93f52"];

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
        Box::pin(async move {
            let list = async |connection: &mut Connection| {
                dead_letters::list(connection, filter, before, limit).await
            };
            self.with_connection(READ_LETTERS, self.limit(), list).await
        })
    }

    fn count_letters<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
    ) -> Answer<'a, u64> {
        Box::pin(async move {
            let count = async |connection: &mut Connection| {
                dead_letters::count(connection, filter, before).await
            };
            self.with_connection(READ_LETTERS, self.limit(), count)
                .await
        })
    }

    fn open_letters<'a>(&'a self, ids: &'a [i64]) -> Answer<'a, Vec<OpenLetter>> {
        Box::pin(async move {
            let open =
                async |connection: &mut Connection| dead_letters::open(connection, ids).await;
            self.with_connection(READ_LETTERS, self.limit(), open).await
        })
    }

    fn remove_letters<'a>(&'a self, letters: &'a [LetterVersion]) -> Answer<'a, u64> {
        Box::pin(async move {
            let remove =
                async |connection: &mut Connection| dead_letters::remove(connection, letters).await;
            self.with_connection("remove dead letters from", self.limit(), remove)
                .await
        })
    }

    fn count_curable_letters(&self, limit: usize) -> Answer<'_, LetterCounts> {
        Box::pin(async move {
            let count =
                async |connection: &mut Connection| audit::count_curable(connection, limit).await;
            self.with_connection(READ_LETTERS, None, count).await
        })
    }

    fn letters_at<'a>(
        &'a self,
        source: &'a str,
        positions: Vec<String>,
    ) -> Answer<'a, Vec<String>> {
        Box::pin(async move {
            let find = async |connection: &mut Connection| {
                audit::letters_at(connection, source, &positions).await
            };
            self.with_connection(READ_LETTERS, self.limit(), find).await
        })
    }

    fn look_up(&self, event_ids: Vec<String>) -> Answer<'_, Vec<EventRows>> {
        Box::pin(async move {
            let look_up =
                async |connection: &mut Connection| audit::look_up(connection, &event_ids).await;
            self.with_connection("read", self.limit(), look_up).await
        })
    }

    fn walk<'a>(
        &'a self,
        since: Option<DateTime<Utc>>,
        from: Option<&'a Cursor>,
    ) -> Answer<'a, Page> {
        Box::pin(async move {
            let walk =
                async |connection: &mut Connection| audit::walk(connection, since, from).await;
            self.with_connection("read", None, walk).await
        })
    }

    fn orphans(&self, since: Option<DateTime<Utc>>, limit: NonZeroUsize) -> Answer<'_, Strays> {
        Box::pin(async move {
            let find =
                async |connection: &mut Connection| audit::orphans(connection, since, limit).await;
            self.with_connection("read", None, find).await
        })
    }

    fn repeated(&self, since: Option<DateTime<Utc>>, limit: NonZeroUsize) -> Answer<'_, Strays> {
        Box::pin(async move {
            let find =
                async |connection: &mut Connection| audit::repeated(connection, since, limit).await;
            self.with_connection("read", None, find).await
        })
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
            self.with_connection("read", None, count).await
        })
    }

    fn half_events(&self) -> Answer<'_, Option<HalfEvents>> {
        Box::pin(async move {
            let counted = self.with_connection("read", None, half_events::count);
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

#[derive(QueryableByName)]
struct Described {
    #[diesel(sql_type = Text)]
    server_version: String,
    #[diesel(sql_type = Nullable<Text>)]
    schema: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    prefect_revision: Option<String>,
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
        "SELECT current_setting('server_version') AS server_version, \
         (SELECT relnamespace::regnamespace::text FROM pg_catalog.pg_class \
         WHERE oid = to_regclass('events')) AS schema, {revision} AS prefect_revision"
    );
    let described: Described = sql_query(query).get_result(&mut connection.pg).await?;
    connection.commit().await?;
    Ok(DatabaseInfo {
        server: Some(format!("PostgreSQL {}", described.server_version)),
        schema: described.schema,
        prefect_revision: described.prefect_revision,
        tested_revisions: &TESTED_REVISIONS,
    })
}
