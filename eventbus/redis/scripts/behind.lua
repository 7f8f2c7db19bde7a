-- behind: for scripts that turn pages: so many entries behind an id, up to another; none behind the highest id of all, where the server
--   knows no range. A stranger may have added such an entry.
local function behind(key, id, to, count)
  if id == '18446744073709551615-18446744073709551615' then return {} end
  return redis.call('XRANGE', key, '(' .. id, to, 'COUNT', count)
end
