-- publish: adds each envelope once within one to two windows, in order, all or none.
-- Promises: an envelope id that was added in this window or the one before is not added again; its entry id is returned. The first write
--   is XADD or HSET, which a full server refuses before anything has changed. A window is opened before the first entry that it is to
--   remember, so that a user without the right to remember adds nothing. Its number is in the field '', which is no envelope's id.
--   Redis 6.2 does not count what was added to a stream, so the script does, for the audit.
-- KEYS     stream, published:0, published:1, added
-- ARGV     length of a window in ms, then per envelope: its id, the number of words that follow, the words (names and values in turn)
-- Replies  the entry ids, in the order of the envelopes
local call, span, t = redis.call, ARGV[1], redis.call('TIME')
local number = math.floor((t[1] * 1000 + t[2] / 1000) / span)
local this, last = KEYS[2 + number % 2], KEYS[3 - number % 2]
local function open()
  call('XRANGE', KEYS[1], '-', '-') -- an error if it is no stream
  call('HSET', this, '', number)
  call('DEL', this)
  call('HSET', this, '', number)
  call('PEXPIRE', this, 2 * span)
  if not redis.REDIS_VERSION_NUM then call('INCRBY', KEYS[4], 0) end
end
if not ARGV[4 + ARGV[3]] then -- a single envelope: as below, without the tables, which cost more than the commands
  local found = call('HMGET', this, '', ARGV[2])
  local current = found[1] == tostring(number)
  local id = current and found[2] or call('HGET', last, ARGV[2])
  if not id then
    if not current then open() end
    id = call('XADD', KEYS[1], '*', unpack(ARGV, 4))
    if not redis.REDIS_VERSION_NUM then call('INCRBY', KEYS[4], 1) end
    call('HSET', this, ARGV[2], id)
  end
  return {id}
end
local names, at, i = {}, {}, 2
while ARGV[i] do
  names[#names + 1], at[#at + 1], i = ARGV[i], i, i + 2 + ARGV[i + 1]
end
local known, current = {}, call('HGET', this, '') == tostring(number)
for _, key in ipairs(current and {this, last} or {last}) do
  for from = 1, #names, 1000 do
    local to = math.min(from + 999, #names)
    for j, id in ipairs(call('HMGET', key, unpack(names, from, to))) do
      if id then known[names[from + j - 1]] = id end
    end
  end
end
local new, ids = {}, {}
for j, name in ipairs(names) do
  local id = known[name]
  if not id then
    if not current then open() end
    current = true
    id = call('XADD', KEYS[1], '*', unpack(ARGV, at[j] + 2, at[j] + 1 + ARGV[at[j] + 1]))
    new[#new + 1], new[#new + 2], known[name] = name, id, id
  end
  ids[j] = id
end
if #new > 0 then
  if not redis.REDIS_VERSION_NUM then call('INCRBY', KEYS[4], #new / 2) end
  for from = 1, #new, 1000 do call('HSET', this, unpack(new, from, math.min(from + 999, #new))) end
end
return ids
