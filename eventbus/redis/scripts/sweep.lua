-- sweep: one page of the search for what dead consumers left.
-- Promises: claims what was idle for longer than the lease, and counts no delivery. What was released (delivery count 0) is told apart
--   from what a process died with. Entries that vanished unsettled are acked, counted and reported. Works when memory is full.
--   A server clock that was set back would make every idle time 0 for as long: then each pending entry's lease begins anew, for its owner.
-- KEYS     stream or retry stream, group hash
-- ARGV     group, consumer, lease in ms, cursor ('0-0' to begin), how many to claim, 1 to note the checkpoint
-- Replies  {next cursor ('0-0' at the end), {id, delivery count, fields}…, ids that vanished, 1 if the clock was set back}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local summary = redis.call('XPENDING', KEYS[1], ARGV[1])
local clock, back = 'clock ' .. KEYS[1], 0
local seen = tonumber(redis.call('HGET', KEYS[2], clock) or '0')
if seen > now + 1000 and summary[1] > 0 then
  back = 1
  local from = '-'
  while true do
    local page = redis.call('XPENDING', KEYS[1], ARGV[1], from, '+', 500)
    for _, p in ipairs(page) do
      if p[2] ~= 'released' then -- which is idle for ten years, by any clock
        redis.call('XCLAIM', KEYS[1], ARGV[1], p[2], 0, p[1], 'RETRYCOUNT', p[4], 'JUSTID')
      end
    end
    if #page < 500 then break end
    from = '(' .. page[#page][1]
  end
end
local found, vanished, cursor = {}, {}, '0-0'
if summary[1] > 0 then
  local function ms(id) return tonumber(string.match(id, '(%d+)-')) end
  local from, to, wanted = ARGV[4] == '0-0' and '-' or ARGV[4], '+', tonumber(ARGV[5])
  if summary[1] > 10000 then -- about so many in a step, by their time: the server looks at all that lie in a range
    local first, last = ms(summary[2]), ms(summary[3])
    local upto = (from == '-' and first or ms(from)) + math.floor((last - first) / (summary[1] / 10000)) + 1
    if upto < last then to = string.format('%.0f', upto) .. '-18446744073709551615' end
  end
  local page = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], from, to, wanted)
  for _, p in ipairs(page) do
    local id, count = p[1], p[4]
    local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
    if entry then
      redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', math.max(1, count), 'JUSTID')
      found[#found + 1] = {id, count, entry[2]}
    else
      redis.call('XACK', KEYS[1], ARGV[1], id)
      redis.call('HDEL', KEYS[2], 'crash ' .. KEYS[1] .. ' ' .. id)
      vanished[#vanished + 1] = id
    end
  end
  if #page == wanted then cursor = '(' .. page[wanted][1] elseif to ~= '+' then cursor = '(' .. to end
end
if #vanished > 0 then redis.call('HINCRBY', KEYS[2], 'vanished', #vanished) end
-- The rest is only noted for later, and must not stop the sweep of a server that is full.
if ARGV[6] == '1' then
  local id = checkpoint(KEYS[1], ARGV[1], summary)
  if id then redis.pcall('HSET', KEYS[2], 'checkpoint', id) end
end
redis.pcall('HSET', KEYS[2], clock, now)
return {cursor, found, vanished, back}
