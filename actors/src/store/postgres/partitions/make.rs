//! Makes a period's two partitions.
//!
//! In one transaction, so that a kill leaves both or none. What stands in the default partitions of that
//! period moves along, since a partition could not be attached otherwise.

use std::collections::BTreeSet;

use chrono::{DateTime, NaiveDate, Utc};
use diesel::dsl::sql;
use diesel::sql_types::{BigInt, Bool};
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};

use super::layout::{Layout, Part, Tables, beginning, literal, suffix_of};
use super::{Connection, Failure, LOCK_WAIT, MAKER_LOCK, move_rows, try_lock_tables};
use crate::failpoint;
use crate::store::Period;
use crate::store::postgres::rows::Moment;

/// Periods that are made ahead of the present one. Fewer leave less time to notice that nobody makes them;
/// each costs every reader of the whole table a little.
const AHEAD: i32 = 3;

/// So many periods back one is made for a late event. All partitions of a table are locked by those who
/// read it as a whole, and locks are few: 64 for each connection that is allowed, as PostgreSQL comes.
const BACK: i32 = 100;

/// So many rows of each table are moved out of the default partitions beside writing, at most.
pub(super) const MOVED_IN_PASSING: i64 = 20_000;

/// How long a maker waits for its turn: others are quick.
const TURN: &str = "2s";

/// The result of the attempt to make a period's partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store::postgres) enum Made {
    Yes,
    /// Somebody else has made them.
    ThereAlready,
    /// Somebody held a lock.
    NotNow,
    /// More stands in the default partitions than is moved in passing.
    TooMuch,
}

/// How much a maker of a partition takes upon itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store::postgres) enum Effort {
    /// A batch waits meanwhile: it moves few rows, in the time of any statement.
    InPassing,
    /// It moves all that there is, and takes its time.
    Unlimited,
}

/// The periods of these moments that could have a partition and have none; at most so many, the newest
/// first, since most of what comes is new.
pub(in crate::store::postgres) fn periods_without(
    layout: &Layout,
    period: Period,
    moments: impl Iterator<Item = Moment>,
    now: DateTime<Utc>,
    at_most: usize,
) -> Vec<NaiveDate> {
    let Some((first, last)) = bounds(period, now) else {
        return Vec::new();
    };
    let mut missing = BTreeSet::new();
    // Most of a batch lies in one partition.
    let mut part = None;
    for moment in moments {
        if part.is_none_or(|part: &Part| !part.holds(moment)) {
            part = layout.partition_for(moment);
        }
        if part.is_none() {
            let day = moment.to_utc().map(|at| at.date_naive());
            missing.extend(day.and_then(|day| period.start(day)));
        }
    }
    let within = |start: &NaiveDate| (first..=last).contains(start);
    missing
        .into_iter()
        .rev()
        .filter(within)
        .take(at_most)
        .collect()
}

/// The first and the last period for which partitions are made.
fn bounds(period: Period, now: DateTime<Utc>) -> Option<(NaiveDate, NaiveDate)> {
    let present = period.start(now.date_naive())?;
    Some((period.later(present, -BACK)?, period.later(present, AHEAD)?))
}

/// The present period and those to come that have no partition.
pub(in crate::store::postgres) fn make_ahead(
    layout: &Layout,
    period: Period,
    now: DateTime<Utc>,
) -> Vec<NaiveDate> {
    let present = period.start(now.date_naive());
    let starts = (0..=AHEAD).filter_map(|num| period.later(present?, num));
    let is_missing = |start: &NaiveDate| !layout.has_partition_for(Moment::new(beginning(*start)));
    starts.filter(is_missing).collect()
}

/// Makes the partitions of one period.
pub(in crate::store::postgres) async fn make(
    connection: &mut Connection,
    layout: &Layout,
    period: Period,
    start: NaiveDate,
    effort: Effort,
) -> Result<Made, Failure> {
    let Some(end) = period.later(start, 1) else {
        return Ok(Made::NotNow);
    };
    connection.begin().await?;
    let made = make_in_transaction(connection, layout, start, end, effort).await?;
    match made {
        Made::Yes => {
            failpoint::pass("partitions::before-made");
            connection.commit().await?;
            failpoint::pass("partitions::after-made");
            log::info!(
                "a partition was made partition={} period={}",
                suffix_of(start).trim_start_matches('_'),
                period.as_str()
            );
        }
        Made::ThereAlready | Made::NotNow | Made::TooMuch => connection.roll_back().await?,
    }
    Ok(made)
}

