//! What must happen in one step in Redis, as scripts: whatever checks and then changes.
//!
//! Errors are returned rather than raised, so that their codes are the same in every version.

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

/// Answers the last id of a stream that is there.
pub(super) const LAST_ID: &str = concat!(
    named!(),
    r#"
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err then return info end
return {named(info)['last-generated-id']}
"#
);

/// Moves the guard, and never past the end of the stream, wherever it is told to stand. Answers where
/// it stands then.
pub(super) const MOVE_GUARD: &str = though_full!(
    named!(),
    less!(),
    r#"
local stream, guard, position = KEYS[1], ARGV[2], ARGV[3]
local info = redis.pcall('XINFO', 'STREAM', stream)
if info.err then return info end
local last = named(info)['last-generated-id']
if less(last, position) then
  position = string.match(last, '^%d+') .. '-0'
  if position == '0-0' then position = '0-1' end
end
local set = redis.pcall('XGROUP', 'SETID', stream, guard, position)
if set.err then return set end
return {position}
"#
);

/// Makes a group with its consumer on a stream that is there, behind an id or at the end. Answers the
/// id that it begins behind, or nothing where there is no stream.
///
/// At the end it is told how many entries there were, or it could not tell later what it lost. A
/// group that is there already, since an answer was lost, begins where it began. The consumer is made
/// with it: Prefect deletes such groups while they have none.
pub(super) const JOIN_BESIDE: &str = concat!(
    named!(),
    r#"
local stream, group, consumer, position = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', stream) == 0 then return {} end
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
return {position}
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
if redis.call('EXISTS', stream) == 0 then return {0} end
local info = redis.pcall('XINFO', 'STREAM', stream)
if info.err then return info end
info = named(info)
if not info['entries-added'] then return {0} end
local ours
for _, other in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  other = named(other)
  if other['name'] == group then ours = other end
end
if not ours or not ours['entries-read'] then return {0} end
-- At the end there is nothing to lose, and ahead of it nothing to be told.
if not less(ours['last-delivered-id'], info['last-generated-id']) then return {0} end
local first = info['first-entry'] and info['first-entry'][1]
if first and not less(ours['last-delivered-id'], first) then return {0} end
local removed = info['entries-added'] - info['length']
local lost = removed - ours['entries-read']
if lost <= 0 then return {0} end
local target = info['last-generated-id']
if first then target = previous(first) end
if not target then return {0} end
local set = redis.pcall('XGROUP', 'SETID', stream, group, target, 'ENTRIESREAD', string.format('%.0f', removed))
if set.err then return set end
return {lost}
"#
);

/// Answers the id of the first entry behind a given one, without its text.
pub(super) const FIRST_BEHIND: &str = r#"
local entries = redis.pcall('XRANGE', KEYS[1], '(' .. ARGV[2], '+', 'COUNT', 1)
if entries.err then return entries end
if #entries == 0 then return {} end
return {entries[1][1]}
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

