//! Reads the tables for a comparison: each question in a snapshot of its own that only reads.

use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Text};
use diesel_async::RunQueryDsl;
use futures_util::future::LocalBoxFuture;

use super::PostgresStore;
use super::connection::Connection;
use super::failure::Failure;
use super::schema::event_persister_dead_letters as letters;
use crate::store::StoreError;
use crate::store::audit::{
    Audit, CountsRow, Cursor, EVENTS_ON_A_PAGE, EventRows, LetterCounts, LetterRow, Page, PageRow,
    StrayRow, Strays,
};

/// How many resources an event has by its own columns.
macro_rules! expected {
    () => {
        "(1 + CASE jsonb_typeof(events.related) \
         WHEN 'array' THEN jsonb_array_length(events.related) ELSE 0 END)::bigint"
    };
}

/// Both tables are looked into by their indexes, whatever the planner knows about them.
const LOOK_UP: &str = concat!(
    "SELECT wanted.id AS event_id, held.num_events, held.num_expected, \
     (SELECT count(*) FROM event_resources \
     WHERE event_resources.event_id = wanted.id::uuid) AS num_resources \
     FROM unnest($1) AS wanted (id) CROSS JOIN LATERAL (SELECT count(*) AS num_events, coalesce(max(",
    expected!(),
    "), 0) AS num_expected FROM events WHERE events.id = wanted.id::uuid) AS held"
);

/// Follows the index over `(occurred, id)`. The last row of a page is returned in any case.
const WALK: &str = concat!(
    "WITH page AS MATERIALIZED (SELECT id, occurred, related FROM events \
     WHERE (occurred, id) >= ($1::timestamptz, $2::uuid) \
     AND NOT ($3 AND (occurred, id) = ($1::timestamptz, $2::uuid)) \
     ORDER BY occurred, id LIMIT $4), \
     counted AS (SELECT id, occurred, ",
    expected!(),
    " <> (SELECT count(*) FROM event_resources WHERE event_resources.event_id = events.id) \
     AS suspicious, row_number() OVER (ORDER BY occurred, id) AS number FROM page AS events) \
     SELECT id::text AS event_id, occurred::text AS occurred, suspicious, number FROM counted \
     WHERE suspicious OR number = (SELECT count(*) FROM page) ORDER BY number"
);

const ORPHANS: &str = "SELECT event_id::text AS event_id, count(*) OVER () AS total \
    FROM event_resources WHERE occurred >= $1::timestamptz \
    AND NOT EXISTS (SELECT FROM events WHERE events.id = event_resources.event_id) \
    GROUP BY event_resources.event_id ORDER BY event_resources.event_id LIMIT $2";

const IDS_ARE_UNIQUE: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_index \
    JOIN pg_catalog.pg_attribute ON attrelid = indrelid AND attnum = indkey[0] \
    WHERE indrelid = to_regclass('events') AND indisunique AND indisvalid AND indpred IS NULL \
    AND indnkeyatts = 1 AND attname = 'id') AS is_true";

const REPEATED: &str = "SELECT id::text AS event_id, count(*) OVER () AS total \
    FROM events WHERE occurred >= $1::timestamptz \
    GROUP BY events.id HAVING count(*) > 1 ORDER BY events.id LIMIT $2";

const LETTERS_ARE_THERE: &str =
    "SELECT to_regclass('event_persister_dead_letters') IS NOT NULL AS is_true";

const CURABLE: &str = "SELECT letters.id, letters.event_id::text AS event_id, \
    count(*) OVER () AS total FROM event_persister_dead_letters AS letters \
    WHERE EXISTS (SELECT FROM events WHERE events.id = letters.event_id) \
    ORDER BY letters.id LIMIT $1";

/// Before everything that PostgreSQL can hold.
const FIRST_MOMENT: &str = "-infinity";
const FIRST_ID: &str = "00000000-0000-0000-0000-000000000000";

fn bound(since: Option<DateTime<Utc>>) -> String {
    since.map_or_else(|| FIRST_MOMENT.to_owned(), |since| since.to_rfc3339())
}

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Bool)]
    is_true: bool,
}

async fn is_true(connection: &mut Connection, question: &str) -> Result<bool, Failure> {
    let answer: Answer = sql_query(question).get_result(&mut connection.pg).await?;
    Ok(answer.is_true)
}

