"""What is learnt of an endpoint, for how long, and how it is found out again."""

import math

from hypothesis import given
from hypothesis import strategies as st

from node.capabilities import HANG_SECONDS, MAX_BATCH, RELEARN_SECONDS, Capabilities, Feature


def test_an_endpoint_is_taken_to_have_everything_until_it_shows_otherwise() -> None:
    fresh = Capabilities()
    assert all(fresh.has(feature, 0.0) for feature in Feature)
    assert fresh.batch_at(0.0) == MAX_BATCH


def test_what_is_lacking_is_asked_for_again_after_a_while_and_has_then_to_show_itself() -> None:
    known = Capabilities().without(Feature.BLOCK_RECEIPTS, 10.0)
    assert not known.has(Feature.BLOCK_RECEIPTS, 10.0 + RELEARN_SECONDS - 1)
    assert known.has(Feature.LOGS_BY_TOPIC, 10.0)
    assert known.has(Feature.BLOCK_RECEIPTS, 10.0 + RELEARN_SECONDS)
    assert known.having(Feature.BLOCK_RECEIPTS).has(Feature.BLOCK_RECEIPTS, 10.0)


def test_what_hung_is_passed_over_for_a_short_time() -> None:
    known = Capabilities().without(Feature.LOGS_BY_TOPIC, 0.0, seconds=HANG_SECONDS)
    assert not known.has(Feature.LOGS_BY_TOPIC, HANG_SECONDS - 1)
    assert known.has(Feature.LOGS_BY_TOPIC, HANG_SECONDS)


def test_batches_grow_again_some_time_after_the_last_refusal_until_the_next_one() -> None:
    known = Capabilities().refused_batch(MAX_BATCH, 0.0)
    assert known.batch_at(RELEARN_SECONDS - 1) == MAX_BATCH // 2
    for size in (12, 6, 3):
        known = known.refused_batch(2 * size, 0.0)
    assert known.batch_at(0.0) == 3
    sizes = []
    while (size := known.batch_at(RELEARN_SECONDS)) <= 20:
        sizes.append(size)
        known = known.answered_batch(size)
    assert sizes == [6, 12]
    known = known.refused_batch(24, RELEARN_SECONDS)
    assert known.batch_at(RELEARN_SECONDS + 1) == 12


def test_a_range_that_is_answered_overcomes_a_refusal_of_no_more_blocks() -> None:
    known = Capabilities().answered_range(2_000).refused_range(100).refused_range(50).answered_range(25)
    assert (known.answered_blocks, known.refused_blocks) == (49, 50)
    assert known.answered_range(50).refused_blocks is None


@given(
    st.lists(st.tuples(st.sampled_from(("refuse", "answer")), st.integers(1, 200), st.floats(0, 5_000)), max_size=60)
)
def test_a_batch_always_has_a_question_and_never_more_than_the_most(events: list[tuple[str, int, float]]) -> None:
    known, now = Capabilities(), 0.0
    for event, size, seconds in events:
        now += seconds
        known = known.refused_batch(size, now) if event == "refuse" else known.answered_batch(min(size, MAX_BATCH))
        assert 1 <= known.batch_at(now) <= MAX_BATCH
    assert known.batch_at(math.inf) >= 1
