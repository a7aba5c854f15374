"""What people look at: baskets, requests and their stories, reorgs.  Reads only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from datastore import claims, settlement
from datastore.connection import Connection, Pool, unit
from datastore.lifecycle import ChainStatus, Facts, State
from datastore.pinning import Pin
from datastore.settlement import Horizon

# Optional filters: NULL takes every row.
# $1 chain, $2 ids, $3 states, $4 stablecoins, $5 requester, $6 recorded since, $7 bank reference, $8 held, $9 reason of the
# state or, with $8, of the hold, $10 limit
_REQUESTS: Final = """
SELECT
    r.id, r.nonce, r.identity, r.generation, r.tx_hash, r.block_hash, r.block_number, r.block_timestamp, r.log_index,
    r.chain_status, r.orphaned_for_good, r.stablecoin, r.consumer, r.requester, r.beneficiary, r.amount, r.predicted_amount,
    r.bank_reference, r.expected_reference, r.state, r.state_reason, r.state_detail, r.state_changed_at, r.held_at,
    r.held_reason, r.worker_id, r.lease_ends_at, r.next_attempt_at, r.deadline_at, r.recorded_at,
    is_sent(r.id) AS sent,
    b.symbol, coalesce(b.decimals, 18) AS decimals,
    f.workflow_id, f.signer,
    a.attempts, a.first_attempt_at, l.outcome AS last_outcome, l.sentence AS last_sentence,
    m.mints, m.mint_block_number, m.mint_tx_hash, m.mint_amount, m.proof AS mint_proof,
    (
        SELECT min(o.id) FROM mint_request o
        WHERE o.bank_reference = r.bank_reference AND o.holds_reference AND o.id <> r.id
    ) AS rival_id,
    u.requester_in_flight, u.basket_in_flight, u.unserved_in_flight,
    coalesce(s.served, false) AS basket_is_served, coalesce(s.allowed, false) AS basket_is_allowed,
    EXISTS (SELECT FROM basket_standing e WHERE e.chain_id = r.chain_id AND e.served) AS are_served_baskets
FROM mint_request r
LEFT JOIN basket b ON b.chain_id = r.chain_id AND b.stablecoin = r.stablecoin AND b.canonical
LEFT JOIN basket_standing s ON s.chain_id = r.chain_id AND s.stablecoin = r.stablecoin
LEFT JOIN frozen_request f ON f.request_id = r.id AND f.generation = r.generation
CROSS JOIN LATERAL (
    SELECT count(*) AS attempts, min(started_at) AS first_attempt_at FROM attempt WHERE request_id = r.id
) a
LEFT JOIN LATERAL (
    SELECT outcome, sentence FROM attempt WHERE request_id = r.id ORDER BY attempt_no DESC LIMIT 1
) l ON true
CROSS JOIN LATERAL (
    SELECT
        count(*) AS mints, min(block_number) AS mint_block_number, min(amount) AS mint_amount,
        (array_agg(tx_hash ORDER BY block_number, log_index))[1] AS mint_tx_hash, min(proof) AS proof
    FROM mint_execution WHERE request_id = r.id AND canonical
) m
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE o.requester = r.requester) AS requester_in_flight,
        count(*) FILTER (WHERE o.stablecoin = r.stablecoin) AS basket_in_flight,
        count(*) FILTER (WHERE NOT coalesce(e.served, false)) AS unserved_in_flight
    FROM mint_request o LEFT JOIN basket_standing e USING (chain_id, stablecoin)
    WHERE o.chain_id = r.chain_id AND o.state IN ('in_doubt', 'accepted') AND o.deadline_at > settled_time($1)
) u
WHERE r.chain_id = $1
  AND ($2::bigint[] IS NULL OR r.id = ANY($2))
  AND ($3::text[] IS NULL OR r.state = ANY($3))
  AND ($4::bytea[] IS NULL OR r.stablecoin = ANY($4))
  AND ($5::bytea IS NULL OR r.requester = $5)
  AND ($6::timestamptz IS NULL OR r.recorded_at >= $6)
  AND ($7::bytea IS NULL OR r.bank_reference = $7)
  AND (NOT $8::boolean OR r.held_at IS NOT NULL)
  AND ($9::text IS NULL OR $9 = CASE WHEN $8 THEN r.held_reason ELSE r.state_reason END)
