"""An endpoint is a state machine: which trouble moves it where, and how it comes back."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.health import (
    CIRCUIT_OPENS_AT,
    PROBES_TO_RETURN,
    Budget,
    EndpointState,
    Health,
    order,
)

CHANCE = st.floats(0, 1, exclude_max=True)
Event = Callable[[Health, float, float], Health]
EVENTS: dict[str, Event] = {
    "worked": lambda health, now, _: health.worked(now),
    "failed": lambda health, now, chance: health.failed("why", now, chance),
    "limited": lambda health, now, chance: health.limited("why", now, chance, rest_seconds=None),
    "told to wait": lambda health, now, chance: health.limited("why", now, chance, rest_seconds=7.0),
    "of another chain": lambda health, now, chance: health.is_not_ours(EndpointState.WRONG_CHAIN, "why", now, chance),
    "on another fork": lambda health, now, chance: health.is_not_ours(EndpointState.OTHER_FORK, "why", now, chance),
    "lags": lambda health, now, chance: health.lags("why", now, chance),
    "unknown block": lambda health, now, chance: health.did_not_know_a_block(now, chance),
    "passed probe": lambda health, now, chance: health.passed_probe(now, chance),
    "caught up": lambda health, _now, _chance: health.caught_up(),
}
ALIVE = Health().worked(0.0)


def states(*healths: Health) -> list[EndpointState]:
    return [health.state for health in healths]


def test_the_first_alive_endpoint_in_the_operators_order_is_asked_whatever_the_heads() -> None:
    """Hard case 26."""
    healths = [ALIVE.saw_head(10, 0.0), ALIVE.saw_head(11, 0.0), ALIVE.saw_head(12, 0.0)]
    assert order(healths, 0.0) == (0, 1, 2)


def test_one_failure_moves_the_work_to_the_next_endpoint_but_closes_nothing() -> None:
    failed = ALIVE.failed("no answer", 0.0, 0.0)
    assert failed.state is EndpointState.UNREACHABLE
    assert order([failed, ALIVE], 0.0) == (1, 0)


def test_the_third_failure_in_a_row_opens_the_circuit() -> None:
    """Hard case 24."""
    health = ALIVE
    for _ in range(CIRCUIT_OPENS_AT - 1):
        health = health.failed("no answer", 0.0, 0.5)
        assert order([health], 0.0) == (0,)
    health = health.failed("no answer", 0.0, 0.5)
    assert order([health], 0.0) == ()
    assert order([health], health.rests_until) == (0,)
    assert health.worked(1.0).failures == 0


def test_who_asks_to_be_left_alone_is_left_alone_for_as_long() -> None:
    """Hard case 24."""
    health = ALIVE.limited("slow down", 100.0, 0.0, rest_seconds=7.0)
    assert health.state is EndpointState.RATE_LIMITED
    assert (order([health], 106.9), order([health], 107.0)) == ((), (0,))


def test_another_chain_is_looked_at_rarely_and_asked_last() -> None:
    """Hard case 27."""
    other = ALIVE.is_not_ours(EndpointState.WRONG_CHAIN, "chain id 1", 0.0, 0.0)
    assert other.rests_until == other.probe_at >= 100
    down = ALIVE.failed("no answer", 0.0, 0.0)
    assert order([other, down], 1_000.0) == (1, 0)


def test_an_endpoint_returns_after_it_has_proven_itself_several_times() -> None:
    health = ALIVE.failed("no answer", 0.0, 0.0)
    for _ in range(PROBES_TO_RETURN - 1):
        health = health.passed_probe(health.probe_at, 0.0)
        assert health.state is EndpointState.UNREACHABLE
    health = health.passed_probe(health.probe_at, 0.0)
    assert health.state is EndpointState.ALIVE


def test_an_endpoint_that_comes_back_only_to_fail_again_is_probed_more_and_more_rarely() -> None:
    health, pauses = ALIVE, []
    for _ in range(4):
        health = health.failed("no answer", 0.0, 0.5)
        pauses.append(health.probe_at)
        for _ in range(PROBES_TO_RETURN):
            health = health.passed_probe(0.0, 0.5)
        assert health.is_alive
    assert all(earlier < later for earlier, later in pairwise(pauses))


def test_one_that_was_never_in_trouble_needs_one_look() -> None:
    assert Health().passed_probe(0.0, 0.0).is_alive


def test_a_lagging_endpoint_that_answers_still_lags_until_its_head_is_there() -> None:
    lagging = ALIVE.lags("its head is behind", 0.0, 0.0)
    assert states(lagging.worked(1.0), lagging.worked(1.0).caught_up()) == [EndpointState.LAGGING, EndpointState.ALIVE]
    assert ALIVE.caught_up() == ALIVE


def test_a_block_that_is_unknown_once_is_a_moved_tip_and_three_times_a_lag() -> None:
    """Hard cases 21, 32."""
    once = ALIVE.did_not_know_a_block(0.0, 0.0)
    twice = once.did_not_know_a_block(0.0, 0.0)
    assert states(once, twice, twice.did_not_know_a_block(0.0, 0.0)) == [
        EndpointState.ALIVE,
        EndpointState.ALIVE,
        EndpointState.LAGGING,
    ]
    assert twice.worked(0.0).did_not_know_a_block(0.0, 0.0).is_alive


def test_a_head_that_goes_back_has_not_risen() -> None:
    """Hard case 7."""
    health = Health().saw_head(10, 1.0).saw_head(9, 2.0)
    assert (health.head, health.head_rose_at, health.state) == (9, 1.0, EndpointState.UNPROVEN)
    assert health.saw_head(11, 3.0).head_rose_at == 3.0


@given(st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.floats(0, 100), CHANCE), max_size=30))
def test_whatever_happens_an_endpoint_can_be_looked_at_again(events: list[tuple[str, float, float]]) -> None:
    health, now = Health(), 0.0
    for name, seconds, chance in events:
        now += seconds
        health = EVENTS[name](health, now, chance)
        # Nobody is left alone for ever, and nobody is probed while it rests.
        assert health.rests_until <= health.probe_at or health.rests_until <= now
        assert health.probe_at <= now + 300
        if name in {"failed", "limited", "told to wait", "of another chain", "lags"}:
            assert not health.is_alive
            assert health.reason == "why"
    for _ in range(PROBES_TO_RETURN):
        now = max(now, health.probe_at)
        assert order([health], now) == (0,)
        health = health.passed_probe(now, 0.0)
    assert health.is_alive


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=12), st.data())
def test_an_alive_endpoint_is_always_asked_before_one_in_trouble(names: list[str], data: st.DataObject) -> None:
    troubled = Health()
    for name in names:
        troubled = EVENTS[name](troubled, 0.0, 0.5)
    healths = data.draw(st.permutations([troubled, ALIVE]))
    first = order(healths, 10_000.0)[0]
    assert healths[first].is_alive


@given(st.integers(1, 10_000), CHANCE)
def test_however_often_it_failed_it_rests_a_second_and_has_two_to_answer(failures: int, chance: float) -> None:
    health = replace(ALIVE, failures=failures - 1)
    failed = health.failed("no answer", 100.0, chance)
    assert (failed.rests_until > 100.0) == (failures >= CIRCUIT_OPENS_AT)
    assert failed.rests_until <= 101.0
    assert health.limited("slow down", 100.0, chance, rest_seconds=None).rests_until <= 102.0
    assert failed.head_seconds == 2.0
    assert ALIVE.head_seconds == 10.0


def test_one_that_is_always_slow_has_four_times_as_long_as_it_usually_takes() -> None:
    slow = ALIVE.took(3.0).failed("no answer", 0.0, 0.0)
    assert slow.head_seconds == 12.0
    for _ in range(200):
        slow = slow.took(0.1)
    assert slow.head_seconds == 2.0


@given(
    st.floats(0.1, 100),
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 100)), min_size=1, max_size=50),
)
def test_a_budget_is_never_exceeded_by_more_than_one_batch(per_second: float, wishes: list[tuple[float, int]]) -> None:
    """Hard case 24."""
    budget, now, spent, largest = Budget.full(per_second, 0.0), 0.0, 0, 0
    for seconds, questions in wishes:
        now += seconds
        if budget.wait_seconds(now) == 0:
            budget = budget.spent(questions, now)
            spent, largest = spent + questions, max(largest, questions)
    assert spent <= budget.size + per_second * now + largest + 1e-6


def test_a_budget_says_how_long_to_wait_and_means_it() -> None:
    budget = Budget.full(2.0, 0.0).spent(10, 0.0)
    wait = budget.wait_seconds(0.0)
    assert wait == pytest.approx(3.5)
    assert budget.wait_seconds(wait) == pytest.approx(0.0)
    assert budget.wait_seconds(wait - 0.1) > 0
