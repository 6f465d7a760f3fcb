//! The duties themselves, each on its own.

use redis::RedisResult;
use tokio::time::Instant;

use super::super::failure;
use super::super::member::{Member, Note};
use super::super::position::{guard_position, safe_id};
use super::super::snapshot::StreamSnapshot;
use super::super::stream_id::StreamId;

impl Member {
    pub(super) async fn hold(&self) -> RedisResult<()> {
        let now = Instant::now();
        // A younger one would wait for the next beat, and be idle for nearly twice the time by then:
        // too close to the 5 s of Prefect's consumers for a beat that comes late.
        let younger_than = self.settings.heartbeat_every / 2;
        let (held, epoch) = {
            let reading = self.reading();
            (reading.pending.to_keep(now, younger_than), reading.epoch)
        };
        if held.is_empty() {
            return Ok(());
        }
        let mut commands = self.commands_of(epoch).await?;
        commands.keep(&held).await?;
        self.reading().pending.kept(&held, now);
        Ok(())
    }

    pub(super) async fn confirm(&self) -> RedisResult<()> {
        let committed = self.reading().pending.committed();
        if committed.is_empty() {
            return Ok(());
        }
        let mut commands = self.commands().await?;
        self.acknowledge(&mut commands, &committed).await
    }

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
        // What was seen of one master says nothing about another's group.
        let mut commands = self.commands_of(snapshot.epoch).await?;
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
        let position = Some(position.to_string());
        self.stats.update(|seen| seen.guard_position = position);
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

    pub(super) async fn find_oldest(&self, snapshot: &StreamSnapshot) -> RedisResult<()> {
        let group = snapshot.group(&self.settings.group);
        let ahead = self.keeping().positions.ahead();
        let behind = match (ahead, group) {
            // Of what stands behind that place nobody can tell what was read.
            (Some(ahead), _) => Some(ahead.back_to),
            (None, Some(group)) if group.lag != Some(0) => Some(group.last_delivered),
            (None, _) => None,
        };
        // Pending entries were delivered, and stand before all that were not.
        let smallest = snapshot.pending.smallest.filter(|_| ahead.is_none());
        let oldest = match (smallest, behind) {
            (None, Some(behind)) => self.commands().await?.first_behind(behind).await?,
            (smallest, _) => smallest,
        };
        let oldest = oldest.map(|id| id.millis);
        self.stats.update(|seen| seen.oldest_millis = oldest);
        Ok(())
    }

    /// Writes down how many entries the group has read, if it has read some, and counts the missing.
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
        let known_end = self.keeping().positions.known_end();
        let missing = commands.record_read(known_end).await?;
        let was_exact = {
            let recorded = &mut self.keeping().recorded;
            let was_exact = recorded.is_exact;
            recorded.is_exact |= missing.is_some();
            was_exact
        };
        let missing = missing.filter(|_| was_exact).unwrap_or_default();
        self.note(Note::Lost("between two reads"), missing);
        Ok(())
    }

    /// Looks at the groups whether it is news for the others or for us.
    pub(super) async fn agree_on_primary(&self, snapshot: &StreamSnapshot) -> RedisResult<()> {
        let prefix = self.settings.primary_prefix();
        let own = self.settings.primary.get();
        let is_own = |name: &str| {
            own.is_some_and(|own| name == format!("{prefix}{}:{}", own.system, own.timeline))
        };
        let mut recorded = (snapshot.groups.iter()).filter(|group| group.name.starts_with(&prefix));
        let is_news = match (recorded.next(), recorded.next()) {
            (Some(one), None) => !is_own(&one.name),
            (None, None) => own.is_some(),
            (_, Some(_)) => true,
        };
        if !is_news {
            return Ok(());
        }
        let mut commands = self.commands_of(snapshot.epoch).await?;
        self.agree(&mut commands).await
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
        let mut commands = self.commands_of(snapshot.epoch).await?;
        let num = commands.trim(position.min(standing)).await?;
        if num > 0 {
            log::debug!(
                "trimmed the stream behind the guard num_entries={num} redis.stream={}",
                self.settings.stream
            );
        }
        Ok(())
    }

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
        let num_removed = commands.remove_dead_consumers().await?;
        if num_removed > 0 {
            log::info!(
                "removed consumers that had been idle with nothing pending num_consumers={num_removed} \
                 redis.server={} redis.group={}",
                self.server,
                self.settings.group
            );
        }
        Ok(())
    }

    /// A guard that nobody moves keeps the stream from being trimmed, for ever.
    fn note_stray_guard(&self, is_there: bool) {
        let position = is_there.then(|| "abandoned".to_owned());
        let was_known = self.stats.update(|seen| {
            std::mem::replace(&mut seen.guard_position, position.clone()) == position
        });
        if is_there && !was_known {
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
        let own_pending = snapshot.pending.by_consumer.get(&settings.consumer_name);
        let lag = snapshot.group(&settings.group).and_then(|group| group.lag);
        // Redis counts from where the group stands.
        let lag = lag.filter(|_| self.keeping().positions.ahead().is_none());
        let alarm = snapshot.length > settings.guard_max_entries.get();
        let was_alarm = self.stats.update(|seen| {
            seen.own_pending = own_pending.copied().unwrap_or_default();
            seen.group_pending = snapshot.pending.num;
            seen.stream_length = snapshot.length;
            seen.lag = lag;
            std::mem::replace(&mut seen.alarm, alarm)
        });
        if alarm == was_alarm {
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
