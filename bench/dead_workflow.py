"""What looking for a request costs while a workflow is refused: ``python -m bench.dead_workflow``.

The requests of one requester stand in one line: a thousand, then ten thousand, that wait for a refused workflow, and
behind them some for a healthy one.  Beside it the same line with every workflow free.  Exit code 1: behind a thousand it
takes more than ten milliseconds longer.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import asyncpg

from datastore import claims, schema
from datastore.claims import Pacing
from datastore.connection import Pool, Role, open_pool
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Block
from service.embedded_postgres import EmbeddedPostgres

CHAIN_ID: Final = 31337
DEAD, ALIVE = bytes(32), b"\x01" * 32
POOL: Final = (DEAD, ALIVE)
SIZES: Final = (1_000, 10_000)
HEALTHY: Final = 60
LOOKED_AT: Final = 50
ROUNDS: Final = 100
MOST_MILLISECONDS: Final = 10.0
PACING: Final = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1_000_000)
PIN: Final = Pin(
    chain_id=CHAIN_ID,
    genesis_hash=bytes(32),
    factory_address=bytes(20),
    factory_code_hash=bytes(32),
    forwarder_address=bytes(20),
    secret_check=b"bench",
)
# Waiting requests of one workflow, in one line.  $1 chain, $2 how many, $3 first block, $4 workflow, $5 pool
WAITING: Final = """
INSERT INTO mint_request (
    chain_id, identity, nonce, emitter, tx_hash, block_hash, block_number, block_timestamp, log_index, chain_status,
    stablecoin, consumer, requester, beneficiary, amount, predicted_amount, bank_reference, expected_reference, state,
    holds_reference
)
SELECT
    $1, sha256(n::text::bytea), nonce, a, sha256(n::text::bytea), sha256(n::text::bytea), n, 0, 0, 'finalized', a, a, a, a, 1, 1,
    sha256(n::text::bytea), sha256(n::text::bytea), 'confirmed', true
FROM (
    SELECT nonce, substr(sha256('a'), 1, 20) AS a, $3::bigint + row_number() OVER () AS n
    FROM (SELECT gen_random_uuid() AS nonce FROM generate_series(1, $2::bigint * 4)) made
    WHERE (SELECT w.workflow_id FROM workflow_of(0, 0, nonce, $5::bytea[]) w) = $4
    LIMIT $2
) m
"""


async def looked(pool: Pool, free: tuple[bytes, ...]) -> list[float]:
    """Milliseconds of each look."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        found = await claims.waiting(pool, CHAIN_ID, limit=LOOKED_AT, pacing=PACING, workflow_ids=POOL, free=free)
        times.append((time.perf_counter() - started) * 1_000)
        assert len(found) == LOOKED_AT
    return times


async def run(folder: Path) -> int:
    """Measure; 1 if it takes too long."""
    worst = 0.0
    async with EmbeddedPostgres(folder / "postgres") as server:
        owner = await asyncpg.connect(server.dsn)
        for size in SIZES:
            name = f"waiting_{size}"
            await owner.execute(f"CREATE DATABASE {name} TEMPLATE template0")
            dsn = f"{server.dsn.rpartition('/')[0]}/{name}"
            await schema.apply(dsn)
            async with await open_pool(dsn, Role.INDEXER, max_size=1) as indexer:
                start = Block(number=1, hash=bytes(32), parent_hash=bytes(32), timestamp=0)
                await pin_first_start(indexer, PIN, start=start, first_trigger_block_number=0)
            filling = await asyncpg.connect(dsn)
            await filling.execute("SET session_replication_role = replica")
            await filling.execute(WAITING, CHAIN_ID, size, 0, DEAD, list(POOL))
            await filling.execute(WAITING, CHAIN_ID, HEALTHY, 10 * size, ALIVE, list(POOL))
            await filling.execute("VACUUM ANALYZE")
            await filling.close()
            async with await open_pool(dsn, Role.INVOCATOR, max_size=1) as pool:
                await claims.list_workflows(pool, CHAIN_ID, POOL)
                all_free, one_dead = await looked(pool, POOL), await looked(pool, (ALIVE,))
            baseline, behind = statistics.median(all_free), statistics.median(one_dead)
            print(f"{size:>6} in front: {baseline:.2f} ms with every workflow free, {behind:.2f} ms with one refused")
            if size == SIZES[0]:
                worst = behind - baseline
        await owner.close()
    return int(worst > MOST_MILLISECONDS)


def main() -> int:
    """Measure and print."""
    folder = Path(tempfile.mkdtemp(prefix="bskt-bench-"))
    folder.chmod(0o755)  # as root, the server runs as another user
    try:
        return asyncio.run(run(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
