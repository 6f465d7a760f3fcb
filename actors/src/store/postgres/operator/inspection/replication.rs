//! Standbys: whether a commit waits for one, and what a failover would lose.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Text};

use super::{Connection, Failure, row};
use crate::finding::Finding;

#[derive(Debug, Clone, QueryableByName)]
pub(super) struct Replication {
    /// This is one of them, and what follows it is not ours to judge.
    #[diesel(sql_type = Bool)]
    is_standby: bool,
    #[diesel(sql_type = Text)]
    names: String,
    /// `synchronous_commit` as this role has it.
    #[diesel(sql_type = Text)]
    level: String,
    /// Whether this role is told which of them are synchronous.
    #[diesel(sql_type = Bool)]
    is_told: bool,
    #[diesel(sql_type = BigInt)]
    followers: i64,
    /// Those that could take over: neither backups nor subscribers.
    #[diesel(sql_type = BigInt)]
    standbys: i64,
    #[diesel(sql_type = BigInt)]
    synchronous: i64,
}

const REPLICATION: &str = "SELECT pg_is_in_recovery() AS is_standby, \
    current_setting('synchronous_standby_names') AS names, \
    current_setting('synchronous_commit') AS level, \
    pg_has_role('pg_read_all_stats', 'USAGE') AS is_told, \
    count(follower.pid) AS followers, \
    count(follower.pid) FILTER (WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots \
    WHERE active_pid = follower.pid AND (slot_type = 'logical' OR temporary))) AS standbys, \
    count(follower.pid) FILTER (WHERE sync_state IN ('sync', 'quorum')) AS synchronous \
    FROM (SELECT pid, sync_state FROM pg_catalog.pg_stat_replication \
    WHERE state IS DISTINCT FROM 'backup') AS follower";

pub(super) async fn look(connection: &mut Connection) -> Result<Replication, Failure> {
    row(connection, REPLICATION).await
}

impl Replication {
    /// Whether this server can be told from one that was left behind in a failover.
    pub(super) fn judge_primary(&self, connection: &Connection) -> Option<Finding> {
        const ID: &str = "postgres.primary";
        let server = &connection.address;
        match connection.primary {
            Some(primary) => Some(Finding::ok(ID, format!("{server} is on {primary}"))),
            None if self.is_standby => None,
            None => Some(Finding::warning(
                ID,
                format!(
                    "{server} does not say which system and timeline it is: a primary that was left behind \
                     in a failover, and takes writes again, could not be told from it"
                ),
                "GRANT EXECUTE ON FUNCTION pg_control_system TO the role, if somebody has revoked it; else \
                 see to it that an old primary is fenced",
            )),
        }
    }

    pub(super) fn judge(&self) -> Option<Finding> {
        const ID: &str = "postgres.replication";
        let Self { names, level, .. } = self;
        if self.is_standby {
            return None;
        }
        if names.is_empty() {
            return Some(self.asynchronous(ID));
        }
        if matches!(level.as_str(), "off" | "local") {
            return Some(Finding::warning(
                ID,
                format!(
                    "synchronous_standby_names is {names}, but synchronous_commit is {level} here, so no \
                     commit waits for a standby: a failover may lose events that were acknowledged"
                ),
                "ALTER ROLE or ALTER DATABASE … RESET synchronous_commit, wherever it is set",
            ));
        }
        let wanted = num_wanted(names);
        let connected = if self.is_told {
            self.synchronous
        } else {
            self.followers
        };
        if connected < wanted {
            return Some(Finding::error(
                ID,
                format!(
                    "commits wait for {wanted} of the standbys {names}, and {connected} are connected: \
                     nothing can be committed"
                ),
                "start the standby, or correct synchronous_standby_names; emptying it lets a failover \
                 lose events that were acknowledged",
            ));
        }
        if level == "remote_write" {
            return Some(Finding::warning(
                ID,
                "synchronous_commit is remote_write: a commit waits until a standby has it in memory, \
                 and one that loses its power too loses events that were acknowledged",
                "set synchronous_commit to on",
            ));
        }
        let told = if self.is_told {
            ""
        } else {
            "; that they are connected, only a role with pg_read_all_stats sees"
        };
        Some(Finding::ok(
            ID,
            format!(
                "a commit waits until it is on the disk of {wanted} of the standbys {names} \
                 (synchronous_commit is {level}){told}"
            ),
        ))
    }

