//! The bound of tables that are on their way to become partitions, as long as they are not.
//!
//! `migrate --partition-by` sets it, some days ahead: what occurs behind it is written to the default
//! partitions, which nobody reads before they are attached. A run that was cut off leaves it, and once it has
//! passed all that is new would be written there. So a writer lifts a bound that has come near, which undoes
//! that one step. The next run sets another.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Bool, Date, Nullable, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection as _};

use super::layout::{PLAN_TABLE, Tables, beginning, is_partitioned};
use super::make::{MOVED_IN_PASSING, has_more_than};
use super::{Connection, Failure, LOCK_WAIT, move_rows, try_lock_tables};

/// One migration at a time. Any number that no one else uses in the same database.
pub(in crate::store::postgres) const MIGRATION_LOCK: i64 = 0x6576_656e_746d_6967;

/// A bound that is closer is lifted, or told of. Longer hurries those who are to run the migration again;
/// shorter leaves writers less time in which the tables may be busy.
const NEAR: TimeDelta = TimeDelta::days(1);

/// What `migrate --partition-by` noted.
#[derive(Debug, Clone, QueryableByName)]
pub(in crate::store::postgres) struct Plan {
    #[diesel(sql_type = Text)]
    pub(in crate::store::postgres) period: String,
    /// Also noted once the tables are partitioned.
    #[diesel(sql_type = Nullable<Date>)]
    pub(in crate::store::postgres) bound: Option<NaiveDate>,
}

impl Plan {
    /// `None` where nobody has asked for partitions.
    pub(in crate::store::postgres) async fn read(
        connection: &mut Connection,
    ) -> Result<Option<Self>, Failure> {
        let may_read = format!(
            "SELECT coalesce(has_table_privilege(to_regclass('{PLAN_TABLE}'), 'SELECT'), false)"
        );
        let may_read = sql::<Bool>(&may_read);
        if !may_read.get_result(&mut connection.pg).await? {
            return Ok(None);
        }
        let read = sql_query(format!("SELECT period, bound FROM {PLAN_TABLE}"));
        Ok(read.get_result(&mut connection.pg).await.optional()?)
    }

    pub(in crate::store::postgres) fn is_near(&self, now: DateTime<Utc>) -> bool {
        self.bound
            .is_some_and(|bound| beginning(bound) <= now + NEAR)
    }

    /// What a near bound does to tables that are not partitioned.
    pub(in crate::store::postgres) fn danger(&self, now: DateTime<Utc>) -> Option<String> {
        let bound = self.bound.filter(|_| self.is_near(now))?;
        Some(format!(
            "`migrate --partition-by {}` has not come to its end: events that occur from {bound} on are stored \
             where nobody reads them",
            self.period
        ))
    }
}

/// The same with what to do, if the tables are not partitioned.
pub(in crate::store::postgres) async fn danger(
    connection: &mut Connection,
    now: DateTime<Utc>,
) -> Result<Option<String>, Failure> {
    let plan = Plan::read(connection).await?;
    let Some(danger) = plan.and_then(|plan| plan.danger(now)) else {
        return Ok(None);
    };
    let is_partitioned = is_partitioned(connection).await?;
    Ok((!is_partitioned).then(|| format!("{danger}; run it again")))
}

/// Where the tables are, and whether this role may change all four and the plan.
const PLACE: &str = "SELECT relnamespace::regnamespace::text, \
    (SELECT count(*) = 4 AND bool_and(pg_has_role(relowner, 'USAGE')) FROM pg_catalog.pg_class \
    WHERE oid IN (to_regclass('events'), to_regclass('event_resources'), to_regclass('events_default'), \
    to_regclass('event_resources_default'))) \
    AND has_table_privilege('event_persister_partitioning', 'UPDATE') \
    FROM pg_catalog.pg_class WHERE oid = to_regclass('events')";

/// Lifts a near bound in the open transaction, unless a migration or somebody else is in the way; whether it is
/// lifted. A role that may not, or too many rows that would have to move, leave it to `migrate`.
pub(super) async fn lift_near(
    connection: &mut Connection,
    now: DateTime<Utc>,
) -> Result<bool, Failure> {
    if danger(connection, now).await?.is_none() {
        return Ok(false);
    }
    let place = sql::<(Text, Bool)>(PLACE);
    let (schema, may_change): (String, bool) = place.get_result(&mut connection.pg).await?;
    let turn = format!("SELECT pg_try_advisory_xact_lock({MIGRATION_LOCK})");
    let turn = sql::<Bool>(&turn);
    if !may_change || !turn.get_result(&mut connection.pg).await? {
        return Ok(false);
    }
    let [tables, defaults] = ["", "_default"].map(|suffix| Tables::of(&schema, suffix));
    let are_too_many = async |connection: &mut Connection| {
        has_more_than(connection, &defaults, "true", MOVED_IN_PASSING).await
    };
    // Asked before the lock too, which is not taken in vain then.
    if are_too_many(connection).await? {
        return Ok(false);
    }
    let all = [tables.both(), defaults.both()].concat();
    if !try_lock_tables(connection, &all, "ACCESS EXCLUSIVE", LOCK_WAIT).await? {
        return Ok(false);
    }
    // A migration may have ended just before the lock.
    if danger(connection, now).await?.is_none() || are_too_many(connection).await? {
        return Ok(false);
    }
    let lift = format!(
        "{}{}UPDATE {PLAN_TABLE} SET bound = NULL",
        tables.without_bound(),
        move_rows(connection, &defaults, &tables, "true").await?
    );
    connection.pg.batch_execute(&lift).await?;
    Ok(true)
}

impl Tables {
    /// Statements that take the bound from them.
    pub(in crate::store::postgres) fn without_bound(&self) -> String {
        self.both()
            .map(|table| {
                format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS event_persister_bound;\n")
            })
            .concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_near_from_a_day_before_on() {
        let plan = |bound: Option<&str>| Plan {
            period: "day".to_owned(),
            bound: bound.map(|day| day.parse().unwrap()),
        };
        let now = "2026-03-10T12:00:00Z".parse().unwrap();
        assert_eq!(plan(None).danger(now), None);
        assert_eq!(plan(Some("2026-03-12")).danger(now), None);
        for near in ["2026-03-11", "2026-03-10", "2025-01-01"] {
            let danger = plan(Some(near)).danger(now).unwrap();
            assert!(danger.contains(near), "{danger}");
        }
    }
}
