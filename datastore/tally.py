"""How often things happened, and how long they took, counted from the append-only tables for ``/metrics``.

Counted from rows and not in the process: a restart forgets nothing, and every replica over one database says the same.
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

from datastore.alarms import AlarmKind
from datastore.connection import Connection, Pool, unit
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
"""Upper bounds of the histograms of seconds: from one block to one day."""
BOUNDS_BLOCKS: Final = (1, 2, 3, 5, 8, 16, 32, 64, 128)
"""Upper bounds of the histogram of a reorg's depth."""

SETTLED_AFTER: Final = timedelta(minutes=10)
"""Rows older than this are counted once and for all.  A row's time is when it was written, not when it was committed, so
this must be longer than any transaction; younger rows are counted afresh at each reading."""

# $1 chain, $2 after, $3 up to, $4 bounds
_TRANSITIONS: Final = """
SELECT
    t.from_state, t.to_state, t.reason = 'lease_expired' AS expired, t.reason = $5 AS duplicate,
    width_bucket(s.seconds, $4::float8[]) AS bucket, sum(s.seconds) AS seconds, count(*) AS times
FROM mint_transition t
JOIN mint_request r ON r.id = t.request_id AND r.chain_id = $1
CROSS JOIN LATERAL (SELECT extract(epoch FROM t.stayed)::float8 AS seconds) s
WHERE t.at > $2 AND t.at <= $3 AND t.from_state IS NOT NULL
GROUP BY 1, 2, 3, 4, 5
"""
# $1 chain, $2 after, $3 up to, $4 bounds
_COMPLETIONS: Final = """
SELECT width_bucket(s.seconds, $4::float8[]) AS bucket, sum(s.seconds) AS seconds, count(*) AS times
FROM mint_transition t
JOIN mint_request r ON r.id = t.request_id AND r.chain_id = $1
CROSS JOIN LATERAL (SELECT greatest(0, extract(epoch FROM t.at)::float8 - r.block_timestamp) AS seconds) s
WHERE t.at > $2 AND t.at <= $3 AND t.to_state = 'completed'
GROUP BY 1
"""
# $1 chain, $2 after, $3 up to, $4 bounds
_ATTEMPTS: Final = """
SELECT a.outcome, width_bucket(s.seconds, $4::float8[]) AS bucket, sum(s.seconds) AS seconds, count(*) AS times
FROM attempt a
JOIN mint_request r ON r.id = a.request_id AND r.chain_id = $1
CROSS JOIN LATERAL (SELECT extract(epoch FROM a.answered_at - a.started_at)::float8 AS seconds) s
WHERE a.answered_at > $2 AND a.answered_at <= $3
GROUP BY 1, 2
"""
# Logs have no time of ours; what is final has all of its logs, until a second reading finds more.  $1 chain, $2 after block, $3 up to block
_LOGS: Final = """
SELECT event, undecodable IS NOT NULL AS undecodable, count(*) AS times
FROM log WHERE chain_id = $1 AND block_number > $2 AND block_number <= $3 GROUP BY 1, 2
"""
# $1 chain, $2 after block, $3 up to block
_REPORTS: Final = """
SELECT result, count(*) AS times
FROM report WHERE chain_id = $1 AND block_number > $2 AND block_number <= $3 GROUP BY 1
"""
# $1 chain
_FINAL: Final = "SELECT finalized_number, history_version FROM cursor WHERE chain_id = $1"
# $1 chain
_ALARMS: Final = "SELECT kind, count(*) AS times FROM alarm WHERE chain_id = $1 GROUP BY kind"
# $1 chain
_DIFFERENCES: Final = "SELECT kind, count(*) AS times FROM sweep_difference WHERE chain_id = $1 GROUP BY kind"
# $1 chain, $2 bounds
_REORGS: Final = """
SELECT width_bucket(orphaned_blocks::float8, $2::float8[]) AS bucket, sum(orphaned_blocks)::float8 AS blocks, count(*) AS times
FROM reorg WHERE chain_id = $1 GROUP BY 1
"""

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


@dataclass(slots=True)
class Totals:
    """Everything counted since the database was made."""

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
    # From zero on, so that an alert sees the first one as an increase.
    alarms: Counter[str] = field(default_factory=lambda: Counter({kind.value: 0 for kind in AlarmKind}))
    differences: Counter[str] = field(default_factory=lambda: Counter({kind.value: 0 for kind in Kind}))
    reorg_depth: Histogram = field(default_factory=lambda: Histogram(tuple(map(float, BOUNDS_BLOCKS))))


_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_NO_BLOCK: Final = -1
_LAST_BLOCK: Final = 2**63 - 1


