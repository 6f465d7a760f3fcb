//! The port of dead letters on this database.

use std::num::NonZeroUsize;

use futures_util::future::LocalBoxFuture;

use super::{SqliteStore, letters};
use crate::store::{DeadLetter, DeadLetters, LetterFilter, LetterVersion, OpenLetter, StoreError};

const READ_LETTERS: &str = "read dead letters of";
const REMOVE_LETTERS: &str = "remove dead letters from";

impl DeadLetters for SqliteStore {
    fn list<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
        limit: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<Vec<DeadLetter>, StoreError>> {
        let filter = filter.clone();
        Box::pin(
            self.with_letters(READ_LETTERS, Vec::new(), move |connection| {
                letters::list(connection, &filter, before, limit)
            }),
        )
    }

    fn count<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
    ) -> LocalBoxFuture<'a, Result<u64, StoreError>> {
        let filter = filter.clone();
        Box::pin(self.with_letters(READ_LETTERS, 0, move |connection| {
            letters::count(connection, &filter, before)
        }))
    }

    fn open<'a>(
        &'a self,
        ids: &'a [i64],
    ) -> LocalBoxFuture<'a, Result<Vec<OpenLetter>, StoreError>> {
        let ids = ids.to_vec();
        Box::pin(
            self.with_letters(READ_LETTERS, Vec::new(), move |connection| {
                letters::open(connection, &ids)
            }),
        )
    }

    fn remove_unchanged<'a>(
        &'a self,
        letters: &'a [LetterVersion],
    ) -> LocalBoxFuture<'a, Result<u64, StoreError>> {
        let letters = letters.to_vec();
        Box::pin(self.with_letters(REMOVE_LETTERS, 0, move |connection| {
            letters::remove_unchanged(connection, &letters)
        }))
    }
}
