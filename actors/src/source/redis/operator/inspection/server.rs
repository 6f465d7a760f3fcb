//! The server: its version, its role, and whether what it holds stays there.

use std::collections::HashMap;

use redis::RedisError;

use crate::finding::Finding;

/// `XPENDING … IDLE` and `XTRIM … MINID` came with it.
const OLDEST: (u64, u64) = (6, 2);

/// Beyond this share of its memory, a burst or a replica's buffer may fill it.
const NEARLY_FULL_PERCENT: u64 = 80;

/// Beyond this it is a matter of minutes.
const FULL_PERCENT: u64 = 95;

pub(super) struct ServerFacts<'a>(HashMap<&'a str, &'a str>);

pub(super) fn unknown(error: &RedisError) -> Finding {
    Finding::warning(
        "redis.info",
        format!("version, memory and persistence of Redis are unknown: INFO was refused ({error})"),
        "allow the user the command (ACL SETUSER … +info), or see to these yourself",
    )
}

impl<'a> ServerFacts<'a> {
    pub(super) fn of(info: &'a str) -> Self {
        let fields = info.lines().filter_map(|line| line.trim().split_once(':'));
        Self(fields.collect())
    }

    fn text(&self, name: &str) -> &'a str {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or_default()
    }

    pub(super) fn judge(&self, server: &str) -> Vec<Finding> {
        vec![
            self.version(server),
            self.role(),
            self.eviction(),
            self.memory(),
            self.persistence(),
        ]
    }

    fn version(&self, server: &str) -> Finding {
        const ID: &str = "redis.version";
        let version = self.text("redis_version");
        let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
        let found: (u64, u64) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let what = format!("Redis {version} at {server}");
        if found < OLDEST {
            let remedy = "use Redis 6.2 or newer: older ones lack commands that are needed";
            return Finding::error(ID, format!("{what} is too old"), remedy);
        }
        Finding::ok(ID, what)
    }

    fn role(&self) -> Finding {
        const ID: &str = "redis.role";
        match (self.text("role"), self.text("redis_mode")) {
            ("slave", _) => Finding::error(
                ID,
                "this is a replica, which takes no writes",
                "give the URL of the primary",
            ),
            (_, "sentinel") => Finding::error(
                ID,
                "this is a sentinel, which holds no stream",
                "write redis+sentinel://HOST:PORT/SERVICE, where SERVICE is the name that it watches",
            ),
            (_, "cluster") => Finding::error(
                ID,
                "this is a server in cluster mode, which neither Prefect nor this uses",
                "give the URL of a single server, or of sentinels",
            ),
            _ => Finding::ok(ID, "a primary of its own"),
        }
    }

    fn eviction(&self) -> Finding {
        const ID: &str = "redis.eviction";
        const REMEDY: &str = "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf";
        let policy = self.text("maxmemory_policy");
        if self.number("maxmemory") == 0 || policy == "noeviction" || policy.is_empty() {
            return Finding::ok(ID, "nothing is evicted");
        }
        if policy.starts_with("volatile-") {
            let what = format!(
                "maxmemory-policy is {policy}: keys with a time to live are evicted; the stream has \
                 none until somebody gives it one"
            );
            return Finding::warning(ID, what, REMEDY);
        }
        let what = format!(
            "maxmemory-policy is {policy}: when memory is full, the stream itself may be evicted, with \
             all that is unread in it"
        );
        Finding::error(ID, what, REMEDY)
    }

    fn memory(&self) -> Finding {
        const ID: &str = "redis.memory";
        const REMEDY: &str =
            "raise maxmemory, or find out why the stream grows: event-persister guard show";
        let (used, limit) = (self.number("used_memory"), self.number("maxmemory"));
        let Some(percent) = used.saturating_mul(100).checked_div(limit) else {
            let what = format!("{} MiB used, without a limit of its own", used >> 20);
            return Finding::ok(ID, what);
        };
        let what = format!("{percent} % of maxmemory is used");
        if percent > FULL_PERCENT {
            let what = format!("{what}: soon nothing can be published any more");
            return Finding::error(ID, what, REMEDY);
        }
        if percent > NEARLY_FULL_PERCENT {
            return Finding::warning(ID, what, REMEDY);
        }
        Finding::ok(ID, what)
    }

    fn persistence(&self) -> Finding {
        const ID: &str = "redis.persistence";
        let failed = |name| matches!(self.text(name), "err");
        if failed("aof_last_write_status") || failed("rdb_last_bgsave_status") {
            return Finding::error(
                ID,
                "Redis could not write to its disk the last time it tried",
                "see its log, and free its disk",
            );
        }
        if self.number("aof_enabled") == 0 {
            return Finding::warning(
                ID,
                "appendonly is off: what is unread when Redis crashes is lost, or all since its last \
                 snapshot",
                "CONFIG SET appendonly yes, and the same in redis.conf",
            );
        }
        Finding::ok(ID, "what it holds is in its append-only file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    const GOOD: &str = "redis_version:7.0.15\r\nredis_mode:standalone\r\nused_memory:10\r\n\
        maxmemory:100\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n\
        aof_last_write_status:ok\r\nrdb_last_bgsave_status:ok\r\nrole:master\r\n";

    fn worst(info: &str) -> (Severity, Vec<&'static str>) {
        let mut bad = ServerFacts::of(info).judge("r:6379/0");
        bad.retain(|finding| finding.severity > Severity::Ok);
        assert!(bad.iter().all(|finding| finding.remedy.is_some()));
        let worst = bad.iter().map(|finding| finding.severity).max();
        let ids = bad.iter().map(|finding| finding.id).collect();
        (worst.unwrap_or(Severity::Ok), ids)
    }

    #[test]
    fn a_good_server_gives_no_reason_to_worry() {
        assert_eq!(worst(GOOD), (Severity::Ok, vec![]));
    }

    #[test]
    fn each_fault_is_found_alone() {
        for (from, to, severity, id) in [
            ("7.0.15", "6.0.16", Severity::Error, "redis.version"),
            ("7.0.15", "5.0.3", Severity::Error, "redis.version"),
            ("role:master", "role:slave", Severity::Error, "redis.role"),
            ("standalone", "cluster", Severity::Error, "redis.role"),
            (
                "noeviction",
                "allkeys-lru",
                Severity::Error,
                "redis.eviction",
            ),
            (
                "noeviction",
                "volatile-ttl",
                Severity::Warning,
                "redis.eviction",
            ),
            (
                "used_memory:10",
                "used_memory:81",
                Severity::Warning,
                "redis.memory",
            ),
            (
                "used_memory:10",
                "used_memory:99",
                Severity::Error,
                "redis.memory",
            ),
            (
                "aof_enabled:1",
                "aof_enabled:0",
                Severity::Warning,
                "redis.persistence",
            ),
            (
                "write_status:ok",
                "write_status:err",
                Severity::Error,
                "redis.persistence",
            ),
        ] {
            let info = GOOD.replacen(from, to, 1);
            assert_eq!(worst(&info), (severity, vec![id]), "{to}");
        }
    }

    #[test]
    fn old_enough_is_6_2() {
        assert_eq!(worst(&GOOD.replace("7.0.15", "6.2.0")).0, Severity::Ok);
        assert_eq!(worst(&GOOD.replace("7.0.15", "8.10.1")).0, Severity::Ok);
    }

    #[test]
    fn a_policy_without_a_limit_evicts_nothing() {
        let info = GOOD.replace("noeviction", "allkeys-lru");
        let info = info.replace("maxmemory:100", "maxmemory:0");
        assert_eq!(worst(&info).0, Severity::Ok);
    }
}
