-- position: for scripts that ask how far a group has read: the last id that it was given; nil if there is no such group.
local function position(stream, group)
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local g = {}
    for i = 1, #flat, 2 do g[flat[i]] = flat[i + 1] end
    if g.name == group then return g['last-delivered-id'] end
  end
  return nil
end
