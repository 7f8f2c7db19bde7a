-- retry: takes a delivery out of the pending list, to be handled again by this group alone.
-- Promises: owner checked; all or nothing; a second run does nothing. The first write is HSET, which a full server refuses.
-- KEYS     source stream, delayed, delayed entries, group hash
-- ARGV     group, consumer, entry id, field to count in, delay in ms, the entry (each word as length:word)
-- Replies  1 done, 0 not ours
local owner = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not owner or owner[2] ~= ARGV[2] then return 0 end
local t, member = redis.call('TIME'), KEYS[1] .. ' ' .. ARGV[3]
local empty = redis.call('ZCARD', KEYS[2]) == 0 -- then the clock that was noted is of no use, and may be ahead
redis.call('HSET', KEYS[3], member, ARGV[6])
local now, clock = t[1] * 1000 + math.floor(t[2] / 1000), 'clock ' .. KEYS[2]
local delayed = redis.call('ZADD', KEYS[2], now + tonumber(ARGV[5]), member)
if empty or now > tonumber(redis.call('HGET', KEYS[4], clock) or '0') then redis.call('HSET', KEYS[4], clock, now) end
redis.call('HINCRBY', KEYS[4], ARGV[4], redis.call('XACK', KEYS[1], ARGV[1], ARGV[3]))
redis.call('HINCRBY', KEYS[4], 'delayed', delayed)
redis.call('HDEL', KEYS[4], 'crash ' .. member)
if ARGV[4] == 'retry-settled' then redis.call('XDEL', KEYS[1], ARGV[3]) end
return 1
