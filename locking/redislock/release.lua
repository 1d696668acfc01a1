-- Gives the lock back if it is still ours, and tells those who wait.
-- KEYS: lock. ARGV: the owner's id, the channel or '' to tell nobody, the message.
-- Returns 0 if it is not ours, and else 1 more than there are connections that were told.
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
    if ARGV[2] ~= '' then
        return 1 + redis.call('PUBLISH', ARGV[2], ARGV[3])
    end
    return 1
end
return 0
