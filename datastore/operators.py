"""What people do to rows: each instruction is one transaction, recorded with who, why and what was so before and after.

The order inside: lock the chain, the request and the holder of its bank reference, read the facts (``is_sent`` must see
what committed while we waited), judge, write, record.  A worker or the indexer that wants the same rows comes before or
after, never in between; so the guards of the lifecycle hold against a claim, an attempt or a late mint of this moment.

A refusal and "it is so already" write nothing, and neither does a dry run, which asks the same judgement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeAlias, assert_never

import asyncpg

from datastore import basket_pauses, basket_standings, quarantine
from datastore.basket_pauses import HELD_BY_PAUSE
from datastore.claims import HELD_FOR_NOW
from datastore.connection import Connection, Pool, lock_chain, unit
from datastore.errors import DatastoreError
from datastore.following import Position
from datastore.identity import execution_id_candidates
from datastore.instructions import (
    AlreadySo,
    Cancel,
    Delivery,
    Evidence,
    FinalBlock,
    Hold,
    Instruction,
    NewGeneration,
    Refused,
    Release,
    Resolve,
    Retry,
    Rival,
    Standing,
    Verdict,
    Will,
    judge,
)
from datastore.lifecycle import RULES, Event, State
from datastore.quarantine import NonceOf
from datastore.rows import BlockRef
from datastore.settlement import Horizon, Known, Move, known, move

Finality: TypeAlias = Callable[[Position], Horizon]
"""From where the chain stands: up to which block a request and a mint are final enough."""

HELD_BY_OPERATOR: Final = "operator"
"""``held_reason`` of a hold by a person; the words are in ``operator_action``."""

# $1 request, $2 chain: with the one that holds its bank reference, in the one order of locks
_LOCK: Final = """
SELECT id FROM mint_request
WHERE bank_reference = (SELECT bank_reference FROM mint_request WHERE id = $1 AND chain_id = $2)
  AND (id = $1 OR holds_reference)
ORDER BY bank_reference, id
FOR UPDATE
"""

# $1 chain
_POSITION: Final = """
SELECT block_number, block_hash, finalized_number, safe_number, head_number FROM cursor WHERE chain_id = $1
"""

# A chain may say any time, and not every one fits.  $1 chain, $2 number, $3 the last final number
_FINAL_BLOCK: Final = """
SELECT hash, to_timestamp(least(timestamp, 32503680000)) AS at FROM block WHERE chain_id = $1 AND canonical AND number = $2 AND number <= $3
"""
# $1 chain, $2 the last final number
_NEWEST_FINAL_BLOCK: Final = """
SELECT number FROM block WHERE chain_id = $1 AND canonical AND number <= $2 ORDER BY number DESC LIMIT 1
"""
# $1 chain, $2 state, $3 reason, $4 how many
_SELECTED: Final = """
SELECT id FROM mint_request WHERE chain_id = $1 AND state = $2 AND state_reason = $3 ORDER BY id LIMIT $4
"""
# $1 request, $2 chain
_ASKED_OF: Final = """
SELECT r.consumer, r.expected_reference, c.finalized_number FROM mint_request r JOIN cursor c ON c.chain_id = r.chain_id
WHERE r.id = $1 AND r.chain_id = $2
"""

# What came to review without the indexer's judgement (policy, duplicates): a retry must not go around it.
_UNJUDGED: Final = tuple(
    rule.event.value
    for rule in RULES
    if State.SEEN in rule.sources and rule.target is State.REVIEW and rule.event is not Event.JUDGED_FOR_REVIEW
)

# $1 request, $2 reasons of an unjudged review
_STANDING: Final = """
SELECT
    EXISTS (
        SELECT FROM mint_transition t
        WHERE t.request_id = r.id AND t.from_state = 'seen'
          AND (t.to_state IN ('confirmed', 'rejected') OR (t.to_state = 'review' AND t.reason <> ALL($2::text[])))
    ) AS was_judged,
    r.held_reason, r.generation, r.identity, r.nonce, r.consumer, r.expected_reference, r.lease_ends_at, f.mode,
    s.latest_at, s.receivers,
    clock_timestamp() AS now,
    (
        SELECT max(a.started_at) FROM attempt a
        WHERE a.request_id = r.id
          AND (a.outcome IS NULL OR a.outcome NOT IN ('refused_now', 'refused_for_good', 'instance_refused', 'never_connected'))
    ) AS last_sent_at,
    k.paused_at, k.paused_reason, k.quarantined_at, k.quarantined_until, k.quarantined_reason, k.halted_reason,
    b.paused_reason AS basket_paused_reason,
    is_this_server(k.server_identifier, k.server_timeline) AS is_home,
    (
        SELECT max(m.at) FROM alarm m
        WHERE m.chain_id = r.chain_id AND m.kind = 'quarantine_entered' AND extract(epoch FROM m.at) >= r.block_timestamp
    ) AS restored_at,
    ARRAY(SELECT w.workflow_id FROM workflow w WHERE w.chain_id = r.chain_id ORDER BY w.listed_at, w.workflow_id) AS workflows,
    o.id AS rival_id, o.state AS rival_state, is_sent(o.id) AS rival_sent, o.chain_id = r.chain_id AS is_on_this_chain,
    o.consumer = r.consumer AS shares_consumer, o.expected_reference = r.expected_reference AS shares_reference,
    t.latest_at AS rival_latest_at, t.receivers AS rival_receivers
