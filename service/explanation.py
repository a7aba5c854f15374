"""Why a request is where it is, what happens next, and what a person can do: in words.  Pure.

Every state, reason and hold has its sentence here, and the command line and HTTP say the same.  A code that is not
listed is shown as it is: a sentence that is wrong would be worse than none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from heapq import heapify, heappop, heappush
from typing import Final, TypeAlias

from eth_utils.address import to_checksum_address

from datastore.basket_pauses import HELD_BY_PAUSE
from datastore.breakers import Breaker
from datastore.claims import HELD_FOR_NOW
from datastore.inspection import Request
from datastore.lifecycle import MEANING, UNBACKED, ChainStatus, Event, Facts, State, decide
from datastore.mint_amount import MAX_DECIMALS, amount_text
from datastore.reference import reference_text
from datastore.status import Attention, Snapshot
from invocator.workflow_pool import workflow_of
from service.settings import Finality, Settings

NOT_ALLOWED: Final = "basket_not_allowed"
"""Why a request waits whose basket no person allowed, where only allowed ones are sent for.  No row holds it."""

LAGGING_SECONDS: Final = 60.0
"""An index that is further behind the head than this is lagging: a few blocks of the slowest chains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a request's fate depends on besides its row; blocks by number, -1 where a tag is not known.

    ``stopped`` says why nothing is sent now (a pause, a quarantine, a refused key), ``halted`` why nothing is indexed;
    ``None`` where it is.  ``facts`` by request id, of those that wait for a person and were asked about.
    """

    now: datetime
    indexed: int
    finalized: int
    safe: int
    trigger: Finality
    complete: Finality
    in_flight: int
    max_in_flight: int
    requester_share: int
    basket_share: int
    unserved_share: int
    only_allowed: bool
    give_up: timedelta
    stopped: str | None
    halted: str | None
    queue: dict[int, Waiting]
    facts: Mapping[int, Facts] = field(default_factory=dict)
    workflow_ids: tuple[bytes, ...] = ()
    refused_workflows: Mapping[bytes, Breaker] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A place in the queue, from 1 on; ``expected_at`` is an estimate, and no earlier than anything known allows."""

    position: int
    expected_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """``why`` it is where it is, what happens ``next`` by itself, and the ``commands`` that a person may give."""

    label: str
    why: str
    next: str
    commands: tuple[str, ...] = ()


_Said: TypeAlias = tuple[str, str]
"""Why, and what happens next."""


