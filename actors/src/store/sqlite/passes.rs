//! When the last retention pass was made, and what was there then.
//!
//! The table is made by the first one that is noted, and not by a migration: nothing but a pass needs it.

use chrono::{DateTime, Utc};
use diesel::dsl::{max, sql};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Bool, Text};

use super::SqliteStore;
use super::connection::{Connection, Failure};
use super::schema::events;
use super::text::{read_timestamp, timestamp_bound};
use super::trim::is_before;
use crate::store::{Bounds, Cutoffs, EventCounts, LastPass, StoreError, as_count};

const IS_THERE: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_master \
    WHERE type = 'table' AND name = 'event_persister_retention')";

/// One row.
const MAKE: &str = "CREATE TABLE IF NOT EXISTS event_persister_retention (\
    one INTEGER PRIMARY KEY NOT NULL CHECK (one = 1), last_pass DATETIME NOT NULL)";

const NOTE: &str = "INSERT INTO event_persister_retention (one, last_pass) VALUES (1, ?) \
    ON CONFLICT (one) DO UPDATE SET last_pass = excluded.last_pass";

impl SqliteStore {
    pub(super) async fn read_last_pass(
        &self,
        before: DateTime<Utc>,
    ) -> Result<LastPass, StoreError> {
        let now = self.shared.clock.now();
        self.with_writer("read", move |connection| {
            let noted = noted(connection)?;
            let at = match noted {
                Some(at) => Some(at),
                None => newest(connection, before)?,
            };
            Ok(LastPass {
                now,
                at,
                is_noted: noted.is_some(),
            })
        })
        .await
    }

    pub(super) async fn write_last_pass(&self, at: DateTime<Utc>) -> Result<(), StoreError> {
        self.with_writer("note a retention pass in", move |connection| {
            connection.begin()?;
            connection.execute_batch(MAKE)?;
            connection.run(|connection| {
                let note = sql_query(NOTE).bind::<Text, _>(timestamp_bound(at));
                note.execute(connection)
            })?;
            connection.commit()
        })
        .await
    }

    pub(super) async fn count_events_until(
        &self,
        cutoffs: &Cutoffs,
        until: DateTime<Utc>,
    ) -> Result<EventCounts, StoreError> {
        let bounds = cutoffs.bounds(timestamp_bound);
        // Not in the way of those who write: it may take a while.
        let counted = self.with_connection("read", move |connection| {
            let until = timestamp_bound(until);
            connection.execute_batch("BEGIN")?;
            let earlier = events::table.filter(events::updated.le(&until));
            let num_events = connection.run(|connection| earlier.count().get_result(connection))?;
            // From the indexes: all that has expired, without what was stored later.
            let expired = num_expired(connection, &bounds, None)?;
            let later = num_expired(connection, &bounds, Some(&until))?;
            connection.commit()?;
            Ok(EventCounts {
                num_events: as_count(num_events),
                num_expired: as_count(expired - later),
            })
        });
        let counted = counted.await;
        drop(self.lock_idle().take());
        counted
    }
}

fn noted(connection: &mut Connection) -> Result<Option<DateTime<Utc>>, Failure> {
    if !connection.run(|connection| sql::<Bool>(IS_THERE).get_result(connection))? {
        return Ok(None);
    }
    let read = sql::<Text>("SELECT last_pass FROM event_persister_retention");
    let noted: Option<String> = connection.run(|c| read.get_result(c).optional())?;
    Ok(noted.and_then(|text| read_timestamp(&text)))
}

/// When the newest event was stored of those that were there before.
fn newest(
    connection: &mut Connection,
    before: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, Failure> {
    let earlier = events::table.filter(events::updated.lt(timestamp_bound(before)));
    let newest: Option<String> =
        connection.run(|connection| earlier.select(max(events::updated)).first(connection))?;
    Ok(newest.and_then(|text| read_timestamp(&text)))
}

/// How many events are expired, or how many of those that were stored after a moment.
fn num_expired(
    connection: &mut Connection,
    bounds: &Bounds<String>,
    after: Option<&str>,
) -> Result<i64, Failure> {
    let mut count = |name: Option<&str>, cutoff: &str| {
        let mut query = events::table
            .filter(is_before(events::occurred, cutoff))
            .count()
            .into_boxed();
        if let Some(name) = name {
            query = query.filter(events::event.eq(name));
        }
        if let Some(after) = after {
            query = query.filter(events::updated.gt(after));
        }
        connection.run(|connection| query.get_result::<i64>(connection))
    };
    let mut expired = count(None, &bounds.default)?;
    for (name, cutoff) in &bounds.overrides {
        expired += count(Some(name), cutoff)? - count(Some(name), &bounds.default)?;
    }
    Ok(expired)
}
