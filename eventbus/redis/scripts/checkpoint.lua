-- checkpoint: for scripts that note it: the id at and below which a group has settled everything; nil if that is nothing.
local function checkpoint(stream, group, pending) -- pending: what XPENDING says in summary
  if pending[1] == 0 then return position(stream, group) end
  local ms, n = string.match(pending[2], '^(%d+)-(%d+)$')
  if #n > 15 then return ms .. '-0' end -- a double cannot count that far; earlier is safe
  if n ~= '0' then return ms .. '-' .. string.format('%.0f', tonumber(n) - 1) end
  if ms ~= '0' then return string.format('%.0f', tonumber(ms) - 1) .. '-18446744073709551615' end
end
