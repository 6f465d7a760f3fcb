//! Reads the tables for a comparison: each question in a snapshot of its own that only reads.
//!
//! Rows are compared on the server, which costs a fraction of sending them. A row that the server cannot
//! read fails the whole question, so the culprit is looked for.

use std::num::NonZeroUsize;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection as _};
use tokio::time::Instant;

use crate::store::operator::answers::{
    CountsRow, EVENTS_ON_A_PAGE, LetterRow, NEWEST, NEWEST_TAKE, Newest, PAGE_TAKES, StrayRow,
};
use crate::store::operator::{Cursor, EventRows, LetterCounts, Page, Strays, Unreadable};
use crate::store::postgres::connection::Connection;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::partitions::{is_partitioned, of_one_event};
use crate::store::postgres::schema::event_persister_dead_letters as letters;
use crate::store::{as_count, at_most};

/// The related resources of `events`; none where the column holds something else.
macro_rules! related {
    () => {
        "CASE jsonb_typeof(events.related) WHEN 'array' THEN events.related ELSE '[]' END"
    };
}

macro_rules! expected {
    () => {
        concat!("(1 + jsonb_array_length(", related!(), "))::bigint")
    };
}

macro_rules! resource_id_differs {
    () => {
        "events.resource_id IS DISTINCT FROM events.resource ->> 'prefect.resource.id'"
    };
}

macro_rules! related_differs {
    () => {
        "jsonb_typeof(events.related) IS DISTINCT FROM 'array'"
    };
}

macro_rules! related_ids_differ {
    () => {
        concat!(
            "events.related_resource_ids IS DISTINCT FROM (SELECT \
             coalesce(jsonb_agg(value -> 'prefect.resource.id' ORDER BY ordinality), '[]') \
             FROM jsonb_array_elements(",
            related!(),
            ") WITH ORDINALITY)"
        )
    };
}

/// Whether a resource is there that the event should not have; with as many as it should have that is
/// to say that they are others.
macro_rules! resources_differ {
    () => {
        concat!(
            "EXISTS (SELECT r.occurred, r.resource_id, r.resource_role, r.resource::jsonb \
             FROM event_resources AS r WHERE r.event_id = events.id EXCEPT ALL \
             SELECT events.occurred, labels ->> 'prefect.resource.id', role, \
             CASE jsonb_typeof(labels) WHEN 'object' THEN \
             labels - '{prefect.resource.id,prefect.resource.role}'::text[] ELSE labels END \
             FROM (SELECT events.resource AS labels, '' AS role UNION ALL \
             SELECT value, value ->> 'prefect.resource.role' FROM jsonb_array_elements(",
            related!(),
            ")) AS told)"
        )
    };
}

/// Numbers of more than 4,300 digits before the point.
macro_rules! long_numbers {
    () => {
        "'strict $.** ? (@ >= 1e4300 || @ <= -1e4300)'"
    };
}

/// Numbers whose text may be much longer than what was sent: PostgreSQL writes no exponents.
macro_rules! wide_numbers {
    () => {
        "'strict $.** ? (@ >= 1e60 || @ <= -1e60 || (@ < 1e-60 && @ > -1e-60 && @ != 0))'"
    };
}

/// Why the payload cannot be read, if it cannot; its text is never made. Only what has digits behind a
/// point is no integer to Python. What takes less than 8 kB here has no text of 1 GB.
macro_rules! unreadable {
    () => {
        concat!(
            "CASE WHEN isfinite(events.occurred) AND events.occurred >= '10000-01-01 00:00+00' \
             OR isfinite(events.received) AND events.received >= '10000-01-01 00:00+00' THEN 'time' \
             WHEN jsonb_path_exists(events.payload, ",
            long_numbers!(),
            ") AND EXISTS (SELECT FROM jsonb_path_query(events.payload, ",
            long_numbers!(),
            ") AS number WHERE scale(number::numeric) = 0) THEN 'integer' \
             WHEN pg_column_size(events.payload) < 8000 THEN NULL \
             WHEN jsonb_path_exists(events.payload, ",
            wide_numbers!(),
            ") AND (SELECT sum(length(number::text)) > 1000000000 \
             FROM jsonb_path_query(events.payload, ",
            wide_numbers!(),
            ") AS number) THEN 'text' END"
        )
    };
}