impl Audit for PostgresStore {
    fn look_up(
        &self,
        event_ids: Vec<String>,
    ) -> LocalBoxFuture<'_, Result<Vec<EventRows>, StoreError>> {
        Box::pin(async move {
            let look_up = async |connection: &mut Connection| {
                connection.begin_snapshot().await?;
                let query = sql_query(LOOK_UP).bind::<Array<Text>, _>(&event_ids);
                let rows: Vec<CountsRow> = query.load(&mut connection.pg).await?;
                connection.commit().await?;
                Ok(rows.into_iter().map(EventRows::from).collect())
            };
            self.with_connection("read", self.limit(), look_up).await
        })
    }

    fn letters_at<'a>(
        &'a self,
        source: &'a str,
        positions: Vec<String>,
    ) -> LocalBoxFuture<'a, Result<Vec<String>, StoreError>> {
        Box::pin(async move {
            let find = async |connection: &mut Connection| {
                connection.begin_snapshot().await?;
                let mut found = Vec::new();
                if is_true(connection, LETTERS_ARE_THERE).await? {
                    found = letters::table
                        .filter(letters::source.eq(source))
                        .filter(letters::position.eq_any(&positions))
                        .select(letters::position)
                        .distinct()
                        .load(&mut connection.pg)
                        .await?;
                }
                connection.commit().await?;
                Ok(found)
            };
            self.with_connection("read dead letters of", self.limit(), find)
                .await
        })
    }

    fn walk<'a>(
        &'a self,
        since: Option<DateTime<Utc>>,
        from: Option<&'a Cursor>,
    ) -> LocalBoxFuture<'a, Result<Page, StoreError>> {
        Box::pin(async move {
            let start = Cursor {
                occurred: bound(since),
                event_id: FIRST_ID.to_owned(),
            };
            let cursor = from.unwrap_or(&start);
            let read = async |connection: &mut Connection| {
                connection.begin_snapshot().await?;
                let query = sql_query(WALK)
                    .bind::<Text, _>(&cursor.occurred)
                    .bind::<Text, _>(&cursor.event_id)
                    .bind::<Bool, _>(from.is_some())
                    .bind::<BigInt, _>(EVENTS_ON_A_PAGE);
                let rows: Vec<PageRow> = query.load(&mut connection.pg).await?;
                connection.commit().await?;
                Ok(Page::of(rows))
            };
            self.with_connection("read", None, read).await
        })
    }

    fn orphans(
        &self,
        since: Option<DateTime<Utc>>,
        limit: NonZeroUsize,
    ) -> LocalBoxFuture<'_, Result<Strays, StoreError>> {
        Box::pin(async move {
            let find = async |connection: &mut Connection| {
                connection.begin_snapshot().await?;
                let found = strays(connection, ORPHANS, since, limit).await?;
                connection.commit().await?;
                Ok(found)
            };
            self.with_connection("read", None, find).await
        })
    }

    fn repeated(
        &self,
        since: Option<DateTime<Utc>>,
        limit: NonZeroUsize,
    ) -> LocalBoxFuture<'_, Result<Strays, StoreError>> {
        Box::pin(async move {
            let find = async |connection: &mut Connection| {
                connection.begin_snapshot().await?;
                let mut found = Strays::default();
                if !is_true(connection, IDS_ARE_UNIQUE).await? {
                    found = strays(connection, REPEATED, since, limit).await?;
                }
                connection.commit().await?;
                Ok(found)
            };
            self.with_connection("read", None, find).await
        })
    }

    fn count_letters(&self, limit: usize) -> LocalBoxFuture<'_, Result<LetterCounts, StoreError>> {
        Box::pin(async move {
            let count = async |connection: &mut Connection| {
                connection.begin_snapshot().await?;
                let mut counts = LetterCounts::default();
                if is_true(connection, LETTERS_ARE_THERE).await? {
                    counts = letter_counts(connection, limit).await?;
                }
                connection.commit().await?;
                Ok(counts)
            };
            self.with_connection("read dead letters of", None, count)
                .await
        })
    }
}

async fn strays(
    connection: &mut Connection,
    query: &str,
    since: Option<DateTime<Utc>>,
    limit: NonZeroUsize,
) -> Result<Strays, Failure> {
    let query = sql_query(query)
        .bind::<Text, _>(bound(since))
        .bind::<BigInt, _>(i64::try_from(limit.get()).unwrap_or(i64::MAX));
    let rows: Vec<StrayRow> = query.load(&mut connection.pg).await?;
    Ok(Strays::of(rows))
}

async fn letter_counts(connection: &mut Connection, limit: usize) -> Result<LetterCounts, Failure> {
    let total: i64 = letters::table
        .count()
        .get_result(&mut connection.pg)
        .await?;
    // One at least, which tells the number of all.
    let query =
        sql_query(CURABLE).bind::<BigInt, _>(i64::try_from(limit.max(1)).unwrap_or(i64::MAX));
    let rows: Vec<LetterRow> = query.load(&mut connection.pg).await?;
    Ok(LetterCounts::of(total, rows, limit))
}
