"""The transactions of the datastore, each as one function from rows to rows.

The decisions are the datastore's own: ``lifecycle.decide`` and ``keeps_reference``, ``judgement.judge``,
``instructions.judge``, and which outcome is which event (``claims``).  What stands here is only what SQL does around
them; each function names what it mirrors.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import NamedTuple

from datastore import claims
from datastore.instructions import (
    Cancel,
    ConsumerAnswer,
    Delivery,
    Evidence,
    FinalBlock,
    Instruction,
    NewGeneration,
    Release,
    Resolve,
    Retry,
    Rival,
    Standing,
    Will,
)
from datastore.instructions import judge as instruct
from datastore.judgement import (
    DUPLICATE_BANK_REFERENCE,
    Allowed,
    Candidate,
    ForReview,
    Holder,
    Refused,
    Undecided,
    judge,
)
from datastore.lifecycle import (
    Actor,
    ChainStatus,
    Event,
    Facts,
    State,
    allowed_transitions,
    decide,
    keeps_reference,
)
from tests.model.world import OPEN, Database, Execution, Item, Row, Scenario, Worker, with_item

_ALLOWED = allowed_transitions()
_UNDERWAY = frozenset({State.CONFIRMED, State.CLAIMED, State.IN_DOUBT, State.ACCEPTED})
_CACHED = 1 << 16


# -- facts (settlement._FACTS) ---------------------------------------------------------------------------------------


def is_of(execution: Execution | None, request: int, row: Row | None) -> bool:
    """Whether an ``execution_id`` row says that a report is of this request."""
    if execution is None or row is None or execution.request != request:
        return False
    return execution[1:] in row.frozen or execution[1:] in row.found


def is_sent(database: Database, request: int, scenario: Scenario) -> bool:
    """Design §4: an attempt that no answer proves not forwarded, or a report of its ids ever indexed."""
    row = row_of(database, request)
    if scenario.design.sent == "accepted only":
        return "accepted" in row.attempts
    return any(outcome not in claims.REFUSED_BEFORE_FORWARDING for outcome in row.attempts) or any(
        is_of(each, request, row) for each in database.reported
    )


def place(database: Database, request: int) -> int | None:
    """The position of a request on the indexed branch."""
    for position, item in enumerate(database.view):
        if item.execution is None and item.request == request:
            return position
    return None


def is_proven(item: Item, database: Database) -> bool:
    """Whether a mint on the indexed branch is proven for a request."""
    return item.minted and item.execution in database.proven


def holder_of(database: Database, reference: int, scenario: Scenario) -> int | None:
    """The request that holds a bank reference."""
    for request, row in enumerate(database.rows):
        if row is not None and row.holds and scenario.reference(request) == reference:
            return request
    return None


def facts(database: Database, request: int, scenario: Scenario, *, final_enough: bool = False) -> Facts:
    """What ``settlement._FACTS`` reads."""
    row = row_of(database, request)
    position = place(database, request)
    if position is None:
        status = ChainStatus.ORPHANED
    else:
        status = ChainStatus.FINALIZED if position < database.final else ChainStatus.CANONICAL
    reference = scenario.expected_reference(request)
    mints, visible, doubtful, is_final = 0, False, False, status is ChainStatus.FINALIZED
    for number, item in enumerate(database.view):
        if item.minted and scenario.expected_reference(item.request) == reference:
            visible = True
            doubtful |= not is_proven(item, database) or item.request == request
            if item.request == request and is_proven(item, database):
                mints += 1
                is_final &= number < database.final
    strays = any(is_of(each, request, row) and each.nonce != row.nonce for each in database.reported)
    return _facts(
        status,
        row.gone,
        is_sent(database, request, scenario),
        "accepted" in row.attempts,
        final_enough and position is not None,
        mints,
        visible,
        doubtful,
        is_final and mints > 0,
        row.holds,
        holder_of(database, scenario.reference(request), scenario) not in {None, request},
        strays and not row.evidence,
        database.quarantined,
    )


@cache
def _facts(
    status: ChainStatus,
    gone: bool,
    sent: bool,
    accepted_once: bool,
    final_enough: bool,
    mints: int,
    visible_mint: bool,
    doubtful_mint: bool,
    mint_is_final: bool,
    holds: bool,
    rival_holds: bool,
    stray_report: bool,
    quarantined: bool,
) -> Facts:
    return Facts(
        chain_status=status,
        orphaned_for_good=gone,
        sent=sent,
        accepted_once=accepted_once,
        final_enough=final_enough,
        mints=mints,
        visible_mint=visible_mint,
        doubtful_mint=doubtful_mint,
        mint_is_right=mints > 0,
        mint_is_final=mint_is_final,
        holds_reference=holds,
        rival_holds_reference=rival_holds,
        stray_report=stray_report,
        quarantined=quarantined,
    )


_decide = cache(decide)


# -- settlement ------------------------------------------------------------------------------------------------------


class Move(NamedTuple):
    """``settlement.Move``."""

    request: int
    after: State
    reason: str
    sent: bool
    takes_reference: bool = False


def settle(database: Database, actor: Actor, event: Event, requests: Iterable[int], scenario: Scenario) -> Database:
    """``settlement.settle``: feed one event to requests; what the table does not list stays as it is."""
    moves = []
    for request in requests:
        row = database.rows[request]
        if row is None:
            continue
        known = facts(database, request, scenario)
        after = _decide(event, row.state, known)
        if after is not None and after is not row.state:
            moves.append(Move(request, after, event.value, known.sent))
    return _move(database, actor, moves, scenario)


def _move(database: Database, actor: Actor, moves: list[Move], scenario: Scenario) -> Database:
    """``settlement.move``, the trigger and the constraints of the schema."""
    if not moves or database.refused:
        return database
    rows = list(database.rows)
    for request, after, reason, sent, takes in moves:
        row = row_of(database, request)
        if (actor, row.state, after) not in _ALLOWED:
            return database._replace(refused=f"{actor} may not take request {request} from {row.state} to {after}")
        holds = takes or keeps_reference(before=row.state, after=after, sent=sent, held=row.holds)
        kept = reason if reason in _REASONS_THAT_MATTER else ""
        rows[request] = row._replace(state=after, reason=kept, holds=holds)
    return database._replace(rows=tuple(rows), refused=_broken_constraint(rows, scenario))


_REASONS_THAT_MATTER = frozenset({DUPLICATE_BANK_REFERENCE, Event.DELIVERY_FAILED.value, Event.DEADLINE.value})


def _broken_constraint(rows: list[Row | None], scenario: Scenario) -> str:
    """The constraint of ``schema.sql`` that refuses these rows."""
    holders = [scenario.reference(n) for n, row in enumerate(rows) if row is not None and row.holds]
    if len(holders) != len(set(holders)):
        return "bank_reference_is_held_once"
    for row in rows:
        if row is not None and row.state in _UNDERWAY and not row.holds:
            return "mint_request_holds_its_reference_while_underway"
        if row is not None and row.state in {State.DROPPED, State.CANCELLED} and row.holds:
            return "mint_request_ended_without_a_send_holds_nothing"
    return ""


def row_of(database: Database, request: int) -> Row:
    """The row of a request that is recorded."""
    row = database.rows[request]
    if row is None:
        raise AssertionError(f"request {request} is not recorded")
    return row


def with_row(database: Database, request: int, row: Row) -> Database:
    """The rows with one of them replaced."""
    rows = database.rows
    return database._replace(rows=(*rows[:request], row, *rows[request + 1 :]))


# -- the indexer (following.commit) ----------------------------------------------------------------------------------


@lru_cache(_CACHED)
def commits(
    database: Database,
    chain: tuple[Item, ...],
    final: int,
    deployed: int,
    unused: tuple[int, ...],
    scenario: Scenario,
    *,
    quarantine_may_end: bool,
) -> tuple[tuple[str, Database], ...]:
    """What one commit may make of the rows, in the order of the design: orphanings, requests, …, finality.

    Trigger finality is the chain's own, or the head; finality has passed the old blocks of what is orphaned, or not.

    Args:
        database: Before.
        chain: The canonical chain.
        final: How many of its items are final.
        deployed: The workflow of the settings.
        unused: A nonce for each request, where they are not derived.
        scenario: The bounds.
        quarantine_may_end: The clocks say so.
    """
    if database.held < database.final:
        raise AssertionError("an honest chain never leaves finalized blocks")
    new = chain[database.held :]
    recorded = _record(_orphan(database, scenario), chain, unused, scenario)
    outcomes: dict[Database, str] = {}
    for ends in (False, True) if recorded.quarantined and quarantine_may_end else (False,):
        settled = _settle_outcomes(*_search(recorded, new, deployed, scenario, ends=ends), new, scenario)
        for height, finality in ((final, ""), (len(chain), ", trigger finality is the head")):
            judged = _judge(settled, height, scenario)
            for for_good, passed in ((False, ""), (True, ", finality passed what is orphaned")):
                after = _settle_finality(judged, final, scenario, for_good=for_good)
                label = "the indexer commits" + (", the quarantine ends" if ends else "") + finality + passed
                outcomes.setdefault(after, label)
    return tuple((label, after) for after, label in outcomes.items())


def _orphan(database: Database, scenario: Scenario) -> Database:
    """``following._orphan`` and ``following.lose``."""
    lost, left = database.view[database.held :], database.view[: database.held]
    if not lost:
        return database
    lost_mints = [item.request for item in lost if is_proven(item, database)]
    proven = tuple(sorted(item.execution for item in left if item.execution and is_proven(item, database)))
    database = database._replace(view=left, proven=proven)
    orphaned = [item.request for item in lost if item.execution is None]
    database = settle(database, Actor.INDEXER, Event.BLOCK_ORPHANED, orphaned, scenario)
    failed = [
        request
        for request, row in enumerate(database.rows)
        if row is not None
        and (row.state, row.reason) == (State.FAILED, Event.DELIVERY_FAILED.value)
        and any(is_of(item.execution, request, row) for item in lost)
        and not any(is_of(item.execution, request, row) and not item.minted for item in left)
    ]
    database = settle(database, Actor.INDEXER, Event.REPORT_ORPHANED, failed, scenario)
    return settle(database, Actor.INDEXER, Event.MINT_ORPHANED, dict.fromkeys(lost_mints), scenario)


def _record(database: Database, chain: tuple[Item, ...], unused: tuple[int, ...], scenario: Scenario) -> Database:
    """``following._insert_requests``: a request that is known is attached to its new block."""
    again = []
    for item in chain[database.held :]:
        if item.execution is None:
            row = database.rows[item.request]
            if row is None:
                row = Row(nonce=unused[item.request] if unused else 0)
            else:
                again.append(item.request)
                row = row._replace(gone=False)
            database = with_row(database, item.request, row)
    database = database._replace(view=chain, held=len(chain))
    return settle(database, Actor.INDEXER, Event.RE_MINED, again, scenario)


def _search(
    database: Database, new: tuple[Item, ...], deployed: int, scenario: Scenario, *, ends: bool
) -> tuple[Database, tuple[Item, ...]]:
    """``following._search_in_quarantine``: with the items whose reports are settled again."""
    if not database.quarantined:
        return database, ()
    reported = {item.execution for item in new if item.execution is not None}
    if ends:
        database = database._replace(quarantined=False)
        reported |= set(database.reported)
    workflows = {*database.listed, *((deployed,) if scenario.design.configured_searched else ())}
    sends = []
    for each in sorted(reported):
        row = database.rows[each.request]
        if row is None or is_of(each, each.request, row) or row.state in {State.EXECUTED, State.COMPLETED}:
            continue
        if each.nonce <= row.nonce + 1 and each.workflow in workflows:
            sends.append(each)
    again = tuple(item for item in database.view if item.execution in sends)
    return _settle_lost_sends(database, sends, scenario), again


def _settle_lost_sends(database: Database, sends: list[Execution], scenario: Scenario) -> Database:
    """``quarantine._settle_lost_sends``."""
    if not sends:
        return database
    found = sorted({each.request for each in sends})
    deposits = {scenario.reference(request) for request in found}
    rivals = [
        n
        for n, row in enumerate(database.rows)
        if row is not None and row.holds and scenario.reference(n) in deposits and n not in found
    ]
    # The reports are rows already when the found ones are asked whether they were sent.
    database = database._replace(reported=tuple(sorted({*database.reported, *sends})))
    for each in sends:
        row = row_of(database, each.request)
        database = with_row(database, each.request, row._replace(found=(*row.found, (each.nonce, each.workflow))))
    database = settle(database, Actor.INDEXER, Event.RIVAL_SENT, rivals, scenario)
    for rival in rivals:
        rival_row = database.rows[rival]
        if rival_row is not None and rival_row.holds and not is_sent(database, rival, scenario):
            database = with_row(database, rival, rival_row._replace(holds=False))
    database = settle(database, Actor.INDEXER, Event.LOST_SEND_FOUND, found, scenario)
    for request in found:
        if holder_of(database, scenario.reference(request), scenario) is None:
            database = with_row(database, request, row_of(database, request)._replace(holds=True))
    return database._replace(refused=database.refused or _broken_constraint(list(database.rows), scenario))


def _settle_outcomes(
    database: Database, again: tuple[Item, ...], new: tuple[Item, ...], scenario: Scenario
) -> Database:
    """``following._settle_outcomes``: reports, then mints, then mints that nobody accounts for."""
    refused, minted, foreign = [], [], []
    for item in dict.fromkeys((*new, *again)):
        if item.execution is None:
            continue
        database = database._replace(reported=with_item(database.reported, item.execution))
        ours = is_of(item.execution, item.request, database.rows[item.request])
        if not item.minted:
            refused += [item.request] if ours else []
        elif ours:
            minted.append(item.request)
            database = database._replace(proven=with_item(database.proven, item.execution))
        elif item in new:
            foreign.append(scenario.expected_reference(item.request))
    database = settle(database, Actor.INDEXER, Event.DELIVERY_FAILED, dict.fromkeys(refused), scenario)
    database = settle(database, Actor.INDEXER, Event.MINT_PROVEN, dict.fromkeys(minted), scenario)
    deposits = {scenario.reference(request) for request in minted}
    holders = [n for n, row in enumerate(database.rows) if row is not None and row.holds]
    rivals = [n for n in holders if scenario.reference(n) in deposits and n not in minted]
    database = settle(database, Actor.INDEXER, Event.RIVAL_MINTED, rivals, scenario)
    among = holders if scenario.text else range(scenario.requests)
    named = [n for n in among if scenario.expected_reference(n) in foreign]
    return settle(database, Actor.INDEXER, Event.REFERENCE_MINTED, named, scenario)


def _judge(database: Database, height: int, scenario: Scenario) -> Database:
    """``following._judge``."""
    waiting = [
        item.request
        for item in database.view[:height]
        if item.execution is None and row_of(database, item.request).state is State.SEEN
    ]
    return _judge_among_rivals(database, waiting, scenario)


def settle_references(database: Database, scenario: Scenario) -> Database:
    """``following.settle_references``: requests that hold nothing hear later of what became of their reference."""
    foreign = {
        scenario.expected_reference(item.request)
        for item in database.view
        if item.minted and scenario.text and not is_proven(item, database)
    }
    deposits = {scenario.reference(item.request): item.request for item in database.view if is_proven(item, database)}
    idle = [n for n, row in enumerate(database.rows) if row is not None and not row.holds and row.state in _FED_LATER]
    named = [n for n in idle if scenario.expected_reference(n) in foreign]
    database = settle(database, Actor.INDEXER, Event.REFERENCE_MINTED, named, scenario)
    rivals = [n for n in idle if deposits.get(scenario.reference(n), n) != n]
    rivals = [n for n in rivals if row_of(database, n).state is State.FAILED]
    database = settle(database, Actor.INDEXER, Event.RIVAL_MINTED, rivals, scenario)
    first: dict[int, int] = {}
    for request in _in_chain_order(database):
        reference = scenario.reference(request)
        if _is_in_line(row_of(database, request)) and holder_of(database, reference, scenario) is None:
            first.setdefault(reference, request)
    database = settle(database, Actor.INDEXER, Event.RIVAL_GAVE_UP, first.values(), scenario)
    return _judge_among_rivals(database, list(first.values()), scenario)


def _in_chain_order(database: Database) -> list[int]:
    return [item.request for item in database.view if item.execution is None]


def _is_in_line(row: Row) -> bool:
    return (row.state, row.reason) == (State.REJECTED, DUPLICATE_BANK_REFERENCE)


_FED_LATER = frozenset({State.SEEN, State.REJECTED, State.FAILED})


def _rivals(database: Database, request: int, scenario: Scenario) -> list[Undecided]:
    """Those that ask for the same deposit and have no verdict."""
    found = []
    for other in _in_chain_order(database):
        row = row_of(database, other)
        undecided = row.state in {State.SEEN, State.REVIEW} and not row.holds
        if scenario.reference(other) == scenario.reference(request) and (undecided or _is_in_line(row)):
            each = _candidate(other, scenario)
            found.append(Undecided(id=other, bank_reference=each.bank_reference, beneficiary=each.beneficiary))
    return found


def _earlier_in_line(database: Database, request: int, scenario: Scenario) -> int | None:
    for other in _in_chain_order(database):
        if other == request:
            return None
        if scenario.reference(other) == scenario.reference(request) and _is_in_line(row_of(database, other)):
            return other
    return None


def _judge_among_rivals(database: Database, waiting: list[int], scenario: Scenario) -> Database:
    """``following._judge_among_rivals``."""
    if not waiting:
        return database
    holders = {
        _candidate(request, scenario).bank_reference: Holder(
            id=request,
            beneficiary=_candidate(request, scenario).beneficiary,
            state=row.state,
            sent=is_sent(database, request, scenario),
        )
        for request, row in enumerate(database.rows)
        if row is not None and row.holds
    }
    minted = {
        _candidate(item.request, scenario).expected_reference
        for item in database.view
        if item.minted and not is_proven(item, database)
    }
    look_alikes = {
        request: other
        for request in waiting
        for other in range(scenario.requests)
        if not scenario.contested and request != other and _was_sent_and_orphaned(database, other, scenario)
    }
    verdicts = judge(
        [_candidate(request, scenario) for request in waiting],
        holders=holders,
        minted=minted,
        contest=True,
        look_alikes=look_alikes,
        rivals={
            _candidate(request, scenario).bank_reference: _rivals(database, request, scenario) for request in waiting
        },
        in_line={
            request: earlier
            for request in waiting
            if (earlier := _earlier_in_line(database, request, scenario)) is not None
        },
    )
    moves = []
    contested = set()
    for candidate, verdict in verdicts:
        match verdict:
            case Allowed():
                moves.append(Move(candidate.id, State.CONFIRMED, "allowed", sent=False, takes_reference=True))
            case Refused():
                moves.append(Move(candidate.id, State.REJECTED, verdict.code, sent=False))
            case ForReview():
                moves.append(Move(candidate.id, State.REVIEW, verdict.code, sent=False))
                if verdict.contested_with is not None:
                    contested.add(verdict.contested_with)
    database = _move(database, Actor.INDEXER, moves, scenario)
    return settle(database, Actor.INDEXER, Event.CONTESTED, contested, scenario)


def _was_sent_and_orphaned(database: Database, request: int, scenario: Scenario) -> bool:
    """``following._LOOK_ALIKES``."""
    row = database.rows[request]
    if row is None or place(database, request) is not None or not is_sent(database, request, scenario):
        return False
    return not row.gone or row.state is State.REVIEW


@cache
def _candidate(request: int, scenario: Scenario) -> Candidate:
    return Candidate(
        id=request,
        bank_reference=bytes([scenario.reference(request)]),
        expected_reference=repr(scenario.expected_reference(request)).encode(),
        stablecoin=b"",
        consumer=b"",
        requester=b"",
        beneficiary=bytes([request if scenario.contested else 0]),
        amount=1,
        predicted_amount=1,
    )


def _settle_finality(database: Database, final: int, scenario: Scenario, *, for_good: bool) -> Database:
    """``following._settle_finality``."""
    database = database._replace(final=final)
    gone = []
    if for_good:
        for request, row in enumerate(database.rows):
            if row is not None and not row.gone and place(database, request) is None:
                database = with_row(database, request, row._replace(gone=True))
                gone.append(request)
    database = settle(database, Actor.INDEXER, Event.ORPHANED_FOR_GOOD, gone, scenario)
    executed = [n for n, row in enumerate(database.rows) if row is not None and row.state is State.EXECUTED]
    return settle(database, Actor.INDEXER, Event.MINT_FINAL, executed, scenario)


# -- the invocator (claims) ------------------------------------------------------------------------------------------


def claim(database: Database, request: int, scenario: Scenario) -> Database | None:
    """``claims.claim``."""
    row = row_of(database, request)
    if database.quarantined or place(database, request) is None or row.state is not State.CONFIRMED:
        return None
    database = with_row(database, request, row._replace(claim=row.claim + 1))
    return settle(database, Actor.INVOCATOR, Event.CLAIM, [request], scenario)


def _state_of(worker: Worker) -> State:
    """The state in the worker's order."""
    return State.CLAIMED if worker.first else State.IN_DOUBT


