"""The lifecycle of a mint request: one table, from which everything else follows.

``RULES`` is the model-checked table of the design (§4).  The trigger in ``schema.sql`` and the diagram in
``docs/lifecycle.md`` are generated from it; ``decide`` is how the indexer, the invocator and the operator's
commands look a cell up.  This module is pure: no clock, no I/O, no log.

A rule fires for an *event* (something that is so), in a *state*, if its *guard* holds for the *facts* of the
request.  A cell that no rule covers is not an error: the event is recorded elsewhere and changes nothing here.
That matters: a refused transition inside a block's commit would halt the indexer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

UNBACKED: Final = "unbacked"
"""Why a request whose log left the chain for good is in review: it may be minted, or is, and nothing backs that."""


class State(StrEnum):
    """What we did about a request.  Where it stands on chain is ``ChainStatus``, not this."""

    SEEN = "seen"
    CONFIRMED = "confirmed"
    CLAIMED = "claimed"
    IN_DOUBT = "in_doubt"
    ACCEPTED = "accepted"
    EXECUTED = "executed"
    COMPLETED = "completed"
    REJECTED = "rejected"
    FAILED = "failed"
    DROPPED = "dropped"
    REVIEW = "review"
    CANCELLED = "cancelled"


MEANING: Final[dict[State, tuple[str, str]]] = {
    State.SEEN: ("recorded, not final enough", "Mint Request Seen"),
    State.CONFIRMED: ("final enough, allowed, waits for a slot", "Mint Request Confirmed / Waiting for a Minting Slot"),
    State.CLAIMED: (
        "a worker holds it under a lease; nothing sent by this claim",
        "Mint Request Confirmed / Waiting for a Minting Slot",
    ),
    State.IN_DOUBT: ("an attempt may have been delivered; outcome not known", "CRE Validating Reserves"),
    State.ACCEPTED: ("CRE said ACCEPTED", "CRE Validating Reserves"),
    State.EXECUTED: ("a proven mint is on chain, not yet final", "Mint Transaction Confirming"),
    State.COMPLETED: ("request and mint final, proven, amount right", "Minting Complete"),
    State.REJECTED: ("refused before anything was sent", "Not Minted"),
    State.FAILED: ("delivery failed on chain, or never came; still watched, may still mint", "Could Not Complete"),
    State.DROPPED: ("orphaned for good, nothing sent", "Request Dropped by the Network"),
    State.REVIEW: ("a person must decide", "Under Review"),
    State.CANCELLED: ("a person ended it; nothing was sent", "Cancelled"),
}
"""For each state: what it means, and the label that people see (design §4)."""


class Actor(StrEnum):
    """Who may make a transition.  Each is a database role, ``bskt_<actor>``, and the trigger checks it."""

    INDEXER = "indexer"
    INVOCATOR = "invocator"
    OPERATOR = "operator"


class ChainStatus(StrEnum):
    """Where the request's log stands on chain; written by the indexer only."""

    CANONICAL = "canonical"
    ORPHANED = "orphaned"
    FINALIZED = "finalized"


