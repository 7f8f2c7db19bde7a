-- reap: removes consumers that are dead.
-- Promises: only such as hold nothing, for whatever a removed consumer holds is dropped; looking and removing are one step.
-- KEYS     stream or retry stream
-- ARGV     group, idle time in ms from which a consumer counts as dead, a name to spare, and optionally the only name to remove
-- Replies  the names that were removed
local removed = {}
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local c = {}
  for i = 1, #flat, 2 do c[flat[i]] = flat[i + 1] end
  if c.pending == 0 and c.idle >= tonumber(ARGV[2]) and c.name ~= ARGV[3] and (not ARGV[4] or c.name == ARGV[4]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], c.name)
    removed[#removed + 1] = c.name
  end
end
return removed