# ---------------------------------------------------------------------------------------------------------------------
# Codes in words
# ---------------------------------------------------------------------------------------------------------------------
REASONS: Final = {
    # judged by the indexer
    "allowed": "It is final enough, the policy allows it, and it holds its bank reference.",
    "duplicate_bank_reference": "Another request holds the same bank reference: one deposit backs one mint.",
    "amount_below_minimum": "It asks for less than BSKT_MIN_MINT_TOKENS.",
    "amount_drifts": "The workflow's arithmetic would mint too different an amount (BSKT_MAX_DRIFT_TOKENS).",
    "look_alike_of_orphaned": "A request that looks like this one was sent and then lost its block: it may still mint.",
    "contested_bank_reference": "Different beneficiaries ask for the same deposit, and none was sent.",
    "look_alike_reference": "Its bank reference differs from another request's only in case, spaces or dashes.",
    "reference_already_minted": "The chain already shows a mint with this bank reference that is not ours.",
    "amount_zero": "It asks for nothing.",
    "amount_not_representable": "The workflow's arithmetic cannot mint this amount.",
    "amount_above_cap": "It asks for more than BSKT_MAX_MINT_TOKENS.",
    "bank_reference_missing": "It names no bank reference, so no deposit backs it.",
    "beneficiary_special": "The beneficiary is the zero address or one of the chain's own.",
    "beneficiary_is_protocol": "The beneficiary is a contract of the protocol itself.",
    # seen on chain
    "block_orphaned": "A reorg took its block away.",
    "re_mined": "Its transaction was mined again.",
    "report_orphaned": "A reorg took the failed delivery away.",
    "mint_orphaned": "A reorg took its mint away.",
    "lost_send_found": "The chain holds a report of it, but no attempt is recorded: a restore lost what sent it.",
    "rival_sent": "Another request for the same deposit was sent, as the chain shows after a restore.",
    "delivery_failed": "The forwarder reports that the delivery failed on chain; anyone may deliver it again.",
    "delivered_without_mint": "The forwarder reports a delivery, but its transaction holds no mint of this request.",
    "mint_proven": "Its mint is on chain, proven by the forwarder's report in the same transaction.",
    "rival_minted": "Another request for the same deposit was minted.",
    "reference_minted": "A mint with its reference is on chain that no delivery of ours accounts for.",
    "rival_gave_up": "The request that held its bank reference gave it up: it is judged again.",
    "contested": "Another request asks for the same deposit for another beneficiary.",
    UNBACKED: "Its request left the chain for good, and it was sent or minted: tokens without a request.",
    "orphaned_for_good": "Its block was orphaned, and finality has passed: it will not come back.",
    "mint_final": "Request and mint are final.",
    # done by the invocator
    "claim": "A worker took it.",
    "given_back": "The worker gave it back; nothing was sent.",
    "no_slot": "It could not be sent at that moment (a slot or place was taken, or it was stopped); nothing was sent.",
    "lease_expired": "The worker's lease ended before it sent anything.",
    "attempt_started": "An attempt begins; from here on it may have been delivered.",
    "accepted": "CRE accepted it.",
    "refused_now": "CRE had no room for it; nothing was forwarded.",
    "refused_for_good": "CRE refuses these bytes for good.",
    "instance_refused": "CRE refused this instance or its workflow (key, workflow or clock); nothing was forwarded.",
    "never_connected": "The gateway could not be reached; nothing was sent.",
    "payload_conflict": "CRE knows this id with other bytes.",
    "not_delivered": "CRE accepted it, but no delivery reached the chain before the deadline.",
    "gave_up": "No attempt got an answer that settles whether it was delivered.",
    "resend": "It was not delivered long ago: the same bytes are sent again under the same id.",
    "mode_changed": "It is frozen for another mode (BSKT_CRE_MODE).",
    "order_malformed": "No payload can be made of it.",
    "consumer_of_another_token": "The basket's consumer mints another token.",
    "decimals_changed": "The token has other decimals than when they were first read.",
    "decimals_not_supported": "The token does not have the 18 decimals that the workflow assumes.",
    "consumer_changed": "The basket has another consumer than when the request was frozen.",
    "workflow_retired": "It is frozen for a workflow that is no longer configured.",
    "signer_changed": "It is frozen for another signer.",
    "already_reported": "The chain holds a report with an execution id of this request.",
    # done by a person
    "retry": "A person had it tried again.",
    "cancel": "A person cancelled it.",
    "release": "A person released it.",
    "new_generation": "A person gave it a new id.",
    "resolve_completed": "A person found it minted.",
    "resolve_failed": "A person found it not minted.",
}
"""What each reason of a transition means."""

HOLDS: Final = {
    "operator": "a person holds it (the timeline says who and why)",
    "before_first_trigger_block": "its block is below BSKT_TRIGGER_FROM_BLOCK: history is not minted again by itself",
    "backfill": "it was found by `bskt backfill`, or belongs to a factory that was added later",
    "basket_paused": "its basket is paused (`bskt baskets show` says why)",
    NOT_ALLOWED: "its basket is not allowed, and only allowed ones are sent for (BSKT_SERVED_BASKETS=listed)",
    # These end by themselves.
    "daily_cap": "the daily cap (BSKT_DAILY_CAP_TOKENS) is reached",
    "amount_above_cap": "it asks for more than BSKT_MAX_MINT_TOKENS or a whole day of BSKT_DAILY_CAP_TOKENS allows",
    "basket_not_canonical": "no basket of this branch has this token and this consumer",
    "node_unavailable": "no endpoint answers for its transaction, so it is not known whether it was asked for",
    "not_witnessed": "an endpoint's receipt of its transaction does not hold it, so it may never have been asked for",
    "not_a_minter": "the basket's consumer may not mint its token now",
}
"""Why a request is held."""

