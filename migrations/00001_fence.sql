-- The fence: who may write to a resource, decided by the database alone.
--
-- A resource (an item or a coupon) has one row in fences. A transaction that is going to change the resource calls
-- present() with its grant before it reads anything. present() moves the fence forward and keeps its row locked until the
-- transaction ends; the triggers of 00002 refuse every change by a transaction that has not presented. Together they close
-- both holes of the usual check at the write: a stale holder cannot write, and cannot slip in between the read and the
-- write of its successor.
--
-- SQLSTATEs of our own (class FP is used by nobody else):
--   FP001  the presented token is not newer than the fence
--   FP002  the presented strategy or epoch is not the one in charge
--   FP003  a guarded row was touched by a transaction that has not presented for its resource
--   FP004  a change that is never allowed: a deleted row, another key, an edited ledger
--   FP005  the resource is fenced, and the grant carries no usable token
--   FP006  the resource does not exist

-- +goose Up

-- +goose StatementBegin
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'fencepost_service') THEN
        RAISE EXCEPTION 'the role fencepost_service does not exist'
            USING HINT = 'As an administrator: CREATE ROLE fencepost_service LOGIN PASSWORD ''…''; then run migrate again.';
    END IF;
    IF pg_has_role('fencepost_service', current_user, 'MEMBER') THEN
        RAISE EXCEPTION 'the service''s role fencepost_service can act as the owner %', current_user
            USING HINT = 'Run migrate as an owner of its own: a service that owns its tables can switch the fence off.';
    END IF;
END $$;
-- +goose StatementEnd

-- Nobody but the owner may place objects where the functions below look for theirs.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO fencepost_service;

-- What exists here was made for the owner alone; each right of the service's role is named one by one.
--
-- Keys of resources are collated "C", here and in 00002: in byte order, which no upgrade of the system's locales changes
-- under an index, and by which lists are read page by page. All of them, because an index is of no use to a comparison in
-- another collation than its own.
--
-- What a column may hold is said by its type, and not by a CHECK of the table: PostgreSQL reads a table's checks anew from their
-- stored text for every statement that writes to it, and a type's once for a session. It was a sixth of what a reservation
-- costs the server. A CHECK is left where it is about more than one column.
CREATE DOMAIN resource_key   AS text COLLATE "C" CHECK (VALUE ~ '^(item|coupon)/.');
CREATE DOMAIN fencing_mode   AS text CHECK (VALUE IN ('enforced', 'off'));
CREATE DOMAIN whole_number   AS bigint CHECK (VALUE >= 0);

CREATE TABLE authorities (
    scope       text COLLATE "C" PRIMARY KEY CHECK (scope IN ('inventory', 'coupons') OR scope ~ '^(item|coupon)/'),
    strategy    text        NOT NULL CHECK (strategy <> ''),
    fingerprint text        NOT NULL,
    epoch       bigint      NOT NULL CHECK (epoch > 0),
    since       timestamptz NOT NULL DEFAULT now(),
    decided_by  text        NOT NULL CHECK (decided_by IN ('configuration', 'operator', 'both'))
);
COMMENT ON TABLE authorities IS
    'Which lock authority is in charge of a scope. The epoch makes the tokens of different authorities comparable: a later reign wins, whatever its tokens.';
COMMENT ON COLUMN authorities.decided_by IS
    'configuration: an instance took over when it started. operator: an order, which instances that are configured otherwise follow. both: an order with which an instance that started since agrees. The fence does not read it.';

CREATE TABLE fences (
    resource     resource_key PRIMARY KEY,
    scope        text COLLATE "C" NOT NULL REFERENCES authorities,
    fencing      fencing_mode NOT NULL,
    epoch        whole_number NOT NULL,
    token        whole_number NOT NULL,
    grant_id     uuid    NOT NULL,
    strategy     text    NOT NULL,
    -- The transaction that presented last. Its number alone would not do: after a dump is restored into a new cluster the
    -- numbers start again and one of them would some day be taken for a presentation. Its start time cannot come back.
    presented_in xid8        NOT NULL,
    presented_at timestamptz NOT NULL,
    -- How many presentations were accepted. They are serial, so it is the order in which transactions have had the resource;
    -- no clock and no transaction number gives that, as those are drawn before the wait for this row.
    turn         bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 50); -- every presentation rewrites the row: leave room for it on its own page
COMMENT ON TABLE fences IS 'Per resource the newest (epoch, token, grant) that PostgreSQL has seen. Moves forward only.';