class Event(StrEnum):
    """What is so.  The order is the order inside one commit of the indexer; the others stand alone."""

    BLOCK_ORPHANED = "block_orphaned"
    RE_MINED = "re_mined"
    REPORT_ORPHANED = "report_orphaned"
    MINT_ORPHANED = "mint_orphaned"
    LOST_SEND_FOUND = "lost_send_found"
    RIVAL_SENT = "rival_sent"
    DELIVERY_FAILED = "delivery_failed"
    DELIVERED_WITHOUT_MINT = "delivered_without_mint"
    MINT_PROVEN = "mint_proven"
    RIVAL_MINTED = "rival_minted"
    REFERENCE_MINTED = "reference_minted"
    RIVAL_GAVE_UP = "rival_gave_up"
    JUDGED_ALLOWED = "judged_allowed"
    JUDGED_REFUSED = "judged_refused"
    JUDGED_FOR_REVIEW = "judged_for_review"
    CONTESTED = "contested"
    ORPHANED_FOR_GOOD = "orphaned_for_good"
    MINT_FINAL = "mint_final"

    CLAIM = "claim"
    GIVEN_BACK = "given_back"
    PREFLIGHT_NEVER = "preflight_never"
    ATTEMPT_STARTED = "attempt_started"
    ACCEPTED = "accepted"
    REFUSED_FOR_GOOD = "refused_for_good"
    ALL_REFUSED = "all_refused"
    DEADLINE = "deadline"
    RESEND = "resend"
    GIVE_UP = "give_up"

    RETRY = "retry"
    CANCEL = "cancel"
    RELEASE = "release"
    NEW_GENERATION = "new_generation"
    RESOLVE_COMPLETED = "resolve_completed"
    RESOLVE_FAILED = "resolve_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a guard may ask of a request, as it is inside the transaction that holds its row.

    ``sent`` is the design's word: an attempt exists whose answer does not prove that it never reached a node, or
    a report or mint with its ids was ever indexed, on any branch.
    """

    chain_status: ChainStatus = ChainStatus.CANONICAL
    orphaned_for_good: bool = False
    sent: bool = False
    accepted_once: bool = False
    final_enough: bool = False
    mints: int = 0  # proven mints of this request on the current branch
    visible_mint: bool = False  # any mint with its reference on the current branch, proven or not
    doubtful_mint: bool = False  # one of them is not proven for another request: it may be its own
    mint_is_right: bool = False  # each mint is of the requested or the predicted amount, and for the beneficiary
    mint_is_final: bool = False
    holds_reference: bool = False  # false of a sent one whose reference a person released to a rival
    rival_holds_reference: bool = False
    stray_report: bool = False  # the chain holds a report of another generation of it
    evidence: bool = False  # an operator's evidence was checked and stored
    quarantined: bool = False


Guard: TypeAlias = Callable[[Facts], bool]


def _always(_: Facts) -> bool:
    return True


def _canonical(facts: Facts) -> bool:
    return facts.chain_status is not ChainStatus.ORPHANED


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One cell of the table.  ``when`` says the guard in words; it is printed in the diagram."""

    event: Event
    actors: tuple[Actor, ...]
    sources: tuple[State, ...]
    target: State
    when: str = ""
    guard: Guard = _always


_S = State
_UNSENT_STATES: Final = (_S.SEEN, _S.CONFIRMED, _S.CLAIMED, _S.REJECTED)
_INDEXER: Final = (Actor.INDEXER,)
_INVOCATOR: Final = (Actor.INVOCATOR,)
_OPERATOR: Final = (Actor.OPERATOR,)
_UNDELIVERED: Final = (_S.IN_DOUBT, _S.ACCEPTED)

