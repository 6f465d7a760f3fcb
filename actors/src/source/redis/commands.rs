//! The commands that are sent, each with its answer understood.

use std::time::Duration;

use redis::{Cmd, RedisResult, Value};

use crate::source::Permit;

use super::connection::Connection;
use super::replies::{self, Claimed, Group, NewEntries, RawEntry, Sight};
use super::scripts;
use super::settings::{OWN_PREFIX, RedisSettings};
use super::stream_id::StreamId;

/// Ids in one command at most: a command that names more holds up the server for longer than
/// others should wait.
const IDS_AT_ONCE: usize = 1000;

/// Entries of others that may be claimed at once. All of them may be as large as the largest event
/// there is, and a reply is in memory more than once while it is understood.
pub(super) const FEW: usize = 16;

/// What making the groups did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) guard: bool,
    pub(super) group: bool,
    pub(super) moved: bool,
}

/// What came of making a group beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joined {
    /// There is no stream.
    NoStream,
    /// The group is there, and begins behind this id if it was not there before.
    At(StreamId),
}

/// A connection and the names that its commands are about.
pub(super) struct Commands<'a> {
    pub(super) connection: Connection,
    pub(super) settings: &'a RedisSettings,
}

impl Commands<'_> {
    pub(super) async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self.connection.redis.send_packed_command(command).await? {
            Value::ServerError(error) => Err(error.into()),
            value => Ok(value),
        }
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

    fn script(&self, script: &str) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg(&self.settings.stream);
        command.arg(&self.settings.group);
        command
    }

    /// Counts what was removed before the group could read it, then takes entries that nobody was given
    /// yet, as many as stay within the permit, but at least one; at one moment: what is removed in
    /// between would be passed over uncounted.
    pub(super) async fn read_and_count_losses(
        &mut self,
        permit: Permit,
    ) -> RedisResult<(usize, NewEntries)> {
        let mut command = self.script(&scripts::count_losses_and_read());
        command.arg(&self.settings.consumer_name);
        command.arg(permit.max_messages).arg(permit.max_bytes);
        let (lost, read) = replies::losses_and_read(self.send(&command).await?)?;
        Ok((usize::try_from(lost).unwrap_or(usize::MAX), read))
    }

    /// Ends the wait of another connection, as if its time were over. What it took it still gets.
    pub(super) async fn unblock(&mut self, connection_id: i64) -> RedisResult<()> {
        let mut command = redis::cmd("CLIENT");
        command.arg("UNBLOCK").arg(connection_id);
        self.send(&command).await.map(drop)
    }

    /// Reads own pending entries again, behind an id.
    pub(super) async fn read_pending(
        &mut self,
        behind: StreamId,
        count: usize,
    ) -> RedisResult<Vec<RawEntry>> {
        let command = read_pending(self.settings, behind, count);
        replies::entries_read(self.send(&command).await?)
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
            let page = replies::pending_ids(self.send(&command).await?)?;
            let is_last = page.len() < IDS_AT_ONCE;
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Takes entries that their consumer has not touched for too long.
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
        command.arg("COUNT").arg(count);
        replies::claimed(self.send(&command).await?)
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
            self.send(&command).await?;
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
        self.send(&command).await?;
        Ok(portion.len())
    }

    /// Groups, what is pending in ours, the length of the stream and where it ends, all at one
    /// moment. Its end may be left out if it is known to have come at least so far.
    pub(super) async fn look(&mut self, known_end: Option<StreamId>) -> RedisResult<Sight> {
        let mut command = self.script(scripts::LOOK);
        command.arg(&self.settings.guard_group);
        command.arg(known_end.map_or_else(String::new, |end| end.to_string()));
        replies::sight(self.send(&command).await?)
    }

    /// The last id of a stream that is there.
    pub(super) async fn last_id(&mut self) -> RedisResult<Option<StreamId>> {
        let command = self.script(scripts::LAST_ID);
        let found = replies::ids_of(self.send(&command).await?)?;
        Ok(found.first().copied())
    }

    /// How many entries there are behind one id and up to another; of very many only some.
    pub(super) async fn count_entries(
        &mut self,
        mut behind: StreamId,
        last: StreamId,
    ) -> RedisResult<u64> {
        const PAGES: usize = 100;
        const PAGE_BYTES: usize = 4 << 20;
        let mut num = 0;
        for _ in 0..PAGES {
            let mut command = self.script(scripts::COUNT_ENTRIES);
            command.arg(behind.to_string()).arg(last.to_string());
            command.arg(IDS_AT_ONCE).arg(PAGE_BYTES);
            let counted = replies::texts(self.send(&command).await?)?;
            let [id, counted] = &counted[..] else {
                break;
            };
            let (Ok(id), Ok(counted)) = (id.parse(), counted.parse::<u64>()) else {
                return Err(replies::unexpected("an id and a count"));
            };
            num += counted;
            behind = id;
        }
        Ok(num)
    }

    /// The first entry that no member of a group was given, which was given all up to `last`.
    pub(super) async fn first_behind(&mut self, last: StreamId) -> RedisResult<Option<StreamId>> {
        let mut command = self.script(scripts::FIRST_BEHIND);
        command.arg(last.to_string());
        let found = replies::texts(self.send(&command).await?)?;
        Ok(found.first().and_then(|id| id.parse().ok()))
    }

    /// Sets the guard; answers where it stands then, which is nowhere ahead of the stream.
    pub(super) async fn set_guard(&mut self, position: StreamId) -> RedisResult<StreamId> {
        let mut command = self.script(scripts::MOVE_GUARD);
        command.arg(&self.settings.guard_group);
        command.arg(position.to_string());
        let set = replies::ids_of(self.send(&command).await?)?;
        Ok(set.first().copied().unwrap_or(position))
    }

    /// Removes a group; whether it was there.
    pub(super) async fn destroy_group(&mut self, group: &str) -> RedisResult<bool> {
        let mut command = redis::cmd("XGROUP");
        command.arg("DESTROY").arg(&self.settings.stream).arg(group);
        Ok(replies::number(self.send(&command).await?)? > 0)
    }

    /// Makes the group and our consumer behind an id, or at the end of the stream; never the stream.
    pub(super) async fn join_beside(&mut self, behind: Option<StreamId>) -> RedisResult<Joined> {
        let mut command = self.script(scripts::JOIN_BESIDE);
        command.arg(&self.settings.consumer_name);
        command.arg(behind.map_or_else(|| "$".to_owned(), |id| id.to_string()));
        let joined = replies::ids_of(self.send(&command).await?)?;
        Ok(joined
            .first()
            .map_or(Joined::NoStream, |id| Joined::At(*id)))
    }

    /// The ids of the group's pending entries from an id on, in order, so many at most.
    pub(super) async fn pending_from(
        &mut self,
        from: StreamId,
        max: usize,
    ) -> RedisResult<Vec<StreamId>> {
        let mut all: Vec<StreamId> = Vec::new();
        let mut start = from.to_string();
        loop {
            let count = IDS_AT_ONCE.min(max - all.len());
            let mut command = self.group_command("XPENDING");
            command.arg(&start).arg("+").arg(count);
            let page = replies::pending_ids(self.send(&command).await?)?;
            let is_last = page.len() < count;
            all.extend(page);
            match all.last() {
                Some(last) if !is_last && all.len() < max => start = format!("({last}"),
                _ => return Ok(all),
            }
        }
    }

    /// Reads entries behind one id and up to another, as many as stay within so many bytes, but at
    /// least one, and takes none; with the ids of those that are pending.
    pub(super) async fn read_page(
        &mut self,
        behind: StreamId,
        last: StreamId,
        max_bytes: usize,
    ) -> RedisResult<(Vec<RawEntry>, Vec<StreamId>)> {
        let mut command = self.script(scripts::READ_PAGE);
        command.arg(behind.to_string()).arg(last.to_string());
        command.arg(IDS_AT_ONCE).arg(max_bytes);
        replies::page(self.send(&command).await?)
    }

    /// The server's version; `None` if it does not say.
    pub(super) async fn server_version(&mut self) -> RedisResult<Option<String>> {
        let mut command = redis::cmd("INFO");
        command.arg("server");
        let info: String = redis::from_redis_value(self.send(&command).await?)?;
        let version = info
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"));
        Ok(version.map(|version| version.trim().to_owned()))
    }

    /// Whether the stream is there.
    pub(super) async fn stream_exists(&mut self) -> RedisResult<bool> {
        let command = self.stream_command("EXISTS");
        Ok(replies::number(self.send(&command).await?)? > 0)
    }

    /// All groups of the stream and its length, whether ours is among them or not.
    pub(super) async fn all_groups(&mut self) -> RedisResult<Vec<Group>> {
        let mut command = redis::cmd("XINFO");
        command.arg("GROUPS").arg(&self.settings.stream);
        replies::groups(self.send(&command).await?)
    }

    pub(super) async fn length(&mut self) -> RedisResult<u64> {
        let command = self.stream_command("XLEN");
        replies::number(self.send(&command).await?)
    }

    /// Removes what is older than a position.
    pub(super) async fn trim(&mut self, position: StreamId) -> RedisResult<u64> {
        let mut command = self.stream_command("XTRIM");
        // In whole nodes, and not too much at once: exact trimming holds up everyone else.
        command.arg("MINID").arg("~").arg(position.to_string());
        command.arg("LIMIT").arg(100_000);
        replies::number(self.send(&command).await?)
    }

    pub(super) async fn make_groups(&mut self) -> RedisResult<Made> {
        let mut command = self.script(scripts::MAKE_GROUPS);
        command.arg(if self.settings.guard {
            self.settings.guard_group.as_str()
        } else {
            ""
        });
        let [guard, group, moved] = replies::numbers(self.send(&command).await?)?;
        Ok(Made {
            guard: guard > 0,
            group: group > 0,
            moved: moved > 0,
        })
    }

    /// How many entries were removed before the group could read them, and not yet counted.
    pub(super) async fn count_losses(&mut self) -> RedisResult<usize> {
        let command = self.script(scripts::COUNT_LOSSES);
        let [lost] = replies::numbers(self.send(&command).await?)?;
        Ok(usize::try_from(lost).unwrap_or(usize::MAX))
    }

    /// Has Redis write down how many entries the group has read. If that is known beyond doubt,
    /// answers how many fewer Redis thought it to be.
    pub(super) async fn record_read(&mut self) -> RedisResult<Option<usize>> {
        let command = self.script(scripts::RECORD_READ);
        let [known, missing] = replies::numbers(self.send(&command).await?)?;
        Ok((known > 0).then(|| usize::try_from(missing).unwrap_or(usize::MAX)))
    }

    /// Shows that our consumer lives. To wait for what is new counts for nothing where nothing comes,
    /// to ask for what is pending does, also behind all that there can be.
    pub(super) async fn show_life(&mut self) -> RedisResult<()> {
        let behind_all = StreamId {
            millis: u64::MAX,
            number: 0,
        };
        self.send(&read_pending(self.settings, behind_all, 1))
            .await
            .map(drop)
    }

    /// Removes the consumers of others that are gone; answers their names.
    pub(super) async fn remove_dead_consumers(&mut self) -> RedisResult<Vec<String>> {
        let mut command = self.script(scripts::REMOVE_CONSUMERS);
        command.arg(millis(self.settings.consumer_idle_removal));
        command.arg(&self.settings.consumer_name).arg("");
        command
            .arg(millis(self.settings.dead_after()))
            .arg(OWN_PREFIX);
        replies::texts(self.send(&command).await?)
    }

    /// Removes our own consumer if nothing of it is pending; whether it did.
    pub(super) async fn remove_own_consumer(&mut self) -> RedisResult<bool> {
        let mut command = self.script(scripts::REMOVE_CONSUMERS);
        command.arg(0).arg("").arg(&self.settings.consumer_name);
        command.arg(0).arg(OWN_PREFIX);
        let removed = replies::texts(self.send(&command).await?)?;
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

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
