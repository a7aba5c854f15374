"""What strangers' requests for one deposit cost a commit: ``python -m bench.rivals``.

Two databases in one durable Postgres, by turns: in one a deposit has one request, in the other 300,000 more: refused
duplicates, contested ones under review, and ones that are not final.  Each commit brings a block with a request of its
own, one more rival, and a mint of 1 wei that somebody forged with the deposit's reference; finality goes on by a block.
What the commits have left is done afterwards in steps, and the last step is what a given-up reference costs.

Exit code 1: the 99th percentile of a commit is more than half above the one without rivals.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import asyncpg

from datastore import following, schema
from datastore.connection import Pool, Role, open_pool
from datastore.following import Rules
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Mint, Request
from service.embedded_postgres import EmbeddedPostgres
from tests.datastore.builders import batch, block, hash_of, mint, reference, request

CHAIN_ID: Final = 31337
REFERENCE: Final = "THE DEPOSIT"
WORST: Final = 1.5
RULES: Final = Rules(policy=lambda _: None, contest=True, first_trigger_block_number=0)
STRANGER: Final = b"\x99" * 20

# $1 chain, $2 how many, $3 reference, $4 address
_RIVALS: Final = """
INSERT INTO mint_request (
    chain_id, identity, nonce, emitter, tx_hash, block_hash, block_number, block_timestamp, log_index, chain_status,
    stablecoin, consumer, requester, beneficiary, amount, predicted_amount, bank_reference, expected_reference, state,
    state_reason
)
SELECT $1, sha256(('i' || n)::bytea), gen_random_uuid(), $4, sha256(('t' || n)::bytea), sha256(('b' || n)::bytea),
    CASE WHEN n % 6 = 0 THEN 1000000000 ELSE 1 END, 1, n, CASE WHEN n % 6 = 0 THEN 'canonical' ELSE 'finalized' END,
    $4, $4, $4, substr(sha256(n::text::bytea), 1, 20), 1, 1, $3, $3,
    (ARRAY['seen', 'review', 'rejected', 'rejected', 'rejected', 'rejected'])[n % 6 + 1],
    (ARRAY[NULL, 'contested_bank_reference'])[n % 6 + 1]
FROM generate_series(1, $2::integer) n
"""
_DUPLICATES: Final = "UPDATE mint_request SET state_reason = 'duplicate_bank_reference' WHERE state = 'rejected'"


class Place:
    """A database with the deposit's holder, and so many rivals."""

    def __init__(self, pool: Pool, owner: asyncpg.Connection[asyncpg.Record]) -> None:
        self.pool = pool
        self.owner = owner
        self.tip = block(0)
        self.commits: list[float] = []
        self.steps: list[float] = []

    async def prepare(self, rivals: int) -> None:
        """Pin the chain, record the holder, store its rivals."""
        pin = Pin(
            chain_id=CHAIN_ID,
            genesis_hash=hash_of("genesis"),
            factory_address=bytes(20),
            factory_code_hash=hash_of("code"),
            forwarder_address=bytes(20),
            secret_check=b"bench",
        )
        await pin_first_start(self.pool, pin, start=block(1), first_trigger_block_number=0)
        await self.commit(request("holder", block(1), bank=REFERENCE), final=1)
        await self.owner.execute("SET session_replication_role = replica")  # whoever resets rows writes no history
        await self.owner.execute(_RIVALS, CHAIN_ID, rivals, reference(REFERENCE), STRANGER)
        await self.owner.execute(_DUPLICATES)
        await self.owner.execute("VACUUM ANALYZE")
        self.commits.clear()

    async def commit(self, *requests: Request, mints: tuple[Mint, ...] = (), final: int) -> None:
        """The next block."""
        tip = block(self.tip.number + 1)
        made = batch(tip, on=self.tip, requests=requests, mints=mints, final=final)
        began = time.perf_counter()
        await following.commit(self.pool, CHAIN_ID, made, RULES)
        self.commits.append(time.perf_counter() - began)
        self.tip = tip

    async def attacked(self, number: int) -> None:
        """One block, and its step; then the holder is as it was."""
        at = block(self.tip.number + 1)
        holder = request("holder", at, bank=REFERENCE)
        own = request(f"own {number}", at, log_index=1)
        rival = request(f"rival {number}", at, log_index=2, bank=REFERENCE, beneficiary=STRANGER)
        forged = mint(at, of=holder, log_index=3, amount=1)
        await self.commit(own, rival, mints=(forged,), final=at.number - 1)
        await self.step()
        await self.owner.execute(
            "UPDATE mint_request SET state = 'confirmed', state_reason = 'allowed' WHERE id = 1 AND state = 'review'"
        )

    async def step(self) -> bool:
        """What a tick does of what commits have left; whether there was anything."""
        began = time.perf_counter()
        done = await following.settle_references(self.pool, CHAIN_ID, RULES)
        if done is not None:
            self.steps.append(time.perf_counter() - began)
        return done is not None


