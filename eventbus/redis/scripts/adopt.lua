-- adopt: begins the counts of the audit with a group that is there, of which nothing is known: what it has lost until now is none of ours.
-- Promises: the counts begin once, however many ask.
-- KEYS     group hash, delayed, retry stream
-- ARGV     what an audit found missing of the entries added
-- Replies  1 begun, 0 they had begun
if redis.call('HGET', KEYS[1], 'base') then return 0 end
redis.call('HSET', KEYS[1], 'base', ARGV[1])
balance(KEYS[1], KEYS[2], KEYS[3])
return 1
