"""What the invocator does to rows: claim, freeze, attempt, answer, and the sweeps (design §6).

No transaction here is open across a call to CRE.  What protects a call is, in this order: the attempt row that was
committed before its socket opened, the nonce that never changes, and the guards (state and ``claim_no``) on every write
that comes after.  Leases and slots run on the database's clock only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import asyncpg

from datastore.connection import Connection, Pool, unit
from datastore.lifecycle import Event, State, decide
from datastore.settlement import Move, known, move, raise_alarms, settle

REFUSED_BEFORE_FORWARDING: Final = frozenset({"refused_now", "refused_for_good", "instance_refused", "never_connected"})


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
    block_timestamp: int
    frozen: Frozen | None


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
    """How often a workflow may be triggered: ``burst`` at once, then one each ``seconds_per_trigger``."""

    seconds_per_trigger: float
    burst: int
    max_in_flight: int


# Durable slots as a theoretical arrival time (GCRA): a workflow may be triggered when the time is at most
# (burst - 1) intervals ahead.  $1 chain, $2 interval, $3 burst
_FREE_WORKFLOWS: Final = """
SELECT w.workflow_id
FROM workflow w
LEFT JOIN workflow_slot s USING (chain_id, workflow_id)
WHERE w.chain_id = $1 AND w.workflow_id = ANY($4::bytea[])
  AND (s.earliest_next_at IS NULL OR s.earliest_next_at - $2::interval * ($3 - 1) <= clock_timestamp())
"""

# $1 chain
_MAY_CLAIM: Final = """
SELECT
    c.paused_at IS NULL AND c.quarantined_at IS NULL AND is_this_server(c.server_identifier, c.server_timeline) AS open,
    (
        SELECT count(*) FROM mint_request r
        WHERE r.chain_id = c.chain_id AND r.state IN ('in_doubt', 'accepted') AND r.deadline_at > clock_timestamp()
    ) AS in_flight
FROM control c WHERE c.chain_id = $1
"""

# One request of each basket, its oldest; the basket that was served longest ago first.  The row that is taken is locked
# by id in a statement of its own, so that no query plan can lock more than one (hard case 68).
# $1 chain, $2 limit
_WAITING: Final = """
SELECT o.id
FROM (SELECT DISTINCT stablecoin FROM mint_request
      WHERE chain_id = $1 AND state = 'confirmed' AND held_at IS NULL AND chain_status <> 'orphaned') b
CROSS JOIN LATERAL (
    SELECT r.id, r.block_number, r.log_index FROM mint_request r
    WHERE r.chain_id = $1 AND r.stablecoin = b.stablecoin
      AND r.state = 'confirmed' AND r.held_at IS NULL AND r.chain_status <> 'orphaned'
      AND (r.next_attempt_at IS NULL OR r.next_attempt_at <= clock_timestamp())
    ORDER BY r.block_number, r.log_index
    LIMIT 4
) o
LEFT JOIN basket_turn t ON t.chain_id = $1 AND t.stablecoin = b.stablecoin
ORDER BY t.last_claim_at NULLS FIRST, o.block_number, o.log_index
LIMIT $2
"""

# $1 id
_LOCK_WAITING: Final = """
SELECT id FROM mint_request
WHERE id = $1 AND state = 'confirmed' AND held_at IS NULL AND chain_status <> 'orphaned'
FOR UPDATE SKIP LOCKED
"""

# $1 id, $2 worker, $3 lease
_CLAIM: Final = """
UPDATE mint_request SET
    state = 'claimed', state_reason = 'claim', state_detail = NULL, state_attempt_no = NULL,
    state_changed_at = clock_timestamp(), claim_no = claim_no + 1, worker_id = $2,
    lease_ends_at = clock_timestamp() + $3::interval
WHERE id = $1 AND state = 'confirmed'
"""

# $1 id
_ORDER: Final = """
SELECT
    r.id, r.state, r.claim_no, r.generation, r.nonce, r.stablecoin, r.consumer, r.beneficiary, r.amount, r.expected_reference,
    r.block_timestamp, b.symbol, b.decimals, f.mode, f.workflow_id, f.receiver, f.gateway, f.signer, f.body
FROM mint_request r
LEFT JOIN basket b ON b.chain_id = r.chain_id AND b.stablecoin = r.stablecoin AND b.canonical AND b.consumer = r.consumer
LEFT JOIN frozen_request f ON f.request_id = r.id AND f.generation = r.generation
WHERE r.id = $1
"""

# $1 chain, $2 stablecoin
_TAKE_TURN: Final = """
INSERT INTO basket_turn (chain_id, stablecoin, last_claim_at) VALUES ($1, $2, clock_timestamp())
ON CONFLICT (chain_id, stablecoin) DO UPDATE SET last_claim_at = excluded.last_claim_at
"""

# $1 chain, $2 limit: requests in doubt whose next attempt is due
_DUE: Final = """
SELECT r.id FROM mint_request r
WHERE r.chain_id = $1 AND r.state = 'in_doubt' AND r.next_attempt_at <= clock_timestamp()
  AND r.chain_status <> 'orphaned' AND r.held_at IS NULL
  AND EXISTS (SELECT FROM frozen_request f WHERE f.request_id = r.id AND f.generation = r.generation AND f.mode <> 'simulate')
