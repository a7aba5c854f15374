import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datastore.claims import HELD_FOR_NOW
from datastore.inspection import Request
from datastore.lifecycle import MEANING, RULES, ChainStatus, Facts, State, reason_of
from indexer.policy import Policy
from invocator import preflight as preflight_module
from service.explanation import (
    HOLDS,
    NOT_ALLOWED,
    REASONS,
    Standing,
    amount,
    block_time,
    confirmations,
    expected_times,
    explain,
    held_reason,
    hold,
    label,
    reason,
    span,
)
from service.settings import Finality
from tests.datastore.builders import reference

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STANDING = Standing(
    now=NOW,
    indexed=100,
    finalized=70,
    safe=90,
    trigger=Finality(kind="finalized"),
    complete=Finality(kind="depth", depth_blocks=5),
    in_flight=0,
    max_in_flight=5,
    requester_share=3,
    basket_share=4,
    unserved_share=2,
    only_allowed=False,
    give_up=timedelta(days=1),
    stopped=None,
    halted=None,
    queue={},
)
REQUEST = Request(
    id=7,
    nonce=UUID(int=7),
    identity=bytes(32),
    generation=0,
    tx_hash=bytes(32),
    block_hash=bytes(32),
    block_number=98,
    block_timestamp=1_700_000_000,
    log_index=0,
    chain_status=ChainStatus.CANONICAL,
    orphaned_for_good=False,
    stablecoin=bytes(20),
    consumer=bytes(20),
    requester=bytes(20),
    beneficiary=bytes(20),
    amount=25 * 10**17,
    predicted_amount=25 * 10**17,
    bank_reference=reference("DEP-1"),
    expected_reference=reference("DEP-1"),
    state=State.SEEN,
    state_reason=None,
    state_detail=None,
    state_changed_at=NOW,
    held_at=None,
    held_reason=None,
    worker_id=None,
    lease_ends_at=None,
    next_attempt_at=None,
    deadline_at=None,
    recorded_at=NOW,
    sent=False,
    symbol="AUD",
    decimals=18,
    workflow_id=None,
    signer=None,
    attempts=0,
    first_attempt_at=None,
    last_outcome=None,
    last_sentence=None,
    mints=0,
    mint_block_number=None,
    mint_tx_hash=None,
    mint_amount=None,
    mint_proof=None,
    rival_id=None,
)
OPEN = (State.SEEN, State.CONFIRMED, State.IN_DOUBT)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("chain_status", ChainStatus)
@pytest.mark.parametrize("held", [False, True])
def test_every_state_says_why_and_what_comes_next(state: State, chain_status: ChainStatus, held: bool) -> None:
    request = replace(
        REQUEST,
        state=state,
        chain_status=chain_status,
        held_at=NOW if held else None,
        held_reason="backfill" if held else None,
        worker_id=UUID(int=1) if state is State.CLAIMED else None,  # a constraint of the table
    )
    explanation = explain(request, STANDING)
    assert explanation.label.startswith(MEANING[state][1])
    for sentence in (explanation.why, explanation.next):
        assert sentence.strip()
        assert re.search(r"[.…]$", sentence), sentence
        assert "None" not in sentence, sentence
    if held and state in OPEN:
        assert "found by `bskt backfill`" in explanation.why
        assert explanation.next == "Nothing is sent until a person releases it."


def test_every_reason_that_a_part_can_write_has_its_sentence() -> None:
    """Nobody should have to look a code up: those of the table, of the policy, and of the invocator's answers."""
    written = {reason_of(rule.event, rule.target) for rule in RULES} - {
        "judged_allowed",
        "judged_refused",
        "judged_for_review",
    }
    written |= set(re.findall(r'code="(\w+)"', _source_of(Policy)))
    written -= {"all_refused", "deadline", "give_up", "preflight_never"}  # each is written with a reason of its own
    written |= {"refused_now", "instance_refused", "never_connected", "not_delivered", "gave_up"}
    assert written - REASONS.keys() == set()
    preflight = Path(preflight_module.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'reason="(\w+)"', preflight)) - REASONS.keys() - HOLDS.keys() == set()
    assert set(HELD_FOR_NOW) - HOLDS.keys() == set()


