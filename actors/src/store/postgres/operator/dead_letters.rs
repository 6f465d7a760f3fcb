//! Dead letters, read and removed.

use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{Binary, Bool, Integer, Text};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use crate::store::operator::answers::ids_by_attempts;
use crate::store::operator::{DeadLetter, LetterFilter, LetterVersion, OpenLetter};
use crate::store::postgres::connection::Connection;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::letters::without_nul;
use crate::store::postgres::schema::event_persister_dead_letters::{self as table, dsl};
use crate::store::{Stage, as_count, at_most};

#[derive(Queryable, Selectable)]
#[diesel(table_name = table)]
struct Row {
    id: i64,
    source: String,
    position: String,
    event_id: Option<Uuid>,
    stage: String,
    reason: String,
    sqlstate: Option<String>,
    attempts: i64,
    first_seen: DateTime<Utc>,
    last_seen: DateTime<Utc>,
}

impl Row {
    fn into_letter(self, num_bytes: u64) -> DeadLetter {
        let stage = match self.stage.as_str() {
            "store" => Stage::Store,
            _ => Stage::Parse,
        };
        DeadLetter {
            id: self.id,
            source: self.source,
            position: self.position,
            stage,
            reason: self.reason,
            sqlstate: self.sqlstate,
            event_id: self.event_id,
            attempts: self.attempts,
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            num_bytes,
        }
    }
}

diesel::define_sql_function! {
    fn octet_length(value: Binary) -> Integer;
}

diesel::define_sql_function! {
    fn substr(value: Binary, from: Integer, count: Integer) -> Binary;
}

diesel::define_sql_function! {
    fn strpos(text: Text, part: Text) -> Integer;
}

type Condition<'a> = Box<dyn BoxableExpression<table::table, Pg, SqlType = Bool> + 'a>;

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
        all = Box::new(all.and(table::id.eq_any(ids)));
    }
    if let Some(source) = source {
        all = Box::new(all.and(table::source.eq(without_nul(source))));
    }
    if let Some(stage) = stage {
        all = Box::new(all.and(table::stage.eq(stage.as_str())));
    }
    if let Some(reason) = reason {
        all = Box::new(all.and(strpos(table::reason, without_nul(reason)).gt(0)));
    }
    if let Some(code) = code {
        all = Box::new(all.and(table::sqlstate.is_not_distinct_from(without_nul(code))));
    }
    if let Some(since) = since {
        all = Box::new(all.and(table::last_seen.ge(since)));
    }
    if let Some(until) = until {
        all = Box::new(all.and(table::last_seen.lt(until)));
    }
    all
}

pub(super) async fn list(
    connection: &mut Connection,
    filter: &LetterFilter,
    before: Option<i64>,
    limit: NonZeroUsize,
) -> Result<Vec<DeadLetter>, Failure> {
    let rows: Vec<(Row, i32)> = dsl::event_persister_dead_letters
        .filter(matching(filter, before))
        .order(table::id.desc())
        .limit(at_most(limit.get()))
        .select((Row::as_select(), octet_length(table::raw)))
        .load(&mut connection.pg)
        .await?;
    let letter = |(row, num_bytes): (Row, i32)| row.into_letter(as_count(num_bytes.into()));
    Ok(rows.into_iter().map(letter).collect())
}

pub(super) async fn count(
    connection: &mut Connection,
    filter: &LetterFilter,
    before: Option<i64>,
) -> Result<u64, Failure> {
    let letters = dsl::event_persister_dead_letters.filter(matching(filter, before));
    let count = letters.count().get_result(&mut connection.pg);
    Ok(as_count(count.await?))
}

pub(super) async fn open(
    connection: &mut Connection,
    ids: &[i64],
) -> Result<Vec<OpenLetter>, Failure> {
    let rows: Vec<(Row, Vec<u8>)> = dsl::event_persister_dead_letters
        .filter(table::id.eq_any(ids))
        .order(table::id.desc())
        .select((Row::as_select(), table::raw))
        .load(&mut connection.pg)
        .await?;
    let letter = |(row, raw): (Row, Vec<u8>)| (row.into_letter(raw.len() as u64), raw);
    Ok(rows.into_iter().map(letter).collect())
}

pub(super) async fn peek(
    connection: &mut Connection,
    id: i64,
    num_bytes: usize,
) -> Result<Option<OpenLetter>, Failure> {
    let num_bytes = i32::try_from(num_bytes).unwrap_or(i32::MAX);
    let row: Option<(Row, i32, Vec<u8>)> = dsl::event_persister_dead_letters
        .find(id)
        .select((
            Row::as_select(),
            octet_length(table::raw),
            substr(table::raw, 1, num_bytes),
        ))
        .first(&mut connection.pg)
        .await
        .optional()?;
    Ok(row.map(|(row, length, raw)| (row.into_letter(as_count(length.into())), raw)))
}

pub(super) async fn remove(
    connection: &mut Connection,
    letters: &[LetterVersion],
) -> Result<u64, Failure> {
    let mut num_removed = 0;
    for (attempts, ids) in ids_by_attempts(letters) {
        let unchanged = table::attempts.eq(attempts).and(table::id.eq_any(ids));
        let remove = diesel::delete(dsl::event_persister_dead_letters.filter(unchanged));
        num_removed += remove.execute(&mut connection.pg).await?;
    }
    Ok(num_removed as u64)
}