ORDER BY r.next_attempt_at
LIMIT $2
"""

# Whether a claim is still ours, and stays ours until this transaction ends.  $1 id, $2 claim_no
_LOCK_CLAIM: Final = """
SELECT id FROM mint_request WHERE id = $1 AND state = 'claimed' AND claim_no = $2 FOR UPDATE
"""

# $1 request, $2 generation, $3 nonce, $4 mode, $5 workflow, $6 receiver, $7 gateway, $8 signer, $9 body, $10 sha256
_FREEZE: Final = """
INSERT INTO frozen_request (
    request_id, generation, nonce, mode, workflow_id, receiver, gateway, signer, body, body_sha256
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, sha256($9))
"""
# $1 chain, $2 ids, $3 request, $4 sources, $5 generation
_EXECUTION_IDS: Final = """
INSERT INTO execution_id (chain_id, execution_id, request_id, source, generation)
SELECT $1, n.execution_id, $3, n.source, $5 FROM unnest($2::bytea[], $4::text[]) AS n (execution_id, source)
ON CONFLICT (chain_id, execution_id) DO NOTHING
"""

# $1 chain, $2 execution ids
_REPORTED: Final = "SELECT EXISTS (SELECT FROM report WHERE chain_id = $1 AND execution_id = ANY($2::bytea[]))"

# What must still be so in the transaction that inserts the attempt (hard cases 67 and 72).  $1 id, $2 state, $3 claim_no
_LOCK_FOR_ATTEMPT: Final = """
SELECT
    r.chain_status <> 'orphaned' AND r.held_at IS NULL AND c.paused_at IS NULL AND c.quarantined_at IS NULL
        AND is_this_server(c.server_identifier, c.server_timeline) AS may_send,
    r.lease_ends_at IS NULL OR r.lease_ends_at > clock_timestamp() AS lease_holds
FROM mint_request r JOIN control c ON c.chain_id = r.chain_id
WHERE r.id = $1 AND r.state = $2 AND r.claim_no = $3
FOR UPDATE OF r
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
# $1 request, $2 generation, $3 claim_no, $4 worker, $5 jti
_INSERT_ATTEMPT: Final = """
INSERT INTO attempt (request_id, attempt_no, generation, claim_no, worker_id, jti)
SELECT $1, coalesce(max(attempt_no), 0) + 1, $2, $3, $4, $5 FROM attempt WHERE request_id = $1
RETURNING attempt_no
"""
# $1 id, $2 interval until another attempt may start, $3 deadline interval
_IN_DOUBT: Final = """
UPDATE mint_request SET next_attempt_at = clock_timestamp() + $2::interval,
    deadline_at = clock_timestamp() + $3::interval
WHERE id = $1
"""

# $1 request, $2 attempt, $3 outcome, $4 status, $5 sentence, $6 answer, $7 simulated transaction
_ANSWER: Final = """
UPDATE attempt SET answered_at = clock_timestamp(), outcome = $3, http_status = $4, sentence = $5, answer = $6,
    simulated_tx_hash = $7
WHERE request_id = $1 AND attempt_no = $2 AND outcome IS NULL
"""
# $1 chain, $2 workflow, $3 pause
_POSTPONE_WORKFLOW: Final = """
UPDATE workflow_slot SET earliest_next_at = greatest(earliest_next_at, clock_timestamp() + $3::interval)
WHERE chain_id = $1 AND workflow_id = $2
"""

# $1 chain
_OVERDUE_LEASES: Final = """
SELECT id FROM mint_request WHERE chain_id = $1 AND state = 'claimed' AND lease_ends_at <= clock_timestamp()
"""
_OVERDUE_DEADLINES: Final = """
SELECT id FROM mint_request WHERE chain_id = $1 AND state = 'accepted' AND deadline_at <= clock_timestamp()
"""
# An operator's retry begins the doubt, and its time, anew.  $1 chain, $2 interval since the doubt began
_OVERDUE_DOUBTS: Final = """
SELECT r.id FROM mint_request r
WHERE r.chain_id = $1 AND r.state = 'in_doubt' AND r.next_attempt_at <= clock_timestamp()
  AND r.state_changed_at
      + CASE WHEN EXISTS (
          SELECT FROM frozen_request f
          WHERE f.request_id = r.id AND f.generation = r.generation AND f.mode = 'simulate'
        ) THEN $3::interval ELSE $2::interval END <= clock_timestamp()
"""