def percentile(values: list[float], share: float) -> float:
    """In milliseconds."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1_000


async def measured(rivals: int, commits: int) -> float:
    """Print what was measured; by how much the 99th percentile grew."""
    folder = Path(tempfile.mkdtemp(prefix="bskt-bench-"))
    folder.chmod(0o755)
    try:
        async with EmbeddedPostgres(folder / "postgres") as postgres:
            places = {"none": await _opened(postgres.dsn, "none", 0)}
            places[f"{rivals:,}"] = await _opened(postgres.dsn, "many", rivals)
            for number in range(commits):
                for place in places.values():
                    await place.attacked(number)
            for name, place in places.items():
                began, before = time.perf_counter(), len(place.steps)
                while await place.step():
                    pass
                steps = f", steps p50 {percentile(place.steps, 0.5):.1f} p99 {percentile(place.steps, 0.99):.1f} ms"
                print(
                    f"{name:>8} rivals: commit p50 {percentile(place.commits, 0.5):.1f} p99 "
                    f"{percentile(place.commits, 0.99):.1f} max {max(place.commits) * 1_000:.1f} ms"
                    + (steps if place.steps else "")
                    + f"; {len(place.steps) - before} more steps, {time.perf_counter() - began:.1f} s, until all is settled"
                )
            none, many = places.values()
            print(f"p50 times {statistics.median(many.commits) / statistics.median(none.commits):.2f}", end=", ")
            growth = percentile(many.commits, 0.99) / percentile(none.commits, 0.99)
            print(f"p99 times {growth:.2f}")
            await _give_up(many, rivals)
            return growth
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _opened(dsn: str, name: str, rivals: int) -> Place:
    at = dsn.rpartition("/")[0] + "/" + name
    server = await asyncpg.connect(dsn)
    await server.execute(f"CREATE DATABASE {name}")
    await server.close()
    await schema.apply(at)
    place = Place(await open_pool(at, Role.INDEXER), await asyncpg.connect(at))
    await place.prepare(rivals)
    return place


async def _give_up(place: Place, rivals: int) -> None:
    """The holder of a reference gives it up to as many duplicates: how long until one of them holds it."""
    await place.owner.execute("DELETE FROM mint_execution")
    await place.owner.execute("DELETE FROM mint_request WHERE id > 1")
    await place.owner.execute(
        "UPDATE mint_request SET state = 'review', held_at = NULL, held_reason = NULL WHERE id = 1"
    )
    await place.owner.execute(_RIVALS, CHAIN_ID, rivals, reference(REFERENCE), STRANGER)
    await place.owner.execute(
        "UPDATE mint_request SET state = 'rejected', state_reason = 'duplicate_bank_reference', beneficiary = $1 WHERE id > 1",
        STRANGER,
    )
    await place.owner.execute("VACUUM ANALYZE")
    await place.owner.execute("SET session_replication_role = origin")
    await place.owner.execute("SET ROLE bskt_indexer")
    began = time.perf_counter()
    await place.owner.execute("UPDATE mint_request SET state = 'dropped', holds_reference = false WHERE id = 1")
    given_up, began = time.perf_counter() - began, time.perf_counter()
    steps = 0
    while await place.step():
        steps += 1
    held = await place.owner.fetchval("SELECT count(*) FROM mint_request WHERE holds_reference AND state = 'confirmed'")
    print(
        f"given up in {given_up * 1_000:.1f} ms; the first of {rivals:,} duplicates holds it after {steps} step(s), "
        f"{(time.perf_counter() - began) * 1_000:.1f} ms" + ("" if held == 1 else f"  WRONG: {held} hold it")
    )


def main() -> int:
    """Measure, print, and say whether it grew too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rivals", type=int, default=300_000)
    parser.add_argument("--commits", type=int, default=300)
    given = parser.parse_args()
    return int(asyncio.run(measured(given.rivals, given.commits)) > WORST)


if __name__ == "__main__":
    sys.exit(main())
