-- settle: the commit of a RedisSession: its writes, what it publishes and the ack of its delivery, in one step.
-- Promises: all or nothing, and once. A token that was applied in this window or the one before is not applied again. Whose the delivery
--   is, what was watched, and every type and number that the writes rely on are looked at before the first write: scripts do not roll back.
--   What adds begins with HSET, which a full server refuses; what only takes away begins with that, so that it works then too.
--   Should a write fail all the same, the others are made and the delivery is acked: half of it twice would be worse.
-- KEYS     commits:0, commits:1; with a delivery its source stream and group hash; for each stream to publish to: stream, published:0,
--   published:1, added; then every key that is watched or written, named below by its place in KEYS
-- ARGV     token, its window in ms, the window of envelope ids in ms, 1 if something is added;
--   group or '', consumer, entry id, field to count in;
--   how many streams, for each: how many envelopes, for each: its id, number of words, words;
--   how many watched answers, for each: digest, number of words, command, key, what follows the key;
--   how many conditions, for each: 'type', key, type, '', '', '' or 'integer' or 'decimal', key, 'GET' or 'HGET', field, least, most;
--   then the writes, for each: number of words, command, key, what follows the key
-- Replies  {'done', entry ids, what failed}; or, and nothing has changed: {'lost'}, {'no group'}, {'changed', key},
--   {'type', key, its type, type wanted}, {'value', key, field, value, kind wanted}, {'denied', command}
local at = 0
local function word() at = at + 1 return ARGV[at] end
local function number() return tonumber(word()) end

local token, span, kept, adds = word(), number(), number(), word() == '1'
local group, consumer, id, counter = word(), word(), word(), word()
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

local function window(first, length) -- two hashes that take turns, as in publish
  local n = math.floor(now / length)
  local w, last = {number = n, length = length, this = KEYS[first + n % 2]}, KEYS[first + 1 - n % 2]
  w.current = redis.call('HGET', w.this, '') == tostring(n)
  local previous = redis.call('HGET', last, '') == tostring(n - 1)
  function w.find(name)
    return w.current and redis.call('HGET', w.this, name) or previous and redis.call('HGET', last, name)
  end
  return w
end
local function remember(w, new)
  if not w.current then redis.call('DEL', w.this) end
  redis.call('HSET', w.this, '', w.number)
  for i = 1, #new, 1000 do redis.call('HSET', w.this, unpack(new, i, math.min(i + 999, #new))) end
  redis.call('PEXPIRE', w.this, 2 * w.length)
end

