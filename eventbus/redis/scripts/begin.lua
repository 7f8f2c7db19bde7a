-- begin: counts the start of a suspect, before its handler runs.
-- Promises: owner checked. The count survives the process; it is forgotten with the delivery. Asked again for the same start, since a
--   reply was lost, it counts it once: the count stands with the mark of the start that it counted last. Works when memory is full, for it
--   begins with a sign of life, which a full server takes: or suspects would stand in the way of what drains it.
-- KEYS     source stream, group hash
-- ARGV     group, consumer, entry id, mark of this start (a word)
-- Replies  how many starts there are now, this one included; 0 not ours
local owner = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not owner or owner[2] ~= ARGV[2] then return 0 end
local there = #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID') > 0
local field = 'crash ' .. KEYS[1] .. ' ' .. ARGV[3]
local count, mark = string.match(redis.call('HGET', KEYS[2], field) or '0', '^(%d+) ?(.*)$')
if mark ~= ARGV[4] then count = count + 1 end
if there then
  redis.call('HSET', KEYS[2], field, string.format('%d', count) .. ' ' .. ARGV[4])
else -- trimmed since the sweep: it vanished, as in renew, and will not be started again
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  redis.call('HINCRBY', KEYS[2], 'vanished', 1)
  redis.call('HDEL', KEYS[2], field)
end
return tonumber(count)