RULES: Final[tuple[Rule, ...]] = (
    # -- the chain ---------------------------------------------------------------------------------------------
    Rule(
        event=Event.BLOCK_ORPHANED,
        actors=_INDEXER,
        sources=(_S.CONFIRMED, _S.CLAIMED, _S.REJECTED),
        target=_S.SEEN,
    ),
    Rule(event=Event.RE_MINED, actors=_INDEXER, sources=(_S.DROPPED,), target=_S.SEEN),
    Rule(
        event=Event.REPORT_ORPHANED,
        actors=_INDEXER,
        sources=(_S.FAILED,),
        target=_S.ACCEPTED,
        when="ACCEPTED was read, it holds its reference",
        guard=lambda facts: facts.accepted_once and facts.holds_reference,
    ),
    Rule(
        event=Event.REPORT_ORPHANED,
        actors=_INDEXER,
        sources=(_S.FAILED,),
        target=_S.IN_DOUBT,
        when="ACCEPTED was never read, it holds its reference",
        guard=lambda facts: not facts.accepted_once and facts.holds_reference,
    ),
    Rule(
        event=Event.MINT_ORPHANED,
        actors=_INDEXER,
        sources=(_S.EXECUTED,),
        target=_S.ACCEPTED,
        when="no other mint, ACCEPTED was read, it holds its reference",
        guard=lambda facts: facts.mints == 0 and facts.accepted_once and facts.holds_reference,
    ),
    Rule(
        event=Event.MINT_ORPHANED,
        actors=_INDEXER,
        sources=(_S.EXECUTED,),
        target=_S.IN_DOUBT,
        when="no other mint, sent, it holds its reference",
        guard=lambda facts: facts.mints == 0 and facts.sent and not facts.accepted_once and facts.holds_reference,
    ),
    Rule(
        event=Event.MINT_ORPHANED,
        actors=_INDEXER,
        sources=(_S.EXECUTED,),
        target=_S.REVIEW,
        when="no other mint, not sent or without its reference",
        guard=lambda facts: facts.mints == 0 and not (facts.holds_reference and (facts.sent or facts.accepted_once)),
    ),
    Rule(event=Event.MINT_ORPHANED, actors=_INDEXER, sources=(_S.COMPLETED,), target=_S.REVIEW),
    # In quarantine: a report shows that commits which a restore lost had sent it (design §8).
    Rule(
        event=Event.LOST_SEND_FOUND,
        actors=_INDEXER,
        sources=(*_UNSENT_STATES, _S.DROPPED, _S.CANCELLED),
        target=_S.FAILED,
        when="its request is not orphaned for good",
        guard=lambda facts: not facts.orphaned_for_good,
    ),
    Rule(
        event=Event.LOST_SEND_FOUND,
        actors=_INDEXER,
        sources=(*_UNSENT_STATES, _S.DROPPED, _S.CANCELLED),
        target=_S.REVIEW,
        when="its request is orphaned for good (unbacked)",
        guard=lambda facts: facts.orphaned_for_good,
    ),
    Rule(
        event=Event.RIVAL_SENT,
        actors=_INDEXER,
        sources=(_S.CONFIRMED, _S.CLAIMED, *_UNDELIVERED, _S.FAILED),
        target=_S.REVIEW,
    ),
    Rule(event=Event.DELIVERY_FAILED, actors=_INDEXER, sources=_UNDELIVERED, target=_S.FAILED),
    Rule(
        event=Event.DELIVERED_WITHOUT_MINT,
        actors=_INDEXER,
        sources=(*_UNDELIVERED, _S.FAILED),
        target=_S.REVIEW,
    ),
    Rule(
        event=Event.MINT_PROVEN,
        actors=_INDEXER,
        sources=(*_UNSENT_STATES, *_UNDELIVERED, _S.FAILED, _S.DROPPED, _S.REVIEW, _S.CANCELLED),
        target=_S.EXECUTED,
        when="its request is not orphaned for good",
        guard=lambda facts: not facts.orphaned_for_good,
    ),
    Rule(
        event=Event.MINT_PROVEN,
        actors=_INDEXER,
        sources=(*_UNSENT_STATES, *_UNDELIVERED, _S.FAILED, _S.DROPPED, _S.CANCELLED),
        target=_S.REVIEW,
        when="its request is orphaned for good (unbacked)",
        guard=lambda facts: facts.orphaned_for_good,
    ),
    Rule(
        event=Event.RIVAL_MINTED,
        actors=_INDEXER,
        sources=(_S.CONFIRMED, _S.CLAIMED, *_UNDELIVERED, _S.FAILED),
        target=_S.REVIEW,
    ),
    Rule(
        event=Event.REFERENCE_MINTED,
        actors=_INDEXER,
        sources=(*_UNSENT_STATES, *_UNDELIVERED, _S.FAILED),
        target=_S.REVIEW,
    ),
    # A reference is given up by whoever ends or un-confirms its holder; the first duplicates in line are judged again.
    Rule(
        event=Event.RIVAL_GAVE_UP,
        actors=_INDEXER,
        sources=(_S.REJECTED,),
        target=_S.SEEN,
        when="it was refused as a duplicate",
    ),
    Rule(event=Event.JUDGED_ALLOWED, actors=_INDEXER, sources=(_S.SEEN,), target=_S.CONFIRMED),
    Rule(event=Event.JUDGED_REFUSED, actors=_INDEXER, sources=(_S.SEEN,), target=_S.REJECTED),
    Rule(event=Event.JUDGED_FOR_REVIEW, actors=_INDEXER, sources=(_S.SEEN,), target=_S.REVIEW),
    Rule(
        event=Event.CONTESTED,
        actors=_INDEXER,
        sources=(_S.CONFIRMED, _S.CLAIMED),
        target=_S.REVIEW,
        when="not sent",
        guard=lambda facts: not facts.sent,
    ),
    Rule(
        event=Event.ORPHANED_FOR_GOOD,
        actors=_INDEXER,
        sources=(_S.SEEN, _S.REJECTED, _S.REVIEW, _S.FAILED),
        target=_S.DROPPED,
        when="not sent",
        guard=lambda facts: not facts.sent,
    ),
    Rule(
        event=Event.ORPHANED_FOR_GOOD,
        actors=_INDEXER,
        sources=(_S.SEEN, _S.REJECTED, *_UNDELIVERED, _S.FAILED),
        target=_S.REVIEW,
        when="sent (unbacked)",
        guard=lambda facts: facts.sent,
    ),
    Rule(
        event=Event.ORPHANED_FOR_GOOD,
        actors=_INDEXER,
        sources=(_S.EXECUTED, _S.COMPLETED),
        target=_S.REVIEW,
        when="unbacked",
    ),
    Rule(
        event=Event.MINT_FINAL,
        actors=_INDEXER,
        sources=(_S.EXECUTED,),
        target=_S.COMPLETED,
        when="one mint, of the right amount; request and mint final",
        guard=lambda facts: facts.mint_is_final and facts.mint_is_right and facts.mints == 1,
    ),
    Rule(
        event=Event.MINT_FINAL,
        actors=_INDEXER,
        sources=(_S.EXECUTED,),
        target=_S.REVIEW,
        when="several mints, another amount or recipient; request and mint final",
        guard=lambda facts: facts.mint_is_final and not (facts.mint_is_right and facts.mints == 1),
    ),
    # -- the invocator -----------------------------------------------------------------------------------------
    Rule(event=Event.CLAIM, actors=_INVOCATOR, sources=(_S.CONFIRMED,), target=_S.CLAIMED, guard=_canonical),
    Rule(event=Event.GIVEN_BACK, actors=_INVOCATOR, sources=(_S.CLAIMED,), target=_S.CONFIRMED),
    Rule(event=Event.PREFLIGHT_NEVER, actors=_INVOCATOR, sources=(_S.CONFIRMED, _S.CLAIMED), target=_S.REVIEW),
    Rule(
        event=Event.ATTEMPT_STARTED,
        actors=_INVOCATOR,
        sources=(_S.CLAIMED, _S.IN_DOUBT),
        target=_S.IN_DOUBT,
        when="committed before the socket opens",
        guard=_canonical,
    ),
    Rule(event=Event.ACCEPTED, actors=_INVOCATOR, sources=(_S.IN_DOUBT,), target=_S.ACCEPTED),
    Rule(
        event=Event.REFUSED_FOR_GOOD,
        actors=_INVOCATOR,
        sources=(_S.IN_DOUBT,),
        target=_S.REVIEW,
        when="permanent refusal or payload conflict",
    ),
    Rule(
        event=Event.ALL_REFUSED,
        actors=_INVOCATOR,
        sources=(_S.IN_DOUBT,),
        target=_S.CONFIRMED,
        when="EVERY attempt refused before forwarding; canonical",
        guard=lambda facts: not facts.sent and _canonical(facts),
    ),
    Rule(
        event=Event.ALL_REFUSED,
        actors=_INVOCATOR,
        sources=(_S.IN_DOUBT,),
        target=_S.SEEN,
        when="EVERY attempt refused before forwarding; orphaned",
        guard=lambda facts: not facts.sent and not _canonical(facts),
    ),
    Rule(event=Event.DEADLINE, actors=_INVOCATOR, sources=(_S.ACCEPTED,), target=_S.FAILED),
    Rule(
        event=Event.RESEND,
        actors=_INVOCATOR,
        sources=(_S.FAILED,),
        target=_S.IN_DOUBT,
        when="not delivered, sent, holds its reference: same id and bytes; not in quarantine, nothing speaks against it¹",
        guard=lambda facts: facts.sent and facts.holds_reference and not facts.quarantined and _may_retry(facts),
    ),
    Rule(event=Event.GIVE_UP, actors=_INVOCATOR, sources=(_S.IN_DOUBT,), target=_S.REVIEW),
    # -- people ------------------------------------------------------------------------------------------------
    Rule(
        event=Event.RETRY,
        actors=_OPERATOR,
        sources=(_S.FAILED, _S.REVIEW),
        target=_S.IN_DOUBT,
        when="sent: same id and bytes; nothing speaks against it¹",
        guard=lambda facts: facts.sent and _may_retry(facts),
    ),
    Rule(
        event=Event.RETRY,
        actors=_OPERATOR,
        sources=(_S.FAILED, _S.REVIEW),
        target=_S.CONFIRMED,
        when="not sent, final enough and judged before; nothing speaks against it¹",
        guard=lambda facts: not facts.sent and facts.final_enough and _may_retry(facts),
    ),
    Rule(
        event=Event.RETRY,
        actors=_OPERATOR,
        sources=(_S.FAILED, _S.REVIEW),
        target=_S.SEEN,
        when="not sent, not final enough or never judged; nothing speaks against it¹",
        guard=lambda facts: not facts.sent and not facts.final_enough and _may_retry(facts),
    ),
    Rule(
        event=Event.CANCEL,
        actors=_OPERATOR,
        sources=(_S.SEEN, _S.CONFIRMED, _S.REJECTED, _S.REVIEW, _S.FAILED),
        target=_S.CANCELLED,
        when="not sent, no mint visible that may be its own, not in quarantine",
        guard=lambda facts: not facts.sent and not facts.doubtful_mint and not facts.quarantined,
    ),
    Rule(
        event=Event.RELEASE,
        actors=_OPERATOR,
        sources=(_S.REJECTED,),
        target=_S.CONFIRMED,
        when=(
            "a duplicate; canonical, final enough, no mint visible; no rival holds the reference, or with stored evidence "
            "and not in quarantine"
        ),
        guard=lambda facts: (
            _canonical(facts)
            and facts.final_enough
            and not facts.visible_mint
            and (not facts.rival_holds_reference or (facts.evidence and not facts.quarantined))
        ),
    ),
    Rule(
        event=Event.NEW_GENERATION,
        actors=_OPERATOR,
        sources=(_S.FAILED, _S.REVIEW),
        target=_S.CONFIRMED,
        when=(
            "not sent, or with the stored evidence of a release; final enough, not in quarantine, "
            "nothing speaks against it¹"
        ),
        guard=lambda facts: (
            (facts.evidence or not facts.sent) and facts.final_enough and _may_retry(facts) and not facts.quarantined
        ),
    ),
    Rule(
        event=Event.RESOLVE_COMPLETED,
        actors=_OPERATOR,
        sources=(_S.REVIEW,),
        target=_S.COMPLETED,
        when="with a final mint; each is of the right amount, for the beneficiary",
        guard=lambda facts: facts.mints > 0 and facts.mint_is_final and facts.mint_is_right,
    ),
    Rule(
        event=Event.RESOLVE_FAILED,
        actors=_OPERATOR,
        sources=(_S.REVIEW,),
        target=_S.FAILED,
        when="without a visible mint that may be its own",
        guard=lambda facts: not facts.doubtful_mint,
    ),
)