FROM mint_request r
CROSS JOIN LATERAL sends(r.id) s
JOIN control k ON k.chain_id = r.chain_id
LEFT JOIN basket_pause b ON b.chain_id = r.chain_id AND b.stablecoin = r.stablecoin
LEFT JOIN frozen_request f ON f.request_id = r.id AND f.generation = r.generation
LEFT JOIN mint_request o ON o.bank_reference = r.bank_reference AND o.holds_reference AND o.id <> r.id
LEFT JOIN LATERAL sends(o.id) t ON true
WHERE r.id = $1
"""

# $1 request
_SHOWN: Final = """
SELECT to_jsonb(s) FROM (
    SELECT state, state_reason, chain_status, held_reason, holds_reference, generation, nonce FROM mint_request WHERE id = $1
) s
"""
# $1 request
_ATTEMPTS: Final = """
SELECT coalesce(jsonb_agg(jsonb_build_object('attempt_no', attempt_no, 'generation', generation, 'outcome', outcome) ORDER BY attempt_no), '[]')
FROM attempt WHERE request_id = $1
"""

# $1 request
_SEND_NOW: Final = "UPDATE mint_request SET next_attempt_at = clock_timestamp() WHERE id = $1"
# $1 request, $2 nonce
_NEXT_GENERATION: Final = "UPDATE mint_request SET generation = generation + 1, nonce = $2 WHERE id = $1"
# $1 request, $2 reason
_HOLD: Final = "UPDATE mint_request SET held_at = clock_timestamp(), held_reason = $2 WHERE id = $1"
# $1 request
_RELEASE: Final = "UPDATE mint_request SET held_at = NULL, held_reason = NULL WHERE id = $1"
# $1 request
_GIVE_UP_REFERENCE: Final = "UPDATE mint_request SET holds_reference = false WHERE id = $1"

# $1 chain, $2 operator, $3 action, $4 request, $5 reason, $6 evidence, $7 before, $8 after
_RECORD: Final = """
INSERT INTO operator_action (chain_id, operator, action, request_id, reason, evidence, before, after)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
RETURNING id
"""

# $1 chain
_CONTROL: Final = """
SELECT paused_at, paused_reason, quarantined_at, quarantined_until, quarantined_reason FROM control WHERE chain_id = $1
"""
# $1 chain, $2 reason
_PAUSE: Final = "UPDATE control SET paused_at = clock_timestamp(), paused_reason = $2 WHERE chain_id = $1"
# $1 chain
_RESUME: Final = "UPDATE control SET paused_at = NULL, paused_reason = NULL WHERE chain_id = $1"

# Attempts that began before and may still be delivered: their callers wait for an answer, or died waiting.  $1 chain
_UNDER_WAY: Final = """
SELECT count(*)
FROM mint_request r
JOIN attempt a ON a.request_id = r.id
WHERE r.chain_id = $1 AND r.state = 'in_doubt' AND r.next_attempt_at > clock_timestamp() AND a.outcome IS NULL
  AND NOT EXISTS (SELECT FROM attempt l WHERE l.request_id = r.id AND l.attempt_no > a.attempt_no)
