"""Factories beside the first one: each is back-filled from its deployment before it is live (hard case 40).

The first factory is pinned with the chain.  One that is added to the settings later gets a row here, and its history is
read while the others are followed as before, from its deployment on, also where that is before the chain's first block.
It becomes live in one transaction that adds what the blocks above finality say of it and lets every follower hear of it,
so that no block of it is read by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from datastore.connection import Pool, translated, unit
from datastore.errors import CursorMoved, DatastoreUnsuitable
from datastore.following import Committed, Rules, baskets_changed, record
from datastore.rows import Batch

# $1 chain
_ALL: Final = """
SELECT address, code_hash, start_block_number, live_at IS NOT NULL AS live FROM factory WHERE chain_id = $1
"""

# On an empty database there is nothing to fill of a factory that is not older than the chain's first block.  Block 0 holds
# no log.
# $1 chain, $2 address, $3 code hash, $4 the first block of it
_ADD: Final = """
INSERT INTO factory (chain_id, address, code_hash, start_block_number, filled_up_to, live_at)
SELECT $1, $2, $3, $4, greatest($4::bigint, 1) - 1,
    CASE WHEN c.block_number = h.start_block_number - 1 AND $4 >= h.start_block_number THEN clock_timestamp() END
FROM chain h
JOIN cursor c USING (chain_id)
WHERE h.chain_id = $1
ON CONFLICT (chain_id, address) DO NOTHING
"""

# $1 chain
_PENDING: Final = """
SELECT address, filled_up_to FROM factory WHERE chain_id = $1 AND live_at IS NULL ORDER BY added_at, address LIMIT 1
"""

# $1 chain, $2 address, $3 the last final block that was read, $4 whether it is live from here on
_FILLED: Final = """
UPDATE factory SET
    filled_up_to = greatest(filled_up_to, $3),
    live_at = CASE WHEN $4 THEN clock_timestamp() END
WHERE chain_id = $1 AND address = $2 AND live_at IS NULL
"""

# Its history was read once, and the sweep passed it by.  A sweep that runs at this moment finds its own cursor moved.
# $1 chain, $2 address
_SWEEP_AGAIN: Final = """
INSERT INTO sweep AS s (chain_id, block_number)
SELECT $1, least(h.start_block_number, greatest(f.start_block_number, 1)) - 1
FROM factory f
JOIN chain h USING (chain_id)
WHERE f.chain_id = $1 AND f.address = $2
ON CONFLICT (chain_id) DO UPDATE SET block_number = least(
    s.block_number,
    (SELECT greatest(f.start_block_number, 1) - 1 FROM factory f WHERE f.chain_id = $1 AND f.address = $2)
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factory:
    """A factory of the settings; ``start_block_number`` is its deployment's."""

    address: bytes
    code_hash: bytes
    start_block_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A factory that is not live yet; its history is recorded up to ``filled_up_to``."""

    address: bytes
    filled_up_to: int


async def declare(pool: Pool, chain_id: int, factories: Sequence[Factory]) -> None:
    """Compare the settings with the rows, and add what is new.

    Raises:
        DatastoreUnsuitable: A factory has other code than before, begins earlier, or is missing in the settings.
    """
    async with unit(pool) as connection:
        known = {row["address"]: row for row in await connection.fetch(_ALL, chain_id)}
        wanted = {factory.address: factory for factory in factories}
        for address in known.keys() - wanted.keys():
            raise DatastoreUnsuitable(
                f"this database also follows factory 0x{address.hex()}: put it back into BSKT_MORE_FACTORIES"
            )
        for address, factory in wanted.items():
            if address in known:
                _require_same(factory, known[address])
            await connection.execute(_ADD, chain_id, address, factory.code_hash, factory.start_block_number)


def _require_same(factory: Factory, row: asyncpg.Record) -> None:
    name, first = f"0x{factory.address.hex()}", row["start_block_number"]
    if row["code_hash"] != factory.code_hash:
        raise DatastoreUnsuitable(
            f"the code of factory {name} is not the one that was stored; check the node and the chain"
        )
    if factory.start_block_number < first:
        raise DatastoreUnsuitable(
            f"factory {name} is recorded from block {first} on, and BSKT_MORE_FACTORIES says {factory.start_block_number}: "
            f"put {name}@{first} back, then run `bskt backfill --blocks {factory.start_block_number}:{first - 1}`"
        )


async def live(pool: Pool, chain_id: int) -> frozenset[bytes]:
    """The factories beside the first one that are followed."""
    async with translated(), pool.acquire() as connection:
        return frozenset(row["address"] for row in await connection.fetch(_ALL, chain_id) if row["live"])


async def pending(pool: Pool, chain_id: int) -> Pending | None:
    """The next factory whose history is to be read."""
    async with translated(), pool.acquire() as connection:
        row = await connection.fetchrow(_PENDING, chain_id)
    return None if row is None else Pending(address=row["address"], filled_up_to=row["filled_up_to"])


async def fill(
    pool: Pool,
    chain_id: int,
    factory: bytes,
    batch: Batch,
    rules: Rules,
    *,
    filled_up_to: int,
    hold_reason: str,
    admit: bool,
) -> Committed:
    """Record what some blocks say of a factory that is not live yet; with ``admit``, let it be live from here on.

    With ``admit`` the sweep goes back to its first block: what the only reading missed is found by the second one.

    Args:
        pool: The indexer's.
        chain_id: The chain.
        factory: Its address.
        batch: What they say; with ``admit``, of every block up to the cursor that the batch expects.
        rules: How requests are judged.
        filled_up_to: The last final block that was read.
        hold_reason: Why its requests are held.
        admit: Whether nothing of it is left to read.

    Raises:
        CursorMoved: The chain went on before it could be admitted; nothing was written, read again.
        DatastoreUnavailable: Nothing is known to be written; read again.
    """
    committed = Committed(cursor=batch.expected)
    async with unit(pool) as connection:
        at = await connection.fetchrow(
            # $1 chain
            "SELECT block_number, block_hash FROM cursor WHERE chain_id = $1 FOR UPDATE",
            chain_id,
        )
        cursor = batch.expected
        if admit and (at is None or (at["block_number"], at["block_hash"]) != (cursor.number, cursor.hash)):
            raise CursorMoved(f"the cursor is no longer at block {cursor.number}")
        await record(connection, chain_id, batch, rules, committed, hold_reason=hold_reason)
        await connection.execute(_FILLED, chain_id, factory, filled_up_to, admit)
        if admit:
            await connection.execute(_SWEEP_AGAIN, chain_id, factory)
            await baskets_changed(connection, chain_id)
    return committed
