//! How the Redis source works, and which settings it refuses.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::url::RedisUrl;
use crate::address::said;
use crate::primary::KnownPrimary;
use crate::settings::{As, Count, File, InvalidUrl, LongerThanZero, Text, Toggle};

/// How a Redis stream is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisSettings {
    /// The server.
    #[serde(skip)]
    pub url: RedisUrl,
    /// The stream to read. Prefect's own name.
    #[serde(with = "As::<Text>")]
    pub stream: String,
    /// The consumer group to read as; all replicas share one. Prefect's own name, so that it goes on where
    /// Prefect's persister stopped.
    #[serde(with = "As::<Text>")]
    pub group: String,
    /// Our name within the group; must belong to this process alone. See [`consumer_name`].
    #[serde(skip)]
    pub consumer_name: String,
    /// The primary that the events are written to, if the store shares what it knows of that; replicas agree
    /// on it.
    #[serde(skip)]
    pub primary: KnownPrimary,
    /// How long a read waits for the first event (1 s). Longer saves commands on a quiet stream
    /// and delays the stop of the process by as much.
    #[serde(skip)]
    pub block: Duration,
    /// After how long without a sign of life another replica's entries are taken over; shorter takes them
    /// from one that only stalls, longer delays the events of a dead one.
    #[serde(with = "As::<LongerThanZero>")]
    pub claim_idle: Duration,
    /// How often such entries are looked for, at least (5 s).
    #[serde(skip)]
    pub claim_every: Duration,
    /// How often entries that are held are marked as ours (2 s). Must stay well below the idle
    /// time after which others claim them, which is 5 s for Prefect's consumers.
    #[serde(skip)]
    pub heartbeat_every: Duration,
    /// Whether a second group keeps Prefect from trimming entries that are not committed; `off` loses
    /// events in outages. `event-persister guard remove` removes it.
    #[serde(with = "As::<Toggle>")]
    pub guard: bool,
    /// That group's name; by default `redis.group` with `-guard`, since groups that share a stream need
    /// one each (`guard remove` before you give a group up). Must not begin with `ephemeral`, which
    /// Prefect deletes.
    #[serde(with = "As::<Text>")]
    pub guard_group: String,
    /// Entries in the stream above which the log says that it grows; nothing is let go, since that would
    /// lose events.
    #[serde(with = "As::<Count<NonZeroU64>>")]
    pub guard_max_entries: NonZeroU64,
    /// Whether committed entries are removed from the stream. For a stream without Prefect, which trims
    /// its own.
    #[serde(with = "As::<Toggle>")]
    pub trim_stream: bool,
    /// Consumers of our group that have nothing pending and were idle for longer are removed (1 h).
    /// Replicas that were killed go sooner: twice `claim_idle` after their last sign of life.
    #[serde(skip)]
    pub consumer_idle_removal: Duration,
    /// With `rediss://`: the authorities that may sign the server's certificate (PEM); the system's if not
    /// set.
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/ssl/redis-ca.pem")]
    pub ca_file: Option<PathBuf>,
    /// With `rediss://`: the certificate to show (PEM), with `key_file`.
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/event-persister/client.pem")]
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file` (PEM).
    #[serde(with = "As::<Option<File>>")]
    #[schemars(example = "/etc/event-persister/client-key.pem")]
    pub key_file: Option<PathBuf>,
}

impl Default for RedisSettings {
    fn default() -> Self {
        const MAX_ENTRIES: NonZeroU64 = NonZeroU64::new(1_000_000).unwrap();
        Self {
            url: RedisUrl::default(),
            stream: "events".to_owned(),
            group: "event-persister".to_owned(),
            consumer_name: consumer_name("local"),
            primary: KnownPrimary::default(),
            block: Duration::from_secs(1),
            claim_idle: Duration::from_secs(20),
            claim_every: Duration::from_secs(5),
            heartbeat_every: Duration::from_secs(2),
            guard: true,
            guard_group: "event-persister-guard".to_owned(),
            guard_max_entries: MAX_ENTRIES,
            trim_stream: false,
            consumer_idle_removal: Duration::from_secs(3600),
            ca_file: None,
            cert_file: None,
            key_file: None,
        }
    }
}

/// How the names of our consumers begin, and nobody else's.
pub(super) const OWN_PREFIX: &str = "event-persister:";

/// A name for a consumer on this host: no other process has it, nor has this one after a restart.
///
/// Prefect's consumers have hyphens where this has colons, by which the two are told apart.
pub fn consumer_name(hostname: &str) -> String {
    let pid = std::process::id();
    format!("{OWN_PREFIX}{hostname}:{pid}:{:08x}", fastrand::u32(..))
}

/// Which settings cannot work, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RedisSettingsError(String);

impl RedisSettings {
    /// The defaults, but for what a URL `redis://user:password@host:port/database?parameters` says.
    ///
    /// # Errors
    ///
    /// It is no such URL, or has a parameter that would be ignored.
    pub fn from_url(url: &str) -> Result<Self, InvalidUrl> {
        let url: RedisUrl = url.parse()?;
        let settings = said(url.settings())?;
        Ok(Self { url, ..settings })
    }

    /// How the names of groups begin that record the primary of this group's database.
    pub(super) fn primary_prefix(&self) -> String {
        format!("{}-primary:", self.group)
    }

    /// How long one of our replicas may show no sign of life before its consumer is removed, if it has
    /// nothing pending any more: until its entries are claimed, and as long again.
    pub(super) fn dead_after(&self) -> Duration {
        (self.claim_idle * 2).min(self.consumer_idle_removal)
    }

    /// How often a replica shows that it lives, and looks for those that do not: a few times before
    /// others think that it is dead.
    pub(super) fn tidy_every(&self) -> Duration {
        self.claim_every.min(self.dead_after() / 4)
    }

    /// Whether a source can work with these; an error says which of them cannot, and why.
    pub fn check(&self) -> Result<(), RedisSettingsError> {
        self.fault()
            .map_or(Ok(()), |fault| Err(RedisSettingsError(fault)))
    }

    fn fault(&self) -> Option<String> {
        let names = [
            ("redis.stream", &self.stream),
            ("redis.group", &self.group),
            ("the consumer's name", &self.consumer_name),
            ("redis.guard_group", &self.guard_group),
        ];
        if let Some((what, _)) = names.into_iter().find(|(_, name)| name.is_empty()) {
            return Some(format!("{what} is empty"));
        }
        let guard_group = &self.guard_group;
        if guard_group.starts_with("ephemeral") {
            return Some(format!(
                "redis.guard_group must not be {guard_group:?}: Prefect deletes groups whose names begin \
                 with `ephemeral`"
            ));
        }
        if *guard_group == self.group {
            return Some(format!(
                "redis.guard_group and redis.group must be different names, both are {guard_group:?}"
            ));
        }
        let (heartbeat_every, claim_idle) = (self.heartbeat_every, self.claim_idle);
        let times = [
            ("block", self.block),
            ("redis.claim_idle", claim_idle),
            ("claim_every", self.claim_every),
            ("heartbeat_every", heartbeat_every),
            ("consumer_idle_removal", self.consumer_idle_removal),
        ];
        if let Some((what, _)) = times.into_iter().find(|(_, time)| time.as_millis() == 0) {
            return Some(format!("{what} must be at least a millisecond"));
        }
        // Others would claim what we still hold.
        if heartbeat_every * 2 > claim_idle {
            return Some(format!(
                "redis.claim_idle ({claim_idle:?}) must be at least {:?}: a replica shows every \
                 {heartbeat_every:?} that it lives, and others would take its events",
                heartbeat_every * 2
            ));
        }
        (self.trim_stream && !self.guard).then(|| {
            "redis.trim_stream trims behind the guard: set redis.guard on, or redis.trim_stream off"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work() {
        assert_eq!(RedisSettings::default().check(), Ok(()));
    }

    #[test]
    fn refuses_what_would_lose_events() {
        let refused = |change: fn(&mut RedisSettings)| {
            let mut settings = RedisSettings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert!(refused(|s| s.guard_group = "ephemeral-guard".into()).contains("Prefect deletes"));
        assert!(refused(|s| s.guard_group = s.group.clone()).contains("different names"));
        assert!(refused(|s| s.stream.clear()).contains("redis.stream is empty"));
        assert!(refused(|s| s.block = Duration::ZERO).contains("block"));
        let impatient = refused(|s| s.claim_idle = Duration::from_secs(3));
        assert!(impatient.starts_with("redis.claim_idle (3s) must be at least 4s:"));
        let unguarded = refused(|s| {
            s.guard = false;
            s.trim_stream = true;
        });
        assert!(unguarded.contains("behind the guard"));
    }

    #[test]
    fn consumer_names_differ() {
        assert_ne!(consumer_name("host"), consumer_name("host"));
        assert!(consumer_name("host").starts_with("event-persister:host:"));
    }
}