"""
# $1 chain, $2 workflow
_WORKFLOW: Final = """
SELECT b.code, b.sentence, b.opened_at, b.probe_at, greatest(s.earliest_next_at, clock_timestamp()) AS next_at
FROM workflow w
LEFT JOIN breaker b USING (chain_id, workflow_id)
LEFT JOIN workflow_slot s USING (chain_id, workflow_id)
WHERE w.chain_id = $1 AND w.workflow_id = $2
"""
# $1 chain, $2 workflow
_CLOSE_BREAKER: Final = "DELETE FROM breaker WHERE chain_id = $1 AND workflow_id = $2"
# $1 chain, $2 workflow
_FREE_SLOT: Final = """
UPDATE workflow_slot SET earliest_next_at = clock_timestamp()
WHERE chain_id = $1 AND workflow_id = $2 AND earliest_next_at > clock_timestamp()
"""

# $1 chain, $2 token
_BASKET: Final = """
SELECT
    '0x' || encode(b.stablecoin, 'hex') AS stablecoin, b.symbol, p.paused_at, p.paused_reason,
    coalesce(p.role_changes, 0) AS role_changes,
    s.completed_at, s.allowed, s.allowed_at, s.allowed_reason, coalesce(s.served, false) AS served,
    (
        SELECT count(*) FROM mint_request r
        WHERE r.chain_id = b.chain_id AND r.stablecoin = b.stablecoin AND r.held_reason = 'basket_paused'
    ) AS held_requests
FROM basket b
LEFT JOIN basket_pause p ON p.chain_id = b.chain_id AND p.stablecoin = b.stablecoin
LEFT JOIN basket_standing s ON s.chain_id = b.chain_id AND s.stablecoin = b.stablecoin
WHERE b.chain_id = $1 AND b.stablecoin = $2 AND b.canonical
"""


class RequestUnknown(DatastoreError):
    """There is no such request on this chain.  Nothing was written; check the id and ``BSKT_CHAIN_ID``."""


class BasketUnknown(DatastoreError):
    """There is no such basket on this branch.  Nothing was written; `bskt baskets list` shows them."""


class WorkflowUnknown(DatastoreError):
    """This workflow was never configured.  Nothing was written; `bskt workflows list` shows those that were."""


class Unexplained(DatastoreError):
    """A name or a reason is missing.  Nothing was written; give both."""


class Switch(StrEnum):
    """What stops or starts everything at once."""

    PAUSE = "pause"
    RESUME = "resume"
    QUARANTINE = "quarantine"


class BasketSwitch(StrEnum):
    """What stops or starts one basket, or gives it its part of the slots."""

    PAUSE = "pause_basket"
    RESUME = "resume_basket"
    ALLOW = "allow_basket"
    DISALLOW = "disallow_basket"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who acts, and why; both are recorded.

    Raises:
        Unexplained: One of them is empty.
    """

    name: str
    reason: str

    def __post_init__(self) -> None:
        """Nobody acts without a name and a reason."""
        if not self.name.strip():
            raise Unexplained("nothing is done without a name: who are you?")
        if not self.reason.strip():
            raise Unexplained("nothing is done without a reason: it is what the next person will read")

    def __str__(self) -> str:
        return f"{self.name.strip()}: {self.reason.strip()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of an instruction.  ``action_id`` is its row in ``operator_action``; ``None`` if nothing was written."""

    verdict: Verdict
    before: Mapping[str, object]
    after: Mapping[str, object]
    action_id: int | None = None


async def selected(pool: Pool, chain_id: int, state: State, reason: str, *, limit: int) -> list[int]:
    """The requests that are in a state for one reason; at most ``limit``, the oldest first.

    Raises:
        DatastoreUnavailable: Read again.
    """
    async with unit(pool) as connection:
        return [row["id"] for row in await connection.fetch(_SELECTED, chain_id, state.value, reason, limit)]


