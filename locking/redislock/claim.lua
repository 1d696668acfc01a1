-- Phase 1 of a Redlock grant: takes this node's lock and tells the number of the newest grant that the node knows of.
-- KEYS: lock, number. ARGV: the owner's id, the term in milliseconds.
-- Returns {1, number} when the lock is ours, {0, milliseconds until it expires, the owner's id} when it is somebody else's.
--
-- The number never expires and is not changed here, unless nobody can count on from it: it has more than 18 digits, or is no
-- number at all. Then it starts again; its tokens are refused as stale, and the epoch is raised. It stays a string: a Lua
-- number is exact only up to 2^53. A lock that already carries our id was taken by an earlier copy of this message.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then
    return {0, tostring(redis.call('PTTL', KEYS[1])), owner}
end
local number = redis.call('GET', KEYS[2]) or '0'
if #number > 18 or string.find(number, '^%d+$') == nil then
    redis.call('DEL', KEYS[2])
    number = '0'
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {1, number}
