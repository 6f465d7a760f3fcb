//! The server: its version, whether it takes writes and keeps them, its clock and its room.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Text, Timestamptz};

use super::{Connection, Failure, Needs, apart, row};
use crate::finding::Finding;
use crate::reader::MAX_READERS;

/// `gen_random_uuid()` and all that the store function uses came with it.
const OLDEST: i32 = 130_000;

/// Clocks that are kept by NTP are milliseconds apart.
const APART: TimeDelta = TimeDelta::seconds(5);

#[derive(Debug, Clone, QueryableByName)]
pub(super) struct ServerFacts {
    #[diesel(sql_type = Integer)]
    version_num: i32,
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Bool)]
    standby: bool,
    #[diesel(sql_type = Bool)]
    read_only: bool,
    #[diesel(sql_type = Bool)]
    fsync: bool,
    #[diesel(sql_type = Bool)]
    full_page_writes: bool,
    #[diesel(sql_type = Text)]
    synchronous_commit: String,
    #[diesel(sql_type = Bool)]
    lz4: bool,
    /// Connections that are still free for this role in this database, ours not counted.
    #[diesel(sql_type = BigInt)]
    free: i64,
    #[diesel(sql_type = Bool)]
    pub(super) can_create: bool,
    #[diesel(sql_type = Timestamptz)]
    now: DateTime<Utc>,
}

/// Only a superuser may use the connections that are kept for superusers; a limit of -1 is none.
const FACTS: &str = "WITH used AS (SELECT count(*) AS everybody, \
    count(*) FILTER (WHERE usename = current_user) AS of_role, \
    count(*) FILTER (WHERE datname = current_database()) AS of_database \
    FROM pg_catalog.pg_stat_activity \
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()), \
    role AS (SELECT rolsuper, rolconnlimit FROM pg_catalog.pg_roles WHERE rolname = current_user), \
    kept AS (SELECT CASE WHEN rolsuper THEN 0 ELSE \
    current_setting('superuser_reserved_connections')::int \
    + coalesce(current_setting('reserved_connections', true), '0')::int END AS num FROM role) \
    SELECT current_setting('server_version_num')::int AS version_num, \
    current_setting('server_version') AS version, \
    pg_is_in_recovery() AS standby, \
    current_setting('transaction_read_only')::bool AS read_only, \
    current_setting('fsync')::bool AS fsync, \
    current_setting('full_page_writes')::bool AS full_page_writes, \
    current_setting('synchronous_commit') AS synchronous_commit, \
    coalesce((SELECT 'lz4' = ANY (enumvals) FROM pg_catalog.pg_settings \
    WHERE name = 'default_toast_compression'), false) AS lz4, \
    least(current_setting('max_connections')::int - kept.num - used.everybody, \
    CASE WHEN rolsuper OR rolconnlimit < 0 THEN NULL ELSE rolconnlimit - used.of_role END, \
    (SELECT CASE WHEN rolsuper OR datconnlimit < 0 THEN NULL \
    ELSE datconnlimit - used.of_database END \
    FROM pg_catalog.pg_database WHERE datname = current_database()))::bigint AS free, \
    coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS can_create, \
    clock_timestamp() AS now \
    FROM used, role, kept";

pub(super) async fn facts(connection: &mut Connection) -> Result<ServerFacts, Failure> {
    row(connection, FACTS).await
}

impl ServerFacts {
    /// The findings; `ours` is our clock before and after the server looked at its own.
    pub(super) fn judge(&self, needs: Needs, ours: (DateTime<Utc>, DateTime<Utc>)) -> Vec<Finding> {
        vec![
            self.version(),
            self.writable(),
            self.durability(),
            self.compression(),
            self.connections(needs),
            self.clock(ours),
        ]
    }

    fn version(&self) -> Finding {
        const ID: &str = "postgres.version";
        let version = &self.version;
        if self.version_num < OLDEST {
            return Finding::error(
                ID,
                format!("PostgreSQL {version} is too old"),
                "use PostgreSQL 13 or newer",
            );
        }
        Finding::ok(ID, format!("PostgreSQL {version}"))
    }

    fn writable(&self) -> Finding {
        const ID: &str = "postgres.writable";
        if self.standby {
            return Finding::error(
                ID,
                "this is a standby, which takes no writes",
                "give the URL of the primary; with several hosts in the URL, \
                 target_session_attrs=read-write chooses it",
            );
        }
        if self.read_only {
            return Finding::error(
                ID,
                "transactions are read-only (default_transaction_read_only)",
                "ALTER ROLE or ALTER DATABASE … RESET default_transaction_read_only, wherever it is set",
            );
        }
        Finding::ok(ID, "a primary that takes writes")
    }

    fn durability(&self) -> Finding {
        const ID: &str = "postgres.durability";
        let mut wrong = Vec::new();
        if !self.fsync {
            wrong.push("fsync");
        }
        if !self.full_page_writes {
            wrong.push("full_page_writes");
        }
        if self.synchronous_commit == "off" {
            wrong.push("synchronous_commit");
        }
        if wrong.is_empty() {
            return Finding::ok(ID, "a commit is on its disk");
        }
        let wrong = wrong.join(" and ");
        Finding::warning(
            ID,
            format!(
                "{wrong} is off: a crash of its machine may lose events that were acknowledged"
            ),
            format!(
                "set {wrong} to on, in postgresql.conf or wherever this role or database has it"
            ),
        )
    }

