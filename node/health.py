"""What is known of an endpoint, and which one to ask next.  Pure: the clock and the dice are handed in.

An endpoint is a state machine, not a URL:

* ``unproven``: not asked yet.  It is asked only after those that are alive.
* ``alive``: it answers.  The first alive endpoint in the operator's order is asked, and stays asked: a small difference
  between two heads moves nothing (hard case 26).
* ``lagging``: its head is behind what is indexed, or stands still while another one's moves.
* ``rate_limited``: it asked to be left alone.  That our own budget for it is spent is no state of it.
* ``unreachable``: it did not answer, or what it answered was invalid; the reason says which.
* ``other_fork``: it denies a block that is stored as final; it is asked for that block, and for nothing else.
* ``wrong_chain``: it serves another chain, or another history of ours (hard case 27).

A failure moves an endpoint out of ``alive`` at once, so that the next one is asked at once.  From the third failure in
a row on it also *rests*: nothing at all is sent before ``rests_until`` (the circuit is open).  A rest is a second,
however often it failed: what is asked after it is one question for its newest block, with little time to answer
(``head_seconds``), so that an endpoint that is well again is at work within seconds.  An endpoint that is not
alive comes back in one of two ways: several probes in a row find it in order, or nothing better was left and it did
the work.  One that fails again before it has worked is probed more and more rarely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

CIRCUIT_OPENS_AT: Final = 3
"""Failures in a row; the ones before cost no rest, for a connection that breaks once says nothing."""

PROBES_TO_RETURN: Final = 3

_REST_SECONDS: Final = 1.0
_LIMITED_SECONDS: Final = 2.0  # where it does not say for how long
_HEAD_SECONDS: Final = 10.0
_HEAD_AFTER_A_FAILURE_SECONDS: Final = 2.0
_USUAL_TIMES: Final = 4
_FORGETTING: Final = 0.98
_LONGEST_PROBE_SECONDS: Final = 300.0
_PROBE_SECONDS: Final = 5.0
_IDLE_PROBE_SECONDS: Final = 60.0
_NOT_OURS_SECONDS: Final = 300.0
_UNKNOWN_BLOCKS_TO_LAG: Final = 3


class EndpointState(StrEnum):
    """See the module."""

    ALIVE = "alive"
    UNPROVEN = "unproven"
    LAGGING = "lagging"
    RATE_LIMITED = "rate_limited"
    UNREACHABLE = "unreachable"
    OTHER_FORK = "other_fork"
    WRONG_CHAIN = "wrong_chain"


_RANK: Final = {state: rank for rank, state in enumerate(EndpointState)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """One endpoint at one moment; times are seconds of the pool's clock.

    ``reason`` is the last trouble, also after it is over.  ``failures`` and ``unknown_blocks`` count in a row.
    ``probes`` counts the probes in a row that found it in order since the last trouble.  ``usual_seconds`` is what its
    newest block takes.
    """

    state: EndpointState = EndpointState.UNPROVEN
    reason: str | None = None
    failures: int = 0
    unknown_blocks: int = 0
    probes: int = 0
    rests_until: float = -math.inf
    probe_at: float = -math.inf
    head: int | None = None
    head_rose_at: float = -math.inf
    usual_seconds: float = 0.0

    @property
    def head_seconds(self) -> float:
        """How long it may take to tell its newest block; less after a failure, and never less than it usually takes."""
        least = _HEAD_AFTER_A_FAILURE_SECONDS if self.failures else _HEAD_SECONDS
        return max(least, _USUAL_TIMES * self.usual_seconds)

    @property
    def is_alive(self) -> bool:
        """Whether it is asked before those that are in trouble."""
        return self.state is EndpointState.ALIVE

    def worked(self, now: float) -> Health:
        """It did what was asked.  One that lags stays so until its head has caught up (``caught_up``)."""
        state = EndpointState.LAGGING if self.state is EndpointState.LAGGING else EndpointState.ALIVE
        return replace(
            self,
            state=state,
            failures=0,
            unknown_blocks=0,
            probes=0,
            probe_at=self._not_while_resting(now + _IDLE_PROBE_SECONDS),
        )

    def caught_up(self) -> Health:
        """Its head is where it must be."""
        return replace(self, state=EndpointState.ALIVE) if self.state is EndpointState.LAGGING else self

    def failed(self, reason: str, now: float, chance: float) -> Health:
        """It did not answer, or not as a node does."""
        failures = self.failures + 1
        rest = _REST_SECONDS * _jitter(chance) if failures >= CIRCUIT_OPENS_AT else 0.0
        return replace(
            self,
            state=EndpointState.UNREACHABLE,
            reason=reason,
            failures=failures,
            probes=0,
            rests_until=now + rest,
            probe_at=now + max(rest, _probe_seconds(failures, chance)),
        )

    def limited(self, reason: str, now: float, chance: float, *, rest_seconds: float | None) -> Health:
        """It asked to be left alone, for ``rest_seconds`` or, where it does not say (``None``), for a moment."""
        failures = self.failures + 1
        rest = _LIMITED_SECONDS * _jitter(chance) if rest_seconds is None else rest_seconds
        return replace(
            self,
            state=EndpointState.RATE_LIMITED,
            reason=reason,
            failures=failures,
            probes=0,
            rests_until=now + rest,
            probe_at=now + max(rest, _probe_seconds(failures, chance)),
        )

    def is_not_ours(self, state: EndpointState, reason: str, now: float, chance: float) -> Health:
        """``WRONG_CHAIN`` or ``OTHER_FORK``: it is looked at again rarely, and not used before it has proven ours."""
        rest = _NOT_OURS_SECONDS * _jitter(chance)
        return replace(
            self,
            state=state,
            reason=reason,
            failures=self.failures + 1,
            probes=0,
            rests_until=now + rest,
            probe_at=now + rest,
        )

    def lags(self, reason: str, now: float, chance: float) -> Health:
        """It answers, but about an older chain.  This counts as a failure: one that always lags is probed less."""
        return replace(
            self,
            state=EndpointState.LAGGING,
            reason=reason,
            failures=self.failures + 1,
            unknown_blocks=0,
            probes=0,
            probe_at=self._not_while_resting(now + _probe_seconds(self.failures + 1, chance)),
        )

    def did_not_know_a_block(self, now: float, chance: float) -> Health:
        """It did not know a block that it should; once is a tip that moved, several times in a row is a lag."""
        if self.unknown_blocks + 1 < _UNKNOWN_BLOCKS_TO_LAG:
            return replace(self, unknown_blocks=self.unknown_blocks + 1)
        return self.lags("it does not know the blocks that it announces", now, chance)

    def passed_probe(self, now: float, chance: float) -> Health:
        """It was looked at without being needed, and found in order.  ``failures`` stay until it has worked again."""
        if self.is_alive or self.state is EndpointState.UNPROVEN or self.probes + 1 >= PROBES_TO_RETURN:
            probe_at = self._not_while_resting(now + _IDLE_PROBE_SECONDS)
            return replace(self, state=EndpointState.ALIVE, probes=0, probe_at=probe_at)
        probe_at = self._not_while_resting(now + _probe_seconds(self.failures, chance))
        return replace(self, probes=self.probes + 1, probe_at=probe_at)

    def took(self, seconds: float) -> Health:
        """It told its newest block within this time; the slowest answers of late count."""
        return replace(self, usual_seconds=max(seconds, _FORGETTING * self.usual_seconds))

    def saw_head(self, number: int, now: float) -> Health:
        """The number of its newest block, which may be lower than the one before."""
        rose = self.head is None or number > self.head
        return replace(self, head=number, head_rose_at=now if rose else self.head_rose_at)

    def _not_while_resting(self, moment: float) -> float:
        return max(moment, self.rests_until)


def _jitter(chance: float) -> float:
    return 0.5 + chance / 2


def _probe_seconds(failures: int, chance: float) -> float:
    return min(_LONGEST_PROBE_SECONDS, _PROBE_SECONDS * 2.0 ** min(max(failures - 1, 0), 16)) * _jitter(chance)


def order(healths: Sequence[Health], now: float) -> tuple[int, ...]:
    """Whom to ask, best first; those that rest are not there.  ``healths`` is in the operator's order of preference."""
    ready = [place for place, health in enumerate(healths) if health.rests_until <= now]
    return tuple(sorted(ready, key=lambda place: (_RANK[healths[place].state], place)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A token bucket: ``per_second`` questions, up to ``size`` saved up.

    What was begun may overdraw it, for it is worth nothing by halves; what follows then waits longer.
    """

    per_second: float
    size: float
    left: float
    at: float

    @classmethod
    def full(cls, per_second: float, now: float) -> Budget:
        """Two seconds' worth, at least one question."""
        size = max(1.0, 2 * per_second)
        return cls(per_second=per_second, size=size, left=size, at=now)

    def wait_seconds(self, now: float) -> float:
        """How long until a question may be asked; 0 for at once."""
        return max(0.0, (1.0 - self._filled(now)) / self.per_second)

    def spent(self, questions: int, now: float) -> Budget:
        """After asking."""
        return replace(self, left=self._filled(now) - questions, at=now)

    def _filled(self, now: float) -> float:
        return min(self.size, self.left + max(0.0, now - self.at) * self.per_second)
