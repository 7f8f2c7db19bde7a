-- count: how many entries lie in a range of ids; at most so many, and where it stopped.
-- Promises: writes nothing.
-- KEYS     stream
-- ARGV     after this id, up to this id, how many at the most
-- Replies  {how many, the last id counted or '' at the end}
local n, from, most = 0, ARGV[1], tonumber(ARGV[3])
while n < most do
  local page = behind(KEYS[1], from, ARGV[2], 500)
  n = n + #page
  if #page < 500 then return {n, ''} end
  from = page[#page][1]
end
return {n, from}