def _source_of(of: type) -> str:
    import inspect  # noqa: PLC0415 - only here

    return inspect.getsource(of)


def test_a_hold_that_ends_by_itself_says_when() -> None:
    held = replace(
        REQUEST, state=State.CONFIRMED, held_at=NOW, held_reason="daily_cap", next_attempt_at=NOW + timedelta(hours=5)
    )
    assert explain(held, STANDING).next == (
        "It is looked at again at 2026-01-01 05:00:00Z, or when a person releases it."
    )


def test_a_code_that_nobody_listed_is_shown_as_it_is() -> None:
    assert reason("brand_new") == "brand_new."
    assert reason("brand_new", "This very request is too green.") == "This very request is too green."
    assert hold("waiting for Bob") == "waiting for Bob"


@pytest.mark.parametrize(
    ("finality", "number", "expected"),
    [
        (Finality(kind="depth", depth_blocks=5), 100, (1, 5)),
        (Finality(kind="depth", depth_blocks=5), 96, (5, 5)),
        (Finality(kind="depth", depth_blocks=5), 1, (5, 5)),
        (Finality(kind="depth", depth_blocks=5), 101, (0, 5)),  # not indexed: nothing confirms it
        (Finality(kind="finalized"), 100, (1, 31)),
        (Finality(kind="finalized"), 71, (30, 31)),
        (Finality(kind="finalized"), 70, (31, 31)),
        (Finality(kind="safe"), 90, (11, 11)),
    ],
)
def test_confirmations_are_counted_to_what_the_finality_needs(
    finality: Finality, number: int, expected: tuple[int, int]
) -> None:
    assert confirmations(number, finality, STANDING) == expected


@given(number=st.integers(0, 120), indexed=st.integers(0, 110), tag=st.integers(-1, 110))
def test_confirmations_are_complete_exactly_when_the_tag_has_passed(number: int, indexed: int, tag: int) -> None:
    standing = replace(STANDING, indexed=indexed, finalized=min(tag, indexed))
    reached, needed = confirmations(number, Finality(kind="finalized"), standing)
    assert 0 <= reached <= needed
    assert (reached == needed) == (number <= standing.finalized)


def test_a_seen_request_shows_its_confirmations_and_an_orphaned_one_has_none() -> None:
    assert label(REQUEST, STANDING) == "Mint Request Seen (3/31)"
    assert label(replace(REQUEST, chain_status=ChainStatus.ORPHANED), STANDING) == "Mint Request Seen (0/31)"
    minted = replace(REQUEST, state=State.EXECUTED, mint_block_number=99)
    assert label(minted, STANDING) == "Mint Transaction Confirming (2/5)"


def test_what_stops_the_whole_instance_is_what_a_waiting_request_says_next() -> None:
    waiting = replace(REQUEST, state=State.CONFIRMED)
    paused = replace(STANDING, stopped="a person has paused the invocator (lunch)")
    assert explain(waiting, paused).next == "Nothing is sent now: a person has paused the invocator (lunch)."
    full = replace(STANDING, in_flight=5)
    assert "no more than 5" in explain(waiting, full).next
    assert "of its requester" in explain(replace(waiting, requester_in_flight=3), STANDING).next
    assert "of its basket" in explain(replace(waiting, basket_in_flight=4), STANDING).next
    halted = replace(STANDING, halted="finality violated")
    assert explain(REQUEST, halted).next == "Nothing: the indexer has halted: finality violated."


def test_a_request_that_was_sent_is_never_offered_to_be_cancelled() -> None:
    under_review = replace(REQUEST, state=State.REVIEW, state_reason="workflow_retired")
    assert any(" cancel " in command for command in explain(under_review, STANDING).commands)
    assert not any(" cancel " in command for command in explain(replace(under_review, sent=True), STANDING).commands)


