"""What the invocator does to rows: claim, freeze, attempt, answer, and the sweeps (design §6).

No transaction here is open across a call to CRE.  What protects a call is, in this order: the attempt row that was
committed before its socket opened, the nonce that never changes, and the guards (state and ``claim_no``) on every write
that comes after.  Leases and slots run on the database's clock only: ``clock_timestamp()`` where a row was waited for,
``statement_timestamp()`` where the time is looked up in an index.  What time says about the chain (a deadline has
passed, a doubt is old) is asked of ``settled_time``: the index must have looked so far.

Rows are locked in one order: control, requests by bank reference, trigger_gate, breaker, workflow_slot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

import asyncpg

from datastore import basket_standings, breakers
from datastore.alarms import AlarmKind, raise_alarm, raise_alarms, raise_hourly
from datastore.basket_pauses import hold_requests
from datastore.breakers import Refusal
from datastore.connection import Connection, Pool, lock_chain, translated, unit
from datastore.lifecycle import Event, State, decide
from datastore.rows import LogRow
from datastore.settlement import Move, known, move, settle

REFUSED_BEFORE_FORWARDING: Final = frozenset({"refused_now", "refused_for_good", "instance_refused", "never_connected"})

CLOCK_ALARM_SECONDS: Final = 30.0
"""A token may be 300 s off; whoever is a tenth of that off should not wait for the rest (hard case 82)."""

GATEWAY: Final = "gateway"
SIMULATE: Final = "simulate"
"""The modes of a frozen request.  What was simulated is never sent again: no two runs know of each other."""

DAILY_CAP: Final = "daily_cap"

NOT_WITNESSED: Final = "not_witnessed"

NODE_UNAVAILABLE: Final = "node_unavailable"

HTTP_FORBIDDEN: Final = 403

LOOK_AGAIN_SECONDS: Final = 600.0
"""When what only another setting lets through is looked at again."""

HELD_FOR_NOW: Final = (
    DAILY_CAP,
    "amount_above_cap",
    "basket_not_canonical",
    NODE_UNAVAILABLE,
    "not_a_minter",
    NOT_WITNESSED,
)
"""Reasons of holds that end by themselves: the request is looked at again when ``next_attempt_at`` comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request that this worker may work on now, with all that its payload is made from."""

    request_id: int
    state: State
    claim_no: int
    generation: int
    nonce: UUID
    stablecoin: bytes
    consumer: bytes
    beneficiary: bytes
    amount: int
    expected_reference: bytes
    symbol: str
    decimals: int | None
    basket_is_canonical: bool
    block_timestamp: int
    frozen: Frozen | None
    basket_is_served: bool = False
    # Where a send went that a restore lost (datastore.quarantine): the bytes are made again for this workflow only.
    found_workflow_id: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """The bytes that every attempt sends, and where to; fixed at the first claim (design §3)."""

    mode: str
    workflow_id: bytes
    receiver: bytes
    gateway: str
    signer: bytes
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """How often a workflow may be triggered (``burst`` at once, then one each ``seconds_per_trigger``), and how much.

    ``max_in_flight`` counts undelivered requests over all workflows, and so do ``requester_max_in_flight`` and
    ``basket_max_in_flight`` those of one requester and of one basket: what CRE drops silently stays in flight until its
    deadline, so nobody alone may fill all places.  ``unserved_max_in_flight`` counts those of all baskets that are not
    served, and holds once some basket is.  With ``only_allowed``, nothing is first sent but for baskets that a person
    allowed.  ``daily_cap_wei`` is the most that is sent in one UTC day of the database's clock, each request counted on
    the day of its first send.
    """

    seconds_per_trigger: float
    burst: int
    max_in_flight: int
    requester_max_in_flight: int | None = None
    basket_max_in_flight: int | None = None
    unserved_max_in_flight: int | None = None
    only_allowed: bool = False
    daily_cap_wei: int | None = None


# Durable slots as a theoretical arrival time (GCRA): a workflow may be triggered when the time is at most
# (burst - 1) intervals ahead.  Where its answers leave a request in doubt, that one is the probe: a further one would only
# take another place in flight from the other workflows.  $1 chain, $2 interval, $3 burst, $4 workflows
_FREE_WORKFLOWS: Final = """
SELECT w.workflow_id
FROM workflow w
LEFT JOIN workflow_slot s USING (chain_id, workflow_id)
WHERE w.chain_id = $1 AND w.workflow_id = ANY($4::bytea[])
  AND (s.earliest_next_at IS NULL OR s.earliest_next_at - $2::interval * ($3 - 1) <= clock_timestamp())
  AND NOT EXISTS (
      SELECT FROM breaker b
      WHERE b.chain_id = w.chain_id AND b.workflow_id = w.workflow_id
        AND (
            b.probe_at > clock_timestamp()
            OR b.outcome = 'unknown' AND EXISTS (
                SELECT FROM mint_request r
                JOIN frozen_request f ON f.request_id = r.id AND f.generation = r.generation
                WHERE r.chain_id = b.chain_id AND r.state = 'in_doubt' AND f.workflow_id = b.workflow_id
            )
        )
  )
"""

# $1 chain
_GATE: Final = """
SELECT
    c.paused_at IS NULL AND c.quarantined_at IS NULL AND c.halted_at IS NULL
        AND is_this_server(c.server_identifier, c.server_timeline)
        AND NOT EXISTS (
            SELECT FROM breaker b
            WHERE b.chain_id = c.chain_id AND b.workflow_id IS NULL AND b.probe_at > statement_timestamp()
        ) AS open,
    (
        SELECT count(*) FROM mint_request r
        WHERE r.chain_id = c.chain_id AND r.state IN ('in_doubt', 'accepted') AND r.deadline_at > settled_time($1)
    ) AS in_flight
