-- begin: counts the start of a suspect, before its handler runs.
-- Promises: owner checked. The count survives the process; it is forgotten with the delivery.
-- KEYS     source stream, group hash
-- ARGV     group, consumer, entry id
-- Replies  how many starts there are now, this one included; 0 not ours
local owner = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not owner or owner[2] ~= ARGV[2] then return 0 end
return redis.call('HINCRBY', KEYS[2], 'crash ' .. KEYS[1] .. ' ' .. ARGV[3], 1)
