//! Reads the tables for a comparison. In WAL mode this holds no writer up.

use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Text};
use futures_util::future::LocalBoxFuture;

use super::SqliteStore;
use super::connection::{Connection, Failure};
use super::schema::{self, event_persister_dead_letters as letters};
use super::text::timestamp_bound;
use crate::store::StoreError;
use crate::store::audit::{
    Audit, CountsRow, Cursor, EVENTS_ON_A_PAGE, EventRows, LetterCounts, LetterRow, Page, PageRow,
    StrayRow, Strays,
};

/// How many resources an event has by its own columns. Something that is no JSON is none of ours.
macro_rules! expected {
    () => {
        "(1 + CASE WHEN json_valid(related) THEN json_array_length(related) ELSE 0 END)"
    };
}

const LOOK_UP: &str = concat!(
    "SELECT wanted.value AS event_id, \
     (SELECT count(*) FROM events WHERE id = wanted.value) AS num_events, \
     (SELECT coalesce(max(",
    expected!(),
    "), 0) FROM events WHERE id = wanted.value) AS num_expected, \
     (SELECT count(*) FROM event_resources WHERE event_id = wanted.value) AS num_resources \
     FROM json_each(?) AS wanted"
);

/// Follows the index over `(occurred, id)`. The last row of a page is returned in any case.
const WALK: &str = concat!(
    "WITH page AS MATERIALIZED (SELECT id, occurred, ",
    expected!(),
    " AS num_expected FROM events WHERE (occurred, id) > (?, ?) ORDER BY occurred, id LIMIT ?), \
     counted AS (SELECT id, occurred, num_expected <> (SELECT count(*) FROM event_resources \
     WHERE event_id = page.id) AS suspicious, \
     row_number() OVER (ORDER BY occurred, id) AS number FROM page) \
     SELECT id AS event_id, occurred, suspicious, number FROM counted \
     WHERE suspicious OR number = (SELECT count(*) FROM page) ORDER BY number"
);

const ORPHANS: &str = "SELECT event_id, count(*) OVER () AS total FROM event_resources \
    WHERE occurred >= ? AND NOT EXISTS (SELECT 1 FROM events WHERE events.id = event_id) \
    GROUP BY event_id ORDER BY event_id LIMIT ?";

const IDS_ARE_UNIQUE: &str = "SELECT EXISTS (SELECT 1 FROM pragma_index_list('events') AS list \
    WHERE list.\"unique\" AND NOT list.partial \
    AND (SELECT group_concat(name) FROM pragma_index_info(list.name)) = 'id') AS is_true";

const REPEATED: &str = "SELECT id AS event_id, count(*) OVER () AS total FROM events \
    WHERE occurred >= ? GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT ?";

const CURABLE: &str = "SELECT letters.id, letters.event_id, count(*) OVER () AS total \
    FROM event_persister_dead_letters AS letters \
    WHERE EXISTS (SELECT 1 FROM events WHERE events.id = letters.event_id) \
    ORDER BY letters.id LIMIT ?";

fn bound(since: Option<DateTime<Utc>>) -> String {
    since.map(timestamp_bound).unwrap_or_default()
}

impl Audit for SqliteStore {
    fn look_up(
        &self,
        event_ids: Vec<String>,
    ) -> LocalBoxFuture<'_, Result<Vec<EventRows>, StoreError>> {
        Box::pin(self.with_connection("read", move |connection| {
            let query = sql_query(LOOK_UP).bind::<Text, _>(as_json(&event_ids));
            let rows: Vec<CountsRow> = connection.run(|connection| query.load(connection))?;
            Ok(rows.into_iter().map(EventRows::from).collect())
        }))
    }

    fn letters_at<'a>(
        &'a self,
        source: &'a str,
        positions: Vec<String>,
    ) -> LocalBoxFuture<'a, Result<Vec<String>, StoreError>> {
        let source = source.to_owned();
        Box::pin(
            self.with_connection("read dead letters of", move |connection| {
                if !schema::has_letters(connection)? {
                    return Ok(Vec::new());
                }
                let at_positions = letters::table
                    .filter(letters::source.eq(source))
                    .filter(letters::position.eq_any(positions))
                    .select(letters::position)
                    .distinct();
                Ok(connection.run(|connection| at_positions.load(connection))?)
            }),
        )
    }

    fn walk<'a>(
        &'a self,
        since: Option<DateTime<Utc>>,
        from: Option<&'a Cursor>,
    ) -> LocalBoxFuture<'a, Result<Page, StoreError>> {
        // The empty text is before every other, and no id is empty.
        let (occurred, event_id) = from.map_or_else(
            || (bound(since), String::new()),
            |cursor| (cursor.occurred.clone(), cursor.event_id.clone()),
        );
        Box::pin(self.with_connection("read", move |connection| {
            let query = sql_query(WALK)
                .bind::<Text, _>(occurred)
                .bind::<Text, _>(event_id)
                .bind::<BigInt, _>(EVENTS_ON_A_PAGE);
            let rows: Vec<PageRow> = connection.run(|connection| query.load(connection))?;
            Ok(Page::of(rows))
        }))
    }

    fn orphans(
        &self,
        since: Option<DateTime<Utc>>,
        limit: NonZeroUsize,
    ) -> LocalBoxFuture<'_, Result<Strays, StoreError>> {
        Box::pin(self.with_connection("read", move |connection| {
            strays(connection, ORPHANS, since, limit)
        }))
    }

    fn repeated(
        &self,
        since: Option<DateTime<Utc>>,
        limit: NonZeroUsize,
    ) -> LocalBoxFuture<'_, Result<Strays, StoreError>> {
        Box::pin(self.with_connection("read", move |connection| {
            let unique: Answer =
                connection.run(|connection| sql_query(IDS_ARE_UNIQUE).get_result(connection))?;
            if unique.is_true {
                return Ok(Strays::default());
            }
            strays(connection, REPEATED, since, limit)
        }))
    }

    fn count_letters(&self, limit: usize) -> LocalBoxFuture<'_, Result<LetterCounts, StoreError>> {
        Box::pin(
            self.with_connection("read dead letters of", move |connection| {
                if !schema::has_letters(connection)? {
                    return Ok(LetterCounts::default());
                }
                let total = letters::table.count();
                let total: i64 = connection.run(|connection| total.get_result(connection))?;
                // One at least, which tells the number of all.
                let at_most = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
                let query = sql_query(CURABLE).bind::<BigInt, _>(at_most);
                let rows: Vec<LetterRow> = connection.run(|connection| query.load(connection))?;
                Ok(LetterCounts::of(total, rows, limit))
            }),
        )
    }
}

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Bool)]
    is_true: bool,
}

/// A list of any length as one parameter.
fn as_json(texts: &[String]) -> String {
    serde_json::Value::from(texts).to_string()
}

fn strays(
    connection: &mut Connection,
    query: &str,
    since: Option<DateTime<Utc>>,
    limit: NonZeroUsize,
) -> Result<Strays, Failure> {
    let query = sql_query(query)
        .bind::<Text, _>(bound(since))
        .bind::<BigInt, _>(i64::try_from(limit.get()).unwrap_or(i64::MAX));
    let rows: Vec<StrayRow> = connection.run(|connection| query.load(connection))?;
    Ok(Strays::of(rows))
}