FROM control c
WHERE c.chain_id = $1
"""

# Fair: served baskets and the others in turns, as long as both wait; of each kind, the basket that has waited longest
# first, in it the requester that has waited longest, of whom the oldest request; then everybody's second ones.  Whoever
# waits does so since it was last served, or since its oldest request was recorded if that was later: a new name is no way
# to the front.  The flows (basket and requester) are found by jumping from one to the next in the index, so that ten
# thousand requests of one requester cost no more than one; among allowed baskets only, the others' flows cost nothing.
# $1 chain, $2 limit, $3 whether the whole queue is wanted, also what may only be tried again later, $4 most in flight of one
# requester, $5 of one basket and $6 of all that are not served, or NULL, $7 whether only allowed baskets are sent for, $8 the
# configured workflows and $9 those of them that must wait
_WAITING: Final = """
WITH RECURSIVE flow AS (
    (
        SELECT r.stablecoin, r.requester FROM mint_request r
        WHERE NOT $7::boolean
          AND r.chain_id = $1 AND r.state = 'confirmed' AND r.held_at IS NULL AND r.chain_status <> 'orphaned'
        ORDER BY r.stablecoin, r.requester
        LIMIT 1
    )
    UNION ALL
    SELECT n.stablecoin, n.requester
    FROM basket_standing s
    CROSS JOIN LATERAL (
        SELECT r.stablecoin, r.requester FROM mint_request r
        WHERE r.chain_id = $1 AND r.stablecoin = s.stablecoin
          AND r.state = 'confirmed' AND r.held_at IS NULL AND r.chain_status <> 'orphaned'
        ORDER BY r.requester
        LIMIT 1
    ) n
    WHERE $7 AND s.chain_id = $1 AND s.allowed
    UNION ALL
    SELECT n.stablecoin, n.requester
    FROM flow f
    CROSS JOIN LATERAL (
        SELECT r.stablecoin, r.requester FROM mint_request r
        WHERE r.chain_id = $1 AND r.state = 'confirmed' AND r.held_at IS NULL AND r.chain_status <> 'orphaned'
          AND (r.stablecoin, r.requester) > (f.stablecoin, f.requester)
        ORDER BY r.stablecoin, r.requester
        LIMIT 1
    ) n
    WHERE NOT $7 OR n.stablecoin = f.stablecoin
),
under_way AS (
    SELECT r.requester, r.stablecoin, coalesce(s.served, false) AS is_served
    FROM mint_request r LEFT JOIN basket_standing s USING (chain_id, stablecoin)
    WHERE r.chain_id = $1 AND r.state IN ('in_doubt', 'accepted') AND r.deadline_at > settled_time($1)
),
turn AS (
    SELECT
        o.id, o.block_number, o.log_index, f.stablecoin, coalesce(s.served, false) AS is_served,
        greatest(b.last_claim_at, min(o.recorded_at) OVER (PARTITION BY f.stablecoin)) AS basket_since,
        greatest(q.last_claim_at, min(o.recorded_at) OVER (PARTITION BY f.stablecoin, f.requester)) AS requester_since,
        row_number() OVER (PARTITION BY f.stablecoin, f.requester ORDER BY o.block_number, o.log_index) AS nth
    FROM flow f
    CROSS JOIN LATERAL (
        SELECT r.id, r.block_number, r.log_index, r.recorded_at
        FROM mint_request r CROSS JOIN LATERAL workflow_of(r.id, r.generation, r.nonce, $8::bytea[]) w
        WHERE r.chain_id = $1 AND r.stablecoin = f.stablecoin AND r.requester = f.requester
          AND r.state = 'confirmed' AND r.held_at IS NULL AND r.chain_status <> 'orphaned'
          AND ($3::boolean OR r.next_attempt_at IS NULL OR r.next_attempt_at <= statement_timestamp())
          AND (cardinality($9::bytea[]) = 0 OR w.workflow_id <> ALL($9))
        ORDER BY r.block_number, r.log_index
        LIMIT CASE WHEN NOT $3 THEN least($2, greatest(4, $2 / (SELECT count(*) FROM flow) + 1)) END
    ) o
    LEFT JOIN basket_turn b ON b.chain_id = $1 AND b.stablecoin = f.stablecoin
    LEFT JOIN requester_turn q ON q.chain_id = $1 AND q.stablecoin = f.stablecoin AND q.requester = f.requester
    LEFT JOIN basket_standing s ON s.chain_id = $1 AND s.stablecoin = f.stablecoin
    WHERE ($4::integer IS NULL OR (SELECT count(*) FROM under_way u WHERE u.requester = f.requester) < $4)
      AND ($5::integer IS NULL OR (SELECT count(*) FROM under_way u WHERE u.stablecoin = f.stablecoin) < $5)
      AND (
          $6::integer IS NULL OR s.served OR (SELECT count(*) FROM under_way u WHERE NOT u.is_served) < $6
          OR NOT EXISTS (SELECT FROM basket_standing a WHERE a.chain_id = $1 AND a.served)
      )
),
placed AS (
    SELECT
        t.id, t.block_number, t.log_index, t.basket_since, t.is_served,
        row_number() OVER (
            PARTITION BY t.stablecoin ORDER BY t.nth, t.requester_since, t.block_number, t.log_index
        ) AS place
    FROM turn t
)
SELECT p.id
FROM placed p
ORDER BY
    row_number() OVER (PARTITION BY p.is_served ORDER BY p.place, p.basket_since, p.block_number, p.log_index),
    p.is_served = coalesce((SELECT w.was_served FROM workflow_turn w WHERE w.chain_id = $1 ORDER BY w.taken_at DESC LIMIT 1), false)
LIMIT $2
"""

# $1 chain, $2 whether only allowed baskets are sent for
_EVERY_WAITING: Final = """
SELECT id, generation FROM mint_request r
WHERE chain_id = $1 AND state = 'confirmed' AND held_at IS NULL AND chain_status <> 'orphaned'
  AND (NOT $2::boolean OR EXISTS (
      SELECT FROM basket_standing s WHERE s.chain_id = r.chain_id AND s.stablecoin = r.stablecoin AND s.allowed
  ))
ORDER BY block_number, log_index
"""

# $1 ids, in the order that is wanted
_ORDERS: Final = """
SELECT
    r.id, r.state, r.claim_no, r.generation, r.nonce, r.stablecoin, r.consumer, r.beneficiary, r.amount, r.expected_reference,
    r.block_timestamp, b.symbol, b.decimals, b.stablecoin IS NOT NULL AS basket_is_canonical,
    f.mode, f.workflow_id, f.receiver, f.gateway, f.signer, f.body,
    EXISTS (
        SELECT FROM basket_standing s WHERE s.chain_id = r.chain_id AND s.stablecoin = r.stablecoin AND s.served
    ) AS basket_is_served,
    (
        SELECT x.found_workflow_id FROM execution_id x
        WHERE x.request_id = r.id AND x.generation = r.generation AND x.source = 'found'
        ORDER BY x.execution_id LIMIT 1
    ) AS found_workflow_id