async def question(pool: Pool, chain_id: int, request_id: int, block_number: int) -> Evidence:
    """What must be asked of the chain before a second id or request beside ``request_id``; without any answer yet.

    Raises:
        RequestUnknown: There is nothing to ask about.
        DatastoreUnavailable: Read again.
    """
    async with unit(pool) as connection:
        row = await connection.fetchrow(_ASKED_OF, request_id, chain_id)
        if row is None:
            raise RequestUnknown(f"chain {chain_id} has no request {request_id}; `bskt requests list` shows them")
        block = await _final_block(connection, chain_id, block_number, row["finalized_number"])
    return Evidence(
        block_number=block_number,
        block_hash=None if block is None else block.hash,
        consumer=row["consumer"],
        reference=row["expected_reference"],
    )


async def instruct(
    pool: Pool,
    chain_id: int,
    request_id: int,
    instruction: Instruction,
    person: Person,
    *,
    finality: Finality,
    nonce_of: NonceOf,
    deadline_seconds: float,
    dry_run: bool = False,
    confirmed: Will | None = None,
) -> Answer:
    """Carry out an instruction about one request, or say why not.

    Args:
        pool: The operator's.
        chain_id: The chain that the request must be of.
        request_id: Which one.
        instruction: What is asked for.
        person: Who asks, and why.
        finality: What is final enough.
        nonce_of: Derives the id of a new generation.
        deadline_seconds: After which time CRE does not bring an accepted send to the chain by itself any more.
        dry_run: Judge only; nothing is written.
        confirmed: What the person was shown and said yes to; if it is not what would happen now, nothing is done.

    Raises:
        RequestUnknown: Nothing was written.
        DatastoreUnavailable: Nothing is known to be written; look, then repeat.
    """
    async with unit(pool) as connection:
        await lock_chain(connection, chain_id)
        if not await connection.fetch(_LOCK, request_id, chain_id):
            raise RequestUnknown(f"chain {chain_id} has no request {request_id}; `bskt requests list` shows them")
        # After the locks: a reorg that moves this request waits for them, or is seen here.
        position = await _position(connection, chain_id)
        request = (await known(connection, [request_id], finality(position)))[request_id]
        row = await connection.fetchrow(_STANDING, request_id, list(_UNJUDGED))
        if row is None:
            raise AssertionError(f"request {request_id} is locked and gone")
        newest = await connection.fetchval(_NEWEST_FINAL_BLOCK, chain_id, position.finalized)
        evidence = evidence_of(instruction)
        named = None if evidence is None else evidence.block_number
        standing = _standing(
            request,
            row,
            deadline=timedelta(seconds=deadline_seconds),
            evidence_block=await _final_block(connection, chain_id, named, position.finalized),
            newest_final_block=newest,
        )
        verdict = _as_confirmed(judge(instruction, standing), confirmed)
        before = await _shown(connection, request_id)
        if dry_run or not isinstance(verdict, Will):
            return Answer(verdict=verdict, before=before, after=before)
        await _carry_out(connection, instruction, verdict, request, row, person, nonce_of)
        await basket_pauses.hold_requests(connection, chain_id)
        after = await _shown(connection, request_id)
        action_id = await connection.fetchval(
            _RECORD,
            chain_id,
            person.name.strip(),
            _action(instruction),
            request_id,
            person.reason.strip(),
            await _evidence(connection, instruction, verdict, standing),
            json.dumps(before),
            json.dumps(after),
        )
    return Answer(verdict=verdict, before=before, after=after, action_id=action_id)


def _as_confirmed(verdict: Verdict, confirmed: Will | None) -> Verdict:
    if confirmed is None or not isinstance(verdict, Will) or verdict.sentence == confirmed.sentence:
        return verdict
    return Refused(
        sentence=f"It has changed since you were asked.  Now: {verdict.sentence}",
        remedy="Nothing was done; ask again if this is what you want.",
    )


