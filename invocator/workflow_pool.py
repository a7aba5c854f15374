"""Which workflow a request belongs to.  Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Final, TypeVar
from uuid import UUID

T = TypeVar("T")

RESEND_MARGIN_SECONDS: Final = 5.0
"""From the client's time-out to the next attempt: enough to record that nothing was heard."""


_MOST_DOUBLINGS: Final = 32  # of a second, more than a century; a float overflows after a thousand attempts


def workflow_of(nonce: UUID, workflow_ids: Sequence[bytes]) -> bytes:
    """The rendezvous choice of ``nonce`` among ``workflow_ids`` (32 bytes each, at least one).

    The same again after a lost database, and only the requests of a workflow that leaves the pool choose anew.
    """
    return max(workflow_ids, key=lambda workflow_id: sha256(nonce.bytes + workflow_id).digest())


def in_turns(candidates: Iterable[tuple[T, bytes, bool]], last_turns: Mapping[bytes, bool]) -> list[T]:
    """The candidates, so that of each workflow served baskets and the others alternate.

    Each is a thing, its workflow, and whether its basket is served; the order of each kind stays.  ``last_turns`` says
    by workflow whether its latest send was for a served basket.  Turns over all workflows would give two that are free
    alternately to one kind each, and starve the requests of the other kind there.
    """
    before = Counter[tuple[bytes, bool]]()
    ranked: list[tuple[int, bool, T]] = []
    for candidate, workflow_id, is_served in candidates:
        had_the_last_turn = is_served == last_turns.get(workflow_id, False)
        ranked.append((before[workflow_id, is_served], had_the_last_turn, candidate))
        before[workflow_id, is_served] += 1
    return [candidate for _, _, candidate in sorted(ranked, key=lambda each: each[:2])]


def resend_seconds(
    attempt_no: int,
    *,
    timeout_seconds: float,
    margin_seconds: float = RESEND_MARGIN_SECONDS,
    longest_seconds: float = 1_800,
) -> float:
    """How long after the start of attempt ``attempt_no`` (from 1 on) another one may start.

    Beyond the client's own time-out always, so that no two attempts of one request run at once; doubling, because an
    answer that nobody reads stays in the gateway for up to 20 minutes.
    """
    first = timeout_seconds + margin_seconds
    doublings = min(attempt_no - 1, _MOST_DOUBLINGS)
    return max(first, min(longest_seconds, math.ldexp(first, doublings)))


def resends_within(seconds: float, *, timeout_seconds: float, margin_seconds: float = RESEND_MARGIN_SECONDS) -> int:
    """How often a request is sent again in its first ``seconds`` of doubt, if nothing keeps it from being sent."""
    resends, passed_seconds = 0, 0.0
    while True:
        passed_seconds += resend_seconds(resends + 1, timeout_seconds=timeout_seconds, margin_seconds=margin_seconds)
        if passed_seconds >= seconds:
            return resends
        resends += 1
