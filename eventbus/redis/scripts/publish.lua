-- publish: adds each envelope once within one to two windows, in order, all or none.
-- Promises: an envelope id that was added in this window or the one before is not added again; its entry id is returned. The first write
--   is XADD or HSET, which a full server refuses before anything has changed. A window is opened before the first entry that it is to
--   remember, so that a user without the right to remember adds nothing.
--   Redis 6.2 does not count what was added to a stream, so the script does, for the audit.
-- KEYS     stream, published:0, published:1, added
-- ARGV     length of a window in ms, then per envelope: its id, the number of words that follow, the words (names and values in turn)
-- Replies  the entry ids, in the order of the envelopes
local span, t = tonumber(ARGV[1]), redis.call('TIME')
local number = math.floor((t[1] * 1000 + t[2] / 1000) / span)
local this, last = KEYS[2 + number % 2], KEYS[3 - number % 2]
local names, at, i = {}, {}, 2
while ARGV[i] do
  names[#names + 1], at[#at + 1], i = ARGV[i], i, i + 2 + ARGV[i + 1]
end
local known = {}
local function look(key, window) -- whether the key holds that window; what it knows of these envelopes is known then
  for from = 1, #names, 1000 do
    local found = redis.call('HMGET', key, 'window', unpack(names, from, math.min(from + 999, #names)))
    if found[1] ~= tostring(window) then return false end
    for j = 2, #found do known[names[from + j - 2]] = known[names[from + j - 2]] or found[j] or nil end
  end
  return true
end
local current = look(this, number)
look(last, number - 1)
local function open()
  redis.call('XRANGE', KEYS[1], '-', '-') -- an error if it is no stream
  redis.call('HSET', this, 'window', number)
  redis.call('DEL', this)
  redis.call('HSET', this, 'window', number)
  redis.call('PEXPIRE', this, 2 * span)
  if not redis.REDIS_VERSION_NUM then redis.call('INCRBY', KEYS[4], 0) end
  current = true
end
local new, ids = {}, {}
for j, name in ipairs(names) do
  local id = known[name]
  if not id then
    if not current then open() end
    id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, at[j] + 2, at[j] + 1 + ARGV[at[j] + 1]))
    new[#new + 1], new[#new + 2], known[name] = name, id, id
  end
  ids[j] = id
end
if #new > 0 then
  if not redis.REDIS_VERSION_NUM then redis.call('INCRBY', KEYS[4], #new / 2) end
  for from = 1, #new, 1000 do redis.call('HSET', this, unpack(new, from, math.min(from + 999, #new))) end
end
return ids
