"""How long an honest request waits behind thousands of hostile baskets: ``python -m bench.fairness``.

Each hostile basket has one older request that waits.  The place of the honest one is read from the queue twice: while its
basket is like all others, which is the rotation by basket alone, and once its basket is served.  Then requests are claimed
as the invocator does it, a look and a claim each, so that the cost of a claim is seen beside that without hostile baskets.

Exit code 1: a served basket's request is not among the first two, or a claim among the most hostile baskets takes longer
than ``SLOWEST_MILLISECONDS`` at the 99th percentile: a workflow takes a request a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg

from datastore import claims, schema
from datastore.claims import Pacing
from datastore.connection import Pool, Role, open_pool
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Block
from service.embedded_postgres import EmbeddedPostgres

CHAIN_ID: Final = 31337
SECONDS_PER_TRIGGER: Final = 60
SLOWEST_MILLISECONDS: Final = 1_000.0
LOOKED_AT: Final = 50
PIN: Final = Pin(
    chain_id=CHAIN_ID,
    genesis_hash=bytes(32),
    factory_address=bytes(20),
    factory_code_hash=bytes(32),
    forwarder_address=bytes(20),
    secret_check=b"bench",
)
START: Final = Block(number=1, hash=bytes(32), parent_hash=bytes(32), timestamp=0)
PACING: Final = Pacing(
    seconds_per_trigger=0,
    burst=1,
    max_in_flight=1_000_000_000,
    requester_max_in_flight=1_000_000_000,
    basket_max_in_flight=1_000_000_000,
    unserved_max_in_flight=1_000_000_000,
)

# As a replica would apply them, without triggers.  $1 first number, $2 last number, $3 chain
REQUESTS: Final = """
INSERT INTO mint_request (
    chain_id, identity, nonce, emitter, tx_hash, block_hash, block_number, block_timestamp, log_index, chain_status,
    stablecoin, consumer, requester, beneficiary, amount, predicted_amount, bank_reference, expected_reference, state,
    holds_reference, recorded_at
)
SELECT
    $3, sha256(('i' || n)::bytea), gen_random_uuid(), basket, sha256(('t' || n)::bytea), sha256(('b' || n)::bytea), n, 0,
    0, 'finalized', basket, basket, basket, basket, 1, 1, sha256(('r' || n)::bytea), sha256(('r' || n)::bytea),
    'confirmed', true, now() + n * interval '1 ms'
FROM (
    SELECT n, substr(sha256(('basket' || n)::bytea), 1, 20) AS basket FROM generate_series($1::integer, $2::integer) n
) m
"""
# $1 chain, $2 number of the basket
SERVED: Final = """
INSERT INTO basket_standing (chain_id, stablecoin, completed_at)
VALUES ($1, substr(sha256(('basket' || $2::integer)::bytea), 1, 20), now())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """With so many hostile baskets: the honest request's place, and the milliseconds of a look and a claim."""

    hostile: int
    place_as_others: int
    place_served: int
    place_listed: int
    p50_milliseconds: float
    p99_milliseconds: float
    listed_p50_milliseconds: float
    listed_p99_milliseconds: float


async def opened(server: EmbeddedPostgres, name: str, hostile: int) -> tuple[Pool, Any]:
    """A database with the hostile requests and, younger than all of them, the honest one."""
    owner = await asyncpg.connect(server.dsn)
    await owner.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    await owner.close()
    dsn = f"{server.dsn.rpartition('/')[0]}/{name}"
    await schema.apply(dsn)
    async with await open_pool(dsn, Role.INDEXER, max_size=1) as indexer:
        await pin_first_start(indexer, PIN, start=START, first_trigger_block_number=0)
    connection = await asyncpg.connect(dsn)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(REQUESTS, 1, hostile + 1, CHAIN_ID)
    await connection.execute("VACUUM ANALYZE")
    pool = await open_pool(dsn, Role.INVOCATOR, max_size=1)
    await claims.list_workflows(pool, CHAIN_ID, [bytes(32)])
    return pool, connection


async def place_of(pool: Pool, request_id: int, *, only_allowed: bool = False) -> int:
    """The place of a request in the queue, from 1 on."""
    return (await claims.queue(pool, CHAIN_ID, only_allowed=only_allowed)).index(request_id) + 1


