//! Dead letters, written with their batch.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::QueryResult;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection as _};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::connection::Connection;
use super::failure::Failure;
use crate::delivery::Entry;
use crate::store::Stage;

/// The longest source or position that is kept whole, in bytes: an index entry holds 2,704 for both.
const MAX_KEY_BYTES: usize = 1_000;

/// More than this is not written within any time that somebody may have set for statements.
const MANY_BYTES: usize = 1 << 20;

/// What was refused because it takes too long must still become a letter.
const TAKE_YOUR_TIME: &str = "SELECT set_config('statement_timeout', (10 * setting::bigint)::text, true) \
     FROM pg_catalog.pg_settings WHERE name = 'statement_timeout' AND setting::bigint < 100000000";

/// A message that is to be kept, and why.
pub(super) struct NewLetter<'a> {
    entry: &'a Entry,
    source: Cow<'a, str>,
    position: Cow<'a, str>,
    stage: Stage,
    reason: Cow<'a, str>,
    sqlstate: Option<&'a str>,
    raw_hash: [u8; 32],
    attempts: i64,
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
            source: key_text(&entry.source),
            position: key_text(entry.position.as_str()),
            stage,
            reason: without_nul(reason),
            sqlstate,
            raw_hash: Sha256::digest(entry.raw()).into(),
            attempts: 1,
        }
    }

    fn key(&self) -> (&str, &str, &[u8; 32]) {
        (&self.source, &self.position, &self.raw_hash)
    }
}

/// PostgreSQL's texts hold any character but this.
pub(super) fn without_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// The text, or its beginning and a hash of the whole.
///
/// What comes of it stays as it is when it comes here again, as it does when a letter is replayed: the
/// key must lead to the same letter.
fn key_text(text: &str) -> Cow<'_, str> {
    let text = without_nul(text);
    if text.len() <= MAX_KEY_BYTES {
        return text;
    }
    let hash = Sha256::digest(text.as_bytes());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut end = MAX_KEY_BYTES - hash.len() - 1;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let beginning = text.get(..end).unwrap_or_default();
    Cow::Owned(format!("{beginning}#{hash}"))
}

/// Writes the letters inside the open transaction, in the order of their keys.
pub(super) async fn insert(
    connection: &mut Connection,
    mut letters: Vec<NewLetter<'_>>,
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    if letters.is_empty() {
        return Ok(());
    }
    let num_bytes: usize = letters.iter().map(|letter| letter.entry.raw().len()).sum();
    if num_bytes > MANY_BYTES {
        connection.pg.batch_execute(TAKE_YOUR_TIME).await?;
    }
    letters.sort_by(|a, b| a.key().cmp(&b.key()));
    // One statement must not meet the same row twice.
    letters.dedup_by(|again, first| {
        let same = again.key() == first.key();
        if same {
            first.attempts += again.attempts;
        }
        same
    });
    let insert = InsertLetters {
        sources: letters.iter().map(|letter| &*letter.source).collect(),
        positions: letters.iter().map(|letter| &*letter.position).collect(),
        raws: letters.iter().map(|letter| letter.entry.raw()).collect(),
        raw_hashes: letters.iter().map(|letter| &letter.raw_hash[..]).collect(),
        event_ids: letters
            .iter()
            .map(|letter| letter.entry.event_id())
            .collect(),
        stages: letters.iter().map(|letter| letter.stage.as_str()).collect(),
        reasons: letters.iter().map(|letter| &*letter.reason).collect(),
        sqlstates: letters.iter().map(|letter| letter.sqlstate).collect(),
        attempts: letters.iter().map(|letter| letter.attempts).collect(),
        now,
    };
    insert.execute(&mut connection.pg).await?;
    Ok(())
}

/// Inserts letters, or notes that they came again and what is wrong with them now.
struct InsertLetters<'a> {
    sources: Vec<&'a str>,
    positions: Vec<&'a str>,
    raws: Vec<&'a [u8]>,
    raw_hashes: Vec<&'a [u8]>,
    event_ids: Vec<Option<Uuid>>,
    stages: Vec<&'a str>,
    reasons: Vec<&'a str>,
    sqlstates: Vec<Option<&'a str>>,
    attempts: Vec<i64>,
    now: DateTime<Utc>,
}

impl QueryId for InsertLetters<'_> {
    type QueryId = InsertLetters<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl QueryFragment<Pg> for InsertLetters<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            "INSERT INTO event_persister_dead_letters AS kept (source, position, raw, raw_hash, \
             event_id, stage, reason, sqlstate, attempts, first_seen, last_seen) SELECT unnest(",
        );
        out.push_bind_param::<Array<Text>, _>(&self.sources)?;
        out.push_sql("), unnest(");
        out.push_bind_param::<Array<Text>, _>(&self.positions)?;
        out.push_sql("), unnest(");
        out.push_bind_param::<Array<Binary>, _>(&self.raws)?;
        out.push_sql("), unnest(");
        out.push_bind_param::<Array<Binary>, _>(&self.raw_hashes)?;
        out.push_sql("), unnest(");
        out.push_bind_param::<Array<Nullable<SqlUuid>>, _>(&self.event_ids)?;
        out.push_sql("), unnest(");
        out.push_bind_param::<Array<Text>, _>(&self.stages)?;
        out.push_sql("), unnest(");
        out.push_bind_param::<Array<Text>, _>(&self.reasons)?;
        out.push_sql("), unnest(");
        out.push_bind_param::<Array<Nullable<Text>>, _>(&self.sqlstates)?;
        out.push_sql("), unnest(");
        out.push_bind_param::<Array<BigInt>, _>(&self.attempts)?;
        out.push_sql("), ");
        out.push_bind_param::<Timestamptz, _>(&self.now)?;
        out.push_sql(", ");
        out.push_bind_param::<Timestamptz, _>(&self.now)?;
        out.push_sql(
            " ON CONFLICT (source, position, raw_hash) DO UPDATE SET \
             attempts = kept.attempts + excluded.attempts, last_seen = excluded.last_seen, \
             event_id = excluded.event_id, stage = excluded.stage, reason = excluded.reason, \
             sqlstate = excluded.sqlstate",
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_is_its_own_key(text in "(a|\u{0}|é|#){0,1200}") {
            let key = key_text(&text).into_owned();
            prop_assert!(key.len() <= MAX_KEY_BYTES, "{} bytes", key.len());
            prop_assert_eq!(&key_text(&key), &key);
        }
    }

    #[test]
    fn a_long_key_stays_its_own_and_fits_into_an_index() {
        let long = "é".repeat(3_000);
        let other = format!("{long}!");
        let (cut, other) = (key_text(&long), key_text(&other));
        assert!(cut.len() <= MAX_KEY_BYTES && cut.starts_with("ééé"));
        assert_ne!(cut, other);
        assert_eq!(key_text("events:1-1"), "events:1-1");
        assert_eq!(key_text("a\0b"), "a\u{fffd}b");
    }
}
