//! The stream, its groups, the guard, and the consumers.

use std::time::Duration;

use redis::streams::StreamInfoConsumer;

use crate::finding::Finding;
use crate::source::redis::position::{BEGINNING, GroupAhead, guard_position};
use crate::source::redis::settings::RedisSettings;
use crate::source::redis::snapshot::{Group, PendingSummary, find};
use crate::source::redis::stream_id::StreamId;

/// Entries that wait for longer are a backlog, or wait for nobody.
const LONG: Duration = Duration::from_secs(5 * 60);

/// A live replica moves the guard every second while there is anything to move it for.
const GUARD_MAY_BE_BEHIND: Duration = Duration::from_secs(60);

/// Prefect's consumers pass over a group whose consumers have been idle for longer; so do we.
const ACTIVE_WITHIN: Duration = Duration::from_secs(5 * 60);

/// A consumer of Prefect's that has read nothing for so long has ended, hangs, or finds nothing new.
const LIVES_WITHIN: Duration = Duration::from_secs(60);

const GUARD_SUFFIX: &str = "-guard";

#[derive(Default)]
pub(super) struct StreamFacts {
    pub(super) now: u64,
    pub(super) length: Option<u64>,
    pub(super) groups: Vec<Group>,
    pub(super) pending: PendingSummary,
    pub(super) consumers: Vec<StreamInfoConsumer>,
    pub(super) end: Option<StreamId>,
    /// Our group, if it stands where it cannot be right.
    pub(super) ahead: Option<GroupAhead>,
    pub(super) oldest_unread: Option<StreamId>,
}

/// Whether it is a group of somebody else.
fn is_others(group: &Group, settings: &RedisSettings) -> bool {
    group.name != settings.group && !group.name.starts_with(&settings.primary_prefix())
}

impl StreamFacts {
    /// Findings; none of them goes away by itself while no service runs.
    pub(super) fn judge(
        &self,
        settings: &RedisSettings,
        retention: Option<Duration>,
    ) -> Vec<Finding> {
        let stream = &settings.stream;
        let Some(length) = self.length else {
            return vec![Finding::warning(
                "redis.stream",
                format!("there is no stream {stream} yet"),
                "`serve` makes it; if something publishes already, correct redis.stream or the number \
                 of the database in the URL",
            )];
        };
        let mut findings = vec![self.stream(stream, length, settings)];
        findings.push(self.guard(settings));
        match find(&self.groups, &settings.group) {
            None => findings.push(Finding::warning(
                "redis.group",
                format!(
                    "the stream {stream} has no group {}: Prefect's consumers trim what is published \
                     meanwhile",
                    settings.group
                ),
                "start `event-persister`, which makes it",
            )),
            Some(group) => {
                findings.push(self.group(group, settings));
                findings.push(self.lag(group));
                findings.push(self.pending());
                findings.push(self.consumers());
            }
        }
        findings.extend(self.guards_left_behind(settings));
        findings.extend(self.prefects());
        findings.extend(retention.and_then(|retention| self.retention(retention)));
        findings
    }

    fn stream(&self, stream: &str, length: u64, settings: &RedisSettings) -> Finding {
        const ID: &str = "redis.stream";
        let what = format!("{stream} has {length} entries");
        if length > settings.guard_max_entries.get() {
            return Finding::warning(
                ID,
                format!("{what}, more than redis.guard_max_entries"),
                "see which group is behind (event-persister guard show, XINFO GROUPS), and that Redis \
                 has the memory",
            );
        }
        Finding::ok(ID, what)
    }

    fn age(&self, id: StreamId) -> Duration {
        Duration::from_millis(self.now.saturating_sub(id.millis))
    }

    fn group(&self, group: &Group, settings: &RedisSettings) -> Finding {
        const ID: &str = "redis.group";
        let (name, at) = (&group.name, group.last_delivered);
        if let Some(ahead) = self.ahead {
            return Finding::error(ID, ahead.what(settings), ahead.remedy(settings));
        }
        if at == StreamId::ZERO {
            return Finding::warning(
                ID,
                format!("the group {name} stands at 0-0, where Prefect's consumers pass it over"),
                "start `event-persister`, which sets it to 0-1",
            );
        }
        Finding::ok(ID, format!("{name} was given all up to {at}"))
    }

