"""What the second sweep found about final blocks, and the repair of the rows that it found wrong.

The sweep has a cursor of its own.  One transaction records the differences, repairs them and moves that cursor, so that
a crash neither forgets a difference nor repairs it twice.

A repair uses the ways that rows have anyway.  What is missing is recorded as any range is, by the key that the chain
gives.  What is not on the chain is orphaned, and its request with it: a request that was never sent is dropped, one that
was sent goes to a person.  A raw row is never rewritten: one that holds another content than the chain is discarded, with
all of it kept in ``sweep_difference``, and recorded anew.  A wrong block time is put right where it stands; a request that
was frozen with it keeps its bytes, for one id must always be sent with the same ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from datastore.alarms import AlarmKind, raise_alarm, raise_hourly
from datastore.connection import Connection, Pool, lock_chain, translated, unit
from datastore.errors import CursorMoved
from datastore.following import Committed, Rules, baskets_changed, lose, record
from datastore.rows import Batch, BlockRef, Difference, Kind, LogRow, StoredRange

_SHOWN_DIFFERENCES: Final = 3

# $1 chain
_POSITION: Final = """
SELECT coalesce(s.block_number, h.start_block_number - 1) AS swept, c.finalized_number, c.block_number, c.head_number
FROM cursor c
JOIN chain h USING (chain_id)
LEFT JOIN sweep s USING (chain_id)
WHERE c.chain_id = $1
"""

# $1 chain, $2 first, $3 last
_BLOCKS: Final = "SELECT number, hash FROM block WHERE chain_id = $1 AND canonical AND number BETWEEN $2 AND $3"

# Everything that a log was decoded to was written in the commit that wrote the log.  $1 chain, $2 first, $3 last
_LOGS: Final = """
SELECT
    l.block_number, l.block_hash, l.log_index, l.tx_hash, l.tx_index, l.address, l.topics, l.data, l.event, l.undecodable,
    r.identity, r.consumer, r.block_timestamp,
    EXISTS (
        SELECT FROM basket b
        WHERE b.chain_id = l.chain_id AND b.block_hash = l.block_hash AND b.log_index = l.log_index AND b.canonical
    ) OR EXISTS (
        SELECT FROM mint_execution m
        WHERE m.chain_id = l.chain_id AND m.block_hash = l.block_hash AND m.log_index = l.log_index AND m.canonical
    ) OR EXISTS (
        SELECT FROM report p
        WHERE p.chain_id = l.chain_id AND p.block_hash = l.block_hash AND p.log_index = l.log_index AND p.canonical
    ) AS decoded
FROM log l
LEFT JOIN mint_request r
    ON r.chain_id = l.chain_id AND r.block_hash = l.block_hash AND r.log_index = l.log_index AND r.chain_status <> 'orphaned'
WHERE l.chain_id = $1 AND l.canonical AND l.block_number BETWEEN $2 AND $3
"""

# The first range begins behind the start block.  $1 chain, $2 the block before the range, $3 the last of it
_MOVE: Final = """
INSERT INTO sweep (chain_id, block_number)
SELECT chain_id, $3 FROM chain WHERE chain_id = $1 AND start_block_number - 1 = $2
ON CONFLICT (chain_id) DO NOTHING
RETURNING block_number
"""
_MOVE_ON: Final = """
UPDATE sweep SET block_number = $3, swept_at = clock_timestamp() WHERE chain_id = $1 AND block_number = $2
RETURNING block_number
"""

# $1 chain, $2 most blocks
_PRUNE: Final = "SELECT prune_blocks($1, $2)"

# $1 chain; then a difference's kind, event, block number, block hash, log index, stored row; $8 whether it was repaired
_RECORD: Final = """
INSERT INTO sweep_difference (chain_id, kind, event, block_number, block_hash, log_index, stored, repaired)
SELECT $1, n.kind, n.event, n.block_number, n.block_hash, n.log_index, n.stored::jsonb, $8
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bytea[], $6::integer[], $7::text[])
    AS n (kind, event, block_number, block_hash, log_index, stored)
