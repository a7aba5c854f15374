"""What /metrics counts, against what was done to the rows."""

from datetime import timedelta

import pytest

from datastore import following
from datastore.alarms import AlarmKind
from datastore.connection import Pool
from datastore.tally import BOUNDS_SECONDS, Histogram, Tally, Totals
from tests.datastore.builders import CHAIN, RULES, batch, block, mint, pin_chain, request


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


async def test_another_chain_counts_for_itself(indexer_pool: Pool) -> None:
    await _two_duplicates_and_a_reorg(indexer_pool)
    assert await Tally(CHAIN + 1).read(indexer_pool) == Totals()


def test_a_histogram_has_a_bucket_for_what_is_above_every_bound() -> None:
    histogram = Histogram(BOUNDS_SECONDS)
    histogram.add(len(BOUNDS_SECONDS), 2, 1e6)
    assert histogram.counts[-1] == 2
    assert histogram.total == 1e6
