"""Which baskets are served: those that completed a mint, unless a person disallowed them, and those that one allowed.

Anyone may make baskets, by the thousand, so every basket alike would mean almost nothing for each.  As long as both kinds
wait, each workflow's slots go to served baskets and to the others in turns, and of the places in flight the others take
no more than their share.  A completed mint costs a real deposit and one slot of the others; a name costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from datastore.connection import Connection

# $1 chain, $2 token, $3 whether allowed, $4 reason
_RULE: Final = """
INSERT INTO basket_standing (chain_id, stablecoin, allowed, allowed_at, allowed_reason)
VALUES ($1, $2, $3, clock_timestamp(), $4)
ON CONFLICT (chain_id, stablecoin) DO UPDATE
SET allowed = excluded.allowed, allowed_at = excluded.allowed_at, allowed_reason = excluded.allowed_reason
"""

# $1 chain, $2 the request that wants to be sent
_STANDING: Final = """
SELECT
    coalesce(s.served, false) AS is_served, coalesce(s.allowed, false) AS is_allowed,
    EXISTS (SELECT FROM basket_standing a WHERE a.chain_id = $1 AND a.served) AS are_served_ones,
    (
        SELECT count(*) FROM mint_request r LEFT JOIN basket_standing o USING (chain_id, stablecoin)
        WHERE r.chain_id = $1 AND r.state IN ('in_doubt', 'accepted') AND r.deadline_at > settled_time($1) AND r.id <> $2
          AND NOT coalesce(o.served, false)
    ) AS others_unserved
FROM mint_request q LEFT JOIN basket_standing s USING (chain_id, stablecoin)
WHERE q.id = $2
"""

# $1 chain, $2 workflow, $3 request
_TAKE_TURN: Final = """
INSERT INTO workflow_turn (chain_id, workflow_id, was_served, taken_at)
SELECT $1, $2, coalesce(s.served, false), clock_timestamp()
FROM mint_request r LEFT JOIN basket_standing s USING (chain_id, stablecoin)
WHERE r.id = $3
ON CONFLICT (chain_id, workflow_id) DO UPDATE SET was_served = excluded.was_served, taken_at = excluded.taken_at
"""

# $1 chain
_LAST_TURNS: Final = "SELECT workflow_id, was_served FROM workflow_turn WHERE chain_id = $1"


@dataclass(frozen=True, slots=True, kw_only=True)
class BasketStanding:
    """What is so of a request's basket; ``others_unserved`` counts all other requests in flight that are not served."""

    is_served: bool
    is_allowed: bool
    are_served_ones: bool
    others_unserved: int

    def leaves_room(self, unserved_max_in_flight: int | None) -> bool:
        """Whether one more may be in flight; places are kept for served baskets only while there is such a basket."""
        if unserved_max_in_flight is None or self.is_served or not self.are_served_ones:
            return True
        return self.others_unserved < unserved_max_in_flight


async def rule(connection: Connection, chain_id: int, stablecoin: bytes, *, allowed: bool, reason: str) -> None:
    """Write what a person ruled; it survives a reorg or a repair of the basket's row."""
    await connection.execute(_RULE, chain_id, stablecoin, allowed, reason)


async def standing_of(connection: Connection, chain_id: int, request_id: int) -> BasketStanding:
    """The standing of the basket of a request, counted while the caller holds the chain's gate."""
    (row,) = await connection.fetch(_STANDING, chain_id, request_id)
    return BasketStanding(**row)


async def take_turn(connection: Connection, chain_id: int, workflow_id: bytes, request_id: int) -> None:
    """Write for which kind of basket a workflow is triggered now, while the caller holds the chain's gate."""
    await connection.execute(_TAKE_TURN, chain_id, workflow_id, request_id)


async def last_turns(connection: Connection, chain_id: int) -> dict[bytes, bool]:
    """By workflow, whether its latest attempt was for a served basket; one that had none is missing."""
    return {row["workflow_id"]: row["was_served"] for row in await connection.fetch(_LAST_TURNS, chain_id)}