def freeze(database: Database, worker: Worker) -> Database | None:
    """``claims.freeze``; ``None`` where it gives ``False``."""
    row = database.rows[worker.request]
    if row is None or (row.state, row.claim) != (_state_of(worker), worker.claim) or worker.nonce in dict(row.frozen):
        return None
    return with_row(database, worker.request, row._replace(frozen=(*row.frozen, (worker.nonce, worker.workflow))))


def end_claim(database: Database, worker: Worker, event: Event, scenario: Scenario) -> Database:
    """``claims._end_claim``."""
    row = database.rows[worker.request]
    if row is None or row.state is not State.CLAIMED or row.claim != worker.claim:
        return database
    return settle(database, Actor.INVOCATOR, event, [worker.request], scenario)


def may_begin(database: Database, worker: Worker, scenario: Scenario) -> bool:
    """``claims._LOCK_FOR_ATTEMPT``."""
    row = database.rows[worker.request]
    if row is None or database.quarantined or place(database, worker.request) is None:
        return False
    is_frozen = (row.nonce, dict(row.frozen).get(row.nonce)) == (worker.nonce, worker.workflow)
    if not is_frozen and scenario.design.bytes_checked and scenario.design.id_for_life:
        return False
    return row.state is _state_of(worker) and row.claim == worker.claim


