"""How often things happened, and how long they took, for ``/metrics``.

Counted by triggers in the transactions that do them (``tally`` and ``tally_delta`` in ``schema.sql``): a restart forgets
nothing, every replica over one database says the same, and a reading costs some hundred rows and what is not folded yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from datastore.alarms import OF_STRANGERS, AlarmKind
from datastore.connection import Pool, unit
from datastore.judgement import DUPLICATE_BANK_REFERENCE
from datastore.lifecycle import State
from datastore.rows import Kind

BOUNDS_SECONDS: Final = (
    1.0,
    5.0,
    15.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1_200.0,
    2_400.0,
    3_600.0,
    7_200.0,
    21_600.0,
    86_400.0,
)
"""Upper bounds of the histograms of seconds, from one block to one day; those of ``seconds_bucket`` in ``schema.sql``."""
BOUNDS_BLOCKS: Final = (1, 2, 3, 5, 8, 16, 32, 64, 128)
"""Upper bounds of the histogram of a reorg's depth; those of ``blocks_bucket`` in ``schema.sql``."""
FOLDED_AT_ONCE: Final = 5_000
"""Deltas that one step folds, in some ten milliseconds."""

# $1 chain
_COUNTED: Final = "SELECT what, labels, bucket, times, total FROM counted WHERE chain_id = $1"
# $1 chain, $2 limit
_FOLD: Final = "SELECT fold_tally($1, $2)"

REPEATS: Final = frozenset({"in_flight", "payload_conflict"})
"""Answers by which CRE itself kept a repeated id from running again."""


@dataclass(slots=True)
class Histogram:
    """Observations by bucket: ``counts[i]`` are those below ``bounds[i]`` and not below the bound before; the last is the rest."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        """One more bucket than bounds."""
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, bucket: int, times: int, total: float) -> None:
        """Count ``times`` observations of one bucket."""
        self.counts[bucket] += times
        self.total += total


def _seconds() -> Histogram:
    return Histogram(BOUNDS_SECONDS)


def _alarms() -> Counter[tuple[str, bool]]:
    """From zero on, so that an alert sees the first one as an increase."""
    served = {(kind.value, True): 0 for kind in AlarmKind}
    return Counter(served | {(kind.value, False): 0 for kind in OF_STRANGERS})


@dataclass(slots=True)
class Totals:
    """Everything counted since the database was made.

    ``alarms`` are counted by kind and whether they concern what is served; see ``alarms.OF_STRANGERS``.
    """

    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    stages: dict[str, Histogram] = field(default_factory=dict)
    end_to_end: Histogram = field(default_factory=_seconds)
    claims_expired: int = 0
    duplicates: Counter[str] = field(default_factory=lambda: Counter({"bank_reference": 0, "request_id": 0}))
    logs: Counter[str] = field(default_factory=Counter)
    undecodable: int = 0
    reports: Counter[bool] = field(default_factory=lambda: Counter({True: 0, False: 0}))
    attempts: Counter[str] = field(default_factory=Counter)
    attempt_seconds: Histogram = field(default_factory=_seconds)
    alarms: Counter[tuple[str, bool]] = field(default_factory=_alarms)
    differences: Counter[str] = field(default_factory=lambda: Counter({kind.value: 0 for kind in Kind}))
    reorg_depth: Histogram = field(default_factory=lambda: Histogram(tuple(map(float, BOUNDS_BLOCKS))))


async def read(pool: Pool, chain_id: int) -> Totals:
    """Count, in one statement: nothing is missing and nothing is in it twice, whoever folds meanwhile.

    Raises:
        DatastoreUnavailable: Read again.
    """
    async with unit(pool) as connection:
        rows = await connection.fetch(_COUNTED, chain_id)
    return _totals(rows)


async def fold(pool: Pool, chain_id: int) -> bool:
    """Add up the oldest deltas; whether there are more.  Any number of processes may: they take different ones.

    Raises:
        DatastoreUnavailable: Nothing is known to be folded; call again.
    """
    async with unit(pool) as connection:
        folded: int = await connection.fetchval(_FOLD, chain_id, FOLDED_AT_ONCE)
    return folded == FOLDED_AT_ONCE


def _totals(rows: Sequence[asyncpg.Record]) -> Totals:
    totals = Totals()
    for what, labels, bucket, times, total in rows:
        match what, labels:
            case "transitions", [before, after, reason]:
                totals.transitions[before, after] += times
                totals.claims_expired += times if reason == "lease_expired" else 0
                is_duplicate = reason == DUPLICATE_BANK_REFERENCE and after == State.REJECTED
                totals.duplicates["bank_reference"] += times if is_duplicate else 0
                totals.stages.setdefault(before, _seconds()).add(bucket, times, total)
            case "completions", _:
                totals.end_to_end.add(bucket, times, total)
            case "attempts", [outcome]:
                totals.attempts[outcome] += times
                totals.duplicates["request_id"] += times if outcome in REPEATS else 0
                totals.attempt_seconds.add(bucket, times, total)
            case "logs", [event, undecodable]:
                totals.logs[event] += times
                totals.undecodable += times if undecodable == "true" else 0
            case "reports", [result]:
                totals.reports[result == "true"] += times
            case "alarms", [kind, served]:
                totals.alarms[kind, served == "true"] += times
            case "differences", [kind]:
                totals.differences[kind] += times
            case "reorgs", _:
                totals.reorg_depth.add(bucket, times, total)
            case _:
                pass  # what ``datastore.status`` reads: how many there are now
    return totals