/// Both tables are looked into by their indexes, whatever the planner knows about them.
macro_rules! look_up {
    ($before:literal, $behind:literal, $first:literal) => {
        concat!(
            "SELECT wanted.id AS event_id, held.num_events, held.num_expected, \
     (SELECT count(*) FROM event_resources \
     WHERE event_resources.event_id = wanted.id::uuid) AS num_resources, \
     told.received, coalesce(told.contradicting, '{}') AS contradicting, told.unreadable \
     FROM unnest($1) AS wanted (id) CROSS JOIN LATERAL (",
            $before,
            expected!(),
            $behind,
            ") AS held \
     LEFT JOIN LATERAL (SELECT CASE WHEN isfinite(received) \
     THEN (extract(epoch FROM received) * 1000000)::bigint END AS received, \
     array_remove(ARRAY[CASE WHEN ",
            resource_id_differs!(),
            " THEN 'resource_id' END, CASE WHEN ",
            related_differs!(),
            " THEN 'related' END, CASE WHEN ",
            related_ids_differ!(),
            " THEN 'related_resource_ids' END, CASE WHEN ",
            resources_differ!(),
            " THEN 'event_resources' END], NULL) AS contradicting, ",
            unreadable!(),
            " AS unreadable FROM events WHERE events.id = wanted.id::uuid ",
            $first,
            " LIMIT 1) AS told ON true"
        )
    };
}

const LOOK_UP: &str = look_up!(
    "SELECT count(*) AS num_events, coalesce(max(",
    "), 0) AS num_expected FROM events WHERE events.id = wanted.id::uuid",
    ""
);

/// The same where events of one id that occurred at two moments are two events. They are counted together,
/// and the first of them that something is wrong with is told of.
const LOOK_UP_MOMENTS: &str = look_up!(
    "SELECT coalesce(max(num), 0) AS num_events, coalesce(sum(expected), 0)::bigint AS num_expected \
     FROM (SELECT count(*) AS num, max(",
    ") AS expected FROM events WHERE events.id = wanted.id::uuid GROUP BY events.occurred) AS moments",
    "ORDER BY unreadable NULLS LAST, contradicting DESC"
);

const COUNT: &str = "SELECT wanted.id AS event_id, \
    (SELECT count(*) FROM events WHERE events.id = wanted.id::uuid) AS num_events, \
    num_resources, num_resources AS num_expected \
    FROM (VALUES ($1)) AS wanted (id) CROSS JOIN LATERAL (SELECT count(*) AS num_resources \
    FROM event_resources WHERE event_resources.event_id = wanted.id::uuid) AS held";

macro_rules! behind {
    () => {
        "(occurred, id) >= ($1::timestamptz, $2::uuid) \
         AND NOT ($3 AND (occurred, id) = ($1::timestamptz, $2::uuid)) \
         ORDER BY occurred, id LIMIT $4"
    };
}

/// So often [`WALK`] says that rows are of one event.
const CONDITIONS_OF_WALK: usize = 2;

/// Follows the index over `(occurred, id)`. The last row of a page is returned in any case.
const WALK: &str = concat!(
    "WITH page AS MATERIALIZED (SELECT id, occurred, received, resource_id, resource, related, \
     related_resource_ids, payload, row_number() OVER (ORDER BY occurred, id) AS number \
     FROM events WHERE ",
    behind!(),
    "), looked_at AS (SELECT id, occurred, number, ",
    expected!(),
    " <> (SELECT count(*) FROM event_resources WHERE event_resources.event_id = events.id) OR ",
    resource_id_differs!(),
    " OR ",
    related_differs!(),
    " OR ",
    related_ids_differ!(),
    " OR ",
    resources_differ!(),
    " OR (",
    unreadable!(),
    ") IS NOT NULL AS suspicious FROM page AS events) \
     SELECT id::text AS event_id, occurred::text AS occurred, suspicious, number FROM looked_at \
     WHERE suspicious OR number = (SELECT count(*) FROM page) ORDER BY number"
);

