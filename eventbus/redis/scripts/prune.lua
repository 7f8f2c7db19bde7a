-- prune: removes dead letters that are older than they are kept, but not before the alarm was raised for them.
-- Promises: what is to go is announced a day ahead, at the least; looking and removing are one step.
-- KEYS     dead letters, group hash
-- ARGV     how long they are kept in ms, how long the alarm goes before in ms
-- Replies  {how many are due to go, 1 if the alarm is raised with this call, how many were removed}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local notice = tonumber(ARGV[2])
local soon = string.format('%.0f', math.max(0, now - tonumber(ARGV[1]) + notice))
local due, from = 0, '-'
while true do
  local page = redis.call('XRANGE', KEYS[1], from, soon, 'COUNT', 500)
  due = due + #page
  if #page < 500 then break end
  from = '(' .. page[#page][1]
end
if due == 0 then
  redis.call('HDEL', KEYS[2], 'alarm')
  return {0, 0, 0}
end
local alarm = tonumber(redis.call('HGET', KEYS[2], 'alarm') or '0')
if alarm == 0 or alarm > now then
  redis.call('HSET', KEYS[2], 'alarm', now)
  return {due, 1, 0}
end
if now - alarm < notice then return {due, 0, 0} end
local old = string.format('%.0f', math.max(0, now - tonumber(ARGV[1])))
return {due, 0, redis.call('XTRIM', KEYS[1], 'MINID', '=', old)}