async def _carry_out(
    connection: Connection,
    instruction: Instruction,
    verdict: Will,
    request: Known,
    row: asyncpg.Record,
    person: Person,
    nonce_of: NonceOf,
) -> None:
    request_id = request.request_id
    match instruction:
        case Retry():
            await _move(
                connection, request, verdict, Event.RETRY, person, takes_reference=verdict.after is not State.SEEN
            )
            await connection.execute(_SEND_NOW, request_id)
        case NewGeneration():
            await connection.execute(_NEXT_GENERATION, request_id, nonce_of(row["identity"], row["generation"] + 1))
            await _move(connection, request, verdict, Event.NEW_GENERATION, person, takes_reference=True)
            await connection.execute(_SEND_NOW, request_id)
        case Hold():
            await connection.execute(_HOLD, request_id, HELD_BY_OPERATOR)
        case Release():
            if row["held_reason"] is not None:
                await connection.execute(_RELEASE, request_id)
            if verdict.after is not None:
                if row["rival_id"] is not None:
                    await connection.execute(_GIVE_UP_REFERENCE, row["rival_id"])
                await _move(connection, request, verdict, Event.RELEASE, person, takes_reference=True)
        case Cancel():
            await _move(connection, request, verdict, Event.CANCEL, person)
        case Resolve():
            event = Event.RESOLVE_COMPLETED if instruction.to == "completed" else Event.RESOLVE_FAILED
            await _move(connection, request, verdict, event, person)
        case _:
            assert_never(instruction)


async def _move(
    connection: Connection,
    request: Known,
    verdict: Will,
    event: Event,
    person: Person,
    *,
    takes_reference: bool = False,
) -> None:
    if verdict.after is None:
        raise AssertionError(f"{event} of request {request.request_id} leads nowhere")
    await move(
        connection,
        [
            Move(
                request=request,
                after=verdict.after,
                reason=event.value,
                detail=str(person),
                takes_reference=takes_reference,
            )
        ],
    )


def _action(instruction: Instruction) -> str:
    names: dict[type[Instruction], str] = {
        Retry: "retry",
        NewGeneration: "new_generation",
        Hold: "hold",
        Release: "release",
        Cancel: "cancel",
        Resolve: "resolve",
    }
    return names[type(instruction)]


def evidence_of(instruction: Instruction) -> Evidence | None:
    """The evidence that an instruction brings."""
    return instruction.evidence if isinstance(instruction, NewGeneration | Release) else None


async def _evidence(connection: Connection, instruction: Instruction, verdict: Will, standing: Standing) -> str | None:
    """What was asked of the chain and answered, beside what the rows said at that moment; only if it rests on that."""
    evidence, block = evidence_of(instruction), standing.evidence_block
    if evidence is None or block is None or not verdict.rests_on_evidence:
        return None
    sent = standing.rival or standing
    until = sent.delivery.until
    attempts = json.loads(await connection.fetchval(_ATTEMPTS, sent.request_id))
    return json.dumps(
        {
            "block_number": evidence.block_number,
            "block_hash": _hex(block.hash),
            "block_at": block.at.isoformat(),
            "newest_final_block": standing.newest_final_block,
            "delivered_until": None if until is None else until.isoformat(),
            "consumer": _hex(evidence.consumer),
            "reference": _hex(evidence.reference),
            "answers": {
                name: {
                    "code_hash": _hex(answer.code_hash),
                    "implementation": _hex(answer.implementation),
                    "contract": answer.contract,
                    "reference_is_used": answer.reference_is_used,
                }
                for name, answer in evidence.answers
            },
            "failures": dict(evidence.failures),
            "sent": sent.request_id,
            "attempts": attempts,
        }
    )


def _hex(octets: bytes | None) -> str | None:
    return None if octets is None else f"0x{octets.hex()}"


async def _final_block(connection: Connection, chain_id: int, number: int | None, finalized: int) -> FinalBlock | None:
    row = await connection.fetchrow(_FINAL_BLOCK, chain_id, number, finalized)
    return None if row is None else FinalBlock(hash=row["hash"], at=row["at"])


async def _shown(connection: Connection, request_id: int) -> dict[str, object]:
    shown: dict[str, object] = json.loads(await connection.fetchval(_SHOWN, request_id))
    return shown


async def _position(connection: Connection, chain_id: int) -> Position:
    row = await connection.fetchrow(_POSITION, chain_id)
    if row is None:
        raise AssertionError(f"chain {chain_id} has requests and no cursor")
    return Position(
        cursor=BlockRef(number=row["block_number"], hash=row["block_hash"]),
        finalized=row["finalized_number"],
        safe=row["safe_number"],
        head=row["head_number"],
    )


