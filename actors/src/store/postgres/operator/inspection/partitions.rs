//! Partitions: whether the next ones are there, what gathers in the default ones, and what was left undone.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool};

use super::{Connection, Failure, row};
use crate::finding::Finding;
use crate::store::postgres::partitions::{Layout, Plan, layout, make_ahead};
use crate::store::{Period, as_count};

const ID: &str = "postgres.partitions";

/// So many rows of a default partition are looked at when a partition is made or dropped, under a lock.
const MANY_IN_DEFAULT: u64 = 20_000;

/// A part of the locks that there are at most: readers of whole tables take one for each partition and index.
const LOCKS_SHARE: u64 = 4;

#[derive(Debug)]
pub(super) struct Found {
    /// `None` where the tables are not partitioned.
    layout: Option<Layout>,
    plan: Option<Plan>,
    facts: Facts,
}

#[derive(Debug, Default, Clone, QueryableByName)]
struct Facts {
    /// Rows in the default partition of `events`, counted as far as they are not too many.
    #[diesel(sql_type = BigInt)]
    num_in_default: i64,
    /// Locks that a reader of both tables takes.
    #[diesel(sql_type = BigInt)]
    num_locks: i64,
    #[diesel(sql_type = BigInt)]
    max_locks: i64,
    #[diesel(sql_type = Bool)]
    is_ours: bool,
}

const FACTS: &str = "SELECT $default AS num_in_default, \
    (SELECT count(*) FROM (SELECT relid FROM pg_partition_tree(to_regclass('events')) \
    UNION ALL SELECT relid FROM pg_partition_tree(to_regclass('event_resources'))) AS part \
    LEFT JOIN pg_catalog.pg_index ON indrelid = relid) AS num_locks, \
    current_setting('max_locks_per_transaction')::bigint \
    * (current_setting('max_connections')::bigint \
    + current_setting('max_prepared_transactions')::bigint) AS max_locks, \
    coalesce((SELECT pg_has_role(relowner, 'USAGE') FROM pg_catalog.pg_class \
    WHERE oid = to_regclass('events')), false) AS is_ours";

pub(super) async fn look(connection: &mut Connection) -> Result<Found, Failure> {
    let layout = layout(connection).await?;
    let plan = Plan::read(connection).await?;
    let default = layout.as_ref().and_then(Layout::defaults);
    let default = default.map_or_else(
        || "0::bigint".to_owned(),
        |default| {
            format!(
                "(SELECT count(*) FROM (SELECT FROM {} LIMIT {}) AS first_ones)",
                default.events,
                MANY_IN_DEFAULT + 1
            )
        },
    );
    let facts = row(connection, &FACTS.replace("$default", &default)).await?;
    Ok(Found {
        layout,
        plan,
        facts,
    })
}

impl Found {
    /// Nothing where nobody has asked for partitions.
    pub(super) fn judge(&self, now: DateTime<Utc>) -> Vec<Finding> {
        let Some(layout) = &self.layout else {
            return self.unfinished(now).into_iter().collect();
        };
        let Some(period) = layout.period else {
            let what =
                "the tables are partitioned by somebody else, who looks after their partitions";
            return vec![Finding::ok(ID, what)];
        };
        let findings = [
            self.without_default(layout),
            self.without_rights(layout),
            missing_ahead(layout, period, now),
            self.filling(),
            self.too_many(layout),
        ];
        let findings: Vec<Finding> = findings.into_iter().flatten().collect();
        if !findings.is_empty() {
            return findings;
        }
        let what = format!(
            "partitioned by {}: {} partitions, and the next ones are there",
            period.as_str(),
            layout.parts.len()
        );
        vec![Finding::ok(ID, what)]
    }

    fn unfinished(&self, now: DateTime<Utc>) -> Option<Finding> {
        let plan = self.plan.as_ref()?;
        let period = &plan.period;
        let remedy = format!(
            "run `event-persister migrate --partition-by {period}` again; it goes on where it stopped"
        );
        if let Some(danger) = plan.danger(now) {
            return Some(Finding::error(ID, danger, remedy));
        }
        let what = format!(
            "`migrate --partition-by {period}` has not come to its end: the tables are not partitioned, \
             and what occurs far ahead may stand where nobody reads it yet"
        );
        Some(Finding::warning(ID, what, remedy))
    }

    fn without_default(&self, layout: &Layout) -> Option<Finding> {
        layout.default_part().is_none().then(|| {
            Finding::error(
                ID,
                "there are no default partitions: an event whose period has no partition cannot be stored",
                "CREATE TABLE events_default PARTITION OF events DEFAULT; \
                 CREATE TABLE event_resources_default PARTITION OF event_resources DEFAULT",
            )
        })
    }

    fn without_rights(&self, layout: &Layout) -> Option<Finding> {
        (!layout.may_make).then(|| {
            let lacks = if self.facts.is_ours {
                "may not CREATE in their schema"
            } else {
                "does not own the tables"
            };
            Finding::warning(
                ID,
                format!(
                    "this role {lacks}, so that it makes no partitions, and retention deletes events one by one"
                ),
                "let the service use a role that owns both tables and may create in their schema, or run \
                 `event-persister migrate --partition-by` and `event-persister trim` regularly as one that does",
            )
        })
    }

