"""One look at everything that ``/status`` and ``/readyz`` tell.  Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from datastore.connection import Pool, unit
from datastore.lifecycle import State

# $1 chain
_POSITION: Final = """
SELECT
    c.head_number, c.safe_number, c.finalized_number, c.block_number, c.indexed_at,
    k.paused_reason, k.quarantined_reason, k.halted_reason,
    (SELECT max(r.at) FROM reorg r WHERE r.chain_id = c.chain_id) AS last_reorg_at
FROM cursor c JOIN control k ON k.chain_id = c.chain_id
WHERE c.chain_id = $1
"""
# $1 chain
_BY_STATE: Final = "SELECT state, count(*) AS requests FROM mint_request WHERE chain_id = $1 GROUP BY state"
# $1 chain
_QUEUE: Final = """
SELECT count(*) AS waiting, extract(epoch FROM clock_timestamp() - min(state_changed_at)) AS oldest_seconds
FROM mint_request
WHERE chain_id = $1 AND state = 'confirmed' AND held_at IS NULL AND chain_status <> 'orphaned'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The daemon's rows at one moment; block numbers are -1 where a node does not know a tag."""

    head: int
    safe: int
    finalized: int
    indexed: int
    indexed_at: datetime
    last_reorg_at: datetime | None
    requests: dict[str, int]
    waiting: int
    oldest_seconds: float
    paused: str | None
    quarantined: str | None
    halted: str | None


async def snapshot(pool: Pool, chain_id: int) -> Snapshot | None:
    """Read the rows; ``None`` before the chain is pinned."""
    async with unit(pool) as connection:
        position = await connection.fetchrow(_POSITION, chain_id)
        by_state = await connection.fetch(_BY_STATE, chain_id)
        queue = await connection.fetchrow(_QUEUE, chain_id)
    if position is None or queue is None:
        return None
    return Snapshot(
        head=position["head_number"],
        safe=position["safe_number"],
        finalized=position["finalized_number"],
        indexed=position["block_number"],
        indexed_at=position["indexed_at"],
        last_reorg_at=position["last_reorg_at"],
        requests={state.value: 0 for state in State} | {row["state"]: row["requests"] for row in by_state},
        waiting=queue["waiting"],
        oldest_seconds=float(queue["oldest_seconds"] or 0),
        paused=position["paused_reason"],
        quarantined=position["quarantined_reason"],
        halted=position["halted_reason"],
    )
