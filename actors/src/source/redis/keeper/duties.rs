//! The duties themselves, each on its own.

use redis::RedisResult;
use tokio::time::Instant;

use super::super::failure;
use super::super::member::Member;
use super::super::position::{guard_position, safe_id};
use super::super::snapshot::StreamSnapshot;
use super::super::stream_id::StreamId;

impl Member {
    /// Tells Redis that what is held is in work.
    pub(super) async fn hold(&self) -> RedisResult<()> {
        let now = Instant::now();
        // A younger one would wait for the next beat, and be idle for nearly twice the time by then:
        // too close to the 5 s of Prefect's consumers for a beat that comes late.
        let younger_than = self.settings.heartbeat_every / 2;
        let held = self.reading().pending.to_keep(now, younger_than);
        if held.is_empty() {
            return Ok(());
        }
        let mut commands = self.commands().await?;
        commands.keep(&held).await?;
        self.reading().pending.kept(&held, now);
        Ok(())
    }

    /// Tells Redis once more what is done and not confirmed.
    pub(super) async fn confirm(&self) -> RedisResult<()> {
        let committed = self.reading().pending.committed();
        if committed.is_empty() {
            return Ok(());
        }
        let mut commands = self.commands().await?;
        self.acknowledge(&mut commands, &committed).await
    }

    /// Looks at the stream and its groups, which are made again if they are gone.
    pub(super) async fn look_or_rejoin(&self) -> RedisResult<StreamSnapshot> {
        let mut commands = self.commands().await?;
        let snapshot = match self.look(&mut commands).await {
            Ok(snapshot) => snapshot,
            // The stream or the group may be gone; if that is not it, the error comes again.
            Err(error) if failure::is_answer(&error) => {
                self.join(&mut commands).await?;
                self.look(&mut commands).await?
            }
            Err(error) => return Err(error),
        };
        self.note_snapshot(&snapshot);
        Ok(snapshot)
    }

    /// Moves the guard; not while the group stands where nothing can be told from it.
    pub(super) async fn move_guard(&self, snapshot: &StreamSnapshot) -> RedisResult<()> {
        let standing = snapshot.group(&self.settings.guard_group);
        if !self.settings.guard {
            self.note_stray_guard(standing.is_some());
            return Ok(());
        }
        let mut commands = self.commands().await?;
        let Some(standing) = standing.map(|guard| guard.last_delivered) else {
            return self.join(&mut commands).await;
        };
        let Some(mut position) = self.where_the_guard_belongs(snapshot, standing) else {
            return Ok(());
        };
        if position != standing {
            let known_end = self.keeping().positions.known_end();
            position = commands.set_guard(position, known_end).await?;
        }
        self.stats.kept_guard();
        self.stats.saw_guard(Some(position.to_string()));
        Ok(())
    }

    fn where_the_guard_belongs(
        &self,
        snapshot: &StreamSnapshot,
        standing: StreamId,
    ) -> Option<StreamId> {
        let positions = &self.keeping().positions;
        match positions.ahead() {
            None => safe_id(snapshot, &self.settings).map(guard_position),
            Some(ahead) if standing > ahead.end => Some(positions.for_lost_guard()),
            Some(_) => Some(standing),
        }
    }

    /// Finds the oldest entry that is not acknowledged.
    pub(super) async fn find_oldest(&self, snapshot: &StreamSnapshot) -> RedisResult<()> {
        let group = snapshot.group(&self.settings.group);
        let ahead = self.keeping().positions.ahead();
        // Of what stands behind that place nobody can tell what was read.
        if let Some(ahead) = ahead {
            let mut commands = self.commands().await?;
            let oldest = commands.first_behind(ahead.back_to).await?;
            self.stats.saw_oldest(oldest.map(|id| id.millis));
            return Ok(());
        }
        let oldest = match (snapshot.pending.smallest, group) {
            // Pending entries were delivered, and stand before all that were not.
            (Some(smallest), _) => Some(smallest),
            (None, None) => None,
            (None, Some(group)) if group.lag == Some(0) => None,
            (None, Some(group)) => {
                let mut commands = self.commands().await?;
                commands.first_behind(group.last_delivered).await?
            }
        };
        self.stats.saw_oldest(oldest.map(|id| id.millis));
        Ok(())
    }