/// The same for a page of one event whose columns cannot be read.
const NAME: &str = concat!(
    "SELECT id::text AS event_id, occurred::text AS occurred, true AS suspicious, \
     1::bigint AS number FROM events WHERE ",
    behind!()
);

/// Some of the newest events before one, and where the next ones are.
const NEWEST_BEFORE: &str = concat!(
    "SELECT count(*) AS num_events, \
     count(*) FILTER (WHERE (",
    unreadable!(),
    ") IS NOT NULL) AS num_unreadable, \
     (array_agg(occurred::text ORDER BY occurred, id))[1] AS occurred, \
     (array_agg(id::text ORDER BY occurred, id))[1] AS event_id \
     FROM (SELECT id, occurred, received, payload FROM events \
     WHERE (occurred, id) < ($1::timestamptz, $2::uuid) \
     ORDER BY occurred DESC, id DESC LIMIT $3) AS events"
);

const ORPHANS: &str = "SELECT event_id::text AS event_id, count(*) OVER () AS total \
    FROM event_resources WHERE occurred >= $1::timestamptz \
    AND NOT EXISTS (SELECT FROM events WHERE events.id = event_resources.event_id) \
    GROUP BY event_resources.event_id ORDER BY event_resources.event_id LIMIT $2";

const IDS_ARE_UNIQUE: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_index \
    JOIN pg_catalog.pg_attribute ON attrelid = indrelid AND attnum = indkey[0] \
    WHERE indrelid = to_regclass('events') AND indisunique AND indisvalid AND indpred IS NULL \
    AND indnkeyatts = 1 AND attname = 'id')";

const REPEATED: &str = "SELECT id::text AS event_id, count(*) OVER () AS total \
    FROM events WHERE occurred >= $1::timestamptz \
    GROUP BY events.id HAVING count(*) > 1 ORDER BY events.id LIMIT $2";

const LETTERS_ARE_THERE: &str = "SELECT to_regclass('event_persister_dead_letters') IS NOT NULL";

const CURABLE: &str = "SELECT letters.id, letters.event_id::text AS event_id, \
    count(*) OVER () AS total FROM event_persister_dead_letters AS letters \
    WHERE EXISTS (SELECT FROM events WHERE events.id = letters.event_id) \
    ORDER BY letters.id LIMIT $1";

const FIRST_MOMENT: &str = "-infinity";
const FIRST_ID: &str = "00000000-0000-0000-0000-000000000000";
const LAST_MOMENT: &str = "infinity";
const LAST_ID: &str = "ffffffff-ffff-ffff-ffff-ffffffffffff";

fn bound(since: Option<DateTime<Utc>>) -> String {
    since.map_or_else(|| FIRST_MOMENT.to_owned(), |since| since.to_rfc3339())
}

async fn is_true(connection: &mut Connection, question: &str) -> Result<bool, Failure> {
    Ok(sql::<Bool>(question).get_result(&mut connection.pg).await?)
}

pub(super) async fn letters_at(
    connection: &mut Connection,
    source: &str,
    positions: &[String],
) -> Result<Vec<String>, Failure> {
    if !is_true(connection, LETTERS_ARE_THERE).await? {
        return Ok(Vec::new());
    }
    let at_positions = letters::table
        .filter(letters::source.eq(source))
        .filter(letters::position.eq_any(positions))
        .select(letters::position)
        .distinct();
    Ok(at_positions.load(&mut connection.pg).await?)
}

