-- due: moves what is due from the delayed set to the retry stream.
-- Promises: each entry is moved once, however many movers there are. An entry that cannot be read is left in the hash under
--   'unreadable <member>', counted as `aside` and reported; the others flow. The first write is XADD, which a full server refuses.
--   When the server's clock was set back, what waits is due as much earlier, and does not wait for the clock to catch up.
-- KEYS     delayed, delayed entries, retry stream, group hash
-- ARGV     how many at the most
-- Replies  {how many were moved, ms until the next is due or -1, members that could not be read}
local function words_of(text)
  local words, at = {}, 1
  while at <= #text do
    local colon = string.find(text, ':', at, true)
    local length = colon and tonumber(string.sub(text, at, colon - 1))
    if not length or colon + length > #text then return nil end
    words[#words + 1], at = string.sub(text, colon + 1, colon + length), colon + length + 1
  end
  return #words > 0 and #words % 2 == 0 and words or nil
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local clock = 'clock ' .. KEYS[1]
local back = tonumber(redis.call('HGET', KEYS[4], clock) or '0') - now
if back > 1000 then
  -- What was delayed since then has a time of the new clock, and most of it lies before the middle; what was delayed earlier lies behind.
  local middle = string.format('%.0f', now + back / 2)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. middle, '+inf')) do
    redis.call('ZINCRBY', KEYS[1], -back, member)
  end
end
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
local moved, aside, unreadable = 0, 0, {}
for _, member in ipairs(due) do
  local text = redis.call('HGET', KEYS[2], member)
  local words = text and words_of(text)
  if words then
    redis.call('XADD', KEYS[3], '*', unpack(words))
    moved = moved + 1
  else
    if text then
      redis.call('HSET', KEYS[2], 'unreadable ' .. member, text)
      aside = aside + 1
    end
    unreadable[#unreadable + 1] = member
  end
  redis.call('ZREM', KEYS[1], member)
  redis.call('HDEL', KEYS[2], member)
end
if moved > 0 then redis.call('HINCRBY', KEYS[4], 'moved', moved) end
if aside > 0 then redis.call('HINCRBY', KEYS[4], 'aside', aside) end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if first[2] then redis.pcall('HSET', KEYS[4], clock, now) end
return {moved, first[2] and math.max(0, math.ceil(tonumber(first[2]) - now)) or -1, unreadable}
