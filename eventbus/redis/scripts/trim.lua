-- trim: removes what every group has settled and what is older than the retention; never past the unsettled.
-- Promises: looking and removing are one step. A group that pins the stream for longer than `max pin` is reported; only with the policy
--   'trim' is it passed over, and what it loses is then counted by its audit. Removes at most 10,000 entries and the rest of a node:
--   what is left is removed by the next calls, which are given the bound of the first, so that there is an end.
-- KEYS     stream
-- ARGV     retention in ms, max pin in ms, 'report' or 'trim', the bound of the call that this one goes on with or ''
-- Replies  {how many were removed, the bound, then per group that pins: its name, the id it pins}
if redis.call('EXISTS', KEYS[1]) == 0 then return {0, ''} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local old = string.format('%.0f', math.max(0, now - tonumber(ARGV[1]))) .. '-0'
local pinned = string.format('%.0f', math.max(0, now - tonumber(ARGV[2]))) .. '-0'
local bound, pins = ARGV[4] ~= '' and ARGV[4] or old, {}
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local g = {}
  for i = 1, #flat, 2 do g[flat[i]] = flat[i + 1] end
  local low = g.pending > 0 and redis.call('XPENDING', KEYS[1], g.name)[2]
  if not low then -- the first entry that it has not read, or nothing
    local next = behind(KEYS[1], g['last-delivered-id'], '+', 1)[1]
    low = next and next[1]
  end
  if low then
    if before(low, pinned) then pins[#pins + 1], pins[#pins + 2] = g.name, low end
    if before(low, bound) and not (ARGV[3] == 'trim' and before(low, pinned)) then bound = low end
  end
end
return {cut(KEYS[1], bound), bound, unpack(pins)}
