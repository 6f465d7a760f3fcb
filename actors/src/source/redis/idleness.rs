//! Which entries their consumers have left: plain data, no waiting.
//!
//! Redis tells how long ago an entry was delivered or marked as held, by its clock of the day. That clock may be
//! set. Forward, and every entry looks old; back, and an entry of a dead consumer looks new for as long as the
//! clock was set back. So each entry is held against what was seen of it before, by our own clock, which only
//! goes on: what tells a live consumer is that the moment changes.
//!
//! - An entry that is old by Redis's clock is left once the moment of its delivery has stood still for a few
//!   heartbeats of ours.
//! - A replica is dead, and all that is pending for it is left, once the moment of its first entry has stood still
//!   for `claim_idle`, whatever Redis's clock says. Other consumers have no heartbeat, so this says nothing of
//!   them.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::settings::RedisSettings;
use super::stream_id::StreamId;

/// Moments that are no further apart are the same: within one answer Redis looks at its clock more than once.
const SAME_MOMENT_MS: i64 = 50;

/// So many heartbeats that do not come are no accident.
const HEARTBEATS: u32 = 3;

/// A replica must have been looked at so often, so that none is dead for a look that came late.
const LOOKS: u32 = 3;

/// The clocks of two machines drift apart by less between two looks.
const STEP_MS: i64 = 2_000;

/// What Redis says about entries of others at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Observed {
    /// Redis's clock, in milliseconds.
    pub(super) now: i64,
    /// The first pending entry of each other replica.
    pub(super) first_of_replicas: Vec<PendingEntry>,
    /// Those that have not been touched for [`Limits::late`].
    pub(super) late: Vec<PendingEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PendingEntry {
    pub(super) id: StreamId,
    pub(super) consumer: String,
    /// Milliseconds; 0 also if the entry was delivered in what is the future by now.
    pub(super) idle: i64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) claim_idle: Duration,
    /// For so long an entry that looks old must not change.
    pub(super) confirm: Duration,
}

impl Limits {
    pub(super) fn of(settings: &RedisSettings) -> Self {
        let claim_idle = settings.claim_idle;
        let confirm = (settings.heartbeat_every * HEARTBEATS).min(claim_idle / 2);
        Self {
            claim_idle,
            confirm,
        }
    }

    /// From this age on entries are looked at, so that those that are left can be claimed in time.
    pub(super) fn late(&self) -> Duration {
        self.claim_idle - self.confirm
    }

    /// How often they are looked at: more than once while they must not change.
    pub(super) fn look_every(&self) -> Duration {
        self.confirm / HEARTBEATS
    }
}

/// What was seen of entries of others so far.
#[derive(Debug, Default)]
pub(super) struct Idleness {
    late: HashMap<StreamId, (String, Standstill)>,
    replicas: HashMap<String, (StreamId, Standstill)>,
    last_look: Option<(i64, Instant)>,
}

/// Since when the moment of a delivery has not changed.
#[derive(Debug, Clone, Copy)]
struct Standstill {
    /// By Redis's clock; unknown while it lies in the future.
    delivered: Option<i64>,
    since: Instant,
    num_looks: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Judged {
    /// Single entries.
    pub(super) left: Vec<StreamId>,
    /// Replicas of which everything is left.
    pub(super) dead: Vec<String>,
    /// By how many milliseconds Redis's clock was set, if it was.
    pub(super) stepped: Option<i64>,
}

impl Standstill {
    fn new(entry: &PendingEntry, redis_now: i64, now: Instant) -> Self {
        Self {
            delivered: entry.delivered(redis_now),
            since: now,
            num_looks: 0,
        }
    }

    /// The same, looked at once more; it begins anew if there was a sign of life.
    fn look(self, entry: &PendingEntry, redis_now: i64, now: Instant) -> Self {
        let delivered = entry.delivered(redis_now);
        let is_same = match (self.delivered, delivered) {
            (Some(before), Some(delivered)) => (before - delivered).abs() <= SAME_MOMENT_MS,
            // It still lies in the future, or has just been reached.
            (None, _) => true,
            // The future is where a moment goes when the clock is set back, perhaps not the one that was seen
            // last. Else it was delivered just now.
            (Some(before), None) => before >= redis_now - SAME_MOMENT_MS,
        };
        if !is_same {
            return Self::new(entry, redis_now, now);
        }
        Self {
            delivered,
            since: self.since,
            num_looks: self.num_looks.saturating_add(1),
        }
    }

    fn lasts(&self, now: Instant) -> Duration {
        now.duration_since(self.since)
    }
}

impl PendingEntry {
    fn delivered(&self, redis_now: i64) -> Option<i64> {
        (self.idle > 0).then(|| redis_now.saturating_sub(self.idle))
    }
}

impl Idleness {
    /// Judges what is seen now by what was seen before.
    pub(super) fn observe(&mut self, observed: Observed, now: Instant, limits: Limits) -> Judged {
        let redis_now = observed.now;
        let stepped = self.stepped(redis_now, now);
        let mut late = HashMap::new();
        let mut left = Vec::new();
        for entry in observed.late {
            let known = self.late.get(&entry.id);
            let known = known.filter(|(consumer, _)| *consumer == entry.consumer);
            let standstill = match known {
                Some((_, standstill)) => standstill.look(&entry, redis_now, now),
                None => Standstill::new(&entry, redis_now, now),
            };
            let is_old = u128::try_from(entry.idle).unwrap_or(0) >= limits.claim_idle.as_millis();
            if is_old && standstill.lasts(now) >= limits.confirm {
                left.push(entry.id);
            }
            late.insert(entry.id, (entry.consumer, standstill));
        }
        self.late = late;
        let mut replicas = HashMap::new();
        let mut dead = Vec::new();
        for first in observed.first_of_replicas {
            let known = self.replicas.get(&first.consumer);
            // One that has another first entry has acknowledged the one before.
            let known = known.filter(|(id, _)| *id == first.id);
            let standstill = match known {
                Some((_, standstill)) => standstill.look(&first, redis_now, now),
                None => Standstill::new(&first, redis_now, now),
            };
            if standstill.lasts(now) >= limits.claim_idle && standstill.num_looks >= LOOKS {
                dead.push(first.consumer.clone());
            }
            replicas.insert(first.consumer, (first.id, standstill));
        }
        self.replicas = replicas;
        Judged {
            left,
            dead,
            stepped,
        }
    }

    fn stepped(&mut self, redis_now: i64, now: Instant) -> Option<i64> {
        let (redis_before, before) = self.last_look.replace((redis_now, now))?;
        let passed = i64::try_from(now.duration_since(before).as_millis()).unwrap_or(i64::MAX);
        let step = redis_now
            .saturating_sub(redis_before)
            .saturating_sub(passed);
        (step.saturating_abs() > STEP_MS).then_some(step)
    }
}

#[cfg(test)]
mod tests;
