//! Reads the stream beside a group at work, with a group of its own, and changes nothing else.
//!
//! The group is made at the end of the stream, and destroyed by whoever made it. Its name begins with
//! `ephemeral`, so that Prefect deletes it where it is left without consumers. Prefect's trimming
//! waits for it as for any other group, and passes over it once its consumer was idle for 300 s.
//!
//! An entry is acknowledged in this group as soon as it is read: nothing depends on it. After a
//! failure what is still pending is read again, so that no answer that was lost leaves a gap.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::RedisResult;

use crate::source::{Body, Permit, SourceError};

use super::commands::{Commands, Joined};
use super::connection::Connections;
use super::replies::RawEntry;
use super::settings::{RedisSettings, RedisSettingsError};
use super::stream_id::StreamId;
use super::{entries, failure, guard};

/// What the names of these groups begin with.
const PREFIX: &str = "ephemeral-event-persister-shadow-";

/// How long a read rests that found nothing. A read that waits in Redis would take what comes first,
/// and could not tell what was trimmed before it. Longer holds up what else its caller does.
const PAUSE: Duration = Duration::from_millis(250);

/// Pending entries of the group at work that are looked at; what is beyond them counts as pending.
const MAX_PENDING: usize = 100_000;

/// The stream for somebody who wants to see everything that is published from now on.
pub struct RedisShadow {
    /// The group at work.
    main: RedisSettings,
    /// Our own.
    own: RedisSettings,
    connections: Connections,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    has_group: bool,
    /// Whether something may be pending that was not handed out.
    looks_back: bool,
    /// Where a group begins that has to be made; `None` for the end of the stream.
    behind: Option<StreamId>,
}

/// What a read brought.
#[derive(Debug, Default)]
pub struct ShadowRead {
    /// In the stream's order.
    pub bodies: Vec<Body>,
    /// Entries that were trimmed before they could be read, as far as Redis lets them be counted.
    pub num_gone: usize,
    /// Whether there is more at once.
    pub more: bool,
}

/// How far the group at work is.
#[derive(Debug)]
pub struct GroupProgress {
    last_delivered: StreamId,
    pending: HashSet<StreamId>,
}

impl GroupProgress {
    /// Whether the entry at this position was given to a consumer and acknowledged.
    pub fn has_acknowledged(&self, position: &str) -> bool {
        position
            .parse()
            .is_ok_and(|id| id <= self.last_delivered && !self.pending.contains(&id))
    }

    /// Whether the entry at this position was given to a consumer.
    pub fn has_delivered(&self, position: &str) -> bool {
        position
            .parse()
            .is_ok_and(|id: StreamId| id <= self.last_delivered)
    }
}

impl RedisShadow {
    /// Beside the group of a source with these settings. Connects when it is first used.
    ///
    /// # Errors
    ///
    /// The settings cannot work.
    pub fn new(settings: RedisSettings) -> Result<Self, RedisSettingsError> {
        settings.check()?;
        let own = RedisSettings {
            group: format!("{PREFIX}{:08x}", fastrand::u32(..)),
            ..settings.clone()
        };
        Ok(Self {
            connections: Connections::new(&own),
            main: settings,
            own,
            state: Mutex::new(State {
                has_group: false,
                looks_back: false,
                behind: None,
            }),
        })
    }

    /// The stream's name.
    pub fn stream(&self) -> &str {
        &self.own.stream
    }

    /// The group at work.
    pub fn main_group(&self) -> &str {
        &self.main.group
    }

    /// The name of our own group.
    pub fn own_group(&self) -> &str {
        &self.own.group
    }

    /// Entries that were published since the last read; rests a moment where there are none.
    ///
    /// # Errors
    ///
    /// Redis cannot be reached or refuses. The next read goes on where this one would have.
    pub async fn read(&self, permit: Permit) -> Result<ShadowRead, SourceError> {
        self.try_read(permit).await.map_err(|error| {
            let mut state = self.lock();
            state.looks_back = true;
            // Whatever was refused, the group may be gone, or the stream with it.
            state.has_group &= !failure::is_answer(&error);
            drop(state);
            self.failed("reading the stream for the shadow", error)
        })
    }

    async fn try_read(&self, permit: Permit) -> RedisResult<ShadowRead> {
        let mut reads = self.commands(&self.own).await?;
        if !self.lock().has_group && !self.join(&mut reads).await? {
            tokio::time::sleep(PAUSE).await;
            return Ok(ShadowRead::default());
        }
        if self.lock().looks_back {
            return self.look_back(&mut reads, permit).await;
        }
        let (num_gone, read) = reads.read_and_count_losses(permit).await?;
        if read.entries.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
        let mut taken = self.take(read.entries).await?;
        taken.num_gone += num_gone;
        taken.more = read.more;
        Ok(taken)
    }

    /// Makes the group; whether there is a stream to make it on.
    async fn join(&self, reads: &mut Commands<'_>) -> RedisResult<bool> {
        let position = self.lock().behind;
        let joined = reads.join_beside(position).await?;
        let mut state = self.lock();
        match joined {
            Joined::NoStream => {
                // What will come is all new.
                state.behind = state.behind.or(Some(guard::position(StreamId::ZERO)));
                Ok(false)
            }
            Joined::At(id) => {
                state.behind = state.behind.or(Some(id));
                state.has_group = true;
                Ok(true)
            }
        }
    }

