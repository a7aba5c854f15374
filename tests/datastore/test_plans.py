"""What a commit costs does not grow with history: no statement of it reads a large table from end to end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import orjson
import pytest

from bench.aged import fill
from datastore import basket_pauses, following, settlement
from datastore.connection import Pool
from tests.datastore.builders import CHAIN, hash_of, pin_chain

LARGE = {"block", "log", "mint_request", "mint_transition", "mint_execution", "report", "execution_id", "attempt"}
HASHES = [hash_of("block", number) for number in range(3)]
IDS = [1, 2, 3]
F = following
# Each statement that a commit may run on large tables, with arguments as of a commit near the head.
STATEMENTS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "held": (F._HELD, (CHAIN, -2)),
    "known blocks": (F._KNOWN_BLOCKS, (CHAIN, HASHES)),
    "known requests": (F._KNOWN_REQUESTS, (HASHES,)),
    "asked for": (F._ASKED_FOR, (HASHES,)),
    "minted": (F._MINTED, (HASHES,)),
    **{f"restore {table}": (sql, (CHAIN, HASHES, IDS)) for table, sql in F._RESTORE.items()},
    **{f"known rows of {table}": (sql, (CHAIN, HASHES)) for table, sql in F._KNOWN_ROWS.items()},
    "re-attach": (F._RE_ATTACH_REQUESTS, (HASHES, IDS, HASHES, IDS, IDS, HASHES, HASHES)),
    "orphan blocks": (F._ORPHAN_BLOCKS, (CHAIN, -2)),
    "orphan logs": (F._ORPHAN_LOGS, (CHAIN, HASHES)),
    "orphan reports": (F._ORPHAN_REPORTS, (CHAIN, HASHES)),
    "orphan mints": (F._ORPHAN_MINTS, (CHAIN, HASHES)),
    "orphan requests": (F._ORPHAN_REQUESTS, (CHAIN, HASHES, -2)),
    "sent among": (F._SENT_AMONG, (IDS,)),
    "failed by a lost report": (F._FAILED_BY_A_LOST_REPORT, (CHAIN, HASHES)),
    "our reports": (F._OUR_REPORTS, (CHAIN, HASHES)),
    "prove by report": (F._PROVE_BY_REPORT, (CHAIN, HASHES, IDS, IDS)),
    "prove by simulation": (F._PROVE_BY_SIMULATION, (CHAIN,)),
    "minted requests": (F._MINTED_REQUESTS, (CHAIN, HASHES)),
    "before mint": (F._BEFORE_MINT, (IDS,)),
    "rivals": (F._RIVALS, (HASHES, IDS)),
    "unattributed": (F._UNATTRIBUTED, (CHAIN, HASHES)),
    "requests with reference": (F._REQUESTS_WITH_REFERENCE, (HASHES,)),
    "lock candidates": (F._LOCK_CANDIDATES, (CHAIN, 10, 5_000)),
    "candidates": (F._CANDIDATES, (IDS,)),
    "look-alikes": (F._LOOK_ALIKES, (CHAIN, IDS)),
    "may have look-alikes": (F._MAY_HAVE_LOOK_ALIKES, (CHAIN,)),
    "undecided": (F._UNDECIDED, (HASHES,)),
    "in line": (F._IN_LINE, (CHAIN, IDS)),
    "spelled alike": (F._SPELLED_ALIKE, (IDS,)),
    "lock holders": (F._LOCK_HOLDERS, (HASHES, CHAIN)),
    "lock holders elsewhere": (F._LOCK_HOLDERS_ELSEWHERE, (HASHES, CHAIN)),
    "holders": (F._HOLDERS, (HASHES,)),
    "minted by nobody": (F._MINTED_BY_NOBODY, (HASHES,)),
    "any unsettled": (F._ANY_UNSETTLED, (CHAIN,)),
    "unsettled": (F._UNSETTLED, (CHAIN, 50)),
    "still to feed": (F._STILL_TO_FEED, (CHAIN, HASHES, IDS, ["failed", "rejected"], 500)),
    "first in line": (F._FIRST_IN_LINE, (CHAIN, HASHES, 10)),
    "no line left": (F._NO_LINE_LEFT, (CHAIN, IDS)),
    "finalize requests": (F._FINALIZE_REQUESTS, (CHAIN, 10, 5_000)),
    "orphan for good": (F._ORPHAN_FOR_GOOD, (CHAIN, 10, 5_000)),
    "executed": (F._EXECUTED, (CHAIN,)),
    "known role changes": (basket_pauses._KNOWN, (CHAIN, HASHES, IDS)),
    "hold for paused baskets": (basket_pauses._HOLD, (CHAIN, [bytes(20)], 5_000)),
    "release what is held for a basket": (basket_pauses._RELEASE, (CHAIN, bytes(20))),
    "lock": (settlement._LOCK, (IDS,)),
    "facts": (settlement._FACTS, (IDS, 1, 1)),
    "leave": (settlement._LEAVE, (HASHES, IDS, "reference_minted", ["failed", "rejected"])),
}


@pytest.fixture
async def aged(dsn: str, indexer_pool: Pool) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    await fill(dsn, requests=20_000, logs=100_000)
    await pin_chain(indexer_pool)
    async with indexer_pool.acquire() as connection:
        yield connection  # type: ignore[misc]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


async def test_no_statement_of_a_commit_reads_a_large_table_from_end_to_end(
    aged: asyncpg.Connection[asyncpg.Record],
) -> None:
    read: list[str] = []
    for name, (sql, arguments) in STATEMENTS.items():
        for mode in ("force_custom_plan", "force_generic_plan"):
            await aged.execute(f"SET plan_cache_mode = {mode}")
            (row,) = await aged.fetch(f"EXPLAIN (FORMAT JSON) {sql}", *arguments)
            read += [
                f"{name} reads {node['Relation Name']} ({mode})"
                for node in nodes(orjson.loads(row[0])[0]["Plan"])
                if node["Node Type"] == "Seq Scan" and node["Relation Name"] in LARGE
            ]
    assert read == []
