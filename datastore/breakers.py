"""Circuit breakers: what CRE would refuse of every request is not sent, but for a probe now and then.

Only what a refusal is about waits.  A workflow that CRE does not know, or does not authorise our key for, has a breaker
of its own, and the other workflows go on.  What every request would meet (our key, our clock, the connection) opens the
breaker of the instance, which is the row without a workflow.  No request pays for either: one that was refused before
it was forwarded waits again, behind the others.

A breaker is a row while it is open.  It is locked after ``trigger_gate`` and before ``workflow_slot``, the instance's
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from datastore.alarms import AlarmKind, raise_alarm
from datastore.connection import Connection, Pool, unit

FIRST_PAUSE_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 300.0
LONGEST_UNREACHED_SECONDS: Final = 60.0
"""The longest pause while no connection opens: an outage ends at once, a wrong key after a person has looked."""

REFUSALS_IN_A_ROW: Final = 3
"""So many requests of one workflow in a row refused for good are no fault of theirs."""

# $1 chain, $2 workflow
_LOCK: Final = """
SELECT workflow_id, outcome, probe_at <= clock_timestamp() AS is_probed FROM breaker
WHERE chain_id = $1 AND (workflow_id IS NULL OR workflow_id = $2)
ORDER BY workflow_id NULLS FIRST
FOR UPDATE
"""
# One probe at a time, as long as it may take.  $1 chain, $2 workflow, $3 interval
_PROBE: Final = """
UPDATE breaker SET probe_at = clock_timestamp() + greatest(make_interval(secs => pause_seconds), $3::interval)
WHERE chain_id = $1 AND (workflow_id IS NULL OR workflow_id = $2)
"""
# What was under way when the breaker opened makes the pause no longer.  $1 chain, $2 workflow or NULL, $3 outcome, $4 code,
# $5 sentence, $6 first pause, $7 longest pause, in seconds, $8 request, $9 attempt
_OPEN: Final = """
INSERT INTO breaker AS b (chain_id, workflow_id, outcome, code, sentence, pause_seconds, probe_at)
VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp() + make_interval(secs => $6))
ON CONFLICT ON CONSTRAINT breaker_is_open_once DO UPDATE
SET outcome = excluded.outcome, code = excluded.code, sentence = excluded.sentence, refusals = b.refusals + 1,
    (pause_seconds, probe_at) = (
        SELECT p.seconds, clock_timestamp() + make_interval(secs => p.seconds)
        FROM (
            SELECT CASE
                WHEN (SELECT a.started_at FROM attempt a WHERE a.request_id = $8 AND a.attempt_no = $9) < b.opened_at
                THEN b.pause_seconds ELSE least($7, b.pause_seconds * 2)
            END AS seconds
        ) p
    )
RETURNING probe_at, refusals
"""
# What began before the breaker opened says nothing about now.
# $1 chain, $2 workflow, or NULL for the instance's only, $3 request, $4 attempt
_CLOSE: Final = """
DELETE FROM breaker b USING attempt a
WHERE b.chain_id = $1 AND (b.workflow_id IS NULL OR b.workflow_id = $2)
  AND a.request_id = $3 AND a.attempt_no = $4 AND a.started_at >= b.opened_at
"""
# Whether CRE refused the latest requests of a workflow for good, one after the other; what says nothing about a request is
# left out, and so is what is older than a day: the attempts of a day are few.  $1 chain, $2 workflow, $3 how many
_REFUSES_ALL: Final = """
SELECT count(*) = $3 AND bool_and(l.outcome = 'refused_for_good') FROM (
    SELECT a.outcome
    FROM attempt a
    JOIN frozen_request f ON f.request_id = a.request_id AND f.generation = a.generation
    JOIN mint_request r ON r.id = a.request_id
    WHERE r.chain_id = $1 AND f.workflow_id = $2 AND a.started_at > statement_timestamp() - interval '1 day'
      AND a.outcome IN ('accepted', 'refused_now', 'refused_for_good', 'in_flight', 'payload_conflict')
    ORDER BY a.started_at DESC
    LIMIT $3
) l
"""
# $1 chain, $2 workflows
_FORGET_OTHERS: Final = "DELETE FROM breaker WHERE chain_id = $1 AND workflow_id <> ALL($2::bytea[])"
# $1 chain
_LIST: Final = """
SELECT workflow_id, outcome, code, sentence, refusals AS answers, opened_at AS since, probe_at AS next_probe_at
FROM breaker WHERE chain_id = $1
ORDER BY workflow_id NULLS FIRST
"""
# By the workflow of the configured pool that each would be sent to.  $1 chain, $2 workflows
_WAITING: Final = """
SELECT w.workflow_id, count(*) AS requests
FROM mint_request r CROSS JOIN LATERAL workflow_of(r.id, r.generation, r.nonce, $2::bytea[]) w
WHERE r.chain_id = $1 AND r.state = 'confirmed' AND r.held_at IS NULL AND r.chain_status <> 'orphaned'
GROUP BY 1
"""
# $1 chain
_IN_FLIGHT: Final = """
SELECT f.workflow_id, count(*) AS requests
FROM mint_request r
JOIN frozen_request f ON f.request_id = r.id AND f.generation = r.generation
WHERE r.chain_id = $1 AND r.state IN ('in_doubt', 'accepted') AND r.deadline_at > settled_time($1)
GROUP BY 1
"""
# $1 chain
_SLOTS: Final = """
SELECT w.workflow_id, s.earliest_next_at AS next_at
FROM workflow w LEFT JOIN workflow_slot s USING (chain_id, workflow_id)
WHERE w.chain_id = $1
ORDER BY w.listed_at, w.workflow_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """An open one: the latest ``answers`` of CRE all refuse this workflow, or without one this instance.

    ``outcome`` and ``sentence`` are of the latest answer, ``code`` is its closed reason.  The next probe goes at
    ``next_probe_at`` or soon after, with the first request that is due.
    """

    workflow_id: bytes | None
    outcome: str
    code: str
    sentence: str
    answers: int
    since: datetime
    next_probe_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What an answer says against a workflow, or without one against the instance."""

    workflow_id: bytes | None
    outcome: str
    code: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """One workflow that was ever configured; ``next_at`` is when its slot is free, ``None`` for at once."""

    workflow_id: bytes
    is_configured: bool
    next_at: datetime | None
    breaker: Breaker | None
    waiting: int
    in_flight: int


async def are_open(connection: Connection, chain_id: int, workflow_id: bytes) -> tuple[bool, bool]:
    """Lock the breakers of the instance and of a workflow: whether one is open, and whether nothing may be sent now."""
    rows = await connection.fetch(_LOCK, chain_id, workflow_id)
    return bool(rows), not all(row["is_probed"] for row in rows)


async def begin_probe(connection: Connection, chain_id: int, workflow_id: bytes, seconds: float) -> None:
    """Let nothing else through for so long; the breakers are locked."""
    await connection.execute(_PROBE, chain_id, workflow_id, timedelta(seconds=seconds))


async def refuses_all(connection: Connection, chain_id: int, workflow_id: bytes) -> bool:
    """Whether a workflow's refusals for good are a streak, so that no request of it pays for more of them."""
    return bool(await connection.fetchval(_REFUSES_ALL, chain_id, workflow_id, REFUSALS_IN_A_ROW))