pub(super) async fn count_curable(
    connection: &mut Connection,
    limit: usize,
) -> Result<LetterCounts, Failure> {
    if !is_true(connection, LETTERS_ARE_THERE).await? {
        return Ok(LetterCounts::default());
    }
    let total = letters::table.count().get_result(&mut connection.pg);
    let total: i64 = total.await?;
    // One at least, which tells the number of all.
    let query = sql_query(CURABLE).bind::<BigInt, _>(at_most(limit.max(1)));
    let rows: Vec<LetterRow> = query.load(&mut connection.pg).await?;
    Ok(LetterCounts::of(total, rows, limit))
}

pub(super) async fn orphans(
    connection: &mut Connection,
    since: Option<DateTime<Utc>>,
    limit: NonZeroUsize,
) -> Result<Strays, Failure> {
    strays(connection, ORPHANS, since, limit).await
}

pub(super) async fn repeated(
    connection: &mut Connection,
    since: Option<DateTime<Utc>>,
    limit: NonZeroUsize,
) -> Result<Strays, Failure> {
    // The key of a partitioned table does the same for an id and its moment.
    if is_partitioned(connection).await? || is_true(connection, IDS_ARE_UNIQUE).await? {
        return Ok(Strays::default());
    }
    strays(connection, REPEATED, since, limit).await
}

#[derive(QueryableByName)]
struct HeldRow {
    #[diesel(embed)]
    counts: CountsRow,
    #[diesel(sql_type = Nullable<BigInt>)]
    received: Option<i64>,
    #[diesel(sql_type = Array<Text>)]
    contradicting: Vec<String>,
    #[diesel(sql_type = Nullable<Text>)]
    unreadable: Option<String>,
}

impl From<HeldRow> for EventRows {
    fn from(row: HeldRow) -> Self {
        Self {
            received: row.received.and_then(DateTime::from_timestamp_micros),
            contradicting: row.contradicting,
            unreadable: row.unreadable.map(|why| match why.as_str() {
                "time" => Unreadable::LateTime,
                "integer" => Unreadable::LongInteger,
                _ => Unreadable::LongText,
            }),
            ..row.counts.into()
        }
    }
}

pub(super) async fn look_up(
    connection: &mut Connection,
    event_ids: &[String],
) -> Result<Vec<EventRows>, Failure> {
    let count = async |connection: &mut Connection, event_id: &String| {
        count_damaged(connection, event_id).await
    };
    in_parts(connection, event_ids, look_up_part, count).await
}

