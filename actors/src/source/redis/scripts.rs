//! Scripts for what must happen in one step in Redis: to check, and then to change.
//!
//! Errors are returned rather than raised, so that their codes are the same in every version.
//!
//! They are sent with EVAL. EVALSHA would save a kilobyte a second, and needs two more rights (EVALSHA and
//! SCRIPT LOAD) that users of our ACL rule were not given.

/// Lets a script do what it has to do for a stream although memory is full.
///
/// Redis then refuses a script's commands that may need memory, such as XGROUP (in 6.2 in all its
/// forms), but never behind a first write, since it does not stop scripts halfway. This first write
/// needs no memory and changes nothing: no entry has that id. If nobody could move the guard, nobody
/// could trim, and memory would stay full.
macro_rules! though_full {
    ($($script:tt)+) => {
        concat!("redis.pcall('XACK', KEYS[1], ARGV[1], '0-0')", $($script)+)
    };
}

/// A function for scripts: what XINFO answers as a list of names and values, as a table.
macro_rules! named {
    () => {
        "
local function named(list)
  local map = {}
  for i = 1, #list, 2 do map[list[i]] = list[i + 1] end
  return map
end
"
    };
}

/// A function for scripts: whether one id is smaller than another. Compared as texts, since both
/// parts of an id may be larger than the numbers that scripts calculate with.
macro_rules! less {
    () => {
        "
local function less(a, b)
  local am, an = string.match(a, '^(%d+)%-(%d+)$')
  local bm, bn = string.match(b, '^(%d+)%-(%d+)$')
  if #am ~= #bm then return #am < #bm end
  if am ~= bm then return am < bm end
  if #an ~= #bn then return #an < #bn end
  return an < bn
end
"
    };
}

/// Makes the guard and then the group, at an id that Prefect's trimming respects.
///
/// A group at `0-0` counts for nothing there, and one that is made without `ENTRIESREAD` cannot
/// tell what it lost. Answers whether the guard was made, the group made, the group moved.
pub(super) const MAKE_GROUPS: &str = though_full!(
    named!(),
    r#"
local stream, group, guard = KEYS[1], ARGV[1], ARGV[2]

local standing = {}
if redis.call('EXISTS', stream) == 1 then
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then return groups end
  for _, info in ipairs(groups) do
    info = named(info)
    standing[info['name']] = info['last-delivered-id']
  end
end

local function make(name)
  if standing[name] then return 0 end
  local made = redis.pcall('XGROUP', 'CREATE', stream, name, '0-1', 'MKSTREAM')
  if made.err then return made end
  return 1
end

local guarded = 0
if guard ~= '' then
  guarded = make(guard)
  if type(guarded) == 'table' then return guarded end
end
local made = make(group)
if type(made) == 'table' then return made end

local moved = 0
if standing[group] == '0-0' then moved = 1 end
if made == 1 or moved == 1 then
  local info = named(redis.call('XINFO', 'STREAM', stream))
  local moving = {'XGROUP', 'SETID', stream, group, '0-1'}
  if info['entries-added'] then
    table.insert(moving, 'ENTRIESREAD')
    table.insert(moving, string.format('%.0f', info['entries-added'] - info['length']))
  end
  local set = redis.pcall(unpack(moving))
  if set.err then return set end
end
return {guarded, made, moved}
"#
);

/// Looks at the groups of a stream, what is pending in one of them, the stream's length, and where
/// it ends, all at one moment.
///
/// XINFO STREAM brings the first and the last entry as well, which may be huge. So where the stream
/// ends is asked for only if our group or the guard stands ahead of where it is known to have come.
///
/// Not as a transaction: when memory is full, Redis refuses to queue whatever it is.
pub(super) const LOOK: &str = concat!(
    named!(),
    less!(),
    r#"
local stream, group, guard, known = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local groups = redis.pcall('XINFO', 'GROUPS', stream)
if groups.err then return groups end
local pending = redis.pcall('XPENDING', stream, group)
if pending.err then return pending end
local is_known = known ~= ''
for _, info in ipairs(groups) do
  info = named(info)
  local is_ours = info['name'] == group or info['name'] == guard
  if is_known and is_ours and less(known, info['last-delivered-id']) then is_known = false end
end
local last = ''
if not is_known then
  local info = redis.pcall('XINFO', 'STREAM', stream)
  if info.err then return info end
  last = named(info)['last-generated-id']
end
return {groups, pending, redis.call('XLEN', stream), last}
"#
);

/// Moves the guard, and never past the end of the stream, wherever it is told to stand. Answers where
/// it stands then. As in [`LOOK`], the end is asked for only if it is not known to be far enough.
pub(super) const MOVE_GUARD: &str = though_full!(
    named!(),
    less!(),
    r#"
local stream, guard, position, known = KEYS[1], ARGV[2], ARGV[3], ARGV[4]
if known == '' or less(known, position) then
  local info = redis.pcall('XINFO', 'STREAM', stream)
  if info.err then return info end
  local last = named(info)['last-generated-id']
  if less(last, position) then
    position = string.match(last, '^%d+') .. '-0'
    if position == '0-0' then position = '0-1' end
  end
end
local set = redis.pcall('XGROUP', 'SETID', stream, guard, position)
if set.err then return set end
return position
"#
);

