//! Stored events, read through connections of its own that can change nothing. In WAL mode neither side waits
//! for the other.

use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use diesel::RunQueryDsl as _;
use diesel::prelude::QueryableByName;
use diesel::query_builder::BoxedSqlQuery;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Double, Nullable, Text};
use diesel::sqlite::Sqlite;
use serde::de::IgnoredAny;
use tokio::time::Instant;
use uuid::Uuid;

use super::connection::{Connection, Failure, Missing};
use super::in_place::OpenFile;
use super::text::{read_timestamp, timestamp_bound};
use super::{OpenConnection, SqliteSettings, blocking};
use crate::lock::lock;
use crate::reader::{
    Answer, Countable, EventCount, EventFilter, EventPage, EventReader, MAX_READ_TIME, Overview,
    Part, StoredEvent, Turns, counted_or_estimated, too_slow,
};
use crate::store::filter_sql::{Dialect, Statement, Value};
use crate::store::{StoreError, as_count};

/// The connections that read; the file is opened when it is first asked.
pub struct SqliteReader {
    settings: SqliteSettings,
    file: Arc<OpenFile>,
    idle: Arc<Mutex<Vec<OpenConnection>>>,
    turns: Turns,
}

impl SqliteReader {
    /// Reads the file of these settings. Makes nothing. Where this process writes the same file, take
    /// [`SqliteStore::reader`](super::SqliteStore::reader).
    pub fn new(settings: SqliteSettings) -> Self {
        Self::of_file(settings, Arc::default())
    }

    pub(super) fn of_file(settings: SqliteSettings, file: Arc<OpenFile>) -> Self {
        Self {
            settings,
            file,
            idle: Arc::default(),
            turns: Turns::new(),
        }
    }

    /// How SQLite finds what is asked for, statement by statement: page and total, or counts.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    #[cfg(feature = "testing")]
    pub async fn plans(
        &self,
        filter: &EventFilter,
        countable: Option<&Countable>,
    ) -> Result<Vec<String>, StoreError> {
        let statements = Statement::explained(Dialect::Sqlite, filter, countable);
        self.read(move |connection| {
            let mut plans = Vec::new();
            for statement in statements {
                let steps: Vec<PlanRow> = load(connection, statement)?;
                let steps: Vec<_> = steps.into_iter().map(|row| row.detail).collect();
                plans.push(steps.join("\n"));
            }
            Ok(plans)
        })
        .await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _turn = self.turns.take().await?;
        let (settings, idle) = (self.settings.clone(), Arc::clone(&self.idle));
        let file = Arc::clone(&self.file);
        blocking(move || {
            let mut kept = lock(&idle).pop();
            // The file may be another one by now.
            kept.take_if(|(_, file)| !file.is_at(&settings.path));
            let (mut connection, file) = match kept {
                Some(kept) => kept,
                None => file.open(&settings.path, || open(&settings))?,
            };
            let deadline = Instant::now() + MAX_READ_TIME;
            connection.interrupt_at(Some(deadline));
            let done = in_transaction(&mut connection, work);
            match done {
                Ok(done) => {
                    connection.interrupt_at(None);
                    lock(&idle).push((connection, file));
                    Ok(done)
                }
                // Between two rows diesel loses the code of an interruption.
                Err(failure) if failure.is_interrupted() || Instant::now() >= deadline => {
                    Err(too_slow())
                }
                Err(failure) => Err(connection.store_error("read", failure)),
            }
        })
        .await?
    }
}

fn open(settings: &SqliteSettings) -> Result<Connection, StoreError> {
    let mut connection = Connection::open(settings, Missing::Refuse)?;
    match connection.execute_batch("PRAGMA query_only = ON") {
        Ok(()) => Ok(connection),
        Err(failed) => Err(connection.store_error("set up a connection to", failed.into())),
    }
}

/// One moment for all that is read.
fn in_transaction<T>(
    connection: &mut Connection,
    work: impl FnOnce(&mut Connection) -> Result<T, Failure>,
) -> Result<T, Failure> {
    connection.execute_batch("BEGIN")?;
    let done = work(connection)?;
    connection.execute_batch("COMMIT")?;
    Ok(done)
}

