"""Empty blocks that are final and compared are deleted, in bounded steps; nothing else is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import asyncpg
import pytest

from datastore import following, sweeping
from datastore.connection import Pool
from datastore.rows import Block
from tests.datastore.builders import CHAIN, RULES, basket, batch, block, pin_chain, request

WITH_LOGS = 4
FINAL, COMPARED = 8, 6


@pytest.fixture
async def owner(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def numbers(pool: Pool) -> list[int]:
    return [row["number"] for row in await pool.fetch("SELECT number FROM block WHERE canonical ORDER BY number")]


async def compared(pool: Pool, up_to: int) -> None:
    at = await sweeping.position(pool, CHAIN)
    await sweeping.conclude(
        pool, CHAIN, swept=(at.swept + 1, up_to), differences=(), repair=None, rules=RULES, sentence="a test"
    )


@pytest.fixture
async def ten(indexer_pool: Pool, owner: asyncpg.Connection[asyncpg.Record]) -> Block:
    """Ten blocks, eight of them final and six compared, one with logs, and an orphaned one beside the third."""
    genesis = await pin_chain(indexer_pool)
    three = [block(number) for number in (1, 2)] + [block(3, fork="b", parent_fork="a")]
    await following.commit(indexer_pool, CHAIN, batch(*three, on=genesis), RULES)
    rest = [block(number) for number in range(3, 11)]
    asked, made = request("asked", rest[1], log_index=1), basket(rest[1])
    await following.commit(
        indexer_pool,
        CHAIN,
        batch(*rest, on=block(2), leaving=three[-1], final=FINAL, baskets=(made,), requests=(asked,)),
        RULES,
    )
    await owner.execute(
        "INSERT INTO log (chain_id, block_hash, log_index, block_number, tx_hash, tx_index, address, topics, data,"
        " event) "
        "VALUES ($1, $2, 1, $3, sha256('tx'), 0, $4, '', '', 'MintRequested')",
        CHAIN,
        rest[1].hash,
        WITH_LOGS,
        bytes(20),
    )
    await compared(indexer_pool, COMPARED)
    return rest[-1]


async def test_empty_blocks_below_what_is_final_and_compared_are_deleted_and_nothing_else(
    indexer_pool: Pool, owner: asyncpg.Connection[asyncpg.Record], ten: Block
) -> None:
    assert await numbers(indexer_pool) == list(range(11))
    assert not await sweeping.prune(indexer_pool, CHAIN)
    assert await numbers(indexer_pool) == [0, WITH_LOGS, *range(COMPARED, ten.number + 1)]
    assert await owner.fetchval("SELECT count(*) FROM block WHERE NOT canonical") == 1
    # The newest final block stays when all of them are compared.
    await compared(indexer_pool, FINAL)
    assert not await sweeping.prune(indexer_pool, CHAIN)
    assert await numbers(indexer_pool) == [0, WITH_LOGS, *range(FINAL, ten.number + 1)]


async def test_a_step_is_bounded_and_the_next_one_goes_on(
    indexer_pool: Pool, ten: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "BLOCKS_A_STEP", 2)
    steps = 1
    while await sweeping.prune(indexer_pool, CHAIN):
        steps += 1
    assert steps == 3  # blocks 1 and 2, 3 and 4, 5
    assert await numbers(indexer_pool) == [0, WITH_LOGS, *range(COMPARED, ten.number + 1)]


async def test_before_anything_is_compared_nothing_is_deleted(indexer_pool: Pool) -> None:
    genesis = await pin_chain(indexer_pool)
    blocks = [block(number) for number in range(1, 6)]
    await following.commit(indexer_pool, CHAIN, batch(*blocks, on=genesis, final=5), RULES)
    assert not await sweeping.prune(indexer_pool, CHAIN)
    assert await numbers(indexer_pool) == list(range(6))


async def test_a_step_waits_for_no_lock(
    indexer_pool: Pool, owner: asyncpg.Connection[asyncpg.Record], ten: Block
) -> None:
    """And deletes nothing then: the transaction that holds the lock may be writing a log."""
    for table in ("cursor", "sweep"):
        async with owner.transaction():
            await owner.execute(f"SELECT FROM {table} FOR UPDATE")
            assert not await sweeping.prune(indexer_pool, CHAIN)
        assert await numbers(indexer_pool) == list(range(ten.number + 1))


@pytest.mark.usefixtures("ten")
async def test_a_step_reads_the_blocks_it_looks_at_and_not_the_table(
    owner: asyncpg.Connection[asyncpg.Record],
) -> None:
    await owner.execute(
        "INSERT INTO block (chain_id, hash, number, timestamp)"
        " SELECT $1, sha256(n::text::bytea), n, n FROM generate_series(100, 50100) n",
        CHAIN,
    )
    await owner.execute("UPDATE cursor SET block_number = 50100, finalized_number = 50100, safe_number = 50100")
    await owner.execute("UPDATE sweep SET block_number = 50100")
    await owner.execute("ANALYZE block")
    text = await owner.fetchval("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT prune_blocks($1, 100)", CHAIN)
    plan = json.loads(text)[0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 2_000
    assert await owner.fetchval("SELECT pruned_number FROM sweep") == 189
