-- Takes the lock and issues its token in one step.
-- KEYS: lock, counter. ARGV: the grant's id, the term in milliseconds.
-- Returns {1, token} when the lock is ours, {0, milliseconds until it expires} when it is somebody else's.
--
-- The counter never expires, so that it outlives the lock. It is read back as a string: a Lua number is exact only up to
-- 2^53. A lock that already carries our id was taken by an earlier call whose reply was lost; since then nobody else can
-- have moved the counter. A counter at its end starts again: its tokens are refused as stale, and the epoch is raised.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then
    return {0, tostring(redis.call('PTTL', KEYS[1]))}
end
if not owner or redis.call('EXISTS', KEYS[2]) == 0 then
    local raised = redis.pcall('INCR', KEYS[2])
    if type(raised) == 'table' and raised.err then
        redis.call('SET', KEYS[2], '1')
    end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {1, redis.call('GET', KEYS[2])}
