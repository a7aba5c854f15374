"""What must move, and what is said when it does not."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.watchdog import ChainWatch, Limits

FOLLOWED = ChainWatch().saw_head(100, 0.0).saw_finalized(90, 0.0)


def test_nothing_is_wrong_before_anything_was_seen() -> None:
    assert ChainWatch().troubles(Limits(), 1e9) == ()


def test_the_limit_follows_the_chains_own_pace_within_bounds() -> None:
    slow, fast = ChainWatch().saw_head(0, 0.0), ChainWatch().saw_head(0, 0.0)
    for number in range(1, 60):
        slow, fast = slow.saw_head(number, 12.0 * number), fast.saw_head(number, 0.25 * number)
    assert slow.block_seconds == pytest.approx(12)
    assert slow.head_limit_seconds(Limits()) == pytest.approx(120)
    assert fast.head_limit_seconds(Limits()) == 60
    assert ChainWatch().head_limit_seconds(Limits()) == 120
    assert fast.head_limit_seconds(Limits(head_seconds=5)) == 5
    assert fast.head_limit_seconds(Limits(head_seconds=0)) == math.inf


def test_a_head_that_stands_still_is_a_trouble_until_a_new_one_comes() -> None:
    """Hard case 28."""
    limits = Limits(head_seconds=60)
    assert FOLLOWED.troubles(limits, 60.0) == ()
    (sentence,) = FOLLOWED.troubles(limits, 61.0)
    assert "no new head after block 100 for 61 s" in sentence
    # Neither the same head nor a lower one is news.
    assert FOLLOWED.saw_head(100, 61.0).saw_head(99, 61.0).troubles(limits, 61.0) == (sentence,)
    assert FOLLOWED.saw_head(101, 61.0).troubles(limits, 61.0) == ()


def test_a_head_that_one_answer_made_up_is_not_waited_for() -> None:
    """Hard case 7: neither a backend that is behind nor two that take turns are a chain that goes on below."""
    limits = Limits(head_seconds=60)
    watch = FOLLOWED.saw_head(10**9, 1.0)
    for number in range(101, 105):
        watch = watch.saw_head(number, 12.0 * (number - 100))
    assert watch.troubles(limits, 100.0) == ()
    assert watch.saw_head(105, 100.0).head == 105
    halted = FOLLOWED
    for seconds in range(61):
        halted = halted.saw_head(98 + seconds % 3, float(seconds))
    (sentence,) = halted.troubles(limits, 61.0)
    assert "no new head after block 100 for 61 s" in sentence


def test_finality_that_stands_still_while_the_head_moves_is_a_trouble() -> None:
    """Hard case 12."""
    limits = Limits(head_seconds=60, finality_seconds=1_000)
    moving = FOLLOWED.saw_head(200, 1_001.0)
    (sentence,) = moving.troubles(limits, 1_001.0)
    assert "finality has stood at block 90" in sentence
    assert moving.saw_finalized(90, 1_001.0).troubles(limits, 1_001.0) == (sentence,)
    assert moving.saw_finalized(91, 1_001.0).troubles(limits, 1_001.0) == ()
    assert moving.troubles(Limits(finality_seconds=0), 1_001.0) == ()


def test_a_chain_that_stopped_is_one_trouble_and_a_chain_without_the_tag_none_of_finality() -> None:
    limits = Limits(head_seconds=60, finality_seconds=60)
    assert len(FOLLOWED.troubles(limits, 1e6)) == 1
    assert ChainWatch().saw_head(1, 0.0).saw_head(2, 1e6).troubles(limits, 1e6) == ()


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.floats(0, 1e6)), min_size=1, max_size=30))
def test_no_numbers_of_a_node_make_the_limits_absurd(heads: list[tuple[int, float]]) -> None:
    """Hard case 49."""
    watch, now = ChainWatch(), 0.0
    for number, seconds in heads:
        now += seconds
        watch = watch.saw_head(number, now)
    assert watch.head in {number for number, _ in heads}
    assert 60 <= watch.head_limit_seconds(Limits()) <= 1_800
    assert 3 <= watch.lag_blocks() <= 200
