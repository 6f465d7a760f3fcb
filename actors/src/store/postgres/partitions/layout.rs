//! The partitions that there are, as the server's catalog has them.

use std::borrow::Cow;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use diesel::data_types::PgTimestamp;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::rows::Columns;
use super::{Connection, Failure};
use crate::store::Period;
use crate::store::postgres::rows::Moment;

/// One row: by which period the tables are partitioned, and where the first partition begins that is not
/// the table as it was before. `migrate --partition-by` makes it first of all.
pub(in crate::store::postgres) const PLAN_TABLE: &str = "event_persister_partitioning";

/// Two partitions of the same rows: of `events`, and of `event_resources`.
#[derive(Debug, Clone)]
pub(in crate::store::postgres) struct Part {
    /// The end of both names, behind the table's.
    pub(in crate::store::postgres) suffix: String,
    /// `None` for one that has no lower bound.
    pub(in crate::store::postgres) from: Option<Moment>,
    /// `None` for one that has no upper bound.
    pub(in crate::store::postgres) until: Option<Moment>,
    pub(in crate::store::postgres) is_default: bool,
    /// Rows of `events`, as the server estimates them.
    pub(in crate::store::postgres) num_rows: i64,
}

impl Part {
    pub(super) fn holds(&self, moment: Moment) -> bool {
        !self.is_default
            && self.from.is_none_or(|from| from <= moment)
            && self.until.is_none_or(|until| moment < until)
    }

    /// Whether it holds only what is kept longer than most.
    pub(super) fn is_of_kept(&self) -> bool {
        self.suffix.starts_with(KEPT)
    }
}

/// The end of the names of a partition that took the place of another, with the rows that were kept.
const KEPT: &str = "_kept_";

/// Names of tables, with their schema, ready for a statement.
#[derive(Debug, Clone)]
pub(in crate::store::postgres) struct Tables {
    pub(in crate::store::postgres) events: String,
    pub(in crate::store::postgres) resources: String,
}

impl Tables {
    /// Those in a schema, which is quoted, by the end of their names.
    pub(in crate::store::postgres) fn of(schema: &str, suffix: &str) -> Self {
        Self {
            events: format!("{schema}.\"events{suffix}\""),
            resources: format!("{schema}.\"event_resources{suffix}\""),
        }
    }

    pub(in crate::store::postgres) fn both(&self) -> [String; 2] {
        [self.events.clone(), self.resources.clone()]
    }

    /// The columns of each.
    pub(super) async fn columns(
        &self,
        connection: &mut Connection,
    ) -> Result<(Columns, Columns), Failure> {
        let events = Columns::of(connection, &self.events).await?;
        Ok((events, Columns::of(connection, &self.resources).await?))
    }
}

#[derive(Debug, Clone)]
pub(in crate::store::postgres) struct Layout {
    /// Where the tables are, quoted.
    pub(in crate::store::postgres) schema: String,
    /// `None` where somebody else has partitioned the tables, and looks after their partitions.
    pub(in crate::store::postgres) period: Option<Period>,
    /// Whether this role may make and drop partitions.
    pub(in crate::store::postgres) may_make: bool,
    pub(in crate::store::postgres) parts: Vec<Part>,
}

impl Layout {
    /// The two tables, or partitions of theirs, by the end of their names.
    pub(in crate::store::postgres) fn tables(&self, suffix: &str) -> Tables {
        Tables::of(&self.schema, suffix)
    }

    pub(in crate::store::postgres) fn parents(&self) -> Tables {
        self.tables("")
    }

    /// `None` where there are none, and what has no partition is refused.
    pub(in crate::store::postgres) fn default_part(&self) -> Option<&Part> {
        self.parts.iter().find(|part| part.is_default)
    }

    pub(in crate::store::postgres) fn defaults(&self) -> Option<Tables> {
        self.default_part().map(|part| self.tables(&part.suffix))
    }

    pub(super) fn partition_for(&self, moment: Moment) -> Option<&Part> {
        self.parts.iter().find(|part| part.holds(moment))
    }

    pub(super) fn has_partition_for(&self, moment: Moment) -> bool {
        self.partition_for(moment).is_some()
    }

    pub(super) fn kept_in_place_of(&self, part: &Part) -> Tables {
        self.tables(&format!("{KEPT}{}", part.suffix.trim_start_matches('_')))
    }
}

/// The end of the names of a period's partitions.
pub(super) fn suffix_of(start: NaiveDate) -> String {
    format!("_p{}", start.format("%Y%m%d"))
}

/// The first moment of a day in UTC.
pub(in crate::store::postgres) fn beginning(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}

/// A moment as a literal.
pub(in crate::store::postgres) fn literal(day: NaiveDate) -> String {
    format!("'{} 00:00:00+00'", day.format("%Y-%m-%d"))
}

/// Both tables, or one that is on its way there.
const IS_PARTITIONED: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_partitioned_table \
    WHERE partrelid = to_regclass('events'))";

pub(in crate::store::postgres) async fn is_partitioned(
    connection: &mut Connection,
) -> Result<bool, Failure> {
    let is_partitioned = sql::<Bool>(IS_PARTITIONED);
    Ok(is_partitioned.get_result(&mut connection.pg).await?)
}