def _standing(
    request: Known,
    row: asyncpg.Record,
    *,
    deadline: timedelta,
    evidence_block: FinalBlock | None,
    newest_final_block: int | None,
) -> Standing:
    rival = None
    if row["rival_id"] is not None:
        rival = Rival(
            request_id=row["rival_id"],
            state=State(row["rival_state"]),
            sent=row["rival_sent"],
            is_on_this_chain=row["is_on_this_chain"],
            shares_consumer=row["shares_consumer"],
            shares_reference=row["shares_reference"],
            delivery=_delivery(row["rival_latest_at"], row["rival_receivers"], deadline),
        )
    return Standing(
        request_id=request.request_id,
        state=request.state,
        reason=request.reason,
        facts=replace(request.facts, final_enough=request.facts.final_enough and row["was_judged"]),
        held_reason=row["held_reason"],
        hold_ends_by_itself=row["held_reason"] in (*HELD_FOR_NOW, HELD_BY_PAUSE),
        held_for_its_basket=row["held_reason"] == HELD_BY_PAUSE and row["basket_paused_reason"] is not None,
        generation=row["generation"],
        frozen_mode=row["mode"],
        consumer=row["consumer"],
        reference=row["expected_reference"],
        delivery=_delivery(row["latest_at"], row["receivers"], deadline),
        lease_ends_at=row["lease_ends_at"],
        last_sent_at=row["last_sent_at"],
        rival=rival,
        evidence_block=evidence_block,
        newest_final_block=newest_final_block,
        now=row["now"],
        stopped=_stopped(row),
        restored_at=row["restored_at"],
        execution_ids=tuple(
            each for workflow in row["workflows"] for each in execution_id_candidates(workflow, row["nonce"].hex)
        ),
    )


def _delivery(latest_at: datetime | None, receivers: list[bytes] | None, deadline: timedelta) -> Delivery:
    """The latest send may have begun its way as late as its token allows."""
    token = timedelta(seconds=quarantine.TOKEN_SECONDS)
    return Delivery(
        until=None if latest_at is None else latest_at + token + deadline, consumers=frozenset(receivers or ())
    )


def _stopped(row: asyncpg.Record) -> str | None:
    if row["quarantined_at"] is not None:
        return str(_quarantine(row))
    if not row["is_home"]:
        return "The database moved to another server or was restored: nothing is sent until the quarantine is over."
    if row["halted_reason"] is not None:
        return f"The indexer has halted ({row['halted_reason']}): nothing is sent until it goes on."
    if row["paused_at"] is not None:
        return f"The invocator is paused ({row['paused_reason']}): nothing is sent until `bskt resume`."
    if row["basket_paused_reason"] is not None:
        return f"Its basket is paused ({row['basket_paused_reason']}): nothing is sent until `bskt baskets resume`."
    return None


def _quarantine(row: asyncpg.Record) -> quarantine.Quarantine:
    return quarantine.Quarantine(
        reason=row["quarantined_reason"], at=row["quarantined_at"], until=row["quarantined_until"]
    )


async def throw(
    pool: Pool,
    chain_id: int,
    switch: Switch,
    person: Person,
    *,
    deadline_seconds: float,
    dry_run: bool = False,
    confirmed: Will | None = None,
) -> Answer:
    """Stop or start everything at once; the next claim and the next attempt see it.

    Args:
        pool: The operator's.
        chain_id: The chain.
        switch: Which one.
        person: Who does it, and why.
        deadline_seconds: After which time a send does not reach the chain by itself any more.
        dry_run: Judge only; nothing is written.
        confirmed: What the person was shown and said yes to; if it is not what would happen now, nothing is done.

    Raises:
        RequestUnknown: The database does not hold this chain.
        DatastoreUnavailable: Nothing is known to be written; look, then repeat.
    """
    async with unit(pool) as connection:
        row = await connection.fetchrow(_CONTROL + "FOR UPDATE", chain_id)
        if row is None:
            raise RequestUnknown(f"the database does not hold chain {chain_id}")
        # The lock was waited for: no attempt can begin any more, and each that began before is there to be counted.
        under_way: int = await connection.fetchval(_UNDER_WAY, chain_id)
        verdict = _as_confirmed(_judge_switch(switch, row, under_way), confirmed)
        before = _switches(row)
        if dry_run or not isinstance(verdict, Will):
            return Answer(verdict=verdict, before=before, after=before)
        match switch:
            case Switch.PAUSE:
                await connection.execute(_PAUSE, chain_id, str(person))
            case Switch.RESUME:
                await connection.execute(_RESUME, chain_id)
            case Switch.QUARANTINE:
                await quarantine.enter(connection, chain_id, reason=str(person), deadline_seconds=deadline_seconds)
            case _:
                assert_never(switch)
        row = await connection.fetchrow(_CONTROL, chain_id)
        after = _switches(row) if row is not None else {}
        action_id = await connection.fetchval(
            _RECORD,
            chain_id,
            person.name.strip(),
            switch.value,
            None,
            person.reason.strip(),
            None,
            json.dumps(before),
            json.dumps(after),
        )
    return Answer(verdict=verdict, before=before, after=after, action_id=action_id)


