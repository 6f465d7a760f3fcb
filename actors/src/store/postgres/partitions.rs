//! Tables that are partitioned by the time at which events occurred.
//!
//! `event-persister migrate --partition-by` makes them so, in a database of our own. There `(id, occurred)`
//! identifies an event: a unique index over a partitioned table must hold the key of its partitions. Every
//! period has a partition of `events` and one of `event_resources`, under names with the same ending. What
//! has no partition goes to the two default partitions.
//!
//! # Locks
//!
//! A partition is attached and not made by `CREATE TABLE … PARTITION OF`, which would lock the whole table
//! against writers. Each lock that readers or writers could meet is waited for only for a moment
//! ([`LOCK_WAIT`]), since others queue behind one that waits; then it is tried again later. All locks of a
//! change are taken before its first statement, and makers take turns, so that no two of them deadlock.

use std::time::Duration;

use diesel::dsl::sql;
use diesel::sql_types::Bool;
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};

use super::connection::Connection;
use super::failure::Failure;

pub(super) use bound::{MIGRATION_LOCK, Plan, danger};
pub(super) use drop::{Dropped, Tries, drop_expired};
#[cfg(feature = "archive")]
pub(super) use drop::{MAX_TRIES, drop_archived, drop_empty, fingerprint, whole};
pub(super) use function::for_partitions;
pub(super) use layout::{
    Layout, PLAN_TABLE, Tables, is_partitioned, layout, literal, of_one_event,
};
#[cfg(test)]
pub(super) use layout::{Part, beginning};
pub(super) use make::{Effort, Made, make, make_ahead, periods_without};
pub(super) use provide::Known;
pub(super) use rows::move_rows;

mod bound;
mod drop;
mod function;
mod layout;
mod make;
mod provide;
mod rows;

/// How long a lock is waited for that readers or writers could meet: so long they may queue behind it.
/// Shorter, and a busy table is never got hold of; longer, and writers feel it.
const LOCK_WAIT: Duration = Duration::from_millis(200);

/// Makers of partitions take turns under this lock. Any number that no one else uses in the same database.
const MAKER_LOCK: i64 = 0x6576_656e_7470_6172;

/// Whether all of these tables could be locked within the time, in their order. A transaction goes on
/// either way.
///
/// The code of an error is known only inside the server, so that the wait ends there.
pub(super) async fn try_lock_tables(
    connection: &mut Connection,
    tables: &[String],
    mode: &str,
    wait: Duration,
) -> Result<bool, Failure> {
    let (tables, millis) = (tables.join(", "), wait.as_millis());
    let statements = format!(
        "SET LOCAL lock_timeout = {millis}; \
         DO $do$ BEGIN LOCK TABLE {tables} IN {mode} MODE; \
         PERFORM set_config('event_persister.locked', 'yes', true); \
         EXCEPTION WHEN lock_not_available OR deadlock_detected THEN \
         PERFORM set_config('event_persister.locked', 'no', true); END $do$"
    );
    connection.pg.batch_execute(&statements).await?;
    let locked = sql::<Bool>("SELECT current_setting('event_persister.locked') = 'yes'");
    Ok(locked.get_result(&mut connection.pg).await?)
}
