-- Gives the lock back if it is still ours, and tells those who wait.
-- KEYS: lock. ARGV: the grant's id, the channel. Returns 1 or 0.
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
    redis.call('PUBLISH', ARGV[2], '')
    return 1
end
return 0