/// The conditions under which rows of the two tables are of one event, and the same where its moment is
/// part of what identifies it. So every row is looked for in one partition.
const SAME_EVENT: [(&str, &str); 4] = [
    (
        "event_resources.event_id = events.id",
        "event_resources.event_id = events.id AND event_resources.occurred = events.occurred",
    ),
    (
        "events.id = event_resources.event_id",
        "events.id = event_resources.event_id AND events.occurred = event_resources.occurred",
    ),
    (
        "resource.event_id = events.id",
        "resource.event_id = events.id AND resource.occurred = events.occurred",
    ),
    (
        "r.event_id = events.id",
        // A resource whose moment is that of no event of its id is one too many of this one.
        "r.event_id = events.id AND (r.occurred = events.occurred OR NOT EXISTS (SELECT FROM events AS other \
         WHERE other.id = r.event_id AND other.occurred = r.occurred))",
    ),
];

/// A statement for the tables as they are. It has so many conditions of that kind, or it was changed without
/// a look at [`SAME_EVENT`].
pub(in crate::store::postgres) fn of_one_event(
    statement: &str,
    num_conditions: usize,
    is_partitioned: bool,
) -> Result<Cow<'_, str>, Failure> {
    if !is_partitioned {
        return Ok(Cow::Borrowed(statement));
    }
    let mut num_found = 0;
    let of_moments = SAME_EVENT
        .iter()
        .fold(statement.to_owned(), |text, (old, new)| {
            num_found += statement.matches(old).count();
            text.replace(old, new)
        });
    if num_found != num_conditions {
        return Err(Failure::Unfit(
            "a statement for partitioned tables is not as it should be: this is a defect of event-persister"
                .to_owned(),
        ));
    }
    Ok(Cow::Owned(of_moments))
}

#[derive(QueryableByName)]
struct Found {
    #[diesel(sql_type = Text)]
    schema: String,
    #[diesel(sql_type = Bool)]
    may_make: bool,
    #[diesel(sql_type = Bool)]
    has_plan: bool,
}

const FIND: &str = "SELECT relnamespace::regnamespace::text AS schema, \
    pg_has_role(relowner, 'USAGE') AND has_schema_privilege(relnamespace, 'CREATE') AS may_make, \
    coalesce(has_table_privilege(to_regclass('event_persister_partitioning'), 'SELECT'), false) \
        AS has_plan \
    FROM pg_catalog.pg_class WHERE oid = to_regclass('events') AND relkind = 'p'";

#[derive(QueryableByName)]
struct PartRow {
    #[diesel(sql_type = Text)]
    suffix: String,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    from: Option<PgTimestamp>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    until: Option<PgTimestamp>,
    #[diesel(sql_type = Bool)]
    is_default: bool,
    #[diesel(sql_type = BigInt)]
    num_rows: i64,
}

/// Partitions of `events` whose sibling with the same bounds is a partition of `event_resources`.
const PARTS: &str = "SELECT substr(part.relname::text, 7) AS suffix, \
    (regexp_match(told.bound, 'FROM [(]''([^'']*)''[)]'))[1]::timestamptz AS from, \
    (regexp_match(told.bound, 'TO [(]''([^'']*)''[)]'))[1]::timestamptz AS until, \
    told.bound = 'DEFAULT' AS is_default, greatest(part.reltuples, 0)::bigint AS num_rows \
    FROM pg_catalog.pg_inherits JOIN pg_catalog.pg_class AS part ON part.oid = inhrelid \
    CROSS JOIN LATERAL (SELECT pg_get_expr(part.relpartbound, part.oid) AS bound) AS told \
    WHERE inhparent = to_regclass('events') AND left(part.relname::text, 6) = 'events' \
    AND EXISTS (SELECT FROM pg_catalog.pg_inherits AS other \
    JOIN pg_catalog.pg_class AS sibling ON sibling.oid = other.inhrelid \
    WHERE other.inhparent = to_regclass('event_resources') \
    AND sibling.relname::text = 'event_resources' || substr(part.relname::text, 7) \
    AND pg_get_expr(sibling.relpartbound, sibling.oid) = told.bound) \
    ORDER BY until NULLS LAST";

/// `None` where the tables are not partitioned.
pub(in crate::store::postgres) async fn layout(
    connection: &mut Connection,
) -> Result<Option<Layout>, Failure> {
    let found: Option<Found> = sql_query(FIND)
        .get_result(&mut connection.pg)
        .await
        .optional()?;
    let Some(found) = found else {
        return Ok(None);
    };
    let mut period = None;
    if found.has_plan {
        let read = format!("SELECT period FROM {PLAN_TABLE}");
        let read: Option<String> = sql::<Text>(&read)
            .get_result(&mut connection.pg)
            .await
            .optional()?;
        period = read.and_then(|period| period.parse().ok());
    }
    let parts: Vec<PartRow> = sql_query(PARTS).load(&mut connection.pg).await?;
    let moment = |at: PgTimestamp| Moment(at.0);
    let parts = parts.into_iter().map(|row| Part {
        from: row.from.map(moment),
        until: row.until.map(moment),
        suffix: row.suffix,
        is_default: row.is_default,
        num_rows: row.num_rows,
    });
    Ok(Some(Layout {
        schema: found.schema,
        period,
        may_make: found.may_make,
        parts: parts.collect(),
    }))
}