async def list_workflows(pool: Pool, chain_id: int, workflow_ids: Sequence[bytes]) -> None:
    """Remember every workflow id that was ever configured; append-only."""
    async with unit(pool) as connection:
        await connection.execute(
            # $1 chain, $2 ids
            "INSERT INTO workflow (chain_id, workflow_id) SELECT $1, unnest($2::bytea[]) ON CONFLICT DO NOTHING",
            chain_id,
            list(workflow_ids),
        )


async def listed_workflows(pool: Pool, chain_id: int) -> list[bytes]:
    """Every workflow id ever configured."""
    async with unit(pool) as connection:
        rows = await connection.fetch("SELECT workflow_id FROM workflow WHERE chain_id = $1", chain_id)
    return [row["workflow_id"] for row in rows]


async def free_workflows(pool: Pool, chain_id: int, pacing: Pacing, workflow_ids: Sequence[bytes]) -> frozenset[bytes]:
    """Of ``workflow_ids``, those that may be triggered now; none while paused or while too many are in flight."""
    async with unit(pool) as connection:
        gate = await connection.fetchrow(_MAY_CLAIM, chain_id)
        if gate is None or not gate["open"] or gate["in_flight"] >= pacing.max_in_flight:
            return frozenset()
        interval = timedelta(seconds=pacing.seconds_per_trigger)
        rows = await connection.fetch(_FREE_WORKFLOWS, chain_id, interval, pacing.burst, list(workflow_ids))
    return frozenset(row["workflow_id"] for row in rows)


async def waiting(pool: Pool, chain_id: int, *, limit: int) -> list[Order]:
    """Requests that wait for a claim, in the order of fairness; nothing is locked."""
    async with unit(pool) as connection:
        ids = [row["id"] for row in await connection.fetch(_WAITING, chain_id, limit)]
        return [await _order(connection, request_id) for request_id in ids]


async def due(pool: Pool, chain_id: int, *, limit: int) -> list[Order]:
    """Requests in doubt whose next attempt is due, oldest first; nothing is locked."""
    async with unit(pool) as connection:
        ids = [row["id"] for row in await connection.fetch(_DUE, chain_id, limit)]
        orders = [await _order(connection, request_id) for request_id in ids]
    # Each statement sees what was committed before it: one that was minted in between is no longer in doubt.
    return [order for order in orders if order.state is State.IN_DOUBT]


async def claim(
    pool: Pool, chain_id: int, request_id: int, *, worker_id: UUID, lease_seconds: float, pacing: Pacing
) -> Order | None:
    """Take one waiting request under a lease; ``None`` if somebody else was faster or the gate closed meanwhile."""
    async with unit(pool) as connection:
        # Read again here, and once more by begin_attempt: a pause that commits meanwhile still stops the send.
        gate = await connection.fetchrow(_MAY_CLAIM, chain_id)
        if gate is None or not gate["open"] or gate["in_flight"] >= pacing.max_in_flight:
            return None
        if await connection.fetchval(_LOCK_WAITING, request_id) is None:
            return None
        status = await connection.execute(_CLAIM, request_id, worker_id, timedelta(seconds=lease_seconds))
        if status != "UPDATE 1":
            raise AssertionError(f"claim of request {request_id}: {status}")
        order = await _order(connection, request_id)
        await connection.execute(_TAKE_TURN, chain_id, order.stablecoin)
    return order


