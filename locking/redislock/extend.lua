-- Sets the term of the lock anew if it is still ours. It never creates the key: a lock that has expired may have been
-- somebody else's in between.
-- KEYS: lock. ARGV: the owner's id, the term in milliseconds. Returns 1 or 0.
if redis.call('GET', KEYS[1]) == ARGV[1] then
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
