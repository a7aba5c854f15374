"""What a person must know: a closed list, for ``docs/runbook.md`` has a heading for each kind, and alerts name them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from datastore.connection import Connection


class AlarmKind(StrEnum):
    """Why somebody is called; the runbook says what each means and what to do."""

    BASKET_ROLE_CHANGED = "basket_role_changed"
    CLOCK_OFF = "clock_off"
    DELIVERED_WITHOUT_MINT = "delivered_without_mint"
    DOUBLE_MINT = "double_mint"
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


# $1 chain, $2 kind, $3 sentences, $4 their requests, or NULL for what is about the whole chain
_RAISE: Final = """
INSERT INTO alarm (chain_id, kind, sentence, request_id)
SELECT $1, $2, n.sentence, n.request_id FROM unnest($3::text[], $4::bigint[]) AS n (sentence, request_id)
"""


# $1 chain, $2 kind, $3 sentence
_RAISE_HOURLY: Final = """
INSERT INTO alarm (chain_id, kind, sentence)
SELECT $1, $2, $3
WHERE NOT EXISTS (SELECT FROM alarm WHERE chain_id = $1 AND kind = $2 AND at > clock_timestamp() - interval '1 hour')
"""


async def raise_alarm(connection: Connection, chain_id: int, kind: AlarmKind, *sentences: str) -> None:
    """Record alarms about the whole chain."""
    await connection.execute(_RAISE, chain_id, kind.value, list(sentences), [None] * len(sentences))


async def raise_alarms(connection: Connection, chain_id: int, kind: AlarmKind, sentences: Mapping[int, str]) -> None:
    """Record an alarm for each request id."""
    if sentences:
        await connection.execute(_RAISE, chain_id, kind.value, list(sentences.values()), list(sentences))


async def raise_hourly(connection: Connection, chain_id: int, kind: AlarmKind, sentence: str) -> None:
    """Record an alarm about what may happen at every block or attempt, unless one of its kind is less than an hour old."""
    await connection.execute(_RAISE_HOURLY, chain_id, kind.value, sentence)
