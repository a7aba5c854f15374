"""What the hot statements cost: they read partial indexes of open requests, and history makes none of them slower."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from datastore import basket_standings, claims
from datastore.connection import Pool
from tests.datastore.builders import CHAIN, block, request
from tests.datastore.workers import confirmed

OPEN = 40
FINISHED = 20_000
HOUR = timedelta(hours=1)
REASONS = list(claims.HELD_FOR_NOW)

# Each statement and its arguments.
HOT: dict[str, tuple[str, list[object]]] = {
    "waiting": (claims._WAITING, [CHAIN, 50, False, 3, 4, 2, False, [], []]),
    "waiting, only allowed": (claims._WAITING, [CHAIN, 50, False, 3, 4, 2, True, [], []]),
    "waiting, with a busy workflow": (
        claims._WAITING,
        [CHAIN, 50, False, 3, 4, 2, False, [bytes(32), b"\1" * 32], [bytes(32)]],
    ),
    "gate": (claims._GATE, [CHAIN]),
    "in flight": (claims._OTHERS_IN_FLIGHT, [CHAIN, 1]),
    "standing": (basket_standings._STANDING, [CHAIN, 1]),
    "due": (claims._DUE, [CHAIN, 50]),
    "leases": (claims._OVERDUE_LEASES, [CHAIN]),
    "deadlines": (claims._OVERDUE_DEADLINES, [CHAIN]),
    "doubts": (claims._OVERDUE_DOUBTS, [CHAIN, HOUR, HOUR, 5]),
    "resends": (claims._OVERDUE_RESENDS, [CHAIN, HOUR]),
    "holds": (claims._RELEASE_HOLDS, [CHAIN, REASONS]),
    "claim": (claims._CLAIM, [CHAIN, [1, 2, 3], uuid4(), HOUR, 2]),
}

# Through which requests may be found: indexes of open requests, and a request's own id.
FRUGAL = {
    "mint_request_to_claim",
    "mint_request_in_flight",
    "mint_request_to_resend",
    "mint_request_with_lease",
    "mint_request_not_delivered",
    "mint_request_held",
    "mint_request_held_for",
    "mint_request_pkey",
}

# Requests that ended, in every end, with an attempt each; as a replica would apply them, without triggers.
HISTORY = """
INSERT INTO mint_request (
    chain_id, identity, nonce, emitter, tx_hash, block_hash, block_number, block_timestamp, log_index, chain_status,
    stablecoin, consumer, requester, beneficiary, amount, bank_reference, expected_reference, state, state_reason,
    holds_reference, deadline_at, next_attempt_at
)
SELECT
    chain_id, sha256(('i' || n)::bytea), gen_random_uuid(), emitter, tx_hash, sha256(('b' || n)::bytea), n, 0, 0,
    'finalized', stablecoin, consumer, requester, beneficiary, amount, sha256(('r' || n)::bytea), bank_reference,
    (ARRAY['completed', 'completed', 'completed', 'failed', 'rejected', 'review'])[n % 6 + 1],
    (ARRAY['', '', '', 'delivery_failed', 'amount_zero', 'gave_up'])[n % 6 + 1],
    n % 6 <> 4, clock_timestamp() - interval '1 day', clock_timestamp() - interval '1 day'
FROM generate_series(1, $1::bigint) n
CROSS JOIN (SELECT * FROM mint_request ORDER BY id LIMIT 1) one
"""
ATTEMPTS = """
INSERT INTO attempt (request_id, attempt_no, generation, claim_no, worker_id, jti, started_at, answered_at, outcome)
SELECT
    id, 1, 0, 1, gen_random_uuid(), gen_random_uuid(), now() - interval '2 days', now(), 'accepted'
FROM mint_request WHERE state NOT IN ('confirmed', 'rejected')
"""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def reads_requests(node: dict[str, Any]) -> bool:
    """Whether a node of a plan finds rows of ``mint_request``; a bitmap's heap scan reads what its index scan found."""
    of_index = node["Node Type"] == "Bitmap Index Scan" and node["Index Name"].startswith("mint_request")
    of_table = node.get("Relation Name") == "mint_request" and "Scan" in node["Node Type"]
    return of_index or (of_table and node["Node Type"] != "Bitmap Heap Scan")


