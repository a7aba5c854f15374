"""What is pinned at the first start: a daemon never works on another chain, factory or secret (hard case 14)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from datastore.alarms import AlarmKind, raise_alarm, raise_hourly
from datastore.connection import Pool, translated, unit
from datastore.errors import DatastoreUnsuitable
from datastore.rows import Block

# $1 chain
_PINNED: Final = """
SELECT genesis_hash, factory_address, factory_code_hash, forwarder_address, secret_check, start_block_number,
    first_trigger_block_number
FROM chain WHERE chain_id = $1
"""

# The columns of chain in their order
_PIN: Final = """
INSERT INTO chain (
    chain_id, genesis_hash, factory_address, factory_code_hash, forwarder_address, start_block_number, start_block_hash,
    first_trigger_block_number, secret_check
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (chain_id) DO NOTHING
"""

# $1 chain, $2 number and $3 hash of the block before the first one
_FIRST_CURSOR: Final = """
INSERT INTO cursor (chain_id, block_number, block_hash, finalized_number, safe_number, head_number)
VALUES ($1, $2, $3, -1, -1, $2)
"""
# $1 chain, $2 hash, $3 number
_FIRST_BLOCK: Final = """
INSERT INTO block (chain_id, hash, number, parent_hash, timestamp) VALUES ($1, $2, $3, NULL, 0)
"""
# $1 chain
_FIRST_CONTROL: Final = """
INSERT INTO control (chain_id, server_identifier, server_timeline) SELECT $1, identifier, timeline FROM this_server()
"""
_ANOTHER_INSTANCE: Final = (
    "BSKT_INSTANCE_SECRET is not the one of this database: nonces would change; restore the secret"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What must be the same at every start."""

    chain_id: int
    genesis_hash: bytes
    factory_address: bytes
    factory_code_hash: bytes
    forwarder_address: bytes
    secret_check: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """What the first start decided for good."""

    start_block_number: int
    first_trigger_block_number: int


async def stored(pool: Pool, chain_id: int) -> Pin | None:
    """What the first start pinned, whatever is configured now; ``None`` on an empty database."""
    async with unit(pool) as connection:
        row = await connection.fetchrow(_PINNED, chain_id)
    if row is None:
        return None
    return Pin(
        chain_id=chain_id,
        genesis_hash=row["genesis_hash"],
        factory_address=row["factory_address"],
        factory_code_hash=row["factory_code_hash"],
        forwarder_address=row["forwarder_address"],
        secret_check=row["secret_check"],
    )


async def pinned(pool: Pool, pin: Pin) -> Pinned | None:
    """What the first start decided; ``None`` on an empty database.

    Raises:
        DatastoreUnsuitable: The database belongs to another chain, factory, forwarder or secret.
    """
    async with unit(pool) as connection:
        row = await connection.fetchrow(_PINNED, pin.chain_id)
    if row is None:
        return None
    for name, remedy in (
        ("genesis_hash", "the chain was reset or this is another one; use a database of its own for it"),
        ("factory_address", "this database follows another factory; check BSKT_FACTORY_ADDRESS and BSKT_DATABASE_URL"),
        ("factory_code_hash", "the factory's code is not the one that was pinned; check the node and the chain"),
        ("forwarder_address", "this database believes another forwarder; check BSKT_FORWARDER_ADDRESS"),
        ("secret_check", _ANOTHER_INSTANCE),
    ):
        if row[name] != getattr(pin, name):
            raise DatastoreUnsuitable(_differs(name, pin.chain_id, remedy))
    return Pinned(
        start_block_number=row["start_block_number"], first_trigger_block_number=row["first_trigger_block_number"]
    )


async def require_secret(pool: Pool, chain_id: int, secret_check: bytes) -> None:
    """Refuse another secret than the one that the chain's ids are derived from.

    Raises:
        DatastoreUnsuitable: It is another one.
    """
    async with unit(pool) as connection:
        # $1 chain
        pinned_check = await connection.fetchval("SELECT secret_check FROM chain WHERE chain_id = $1", chain_id)
    if pinned_check != secret_check:
        raise DatastoreUnsuitable(_differs("secret_check", chain_id, _ANOTHER_INSTANCE))


def _differs(name: str, chain_id: int, remedy: str) -> str:
    return f"{name} of chain {chain_id} differs from the stored one: {remedy}"


async def pin_first_start(pool: Pool, pin: Pin, *, start: Block, first_trigger_block_number: int) -> None:
    """Pin the chain, and set the cursor before the start block; harmless if another starter was first.

    Args:
        pool: The indexer's.
        pin: What must be the same at every start.
        start: The first block to index, at least number 1; its parent hash must be known.
        first_trigger_block_number: Requests of older blocks are recorded but held.
    """
    if start.parent_hash is None:
        raise ValueError("the start block's parent must be known")
    async with unit(pool) as connection:
        status = await connection.execute(
            _PIN,
            pin.chain_id,
            pin.genesis_hash,
            pin.factory_address,
            pin.factory_code_hash,
            pin.forwarder_address,
            start.number,
            start.hash,
            first_trigger_block_number,
            pin.secret_check,
        )
        if status == "INSERT 0 1":
            before = start.number - 1
            await connection.execute(_FIRST_CURSOR, pin.chain_id, before, start.parent_hash)
            await connection.execute(_FIRST_BLOCK, pin.chain_id, start.parent_hash, before)
            await connection.execute(_FIRST_CONTROL, pin.chain_id)


async def halt(pool: Pool, chain_id: int, reason: str) -> None:
    """Remember which part of the indexer stopped for good, when and why, until ``clear_halt``.

    A second part that stops does not hide the first one.
    """
    async with unit(pool) as connection:
        await connection.execute(
            # $1 chain, $2 reason
            """
            UPDATE control SET
                halted_at = clock_timestamp(),
                halted_reason = CASE
                    WHEN strpos(halted_reason, $2) > 0 THEN halted_reason
                    ELSE coalesce(halted_reason || '; ', '') || $2
                END
            WHERE chain_id = $1
            """,
            chain_id,
            reason,
        )
        await raise_alarm(connection, chain_id, AlarmKind.FINALITY_VIOLATED, reason)


async def alarm_other_fork(pool: Pool, chain_id: int, sentence: str) -> None:
    """An endpoint was set aside because it denies a final block; at most one alarm an hour, however often it returns."""
    async with unit(pool) as connection:
        await raise_hourly(connection, chain_id, AlarmKind.ENDPOINT_ON_OTHER_FORK, sentence)


async def halted_at(pool: Pool, chain_id: int) -> datetime | None:
    """When a part of the indexer halted last; ``None`` if all go on."""
    async with translated(), pool.acquire() as connection:
        found: datetime | None = await connection.fetchval(
            # $1 chain
            "SELECT halted_at FROM control WHERE chain_id = $1",
            chain_id,
        )
    return found


async def clear_halt(pool: Pool, chain_id: int, at: datetime) -> None:
    """The chain is in order again, as somebody saw after ``at``; a part that has halted since then stays halted."""
    async with unit(pool) as connection:
        await connection.execute(
            # $1 chain, $2 when it halted
            "UPDATE control SET halted_at = NULL, halted_reason = NULL WHERE chain_id = $1 AND halted_at = $2",
            chain_id,
            at,
        )