def begin_attempt(database: Database, worker: Worker, scenario: Scenario) -> tuple[Database, int]:
    """``claims.begin_attempt`` behind its guard; the variants also store the ids that they really send."""
    row = row_of(database, worker.request)
    sent = (worker.nonce, worker.workflow)
    varied = sent not in row.frozen and not (scenario.design.id_for_life and scenario.design.workflow_pinned)
    attempts = (*row.attempts, OPEN)
    row = row._replace(attempts=attempts, frozen=(*row.frozen, sent) if varied else row.frozen)
    database = with_row(database, worker.request, row)
    return settle(database, Actor.INVOCATOR, Event.ATTEMPT_STARTED, [worker.request], scenario), len(attempts)


def record_answer(database: Database, worker: Worker, scenario: Scenario) -> Database:
    """``claims.record_answer``: guarded by the attempt having no outcome, and by the lifecycle."""
    row = database.rows[worker.request]
    if row is None:  # lost by a failover
        return database
    found = 0 < worker.attempt <= len(row.attempts) and row.attempts[worker.attempt - 1] == OPEN
    if found and (worker.own or not scenario.design.answer_by_token):
        attempts = (*row.attempts[: worker.attempt - 1], worker.answer, *row.attempts[worker.attempt :])
        database = with_row(database, worker.request, row._replace(attempts=attempts))
    event = claims._event_of(worker.answer)
    if event is None:
        return database
    return settle(database, Actor.INVOCATOR, event, [worker.request], scenario)


