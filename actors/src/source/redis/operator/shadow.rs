//! Reads the stream beside a group at work, with a group of its own, and changes nothing else.
//!
//! The group is made at the end of the stream, and destroyed by the shadow that made it. Its name begins with
//! `ephemeral`, so that Prefect deletes it where it is left without consumers. Prefect's trimming
//! waits for it as for any other group, and passes over it once its consumer was idle for 300 s.
//!
//! An entry is acknowledged in this group as soon as it is read: nothing depends on it. After a failure the
//! entries that are still pending are read again, so that no reply that was lost leaves a gap.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use redis::RedisResult;

use crate::source::operator::{GroupWork, ShadowRead, StreamShadow};
use crate::source::redis::commands::{Commands, read_pending};
use crate::source::redis::connection::{Connections, RESPONSE_TIMEOUT};
use crate::source::redis::entry_reader::{EntriesRead, Room};
use crate::source::redis::failure;
use crate::source::redis::position::BEGINNING;
use crate::source::redis::settings::RedisSettings;
use crate::source::redis::sizes::Sizes;
use crate::source::redis::snapshot::find;
use crate::source::redis::stream_id::StreamId;
use crate::source::{Permit, SourceError};

use super::commands::count_losses_and_read;

/// The beginning of the names of these groups.
const PREFIX: &str = "ephemeral-event-persister-shadow-";

/// How long a read rests that found nothing. A read that waits in Redis would take what comes first,
/// and could not tell what was trimmed before it. Longer holds up what else its caller does.
const PAUSE: Duration = Duration::from_millis(250);

/// Pending entries of the group at work that are looked at; what is beyond them counts as pending.
const MAX_PENDING: usize = 100_000;

pub(super) struct RedisShadow {
    main: RedisSettings,
    own: RedisSettings,
    connections: Connections,
    place: Mutex<ShadowPlace>,
}

/// How far the shadow has read.
#[derive(Debug, Default)]
struct ShadowPlace {
    has_group: bool,
    /// Whether something may be pending that was not handed out.
    looks_back: bool,
    /// Where a group begins that has to be made; `None` for the end of the stream.
    behind: Option<StreamId>,
    sizes: Sizes,
}

#[derive(Debug)]
struct WorkSeen {
    last_delivered: StreamId,
    pending: HashSet<StreamId>,
}

impl GroupWork for WorkSeen {
    fn has_acknowledged(&self, position: &str) -> bool {
        position
            .parse()
            .is_ok_and(|id| id <= self.last_delivered && !self.pending.contains(&id))
    }

    fn has_delivered(&self, position: &str) -> bool {
        position
            .parse()
            .is_ok_and(|id: StreamId| id <= self.last_delivered)
    }
}

impl RedisShadow {
    pub(super) fn new(settings: RedisSettings) -> Self {
        let own = RedisSettings {
            group: format!("{PREFIX}{:08x}", fastrand::u32(..)),
            ..settings.clone()
        };
        Self {
            connections: Connections::new(&own),
            main: settings,
            own,
            place: Mutex::default(),
        }
    }

    async fn try_read(&self, permit: Permit) -> RedisResult<ShadowRead> {
        let has_group = self.lock().has_group;
        if !has_group && !self.join().await? {
            tokio::time::sleep(PAUSE).await;
            return Ok(ShadowRead::default());
        }
        if self.lock().looks_back {
            return self.look_back(permit).await;
        }
        let count = self.lock().sizes.at_least_one(permit);
        let command = count_losses_and_read(&self.own, count);
        let mut in_use = self.connections.reader().await?;
        let read = in_use
            .reader
            .number_and_entries(&command, &mut Room::new(permit))
            .await;
        let (num_gone, read) = self.connections.give_back(in_use, read)?;
        let num = read.num();
        if num == 0 {
            tokio::time::sleep(PAUSE).await;
        }
        // Skipped entries are pending, and stand before all that are new.
        self.lock().looks_back = !read.skipped.is_empty();
        let mut taken = self.take(read).await?;
        taken.num_gone += num_gone;
        taken.more = num == count;
        Ok(taken)
    }

    /// Makes the group; whether there is a stream to make it on.
    async fn join(&self) -> RedisResult<bool> {
        let behind = self.lock().behind;
        let mut commands = self.commands(&self.own).await?;
        let begins_behind = commands.join_beside(behind).await?;
        let mut place = self.lock();
        place.has_group = begins_behind.is_some();
        // Without a stream all that will come is new.
        place.behind = behind.or(begins_behind).or(Some(BEGINNING));
        Ok(place.has_group)
    }

    /// Takes again what a read that failed may have taken, and what a read has skipped.
    async fn look_back(&self, permit: Permit) -> RedisResult<ShadowRead> {
        let count = self.lock().sizes.at_least_one(permit);
        let command = read_pending(&self.own, StreamId::ZERO, count);
        let mut in_use = self.connections.reader().await?;
        let read = in_use
            .reader
            .entries(&command, &mut Room::new(permit), RESPONSE_TIMEOUT)
            .await;
        let read = self.connections.give_back(in_use, read)?;
        self.lock().looks_back = read.num() > 0;
        let mut taken = self.take(read).await?;
        taken.more = true;
        Ok(taken)
    }

