-- sweep: one page of the search for what dead consumers left.
-- Promises: claims what was idle for longer than the lease, and counts no delivery. What was released (delivery count 0) is told apart
--   from what a process died with. Entries that vanished unsettled are acked, counted and reported. Works when memory is full.
--   A server clock that was set back would make every idle time 0 for as long: then each pending entry's lease begins anew, for its owner.
-- KEYS     stream or retry stream, group hash
-- ARGV     group, consumer, lease in ms, cursor, how many to claim, 1 to note the checkpoint
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
      redis.call('XCLAIM', KEYS[1], ARGV[1], p[2], 0, p[1], 'RETRYCOUNT', p[4], 'JUSTID')
    end
    if #page < 500 then break end
    from = '(' .. page[#page][1]
  end
end
local found, vanished, cursor = {}, {}, '0-0'
if summary[1] > 0 then
  local claimed, wanted, looked = {}, tonumber(ARGV[5]), 0
  cursor = ARGV[4]
  repeat -- the server looks at ten entries for each that is wanted: few are soon looked at
    local count = wanted - #claimed
    local page = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], cursor, 'COUNT', count, 'JUSTID')
    cursor, looked = page[1], looked + 10 * count
    for _, id in ipairs(page[2]) do claimed[#claimed + 1] = id end
    for _, id in ipairs(page[3] or {}) do vanished[#vanished + 1] = id end
  until cursor == '0-0' or #claimed >= wanted or looked >= 1000
  for _, id in ipairs(claimed) do
    local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
    if entry then
      local count = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1][4]
      if count == 0 then redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', 1, 'JUSTID') end
      found[#found + 1] = {id, count, entry[2]}
    else
      redis.call('XACK', KEYS[1], ARGV[1], id)
      vanished[#vanished + 1] = id
    end
  end
end
if #vanished > 0 then redis.call('HINCRBY', KEYS[2], 'vanished', #vanished) end
-- The rest is only noted for later, and must not stop the sweep of a server that is full.
if ARGV[6] == '1' then
  local id = checkpoint(KEYS[1], ARGV[1], summary)
  if id then redis.pcall('HSET', KEYS[2], 'checkpoint', id) end
end
redis.pcall('HSET', KEYS[2], clock, now)
return {cursor, found, vanished, back}