FROM unnest($1::bigint[]) WITH ORDINALITY AS n (id, place)
JOIN mint_request r ON r.id = n.id
LEFT JOIN basket b ON b.chain_id = r.chain_id AND b.stablecoin = r.stablecoin AND b.canonical AND b.consumer = r.consumer
LEFT JOIN frozen_request f ON f.request_id = r.id AND f.generation = r.generation
ORDER BY n.place
"""

# The rows are named, so that no query plan can lock another one (hard case 68); no more of them than there is room for.
# Turns are taken in the order of their keys, so that two claims of many requests wait for each other and never deadlock.
# $1 chain, $2 ids, $3 worker, $4 lease, $5 most in flight
_CLAIM: Final = """
WITH room AS MATERIALIZED (
    SELECT CASE WHEN g.open THEN $5 - g.in_flight ELSE 0 END AS places
    FROM (
        SELECT
            c.paused_at IS NULL AND c.quarantined_at IS NULL AND c.halted_at IS NULL
                AND is_this_server(c.server_identifier, c.server_timeline)
                AND NOT EXISTS (
                    SELECT FROM breaker b
                    WHERE b.chain_id = c.chain_id AND b.workflow_id IS NULL AND b.probe_at > statement_timestamp()
                ) AS open,
            (
                SELECT count(*) FROM mint_request o
                WHERE o.chain_id = c.chain_id AND o.state IN ('in_doubt', 'accepted') AND o.deadline_at > settled_time($1)
            ) AS in_flight
        FROM control c
        WHERE c.chain_id = $1
    ) g
),
locked AS MATERIALIZED (
    SELECT r.id FROM mint_request r
    WHERE r.id = ANY(ARRAY(
          SELECT n.id FROM unnest($2::bigint[]) WITH ORDINALITY AS n (id, place) JOIN room ON n.place <= room.places
      ))
      AND r.state = 'confirmed' AND r.held_at IS NULL AND r.chain_status <> 'orphaned'
    FOR UPDATE SKIP LOCKED
),
claimed AS (
    UPDATE mint_request r SET
        state = 'claimed', state_reason = 'claim', state_detail = NULL, state_attempt_no = NULL,
        state_changed_at = clock_timestamp(), claim_no = r.claim_no + 1, worker_id = $3,
        lease_ends_at = clock_timestamp() + $4::interval
    FROM locked l
    WHERE r.id = l.id AND r.state = 'confirmed'
    RETURNING r.*
),
basket_turns AS (
    INSERT INTO basket_turn (chain_id, stablecoin, last_claim_at)
    SELECT DISTINCT chain_id, stablecoin, statement_timestamp() FROM claimed ORDER BY chain_id, stablecoin
    ON CONFLICT (chain_id, stablecoin) DO UPDATE SET last_claim_at = excluded.last_claim_at
),
requester_turns AS (
    INSERT INTO requester_turn (chain_id, stablecoin, requester, last_claim_at)
    SELECT DISTINCT chain_id, stablecoin, requester, statement_timestamp() FROM claimed ORDER BY chain_id, stablecoin, requester
    ON CONFLICT (chain_id, stablecoin, requester) DO UPDATE SET last_claim_at = excluded.last_claim_at
)
SELECT
    r.id, r.state, r.claim_no, r.generation, r.nonce, r.stablecoin, r.consumer, r.beneficiary, r.amount, r.expected_reference,
    r.block_timestamp, b.symbol, b.decimals, b.stablecoin IS NOT NULL AS basket_is_canonical,
    f.mode, f.workflow_id, f.receiver, f.gateway, f.signer, f.body,
    EXISTS (
        SELECT FROM basket_standing s WHERE s.chain_id = r.chain_id AND s.stablecoin = r.stablecoin AND s.served
    ) AS basket_is_served,
    (
        SELECT x.found_workflow_id FROM execution_id x
        WHERE x.request_id = r.id AND x.generation = r.generation AND x.source = 'found'
        ORDER BY x.execution_id LIMIT 1
    ) AS found_workflow_id
FROM unnest($2::bigint[]) WITH ORDINALITY AS n (id, place)
JOIN claimed r ON r.id = n.id
LEFT JOIN basket b ON b.chain_id = r.chain_id AND b.stablecoin = r.stablecoin AND b.canonical AND b.consumer = r.consumer
LEFT JOIN frozen_request f ON f.request_id = r.id AND f.generation = r.generation
ORDER BY n.place
"""

# Requests in doubt whose next attempt is due, but those of a workflow that is refused; one without frozen bytes lost them in
# a restore.  $1 chain, $2 limit
_DUE: Final = """
SELECT r.id FROM mint_request r
WHERE r.chain_id = $1 AND r.state = 'in_doubt' AND r.next_attempt_at <= statement_timestamp()
  AND r.chain_status <> 'orphaned' AND r.held_at IS NULL
  AND NOT EXISTS (
      SELECT FROM frozen_request f
      LEFT JOIN breaker b ON b.chain_id = r.chain_id AND b.workflow_id = f.workflow_id AND b.probe_at > statement_timestamp()
      WHERE f.request_id = r.id AND f.generation = r.generation AND (f.mode <> 'gateway' OR b.chain_id IS NOT NULL)
  )
ORDER BY r.next_attempt_at
LIMIT $2
"""

# Whether the request is still as the order says, and stays so until this transaction ends.  $1 id, $2 state, $3 claim_no
_LOCK_ORDER: Final = """
SELECT id FROM mint_request WHERE id = $1 AND state = $2 AND claim_no = $3 FOR UPDATE
"""

# A request in doubt belongs to no worker: of two that freeze it, the first one's bytes are kept.
# $1 request, $2 generation, $3 nonce, $4 mode, $5 workflow, $6 receiver, $7 gateway, $8 signer, $9 body, $10 sha256
_FREEZE: Final = """
INSERT INTO frozen_request (
    request_id, generation, nonce, mode, workflow_id, receiver, gateway, signer, body, body_sha256
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, sha256($9))
ON CONFLICT (request_id, generation) DO NOTHING
"""
# $1 chain, $2 ids, $3 request, $4 sources, $5 generation
_EXECUTION_IDS: Final = """
INSERT INTO execution_id (chain_id, execution_id, request_id, source, generation)
SELECT $1, n.execution_id, $3, n.source, $5 FROM unnest($2::bytea[], $4::text[]) AS n (execution_id, source)
ON CONFLICT (chain_id, execution_id) DO NOTHING
"""

# $1 chain, $2 execution ids
_REPORTED: Final = "SELECT EXISTS (SELECT FROM report WHERE chain_id = $1 AND execution_id = ANY($2::bytea[]))"

# The raw log that a request was made from.  $1 id
_REQUESTED_BY: Final = """
SELECT l.block_number, l.block_hash, l.log_index, l.tx_hash, l.tx_index, l.address, l.topics, l.data, l.event, l.undecodable
FROM mint_request r
JOIN log l ON l.chain_id = r.chain_id AND l.block_hash = r.block_hash AND l.log_index = r.log_index AND l.canonical
WHERE r.id = $1
"""

# What stops every send stands here, and stays so until the attempt is committed: whoever throws a switch waits for that, and
# is answered when no attempt can begin any more.  $1 chain
_LOCK_CONTROL: Final = """
SELECT paused_at IS NULL AND quarantined_at IS NULL AND halted_at IS NULL
    AND is_this_server(server_identifier, server_timeline) AS may_send
FROM control WHERE chain_id = $1 FOR SHARE
"""

# What must still be so in the transaction that inserts the attempt (hard cases 67 and 72).  A simulated request in doubt
# has had its one run (hard case 77).  After a failover that lost commits, a claim number and its bytes may be another
# worker's: only what is frozen is sent.  $1 id, $2 state, $3 claim_no, $4 workflow, $5 body
_LOCK_FOR_ATTEMPT: Final = """
SELECT
    r.chain_status <> 'orphaned' AND r.held_at IS NULL
        AND NOT EXISTS (SELECT FROM basket_pause p WHERE p.chain_id = r.chain_id AND p.stablecoin = r.stablecoin) AS may_send,
    r.lease_ends_at IS NULL OR r.lease_ends_at > clock_timestamp() AS lease_holds,
    r.state = 'in_doubt' AND EXISTS (
        SELECT FROM frozen_request f WHERE f.request_id = r.id AND f.generation = r.generation AND f.mode = 'simulate'
    ) AS is_simulated
FROM mint_request r
WHERE r.id = $1 AND r.state = $2 AND r.claim_no = $3
  AND EXISTS (
      SELECT FROM frozen_request f
      WHERE f.request_id = r.id AND f.generation = r.generation AND f.workflow_id = $4 AND f.body_sha256 = sha256($5)
  )