def test_only_what_would_not_be_refused_is_offered_where_the_facts_are_known() -> None:
    under_review = replace(REQUEST, state=State.REVIEW, state_reason="reference_minted")
    shown = Facts(final_enough=True, visible_mint=True, doubtful_mint=True, holds_reference=True)

    def offered(facts: Facts) -> list[str]:
        standing = replace(STANDING, facts={REQUEST.id: facts})
        return [command.split()[2] for command in explain(under_review, standing).commands]

    assert offered(shown) == []
    standing = replace(STANDING, facts={REQUEST.id: shown})
    assert explain(under_review, standing).next.startswith("Nothing that a person could do is safe now")
    assert offered(replace(shown, visible_mint=False, doubtful_mint=False)) == ["resolve", "retry", "cancel"]
    another_s = replace(shown, doubtful_mint=False)
    assert offered(another_s) == ["resolve", "cancel"]
    minted = replace(shown, mints=1, mint_is_right=True, mint_is_final=True, sent=True)
    assert explain(under_review, replace(STANDING, facts={REQUEST.id: minted})).commands == (
        f"bskt requests resolve {REQUEST.id} --as completed --reason …",
    )


@given(
    waiting=st.integers(0, 30),
    ahead_seconds=st.lists(st.none() | st.integers(-100, 300), max_size=4),
    interval_seconds=st.integers(0, 60),
    burst=st.integers(1, 3),
)
def test_turns_come_in_order_and_never_faster_than_the_pace(
    waiting: int, ahead_seconds: list[int | None], interval_seconds: int, burst: int
) -> None:
    times = expected_times(
        {100 + position: position for position in range(1, waiting + 1)},
        now=NOW,
        free_at=[None if ahead is None else NOW + timedelta(seconds=ahead) for ahead in ahead_seconds],
        interval=timedelta(seconds=interval_seconds),
        burst=burst,
    )
    in_order = [times[100 + position].expected_at for position in range(1, waiting + 1)]
    assert in_order == sorted(in_order)
    assert all(at >= NOW for at in in_order)
    workflows = max(1, len(ahead_seconds))
    for first, later in zip(in_order, in_order[workflows * burst :], strict=False):
        assert later - first >= timedelta(seconds=interval_seconds)


def test_values_are_said_as_people_say_them() -> None:
    assert (span(0), span(59.6), span(3_660), span(90_000)) == ("0 s", "1 min", "1 h 1 min", "1 d 1 h")
    assert amount(25 * 10**17, 18) == "2.5"
    assert amount(25 * 10**17, 255) == "2.5"  # a token may claim anything; the workflow assumes 18
    assert amount(1_500_000, 6) == "1.5"
    assert block_time(2**63) is None
    assert block_time(None) is None


WAITING = replace(REQUEST, state=State.CONFIRMED, state_reason="allowed")


def test_a_basket_that_is_not_allowed_is_the_reason_that_people_see_where_only_listed_ones_are_sent_for() -> None:
    listed = replace(STANDING, only_allowed=True)
    explanation = explain(WAITING, listed)
    assert "its basket is not allowed" in explanation.why
    assert explanation.next == "Nothing is sent until a person allows the basket."
    assert explanation.commands == (f"bskt baskets allow 0x{bytes(20).hex()} --reason …",)
    assert held_reason(WAITING, listed) == NOT_ALLOWED
    allowed = replace(WAITING, basket_is_allowed=True, basket_is_served=True)
    for request, standing in ((allowed, listed), (WAITING, STANDING)):
        assert held_reason(request, standing) is None
        assert explain(request, standing).next == "A worker claims it, freezes its bytes and sends it."
    held = replace(WAITING, held_at=NOW, held_reason="operator")
    assert (held_reason(held, listed), "a person holds it" in explain(held, listed).why) == ("operator", True)
    assert held_reason(replace(WAITING, state=State.IN_DOUBT), listed) is None


def test_a_full_share_of_the_baskets_that_are_not_served_is_told_only_while_it_counts() -> None:
    full = replace(WAITING, unserved_in_flight=2, are_served_baskets=True)
    assert "2 requests of baskets that are not served are undelivered" in explain(full, STANDING).next
    for request in (
        replace(full, unserved_in_flight=1),
        replace(full, are_served_baskets=False),
        replace(full, basket_is_served=True),
    ):
        assert explain(request, STANDING).next == "A worker claims it, freezes its bytes and sends it."
