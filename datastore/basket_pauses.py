"""Baskets that nothing is sent for: a change of their token's roles pauses them, and a person does; only a person resumes.

Two things stop a send.  ``begin_attempt`` asks for the pause itself in its own transaction, so that nothing is sent
whatever else happened at that moment.  And every transaction that may bring an open request forward ends with
``hold_requests``, so that a request which waits for the pause says so, and no claim turns in vain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from datastore.alarms import AlarmKind, Concern, raise_about_baskets, served_baskets
from datastore.connection import Connection
from datastore.rows import RoleChange

HELD_BY_PAUSE: Final = "basket_paused"
"""``held_reason`` while the request's basket is paused."""

HELD_AT_ONCE: Final = 5_000
"""Anybody may make a basket, ask for many mints of it, and change the roles of its token in one transaction."""

# Of these places, which hold a log that was recorded before, on whatever branch.  $1 chain, $2 block hashes, $3 log indexes
_KNOWN: Final = """
SELECT l.block_hash, l.log_index
FROM unnest($2::bytea[], $3::integer[]) AS n (block_hash, log_index)
JOIN log l ON l.chain_id = $1 AND l.block_hash = n.block_hash AND l.log_index = n.log_index
"""
# $1 chain, $2 tokens
_SYMBOLS: Final = """
SELECT stablecoin, symbol FROM basket WHERE chain_id = $1 AND canonical AND stablecoin = ANY($2::bytea[])
"""
# An older pause stays, unless a person is ending it: then this waits, and there is a new one.
# $1 chain, $2 tokens, $3 reasons, $4 how many changes of roles
_PAUSE: Final = """
INSERT INTO basket_pause AS p (chain_id, stablecoin, paused_reason, role_changes)
SELECT $1, n.stablecoin, n.reason, n.changes FROM unnest($2::bytea[], $3::text[], $4::bigint[]) AS n (stablecoin, reason, changes)
ON CONFLICT (chain_id, stablecoin) DO UPDATE SET role_changes = p.role_changes + excluded.role_changes
"""
# The chain is locked, so a person's resume comes before the hold, or releases it.  $1 chain
_PAUSED: Final = "SELECT stablecoin FROM basket_pause WHERE chain_id = $1"
# By the partial indexes of the open requests, and locked in the one order of locks.  $1 chain, $2 tokens, $3 limit
_HOLD: Final = """
UPDATE mint_request SET held_at = clock_timestamp(), held_reason = 'basket_paused'
WHERE id IN (
    SELECT id FROM mint_request
    WHERE id IN (
        SELECT id FROM mint_request
        WHERE chain_id = $1 AND state = 'seen' AND held_at IS NULL AND chain_status <> 'orphaned'
          AND stablecoin = ANY($2::bytea[])
        UNION ALL
        SELECT id FROM mint_request
        WHERE chain_id = $1 AND state = 'confirmed' AND held_at IS NULL AND chain_status <> 'orphaned'
          AND stablecoin = ANY($2::bytea[])
        UNION ALL
        SELECT id FROM mint_request
        WHERE chain_id = $1 AND state = 'claimed' AND held_at IS NULL AND stablecoin = ANY($2::bytea[])
        UNION ALL
        SELECT id FROM mint_request
        WHERE chain_id = $1 AND state = 'in_doubt' AND held_at IS NULL AND stablecoin = ANY($2::bytea[])
        LIMIT $3
    ) AND held_at IS NULL
    ORDER BY bank_reference, id
    FOR UPDATE
) AND held_at IS NULL AND state IN ('seen', 'confirmed', 'claimed', 'in_doubt')
"""

# $1 chain, $2 token
_RESUME: Final = "DELETE FROM basket_pause WHERE chain_id = $1 AND stablecoin = $2"
# $1 chain, $2 token
_RELEASE: Final = """
UPDATE mint_request SET held_at = NULL, held_reason = NULL
WHERE chain_id = $1 AND stablecoin = $2 AND held_reason = 'basket_paused'
"""


async def new_role_changes(
    connection: Connection, chain_id: int, changes: Sequence[RoleChange], *, first_block_number: int
) -> list[RoleChange]:
    """Those from block ``first_block_number`` on whose log has no row yet: what is read again changes nothing.

    The logs must not have been written yet.
    """
    changes = [change for change in changes if change.block_number >= first_block_number]
    if not changes:
        return []
    rows = await connection.fetch(
        _KNOWN, chain_id, [change.block_hash for change in changes], [change.log_index for change in changes]
    )
    known = {(row["block_hash"], row["log_index"]) for row in rows}
    return [change for change in changes if (change.block_hash, change.log_index) not in known]


async def pause_for(connection: Connection, chain_id: int, changes: Sequence[RoleChange]) -> None:
    """Pause the baskets whose token says so, and call a person; the baskets of the batch must have been written."""
    if not changes:
        return
    rows = await connection.fetch(_SYMBOLS, chain_id, list({change.stablecoin for change in changes}))
    symbols = {row["stablecoin"]: row["symbol"] for row in rows}
    counts = Counter(change.stablecoin for change in changes)
    served = await served_baskets(connection, chain_id, counts)
    first_by_token: dict[bytes, str] = {}
    concerns: list[Concern] = []
    for change in changes:
        token = f"0x{change.stablecoin.hex()}"
        what = f"{change.sentence} in block {change.block_number}"
        first_by_token.setdefault(change.stablecoin, what)
        sentence = (
            f"The token of basket {symbols.get(change.stablecoin, '')} ({token}) says {what}.  Nothing is sent for the "
            f"basket until `bskt baskets resume {token} --reason …`."
        )
        concerns.append(Concern(stablecoin=change.stablecoin, served=change.stablecoin in served, sentence=sentence))
    await pause(connection, chain_id, first_by_token, role_changes=counts)
    await raise_about_baskets(connection, chain_id, AlarmKind.BASKET_ROLE_CHANGED, concerns)


async def pause(
    connection: Connection,
    chain_id: int,
    reason_by_token: dict[bytes, str],
    *,
    role_changes: Mapping[bytes, int] = MappingProxyType({}),
) -> None:
    """Pause the baskets that are not paused yet, and count the changes of roles for those that are."""
    changes = [role_changes.get(token, 0) for token in reason_by_token]
    await connection.execute(_PAUSE, chain_id, list(reason_by_token), list(reason_by_token.values()), changes)


async def resume(connection: Connection, chain_id: int, stablecoin: bytes) -> None:
    """End a pause, and release exactly what was held for it, whatever became of it since."""
    await connection.execute(_RESUME, chain_id, stablecoin)
    await connection.execute(_RELEASE, chain_id, stablecoin)


async def hold_requests(connection: Connection, chain_id: int) -> bool:
    """Hold what might be sent for a paused basket and is not held already; the chain must be locked.

    At most ``HELD_AT_ONCE``; ``True`` if there may be more, which the next commit holds.  No attempt begins for them either.
    """
    paused = [row["stablecoin"] for row in await connection.fetch(_PAUSED, chain_id)]
    return bool(paused) and await connection.execute(_HOLD, chain_id, paused, HELD_AT_ONCE) == f"UPDATE {HELD_AT_ONCE}"
