-- renew: shows a sign of life for what a consumer holds.
-- Promises: owner checked, so that a late one takes nothing back from a new owner. No delivery is counted.
-- KEYS     stream or retry stream
-- ARGV     group, consumer, entry ids (500 at the most)
-- Replies  {ids that another consumer has now, ids that were trimmed under our hands, ids that are not pending any more: settled by one
--           who had them before us, or gone with their group}
local lost, gone, settled = {}, {}, {}
for i = 3, #ARGV do
  local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if not p then
    settled[#settled + 1] = ARGV[i]
  elseif p[2] ~= ARGV[2] then
    lost[#lost + 1] = ARGV[i]
  elseif #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID') == 0 then
    gone[#gone + 1] = ARGV[i]
  end
end
return {lost, gone, settled}