class Tally:
    """Remembers what is counted for good, so that a reading costs what happened lately and not what ever happened."""

    def __init__(self, chain_id: int, *, settled_after: timedelta = SETTLED_AFTER) -> None:
        """Nothing is counted yet: the first reading goes through the whole history."""
        self._chain_id = chain_id
        self._settled_after = settled_after
        self._settled = Totals()
        self._settled_up_to = _NEVER
        # Apart from the others: a sweep, a backfill or a late factory may change what was settled.
        self._final = Totals()
        self._final_up_to = _NO_BLOCK
        self._history_version = 0

    async def read(self, pool: Pool) -> Totals:
        """Count.

        Raises:
            DatastoreUnavailable: Nothing was counted; read again.
        """
        async with unit(pool) as connection:
            now = await connection.fetchval("SELECT clock_timestamp()")
            # Before anything is counted: what changes meanwhile raises the version, and is counted by the next reading.
            at = await connection.fetchrow(_FINAL, self._chain_id)
            finalized, version = (-1, 0) if at is None else (at["finalized_number"], at["history_version"])
            final, final_up_to = self._final, self._final_up_to
            if version != self._history_version:
                final, final_up_to = Totals(), _NO_BLOCK
            final = deepcopy(final)
            settled_up_to = max(now - self._settled_after, self._settled_up_to)
            newly_settled = await self._timed(connection, self._settled_up_to, settled_up_to)
            fresh = await self._timed(connection, settled_up_to, now)
            (await self._placed(connection, final_up_to, finalized)).add_to(final)
            above = await self._placed(connection, finalized, _LAST_BLOCK)
            alarms = await connection.fetch(_ALARMS, self._chain_id)
            differences = await connection.fetch(_DIFFERENCES, self._chain_id)
            reorgs = await connection.fetch(_REORGS, self._chain_id, [float(bound) for bound in BOUNDS_BLOCKS])
        # Only now: a reading that failed half-way must not count its part twice.
        newly_settled.add_to(self._settled)
        self._settled_up_to = settled_up_to
        self._final, self._final_up_to, self._history_version = final, finalized, version
        totals = deepcopy(self._settled)
        totals.logs, totals.undecodable, totals.reports = final.logs.copy(), final.undecodable, final.reports.copy()
        fresh.add_to(totals)
        above.add_to(totals)
        totals.alarms.update({row["kind"]: row["times"] for row in alarms})
        totals.differences.update({row["kind"]: row["times"] for row in differences})
        for row in reorgs:
            totals.reorg_depth.add(row["bucket"], row["times"], row["blocks"])
        return totals

    async def _timed(self, connection: Connection, after: datetime, up_to: datetime) -> _Timed:
        window = (self._chain_id, after, up_to, list(BOUNDS_SECONDS))
        return _Timed(
            transitions=await connection.fetch(_TRANSITIONS, *window, DUPLICATE_BANK_REFERENCE),
            completions=await connection.fetch(_COMPLETIONS, *window),
            attempts=await connection.fetch(_ATTEMPTS, *window),
        )

    async def _placed(self, connection: Connection, after: int, up_to: int) -> _Placed:
        window = (self._chain_id, after, up_to)
        return _Placed(logs=await connection.fetch(_LOGS, *window), reports=await connection.fetch(_REPORTS, *window))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    """What happened between two moments of ours, grouped."""

    transitions: list[asyncpg.Record]
    completions: list[asyncpg.Record]
    attempts: list[asyncpg.Record]

    def add_to(self, totals: Totals) -> None:
        for row in self.transitions:
            before, after, times = row["from_state"], row["to_state"], row["times"]
            totals.transitions[before, after] += times
            totals.claims_expired += times if row["expired"] else 0
            totals.duplicates["bank_reference"] += times if row["duplicate"] and after == State.REJECTED else 0
            totals.stages.setdefault(before, _seconds()).add(row["bucket"], times, row["seconds"])
        for row in self.completions:
            totals.end_to_end.add(row["bucket"], row["times"], row["seconds"])
        for row in self.attempts:
            totals.attempts[row["outcome"]] += row["times"]
            totals.duplicates["request_id"] += row["times"] if row["outcome"] in REPEATS else 0
            totals.attempt_seconds.add(row["bucket"], row["times"], row["seconds"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """What rows without a time of ours say happened between two blocks, grouped."""

    logs: list[asyncpg.Record]
    reports: list[asyncpg.Record]

    def add_to(self, totals: Totals) -> None:
        for row in self.logs:
            totals.logs[row["event"]] += row["times"]
            totals.undecodable += row["times"] if row["undecodable"] else 0
        for row in self.reports:
            totals.reports[row["result"]] += row["times"]
