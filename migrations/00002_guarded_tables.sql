-- What the fence guards: items, coupons, what was taken of them, and the ledger.
--
-- The resource key leads every primary key and no constraint crosses resources, so that the tables can be distributed by
-- it together. A reservation has no row of its own: it is its lines, which share an id.

-- +goose Up
CREATE DOMAIN item_key         AS text COLLATE "C" CHECK (VALUE LIKE 'item/_%');
CREATE DOMAIN coupon_key       AS text COLLATE "C" CHECK (VALUE LIKE 'coupon/_%');
CREATE DOMAIN units            AS bigint CHECK (VALUE BETWEEN 0 AND 1000000000);
CREATE DOMAIN quantity         AS bigint CHECK (VALUE > 0);
CREATE DOMAIN display_name     AS text CHECK (VALUE <> '');
CREATE DOMAIN reservation_state AS text CHECK (VALUE IN ('held', 'confirmed', 'released', 'expired'));
CREATE DOMAIN redemption_state AS text CHECK (VALUE IN ('redeemed', 'rolled_back'));
CREATE DOMAIN entry_kind       AS text CHECK (VALUE IN ('create', 'restock', 'hold', 'confirm', 'release', 'expire', 'redeem', 'rollback'));

CREATE TABLE items (
    resource   item_key     PRIMARY KEY REFERENCES fences,
    name       display_name NOT NULL,
    on_hand    units        NOT NULL,
    reserved   units        NOT NULL CHECK (reserved <= on_hand),
    sold       whole_number NOT NULL,
    created_at timestamptz  NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
COMMENT ON COLUMN items.on_hand IS 'In stock, held units included, sold units not.';

CREATE TABLE reservation_lines (
    resource    item_key    NOT NULL,
    reservation uuid        NOT NULL,
    quantity    quantity    NOT NULL,
    state       reservation_state NOT NULL,
    customer_id text        NOT NULL,
    created_by  text        NOT NULL,
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    settled_at  timestamptz CHECK ((state = 'held') = (settled_at IS NULL)),
    PRIMARY KEY (resource, reservation)
) WITH (fillfactor = 80); -- the change of state stays on its page
CREATE INDEX reservation_lines_reservation ON reservation_lines (reservation);
CREATE INDEX reservation_lines_due ON reservation_lines (expires_at) WHERE state = 'held';

CREATE TABLE coupons (
    resource           coupon_key  PRIMARY KEY REFERENCES fences,
    max_redemptions    units       NOT NULL,
    per_customer_limit quantity,
    valid_from         timestamptz,
    valid_until        timestamptz,
    redeemed           units       NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT coupons_check CHECK (max_redemptions > 0 AND redeemed <= max_redemptions AND valid_until > valid_from IS NOT FALSE)
) WITH (fillfactor = 50);

CREATE TABLE redemptions (
    resource    coupon_key  NOT NULL,
    redemption  uuid        NOT NULL,
    customer_id text        NOT NULL,
    reservation uuid,
    state       redemption_state NOT NULL,
    created_by  text        NOT NULL,
    created_at  timestamptz NOT NULL,
    settled_at  timestamptz CHECK ((state = 'redeemed') = (settled_at IS NULL)),
    PRIMARY KEY (resource, redemption)
);
CREATE INDEX redemptions_redemption ON redemptions (redemption);
CREATE INDEX redemptions_reservation ON redemptions (reservation) WHERE reservation IS NOT NULL;
CREATE INDEX redemptions_customer ON redemptions (resource, customer_id) WHERE state = 'redeemed';

CREATE TABLE ledger (
    resource       text COLLATE "C" NOT NULL,
    entry          uuid        NOT NULL,
    kind           entry_kind  NOT NULL,
    reference      uuid,
    on_hand_delta  bigint      NOT NULL DEFAULT 0,
    reserved_delta bigint      NOT NULL DEFAULT 0,
    sold_delta     bigint      NOT NULL DEFAULT 0,
    redeemed_delta bigint      NOT NULL DEFAULT 0,
    strategy       text        NOT NULL,
    epoch          bigint      NOT NULL,
    token          bigint,
    grant_id       uuid        NOT NULL,
    turn           bigint,
    written_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (resource, entry)
);
COMMENT ON TABLE ledger IS 'Every change of a counter, with the grant under which it was made. Append-only.';
COMMENT ON COLUMN ledger.turn IS
    'The fence''s turn, which puts the writes of one resource in order; two tokens tell which is newer, not which was written first. NULL where fencing is off: writes have no order there.';
COMMENT ON COLUMN ledger.reference IS 'The reservation or the redemption that the change belongs to.';

-- guard_rows lets a statement through when this very transaction has presented for the resource of each row that it has
-- written, or the resource's fencing is off.
--
-- It looks once for each statement, when the rows are there, and undoes them if it has to. A trigger for each row would be a call
-- and a query for each, which was half of what a reservation in a large batch cost the server.
--
-- It runs with the caller's rights and, unlike all others here, with the caller's search_path: to set another one costs
-- as much as the look at the fence. So it names the schema of everything, of operators too: an operator = of the
-- caller's own, in a schema that comes before pg_catalog, would decide the comparisons otherwise. (IS DISTINCT FROM, IN and
-- row comparisons look for their operators by that path, so there are none.) A test puts such operators there. What is called
-- written is the statement's rows, whatever else has that name.
--
-- The look at the fence is a scalar subquery, which PostgreSQL runs for each row by the primary key: of EXISTS it might make a
-- join that reads all fences.
-- +goose StatementBegin
CREATE FUNCTION guard_rows() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unpresented text;
BEGIN
    SELECT w.resource INTO unpresented FROM written w
     WHERE (SELECT true FROM public.fences f
             WHERE f.resource OPERATOR(pg_catalog.=) w.resource
               AND (f.fencing OPERATOR(pg_catalog.=) 'off'
                    OR f.presented_in OPERATOR(pg_catalog.=) pg_catalog.pg_current_xact_id()
                       AND f.presented_at OPERATOR(pg_catalog.=) pg_catalog.now())) IS NOT TRUE
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'this transaction has not presented a grant for %', unpresented USING ERRCODE = 'FP003';
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- guard_ledger is guard_rows for the ledger. The stamp of a fenced entry has to be the fence's, so an entry cannot claim
-- another grant than the one its transaction presented.
-- +goose StatementBegin
CREATE FUNCTION guard_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unpresented text;
BEGIN
    SELECT w.resource INTO unpresented FROM written w
     WHERE (SELECT true FROM public.fences f
             WHERE f.resource OPERATOR(pg_catalog.=) w.resource
               AND (f.fencing OPERATOR(pg_catalog.=) 'off'
                    OR f.presented_in OPERATOR(pg_catalog.=) pg_catalog.pg_current_xact_id()
                       AND f.presented_at OPERATOR(pg_catalog.=) pg_catalog.now()
                       AND f.turn OPERATOR(pg_catalog.=) w.turn
                       AND f.token OPERATOR(pg_catalog.=) w.token
                       AND f.epoch OPERATOR(pg_catalog.=) w.epoch
                       AND f.grant_id OPERATOR(pg_catalog.=) w.grant_id
                       AND f.strategy OPERATOR(pg_catalog.=) w.strategy)) IS NOT TRUE
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'this transaction has not presented the grant of an entry for %', unpresented USING ERRCODE = 'FP003';
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '%', CASE TG_OP
        WHEN 'UPDATE' THEN format(TG_ARGV[0], TG_TABLE_NAME)
        WHEN 'DELETE' THEN format('a row of %s is never deleted', TG_TABLE_NAME)
        ELSE format('%s is never truncated', TG_TABLE_NAME) END USING ERRCODE = 'FP004';
