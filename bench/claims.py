"""How fast requests are claimed, and whether history slows it: ``python -m bench.claims``.

One at a time and fifty at a time, with no finished request and with a million of them, beside PgQueuer and
procrastinate doing the same job: mark jobs as one worker's own, durably, in one durable Postgres.  Each system keeps
its finished jobs as it does by itself: procrastinate and we in the table of jobs, PgQueuer in its log.  All of them
take turns in one run, so that whatever else the machine does meets each of them.

``uv sync --group bench`` brings the two others.  Exit code 1: our 99th percentile grew by more than half.
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
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Final
from uuid import uuid4

import asyncpg
import procrastinate
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import EntrypointExecutionParameter, Queries

from datastore import claims, schema
from datastore.claims import Pacing
from datastore.connection import Pool, Role, open_pool
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Block
from service.embedded_postgres import EmbeddedPostgres

CHAIN_ID: Final = 31337
BASKETS: Final = 20
REQUESTERS: Final = 100
LONGEST_SECONDS: Final = 3_600.0
PIN: Final = Pin(
    chain_id=CHAIN_ID,
    genesis_hash=bytes(32),
    factory_address=bytes(20),
    factory_code_hash=bytes(32),
    forwarder_address=bytes(20),
    secret_check=b"bench",
)
START: Final = Block(number=1, hash=bytes(32), parent_hash=bytes(32), timestamp=1)
WORST_GROWTH: Final = 1.5
PACING: Final = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1_000_000_000)

# As a replica would apply them, without triggers: what is measured is claiming, not recording.
# $1 how many, $2 a word that makes their names unique, $3 state, $4 chain, $5 baskets, $6 requesters
REQUESTS: Final = """
INSERT INTO mint_request (
    chain_id, identity, nonce, emitter, tx_hash, block_hash, block_number, block_timestamp, log_index, chain_status,
    stablecoin, consumer, requester, beneficiary, amount, predicted_amount, bank_reference, expected_reference, state,
    holds_reference
)
SELECT
    $4, sha256(($2 || n)::bytea), gen_random_uuid(), basket, sha256(('t' || $2 || n)::bytea),
    sha256(('b' || $2 || n)::bytea), n, 0, 0, 'finalized', basket, basket, requester, requester, 1, 1,
    sha256(('r' || $2 || n)::bytea), sha256(('r' || $2 || n)::bytea), $3, true
FROM (
    SELECT n, substr(sha256(('basket' || n % $5::integer)::bytea), 1, 20) AS basket,
        substr(sha256(('requester' || n % $6::integer)::bytea), 1, 20) AS requester
    FROM generate_series(1, $1::integer) n
) m
"""


class System(ABC):
    """A queue in a database of its own."""

    name: ClassVar[str]

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    @abstractmethod
    async def open(self, waiting: int, finished: int) -> None:
        """Make the schema, the history and the jobs that wait."""

    @abstractmethod
    async def claim(self, limit: int) -> int:
        """Take up to ``limit`` jobs; how many they were."""

    @abstractmethod
    async def close(self) -> None:
        """Let go."""

    async def owner(self, *statements: str) -> None:
        """Run statements as the database's owner."""
        connection = await asyncpg.connect(self.dsn)
        for statement in statements:
            await connection.execute(statement, timeout=LONGEST_SECONDS)
        await connection.close()


class Ours(System):
    """``claims.waiting`` and ``claims.claim_all``, as the invocator calls them: fair, under a lease, with history."""

    name = "bskt"
    pool: Pool

    async def open(self, waiting: int, finished: int) -> None:
        """See `System`."""
        await schema.apply(self.dsn)
        async with await open_pool(self.dsn, Role.INDEXER, max_size=1) as indexer:
            await pin_first_start(indexer, PIN, start=START, first_trigger_block_number=0)
        connection = await asyncpg.connect(self.dsn)
        await connection.execute("SET session_replication_role = replica")
        for number, word, state in ((finished, "old", "completed"), (waiting, "new", "confirmed")):
            await connection.execute(
                REQUESTS, number, word, state, CHAIN_ID, BASKETS, REQUESTERS, timeout=LONGEST_SECONDS
            )
        await connection.close()
        await self.owner("VACUUM ANALYZE")
        self.pool = await open_pool(self.dsn, Role.INVOCATOR, max_size=1)
        await claims.list_workflows(self.pool, CHAIN_ID, [bytes(32)])
        self.worker_id = uuid4()

    async def claim(self, limit: int) -> int:
        """See `System`."""
        orders = await claims.waiting(self.pool, CHAIN_ID, limit=limit, pacing=PACING)
        ids = [order.request_id for order in orders]
        taken = await claims.claim_all(
            self.pool, CHAIN_ID, ids, worker_id=self.worker_id, lease_seconds=120, pacing=PACING
        )
        return len(taken)

    async def close(self) -> None:
        """See `System`."""
        await self.pool.close()


class PgQueuer(System):
    """``Queries.dequeue``."""

    name = "PgQueuer"

    async def open(self, waiting: int, finished: int) -> None:
        """See `System`."""
        self.connection = await asyncpg.connect(self.dsn)
        self.queries = Queries(AsyncpgDriver(self.connection))
        await self.queries.install()
        await self.owner(
            "INSERT INTO pgqueuer_log (job_id, status, priority, entrypoint, aggregated) "  # noqa: S608 - a number
            f"SELECT n, 'successful', 0, 'mint', true FROM generate_series(1, {finished}) n"
        )
        for _ in range(0, waiting, 1_000):
            await self.queries.enqueue(["mint"] * 1_000, [None] * 1_000, [0] * 1_000)
        await self.owner("VACUUM ANALYZE")
        self.worker_id = uuid4()

    async def claim(self, limit: int) -> int:
        """See `System`."""
        jobs = await self.queries.dequeue(
            batch_size=limit,
            entrypoints={"mint": EntrypointExecutionParameter(concurrency_limit=0)},
            queue_manager_id=self.worker_id,
            global_concurrency_limit=None,
            heartbeat_timeout=timedelta(seconds=120),
        )
        return len(jobs)

    async def close(self) -> None:
        """See `System`."""
        await self.connection.close()