ORDER BY r.id DESC
LIMIT $10
"""

# A person may hold any of its names: its row's id, a nonce (of any generation), or the beginning of its identity, of its
# transaction's hash, of an execution id or of its mint's transaction.  $1 chain, $2 id, $3 nonce, $4 lowest and $5 highest hash
_FIND: Final = """
SELECT id FROM mint_request WHERE chain_id = $1 AND (id = $2 OR nonce = $3 OR identity BETWEEN $4 AND $5 OR tx_hash BETWEEN $4 AND $5)
UNION
SELECT f.request_id FROM frozen_request f JOIN mint_request r ON r.id = f.request_id WHERE r.chain_id = $1 AND f.nonce = $3
UNION
SELECT request_id FROM execution_id WHERE chain_id = $1 AND execution_id BETWEEN $4 AND $5
UNION
SELECT request_id FROM mint_execution
WHERE chain_id = $1 AND request_id IS NOT NULL AND tx_hash BETWEEN $4 AND $5
ORDER BY 1
LIMIT 20
"""

# $1 request
_TRANSITIONS: Final = """
SELECT from_state, to_state, actor, reason, detail, attempt_no, at FROM mint_transition WHERE request_id = $1 ORDER BY id
"""
_ATTEMPTS: Final = """
SELECT attempt_no, generation, worker_id, started_at, answered_at, outcome, http_status, sentence
FROM attempt WHERE request_id = $1 ORDER BY attempt_no
"""
_EXECUTION_IDS: Final = (
    "SELECT execution_id, source FROM execution_id WHERE request_id = $1 ORDER BY source, execution_id"
)
# The places on chain where its log was found, the one that counts last: re-mining moves a transaction by a few blocks, so the index on block
# numbers serves.  $1 request, $2 blocks to look at on both sides
_PLACES: Final = """
SELECT l.block_number, l.block_hash, l.log_index, l.canonical, b.timestamp
FROM mint_request r
JOIN log l ON l.chain_id = r.chain_id AND l.block_number BETWEEN r.block_number - $2 AND r.block_number + $2
    AND l.tx_hash = r.tx_hash AND l.address = r.emitter AND l.event = 'MintRequested'
JOIN block b ON b.chain_id = l.chain_id AND b.hash = l.block_hash
WHERE r.id = $1
ORDER BY l.canonical, l.block_number, l.block_hash
"""
# $1 request
_DELIVERIES: Final = """
SELECT p.block_number, p.tx_hash, p.execution_id, p.result, p.canonical, b.timestamp
FROM execution_id x
JOIN report p ON p.chain_id = x.chain_id AND p.execution_id = x.execution_id
LEFT JOIN block b ON b.chain_id = p.chain_id AND b.hash = p.block_hash
WHERE x.request_id = $1
ORDER BY p.block_number, p.log_index
"""
_MINTS: Final = """
SELECT e.block_number, e.tx_hash, e.amount, e.recipient, e.canonical, e.proof, b.timestamp
FROM mint_execution e
LEFT JOIN block b ON b.chain_id = e.chain_id AND b.hash = e.block_hash
WHERE e.request_id = $1
ORDER BY e.block_number, e.log_index
"""
# Reorgs while it was open that reached its block.  $1 request
_REORGS_OF: Final = """
SELECT g.ancestor_number, g.old_tip_number, g.orphaned_blocks, g.at
FROM mint_request r
JOIN reorg g ON g.chain_id = r.chain_id AND g.at >= r.recorded_at AND r.block_number > g.ancestor_number
    AND r.block_number <= g.old_tip_number