    fn lag(&self, group: &Group) -> Finding {
        const ID: &str = "redis.lag";
        let Some(oldest) = self.oldest_unread else {
            return Finding::ok(ID, "everything was given out");
        };
        let age = self.age(oldest);
        // Redis counts from where the group stands.
        let lag = group.lag.filter(|_| self.ahead.is_none());
        let num = lag.map_or_else(String::new, |lag| format!("{lag} "));
        let what = format!(
            "{num}entries are unread, the oldest for {} s",
            age.as_secs()
        );
        if age > LONG {
            return Finding::warning(
                ID,
                what,
                "start `event-persister`; if it runs, see /api/ready and the database, or raise \
                 pipeline.writers",
            );
        }
        Finding::ok(ID, what)
    }

    fn pending(&self) -> Finding {
        const ID: &str = "redis.pending";
        let Some(oldest) = self.pending.smallest else {
            return Finding::ok(ID, "nothing is pending");
        };
        let age = self.age(oldest);
        let what = format!(
            "{} entries were given out and are not acknowledged, the oldest published {} s ago",
            self.pending.num,
            age.as_secs()
        );
        if age > LONG {
            return Finding::warning(
                ID,
                what,
                "start `event-persister`, which takes over what its dead consumers hold; if it runs, \
                 see why it cannot write: /api/ready",
            );
        }
        Finding::ok(ID, what)
    }

    fn active(&self, within: Duration) -> impl Iterator<Item = &StreamInfoConsumer> {
        let within = usize::try_from(within.as_millis()).unwrap_or(usize::MAX);
        (self.consumers.iter()).filter(move |consumer| consumer.idle < within)
    }

    fn consumers(&self) -> Finding {
        let (num, num_active) = (self.consumers.len(), self.active(ACTIVE_WITHIN).count());
        let consumers = if num == 1 { "consumer" } else { "consumers" };
        let what = format!("{num} {consumers}, {num_active} of them active");
        Finding::ok("redis.consumers", what)
    }

    fn prefects(&self) -> Option<Finding> {
        let of_prefect = (self.active(LIVES_WITHIN)).filter(|consumer| is_prefects(&consumer.name));
        let of_prefect: Vec<&StreamInfoConsumer> = of_prefect.collect();
        let last = of_prefect.iter().min_by_key(|consumer| consumer.idle)?;
        Some(Finding::warning(
            "redis.prefect_persister",
            format!(
                "Prefect's own persister reads from the same group ({} of its consumers; {} did {} s \
                 ago): of what is published it takes a share, and acknowledges it before it is stored",
                of_prefect.len(),
                last.name,
                last.idle / 1000
            ),
            "once `event-persister` runs, set PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED=false for \
             Prefect's server and restart it; where that is done, this goes a minute after its last read",
        ))
    }

    /// Guards of groups that have been renamed, or are read by nobody any more: others trim nothing
    /// from there on, whatever ours says.
    fn guards_left_behind(&self, settings: &RedisSettings) -> Vec<Finding> {
        let newest = self.groups.iter().map(|group| group.last_delivered).max();
        let newest = newest.unwrap_or(StreamId::ZERO);
        let is_left = |guard: &&Group| {
            let behind = newest.millis.saturating_sub(guard.last_delivered.millis);
            guard.num_consumers == 0
                && guard.name != settings.guard_group
                && guard.name.ends_with(GUARD_SUFFIX)
                && Duration::from_millis(behind) > LONG
        };
        let guards = self.groups.iter().filter(is_left);
        let finding = |guard: &Group| {
            let name = &guard.name;
            Finding::warning(
                "redis.other_guard",
                format!(
                    "the group {name} stands at {}, {} s behind: others trim nothing from there on, \
                     and the stream grows",
                    guard.last_delivered,
                    (newest.millis - guard.last_delivered.millis) / 1000
                ),
                format!(
                    "if no event-persister reads as {} any more: redis-cli XGROUP DESTROY {} {name}",
                    name.strip_suffix(GUARD_SUFFIX).unwrap_or(name),
                    settings.stream
                ),
            )
        };
        guards.map(finding).collect()
    }

