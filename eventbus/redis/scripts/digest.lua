-- digest: what a read answered, as a short text that is another one when the answer is. Goes before the scripts that compare answers.
-- Hashes and sets have no order: what belongs together is put in one, by its own digest.
local short = redis.sha1hex or function(text) return text end
local together = {HGETALL = 2, HKEYS = 1, HVALS = 1, SMEMBERS = 1}
local function told(part)
  if not part then return '-' end
  if type(part) == 'number' then part = string.format('%.0f', part) end
  if type(part) == 'string' then return #part .. ':' .. part end
  local words = {'*' .. #part}
  for _, inner in ipairs(part) do words[#words + 1] = told(inner) end
  return table.concat(words, ' ')
end
local function digest(command, answer)
  local width = together[command]
  if not width then return short(told(answer)) end
  local groups = {}
  for i = 1, #answer, width do groups[#groups + 1] = short(told({unpack(answer, i, i + width - 1)})) end
  table.sort(groups)
  return short(table.concat(groups))
end