async def freeze(pool: Pool, chain_id: int, order: Order, frozen: Frozen, execution_ids: tuple[bytes, bytes]) -> bool:
    """Store the bytes that every attempt will send, and both execution ids that they may lead to.

    ``False`` if the claim is no longer ours: nothing was stored, whoever holds it now freezes.
    """
    async with unit(pool) as connection:
        if await connection.fetchval(_LOCK_CLAIM, order.request_id, order.claim_no) is None:
            return False
        await connection.execute(
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
        await connection.execute(
            _EXECUTION_IDS,
            chain_id,
            list(execution_ids),
            order.request_id,
            ["legacy", "trigger_index"],
            order.generation,
        )
    return True


async def is_reported(pool: Pool, chain_id: int, execution_ids: Sequence[bytes]) -> bool:
    """Whether a report with one of these execution ids was ever indexed, on any branch."""
    async with unit(pool) as connection:
        return bool(await connection.fetchval(_REPORTED, chain_id, list(execution_ids)))


async def give_back(pool: Pool, order: Order, *, reason: str) -> None:
    """Return a claim of ours, if it still is ours."""
    await _end_claim(pool, order, Event.GIVEN_BACK, reason=reason, detail=None)


async def refuse_claim(pool: Pool, order: Order, *, reason: str, detail: str) -> None:
    """Pre-flight says never: a person must decide."""
    await _end_claim(pool, order, Event.PREFLIGHT_NEVER, reason=reason, detail=detail)


async def _end_claim(pool: Pool, order: Order, event: Event, *, reason: str, detail: str | None) -> None:
    async with unit(pool) as connection:
        ours = await connection.fetchval(_LOCK_CLAIM, order.request_id, order.claim_no)
        if ours is not None:
            await settle(connection, event, [order.request_id], reason=reason, detail=detail)


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
    over.  The slot of the workflow is taken here, so a crash costs a slot, never a second mint.
    """
    async with unit(pool) as connection:
        row = await connection.fetchrow(_LOCK_FOR_ATTEMPT, order.request_id, order.state.value, order.claim_no)
        if row is None or not row["may_send"] or not row["lease_holds"]:
            return None
        if pacing.seconds_per_trigger > 0 and not await connection.fetchval(
            _TAKE_SLOT, chain_id, frozen.workflow_id, timedelta(seconds=pacing.seconds_per_trigger), pacing.burst
        ):
            return None
        number: int = await connection.fetchval(
            _INSERT_ATTEMPT, order.request_id, order.generation, order.claim_no, worker_id, jti
        )
        requests = await known(connection, [order.request_id])
        request = requests[order.request_id]
        after = decide(Event.ATTEMPT_STARTED, request.state, request.facts)
        if after is None:
            raise AssertionError(f"request {order.request_id} may not be attempted from {request.state}")
        if after is not request.state:
            await move(connection, [Move(request=request, after=after, reason="attempt_started", attempt_no=number)])
        await connection.execute(
            _IN_DOUBT, order.request_id, timedelta(seconds=retry_seconds(number)), timedelta(seconds=deadline_seconds)
        )
    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What CRE (or the lack of it) said of one attempt; ``outcome`` is the closed word of ``attempt.outcome``."""

    outcome: str
    http_status: int | None
    sentence: str | None
    answer: bytes | None
    execution_id: bytes | None = None
    simulated_tx_hash: bytes | None = None
    postpone_seconds: float = 0.0
    deadline_seconds: float = 0.0


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
        )
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
            # Nothing was ever sent, so it waits as long as its workflow does.  One that an earlier attempt left in
            # doubt keeps the back-off that its last attempt set.
            await connection.execute(
                # $1 id, $2 interval
                "UPDATE mint_request SET next_attempt_at = clock_timestamp() + $2::interval WHERE id = $1",
                order.request_id,
                timedelta(seconds=answered.postpone_seconds),
            )
        return mine[-1].after if mine else before


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


async def sweep(pool: Pool, chain_id: int, *, give_up_seconds: float, deadline_seconds: float) -> Swept:
    """What only time does: leases end, deadlines pass, and doubts that nothing resolved go to a person."""
    async with unit(pool) as connection:
        # Re-read under the lock: a lease that was used, or a deadline that was met, meanwhile is left alone.
        leases = await _sweep(
            connection, Event.GIVEN_BACK, _OVERDUE_LEASES, [chain_id], reason="lease_expired", detail=None
        )
        deadlines = await _sweep(
            connection,
            Event.DEADLINE,
            _OVERDUE_DEADLINES,
            [chain_id],
            reason="not_delivered",
            detail="CRE accepted the request, but no delivery reached the chain in time.  It is still watched.",
        )
        doubts = await _sweep(
            connection,
            Event.GIVE_UP,
            _OVERDUE_DOUBTS,
            [chain_id, timedelta(seconds=give_up_seconds), timedelta(seconds=deadline_seconds)],
            reason="gave_up",
            detail="No attempt got an answer that settles whether it was delivered.",
        )
        await raise_alarms(
            connection,
            chain_id,
            "gave_up",
            dict.fromkeys(doubts, "Nothing settles whether CRE got this request; ask CRE for its execution id."),
        )
    return Swept(leases=len(leases), deadlines=len(deadlines), doubts=len(doubts))


async def _sweep(
    connection: Connection, event: Event, overdue: str, arguments: list[object], *, reason: str, detail: str | None
) -> list[int]:
    candidates = [row["id"] for row in await connection.fetch(overdue, *arguments)]
    if not candidates:
        return []
    await known(connection, candidates)
    still = {row["id"] for row in await connection.fetch(overdue, *arguments)}
    overdue_now = [request for request in candidates if request in still]
    settled = await settle(connection, event, overdue_now, reason=reason, detail=detail)
    return [s.request_id for s in settled]


async def _order(connection: Connection, request_id: int) -> Order:
    row = await connection.fetchrow(_ORDER, request_id)
    if row is None:
        raise LookupError(f"request {request_id} does not exist")
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
        block_timestamp=row["block_timestamp"],
        frozen=_frozen(row),
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