/// A function for scripts: entries behind one id and up to another, as many as stay within a number
/// of bytes, but at least one; and whether it was the count or the bytes that ended them.
///
/// How large entries are shows only when they are read, and behind thousands of small ones there may
/// stand a backlog of huge ones. So they are looked at in steps, each as large as the largest so far
/// lets it be.
macro_rules! with_within {
    ($($script:tt)+) => {
        concat!(
            r#"
local stream, group = KEYS[1], ARGV[1]

local function within(after, last, count, max_bytes)
  local page, bytes, largest, step = {}, 0, 1, 4
  while #page < count do
    local asked = math.min(step, count - #page)
    local entries = redis.pcall('XRANGE', stream, '(' .. after, last, 'COUNT', asked)
    if entries.err then return entries end
    for _, entry in ipairs(entries) do
      local size = 0
      for _, text in ipairs(entry[2]) do size = size + #text end
      if #page > 0 and bytes + size > max_bytes then return page, true end
      table.insert(page, entry)
      bytes, largest, after = bytes + size, math.max(largest, size), entry[1]
    end
    if #entries < asked then return page, false end
    step = math.max(1, math.min(96, math.floor((max_bytes - bytes) / largest)))
  end
  return page, true
end
"#,
            $($script)+
        )
    };
}

/// Takes new entries for a consumer, as many as stay within a number of bytes, but at least one.
/// Answers whether there was more, and the entries.
///
/// What is handed out cannot be given back, so sizes are looked at first, and the entries taken in the
/// same step. XREADGROUP would bring their texts a second time; so the group is moved behind the last
/// instead, with the number that it has read as [`RECORD_READ`] writes it down, and XCLAIM takes them
/// by their ids, as new ones. Where one of the two is refused, XREADGROUP does it after all.
///
/// Redis writes a script down, and hands it on to replicas, as one transaction. Nothing else would do:
/// between the two steps the entries are behind the group and nobody's.
pub(super) const READ_WITHIN: &str = with_within!(
    named!(),
    r#"
local consumer, count, max_bytes = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local function ours()
  local groups = {}
  if redis.call('EXISTS', stream) == 1 then groups = redis.pcall('XINFO', 'GROUPS', stream) end
  if groups.err then return groups end
  for _, list in ipairs(groups) do
    local info = named(list)
    if info['name'] == group then return info end
  end
  return redis.error_reply('NOGROUP the stream or its group is not there')
end

-- Redis before 7.0 does not count, and names no number.
local function num_read_with(entries, before)
  if before then return before + #entries end
  if before == nil then return nil end
  local info = redis.pcall('XINFO', 'STREAM', stream)
  if info.err then return nil end
  info = named(info)
  local first = info['first-entry'] and info['first-entry'][1]
  if first == entries[1][1] then return info['entries-added'] - info['length'] + #entries end
  if info['last-generated-id'] == entries[#entries][1] then return info['entries-added'] end
  return nil
end

local function move(id, num_read)
  local moving = {'XGROUP', 'SETID', stream, group, id}
  if num_read then
    table.insert(moving, 'ENTRIESREAD')
    table.insert(moving, string.format('%.0f', num_read))
  end
  return redis.pcall(unpack(moving))
end

local function take(entries, before)
  local num_read = num_read_with(entries, before['entries-read'])
  if move(entries[#entries][1], num_read).err then return false end
  local taking = {'XCLAIM', stream, group, consumer, 0}
  for _, entry in ipairs(entries) do table.insert(taking, entry[1]) end
  for _, option in ipairs({'FORCE', 'JUSTID', 'RETRYCOUNT', 1}) do table.insert(taking, option) end
  local taken = redis.pcall(unpack(taking))
  if not taken.err and #taken == #entries then return true end
  move(before['last-delivered-id'], before['entries-read'])
  return false
end

local before = ours()
if before.err then return before end
local entries, more = within(before['last-delivered-id'], '+', count, max_bytes)
if entries.err then return entries end
if #entries > 0 and not take(entries, before) then
  local read = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', #entries, 'STREAMS', stream, '>')
  if type(read) ~= 'table' then return {0, {}} end
  if read.err then return read end
  entries = read[1][2]
end
return {more and 1 or 0, entries}
"#
);

/// Reads a page of the stream and takes nothing: as many entries as stay within a number of bytes,
/// but at least one, and the ids of those on the page that are pending in the group.
///
/// Both in one step, so that what is not pending was acknowledged before anyone sees the page.
pub(super) const READ_PAGE: &str = with_within!(
    r#"
local page = within(ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]))
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
"#
);

/// Counts the entries behind one id and up to another, as far as they stay within a number of bytes.
/// Answers the id of the last that was counted, and how many there are; nothing where there are none.
pub(super) const COUNT_ENTRIES: &str = with_within!(
    r#"
local page = within(ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]))
if page.err then return page end
if #page == 0 then return {} end
return {page[#page][1], tostring(#page)}
"#
);

/// [`COUNT_LOSSES`], then [`READ_WITHIN`], at one moment; answers both, and what was lost also where
/// the second fails, since nobody counts it again. Not as a transaction, as for [`LOOK`].
pub(super) fn count_losses_and_read() -> String {
    format!(
        "local function count() {COUNT_LOSSES} end\n\
         local function take() {READ_WITHIN} end\n\
         local lost = count()\n\
         if lost.err then return lost end\n\
         local taken = take()\n\
         if taken.err and lost[1] > 0 then taken = {{0, {{}}}} end\n\
         return {{lost, taken}}"
    )
}