ANSWERS: Final = {
    "accepted": "accepted",
    "refused_now": "refused for now, nothing was forwarded",
    "refused_for_good": "refused for good",
    "instance_refused": "refused for a fault of this instance or its workflow, nothing was forwarded",
    "never_connected": "never connected, nothing was sent",
    "in_flight": "an earlier call with this id is still in flight",
    "payload_conflict": "a conflict: CRE knows this id with other bytes",
    "unknown": "not understood, it may have been delivered",
}
"""What each outcome of an attempt means."""

_REVIEW_COMMANDS: Final = {
    "contested_bank_reference": ("retry", "cancel"),
    "contested": ("retry", "cancel"),
    "reference_already_minted": ("cancel", "retry"),
    "reference_minted": ("resolve", "retry", "cancel"),
    "rival_minted": ("resolve", "cancel"),
    "rival_sent": ("cancel", "resolve"),
    "lost_send_found": ("resolve",),
    "delivered_without_mint": ("resolve", "retry"),
    "mint_orphaned": ("retry", "resolve"),
    "mint_final": ("resolve",),
    UNBACKED: ("resolve",),
    "gave_up": ("retry", "resolve"),
    "payload_conflict": ("resolve",),
    "refused_for_good": ("retry", "cancel"),
    "consumer_changed": ("cancel",),
    "workflow_retired": ("retry", "cancel"),
    "signer_changed": ("retry", "cancel"),
    "look_alike_of_orphaned": ("retry", "cancel"),
    "look_alike_reference": ("cancel", "retry"),
    "decimals_not_supported": ("cancel",),
    "decimals_changed": ("cancel",),
    "consumer_of_another_token": ("cancel",),
    "mode_changed": ("cancel", "retry"),
    "already_reported": ("resolve",),
}


_EVENTS: Final = {
    "retry": {"": Event.RETRY},
    "cancel": {"": Event.CANCEL},
    "release": {"": Event.RELEASE},
    "resolve": {" --as completed": Event.RESOLVE_COMPLETED, " --as failed": Event.RESOLVE_FAILED},
}
"""By command and option: what the lifecycle's guards are asked about."""


# ---------------------------------------------------------------------------------------------------------------------
# Values in words
# ---------------------------------------------------------------------------------------------------------------------
def moment(at: datetime) -> str:
    """A time for people: UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(seconds: float) -> str:
    """A duration for people, in its two largest units."""
    rest = max(0, round(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, length)
        if number or (unit == "s" and not parts):
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def counted(number: int, thing: str) -> str:
    """``1 block``, ``2 blocks``."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def tokens(request: Request, wei: int | None = None) -> str:
    """An amount for people, with the basket's symbol."""
    return f"{amount(request.amount if wei is None else wei, request.decimals)} {request.symbol or 'tokens'}"


def amount(wei: int, decimals: int | None) -> str:
    """An amount in tokens; a token that claims impossible decimals is taken for one of 18, as the workflow does."""
    known = decimals is not None and 0 <= decimals <= MAX_DECIMALS
    return amount_text(wei, decimals if decimals is not None and known else MAX_DECIMALS)


def reference(bank_reference: bytes) -> str:
    """A bank reference as its text where it has one, as hex where not."""
    return reference_text(bank_reference) or "0x" + bank_reference.hex()


def address(octets: bytes) -> str:
    """An address with its checksum (EIP-55)."""
    return str(to_checksum_address(octets))