    fn retention(&self, retention: Duration) -> Option<Finding> {
        let oldest = self.oldest_unread.into_iter().chain(self.pending.smallest);
        let age = self.age(oldest.min()?);
        (age > retention).then(|| {
            Finding::error(
                "redis.retention",
                format!(
                    "the oldest entry that is not stored was published {} s ago, and trim.retention is \
                     {} s: it would be deleted as soon as it is stored",
                    age.as_secs(),
                    retention.as_secs()
                ),
                "set trim.every to off, or trim.retention to more, until the backlog is stored",
            )
        })
    }

    fn guard(&self, settings: &RedisSettings) -> Finding {
        const ID: &str = "redis.guard";
        let name = &settings.guard_group;
        let guard = find(&self.groups, name);
        match (settings.guard, guard) {
            (true, Some(guard)) => self.guard_position(guard, settings),
            (true, None) => Finding::warning(
                ID,
                format!(
                    "there is no group {name}: Prefect's consumers may trim what is not stored"
                ),
                "start `event-persister`, which makes it",
            ),
            (false, Some(_)) => Finding::warning(
                ID,
                format!(
                    "redis.guard is off, and its group {name} is there: nobody moves it, and the \
                     stream grows until Redis is full"
                ),
                "event-persister guard remove",
            ),
            (false, None) if self.groups.iter().any(|group| is_others(group, settings)) => {
                Finding::warning(
                    ID,
                    "redis.guard is off, and others read the stream: Prefect's consumers trim what \
                     is not stored",
                    "set redis.guard to on",
                )
            }
            (false, None) => {
                Finding::ok(ID, "redis.guard is off, and nobody else reads the stream")
            }
        }
    }

    fn guard_position(&self, guard: &Group, settings: &RedisSettings) -> Finding {
        const ID: &str = "redis.guard";
        let at = guard.last_delivered;
        if let Some(end) = self.end
            && at > end.max(BEGINNING)
        {
            return Finding::error(
                ID,
                format!(
                    "the guard stands at {at}, ahead of the stream's last id {end}: it keeps nobody from \
                     trimming what is not stored"
                ),
                "somebody moved it: start `event-persister`, which moves it back",
            );
        }
        if self.ahead.is_some() {
            return Finding::ok(ID, format!("others trim nothing from {at} on"));
        }
        let Some(group) = find(&self.groups, &settings.group) else {
            return Finding::ok(ID, format!("it stands at {at}"));
        };
        let safe = self.pending.smallest.unwrap_or(group.last_delivered);
        let should = guard_position(safe);
        if guard.num_consumers > 0 {
            return Finding::warning(
                ID,
                format!(
                    "the guard {} has consumers: once they are idle, Prefect's consumers pass it \
                     over",
                    guard.name
                ),
                "find out who reads as that group, or choose another redis.guard_group",
            );
        }
        // At the very beginning a group counts for nothing there, wherever ours stands.
        if at > should.max(BEGINNING) {
            return Finding::error(
                ID,
                format!(
                    "the guard stands at {at}, past {safe}, which is not stored: Prefect's \
                     consumers may trim it"
                ),
                "somebody moved it: start `event-persister`, which moves it back",
            );
        }
        let behind = Duration::from_millis(should.millis.saturating_sub(at.millis));
        let unmoved = self.age(should) > GUARD_MAY_BE_BEHIND;
        if behind > GUARD_MAY_BE_BEHIND && unmoved {
            return Finding::warning(
                ID,
                format!(
                    "the guard stands at {at}, {} s behind what is stored: nobody moves it, and the \
                     stream grows",
                    behind.as_secs()
                ),
                "start `event-persister`; without it, event-persister guard remove",
            );
        }
        Finding::ok(ID, format!("others trim nothing from {at} on"))
    }
}

fn is_prefects(name: &str) -> bool {
    let mut parts = name.rsplit('-');
    let random = parts.next().unwrap_or_default();
    let pid = parts.next().unwrap_or_default();
    name.starts_with("event-persister-")
        && random.len() == 8
        && random.chars().all(|c| c.is_ascii_hexdigit())
        && !pid.is_empty()
        && pid.chars().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests;