async def open_(connection: Connection, chain_id: int, refusal: Refusal, request_id: int, attempt_no: int) -> datetime:
    """Open a breaker, or keep it open for longer; when it lets the next probe through."""
    rows = await connection.fetch(_LOCK, chain_id, refusal.workflow_id)
    outcome_before = next((row["outcome"] for row in rows if row["workflow_id"] == refusal.workflow_id), None)
    opened = await connection.fetchrow(
        _OPEN,
        chain_id,
        refusal.workflow_id,
        refusal.outcome,
        refusal.code,
        refusal.sentence,
        FIRST_PAUSE_SECONDS,
        LONGEST_UNREACHED_SECONDS if refusal.outcome == "never_connected" else LONGEST_PAUSE_SECONDS,
        request_id,
        attempt_no,
    )
    if opened is None:
        raise AssertionError("a breaker was neither opened nor kept open")
    if _needs_a_person(refusal.outcome, outcome_before, opened["refusals"]):
        of_instance = refusal.workflow_id is None
        kind = AlarmKind.INSTANCE_REFUSED if of_instance else AlarmKind.WORKFLOW_REFUSED
        about = "" if refusal.workflow_id is None else f"Workflow {refusal.workflow_id.hex()}: "
        await raise_alarm(connection, chain_id, kind, about + refusal.sentence)
    probe_at: datetime = opened["probe_at"]
    return probe_at


def _needs_a_person(outcome: str, outcome_before: str | None, refusals: int) -> bool:
    """Once, when CRE begins to refuse; what it may have forwarded, or could not be reached for, may pass by itself."""
    if outcome == "unknown":
        return refusals == REFUSALS_IN_A_ROW
    return outcome != "never_connected" and outcome_before in {None, "never_connected", "unknown"}


async def close(
    connection: Connection, chain_id: int, workflow_id: bytes | None, request_id: int, attempt_no: int
) -> None:
    """CRE works for this instance, and for the workflow where one is named."""
    await connection.fetch(_LOCK, chain_id, workflow_id)
    await connection.execute(_CLOSE, chain_id, workflow_id, request_id, attempt_no)


async def forget_others(connection: Connection, chain_id: int, workflow_ids: Sequence[bytes]) -> None:
    """Workflows that are not configured any more are not refused either."""
    await connection.execute(_FORGET_OTHERS, chain_id, list(workflow_ids))


async def opened(connection: Connection, chain_id: int) -> tuple[Breaker, ...]:
    """Every open breaker, the instance's first."""
    return tuple(Breaker(**row) for row in await connection.fetch(_LIST, chain_id))


async def workflows(pool: Pool, chain_id: int, configured: Sequence[bytes]) -> list[Workflow]:
    """Every workflow that was ever configured, oldest first, and what waits for it.  Reads only."""
    async with unit(pool) as connection:
        by_workflow = {each.workflow_id: each for each in await opened(connection, chain_id)}
        waiting = {
            row["workflow_id"]: row["requests"] for row in await connection.fetch(_WAITING, chain_id, list(configured))
        }
        in_flight = {row["workflow_id"]: row["requests"] for row in await connection.fetch(_IN_FLIGHT, chain_id)}
        slots = await connection.fetch(_SLOTS, chain_id)
    return [
        Workflow(
            workflow_id=row["workflow_id"],
            is_configured=row["workflow_id"] in configured,
            next_at=row["next_at"],
            breaker=by_workflow.get(row["workflow_id"]),
            waiting=waiting.get(row["workflow_id"], 0),
            in_flight=in_flight.get(row["workflow_id"], 0),
        )
        for row in slots
    ]