"""

# $1 chain, $2 block hashes, $3 log indexes
_LOSE_LOGS: Final = """
UPDATE log t SET canonical = false FROM unnest($2::bytea[], $3::integer[]) AS n (block_hash, log_index)
WHERE t.chain_id = $1 AND t.block_hash = n.block_hash AND t.log_index = n.log_index AND t.canonical
"""
_LOSE_BASKETS: Final = """
UPDATE basket t SET canonical = false FROM unnest($2::bytea[], $3::integer[]) AS n (block_hash, log_index)
WHERE t.chain_id = $1 AND t.block_hash = n.block_hash AND t.log_index = n.log_index AND t.canonical
"""
_LOSE_REPORTS: Final = """
UPDATE report t SET canonical = false FROM unnest($2::bytea[], $3::integer[]) AS n (block_hash, log_index)
WHERE t.chain_id = $1 AND t.block_hash = n.block_hash AND t.log_index = n.log_index AND t.canonical
RETURNING t.execution_id
"""
_LOSE_MINTS: Final = """
UPDATE mint_execution t SET canonical = false FROM unnest($2::bytea[], $3::integer[]) AS n (block_hash, log_index)
WHERE t.chain_id = $1 AND t.block_hash = n.block_hash AND t.log_index = n.log_index AND t.canonical
RETURNING t.request_id
"""
_LOSE_REQUESTS: Final = """
UPDATE mint_request t SET chain_status = 'orphaned' FROM unnest($2::bytea[], $3::integer[]) AS n (block_hash, log_index)
WHERE t.chain_id = $1 AND t.block_hash = n.block_hash AND t.log_index = n.log_index AND t.chain_status <> 'orphaned'
RETURNING t.id
"""
# $1 chain, $2 block hashes
_LOSE_BLOCKS: Final = "UPDATE block SET canonical = false WHERE chain_id = $1 AND canonical AND hash = ANY($2::bytea[])"
# $1 chain, $2 block hashes, $3 the blocks' times
_RIGHT_BLOCK_TIMES: Final = """
UPDATE block t SET timestamp = n.timestamp FROM unnest($2::bytea[], $3::bigint[]) AS n (hash, timestamp)
WHERE t.chain_id = $1 AND t.hash = n.hash
"""
_RIGHT_REQUEST_TIMES: Final = """
UPDATE mint_request t SET block_timestamp = n.timestamp FROM unnest($2::bytea[], $3::bigint[]) AS n (hash, timestamp)
WHERE t.chain_id = $1 AND t.block_hash = n.hash AND t.block_timestamp <> n.timestamp
"""
_DISCARD: Final = """
SELECT discard_log($1, n.block_hash, n.log_index) FROM unnest($2::bytea[], $3::integer[]) AS n (block_hash, log_index)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPosition:
    """How far was swept, and what is there to sweep: up to ``finalized``.  ``cursor`` and ``head`` are the follower's."""

    swept: int
    finalized: int
    cursor: int
    head: int


async def position(pool: Pool, chain_id: int) -> SweepPosition:
    """Where the sweep stands; the chain must have been pinned."""
    async with translated(), pool.acquire() as connection:
        row = await connection.fetchrow(_POSITION, chain_id)
    if row is None:
        raise LookupError(f"chain {chain_id} was not pinned")
    return SweepPosition(
        swept=row["swept"], finalized=row["finalized_number"], cursor=row["block_number"], head=row["head_number"]
    )


async def newest_block(pool: Pool, chain_id: int, *, up_to: int) -> BlockRef | None:
    """The newest canonical block that is stored at or below block ``up_to``; ``None`` if the index begins above it."""
    async with translated(), pool.acquire() as connection:
        row = await connection.fetchrow(
            # $1 chain, $2 number
            "SELECT number, hash FROM block WHERE chain_id = $1 AND canonical AND number <= $2 ORDER BY number DESC LIMIT 1",
            chain_id,
            up_to,
        )
    return None if row is None else BlockRef(number=row["number"], hash=row["hash"])


async def stored_range(pool: Pool, chain_id: int, first: int, last: int) -> StoredRange:
    """The canonical rows of the blocks from ``first`` to ``last``, read at one moment."""
    async with translated(), pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
        blocks = await connection.fetch(_BLOCKS, chain_id, first, last)
        rows = await connection.fetch(_LOGS, chain_id, first, last)
    names = LogRow._fields
    return StoredRange(
        hash_by_number={row["number"]: row["hash"] for row in blocks},
        logs={(row["block_hash"], row["log_index"]): LogRow(**{name: row[name] for name in names}) for row in rows},
        decoded=frozenset((row["block_hash"], row["log_index"]) for row in rows if row["decoded"]),
        requests={
            (row["block_hash"], row["log_index"]): (row["identity"], row["consumer"], row["block_timestamp"])
            for row in rows
            if row["identity"]
        },
    )


BLOCKS_A_STEP: Final = 1_000
"""How many blocks one step of pruning looks at."""


async def prune(pool: Pool, chain_id: int) -> bool:
    """Delete the rows of empty blocks that are final and compared, a bounded step; ``True`` if there may be more.

    A chain of 0.25 s blocks has 126 million a year, nearly all of them empty.

    Raises:
        DatastoreUnavailable: Nothing is known to be deleted; call again.
    """
    async with unit(pool) as connection:
        return bool(await connection.fetchval(_PRUNE, chain_id, BLOCKS_A_STEP))