/// Asks about all of them, in their order. A part that fails is made smaller until the culprit stands
/// alone, unless a question about nothing fails too.
pub(super) async fn in_parts<T, R>(
    connection: &mut Connection,
    all: &[T],
    ask: impl AsyncFn(&mut Connection, &[T]) -> Result<Vec<R>, Failure>,
    of_culprit: impl AsyncFn(&mut Connection, &T) -> Result<R, Failure>,
) -> Result<Vec<R>, Failure> {
    let mut answers = Vec::with_capacity(all.len());
    let mut parts = vec![all];
    while let Some(part) = parts.pop() {
        match ask(connection, part).await {
            Ok(found) => answers.extend(found),
            Err(failure) if is_of_a_row(&failure, connection).await => {
                if ask(connection, &[]).await.is_err() {
                    return Err(failure);
                }
                match part {
                    [] => return Err(failure),
                    [culprit] => answers.push(of_culprit(connection, culprit).await?),
                    _ => {
                        let (first, second) = part.split_at(part.len() / 2);
                        parts.extend([second, first]);
                    }
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(answers)
}

/// Whether a row may be the cause; ends the transaction.
async fn is_of_a_row(failure: &Failure, connection: &mut Connection) -> bool {
    failure.is_before_commit() && !connection.is_lost().await
}

async fn look_up_part(
    connection: &mut Connection,
    event_ids: &[String],
) -> Result<Vec<EventRows>, Failure> {
    connection.begin_page().await?;
    let look_up = if is_partitioned(connection).await? {
        of_one_event(LOOK_UP_MOMENTS, 1, true)?
    } else {
        LOOK_UP.into()
    };
    let query = sql_query(look_up).bind::<Array<Text>, _>(event_ids);
    let rows: Vec<HeldRow> = query.load(&mut connection.pg).await?;
    connection.commit().await?;
    Ok(rows.into_iter().map(EventRows::from).collect())
}

async fn count_damaged(connection: &mut Connection, event_id: &str) -> Result<EventRows, Failure> {
    connection.begin_page().await?;
    let query = sql_query(COUNT).bind::<Text, _>(event_id);
    let row: CountsRow = query.get_result(&mut connection.pg).await?;
    connection.commit().await?;
    Ok(EventRows {
        unreadable: Some(Unreadable::Damaged),
        ..row.into()
    })
}

/// Reads a page, or as much of it as can be read.
pub(super) async fn walk(
    connection: &mut Connection,
    since: Option<DateTime<Utc>>,
    from: Option<&Cursor>,
) -> Result<Page, Failure> {
    let start = Cursor {
        occurred: bound(since),
        event_id: FIRST_ID.to_owned(),
        page_size: EVENTS_ON_A_PAGE,
    };
    let (cursor, is_behind) = (from.unwrap_or(&start), from.is_some());
    let mut page_size = cursor.page_size;
    loop {
        let asked = Instant::now();
        match read_page(connection, WALK, cursor, is_behind, page_size).await {
            Ok(rows) => {
                let next = next_page_size(page_size, asked.elapsed());
                return Ok(page_of(rows, page_size, next));
            }
            Err(failure) if is_of_a_row(&failure, connection).await => {
                let empty = read_page(connection, WALK, cursor, is_behind, 0).await;
                if empty.is_err() {
                    return Err(failure);
                }
                if page_size == 1 {
                    let rows = read_page(connection, NAME, cursor, is_behind, 1).await?;
                    return Ok(page_of(rows, 1, 2));
                }
                page_size /= 2;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// How many events the next page is to have, after one that was to have so many and took so long.
fn next_page_size(page_size: i64, took: Duration) -> i64 {
    let next = if took > PAGE_TAKES {
        page_size / 2
    } else if took < PAGE_TAKES / 4 {
        page_size.saturating_mul(2)
    } else {
        page_size
    };
    next.clamp(1, EVENTS_ON_A_PAGE)
}

/// One row of a page's answer: an event that is suspicious, or the last of the page, or both.
#[derive(QueryableByName)]
struct PageRow {
    #[diesel(sql_type = Text)]
    event_id: String,
    #[diesel(sql_type = Text)]
    occurred: String,
    #[diesel(sql_type = Bool)]
    suspicious: bool,
    #[diesel(sql_type = BigInt)]
    number: i64,
}

/// Of the rows in the order of their numbers, of a page that was to have so many events.
fn page_of(rows: Vec<PageRow>, page_size: i64, next_page_size: i64) -> Page {
    let Some(last) = rows.last() else {
        return Page::default();
    };
    let num_events = last.number;
    let next = (num_events >= page_size).then(|| Cursor {
        occurred: last.occurred.clone(),
        event_id: last.event_id.clone(),
        page_size: next_page_size,
    });
    let suspects = rows.into_iter().filter(|row| row.suspicious);
    Page {
        num_events: as_count(num_events),
        suspects: suspects.map(|row| row.event_id).collect(),
        next,
    }
}

/// How long a page of the newest events may take. The first has one event, and all that `check` looks at has
/// half a minute: an event that takes longer is left to an audit, with those before it.
const NEWEST_PAGE_TAKES: Duration = Duration::from_secs(3);

/// Counts the newest events that cannot be read, as far back as there is time for.
pub(super) async fn newest(connection: &mut Connection) -> Result<Newest, Failure> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        num_events: i64,
        #[diesel(sql_type = BigInt)]
        num_unreadable: i64,
        #[diesel(sql_type = Nullable<Text>)]
        occurred: Option<String>,
        #[diesel(sql_type = Nullable<Text>)]
        event_id: Option<String>,
    }
    let began = Instant::now();
    let mut newest = Newest::default();
    let mut page_size = 1;
    let mut before = Some((LAST_MOMENT.to_owned(), LAST_ID.to_owned()));
    let limit = NEWEST_PAGE_TAKES.as_millis();
    let limit = format!("SET LOCAL statement_timeout = {limit}");
    connection.pg.batch_execute(&limit).await?;
    while let Some((occurred, event_id)) = before
        && newest.num_events < NEWEST
        && began.elapsed() < NEWEST_TAKE
    {
        let asked = Instant::now();
        let query = sql_query(NEWEST_BEFORE)
            .bind::<Text, _>(occurred)
            .bind::<Text, _>(event_id)
            .bind::<BigInt, _>(page_size);
        let row: Row = match query
            .get_result(&mut connection.pg)
            .await
            .map_err(|error| Failure::from(error).after(asked.elapsed(), NEWEST_PAGE_TAKES))
        {
            Ok(row) => row,
            Err(failure) if failure.is_cancelled() => {
                connection.roll_back().await?;
                connection.begin().await?;
                break;
            }
            Err(failure) => return Err(failure),
        };
        page_size = next_page_size(page_size, asked.elapsed());
        newest.num_events += as_count(row.num_events);
        newest.num_unreadable += as_count(row.num_unreadable);
        before = row.occurred.zip(row.event_id);
    }
    Ok(newest)
}

async fn read_page(
    connection: &mut Connection,
    query: &str,
    cursor: &Cursor,
    is_behind: bool,
    page_size: i64,
) -> Result<Vec<PageRow>, Failure> {
    connection.begin_page().await?;
    let num_conditions = if query == NAME { 0 } else { CONDITIONS_OF_WALK };
    let query = of_one_event(query, num_conditions, is_partitioned(connection).await?)?;
    let query = sql_query(query)
        .bind::<Text, _>(&cursor.occurred)
        .bind::<Text, _>(&cursor.event_id)
        .bind::<Bool, _>(is_behind)
        .bind::<BigInt, _>(page_size);
    let rows = query.load(&mut connection.pg).await?;
    connection.commit().await?;
    Ok(rows)
}

async fn strays(
    connection: &mut Connection,
    query: &str,
    since: Option<DateTime<Utc>>,
    limit: NonZeroUsize,
) -> Result<Strays, Failure> {
    let query = sql_query(query)
        .bind::<Text, _>(bound(since))
        .bind::<BigInt, _>(at_most(limit.get()));
    let rows: Vec<StrayRow> = query.load(&mut connection.pg).await?;
    Ok(Strays::of(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_have_the_words_that_partitions_change() {
        for (statement, num) in [(LOOK_UP_MOMENTS, 1), (WALK, CONDITIONS_OF_WALK), (NAME, 0)] {
            let changed = of_one_event(statement, num, true).unwrap();
            assert_eq!(changed == statement, num == 0, "{changed}");
            assert!(of_one_event(statement, num + 1, true).is_err());
        }
    }

    #[test]
    fn pages_shrink_while_they_take_long_and_never_to_nothing() {
        let (slow, quick) = (PAGE_TAKES * 3, PAGE_TAKES / 10);
        assert_eq!(next_page_size(EVENTS_ON_A_PAGE, quick), EVENTS_ON_A_PAGE);
        assert_eq!(next_page_size(EVENTS_ON_A_PAGE, slow), EVENTS_ON_A_PAGE / 2);
        assert_eq!(next_page_size(100, PAGE_TAKES / 2), 100);
        assert_eq!(next_page_size(100, quick), 200);
        assert_eq!(next_page_size(1, slow), 1);
    }
}
