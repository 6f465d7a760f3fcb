//! When the last retention pass was made, and what was there then.
//!
//! The table is made by the first one that is noted, and not by a migration: nothing but a pass needs it,
//! and a role that may make no tables trims all the same. Its passes are remembered by the process alone.

use chrono::{DateTime, Utc};
use diesel::data_types::PgTimestamp;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Bool, Nullable, Timestamptz};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection as _};

use super::PostgresStore;
use super::connection::Connection;
use super::failure::Failure;
use super::rows::Moment;
use super::schema::events;
use super::trim::{ahead, bounds};
use crate::store::{Bounds, Cutoffs, EventCounts, LastPass, StoreError, as_count};

#[derive(QueryableByName)]
struct Found {
    #[diesel(sql_type = Timestamptz)]
    now: PgTimestamp,
    #[diesel(sql_type = Bool)]
    is_there: bool,
    #[diesel(sql_type = Bool)]
    may_write: bool,
    #[diesel(sql_type = Bool)]
    may_make: bool,
}

const FIND: &str = "SELECT clock_timestamp() AS now, \
    coalesce(has_table_privilege(ours, 'SELECT'), false) AS is_there, \
    coalesce(has_table_privilege(ours, 'INSERT') AND has_table_privilege(ours, 'UPDATE'), false) \
        AS may_write, \
    ours IS NULL AND coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_make \
    FROM (SELECT to_regclass('event_persister_retention')::oid AS ours) AS found";

/// One row.
const MAKE: &str = "CREATE TABLE IF NOT EXISTS event_persister_retention (\
    one boolean PRIMARY KEY DEFAULT true CHECK (one), last_pass timestamp with time zone NOT NULL)";

const NOTE: &str = "INSERT INTO event_persister_retention (last_pass) VALUES ($1) \
    ON CONFLICT (one) DO UPDATE SET last_pass = excluded.last_pass";

const READ: &str = "SELECT max(last_pass) FROM event_persister_retention";

impl PostgresStore {
    pub(super) async fn read_last_pass(
        &self,
        before: DateTime<Utc>,
    ) -> Result<LastPass, StoreError> {
        let read = async |connection: &mut Connection| {
            let found: Found = sql_query(FIND).get_result(&mut connection.pg).await?;
            let now = PgTimestamp(found.now.0.min(Moment::new(self.clock.now()).0));
            let mut noted: Option<PgTimestamp> = None;
            if found.is_there {
                let read = sql::<Nullable<Timestamptz>>(READ);
                noted = read.get_result(&mut connection.pg).await?;
            }
            let at = match noted {
                Some(at) => Some(at),
                None => newest(connection, before, now).await?,
            };
            Ok(LastPass {
                now: Moment(now.0).to_utc().unwrap_or_else(|| self.clock.now()),
                at: at.and_then(|at| Moment(at.0).to_utc()),
                is_noted: noted.is_some(),
            })
        };
        self.in_transaction("read", read).await
    }

    pub(super) async fn write_last_pass(&self, at: DateTime<Utc>) -> Result<(), StoreError> {
        let at = PgTimestamp(Moment::new(at).0);
        let write = async |connection: &mut Connection| {
            let found: Found = sql_query(FIND).get_result(&mut connection.pg).await?;
            if found.may_make {
                connection.pg.batch_execute(MAKE).await?;
            }
            if found.may_make || found.may_write {
                let note = sql_query(NOTE).bind::<Timestamptz, _>(at);
                note.execute(&mut connection.pg).await?;
            }
            Ok(())
        };
        self.in_transaction("note a retention pass in", write).await
    }

    pub(super) async fn count_events_until(
        &self,
        cutoffs: &Cutoffs,
        until: DateTime<Utc>,
    ) -> Result<EventCounts, StoreError> {
        let until = PgTimestamp(Moment::new(until).0);
        let count = async |connection: &mut Connection| {
            let found: Found = sql_query(FIND).get_result(&mut connection.pg).await?;
            let bounds = bounds(cutoffs, ahead(self.clock.now(), found.now));
            let earlier = events::table.filter(events::updated.le(until));
            let num_events: i64 = earlier.count().get_result(&mut connection.pg).await?;
            // From the indexes: all that has expired, without what was stored later.
            let expired = num_expired(connection, &bounds, None).await?;
            let later = num_expired(connection, &bounds, Some(until)).await?;
            Ok(EventCounts {
                num_events: as_count(num_events),
                num_expired: as_count(expired - later),
            })
        };
        self.in_snapshot("read", None, count).await
    }
}

/// When the newest event was stored of those that were there before, or when it occurred, by whichever
/// clock: events of other machines tell what the time is, where nobody has stored any for a while.
async fn newest(
    connection: &mut Connection,
    before: DateTime<Utc>,
    now: PgTimestamp,
) -> Result<Option<PgTimestamp>, Failure> {
    let newest = sql::<Nullable<Timestamptz>>(
        "SELECT greatest((SELECT max(updated) FROM events WHERE updated < ",
    )
    .bind::<Timestamptz, _>(PgTimestamp(Moment::new(before).0))
    .sql("), (SELECT max(occurred) FROM events WHERE occurred <= ")
    .bind::<Timestamptz, _>(now)
    .sql("))");
    Ok(newest.get_result(&mut connection.pg).await?)
}

/// How many events are expired, or how many of those that were stored after a moment.
async fn num_expired(
    connection: &mut Connection,
    bounds: &Bounds<PgTimestamp>,
    after: Option<PgTimestamp>,
) -> Result<i64, Failure> {
    let mut count = async |name: Option<&str>, cutoff: PgTimestamp| {
        let mut query = events::table
            .filter(events::occurred.lt(cutoff))
            .count()
            .into_boxed();
        if let Some(name) = name {
            query = query.filter(events::event.eq(name));
        }
        if let Some(after) = after {
            query = query.filter(events::updated.gt(after));
        }
        query.get_result::<i64>(&mut connection.pg).await
    };
    let mut expired = count(None, bounds.default).await?;
    for (name, cutoff) in &bounds.overrides {
        expired += count(Some(name), *cutoff).await? - count(Some(name), bounds.default).await?;
    }
    Ok(expired)
}
