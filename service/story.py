"""What happened to one request, told in order.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final, TypeAlias

from datastore.inspection import History, Request
from datastore.lifecycle import State
from service.explanation import ANSWERS, address, block_time, counted, reason, reference, tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One line of the story; ``source`` is who knows of it."""

    at: datetime
    source: str
    sentence: str


_BY_A_PERSON: Final = {
    "pause_basket": "Its basket is paused",
    "resume_basket": "Its basket is resumed",
    "allow_basket": "Its basket is allowed",
    "disallow_basket": "Its basket is disallowed",
}


class _Order(IntEnum):
    """What is told first of what has one time."""

    ON_CHAIN = 0
    REORG = 1
    DONE = 2
    MOVED = 3
    ALARM = 4


_Told: TypeAlias = tuple[datetime, _Order, Happening]


def story(request: Request, history: History) -> list[Happening]:
    """What happened, in order; the last line is the latest thing that the rows know.

    Times are the database's; what only the chain knows has its block's time.  A chain's clock may be off, so such a
    line is told where it belongs, whatever its time says: before what it led to, and after what must have come first.
    """
    told = [*_asked(request, history), *_delivered(request, history), *_moved(history), *_attempted(history)]
    return [happening for _, _, happening in sorted(told, key=lambda each: each[:2])]


def _asked(request: Request, history: History) -> Iterable[_Told]:
    asked = f"{tokens(request)} for {address(request.beneficiary)}, reference {reference(request.bank_reference)}"
    first_reorg_at = min((reorg.at for reorg in history.reorgs), default=request.recorded_at)
    for number, place in enumerate(history.places):
        left = "" if place.canonical else " (orphaned later)"
        sentence = f"Asked for on chain in block {place.block_number}{left}: {asked}."
        at = block_time(place.timestamp) or request.recorded_at
        if number == 0:
            yield _told(at, _Order.ON_CHAIN, "chain", sentence, before=request.recorded_at)
        else:
            yield _told(at, _Order.DONE, "chain", sentence, after=first_reorg_at)
    for reorg in history.reorgs:
        sentence = f"A reorg of {counted(reorg.orphaned_blocks, 'block')} above block {reorg.ancestor_number}."
        yield _told(reorg.at, _Order.REORG, "chain", sentence)


def _delivered(request: Request, history: History) -> Iterable[_Told]:
    # A block's time has whole seconds: what was sent in the same second came first all the same.
    sent_at = min((t.at for t in history.transitions if t.after is State.IN_DOUBT), default=request.recorded_at)
    for delivery in history.deliveries:
        word = "succeeded" if delivery.result else "failed"
        left = "" if delivery.canonical else " (orphaned later)"
        sentence = (
            f"CRE's delivery {word} in block {delivery.block_number}{left}: transaction 0x{delivery.tx_hash.hex()}, "
            f"execution id 0x{delivery.execution_id.hex()}."
        )
        led_to = _first(history, "mint_proven" if delivery.result else "delivery_failed", "delivered_without_mint")
        at = block_time(delivery.timestamp) or led_to or sent_at
        yield _told(at, _Order.ON_CHAIN, "chain", sentence, after=sent_at, before=led_to)
    for mint in history.mints:
        left = "" if mint.canonical else " (orphaned later)"
        sentence = (
            f"{tokens(request, mint.amount)} minted for {address(mint.recipient)} in block {mint.block_number}{left}: "
            f"transaction 0x{mint.tx_hash.hex()}, proof: {mint.proof}."
        )
        led_to = _first(history, "mint_proven")
        at = block_time(mint.timestamp) or led_to or sent_at
        yield _told(at, _Order.ON_CHAIN, "chain", sentence, after=sent_at, before=led_to)


def _moved(history: History) -> Iterable[_Told]:
    for transition in history.transitions:
        sentence = "Recorded: seen."
        if transition.before is not None:
            # What CRE said of an attempt is told with its answer.
            said = reason(transition.reason, None if transition.attempt_no else transition.detail)
            sentence = f"{said}  {transition.before} → {transition.after}."
        yield _told(transition.at, _Order.MOVED, transition.actor, sentence)
    for action in history.actions:
        yield _told(action.at, _Order.DONE, "operator", f"{action.what}, by {action.sentence}")
    for pause in history.pauses:
        if pause.what in _BY_A_PERSON:
            yield _told(pause.at, _Order.DONE, "operator", f"{_BY_A_PERSON[pause.what]}, by {pause.sentence}")
        else:
            yield _told(pause.at, _Order.ALARM, "alarm", f"{pause.what}: {pause.sentence}")
    for alarm in history.alarms:
        yield _told(alarm.at, _Order.ALARM, "alarm", f"{alarm.what}: {alarm.sentence}")


def _attempted(history: History) -> Iterable[_Told]:
    for attempt in history.attempts:
        name = f"Attempt {attempt.attempt_no}"
        yield _told(
            attempt.started_at, _Order.DONE, "invocator", f"{name} is sent by worker {str(attempt.worker_id)[:8]}."
        )
        if attempt.answered_at is None or attempt.outcome is None:
            continue
        took_seconds = (attempt.answered_at - attempt.started_at).total_seconds()
        http = "" if attempt.http_status is None else f", HTTP {attempt.http_status}"
        sentence = f"{name} after {took_seconds:.1f} s{http}: {ANSWERS.get(attempt.outcome, attempt.outcome)}."
        if attempt.sentence:
            sentence += f"  {attempt.sentence}"
        yield _told(attempt.answered_at, _Order.DONE, "gateway", sentence)


def _told(
    at: datetime,
    order: _Order,
    source: str,
    sentence: str,
    *,
    after: datetime | None = None,
    before: datetime | None = None,
) -> _Told:
    place = at
    if after is not None and at < after:
        place = before or after
    elif before is not None:
        place = min(at, before)
    return place, order, Happening(at=at, source=source, sentence=sentence)


def _first(history: History, *reasons: str) -> datetime | None:
    return min((t.at for t in history.transitions if t.reason in reasons), default=None)
