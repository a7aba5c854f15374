"""What people look at.  Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from datastore.connection import Pool, translated

# $1 chain
_REQUESTS: Final = """
SELECT
    r.id, r.nonce, r.stablecoin, r.amount, r.bank_reference, r.state, r.state_reason, r.chain_status,
    (SELECT count(*) FROM attempt a WHERE a.request_id = r.id) AS attempts
FROM mint_request r
WHERE r.chain_id = $1
ORDER BY r.id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLine:
    """One request as a line of a table; ``amount`` in wei."""

    request_id: int
    nonce: str
    stablecoin: bytes
    amount: int
    bank_reference: bytes
    state: str
    reason: str | None
    chain_status: str
    attempts: int


async def requests(pool: Pool, chain_id: int) -> list[RequestLine]:
    """Every request of a chain, oldest first."""
    async with translated(), pool.acquire() as connection:
        rows = await connection.fetch(_REQUESTS, chain_id)
    return [
        RequestLine(
            request_id=row["id"],
            nonce=str(row["nonce"]),
            stablecoin=row["stablecoin"],
            amount=int(row["amount"]),
            bank_reference=row["bank_reference"],
            state=row["state"],
            reason=row["state_reason"],
            chain_status=row["chain_status"],
            attempts=row["attempts"],
        )
        for row in rows
    ]


async def chain_ids(pool: Pool) -> list[int]:
    """The chains in this database, in order."""
    async with translated(), pool.acquire() as connection:
        rows = await connection.fetch("SELECT chain_id FROM chain ORDER BY chain_id")
    return [row["chain_id"] for row in rows]
