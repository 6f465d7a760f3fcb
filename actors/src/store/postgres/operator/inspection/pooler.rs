//! Whether a pooler stands between, which gives every transaction another server connection, and
//! whether prepared statements survive that.
//!
//! Nothing says so by itself. But who holds a transaction open keeps its server connection, so the
//! next transaction of somebody else, behind a pooler, meets another one.

use std::time::Duration;

use diesel::dsl::sql;
use diesel::sql_types::Integer;
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};
use tokio::time::timeout;

use super::{Connection, Failure, PostgresSettings};
use crate::finding::Finding;

/// A pool of one connection never gives a second; then nothing is found out.
const PATIENCE: Duration = Duration::from_secs(2);

diesel::define_sql_function! {
    fn pg_backend_pid() -> Integer;
}

/// Somebody else may get the server connection next and prepare something under the same name.
const FORGET: &str = "DO $$ DECLARE prepared text; BEGIN \
    FOR prepared IN SELECT name FROM pg_catalog.pg_prepared_statements \
    WHERE statement = 'SELECT pg_backend_pid()' LOOP \
    EXECUTE format('DEALLOCATE %I', prepared); END LOOP; END $$";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Between {
    /// Every transaction has the same server connection.
    Nothing,
    /// Each may have another, and statements stay prepared.
    Pooler,
    /// Each may have another, and what was prepared is lost.
    ForgetfulPooler,
}

/// Looks, in three transactions on two connections; `None` where that was not possible.
pub(super) async fn look(
    connection: &mut Connection,
    settings: &PostgresSettings,
) -> Option<Between> {
    let looked = async {
        connection.begin().await?;
        let first = prepared(connection).await?;
        connection.commit().await?;
        let Ok(mut other) = Connection::open(settings).await else {
            return Ok(None);
        };
        other.begin().await?;
        connection.begin().await?;
        let unprepared = sql::<Integer>("SELECT pg_backend_pid()");
        let second: Result<i32, _> = unprepared.get_result(&mut connection.pg).await;
        let between = match second {
            Ok(second) if second == first => Between::Nothing,
            Ok(_) if prepared(connection).await.is_ok() => Between::Pooler,
            // It may have met a statement that somebody else prepared under the same name.
            Ok(_) | Err(_) => Between::ForgetfulPooler,
        };
        if between == Between::ForgetfulPooler {
            // It has the server connection of the first transaction, for the most part.
            other.pg.batch_execute(FORGET).await?;
        }
        connection.roll_back().await?;
        other.roll_back().await?;
        Ok::<_, Failure>(Some(between))
    };
    match timeout(PATIENCE, looked).await {
        Ok(Ok(between)) => between,
        Ok(Err(failure)) => {
            log::debug!("cannot look for a pooler error={failure:?}");
            None
        }
        Err(_) => None,
    }
}

/// By a statement that stays prepared, if any does.
async fn prepared(connection: &mut Connection) -> Result<i32, Failure> {
    let pid = diesel::select(pg_backend_pid());
    Ok(pid.get_result(&mut connection.pg).await?)
}

impl Between {
    pub(super) fn judge(self, settings: &PostgresSettings) -> Finding {
        const ID: &str = "postgres.pooler";
        match self {
            Self::Nothing => {
                Finding::ok(ID, "no pooler stands between, or one that keeps sessions")
            }
            Self::Pooler if settings.prepared_statements => {
                Finding::ok(ID, "a pooler stands between, and statements stay prepared")
            }
            Self::Pooler => Finding::ok(ID, "a pooler stands between, and nothing is prepared"),
            Self::ForgetfulPooler => Finding::error(
                ID,
                "a pooler in transaction mode stands between, which loses prepared statements",
                "set database.prepared_statements to off, or use PgBouncer 1.21 or newer with \
                 max_prepared_statements above 0",
            ),
        }
    }
}