WHERE r.id = $1
ORDER BY g.id
"""
# $1 request
_ACTIONS: Final = """
SELECT action, operator || ': ' || reason AS sentence, at FROM operator_action WHERE request_id = $1 ORDER BY id
"""
_ALARMS_OF: Final = "SELECT kind, sentence, at FROM alarm WHERE request_id = $1 ORDER BY id"
# What paused, resumed, allowed and disallowed its basket while that concerned it: since the last resume before it was
# recorded, and until it ended.  A pause that no person began is told by its own row, or by that of its end.  $1 request
_PAUSES_OF: Final = """
WITH request AS (
    SELECT chain_id, stablecoin, recorded_at,
        CASE WHEN state IN ('completed', 'rejected', 'dropped', 'cancelled') THEN state_changed_at ELSE 'infinity' END AS ended_at
    FROM mint_request WHERE id = $1
), turn AS (
    SELECT o.*
    FROM request r
    JOIN operator_action o ON o.chain_id = r.chain_id AND o.action IN (
        'pause_basket', 'resume_basket', 'allow_basket', 'disallow_basket'
    )
        AND o.before ->> 'stablecoin' = '0x' || encode(r.stablecoin, 'hex')
), paused AS (
    SELECT p.paused_reason, p.paused_at FROM request r JOIN basket_pause p USING (chain_id, stablecoin)
    UNION ALL
    SELECT before ->> 'paused_reason', (before ->> 'paused_at')::timestamptz FROM turn WHERE action = 'resume_basket'
), pause AS (
    SELECT 'basket_role_changed' AS what, 'The token of its basket says ' || paused_reason || '.' AS sentence, paused_at AS at
    FROM paused
    WHERE NOT EXISTS (SELECT FROM turn WHERE action = 'pause_basket' AND (after ->> 'paused_at')::timestamptz = paused_at)
    UNION ALL
    SELECT action, operator || ': ' || reason, at FROM turn
)
SELECT what, sentence, at
FROM pause, request
WHERE at <= ended_at
    AND at > coalesce((SELECT max(at) FROM pause WHERE what = 'resume_basket' AND at < recorded_at), '-infinity')
ORDER BY at
"""

# $1 chain, $2 with orphaned ones, $3 an address or NULL, $4 a symbol or NULL
_BASKETS: Final = """
SELECT
    b.stablecoin, b.consumer, b.creator, b.admin, b.name, b.symbol, b.name_raw, b.symbol_raw, b.decimals, b.block_number,
    b.block_hash, b.canonical, p.paused_at, p.paused_reason, coalesce(s.served, false) AS served, s.completed_at, s.allowed,
    s.allowed_at, s.allowed_reason,
    (
        SELECT coalesce(jsonb_object_agg(s.state, s.requests), '{}') FROM (
            SELECT state, count(*) AS requests FROM mint_request r
            WHERE r.chain_id = b.chain_id AND r.stablecoin = b.stablecoin GROUP BY state
        ) s
    ) AS requests,
    (
        SELECT coalesce(sum(e.amount), 0) FROM mint_execution e
        JOIN mint_request r ON r.id = e.request_id
        WHERE e.canonical AND r.chain_id = b.chain_id AND r.stablecoin = b.stablecoin
    ) AS minted
FROM basket b
LEFT JOIN basket_pause p ON p.chain_id = b.chain_id AND p.stablecoin = b.stablecoin
LEFT JOIN basket_standing s ON s.chain_id = b.chain_id AND s.stablecoin = b.stablecoin
WHERE b.chain_id = $1 AND (b.canonical OR $2)
  AND ($3::bytea IS NULL OR b.stablecoin = $3 OR b.consumer = $3)
  AND ($4::text IS NULL OR b.symbol = $4)
