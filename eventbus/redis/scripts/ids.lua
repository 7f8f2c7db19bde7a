-- ids: for scripts that compare entry ids, or turn pages behind one.
local function less(a, b) -- as digits: a double is exact only up to 2^53
  if #a ~= #b then return #a < #b end
  return a < b
end
local function before(a, b) -- whether that id comes before the other; either may be without its second part
  local am, an = string.match(a, '^(%d+)-?(%d*)$')
  local bm, bn = string.match(b, '^(%d+)-?(%d*)$')
  if am ~= bm then return less(am, bm) end
  return less(an, bn)
end
-- So many entries behind an id, up to another; none behind the highest id of all, where the server knows no range. A stranger may have
-- added such an entry.
local function behind(key, id, to, count)
  if id == '18446744073709551615-18446744073709551615' then return {} end
  return redis.call('XRANGE', key, '(' .. id, to, 'COUNT', count)
end
