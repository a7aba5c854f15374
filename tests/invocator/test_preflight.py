"""What the chain says before a first send: hard cases 38, 41 and 52."""

from dataclasses import replace
from uuid import UUID

import pytest

from datastore.claims import HELD_FOR_NOW, Order
from datastore.lifecycle import State
from invocator.preflight import Contracts, Go, Never, NotNow, judge

TOKEN = b"\x70" * 20
ORDER = Order(
    request_id=1,
    state=State.CLAIMED,
    claim_no=1,
    generation=0,
    nonce=UUID(int=1),
    stablecoin=TOKEN,
    consumer=b"\xc0" * 20,
    beneficiary=b"\xa1" * 20,
    amount=100,
    expected_reference=b"r" * 32,
    symbol="TUSD",
    decimals=None,
    basket_is_canonical=True,
    block_timestamp=0,
    frozen=None,
)
RIGHT = Contracts(is_minter=True, stablecoin=TOKEN, decimals=18)


@pytest.mark.parametrize("contracts", [RIGHT, Contracts(is_minter=None, stablecoin=None, decimals=None)])
@pytest.mark.parametrize("pinned", [None, 18])
def test_right_contracts_let_it_go_and_so_do_those_that_do_not_offer_the_question(
    contracts: Contracts, pinned: int | None
) -> None:
    assert judge(replace(ORDER, decimals=pinned), contracts, max_mint_wei=100) == Go()


@pytest.mark.parametrize(
    ("order", "contracts", "reason"),
    [
        (replace(ORDER, basket_is_canonical=False), RIGHT, "basket_not_canonical"),
        (replace(ORDER, amount=101), RIGHT, "amount_above_cap"),
        (ORDER, None, "node_unavailable"),
        (ORDER, replace(RIGHT, is_minter=False), "not_a_minter"),
    ],
)
def test_what_can_be_put_right_is_held_and_looked_at_again(
    order: Order, contracts: Contracts | None, reason: str
) -> None:
    verdict = judge(order, contracts, max_mint_wei=100)
    assert isinstance(verdict, NotNow)
    assert (verdict.reason, verdict.reason in HELD_FOR_NOW) == (reason, True)
    assert verdict.seconds > 0


@pytest.mark.parametrize(
    ("order", "contracts", "reason"),
    [
        (ORDER, replace(RIGHT, stablecoin=b"\x71" * 20), "consumer_of_another_token"),
        (replace(ORDER, decimals=18), replace(RIGHT, decimals=6), "decimals_changed"),
        (replace(ORDER, decimals=6), replace(RIGHT, decimals=18), "decimals_changed"),
        (ORDER, replace(RIGHT, decimals=6), "decimals_not_supported"),
        (replace(ORDER, decimals=6), replace(RIGHT, decimals=None), "decimals_not_supported"),
        (ORDER, replace(RIGHT, decimals=6, is_minter=False), "decimals_not_supported"),
    ],
)
def test_what_would_mint_something_else_goes_to_a_person(order: Order, contracts: Contracts, reason: str) -> None:
    verdict = judge(order, contracts, max_mint_wei=None)
    assert isinstance(verdict, Never)
    assert verdict.reason == reason
