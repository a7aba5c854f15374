-- The datastore of BSKT's mint daemon.  PostgreSQL 15 or newer.  Apply with `bskt schema apply`.
--
-- Reading order: chain and control → block, log and what was decoded from it → mint_request and its history →
-- what the invocator did → grants.  Everything that a person may have to trust is a named constraint here, a row of
-- an append-only table, or a column that the wrong role cannot write.
--
-- Conventions: hashes and addresses are bytea (32 and 20 bytes), amounts are wei in numeric(78,0), times that our side
-- measured are timestamptz on the database's clock, times from a block are bigint (a chain may lie about them).

-- ------------------------------------------------------------------------------------------------------------------
-- Roles: one a part of the daemon, set at connection.  They belong to the whole server, so another database, or another
-- starter at this very moment, may have made them already.
-- ------------------------------------------------------------------------------------------------------------------
DO $$
DECLARE
    part text;
BEGIN
    FOREACH part IN ARRAY ARRAY['bskt_indexer', 'bskt_invocator', 'bskt_operator', 'bskt_reader'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', part);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
        IF NOT pg_has_role(current_user, part, 'MEMBER') THEN
            BEGIN
                EXECUTE format('GRANT %I TO %I', part, current_user);
            EXCEPTION WHEN unique_violation OR duplicate_object THEN
                NULL;
            END;
        END IF;
    END LOOP;
END
$$;

CREATE DOMAIN address AS bytea CONSTRAINT address_is_20_bytes CHECK (octet_length(VALUE) = 20);
CREATE DOMAIN hash AS bytea CONSTRAINT hash_is_32_bytes CHECK (octet_length(VALUE) = 32);
CREATE DOMAIN uint256 AS numeric(78, 0) CONSTRAINT uint256_is_in_range CHECK (VALUE >= 0 AND VALUE < 2 :: numeric ^ 256);

CREATE TABLE schema_version (
    version integer PRIMARY KEY,
    checksum bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE schema_version IS 'One row a migration; a daemon refuses to run on an older or a newer schema.';

-- ------------------------------------------------------------------------------------------------------------------
-- One chain, and what steers the daemon on it
-- ------------------------------------------------------------------------------------------------------------------
CREATE TABLE chain (
    chain_id bigint PRIMARY KEY,
    genesis_hash hash NOT NULL,
    factory_address address NOT NULL,
    factory_code_hash hash NOT NULL,
    forwarder_address address NOT NULL,
    start_block_number bigint NOT NULL CONSTRAINT chain_starts_after_genesis CHECK (start_block_number >= 1),
    start_block_hash hash NOT NULL,
    first_trigger_block_number bigint NOT NULL,
    secret_check bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE chain IS 'What is pinned at the first start; a later start that finds something else refuses to run.';
COMMENT ON COLUMN chain.first_trigger_block_number IS
    'Requests of older blocks are recorded but held: a lost database must not mint history again.';
COMMENT ON COLUMN chain.secret_check IS 'Tells a changed instance secret; reveals nothing about it.';

CREATE TABLE factory (
    chain_id bigint NOT NULL REFERENCES chain,
    address address NOT NULL,
    code_hash hash NOT NULL,
    start_block_number bigint NOT NULL,
    filled_up_to bigint NOT NULL,
    live_at timestamptz,
    added_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (chain_id, address)
);
COMMENT ON TABLE factory IS 'Factories beside the pinned one.  One that was added later is followed only after its history was read.';
COMMENT ON COLUMN factory.filled_up_to IS 'The last final block whose logs of this factory are recorded.';

CREATE TABLE cursor (
    chain_id bigint PRIMARY KEY REFERENCES chain,
    block_number bigint NOT NULL,
    block_hash hash NOT NULL,
    finalized_number bigint NOT NULL,
    safe_number bigint NOT NULL,
    head_number bigint NOT NULL,
    baskets_version bigint NOT NULL DEFAULT 0,
    indexed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT cursor_is_not_below_finality CHECK (block_number >= finalized_number),
    CONSTRAINT cursor_finality_is_ordered CHECK (finalized_number <= safe_number)
);
COMMENT ON TABLE cursor IS 'The last indexed block.  Moves by compare-and-swap on (block_number, block_hash) only.';
COMMENT ON COLUMN cursor.baskets_version IS
    'Raised when a basket below the cursor is found or lost other than by following: whoever remembers baskets reads them again.';
COMMENT ON COLUMN cursor.finalized_number IS 'Monotone; at most block_number: finality is believed only of blocks that are indexed.';

CREATE TABLE control (
    chain_id bigint PRIMARY KEY REFERENCES chain,
    paused_at timestamptz,
    paused_reason text,
    quarantined_at timestamptz,
    quarantined_reason text,
    quarantined_until timestamptz,
    halted_at timestamptz,
    halted_reason text,
    server_identifier bigint NOT NULL,
    server_timeline integer NOT NULL,
    CONSTRAINT control_pause_has_a_reason CHECK ((paused_at IS NULL) = (paused_reason IS NULL)),
    CONSTRAINT control_quarantine_has_a_reason CHECK ((quarantined_at IS NULL) = (quarantined_reason IS NULL)),
    CONSTRAINT control_quarantine_has_a_deadline CHECK ((quarantined_at IS NULL) = (quarantined_until IS NULL)),
    CONSTRAINT control_halt_has_a_reason CHECK ((halted_at IS NULL) = (halted_reason IS NULL))
);
COMMENT ON TABLE control IS 'The switches.  Read inside the claim, so that they hold from the very next claim on.';
COMMENT ON COLUMN control.quarantined_until IS
    'The quarantine ends with the first final block that is not older than this: by then, every lost send has shown itself.';
COMMENT ON COLUMN control.server_identifier IS
    'With server_timeline: the history of the server that these rows were written on.  Another one may lack our last commits.';

-- The history that this server continues: a restored or promoted one has another identifier or timeline.  Of the write
-- position, for the control file names the new timeline only after the first checkpoint.  A standby has none to write.
CREATE FUNCTION this_server(OUT identifier bigint, OUT timeline integer) LANGUAGE sql STABLE AS $$
    SELECT
        system_identifier,
        CASE WHEN pg_is_in_recovery() THEN 0
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8)) :: bit(32) :: integer END
    FROM pg_control_system()
$$;
CREATE FUNCTION is_this_server(identifier bigint, timeline integer) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT s.identifier = $1 AND s.timeline = $2 FROM this_server() s
$$;
COMMENT ON FUNCTION is_this_server IS 'Asked inside each claim and each attempt: a failover must not send before it was noticed.';

-- ------------------------------------------------------------------------------------------------------------------
-- What is counted, so that a reading costs what is new and not what ever happened.  Each statement that changes counted
-- rows appends what it changed, in its own transaction: no two transactions write one row, so none waits for another.
-- fold_tally adds it up afterwards.
-- ------------------------------------------------------------------------------------------------------------------
CREATE TABLE tally (
    chain_id bigint NOT NULL,
    what text NOT NULL,
    labels text[] NOT NULL,
    bucket integer NOT NULL,
    times bigint NOT NULL,
    total double precision NOT NULL,
    PRIMARY KEY (chain_id, what, labels, bucket)
) WITH (fillfactor = 50);
COMMENT ON TABLE tally IS 'What was folded.  Labels are codes, so the rows are some hundred a chain, whatever strangers do.';
COMMENT ON COLUMN tally.bucket IS 'Of a histogram: below how many of its bounds; 0 for what is only counted.';

CREATE TABLE tally_delta (
    id bigint GENERATED ALWAYS AS IDENTITY,
    chain_id bigint NOT NULL,
    what text NOT NULL,
    labels text[] NOT NULL,
    bucket integer NOT NULL,
    times bigint NOT NULL,
    total double precision NOT NULL,
    PRIMARY KEY (chain_id, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE tally_delta IS 'What is not folded yet: appended by triggers only, a few rows a statement however many rows it changed.';

CREATE VIEW counted AS
    SELECT chain_id, what, labels, bucket, sum(times) :: bigint AS times, sum(total) AS total
    FROM (
        SELECT chain_id, what, labels, bucket, times, total FROM tally
        UNION ALL
        SELECT chain_id, what, labels, bucket, times, total FROM tally_delta
    ) t
    GROUP BY chain_id, what, labels, bucket;
COMMENT ON VIEW counted IS 'The present truth: one statement sees what was folded and what was not, and nothing twice.';

CREATE FUNCTION seconds_bucket(seconds double precision) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT width_bucket(seconds, '{1,5,15,60,120,300,600,1200,2400,3600,7200,21600,86400}' :: double precision[])
$$;
CREATE FUNCTION blocks_bucket(blocks double precision) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT width_bucket(blocks, '{1,2,3,5,8,16,32,64,128}' :: double precision[])
$$;

-- Add up the oldest deltas of a chain; how many they were.  Two that fold at once take different ones, and lock in one order.
CREATE FUNCTION fold_tally(of_chain bigint, at_most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    taken bigint[] := ARRAY(
        SELECT id FROM tally_delta WHERE chain_id = of_chain ORDER BY id LIMIT at_most FOR UPDATE SKIP LOCKED
    );
BEGIN
    WITH gone AS (
        DELETE FROM tally_delta WHERE chain_id = of_chain AND id = ANY (taken) RETURNING what, labels, bucket, times, total
    )
    INSERT INTO tally AS t (chain_id, what, labels, bucket, times, total)
    SELECT of_chain, what, labels, bucket, sum(times), sum(total) FROM gone GROUP BY 2, 3, 4 ORDER BY 2, 3, 4
    ON CONFLICT (chain_id, what, labels, bucket) DO UPDATE SET times = t.times + excluded.times, total = t.total + excluded.total;
    RETURN cardinality(taken);
END
$$;
REVOKE EXECUTE ON FUNCTION fold_tally FROM PUBLIC;

-- Counts the rows of a table that has a chain_id.  Its arguments: what they are counted as, then expressions of a row: its
-- labels, how many it stands for, its bucket and its amount in a histogram.
CREATE FUNCTION count_rows() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    EXECUTE format(
        $count$
            INSERT INTO tally_delta (chain_id, what, labels, bucket, times, total)
            SELECT chain_id, %1$L, ARRAY[%2$s] :: text[], %4$s, sum(sign * %3$s), sum(sign * %5$s) FROM (%6$s) changed
            GROUP BY 1, 3, 4
            HAVING sum(sign * %3$s) <> 0
        $count$,
        TG_ARGV[0], TG_ARGV[1], coalesce(TG_ARGV[2], '1'), coalesce(TG_ARGV[3], '0'), coalesce(TG_ARGV[4], '0'),
        CASE TG_OP
            WHEN 'INSERT' THEN 'SELECT 1 AS sign, * FROM new_rows'
            WHEN 'DELETE' THEN 'SELECT -1 AS sign, * FROM old_rows'
            ELSE 'SELECT 1 AS sign, * FROM new_rows UNION ALL SELECT -1, * FROM old_rows'
        END
    );
    RETURN NULL;
END
$$;

-- ------------------------------------------------------------------------------------------------------------------
-- The chain as indexed.  Orphaned rows stay, marked.
-- ------------------------------------------------------------------------------------------------------------------
CREATE TABLE block (
    chain_id bigint NOT NULL REFERENCES chain,
    hash hash NOT NULL,
    number bigint NOT NULL,
    parent_hash hash,
    timestamp bigint NOT NULL,
    canonical boolean NOT NULL DEFAULT true,
    PRIMARY KEY (chain_id, hash),
    CONSTRAINT block_has_a_time_if_its_header_was_read CHECK (timestamp > 0 OR number = 0 OR parent_hash IS NULL)
);
COMMENT ON TABLE block IS
    'Every block that is not final and compared, empty or not; below these each block with a log, and the last one of a range until it is pruned.';
COMMENT ON COLUMN block.parent_hash IS 'NULL for a final block whose header was never needed.';
CREATE UNIQUE INDEX block_number_is_canonical_once ON block (chain_id, number) WHERE canonical;

-- The bound is the year 9999: a chain may say anything of its time.
CREATE FUNCTION settled_time(chain bigint) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        (
            SELECT least(c.indexed_at, to_timestamp(least(b.timestamp, 253402300799)))
            FROM cursor c JOIN block b ON b.chain_id = c.chain_id AND b.hash = c.block_hash
            WHERE c.chain_id = $1
        ),
        '-infinity'
    )
$$;
COMMENT ON FUNCTION settled_time IS
    'Up to when it is known what happened on chain: when it was looked at last, but never later than the last indexed block, for that may be old.  A deadline after it may have been met.';

CREATE TABLE log (
    chain_id bigint NOT NULL,
    block_hash hash NOT NULL,
    log_index integer NOT NULL,
    block_number bigint NOT NULL,
    tx_hash hash NOT NULL,
    tx_index integer NOT NULL,
    address address NOT NULL,
    topics bytea NOT NULL,
    data bytea NOT NULL,
    event text NOT NULL,
    undecodable text,
    canonical boolean NOT NULL DEFAULT true,
    PRIMARY KEY (chain_id, block_hash, log_index),
    CONSTRAINT log_topics_are_whole CHECK (octet_length(topics) IN (0, 32, 64, 96, 128))
);
COMMENT ON TABLE log IS 'Raw logs of known origin, byte for byte.  (block_hash, log_index) is the key of a log, never of a request.';
COMMENT ON COLUMN log.undecodable IS 'Why the log could not be decoded; such a log is kept, counted and does not stop its block.';
CREATE INDEX log_by_block_number ON log (chain_id, block_number);
CREATE TRIGGER log_added AFTER INSERT ON log REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('logs', 'event, undecodable IS NOT NULL');
CREATE TRIGGER log_changed AFTER UPDATE ON log REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('logs', 'event, undecodable IS NOT NULL');
CREATE TRIGGER log_discarded AFTER DELETE ON log REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('logs', 'event, undecodable IS NOT NULL');

CREATE TABLE basket (
    chain_id bigint NOT NULL,
    block_hash hash NOT NULL,
    log_index integer NOT NULL,
    block_number bigint NOT NULL,
    stablecoin address NOT NULL,
    consumer address NOT NULL,
    creator address NOT NULL,
    admin address NOT NULL,
    name_raw bytea NOT NULL,
    symbol_raw bytea NOT NULL,
    name text NOT NULL,
    symbol text NOT NULL,
    decimals smallint,
    canonical boolean NOT NULL DEFAULT true,
    PRIMARY KEY (chain_id, block_hash, log_index)
);
COMMENT ON TABLE basket IS 'Each BasketCreated of the configured factory.  After a reorg one address may name another basket.';
COMMENT ON COLUMN basket.name IS 'Cleaned for display; name_raw is what the chain said.';
COMMENT ON COLUMN basket.decimals IS 'As read from the token once, before its first trigger; NULL until then.';
CREATE UNIQUE INDEX basket_stablecoin_is_canonical_once ON basket (chain_id, stablecoin) WHERE canonical;
CREATE INDEX basket_by_consumer ON basket (chain_id, consumer) WHERE canonical;
CREATE TRIGGER basket_added AFTER INSERT ON basket REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('baskets', 'canonical');
CREATE TRIGGER basket_changed AFTER UPDATE ON basket REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('baskets', 'canonical');
CREATE TRIGGER basket_discarded AFTER DELETE ON basket REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('baskets', 'canonical');

CREATE TABLE basket_pause (
    chain_id bigint NOT NULL REFERENCES chain,
    stablecoin address NOT NULL,
    paused_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    paused_reason text NOT NULL,
    role_changes bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (chain_id, stablecoin)
);
COMMENT ON COLUMN basket_pause.role_changes IS 'How often the token''s roles changed since: a person who resumes must have seen the last one.';
COMMENT ON TABLE basket_pause IS
    'Baskets that nothing is sent for until a person resumes them.  By token, not columns of basket: a reorg or a repair replaces that row, and neither may end a pause.';

CREATE TABLE basket_standing (
    chain_id bigint NOT NULL REFERENCES chain,
    stablecoin address NOT NULL,
    completed_at timestamptz,
    allowed boolean,
    allowed_at timestamptz,
    allowed_reason text,
    served boolean NOT NULL GENERATED ALWAYS AS (coalesce(allowed, completed_at IS NOT NULL)) STORED,
    PRIMARY KEY (chain_id, stablecoin),
    CONSTRAINT basket_standing_says_something CHECK (num_nonnulls(completed_at, allowed) > 0),
    CONSTRAINT basket_standing_is_allowed_or_not_with_a_reason CHECK (num_nulls(allowed, allowed_at, allowed_reason) IN (0, 3))
);
COMMENT ON TABLE basket_standing IS
    'Baskets that completed a mint, or that a person ruled on; every other basket has no row.  By token, as basket_pause is.';
COMMENT ON COLUMN basket_standing.completed_at IS 'Its first completed mint.  Only the trigger of mint_request writes it, and nothing takes it back.';
COMMENT ON COLUMN basket_standing.allowed IS 'What a person ruled; NULL: no person did, and a completed mint decides.';
COMMENT ON COLUMN basket_standing.served IS 'Served baskets have at least half of the slots, and the larger half of the places in flight.';
CREATE INDEX basket_standing_served ON basket_standing (chain_id) WHERE served;
CREATE INDEX basket_standing_allowed ON basket_standing (chain_id, stablecoin) WHERE allowed;

CREATE TABLE reorg (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id bigint NOT NULL REFERENCES chain,
    ancestor_number bigint NOT NULL,
    ancestor_hash hash NOT NULL,
    old_tip_number bigint NOT NULL,
    old_tip_hash hash NOT NULL,
    orphaned_blocks integer NOT NULL CONSTRAINT reorg_orphaned_something CHECK (orphaned_blocks > 0),
    orphaned_requests integer NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE reorg IS 'Append-only: each time that the followed branch was left.';
CREATE INDEX reorg_by_chain ON reorg (chain_id, id);
CREATE TRIGGER reorg_added AFTER INSERT ON reorg REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('reorgs', '', '1', 'blocks_bucket(orphaned_blocks)', 'orphaned_blocks');

CREATE TABLE sweep (
    chain_id bigint PRIMARY KEY REFERENCES chain,
    block_number bigint NOT NULL,
    pruned_number bigint NOT NULL DEFAULT -1,
    swept_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE sweep IS 'Up to which final block the rows were compared a second time, with another endpoint where there is one.';
COMMENT ON COLUMN sweep.pruned_number IS 'Up to which block the rows of empty blocks are deleted.';

CREATE TABLE sweep_difference (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id bigint NOT NULL REFERENCES chain,
    kind text NOT NULL CONSTRAINT sweep_difference_kind_is_known CHECK (kind IN ('missing', 'extra', 'different', 'mistimed')),
    event text NOT NULL,
    block_number bigint NOT NULL,
    block_hash hash NOT NULL,
    log_index integer,
    stored jsonb,
    repaired boolean NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE sweep_difference IS 'Append-only: each row of a final block that was not what the chain says.';
COMMENT ON COLUMN sweep_difference.stored IS 'The raw row as it was, also where it was discarded.';
COMMENT ON COLUMN sweep_difference.kind IS 'Of the last one, the header of the block has another time than its requests.';
COMMENT ON COLUMN sweep_difference.repaired IS 'False where endpoints disagree, or one cannot prove what it leaves out: a person must look.';
CREATE TRIGGER sweep_difference_added AFTER INSERT ON sweep_difference REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('differences', 'kind');

-- ------------------------------------------------------------------------------------------------------------------
-- The request
-- ------------------------------------------------------------------------------------------------------------------
CREATE TABLE mint_request (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id bigint NOT NULL,  -- as with the raw rows, the cursor that every commit moves or locks proves the chain
    identity hash NOT NULL,
    nonce uuid NOT NULL,
    generation integer NOT NULL DEFAULT 0,
    -- where it was last seen on chain
    emitter address NOT NULL,
    tx_hash hash NOT NULL,
    block_hash hash NOT NULL,
    block_number bigint NOT NULL,
    block_timestamp bigint NOT NULL,
    log_index integer NOT NULL,
    chain_status text NOT NULL DEFAULT 'canonical',
    orphaned_for_good boolean NOT NULL DEFAULT false,
    -- what was asked for
    stablecoin address NOT NULL,
    consumer address NOT NULL,
    requester address NOT NULL,
    beneficiary address NOT NULL,
    amount uint256 NOT NULL,
    predicted_amount uint256,
    bank_reference hash NOT NULL,
    expected_reference hash NOT NULL,
    -- what we did
    state text NOT NULL DEFAULT 'seen',
    state_reason text,
    state_detail text,
    state_attempt_no integer,
    state_changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    holds_reference boolean NOT NULL DEFAULT false,
    held_at timestamptz,
    held_reason text,
    -- the invocator's working columns
    claim_no integer NOT NULL DEFAULT 0,
    worker_id uuid,
    lease_ends_at timestamptz,
    next_attempt_at timestamptz,
    deadline_at timestamptz,
    recorded_at timestamptz NOT NULL DEFAULT now(),  -- the same of one commit: those that wait are told apart by their blocks
    CONSTRAINT mint_request_identity_is_recorded_once UNIQUE (identity),
    CONSTRAINT mint_request_nonce_is_unique UNIQUE (nonce),
    CONSTRAINT mint_request_state_is_known CHECK (state IN (
-- generated from datastore/lifecycle.py: states
        'seen', 'confirmed', 'claimed', 'in_doubt', 'accepted', 'executed', 'completed', 'rejected', 'failed', 'dropped', 'review', 'cancelled'
-- end of generated lines
    )),
    CONSTRAINT mint_request_chain_status_is_known CHECK (chain_status IN ('canonical', 'orphaned', 'finalized')),
    CONSTRAINT mint_request_orphaned_for_good_is_orphaned CHECK (NOT orphaned_for_good OR chain_status = 'orphaned'),
    CONSTRAINT mint_request_hold_has_a_reason CHECK ((held_at IS NULL) = (held_reason IS NULL)),
    CONSTRAINT mint_request_has_a_lease_exactly_while_claimed CHECK ((state = 'claimed') = (lease_ends_at IS NOT NULL)),
    CONSTRAINT mint_request_has_a_worker_while_claimed CHECK (state <> 'claimed' OR worker_id IS NOT NULL),
    CONSTRAINT mint_request_has_a_deadline_while_accepted CHECK (state <> 'accepted' OR deadline_at IS NOT NULL),
    CONSTRAINT mint_request_holds_its_reference_while_underway CHECK (
        state NOT IN ('confirmed', 'claimed', 'in_doubt', 'accepted') OR holds_reference
    ),
    CONSTRAINT mint_request_ended_without_a_send_holds_nothing CHECK (state NOT IN ('dropped', 'cancelled') OR NOT holds_reference)
);
COMMENT ON TABLE mint_request IS
    'One row a MintRequested, for life: a reorg re-attaches it, nothing deletes it.  What the chain said cannot be updated by any role.';
COMMENT ON COLUMN mint_request.identity IS
    'sha256 of (chain_id, emitter, tx_hash, topic0, sha256(topics ‖ data), rank): independent of the block, so that re-mining finds the same row.';
COMMENT ON COLUMN mint_request.nonce IS
    'HMAC of the identity and the generation under the instance secret: the same again after a lost database; the id of every call to CRE.';
COMMENT ON COLUMN mint_request.predicted_amount IS
    'What the workflow''s floating-point arithmetic will mint for this amount; NULL where it would throw.';
COMMENT ON COLUMN mint_request.expected_reference IS 'The bytes32 that MintExecuted will carry, by the workflow''s own rule.';
COMMENT ON COLUMN mint_request.holds_reference IS 'One deposit, one mint: at most one row holds a bank reference, across baskets and chains.';
COMMENT ON COLUMN mint_request.held_at IS 'Stops a claim without being a state.';
COMMENT ON COLUMN mint_request.claim_no IS 'The fencing token: every write of a claim names it.';

CREATE UNIQUE INDEX bank_reference_is_held_once ON mint_request (bank_reference) WHERE holds_reference;
CREATE INDEX mint_request_by_bank_reference ON mint_request (bank_reference);
-- Without case, spaces and dashes, as datastore/reference.py folds it: what a person would read as the same reference.
CREATE FUNCTION folded_reference(reference bytea) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT decode(
        translate(
            encode(rtrim(reference, '\x00'::bytea), 'escape'), 'ABCDEFGHIJKLMNOPQRSTUVWXYZ -', 'abcdefghijklmnopqrstuvwxyz'
        ),
        'escape'
    )
$$;
-- Anybody may ask for any reference as often as he pays for: each question about rivals is answered by one step in an index.
CREATE INDEX mint_request_spelled_alike ON mint_request (folded_reference(bank_reference)) WHERE holds_reference;
CREATE INDEX mint_request_undecided ON mint_request (folded_reference(bank_reference), beneficiary)
    WHERE state IN ('seen', 'review') AND NOT holds_reference AND chain_status <> 'orphaned';
CREATE INDEX mint_request_in_line ON mint_request (bank_reference, chain_id, block_number, log_index)
    WHERE state = 'rejected' AND state_reason = 'duplicate_bank_reference';
CREATE INDEX mint_request_in_line_for ON mint_request (bank_reference, beneficiary)
    WHERE state = 'rejected' AND state_reason = 'duplicate_bank_reference';
CREATE INDEX mint_request_without_reference ON mint_request (bank_reference, chain_id, state)
    WHERE state IN ('seen', 'rejected', 'failed');
CREATE INDEX mint_request_sent_and_orphaned ON mint_request (chain_id, requester, stablecoin, beneficiary, id)
    WHERE chain_status = 'orphaned' AND state IN ('in_doubt', 'accepted', 'failed', 'executed', 'completed', 'review')
      AND (NOT orphaned_for_good OR state = 'review');
-- Where the two are the same, which is the rule, the index above serves.
CREATE INDEX mint_request_by_expected_reference ON mint_request (expected_reference) WHERE expected_reference <> bank_reference;
CREATE INDEX mint_request_by_block ON mint_request (chain_id, block_hash);
-- The partial indexes hold the open requests only, so that what they cost does not grow with history.
CREATE INDEX mint_request_to_judge ON mint_request (chain_id, block_number) WHERE state = 'seen' AND chain_status <> 'orphaned';
CREATE INDEX mint_request_to_claim ON mint_request (chain_id, stablecoin, requester, block_number, log_index)
    WHERE state = 'confirmed' AND held_at IS NULL AND chain_status <> 'orphaned';
CREATE INDEX mint_request_held ON mint_request (chain_id, next_attempt_at) WHERE state = 'confirmed' AND held_at IS NOT NULL;
CREATE INDEX mint_request_to_hold ON mint_request (chain_id, stablecoin)
    WHERE state = 'seen' AND held_at IS NULL AND chain_status <> 'orphaned';
CREATE INDEX mint_request_held_for_basket ON mint_request (chain_id, stablecoin) WHERE held_reason = 'basket_paused';
CREATE INDEX mint_request_to_resend ON mint_request (chain_id, next_attempt_at) WHERE state = 'in_doubt';
CREATE INDEX mint_request_with_lease ON mint_request (chain_id, lease_ends_at) WHERE state = 'claimed';
CREATE INDEX mint_request_in_flight ON mint_request (chain_id, deadline_at) WHERE state IN ('in_doubt', 'accepted');
CREATE INDEX mint_request_not_delivered ON mint_request (chain_id, state_changed_at)
    WHERE state = 'failed' AND state_reason = 'not_delivered';
CREATE INDEX mint_request_to_finalize ON mint_request (chain_id, block_number) WHERE chain_status = 'canonical';
CREATE INDEX mint_request_orphaned ON mint_request (chain_id, block_number) WHERE chain_status = 'orphaned' AND NOT orphaned_for_good;
CREATE INDEX mint_request_to_complete ON mint_request (chain_id) WHERE state = 'executed';
CREATE INDEX mint_request_for_a_person ON mint_request (chain_id, state, coalesce(state_reason, ''), state_changed_at, id)
    WHERE state IN ('review', 'failed', 'rejected');
CREATE INDEX mint_request_held_for ON mint_request (chain_id, held_reason, held_at, id)
    WHERE held_at IS NOT NULL AND state IN ('seen', 'confirmed', 'in_doubt');

CREATE FUNCTION is_served_basket(of_chain bigint, token bytea) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM basket_standing WHERE chain_id = of_chain AND stablecoin = token AND served)
$$;
COMMENT ON FUNCTION is_served_basket IS
    'Baskets are made by anybody: an alarm of one that is not served is limited and does not page.';

CREATE TABLE unsettled_reference (
    chain_id bigint NOT NULL REFERENCES chain,
    id bigint GENERATED ALWAYS AS IDENTITY,
    bank_reference hash NOT NULL,
    event text NOT NULL,
    cause bigint,
    PRIMARY KEY (chain_id, id),
    CONSTRAINT unsettled_reference_event_is_known CHECK (
        event IN ('rival_gave_up', 'rival_minted', 'rival_sent', 'reference_minted')
    ),
    CONSTRAINT unsettled_reference_names_the_rival CHECK ((cause IS NOT NULL) = (event IN ('rival_minted', 'rival_sent')))
);
COMMENT ON TABLE unsettled_reference IS
    'What a commit leaves to bounded steps: requests of this chain for this reference that hold nothing, so that nothing can be sent for them, and that an event is still to be fed to.  Only inserted and deleted, so that nobody waits for a row.';
COMMENT ON COLUMN unsettled_reference.cause IS 'The request that was minted or sent.';

-- A refused duplicate is there because somebody holds the reference; whoever gives it up, by whatever statement, leaves a
-- row for each chain with such a duplicate.
CREATE FUNCTION reference_given_up() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO unsettled_reference (chain_id, bank_reference, event)
    SELECT c.chain_id, NEW.bank_reference, 'rival_gave_up'
    FROM chain c
    CROSS JOIN LATERAL (
        SELECT FROM mint_request d
        WHERE d.bank_reference = NEW.bank_reference AND d.chain_id = c.chain_id
          AND d.state = 'rejected' AND d.state_reason = 'duplicate_bank_reference'
        LIMIT 1
    ) d;
    RETURN NULL;
END
$$;
CREATE TRIGGER reference_given_up
    AFTER UPDATE OF holds_reference ON mint_request
    FOR EACH ROW WHEN (OLD.holds_reference AND NOT NEW.holds_reference) EXECUTE FUNCTION reference_given_up();

CREATE TABLE mint_transition (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id bigint NOT NULL,  -- no foreign key: only the trigger of that very row writes here, and nobody deletes
    from_state text,
    to_state text NOT NULL,
    actor text NOT NULL,
    reason text,
    detail text,
    attempt_no integer,
    stayed interval,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE mint_transition IS 'Append-only: written by the trigger, so that no change of state can be without it.';
COMMENT ON COLUMN mint_transition.stayed IS 'How long the request was in from_state.';
CREATE INDEX mint_transition_by_request ON mint_transition (request_id, id);
CREATE INDEX mint_transition_by_time ON mint_transition USING brin (at);

CREATE TABLE operator_action (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id bigint NOT NULL REFERENCES chain,
    operator text NOT NULL CONSTRAINT operator_action_has_an_operator CHECK (length(trim(operator)) > 0),
    action text NOT NULL,
    request_id bigint REFERENCES mint_request,
    reason text NOT NULL CONSTRAINT operator_action_has_a_reason CHECK (length(trim(reason)) > 0),
    evidence jsonb,
    before jsonb NOT NULL,
    after jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT operator_action_is_known CHECK (action IN (
        'retry', 'new_generation', 'hold', 'release', 'cancel', 'resolve', 'pause', 'resume', 'quarantine', 'pause_basket',
        'resume_basket', 'allow_basket', 'disallow_basket', 'reset_workflow'
    )),
    CONSTRAINT operator_action_evidence_is_what_the_chain_said CHECK (
        evidence IS NULL
        OR (action IN ('new_generation', 'release') AND evidence ?& ARRAY['block_hash', 'consumer', 'reference', 'answers'])
    ),
    CONSTRAINT operator_action_is_about_a_request_or_the_chain CHECK (
        (
            action IN (
                'pause', 'resume', 'quarantine', 'pause_basket', 'resume_basket', 'allow_basket', 'disallow_basket', 'reset_workflow'
            )
        ) = (request_id IS NULL)
    )
);
COMMENT ON TABLE operator_action IS 'Append-only: what a person did, why, on what evidence, and what was so before and after.';
CREATE INDEX operator_action_by_request ON operator_action (request_id, id);

-- The trigger works on whole statements (one join a statement, not one call a row).  It runs as its owner, so that no
-- part can write history itself; who acts is the role that the session set, not the owner.
-- Without enable_nestloop = off the join is planned once a session, for the few rows of its first statement, and is
-- quadratic for the thousands of a later one.
CREATE FUNCTION mint_request_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_nestloop = off AS $$
DECLARE
    acting text := CASE current_setting('role')
        WHEN 'bskt_indexer' THEN 'indexer'
        WHEN 'bskt_invocator' THEN 'invocator'
        WHEN 'bskt_operator' THEN 'operator'
    END;
    refused record;
BEGIN
    IF NOT EXISTS (SELECT FROM new_rows) THEN
        RETURN NULL;
    END IF;
    SELECT o.id, o.state AS from_state, n.state AS to_state INTO refused
    FROM old_rows o
    JOIN new_rows n ON n.id = o.id
    WHERE o.state <> n.state
      AND (acting, o.state, n.state) NOT IN (VALUES
-- generated from datastore/lifecycle.py: transitions
    ('indexer', 'accepted', 'executed'),
    ('indexer', 'accepted', 'failed'),
    ('indexer', 'accepted', 'review'),
    ('indexer', 'cancelled', 'executed'),
    ('indexer', 'cancelled', 'failed'),
    ('indexer', 'cancelled', 'review'),
    ('indexer', 'claimed', 'executed'),
    ('indexer', 'claimed', 'failed'),
    ('indexer', 'claimed', 'review'),
    ('indexer', 'claimed', 'seen'),
    ('indexer', 'completed', 'review'),
    ('indexer', 'confirmed', 'executed'),
    ('indexer', 'confirmed', 'failed'),
    ('indexer', 'confirmed', 'review'),
    ('indexer', 'confirmed', 'seen'),
    ('indexer', 'dropped', 'executed'),
    ('indexer', 'dropped', 'failed'),
    ('indexer', 'dropped', 'review'),
    ('indexer', 'dropped', 'seen'),
    ('indexer', 'executed', 'accepted'),
    ('indexer', 'executed', 'completed'),
    ('indexer', 'executed', 'in_doubt'),
    ('indexer', 'executed', 'review'),
    ('indexer', 'failed', 'accepted'),
    ('indexer', 'failed', 'dropped'),
    ('indexer', 'failed', 'executed'),
    ('indexer', 'failed', 'in_doubt'),
    ('indexer', 'failed', 'review'),
    ('indexer', 'in_doubt', 'executed'),
    ('indexer', 'in_doubt', 'failed'),
    ('indexer', 'in_doubt', 'review'),
    ('indexer', 'rejected', 'dropped'),
    ('indexer', 'rejected', 'executed'),
    ('indexer', 'rejected', 'failed'),
    ('indexer', 'rejected', 'review'),
    ('indexer', 'rejected', 'seen'),
    ('indexer', 'review', 'dropped'),
    ('indexer', 'review', 'executed'),
    ('indexer', 'seen', 'confirmed'),
    ('indexer', 'seen', 'dropped'),
    ('indexer', 'seen', 'executed'),
    ('indexer', 'seen', 'failed'),
    ('indexer', 'seen', 'rejected'),
    ('indexer', 'seen', 'review'),
    ('invocator', 'accepted', 'failed'),
    ('invocator', 'claimed', 'confirmed'),
    ('invocator', 'claimed', 'in_doubt'),
    ('invocator', 'claimed', 'review'),
    ('invocator', 'confirmed', 'claimed'),
    ('invocator', 'confirmed', 'review'),
    ('invocator', 'failed', 'in_doubt'),
    ('invocator', 'in_doubt', 'accepted'),
    ('invocator', 'in_doubt', 'confirmed'),
    ('invocator', 'in_doubt', 'review'),
    ('invocator', 'in_doubt', 'seen'),
    ('operator', 'confirmed', 'cancelled'),
    ('operator', 'failed', 'cancelled'),
    ('operator', 'failed', 'confirmed'),
    ('operator', 'failed', 'in_doubt'),
    ('operator', 'failed', 'seen'),
    ('operator', 'rejected', 'cancelled'),
    ('operator', 'rejected', 'confirmed'),
    ('operator', 'review', 'cancelled'),
    ('operator', 'review', 'completed'),
    ('operator', 'review', 'confirmed'),
    ('operator', 'review', 'failed'),
    ('operator', 'review', 'in_doubt'),
    ('operator', 'review', 'seen'),
    ('operator', 'seen', 'cancelled')
-- end of generated lines
      )
    LIMIT 1;
    IF acting IS NULL AND EXISTS (SELECT FROM old_rows o JOIN new_rows n ON n.id = o.id WHERE o.state <> n.state) THEN
        RAISE EXCEPTION 'mint_request: no part of the daemon is acting; use the bskt command instead of SQL'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF refused.id IS NOT NULL THEN
        RAISE EXCEPTION 'mint_request %: % may not go from % to %', refused.id, acting, refused.from_state, refused.to_state
            USING ERRCODE = 'check_violation';
    END IF;
    WITH written AS (
        INSERT INTO mint_transition (request_id, from_state, to_state, actor, reason, detail, attempt_no, stayed)
        SELECT
            n.id, o.state, n.state, acting, n.state_reason, n.state_detail, n.state_attempt_no,
            n.state_changed_at - o.state_changed_at
        FROM old_rows o
        JOIN new_rows n ON n.id = o.id
        WHERE o.state <> n.state
        RETURNING request_id, from_state, to_state, reason, extract(epoch FROM stayed) :: double precision AS seconds, at
    ), completed AS (
        SELECT n.chain_id, greatest(0, extract(epoch FROM w.at) - n.block_timestamp) :: double precision AS seconds
        FROM written w
        JOIN new_rows n ON n.id = w.request_id
        WHERE w.to_state = 'completed'
    )
    INSERT INTO tally_delta (chain_id, what, labels, bucket, times, total)
    SELECT chain_id, 'transitions', ARRAY[from_state, to_state, reason], seconds_bucket(seconds), count(*), sum(seconds)
    FROM written JOIN new_rows ON id = request_id
    GROUP BY 1, 3, 4
    UNION ALL
    SELECT chain_id, 'completions', '{}', seconds_bucket(seconds), count(*), sum(seconds) FROM completed GROUP BY 1, 4
    UNION ALL
    SELECT chain_id, 'requests', ARRAY[state, state_reason, held_reason], 0, sum(sign), 0
    FROM (SELECT 1 AS sign, * FROM new_rows UNION ALL SELECT -1, * FROM old_rows) changed
    GROUP BY 1, 3
    HAVING sum(sign) <> 0;
    -- A subselect, for it finds one row by the key also without nested loops.
    INSERT INTO basket_standing AS b (chain_id, stablecoin, completed_at)
    SELECT n.chain_id, n.stablecoin, min(n.state_changed_at)
    FROM new_rows n
    WHERE n.state = 'completed' AND (
        SELECT s.completed_at FROM basket_standing s WHERE s.chain_id = n.chain_id AND s.stablecoin = n.stablecoin
    ) IS NULL
    GROUP BY n.chain_id, n.stablecoin
    ORDER BY n.chain_id, n.stablecoin
    ON CONFLICT (chain_id, stablecoin) DO UPDATE SET completed_at = coalesce(b.completed_at, excluded.completed_at);
    RETURN NULL;
END
$$;
CREATE TRIGGER mint_request_changed
    AFTER UPDATE ON mint_request
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION mint_request_changed();

CREATE FUNCTION mint_request_recorded() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    -- A request that is final and has no rival is judged in the very commit that records it, and written once.
    IF EXISTS (SELECT FROM new_rows WHERE state NOT IN ('seen', 'confirmed', 'rejected')) THEN
        RAISE EXCEPTION 'mint_request: a request begins as seen, or judged' USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO mint_transition (request_id, from_state, to_state, actor)
    SELECT id, NULL, 'seen', 'indexer' FROM new_rows;
    INSERT INTO mint_transition (request_id, from_state, to_state, actor, reason, detail, stayed)
    SELECT id, 'seen', state, 'indexer', state_reason, state_detail, '0' FROM new_rows WHERE state <> 'seen';
    INSERT INTO tally_delta (chain_id, what, labels, bucket, times, total)
    SELECT chain_id, 'transitions', ARRAY['seen', state, state_reason], seconds_bucket(0), count(*), 0
    FROM new_rows
    WHERE state <> 'seen'
    GROUP BY chain_id, state, state_reason
    UNION ALL
    SELECT chain_id, 'requests', ARRAY[state, state_reason, held_reason], 0, count(*), 0
    FROM new_rows
    GROUP BY chain_id, state, state_reason, held_reason;
    RETURN NULL;
END
$$;
CREATE TRIGGER mint_request_recorded
    AFTER INSERT ON mint_request
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION mint_request_recorded();

-- ------------------------------------------------------------------------------------------------------------------
-- What the chain says about the outcome
-- ------------------------------------------------------------------------------------------------------------------
CREATE TABLE mint_execution (
    chain_id bigint NOT NULL,
    block_hash hash NOT NULL,
    log_index integer NOT NULL,
    block_number bigint NOT NULL,
    tx_hash hash NOT NULL,
    consumer address NOT NULL,
    recipient address NOT NULL,
    amount uint256 NOT NULL,
    bank_reference hash NOT NULL,
    canonical boolean NOT NULL DEFAULT true,
    request_id bigint REFERENCES mint_request,
    proof text,
    PRIMARY KEY (chain_id, block_hash, log_index),
    CONSTRAINT mint_execution_proof_is_known CHECK (proof IN ('report', 'simulated')),
    CONSTRAINT mint_execution_is_proven_exactly_for_a_request CHECK ((request_id IS NULL) = (proof IS NULL))
);
COMMENT ON TABLE mint_execution IS
    'Each MintExecuted of a known consumer, stored whether we expected it or not.  Without a request_id it proves nothing.';
COMMENT ON COLUMN mint_execution.request_id IS
    'The request that it is the proven mint of: our reference, and ReportProcessed(true) of our execution id later in the same transaction.';
CREATE INDEX mint_execution_by_request ON mint_execution (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX mint_execution_by_reference ON mint_execution (bank_reference) WHERE canonical;

CREATE TABLE report (
    chain_id bigint NOT NULL,
    block_hash hash NOT NULL,
    log_index integer NOT NULL,
    block_number bigint NOT NULL,
    tx_hash hash NOT NULL,
    receiver address NOT NULL,
    execution_id hash NOT NULL,
    report_id bytea NOT NULL,
    result boolean NOT NULL,
    canonical boolean NOT NULL DEFAULT true,
    PRIMARY KEY (chain_id, block_hash, log_index)
);
COMMENT ON TABLE report IS 'Each ReportProcessed of the configured forwarder for a known consumer.  result = false is never final.';
CREATE INDEX report_by_execution_id ON report (execution_id);
CREATE TRIGGER report_added AFTER INSERT ON report REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('reports', 'result');
CREATE TRIGGER report_discarded AFTER DELETE ON report REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('reports', 'result');

-- A raw row is never rewritten.  One that the chain contradicts may be discarded, if it is on no branch and kept as a difference.
CREATE FUNCTION discard_log(of_chain bigint, of_block bytea, at_index integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM sweep_difference
        WHERE chain_id = of_chain AND block_hash = of_block AND log_index = at_index AND kind = 'different' AND stored IS NOT NULL
    ) THEN
        RAISE EXCEPTION 'log % of block %: only what is kept as a difference may be discarded', at_index, encode(of_block, 'hex')
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    DELETE FROM basket WHERE chain_id = of_chain AND block_hash = of_block AND log_index = at_index AND NOT canonical;
    DELETE FROM report WHERE chain_id = of_chain AND block_hash = of_block AND log_index = at_index AND NOT canonical;
    -- A mint that was proven for a request says for ever that the request was sent.
    DELETE FROM mint_execution
    WHERE chain_id = of_chain AND block_hash = of_block AND log_index = at_index AND NOT canonical AND request_id IS NULL;
    DELETE FROM log WHERE chain_id = of_chain AND block_hash = of_block AND log_index = at_index AND NOT canonical;
END
$$;
REVOKE EXECUTE ON FUNCTION discard_log FROM PUBLIC;

-- A final block that was compared and holds no log is of no more use.  The newest compared one stays, and so do the block
-- before the first one, orphaned blocks and every block with a log.  Each writer of a log locks the cursor, so no block gets
-- one between the look and the deletion; a lock that is taken is not waited for.
CREATE FUNCTION prune_blocks(of_chain bigint, most integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    pruned bigint;
    up_to bigint;
    step_end bigint;
BEGIN
    SELECT greatest(s.pruned_number, h.start_block_number - 1), least(s.block_number, c.finalized_number) - 1 INTO pruned, up_to
    FROM sweep s JOIN cursor c USING (chain_id) JOIN chain h USING (chain_id)
    WHERE s.chain_id = of_chain
    FOR UPDATE OF c, s SKIP LOCKED;
    SELECT max(number) INTO step_end
    FROM (
        SELECT number FROM block
        WHERE chain_id = of_chain AND canonical AND number > pruned AND number <= up_to
        ORDER BY number
        LIMIT most
    ) step;
    IF step_end IS NULL THEN
        RETURN false;
    END IF;
    DELETE FROM block b
    WHERE b.chain_id = of_chain AND b.canonical AND b.number > pruned AND b.number <= step_end
      AND NOT EXISTS (SELECT FROM log l WHERE l.chain_id = b.chain_id AND l.block_hash = b.hash);
    UPDATE sweep SET pruned_number = step_end WHERE chain_id = of_chain;
    RETURN step_end < up_to;
END
$$;
COMMENT ON FUNCTION prune_blocks IS 'One bounded step; true if there may be more.';
REVOKE EXECUTE ON FUNCTION prune_blocks FROM PUBLIC;

CREATE TABLE alarm (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id bigint NOT NULL REFERENCES chain,
    kind text NOT NULL,
    served boolean NOT NULL DEFAULT true,
    stablecoin address,
    request_id bigint REFERENCES mint_request,
    sentence text NOT NULL,
    times bigint NOT NULL DEFAULT 1,
    hour timestamptz,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT alarm_stands_for_several_by_the_hour CHECK (times = 1 OR hour IS NOT NULL),
    CONSTRAINT alarm_about_baskets_that_are_not_served_is_by_the_hour CHECK (served OR hour IS NOT NULL)
);
COMMENT ON TABLE alarm IS
    'What a person must know; docs/runbook.md has a heading for each kind.  Nothing is deleted, and only those of an hour are counted up.';
COMMENT ON COLUMN alarm.served IS
    'False for what any stranger can cause for gas, with a basket that is not served: one row a kind and hour counts them all.';
COMMENT ON COLUMN alarm.hour IS
    'Where set, the row stands for all of its kind in this hour, and its sentence is of the first; last_at is of the latest.';
CREATE INDEX alarm_by_request ON alarm (request_id);
CREATE INDEX alarm_by_kind ON alarm (chain_id, kind, at);
CREATE UNIQUE INDEX alarm_is_one_row_an_hour ON alarm (chain_id, kind, served, hour) WHERE hour IS NOT NULL;
CREATE TRIGGER alarm_added AFTER INSERT ON alarm REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('alarms', 'kind, served', 'times');
CREATE TRIGGER alarm_changed AFTER UPDATE ON alarm REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_rows('alarms', 'kind, served', 'times');

-- ------------------------------------------------------------------------------------------------------------------
-- What the invocator did
-- ------------------------------------------------------------------------------------------------------------------
CREATE TABLE workflow (
    chain_id bigint NOT NULL REFERENCES chain,
    workflow_id hash NOT NULL,
    listed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (chain_id, workflow_id)
);
COMMENT ON TABLE workflow IS 'Append-only: every workflow id that was ever configured, so that any of their reports is recognised.';

CREATE TABLE workflow_slot (
    chain_id bigint NOT NULL,
    workflow_id hash NOT NULL,
    earliest_next_at timestamptz NOT NULL,
    PRIMARY KEY (chain_id, workflow_id),
    FOREIGN KEY (chain_id, workflow_id) REFERENCES workflow
);
COMMENT ON TABLE workflow_slot IS 'Durable pacing: the theoretical arrival time of the next trigger of each workflow.  A restart causes no burst.';

CREATE TABLE trigger_gate (
    chain_id bigint PRIMARY KEY REFERENCES chain,
    clock_offset_seconds double precision
);
COMMENT ON TABLE trigger_gate IS
    'One row a chain, locked while an attempt begins: what is counted over all requests (in flight, caps) is counted by one worker at a time.';
COMMENT ON COLUMN trigger_gate.clock_offset_seconds IS 'The gateway''s clock less ours, as of its latest answer.';

CREATE TABLE breaker (
    chain_id bigint NOT NULL REFERENCES chain,
    workflow_id hash,
    opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    outcome text NOT NULL,
    code text NOT NULL,
    sentence text NOT NULL,
    refusals integer NOT NULL DEFAULT 1 CONSTRAINT breaker_opens_with_a_refusal CHECK (refusals > 0),
    pause_seconds double precision NOT NULL,
    probe_at timestamptz NOT NULL,
    CONSTRAINT breaker_is_open_once UNIQUE NULLS NOT DISTINCT (chain_id, workflow_id),
    FOREIGN KEY (chain_id, workflow_id) REFERENCES workflow
);
COMMENT ON TABLE breaker IS
    'What CRE refuses now, whatever the request: a row while it does.  Nothing of it is sent but a probe, one at a time, from probe_at on.';
COMMENT ON COLUMN breaker.workflow_id IS
    'Whose fault it is: this workflow''s, and the others go on; or NULL for the whole instance (its key, its clock, its connection).';

CREATE TABLE basket_turn (
    chain_id bigint NOT NULL REFERENCES chain,
    stablecoin address NOT NULL,
    last_claim_at timestamptz NOT NULL,
    PRIMARY KEY (chain_id, stablecoin)
);
COMMENT ON TABLE basket_turn IS 'Fairness: the basket that was served longest ago is served next.';

CREATE TABLE requester_turn (
    chain_id bigint NOT NULL REFERENCES chain,
    stablecoin address NOT NULL,
    requester address NOT NULL,
    last_claim_at timestamptz NOT NULL,
    PRIMARY KEY (chain_id, stablecoin, requester)
);
COMMENT ON TABLE requester_turn IS 'Fairness inside a basket: the requester that was served longest ago is served next.';

CREATE TABLE workflow_turn (
    chain_id bigint NOT NULL,
    workflow_id hash NOT NULL,
    was_served boolean NOT NULL,
    taken_at timestamptz NOT NULL,
    PRIMARY KEY (chain_id, workflow_id),
    FOREIGN KEY (chain_id, workflow_id) REFERENCES workflow
);
COMMENT ON TABLE workflow_turn IS
    'Fairness between served baskets and the others: a workflow''s next send is for the kind that its latest one was not for.';

CREATE TABLE frozen_request (
    request_id bigint NOT NULL REFERENCES mint_request,
    generation integer NOT NULL,
    nonce uuid NOT NULL UNIQUE,
    mode text NOT NULL,
    workflow_id hash NOT NULL,
    receiver address NOT NULL,
    gateway text NOT NULL,
    signer address NOT NULL,
    body bytea NOT NULL,
    body_sha256 hash NOT NULL,
    frozen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (request_id, generation),
    CONSTRAINT frozen_request_mode_is_known CHECK (mode IN ('gateway', 'simulate')),
    CONSTRAINT frozen_request_body_is_what_it_says CHECK (body_sha256 = sha256(body))
);
COMMENT ON TABLE frozen_request IS 'Insert-only: the bytes that every attempt sends.  Fixed at the first claim.';

CREATE TABLE execution_id (
    chain_id bigint NOT NULL REFERENCES chain,
    execution_id hash NOT NULL,
    request_id bigint NOT NULL REFERENCES mint_request,
    source text NOT NULL,
    generation integer NOT NULL,
    found_workflow_id hash,
    PRIMARY KEY (chain_id, execution_id),
    CONSTRAINT execution_id_source_is_known CHECK (source IN ('legacy', 'trigger_index', 'returned', 'found')),
    CONSTRAINT execution_id_names_its_workflow_exactly_when_found CHECK ((source = 'found') = (found_workflow_id IS NOT NULL))
);
COMMENT ON TABLE execution_id IS 'Insert-only: under which execution ids a request may appear on chain.';
COMMENT ON COLUMN execution_id.found_workflow_id IS
    'A report showed, in quarantine, that a send which a restore lost went to this workflow: every later send goes there too.';
CREATE INDEX execution_id_by_request ON execution_id (request_id);
-- An id that only CRE's answer taught us may have been indexed before: the indexer looks at these few again.
CREATE INDEX execution_id_returned ON execution_id (chain_id, request_id) WHERE source = 'returned';

-- Twin of invocator.workflow_pool: frozen or found, it is what it is; else the rendezvous hash decides.  A table of one row:
-- only such a function is made part of the statement that calls it, which halves its cost.
CREATE FUNCTION workflow_of(request bigint, generation integer, nonce uuid, pool bytea[]) RETURNS TABLE (workflow_id bytea)
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        (SELECT f.workflow_id FROM frozen_request f WHERE f.request_id = $1 AND f.generation = $2),
        (
            SELECT x.found_workflow_id FROM execution_id x
            WHERE x.request_id = $1 AND x.generation = $2 AND x.source = 'found' ORDER BY x.execution_id LIMIT 1
        ),
        (SELECT w FROM unnest($4) w ORDER BY sha256(uuid_send($3) || w) DESC LIMIT 1)
    )
$$;
COMMENT ON FUNCTION workflow_of IS 'Which workflow of the configured pool a request is, or would be, sent to.';

CREATE TABLE attempt (
    request_id bigint NOT NULL REFERENCES mint_request,
    attempt_no integer NOT NULL,
    generation integer NOT NULL,
    claim_no integer NOT NULL,
    worker_id uuid NOT NULL,
    jti uuid NOT NULL UNIQUE,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    answered_at timestamptz,
    outcome text,
    http_status integer,
    sentence text,
    answer bytea,
    simulated_tx_hash hash,
    PRIMARY KEY (request_id, attempt_no),
    CONSTRAINT attempt_outcome_is_known CHECK (outcome IN (
        'accepted', 'refused_now', 'refused_for_good', 'instance_refused', 'never_connected', 'in_flight', 'payload_conflict', 'unknown'
    )),
    CONSTRAINT attempt_is_answered_exactly_with_an_outcome CHECK ((outcome IS NULL) = (answered_at IS NULL)),
    CONSTRAINT attempt_answer_is_capped CHECK (octet_length(answer) <= 4096)
);
COMMENT ON TABLE attempt IS 'One row a call to CRE, committed before the socket opens.  No outcome means that it may have been delivered.';

COMMENT ON COLUMN attempt.simulated_tx_hash IS 'Mode simulate only: the transaction that the workflow returned; its receipt is the proof.';
CREATE INDEX attempt_by_start ON attempt (started_at);
CREATE INDEX attempt_by_answer_time ON attempt USING brin (answered_at);
CREATE INDEX attempt_by_simulated_tx_hash ON attempt (simulated_tx_hash) WHERE simulated_tx_hash IS NOT NULL;

-- An answer is written once: only the update that brings it counts.
CREATE FUNCTION attempt_answered() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO tally_delta (chain_id, what, labels, bucket, times, total)
    SELECT r.chain_id, 'attempts', ARRAY[n.outcome], seconds_bucket(s.seconds), count(*), sum(s.seconds)
    FROM old_rows o
    JOIN new_rows n USING (request_id, attempt_no)
    JOIN mint_request r ON r.id = n.request_id
    CROSS JOIN LATERAL (SELECT extract(epoch FROM n.answered_at - n.started_at) :: double precision AS seconds) s
    WHERE o.outcome IS NULL AND n.outcome IS NOT NULL
    GROUP BY 1, 3, 4;
    RETURN NULL;
END
$$;
CREATE TRIGGER attempt_answered
    AFTER UPDATE ON attempt
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION attempt_answered();

-- Design §4, "sent": what proves the contrary is only an answer that comes before forwarding, or no connection.
CREATE FUNCTION is_sent(request bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM attempt
        WHERE request_id = request
          AND (outcome IS NULL OR outcome NOT IN ('refused_now', 'refused_for_good', 'instance_refused', 'never_connected'))
    ) OR EXISTS (
        SELECT FROM mint_execution WHERE request_id = request
    ) OR EXISTS (
        SELECT FROM execution_id e JOIN report r ON r.execution_id = e.execution_id AND r.chain_id = e.chain_id
        WHERE e.request_id = request
    )
$$;
COMMENT ON FUNCTION is_sent IS 'Whether a request was sent, or may have been: it then keeps its nonce and its bank reference for ever.';

CREATE FUNCTION sends(request bigint, OUT latest_at timestamptz, OUT receivers bytea[]) LANGUAGE sql STABLE AS $$
    SELECT max(s.at), array_agg(DISTINCT s.receiver) FILTER (WHERE s.receiver IS NOT NULL)
    FROM (
        SELECT a.started_at AS at, f.receiver
        FROM attempt a LEFT JOIN frozen_request f ON f.request_id = a.request_id AND f.generation = a.generation
        WHERE a.request_id = request
          AND (a.outcome IS NULL OR a.outcome NOT IN ('refused_now', 'refused_for_good', 'instance_refused', 'never_connected'))
        UNION ALL
        SELECT to_timestamp(least(b.timestamp, 32503680000)), p.receiver  -- a chain may say any time
        FROM execution_id e
        JOIN report p ON p.execution_id = e.execution_id AND p.chain_id = e.chain_id
        JOIN block b ON b.chain_id = p.chain_id AND b.hash = p.block_hash
        WHERE e.request_id = request
        UNION ALL
        -- What a restore lost was sent before its quarantine began.
        SELECT m.at, NULL FROM mint_request r
        JOIN alarm m ON m.chain_id = r.chain_id AND m.kind = 'quarantine_entered' AND extract(epoch FROM m.at) >= r.block_timestamp
        WHERE r.id = request
    ) s
$$;
COMMENT ON FUNCTION sends IS
    'Of all sends of a request that may have been delivered, in any generation: when the latest can have been, and whom they are for.';

CREATE FUNCTION was_accepted(request bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM attempt WHERE request_id = request AND outcome = 'accepted')
$$;

-- ------------------------------------------------------------------------------------------------------------------
-- Grants: the twin of the import contract.  What the chain said is insert-only for everyone.
-- ------------------------------------------------------------------------------------------------------------------
GRANT SELECT ON ALL TABLES IN SCHEMA public TO bskt_indexer, bskt_invocator, bskt_operator, bskt_reader;

GRANT INSERT ON chain, cursor, control, block, log, basket, reorg, mint_request, mint_execution, report, execution_id, alarm,
    sweep, sweep_difference, factory, basket_pause, unsettled_reference TO bskt_indexer;
GRANT DELETE ON unsettled_reference TO bskt_indexer;
GRANT UPDATE (filled_up_to, live_at) ON factory TO bskt_indexer;
GRANT UPDATE (block_number, swept_at) ON sweep TO bskt_indexer;
GRANT EXECUTE ON FUNCTION discard_log, prune_blocks TO bskt_indexer;
GRANT EXECUTE ON FUNCTION fold_tally TO bskt_indexer;
GRANT UPDATE (block_number, block_hash, finalized_number, safe_number, head_number, baskets_version, indexed_at)
    ON cursor TO bskt_indexer;
GRANT UPDATE (indexed_at) ON cursor TO bskt_invocator, bskt_operator;  -- to lock it
GRANT UPDATE (
    halted_at, halted_reason, quarantined_at, quarantined_reason, quarantined_until, server_identifier, server_timeline
) ON control TO bskt_indexer;
GRANT UPDATE (canonical, parent_hash, timestamp) ON block TO bskt_indexer;
GRANT UPDATE (canonical) ON log, basket, mint_execution, report TO bskt_indexer;
GRANT UPDATE (undecodable) ON log TO bskt_indexer;
GRANT UPDATE (request_id, proof) ON mint_execution TO bskt_indexer;
GRANT UPDATE (
    block_hash, block_number, block_timestamp, log_index, stablecoin, consumer, chain_status, orphaned_for_good, state, state_reason,
    state_detail, state_attempt_no, state_changed_at, holds_reference, held_at, held_reason, worker_id, lease_ends_at,
    next_attempt_at, deadline_at
) ON mint_request TO bskt_indexer;

GRANT INSERT ON workflow, workflow_slot, trigger_gate, breaker, basket_turn, requester_turn, workflow_turn, frozen_request,
    execution_id, attempt, alarm TO bskt_invocator;
GRANT UPDATE ON workflow_slot, trigger_gate, breaker, basket_turn, requester_turn, workflow_turn TO bskt_invocator;
GRANT DELETE ON breaker TO bskt_invocator, bskt_operator;
GRANT UPDATE (paused_reason) ON control TO bskt_invocator;  -- to lock it
GRANT UPDATE (answered_at, outcome, http_status, sentence, answer, simulated_tx_hash) ON attempt TO bskt_invocator;
GRANT UPDATE (decimals) ON basket TO bskt_invocator;
GRANT UPDATE (request_id, proof) ON mint_execution TO bskt_invocator;
GRANT UPDATE (
    state, state_reason, state_detail, state_attempt_no, state_changed_at, holds_reference, held_at, held_reason, claim_no, worker_id,
    lease_ends_at, next_attempt_at, deadline_at
) ON mint_request TO bskt_invocator;

GRANT INSERT ON operator_action, alarm, basket_pause TO bskt_operator;
GRANT DELETE ON basket_pause TO bskt_operator;
GRANT INSERT (chain_id, stablecoin, allowed, allowed_at, allowed_reason) ON basket_standing TO bskt_operator;
GRANT UPDATE (allowed, allowed_at, allowed_reason) ON basket_standing TO bskt_operator;
GRANT UPDATE (paused_reason) ON basket_pause TO bskt_indexer, bskt_operator;  -- to lock it
GRANT UPDATE (role_changes) ON basket_pause TO bskt_indexer, bskt_operator;
GRANT UPDATE (times, last_at) ON alarm TO bskt_indexer, bskt_invocator;
GRANT UPDATE (paused_at, paused_reason, quarantined_at, quarantined_reason, quarantined_until) ON control TO bskt_operator;
GRANT UPDATE (earliest_next_at) ON workflow_slot TO bskt_operator;
GRANT UPDATE (
    nonce, generation, state, state_reason, state_detail, state_attempt_no, state_changed_at, holds_reference, held_at, held_reason,
    worker_id, lease_ends_at, next_attempt_at, deadline_at
) ON mint_request TO bskt_operator;
