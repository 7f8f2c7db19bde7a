-- retries: how many of a group's retries were put off, came to be due, were requeued, set aside and settled, wait, and are in the retry stream.
-- Shared by others. What was put off or requeued and is none of the rest was removed by something else.
local function retries(state, delayed, retry)
  local n = redis.call('HMGET', state, 'delayed', 'moved', 'requeued', 'aside', 'retry-settled')
  for i = 1, 5 do n[i] = tonumber(n[i] or 0) end
  n[6], n[7] = redis.call('ZCARD', delayed), 0
  if redis.call('EXISTS', retry) == 1 then
    local flat = redis.call('XINFO', 'STREAM', retry)
    for i = 1, #flat, 2 do
      if flat[i] == 'length' then n[7] = flat[i + 1] end
    end
  end
  return n
end
local function balance(state, delayed, retry) -- of what is there nothing is missing: for counts that begin now
  local n = retries(state, delayed, retry)
  redis.call('HINCRBY', state, 'requeued', n[4] + n[5] + n[6] + n[7] - n[1] - n[3])
end