FOR UPDATE OF r
"""

# $1 chain
_LOCK_GATE: Final = "SELECT chain_id FROM trigger_gate WHERE chain_id = $1 FOR UPDATE"

# The offset as it was before.  $1 chain, $2 seconds
_SET_CLOCK: Final = """
UPDATE trigger_gate g SET clock_offset_seconds = $2
FROM (SELECT clock_offset_seconds FROM trigger_gate WHERE chain_id = $1) o
WHERE g.chain_id = $1
RETURNING o.clock_offset_seconds
"""

# $1 chain, $2 the request that wants to be sent
_OTHERS_IN_FLIGHT: Final = """
SELECT
    count(*) AS of_all,
    count(*) FILTER (WHERE r.requester = q.requester) AS of_requester,
    count(*) FILTER (WHERE r.stablecoin = q.stablecoin) AS of_basket
FROM mint_request r JOIN mint_request q ON q.id = $2
WHERE r.chain_id = $1 AND r.state IN ('in_doubt', 'accepted') AND r.deadline_at > settled_time($1) AND r.id <> $2
"""

# What others were first sent today, and may have been delivered.  $1 chain, $2 the request that wants to be sent
_SENT_TODAY: Final = """
SELECT coalesce(sum(r.amount), 0)
FROM (
    SELECT DISTINCT a.request_id FROM attempt a
    WHERE a.started_at >= date_trunc('day', statement_timestamp(), 'UTC')
      AND (a.outcome IS NULL OR a.outcome NOT IN ('refused_now', 'refused_for_good', 'instance_refused', 'never_connected'))
) sent
JOIN mint_request r ON r.id = sent.request_id
WHERE r.chain_id = $1 AND r.id <> $2
  AND NOT EXISTS (
      SELECT FROM attempt a
      WHERE a.request_id = r.id AND a.started_at < date_trunc('day', statement_timestamp(), 'UTC')
        AND (a.outcome IS NULL OR a.outcome NOT IN ('refused_now', 'refused_for_good', 'instance_refused', 'never_connected'))
  )
"""

# A person's hold, which came meanwhile, does not end by itself.  $1 id, $2 reason, $3 interval, or NULL for the next UTC day
_HOLD: Final = """
UPDATE mint_request SET held_at = coalesce(held_at, clock_timestamp()), held_reason = coalesce(held_reason, $2),
    next_attempt_at = CASE WHEN $3::interval IS NULL
        THEN date_trunc('day', clock_timestamp(), 'UTC') + interval '1 day'
        ELSE clock_timestamp() + $3::interval END
WHERE id = $1
"""
# $1 chain, $2 workflow, $3 interval, $4 burst
_TAKE_SLOT: Final = """
INSERT INTO workflow_slot AS s (chain_id, workflow_id, earliest_next_at)
VALUES ($1, $2, clock_timestamp() + $3::interval)
ON CONFLICT (chain_id, workflow_id) DO UPDATE
SET earliest_next_at = greatest(s.earliest_next_at, clock_timestamp()) + $3::interval
WHERE s.earliest_next_at - $3::interval * ($4 - 1) <= clock_timestamp()
RETURNING earliest_next_at
"""
# And how many before it may have been sent.  $1 request, $2 generation, $3 claim_no, $4 worker, $5 jti
_INSERT_ATTEMPT: Final = """
WITH before AS MATERIALIZED (
    SELECT
        coalesce(max(attempt_no), 0) AS last_no,
        count(*) FILTER (
            WHERE outcome IS NULL OR outcome NOT IN ('refused_now', 'refused_for_good', 'instance_refused', 'never_connected')
        ) AS sent
    FROM attempt WHERE request_id = $1
), inserted AS (
    INSERT INTO attempt (request_id, attempt_no, generation, claim_no, worker_id, jti)
    SELECT $1, last_no + 1, $2, $3, $4, $5 FROM before
)
SELECT last_no + 1 AS attempt_no, sent FROM before
"""
# $1 id, $2 interval until another attempt may start, $3 deadline interval
_IN_DOUBT: Final = """
UPDATE mint_request SET next_attempt_at = clock_timestamp() + $2::interval,
    deadline_at = clock_timestamp() + $3::interval
WHERE id = $1
"""

# $1 request, $2 attempt, $3 outcome, $4 status, $5 sentence, $6 answer, $7 simulated transaction, $8 its token's jti
_ANSWER: Final = """
UPDATE attempt SET answered_at = clock_timestamp(), outcome = $3, http_status = $4, sentence = $5, answer = $6,
    simulated_tx_hash = $7
WHERE request_id = $1 AND attempt_no = $2 AND outcome IS NULL AND ($8::uuid IS NULL OR jti = $8)
"""
# Behind the others when a probe is due.  $1 id, $2 interval, $3 next probe or NULL, $4 interval after it
_WAIT_AGAIN: Final = """
UPDATE mint_request SET next_attempt_at = greatest(clock_timestamp() + $2::interval, $3::timestamptz + $4::interval)
WHERE id = $1
"""
# $1 chain, $2 workflow, $3 pause
_POSTPONE_WORKFLOW: Final = """
UPDATE workflow_slot SET earliest_next_at = greatest(earliest_next_at, clock_timestamp() + $3::interval)
WHERE chain_id = $1 AND workflow_id = $2
"""

# $1 chain
_OVERDUE_LEASES: Final = """
SELECT id FROM mint_request WHERE chain_id = $1 AND state = 'claimed' AND lease_ends_at <= statement_timestamp()
"""
_OVERDUE_DEADLINES: Final = """
SELECT id FROM mint_request WHERE chain_id = $1 AND state = 'accepted' AND deadline_at <= settled_time($1)
"""
# The doubt is as old as its state, so that what a person or a resend put back is sent before it is given up.  Time in which
# nothing could be sent is no try: so many more attempts must have been made since, and may have been delivered.  What was
# simulated has had its only one.
# $1 chain, $2 interval, $3 interval for what was simulated, $4 attempts
_OVERDUE_DOUBTS: Final = """
SELECT r.id FROM mint_request r
LEFT JOIN frozen_request f ON f.request_id = r.id AND f.generation = r.generation AND f.mode = 'simulate'
WHERE r.chain_id = $1 AND r.state = 'in_doubt' AND r.next_attempt_at <= settled_time($1)
  AND r.state_changed_at <= settled_time($1) - CASE WHEN f.mode IS NULL THEN $2::interval ELSE $3::interval END
  AND (
      f.mode IS NOT NULL
      OR $4 <= (
          SELECT count(*) FROM attempt a
          WHERE a.request_id = r.id AND a.started_at >= r.state_changed_at
            AND (a.outcome IS NULL OR a.outcome NOT IN ('refused_now', 'refused_for_good', 'instance_refused', 'never_connected'))
      )
  )
"""
# Of these requests in these generations, those that have been ready to be sent for a while, and still are.
# $1 ids, $2 generations, $3 interval
_LEFT_ALONE: Final = """
SELECT r.id, r.state FROM unnest($1::bigint[], $2::integer[]) AS n (id, generation)
JOIN mint_request r ON r.id = n.id AND r.generation = n.generation
WHERE r.state IN ('confirmed', 'in_doubt') AND r.held_at IS NULL AND r.chain_status <> 'orphaned'
  AND greatest(r.state_changed_at, r.next_attempt_at) <= statement_timestamp() - $3::interval