NOTHING_SPEAKS_AGAINST: Final = (
    "Its block is canonical, no mint with its reference is visible, no rival holds the reference, and the chain holds no "
    "report of another generation of it."
)


def _may_retry(facts: Facts) -> bool:
    return _canonical(facts) and not facts.visible_mint and not facts.rival_holds_reference and not facts.stray_report


_RULES_BY_CELL: Final[dict[tuple[Event, State], tuple[Rule, ...]]] = {
    (event, state): tuple(rule for rule in RULES if rule.event is event and state in rule.sources)
    for event in Event
    for state in State
}


def decide(event: Event, state: State, facts: Facts) -> State | None:
    """The state that ``event`` leads to, or ``None`` where the event changes nothing.

    Total: every event may be fed to every state.  At most one rule of a cell has a true guard (a test holds it).
    """
    for rule in _RULES_BY_CELL[event, state]:
        if rule.guard(facts):
            return rule.target
    return None


def reason_of(event: Event, after: State) -> str:
    """The reason code that people read of a transition whose writer has no better one."""
    if after is State.REVIEW and event in {Event.ORPHANED_FOR_GOOD, Event.MINT_PROVEN}:
        return UNBACKED
    return event.value


def allowed_transitions() -> frozenset[tuple[Actor, State, State]]:
    """Each ``(actor, from, to)`` that some rule allows; ``in_doubt`` to itself is an attempt, not a transition."""
    return frozenset(
        (actor, source, rule.target)
        for rule in RULES
        for actor in rule.actors
        for source in rule.sources
        if source is not rule.target
    )


