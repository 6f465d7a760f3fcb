//! Reads the tables for a comparison. In WAL mode this holds no writer up.

use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Text};
use tokio::time::Instant;

use super::content::Content;
use crate::store::at_most;
use crate::store::operator::answers::{
    CountsRow, EVENTS_ON_A_PAGE, LetterRow, NEWEST, NEWEST_TAKE, Newest, PAGE_TAKES, StrayRow,
};
use crate::store::operator::{Cursor, EventRows, LetterCounts, Page, Strays};
use crate::store::sqlite::connection::{Connection, Failure};
use crate::store::sqlite::schema::{self, event_persister_dead_letters as letters};
use crate::store::sqlite::text::timestamp_bound;

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

/// Follows the index over `(occurred, id)`.
const NEXT: &str = "SELECT id, occurred FROM events WHERE (occurred, id) > (?, ?) \
    ORDER BY occurred, id LIMIT ?";

const NEWEST_FIRST: &str =
    "SELECT id, occurred FROM events ORDER BY occurred DESC, id DESC LIMIT ?";

const ORPHANS: &str = "SELECT event_id, count(*) OVER () AS total FROM event_resources \
    WHERE occurred >= ? AND NOT EXISTS (SELECT 1 FROM events WHERE events.id = event_id) \
    GROUP BY event_id ORDER BY event_id LIMIT ?";

const IDS_ARE_UNIQUE: &str = "SELECT EXISTS (SELECT 1 FROM pragma_index_list('events') AS list \
    WHERE list.\"unique\" AND NOT list.partial \
    AND (SELECT group_concat(name) FROM pragma_index_info(list.name)) = 'id')";

const REPEATED: &str = "SELECT id AS event_id, count(*) OVER () AS total FROM events \
    WHERE occurred >= ? GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT ?";

const CURABLE: &str = "SELECT letters.id, letters.event_id, count(*) OVER () AS total \
    FROM event_persister_dead_letters AS letters \
    WHERE EXISTS (SELECT 1 FROM events WHERE events.id = letters.event_id) \
    ORDER BY letters.id LIMIT ?";

fn bound(since: Option<DateTime<Utc>>) -> String {
    since.map(timestamp_bound).unwrap_or_default()
}

pub(super) fn letters_at(
    connection: &mut Connection,
    source: &str,
    positions: &[String],
) -> Result<Vec<String>, Failure> {
    if !schema::has_letters(connection)? {
        return Ok(Vec::new());
    }
    let at_positions = letters::table
        .filter(letters::source.eq(source))
        .filter(letters::position.eq_any(positions))
        .select(letters::position)
        .distinct();
    Ok(connection.run(|connection| at_positions.load(connection))?)
}

pub(super) fn count_curable(
    connection: &mut Connection,
    limit: usize,
) -> Result<LetterCounts, Failure> {
    if !schema::has_letters(connection)? {
        return Ok(LetterCounts::default());
    }
    let total = letters::table.count();
    let total: i64 = connection.run(|connection| total.get_result(connection))?;
    // One at least, which tells the number of all.
    let query = sql_query(CURABLE).bind::<BigInt, _>(at_most(limit.max(1)));
    let rows: Vec<LetterRow> = connection.run(|connection| query.load(connection))?;
    Ok(LetterCounts::of(total, rows, limit))
}

pub(super) fn orphans(
    connection: &mut Connection,
    since: Option<DateTime<Utc>>,
    limit: NonZeroUsize,
) -> Result<Strays, Failure> {
    strays(connection, ORPHANS, since, limit)
}

pub(super) fn repeated(
    connection: &mut Connection,
    since: Option<DateTime<Utc>>,
    limit: NonZeroUsize,
) -> Result<Strays, Failure> {
    let is_unique = sql::<Bool>(IDS_ARE_UNIQUE);
    if connection.run(|connection| is_unique.get_result(connection))? {
        return Ok(Strays::default());
    }
    strays(connection, REPEATED, since, limit)
}

#[derive(QueryableByName)]
struct Listed {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    occurred: String,
}