"""
# What gave its reference up is not sent again, and takes no place among the fifty.  $1 chain, $2 interval
_OVERDUE_RESENDS: Final = """
SELECT r.id FROM mint_request r
WHERE r.chain_id = $1 AND r.state = 'failed' AND r.state_reason = 'not_delivered'
  AND r.state_changed_at <= settled_time($1) - $2::interval
  AND r.chain_status <> 'orphaned' AND r.held_at IS NULL AND r.holds_reference
  AND EXISTS (SELECT FROM frozen_request f WHERE f.request_id = r.id AND f.generation = r.generation AND f.mode = 'gateway')
ORDER BY r.state_changed_at
LIMIT 50
"""
# $1 chain, $2 reasons
_OVERDUE_HOLDS: Final = """
SELECT EXISTS (
    SELECT FROM mint_request
    WHERE chain_id = $1 AND state = 'confirmed' AND held_at IS NOT NULL AND next_attempt_at <= statement_timestamp()
      AND held_reason = ANY($2::text[])
)
"""
_RELEASE_HOLDS: Final = """
UPDATE mint_request SET held_at = NULL, held_reason = NULL
WHERE chain_id = $1 AND state = 'confirmed' AND held_at IS NOT NULL AND next_attempt_at <= statement_timestamp()
  AND held_reason = ANY($2::text[])
"""


async def list_workflows(pool: Pool, chain_id: int, workflow_ids: Sequence[bytes]) -> None:
    """Remember every workflow id that was ever configured (append-only), and that this chain has an invocator.

    The breaker of a workflow that is not configured any more is closed.
    """
    async with unit(pool) as connection:
        await connection.execute(
            # $1 chain, $2 ids
            "INSERT INTO workflow (chain_id, workflow_id) SELECT $1, unnest($2::bytea[]) ON CONFLICT DO NOTHING",
            chain_id,
            list(workflow_ids),
        )
        await connection.execute(
            # $1 chain
            "INSERT INTO trigger_gate (chain_id) VALUES ($1) ON CONFLICT DO NOTHING",
            chain_id,
        )
        await breakers.forget_others(connection, chain_id, workflow_ids)


async def listed_workflows(pool: Pool, chain_id: int) -> list[bytes]:
    """Every workflow id ever configured."""
    async with unit(pool) as connection:
        rows = await connection.fetch("SELECT workflow_id FROM workflow WHERE chain_id = $1", chain_id)
    return [row["workflow_id"] for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Whether anything may be sent now (no pause, no quarantine, CRE does not refuse us), and how much is under way."""

    open: bool
    in_flight: int


async def gate(pool: Pool, chain_id: int) -> Gate:
    """Look at the gate; `begin_attempt` looks again, under its lock."""
    async with unit(pool) as connection:
        return await _gate(connection, chain_id)


async def _gate(connection: Connection, chain_id: int) -> Gate:
    row = await connection.fetchrow(_GATE, chain_id)
    return Gate(open=row is not None and row["open"], in_flight=0 if row is None else row["in_flight"])


async def free_workflows(pool: Pool, chain_id: int, pacing: Pacing, workflow_ids: Sequence[bytes]) -> frozenset[bytes]:
    """Of ``workflow_ids``, those that may be triggered now; none while paused or while too many are in flight."""
    async with unit(pool) as connection:
        if await _room(connection, chain_id, pacing) <= 0:
            return frozenset()
        interval = timedelta(seconds=pacing.seconds_per_trigger)
        rows = await connection.fetch(_FREE_WORKFLOWS, chain_id, interval, pacing.burst, list(workflow_ids))
    return frozenset(row["workflow_id"] for row in rows)


async def _room(connection: Connection, chain_id: int, pacing: Pacing) -> int:
    """How many more requests may be in flight; counted without a lock, so it only saves work."""
    gate = await _gate(connection, chain_id)
    return pacing.max_in_flight - gate.in_flight if gate.open else 0


async def waiting(
    pool: Pool,
    chain_id: int,
    *,
    limit: int,
    pacing: Pacing | None = None,
    workflow_ids: Sequence[bytes] = (),
    free: Collection[bytes] = (),
) -> list[Order]:
    """Requests that wait for a claim, in the order of fairness; nothing is locked.

    With ``pacing``, those are left out that it does not let through now, for their requester, their basket, or all
    baskets that are not served have their share in flight.  Of the configured ``workflow_ids`` those that are not
    ``free`` must wait, and so must their requests: they hide no other one.
    """
    shares: tuple[int | None, int | None, int | None, bool] = (None, None, None, False)
    if pacing is not None:
        shares = (
            pacing.requester_max_in_flight,
            pacing.basket_max_in_flight,
            pacing.unserved_max_in_flight,
            pacing.only_allowed,
        )
    busy = [each for each in workflow_ids if each not in free]
    async with translated(), pool.acquire() as connection:
        rows = await connection.fetch(_WAITING, chain_id, limit, False, *shares, list(workflow_ids), busy)
        return await _orders(connection, [row["id"] for row in rows])


async def queue(pool: Pool, chain_id: int, *, only_allowed: bool = False) -> list[int]:
    """The ids of all requests that wait for a claim, in the order in which they will be taken if nobody else comes.

    Of a pool of workflows each takes its own turns, so that the order is then an estimate.
    """
    async with unit(pool) as connection:
        rows = await connection.fetch(_WAITING, chain_id, None, True, None, None, None, only_allowed, [], [])
    return [row["id"] for row in rows]


async def last_turns(pool: Pool, chain_id: int) -> dict[bytes, bool]:
    """By workflow, whether its latest attempt was for a served basket; one that had none is missing."""
    async with unit(pool) as connection:
        return await basket_standings.last_turns(connection, chain_id)


async def waiting_orders(
    pool: Pool, chain_id: int, *, besides: Collection[tuple[int, int]], limit: int, only_allowed: bool = False
) -> list[Order]:
    """Requests that wait for a claim, oldest first, but those whose ``(id, generation)`` is in ``besides``."""
    async with unit(pool) as connection:
        rows = await connection.fetch(_EVERY_WAITING, chain_id, only_allowed)
        others = [row["id"] for row in rows if (row["id"], row["generation"]) not in besides]
        return await _orders(connection, others[:limit])


async def due(pool: Pool, chain_id: int, *, limit: int) -> list[Order]:
    """Requests in doubt whose next attempt is due, oldest first; nothing is locked."""
    async with unit(pool) as connection:
        orders = await _orders(connection, [row["id"] for row in await connection.fetch(_DUE, chain_id, limit)])
    # Each statement sees what was committed before it: one that was minted in between is no longer in doubt.
    return [order for order in orders if order.state is State.IN_DOUBT]


async def claim(
    pool: Pool, chain_id: int, request_id: int, *, worker_id: UUID, lease_seconds: float, pacing: Pacing
) -> Order | None:
    """Take one waiting request under a lease; ``None`` if somebody else was faster or the gate closed meanwhile."""
    orders = await claim_all(
        pool, chain_id, [request_id], worker_id=worker_id, lease_seconds=lease_seconds, pacing=pacing
    )
    return orders[0] if orders else None


