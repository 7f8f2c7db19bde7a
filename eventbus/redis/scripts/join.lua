-- join: makes a group on a stream and on its retry stream, where they are missing.
-- Promises: an existing group is not touched. One that existed before and is gone begins again at its checkpoint, the id at and below
--   which everything was settled; if that is gone too, where its consumer knows that it was; and at 0 if the stream is gone, or another one,
--   whose ids are all lower. The counts of the audit begin with the group. What lies before it is counted here if that is soon done; else
--   beforehand, in pages, and not again as long as the first of it was not trimmed meanwhile.
-- KEYS     stream, retry stream, group hash, added, delayed
-- ARGV     group, start ('$' or an id), 1 when healing a group that was there, 0 when joining; and what was counted beforehand: how many
--   entries, up to which id, and the first of them
-- Replies  {where, id at which it would begin again}: where is '' if the group was there, 'uncounted' if the counts of the audit have not begun
--   with it, since another program made it or they were deleted; else 'start', 'checkpoint' or 'beginning';
--   or {'count', after this id, up to this id, the first of all}: so much more is to be counted, and nothing has changed
local function there(key)
  if redis.call('EXISTS', key) == 0 then return false end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    for i = 1, #flat, 2 do
      if flat[i] == 'name' and flat[i + 1] == ARGV[1] then return true end
    end
  end
  return false
end
local function info()
  local found, flat = {}, redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end
local checkpoint = redis.call('HGET', KEYS[3], 'checkpoint')
if there(KEYS[1]) then
  if not there(KEYS[2]) then redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[1], '0', 'MKSTREAM') end
  return {redis.call('HGET', KEYS[3], 'base') and '' or 'uncounted', checkpoint or '0'}
end
local known = redis.call('EXISTS', KEYS[1]) == 1 and info()
local last = known and known['last-generated-id']
local where, start = 'start', ARGV[2]
if checkpoint and last and not before(last, checkpoint) then
  where, start = 'checkpoint', checkpoint
elseif checkpoint or ARGV[3] == '1' and not (last and start ~= '$' and not before(last, start)) then
  where, start = 'beginning', '0'
end
local ahead = 0
if start == '0' or start == '0-0' then
  ahead = known and known.length or 0
elseif last and start ~= '$' then
  local from, first = start, behind(KEYS[1], start, '+', 1)[1]
  if ARGV[4] and first and first[1] == ARGV[6] then ahead, from = tonumber(ARGV[4]), ARGV[5] end
  local after, most = from, ahead + 5000
  while true do
    local page = behind(KEYS[1], from, '+', 500)
    ahead = ahead + #page
    if #page < 500 then break end
    if ahead >= most then return {'count', after, last, first[1]} end
    from = page[#page][1]
  end
end
if not there(KEYS[2]) then redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[1], '0', 'MKSTREAM') end
if not redis.call('HGET', KEYS[3], 'base') then balance(KEYS[3], KEYS[5], KEYS[2]) end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], start, 'MKSTREAM')
local now = info()
if start == '$' then start = now['last-generated-id'] end
redis.call('HSET', KEYS[3], 'base', (now['entries-added'] or redis.call('GET', KEYS[4]) or 0) - ahead, 'settled', 0, 'vanished', 0,
  'checkpoint', start)
return {where, start}