_SWEPT = (
    (State.CLAIMED, Event.GIVEN_BACK, "its lease ends"),
    (State.ACCEPTED, Event.DEADLINE, "its deadline passes"),
    (State.IN_DOUBT, Event.GIVE_UP, "nothing resolved its doubt in time"),
    (State.FAILED, Event.RESEND, "not delivered long ago, it is sent again"),
)


@lru_cache(_CACHED)
def sweeps(database: Database, scenario: Scenario) -> tuple[tuple[str, Database], ...]:
    """``claims.sweep``: what the clock may move."""
    return tuple(
        (f"{label}: request {request}", settle(database, Actor.INVOCATOR, event, [request], scenario))
        for request, row in enumerate(database.rows)
        for state, event, label in _SWEPT
        if row is not None
        and row.state is state
        and (event is not Event.RESEND or _is_overdue_resend(database, request, row))
    )


def _is_overdue_resend(database: Database, request: int, row: Row) -> bool:
    """``claims._OVERDUE_RESENDS``."""
    not_delivered = row.reason == Event.DEADLINE.value
    return not_delivered and place(database, request) is not None and row.nonce in dict(row.frozen)


# -- people (operators.instruct) -------------------------------------------------------------------------------------


@lru_cache(_CACHED)
def commands(database: Database, unused: tuple[int, ...], scenario: Scenario) -> tuple[tuple[str, Database], ...]:
    """What an operator may do to any request, as ``instructions.judge`` answers it."""
    if not scenario.people:
        return ()
    believed = scenario.once or scenario.design.evidence == "on trust"
    evidence = _CONSUMER_ONCE if believed else _CONSUMER_UNKNOWN
    instructions: tuple[tuple[Instruction, Event], ...] = (
        (Retry(), Event.RETRY),
        (Cancel(), Event.CANCEL),
        (Release(evidence), Event.RELEASE),
        (NewGeneration(evidence), Event.NEW_GENERATION),
        (Resolve("completed"), Event.RESOLVE_COMPLETED),
        (Resolve("failed"), Event.RESOLVE_FAILED),
    )
    outcomes: dict[Database, str] = {}
    for request, row in enumerate(database.rows):
        for instruction, event in instructions if row is not None else ():
            for final_enough in (True, False):
                standing = _standing(database, request, scenario, final_enough=final_enough)
                verdict = instruct(instruction, standing)
                if isinstance(verdict, Will) and verdict.after is not None:
                    after = _carry_out(database, request, event, verdict.after, unused, scenario)
                    outcomes.setdefault(after, f"a person says {event.value}: request {request}")
    return tuple((label, after) for after, label in outcomes.items() if after != database)