    /// Acknowledges entries and hands out those that were not handed out before.
    async fn take(&self, read: EntriesRead) -> RedisResult<ShadowRead> {
        let ids: Vec<StreamId> = read.entries.iter().map(|entry| entry.id).collect();
        if ids.is_empty() {
            return Ok(ShadowRead::default());
        }
        let mut commands = self.commands(&self.own).await?;
        let mut rest = ids.as_slice();
        while !rest.is_empty() {
            let num_taken = commands.acknowledge(rest).await?;
            rest = rest.get(num_taken..).unwrap_or_default();
        }
        let mut place = self.lock();
        for (_, num_bytes) in &read.skipped {
            place.sizes.saw(*num_bytes);
        }
        let mut taken = ShadowRead::default();
        for entry in read.entries {
            if Some(entry.id) <= place.behind {
                continue;
            }
            place.behind = Some(entry.id);
            match entry.body {
                Some(body) => {
                    place.sizes.saw(body.num_bytes());
                    taken.bodies.push(body);
                }
                None => taken.num_gone += 1,
            }
        }
        Ok(taken)
    }

    /// Asks first how far entries were given out, then which are pending: an entry that was given out by
    /// then and is not pending afterwards was acknowledged.
    async fn look_at_main(&self, from: StreamId) -> RedisResult<Option<WorkSeen>> {
        let mut commands = self.commands(&self.main).await?;
        if !commands.stream_exists().await? {
            return Ok(None);
        }
        let groups = commands.all_groups().await?;
        let Some(group) = find(&groups, &self.main.group) else {
            return Ok(None);
        };
        let mut last_delivered = group.last_delivered;
        let pending = commands.pending_from(from, MAX_PENDING).await?;
        if pending.len() >= MAX_PENDING {
            let last = pending.last().copied().unwrap_or_default();
            last_delivered = last.min(last_delivered);
        }
        Ok(Some(WorkSeen {
            last_delivered,
            pending: pending.into_iter().collect(),
        }))
    }

    async fn look_for_others(&self) -> RedisResult<Vec<String>> {
        let mut commands = self.commands(&self.own).await?;
        if !commands.stream_exists().await? {
            return Ok(Vec::new());
        }
        let groups = commands.all_groups().await?.into_iter();
        let others = groups
            .map(|group| group.name)
            .filter(|name| name.starts_with(PREFIX) && *name != self.own.group);
        Ok(others.collect())
    }

    async fn commands<'a>(&self, settings: &'a RedisSettings) -> RedisResult<Commands<'a>> {
        Ok(Commands {
            connection: self.connections.commands().await?,
            settings,
        })
    }

    fn lock(&self) -> MutexGuard<'_, ShadowPlace> {
        // Every change is complete before anything that could panic.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, doing: &str, error: redis::RedisError) -> SourceError {
        self.connections.reset();
        failure::unavailable(&self.own.url.to_string(), doing, error)
    }
}

impl StreamShadow for RedisShadow {
    fn own_group(&self) -> &str {
        &self.own.group
    }

    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<ShadowRead, SourceError>> {
        Box::pin(async move {
            self.try_read(permit).await.map_err(|error| {
                let mut place = self.lock();
                place.looks_back = true;
                // Whatever was refused, the group may be gone, or the stream with it.
                place.has_group &= !failure::is_answer(&error);
                drop(place);
                self.failed("reading the stream for the shadow", error)
            })
        })
    }

    fn work_from<'a>(
        &'a self,
        position: &'a str,
    ) -> LocalBoxFuture<'a, Result<Option<Box<dyn GroupWork>>, SourceError>> {
        Box::pin(async move {
            let from = position.parse().unwrap_or_default();
            let seen = self.look_at_main(from).await;
            let seen = seen.map_err(|error| self.failed("looking at the consumer group", error))?;
            Ok(seen.map(|seen| Box::new(seen) as Box<dyn GroupWork>))
        })
    }

    fn others(&self) -> LocalBoxFuture<'_, Result<Vec<String>, SourceError>> {
        Box::pin(async move {
            let others = self.look_for_others().await;
            others.map_err(|error| self.failed("looking at the groups", error))
        })
    }

    fn destroy(&self) -> LocalBoxFuture<'_, Result<bool, SourceError>> {
        Box::pin(async move {
            let destroyed = async {
                let mut commands = self.commands(&self.own).await?;
                commands.destroy_group(&self.own.group).await
            };
            destroyed
                .await
                .map_err(|error| self.failed("destroying the shadow's group", error))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_out_and_not_pending_is_acknowledged() {
        let id = |text: &str| text.parse().unwrap();
        let progress = WorkSeen {
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
                .own_group()
                .to_owned()
        };
        assert!(group().starts_with("ephemeral"));
        assert_ne!(group(), group());
    }
}
