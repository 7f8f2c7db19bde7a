-- requeue: delivers a dead letter again, to its own group alone.
-- Promises: all or nothing; a second run does nothing, for the dead letter is gone. Works when the original entry was trimmed.
-- KEYS     dead letters, retry stream, group hash
-- ARGV     id of the dead letter, the words of the new entry
-- Replies  the id in the retry stream, or '' if there is no such dead letter
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return '' end
local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('HINCRBY', KEYS[3], 'requeued', 1)
return id