    fn asynchronous(&self, id: &'static str) -> Finding {
        if self.standbys == 0 {
            return Finding::ok(
                id,
                "no standby is connected: there is nothing to fail over to",
            );
        }
        Finding::warning(
            id,
            format!(
                "{} asynchronous: a failover to such a standby loses events that were acknowledged a \
                 moment before",
                match self.standbys {
                    1 => "1 standby is".to_owned(),
                    num => format!("{num} standbys are"),
                }
            ),
            "name standbys in synchronous_standby_names; or else run `event-persister verify` after each \
             failover, and let what it misses come again",
        )
    }
}

/// How many a commit waits for: `FIRST 2 (a, b)`, `ANY 2 (a, b)`, `2 (a, b)`, or a list, of which it is one.
fn num_wanted(names: &str) -> i64 {
    let number = names.split_once('(').map(|(before, _)| before.trim());
    let word = number.and_then(|before| before.split_whitespace().last());
    word.and_then(|word| word.parse().ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    fn good() -> Replication {
        Replication {
            is_standby: false,
            names: "ANY 1 (a, b)".to_owned(),
            level: "on".to_owned(),
            is_told: true,
            followers: 3,
            standbys: 2,
            synchronous: 2,
        }
    }

    /// Its severity, and whether the text says so.
    #[track_caller]
    fn is(severity: Severity, says: &str, change: impl FnOnce(&mut Replication)) {
        let mut replication = good();
        change(&mut replication);
        let finding = replication.judge().unwrap();
        assert_eq!(finding.severity, severity, "{finding:?}");
        assert!(finding.what.contains(says), "{finding:?}");
        assert_eq!(finding.remedy.is_none(), severity == Severity::Ok);
    }

    #[test]
    fn each_kind_is_told_from_the_others() {
        use Severity::{Error, Ok, Warning};
        is(Ok, "on the disk of 1 of", |_| ());
        is(Ok, "is remote_apply", |r| r.level = "remote_apply".into());
        is(Warning, "is remote_write", |r| {
            r.level = "remote_write".into();
        });
        is(Warning, "is local here", |r| r.level = "local".into());
        is(Warning, "is off here", |r| r.level = "off".into());
        is(Error, "0 are connected", |r| r.synchronous = 0);
        is(Error, "1 are connected", |r| {
            r.names = "FIRST 2 (a, b)".into();
            r.synchronous = 1;
        });
        is(Warning, "2 standbys are asynchronous", |r| r.names.clear());
        is(Ok, "no standby", |r| {
            r.names.clear();
            r.standbys = 0;
        });
        let of_a_standby = Replication {
            is_standby: true,
            ..good()
        };
        assert_eq!(of_a_standby.judge(), None);
    }

    #[test]
    fn who_is_told_less_counts_all_that_follow() {
        let hidden = |replication: &mut Replication| {
            replication.is_told = false;
            replication.synchronous = 0;
        };
        is(Severity::Ok, "only a role with", hidden);
        is(Severity::Error, "0 are connected", |replication| {
            hidden(replication);
            replication.followers = 0;
        });
    }

    #[test]
    fn how_many_are_waited_for() {
        for (names, num) in [
            ("*", 1),
            ("a, b", 1),
            ("2 (a, b, c)", 2),
            ("FIRST 2 (a)", 2),
            ("any 3(a,b,c)", 3),
            ("\"odd (name\"", 1),
        ] {
            assert_eq!(num_wanted(names), num, "{names}");
        }
    }
}
