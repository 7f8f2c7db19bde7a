-- ack: settles what was handled, and counts it for the audit.
-- Promises: whoever acks has handled it, so no owner is checked. A second run settles and counts nothing. Works when memory is full.
--   What was settled in a retry stream is deleted there: nobody else reads it. It counts also when its group was made again meanwhile and
--   has not read it.
-- KEYS     stream or retry stream, group hash
-- ARGV     group, field to count in, entry ids
-- Replies  how many were settled
local n = 0
if ARGV[2] == 'retry-settled' then
  for i = 3, #ARGV do
    n = n + math.max(redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]), redis.call('XDEL', KEYS[1], ARGV[i]))
  end
else
  n = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3))
end
if ARGV[2] == 'vanished' then -- handled by nobody, who would have its starts forgotten
  for i = 3, #ARGV do redis.call('HDEL', KEYS[2], 'crash ' .. KEYS[1] .. ' ' .. ARGV[i]) end
end
if n > 0 then redis.call('HINCRBY', KEYS[2], ARGV[2], n) end
return n