async fn make_in_transaction(
    connection: &mut Connection,
    layout: &Layout,
    start: NaiveDate,
    end: NaiveDate,
    effort: Effort,
) -> Result<Made, Failure> {
    if effort == Effort::Unlimited {
        let no_limit = "SET LOCAL statement_timeout = 0";
        connection.pg.batch_execute(no_limit).await?;
    }
    let (parents, made) = (layout.parents(), layout.tables(&suffix_of(start)));
    let turn =
        format!("SET LOCAL lock_timeout = '{TURN}'; SELECT pg_advisory_xact_lock({MAKER_LOCK})");
    connection.pg.batch_execute(&turn).await?;
    if exists(connection, &made.events).await? {
        return Ok(Made::ThereAlready);
    }
    let range = Range {
        from: literal(start),
        until: literal(end),
    };
    let mut moved = String::new();
    if let Some(defaults) = layout.defaults() {
        let both = defaults.both();
        if !try_lock_tables(connection, &both, "ACCESS EXCLUSIVE", LOCK_WAIT).await? {
            return Ok(Made::NotNow);
        }
        let condition = range.condition();
        if effort == Effort::InPassing
            && has_more_than(connection, &defaults, &condition, MOVED_IN_PASSING).await?
        {
            return Ok(Made::TooMuch);
        }
        moved = move_rows(connection, &defaults, &made, &condition).await?;
    }
    let statements: String = [
        (&parents.events, &made.events),
        (&parents.resources, &made.resources),
    ]
    .map(|(parent, part)| like(parent, part))
    .concat();
    connection.pg.batch_execute(&(statements + &moved)).await?;
    failpoint::pass("partitions::before-attached");
    let attach: String = [
        (&parents.events, &made.events),
        (&parents.resources, &made.resources),
    ]
    .map(|(parent, part)| attach(parent, part, &range))
    .concat();
    connection.pg.batch_execute(&attach).await?;
    Ok(Made::Yes)
}

/// The moments that a partition holds, as literals.
struct Range {
    from: String,
    until: String,
}

impl Range {
    fn condition(&self) -> String {
        format!("occurred >= {} AND occurred < {}", self.from, self.until)
    }
}

/// A table with the columns of another; its indexes come when it is attached.
fn like(parent: &str, part: &str) -> String {
    format!(
        "CREATE TABLE {part} (LIKE {parent} INCLUDING DEFAULTS INCLUDING GENERATED \
         INCLUDING CONSTRAINTS INCLUDING STORAGE);\n"
    )
}

fn attach(parent: &str, part: &str, range: &Range) -> String {
    let Range { from, until } = range;
    format!("ALTER TABLE {parent} ATTACH PARTITION {part} FOR VALUES FROM ({from}) TO ({until});\n")
}

pub(super) async fn exists(connection: &mut Connection, table: &str) -> Result<bool, Failure> {
    let question = format!("SELECT to_regclass('{table}') IS NOT NULL");
    let exists = sql::<Bool>(&question);
    Ok(exists.get_result(&mut connection.pg).await?)
}

pub(super) async fn has_more_than(
    connection: &mut Connection,
    tables: &Tables,
    condition: &str,
    max: i64,
) -> Result<bool, Failure> {
    for table in tables.both() {
        let question = format!(
            "SELECT count(*) FROM (SELECT FROM {table} WHERE {condition} LIMIT {}) AS first_ones",
            max + 1
        );
        let number: i64 = sql::<BigInt>(&question)
            .get_result(&mut connection.pg)
            .await?;
        if number > max {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Moment {
        Moment::new(text.parse().unwrap())
    }

    fn layout(parts: &[(&str, &str)]) -> Layout {
        let part = |(from, until): &(&str, &str)| Part {
            suffix: format!("_{from}"),
            from: (!from.is_empty()).then(|| at(from)),
            until: Some(at(until)),
            is_default: false,
            num_rows: 0,
        };
        Layout {
            schema: "public".to_owned(),
            period: Some(Period::Day),
            may_make: true,
            parts: parts.iter().map(part).collect(),
        }
    }

    fn now() -> DateTime<Utc> {
        "2026-03-10T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn only_periods_within_bounds_are_made_and_the_newest_first() {
        let layout = layout(&[("2026-03-10T00:00:00Z", "2026-03-11T00:00:00Z")]);
        let missing = |moments: &[&str], at_most| {
            let moments = moments.iter().map(|text| at(text));
            let missing = periods_without(&layout, Period::Day, moments, now(), at_most);
            missing.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let present = ["2026-03-10T00:00:00Z", "2026-03-10T23:59:59.999999Z"];
        assert_eq!(missing(&present, 9), [""; 0]);
        let edges = [
            "2026-03-14T00:00:00Z",
            "2026-03-13T23:59:59Z",
            "2026-03-09T23:59:59.999999Z",
            "2025-11-30T00:00:00Z",
            "2025-11-29T23:59:59Z",
        ];
        let within = ["2026-03-13", "2026-03-09", "2025-11-30"];
        assert_eq!(missing(&edges, 9), within);
        assert_eq!(missing(&edges, 2), within[..2]);
        assert_eq!(missing(&["0001-01-01T00:00:00Z"], 9), [""; 0]);
    }

    #[test]
    fn the_table_as_it_was_before_covers_all_up_to_its_end() {
        let layout = layout(&[("", "2026-03-12T00:00:00Z")]);
        let starts = make_ahead(&layout, Period::Day, now());
        let starts: Vec<_> = starts.iter().map(ToString::to_string).collect();
        assert_eq!(starts, ["2026-03-12", "2026-03-13"]);
        let month = make_ahead(&layout, Period::Month, now());
        let month: Vec<_> = month.iter().map(ToString::to_string).collect();
        assert_eq!(month, ["2026-04-01", "2026-05-01", "2026-06-01"]);
    }
}
