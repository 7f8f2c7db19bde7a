-- glance: whether there is anything to sweep or to move, so that a group with nothing in hand costs one command.
-- Promises: notes the checkpoint and, where there is nothing to sweep, the time, as `sweep` would. Works when memory is full.
-- KEYS     stream, retry stream, delayed, group hash
-- ARGV     group
-- Replies  how many are pending in the stream, in the retry stream, and delayed
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local counts = {}
for i = 1, 2 do
  local pending = redis.call('XPENDING', KEYS[i], ARGV[1])
  counts[i] = pending[1]
  if pending[1] == 0 then redis.pcall('HSET', KEYS[4], 'clock ' .. KEYS[i], now) end
  if i == 1 then
    local id = checkpoint(KEYS[1], ARGV[1], pending)
    if id then redis.pcall('HSET', KEYS[4], 'checkpoint', id) end
  end
end
counts[3] = redis.call('ZCARD', KEYS[3])
return counts
