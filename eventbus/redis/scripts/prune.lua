-- prune: removes dead letters that are older than they are kept, but none before the alarm was raised for it.
-- Promises: what is to go is announced a day ahead, at the least: the group hash notes in `alarm` when that was last, in `announced` up to
--   which id, and the next are announced when these are gone. Looking and removing are one step, of 10,000 dead letters and the rest of a
--   node at the most: what is left is removed by the next calls, which are given the bound of the first, so that there is an end.
-- KEYS     dead letters, group hash
-- ARGV     how long they are kept in ms, how long the alarm goes before in ms, the bound of the call that this one goes on with or ''
-- Replies  {how many were removed, the bound, the id up to which they are announced with this call or ''}
if ARGV[3] ~= '' then return {cut(KEYS[1], ARGV[3]), ARGV[3], ''} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local notice = tonumber(ARGV[2])
local soon = string.format('%.0f', math.max(0, now - tonumber(ARGV[1]) + notice))
local last = redis.call('XREVRANGE', KEYS[1], soon, '-', 'COUNT', 1)[1]
if not last then
  redis.call('HDEL', KEYS[2], 'alarm', 'announced')
  return {0, '', ''}
end
local alarm = tonumber(redis.call('HGET', KEYS[2], 'alarm') or '0')
local announced = redis.call('HGET', KEYS[2], 'announced')
local waiting = announced and redis.call('XRANGE', KEYS[1], '-', announced, 'COUNT', 1)[1]
if alarm == 0 or alarm > now or not waiting then -- the alarm of an earlier version did not say for which
  redis.call('HSET', KEYS[2], 'alarm', now, 'announced', last[1])
  return {0, '', last[1]}
end
if now - alarm < notice then return {0, '', ''} end
local bound = string.format('%.0f', math.max(0, now - tonumber(ARGV[1]))) .. '-0'
local ms, n = string.match(announced, '^(%d+)-(%d+)$')
local behind_it = ms .. '-' .. string.format('%.0f', n + 1)
if before(behind_it, bound) then bound = behind_it end -- or they are kept for longer than they were
return {cut(KEYS[1], bound), bound, ''}