async def claim_all(
    pool: Pool, chain_id: int, request_ids: Sequence[int], *, worker_id: UUID, lease_seconds: float, pacing: Pacing
) -> list[Order]:
    """Take waiting requests under a lease: those that still wait, that nobody else is taking, and that have room."""
    async with translated(), pool.acquire() as connection:
        # The gate is looked at again here, and once more by begin_attempt: a pause that commits meanwhile still stops the
        # send.
        rows = await connection.fetch(
            _CLAIM, chain_id, list(request_ids), worker_id, timedelta(seconds=lease_seconds), pacing.max_in_flight
        )
    return [_order(row) for row in rows]


async def freeze(pool: Pool, chain_id: int, order: Order, frozen: Frozen, execution_ids: tuple[bytes, ...]) -> bool:
    """Store the bytes that every attempt will send, and the execution ids that they may lead to: two, or none at all.

    ``False`` if the claim is no longer ours, or another worker was first: nothing was stored.
    """
    async with unit(pool) as connection:
        if (await connection.fetchval(_LOCK_ORDER, order.request_id, order.state.value, order.claim_no)) is None:
            return False
        status = await connection.execute(
            _FREEZE,
            order.request_id,
            order.generation,
            order.nonce,
            frozen.mode,
            frozen.workflow_id,
            frozen.receiver,
            frozen.gateway,
            frozen.signer,
            frozen.body,
        )
        if status != "INSERT 0 1":
            return False
        await connection.execute(
            _EXECUTION_IDS,
            chain_id,
            list(execution_ids),
            order.request_id,
            ["legacy", "trigger_index"][: len(execution_ids)],
            order.generation,
        )
    return True


async def is_reported(pool: Pool, chain_id: int, execution_ids: Sequence[bytes]) -> bool:
    """Whether a report with one of these execution ids was ever indexed, on any branch."""
    async with unit(pool) as connection:
        return bool(await connection.fetchval(_REPORTED, chain_id, list(execution_ids)))


async def requested_by(pool: Pool, request_id: int) -> LogRow | None:
    """The raw log that a request was made from; ``None`` if this branch does not hold it (any more)."""
    async with unit(pool) as connection:
        row = await connection.fetchrow(_REQUESTED_BY, request_id)
    return LogRow(*row) if row is not None else None


async def give_back(pool: Pool, order: Order, *, reason: str) -> bool:
    """Return a claim of ours; ``False`` if it no longer is ours."""
    return await _settle_order(pool, order, Event.GIVEN_BACK, reason=reason, detail=None)


async def refuse(pool: Pool, order: Order, *, reason: str, detail: str) -> bool:
    """Pre-flight says never, of a waiting request or a claim: a person must decide.

    ``False`` if it is no longer as the order says: nothing was written.
    """
    return await _settle_order(pool, order, Event.PREFLIGHT_NEVER, reason=reason, detail=detail)


async def hold(pool: Pool, chain_id: int, order: Order, *, reason: str, detail: str, seconds: float) -> bool:
    """Pre-flight says not now, of a waiting request or a claim; `sweep` releases it after ``seconds``.

    A request that only waited keeps its state, so this is no transition.  ``reason`` is one of `HELD_FOR_NOW`.
    ``False`` if it is no longer as the order says: nothing was written.
    """
    async with unit(pool) as connection:
        if await connection.fetchval(_LOCK_ORDER, order.request_id, order.state.value, order.claim_no) is None:
            return False
        await _hold(connection, order, reason=reason, detail=detail, interval=timedelta(seconds=seconds))
        if reason == NOT_WITNESSED:  # last, for the alarm's row is locked
            await raise_hourly(connection, chain_id, AlarmKind.ENDPOINTS_DISAGREE, detail)
    return True


async def _hold(connection: Connection, order: Order, *, reason: str, detail: str, interval: timedelta | None) -> None:
    """Hold a locked request, until the next UTC day without an ``interval``; a claim of it ends."""
    if reason not in HELD_FOR_NOW:
        raise AssertionError(f"nothing would release a hold for {reason}")
    await settle(connection, Event.GIVEN_BACK, [order.request_id], reason=reason, detail=detail)
    await connection.execute(_HOLD, order.request_id, reason, interval)


async def _settle_order(pool: Pool, order: Order, event: Event, *, reason: str, detail: str | None) -> bool:
    async with unit(pool) as connection:
        ours = await connection.fetchval(_LOCK_ORDER, order.request_id, order.state.value, order.claim_no)
        if ours is not None:
            await settle(connection, event, [order.request_id], reason=reason, detail=detail)
    return ours is not None


async def give_to_a_person(
    pool: Pool, chain_id: int, orders: Sequence[Order], *, reason: str, detail: str, after_seconds: float
) -> int:
    """Send to review what this instance may not send, once no other one has sent it for so long; how many they were.

    What was never sent waits there without a doubt; for what may have been, an alarm is raised as well.
    """
    arguments = (
        [order.request_id for order in orders],
        [order.generation for order in orders],
        timedelta(seconds=after_seconds),
    )
    async with unit(pool) as connection:
        if not await connection.fetch(_LEFT_ALONE, *arguments):
            return 0
        await lock_chain(connection, chain_id)
        await known(connection, arguments[0])
        rows = await connection.fetch(_LEFT_ALONE, *arguments)
        unsent = [row["id"] for row in rows if row["state"] == State.CONFIRMED]
        in_doubt = [row["id"] for row in rows if row["state"] == State.IN_DOUBT]
        await settle(connection, Event.PREFLIGHT_NEVER, unsent, reason=reason, detail=detail)
        await settle(connection, Event.GIVE_UP, in_doubt, reason=reason, detail=detail)
        await raise_alarms(connection, chain_id, AlarmKind.GAVE_UP, dict.fromkeys(in_doubt, detail))
    return len(rows)


async def pin_decimals(pool: Pool, chain_id: int, stablecoin: bytes, decimals: int) -> None:
    """Remember the decimals of a basket's token, as first read; what is remembered stays."""
    async with unit(pool) as connection:
        await connection.execute(
            # $1 chain, $2 token, $3 decimals
            """
            UPDATE basket SET decimals = $3
            WHERE chain_id = $1 AND stablecoin = $2 AND canonical AND decimals IS NULL
            """,
            chain_id,
            stablecoin,
            decimals,
        )


