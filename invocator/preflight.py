"""What must be so on chain before a request is sent for the first time (design §6, hard cases 38, 41 and 52).  Pure.

The indexer's rows say which consumer a basket has; only the contracts themselves say whether that consumer may mint
now.  What a person can still put right is *not now*: the request is held for a while and looked at again.  What would
mint something else than was asked for is *never*: a person must decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from datastore.claims import NODE_UNAVAILABLE, NOT_WITNESSED, Order

WORKFLOW_DECIMALS: Final = 18
"""The workflow multiplies by 10**18, whatever the token's ``decimals()`` says."""

_SOON_SECONDS: Final = 30.0
_LATER_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contracts:
    """What a basket's contracts say now; ``None`` where a contract does not offer the question.

    ``is_minter``: whether the consumer may mint the token.  ``stablecoin``: the token that the consumer mints, 20
    bytes.  ``decimals``: the token's.
    """

    is_minter: bool | None
    stablecoin: bytes | None
    decimals: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """Nothing speaks against it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotNow:
    """Hold it for so many seconds; ``reason`` is one of ``claims.HELD_FOR_NOW``."""

    reason: str
    sentence: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Never:
    """A person must decide; ``reason`` is closed."""

    reason: str
    sentence: str


Verdict: TypeAlias = Go | NotNow | Never


def judge(order: Order, contracts: Contracts | None, *, max_mint_wei: int | None) -> Verdict:
    """Judge a claimed request; ``contracts`` is ``None`` while the node does not answer."""
    if not order.basket_is_canonical:
        return NotNow(
            reason="basket_not_canonical",
            sentence="No BasketCreated of this branch announces this token with this consumer.",
            seconds=_SOON_SECONDS,
        )
    if max_mint_wei is not None and order.amount > max_mint_wei:
        return NotNow(
            reason="amount_above_cap",
            sentence=f"More than {max_mint_wei} wei (BSKT_MAX_MINT_TOKENS), which was higher when it was judged.",
            seconds=_LATER_SECONDS,
        )
    if contracts is None:
        return NotNow(
            reason=NODE_UNAVAILABLE,
            sentence="The node does not answer, so nobody knows whether the consumer may mint.",
            seconds=_SOON_SECONDS,
        )
    return _judge_contracts(order, contracts)


def judge_witnesses(order: Order, is_witnessed: bool | None) -> Go | NotNow:
    """Whether the request itself is on the chain of other endpoints than the one that told of it (hard case 20)."""
    if is_witnessed is None:
        return NotNow(
            reason=NODE_UNAVAILABLE,
            sentence="No endpoint answers for its transaction, so nobody knows whether the request is on chain.",
            seconds=_SOON_SECONDS,
        )
    if not is_witnessed:
        return NotNow(
            reason=NOT_WITNESSED,
            sentence=f"An endpoint's receipt of the transaction of request {order.request_id} does not hold it.",
            seconds=_LATER_SECONDS,
        )
    return Go()


def _judge_contracts(order: Order, contracts: Contracts) -> Verdict:
    if contracts.stablecoin is not None and contracts.stablecoin != order.stablecoin:
        return Never(
            reason="consumer_of_another_token",
            sentence=f"The basket's consumer mints 0x{contracts.stablecoin.hex()}, not the basket's token.",
        )
    decimals = order.decimals if contracts.decimals is None else contracts.decimals
    if order.decimals is not None and decimals != order.decimals:
        return Never(
            reason="decimals_changed",
            sentence=f"The token had {order.decimals} decimals when they were first read, and has {decimals} now.",
        )
    if decimals is not None and decimals != WORKFLOW_DECIMALS:
        return Never(
            reason="decimals_not_supported",
            sentence=f"The token has {decimals} decimals; the workflow assumes {WORKFLOW_DECIMALS}.",
        )
    if contracts.is_minter is False:
        return NotNow(
            reason="not_a_minter",
            sentence="The basket's consumer may not mint its token now: the mint would fail on chain.",
            seconds=_LATER_SECONDS,
        )
    return Go()
