-- audit: the numbers of a group, taken in one step.
-- Promises: changes nothing but the time of the last audit. With an interval, only one of many askers gets an answer within it.
--   added - base = settled + pending + unread + lost, where unread is what lies between the last delivered id and the last one now;
--   `count` counts that afterwards, for it may be long. And of the retries: delayed + requeued = waiting + set aside + in the retry stream +
--   settled there + lost.
-- KEYS     stream, group hash, added, delayed, retry stream
-- ARGV     group, interval in ms or 0
-- Replies  {added, base or '' if the counts have not begun, settled, vanished, pending, last delivered id, last id, checkpoint or '', and
--           what an audit noted last, or '': the checkpoint when all added up, and how much was lost with the last id at the time when that
--           was first seen; and of the retries {delayed, moved, requeued, set aside, settled, waiting, in the retry stream}}, or {}
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if tonumber(ARGV[2]) > 0 then
  local last = tonumber(redis.call('HGET', KEYS[2], 'audited') or '0')
  if last <= now and now - last < tonumber(ARGV[2]) then return {} end
  redis.pcall('HSET', KEYS[2], 'audited', now)
end
local info, flat = {}, redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #flat, 2 do info[flat[i]] = flat[i + 1] end
for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local g = {}
  for i = 1, #row, 2 do g[row[i]] = row[i + 1] end
  if g.name == ARGV[1] then
    local state = redis.call('HMGET', KEYS[2], 'base', 'settled', 'vanished', 'checkpoint', 'sound', 'lost')
    return {
      tonumber(info['entries-added'] or redis.call('GET', KEYS[3]) or 0), tonumber(state[1]) or '', tonumber(state[2] or 0),
      tonumber(state[3] or 0), g.pending, g['last-delivered-id'], info['last-generated-id'], state[4] or '', state[5] or '',
      state[6] or '', retries(KEYS[2], KEYS[4], KEYS[5]),
    }
  end
end
return {}
