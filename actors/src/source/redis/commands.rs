//! The commands that are sent, each with its reply parsed.

use std::time::Duration;

use redis::streams::{StreamAutoClaimReply, StreamPendingCountReply};
use redis::{Cmd, FromRedisValue, RedisResult, Value};

use super::connection::Connection;
use super::scripts;
use super::settings::{OWN_PREFIX, RedisSettings};
use super::snapshot::{StreamSnapshot, id, ids};
use super::stream_id::StreamId;

/// Ids in one command at most: a command that names more holds up the server for longer than
/// others should wait.
pub(super) const IDS_AT_ONCE: usize = 1000;

/// Which groups were made, and whether ours was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) guard: bool,
    pub(super) group: bool,
    pub(super) moved: bool,
}

/// Entries that were pending for another consumer and are pending for us now.
pub(super) struct Claimed {
    /// Where to go on; zero at the end.
    pub(super) next: StreamId,
    pub(super) ids: Vec<StreamId>,
    /// Ids whose text is gone: they are pending for nobody any more (since Redis 7.0).
    pub(super) deleted: Vec<StreamId>,
}

/// A connection and the names that its commands are about.
pub(super) struct Commands<'a> {
    pub(super) connection: Connection,
    pub(super) settings: &'a RedisSettings,
}

