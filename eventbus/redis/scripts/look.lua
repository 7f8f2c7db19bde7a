-- look: reads, and says with the answer what `settle` will compare it with.
-- Promises: writes nothing.
-- KEYS     key
-- ARGV     command, what follows the key
-- Replies  {digest of the answer, the answer as under RESP2}
local answer = redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
return {digest(ARGV[1], answer), answer}