    /// Writes down how many entries the group has read, when it has read some: or Redis would not
    /// know after a restart. Counts those that went missing on the way.
    pub(super) async fn record_read(&self, snapshot: &StreamSnapshot) -> RedisResult<()> {
        let group = snapshot.group(&self.settings.group);
        let last = group.map(|group| group.last_delivered);
        if last.is_none() || last == self.keeping().recorded.last {
            return Ok(());
        }
        self.write_down_what_was_read().await?;
        self.keeping().recorded.last = last;
        Ok(())
    }

    pub(in super::super) async fn write_down_what_was_read(&self) -> RedisResult<()> {
        let mut commands = self.commands().await?;
        let missing = commands.record_read().await?;
        let was_exact = {
            let recorded = &mut self.keeping().recorded;
            let was_exact = recorded.is_exact;
            recorded.is_exact |= missing.is_some();
            was_exact
        };
        self.note_lost(
            missing.filter(|_| was_exact).unwrap_or_default(),
            "between two reads",
        );
        Ok(())
    }

    /// Trims the stream behind the guard, as it was seen.
    pub(super) async fn trim(&self, snapshot: &StreamSnapshot) -> RedisResult<()> {
        let standing = snapshot.group(&self.settings.guard_group);
        let Some(standing) = standing.filter(|_| self.settings.trim_stream) else {
            return Ok(());
        };
        let standing = standing.last_delivered;
        // Somebody may have moved the guard to where nothing is stored yet.
        let Some(position) = self.where_the_guard_belongs(snapshot, standing) else {
            return Ok(());
        };
        let mut commands = self.commands().await?;
        let num = commands.trim(position.min(standing)).await?;
        if num > 0 {
            log::debug!(
                "trimmed the stream behind the guard num_entries={num} redis.stream={}",
                self.settings.stream
            );
        }
        Ok(())
    }

    /// Shows that our consumer lives, and removes those that do not.
    pub(super) async fn tidy(&self) -> RedisResult<()> {
        let mut commands = self.commands().await?;
        // A consumer that leaves must not be made again.
        let is_leaving = {
            let reading = self.reading();
            reading.is_stopping || reading.is_closed
        };
        if !is_leaving {
            commands.show_life().await?;
        }
        let removed = commands.remove_dead_consumers().await?;
        if !removed.is_empty() {
            log::info!(
                "removed consumers that had been idle with nothing pending num_consumers={} \
                 redis.server={} redis.group={}",
                removed.len(),
                self.server,
                self.settings.group
            );
        }
        Ok(())
    }

    /// A guard that nobody moves keeps the stream from being trimmed, for ever.
    fn note_stray_guard(&self, is_there: bool) {
        let position = is_there.then(|| "abandoned".to_owned());
        if self.stats.saw_guard(position) && is_there {
            log::warn!(
                "the trim guard is off, but one is there that keeps others from trimming; remove \
                 it (event-persister guard remove) or set it on redis.server={} redis.stream={} \
                 redis.guard={}",
                self.server,
                self.settings.stream,
                self.settings.guard_group
            );
        }
    }

    fn note_snapshot(&self, snapshot: &StreamSnapshot) {
        let settings = &self.settings;
        let own = snapshot.pending.by_consumer.get(&settings.consumer_name);
        self.stats
            .saw_pending(own.copied().unwrap_or_default(), snapshot.pending.num);
        let lag = snapshot.group(&settings.group).and_then(|group| group.lag);
        // Redis counts from where the group stands.
        let lag = lag.filter(|_| self.keeping().positions.ahead().is_none());
        let alarm = snapshot.length > settings.guard_max_entries.get();
        if !self.stats.saw_stream(snapshot.length, lag, alarm) {
            return;
        }
        let (length, limit) = (snapshot.length, settings.guard_max_entries);
        let (server, stream) = (&self.server, &settings.stream);
        if alarm {
            log::error!(
                "the stream is longer than the alarm allows, and Redis may run out of memory; see \
                 why it is not persisted or not trimmed num_entries={length} limit={limit} \
                 redis.server={server} redis.stream={stream}"
            );
        } else {
            log::info!(
                "the stream is short again num_entries={length} limit={limit} \
                 redis.server={server} redis.stream={stream}"
            );
        }
    }
}
