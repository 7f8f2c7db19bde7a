-- join: makes a group on a stream and on its retry stream, where they are missing.
-- Promises: an existing group is not touched. One that existed before and is gone begins again at its checkpoint, the id at and below
--   which everything was settled; if the stream is gone too, at 0. The counts of the audit begin with the group.
-- KEYS     stream, retry stream, group hash, added
-- ARGV     group, start ('$' or an id), 1 when healing a group that was there, 0 when joining
-- Replies  '' if the group was there, else where it was made: 'start', 'checkpoint' or 'beginning'
local function there(key)
  if redis.call('EXISTS', key) == 0 then return false end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    for i = 1, #flat, 2 do
      if flat[i] == 'name' and flat[i + 1] == ARGV[1] then return true end
    end
  end
  return false
end
if not there(KEYS[2]) then redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[1], '0', 'MKSTREAM') end
if there(KEYS[1]) then return '' end
local stream = redis.call('EXISTS', KEYS[1]) == 1
local checkpoint = redis.call('HGET', KEYS[3], 'checkpoint')
local where, start = 'start', ARGV[2]
if checkpoint and stream then
  where, start = 'checkpoint', checkpoint
elseif not stream and (checkpoint or ARGV[3] == '1') then
  where, start = 'beginning', '0'
end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], start, 'MKSTREAM')
local info, flat = {}, redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #flat, 2 do info[flat[i]] = flat[i + 1] end
if start == '$' then start = info['last-generated-id'] end
local ahead, from = 0, start
while true do
  local page = behind(KEYS[1], from, '+', 500)
  ahead = ahead + #page
  if #page < 500 then break end
  from = page[#page][1]
end
local added = info['entries-added'] or redis.call('GET', KEYS[4]) or 0
redis.call('HSET', KEYS[3], 'base', added - ahead, 'settled', 0, 'vanished', 0, 'checkpoint', start)
return where