    fn filling(&self) -> Option<Finding> {
        (as_count(self.facts.num_in_default) > MANY_IN_DEFAULT).then(|| {
            Finding::warning(
                ID,
                format!(
                    "more than {MANY_IN_DEFAULT} events are in the default partition, which is looked through \
                     under a lock whenever a partition is made or replaced"
                ),
                "run `event-persister migrate --partition-by` with the same period, which makes partitions for \
                 them; what lies further ahead or back than partitions are made for stays there",
            )
        })
    }

    fn too_many(&self, layout: &Layout) -> Option<Finding> {
        let (locks, max) = (
            as_count(self.facts.num_locks),
            as_count(self.facts.max_locks),
        );
        (locks.saturating_mul(LOCKS_SHARE) > max).then(|| {
            Finding::warning(
                ID,
                format!(
                    "{} partitions: a reader of the whole tables takes {locks} locks, and all sessions together \
                     have {max}",
                    layout.parts.len()
                ),
                "raise max_locks_per_transaction (with a restart), keep events for less long, or partition a new \
                 database by a longer period",
            )
        })
    }
}

fn missing_ahead(layout: &Layout, period: Period, now: DateTime<Utc>) -> Option<Finding> {
    let missing = make_ahead(layout, period, now);
    // A service at work makes them within a minute; the last one is made only now and then.
    let first = missing.first().filter(|_| missing.len() > 1)?;
    Some(Finding::warning(
        ID,
        format!(
            "{} partitions ahead are missing, the first for the {} that begins with {first}: events go to the \
             default partition meanwhile",
            missing.len(),
            period.as_str()
        ),
        "start the service, whose writers make them, or run `event-persister migrate --partition-by` with the \
         same period; if it is running, look for `partition` in its log",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;
    use crate::store::postgres::partitions::{Part, beginning};
    use crate::store::postgres::rows::Moment;

    fn good() -> Found {
        let now = now();
        let part = |num: u64| {
            let day = |num| beginning(now.date_naive() + chrono::Days::new(num));
            Part {
                suffix: format!("_{num}"),
                from: Some(Moment::new(day(num))),
                until: Some(Moment::new(day(num + 1))),
                is_default: false,
                num_rows: 0,
            }
        };
        let default = Part {
            suffix: "_default".to_owned(),
            from: None,
            until: None,
            is_default: true,
            num_rows: 0,
        };
        Found {
            layout: Some(Layout {
                schema: "public".to_owned(),
                period: Some(Period::Day),
                may_make: true,
                parts: (0..4).map(part).chain([default]).collect(),
            }),
            plan: Some(Plan {
                period: "day".to_owned(),
                bound: None,
            }),
            facts: Facts {
                num_locks: 80,
                max_locks: 6_400,
                is_ours: true,
                ..Facts::default()
            },
        }
    }

    fn now() -> DateTime<Utc> {
        "2026-03-10T12:00:00Z".parse().unwrap()
    }

    fn judged(change: impl FnOnce(&mut Found)) -> Vec<(Severity, String)> {
        let mut found = good();
        change(&mut found);
        let findings = found.judge(now()).into_iter();
        findings
            .map(|finding| (finding.severity, finding.what))
            .collect()
    }

    #[track_caller]
    fn warns(change: impl FnOnce(&mut Found), part: &str) {
        let judged = judged(change);
        assert!(
            judged.len() == 1 && judged[0].0 == Severity::Warning && judged[0].1.contains(part),
            "{judged:?}"
        );
    }

    #[test]
    fn each_fault_is_found_alone() {
        assert_eq!(judged(|_| ())[0].0, Severity::Ok);
        let layout = |found: &mut Found| found.layout.take().unwrap();
        warns(|found| drop(layout(found)), "has not come to its end");
        let passed = judged(|found| {
            found.layout = None;
            found.plan.as_mut().unwrap().bound = Some(now().date_naive());
        });
        assert_eq!(passed[0].0, Severity::Error);
        let remove = |found: &mut Found, from: usize, num: usize| {
            let parts = &mut found.layout.as_mut().unwrap().parts;
            drop(parts.drain(from..from + num));
        };
        warns(
            |found| remove(found, 2, 2),
            "2 partitions ahead are missing",
        );
        assert_eq!(judged(|found| remove(found, 3, 1))[0].0, Severity::Ok);
        let without_default = judged(|found| remove(found, 4, 1));
        assert_eq!(without_default[0].0, Severity::Error);
        warns(
            |found| found.facts.num_in_default = 20_001,
            "default partition",
        );
        warns(|found| found.facts.max_locks = 319, "takes 80 locks");
        warns(
            |found| found.layout.as_mut().unwrap().may_make = false,
            "may not CREATE",
        );
    }

    #[test]
    fn nothing_is_said_where_nobody_asked_for_partitions() {
        let judged = judged(|found| {
            found.layout = None;
            found.plan = None;
        });
        assert_eq!(judged, []);
    }
}