END $$;
-- +goose StatementEnd

-- expect_rows ends a transaction whose statement has found other rows than it was written for. The SQLSTATE is that of a
-- serialization failure, and means the same: run it again, on what is there by then.
-- +goose StatementBegin
CREATE FUNCTION expect_rows(p_found bigint, p_expected bigint) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_found <> p_expected THEN
        RAISE EXCEPTION '% of % rows were changed by somebody else meanwhile', p_expected - p_found, p_expected
            USING ERRCODE = 'serialization_failure';
    END IF;
END $$;
-- +goose StatementEnd

-- ALWAYS: an ordinary trigger sleeps while session_replication_role is replica. The key of a row never changes, so it is
-- enough to look at what an update leaves.
-- +goose StatementBegin
DO $$
DECLARE
    t text;
    g record;
BEGIN
    FOREACH t IN ARRAY ARRAY['items', 'reservation_lines', 'coupons', 'redemptions'] LOOP
        EXECUTE format('CREATE TRIGGER guard_insert AFTER INSERT ON %I REFERENCING NEW TABLE AS written EXECUTE FUNCTION guard_rows()', t);
        EXECUTE format('CREATE TRIGGER guard_update AFTER UPDATE ON %I REFERENCING NEW TABLE AS written EXECUTE FUNCTION guard_rows()', t);
        EXECUTE format('CREATE TRIGGER guard_never BEFORE DELETE OR TRUNCATE OR UPDATE OF resource ON %I EXECUTE FUNCTION never(%L)',
            t, 'the resource of a row of %s never changes');
    END LOOP;
    CREATE TRIGGER guard_insert AFTER INSERT ON ledger REFERENCING NEW TABLE AS written EXECUTE FUNCTION guard_ledger();
    CREATE TRIGGER guard_never BEFORE DELETE OR TRUNCATE OR UPDATE ON ledger EXECUTE FUNCTION never('the %s is append-only');
    CREATE TRIGGER guard_never BEFORE TRUNCATE ON fences EXECUTE FUNCTION never();
    CREATE TRIGGER guard_never BEFORE TRUNCATE ON refusals EXECUTE FUNCTION never();
    FOR g IN SELECT tgrelid::regclass AS relation, tgname AS name FROM pg_trigger WHERE tgname LIKE 'guard%' LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', g.relation, g.name);
    END LOOP;
