"""What ``/livez``, ``/readyz``, ``/status``, ``/metrics`` and ``bskt status`` cost does not grow with history.

Two things are looked at: how each of their statements is planned, and how many pages it reads in a database with a
history and in one without.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import orjson
import pytest

from bench.aged import fill
from datastore import alarms, basket_pauses, breakers, following, status, tally
from datastore.alarms import AlarmKind
from datastore.connection import Pool
from tests.datastore.builders import CHAIN, hash_of, pin_chain

LARGE = {
    "alarm",
    "attempt",
    "block",
    "execution_id",
    "log",
    "mint_execution",
    "mint_request",
    "mint_transition",
    "reorg",
    "report",
    "sweep_difference",
}
KINDS = [kind.value for kind in AlarmKind]
READ: dict[str, tuple[str, tuple[Any, ...]]] = {
    "position": (status._POSITION, (CHAIN,)),
    "last reorg": (status._LAST_REORG, (CHAIN,)),
    "by state": (status._BY_STATE, (CHAIN,)),
    "queue": (status._QUEUE, (CHAIN,)),
    "in flight": (status._IN_FLIGHT, (CHAIN,)),
    "slots": (status._SLOTS, (CHAIN,)),
    "baskets": (status._BASKETS, (CHAIN,)),
    "paused baskets": (status._BASKETS_PAUSED, (CHAIN,)),
    "for a person": (status._FOR_A_PERSON, (CHAIN,)),
    "held": (status._HELD, (CHAIN,)),
    "alarms": (status._ALARMS, (CHAIN, status.ALARM_HOURS, KINDS, status.SHOWN_ALARMS)),
    "breakers": (breakers._LIST, (CHAIN,)),
    "gate": (status._GATE, (CHAIN,)),
    "counted": (tally._COUNTED, (CHAIN,)),
}
# Not of a reading, but of a commit, and about the same tables.
WRITTEN: dict[str, tuple[str, tuple[Any, ...]]] = {
    "hourly alarm": (alarms._RAISE_HOURLY, (CHAIN, "endpoints_disagree", "", True, 1)),
    "served": (alarms._SERVED, (CHAIN, [bytes(20), bytes(20)])),
    "references of ours": (following._OURS, ([hash_of("reference")],)),
    "pause": (basket_pauses._PAUSE, (CHAIN, [bytes(20)], ["reason"], [1])),
}


@pytest.fixture
async def owner(dsn: str, indexer_pool: Pool) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    await pin_chain(indexer_pool)
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


async def plan(
    owner: asyncpg.Connection[asyncpg.Record], sql: str, arguments: tuple[Any, ...], *options: str
) -> dict[str, Any]:
    transaction = owner.transaction()
    await transaction.start()
    try:
        text = await owner.fetchval(f"EXPLAIN ({', '.join((*options, 'FORMAT JSON'))}) {sql}", *arguments)
    finally:
        await transaction.rollback()
    found: dict[str, Any] = orjson.loads(text)[0]["Plan"]
    return found


async def pages(owner: asyncpg.Connection[asyncpg.Record]) -> dict[str, int]:
    """How many pages each reading reads; the second time, when the catalogs are known to the session."""
    read: dict[str, int] = {}
    for _ in range(2):
        for name, (sql, arguments) in READ.items():
            found = await plan(owner, sql, arguments, "ANALYZE", "BUFFERS")
            read[name] = int(found["Shared Hit Blocks"]) + int(found["Shared Read Blocks"])
    return read


async def test_no_reading_scans_a_table_that_history_fills_and_none_costs_more_because_of_it(
    owner: asyncpg.Connection[asyncpg.Record], dsn: str
) -> None:
    before = await pages(owner)
    await fill(dsn, requests=20_000, logs=20_000, alarms=60_000)
    scanned = []
    for name, (sql, arguments) in (READ | WRITTEN).items():
        for mode in ("force_custom_plan", "force_generic_plan"):
            await owner.execute(f"SET plan_cache_mode = {mode}")
            scanned += [
                f"{name} scans {node['Relation Name']} ({mode})"
                for node in nodes(await plan(owner, sql, arguments))
                if node["Node Type"] == "Seq Scan" and node["Relation Name"] in LARGE
            ]
    assert scanned == []
    # A deeper index costs a page or two a look-up, the alarms of one day of these some ten; a look at history would
    # cost thousands.
    after = await pages(owner)
    assert {name: (before[name], read) for name, read in after.items() if read > 2 * before[name] + 60} == {}
