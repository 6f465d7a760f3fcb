//! Dead rows: what retention deletes stays in the files until VACUUM has been there.
//!
//! PostgreSQL starts it by itself once a share of a table is dead. Where dead rows pile up beyond that,
//! it is switched off, too slow, or held back by somebody who may still want to see them.

use diesel::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::{Connection, Failure};
use crate::finding::Finding;
use crate::store::as_count;

const ID: &str = "postgres.dead_rows";

/// Fewer are of no matter, whatever their share.
const MANY: u64 = 100_000;

/// How many times as many as autovacuum waits for. It takes its time with a large table, and more die
/// meanwhile.
const TIMES_THRESHOLD: f64 = 2.0;

#[derive(Debug, Clone, QueryableByName)]
pub(super) struct TableStatistics {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    num_live: i64,
    #[diesel(sql_type = BigInt)]
    num_dead: i64,
    /// So many dead rows start autovacuum, by the settings of the server and of the table.
    #[diesel(sql_type = BigInt)]
    threshold: i64,
    #[diesel(sql_type = Bool)]
    is_vacuumed: bool,
    /// The last time that VACUUM was there, as text.
    #[diesel(sql_type = Nullable<Text>)]
    last: Option<String>,
    /// The age of what somebody may still want to see, in transactions, and the one who does.
    #[diesel(sql_type = BigInt)]
    held_back: i64,
    #[diesel(sql_type = Nullable<Text>)]
    holder: Option<String>,
}

/// The tables that hold rows, which are the partitions where there are any.
const STATISTICS: &str = "WITH holders AS (\
    SELECT age(backend_xmin)::bigint AS age, 'the session ' || pid AS name \
    FROM pg_catalog.pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() \
    UNION ALL SELECT age(xmin)::bigint, 'the replication slot ' || slot_name \
    FROM pg_catalog.pg_replication_slots WHERE xmin IS NOT NULL \
    UNION ALL SELECT age(transaction)::bigint, 'the prepared transaction ' || gid \
    FROM pg_catalog.pg_prepared_xacts), \
    parts AS (SELECT to_regclass('events')::oid AS relid UNION SELECT to_regclass('event_resources')::oid \
    UNION SELECT relid::oid FROM pg_partition_tree(to_regclass('events')) \
    UNION SELECT relid::oid FROM pg_partition_tree(to_regclass('event_resources'))) \
    SELECT pg_class.relname::text AS name, n_live_tup AS num_live, n_dead_tup AS num_dead, \
    (coalesce(options.threshold, current_setting('autovacuum_vacuum_threshold')::float8) \
    + coalesce(options.scale, current_setting('autovacuum_vacuum_scale_factor')::float8) \
    * greatest(reltuples, 0))::bigint AS threshold, \
    coalesce(options.enabled, true) AND current_setting('autovacuum')::bool AS is_vacuumed, \
    to_char(greatest(last_vacuum, last_autovacuum), 'YYYY-MM-DD HH24:MI') AS last, \
    coalesce((SELECT max(age) FROM holders), 0) AS held_back, \
    (SELECT name FROM holders ORDER BY age DESC LIMIT 1) AS holder \
    FROM pg_catalog.pg_stat_user_tables JOIN parts USING (relid) \
    JOIN pg_catalog.pg_class ON pg_class.oid = relid CROSS JOIN LATERAL (SELECT \
    max(option_value) FILTER (WHERE option_name = 'autovacuum_vacuum_threshold')::float8 AS threshold, \
    max(option_value) FILTER (WHERE option_name = 'autovacuum_vacuum_scale_factor')::float8 AS scale, \
    bool_and(option_value::bool) FILTER (WHERE option_name = 'autovacuum_enabled') AS enabled \
    FROM pg_options_to_table(reloptions)) AS options ORDER BY n_dead_tup DESC";

pub(super) async fn statistics(
    connection: &mut Connection,
) -> Result<Vec<TableStatistics>, Failure> {
    Ok(sql_query(STATISTICS).load(&mut connection.pg).await?)
}

impl TableStatistics {
    fn is_piling_up(&self) -> bool {
        let num_dead = as_count(self.num_dead);
        num_dead >= MANY && num_dead as f64 > TIMES_THRESHOLD * as_count(self.threshold) as f64
    }

    fn finding(&self) -> Finding {
        let Self {
            name,
            num_live,
            num_dead,
            threshold,
            ..
        } = self;
        let last = self.last.as_deref().map_or_else(
            || "VACUUM has never been there".to_owned(),
            |last| format!("VACUUM was there last at {last}"),
        );
        let what = format!(
            "{name} has {num_dead} dead rows beside {num_live} live ones, and autovacuum should begin at \
             {threshold}: {last}"
        );
        // The age grows while transactions go on: a younger one is of somebody at work.
        const OLD: i64 = 100_000;
        let remedy = if !self.is_vacuumed {
            "switch autovacuum on, for the server and the table".to_owned()
        } else if let Some(holder) = self.holder.as_ref().filter(|_| self.held_back > OLD) {
            format!(
                "{holder} keeps them from being removed: see what it is for, and end it if it is stuck"
            )
        } else {
            format!(
                "ALTER TABLE {name} SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0); \
                 see the handbook on retention"
            )
        };
        Finding::warning(ID, what, remedy)
    }
}

pub(super) fn judge(tables: &[TableStatistics]) -> Vec<Finding> {
    let piling_up: Vec<Finding> = tables
        .iter()
        .filter(|table| table.is_piling_up())
        .map(TableStatistics::finding)
        .collect();
    if piling_up.is_empty() {
        return vec![Finding::ok(ID, "dead rows do not pile up")];
    }
    piling_up
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(num_live: i64, num_dead: i64) -> TableStatistics {
        TableStatistics {
            name: "events".to_owned(),
            num_live,
            num_dead,
            threshold: 50 + num_live / 5,
            is_vacuumed: true,
            last: None,
            held_back: 0,
            holder: None,
        }
    }

    fn remedy(tables: &[TableStatistics]) -> Option<String> {
        judge(tables)[0].remedy.clone()
    }

    #[test]
    fn they_pile_up_beyond_what_autovacuum_waits_for() {
        assert_eq!(remedy(&[table(1_000, 99_999)]), None);
        assert_eq!(remedy(&[table(1_000_000, 400_100)]), None);
        let piled = table(1_000_000, 400_101);
        assert!(
            remedy(std::slice::from_ref(&piled))
                .unwrap()
                .contains("scale_factor")
        );
        let off = TableStatistics {
            is_vacuumed: false,
            ..piled.clone()
        };
        assert!(remedy(&[off]).unwrap().contains("autovacuum on"));
        let held_back = TableStatistics {
            held_back: 2_000_000,
            holder: Some("the session 17".to_owned()),
            ..piled
        };
        assert!(remedy(&[held_back]).unwrap().starts_with("the session 17"));
    }
}
