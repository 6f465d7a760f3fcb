//! Stored events, read through connections of its own in transactions that can change nothing.
//!
//! Every statement is planned for the values that it is asked with: a plan for any values would serve a rare
//! name as badly as a common one.

use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use diesel::data_types::PgTimestamp;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::pg::{Pg, PgValue};
use diesel::prelude::QueryableByName;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Double, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};
use tokio::time::Instant;
use uuid::Uuid;

use super::GRACE;
use super::connection::Connection;
use super::failure::Failure;
use super::liveness::while_heard_of;
use super::rows::Moment;
use super::settings::PostgresSettings;
use crate::lock::lock;
use crate::reader::{
    Answer, Countable, EventCount, EventFilter, EventPage, EventReader, MAX_READ_TIME, Overview,
    Part, StoredEvent, Turns, counted_or_estimated, too_slow,
};
use crate::store::filter_sql::{Dialect, Statement, Value};
use crate::store::{StoreError, as_count};

/// The connections that read; they are made when they are first needed.
pub struct PostgresReader {
    settings: Arc<PostgresSettings>,
    idle: Mutex<Vec<Connection>>,
    turns: Turns,
}

impl PostgresReader {
    /// Reads the database of these settings. Makes nothing.
    pub fn new(settings: PostgresSettings) -> Self {
        Self {
            settings: Arc::new(settings),
            idle: Mutex::default(),
            turns: Turns::new(),
        }
    }

    async fn read<T>(
        &self,
        work: impl AsyncFn(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let _turn = self.turns.take().await?;
        let kept = lock(&self.idle).pop();
        let kept = kept.filter(|kept| kept.still_counts(&self.settings).is_ok());
        let mut was_kept = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(&self.settings).await?,
        };
        loop {
            let begun = Instant::now();
            let limit = MAX_READ_TIME + GRACE;
            let server = connection.address.clone();
            let read = async {
                let read = in_transaction(&mut connection, &work);
                let read = tokio::time::timeout(limit, read).await;
                read.unwrap_or(Err(Failure::Late(limit)))
            };
            let read = while_heard_of(&self.settings, &server, read).await;
            match read.flatten() {
                Ok(read) => {
                    self.settings.servers.heard(&server);
                    lock(&self.idle).push(connection);
                    return Ok(read);
                }
                Err(failure)
                    if was_kept && failure.is_before_commit() && connection.is_lost().await =>
                {
                    was_kept = false;
                    connection = Connection::open(&self.settings).await?;
                }
                Err(failure @ Failure::Silent { .. }) => {
                    return Err(failure.into_store_error("read", &self.settings.place(), None));
                }
                // diesel does not show the code of a statement that was cancelled.
                Err(_) if begun.elapsed() >= MAX_READ_TIME => return Err(too_slow()),
                Err(failure) => {
                    let failure = connection.explain(failure);
                    return Err(failure.into_store_error("read", &self.settings.place(), None));
                }
            }
        }
    }

    /// How the server finds what is asked for, statement by statement: page and total, or counts.
    ///
    /// # Errors
    ///
    /// The server cannot be asked.
    #[cfg(feature = "testing")]
    pub async fn plans(
        &self,
        filter: &EventFilter,
        countable: Option<&Countable>,
    ) -> Result<Vec<String>, StoreError> {
        self.read(async |connection: &mut Connection| {
            let mut plans = Vec::new();
            for statement in Statement::explained(Dialect::Postgres, filter, countable) {
                let lines: Vec<PlanRow> = bound(statement).load(&mut connection.pg).await?;
                let lines: Vec<_> = lines.into_iter().map(|row| row.line).collect();
                plans.push(lines.join("\n"));
            }
            Ok(plans)
        })
        .await
    }
}

/// One moment for all that is read.
async fn in_transaction<T>(
    connection: &mut Connection,
    work: impl AsyncFnOnce(&mut Connection) -> Result<T, Failure>,
) -> Result<T, Failure> {
    connection.begin_snapshot().await?;
    let limits = format!(
        "SET LOCAL statement_timeout = {}; SET LOCAL jit = off; \
         SET LOCAL plan_cache_mode = force_custom_plan",
        MAX_READ_TIME.as_millis()
    );
    connection.pg.batch_execute(&limits).await?;
    let read = work(connection).await?;
    connection.roll_back().await?;
    Ok(read)
}