async def timed(pool: Pool, owner: Any, *, rounds: int, pacing: Pacing) -> list[float]:
    """The milliseconds of each look and claim; what was claimed waits again afterwards."""
    found: list[float] = []
    for _ in range(rounds):
        started = time.perf_counter()
        (order, *_) = await claims.waiting(pool, CHAIN_ID, limit=LOOKED_AT, pacing=pacing)
        taken = await claims.claim(
            pool, CHAIN_ID, order.request_id, worker_id=uuid4(), lease_seconds=120, pacing=pacing
        )
        found.append((time.perf_counter() - started) * 1_000)
        if taken is None:
            raise AssertionError(f"request {order.request_id} could not be claimed")
        await owner.execute(
            "UPDATE mint_request SET state = 'confirmed', worker_id = NULL, lease_ends_at = NULL WHERE id = $1",
            order.request_id,
        )
    return found


async def measured(server: EmbeddedPostgres, hostile: int, *, rounds: int) -> Measured:
    """Places and times with so many hostile baskets."""
    pool, owner = await opened(server, f"fairness_{hostile}", hostile)
    honest = hostile + 1
    as_others = await place_of(pool, honest)
    await owner.execute(SERVED, CHAIN_ID, honest)
    served = await place_of(pool, honest)
    every = statistics.quantiles(await timed(pool, owner, rounds=rounds, pacing=PACING), n=100, method="inclusive")
    await owner.execute("UPDATE basket_standing SET allowed = true, allowed_at = now(), allowed_reason = 'bench'")
    listed_pacing = replace(PACING, only_allowed=True)
    listed = statistics.quantiles(
        await timed(pool, owner, rounds=rounds, pacing=listed_pacing), n=100, method="inclusive"
    )
    listed_place = await place_of(pool, honest, only_allowed=True)
    await pool.close()
    await owner.close()
    return Measured(
        hostile=hostile,
        place_as_others=as_others,
        place_served=served,
        place_listed=listed_place,
        p50_milliseconds=every[49],
        p99_milliseconds=every[98],
        listed_p50_milliseconds=listed[49],
        listed_p99_milliseconds=listed[98],
    )


async def run(folder: Path, *, hostile: list[int], rounds: int) -> list[Measured]:
    """Make a server in ``folder`` and measure each number of hostile baskets in a database of its own."""
    async with EmbeddedPostgres(folder / "postgres") as server:
        return [await measured(server, number, rounds=rounds) for number in hostile]


def waited(place: int) -> str:
    """The time until the send, if one workflow is triggered a minute."""
    minutes = (place - 1) * SECONDS_PER_TRIGGER // 60
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"  # noqa: PLR2004 - of an hour


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hostile", type=int, nargs="+", default=[0, 1_000, 10_000], help="hostile baskets")
    parser.add_argument("--rounds", type=int, default=200, help="claims of each")
    parser.add_argument("--json", action="store_true", help="one line of JSON a measurement on stdout")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bskt-bench-"))
    folder.chmod(0o755)  # as root, the server runs as another user
    try:
        lines = asyncio.run(run(folder, hostile=options.hostile, rounds=options.rounds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    titles = ("hostile", "as others", "", "served", "", "p50 ms", "p99 ms", "listed p50", "listed p99")
    print("".join(f"{title:>13}" for title in titles), file=sys.stderr)
    for line in lines:
        cells: list[object] = [line.hostile, line.place_as_others, waited(line.place_as_others)]
        cells += [line.place_served, waited(line.place_served)]
        times = (
            line.p50_milliseconds,
            line.p99_milliseconds,
            line.listed_p50_milliseconds,
            line.listed_p99_milliseconds,
        )
        cells += [f"{each:.1f}" for each in times]
        print("".join(f"{cell:>13}" for cell in cells), file=sys.stderr)
        if options.json:
            print(json.dumps(asdict(line)))
    starved = any(line.place_served > 2 or line.place_listed > 1 for line in lines)  # noqa: PLR2004 - both kinds in turns
    return int(starved or max(line.p99_milliseconds for line in lines) > SLOWEST_MILLISECONDS)


if __name__ == "__main__":
    sys.exit(main())
