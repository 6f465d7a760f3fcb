//! Dead letters, written with their batch.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Binary, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection as _};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::connection::Connection;
use super::failure::Failure;
use crate::store::new_letter::NewLetter;

/// The longest source or position that is kept whole, in bytes: an index entry holds 2,704 for both.
const MAX_KEY_BYTES: usize = 1_000;

/// More than this is not written within any time that somebody may have set for statements.
const MANY_BYTES: usize = 1 << 20;

/// A message that was refused because it takes too long must still become a letter.
const TAKE_YOUR_TIME: &str = "SELECT set_config('statement_timeout', (10 * setting::bigint)::text, true) \
     FROM pg_catalog.pg_settings WHERE name = 'statement_timeout' AND setting::bigint < 100000000";

struct Row<'a> {
    letter: NewLetter<'a>,
    source: Cow<'a, str>,
    position: Cow<'a, str>,
    reason: Cow<'a, str>,
    attempts: i64,
}

impl<'a> Row<'a> {
    fn new(letter: NewLetter<'a>) -> Self {
        let NewLetter { entry, reason, .. } = letter;
        Self {
            source: key_text(&entry.source),
            position: key_text(entry.position.as_str()),
            reason: without_nul(reason),
            attempts: 1,
            letter,
        }
    }

    fn key(&self) -> (&str, &str, &[u8; 32]) {
        (&self.source, &self.position, &self.letter.raw_hash)
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
/// The result is its own result, since a letter that is replayed comes here again: the
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
    letters: impl Iterator<Item = NewLetter<'_>>,
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    let mut rows: Vec<_> = letters.map(Row::new).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let raw = |row: &Row<'_>| row.letter.entry.raw().len();
    if rows.iter().map(raw).sum::<usize>() > MANY_BYTES {
        connection.pg.batch_execute(TAKE_YOUR_TIME).await?;
    }
    rows.sort_by(|a, b| a.key().cmp(&b.key()));
    // One statement must not meet the same row twice.
    rows.dedup_by(|again, first| {
        let same = again.key() == first.key();
        if same {
            first.attempts += again.attempts;
        }
        same
    });
    let letters = || rows.iter().map(|row| &row.letter);
    let sources: Vec<&str> = rows.iter().map(|row| &*row.source).collect();
    let positions: Vec<&str> = rows.iter().map(|row| &*row.position).collect();
    let raws: Vec<&[u8]> = letters().map(|letter| letter.entry.raw()).collect();
    let raw_hashes: Vec<&[u8]> = letters().map(|letter| &letter.raw_hash[..]).collect();
    let event_ids: Vec<Option<Uuid>> = letters().map(|letter| letter.entry.event_id()).collect();
    let stages: Vec<&str> = letters().map(|letter| letter.stage.as_str()).collect();
    let reasons: Vec<&str> = rows.iter().map(|row| &*row.reason).collect();
    let codes: Vec<Option<&str>> = letters().map(|letter| letter.code).collect();
    let attempts: Vec<i64> = rows.iter().map(|row| row.attempts).collect();
    sql_query(INSERT)
        .bind::<Array<Text>, _>(sources)
        .bind::<Array<Text>, _>(positions)
        .bind::<Array<Binary>, _>(raws)
        .bind::<Array<Binary>, _>(raw_hashes)
        .bind::<Array<Nullable<SqlUuid>>, _>(event_ids)
        .bind::<Array<Text>, _>(stages)
        .bind::<Array<Text>, _>(reasons)
        .bind::<Array<Nullable<Text>>, _>(codes)
        .bind::<Array<BigInt>, _>(attempts)
        .bind::<Timestamptz, _>(now)
        .execute(&mut connection.pg)
        .await?;
    Ok(())
}

/// Inserts letters, or notes that they came again and what is wrong with them now.
const INSERT: &str = "INSERT INTO event_persister_dead_letters AS kept (source, position, raw, raw_hash, \
    event_id, stage, reason, sqlstate, attempts, first_seen, last_seen) \
    SELECT unnest($1), unnest($2), unnest($3), unnest($4), unnest($5), unnest($6), unnest($7), unnest($8), \
    unnest($9), $10, $10 \
    ON CONFLICT (source, position, raw_hash) DO UPDATE SET \
    attempts = kept.attempts + excluded.attempts, last_seen = excluded.last_seen, \
    event_id = excluded.event_id, stage = excluded.stage, reason = excluded.reason, \
    sqlstate = excluded.sqlstate";

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