-- What is asked for, and whether it was done before.
local commits, streams, first = window(1, span), {}, group == '' and 3 or 5
for _ = 1, number() do
  local s = {key = KEYS[first], added = KEYS[first + 3], known = window(first + 1, kept)}
  for _ = 1, number() do
    local name, words = word(), number()
    s[#s + 1] = {name, at + 1, at + words}
    at = at + words
  end
  streams[#streams + 1], first = s, first + 4
end
if commits.find(token) then
  local ids = {}
  for _, s in ipairs(streams) do
    for _, envelope in ipairs(s) do ids[#ids + 1] = s.known.find(envelope[1]) or '' end
  end
  return {'done', ids, {}}
end

-- Whether it can be done. Nothing is written here.
if group ~= '' then
  local pending = redis.pcall('XPENDING', KEYS[3], group, id, id, 1)
  if pending.err then
    if string.find(pending.err, 'NOGROUP', 1, true) then return {'no group'} end
    return pending
  end
  if not pending[1] or pending[1][2] ~= consumer then return {'lost'} end
  redis.call('HGET', KEYS[4], counter)
end
for _ = 1, number() do
  local before, words = word(), number()
  local key = KEYS[tonumber(ARGV[at + 2])]
  local answer = redis.pcall(ARGV[at + 1], key, unpack(ARGV, at + 3, at + words))
  if type(answer) == 'table' and answer.err or digest(ARGV[at + 1], answer) ~= before then return {'changed', key} end
  at = at + words
end
local function less(a, b) -- as digits: a double is exact only up to 2^53
  local below = string.sub(a, 1, 1) == '-'
  if below ~= (string.sub(b, 1, 1) == '-') then return below end
  if below then a, b = string.sub(b, 2), string.sub(a, 2) end
  if #a ~= #b then return #a < #b end
  return a < b
end
local function fits(kind, value, least, most)
  if kind == 'integer' then
    return (value == '0' or #value <= 20 and string.find(value, '^-?[1-9]%d*$')) and not less(value, least) and not less(most, value)
  end
  local digits, exponent = string.match(value, '^[+-]?([%d.]+)(.*)$')
  return digits and #value <= 400 and (string.find(digits, '^%d+%.?%d*$') or string.find(digits, '^%.%d+$'))
    and (exponent == '' or string.find(exponent, '^[eE][+-]?%d+$')) and math.abs(tonumber(value)) <= tonumber(most)
end
for _, s in ipairs(streams) do
  local kind = redis.call('TYPE', s.key).ok
  if kind ~= 'none' and kind ~= 'stream' then return {'type', s.key, kind, 'stream'} end
  if not redis.REDIS_VERSION_NUM then redis.call('GET', s.added) end
end
for _ = 1, number() do
  local kind, key, wanted, field, least, most = word(), KEYS[number()], word(), word(), word(), word()
  if kind == 'type' then
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= wanted then return {'type', key, found, wanted} end
  else
    local value
    if wanted == 'GET' then value = redis.call('GET', key) else value = redis.call('HGET', key, field) end
    if value and not fits(kind, value, least, most) or not value and not fits(kind, '0', least, most) then
      return {'value', key, field, value or '', kind}
    end
  end
end
if redis.acl_check_cmd then -- since Redis 7
  local allowed, i = {}, at + 1
  if #streams > 0 and not redis.acl_check_cmd('XADD', streams[1].key, '*', 'id', '') then return {'denied', 'XADD'} end
  while ARGV[i] do
    local name, last = ARGV[i + 1], i + tonumber(ARGV[i])
    if not allowed[name] and not redis.acl_check_cmd(name, KEYS[tonumber(ARGV[i + 2])], unpack(ARGV, i + 3, last)) then
      return {'denied', name}
    end
    allowed[name], i = true, last + 1
  end
end

-- Doing it. The first write decides whether a full server takes the rest.
local function ack()
  redis.call('HINCRBY', KEYS[4], counter, redis.call('XACK', KEYS[3], group, id))
  redis.call('HDEL', KEYS[4], 'crash ' .. KEYS[3] .. ' ' .. id)
  if counter == 'retry-settled' then redis.call('XDEL', KEYS[3], id) end
end
if adds then
  redis.call('HSET', commits.this, '', commits.number)
elseif group ~= '' then
  ack()
end
local ids, failed = {}, {}
for _, s in ipairs(streams) do
  local new, known = {}, {}
  for _, envelope in ipairs(s) do
    local name = envelope[1]
    local entry = known[name] or s.known.find(name)
    if not entry then
      entry = redis.call('XADD', s.key, '*', unpack(ARGV, envelope[2], envelope[3]))
      new[#new + 1], new[#new + 2] = name, entry
    end
    known[name], ids[#ids + 1] = entry, entry
  end
  if #new > 0 then
    if not redis.REDIS_VERSION_NUM then redis.call('INCRBY', s.added, #new / 2) end
    remember(s.known, new)
  end
end
local function write(command, key, ...)
  if command ~= 'INCRBYFLOAT' or redis.REDIS_VERSION_NUM then return redis.pcall(command, key, ...) end
  -- Redis 6.2 overruns its memory when a script calls INCRBYFLOAT after a longer command. So a hash of ours makes the sum.
  redis.call('HSET', commits.this, 'sum', redis.call('GET', key) or '0')
  local sum = redis.call('HINCRBYFLOAT', commits.this, 'sum', ...)
  redis.call('HDEL', commits.this, 'sum')
  return redis.call('SET', key, sum, 'KEEPTTL')
end
while ARGV[at + 1] do
  local words = number()
  local key = KEYS[tonumber(ARGV[at + 2])]
  local reply = write(ARGV[at + 1], key, unpack(ARGV, at + 3, at + words))
  if type(reply) == 'table' and reply.err then failed[#failed + 1] = ARGV[at + 1] .. ' ' .. key .. ': ' .. reply.err end
  at = at + words
end
if adds and group ~= '' then ack() end
if token ~= '' then remember(commits, {token, 1}) end
return {'done', ids, failed}
