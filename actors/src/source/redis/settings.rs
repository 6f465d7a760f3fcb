//! What can be set about the Redis source, and what is refused.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use super::url::RedisUrl;

/// How a Redis stream is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// The server (`redis://localhost:6379/0`).
    pub url: RedisUrl,
    /// How its certificate is checked when the URL asks for TLS.
    pub tls: RedisTls,
    /// The stream (`events`).
    pub stream: String,
    /// The consumer group (`event-persister`); all replicas share it, and so may Prefect's own.
    pub group: String,
    /// Our name within the group; must belong to this process alone. See [`consumer_name`].
    pub consumer_name: String,
    /// How long a read waits for the first event (1 s). Longer saves commands on a quiet stream
    /// and delays the stop of the process by as much.
    pub block: Duration,
    /// Entries that their consumer has not touched for longer are taken from it (20 s). Shorter
    /// than a stalled replica's pause doubles work; longer delays the events of a dead one.
    pub claim_idle: Duration,
    /// How often such entries are looked for (5 s).
    pub claim_every: Duration,
    /// How often entries that are held are marked as ours (2 s). Must stay well below the idle
    /// time after which others claim them, which is 5 s for Prefect's consumers.
    pub heartbeat_every: Duration,
    /// Whether a second group keeps others from trimming what is not committed (on).
    pub guard: bool,
    /// The name of that group (`event-persister-guard`). Prefect deletes groups whose names begin
    /// with `ephemeral`.
    pub guard_group: String,
    /// A stream longer than this raises an alarm (1,000,000). Only that: to let go of entries
    /// would be to lose them.
    pub guard_max_entries: NonZeroU64,
    /// Whether we trim the stream ourselves, behind the guard (off); for use without Prefect,
    /// whose consumers do it.
    pub trim_stream: bool,
    /// Consumers of our group that have nothing pending and were idle for longer are removed (1 h).
    /// Replicas that were killed go sooner: twice `claim_idle` after their last sign of life.
    pub consumer_idle_removal: Duration,
}

/// How the server's certificate is checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// A PEM file with the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate to show, where the server asks for one, and its key: two PEM files.
    pub identity: Option<RedisIdentity>,
    /// Trusts any certificate of anyone (off): protects from nobody who can redirect traffic.
    pub insecure: bool,
}

/// What we show to a server that asks who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisIdentity {
    /// A PEM file with our certificate, and those that vouch for it.
    pub cert_file: PathBuf,
    /// A PEM file with its key.
    pub key_file: PathBuf,
}

impl Default for RedisSettings {
    fn default() -> Self {
        const MAX_ENTRIES: NonZeroU64 = NonZeroU64::new(1_000_000).unwrap();
        Self {
            url: RedisUrl::default(),
            tls: RedisTls::default(),
            stream: "events".to_owned(),
            group: "event-persister".to_owned(),
            consumer_name: consumer_name("local"),
            block: Duration::from_secs(1),
            claim_idle: Duration::from_secs(20),
            claim_every: Duration::from_secs(5),
            heartbeat_every: Duration::from_secs(2),
            guard: true,
            guard_group: "event-persister-guard".to_owned(),
            guard_max_entries: MAX_ENTRIES,
            trim_stream: false,
            consumer_idle_removal: Duration::from_secs(3600),
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

/// Settings that cannot work together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisSettingsError {
    /// A name is missing.
    #[error("the {0} needs a name")]
    Empty(&'static str),
    /// Prefect would delete the guard.
    #[error(
        "the guard group must not be called {0:?}: Prefect deletes groups whose names begin with \
         `ephemeral`"
    )]
    EphemeralGuard(String),
    /// The guard would be the group that it protects.
    #[error("the guard group and the consumer group must have different names, both are {0:?}")]
    SameGroup(String),
    /// A time that must pass is none.
    #[error("{0} must be at least a millisecond")]
    Zero(&'static str),
    /// Others would claim what we still hold.
    #[error(
        "heartbeat_every ({heartbeat_every:?}) must be less than half of claim_idle \
         ({claim_idle:?}), or replicas take each other's events"
    )]
    SlowHeartbeat {
        /// The setting.
        heartbeat_every: Duration,
        /// The setting that it must stay below.
        claim_idle: Duration,
    },
    /// There is no guard to trim behind.
    #[error("trim_stream trims behind the guard: set guard on, or trim_stream off")]
    TrimWithoutGuard,
}

impl RedisSettings {
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

    /// Whether a source can work with these.
    ///
    /// # Errors
    ///
    /// Says which settings cannot work, and why.
    pub fn check(&self) -> Result<(), RedisSettingsError> {
        use RedisSettingsError as E;
        let names = [
            ("stream", &self.stream),
            ("consumer group", &self.group),
            ("consumer", &self.consumer_name),
            ("guard group", &self.guard_group),
        ];
        if let Some((what, _)) = names.into_iter().find(|(_, name)| name.is_empty()) {
            return Err(E::Empty(what));
        }
        if self.guard_group.starts_with("ephemeral") {
            return Err(E::EphemeralGuard(self.guard_group.clone()));
        }
        if self.guard_group == self.group {
            return Err(E::SameGroup(self.group.clone()));
        }
        let times = [
            ("block", self.block),
            ("claim_idle", self.claim_idle),
            ("claim_every", self.claim_every),
            ("heartbeat_every", self.heartbeat_every),
            ("consumer_idle_removal", self.consumer_idle_removal),
        ];
        if let Some((what, _)) = times.into_iter().find(|(_, time)| time.as_millis() == 0) {
            return Err(E::Zero(what));
        }
        if self.heartbeat_every * 2 > self.claim_idle {
            return Err(E::SlowHeartbeat {
                heartbeat_every: self.heartbeat_every,
                claim_idle: self.claim_idle,
            });
        }
        if self.trim_stream && !self.guard {
            return Err(E::TrimWithoutGuard);
        }
        Ok(())
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
        assert!(refused(|s| s.stream.clear()).contains("stream needs a name"));
        assert!(refused(|s| s.block = Duration::ZERO).contains("block"));
        assert!(refused(|s| s.heartbeat_every = s.claim_idle).contains("each other's events"));
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