END $$;
-- +goose StatementEnd

-- Keys, limits and owners of a row are set when it is made; the service can change only what a transition changes.
GRANT SELECT, INSERT ON items, reservation_lines, coupons, redemptions, ledger TO fencepost_service;
GRANT UPDATE (on_hand, reserved, sold) ON items TO fencepost_service;
GRANT UPDATE (state, settled_at) ON reservation_lines TO fencepost_service;
GRANT UPDATE (redeemed) ON coupons TO fencepost_service;
GRANT UPDATE (state, settled_at) ON redemptions TO fencepost_service;

-- An answer is written in the transaction of what it says, or not at all. The resource leads its key, so that it is found
-- where the transaction is; a key that was used for another resource is found by the index.
CREATE TABLE answers (
    resource    text COLLATE "C" NOT NULL,
    caller      text        NOT NULL,
    key         text        NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    fingerprint bytea       NOT NULL CHECK (length(fingerprint) = 32),
    status      smallint    NOT NULL,
    location    text        NOT NULL,
    body        bytea,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (resource, caller, key)
);
CREATE INDEX answers_key ON answers (caller, key);
CREATE INDEX answers_age ON answers (created_at) WHERE body IS NOT NULL;
COMMENT ON TABLE answers IS 'What was answered to requests with an Idempotency-Key. Old bodies are thrown away, keys never: a late retry must not buy again.';
COMMENT ON COLUMN answers.fingerprint IS 'SHA-256 of the request.';
GRANT SELECT, INSERT ON answers TO fencepost_service;

