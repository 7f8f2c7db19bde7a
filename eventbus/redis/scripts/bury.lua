-- bury: moves a delivery to the dead letters of its group, with the story.
-- Promises: owner checked; all or nothing; a second run does nothing. The first write is XADD, which a full server refuses: the
--   delivery then stays pending.
-- KEYS     source stream, dead letters, group hash
-- ARGV     group, consumer, entry id, field to count in, the words of the dead letter
-- Replies  the id of the dead letter, or '' if the delivery is not ours
local owner = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not owner or owner[2] ~= ARGV[2] then return '' end
local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 5))
redis.call('HINCRBY', KEYS[3], ARGV[4], redis.call('XACK', KEYS[1], ARGV[1], ARGV[3]))
redis.call('HDEL', KEYS[3], 'crash ' .. KEYS[1] .. ' ' .. ARGV[3])
if ARGV[4] == 'retry-settled' then redis.call('XDEL', KEYS[1], ARGV[3]) end
return id
