//! Dead letters, read and removed.

use std::num::NonZeroUsize;
use std::sync::Mutex;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Text};
use diesel::sqlite::Sqlite;

use crate::lock::lock;
use crate::store::operator::answers::ids_by_attempts;
use crate::store::operator::{DeadLetter, LetterFilter, LetterVersion, OpenLetter};
use crate::store::sqlite::connection::{Connection, Failure};
use crate::store::sqlite::schema::event_persister_dead_letters::{self as table, dsl};
use crate::store::sqlite::text::{read_timestamp, timestamp_bound};
use crate::store::{Stage, as_count, at_most};

#[derive(Queryable, Selectable)]
#[diesel(table_name = table)]
struct Row {
    id: i64,
    source: String,
    position: String,
    event_id: Option<String>,
    stage: String,
    reason: String,
    sqlstate: Option<String>,
    attempts: i64,
    first_seen: String,
    last_seen: String,
}

impl Row {
    fn into_letter(self, num_bytes: u64, connection: &Connection) -> Result<DeadLetter, Failure> {
        let stage = match self.stage.as_str() {
            "store" => Stage::Store,
            _ => Stage::Parse,
        };
        let id = self.id;
        let moment = |text: &str| -> Result<DateTime<Utc>, Failure> {
            read_timestamp(text).ok_or_else(|| {
                Failure::Unfit(format!(
                    "dead letter {id} of the SQLite database {} has a time that is none: the row was \
                     changed by someone else",
                    connection.path()
                ))
            })
        };
        Ok(DeadLetter {
            first_seen: moment(&self.first_seen)?,
            last_seen: moment(&self.last_seen)?,
            id: self.id,
            source: self.source,
            position: self.position,
            stage,
            reason: self.reason,
            sqlstate: self.sqlstate,
            event_id: self.event_id.and_then(|id| id.parse().ok()),
            attempts: self.attempts,
            num_bytes,
        })
    }
}

diesel::define_sql_function! {
    fn length(value: Binary) -> BigInt;
}

diesel::define_sql_function! {
    fn substr(value: Binary, from: BigInt, count: BigInt) -> Binary;
}

diesel::define_sql_function! {
    fn instr(text: Text, part: Text) -> BigInt;
}

type Condition<'a> = Box<dyn BoxableExpression<table::table, Sqlite, SqlType = Bool> + 'a>;

fn matching<'a>(filter: &'a LetterFilter, before: Option<i64>) -> Condition<'a> {
    let LetterFilter {
        ids,
        source,
        stage,
        reason,
        code,
        since,
        until,
    } = filter;
    let mut all: Condition<'a> = Box::new(table::id.lt(before.unwrap_or(i64::MAX)));
    if let Some(ids) = ids {
        all = Box::new(all.and(is_one_of(ids)));
    }
    if let Some(source) = source {
        all = Box::new(all.and(table::source.eq(source)));
    }
    if let Some(stage) = stage {
        all = Box::new(all.and(table::stage.eq(stage.as_str())));
    }
    if let Some(reason) = reason {
        all = Box::new(all.and(instr(table::reason, reason).gt(0)));
    }
    if let Some(code) = code {
        all = Box::new(all.and(table::sqlstate.is(code)));
    }
    if let Some(since) = since {
        all = Box::new(all.and(table::last_seen.ge(timestamp_bound(*since))));
    }
    if let Some(until) = until {
        all = Box::new(all.and(table::last_seen.lt(timestamp_bound(*until))));
    }
    all
}

/// One parameter, however many ids there are: a statement takes only so many.
fn is_one_of(ids: &[i64]) -> Condition<'static> {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    let list = format!("[{}]", ids.join(","));
    let is_in = sql::<Bool>("id IN (SELECT value FROM json_each(").bind::<Text, _>(list);
    Box::new(is_in.sql("))"))
}

pub(super) fn list(
    connection: &mut Connection,
    filter: &LetterFilter,
    before: Option<i64>,
    limit: NonZeroUsize,
) -> Result<Vec<DeadLetter>, Failure> {
    let rows: Vec<(Row, i64)> = connection.run(|connection| {
        dsl::event_persister_dead_letters
            .filter(matching(filter, before))
            .order(table::id.desc())
            .limit(at_most(limit.get()))
            .select((Row::as_select(), length(table::raw)))
            .load(connection)
    })?;
    rows.into_iter()
        .map(|(row, num_bytes)| row.into_letter(as_count(num_bytes), connection))
        .collect()
}

pub(super) fn count(
    connection: &mut Connection,
    filter: &LetterFilter,
    before: Option<i64>,
) -> Result<u64, Failure> {
    let count: i64 = connection.run(|connection| {
        dsl::event_persister_dead_letters
            .filter(matching(filter, before))
            .count()
            .get_result(connection)
    })?;
    Ok(as_count(count))
}

pub(super) fn open(connection: &mut Connection, ids: &[i64]) -> Result<Vec<OpenLetter>, Failure> {
    let rows: Vec<(Row, Vec<u8>)> = connection.run(|connection| {
        dsl::event_persister_dead_letters
            .filter(is_one_of(ids))
            .order(table::id.desc())
            .select((Row::as_select(), table::raw))
            .load(connection)
    })?;
    let letter = |(row, raw): (Row, Vec<u8>)| {
        let letter = row.into_letter(raw.len() as u64, connection)?;
        Ok((letter, raw))
    };
    rows.into_iter().map(letter).collect()
}

/// SQLite reads all of a value to cut a part of it off: memory holds one at a time.
static PEEKING: Mutex<()> = Mutex::new(());

pub(super) fn peek(
    connection: &mut Connection,
    id: i64,
    num_bytes: usize,
) -> Result<Option<OpenLetter>, Failure> {
    let _alone = lock(&PEEKING);
    let row: Option<(Row, i64, Vec<u8>)> = connection.run(|connection| {
        dsl::event_persister_dead_letters
            .find(id)
            .select((
                Row::as_select(),
                length(table::raw),
                substr(table::raw, 1, at_most(num_bytes)),
            ))
            .first(connection)
            .optional()
    })?;
    let letter = |(row, length, raw): (Row, i64, Vec<u8>)| {
        let letter = row.into_letter(as_count(length), connection)?;
        Ok((letter, raw))
    };
    row.map(letter).transpose()
}

pub(super) fn remove(
    connection: &mut Connection,
    letters: &[LetterVersion],
) -> Result<u64, Failure> {
    let mut num_removed = 0;
    connection.begin()?;
    for (attempts, ids) in ids_by_attempts(letters) {
        let unchanged = table::attempts.eq(attempts).and(is_one_of(&ids));
        num_removed += connection.run(|connection| {
            diesel::delete(dsl::event_persister_dead_letters.filter(unchanged)).execute(connection)
        })?;
    }
    connection.commit()?;
    Ok(num_removed as u64)
}