class Procrastinate(System):
    """``JobManager.fetch_job``; it knows no batch, so fifty are fifty calls."""

    name = "procrastinate"

    async def open(self, waiting: int, finished: int) -> None:
        """See `System`."""
        self.app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(conninfo=self.dsn, min_size=1, max_size=1)
        )
        await self.app.open_async()
        await self.app.schema_manager.apply_schema_async()
        insert = "INSERT INTO procrastinate_jobs (task_name, queue_name, status) SELECT 'mint', 'default', "
        await self.owner(
            "SET session_replication_role = replica",
            f"{insert}'succeeded' FROM generate_series(1, {finished})",
            f"{insert}'todo' FROM generate_series(1, {waiting})",
            "VACUUM ANALYZE",
        )
        self.worker_id = await self.app.job_manager.register_worker()

    async def claim(self, limit: int) -> int:
        """See `System`."""
        taken = 0
        for _ in range(limit):
            taken += await self.app.job_manager.fetch_job(None, self.worker_id) is not None
        return taken

    async def close(self) -> None:
        """See `System`."""
        await self.app.close_async()


@dataclass(kw_only=True)
class Measured:
    """The times of one system's claims, with ``finished`` jobs behind them, in seconds each."""

    system: str
    finished: int
    at_a_time: int
    seconds: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Claims a second of claiming."""
        return self.at_a_time * len(self.seconds) / sum(self.seconds)

    def milliseconds(self, percentile: int) -> float:
        """A percentile of one call."""
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[percentile - 1] * 1_000


async def measured(systems: Sequence[tuple[System, int]], *, rounds: int) -> list[Measured]:
    """Let all of them claim in turns, a few calls each."""
    found: list[Measured] = []
    for at_a_time, calls in ((1, 20), (50, 4)):
        lines = [Measured(system=each.name, finished=finished, at_a_time=at_a_time) for each, finished in systems]
        for _ in range(rounds):
            for (system, _), line in zip(systems, lines, strict=True):
                for _ in range(calls):
                    started = time.perf_counter()
                    taken = await system.claim(at_a_time)
                    line.seconds.append(time.perf_counter() - started)
                    if taken != at_a_time:
                        raise AssertionError(f"{system.name} claimed {taken} of {at_a_time}")
        found += lines
    return found


async def run(folder: Path, *, finished: int, rounds: int) -> list[Measured]:
    """Make a server in ``folder`` with a database for each system and history, and measure."""
    # What both sizes take, and as much again, so that the queue never thins out.
    waiting = -(-rounds * (20 + 4 * 50) * 2 // 1_000) * 1_000
    options = {"shared_buffers": "1GB", "max_wal_size": "8GB"}  # as a server for a million rows is set up
    async with EmbeddedPostgres(folder / "postgres", options=options) as server:
        systems: list[tuple[System, int]] = []
        owner = await asyncpg.connect(server.dsn)
        for make in (Ours, PgQueuer, Procrastinate):
            for history in (0, finished):
                name = f"{make.name}_{history}".lower()
                await owner.execute(f"CREATE DATABASE {name} TEMPLATE template0")
                system = make(f"{server.dsn.rpartition('/')[0]}/{name}")
                started = time.perf_counter()
                await system.open(waiting, history)
                print(f"{name}: ready in {time.perf_counter() - started:.0f} s", file=sys.stderr)
                systems.append((system, history))
        await owner.execute("CHECKPOINT")
        await owner.close()
        try:
            return await measured(systems, rounds=rounds)
        finally:
            for system, _ in systems:
                await system.close()


def main() -> int:
    """Measure and print; 1 if history slows us."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--finished", type=int, default=1_000_000, help="finished requests of the long history")
    parser.add_argument(
        "--rounds", type=int, default=50, help="turns of each system; 20 single claims and 4 of fifty in each"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON a measurement on stdout")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bskt-bench-"))
    folder.chmod(0o755)  # as root, the server runs as another user
    try:
        lines = asyncio.run(run(folder, finished=options.finished, rounds=options.rounds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    titles = ("system", "finished", "at a time", "claims/s", "p50 ms", "p99 ms")
    print(f"{titles[0]:<14}" + "".join(f"{title:>11}" for title in titles[1:]), file=sys.stderr)
    for line in lines:
        speed, p50, p99 = line.per_second, line.milliseconds(50), line.milliseconds(99)
        counts = f"{line.finished:>11}{line.at_a_time:>11}"
        print(f"{line.system:<14}{counts}{speed:>11.0f}{p50:>11.2f}{p99:>11.2f}", file=sys.stderr)
        if options.json:
            named = {"system": line.system, "finished": line.finished, "at_a_time": line.at_a_time}
            print(json.dumps(named | {"claims_per_second": speed, "p50_milliseconds": p50, "p99_milliseconds": p99}))
    worst = 0.0
    for at_a_time in (1, 50):
        young, old = (line for line in lines if line.system == Ours.name and line.at_a_time == at_a_time)
        growth = old.milliseconds(99) / young.milliseconds(99)
        worst = max(worst, growth)
        print(
            f"{at_a_time} at a time: with {old.finished} finished requests our p99 is {growth:.2f} times that with none"
        )
    return int(worst > WORST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