async def conclude(
    pool: Pool,
    chain_id: int,
    *,
    swept: tuple[int, int] | None,
    differences: Sequence[Difference],
    repair: Batch | None,
    rules: Rules,
    sentence: str,
) -> Committed | None:
    """Record the differences of a range, repair them, and move the sweep's cursor over it.

    Args:
        pool: The indexer's.
        chain_id: The chain.
        swept: The first and the last block of the range; ``None`` leaves the cursor where it is.
        differences: What was found.
        repair: What the chain says of every difference; ``None`` leaves the rows as they are.
        rules: How requests that were found late are judged.
        sentence: For the alarm: who said what.

    Returns:
        What the repair changed; ``None`` without one.

    Raises:
        CursorMoved: Somebody else swept this range; nothing was written.
        DatastoreUnavailable: Nothing is known to be written; begin again.
    """
    async with unit(pool) as connection:
        await lock_chain(connection, chain_id)
        if swept is not None:
            first, last = swept
            moved = await connection.fetchval(_MOVE_ON, chain_id, first - 1, last)
            if moved is None and await connection.fetchval(_MOVE, chain_id, first - 1, last) is None:
                raise CursorMoved(f"the sweep is no longer at block {first - 1}")
        if not differences:
            return None
        await _write_down(connection, chain_id, differences, repaired=repair is not None)
        committed = None
        if repair is not None:
            committed = await _repaired(connection, chain_id, differences, repair, rules)
        kind = AlarmKind.ENDPOINTS_DISAGREE if repair is None else AlarmKind.ROWS_REPAIRED
        told = f"{_told(differences)} {sentence}"
        if repair is None:
            # An endpoint that never tells all would alarm at each of its blocks; every difference has its row.  Last,
            # for the alarm's row is locked.
            await raise_hourly(connection, chain_id, kind, told)
        else:
            await raise_alarm(connection, chain_id, kind, told)
    return committed


async def _write_down(
    connection: Connection, chain_id: int, differences: Sequence[Difference], *, repaired: bool
) -> None:
    await connection.execute(
        _RECORD,
        chain_id,
        [difference.kind.value for difference in differences],
        [difference.event for difference in differences],
        [difference.block_number for difference in differences],
        [difference.block_hash for difference in differences],
        [difference.log_index for difference in differences],
        [None if difference.stored is None else _as_json(difference.stored) for difference in differences],
        repaired,
    )


async def _repaired(
    connection: Connection, chain_id: int, differences: Sequence[Difference], repair: Batch, rules: Rules
) -> Committed:
    committed = Committed(cursor=repair.expected)
    mistimed = {difference.block_hash for difference in differences if difference.kind is Kind.MISTIMED}
    times = [(block.hash, block.timestamp) for block in repair.blocks if block.hash in mistimed]
    if times:
        hashes, timestamps = zip(*times, strict=True)
        await connection.execute(_RIGHT_BLOCK_TIMES, chain_id, hashes, timestamps)
        await connection.execute(_RIGHT_REQUEST_TIMES, chain_id, hashes, timestamps)
    wrong = [difference for difference in differences if difference.kind in {Kind.EXTRA, Kind.DIFFERENT}]
    places = [d for d in wrong if d.log_index is not None]
    keys = ([d.block_hash for d in places], [d.log_index for d in places])
    await connection.execute(_LOSE_BLOCKS, chain_id, [d.block_hash for d in wrong if d.log_index is None])
    await connection.execute(_LOSE_LOGS, chain_id, *keys)
    if await connection.execute(_LOSE_BASKETS, chain_id, *keys) != "UPDATE 0":
        await baskets_changed(connection, chain_id)
    reports = [row["execution_id"] for row in await connection.fetch(_LOSE_REPORTS, chain_id, *keys)]
    mints = [row["request_id"] for row in await connection.fetch(_LOSE_MINTS, chain_id, *keys)]
    requests = [row["id"] for row in await connection.fetch(_LOSE_REQUESTS, chain_id, *keys)]
    await lose(connection, chain_id, committed, requests=requests, reports=reports, mints=mints)
    replaced = [d for d in places if d.kind is Kind.DIFFERENT]
    await connection.execute(_DISCARD, chain_id, [d.block_hash for d in replaced], [d.log_index for d in replaced])
    # Requests that the chain holds in no other place are orphaned for good here, for all of this is final.
    await record(connection, chain_id, repair, rules, committed, hold_reason=None)
    return committed


def _as_json(row: LogRow) -> str:
    members = {
        name: "0x" + value.hex() if isinstance(value := getattr(row, name), bytes) else value for name in LogRow._fields
    }
    return orjson.dumps(members).decode()


def _told(differences: Sequence[Difference]) -> str:
    """What differs, for a person: numbers by kind, and the first few."""
    counted = Counter(difference.kind.value for difference in differences)
    shown = [
        f"{d.kind.value} {d.event} {'' if d.log_index is None else f'{d.log_index} '}of block {d.block_number}"
        for d in differences[:_SHOWN_DIFFERENCES]
    ]
    rest = f" and {len(differences) - len(shown)} more" if len(differences) > len(shown) else ""
    return f"{', '.join(f'{count} {kind}' for kind, count in counted.items())}: {'; '.join(shown)}{rest}."