CREATE TABLE refusals (
    id              uuid        PRIMARY KEY,
    resource        text COLLATE "C" NOT NULL,
    reason          text        NOT NULL,
    strategy        text        NOT NULL,
    presented_epoch bigint      NOT NULL,
    presented_token bigint      NOT NULL,
    presented_grant uuid        NOT NULL,
    current_epoch   bigint      NOT NULL,
    current_token   bigint      NOT NULL,
    current_grant   uuid,
    instance        text        NOT NULL,
    refused_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX refusals_resource ON refusals (resource, refused_at);
COMMENT ON TABLE refusals IS 'Every write that the fence turned away, with both tokens.';

-- refuse ends the transaction with one of our SQLSTATEs. The detail is JSON, for the service to read; numbers are strings,
-- because a token can be larger than what JSON readers keep exactly.
-- +goose StatementBegin
CREATE FUNCTION refuse(p_state text, p_message text, p_resource text, p_strategy text, p_epoch bigint, p_token bigint,
                       p_current_strategy text, p_current_epoch bigint, p_current_token bigint, p_current_grant uuid)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = p_state,
        MESSAGE = p_message,
        DETAIL = pg_catalog.json_build_object(
            'resource', p_resource,
            'presented_strategy', p_strategy, 'presented_epoch', p_epoch::text, 'presented_token', p_token::text,
            'current_strategy', p_current_strategy, 'current_epoch', p_current_epoch::text,
            'current_token', p_current_token::text, 'current_grant', p_current_grant)::text;
END $$;
-- +goose StatementEnd

-- locked_fence returns the fence of a resource with its row locked, after making sure that the strategy and the epoch are
-- the ones in charge. Where fencing is off neither is looked at, and the row is locked only if that is asked for. A row that
-- somebody else has locked is waited for, or, without p_wait, left alone: then the answer is NULL.
--
-- The authority is read after the row was locked: a transaction that waited here must see the reign that is in charge when
-- it goes on, not the one when it began to wait. The authority's row itself need not be locked: a reign that begins a moment
-- later presents a larger epoch, waits for this row, and reads what this transaction left.
-- +goose StatementBegin
CREATE FUNCTION locked_fence(p_resource text, p_strategy text, p_epoch bigint, p_token bigint, p_lock_off boolean, p_wait boolean)
RETURNS fences LANGUAGE plpgsql AS $$
DECLARE
    f public.fences;
    a public.authorities;
BEGIN
    IF p_wait THEN
        SELECT * INTO f FROM public.fences WHERE resource = p_resource AND (p_lock_off OR fencing = 'enforced') FOR UPDATE;
    ELSE
        SELECT * INTO f FROM public.fences WHERE resource = p_resource AND (p_lock_off OR fencing = 'enforced')
           FOR UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        SELECT * INTO f FROM public.fences WHERE resource = p_resource; -- fencing never changes
        IF NOT FOUND THEN
            PERFORM public.refuse('FP006', pg_catalog.format('%s does not exist', p_resource),
                p_resource, p_strategy, p_epoch, p_token, NULL, NULL, NULL, NULL);
        END IF;
        IF p_lock_off OR f.fencing = 'enforced' THEN
            RETURN NULL;
        END IF;
    END IF;
    IF f.fencing = 'off' THEN
        RETURN f;
    END IF;
    SELECT * INTO STRICT a FROM public.authorities WHERE scope = f.scope;
    IF p_epoch IS NULL OR p_strategy IS NULL OR a.epoch <> p_epoch OR a.strategy <> p_strategy THEN
        PERFORM public.refuse('FP002', pg_catalog.format('%s epoch %s is not in charge of %s', p_strategy, p_epoch, p_resource),
            p_resource, p_strategy, p_epoch, p_token, a.strategy, a.epoch, f.token, f.grant_id);
    END IF;
    IF p_strategy IN ('none', 'local') THEN
        PERFORM public.refuse('FP005', pg_catalog.format('%s is fenced, and the strategy %s issues no tokens', p_resource, p_strategy),
            p_resource, p_strategy, p_epoch, p_token, a.strategy, f.epoch, f.token, f.grant_id);
    END IF;
    RETURN f;
END $$;
-- +goose StatementEnd

-- present hands a grant to the fence. Accepted when (epoch, token) is greater than the fence, or equal with the same grant
-- id (the rightful holder's second transaction); anything else is refused with FP001. Returns the fence's turn, which what the
-- transaction writes to the ledger has to carry.
--
-- A resource whose fencing is off is left alone, without even a lock on its row, and the answer is 0: that lock would make every
-- strategy look safe, and the resource exists to show the danger. Nor is it asked who is in charge: an instance that was
-- superseded still writes there.
--
-- Without p_wait, the answer for a row that somebody else has locked is NULL, and nothing was presented.
-- +goose StatementBegin
CREATE FUNCTION present(p_resource text, p_strategy text, p_epoch bigint, p_token bigint, p_grant uuid, p_wait boolean DEFAULT true)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f public.fences := public.locked_fence(p_resource, p_strategy, p_epoch, p_token, false, p_wait);
BEGIN
    IF f.fencing IS DISTINCT FROM 'enforced' THEN
        RETURN CASE f.fencing WHEN 'off' THEN 0 END;
    END IF;
    IF p_token IS NULL OR p_token <= 0 OR p_grant IS NULL THEN
        PERFORM public.refuse('FP005', pg_catalog.format('%s is fenced, and the grant carries no token', p_resource),
            p_resource, p_strategy, p_epoch, p_token, f.strategy, f.epoch, f.token, f.grant_id);
    END IF;
    IF NOT ((p_epoch, p_token) > (f.epoch, f.token)
            OR ((p_epoch, p_token) = (f.epoch, f.token) AND p_grant = f.grant_id)) THEN
        PERFORM public.refuse('FP001', pg_catalog.format('token %s.%s of %s is stale: the fence is at %s.%s',
                p_epoch, p_token, p_resource, f.epoch, f.token),
            p_resource, p_strategy, p_epoch, p_token, f.strategy, f.epoch, f.token, f.grant_id);
    END IF;
    UPDATE public.fences
       SET epoch = p_epoch, token = p_token, grant_id = p_grant, strategy = p_strategy, turn = f.turn + 1,
           presented_in = pg_catalog.pg_current_xact_id(), presented_at = pg_catalog.now()
     WHERE resource = p_resource;
    RETURN f.turn + 1;
END $$;
-- +goose StatementEnd

-- lock_row is the whole of the strategy postgres: SELECT … FOR UPDATE on the resource's row in fences, and a presentation of
-- the next token. Lock and counter are one row, so the token is issued by the lock's authority in the step that takes the
-- lock. Returns the token and the turn, or zeros where fencing is off: the row is locked then as well, so the strategy
-- excludes, but nothing is fenced. A transaction that already holds the row with the same grant keeps its token. Without
-- p_wait, the answer for a row that somebody else has locked is NULLs.
-- +goose StatementBegin
CREATE FUNCTION lock_row(p_resource text, p_epoch bigint, p_grant uuid, p_wait boolean DEFAULT true, OUT token bigint, OUT turn bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f public.fences := public.locked_fence(p_resource, 'postgres', p_epoch, NULL, true, p_wait);
BEGIN
    IF f.fencing IS DISTINCT FROM 'enforced' THEN
        IF f.fencing = 'off' THEN
            token := 0;
            turn := 0;
        END IF;
        RETURN;
    END IF;
    IF p_grant IS NULL THEN
        PERFORM public.refuse('FP005', pg_catalog.format('%s is fenced, and a row lock needs a grant', p_resource),
            p_resource, 'postgres', p_epoch, NULL, f.strategy, f.epoch, f.token, f.grant_id);
    END IF;
    IF f.epoch > p_epoch OR (f.epoch = p_epoch AND f.token = 9223372036854775807) THEN
        PERFORM public.refuse('FP001', pg_catalog.format('no token is left above %s.%s for %s', f.epoch, f.token, p_resource),
            p_resource, 'postgres', p_epoch, f.token, f.strategy, f.epoch, f.token, f.grant_id);
    END IF;
    token := CASE WHEN f.epoch < p_epoch THEN 1
                  WHEN f.grant_id = p_grant THEN f.token
                  ELSE f.token + 1 END;
    turn := f.turn + 1;
    UPDATE public.fences
       SET epoch = p_epoch, token = lock_row.token, grant_id = p_grant, strategy = 'postgres', turn = lock_row.turn,
           presented_in = pg_catalog.pg_current_xact_id(), presented_at = pg_catalog.now()
     WHERE resource = p_resource;
END $$;
-- +goose StatementEnd

-- claim_authority puts a strategy in charge of a scope and returns the reign that is in charge then. The same strategy on
-- the same servers keeps its epoch; anything else begins a new one. p_by says who claims:
--   configuration  an instance that starts. It takes over, unless an operator's order stands that it does not agree with.
--   operator       an order. It takes over, and stands until an instance starts that is configured alike.
--   NULL           an instance whose servers have forgotten who they were. It changes nothing but their fingerprint.
-- The row is locked before it is compared: two instances that start at once cannot both see the old reign and both begin
-- the same new one. A resource's own authority is made with the resource or by switch_resource, and not here.
-- +goose StatementBegin
CREATE FUNCTION claim_authority(p_scope text, p_strategy text, p_fingerprint text, p_by text DEFAULT 'configuration')
RETURNS authorities LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a public.authorities;
    changed boolean;
BEGIN
    IF p_scope IN ('inventory', 'coupons') AND p_by IS NOT NULL THEN
        INSERT INTO public.authorities (scope, strategy, fingerprint, epoch, decided_by)
        VALUES (p_scope, p_strategy, p_fingerprint, 1, p_by) ON CONFLICT (scope) DO NOTHING;
    END IF;
    SELECT * INTO a FROM public.authorities WHERE scope = p_scope FOR NO KEY UPDATE;
    IF a.strategy <> p_strategy AND (p_by IS NULL OR p_by = 'configuration' AND a.decided_by = 'operator') THEN
        RETURN a;
    END IF;
    changed := (a.strategy, a.fingerprint) IS DISTINCT FROM (p_strategy, p_fingerprint);
    UPDATE public.authorities
       SET strategy = p_strategy,
           fingerprint = p_fingerprint,
           epoch = a.epoch + changed::int,
           since = CASE WHEN changed THEN pg_catalog.now() ELSE a.since END,
           decided_by = CASE WHEN p_by IS NULL THEN a.decided_by
                             WHEN p_by = 'configuration' AND a.strategy = p_strategy AND a.decided_by <> 'configuration' THEN 'both'
                             ELSE p_by END
     WHERE scope = p_scope
    RETURNING * INTO a;
    RETURN a;
END $$;
-- +goose StatementEnd

-- raise_epoch begins a new reign of the same authority, by one and only from the epoch that the caller knows. It makes
-- older grants lose and can never make a stale one win, so anybody may call it at any time. Returns the epoch in charge.
-- +goose StatementBegin
CREATE FUNCTION raise_epoch(p_scope text, p_from bigint)
RETURNS authorities LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a public.authorities;
BEGIN
    UPDATE public.authorities SET epoch = epoch + 1, since = pg_catalog.now() WHERE scope = p_scope AND epoch = p_from;
    SELECT * INTO a FROM public.authorities WHERE scope = p_scope;
    RETURN a;
END $$;
-- +goose StatementEnd

-- create_fence makes the fence of a new resource, and counts as its first presentation: the creating transaction may go on
-- to insert the resource. No lock is needed for that; the primary key lets one creator win. p_strategy NULL leaves the
-- resource to the authority of its kind; otherwise the resource becomes a scope of its own.
-- +goose StatementBegin
CREATE FUNCTION create_fence(p_resource text, p_fencing text, p_strategy text, p_fingerprint text, p_grant uuid)
RETURNS fences LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a public.authorities;
    f public.fences;
BEGIN
    IF p_strategy IS NULL THEN
        SELECT * INTO STRICT a FROM public.authorities
         WHERE scope = CASE WHEN p_resource LIKE 'item/%' THEN 'inventory' ELSE 'coupons' END;
    ELSE
        INSERT INTO public.authorities (scope, strategy, fingerprint, epoch, decided_by)
        VALUES (p_resource, p_strategy, p_fingerprint, 1, 'operator') RETURNING * INTO a;
    END IF;
    INSERT INTO public.fences (resource, scope, fencing, epoch, token, grant_id, strategy, presented_in, presented_at)
    VALUES (p_resource, a.scope, p_fencing, a.epoch, 0, p_grant, a.strategy,
            pg_catalog.pg_current_xact_id(), pg_catalog.now())
    RETURNING * INTO f;
    RETURN f;
END $$;
-- +goose StatementEnd

-- switch_resource puts a strategy in charge of one resource, by an operator's order. A resource that has followed the
-- authority of its kind becomes a scope of its own. p_strategy NULL takes it back to the authority of its kind.
--
-- Whenever a resource changes its scope, the epoch of the one it comes under is made larger than that of the one it leaves,
-- and with that than the fence's and every epoch that a grant for the resource can carry. Otherwise an instance that still takes
-- the resource for part of the scope it has left could some day present that scope's epoch, find it equal, and pass tokens
-- of other servers. Both rows stay locked until the transaction ends, so that nobody reads the resource in the scope it
-- leaves with an epoch that is raised meanwhile.
-- +goose StatementBegin
CREATE FUNCTION switch_resource(p_resource text, p_strategy text, p_fingerprint text)
RETURNS authorities LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f public.fences;
    old public.authorities;
    a public.authorities;
BEGIN
    SELECT * INTO f FROM public.fences WHERE resource = p_resource FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM public.refuse('FP006', pg_catalog.format('%s does not exist', p_resource),
            p_resource, p_strategy, NULL, NULL, NULL, NULL, NULL, NULL);
    END IF;
    SELECT * INTO STRICT old FROM public.authorities WHERE scope = f.scope FOR NO KEY UPDATE;
    IF p_strategy IS NULL AND f.scope <> p_resource THEN
        RETURN old;
    ELSIF p_strategy IS NOT NULL AND f.scope = p_resource THEN
        a := public.claim_authority(p_resource, p_strategy, p_fingerprint, 'operator');
    ELSIF p_strategy IS NULL THEN
        SELECT * INTO STRICT a FROM public.authorities
         WHERE scope = CASE WHEN p_resource LIKE 'item/%' THEN 'inventory' ELSE 'coupons' END FOR NO KEY UPDATE;
        IF a.epoch <= old.epoch THEN
            UPDATE public.authorities SET epoch = old.epoch + 1, since = pg_catalog.now() WHERE scope = a.scope RETURNING * INTO a;
        END IF;
    ELSE
        INSERT INTO public.authorities AS former (scope, strategy, fingerprint, epoch, decided_by)
        VALUES (p_resource, p_strategy, p_fingerprint, old.epoch + 1, 'operator')
        ON CONFLICT (scope) DO UPDATE -- it had one before
            SET strategy = excluded.strategy, fingerprint = excluded.fingerprint, since = excluded.since,
                epoch = greatest(former.epoch + 1, excluded.epoch)
        RETURNING * INTO a;
    END IF;
    IF f.fencing = 'enforced' AND a.strategy IN ('none', 'local') THEN
        PERFORM public.refuse('FP005', pg_catalog.format('%s is fenced, and the strategy %s issues no tokens', p_resource, a.strategy),
            p_resource, a.strategy, a.epoch, NULL, f.strategy, f.epoch, f.token, f.grant_id);
    END IF;
    UPDATE public.fences SET scope = a.scope WHERE resource = p_resource AND scope <> a.scope;
    RETURN a;
END $$;
-- +goose StatementEnd

-- A mistake of the owner's is stopped as well: the fence only moves forward, and its scope changes only as switch_resource
-- changes it.
-- +goose StatementBegin
CREATE FUNCTION guard_fence() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.resource <> OLD.resource OR NEW.fencing <> OLD.fencing OR (NEW.epoch, NEW.token) < (OLD.epoch, OLD.token)
       OR NEW.turn < OLD.turn THEN
        RAISE EXCEPTION 'the fence of % only moves forward', OLD.resource USING ERRCODE = 'FP004';
    END IF;
    IF NEW.scope <> OLD.scope THEN -- a second IF: an expression with a subquery is a query, each time
        IF NEW.scope NOT IN (NEW.resource, CASE WHEN NEW.resource LIKE 'item/%' THEN 'inventory' ELSE 'coupons' END)
           OR (NEW.epoch, NEW.token, NEW.grant_id, NEW.strategy, NEW.presented_in, NEW.presented_at)
              IS DISTINCT FROM (OLD.epoch, OLD.token, OLD.grant_id, OLD.strategy, OLD.presented_in, OLD.presented_at)
           OR (SELECT epoch FROM public.authorities WHERE scope = NEW.scope)
              <= greatest(OLD.epoch, (SELECT epoch FROM public.authorities WHERE scope = OLD.scope))
        THEN
            RAISE EXCEPTION 'the fence of % can come under % only with a larger epoch', OLD.resource, NEW.scope USING ERRCODE = 'FP004';
        END IF;
    END IF;
    RETURN NEW;
END $$;
-- +goose StatementEnd
-- Without a WHEN: PostgreSQL reads that anew from its stored text for every presentation, which costs more than the call.
CREATE TRIGGER guard_fence BEFORE UPDATE ON fences FOR EACH ROW EXECUTE FUNCTION guard_fence();
ALTER TABLE fences ENABLE ALWAYS TRIGGER guard_fence;

REVOKE ALL ON FUNCTION refuse, locked_fence, present, lock_row, claim_authority, raise_epoch, create_fence, switch_resource
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION present, lock_row, claim_authority, raise_epoch, create_fence, switch_resource TO fencepost_service;
GRANT SELECT ON authorities, fences, refusals TO fencepost_service;
GRANT INSERT ON refusals TO fencepost_service;

-- +goose Down
DROP FUNCTION switch_resource, create_fence, raise_epoch, claim_authority, lock_row, present, locked_fence, refuse;
DROP TABLE refusals, fences, authorities;
DROP DOMAIN resource_key, fencing_mode, whole_number;
DROP FUNCTION guard_fence;