async def begin_attempt(
    pool: Pool,
    chain_id: int,
    order: Order,
    frozen: Frozen,
    *,
    jti: UUID,
    worker_id: UUID,
    pacing: Pacing,
    retry_seconds: Callable[[int], float],
    deadline_seconds: float,
) -> int | None:
    """Commit the attempt before the socket opens; its number, or ``None`` if it may not be made (any more).

    The token must be signed before this call: a worker that sleeps after it cannot deliver once the token's 300 s are
    over.  The slot of the workflow is taken here, so a crash costs a slot, never a second mint.  A claim that would
    exceed the daily cap is given back here, held until the next day.  ``retry_seconds`` is asked for the pause after the
    attempt that is the how manyth to be sent, from 1 on.
    """
    async with unit(pool) as connection:
        is_probe = await _lock_for_attempt(connection, chain_id, order, frozen)
        if is_probe is None or not await _has_room(connection, chain_id, order, pacing):
            return None
        if order.state is State.CLAIMED and await _exceeds_daily_cap(connection, chain_id, order, pacing):
            return None
        if pacing.seconds_per_trigger > 0 and not await connection.fetchval(
            _TAKE_SLOT, chain_id, frozen.workflow_id, timedelta(seconds=pacing.seconds_per_trigger), pacing.burst
        ):
            return None
        await basket_standings.take_turn(connection, chain_id, frozen.workflow_id, order.request_id)
        (attempt,) = await connection.fetch(
            _INSERT_ATTEMPT, order.request_id, order.generation, order.claim_no, worker_id, jti
        )
        number: int = attempt["attempt_no"]
        requests = await known(connection, [order.request_id])
        request = requests[order.request_id]
        after = decide(Event.ATTEMPT_STARTED, request.state, request.facts)
        if after is None:
            raise AssertionError(f"request {order.request_id} may not be attempted from {request.state}")
        if after is not request.state:
            await move(connection, [Move(request=request, after=after, reason="attempt_started", attempt_no=number)])
        # What was refused before it was forwarded costs the request nothing, whatever the refusals were.
        pause = timedelta(seconds=retry_seconds(attempt["sent"] + 1))
        await connection.execute(_IN_DOUBT, order.request_id, pause, timedelta(seconds=deadline_seconds))
        if is_probe:
            await breakers.begin_probe(connection, chain_id, frozen.workflow_id, retry_seconds(1))
    return number


async def _lock_for_attempt(connection: Connection, chain_id: int, order: Order, frozen: Frozen) -> bool | None:
    """Whether the attempt is the probe of a breaker; ``None`` if it may not be made.

    What is counted from here on stays so until the transaction ends.
    """
    if not await connection.fetchval(_LOCK_CONTROL, chain_id):
        return None
    row = await connection.fetchrow(
        _LOCK_FOR_ATTEMPT, order.request_id, order.state.value, order.claim_no, frozen.workflow_id, frozen.body
    )
    if row is None or not row["may_send"] or not row["lease_holds"] or row["is_simulated"]:
        return None
    if await connection.fetchval(_LOCK_GATE, chain_id) is None:
        return None
    is_open, is_refused = await breakers.are_open(connection, chain_id, frozen.workflow_id)
    return None if is_refused else is_open


async def _has_room(connection: Connection, chain_id: int, order: Order, pacing: Pacing) -> bool:
    (others,) = await connection.fetch(_OTHERS_IN_FLIGHT, chain_id, order.request_id)
    limits = (
        (others["of_all"], pacing.max_in_flight),
        (others["of_requester"], pacing.requester_max_in_flight),
        (others["of_basket"], pacing.basket_max_in_flight),
    )
    if not all(limit is None or number < limit for number, limit in limits):
        return False
    basket = await basket_standings.standing_of(connection, chain_id, order.request_id)
    # A first send only: what may have been sent is settled in any case.
    if pacing.only_allowed and not basket.is_allowed and order.state is State.CLAIMED:
        return False
    return basket.leaves_room(pacing.unserved_max_in_flight)


async def _exceeds_daily_cap(connection: Connection, chain_id: int, order: Order, pacing: Pacing) -> bool:
    if pacing.daily_cap_wei is None:
        return False
    if order.amount > pacing.daily_cap_wei:
        await _hold(
            connection,
            order,
            reason="amount_above_cap",
            detail=f"It asks for {order.amount} wei, more than the daily cap of {pacing.daily_cap_wei} lets through on any day.",
            interval=timedelta(seconds=LOOK_AGAIN_SECONDS),
        )
        return True
    sent_today = int(await connection.fetchval(_SENT_TODAY, chain_id, order.request_id))
    if sent_today + order.amount <= pacing.daily_cap_wei:
        return False
    sentence = f"{sent_today} wei were sent this UTC day; with this request it would be more than the daily cap."
    await _hold(connection, order, reason=DAILY_CAP, detail=sentence, interval=None)
    return True


