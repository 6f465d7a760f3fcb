//! Dead letters, written with their batch.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel::sql_types::{Binary, Nullable, Text};
use diesel::sqlite::Sqlite;
use uuid::Uuid;

use super::connection::{Connection, Failure};
use crate::store::new_letter::NewLetter;

/// Writes the letters inside the open transaction, in the order of their keys.
pub(super) fn insert(
    connection: &mut Connection,
    mut letters: Vec<NewLetter<'_>>,
    now: &str,
) -> Result<(), Failure> {
    letters.sort_by(|a, b| key(a).cmp(&key(b)));
    for letter in &letters {
        let mut buffer = Uuid::encode_buffer();
        let event_id = letter
            .entry
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

fn key<'a>(letter: &'a NewLetter<'_>) -> (&'a str, &'a str, &'a [u8; 32]) {
    let entry = letter.entry;
    (&entry.source, entry.position.as_str(), &letter.raw_hash)
}

/// Inserts one letter, or notes that it came again and what is wrong with it now.
struct InsertLetter<'a> {
    letter: &'a NewLetter<'a>,
    event_id: Option<&'a str>,
    now: &'a str,
}

prepared_once!(InsertLetter);

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
        out.push_bind_param::<Nullable<Text>, Option<&str>>(&letter.code)?;
        out.push_sql(", 1, ");
        out.push_bind_param::<Text, str>(self.now)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, str>(self.now)?;
        out.push_sql(
            ") ON CONFLICT (source, position, raw_hash) \
             DO UPDATE SET attempts = attempts + 1, last_seen = excluded.last_seen, \
             event_id = excluded.event_id, stage = excluded.stage, reason = excluded.reason, \
             sqlstate = excluded.sqlstate",
        );
        Ok(())
    }
}
