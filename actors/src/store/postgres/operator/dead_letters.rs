//! The port of dead letters on this database.

use std::num::NonZeroUsize;

use futures_util::future::LocalBoxFuture;

use super::connection::Connection;
use super::{PostgresStore, letters};
use crate::store::{DeadLetter, DeadLetters, LetterFilter, LetterVersion, OpenLetter, StoreError};

const READ_LETTERS: &str = "read dead letters of";
const REMOVE_LETTERS: &str = "remove dead letters from";

impl DeadLetters for PostgresStore {
    fn list<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
        limit: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<Vec<DeadLetter>, StoreError>> {
        Box::pin(async move {
            let list = async |connection: &mut Connection| {
                letters::list(connection, filter, before, limit).await
            };
            self.with_connection(READ_LETTERS, self.limit(), list).await
        })
    }

    fn count<'a>(
        &'a self,
        filter: &'a LetterFilter,
        before: Option<i64>,
    ) -> LocalBoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move {
            let count = async |connection: &mut Connection| {
                letters::count(connection, filter, before).await
            };
            self.with_connection(READ_LETTERS, self.limit(), count)
                .await
        })
    }

    fn open<'a>(
        &'a self,
        ids: &'a [i64],
    ) -> LocalBoxFuture<'a, Result<Vec<OpenLetter>, StoreError>> {
        Box::pin(async move {
            let open = async |connection: &mut Connection| letters::open(connection, ids).await;
            self.with_connection(READ_LETTERS, self.limit(), open).await
        })
    }

    fn remove_unchanged<'a>(
        &'a self,
        letters: &'a [LetterVersion],
    ) -> LocalBoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move {
            let remove = async |connection: &mut Connection| {
                letters::remove_unchanged(connection, letters).await
            };
            self.with_connection(REMOVE_LETTERS, self.limit(), remove)
                .await
        })
    }
}