def keeps_reference(*, before: State, after: State, sent: bool, held: bool) -> bool:
    """Whether a request that held its bank reference (``held``) still holds it after a transition.

    Set only by judgement, retry and release (those writers set it themselves); given up when an unsent request
    goes back to ``seen``, is dropped or is cancelled.  A request that was ever sent keeps it for ever.
    """
    if sent or before is after:
        return held
    return held and after not in (State.SEEN, State.DROPPED, State.CANCELLED)


def trigger_rows() -> str:
    """The ``VALUES`` rows of ``schema.sql``'s lifecycle trigger, sorted, without a trailing comma."""
    rows = sorted(allowed_transitions())
    return ",\n".join(f"    ('{actor}', '{source}', '{target}')" for actor, source, target in rows)


def diagram() -> str:
    """The lifecycle as a Mermaid state diagram; one arrow for each ``(from, to)``, labelled with its events."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for rule in RULES:
        for source in rule.sources:
            labels = arrows.setdefault((source, rule.target), [])
            if rule.event.value not in labels:
                labels.append(rule.event.value)
    lines = ["stateDiagram-v2", "    [*] --> seen: recorded"]
    lines += [f"    {source} --> {target}: {' / '.join(labels)}" for (source, target), labels in arrows.items()]
    return "\n".join(lines)


def table() -> str:
    """The lifecycle as a Markdown table, one row a rule."""
    lines = ["| event | by | from | to | when |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {rule.event} | {_words(rule.actors)} | {_words(rule.sources)} | {rule.target} | {rule.when} |"
        for rule in RULES
    ]
    return "\n".join([*lines, "", f"¹ {NOTHING_SPEAKS_AGAINST}"])


def _words(values: Iterable[StrEnum]) -> str:
    return ", ".join(values)
