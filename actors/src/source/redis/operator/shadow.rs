//! Reads the stream beside a group at work, with a group of its own, and changes nothing else.
//!
//! The group is made at the end of the stream, and destroyed by the shadow that made it. Its name begins with
//! `ephemeral`, so that Prefect deletes it where it is left without consumers. An entry is acknowledged in it
//! as soon as it is read; after a failure what is still pending is read again, so that nothing is left out.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use redis::RedisResult;

use crate::source::operator::{GroupWork, ShadowRead, StreamShadow};
use crate::source::redis::connection::{Connections, RESPONSE_TIMEOUT, read_pending};
use crate::source::redis::entry_reader::{EntriesRead, Reply, Room};
use crate::source::redis::failure;
use crate::source::redis::position::BEGINNING;
use crate::source::redis::settings::RedisSettings;
use crate::source::redis::sizes::Sizes;
use crate::source::redis::snapshot::find;
use crate::source::redis::stream_id::StreamId;
use crate::source::{Permit, SourceError, lock};

use super::commands::count_losses_and_read;

const PREFIX: &str = "ephemeral-event-persister-shadow-";

/// How long a read rests that found nothing. A read that waits in Redis would take what comes first,
/// and could not tell what was trimmed before it. Longer holds up what else its caller does.
const PAUSE: Duration = Duration::from_millis(250);

/// Pending entries of the group at work that are looked at; what is beyond them counts as pending.
const MAX_PENDING: usize = 100_000;

pub(super) struct RedisShadow {
    /// Of the group at work.
    main: RedisSettings,
    /// With the settings of our own group.
    connections: Connections,
    place: Mutex<ShadowPlace>,
}

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
            connections: Connections::new(own),
            main: settings,
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
        let command = count_losses_and_read(self.own(), count);
        let mut room = Room::new(permit);
        let connections = &self.connections;
        let read = connections.read(
            &command,
            Reply::LostAndStreams,
            &mut room,
            RESPONSE_TIMEOUT,
            None,
        );
        let read = read.await?;
        let (num, num_lost) = (read.num(), read.num_lost);
        if num == 0 {
            tokio::time::sleep(PAUSE).await;
        }
        // Skipped entries are pending, and stand before all that are new.
        self.lock().looks_back = !read.skipped.is_empty();
        let mut taken = self.take(read).await?;
        taken.num_gone += num_lost;
        taken.more = num == count;
        Ok(taken)
    }

    fn own(&self) -> &RedisSettings {
        &self.connections.settings
    }

    async fn join(&self) -> RedisResult<bool> {
        let behind = self.lock().behind;
        let mut commands = self.connections.commands().await?;
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
        let command = read_pending(self.own(), StreamId::ZERO, count);
        let mut room = Room::new(permit);
        let connections = &self.connections;
        let read = connections.read(&command, Reply::Streams, &mut room, RESPONSE_TIMEOUT, None);
        let read = read.await?;
        self.lock().looks_back = read.num() > 0;
        let mut taken = self.take(read).await?;
        taken.more = true;
        Ok(taken)
    }

    async fn take(&self, read: EntriesRead) -> RedisResult<ShadowRead> {
        let ids: Vec<StreamId> = read.entries.iter().map(|entry| entry.id).collect();
        if ids.is_empty() {
            return Ok(ShadowRead::default());
        }
        // A read takes no more than one command acknowledges.
        self.connections.commands().await?.acknowledge(&ids).await?;
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
        let mut commands = self.connections.commands().await?.about(&self.main);
        let groups = commands.all_groups().await?;
        let Some(group) = find(&groups, &self.main.group) else {
            return Ok(None);
        };
        let mut last_delivered = group.last_delivered;
        let pending = commands.pending(from, MAX_PENDING, None).await?;
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
        let mut commands = self.connections.commands().await?;
        let groups = commands.all_groups().await?.into_iter();
        let others = groups
            .map(|group| group.name)
            .filter(|name| name.starts_with(PREFIX) && *name != self.own().group);
        Ok(others.collect())
    }

    async fn destroy_own(&self) -> RedisResult<bool> {
        let mut commands = self.connections.commands().await?;
        commands.destroy_group(&self.own().group).await
    }

    fn lock(&self) -> MutexGuard<'_, ShadowPlace> {
        lock(&self.place)
    }

    fn done<T>(&self, doing: &str, result: RedisResult<T>) -> Result<T, SourceError> {
        result.map_err(|error| self.connections.failed(doing, error))
    }
}

impl StreamShadow for RedisShadow {
    fn own_group(&self) -> &str {
        &self.own().group
    }

    fn read(&self, permit: Permit) -> LocalBoxFuture<'_, Result<ShadowRead, SourceError>> {
        Box::pin(async move {
            let read = self.try_read(permit).await;
            if let Err(error) = &read {
                let mut place = self.lock();
                place.looks_back = true;
                // Whatever was refused, the group may be gone, or the stream with it.
                place.has_group &= !failure::is_answer(error);
            }
            self.done("reading the stream for the shadow", read)
        })
    }

    fn work_from<'a>(
        &'a self,
        position: &'a str,
    ) -> LocalBoxFuture<'a, Result<Option<Box<dyn GroupWork>>, SourceError>> {
        Box::pin(async move {
            let from = position.parse().unwrap_or_default();
            let seen = self.look_at_main(from).await;
            let seen = self.done("looking at the consumer group", seen)?;
            Ok(seen.map(|seen| Box::new(seen) as Box<dyn GroupWork>))
        })
    }

    fn others(&self) -> LocalBoxFuture<'_, Result<Vec<String>, SourceError>> {
        Box::pin(async move { self.done("looking at the groups", self.look_for_others().await) })
    }

    fn destroy(&self) -> LocalBoxFuture<'_, Result<bool, SourceError>> {
        Box::pin(
            async move { self.done("destroying the shadow's group", self.destroy_own().await) },
        )
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
