"""Feed events to requests: lock, read the facts, decide, write.  Used by every actor.

The decision is ``lifecycle.decide``; this module only carries it out.  Rows are locked in the order of their bank
reference, then id (two chains may share the database), and the facts are read by a statement that starts after the
locks are held: an attempt that another session committed while we waited must be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from datastore.connection import Connection
from datastore.lifecycle import RULES, ChainStatus, Event, Facts, State, decide, keeps_reference, reason_of

# $1 ids
_LOCK: Final = """
SELECT id FROM mint_request WHERE id = ANY($1::bigint[]) ORDER BY bank_reference, id FOR UPDATE
"""

# $1 ids, $2 a block number up to which a mint is final enough, $3 one up to which a request is final enough
_FACTS: Final = """
WITH stopped AS MATERIALIZED (
    SELECT chain_id FROM control
    WHERE quarantined_at IS NOT NULL OR NOT is_this_server(server_identifier, server_timeline)
)
SELECT
    r.id, r.state, r.state_reason, r.chain_status, r.orphaned_for_good, r.holds_reference, r.bank_reference,
    is_sent(r.id) AS sent,
    was_accepted(r.id) AS accepted_once,
    r.chain_status <> 'orphaned' AND r.block_number <= $3 AS final_enough,
    m.mints,
    m.mints > 0 AND m.are_right AS mint_is_right,
    m.mints > 0 AND m.highest <= $2 AND r.block_number <= $2 AND r.chain_status <> 'orphaned' AS mint_is_final,
    EXISTS (
        SELECT FROM mint_execution e WHERE e.canonical AND e.bank_reference = r.expected_reference
    ) AS visible_mint,
    EXISTS (
        SELECT FROM mint_execution e
        WHERE e.canonical AND e.bank_reference = r.expected_reference AND (e.request_id IS NULL OR e.request_id = r.id)
    ) AS doubtful_mint,
    EXISTS (
        SELECT FROM mint_request o WHERE o.bank_reference = r.bank_reference AND o.holds_reference AND o.id <> r.id
    ) AS rival_holds_reference,
    EXISTS (
        SELECT FROM execution_id x JOIN report p ON p.chain_id = x.chain_id AND p.execution_id = x.execution_id
        WHERE x.request_id = r.id AND x.generation <> r.generation
    ) AND NOT EXISTS (
        SELECT FROM operator_action a
        WHERE a.request_id = r.id AND a.action = 'new_generation' AND a.evidence IS NOT NULL
    ) AS stray_report,
    r.chain_id IN (SELECT chain_id FROM stopped) AS quarantined
FROM mint_request r
CROSS JOIN LATERAL (
    SELECT
        count(*) AS mints,
        bool_and(e.amount IN (r.amount, r.predicted_amount) AND e.recipient = r.beneficiary) AS are_right,
        max(e.block_number) AS highest
    FROM mint_execution e
    WHERE e.request_id = r.id AND e.canonical
) m
WHERE r.id = ANY($1::bigint[])
"""

# $1 ids, $2 from, $3 to, $4 reasons, $5 details, $6 holds_reference, $7 attempt numbers
_WRITE: Final = """
UPDATE mint_request r SET
    state = n.to_state,
    state_reason = n.reason,
    state_detail = n.detail,
    state_attempt_no = n.attempt_no,
    state_changed_at = clock_timestamp(),
    holds_reference = n.holds,
    worker_id = CASE WHEN n.to_state = 'claimed' THEN r.worker_id END,
    lease_ends_at = CASE WHEN n.to_state = 'claimed' THEN r.lease_ends_at END,
    next_attempt_at = CASE n.to_state
        WHEN 'in_doubt' THEN coalesce(r.next_attempt_at, clock_timestamp()) ELSE r.next_attempt_at END
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::integer[])
    AS n (id, from_state, to_state, reason, detail, holds, attempt_no)
WHERE r.id = n.id AND r.state = n.from_state
"""

# An event that is still to be fed to requests which hold nothing, where there are any.
# $1 bank references, $2 their causes, $3 event, $4 states
_LEAVE: Final = """
INSERT INTO unsettled_reference (chain_id, bank_reference, event, cause)
SELECT c.chain_id, n.bank_reference, $3, n.cause
FROM unnest($1::bytea[], $2::bigint[]) AS n (bank_reference, cause)
CROSS JOIN chain c
CROSS JOIN LATERAL (
    SELECT FROM mint_request r
    WHERE r.bank_reference = n.bank_reference AND r.chain_id = c.chain_id
      AND r.state IN ('seen', 'rejected', 'failed') AND r.state = ANY($4::text[])
    LIMIT 1
) r
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A transition that was made."""

    request_id: int
    before: State
    after: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A request's state and facts, read under its lock."""

    request_id: int
    state: State
    reason: str | None
    holds_reference: bool
    bank_reference: bytes
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """Up to which block number a mint (``complete``) and a request (``trigger``) are final enough."""

    complete: int
    trigger: int