    fn compression(&self) -> Finding {
        const ID: &str = "postgres.compression";
        if self.lz4 {
            return Finding::ok(ID, "large values are compressed with lz4");
        }
        Finding::warning(
            ID,
            "this server has no lz4: large values are compressed with pglz, which costs three times as \
             much",
            "use PostgreSQL 14 or newer, built with lz4",
        )
    }

    fn connections(&self, needs: Needs) -> Finding {
        const ID: &str = "postgres.connections";
        // A writer has one for its batches of any kind, and one to copy large ones.
        let for_writers = needs.writers.saturating_mul(2);
        // One more is for dead letters.
        let for_reading = if needs.reads { MAX_READERS + 1 } else { 0 };
        let for_retention = usize::from(needs.trims) + usize::from(needs.archives);
        let wanted = for_writers.saturating_add(for_retention + for_reading);
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        let what = format!(
            "{} connections are free for this role, and {wanted} are wanted",
            self.free.max(0)
        );
        if self.free < wanted {
            return Finding::warning(
                ID,
                what,
                "raise max_connections, or the CONNECTION LIMIT of the role or database, or lower \
                 pipeline.writers, or set http.read_api to off; if a service of ours is running, its connections are in use already",
            );
        }
        Finding::ok(ID, what)
    }

    fn clock(&self, ours: (DateTime<Utc>, DateTime<Utc>)) -> Finding {
        const ID: &str = "postgres.clock";
        let apart = apart(ours, self.now);
        if apart.abs() > APART {
            let (seconds, direction) = (
                apart.num_seconds().abs(),
                if apart > TimeDelta::zero() {
                    "ahead of"
                } else {
                    "behind"
                },
            );
            return Finding::warning(
                ID,
                format!("the server's clock is {seconds} s {direction} ours"),
                "set both by NTP: retention goes by the earlier of the two",
            );
        }
        Finding::ok(ID, "the server's clock shows what ours does")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    const NEEDS: Needs = Needs {
        writers: 2,
        trims: true,
        archives: false,
        reads: true,
    };

    fn good() -> ServerFacts {
        ServerFacts {
            version_num: 150_018,
            version: "15.18".to_owned(),
            standby: false,
            read_only: false,
            fsync: true,
            full_page_writes: true,
            synchronous_commit: "on".to_owned(),
            lz4: true,
            free: 8,
            can_create: true,
            now: DateTime::UNIX_EPOCH,
        }
    }

    fn bad(change: impl FnOnce(&mut ServerFacts)) -> Vec<(&'static str, Severity)> {
        let mut facts = good();
        change(&mut facts);
        let ours = DateTime::UNIX_EPOCH;
        let findings = facts.judge(NEEDS, (ours, ours + TimeDelta::seconds(1)));
        findings
            .into_iter()
            .filter(|finding| finding.remedy.is_some())
            .map(|finding| (finding.id, finding.severity))
            .collect()
    }

    #[test]
    fn each_fault_is_found_alone() {
        assert_eq!(bad(|_| ()), []);
        assert_eq!(
            bad(|facts| facts.version_num = 120_022),
            [("postgres.version", Severity::Error)]
        );
        assert_eq!(
            bad(|facts| facts.standby = true),
            [("postgres.writable", Severity::Error)]
        );
        assert_eq!(
            bad(|facts| facts.full_page_writes = false),
            [("postgres.durability", Severity::Warning)]
        );
        assert_eq!(
            bad(|facts| facts.lz4 = false),
            [("postgres.compression", Severity::Warning)]
        );
        assert_eq!(
            bad(|facts| facts.free = 7),
            [("postgres.connections", Severity::Warning)]
        );
    }

    #[test]
    fn connections_are_wanted_for_what_is_switched_on() {
        let wanted = |writers, [trims, archives, reads]: [bool; 3]| {
            let needs = Needs {
                writers,
                trims,
                archives,
                reads,
            };
            let enough = |free| ServerFacts { free, ..good() }.connections(needs);
            (0..).find(|free| enough(*free).remedy.is_none())
        };
        assert_eq!(wanted(1, [false, false, false]), Some(2));
        assert_eq!(wanted(1, [true, false, false]), Some(3));
        assert_eq!(wanted(1, [true, true, false]), Some(4));
        assert_eq!(wanted(4, [true, false, true]), Some(12));
    }

    #[test]
    fn clocks_are_apart_by_more_than_the_answer_took() {
        let shifted = |seconds| bad(|facts| facts.now += TimeDelta::seconds(seconds));
        assert_eq!(shifted(6), []);
        assert_eq!(shifted(7), [("postgres.clock", Severity::Warning)]);
        assert_eq!(shifted(-5), []);
        assert_eq!(shifted(-6), [("postgres.clock", Severity::Warning)]);
    }
}
