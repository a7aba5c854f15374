"""After a restore or a failover: trigger nothing until every send that it may have lost has shown itself (design §8).

A restored database is a prefix of our history: each transaction is there or not, in order.  A send whose attempt was
lost was therefore made after the last row that is left, and its report stands in a block that the restored cursor has
not reached.  So the follower, going on from its cursor, reads again all that matters, and the quarantine is over when
it has found a final block that is younger than anything a lost send could still bring about:

* nothing was sent since the quarantine began (each claim and each attempt asks for it, and for the server itself, in
  its own transaction: a failover that nobody noticed yet sends nothing either);
* what was sent before shows on chain within the completion deadline, or never does by itself.

While it lasts, every report of an execution id that we do not know is compared with the ids that each open request
would have had, under every workflow ever listed; once more, over all reports, before it ends.  A request so found was
sent: it keeps its workflow and its bank reference, and a person decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID

import asyncpg

from datastore.alarms import AlarmKind, raise_alarm, raise_alarms
from datastore.connection import Connection, Pool, unit
from datastore.identity import execution_id_candidates
from datastore.lifecycle import Event
from datastore.settlement import Settled, known, leave, settle

NonceOf: TypeAlias = Callable[[bytes, int], UUID]
"""The nonce of an identity in a generation, under the instance's secret."""

TOKEN_SECONDS: Final = 300.0
"""A worker that slept since before the quarantine can deliver for so long: its token's lifetime (cre.md §1.5)."""

RIVAL_SENT: Final = "Another request for the same deposit was sent by commits that a restore lost."

_MOVED: Final = (
    "The database moved to another server or was restored (system identifier or timeline changed), so the last commits "
    "may be missing."
)

# $1 chain
_CONTROL: Final = """
SELECT quarantined_at, quarantined_until, quarantined_reason, is_this_server(server_identifier, server_timeline) AS is_home
FROM control WHERE chain_id = $1
"""

# Another server begins the time anew: what was lost this time was sent later.  $1 chain, $2 reason, $3 how long
_ENTER: Final = """
UPDATE control SET
    quarantined_at = t.now,
    quarantined_reason = $2,
    quarantined_until = t.now + $3::interval
FROM (SELECT clock_timestamp() AS now) t
WHERE chain_id = $1
RETURNING quarantined_at, quarantined_until, quarantined_reason
"""
# $1 chain
_SETTLE_IN: Final = """
UPDATE control SET server_identifier = s.identifier, server_timeline = s.timeline FROM this_server() s WHERE chain_id = $1
"""
# By the chain's own time and by ours: a chain from the future ends nothing early.  $1 chain, $2 final number, $3 until
_IS_OVER: Final = """
SELECT clock_timestamp() >= $3 AND coalesce(
    (
        SELECT b.timestamp >= extract(epoch FROM $3::timestamptz)
        FROM block b
        WHERE b.chain_id = $1 AND b.canonical AND b.number <= $2
        ORDER BY b.number DESC
        LIMIT 1
    ),
    false
)
"""
# $1 chain
_END: Final = """
UPDATE control SET quarantined_at = NULL, quarantined_reason = NULL, quarantined_until = NULL WHERE chain_id = $1
"""

# Reports on any branch: what was orphaned was sent all the same.  $1 chain, $2 block hashes, or NULL for all
_UNEXPLAINED: Final = """
SELECT p.execution_id, p.block_hash FROM report p
WHERE p.chain_id = $1 AND ($2::bytea[] IS NULL OR p.block_hash = ANY($2::bytea[]))
  AND NOT EXISTS (SELECT FROM execution_id x WHERE x.chain_id = p.chain_id AND x.execution_id = p.execution_id)
"""
# A minted request needs no search: the ids that it was minted under are known.  $1 chain
_OPEN: Final = """
SELECT id, identity, nonce, generation FROM mint_request WHERE chain_id = $1 AND state NOT IN ('executed', 'completed')
"""
# $1 chain
_WORKFLOWS: Final = "SELECT workflow_id FROM workflow WHERE chain_id = $1 ORDER BY listed_at, workflow_id"

