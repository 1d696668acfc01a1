-- Phase 2 of a Redlock grant: stores its token as the node's number, if the lock is still ours and the token is larger.
-- KEYS: lock, number. ARGV: the owner's id, the token. Returns 1 (acknowledged) or 0.
--
-- "Larger", and not "at least as large", is what keeps two grants from carrying one token. A second copy of this message is
-- therefore refused; its sender takes that for no acknowledgement.
--
-- Both numbers are decimal strings without leading zeros, so the longer one is the larger, and of two that are equally long
-- the one that sorts last. tonumber() would take 9007199254740993 for 9007199254740992.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
local token, number = ARGV[2], redis.call('GET', KEYS[2]) or '0'
if #token > #number or (#token == #number and token > number) then
    redis.call('SET', KEYS[2], token)
    return 1
end
return 0