ORDER BY b.block_number, b.log_index
"""

# $1 chain, $2 limit
_REORGS: Final = """
SELECT id, ancestor_number, ancestor_hash, old_tip_number, old_tip_hash, orphaned_blocks, orphaned_requests, at
FROM reorg WHERE chain_id = $1 ORDER BY id DESC LIMIT $2
"""

# Open requests by the key and the workflow that their bytes are frozen for.  $1 chain
_FROZEN_FOR: Final = """
SELECT f.signer, f.workflow_id, count(*) AS requests, min(r.id) AS example
FROM mint_request r
JOIN frozen_request f ON f.request_id = r.id AND f.generation = r.generation
WHERE r.chain_id = $1 AND r.state IN ('seen', 'confirmed', 'claimed', 'in_doubt')
GROUP BY 1, 2
ORDER BY 1, 2
"""
# $1 chain
_STORED_PIN: Final = """
SELECT chain_id, genesis_hash, factory_address, factory_code_hash, forwarder_address, secret_check
FROM chain WHERE chain_id = $1
"""
_SERVER: Final = """
SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS is_standby, clock_timestamp() AS now
"""

# $1 chain
_ALLOWED_BASKETS: Final = "SELECT count(*) FROM basket_standing WHERE chain_id = $1 AND allowed"

# $1 chain, $2 signer
_LAST_WORD_ON: Final = """
SELECT a.outcome, a.sentence, a.answered_at
FROM attempt a
JOIN frozen_request f ON f.request_id = a.request_id AND f.generation = a.generation
JOIN mint_request r ON r.id = a.request_id
WHERE r.chain_id = $1 AND f.signer = $2 AND a.outcome IN ('accepted', 'instance_refused')
ORDER BY a.answered_at DESC
LIMIT 1
"""

PLACES_WITHIN_BLOCKS: Final = 512
"""How far from its last block the earlier places of a request are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it is now; amounts in wei, hashes and addresses as bytes.

    ``first_attempt_at``, ``last_outcome`` and ``last_sentence`` are ``None`` without an attempt, ``last_outcome`` also
    while its answer is not known.  ``mints`` counts the proven mints on the current branch; the other ``mint_…``
    members are of the first of them.  ``rival_id`` is another request that holds the same bank reference.
    """

    id: int
    nonce: UUID
    identity: bytes
    generation: int
    tx_hash: bytes
    block_hash: bytes
    block_number: int
    block_timestamp: int
    log_index: int
    chain_status: ChainStatus
    orphaned_for_good: bool
    stablecoin: bytes
    consumer: bytes
    requester: bytes
    beneficiary: bytes
    amount: int
    predicted_amount: int | None
    bank_reference: bytes
    expected_reference: bytes
    state: State
    state_reason: str | None
    state_detail: str | None
    state_changed_at: datetime
    held_at: datetime | None
    held_reason: str | None
    worker_id: UUID | None
    lease_ends_at: datetime | None
    next_attempt_at: datetime | None
    deadline_at: datetime | None
    recorded_at: datetime
    sent: bool
    symbol: str | None
    decimals: int
    workflow_id: bytes | None
    signer: bytes | None
    attempts: int
    first_attempt_at: datetime | None
    last_outcome: str | None
    last_sentence: str | None
    mints: int
    mint_block_number: int | None
    mint_tx_hash: bytes | None
    mint_amount: int | None
    mint_proof: str | None
    rival_id: int | None
    requester_in_flight: int = 0
    basket_in_flight: int = 0
    unserved_in_flight: int = 0
    basket_is_served: bool = False
    basket_is_allowed: bool = False
    are_served_baskets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which requests; ``None`` takes every one, ``limit`` the newest.

    ``reason`` is the state's, or the hold's if only held ones are wanted.
    """

    ids: Sequence[int] | None = None
    states: Sequence[State] | None = None
    stablecoins: Sequence[bytes] | None = None
    requester: bytes | None = None
    since: datetime | None = None
    bank_reference: bytes | None = None
    held: bool = False
    reason: str | None = None
    limit: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A change of state; ``before`` is ``None`` when it was recorded."""

    before: State | None
    after: State
    actor: str
    reason: str | None
    detail: str | None
    attempt_no: int | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A call to CRE; without ``outcome`` no answer was recorded, so it may have been delivered."""

    attempt_no: int
    generation: int
    worker_id: UUID
    started_at: datetime
    answered_at: datetime | None
    outcome: str | None
    http_status: int | None
    sentence: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where on chain the request's log was found; ``timestamp`` is the block's."""

    block_number: int
    block_hash: bytes
    log_index: int
    canonical: bool
    timestamp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A report of the forwarder with an execution id of the request; ``timestamp`` is its block's, if that is stored."""

    block_number: int
    tx_hash: bytes
    execution_id: bytes
    result: bool
    canonical: bool
    timestamp: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenMint:
    """A proven mint of the request, on this branch or on another."""

    block_number: int
    tx_hash: bytes
    amount: int
    recipient: bytes
    canonical: bool
    proof: str
    timestamp: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossed:
    """A reorg that reached the request's block."""

    ancestor_number: int
    old_tip_number: int
    orphaned_blocks: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """Something that a person did (``what`` is the action, the sentence begins with who), or must know (an alarm's kind)."""

    what: str
    sentence: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything that the rows tell of one request, each kind in its own order."""

    transitions: tuple[Transition, ...]
    attempts: tuple[Attempt, ...]
    execution_ids: tuple[tuple[bytes, str], ...]
    places: tuple[Place, ...]
    deliveries: tuple[Delivery, ...]
    mints: tuple[ProvenMint, ...]
    reorgs: tuple[Crossed, ...]
    actions: tuple[Noted, ...]
    alarms: tuple[Noted, ...]
    pauses: tuple[Noted, ...]
    """Of its basket, by an alarm or by a person, and the ends of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasketView:
    """A basket, its requests by state, and what its proven mints on the current branch add up to (wei).

    ``completed_at`` is the time of its first completed mint, ``allowed`` what a person ruled, with the reason; ``None``
    without.
    """

    stablecoin: bytes
    consumer: bytes
    creator: bytes
    admin: bytes
    name: str
    symbol: str
    name_raw: bytes
    symbol_raw: bytes
    decimals: int | None
    block_number: int
    block_hash: bytes
    canonical: bool
    paused_at: datetime | None
    paused_reason: str | None
    served: bool
    completed_at: datetime | None
    allowed: bool | None
    allowed_at: datetime | None
    allowed_reason: str | None
    requests: dict[str, int]
    minted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorg:
    """The followed branch was left above ``ancestor_number``."""

    id: int
    ancestor_number: int
    ancestor_hash: bytes
    old_tip_number: int
    old_tip_hash: bytes
    orphaned_blocks: int
    orphaned_requests: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenFor:
    """Open requests that can only be sent by this key and to this workflow; ``example`` is the oldest's id."""

    signer: bytes
    workflow_id: bytes
    requests: int
    example: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWord:
    """The gateway's latest answer that says whether a key is authorised."""

    outcome: str
    sentence: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The database server; ``now`` is its clock."""

    version: str
    is_standby: bool
    now: datetime


async def server(pool: Pool) -> Server:
    """What the database server says of itself."""
    async with unit(pool) as connection:
        (row,) = await connection.fetch(_SERVER)
    return Server(**row)


async def stored_pin(pool: Pool, chain_id: int) -> Pin | None:
    """What the first start pinned of a chain; ``None`` before it."""
    async with unit(pool) as connection:
        row = await connection.fetchrow(_STORED_PIN, chain_id)
    return Pin(**row) if row else None


async def chain_ids(pool: Pool) -> list[int]:
    """The chains in this database, in order."""
    async with unit(pool) as connection:
        rows = await connection.fetch("SELECT chain_id FROM chain ORDER BY chain_id")
    return [row["chain_id"] for row in rows]


async def requests(pool: Pool, chain_id: int, wanted: Wanted | None = None) -> list[Request]:
    """The wanted requests of a chain, newest first."""
    async with unit(pool) as connection:
        return await _requests(connection, chain_id, wanted or Wanted())


async def find(pool: Pool, chain_id: int, *, request_id: int | None, nonce: UUID | None, hash_prefix: str) -> list[int]:
    """The ids of the requests that go by any of these names, at most 20.

    Args:
        pool: Any.
        chain_id: Whose.
        request_id: The row's id.
        nonce: Of any generation.
        hash_prefix: Hex digits, the beginning of an identity, a transaction's hash or an execution id; empty for none.
    """
    low, high = (bytes.fromhex(hash_prefix.ljust(64, end)) if hash_prefix else None for end in "0f")
    async with unit(pool) as connection:
        rows = await connection.fetch(_FIND, chain_id, request_id, nonce, low, high)
    return [row["id"] for row in rows]


async def queue_positions(
    pool: Pool, chain_id: int, ids: Sequence[int], *, only_allowed: bool = False
) -> dict[int, int]:
    """Which of ``ids`` wait for a claim, and as the how manyth, from 1 on; of allowed baskets only, if only those count."""
    wanted = set(ids)
    queue = await claims.queue(pool, chain_id, only_allowed=only_allowed)
    return {request_id: place for place, request_id in enumerate(queue, start=1) if request_id in wanted}


async def facts(pool: Pool, ids: Sequence[int], horizon: Horizon) -> dict[int, Facts]:
    """What the guards of the lifecycle would be asked of these requests now, by id."""
    async with unit(pool) as connection:
        return await settlement.facts(connection, ids, horizon)


async def history(pool: Pool, request_id: int) -> History:
    """Everything that the rows tell of one request."""
    async with unit(pool) as connection:
        transitions = await connection.fetch(_TRANSITIONS, request_id)
        ids = await connection.fetch(_EXECUTION_IDS, request_id)
        attempts = await connection.fetch(_ATTEMPTS, request_id)
        places = await connection.fetch(_PLACES, request_id, PLACES_WITHIN_BLOCKS)
        deliveries = await connection.fetch(_DELIVERIES, request_id)
        mints = await connection.fetch(_MINTS, request_id)
        reorgs_of = await connection.fetch(_REORGS_OF, request_id)
        actions = await connection.fetch(_ACTIONS, request_id)
        alarms = await connection.fetch(_ALARMS_OF, request_id)
        pauses = await connection.fetch(_PAUSES_OF, request_id)
    return History(
        transitions=tuple(
            Transition(
                before=State(row["from_state"]) if row["from_state"] else None,
                after=State(row["to_state"]),
                actor=row["actor"],
                reason=row["reason"],
                detail=row["detail"],
                attempt_no=row["attempt_no"],
                at=row["at"],
            )
            for row in transitions
        ),
        attempts=tuple(Attempt(**row) for row in attempts),
        execution_ids=tuple((row["execution_id"], row["source"]) for row in ids),
        places=tuple(Place(**row) for row in places),
        deliveries=tuple(Delivery(**row) for row in deliveries),
        mints=tuple(ProvenMint(**{**row, "amount": int(row["amount"])}) for row in mints),
        reorgs=tuple(Crossed(**row) for row in reorgs_of),
        actions=tuple(Noted(what=row["action"], sentence=row["sentence"], at=row["at"]) for row in actions),
        alarms=tuple(Noted(what=row["kind"], sentence=row["sentence"], at=row["at"]) for row in alarms),
        pauses=tuple(Noted(**row) for row in pauses),
    )


async def baskets(
    pool: Pool, chain_id: int, *, orphaned: bool = False, address: bytes | None = None, symbol: str | None = None
) -> list[BasketView]:
    """The baskets of a chain, oldest first.

    Args:
        pool: Any.
        chain_id: Whose.
        orphaned: Also those that a reorg took away.
        address: Only the one with this token or consumer.
        symbol: Only those with this symbol; any number may share it.
    """
    async with unit(pool) as connection:
        rows = await connection.fetch(_BASKETS, chain_id, orphaned, address, symbol)
    return [BasketView(**{**row, "requests": _counts(row["requests"]), "minted": int(row["minted"])}) for row in rows]


async def allowed_baskets(pool: Pool, chain_id: int) -> int:
    """How many baskets of a chain are allowed."""
    async with unit(pool) as connection:
        return int(await connection.fetchval(_ALLOWED_BASKETS, chain_id))


async def reorgs(pool: Pool, chain_id: int, *, limit: int) -> list[Reorg]:
    """The reorgs of a chain, newest first."""
    async with unit(pool) as connection:
        rows = await connection.fetch(_REORGS, chain_id, limit)
    return [Reorg(**row) for row in rows]


async def frozen_for(pool: Pool, chain_id: int) -> list[FrozenFor]:
    """For which keys and workflows the bytes of open requests are frozen."""
    async with unit(pool) as connection:
        rows = await connection.fetch(_FROZEN_FOR, chain_id)
    return [FrozenFor(**row) for row in rows]


async def last_word_on(pool: Pool, chain_id: int, signer: bytes) -> LastWord | None:
    """The gateway's latest answer that says whether ``signer`` is authorised; ``None`` if there is none."""
    async with unit(pool) as connection:
        row = await connection.fetchrow(_LAST_WORD_ON, chain_id, signer)
    return LastWord(outcome=row["outcome"], sentence=row["sentence"], at=row["answered_at"]) if row else None


async def _requests(connection: Connection, chain_id: int, wanted: Wanted) -> list[Request]:
    rows = await connection.fetch(
        _REQUESTS,
        chain_id,
        wanted.ids,
        wanted.states,
        wanted.stablecoins,
        wanted.requester,
        wanted.since,
        wanted.bank_reference,
        wanted.held,
        wanted.reason,
        wanted.limit,
    )
    return [_request(row) for row in rows]


def _request(row: asyncpg.Record) -> Request:
    members = dict(row)
    for amount in ("amount", "predicted_amount", "mint_amount"):
        members[amount] = None if members[amount] is None else int(members[amount])
    members["state"] = State(members["state"])
    members["chain_status"] = ChainStatus(members["chain_status"])
    return Request(**members)


def _counts(document: str) -> dict[str, int]:
    counts: dict[str, int] = json.loads(document)
    return counts
