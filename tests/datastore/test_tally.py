"""What /metrics and /status count, against the rows themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import asyncpg
import pytest

from bench.aged import MISCOUNTED
from datastore import claims, following, status, tally
from datastore.alarms import OF_STRANGERS, AlarmKind
from datastore.connection import Connection, Pool, Role, open_pool
from datastore.rows import Block, LogRow
from datastore.tally import BOUNDS_BLOCKS, BOUNDS_SECONDS, Histogram, Totals
from tests.datastore.builders import (
    CHAIN,
    RULES,
    TOKEN,
    basket,
    batch,
    block,
    hash_of,
    mint,
    pin_chain,
    report,
    request,
    role_change,
)
from tests.datastore.workers import WORKFLOW, Worker, execution_ids


@pytest.fixture
async def owner(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def _two_duplicates_and_a_reorg(pool: Pool) -> None:
    start = await pin_chain(pool)
    first, second = block(1), block(2)
    wanted = request("first", first, bank="deposit")
    again = request("again", first, log_index=1, bank="deposit")
    await following.commit(pool, CHAIN, batch(first, second, on=start, requests=(wanted, again)), RULES)
    fork = (block(2, fork="b", parent_fork="a"), block(3, fork="b"))
    await following.commit(pool, CHAIN, batch(*fork, on=first, leaving=second, final=1), RULES)


async def _folded(pool: Pool) -> None:
    while await tally.fold(pool, CHAIN):
        pass


async def _nothing(_: Pool) -> None:
    pass


async def _miscounted(connection: Connection | Pool) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await connection.fetch(MISCOUNTED)]


@pytest.mark.parametrize("between", [_folded, _nothing], ids=["folded", "not folded"])
async def test_every_row_is_counted_once_however_often_it_is_read(
    indexer_pool: Pool, between: Callable[[Pool], Awaitable[None]]
) -> None:
    assert (await tally.read(indexer_pool, CHAIN)).transitions == {}
    await _two_duplicates_and_a_reorg(indexer_pool)
    first = await tally.read(indexer_pool, CHAIN)
    assert first.transitions == {("seen", "confirmed"): 1, ("seen", "rejected"): 1}
    assert first.duplicates == {"bank_reference": 1, "request_id": 0}
    assert sum(first.stages["seen"].counts) == 2
    assert sum(first.reorg_depth.counts) == 1
    assert first.reorg_depth.total == 1
    await between(indexer_pool)
    assert await tally.read(indexer_pool, CHAIN) == first

    # A mint that nobody asked us for is an alarm, and one more of nothing else.
    tip, stranger = block(4, fork="b"), request("stranger", block(4, fork="b"))
    await following.commit(
        indexer_pool, CHAIN, batch(tip, on=block(3, fork="b"), mints=(mint(tip, of=stranger),)), RULES
    )
    await between(indexer_pool)
    second = await tally.read(indexer_pool, CHAIN)
    assert {kind: times for kind, times in second.alarms.items() if times} == {("unattributed_mint", False): 1}
    assert set(second.alarms) == {(kind, True) for kind in AlarmKind} | {(kind, False) for kind in OF_STRANGERS}
    assert second.transitions == first.transitions
    assert await _miscounted(indexer_pool) == []


async def test_a_request_that_is_recorded_as_judged_was_seen_for_no_time(indexer_pool: Pool) -> None:
    start, only = await pin_chain(indexer_pool), block(1)
    alone = request("alone", only, bank="its own deposit")
    await following.commit(indexer_pool, CHAIN, batch(only, on=start, requests=(alone,), final=1), RULES)
    totals = await tally.read(indexer_pool, CHAIN)
    assert totals.transitions == {("seen", "confirmed"): 1}
    assert totals.stages["seen"].counts[0] == 1
    assert totals.stages["seen"].total == 0


async def test_a_request_from_its_block_to_its_mint_is_counted_as_its_rows_are(
    indexer_pool: Pool, invocator_pool: Pool
) -> None:
    start, one, two = await pin_chain(indexer_pool), block(1), block(2)
    asked = (request("a", one), request("b", one, log_index=1), request("c", one, log_index=2, bank="a"))
    made = batch(one, on=start, baskets=(basket(one, log_index=9),), logs=(_log(one, 0),), requests=asked, final=1)
    await following.commit(indexer_pool, CHAIN, made, RULES)
    await claims.list_workflows(invocator_pool, CHAIN, [WORKFLOW])
    worker = Worker(pool=invocator_pool)
    order = await worker.send(1)
    await worker.send(2, "refused_now")
    await worker.claimed(2)
    minted = batch(
        two,
        on=one,
        mints=(mint(two, of=asked[0]),),
        reports=(report(two, execution_id=execution_ids(order)[0]),),
        role_changes=(role_change(two),),
        final=2,
    )
    await following.commit(indexer_pool, CHAIN, minted, RULES)
    totals = await tally.read(indexer_pool, CHAIN)
    assert totals.attempts == {"accepted": 1, "refused_now": 1}
    assert sum(totals.attempt_seconds.counts) == 2
    assert sum(totals.end_to_end.counts) == 1
    assert totals.transitions["executed", "completed"] == 1
    for _ in range(2):
        assert await _miscounted(indexer_pool) == []
        await _folded(indexer_pool)
    shown = await status.snapshot(indexer_pool, CHAIN)
    assert shown is not None
    assert {state: count for state, count in shown.requests.items() if count} == {
        "completed": 1,
        "claimed": 1,
        "rejected": 1,
    }
    assert shown.baskets == 1


def _log(at: Block, log_index: int, *, undecodable: str | None = None) -> LogRow:
    return LogRow(
        block_number=at.number,
        block_hash=at.hash,
        log_index=log_index,
        tx_hash=hash_of("transaction", at.hash),
        tx_index=0,
        address=TOKEN,
        topics=hash_of("topic"),
        data=b"",
        event="MintRequested",
        undecodable=undecodable,
    )


async def test_what_is_found_late_below_a_final_block_is_counted_once(indexer_pool: Pool) -> None:
    start = await pin_chain(indexer_pool)
    blocks = [block(number) for number in range(1, 5)]
    known = (_log(blocks[0], 0, undecodable="unknown"),)
    await following.commit(indexer_pool, CHAIN, batch(*blocks, on=start, logs=known, final=3), RULES)
    await _folded(indexer_pool)
    assert (await tally.read(indexer_pool, CHAIN)).logs == {"MintRequested": 1}

    late = batch(*blocks[:2], on=start, logs=(known[0], _log(blocks[1], 0)), final=3)
    late = replace(late, reports=(report(blocks[1], execution_id=hash_of("execution")),))
    for _ in range(2):  # the second time nothing is new
        await following.record_range(indexer_pool, CHAIN, late, RULES, hold_reason=None)
        found = await tally.read(indexer_pool, CHAIN)
        assert (found.logs, found.undecodable) == ({"MintRequested": 2}, 1)
        assert found.reports == {True: 1, False: 0}

    understood = batch(blocks[0], on=start, logs=(_log(blocks[0], 0),), final=3)
    await following.record_range(indexer_pool, CHAIN, understood, RULES, hold_reason=None)
    assert (await tally.read(indexer_pool, CHAIN)).undecodable == 0
    assert await _miscounted(indexer_pool) == []


async def test_a_reading_reads_what_was_counted_and_no_history(
    indexer_pool: Pool, owner: asyncpg.Connection[asyncpg.Record]
) -> None:
    await _two_duplicates_and_a_reorg(indexer_pool)
    before = await tally.read(indexer_pool, CHAIN)
    # As nothing of ours does: a reading that looked at these rows would notice.
    await owner.execute("SET session_replication_role = replica; DELETE FROM mint_transition; DELETE FROM reorg")
    assert await tally.read(indexer_pool, CHAIN) == before


async def test_folding_goes_on_in_steps_and_several_at_once_fold_each_delta_once(
    indexer_pool: Pool, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _two_duplicates_and_a_reorg(indexer_pool)
    before = await tally.read(indexer_pool, CHAIN)
    deltas = await indexer_pool.fetchval("SELECT count(*) FROM tally_delta")
    monkeypatch.setattr(tally, "FOLDED_AT_ONCE", 1)
    async with await open_pool(dsn, Role.INDEXER) as other:
        more = await asyncio.gather(*(tally.fold(pool, CHAIN) for pool in (indexer_pool, other) * deltas))
    assert sum(more) == deltas
    assert await indexer_pool.fetchval("SELECT count(*) FROM tally_delta") == 0
    assert await tally.read(indexer_pool, CHAIN) == before
    assert await _miscounted(indexer_pool) == []


async def test_who_counts_waits_for_nobody_and_nobody_waits_for_it(
    indexer_pool: Pool, invocator_pool: Pool, owner: asyncpg.Connection[asyncpg.Record]
) -> None:
    """A commit of the indexer, one of the invocator and a fold, all open at once, about the same states."""
    start, one = await pin_chain(indexer_pool), block(1)
    asked = tuple(request(name, one, log_index=n) for n, name in enumerate("ab"))
    await following.commit(indexer_pool, CHAIN, batch(one, on=start, requests=asked, final=1), RULES)
    for role in ("bskt_indexer", "bskt_invocator"):
        await owner.execute(f"GRANT {role} TO current_user")
    async with invocator_pool.acquire() as worker, worker.transaction(), owner.transaction():
        await worker.execute("UPDATE mint_request SET state = 'review', state_reason = 'preflight' WHERE id = 1")
        await owner.execute("SET LOCAL lock_timeout = '1s'; SET LOCAL ROLE bskt_indexer")
        await owner.execute("UPDATE mint_request SET state = 'review', state_reason = 'preflight' WHERE id = 2")
        await owner.fetchval("SELECT fold_tally($1, 100)", CHAIN)
        # Again and by another one, while the first fold is open: what that has taken is left to it.
        async with indexer_pool.acquire() as third:
            await third.execute("SET lock_timeout = '1s'")
            assert await third.fetchval("SELECT fold_tally($1, 100)", CHAIN) == 0
            await third.execute("RESET lock_timeout")
    await _folded(indexer_pool)
    assert await _miscounted(indexer_pool) == []


async def test_another_chain_counts_for_itself(indexer_pool: Pool) -> None:
    await _two_duplicates_and_a_reorg(indexer_pool)
    assert await tally.read(indexer_pool, CHAIN + 1) == Totals()


@pytest.mark.parametrize(("function", "bounds"), [("seconds_bucket", BOUNDS_SECONDS), ("blocks_bucket", BOUNDS_BLOCKS)])
async def test_the_triggers_and_the_metrics_have_the_same_bounds(
    indexer_pool: Pool, function: str, bounds: tuple[float, ...]
) -> None:
    values = sorted({0.0, *map(float, bounds), *(bound * 1.01 for bound in bounds)})
    rows = await indexer_pool.fetch(f"SELECT {function}(v) FROM unnest($1::float8[]) v", values)  # noqa: S608 - our own names
    assert [row[0] for row in rows] == [sum(bound <= value for bound in bounds) for value in values]


def test_a_histogram_has_a_bucket_for_what_is_above_every_bound() -> None:
    histogram = Histogram(BOUNDS_SECONDS)
    histogram.add(len(BOUNDS_SECONDS), 2, 1e6)
    assert histogram.counts[-1] == 2
    assert histogram.total == 1e6
