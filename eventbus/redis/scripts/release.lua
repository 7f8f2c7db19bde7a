-- release: gives back what was not started, to be claimed by the next sweep.
-- Promises: owner checked. A delivery count of 0 tells it from what a process died with. Works when memory is full.
-- KEYS     stream or retry stream
-- ARGV     group, consumer, entry ids (500 at the most)
-- Replies  how many were ours
local n = 0
for i = 3, #ARGV do
  local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if p and p[2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], 'released', 0, ARGV[i], 'IDLE', 86400000, 'RETRYCOUNT', 0, 'JUSTID')
    n = n + 1
  end
end
return n
