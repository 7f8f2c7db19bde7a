-- publish: adds each envelope once within one to two windows, in order, all or none.
-- Promises: an envelope id that was added in this window or the one before is not added again; its entry id is returned. The first write
--   is XADD, which a full server refuses before anything has changed.
--   Redis 6.2 does not count what was added to a stream, so the script does, for the audit.
-- KEYS     stream, published:0, published:1, added
-- ARGV     length of a window in ms, then per envelope: its id, the number of words that follow, the words (names and values in turn)
-- Replies  the entry ids, in the order of the envelopes
local span, t = tonumber(ARGV[1]), redis.call('TIME')
local number = math.floor((t[1] * 1000 + t[2] / 1000) / span)
local this, last = KEYS[2 + number % 2], KEYS[3 - number % 2]
local current = redis.call('HGET', this, 'window') == tostring(number)
local previous = redis.call('HGET', last, 'window') == tostring(number - 1)
local known, new, ids, i = {}, {'window', number}, {}, 2
while ARGV[i] do
  local name, words = ARGV[i], tonumber(ARGV[i + 1])
  local id = known[name] or current and redis.call('HGET', this, name) or previous and redis.call('HGET', last, name)
  if not id then
    id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, i + 2, i + 1 + words))
    new[#new + 1], new[#new + 2] = name, id
  end
  known[name], ids[#ids + 1], i = id, id, i + 2 + words
end
if #new > 2 then
  if not redis.REDIS_VERSION_NUM then redis.call('INCRBY', KEYS[4], #new / 2 - 1) end
  if not current then redis.call('DEL', this) end
  for from = 1, #new, 1000 do redis.call('HSET', this, unpack(new, from, math.min(from + 999, #new))) end
  redis.call('PEXPIRE', this, 2 * span)
end
return ids