def block_time(timestamp: int | None) -> datetime | None:
    """A block's time; ``None`` for one that is not known or that no calendar holds: a chain may say anything."""
    if timestamp is None:
        return None
    try:
        return datetime.fromtimestamp(timestamp, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def confirmations(number: int, finality: Finality, standing: Standing) -> tuple[int, int]:
    """How many confirmations block ``number`` has, and how many it needs.

    For ``depth:N`` the need is exact.  For a tag it is what the chain's finality takes now: the distance from the tip
    to the tag.
    """
    reached = max(0, standing.indexed - number + 1)
    if finality.depth_blocks is not None:
        needed = finality.depth_blocks
    else:
        tag = standing.finalized if finality.kind == "finalized" else standing.safe
        if tag < 0:
            return reached, max(reached + 1, 1)  # the chain has not said yet
        needed = standing.indexed - tag + 1
        if number <= tag:
            needed = min(needed, reached)
    return min(reached, needed), max(1, needed)


# ---------------------------------------------------------------------------------------------------------------------
# The queue
# ---------------------------------------------------------------------------------------------------------------------
def expected_times(
    positions: dict[int, int], *, now: datetime, free_at: Iterable[datetime | None], interval: timedelta, burst: int
) -> dict[int, Waiting]:
    """When each waiting request may be triggered, if every trigger takes the workflow that is free first.

    Args:
        positions: By request id, from 1 on.
        now: The database's time.
        free_at: When each workflow's next slot begins; ``None`` for one that was never used.
        interval: Between two triggers of one workflow.
        burst: Triggers of one workflow allowed at once.
    """
    # As claims paces: a workflow may be triggered while its theoretical arrival time is at most burst - 1 ahead.
    arrivals = [max(now, at or now) for at in free_at] or [now]
    heapify(arrivals)
    slack = interval * (burst - 1)
    ids = {position: request_id for request_id, position in positions.items()}
    waiting = {}
    for position in range(1, max(ids, default=0) + 1):
        arrival = heappop(arrivals)
        if (request_id := ids.get(position)) is not None:
            waiting[request_id] = Waiting(position=position, expected_at=max(now, arrival - slack))
        heappush(arrivals, arrival + interval)
    return waiting


def standing(
    settings: Settings,
    snapshot: Snapshot,
    attention: Attention,
    positions: dict[int, int] | None = None,
    facts: Mapping[int, Facts] | None = None,
) -> Standing:
    """What the rows and the settings say about the whole instance; ``positions`` in the queue by request id.

    With the ``facts`` of a request, by id, only such commands are offered as would not be refused now.
    """
    configured = [slot.next_at for slot in snapshot.slots if slot.workflow_id in settings.cre_workflow]
    return Standing(
        now=snapshot.read_at,
        indexed=snapshot.indexed,
        finalized=snapshot.finalized,
        safe=snapshot.safe,
        trigger=settings.trigger_finality,
        complete=settings.complete_finality,
        in_flight=snapshot.in_flight,
        max_in_flight=settings.cre_max_in_flight,
        requester_share=settings.requester_share,
        basket_share=settings.basket_share,
        unserved_share=settings.unserved_share,
        only_allowed=settings.only_allowed,
        give_up=timedelta(seconds=settings.give_up_seconds),
        stopped=_stopped(snapshot, attention),
        halted=snapshot.halted,
        queue=expected_times(
            positions or {},
            now=snapshot.read_at,
            free_at=configured or [slot.next_at for slot in snapshot.slots],
            interval=timedelta(seconds=settings.cre_seconds_per_trigger),
            burst=settings.cre_burst,
        ),
        facts=facts or {},
        workflow_ids=settings.cre_workflow,
        refused_workflows={
            each.workflow_id: each for each in attention.refused_workflows if each.workflow_id is not None
        },
    )


def is_lagging(snapshot: Snapshot) -> bool:
    """Whether the index is so far behind the head that people would notice."""
    return snapshot.lag_blocks > 0 and snapshot.lag_seconds > LAGGING_SECONDS


def _stopped(snapshot: Snapshot, attention: Attention) -> str | None:
    if snapshot.halted is not None:
        return f"the indexer has halted ({snapshot.halted}), and what it cannot vouch for is not sent"
    if snapshot.paused is not None:
        return f"a person has paused the invocator ({snapshot.paused}); `bskt resume` ends that"
    if snapshot.quarantined is not None:
        until = moment(snapshot.quarantined_until) if snapshot.quarantined_until else "finality has passed it"
        return f"the instance is in quarantine at least until {until} ({snapshot.quarantined})"
    if not snapshot.is_home:
        return "these rows were written on another database server; `bskt run` puts the instance in quarantine first"
    return None if attention.sends_fail is None else _refused(attention.sends_fail)


def _refused(breaker: Breaker) -> str:
    word = ANSWERS.get(breaker.outcome, breaker.outcome)
    answers, probe = counted(breaker.answers, "answer"), moment(breaker.next_probe_at)
    return f"the latest {answers} of CRE: {word} ({breaker.sentence}); the next probe is due at {probe}"


def _stopped_for(request: Request, standing: Standing) -> str | None:
    """Why nothing is sent now, or nothing for the request's workflow."""
    if standing.stopped is not None or not standing.refused_workflows:
        return standing.stopped
    workflow_id = request.workflow_id or workflow_of(request.nonce, standing.workflow_ids or (b"",))
    breaker = standing.refused_workflows.get(workflow_id)
    return None if breaker is None else f"of its workflow 0x{workflow_id.hex()}, {_refused(breaker)}"


# ---------------------------------------------------------------------------------------------------------------------
# Where a request is, and why
# ---------------------------------------------------------------------------------------------------------------------
def label(request: Request, standing: Standing) -> str:
    """The state as people see it (design §4), with its confirmations where it waits for them."""
    text = MEANING[request.state][1]
    if request.state is State.SEEN:
        reached, needed = confirmations(request.block_number, standing.trigger, standing)
        if request.chain_status is ChainStatus.ORPHANED:
            reached = 0
        return f"{text} ({reached}/{needed})"
    if request.state is State.EXECUTED and request.mint_block_number is not None:
        # The mint is never below its request.
        reached, needed = confirmations(request.mint_block_number, standing.complete, standing)
        return f"{text} ({reached}/{needed})"
    return text


def explain(request: Request, standing: Standing) -> Explanation:
    """The whole answer to "what about this one?"."""
    why, following = _EXPLAINED[request.state](request, standing)
    if request.held_at is not None and request.state in {State.SEEN, State.CONFIRMED, State.IN_DOUBT}:
        why += f"  It is held since {moment(request.held_at)}: {hold(request.held_reason)}."
        following = "Nothing is sent until a person releases it."
        if request.held_reason in HELD_FOR_NOW and request.next_attempt_at is not None:
            following = f"It is looked at again at {moment(request.next_attempt_at)}, or when a person releases it."
        if request.held_reason == HELD_BY_PAUSE:
            following = "Nothing is sent until a person resumes the basket."
    if request.chain_status is ChainStatus.ORPHANED and request.state is not State.SEEN:
        gone = " for good" if request.orphaned_for_good else ""
        why += f"  A reorg has taken its block {request.block_number} away{gone}."
    if request.mints > 1:
        why += f"  There are {request.mints} proven mints of it on chain."
    return Explanation(
        label=label(request, standing),
        why=why,
        next=following,
        commands=_commands(request, held_reason(request, standing), standing.facts.get(request.id)),
    )


def held_reason(request: Request, standing: Standing) -> str | None:
    """The code of what keeps a request from being claimed; ``None`` if nothing does."""
    waits_for_its_basket = standing.only_allowed and not request.basket_is_allowed
    if request.held_at is None and request.state is State.CONFIRMED and waits_for_its_basket:
        return NOT_ALLOWED
    return request.held_reason


def hold(reason: str | None) -> str:
    """A hold in words; a person's own reason as it is."""
    return HOLDS.get(reason or "", reason or "for no stated reason")


def reason(code: str | None, detail: str | None = None) -> str:
    """A reason in words: its detail where it has one, for that is about this very request."""
    if detail:
        return detail
    return REASONS.get(code or "", f"{code or 'No reason was recorded'}.")


def _commands(request: Request, held: str | None, facts: Facts | None) -> tuple[str, ...]:
    verbs: Sequence[str] = ()
    if request.state is State.REVIEW:
        verbs = _REVIEW_COMMANDS.get(request.state_reason or "", ("retry", "cancel", "resolve"))
    elif request.state is State.FAILED:
        verbs = ("retry",)
    elif held == NOT_ALLOWED:
        return (f"bskt baskets allow 0x{request.stablecoin.hex()} --reason …",)
    elif request.held_at is not None and request.state in {State.SEEN, State.CONFIRMED, State.IN_DOUBT}:
        if request.held_reason == HELD_BY_PAUSE:
            return (f"bskt baskets resume 0x{request.stablecoin.hex()} --reason …",)
        verbs = ("release",)
    # A request that was sent can never be cancelled: it may still be minted.
    verbs = [verb for verb in verbs if not (verb == "cancel" and request.sent)]
    if facts is None:
        options = {"resolve": " --as completed|failed"}
        return tuple(f"bskt requests {verb} {request.id}{options.get(verb, '')} --reason …" for verb in verbs)
    return tuple(
        f"bskt requests {verb} {request.id}{option} --reason …"
        for verb in verbs
        for option, event in _EVENTS.get(verb, {}).items()
        if decide(event, request.state, facts) is not None
    )


def _seen(request: Request, standing: Standing) -> _Said:
    if request.chain_status is ChainStatus.ORPHANED:
        why = f"A reorg has taken its block {request.block_number} away; nothing was sent."
        return why, "It counts again when its transaction is mined again; if finality passes without it, it is dropped."
    reached, needed = confirmations(request.block_number, standing.trigger, standing)
    why = (
        f"It was recorded in block {request.block_number}, which is not final enough yet ({standing.trigger}): "
        f"{reached} of {needed} confirmations."
    )
    if standing.halted is not None:
        return why, f"Nothing: the indexer has halted: {standing.halted}."
    return why, "Then it is judged (policy, bank reference), and waits for a minting slot."


def _confirmed(request: Request, standing: Standing) -> _Said:
    if held_reason(request, standing) == NOT_ALLOWED:
        why = f"It is final enough, and waits: {hold(NOT_ALLOWED)}."
        return why, "Nothing is sent until a person allows the basket."
    why = "It is final enough and allowed, and waits for a minting slot."
    place = standing.queue.get(request.id)
    if place is not None:
        why += f"  It is number {place.position} in the queue."
    if (stopped := _stopped_for(request, standing)) is not None:
        return why, f"Nothing is sent now: {stopped}."
    if standing.in_flight >= standing.max_in_flight:
        following = (
            f"{standing.in_flight} requests are undelivered and no more than {standing.max_in_flight} may be "
            "(BSKT_CRE_MAX_IN_FLIGHT): it goes on when one of them is delivered or its deadline passes."
        )
    elif request.requester_in_flight >= standing.requester_share:
        following = (
            f"{request.requester_in_flight} requests of its requester are undelivered and no more than "
            f"{standing.requester_share} may be (BSKT_REQUESTER_MAX_IN_FLIGHT): others go first."
        )
    elif request.basket_in_flight >= standing.basket_share:
        following = (
            f"{request.basket_in_flight} requests of its basket are undelivered and no more than "
            f"{standing.basket_share} may be (BSKT_BASKET_MAX_IN_FLIGHT): others go first."
        )
    elif (
        request.are_served_baskets
        and not request.basket_is_served
        and request.unserved_in_flight >= standing.unserved_share
    ):
        following = (
            f"{request.unserved_in_flight} requests of baskets that are not served are undelivered and no more than "
            f"{standing.unserved_share} may be (half of BSKT_CRE_MAX_IN_FLIGHT): served baskets go first."
        )
    elif request.next_attempt_at is not None and request.next_attempt_at > standing.now:
        following = f"CRE did not take it; it is tried again from {moment(request.next_attempt_at)} on."
    else:
        following = "A worker claims it, freezes its bytes and sends it."
    if place is not None:
        following += f"  Expected at {moment(place.expected_at)} or soon after."
    return why, following


def _claimed(request: Request, standing: Standing) -> _Said:
    ends = moment(request.lease_ends_at) if request.lease_ends_at else "soon"
    why = f"Worker {str(request.worker_id)[:8]} holds it until {ends}; nothing was sent by this claim."
    if (stopped := _stopped_for(request, standing)) is not None:
        return why, f"Nothing is sent now: {stopped}."
    return why, "The worker sends it, or its lease ends and it waits again."


def _in_doubt(request: Request, standing: Standing) -> _Said:
    word = ANSWERS.get(request.last_outcome or "", "no answer is recorded, it may have been delivered")
    why = f"Of {counted(request.attempts, 'attempt')}, the latest: {word}."
    if request.last_sentence:
        why += f"  {request.last_sentence}"
    if request.chain_status is ChainStatus.ORPHANED:
        return why, "Nothing more is sent while its block is orphaned; a mint of it is still watched for."
    if (stopped := _stopped_for(request, standing)) is not None:
        return why, f"Nothing is sent now: {stopped}.  A mint of it is still watched for."
    due = moment(request.next_attempt_at) if request.next_attempt_at else "the next tick"
    given_up = moment(request.state_changed_at + standing.give_up)
    return why, f"The same bytes are sent again, under the same id, from {due} on; after {given_up} a person decides."


def _accepted(request: Request, _: Standing) -> _Said:
    accepted_at = moment(request.state_changed_at)
    why = f"CRE accepted it at {accepted_at}; that promises nothing, and no delivery is on chain yet."
    deadline = moment(request.deadline_at) if request.deadline_at else "its deadline"
    following = (
        f"Its mint is recorded when it appears.  Without a delivery by {deadline} it is failed (not_delivered), and "
        "still watched."
    )
    return why, following


def _executed(request: Request, standing: Standing) -> _Said:
    why = f"{_minted(request)}, proven; not final enough yet ({standing.complete})."
    return why, "It is completed when request and mint are final and the amount is right."


def _completed(request: Request, _: Standing) -> _Said:
    if request.state_reason == "resolve_completed":
        return reason(request.state_reason, request.state_detail), "Nothing."
    how = "by the transaction that the simulation returned" if request.mint_proof == "simulated" else "by its report"
    return f"{_minted(request)}, proven {how}; request and mint are final.", "Nothing."


def _minted(request: Request) -> str:
    where = "" if request.mint_block_number is None else f" in block {request.mint_block_number}"
    return f"Minted {tokens(request, request.mint_amount)}{where}"


def _rejected(request: Request, _: Standing) -> _Said:
    following = "Nothing: it is never minted."
    if request.state_reason == "duplicate_bank_reference":
        rival = f"request {request.rival_id}" if request.rival_id is not None else "the other request"
        following = f"Nothing, unless {rival} gives the bank reference up: then it is judged again."
    return reason(request.state_reason, request.state_detail), following


def _failed(request: Request, _: Standing) -> _Said:
    following = (
        "It is still watched: a late mint is recorded and completes it.  A retry sends the same bytes under the same "
        "id; CRE answers a repeated id from a cache for up to 48 hours, so it makes sense after that."
    )
    return reason(request.state_reason, request.state_detail), following


def _dropped(request: Request, _: Standing) -> _Said:
    why = f"Its block {request.block_number} was orphaned for good; nothing was sent."
    return why, "If its transaction is mined again after all, it comes back."


def _review(request: Request, standing: Standing) -> _Said:
    following = "Nothing by itself: a person decides.  A proven mint is recorded whatever happens."
    if request.id in standing.facts and not _commands(request, None, standing.facts[request.id]):
        following = (
            "Nothing that a person could do is safe now: a mint with its reference is on chain and nobody can say whose"
            " it is, or is not final, or not what was asked for, or another request holds the reference.  A proven mint"
            " is recorded."
        )
    return reason(request.state_reason, request.state_detail), following


def _cancelled(request: Request, _: Standing) -> _Said:
    return reason(request.state_reason, request.state_detail), "Nothing."


_EXPLAINED: Final = {
    State.SEEN: _seen,
    State.CONFIRMED: _confirmed,
    State.CLAIMED: _claimed,
    State.IN_DOUBT: _in_doubt,
    State.ACCEPTED: _accepted,
    State.EXECUTED: _executed,
    State.COMPLETED: _completed,
    State.REJECTED: _rejected,
    State.FAILED: _failed,
    State.DROPPED: _dropped,
    State.REVIEW: _review,
    State.CANCELLED: _cancelled,
}
