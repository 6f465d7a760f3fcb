//! Scripts for what must happen in one step in Redis: to check, and then to change.
//!
//! Errors are returned rather than raised, so that their codes are the same in every version. Scripts are
//! sent with EVAL: `redis::Script` needs EVALSHA, which our documented ACL rule does not give.

/// Lets a script do what it has to do for a stream although memory is full.
///
/// Redis then refuses commands that may need memory, such as XGROUP, but never behind a first write of the
/// script. This one needs no memory and changes nothing: no entry has that id. If nobody could move the
/// guard, nobody could trim, and memory would stay full.
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

/// A function for scripts: whether one id is smaller than another. As texts, since the parts of an id may be
/// larger than the numbers of Lua.
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

/// A function for scripts: the primaries of the database that are recorded for a group, the latest first.
///
/// Each is a group that is named after it and stands at `0-0`, where it counts for nothing and holds nothing. So
/// it lives and moves with the stream, and needs no more rights than the stream does.
macro_rules! recorded {
    () => {
        "
local function recorded(stream, prefix)
  local all = {}
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then return all end
  for _, group in ipairs(groups) do
    local name = named(group)['name']
    if string.sub(name, 1, #prefix) == prefix then
      local system, timeline = string.match(string.sub(name, #prefix + 1), '^(%d+):(%d+)$')
      if system then table.insert(all, {system, tonumber(timeline), name}) end
    end
  end
  table.sort(all, function(a, b) return a[2] > b[2] end)
  return all
end
"
    };
}

/// Records the primary that we write to, if one is given and no later one is recorded nor one of another system.
/// Answers the one that is recorded then, if any.
pub(super) const AGREE: &str = concat!(
    named!(),
    recorded!(),
    r#"
local stream, group, prefix, system, timeline = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local all = recorded(stream, prefix)
local latest = all[1]
if system and (not latest or (latest[1] == system and latest[2] < timeline)) then
  -- So that it works in full memory.
  redis.pcall('XACK', stream, group, '0-0')
  local made = redis.pcall('XGROUP', 'CREATE', stream, prefix .. system .. ':' .. ARGV[4], '0-0')
  if made.err then return made end
  latest = {system, timeline}
end
if not latest then return false end
for _, older in ipairs(all) do
  local is_older = older[1] == latest[1] and older[2] < latest[2]
  if system and is_older then redis.call('XGROUP', 'DESTROY', stream, older[3]) end
end
return {latest[1], latest[2]}
"#
);

/// Acknowledges entries that were written to a primary, unless another one is recorded, which it answers then:
/// they may be lost to that one.
pub(super) const ACKNOWLEDGE: &str = concat!(
    named!(),
    recorded!(),
    r#"
local stream, group, prefix, system, timeline = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local latest = recorded(stream, prefix)[1]
if latest and (latest[1] ~= system or latest[2] > timeline) then return {latest[1], latest[2]} end
-- Lua passes only so many arguments on.
for first = 5, #ARGV, 1000 do
  local acknowledged = redis.pcall('XACK', stream, group, unpack(ARGV, first, math.min(first + 999, #ARGV)))
  if type(acknowledged) == 'table' and acknowledged.err then return acknowledged end
end
return false
"#
);

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
if guard then
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
/// XINFO STREAM brings the first and the last entry as well, which may be huge. So it is sent only if our
/// group or the guard stands ahead of where the stream is known to have come. Not as a transaction: when
/// memory is full, Redis refuses to queue anything.
pub(super) const LOOK: &str = concat!(
    named!(),
    less!(),
    r#"
local stream, group, guard, known = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local groups = redis.pcall('XINFO', 'GROUPS', stream)
if groups.err then return groups end
local pending = redis.pcall('XPENDING', stream, group)
if pending.err then return pending end
local is_known = known ~= nil
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

/// Moves the guard, but never past the end of the stream, which is asked for as in [`LOOK`]. Answers where it
/// stands then.
pub(super) const MOVE_GUARD: &str = though_full!(
    named!(),
    less!(),
    r#"
local stream, guard, position, known = KEYS[1], ARGV[2], ARGV[3], ARGV[4]
if not known or less(known, position) then
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
/// When entries are read, this number reaches neither the append-only file nor a replica. After a restart or
/// a failover all that was read since would seem unread, and lost once it is trimmed. Where the group was
/// given everything that was ever added the number is known; if Redis has less and was not restarted, what is
/// missing was removed between two reads.
///
/// As in [`LOOK`], the stream's end is asked for only if the group may have come to it. Answers whether the
/// number is known so, and then how many are missing.
pub(super) const RECORD_READ: &str = though_full!(
    named!(),
    less!(),
    r#"
local stream, group, end_known = KEYS[1], ARGV[1], ARGV[2]

local groups = redis.pcall('XINFO', 'GROUPS', stream)
if groups.err then return groups end
for _, ours in ipairs(groups) do
  ours = named(ours)
  if ours['name'] == group then
    local last, num, known, missing = ours['last-delivered-id'], ours['entries-read'], 0, 0
    if not end_known or not less(last, end_known) then
      local info = redis.pcall('XINFO', 'STREAM', stream)
      if info.err then return info end
      info = named(info)
      local added = info['entries-added']
      if added and last == info['last-generated-id'] then
        known, missing = 1, math.max(0, added - (num or added))
        num = added
      end
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
/// Redis (since 7.0) counts what was added, what is there and what the group has read: once everything that
/// the group read is gone too, what is missing was never read. After a restart or a failover it knows of no
/// reads since the last [`RECORD_READ`], and this counts as many too many.
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

pub(super) const FIRST_BEHIND: &str = r#"
local entries = redis.pcall('XRANGE', KEYS[1], '(' .. ARGV[2], '+', 'COUNT', 1)
if entries.err then return entries end
if #entries == 0 then return false end
return entries[1][1]
"#;

/// Looks at what is pending for others: the first entry of each other replica, and all entries that were not
/// touched for long, with Redis's clock in milliseconds.
pub(super) const LOOK_AT_OTHERS: &str = r#"
local stream, group, me, prefix, late = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local time = redis.call('TIME')
local summary = redis.pcall('XPENDING', stream, group)
if summary.err then return summary end
local firsts = {}
for _, consumer in ipairs(summary[4] or {}) do
  local name = consumer[1]
  if name ~= me and string.sub(name, 1, #prefix) == prefix then
    local first = redis.call('XPENDING', stream, group, '-', '+', 1, name)[1]
    if first then table.insert(firsts, {first[1], name, first[3]}) end
  end
end
local lates = {}
for _, entry in ipairs(redis.call('XPENDING', stream, group, 'IDLE', late, '-', '+', 10000)) do
  if entry[2] ~= me then table.insert(lates, {entry[1], entry[2], entry[3]}) end
end
return {string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), firsts, lates}
"#;

/// Takes over entries that are left: all of a consumer that is given, or those that were not touched for so long.
/// What was touched meanwhile stays with its consumer. Answers the entries, and those whose text is gone, which
/// are pending for nobody any more.
pub(super) const CLAIM: &str = r#"
local stream, group, me, idle, owner = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local claimed, gone = {}, {}
for i = 5, #ARGV do
  local id = ARGV[i]
  local entry = redis.call('XPENDING', stream, group, id, id, 1)[1]
  local is_left = entry and entry[2] ~= me
  if is_left and owner ~= '' then is_left = entry[2] == owner
  elseif is_left then is_left = entry[3] >= idle end
  if is_left then
    local taken = redis.pcall('XCLAIM', stream, group, me, 0, id, 'JUSTID')
    if taken.err then return taken end
    -- Since 7.0 one without text goes from what is pending instead.
    table.insert(#taken == 0 and gone or claimed, id)
  end
end
return {claimed, gone}
"#;

/// Removes consumers with nothing pending that were idle for longer than given, those of our replicas
/// after another time: all but one, or one alone. Check and removal are one, since to remove a consumer
/// discards what it has pending. One that only seemed dead is made again by its next read. Answers how many.
pub(super) const REMOVE_CONSUMERS: &str = though_full!(
    named!(),
    r#"
local stream, group = KEYS[1], ARGV[1]
local idle, except, only = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local idle_of_ours, prefix = tonumber(ARGV[5]), ARGV[6]
local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, group)
if consumers.err then return consumers end
local removed = 0
for _, consumer in ipairs(consumers) do
  consumer = named(consumer)
  local name = consumer['name']
  local chosen = name ~= except and (only == '' or name == only)
  local is_ours = string.sub(name, 1, #prefix) == prefix
  local allowed = is_ours and idle_of_ours or idle
  if chosen and consumer['pending'] == 0 and consumer['idle'] >= allowed then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, name)
    removed = removed + 1
  end
end
return removed
"#
);

/// Counts those of the given ids that are not in the stream, from its first entry on.
pub(super) const COUNT_MISSING: &str = concat!(
    less!(),
    r#"
local first = redis.pcall('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if first.err then return first end
local num = 0
for i = 2, #ARGV do
  local id = ARGV[i]
  local is_trimmed = first[1] and less(id, first[1][1])
  if not is_trimmed and #redis.call('XRANGE', KEYS[1], id, id) == 0 then num = num + 1 end
end
return num
"#
);

/// Counts entries behind one id and up to another, in small steps with an end, since their texts are in
/// memory meanwhile. Answers the id of the last that was counted, and how many there are.
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