def _judge_switch(switch: Switch, row: asyncpg.Record, under_way: int) -> Verdict:
    quarantined = str(_quarantine(row)) if row["quarantined_at"] is not None else None
    match switch:
        case Switch.PAUSE:
            if row["paused_at"] is not None:
                return AlreadySo(sentence=f"The invocator is paused already ({row['paused_reason']}).")
            return Will(
                sentence="The invocator is paused: no further request is sent.  What was sent may still mint; the indexer "
                "goes on.",
                warnings=() if under_way == 0 else (f"Attempts that are still under way: {under_way}.",),
            )
        case Switch.RESUME:
            if row["paused_at"] is None:
                return AlreadySo(sentence="The invocator is not paused.")
            return Will(
                sentence=f"The invocator is no longer paused ({row['paused_reason']}).",
                warnings=() if quarantined is None else (quarantined,),
            )
        case Switch.QUARANTINE:
            if quarantined is not None:
                return AlreadySo(sentence=f"It is in quarantine already.  {quarantined}")
            return Will(
                sentence="Quarantine: nothing is triggered until the chain is read again to finality and every send that a "
                "restore may have lost has shown itself.  It ends by itself; nothing else ends it."
            )
    assert_never(switch)


def _switches(row: asyncpg.Record) -> dict[str, object]:
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}


async def turn_basket(
    pool: Pool,
    chain_id: int,
    stablecoin: bytes,
    switch: BasketSwitch,
    person: Person,
    *,
    dry_run: bool = False,
    confirmed: Will | None = None,
) -> Answer:
    """Pause one basket and hold its open requests, or release exactly those; or rule whether the basket is served.

    Args:
        pool: The operator's.
        chain_id: The chain.
        stablecoin: The basket's token.
        switch: Which of them.
        person: Who does it, and why.
        dry_run: Judge only; nothing is written.
        confirmed: What the person was shown and said yes to; if it is not what would happen now, nothing is done.

    Raises:
        BasketUnknown: Nothing was written.
        DatastoreUnavailable: Nothing is known to be written; look, then repeat.
    """
    async with unit(pool) as connection:
        await lock_chain(connection, chain_id)
        basket = await _basket(connection, chain_id, stablecoin)
        verdict = _as_confirmed(_judge_basket(switch, basket), confirmed)
        before = _switches(basket)
        if dry_run or not isinstance(verdict, Will):
            return Answer(verdict=verdict, before=before, after=before)
        match switch:
            case BasketSwitch.PAUSE:
                await basket_pauses.pause(connection, chain_id, {stablecoin: str(person)})
                await basket_pauses.hold_requests(connection, chain_id)
            case BasketSwitch.RESUME:
                await basket_pauses.resume(connection, chain_id, stablecoin)
            case BasketSwitch.ALLOW | BasketSwitch.DISALLOW:
                await basket_standings.rule(
                    connection, chain_id, stablecoin, allowed=switch is BasketSwitch.ALLOW, reason=str(person)
                )
            case _:
                assert_never(switch)
        after = _switches(await _basket(connection, chain_id, stablecoin))
        action_id = await connection.fetchval(
            _RECORD,
            chain_id,
            person.name.strip(),
            switch.value,
            None,
            person.reason.strip(),
            None,
            json.dumps(before),
            json.dumps(after),
        )
    return Answer(verdict=verdict, before=before, after=after, action_id=action_id)


async def _basket(connection: Connection, chain_id: int, stablecoin: bytes) -> asyncpg.Record:
    row = await connection.fetchrow(_BASKET, chain_id, stablecoin)
    if row is None:
        raise BasketUnknown(f"chain {chain_id} has no basket 0x{stablecoin.hex()}; `bskt baskets list` shows them")
    return row


