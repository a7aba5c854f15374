import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.filters import by_address_is_cheaper, calls_by_address
from indexer.ranges import FIRST_RANGE_BLOCKS, LOGS_A_RANGE, RangeSize, next_range


def test_a_sparse_chain_is_soon_read_in_the_largest_ranges() -> None:
    size, sizes = RangeSize.at_first(2_000), []
    for _ in range(4):
        sizes.append(size.blocks)
        size = size.answered(blocks=size.blocks, logs=0)
    assert sizes == [128, 512, 2_000, 2_000]


def test_a_dense_chain_is_read_in_ranges_of_about_so_many_logs() -> None:
    first = RangeSize.at_first(2_000)
    assert first.answered(blocks=first.blocks, logs=first.blocks * 200).blocks == LOGS_A_RANGE // 200


def test_a_refusal_halves_and_growth_is_careful_from_then_on() -> None:
    size = RangeSize(blocks=2_000, ceiling=2_000).refused(2_000)
    assert size.blocks == 1_000
    assert size.answered(blocks=1_000, logs=0).blocks == 1_250


def test_one_block_is_never_halved() -> None:
    assert RangeSize(blocks=1, ceiling=10).refused(1).blocks == 1


def test_the_first_range_is_small() -> None:
    assert RangeSize.at_first(1_000_000).blocks == FIRST_RANGE_BLOCKS
    assert RangeSize.at_first(10).blocks == 10


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 100_000)), max_size=50),
    st.integers(1, 10_000),
    st.integers(0, 10**6),
    st.integers(1, 10**6),
)
def test_whatever_a_node_answers_a_range_has_between_one_block_and_the_ceiling(
    answers: list[tuple[bool, int]], ceiling: int, cursor: int, more: int
) -> None:
    size = RangeSize.at_first(ceiling)
    for refused, logs in answers:
        size = size.refused(size.blocks) if refused else size.answered(blocks=size.blocks, logs=logs)
        assert 1 <= size.blocks <= ceiling
        first, last = next_range(cursor, cursor + more, size)
        assert first == cursor + 1
        assert first <= last <= cursor + more


@pytest.mark.parametrize(
    ("baskets", "foreign_logs", "cheaper"),
    [
        (0, 0, False),
        (50, 0, False),  # nobody else speaks: one call by topic has it all
        (50, 2_000, False),
        (50, 2_001, True),  # one more call is worth it
        (10_000, 15_000, False),  # forty more calls never are
    ],
)
def test_by_address_is_chosen_by_what_it_costs(baskets: int, foreign_logs: int, cheaper: bool) -> None:
    found = by_address_is_cheaper(baskets=baskets, foreign_logs=foreign_logs, max_filter_addresses=500)
    assert found is cheaper


def test_each_basket_is_asked_for_with_two_addresses() -> None:
    assert calls_by_address(baskets=0, max_filter_addresses=500) == 1
    assert calls_by_address(baskets=250, max_filter_addresses=500) == 2
    assert calls_by_address(baskets=251, max_filter_addresses=500) == 3


def test_a_short_range_that_was_refused_is_halved_itself() -> None:
    assert RangeSize(blocks=2_000, ceiling=2_000).refused(14).blocks == 7


def test_an_endpoint_that_hangs_at_every_range_is_asked_about_one_block_after_few_time_outs() -> None:
    size, sizes = RangeSize(blocks=2_000, ceiling=2_000), []
    while size.blocks > 1:
        size = size.refused(size.blocks, is_late=True)
        sizes.append(size.blocks)
    assert sizes == [250, 31, 3, 1]