-- purge_answers throws old bodies away, so many at most, and leaves those to others that they are at. It is a function
-- because the service's role has no right to change an answer. Which ones is asked in a WITH, which is evaluated once: a
-- subquery may be evaluated for each row of a join, and then finds so many more each time.
-- +goose StatementBegin
CREATE FUNCTION purge_answers(p_before timestamptz, p_most bigint) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n bigint;
BEGIN
    WITH old AS MATERIALIZED (
        SELECT resource, caller, key FROM public.answers WHERE created_at < p_before AND body IS NOT NULL
         ORDER BY created_at LIMIT p_most FOR UPDATE SKIP LOCKED)
    UPDATE public.answers a SET body = NULL FROM old WHERE (a.resource, a.caller, a.key) = (old.resource, old.caller, old.key);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION purge_answers(timestamptz, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION purge_answers(timestamptz, bigint) TO fencepost_service;

-- The holds that are due are shared among instances by their item: whoever has locked a slot ends what falls into it. It
-- saves work and nothing rests on it, as the fence and the state decide about each hold.
CREATE TABLE sweep_slots (slot integer PRIMARY KEY);
INSERT INTO sweep_slots SELECT generate_series(0, 15);
GRANT SELECT, UPDATE ON sweep_slots TO fencepost_service; -- FOR UPDATE wants the right to change

CREATE TABLE api_keys (
    id         uuid        PRIMARY KEY,
    name       text        NOT NULL,
    role       text        NOT NULL CHECK (role IN ('client', 'admin')),
    digest     bytea       NOT NULL UNIQUE CHECK (length(digest) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
COMMENT ON COLUMN api_keys.digest IS 'SHA-256 of the key. The key itself is 256 random bits and is stored nowhere.';
GRANT SELECT, INSERT ON api_keys TO fencepost_service;
GRANT UPDATE (revoked_at) ON api_keys TO fencepost_service;

-- What callers may do, over all instances. Unlogged: a crash of the server forgets what was used, and costs no write to the
-- log for each request otherwise.
CREATE UNLOGGED TABLE request_quotas (
    caller  text        PRIMARY KEY,
    began   timestamptz NOT NULL,
    taken   bigint      NOT NULL,
    granted bigint      NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE request_quotas IS 'How many requests of the current window instances have taken, and what the last to ask has got.';

CREATE UNLOGGED TABLE coupon_guesses (
    caller text        PRIMARY KEY,
    until  timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE coupon_guesses IS 'Each code that was tried in vain moves its caller''s time on by a share of the window.';

CREATE TABLE hold_leases (
    caller   text        NOT NULL,
    instance uuid        NOT NULL,
    holds    bigint      NOT NULL,
    until    timestamptz NOT NULL,
    PRIMARY KEY (caller, instance)
) WITH (fillfactor = 50);
COMMENT ON TABLE hold_leases IS 'How many holds each instance is making, or may still make, for a caller who may have a limited number of them.';
CREATE INDEX reservation_lines_open ON reservation_lines (created_by, reservation) WHERE state = 'held';

-- lease_holds lets an instance make up to p_want more holds for the caller, and returns how many. What is open and what is
-- leased is counted by one instance at a time, and anew with each statement, so the sum never passes p_most.
-- +goose StatementBegin
CREATE FUNCTION lease_holds(p_caller text, p_instance uuid, p_making bigint, p_want bigint, p_most bigint, p_term interval)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    free bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('holds/' || p_caller, 0));
    DELETE FROM public.hold_leases WHERE caller = p_caller AND until < clock_timestamp();
    SELECT p_most - p_making
           - (SELECT count(DISTINCT reservation) FROM public.reservation_lines WHERE created_by = p_caller AND state = 'held')
           - (SELECT COALESCE(sum(holds), 0) FROM public.hold_leases WHERE caller = p_caller AND instance <> p_instance)
      INTO free;
    free := greatest(least(p_want, free), 0);
    INSERT INTO public.hold_leases VALUES (p_caller, p_instance, p_making + free, clock_timestamp() + p_term)
    ON CONFLICT (caller, instance) DO UPDATE SET holds = excluded.holds, until = excluded.until;
    RETURN free;
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION lease_holds FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lease_holds TO fencepost_service;
GRANT SELECT, INSERT, UPDATE ON request_quotas, coupon_guesses TO fencepost_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON hold_leases TO fencepost_service;

-- +goose Down
DROP FUNCTION purge_answers, lease_holds;
DROP TABLE hold_leases, coupon_guesses, request_quotas;
DROP TABLE sweep_slots, api_keys, answers, ledger, redemptions, coupons, reservation_lines, items;
DROP TRIGGER guard_never ON fences;
DROP TRIGGER guard_never ON refusals;
DROP FUNCTION guard_rows, guard_ledger, never, expect_rows;
DROP DOMAIN item_key, coupon_key, units, quantity, display_name, reservation_state, redemption_state, entry_kind;