    /// Takes again what a read that failed may have taken.
    async fn look_back(&self, reads: &mut Commands<'_>, permit: Permit) -> RedisResult<ShadowRead> {
        let pending = reads
            .read_pending(StreamId::ZERO, permit.max_messages)
            .await?;
        self.lock().looks_back = !pending.is_empty();
        let mut taken = self.take(pending).await?;
        taken.more = true;
        Ok(taken)
    }

    /// Acknowledges entries and hands out those that were not handed out before.
    async fn take(&self, read: Vec<RawEntry>) -> RedisResult<ShadowRead> {
        let ids: Vec<StreamId> = read.iter().map(|entry| entry.id).collect();
        if ids.is_empty() {
            return Ok(ShadowRead::default());
        }
        let mut commands = self.commands(&self.own).await?;
        let mut rest = ids.as_slice();
        while !rest.is_empty() {
            let num_taken = commands.acknowledge(rest).await?;
            rest = rest.get(num_taken..).unwrap_or_default();
        }
        let mut state = self.lock();
        let mut taken = ShadowRead::default();
        for entry in read {
            if Some(entry.id) <= state.behind {
                continue;
            }
            state.behind = Some(entry.id);
            match entry.fields {
                Some(fields) => taken.bodies.push(entries::fetched(entry.id, fields).body),
                None => taken.num_gone += 1,
            }
        }
        Ok(taken)
    }

    /// How far the group at work is with entries from this position on; `None` if there is no such
    /// group.
    ///
    /// # Errors
    ///
    /// Redis cannot be reached or refuses.
    pub async fn progress(&self, from: &str) -> Result<Option<GroupProgress>, SourceError> {
        let from = from.parse().unwrap_or_default();
        let looked = self.look_at_main(from).await;
        looked.map_err(|error| self.failed("looking at the consumer group", error))
    }

    /// Asks first how far entries were given out, then which are pending: what was given out by then
    /// and is not pending afterwards was acknowledged.
    async fn look_at_main(&self, from: StreamId) -> RedisResult<Option<GroupProgress>> {
        let mut commands = self.commands(&self.main).await?;
        if !commands.stream_exists().await? {
            return Ok(None);
        }
        let groups = commands.all_groups().await?;
        let Some(group) = guard::find(&groups, &self.main.group) else {
            return Ok(None);
        };
        let mut last_delivered = group.last_delivered;
        let pending = commands.pending_from(from, MAX_PENDING).await?;
        if pending.len() >= MAX_PENDING {
            last_delivered = pending
                .last()
                .copied()
                .unwrap_or_default()
                .min(last_delivered);
        }
        Ok(Some(GroupProgress {
            last_delivered,
            pending: pending.into_iter().collect(),
        }))
    }

    /// The names of other such groups, of shadows at work or killed.
    ///
    /// # Errors
    ///
    /// Redis cannot be reached or refuses.
    pub async fn others(&self) -> Result<Vec<String>, SourceError> {
        let looked = async {
            let mut commands = self.commands(&self.own).await?;
            if !commands.stream_exists().await? {
                return Ok(Vec::new());
            }
            let groups = commands
                .all_groups()
                .await?
                .into_iter()
                .map(|group| group.name);
            let others = groups.filter(|name| name.starts_with(PREFIX) && *name != self.own.group);
            Ok(others.collect())
        };
        looked
            .await
            .map_err(|error| self.failed("looking at the groups", error))
    }

    /// Destroys our own group; whether it was there.
    ///
    /// # Errors
    ///
    /// Redis cannot be reached or refuses.
    pub async fn destroy(&self) -> Result<bool, SourceError> {
        let destroyed = async {
            let mut commands = self.commands(&self.own).await?;
            if !commands.stream_exists().await? {
                return Ok(false);
            }
            commands.destroy_group(&self.own.group).await
        };
        destroyed
            .await
            .map_err(|error| self.failed("destroying the shadow's group", error))
    }

    async fn commands<'a>(&self, settings: &'a RedisSettings) -> RedisResult<Commands<'a>> {
        Ok(Commands {
            connection: self.connections.commands().await?,
            settings,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, doing: &str, error: redis::RedisError) -> SourceError {
        self.connections.reset();
        failure::unavailable(&self.own.url.to_string(), doing, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_out_and_not_pending_is_acknowledged() {
        let id = |text: &str| text.parse().unwrap();
        let progress = GroupProgress {
            last_delivered: id("5-10"),
            pending: HashSet::from([id("5-2")]),
        };
        assert!(progress.has_acknowledged("5-9"));
        assert!(progress.has_acknowledged("5-10"));
        assert!(!progress.has_acknowledged("5-2") && progress.has_delivered("5-2"));
        assert!(!progress.has_acknowledged("5-11") && !progress.has_delivered("5-11"));
        assert!(!progress.has_acknowledged("line 5"));
    }

    #[test]
    fn each_shadow_has_a_group_that_prefect_deletes_when_it_is_empty() {
        let group = || {
            RedisShadow::new(RedisSettings::default())
                .unwrap()
                .own_group()
                .to_owned()
        };
        assert!(group().starts_with("ephemeral"));
        assert_ne!(group(), group());
    }
}
