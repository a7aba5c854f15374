"""What a person may ask for about a request, and what the answer is.  Pure.

The lifecycle decides (``decide``); this module says in a sentence what will happen, that it is so already, or why it is
refused and what is possible instead.  A dry run and the real thing ask here, so they cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Literal, TypeAlias, assert_never

from datastore.judgement import DUPLICATE_BANK_REFERENCE
from datastore.lifecycle import ChainStatus, Event, Facts, State, decide

CACHED_FOR: Final = timedelta(hours=48)
"""Nodes answer a repeated id from their cache for 24 to 48 hours without running it again (cre.md §2.4)."""

FROZEN_FOR_ANOTHER: Final = frozenset({"workflow_retired", "signer_changed", "consumer_changed"})
"""Reasons for which the frozen bytes cannot be sent by this configuration, however often they are retried."""


class Unproven(StrEnum):
    """Why two ids, or two requests, of one deposit could still mint both."""

    NO_EVIDENCE = "no_evidence"
    BLOCK_NOT_HELD = "evidence_block_not_held"
    BLOCK_TOO_EARLY = "evidence_block_too_early"
    OTHER_CONSUMER = "sent_to_another_consumer"
    OTHER_REFERENCE = "other_reference_on_chain"
    CHANGED = "changed_since_the_chain_was_asked"
    TOO_FEW_ENDPOINTS = "too_few_endpoints"
    ENDPOINTS_DISAGREE = "endpoints_disagree"
    CONSUMER_UPGRADEABLE = "consumer_upgradeable"
    CONSUMER_UNKNOWN = "consumer_code_unknown"
    REFERENCE_USED = "reference_used"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerAnswer:
    """What a consumer is by the state after one block.

    ``code_hash``: keccak of its code, ``None`` without any.  ``implementation``: where a proxy (EIP-1967) forwards its
    calls to.  ``contract``: the contract whose code it is, of those that irrevocably refuse used references; ``None`` for
    any other code.  ``reference_is_used``: its own word about the reference; ``None`` where ``contract`` is.
    """

    code_hash: bytes | None
    implementation: bytes | None
    contract: str | None
    reference_is_used: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the chain says of a consumer and a reference, before a second id or request may mint for one deposit.

    ``block_hash`` is ``None``, and nothing was asked, if the index holds no such final block.  ``reference``: 32 bytes, as
    ``MintExecuted`` carries them.  ``answers`` and ``failures`` (why there is no answer) are by the endpoint's name.
    """

    block_number: int
    block_hash: bytes | None
    consumer: bytes
    reference: bytes
    answers: tuple[tuple[str, ConsumerAnswer], ...] = ()
    failures: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Retry:
    """Send again: the same bytes under the same id, if anything was sent before."""


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """Send under a new id: once the old one was sent, only with evidence."""

    evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Send nothing (more) until it is released."""


@dataclass(frozen=True, slots=True)
class Release:
    """Take it from its hold; a rejected duplicate takes the bank reference."""

    evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """End it for good."""


@dataclass(frozen=True, slots=True)
class Resolve:
    """Take it out of review by what the chain shows."""

    to: Literal["completed", "failed"]


Instruction: TypeAlias = Retry | NewGeneration | Hold | Release | Cancel | Resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Of all sends of a request, also those that a restore lost.

    ``until``: after this, none reaches the chain by itself any more; ``None`` if it is not known when the last one was.
    ``consumers``: whom they are for.
    """

    until: datetime | None
    consumers: frozenset[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalBlock:
    """A canonical block of the index, not above its finality; ``at`` is the block's own time."""

    hash: bytes
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """The request that holds the same bank reference."""

    request_id: int
    state: State
    sent: bool
    is_on_this_chain: bool
    shares_consumer: bool
    shares_reference: bool  # both would mint under the same reference on chain
    delivery: Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """All that is known of a request at the moment when a person asks, read under its lock."""

    request_id: int
    state: State
    reason: str | None
    facts: Facts
    held_reason: str | None
    hold_ends_by_itself: bool
    held_for_its_basket: bool  # which is paused: a release would be undone at once
    generation: int
    frozen_mode: str | None
    consumer: bytes
    reference: bytes  # as MintExecuted carries it
    delivery: Delivery
    lease_ends_at: datetime | None
    last_sent_at: datetime | None
    rival: Rival | None
    evidence_block: FinalBlock | None  # the one that the evidence names
    newest_final_block: int | None  # of those that the index holds
    now: datetime
    stopped: str | None  # why nothing of it is sent now: a pause, of everything or of its basket, or a quarantine
    restored_at: datetime | None  # a quarantine began after its block: a restore may have lost a send of it
    execution_ids: tuple[bytes, ...]  # under which it may have been sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """It is done, or would be: ``after`` is ``None`` where the state stays as it is."""

    sentence: str
    after: State | None = None
    rests_on_evidence: bool = False  # which is kept with the action
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AlreadySo:
    """There is nothing to do."""

    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """It is not done: ``sentence`` says why, ``remedy`` what is possible instead."""

    sentence: str
    remedy: str
    unproven: Unproven | None = None


Verdict: TypeAlias = Will | AlreadySo | Refused


def judge(instruction: Instruction, standing: Standing) -> Verdict:
    """What becomes of an instruction; total over every state and every fact."""
    match instruction:
        case Retry():
            return _judge_retry(standing)
        case NewGeneration():
            return _judge_new_generation(standing, instruction.evidence)
        case Hold():
            return _judge_hold(standing)
        case Release():
            return _judge_release(standing, instruction.evidence)
        case Cancel():
            return _judge_cancel(standing)
        case Resolve():
            return _judge_resolve(standing, instruction.to)
    assert_never(instruction)


# -- retry ------------------------------------------------------------------------------------------------------------
_NOT_TO_RETRY: Final[dict[State, tuple[str, str]]] = {
    State.ACCEPTED: (
        "CRE accepted it, and its deadline is not over: a second send would run nothing.",
        "Wait: it is executed by then, or failed, and a failed one can be retried.",
    ),
    State.EXECUTED: ("It is minted.", "Nothing is left to do: it completes when its mint is final."),
    State.COMPLETED: ("It is minted, and final.", "Nothing is left to do."),
    State.REJECTED: (
        "It was refused before anything was sent, and a retry would be refused again.",
        "A duplicate can be released (`bskt requests release`); for any other reason the user must ask again on chain.",
    ),
    State.DROPPED: (
        "Its block was orphaned for good: the chain does not hold it.",
        "If its transaction is mined again, it comes back by itself; otherwise the user must ask again.",
    ),
    State.CANCELLED: ("A person ended it for good.", "The user must ask again on chain."),
}
_UNDERWAY: Final[dict[State, str]] = {
    State.SEEN: "it waits until it is final enough",
    State.CONFIRMED: "it waits for a minting slot",
    State.CLAIMED: "a worker is about to send it",
    State.IN_DOUBT: "it is sent again and again until CRE's answer settles it",
}


def _judge_retry(standing: Standing) -> Verdict:
    state, facts = standing.state, standing.facts
    if state in _UNDERWAY:
        return AlreadySo(sentence=_about(standing, f"is {state}: {_UNDERWAY[state]}.") + _and_held(standing))
    if state in _NOT_TO_RETRY:
        return _refused(standing, *_NOT_TO_RETRY[state])
    after = decide(Event.RETRY, state, facts)
    if after is None:
        return _why_not_again(standing)
    if facts.sent and standing.frozen_mode == "simulate":
        return _refused(
            standing,
            "It was run in mode simulate, which has no idempotency: a second run could mint a second time.",
            "Look for its mint on chain; `bskt requests resolve` records what you found.",
        )
    how = {
        State.IN_DOUBT: "the same bytes are sent again under the same id",
        State.CONFIRMED: "it waits for a slot, for nothing of it was sent yet",
        State.SEEN: "it is judged when it is final enough, for nothing of it was sent yet",
    }[after]
    return Will(
        sentence=_about(standing, f"goes from {state} to {after}: {how}."), after=after, warnings=_warn_retry(standing)
    )


def _warn_retry(standing: Standing) -> tuple[str, ...]:
    warnings = []
    if standing.held_reason is not None:
        warnings.append(f"It is held ({standing.held_reason}): nothing is sent until `bskt requests release` as well.")
    if standing.reason in FROZEN_FOR_ANOTHER and standing.frozen_mode is not None:
        warnings.append(
            f"It went to review as {standing.reason}: unless the configuration is as it was, it comes back at once.  "
            "`--new-generation` makes new bytes."
        )
    if standing.last_sent_at is not None and standing.now < standing.last_sent_at + CACHED_FOR:
        warnings.append(
            f"CRE may answer a repeated id from its cache, without running it, until {_time(standing.last_sent_at + CACHED_FOR)}."
        )
    return (*warnings, *_warn_stopped(standing))


def _why_not_again(standing: Standing) -> Refused:
    facts, rival = standing.facts, standing.rival
    if facts.chain_status is ChainStatus.ORPHANED:
        return _refused(
            standing,
            "Its block is not on the chain any more, and nothing is sent for a request that the chain does not hold.",
            "If its transaction is mined again, it is canonical again and can be retried.",
        )
    if facts.visible_mint:
        return _refused(
            standing,
            "A mint with its reference is on chain: a second send could mint a second time.",
            "If the mint is its own, right and final: `bskt requests resolve --as completed`.",
        )
    if rival is not None:
        return _refused(standing, f"{_holder(rival)}: one deposit, one mint.", _instead_of(rival))
    if facts.stray_report:
        return _refused(
            standing,
            "The chain holds a report of another generation of it, and that one may still mint.",
            "Watch it; what the report's delivery needs (funds, policy, role) can be mended, and anyone may deliver it again.",
        )
    return _refused(
        standing, "Its block is not final enough yet.", "Wait until it is; `bskt status` shows how far the chain is."
    )


def _holder(rival: Rival) -> str:
    return f"Request {rival.request_id} ({rival.state}) holds its bank reference"


def _instead_of(rival: Rival) -> str:
    if rival.sent:
        return f"Request {rival.request_id} was sent and may still mint: it keeps the reference for ever."
    return f"If this one is the right one: `bskt requests cancel {rival.request_id}` first."


# -- a new generation -------------------------------------------------------------------------------------------------
def _judge_new_generation(standing: Standing, evidence: Evidence | None) -> Verdict:
    state, facts = standing.state, standing.facts
    if state in _UNDERWAY and standing.generation > 0:
        return AlreadySo(sentence=_about(standing, f"is {state} as generation {standing.generation} already."))
    problem = _first(
        standing,
        (
            state in _UNDERWAY,
            f"It is {state}: {_UNDERWAY.get(state)}.",
            "A new id is for a request that failed or is under review.",
        ),
        (state in _NOT_TO_RETRY, *_NOT_TO_RETRY.get(state, ("", ""))),
        (
            standing.frozen_mode is None and not facts.sent,
            "Nothing was ever fixed under its present id, so it needs no other.",
            "`bskt requests retry` without `--new-generation`.",
        ),
        (
            facts.quarantined,
            "The database was restored: whether its present id was sent is not known yet.",
            "Wait until the quarantine is over; `bskt status` shows it.",
        ),
    ) or (_unproven(standing, standing.delivery, evidence) if facts.sent else None)
    if problem is not None:
        return problem
    after = decide(Event.NEW_GENERATION, state, replace(facts, evidence=facts.sent))
    if after is None:
        return _why_not_again(standing)
    return Will(
        sentence=_about(
            standing,
            f"goes from {state} to {after} as generation {standing.generation + 1}: it gets another id and new bytes; "
            "its present id is never sent again.",
        ),
        after=after,
        rests_on_evidence=facts.sent,
        warnings=(*_warn_restored(standing), *_warn_stopped(standing)),
    )


def _unproven(standing: Standing, sent: Delivery, evidence: Evidence | None) -> Refused | None:
    """Why it is not proven that of ``sent`` and what would be sent now at most one can mint; ``None`` where it is.

    Three things together prove it.  Nothing of what was sent can be on its way to a mint that the index has not seen:
    the evidence's block is final, indexed, and later than all that may have been delivered by itself.  The consumer of
    both is, at that block, code of which it is known that it refuses a used reference for ever.  And by that very
    consumer the reference is not used yet.
    """
    newest, block = standing.newest_final_block, standing.evidence_block
    if evidence is None:
        return _without_proof(
            standing,
            Unproven.NO_EVIDENCE,
            "What was sent may still mint at any time, whatever CRE or the chain say now.",
            f"`--evidence-block {newest}` asks the chain whether its consumer refuses used references for ever; only then "
            f"can at most one of two mint.  {_OTHERWISE}",
        )
    if block is None:
        return _without_proof(
            standing,
            Unproven.BLOCK_NOT_HELD,
            f"The index holds no final block {evidence.block_number}.",
            f"The newest final block that it holds is {newest}: `--evidence-block {newest}`.",
        )
    return (
        _too_early(standing, sent, evidence, block)
        or _about_another(standing, sent, evidence, block)
        or _not_refusing(standing, evidence)
    )


def _too_early(standing: Standing, sent: Delivery, evidence: Evidence, block: FinalBlock) -> Refused | None:
    if sent.until is None:
        return _without_proof(
            standing,
            Unproven.BLOCK_TOO_EARLY,
            "When it was last sent is not known, so no block is known to be late enough.",
            _OTHERWISE,
        )
    # By our clock too: a chain from the future proves nothing early.
    if min(block.at, standing.now) <= sent.until:
        return _without_proof(
            standing,
            Unproven.BLOCK_TOO_EARLY,
            f"What was sent may be delivered until {_time(sent.until)}; block {evidence.block_number} is of {_time(block.at)}.",
            "Wait for a final block after that time, and name that one.",
        )
    return None


def _about_another(standing: Standing, sent: Delivery, evidence: Evidence, block: FinalBlock) -> Refused | None:
    if sent.consumers != {standing.consumer}:
        return _without_proof(
            standing,
            Unproven.OTHER_CONSUMER,
            "It was sent to another consumer than its basket has now, and each keeps its own list of used references.",
            _OTHERWISE,
        )
    asked = evidence.block_hash, evidence.consumer, evidence.reference
    if asked != (block.hash, standing.consumer, standing.reference):
        return _without_proof(
            standing,
            Unproven.CHANGED,
            "Its block or its consumer changed since the chain was asked.",
            "Run the command again.",
        )
    return None


def _not_refusing(standing: Standing, evidence: Evidence) -> Refused | None:
    """Why the answers do not prove that the consumer refuses used references for ever, and has not used this one."""
    asked = len(evidence.answers) + len(evidence.failures)
    about = f"the consumer 0x{standing.consumer.hex()} in block {evidence.block_number}"
    if len(evidence.answers) < max(1, min(_LEAST_ENDPOINTS, asked)):
        why = "".join(f"; {name}: {failure}" for name, failure in evidence.failures)
        reason, sentence, remedy = (
            Unproven.TOO_FEW_ENDPOINTS,
            f"{len(evidence.answers)} of {asked} endpoints answered for {about}{why}.",
            "Wait for them, or name a newer final block, for a node forgets old state; all of BSKT_RPC_URL are asked.",
        )
    elif len({answer for _, answer in evidence.answers}) > 1:
        names = ", ".join(name for name, _ in evidence.answers)
        reason, sentence, remedy = (
            Unproven.ENDPOINTS_DISAGREE,
            f"The endpoints {names} say different things of {about}.",
            "`bskt check` looks at each of them; take the wrong one out of BSKT_RPC_URL.",
        )
    elif (answer := evidence.answers[0][1]).implementation is not None:
        reason, sentence, remedy = (
            Unproven.CONSUMER_UPGRADEABLE,
            f"{about} is an upgradeable proxy (to 0x{answer.implementation.hex()}): what it refuses today it may mint tomorrow.",
            _OTHERWISE,
        )
    elif answer.contract is None:
        code = "it has no code" if answer.code_hash is None else f"code hash 0x{answer.code_hash.hex()}"
        reason, sentence, remedy = (
            Unproven.CONSUMER_UNKNOWN,
            f"{about} is no contract that is known to refuse used references for ever ({code}).",
            _OTHERWISE,
        )
    elif answer.reference_is_used:
        reason, sentence, remedy = (
            Unproven.REFERENCE_USED,
            f"By {about} the reference is used: the deposit is minted, or a forged call used it up.",
            "`bskt verify` compares the index with the chain; nothing could be minted under this reference.",
        )
    else:
        return None
    return _without_proof(standing, reason, sentence[0].upper() + sentence[1:], remedy)


def _without_proof(standing: Standing, reason: Unproven, sentence: str, remedy: str) -> Refused:
    return replace(_refused(standing, sentence, remedy), unproven=reason)


_LEAST_ENDPOINTS: Final = 2
_OTHERWISE: Final = (
    "Otherwise it stays watched: wait, and ask CRE what became of its execution ids (`bskt requests show`); the user may "
    "ask again with another deposit."
)


# -- hold and release -------------------------------------------------------------------------------------------------
_NOT_TO_HOLD: Final[dict[State, tuple[str, str]]] = {
    State.ACCEPTED: (
        "CRE accepted it: nothing more is sent, and what was sent cannot be called back.",
        "`bskt pause` stops all others; this one ends at its deadline at the latest.",
    ),
    State.EXECUTED: ("It is minted.", "A hold stops sends; nothing is left to send."),
    State.COMPLETED: ("It is minted, and final.", "A hold stops sends; nothing is left to send."),
    State.CANCELLED: ("A person ended it for good.", "A hold stops sends; nothing is left to send."),
}


def _judge_hold(standing: Standing) -> Verdict:
    if standing.held_reason is not None and not standing.hold_ends_by_itself:
        return AlreadySo(sentence=_about(standing, f"is held already ({standing.held_reason})."))
    if standing.state in _NOT_TO_HOLD:
        return _refused(standing, *_NOT_TO_HOLD[standing.state])
    warning = "It was sent: a hold stops further sends, but what was sent may still mint."
    return Will(
        sentence=_about(standing, f"stays {standing.state} and is held: nothing is sent for it until it is released."),
        warnings=(warning,) if standing.facts.sent else (),
    )


def _judge_release(standing: Standing, evidence: Evidence | None) -> Verdict:
    if standing.state is State.REJECTED and standing.reason == DUPLICATE_BANK_REFERENCE:
        return _judge_release_of_duplicate(standing, evidence)
    if standing.held_for_its_basket:
        return _refused(
            standing,
            "Its basket is paused: it would be held again at once.",
            "`bskt baskets resume BASKET --reason …` ends the pause and releases all that wait for it.",
        )
    if standing.held_reason is not None:
        return Will(
            sentence=_about(standing, f"stays {standing.state} and is no longer held ({standing.held_reason})."),
            warnings=(*_warn_restored(standing), *_warn_stopped(standing)),
        )
    if standing.state is State.REJECTED:
        return _refused(
            standing,
            f"It was rejected by policy ({standing.reason}), and only a duplicate can be released.",
            "The user must ask again on chain.",
        )
    return AlreadySo(sentence=_about(standing, f"is {standing.state} and not held: there is nothing to release."))


def _judge_release_of_duplicate(standing: Standing, evidence: Evidence | None) -> Verdict:
    facts, rival = standing.facts, standing.rival
    if rival is not None:
        problem = _problem_with_two_requests(standing, rival, evidence)
        if problem is not None:
            return problem
        facts = replace(facts, evidence=True)
    after = decide(Event.RELEASE, standing.state, facts)
    if after is None:
        return _why_not_again(replace(standing, rival=None))
    takes = "takes the bank reference" if rival is None else f"takes the bank reference from request {rival.request_id}"
    held = "" if standing.held_reason is None else f", is no longer held ({standing.held_reason})"
    return Will(
        sentence=_about(standing, f"goes from rejected to {after}, {takes}{held} and waits for a minting slot."),
        after=after,
        rests_on_evidence=rival is not None,
        warnings=(*_warn_restored(standing), *_warn_stopped(standing)),
    )


def _problem_with_two_requests(standing: Standing, rival: Rival, evidence: Evidence | None) -> Refused | None:
    sentence = f"{_holder(rival)}: one deposit, one mint."
    if not rival.sent:
        return _refused(standing, sentence, _instead_of(rival))
    if rival.state in {State.CONFIRMED, State.CLAIMED, State.IN_DOUBT, State.ACCEPTED}:
        return _refused(standing, f"{_holder(rival)}, and it is underway.", "Wait for its end.")
    if rival.state in {State.EXECUTED, State.COMPLETED}:
        return _refused(standing, f"{_holder(rival)}, and it is minted.", "The deposit is used; nothing is left to do.")
    if standing.facts.quarantined:
        return _without_proof(
            standing,
            Unproven.QUARANTINED,
            f"{_holder(rival)}, and the database was restored: when that one was last sent is not known yet.",
            "Wait until the quarantine is over; `bskt status` shows it.",
        )
    if not (rival.is_on_this_chain and rival.shares_consumer and rival.shares_reference):
        return _without_proof(
            standing,
            Unproven.OTHER_REFERENCE,
            f"{_holder(rival)}, and would mint through another consumer or under another reference: nothing on chain "
            "could tell the two apart.",
            _instead_of(rival),
        )
    return _unproven(standing, rival.delivery, evidence)


# -- cancel -----------------------------------------------------------------------------------------------------------
def _judge_cancel(standing: Standing) -> Verdict:
    state = standing.state
    if state is State.CANCELLED:
        return AlreadySo(sentence=_about(standing, "is cancelled already."))
    after = decide(Event.CANCEL, state, standing.facts)
    if after is None:
        return _why_not_cancelled(standing)
    return Will(
        sentence=_about(standing, f"goes from {state} to cancelled, for good; its bank reference becomes free."),
        after=after,
        warnings=_warn_restored(standing),
    )


def _why_not_cancelled(standing: Standing) -> Refused:
    state, facts = standing.state, standing.facts
    until = "" if standing.lease_ends_at is None else f" until {_time(standing.lease_ends_at)} at the latest"
    return _first(
        standing,
        (
            state is State.DROPPED,
            "It has ended by itself: its block was orphaned for good, and nothing was sent.",
            "If its transaction is mined again it comes back as seen, and can be cancelled then.",
        ),
        (
            state in {State.EXECUTED, State.COMPLETED} or facts.doubtful_mint,
            "A mint with its reference is on chain, and may be its own.",
            "It stays as the record of that mint; a wrong one must be burnt.",
        ),
        (
            facts.sent,
            "It was sent, and nothing can call it back: it may mint at any time.",
            "`bskt requests hold` stops further sends; it stays watched.",
        ),
        (
            state is State.CLAIMED,
            f"A worker holds it{until} and may be about to send it.",
            "`bskt requests hold` stops that send; cancel it when it is confirmed again.",
        ),
        (
            facts.quarantined,
            "The database was restored: whether it was sent is not known yet.",
            f"`bskt requests hold` it; cancel it when the quarantine is over.  {_ask_cre(standing)}",
        ),
    ) or _refused(standing, f"It is {state}.", "`bskt requests show` says what it waits for.")


# -- resolve ----------------------------------------------------------------------------------------------------------
def _judge_resolve(standing: Standing, to: Literal["completed", "failed"]) -> Verdict:
    if standing.state == to:
        return AlreadySo(sentence=_about(standing, f"is {to} already."))
    if standing.state is not State.REVIEW:
        return _refused(
            standing,
            f"It is {standing.state}, and only a request under review is resolved by a person.",
            "`bskt requests show` says what it waits for.",
        )
    event = Event.RESOLVE_COMPLETED if to == "completed" else Event.RESOLVE_FAILED
    after = decide(event, standing.state, standing.facts)
    if after is State.COMPLETED:
        return Will(
            sentence=_about(standing, "goes from review to completed: its mint is proven and final."),
            after=after,
            warnings=() if standing.facts.mints == 1 else (f"It was minted {standing.facts.mints} times.",),
        )
    if after is not None:
        return Will(
            sentence=_about(standing, "goes from review to failed: no mint of it is on chain."),
            after=after,
            warnings=("It was sent: it stays watched, and may still mint.",) if standing.facts.sent else (),
        )
    return _why_not_resolved(standing, to)


def _why_not_resolved(standing: Standing, to: Literal["completed", "failed"]) -> Refused:
    facts = standing.facts
    if to == "failed":
        return _refused(
            standing,
            "A mint with its reference is on chain, and may be its own.",
            "If it is proven and final: `--as completed`.",
        )
    if facts.mints == 0:
        return _refused(
            standing,
            "No proven mint of it is on chain.",
            "`--as failed`, if no mint with its reference is there; it stays watched either way.",
        )
    if facts.chain_status is ChainStatus.ORPHANED:
        return _refused(
            standing,
            "It was minted, but the chain does not hold its request any more (an unbacked mint).",
            "It stays under review as the record of it; the tokens must be burnt or backed.",
        )
    if not facts.mint_is_final:
        return _refused(standing, "Its mint is not final yet.", "Wait until it is.")
    return _refused(
        standing,
        "Its mint is not what was asked for: another amount, or another recipient.",
        "It stays under review as the record of it; what was minted wrongly must be burnt or backed.",
    )


# -- words ------------------------------------------------------------------------------------------------------------
def _about(standing: Standing, predicate: str) -> str:
    return f"Request {standing.request_id} {predicate}"


def _refused(standing: Standing, sentence: str, remedy: str) -> Refused:
    return Refused(sentence=f"Request {standing.request_id}: {sentence}", remedy=remedy)


def _first(standing: Standing, *cases: tuple[bool, str, str]) -> Refused | None:
    """The refusal of the first case that is so."""
    return next((_refused(standing, sentence, remedy) for is_so, sentence, remedy in cases if is_so), None)


def _and_held(standing: Standing) -> str:
    if standing.held_reason is None:
        return ""
    return f"  It is held ({standing.held_reason}): `bskt requests release` lets it go on."


def _warn_stopped(standing: Standing) -> tuple[str, ...]:
    return () if standing.stopped is None else (standing.stopped,)


def _warn_restored(standing: Standing) -> tuple[str, ...]:
    if standing.restored_at is None:
        return ()
    lost = (
        f"The database was restored or moved on {_time(standing.restored_at)}: a send of this request may have been lost "
        "without any trace on chain."
    )
    return (f"{lost}  {_ask_cre(standing)}",)


def _ask_cre(standing: Standing) -> str:
    ids = ", ".join(each.hex() for each in standing.execution_ids)
    return f"Ask CRE first (`cre execution status ID`): {ids or 'no workflow is known'}."


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