async def explained(connection: Any, statement: str, arguments: list[object]) -> dict[str, Any]:
    transaction = connection.transaction()
    await transaction.start()
    try:
        text = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *arguments)
    finally:
        await transaction.rollback()
    plan: dict[str, Any] = json.loads(text)[0]["Plan"]
    return plan


def buffers(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.fixture
async def owner(dsn: str, indexer_pool: Pool) -> Any:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(OPEN)))
    connection = await asyncpg.connect(dsn)
    await connection.execute("SET session_replication_role = replica")
    yield connection
    await connection.close()


async def test_hot_statements_read_partial_indexes_and_cost_the_same_after_a_long_history(owner: Any) -> None:
    await owner.execute("VACUUM ANALYZE mint_request")
    before = {
        name: buffers(await explained(owner, statement, arguments)) for name, (statement, arguments) in HOT.items()
    }
    await owner.execute(HISTORY, FINISHED)
    await owner.execute(ATTEMPTS)
    await owner.execute("VACUUM ANALYZE mint_request")
    await owner.execute("VACUUM ANALYZE attempt")
    for name, (statement, arguments) in HOT.items():
        plan = await explained(owner, statement, arguments)
        used = {node.get("Index Name", node["Node Type"]) for node in nodes(plan) if reads_requests(node)}
        assert used, (name, plan)
        assert used <= FRUGAL, (name, used)
        # A deeper index costs a block or two a look-up; a look at history would cost thousands.
        assert buffers(plan) <= 2 * before[name] + 20, (name, before[name], buffers(plan))


# Baskets of one waiting request each, as a replica would apply them, without triggers.  $1 first, $2 last number
HOSTILE = """
INSERT INTO mint_request (
    chain_id, identity, nonce, emitter, tx_hash, block_hash, block_number, block_timestamp, log_index, chain_status,
    stablecoin, consumer, requester, beneficiary, amount, bank_reference, expected_reference, state, holds_reference
)
SELECT
    chain_id, sha256(('hi' || n)::bytea), gen_random_uuid(), emitter, tx_hash, sha256(('hb' || n)::bytea), n, 0, 0,
    'finalized', substr(sha256(('h' || n)::bytea), 1, 20), consumer, requester, beneficiary, amount,
    sha256(('hr' || n)::bytea), sha256(('hr' || n)::bytea), 'confirmed', true
FROM generate_series($1::bigint, $2::bigint) n
CROSS JOIN (SELECT * FROM mint_request ORDER BY id LIMIT 1) one
"""
BLOCKS_A_HOSTILE_BASKET = 8
"""What a look at the queue reads for each: twice down an index of three levels, and its row."""


async def test_a_hostile_basket_costs_a_look_a_few_blocks_and_nothing_where_only_listed_ones_are_sent_for(
    owner: Any,
) -> None:
    await owner.execute(
        "INSERT INTO basket_standing (chain_id, stablecoin, allowed, allowed_at, allowed_reason)"
        " SELECT DISTINCT chain_id, stablecoin, true, now(), 'a test' FROM mint_request"
    )
    costs: dict[int, tuple[int, int]] = {}
    for known, hostile in ((0, 0), (0, 1_000), (1_000, 10_000)):
        await owner.execute(HOSTILE, known + 1, hostile)
        await owner.execute("VACUUM ANALYZE mint_request")
        every, listed = [
            await explained(owner, claims._WAITING, [CHAIN, 50, False, 3, 4, 2, only_allowed, [], []])
            for only_allowed in (False, True)
        ]
        costs[hostile] = buffers(every), buffers(listed)
    for hostile in (1_000, 10_000):
        assert costs[hostile][0] - costs[0][0] <= BLOCKS_A_HOSTILE_BASKET * hostile
    assert costs[10_000][1] <= costs[1_000][1] + 20


async def test_the_day_s_sum_reads_the_attempts_of_the_day_only(owner: Any) -> None:
    await owner.execute(HISTORY, FINISHED)
    await owner.execute(ATTEMPTS)
    await owner.execute("VACUUM ANALYZE mint_request")
    await owner.execute("VACUUM ANALYZE attempt")
    plan = await explained(owner, claims._SENT_TODAY, [CHAIN, 1])
    assert "attempt_by_start" in {node.get("Index Name") for node in nodes(plan)}
    assert buffers(plan) < 20