/// Several questions about one moment. A failure ends it with its connection.
fn in_snapshot<T>(
    connection: &mut Connection,
    ask: impl FnOnce(&mut Connection) -> Result<T, Failure>,
) -> Result<T, Failure> {
    connection.execute_batch("BEGIN")?;
    let answer = ask(connection)?;
    connection.execute_batch("COMMIT")?;
    Ok(answer)
}

pub(super) fn look_up(
    connection: &mut Connection,
    event_ids: &[String],
) -> Result<Vec<EventRows>, Failure> {
    let event_ids = serde_json::Value::from(event_ids).to_string();
    in_snapshot(connection, |connection| {
        let query = sql_query(LOOK_UP).bind::<Text, _>(event_ids);
        let rows: Vec<CountsRow> = connection.run(|connection| query.load(connection))?;
        let mut held: Vec<EventRows> = rows.into_iter().map(EventRows::from).collect();
        for rows in &mut held {
            if let Some(content) = Content::read(connection, &rows.event_id)? {
                rows.received = content.received;
                let contradicting = content.contradicting.into_iter();
                rows.contradicting = contradicting.map(str::to_owned).collect();
                rows.unreadable = content.unreadable;
            }
        }
        Ok(held)
    })
}

/// Counts the newest events that cannot be read, as far back as there is time for.
pub(super) fn newest(connection: &mut Connection) -> Result<Newest, Failure> {
    let began = Instant::now();
    let at_most = i64::try_from(NEWEST).unwrap_or(i64::MAX);
    let query = sql_query(NEWEST_FIRST).bind::<BigInt, _>(at_most);
    let listed: Vec<Listed> = connection.run(|connection| query.load(connection))?;
    let mut newest = Newest::default();
    for event in listed {
        if began.elapsed() > NEWEST_TAKE {
            break;
        }
        let unreadable = Content::unreadable(connection, &event.id)?;
        newest.num_events += 1;
        newest.num_unreadable += u64::from(unreadable.is_some());
    }
    Ok(newest)
}

/// Reads a page, or as much of it as there is time for.
pub(super) fn walk(
    connection: &mut Connection,
    since: Option<DateTime<Utc>>,
    from: Option<Cursor>,
) -> Result<Page, Failure> {
    // The empty text is before every other, and no id is empty.
    let cursor = from.unwrap_or_else(|| Cursor {
        occurred: bound(since),
        event_id: String::new(),
        page_size: EVENTS_ON_A_PAGE,
    });
    in_snapshot(connection, |connection| read_page(connection, &cursor))
}

fn read_page(connection: &mut Connection, cursor: &Cursor) -> Result<Page, Failure> {
    let began = Instant::now();
    let query = sql_query(NEXT)
        .bind::<Text, _>(&cursor.occurred)
        .bind::<Text, _>(&cursor.event_id)
        .bind::<BigInt, _>(cursor.page_size);
    let listed: Vec<Listed> = connection.run(|connection| query.load(connection))?;
    let is_full = i64::try_from(listed.len()).is_ok_and(|length| length >= cursor.page_size);
    let mut page = Page::default();
    let mut listed = listed.into_iter();
    let mut last = None;
    for event in listed.by_ref() {
        let content = Content::read(connection, &event.id)?;
        if content.is_none_or(|content| !content.is_sound()) {
            page.suspects.push(event.id.clone());
        }
        page.num_events += 1;
        last = Some(event);
        if began.elapsed() > PAGE_TAKES {
            break;
        }
    }
    let has_more = is_full || listed.len() > 0;
    page.next = last.filter(|_| has_more).map(|event| Cursor {
        occurred: event.occurred,
        event_id: event.id,
        page_size: cursor.page_size,
    });
    Ok(page)
}

fn strays(
    connection: &mut Connection,
    query: &str,
    since: Option<DateTime<Utc>>,
    limit: NonZeroUsize,
) -> Result<Strays, Failure> {
    let query = sql_query(query)
        .bind::<Text, _>(bound(since))
        .bind::<BigInt, _>(at_most(limit.get()));
    let rows: Vec<StrayRow> = connection.run(|connection| query.load(connection))?;
    Ok(Strays::of(rows))
}
