-- renew: shows a sign of life for what a consumer holds.
-- Promises: owner checked, so that a late one takes nothing back from a new owner. No delivery is counted. Works when memory is full.
--   What was trimmed is settled here, and counted as vanished: since Redis 7 the claim itself takes it out of the pending list.
-- KEYS     stream or retry stream, group hash
-- ARGV     group, consumer, entry ids (500 at the most)
-- Replies  {ids that another consumer has now, ids that were trimmed under our hands, ids that look settled: not pending, though the entry is
--           there and the group is past it (XGROUP DELCONSUMER leaves the same), ids of which nothing is known: settled and deleted, as in a
--           retry stream, or forgotten with their group or their stream}
local last
local function is_past(id)
  last = last or position(KEYS[1], ARGV[1])
  return not before(last, id)
end
local lost, gone, settled, unknown = {}, {}, {}, {}
for i = 3, #ARGV do
  local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if not p and #redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i]) > 0 and is_past(ARGV[i]) then
    settled[#settled + 1] = ARGV[i]
  elseif not p then
    unknown[#unknown + 1] = ARGV[i]
  elseif p[2] ~= ARGV[2] then
    lost[#lost + 1] = ARGV[i]
  elseif #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID') == 0 then
    gone[#gone + 1] = ARGV[i]
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
    redis.call('HDEL', KEYS[2], 'crash ' .. KEYS[1] .. ' ' .. ARGV[i])
  end
end
if #gone > 0 then redis.call('HINCRBY', KEYS[2], 'vanished', #gone) end
return {lost, gone, settled, unknown}