impl EventReader for PostgresReader {
    fn page<'a>(&'a self, filter: &'a EventFilter, part: Part) -> Answer<'a, EventPage> {
        Box::pin(self.read(async move |connection: &mut Connection| {
            let total = if part.counts {
                let total = Statement::total(Dialect::Postgres, filter);
                let total: Total = bound(total).get_result(&mut connection.pg).await?;
                Some(as_count(total.total))
            } else {
                None
            };
            let page = Statement::page(Dialect::Postgres, filter, part);
            let rows: Vec<FoundRow> = bound(page).load(&mut connection.pg).await?;
            let num_found = rows.as_slice().first().map_or(0, |row| as_count(row.found));
            let is_cut = num_found > rows.len() as u64;
            let events = rows.into_iter().map(|row| row.event.into()).collect();
            Ok(EventPage {
                events,
                total,
                is_cut,
            })
        }))
    }

    fn count<'a>(
        &'a self,
        filter: &'a EventFilter,
        countable: &'a Countable,
    ) -> Answer<'a, Vec<EventCount>> {
        Box::pin(self.read(async move |connection: &mut Connection| {
            let counts = bound(Statement::counts(Dialect::Postgres, filter, countable));
            Ok(match countable {
                Countable::Time(buckets) => {
                    let rows: Vec<BucketRow> = counts.load(&mut connection.pg).await?;
                    buckets.fill(rows.into_iter().map(|row| (row.bucket, as_count(row.num))))
                }
                Countable::Event | Countable::Resource => {
                    let rows: Vec<GroupRow> = counts.load(&mut connection.pg).await?;
                    rows.into_iter().map(EventCount::from).collect()
                }
            })
        }))
    }

    fn event(&self, id: Uuid) -> Answer<'_, Option<StoredEvent>> {
        Box::pin(self.read(async move |connection: &mut Connection| {
            let event = Statement::event(Dialect::Postgres, id);
            let rows: Vec<EventRow> = bound(event).load(&mut connection.pg).await?;
            Ok(rows.into_iter().next().map(StoredEvent::from))
        }))
    }

    fn written_since(&self, moment: DateTime<Utc>, limit: usize) -> Answer<'_, Vec<Uuid>> {
        Box::pin(self.read(async move |connection: &mut Connection| {
            let ids = Statement::written_since(Dialect::Postgres, moment, limit);
            let rows: Vec<IdRow> = bound(ids).load(&mut connection.pg).await?;
            Ok(rows.into_iter().map(|row| row.id).collect())
        }))
    }

    fn overview(&self) -> Answer<'_, Overview> {
        Box::pin(self.read(async |connection: &mut Connection| {
            let row: OverviewRow = sql_query(OVERVIEW).get_result(&mut connection.pg).await?;
            let (num_events, is_estimate) =
                counted_or_estimated(as_count(row.few), as_count(row.estimate));
            Ok(Overview {
                kind: "PostgreSQL",
                version: row.version,
                name: row.name,
                num_events,
                is_estimate,
                num_bytes: as_count(row.num_bytes),
                oldest: row.oldest.map(|time| time.0),
                newest: row.newest.map(|time| time.0),
            })
        }))
    }

    fn close(&self) -> Answer<'_, ()> {
        drop(std::mem::take(&mut *lock(&self.idle)));
        Box::pin(async { Ok(()) })
    }
}

fn bound(statement: Statement) -> BoxedSqlQuery<'static, Pg, SqlQuery> {
    let query = sql_query(statement.text).into_boxed();
    let bind = |query: BoxedSqlQuery<'static, Pg, SqlQuery>, value| match value {
        Value::Text(text) => query.bind::<Text, _>(text),
        Value::Moment(moment) => query.bind::<Timestamptz, _>(timestamp(moment)),
        Value::Id(id) => query.bind::<SqlUuid, _>(id),
        Value::Number(number) => query.bind::<BigInt, _>(number),
        Value::Float(number) => query.bind::<Double, _>(number),
    };
    statement.values.into_iter().fold(query, bind)
}