impl EventReader for SqliteReader {
    fn page<'a>(&'a self, filter: &'a EventFilter, part: Part) -> Answer<'a, EventPage> {
        let page = Statement::page(Dialect::Sqlite, filter, part);
        let total = part
            .counts
            .then(|| Statement::total(Dialect::Sqlite, filter));
        Box::pin(self.read(move |connection| {
            let total = match total {
                Some(total) => {
                    let total: Total = first(connection, total)?;
                    Some(as_count(total.total))
                }
                None => None,
            };
            let rows: Vec<FoundRow> = load(connection, page)?;
            let num_found = rows.as_slice().first().map_or(0, |row| as_count(row.found));
            let is_cut = num_found > rows.len() as u64;
            let events = rows.into_iter().map(|row| row.event.try_into());
            Ok(EventPage {
                events: events.collect::<Result<_, _>>()?,
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
        let counts = Statement::counts(Dialect::Sqlite, filter, countable);
        let buckets = match countable {
            Countable::Time(buckets) => Some(buckets.clone()),
            Countable::Event | Countable::Resource => None,
        };
        Box::pin(self.read(move |connection| match buckets {
            Some(buckets) => {
                let rows: Vec<BucketRow> = load(connection, counts)?;
                let counts = rows.into_iter().map(|row| (row.bucket, as_count(row.num)));
                Ok(buckets.fill(counts))
            }
            None => {
                let rows: Vec<GroupRow> = load(connection, counts)?;
                rows.into_iter().map(EventCount::try_from).collect()
            }
        }))
    }

    fn event(&self, id: Uuid) -> Answer<'_, Option<StoredEvent>> {
        let event = Statement::event(Dialect::Sqlite, id);
        Box::pin(self.read(move |connection| {
            let rows: Vec<EventRow> = load(connection, event)?;
            rows.into_iter()
                .next()
                .map(StoredEvent::try_from)
                .transpose()
        }))
    }

    fn written_since(&self, moment: DateTime<Utc>, limit: usize) -> Answer<'_, Vec<Uuid>> {
        let ids = Statement::written_since(Dialect::Sqlite, moment, limit);
        Box::pin(self.read(move |connection| {
            let rows: Vec<IdRow> = load(connection, ids)?;
            let ids = rows.iter().filter_map(|row| Uuid::try_parse(&row.id).ok());
            Ok(ids.collect())
        }))
    }

    fn overview(&self) -> Answer<'_, Overview> {
        let name = self.settings.path.display().to_string();
        Box::pin(self.read(move |connection| {
            let row: OverviewRow =
                connection.run(|connection| sql_query(OVERVIEW).get_result(connection))?;
            let moment = |text: Option<String>| text.and_then(|text| read_timestamp(&text));
            let (num_events, is_estimate) =
                counted_or_estimated(as_count(row.few), as_count(row.estimate));
            Ok(Overview {
                kind: "SQLite",
                version: row.version,
                name,
                num_events,
                is_estimate,
                num_bytes: as_count(row.num_bytes),
                oldest: moment(row.oldest),
                newest: moment(row.newest),
            })
        }))
    }

    fn close(&self) -> Answer<'_, ()> {
        let idle = std::mem::take(&mut *lock(&self.idle));
        // The last connection to a file may write its log back.
        Box::pin(blocking(move || drop(idle)))
    }
}

fn load<T>(connection: &mut Connection, statement: Statement) -> Result<Vec<T>, Failure>
where
    T: QueryableByName<Sqlite> + 'static,
{
    Ok(connection.run(|connection| bound(statement).load(connection))?)
}

fn first<T>(connection: &mut Connection, statement: Statement) -> Result<T, Failure>
where
    T: QueryableByName<Sqlite> + 'static,
{
    Ok(connection.run(|connection| bound(statement).get_result(connection))?)
}

fn bound(statement: Statement) -> BoxedSqlQuery<'static, Sqlite, diesel::query_builder::SqlQuery> {
    let query = sql_query(statement.text).into_boxed();
    statement
        .values
        .into_iter()
        .fold(query, |query, value| match value {
            Value::Text(text) => query.bind::<Text, _>(text),
            Value::Moment(moment) => query.bind::<Text, _>(timestamp_bound(moment)),
            Value::Id(id) => query.bind::<Text, _>(id.to_string()),
            #[cfg(feature = "postgres")]
            Value::Number(number) => query.bind::<BigInt, _>(number),
            Value::Float(number) => query.bind::<Double, _>(number),
        })
}

