"""Who keeps a bank reference: one deposit, one mint (design §3).  Pure.

Requests are judged at trigger finality, in chain order.  The first keeps the reference, later ones are refused as
duplicates, and unsent requests of different beneficiaries are contested: a person decides, because whoever reads a
reference in the mempool could otherwise claim somebody else's deposit first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from datastore.lifecycle import State

DUPLICATE_BANK_REFERENCE: Final = "duplicate_bank_reference"
CONTESTED_BANK_REFERENCE: Final = "contested_bank_reference"
REFERENCE_ALREADY_MINTED: Final = "reference_already_minted"
LOOK_ALIKE_OF_ORPHANED: Final = "look_alike_of_orphaned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A request that is final enough to be judged; ``decimals`` of its token, once they were read."""

    id: int
    bank_reference: bytes
    expected_reference: bytes
    stablecoin: bytes
    consumer: bytes
    requester: bytes
    beneficiary: bytes
    amount: int
    predicted_amount: int | None
    decimals: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The request that holds a bank reference now."""

    id: int
    beneficiary: bytes
    state: State
    sent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """It takes the reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """It never mints by itself; ``code`` is closed, ``sentence`` is for people."""

    code: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForReview:
    """A person must decide; ``contested_with`` are unsent rivals that wait together with it."""

    code: str
    sentence: str
    contested_with: int | None = None


Verdict: TypeAlias = Allowed | Refused | ForReview

# A rival in one of these has not been sent unless Holder.sent says so, and can still be stopped.
_STOPPABLE: Final = frozenset({State.CONFIRMED, State.CLAIMED, State.REVIEW, State.FAILED})


def judge(
    candidates: Sequence[Candidate],
    *,
    holders: Mapping[bytes, Holder],
    minted: Collection[bytes],
    refusals: Mapping[int, Refused],
    contest: bool,
    look_alikes: Mapping[int, int] = MappingProxyType({}),
) -> Iterable[tuple[Candidate, Verdict]]:
    """Judge ``candidates`` in the given order, which must be chain order.

    Args:
        candidates: What is to be judged now.
        holders: For a bank reference, the request that holds it before this judgement.
        minted: References that a mint on chain carries which is proven for none of our requests.
        refusals: What the policy refused, by request id.
        contest: Whether different beneficiaries of one unsent reference wait for a person
            (``BSKT_CONTESTED_REFERENCE=review``) or the first one wins (``first``).
        look_alikes: By a candidate's id, a request of the same requester, token and beneficiary that was sent before its
            block was orphaned, and may still mint: a replaced transaction must not mint twice (hard case 99).
    """
    held = dict(holders)
    for candidate in candidates:
        verdict: Verdict
        if candidate.id not in refusals and (look_alike := look_alikes.get(candidate.id)) is not None:
            sentence = f"Request {look_alike} of the same requester, token and beneficiary was sent and then orphaned."
            verdict = ForReview(code=LOOK_ALIKE_OF_ORPHANED, sentence=sentence)
        else:
            verdict = _judge_one(candidate, held.get(candidate.bank_reference), minted, refusals, contest=contest)
        if isinstance(verdict, Allowed):
            held[candidate.bank_reference] = Holder(
                id=candidate.id, beneficiary=candidate.beneficiary, state=State.CONFIRMED, sent=False
            )
        yield candidate, verdict


def _judge_one(
    candidate: Candidate,
    holder: Holder | None,
    minted: Collection[bytes],
    refusals: Mapping[int, Refused],
    *,
    contest: bool,
) -> Verdict:
    if (refusal := refusals.get(candidate.id)) is not None:
        return refusal
    if candidate.expected_reference in minted:
        return ForReview(
            code=REFERENCE_ALREADY_MINTED,
            sentence="The chain already shows a mint with this bank reference that none of our requests accounts for.",
        )
    if holder is None or holder.id == candidate.id:
        return Allowed()
    stoppable = not holder.sent and holder.state in _STOPPABLE
    if contest and stoppable and holder.beneficiary != candidate.beneficiary:
        return ForReview(
            code=CONTESTED_BANK_REFERENCE,
            sentence=f"Request {holder.id} asks for the same deposit for another beneficiary; neither was sent.",
            contested_with=holder.id,
        )
    return Refused(
        code=DUPLICATE_BANK_REFERENCE,
        sentence=f"Request {holder.id} holds this bank reference; one deposit backs one mint.",
    )
