//! Dead letters: written with their batch, listed and shown for an operator.

use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Binary, Nullable, Text};
use diesel::sqlite::Sqlite;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::connection::{Connection, Failure};
use super::schema::event_persister_dead_letters::{self as table, dsl};
use super::text::read_timestamp;
use crate::delivery::{Content, Entry};
use crate::store::{DeadLetter, Stage};

/// A message that is to be kept, and why.
pub(super) struct NewLetter<'a> {
    entry: &'a Entry,
    stage: Stage,
    reason: &'a str,
    sqlstate: Option<&'a str>,
    raw_hash: [u8; 32],
}

impl<'a> NewLetter<'a> {
    pub(super) fn new(
        entry: &'a Entry,
        stage: Stage,
        reason: &'a str,
        sqlstate: Option<&'a str>,
    ) -> Self {
        Self {
            entry,
            stage,
            reason,
            sqlstate,
            raw_hash: Sha256::digest(entry.raw()).into(),
        }
    }

    fn key(&self) -> (&str, &str, &[u8; 32]) {
        (
            &self.entry.source,
            self.entry.position.as_str(),
            &self.raw_hash,
        )
    }

    fn event_id(&self) -> Option<Uuid> {
        match &self.entry.content {
            Content::Event(event) => Some(event.id),
            Content::Rejected(rejection) => rejection.event_id,
        }
    }
}

/// Writes the letters inside the open transaction, in the order of their keys.
pub(super) fn insert(
    connection: &mut Connection,
    mut letters: Vec<NewLetter<'_>>,
    now: &str,
) -> Result<(), Failure> {
    letters.sort_by(|a, b| a.key().cmp(&b.key()));
    for letter in &letters {
        let mut buffer = Uuid::encode_buffer();
        let event_id = letter
            .event_id()
            .map(|id| &*id.hyphenated().encode_lower(&mut buffer));
        let insert = InsertLetter {
            letter,
            event_id,
            now,
        };
        connection.run(|connection| insert.execute(connection))?;
    }
    Ok(())
}

/// Inserts one letter, or notes that it came again.
struct InsertLetter<'a> {
    letter: &'a NewLetter<'a>,
    event_id: Option<&'a str>,
    now: &'a str,
}

impl QueryId for InsertLetter<'_> {
    type QueryId = InsertLetter<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl RunQueryDsl<SqliteConnection> for InsertLetter<'_> {}

impl QueryFragment<Sqlite> for InsertLetter<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let letter = self.letter;
        out.push_sql(
            "INSERT INTO event_persister_dead_letters (source, position, raw, raw_hash, event_id, \
             stage, reason, sqlstate, attempts, first_seen, last_seen) VALUES (",
        );
        out.push_bind_param::<Text, str>(&letter.entry.source)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, str>(letter.entry.position.as_str())?;
        out.push_sql(", ");
        out.push_bind_param::<Binary, [u8]>(letter.entry.raw())?;
        out.push_sql(", ");
        out.push_bind_param::<Binary, [u8]>(&letter.raw_hash)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Text>, Option<&str>>(&self.event_id)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, str>(letter.stage.as_str())?;
        out.push_sql(", ");
        out.push_bind_param::<Text, str>(letter.reason)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Text>, Option<&str>>(&letter.sqlstate)?;
        out.push_sql(", 1, ");
        out.push_bind_param::<Text, str>(self.now)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, str>(self.now)?;
        out.push_sql(
            ") ON CONFLICT (source, position, raw_hash) \
             DO UPDATE SET attempts = attempts + 1, last_seen = excluded.last_seen",
        );
        Ok(())
    }
}

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
    fn into_letter(self, num_bytes: i64, connection: &Connection) -> Result<DeadLetter, Failure> {
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
            num_bytes: u64::try_from(num_bytes).unwrap_or_default(),
        })
    }
}

diesel::define_sql_function! {
    /// The length of a blob in bytes.
    fn length(value: Binary) -> BigInt;
}

/// The newest letters, largest id first.
pub(super) fn list(
    connection: &mut Connection,
    before: Option<i64>,
    limit: NonZeroUsize,
) -> Result<Vec<DeadLetter>, Failure> {
    let before = before.unwrap_or(i64::MAX);
    let limit = i64::try_from(limit.get()).unwrap_or(i64::MAX);
    let rows: Vec<(Row, i64)> = connection.run(|connection| {
        dsl::event_persister_dead_letters
            .filter(table::id.lt(before))
            .order(table::id.desc())
            .limit(limit)
            .select((Row::as_select(), length(table::raw)))
            .load(connection)
    })?;
    rows.into_iter()
        .map(|(row, num_bytes)| row.into_letter(num_bytes, connection))
        .collect()
}

/// One letter with its bytes.
pub(super) fn show(
    connection: &mut Connection,
    id: i64,
) -> Result<Option<(DeadLetter, Vec<u8>)>, Failure> {
    let row: Option<(Row, Vec<u8>)> = connection.run(|connection| {
        dsl::event_persister_dead_letters
            .find(id)
            .select((Row::as_select(), table::raw))
            .first(connection)
            .optional()
    })?;
    row.map(|(row, raw)| {
        let num_bytes = i64::try_from(raw.len()).unwrap_or(i64::MAX);
        Ok((row.into_letter(num_bytes, connection)?, raw))
    })
    .transpose()
}