/// Asks for nothing that takes longer the more there is.
const OVERVIEW: &str = "SELECT sqlite_version() AS version, \
    (SELECT count(*) FROM (SELECT 1 FROM events LIMIT 10001)) AS few, \
    coalesce((SELECT max(rowid) FROM events) - (SELECT min(rowid) FROM events) + 1, 0) AS estimate, \
    (SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()) AS num_bytes, \
    (SELECT min(occurred) FROM events) AS oldest, (SELECT max(occurred) FROM events) AS newest";

#[derive(QueryableByName)]
struct OverviewRow {
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = BigInt)]
    few: i64,
    #[diesel(sql_type = BigInt)]
    estimate: i64,
    #[diesel(sql_type = BigInt)]
    num_bytes: i64,
    #[diesel(sql_type = Nullable<Text>)]
    oldest: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    newest: Option<String>,
}

#[cfg(feature = "testing")]
#[derive(QueryableByName)]
struct PlanRow {
    #[diesel(sql_type = Text)]
    detail: String,
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
    #[diesel(sql_type = Text)]
    id: String,
}

#[derive(QueryableByName)]
struct GroupRow {
    #[diesel(sql_type = Text)]
    value: String,
    #[diesel(sql_type = Text)]
    label: String,
    #[diesel(sql_type = BigInt)]
    num: i64,
    #[diesel(sql_type = Text)]
    oldest: String,
    #[diesel(sql_type = Text)]
    latest: String,
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
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    occurred: String,
    #[diesel(sql_type = Text)]
    received: String,
    #[diesel(sql_type = Text)]
    event: String,
    #[diesel(sql_type = Text)]
    resource: String,
    #[diesel(sql_type = Text)]
    related: String,
    #[diesel(sql_type = Text)]
    payload: String,
    #[diesel(sql_type = Nullable<Text>)]
    follows: Option<String>,
}

impl TryFrom<EventRow> for StoredEvent {
    type Error = Failure;

    fn try_from(row: EventRow) -> Result<Self, Failure> {
        let id = row.id;
        let unreadable = |column: &str| {
            Failure::Unfit(format!(
                "the event {id} cannot be shown: its column {column} is not what Prefect writes there"
            ))
        };
        // SQLite holds any text, and an answer with one that is no JSON would be none either.
        for (column, json) in [
            ("resource", &row.resource),
            ("related", &row.related),
            ("payload", &row.payload),
        ] {
            serde_json::from_str::<IgnoredAny>(json).map_err(|_| unreadable(column))?;
        }
        let uuid = |text: &str| Uuid::try_parse(text).ok();
        let follows = match row.follows.as_deref() {
            Some(follows) => Some(uuid(follows).ok_or_else(|| unreadable("follows"))?),
            None => None,
        };
        Ok(Self {
            occurred: read_timestamp(&row.occurred).ok_or_else(|| unreadable("occurred"))?,
            received: read_timestamp(&row.received).ok_or_else(|| unreadable("received"))?,
            follows,
            id: uuid(&id).ok_or_else(|| unreadable("id"))?,
            event: row.event,
            resource: row.resource,
            related: row.related,
            payload: row.payload,
        })
    }
}

impl TryFrom<GroupRow> for EventCount {
    type Error = Failure;

    fn try_from(row: GroupRow) -> Result<Self, Failure> {
        let moment = |text: &str| {
            let what = format!("the column occurred of an event holds {text:?}, which is no time");
            read_timestamp(text).ok_or(Failure::Unfit(what))
        };
        Ok(Self {
            start_time: moment(&row.oldest)?,
            end_time: moment(&row.latest)?,
            value: row.value,
            label: row.label,
            count: as_count(row.num),
        })
    }
}
