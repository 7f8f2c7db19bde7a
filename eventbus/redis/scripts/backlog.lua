-- backlog: what a group has still to handle.
-- Promises: writes nothing. Unread entries are counted from the entries themselves (up to a limit), for the server's own lag is wrong
--   after deletions, trims and restarts.
-- KEYS     stream, retry stream, delayed
-- ARGV     group, how many unread entries to count at the most
-- Replies  {unread, pending, delayed, ms until the next delayed one is due or -1}
local unread, pending, limit = 0, 0, tonumber(ARGV[2])
for i = 1, 2 do
  local from = redis.call('EXISTS', KEYS[i]) == 1 and '0-0'
  if from then
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[i])) do
      local g = {}
      for j = 1, #flat, 2 do g[flat[j]] = flat[j + 1] end
      if g.name == ARGV[1] then
        pending = pending + g.pending
        from = g['last-delivered-id']
      end
    end
  end
  while from and unread < limit do
    local page = behind(KEYS[i], from, '+', 500)
    unread = unread + #page
    from = #page == 500 and page[#page][1]
  end
end
local t = redis.call('TIME')
local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
local due = first[2] and math.max(0, math.ceil(tonumber(first[2]) - t[1] * 1000 - t[2] / 1000)) or -1
return {unread, pending, redis.call('ZCARD', KEYS[3]), due}
