//! The commands that only the operator's tools send.

use redis::streams::{StreamInfoConsumer, StreamInfoConsumersReply};
use redis::{Cmd, RedisResult};

use crate::source::redis::connection::{Commands, script_command};
use crate::source::redis::scripts::{COUNT_LOSSES, named};
use crate::source::redis::settings::RedisSettings;
use crate::source::redis::snapshot::{Group, Groups, StreamSnapshot, find};
use crate::source::redis::stream_id::StreamId;

const LAST_ID: &str = concat!(
    named!(),
    r#"
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err then return info end
return named(info)['last-generated-id']
"#
);

/// Makes a group with its consumer on a stream that is there, behind an id or at the end. Answers the
/// id that it begins behind, or nil where there is no stream.
///
/// At the end it is told how many entries there were, or it could not tell later what it lost. A group that
/// is there already, since an answer was lost, stays. Without a consumer Prefect would delete the group.
const JOIN_BESIDE: &str = concat!(
    named!(),
    r#"
local stream, group, consumer, position = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', stream) == 0 then return false end
local list = redis.pcall('XINFO', 'STREAM', stream)
if list.err then return list end
local info = named(list)
local creating, if_there = {'XGROUP', 'CREATE', stream, group, position}, position
if position == '$' then
  if_there = '0-1'
  position = info['last-generated-id']
  creating[5] = position
  if info['entries-added'] then
    table.insert(creating, 'ENTRIESREAD')
    table.insert(creating, string.format('%.0f', info['entries-added']))
  end
end
local made = redis.pcall(unpack(creating))
if made.err then
  if not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
  position = if_there
end
redis.pcall('XGROUP', 'CREATECONSUMER', stream, group, consumer)
return position
"#
);

/// Reads a page of the stream and takes nothing: so many entries, and the ids of those that are pending, in
/// one step, so that the others were acknowledged before anyone sees the page.
const READ_PAGE: &str = r#"
local stream, group = KEYS[1], ARGV[1]
local page = redis.pcall('XRANGE', stream, '(' .. ARGV[2], ARGV[3], 'COUNT', ARGV[4])
if page.err then return page end
if #page == 0 then return {{}, {}} end

local pending, from, to = {}, page[1][1], page[#page][1]
while true do
  local some = redis.pcall('XPENDING', stream, group, from, to, 1000)
  if some.err then return some end
  for _, entry in ipairs(some) do table.insert(pending, entry[1]) end
  if #some < 1000 then break end
  from = '(' .. pending[#pending]
end
return {page, pending}
"#;

pub(super) fn read_page(
    settings: &RedisSettings,
    behind: StreamId,
    last: StreamId,
    count: usize,
) -> Cmd {
    let mut command = script_command(settings, READ_PAGE);
    command.arg(behind).arg(last).arg(count);
    command
}

/// Counts what was removed before the group could read it, then takes so many entries that nobody was
/// given yet; at one moment, or what is removed in between would be passed over uncounted. Losses are
/// answered also where the read fails, since nobody counts them again.
pub(super) fn count_losses_and_read(settings: &RedisSettings, count: usize) -> Cmd {
    let script = format!(
        "local function count() {COUNT_LOSSES} end\n\
         local lost = count()\n\
         if type(lost) == 'table' then return lost end\n\
         local read = redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], \
         'STREAMS', KEYS[1], '>')\n\
         if type(read) == 'table' and read.err then\n\
         if lost == 0 then return read end\n\
         read = false\n\
         end\n\
         return {{lost, read}}"
    );
    let mut command = script_command(settings, &script);
    command.arg(&settings.consumer_name).arg(count);
    command
}

impl Commands<'_> {
    pub(super) async fn join_beside(
        &mut self,
        behind: Option<StreamId>,
    ) -> RedisResult<Option<StreamId>> {
        let mut command = self.script(JOIN_BESIDE);
        command.arg(&self.settings.consumer_name);
        command.arg(behind.map_or_else(|| "$".to_owned(), |id| id.to_string()));
        self.query(&command).await
    }

    pub(super) async fn destroy_group(&mut self, group: &str) -> RedisResult<bool> {
        if !self.stream_exists().await? {
            return Ok(false);
        }
        let command = Cmd::xgroup_destroy(&self.settings.stream, group);
        self.query(&command).await
    }

    pub(super) async fn server_version(&mut self) -> RedisResult<Option<String>> {
        let info: String = self.query(redis::cmd("INFO").arg("server")).await?;
        let version = info
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"));
        Ok(version.map(|version| version.trim().to_owned()))
    }

    async fn stream_exists(&mut self) -> RedisResult<bool> {
        self.query(&Cmd::exists(&self.settings.stream)).await
    }

    /// All groups of the stream, whether ours is among them or not; none without a stream.
    pub(super) async fn all_groups(&mut self) -> RedisResult<Vec<Group>> {
        if !self.stream_exists().await? {
            return Ok(Vec::new());
        }
        let command = Cmd::xinfo_groups(&self.settings.stream);
        let groups: Groups = self.query(&command).await?;
        Ok(groups.0)
    }

    /// The stream, whether our group is there or not; `None` without a stream.
    pub(super) async fn look_from_outside(&mut self) -> RedisResult<Option<StreamSnapshot>> {
        if !self.stream_exists().await? {
            return Ok(None);
        }
        let groups = self.all_groups().await?;
        if find(&groups, &self.settings.group).is_some() {
            // All at one moment, since a guard is compared with what is pending.
            return self.look(None).await.map(Some);
        }
        Ok(Some(StreamSnapshot {
            groups,
            length: self.query(&Cmd::xlen(&self.settings.stream)).await?,
            end: Some(self.query(&self.script(LAST_ID)).await?),
            ..StreamSnapshot::default()
        }))
    }

    pub(super) async fn consumers(&mut self) -> RedisResult<Vec<StreamInfoConsumer>> {
        let command = Cmd::xinfo_consumers(&self.settings.stream, &self.settings.group);
        let reply: StreamInfoConsumersReply = self.query(&command).await?;
        Ok(reply.consumers)
    }

    pub(super) async fn info(&mut self) -> RedisResult<String> {
        self.query(&redis::cmd("INFO")).await
    }

    /// The server's clock in milliseconds, by which it numbers entries.
    pub(super) async fn now(&mut self) -> RedisResult<u64> {
        let (seconds, micros): (u64, u64) = self.query(&redis::cmd("TIME")).await?;
        Ok(seconds.saturating_mul(1000).saturating_add(micros / 1000))
    }
}