/// Writes down how many entries the group has read, where that is known.
///
/// Redis does not write this number into its append-only file, nor tell its replicas, when entries
/// are read: there it stands still until a group is set. After a restart or a failover all that was
/// read since would seem to be unread, and lost once it is trimmed. Where the group was given
/// everything that was ever added the number is known, whatever Redis says; if it says less, and was
/// not restarted, what is missing was removed between two reads.
///
/// Answers whether the number is known so, and then how many are missing.
pub(super) const RECORD_READ: &str = though_full!(
    named!(),
    r#"
local stream, group = KEYS[1], ARGV[1]

local info = redis.pcall('XINFO', 'STREAM', stream)
if info.err then return info end
info = named(info)
if not info['entries-added'] then return {0, 0} end
local groups = redis.pcall('XINFO', 'GROUPS', stream)
if groups.err then return groups end
for _, ours in ipairs(groups) do
  ours = named(ours)
  if ours['name'] == group then
    local last, num, known, missing = ours['last-delivered-id'], ours['entries-read'], 0, 0
    if last == info['last-generated-id'] then
      local added = info['entries-added']
      known, missing = 1, math.max(0, added - (num or added))
      num = added
    end
    if not num then return {0, 0} end
    local set = redis.pcall('XGROUP', 'SETID', stream, group, last, 'ENTRIESREAD', string.format('%.0f', num))
    if set.err then return set end
    return {known, missing}
  end
end
return {0, 0}
"#
);

/// Counts what was removed from the stream before the group could read it, and moves the group
/// behind it, so that no replica counts it twice. There is nothing to be read in between.
///
/// Redis counts what was added, what is there and what the group has read: once everything that
/// the group read is gone too, what is missing was never read. Before 7.0 it does not count. After a
/// restart from its append-only file, or on a replica that took over, it knows of no reads since the
/// last [`RECORD_READ`], and this counts as many too many, unless the group was given everything.
pub(super) const COUNT_LOSSES: &str = concat!(
    named!(),
    less!(),
    r#"
local stream, group = KEYS[1], ARGV[1]

local function previous(id)
  local millis, number = string.match(id, '^(%d+)%-(%d+)$')
  if #millis > 15 or #number > 15 then return nil end
  if number == '0' then
    return string.format('%.0f', tonumber(millis) - 1) .. '-18446744073709551615'
  end
  return millis .. '-' .. string.format('%.0f', tonumber(number) - 1)
end

-- Of a stream that was deleted nothing is known.
if redis.call('EXISTS', stream) == 0 then return 0 end
local info = redis.pcall('XINFO', 'STREAM', stream)
if info.err then return info end
info = named(info)
if not info['entries-added'] then return 0 end
local ours
for _, other in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  other = named(other)
  if other['name'] == group then ours = other end
end
if not ours or not ours['entries-read'] then return 0 end
-- At the end there is nothing to lose, and ahead of it nothing to be told.
if not less(ours['last-delivered-id'], info['last-generated-id']) then return 0 end
local first = info['first-entry'] and info['first-entry'][1]
if first and not less(ours['last-delivered-id'], first) then return 0 end
local removed = info['entries-added'] - info['length']
local lost = removed - ours['entries-read']
if lost <= 0 then return 0 end
local target = info['last-generated-id']
if first then target = previous(first) end
if not target then return 0 end
local set = redis.pcall('XGROUP', 'SETID', stream, group, target, 'ENTRIESREAD', string.format('%.0f', removed))
if set.err then return set end
return lost
"#
);

/// Answers the id of the first entry behind a given one, without its text.
pub(super) const FIRST_BEHIND: &str = r#"
local entries = redis.pcall('XRANGE', KEYS[1], '(' .. ARGV[2], '+', 'COUNT', 1)
if entries.err then return entries end
if #entries == 0 then return false end
return entries[1][1]
"#;

/// Removes consumers with nothing pending that were idle for longer than given, those of our replicas
/// after another time: all but one, or one alone. To remove a consumer discards what it has pending,
/// hence check and removal in one. Answers the names.
///
/// A replica that only seemed dead loses nothing by it: its next read, also one that waits already, makes
/// its consumer again.
pub(super) const REMOVE_CONSUMERS: &str = though_full!(
    named!(),
    r#"
local stream, group = KEYS[1], ARGV[1]
local idle, except, only = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local idle_of_ours, prefix = tonumber(ARGV[5]), ARGV[6]
local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, group)
if consumers.err then return consumers end
local removed = {}
for _, consumer in ipairs(consumers) do
  consumer = named(consumer)
  local name = consumer['name']
  local chosen = name ~= except and (only == '' or name == only)
  local is_ours = string.sub(name, 1, #prefix) == prefix
  local allowed = is_ours and idle_of_ours or idle
  if chosen and consumer['pending'] == 0 and consumer['idle'] >= allowed then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, name)
    table.insert(removed, name)
  end
end
return removed
"#
);

/// Counts entries behind one id and up to another, as far as some steps lead. Answers the id of the last
/// that was counted, and how many there are.
///
/// In small steps with an end, since their texts are in memory while they are counted.
pub(super) const COUNT_ENTRIES: &str = r#"
local after, last, num, bytes = ARGV[2], ARGV[3], 0, 0
while num < 1000 and bytes < 4194304 do
  local entries = redis.pcall('XRANGE', KEYS[1], '(' .. after, last, 'COUNT', 16)
  if entries.err then return entries end
  if #entries == 0 then break end
  for _, entry in ipairs(entries) do
    for _, text in ipairs(entry[2]) do bytes = bytes + #text end
  end
  num, after = num + #entries, entries[#entries][1]
end
return {after, num}
"#;

pub(super) use named;
