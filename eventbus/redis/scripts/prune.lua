-- prune: removes dead letters that are older than they are kept, but none before the alarm was raised for it.
-- Promises: what is to go is announced a day ahead, at the least: the group hash notes in `alarm` when that was last, in `announced` up to
--   which id, and the next are announced when these are gone. Looking and removing are one step.
-- KEYS     dead letters, group hash
-- ARGV     how long they are kept in ms, how long the alarm goes before in ms
-- Replies  {how many are due to go, 1 if the alarm is raised with this call, how many were removed}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local notice = tonumber(ARGV[2])
local soon = string.format('%.0f', math.max(0, now - tonumber(ARGV[1]) + notice))
local due, from, last = 0, '-', nil
while true do
  local page = redis.call('XRANGE', KEYS[1], from, soon, 'COUNT', 500)
  due = due + #page
  if #page > 0 then last = page[#page][1] end
  if #page < 500 then break end
  from = '(' .. last
end
if due == 0 then
  redis.call('HDEL', KEYS[2], 'alarm', 'announced')
  return {0, 0, 0}
end
local alarm = tonumber(redis.call('HGET', KEYS[2], 'alarm') or '0')
local announced = redis.call('HGET', KEYS[2], 'announced')
local waiting = announced and redis.call('XRANGE', KEYS[1], '-', announced, 'COUNT', 1)[1]
if alarm == 0 or alarm > now or not waiting then -- the alarm of an earlier version did not say for which
  redis.call('HSET', KEYS[2], 'alarm', now, 'announced', last)
  return {due, 1, 0}
end
if now - alarm < notice then return {due, 0, 0} end
local old = math.max(0, now - tonumber(ARGV[1]))
if tonumber(string.match(announced, '^%d+')) < old then
  return {due, 0, redis.call('XTRIM', KEYS[1], 'MINID', '=', announced) + redis.call('XDEL', KEYS[1], announced)}
end
return {due, 0, redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%.0f', old))} -- they are kept for longer than they were
