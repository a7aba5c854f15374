"""Who keeps a bank reference: one deposit, one mint.  Pure.

Requests are judged at trigger finality, in chain order.  The first keeps the reference, later ones are refused as
duplicates, and unsent requests of different beneficiaries are contested: a person decides, because a reference can be
read in the mempool, and copied into an earlier block.  So a request that is not final yet contests as well, and so does one
that waits for a person.

References that differ only in case, spaces or dashes are one deposit to the bank's staff.  They are look-alikes: only
one of their requests goes on by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from datastore.lifecycle import State
from datastore.reference import folded_reference

DUPLICATE_BANK_REFERENCE: Final = "duplicate_bank_reference"
CONTESTED_BANK_REFERENCE: Final = "contested_bank_reference"
REFERENCE_ALREADY_MINTED: Final = "reference_already_minted"
LOOK_ALIKE_OF_ORPHANED: Final = "look_alike_of_orphaned"
LOOK_ALIKE_REFERENCE: Final = "look_alike_reference"


class Candidate(NamedTuple):
    """A request that is final enough to be judged; ``decimals`` of its token, once they were read.

    A named tuple, for a range may bring ten thousand.
    """

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
class Undecided:
    """Another request for the same deposit, by the same reference or a look-alike, that has no verdict now."""

    id: int
    bank_reference: bytes
    beneficiary: bytes


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
    """A person must decide; ``contested_with`` is the unsent holder that waits together with it."""

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
    contest: bool,
    look_alikes: Mapping[int, int] = MappingProxyType({}),
    rivals: Mapping[bytes, Sequence[Undecided]] = MappingProxyType({}),
    in_line: Mapping[int, int] = MappingProxyType({}),
    spelled_alike: Mapping[int, int] = MappingProxyType({}),
) -> Iterable[tuple[Candidate, Verdict]]:
    """Judge ``candidates`` in the given order, which must be chain order.

    Args:
        candidates: What is to be judged now, and the policy allows.
        holders: For a bank reference, the request that holds it before this judgement.
        minted: References that a mint on chain carries which is proven for none of our requests.
        contest: Whether different beneficiaries of one unsent reference wait for a person
            (``BSKT_CONTESTED_REFERENCE=review``) or the first one wins (``first``).
        look_alikes: By a candidate's id, a request of the same requester, token and beneficiary that was sent before its
            block was orphaned, and may still mint: a replaced transaction must not mint twice.
        rivals: By a candidate's reference, others that ask for it or for a look-alike of it and have no verdict now:
            not final yet, waiting for a person, or refused as duplicates of a request that gave the reference up.  Enough
            of them that one is of another beneficiary than the candidate's, if there is such a one.
        in_line: By a candidate's id, an earlier request that was refused as a duplicate of such a one and is to be judged
            first.
        spelled_alike: By a candidate's id, the holder of a look-alike of its reference.
    """
    held = dict(holders)
    holder_by_folded: dict[bytes, Candidate] = {}
    for candidate in candidates:
        folded = folded_reference(candidate.bank_reference)
        verdict: Verdict | None = None
        if (look_alike := look_alikes.get(candidate.id)) is not None:
            sentence = f"Request {look_alike} of the same requester, token and beneficiary was sent and then orphaned."
            verdict = ForReview(code=LOOK_ALIKE_OF_ORPHANED, sentence=sentence)
        if verdict is None and candidate.expected_reference in minted:
            sentence = "The chain already shows a mint with this bank reference that none of our requests accounts for."
            verdict = ForReview(code=REFERENCE_ALREADY_MINTED, sentence=sentence)
        if verdict is None and (holder := held.get(candidate.bank_reference)) is not None:
            verdict = _beside_a_holder(candidate, holder, contest=contest)
        if verdict is None:
            alike = spelled_alike.get(candidate.id)
            if alike is None and (other := holder_by_folded.get(folded)) is not None:
                alike = other.id
            opponent = next((r for r in rivals.get(candidate.bank_reference, ()) if _differs(r, candidate)), None)
            verdict = _unheld(candidate, alike, in_line.get(candidate.id), opponent if contest else None)
        if isinstance(verdict, Allowed):
            held[candidate.bank_reference] = Holder(
                id=candidate.id, beneficiary=candidate.beneficiary, state=State.CONFIRMED, sent=False
            )
            holder_by_folded.setdefault(folded, candidate)
        yield candidate, verdict


def _differs(rival: Undecided, candidate: Candidate) -> bool:
    return rival.beneficiary != candidate.beneficiary


def _beside_a_holder(candidate: Candidate, holder: Holder, *, contest: bool) -> Verdict:
    if holder.id == candidate.id:
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


def _unheld(candidate: Candidate, alike: int | None, earlier: int | None, opponent: Undecided | None) -> Verdict:
    if alike is not None:
        return ForReview(code=LOOK_ALIKE_REFERENCE, sentence=_spelled_alike(alike))
    if earlier is not None:
        return Refused(
            code=DUPLICATE_BANK_REFERENCE,
            sentence=f"Request {earlier} asks for the same deposit before it; one deposit backs one mint.",
        )
    if opponent is None:
        return Allowed()
    if opponent.bank_reference != candidate.bank_reference:
        return ForReview(code=LOOK_ALIKE_REFERENCE, sentence=_spelled_alike(opponent.id))
    return ForReview(
        code=CONTESTED_BANK_REFERENCE,
        sentence=f"Request {opponent.id} asks for the same deposit for another beneficiary; neither was sent.",
    )


def _spelled_alike(other: int) -> str:
    return f"The bank reference of request {other} differs from its own only in case, spaces or dashes."
