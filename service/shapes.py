"""What people and machines read of the rows: one JSON shape a thing, the same on the command line and over HTTP.

docs/cli.md names the members.  Amounts are wei as text; bytes, times and ids become text when they are written.  Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Final, TypeAlias
from uuid import UUID

import orjson
from eth_utils.address import to_checksum_address

from datastore.breakers import Breaker, Workflow
from datastore.inspection import BasketView, History, Reorg, Request
from datastore.reference import reference_text
from datastore.status import Alarm, Attention, Group, Snapshot
from service.explanation import REASONS, Standing, amount, block_time, explain, held_reason, hold
from service.story import Happening

Shape: TypeAlias = dict[str, object]

_ADDRESS_BYTES: Final = 20


def as_json(value: object, *, indent: bool = False) -> str:
    """A shape as text: addresses with their checksum (EIP-55), hashes as 0x hex, times ISO 8601 in UTC.

    Raises:
        TypeError: It holds something else, or an integer of more than 64 bits: a uint256 must be text already.
    """
    option = orjson.OPT_UTC_Z | (orjson.OPT_INDENT_2 if indent else 0)
    return orjson.dumps(value, default=_as_text, option=option).decode()


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return str(to_checksum_address(value)) if len(value) == _ADDRESS_BYTES else "0x" + value.hex()
    if isinstance(value, UUID):  # the database driver's own kind is not orjson's
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def status(
    snapshot: Snapshot, attention: Attention, *, version: str, endpoints: Sequence[Mapping[str, object]]
) -> Shape:
    """``GET /status`` and ``bskt status``."""
    next_slots = [slot.next_at or snapshot.read_at for slot in snapshot.slots]
    return {
        "version": version,
        "at": snapshot.read_at,
        "chain": {
            "chain_id": snapshot.chain_id,
            "head": snapshot.head,
            "safe": snapshot.safe,
            "finalized": snapshot.finalized,
            "indexed": snapshot.indexed,
            "indexed_hash": snapshot.indexed_hash,
            "indexed_at": snapshot.indexed_at,
            "lag_blocks": snapshot.lag_blocks,
            "lag_seconds": round(snapshot.lag_seconds, 1),
            "verified": snapshot.swept,
            "verified_at": snapshot.swept_at,
            "verifier_lag_seconds": round(snapshot.verifier_lag_seconds, 1),
            "last_reorg": None
            if snapshot.last_reorg is None
            else {
                "at": snapshot.last_reorg.at,
                "ancestor": snapshot.last_reorg.ancestor_number,
                "orphaned_blocks": snapshot.last_reorg.orphaned_blocks,
                "orphaned_requests": snapshot.last_reorg.orphaned_requests,
            },
            "endpoints": list(endpoints),
        },
        "requests": snapshot.requests,
        "queue": {
            "waiting": snapshot.waiting,
            "oldest_seconds": round(snapshot.oldest_seconds, 1),
            "next_slot_at": min(next_slots, default=None),
            "in_flight": snapshot.in_flight,
            "slots": [{"workflow_id": slot.workflow_id, "next_at": slot.next_at} for slot in snapshot.slots],
        },
        "paused": _switch(snapshot.paused, snapshot.paused_at),
        "baskets_paused": snapshot.baskets_paused,
        "quarantined": None
        if snapshot.quarantined is None
        else {
            "reason": snapshot.quarantined,
            "since": snapshot.quarantined_at,
            "until": snapshot.quarantined_until,
        },
        "halted": _switch(snapshot.halted, snapshot.halted_at),
        "sends_fail": breaker(attention.sends_fail),
        "refused_workflows": [
            {"workflow_id": each.workflow_id} | (breaker(each) or {}) for each in attention.refused_workflows
        ],
        "clock_offset_seconds": snapshot.clock_offset_seconds,
        "for_a_person": [_group(group) for group in attention.groups],
        "alarms": [_alarm(alarm) for alarm in attention.alarms],
    }


def _switch(reason: str | None, since: object) -> Shape | None:
    return None if reason is None else {"reason": reason, "since": since}


def breaker(opened: Breaker | None) -> Shape | None:
    """Why nothing is sent but probes; ``None`` where that is not so."""
    if opened is None:
        return None
    return {
        "outcome": opened.outcome,
        "code": opened.code,
        "sentence": opened.sentence,
        "answers": opened.answers,
        "since": opened.since,
        "next_probe_at": opened.next_probe_at,
    }


def workflow(each: Workflow) -> Shape:
    """One workflow as ``bskt workflows list`` has it."""
    state = "refused" if each.breaker is not None else "configured" if each.is_configured else "retired"
    return {
        "workflow_id": each.workflow_id,
        "state": state,
        "next_at": each.next_at,
        "breaker": breaker(each.breaker),
        "waiting": each.waiting,
        "in_flight": each.in_flight,
    }


def _group(group: Group) -> Shape:
    held = group.state is None
    why = f"held: {hold(group.reason)}" if held else REASONS.get(group.reason or "", group.reason)
    listed = "--held" if held else f"--state {group.state}"
    return {
        "state": "held" if held else group.state,
        "reason": group.reason,
        "why": why,
        "requests": group.requests,
        "since": group.since,
        "example": group.example,
        "command": f"bskt requests list {listed}" + (f" --reason {quote(group.reason)}" if group.reason else ""),
    }


def _alarm(alarm: Alarm) -> Shape:
    return {
        "kind": alarm.kind,
        "served": alarm.served,
        "times": alarm.times,
        "last_at": alarm.last_at,
        "request_id": alarm.request_id,
        "sentence": alarm.sentence,
    }


def request(request: Request, standing: Standing) -> Shape:
    """One request as ``bskt requests list`` has it."""
    explanation = explain(request, standing)
    place = standing.queue.get(request.id)
    return {
        "id": request.id,
        "nonce": request.nonce,
        "identity": request.identity,
        "generation": request.generation,
        "state": request.state,
        "label": explanation.label,
        "reason": request.state_reason,
        "detail": request.state_detail,
        "since": request.state_changed_at,
        "why": explanation.why,
        "next": explanation.next,
        "commands": list(explanation.commands),
        "held": _switch(held_reason(request, standing), request.held_at or request.state_changed_at),
        "sent": request.sent,
        "attempts": request.attempts,
        "basket": {"symbol": request.symbol, "stablecoin": request.stablecoin, "consumer": request.consumer},
        "requester": request.requester,
        "beneficiary": request.beneficiary,
        "amount": str(request.amount),
        "tokens": amount(request.amount, request.decimals),
        "bank_reference": {"text": reference_text(request.bank_reference), "hex": request.bank_reference},
        "chain": {
            "status": request.chain_status,
            "tx_hash": request.tx_hash,
            "block_number": request.block_number,
            "block_hash": request.block_hash,
            "block_time": block_time(request.block_timestamp),
            "log_index": request.log_index,
        },
        "recorded_at": request.recorded_at,
        "queue": None if place is None else {"position": place.position, "expected_at": place.expected_at},
        "mint": None
        if request.mint_block_number is None
        else {
            "block_number": request.mint_block_number,
            "tx_hash": request.mint_tx_hash,
            "amount": str(request.mint_amount),
            "proof": request.mint_proof,
            "mints": request.mints,
        },
    }


def request_with_history(asked: Request, history: History, standing: Standing) -> Shape:
    """One request as ``bskt requests show`` has it."""
    return request(asked, standing) | {
        "workflow_id": asked.workflow_id,
        "signer": asked.signer,
        "expected_reference": asked.expected_reference,
        "predicted_amount": None if asked.predicted_amount is None else str(asked.predicted_amount),
        "execution_ids": [{"execution_id": each, "source": source} for each, source in history.execution_ids],
        "calls": [
            {
                "attempt_no": attempt.attempt_no,
                "started_at": attempt.started_at,
                "answered_at": attempt.answered_at,
                "outcome": attempt.outcome,
                "http_status": attempt.http_status,
                "sentence": attempt.sentence,
            }
            for attempt in history.attempts
        ],
    }


def happening(each: Happening) -> Shape:
    """One line of ``bskt requests timeline``."""
    return {"at": each.at, "source": each.source, "sentence": each.sentence}


def basket(view: BasketView) -> Shape:
    """One basket; ``requests`` counts by state."""
    return {
        "symbol": view.symbol,
        "name": view.name,
        "stablecoin": view.stablecoin,
        "consumer": view.consumer,
        "creator": view.creator,
        "admin": view.admin,
        "decimals": view.decimals,
        "block_number": view.block_number,
        "block_hash": view.block_hash,
        "canonical": view.canonical,
        "paused": _switch(view.paused_reason, view.paused_at),
        "served": view.served,
        "completed_at": view.completed_at,
        "allowed": None
        if view.allowed is None
        else {"allowed": view.allowed, "reason": view.allowed_reason, "since": view.allowed_at},
        "requests": view.requests,
        "minted": str(view.minted),
        "minted_tokens": amount(view.minted, view.decimals),
    }


def reorg(each: Reorg) -> Shape:
    """One reorg."""
    return {
        "id": each.id,
        "at": each.at,
        "ancestor_number": each.ancestor_number,
        "ancestor_hash": each.ancestor_hash,
        "old_tip_number": each.old_tip_number,
        "old_tip_hash": each.old_tip_hash,
        "orphaned_blocks": each.orphaned_blocks,
        "orphaned_requests": each.orphaned_requests,
    }