_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_FINAL = FinalBlock(hash=b"", at=_NOW)
_UNKNOWN = ConsumerAnswer(code_hash=b"", implementation=None, contract=None, reference_is_used=None)
_ONCE = ConsumerAnswer(code_hash=b"", implementation=None, contract="MintingConsumerOnce", reference_is_used=False)
_CONSUMER_UNKNOWN, _CONSUMER_ONCE = (
    Evidence(block_number=0, block_hash=_FINAL.hash, consumer=b"", reference=b"", answers=(("0", answer),))
    for answer in (_UNKNOWN, _ONCE)
)


def _delivery(row: Row) -> Delivery:
    """Long ago: that nothing is on its way any more is not what the consumer is relied on for."""
    return Delivery(until=_NOW - timedelta(days=1), consumers=frozenset({b""} if row.frozen or row.found else ()))


def _standing(database: Database, request: int, scenario: Scenario, *, final_enough: bool) -> Standing:
    row = row_of(database, request)
    holder = holder_of(database, scenario.reference(request), scenario)
    rival = None
    if holder is not None and holder != request:
        rival = Rival(
            request_id=holder,
            state=row_of(database, holder).state,
            sent=is_sent(database, holder, scenario),
            is_on_this_chain=True,
            shares_consumer=True,
            shares_reference=scenario.text,
            delivery=_delivery(row_of(database, holder)),
        )
    return Standing(
        request_id=request,
        state=row.state,
        reason=row.reason,
        facts=facts(database, request, scenario, final_enough=final_enough),
        held_reason=None,
        hold_ends_by_itself=False,
        held_for_its_basket=False,
        generation=row.nonce,
        frozen_mode="gateway" if row.nonce in dict(row.frozen) else None,
        consumer=b"",
        reference=b"",
        delivery=_delivery(row),
        lease_ends_at=None,
        last_sent_at=None,
        rival=rival,
        evidence_block=_FINAL,
        newest_final_block=0,
        now=_NOW,
        stopped=None,
        restored_at=None,
        execution_ids=(),
    )


def _carry_out(
    database: Database, request: int, event: Event, after: State, unused: tuple[int, ...], scenario: Scenario
) -> Database:
    """``operators._carry_out``."""
    row = row_of(database, request)
    sent = is_sent(database, request, scenario)
    takes = event in {Event.RELEASE, Event.NEW_GENERATION} or (event is Event.RETRY and after is not State.SEEN)
    if event is Event.NEW_GENERATION:
        if row.nonce >= scenario.generations:
            return database
        nonce = unused[request] if unused else row.nonce + 1
        database = with_row(database, request, row._replace(nonce=nonce, evidence=sent))
    if event is Event.RELEASE:
        holder = holder_of(database, scenario.reference(request), scenario)
        if holder is not None:
            database = with_row(database, holder, row_of(database, holder)._replace(holds=False))
    return _move(database, Actor.OPERATOR, [Move(request, after, event.value, sent, takes)], scenario)
