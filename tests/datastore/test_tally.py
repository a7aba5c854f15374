"""What /metrics counts, against what was done to the rows."""

from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest

from datastore import following
from datastore.alarms import AlarmKind
from datastore.connection import Pool
from datastore.rows import Block, LogRow
from datastore.tally import BOUNDS_SECONDS, Histogram, Tally, Totals
from tests.datastore.builders import (
    CHAIN,
    RULES,
    TOKEN,
    batch,
    block,
    hash_of,
    mint,
    pin_chain,
    report,
    request,
)


async def _two_duplicates_and_a_reorg(pool: Pool) -> None:
    start = await pin_chain(pool)
    first, second = block(1), block(2)
    wanted = request("first", first, bank="deposit")
    again = request("again", first, log_index=1, bank="deposit")
    await following.commit(pool, CHAIN, batch(first, second, on=start, requests=(wanted, again)), RULES)
    fork = (block(2, fork="b", parent_fork="a"), block(3, fork="b"))
    await following.commit(pool, CHAIN, batch(*fork, on=first, leaving=second, final=1), RULES)


@pytest.mark.parametrize("settled_after", [timedelta(0), timedelta(hours=1)], ids=["all settled", "all fresh"])
async def test_every_row_is_counted_once_however_often_it_is_read(indexer_pool: Pool, settled_after: timedelta) -> None:
    tally = Tally(CHAIN, settled_after=settled_after)
    assert (await tally.read(indexer_pool)).transitions == {}
    await _two_duplicates_and_a_reorg(indexer_pool)
    first = await tally.read(indexer_pool)
    assert first.transitions == {("seen", "confirmed"): 1, ("seen", "rejected"): 1}
    assert first.duplicates == {"bank_reference": 1, "request_id": 0}
    assert sum(first.stages["seen"].counts) == 2
    assert sum(first.reorg_depth.counts) == 1
    assert first.reorg_depth.total == 1
    assert await tally.read(indexer_pool) == first

    # A mint that nobody asked us for is an alarm, and one more of nothing else.
    tip, stranger = block(4, fork="b"), request("stranger", block(4, fork="b"))
    await following.commit(
        indexer_pool, CHAIN, batch(tip, on=block(3, fork="b"), mints=(mint(tip, of=stranger),)), RULES
    )
    second = await tally.read(indexer_pool)
    assert {kind: times for kind, times in second.alarms.items() if times} == {"unattributed_mint": 1}
    assert set(second.alarms) == set(AlarmKind)
    assert second.transitions == first.transitions


async def test_a_request_that_is_recorded_as_judged_was_seen_for_no_time(indexer_pool: Pool) -> None:
    start, only = await pin_chain(indexer_pool), block(1)
    alone = request("alone", only, bank="its own deposit")
    await following.commit(indexer_pool, CHAIN, batch(only, on=start, requests=(alone,), final=1), RULES)
    totals = await Tally(CHAIN).read(indexer_pool)
    assert totals.transitions == {("seen", "confirmed"): 1}
    assert totals.stages["seen"].counts[0] == 1
    assert totals.stages["seen"].total == 0


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


async def test_what_is_found_late_below_a_final_block_is_counted_by_who_counted_that_block_before(
    indexer_pool: Pool,
) -> None:
    """A replica that has just started must not say otherwise."""
    start = await pin_chain(indexer_pool)
    blocks = [block(number) for number in range(1, 5)]
    tally = Tally(CHAIN)

    async def counted(pool: Pool) -> Totals:
        totals = await tally.read(pool)
        assert totals == await Tally(CHAIN).read(pool)
        return totals

    known = (_log(blocks[0], 0, undecodable="unknown"),)
    await following.commit(indexer_pool, CHAIN, batch(*blocks, on=start, logs=known, final=3), RULES)
    assert (await counted(indexer_pool)).logs == {"MintRequested": 1}

    late = batch(*blocks[:2], on=start, logs=(known[0], _log(blocks[1], 0)), final=3)
    late = replace(late, reports=(report(blocks[1], execution_id=hash_of("execution")),))
    for _ in range(2):  # the second time nothing is new
        await following.record_range(indexer_pool, CHAIN, late, RULES, hold_reason=None)
        found = await counted(indexer_pool)
        assert (found.logs, found.undecodable) == ({"MintRequested": 2}, 1)
        assert found.reports == {True: 1, False: 0}
        assert await indexer_pool.fetchval("SELECT history_version FROM cursor") == 1

    understood = batch(blocks[0], on=start, logs=(_log(blocks[0], 0),), final=3)
    await following.record_range(indexer_pool, CHAIN, understood, RULES, hold_reason=None)
    assert (await counted(indexer_pool)).undecodable == 0


async def test_what_is_final_is_read_once_while_nothing_is_found_late(indexer_pool: Pool, dsn: str) -> None:
    """A scrape must not cost the whole history."""
    start = await pin_chain(indexer_pool)
    blocks = [block(number) for number in range(1, 5)]
    logs = tuple(_log(at, 0) for at in blocks)
    await following.commit(indexer_pool, CHAIN, batch(*blocks, on=start, logs=logs, final=3), RULES)
    tally = Tally(CHAIN)
    assert (await tally.read(indexer_pool)).logs == {"MintRequested": 4}
    owner = await asyncpg.connect(dsn)
    try:  # as nothing of ours does: whoever reads these blocks again would notice
        await owner.execute("DELETE FROM log WHERE block_number = 1")
    finally:
        await owner.close()
    assert (await tally.read(indexer_pool)).logs == {"MintRequested": 4}


async def test_another_chain_counts_for_itself(indexer_pool: Pool) -> None:
    await _two_duplicates_and_a_reorg(indexer_pool)
    assert await Tally(CHAIN + 1).read(indexer_pool) == Totals()


def test_a_histogram_has_a_bucket_for_what_is_above_every_bound() -> None:
    histogram = Histogram(BOUNDS_SECONDS)
    histogram.add(len(BOUNDS_SECONDS), 2, 1e6)
    assert histogram.counts[-1] == 2
    assert histogram.total == 1e6