class Says(StrEnum):
    """What an answer says about this instance and its workflow, rather than about its request."""

    WORKS = "works"
    INSTANCE_REFUSED = "instance_refused"
    WORKFLOW_REFUSED = "workflow_refused"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What CRE (or the lack of it) said of one attempt; ``outcome`` is the closed word of ``attempt.outcome``.

    ``clock_offset_seconds``: the gateway's clock less ours.  ``code`` says why, where ``says`` is that the instance or
    its workflow is refused.  ``jti`` of the attempt's token: after a failover that lost commits, its number may be
    another attempt's.
    """

    outcome: str
    http_status: int | None
    sentence: str | None
    answer: bytes | None
    execution_id: bytes | None = None
    simulated_tx_hash: bytes | None = None
    postpone_seconds: float = 0.0
    deadline_seconds: float = 0.0
    says: Says = Says.NOTHING
    code: str | None = None
    clock_offset_seconds: float | None = None
    jti: UUID | None = None


async def record_answer(
    pool: Pool, chain_id: int, order: Order, frozen: Frozen, attempt_no: int, answered: Answered
) -> State:
    """Record an answer and move the request as it says; the request's state afterwards.

    Late answers are welcome: an ACCEPTED of any attempt counts while the request is in doubt, and the guards of the
    lifecycle keep everything that has gone further.
    """
    async with unit(pool) as connection:
        requests = await known(connection, [order.request_id])
        await connection.execute(
            _ANSWER,
            order.request_id,
            attempt_no,
            answered.outcome,
            answered.http_status,
            answered.sentence,
            answered.answer,
            answered.simulated_tx_hash,
            answered.jti,
        )
        probe_at = await _learn(connection, chain_id, order.request_id, frozen.workflow_id, attempt_no, answered)
        if answered.execution_id is not None:
            await connection.execute(
                _EXECUTION_IDS, chain_id, [answered.execution_id], order.request_id, ["returned"], order.generation
            )
        if answered.postpone_seconds > 0:
            await connection.execute(
                _POSTPONE_WORKFLOW, chain_id, frozen.workflow_id, timedelta(seconds=answered.postpone_seconds)
            )
        before = requests[order.request_id].state
        event = _event_of(answered.outcome)
        if event is None:
            return before
        if event is Event.REFUSED_FOR_GOOD and probe_at is not None:
            event = Event.ALL_REFUSED
        if event is Event.ACCEPTED:
            await connection.execute(
                # $1 id, $2 interval
                """
                UPDATE mint_request SET deadline_at = clock_timestamp() + $2::interval
                WHERE id = $1 AND state = 'in_doubt'
                """,
                order.request_id,
                timedelta(seconds=answered.deadline_seconds),
            )
        settled = await settle(
            connection,
            event,
            [order.request_id],
            reason=answered.outcome,
            detail=answered.sentence,
            attempt_no=attempt_no,
        )
        mine = [s for s in settled if s.request_id == order.request_id]
        if event is Event.ALL_REFUSED and mine:
            # Nothing was ever sent, so it waits as long as its workflow does; the next probe is another request's, if there
            # is one.  One that an earlier attempt left in doubt keeps the back-off that its last attempt set.
            await connection.execute(
                _WAIT_AGAIN,
                order.request_id,
                timedelta(seconds=answered.postpone_seconds),
                probe_at,
                timedelta(seconds=breakers.FIRST_PAUSE_SECONDS),
            )
        return mine[-1].after if mine else before


async def _learn(
    connection: Connection, chain_id: int, request_id: int, workflow_id: bytes, attempt_no: int, answered: Answered
) -> datetime | None:
    """The clock and the breakers, for every worker; when the next probe is due, if the answer opened a breaker."""
    if answered.clock_offset_seconds is not None:
        before = await connection.fetchval(_SET_CLOCK, chain_id, answered.clock_offset_seconds)
        if abs(answered.clock_offset_seconds) > CLOCK_ALARM_SECONDS >= abs(before or 0.0):
            sentence = f"The gateway's clock and ours are {answered.clock_offset_seconds:+.0f} s apart; correct ours."
            await raise_alarm(connection, chain_id, AlarmKind.CLOCK_OFF, sentence)
    if answered.http_status == HTTP_FORBIDDEN and answered.says is Says.NOTHING:
        # Last, for the alarm's row is locked.  Nobody knows which of our requests a firewall let through, and none resolves itself while it forbids.
        sentence = f"Something before the gateway forbids our calls (HTTP 403).  {answered.sentence or ''}".strip()
        await raise_hourly(connection, chain_id, AlarmKind.GATEWAY_FORBIDS, sentence)
    if answered.says is Says.NOTHING:
        return None
    of_instance = answered.says is Says.INSTANCE_REFUSED
    of_workflow = answered.says is Says.WORKFLOW_REFUSED or (
        answered.outcome == "refused_for_good" and await breakers.refuses_all(connection, chain_id, workflow_id)
    )
    if not of_instance:
        # What refuses a workflow works otherwise.
        await breakers.close(connection, chain_id, None if of_workflow else workflow_id, request_id, attempt_no)
    if not of_instance and not of_workflow:
        return None
    refusal = Refusal(
        workflow_id=workflow_id if of_workflow else None,
        outcome=answered.outcome,
        code=answered.code or answered.outcome,
        sentence=answered.sentence or "CRE refuses it.",
    )
    return await breakers.open_(connection, chain_id, refusal, request_id, attempt_no)


def _event_of(outcome: str) -> Event | None:
    if outcome == "accepted":
        return Event.ACCEPTED
    if outcome in {"refused_for_good", "payload_conflict"}:
        return Event.REFUSED_FOR_GOOD
    if outcome in REFUSED_BEFORE_FORWARDING:
        return Event.ALL_REFUSED
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """How many requests the clock moved."""

    leases: int
    deadlines: int
    doubts: int
    resends: int
    holds: int


async def sweep(
    pool: Pool,
    chain_id: int,
    *,
    give_up_seconds: float,
    deadline_seconds: float,
    resend_after_seconds: float | None = None,
    give_up_attempts: int = 0,
) -> Swept:
    """What only time does: leases end, deadlines pass, holds end, and doubts that nothing resolved go to a person.

    What is said of the chain waits until the index has looked so far (``settled_time``).  A doubt is given up after
    ``give_up_seconds``, but not before ``give_up_attempts`` more attempts.

    With ``resend_after_seconds``, what was accepted and not delivered is sent again so long after its deadline: CRE has
    then forgotten the id and runs the workflow again, under the same execution id.
    """
    async with unit(pool) as connection:
        # Re-read under the lock: a lease that was used, or a deadline that was met, meanwhile is left alone.
        leases = await _sweep(
            connection, Event.GIVEN_BACK, _OVERDUE_LEASES, chain_id, reason="lease_expired", detail=None
        )
        deadlines = await _sweep(
            connection,
            Event.DEADLINE,
            _OVERDUE_DEADLINES,
            chain_id,
            reason="not_delivered",
            detail="CRE accepted the request, but no delivery reached the chain in time.  It is still watched.",
        )
        doubts = await _sweep(
            connection,
            Event.GIVE_UP,
            _OVERDUE_DOUBTS,
            chain_id,
            timedelta(seconds=give_up_seconds),
            timedelta(seconds=deadline_seconds),
            give_up_attempts,
            reason="gave_up",
            detail="No attempt got an answer that settles whether it was delivered.",
        )
        await raise_alarms(
            connection,
            chain_id,
            AlarmKind.GAVE_UP,
            dict.fromkeys(doubts, "Nothing settles whether CRE got this request; ask CRE for its execution id."),
        )
        resends: list[int] = []
        if resend_after_seconds is not None:
            resends = await _sweep(
                connection,
                Event.RESEND,
                _OVERDUE_RESENDS,
                chain_id,
                timedelta(seconds=resend_after_seconds),
                reason="resend",
                detail="Not delivered long ago: the same bytes are sent again under the same id.",
            )
        holds = "UPDATE 0"
        if await connection.fetchval(_OVERDUE_HOLDS, chain_id, list(HELD_FOR_NOW)):
            await lock_chain(connection, chain_id)
            holds = await connection.execute(_RELEASE_HOLDS, chain_id, list(HELD_FOR_NOW))
        if resends or holds != "UPDATE 0":
            await hold_requests(connection, chain_id)
    return Swept(
        leases=len(leases),
        deadlines=len(deadlines),
        doubts=len(doubts),
        resends=len(resends),
        holds=int(holds.removeprefix("UPDATE ")),
    )


async def _sweep(
    connection: Connection,
    event: Event,
    overdue: str,
    chain_id: int,
    *bounds: timedelta | int,
    reason: str,
    detail: str | None,
) -> list[int]:
    arguments = (chain_id, *bounds)
    candidates = [row["id"] for row in await connection.fetch(overdue, *arguments)]
    if not candidates:
        return []
    await lock_chain(connection, chain_id)
    await known(connection, candidates)
    still = {row["id"] for row in await connection.fetch(overdue, *arguments)}
    overdue_now = [request for request in candidates if request in still]
    settled = await settle(connection, event, overdue_now, reason=reason, detail=detail)
    return [s.request_id for s in settled]


async def _orders(connection: Connection, request_ids: Sequence[int]) -> list[Order]:
    return [_order(row) for row in await connection.fetch(_ORDERS, list(request_ids))]


def _order(row: asyncpg.Record) -> Order:
    return Order(
        request_id=row["id"],
        state=State(row["state"]),
        claim_no=row["claim_no"],
        generation=row["generation"],
        nonce=row["nonce"],
        stablecoin=row["stablecoin"],
        consumer=row["consumer"],
        beneficiary=row["beneficiary"],
        amount=int(row["amount"]),
        expected_reference=row["expected_reference"],
        symbol=row["symbol"] or "",
        decimals=row["decimals"],
        basket_is_canonical=row["basket_is_canonical"],
        block_timestamp=row["block_timestamp"],
        frozen=_frozen(row),
        basket_is_served=row["basket_is_served"],
        found_workflow_id=row["found_workflow_id"],
    )


def _frozen(row: asyncpg.Record) -> Frozen | None:
    if row["body"] is None:
        return None
    return Frozen(
        mode=row["mode"],
        workflow_id=row["workflow_id"],
        receiver=row["receiver"],
        gateway=row["gateway"],
        signer=row["signer"],
        body=row["body"],
    )
