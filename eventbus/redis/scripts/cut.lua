-- cut: for scripts that remove what is old from a stream. Removes what lies before the bound: 10,000 entries and the rest of a node at the
-- most, or the server would stand still; how many. It is done when that is 0.
local function cut(key, bound)
  local n = redis.call('XTRIM', key, 'MINID', '~', bound, 'LIMIT', 10000)
  if n <= 9900 then -- not stopped by its limit: what is left lies in one node, of a hundred entries unless the server was told otherwise
    local rest = redis.call('XRANGE', key, '-', bound, 'COUNT', 101)
    n = n + redis.call('XTRIM', key, 'MINID', '=', rest[101] and rest[101][1] or bound)
  end
  return n
end