NO_HORIZON: Final = Horizon(complete=-1, trigger=-1)
"""For actors that need no finality to decide."""


async def known(connection: Connection, ids: Iterable[int], horizon: Horizon = NO_HORIZON) -> dict[int, Known]:
    """Lock the requests and read their facts; by id."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    await connection.execute(_LOCK, wanted)
    rows = await connection.fetch(_FACTS, wanted, horizon.complete, horizon.trigger)
    return {row["id"]: _known(row) for row in rows}


async def facts(connection: Connection, ids: Sequence[int], horizon: Horizon) -> dict[int, Facts]:
    """The facts of requests at this moment, by id; nothing is locked, so nothing may be decided by them."""
    rows = await connection.fetch(_FACTS, list(ids), horizon.complete, horizon.trigger)
    return {row["id"]: _known(row).facts for row in rows}


def _known(row: asyncpg.Record) -> Known:
    return Known(
        request_id=row["id"],
        state=State(row["state"]),
        reason=row["state_reason"],
        holds_reference=row["holds_reference"],
        bank_reference=row["bank_reference"],
        facts=Facts(
            chain_status=ChainStatus(row["chain_status"]),
            orphaned_for_good=row["orphaned_for_good"],
            sent=row["sent"],
            accepted_once=row["accepted_once"],
            final_enough=bool(row["final_enough"]),
            mints=row["mints"],
            visible_mint=row["visible_mint"],
            doubtful_mint=row["doubtful_mint"],
            mint_is_right=bool(row["mint_is_right"]),
            mint_is_final=bool(row["mint_is_final"]),
            holds_reference=row["holds_reference"],
            rival_holds_reference=row["rival_holds_reference"],
            stray_report=row["stray_report"],
            quarantined=row["quarantined"],
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A decided transition with what is written beside it."""

    request: Known
    after: State
    reason: str | None = None
    detail: str | None = None
    takes_reference: bool = False
    attempt_no: int | None = None

    @property
    def holds_reference(self) -> bool:
        """Whether the request holds its bank reference afterwards."""
        request = self.request
        return self.takes_reference or keeps_reference(
            before=request.state, after=self.after, sent=request.facts.sent, held=request.holds_reference
        )


async def settle(
    connection: Connection,
    event: Event,
    ids: Iterable[int],
    *,
    reason: str | None = None,
    detail: str | None = None,
    horizon: Horizon = NO_HORIZON,
    attempt_no: int | None = None,
) -> list[Settled]:
    """Feed one event to many requests; what the table does not list stays as it is."""
    requests = await known(connection, ids, horizon)
    moves = [
        Move(
            request=request, after=after, reason=reason or reason_of(event, after), detail=detail, attempt_no=attempt_no
        )
        for request in requests.values()
        if (after := decide(event, request.state, request.facts)) is not None and after is not request.state
    ]
    return await move(connection, moves)


async def move(connection: Connection, moves: Sequence[Move]) -> list[Settled]:
    """Write decided transitions of locked requests.

    Whoever gives its reference up thereby leaves a row of ``unsettled_reference``, if there are refused duplicates.
    """
    if not moves:
        return []
    status = await connection.execute(
        _WRITE,
        [m.request.request_id for m in moves],
        [m.request.state.value for m in moves],
        [m.after.value for m in moves],
        [m.reason for m in moves],
        [m.detail for m in moves],
        [m.holds_reference for m in moves],
        [m.attempt_no for m in moves],
    )
    if status != f"UPDATE {len(moves)}":
        # Not weather: the rows are locked, so a different count is a bug; the transaction must not commit.
        raise AssertionError(f"{status} of {len(moves)} locked requests")
    return [Settled(request_id=m.request.request_id, before=m.request.state, after=m.after) for m in moves]


async def leave(connection: Connection, event: Event, causes: Mapping[bytes, int | None]) -> None:
    """Leave to ``following.settle_references`` what an event means for requests that hold none of these references."""
    await connection.execute(_LEAVE, list(causes), list(causes.values()), event.value, fed_later(event))


def fed_later(event: Event) -> list[str]:
    """The states in which requests that hold nothing are moved by this event."""
    sources = {source for rule in RULES if rule.event is event for source in rule.sources}
    return sorted(sources & {State.SEEN, State.REJECTED, State.FAILED})