impl Commands<'_> {
    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        command.query_async(&mut self.connection.redis).await
    }

    pub(super) fn stream_command(&self, name: &str) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(&self.settings.stream);
        command
    }

    pub(super) fn group_command(&self, name: &str) -> Cmd {
        let mut command = self.stream_command(name);
        command.arg(&self.settings.group);
        command
    }

    pub(super) fn script(&self, script: &str) -> Cmd {
        script_command(self.settings, script)
    }

    /// Ends the wait of another connection, as if its time were over. It still gets what the read took.
    pub(super) async fn unblock(&mut self, connection_id: i64) -> RedisResult<()> {
        let mut command = redis::cmd("CLIENT");
        command.arg("UNBLOCK").arg(connection_id);
        self.query(&command).await
    }

    /// The ids of all own pending entries, in order.
    pub(super) async fn own_pending(&mut self) -> RedisResult<Vec<StreamId>> {
        let mut all: Vec<StreamId> = Vec::new();
        loop {
            let start = match all.last() {
                Some(last) => format!("({last}"),
                None => "-".to_owned(),
            };
            let mut command = self.group_command("XPENDING");
            command.arg(start).arg("+").arg(IDS_AT_ONCE);
            command.arg(&self.settings.consumer_name);
            let page: StreamPendingCountReply = self.query(&command).await?;
            all.extend(ids(page.ids.iter().map(|entry| &entry.id))?);
            if page.ids.len() < IDS_AT_ONCE {
                return Ok(all);
            }
        }
    }

    /// Takes over entries that their consumer has not touched for too long, as so many ids. Their texts
    /// are read like all that is pending for us.
    pub(super) async fn claim_idle(
        &mut self,
        from: StreamId,
        count: usize,
    ) -> RedisResult<Claimed> {
        let mut command = self.group_command("XAUTOCLAIM");
        command.arg(&self.settings.consumer_name);
        command
            .arg(millis(self.settings.claim_idle))
            .arg(from.to_string());
        command.arg("COUNT").arg(count).arg("JUSTID");
        let reply: StreamAutoClaimReply = self.query(&command).await?;
        Ok(Claimed {
            next: id(&reply.next_stream_id)?,
            ids: ids(reply.claimed.iter().map(|entry| &entry.id))?,
            deleted: ids(&reply.deleted_ids)?,
        })
    }

    /// Marks entries as ours and in work, without transferring them.
    pub(super) async fn keep(&mut self, ids: &[StreamId]) -> RedisResult<()> {
        for ids in ids.chunks(IDS_AT_ONCE) {
            let mut command = self.group_command("XCLAIM");
            command.arg(&self.settings.consumer_name).arg(0);
            for id in ids {
                command.arg(id.to_string());
            }
            command.arg("JUSTID");
            self.query::<Value>(&command).await?;
        }
        Ok(())
    }

    /// Acknowledges one portion of ids; returns how many it took.
    pub(super) async fn acknowledge(&mut self, ids: &[StreamId]) -> RedisResult<usize> {
        // One command for a batch; only what is far larger than any batch is split.
        let portion = &ids[..ids.len().min(10 * IDS_AT_ONCE)];
        let mut command = self.group_command("XACK");
        for id in portion {
            command.arg(id.to_string());
        }
        self.query::<Value>(&command).await?;
        Ok(portion.len())
    }

    /// The stream and its groups at one moment. The stream's end may be left out if it is known to have
    /// come at least so far.
    pub(super) async fn look(
        &mut self,
        known_end: Option<StreamId>,
    ) -> RedisResult<StreamSnapshot> {
        let mut command = self.script(scripts::LOOK);
        command.arg(&self.settings.guard_group);
        command.arg(text_or_empty(known_end));
        self.query(&command).await
    }

    /// How many entries there are behind one id and up to another; of very many only some.
    pub(super) async fn count_entries(
        &mut self,
        mut behind: StreamId,
        last: StreamId,
    ) -> RedisResult<u64> {
        const STEPS: usize = 100;
        let mut num = 0;
        for _ in 0..STEPS {
            let mut command = self.script(scripts::COUNT_ENTRIES);
            command.arg(behind.to_string()).arg(last.to_string());
            let (counted_up_to, counted): (StreamId, u64) = self.query(&command).await?;
            if counted == 0 {
                break;
            }
            num += counted;
            behind = counted_up_to;
        }
        Ok(num)
    }

    /// The first entry that no member of a group was given, which was given all up to `last`.
    pub(super) async fn first_behind(&mut self, last: StreamId) -> RedisResult<Option<StreamId>> {
        let mut command = self.script(scripts::FIRST_BEHIND);
        command.arg(last.to_string());
        self.query(&command).await
    }

    /// Sets the guard; answers where it stands then, which is nowhere ahead of the stream.
    pub(super) async fn set_guard(
        &mut self,
        position: StreamId,
        known_end: Option<StreamId>,
    ) -> RedisResult<StreamId> {
        let mut command = self.script(scripts::MOVE_GUARD);
        command.arg(&self.settings.guard_group);
        command.arg(position.to_string());
        command.arg(text_or_empty(known_end));
        self.query(&command).await
    }

    /// Removes what is older than a position.
    pub(super) async fn trim(&mut self, position: StreamId) -> RedisResult<u64> {
        let mut command = self.stream_command("XTRIM");
        // In whole nodes, and not too much at once: exact trimming holds up everyone else.
        command.arg("MINID").arg("~").arg(position.to_string());
        command.arg("LIMIT").arg(100_000);
        self.query(&command).await
    }

    pub(super) async fn make_groups(&mut self) -> RedisResult<Made> {
        let mut command = self.script(scripts::MAKE_GROUPS);
        command.arg(if self.settings.guard {
            self.settings.guard_group.as_str()
        } else {
            ""
        });
        let (guard, group, moved) = self.query(&command).await?;
        Ok(Made {
            guard,
            group,
            moved,
        })
    }

    /// How many entries were removed before the group could read them, and not yet counted.
    pub(super) async fn count_losses(&mut self) -> RedisResult<usize> {
        let command = self.script(scripts::COUNT_LOSSES);
        self.query(&command).await
    }

    /// Has Redis write down how many entries the group has read. If that is known beyond doubt,
    /// answers how many fewer Redis thought it to be.
    pub(super) async fn record_read(&mut self) -> RedisResult<Option<usize>> {
        let command = self.script(scripts::RECORD_READ);
        let (is_known, missing): (bool, usize) = self.query(&command).await?;
        Ok(is_known.then_some(missing))
    }

    /// Shows that our consumer lives. A wait for new entries does not count as a sign of life while none
    /// come; a question for pending ones does, also behind all that there can be.
    pub(super) async fn show_life(&mut self) -> RedisResult<()> {
        let behind_all = StreamId {
            millis: u64::MAX,
            number: 0,
        };
        self.query(&read_pending(self.settings, behind_all, 1))
            .await
    }

    /// Removes the consumers of others that are gone; answers their names.
    pub(super) async fn remove_dead_consumers(&mut self) -> RedisResult<Vec<String>> {
        let mut command = self.script(scripts::REMOVE_CONSUMERS);
        command.arg(millis(self.settings.consumer_idle_removal));
        command.arg(&self.settings.consumer_name).arg("");
        command
            .arg(millis(self.settings.dead_after()))
            .arg(OWN_PREFIX);
        self.query(&command).await
    }

    /// Removes our own consumer if nothing of it is pending; whether it did.
    pub(super) async fn remove_own_consumer(&mut self) -> RedisResult<bool> {
        let mut command = self.script(scripts::REMOVE_CONSUMERS);
        command.arg(0).arg("").arg(&self.settings.consumer_name);
        command.arg(0).arg(OWN_PREFIX);
        let removed: Vec<String> = self.query(&command).await?;
        Ok(!removed.is_empty())
    }
}

/// Takes entries that nobody was given yet; may wait for the first.
pub(super) fn read_new(settings: &RedisSettings, count: usize, waits: bool) -> Cmd {
    let mut command = read_group(settings, count);
    if waits {
        command.arg("BLOCK").arg(millis(settings.block));
    }
    command.arg("STREAMS").arg(&settings.stream).arg(">");
    command
}

/// Reads own pending entries again, behind an id.
pub(super) fn read_pending(settings: &RedisSettings, behind: StreamId, count: usize) -> Cmd {
    let mut command = read_group(settings, count);
    command.arg("STREAMS").arg(&settings.stream);
    command.arg(behind.to_string());
    command
}

fn read_group(settings: &RedisSettings, count: usize) -> Cmd {
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg(&settings.group);
    command.arg(&settings.consumer_name);
    command.arg("COUNT").arg(count);
    command
}

pub(super) fn script_command(settings: &RedisSettings, script: &str) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(1).arg(&settings.stream);
    command.arg(&settings.group);
    command
}

fn text_or_empty(id: Option<StreamId>) -> String {
    id.map_or_else(String::new, |id| id.to_string())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