# $1 chain, $2 execution ids, $3 requests, $4 generations, $5 workflows
_REMEMBER: Final = """
INSERT INTO execution_id (chain_id, execution_id, request_id, source, generation, found_workflow_id)
SELECT $1, n.execution_id, n.request_id, 'found', n.generation, n.workflow_id
FROM unnest($2::bytea[], $3::bigint[], $4::integer[], $5::bytea[]) AS n (execution_id, request_id, generation, workflow_id)
ON CONFLICT (chain_id, execution_id) DO NOTHING
"""
# Of others with their references, those that something may be sent for.  $1 the requests that were found
_RIVALS: Final = """
SELECT id FROM mint_request
WHERE bank_reference IN (SELECT bank_reference FROM mint_request WHERE id = ANY($1::bigint[])) AND holds_reference
  AND id <> ALL($1::bigint[])
"""
# One deposit, one mint: what was sent keeps the reference, so an unsent rival gives it up.  $1 the rivals
_GIVE_UP_REFERENCE: Final = """
UPDATE mint_request SET holds_reference = false WHERE id = ANY($1::bigint[]) AND holds_reference AND NOT is_sent(id)
"""
# $1 the requests that were found
_TAKE_REFERENCE: Final = """
UPDATE mint_request r SET holds_reference = true
FROM (
    SELECT DISTINCT ON (bank_reference) id FROM mint_request
    WHERE id = ANY($1::bigint[])
    ORDER BY bank_reference, id
) first
WHERE r.id = first.id
  AND NOT EXISTS (SELECT FROM mint_request o WHERE o.bank_reference = r.bank_reference AND o.holds_reference)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Nothing is triggered; ``entered`` says that this very transaction began it."""

    reason: str
    at: datetime
    until: datetime
    entered: bool = False

    def __str__(self) -> str:
        return (
            f"Nothing is triggered since {self.at:%Y-%m-%d %H:%M:%S} UTC: {self.reason.rstrip('.')}.  It ends by itself when a block "
            f"that is not older than {self.until:%Y-%m-%d %H:%M:%S} UTC is indexed and final."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A request that a lost send may have been made for; ``nonces`` by generation."""

    request_id: int
    generation: int
    nonces: tuple[tuple[int, UUID], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LostSend:
    """What a report of an unknown execution id turned out to be."""

    request_id: int
    generation: int
    workflow_id: bytes
    execution_ids: tuple[bytes, bytes]


def lost_sends(suspect: Suspect, workflows: Sequence[bytes], unexplained: AbstractSet[bytes]) -> Iterator[LostSend]:
    """Which of the ``unexplained`` execution ids ``suspect`` would have had, under which workflow."""
    for generation, nonce in suspect.nonces:
        for workflow in workflows:
            candidates = execution_id_candidates(workflow, nonce.hex)
            if not unexplained.isdisjoint(candidates):
                yield LostSend(
                    request_id=suspect.request_id,
                    generation=generation,
                    workflow_id=workflow,
                    execution_ids=candidates,
                )


async def notice(pool: Pool, chain_id: int, *, deadline_seconds: float) -> Quarantine | None:
    """The quarantine that holds now; entered here, if this is another server than the rows were written on.

    Args:
        pool: The indexer's.
        chain_id: The chain.
        deadline_seconds: After which time a send does not reach the chain by itself any more.
    """
    async with unit(pool) as connection:
        return await current(connection, chain_id, deadline_seconds=deadline_seconds)


async def current(connection: Connection, chain_id: int, *, deadline_seconds: float) -> Quarantine | None:
    """As ``notice``, inside a transaction; the row of ``control`` is locked while there is a quarantine."""
    row = await connection.fetchrow(_CONTROL, chain_id)
    if row is None:
        raise LookupError(f"chain {chain_id} was not pinned")
    if not row["is_home"]:
        # Two may notice at once: the second one finds the first one's row after its lock.
        row = await connection.fetchrow(_CONTROL + "FOR UPDATE", chain_id)
        if row is not None and not row["is_home"]:
            entered = await enter(connection, chain_id, reason=_MOVED, deadline_seconds=deadline_seconds)
            await connection.execute(_SETTLE_IN, chain_id)
            return entered
    if row is not None and row["quarantined_at"] is not None:
        row = await connection.fetchrow(_CONTROL + "FOR UPDATE", chain_id)
    if row is None or row["quarantined_at"] is None:
        return None
    return _quarantine(row, entered=False)


async def enter(connection: Connection, chain_id: int, *, reason: str, deadline_seconds: float) -> Quarantine:
    """Begin a quarantine, or begin its time anew, and raise the alarm."""
    duration = timedelta(seconds=TOKEN_SECONDS + deadline_seconds)
    row = await connection.fetchrow(_ENTER, chain_id, reason, duration)
    if row is None:
        raise LookupError(f"chain {chain_id} was not pinned")
    begun = _quarantine(row, entered=True)
    await raise_alarm(connection, chain_id, AlarmKind.QUARANTINE_ENTERED, str(begun))
    return begun


def _quarantine(row: asyncpg.Record, *, entered: bool) -> Quarantine:
    return Quarantine(
        reason=row["quarantined_reason"], at=row["quarantined_at"], until=row["quarantined_until"], entered=entered
    )


async def is_over(connection: Connection, chain_id: int, quarantine: Quarantine, *, final_number: int) -> bool:
    """Whether the indexed chain is final up to a block that is younger than anything a lost send could bring about."""
    return bool(await connection.fetchval(_IS_OVER, chain_id, final_number, quarantine.until))


async def end(connection: Connection, chain_id: int) -> None:
    """From here on requests are triggered again."""
    await connection.execute(_END, chain_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search for lost sends found; ``block_hashes`` hold the reports that must be settled again."""

    block_hashes: tuple[bytes, ...] = ()
    sends: tuple[LostSend, ...] = ()
    settled: tuple[Settled, ...] = ()


async def find_lost_sends(
    connection: Connection, chain_id: int, block_hashes: Sequence[bytes] | None, nonce_of: NonceOf | None
) -> Found:
    """Compare reports of unknown execution ids with what each open request would have had, and settle what is found.

    Args:
        connection: In a transaction that may not commit halfway.
        chain_id: The chain.
        block_hashes: Whose reports are compared; ``None`` for every report ever indexed.
        nonce_of: Finds a send of a new generation whose own row was lost, too; without it only stored nonces are tried.
    """
    hashes = None if block_hashes is None else list(block_hashes)
    unexplained = await connection.fetch(_UNEXPLAINED, chain_id, hashes)
    if not unexplained:
        return Found()
    wanted = {row["execution_id"] for row in unexplained}
    workflows = [row["workflow_id"] for row in await connection.fetch(_WORKFLOWS, chain_id)]
    sends: list[LostSend] = []
    # A cursor, so that a long history is never in memory at once and the loop gets its turn.
    async for row in connection.cursor(_OPEN, chain_id, prefetch=1_000):
        sends += lost_sends(_suspect(row, nonce_of), workflows, wanted)
    if not sends:
        return Found()
    ids = {execution_id for send in sends for execution_id in send.execution_ids}
    return Found(
        block_hashes=tuple({row["block_hash"] for row in unexplained if row["execution_id"] in ids}),
        sends=tuple(sends),
        settled=tuple(await _settle_lost_sends(connection, chain_id, sends)),
    )


def _suspect(row: asyncpg.Record, nonce_of: NonceOf | None) -> Suspect:
    nonces = [(row["generation"], row["nonce"])]
    if nonce_of is not None:
        # At most one new generation at a time can have been lost: the next one needs the row of this one.
        others = (generation for generation in range(row["generation"] + 2) if generation != row["generation"])
        nonces += [(generation, nonce_of(row["identity"], generation)) for generation in others]
    return Suspect(request_id=row["id"], generation=row["generation"], nonces=tuple(nonces))


async def _settle_lost_sends(connection: Connection, chain_id: int, sends: Sequence[LostSend]) -> list[Settled]:
    found = sorted({send.request_id for send in sends})
    rivals = [row["id"] for row in await connection.fetch(_RIVALS, found)]
    # All locks at once, in their one order; only then the rows that make the found ones sent.
    requests = await known(connection, [*found, *rivals])
    await connection.execute(
        _REMEMBER,
        chain_id,
        [execution_id for send in sends for execution_id in send.execution_ids],
        [send.request_id for send in sends for _ in send.execution_ids],
        [send.generation for send in sends for _ in send.execution_ids],
        [send.workflow_id for send in sends for _ in send.execution_ids],
    )
    settled = await settle(
        connection,
        Event.RIVAL_SENT,
        rivals,
        detail=RIVAL_SENT,
    )
    await leave(connection, Event.RIVAL_SENT, {requests[request].bank_reference: request for request in found})
    await connection.execute(_GIVE_UP_REFERENCE, rivals)
    settled += await settle(
        connection,
        Event.LOST_SEND_FOUND,
        found,
        detail="The chain holds a report of it, but no attempt is recorded: a restore lost the commits that sent it.",
    )
    await connection.execute(_TAKE_REFERENCE, found)
    await raise_alarms(
        connection,
        chain_id,
        AlarmKind.LOST_SEND_FOUND,
        {
            send.request_id: (
                f"The chain holds a report of generation {send.generation} of it under workflow "
                f"0x{send.workflow_id.hex()}, but no attempt is recorded: a restore lost the commits that sent it."
            )
            for send in sends
        },
    )
    return settled
