"""What a person must know: a closed list, for ``docs/runbook.md`` has a heading for each kind, and alerts name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from datastore.connection import Connection


class AlarmKind(StrEnum):
    """Why somebody is called; the runbook says what each means and what to do."""

    BASKET_ROLE_CHANGED = "basket_role_changed"
    CLOCK_OFF = "clock_off"
    DELIVERED_WITHOUT_MINT = "delivered_without_mint"
    DOUBLE_MINT = "double_mint"
    ENDPOINT_ON_OTHER_FORK = "endpoint_on_other_fork"
    ENDPOINTS_DISAGREE = "endpoints_disagree"
    FINALITY_VIOLATED = "finality_violated"
    GATEWAY_FORBIDS = "gateway_forbids"
    GAVE_UP = "gave_up"
    INSTANCE_REFUSED = "instance_refused"
    LOST_SEND_FOUND = "lost_send_found"
    MINT_MISMATCH = "mint_mismatch"
    ORPHANED_AFTER_SEND = "orphaned_after_send"
    QUARANTINE_ENTERED = "quarantine_entered"
    ROWS_REPAIRED = "rows_repaired"
    UNATTRIBUTED_MINT = "unattributed_mint"
    UNBACKED_MINT = "unbacked_mint"
    UNEXPECTED_MINT = "unexpected_mint"
    WORKFLOW_REFUSED = "workflow_refused"


OF_STRANGERS: Final = frozenset({AlarmKind.BASKET_ROLE_CHANGED, AlarmKind.UNATTRIBUTED_MINT})
"""What anybody can cause for gas, with a basket of its own: there, one row an hour counts them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """An alarm about a basket; ``served`` if the basket is, or if the alarm concerns our promise."""

    stablecoin: bytes | None
    served: bool
    sentence: str


# $1 chain, $2 kind, $3 sentences, $4 their requests, $5 their baskets' tokens; NULL for what is about the whole chain
_RAISE: Final = """
INSERT INTO alarm (chain_id, kind, sentence, request_id, stablecoin)
SELECT $1, $2, n.sentence, n.request_id, n.stablecoin
FROM unnest($3::text[], $4::bigint[], $5::bytea[]) AS n (sentence, request_id, stablecoin)
"""
# The row is locked until the transaction ends, and whatever else it locks comes before this.
# $1 chain, $2 kind, $3 sentence of the first, $4 whether served baskets may be concerned, $5 how many
_RAISE_HOURLY: Final = """
INSERT INTO alarm AS a (chain_id, kind, sentence, served, times, hour)
VALUES ($1, $2, $3, $4, $5, date_bin('1 hour', clock_timestamp(), '2000-01-01'))
ON CONFLICT (chain_id, kind, served, hour) WHERE hour IS NOT NULL
    DO UPDATE SET times = a.times + excluded.times, last_at = excluded.last_at
"""
# $1 chain, $2 tokens
_SERVED: Final = "SELECT token FROM unnest($2::bytea[]) AS n (token) WHERE is_served_basket($1, token)"


async def raise_alarm(connection: Connection, chain_id: int, kind: AlarmKind, *sentences: str) -> None:
    """Record alarms about the whole chain."""
    nothing = [None] * len(sentences)
    await connection.execute(_RAISE, chain_id, kind.value, list(sentences), nothing, nothing)


async def raise_alarms(connection: Connection, chain_id: int, kind: AlarmKind, sentences: Mapping[int, str]) -> None:
    """Record an alarm for each request id."""
    if sentences:
        await connection.execute(
            _RAISE, chain_id, kind.value, list(sentences.values()), list(sentences), [None] * len(sentences)
        )


async def raise_hourly(
    connection: Connection, chain_id: int, kind: AlarmKind, sentence: str, *, served: bool = True, times: int = 1
) -> None:
    """Record what may happen at every block or attempt: a row an hour, with the first one's sentence, counts them."""
    await connection.execute(_RAISE_HOURLY, chain_id, kind.value, sentence, served, times)


async def raise_about_baskets(
    connection: Connection, chain_id: int, kind: AlarmKind, concerns: Sequence[Concern]
) -> None:
    """Record a row for each concern about a served basket, and one an hour for all others together.

    A storm of others leaves the rows of the served ones as they are, and adds one row of each kind an hour.
    """
    if served := [concern for concern in concerns if concern.served]:
        await connection.execute(
            _RAISE,
            chain_id,
            kind.value,
            [concern.sentence for concern in served],
            [None] * len(served),
            [concern.stablecoin for concern in served],
        )
    if others := [concern for concern in concerns if not concern.served]:
        await raise_hourly(connection, chain_id, kind, others[0].sentence, served=False, times=len(others))


async def served_baskets(connection: Connection, chain_id: int, tokens: Iterable[bytes]) -> set[bytes]:
    """Those of the baskets that are served; by their tokens."""
    return {row["token"] for row in await connection.fetch(_SERVED, chain_id, list(tokens))}