/// Asks for nothing that takes longer the more there is.
const OVERVIEW: &str = "SELECT current_setting('server_version') AS version, \
    current_database()::text AS name, \
    (SELECT count(*) FROM (SELECT 1 FROM events LIMIT 10001) AS first_ones) AS few, \
    (SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_catalog.pg_class \
    WHERE oid IN (SELECT relid FROM pg_partition_tree('events'::regclass) UNION SELECT 'events'::regclass) AND relkind <> 'p') AS estimate, \
    (SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint FROM ( \
    SELECT relid FROM pg_partition_tree('events'::regclass) \
    UNION SELECT relid FROM pg_partition_tree('event_resources'::regclass) \
    UNION SELECT unnest(ARRAY['events'::regclass, 'event_resources'::regclass])) AS parts) AS num_bytes, \
    (SELECT min(occurred) FROM events) AS oldest, (SELECT max(occurred) FROM events) AS newest";

#[derive(QueryableByName)]
struct OverviewRow {
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    few: i64,
    #[diesel(sql_type = BigInt)]
    estimate: i64,
    #[diesel(sql_type = BigInt)]
    num_bytes: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    oldest: Option<EventTime>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    newest: Option<EventTime>,
}

/// As events are stored: the first moment that Prefect knows is `-infinity`, and none is before it.
fn timestamp(moment: DateTime<Utc>) -> PgTimestamp {
    match Moment::new(moment.min(LATEST)) {
        Moment(..=Moment::YEAR_1) => PgTimestamp(Moment::FIRST.0),
        Moment(micros) => PgTimestamp(micros),
    }
}

/// Later than every event, and a moment that PostgreSQL knows.
const LATEST: DateTime<Utc> = DateTime::from_timestamp(200_000 * 365 * 86_400, 0).unwrap();

/// A moment of an event, as Prefect reads it: `-infinity` is its first one, and `infinity` its last.
#[derive(FromSqlRow)]
struct EventTime(DateTime<Utc>);

impl FromSql<Timestamptz, Pg> for EventTime {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        let PgTimestamp(micros) = FromSql::<Timestamptz, Pg>::from_sql(value)?;
        let moment = Moment(match micros {
            i64::MIN => Moment::YEAR_1,
            i64::MAX => Moment::YEAR_10000 - 1,
            micros => micros,
        });
        Ok(Self(moment.to_utc().ok_or("a time that is none")?))
    }
}

#[cfg(feature = "testing")]
#[derive(QueryableByName)]
struct PlanRow {
    #[diesel(sql_type = Text, column_name = "QUERY PLAN")]
    line: String,
}

#[derive(QueryableByName)]
struct Total {
    #[diesel(sql_type = BigInt)]
    total: i64,
}

#[derive(QueryableByName)]
struct BucketRow {
    #[diesel(sql_type = BigInt)]
    bucket: i64,
    #[diesel(sql_type = BigInt)]
    num: i64,
}

#[derive(QueryableByName)]
struct IdRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}

#[derive(QueryableByName)]
struct GroupRow {
    #[diesel(sql_type = Text)]
    value: String,
    #[diesel(sql_type = Text)]
    label: String,
    #[diesel(sql_type = BigInt)]
    num: i64,
    #[diesel(sql_type = Timestamptz)]
    oldest: EventTime,
    #[diesel(sql_type = Timestamptz)]
    latest: EventTime,
}

impl From<GroupRow> for EventCount {
    fn from(row: GroupRow) -> Self {
        Self {
            value: row.value,
            label: row.label,
            count: as_count(row.num),
            start_time: row.oldest.0,
            end_time: row.latest.0,
        }
    }
}

#[derive(QueryableByName)]
struct FoundRow {
    #[diesel(embed)]
    event: EventRow,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

#[derive(QueryableByName)]
struct EventRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Timestamptz)]
    occurred: EventTime,
    #[diesel(sql_type = Timestamptz)]
    received: EventTime,
    #[diesel(sql_type = Text)]
    event: String,
    #[diesel(sql_type = Text)]
    resource: String,
    #[diesel(sql_type = Text)]
    related: String,
    #[diesel(sql_type = Text)]
    payload: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    follows: Option<Uuid>,
}

impl From<EventRow> for StoredEvent {
    fn from(row: EventRow) -> Self {
        Self {
            id: row.id,
            occurred: row.occurred.0,
            received: row.received.0,
            event: row.event,
            resource: row.resource,
            related: row.related,
            payload: row.payload,
            follows: row.follows,
        }
    }
}