def _judge_basket(switch: BasketSwitch, basket: asyncpg.Record) -> Verdict:
    name = f"Basket {basket['symbol']} ({basket['stablecoin']})"
    match switch:
        case BasketSwitch.PAUSE:
            if basket["paused_at"] is not None:
                return AlreadySo(sentence=f"{name} is paused already ({basket['paused_reason']}).")
            return Will(
                sentence=f"{name} is paused: nothing further is sent for it, and its open requests are held.  What was sent "
                "may still mint; the indexer goes on."
            )
        case BasketSwitch.RESUME:
            if basket["paused_at"] is None:
                return AlreadySo(sentence=f"{name} is not paused.")
            # Whoever said yes has not seen a change that came since: the sentence is another one then.
            return Will(
                sentence=f"{name} is no longer paused ({basket['paused_reason']}), and what was held for that is released.  "
                f"Changes of its token's roles since it was paused: {basket['role_changes']}."
            )
        case BasketSwitch.ALLOW | BasketSwitch.DISALLOW:
            return _judge_ruling(switch, basket, name)
    assert_never(switch)


def _judge_ruling(switch: BasketSwitch, basket: asyncpg.Record, name: str) -> Verdict:
    is_allowing = switch is BasketSwitch.ALLOW
    if basket["allowed"] is is_allowing:
        ruled = "allowed" if is_allowing else "disallowed"
        return AlreadySo(sentence=f"{name} is {ruled} already ({basket['allowed_reason']}).")
    if is_allowing:
        paused = f"It is paused ({basket['paused_reason']}): nothing is sent for it."
        return Will(
            sentence=f"{name} is allowed: it is served, and sent for with BSKT_SERVED_BASKETS=listed too.",
            warnings=() if basket["paused_at"] is None else (paused,),
        )
    return Will(
        sentence=f"{name} is disallowed: it is not served, whatever it completed.  It shares half of the slots with all "
        "baskets that are not served; with BSKT_SERVED_BASKETS=listed, no further request of it is sent."
    )


async def reset_workflow(
    pool: Pool,
    chain_id: int,
    workflow_id: bytes,
    person: Person,
    *,
    dry_run: bool = False,
    confirmed: Will | None = None,
) -> Answer:
    """Close a workflow's breaker and end its wait for a slot, so that its next request is sent at once.

    Args:
        pool: The operator's.
        chain_id: The chain.
        workflow_id: Which one, 32 bytes.
        person: Who does it, and why.
        dry_run: Judge only; nothing is written.
        confirmed: What the person was shown and said yes to; if it is not what would happen now, nothing is done.

    Raises:
        WorkflowUnknown: Nothing was written.
        DatastoreUnavailable: Nothing is known to be written; look, then repeat.
    """
    async with unit(pool) as connection:
        row = await connection.fetchrow(_WORKFLOW, chain_id, workflow_id)
        if row is None:
            raise WorkflowUnknown(f"chain {chain_id} never had workflow 0x{workflow_id.hex()}")
        refused = "" if row["code"] is None else f"  It was refused since {row['opened_at']:%Y-%m-%d %H:%M:%SZ}."
        sentence = f"The next request of workflow 0x{workflow_id.hex()} is sent without a further pause.{refused}"
        verdict = _as_confirmed(Will(sentence=sentence), confirmed)
        before = _switches(row)
        if dry_run or not isinstance(verdict, Will):
            return Answer(verdict=verdict, before=before, after=before)
        await connection.execute(_CLOSE_BREAKER, chain_id, workflow_id)
        await connection.execute(_FREE_SLOT, chain_id, workflow_id)
        row = await connection.fetchrow(_WORKFLOW, chain_id, workflow_id)
        after = _switches(row) if row is not None else {}
        about = {"workflow_id": "0x" + workflow_id.hex()}
        action_id = await connection.fetchval(
            _RECORD,
            chain_id,
            person.name.strip(),
            "reset_workflow",
            None,
            person.reason.strip(),
            None,
            json.dumps(about | before),
            json.dumps(about | after),
        )
    return Answer(verdict=verdict, before=before, after=after, action_id=action_id)
