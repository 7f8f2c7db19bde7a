-- release: gives back what was not started or not finished, to be claimed by the next sweep.
-- Promises: owner checked. It is idle for ten years then, longer than any lease. A delivery count of 0 tells it from what a process
--   died with: it is no suspect, and starts that were counted are forgotten. A suspect that nobody started has been cleared of nothing: it
--   keeps its delivery count of 1 and its starts. Works when memory is full.
-- KEYS     stream or retry stream, group hash
-- ARGV     group, consumer, 1 for suspects that were not started or else 0, entry ids (500 at the most)
-- Replies  how many were ours
local n = 0
for i = 4, #ARGV do
  local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if p and p[2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], 'released', 0, ARGV[i], 'IDLE', 315360000000, 'RETRYCOUNT', ARGV[3], 'JUSTID')
    if ARGV[3] == '0' then redis.call('HDEL', KEYS[2], 'crash ' .. KEYS[1] .. ' ' .. ARGV[i]) end
    n = n + 1
  end
end
return n
