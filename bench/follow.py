"""How fast the final zone is indexed, beside what bounds it: ``python -m bench.follow --profile default``.

Each part runs in a process of its own, on a database of its own in one durable Postgres, against one real anvil:

* ``ours``: the follower from the start block to the finalized block, as ``bskt run`` does it;
* ``plain``: the same chain into the same tables the plain web3.py way (``get_logs``, ``process_log``, ``executemany``);
* ``rpc``: the very bodies that ``ours`` sent, answered and thrown away;
* ``copy``: the very rows that ``ours`` wrote, as ``COPY`` into empty tables of the same schema.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg

from bench.aged import fill
from bench.chain import PROFILES, ROOT, BuiltChain, Profile, running
from datastore import schema
from datastore.connection import Role, open_pool
from datastore.following import Rules
from datastore.identity import secret_check_value
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Block
from indexer.abi_files import load_abis
from indexer.decoding import EventCatalog
from indexer.follower import FinalityRule, Follower
from indexer.observation import Sources
from indexer.policy import Policy
from node.endpoint import RpcEndpoint
from node.exchange import HttpExchange
from node.node import Node
from service import collector
from service.embedded_postgres import EmbeddedPostgres

CHAIN_ID: Final = 31337
SECRET: Final = b"a secret of this bench, 32 bytes"
PARTS: Final = ("ours", "plain", "rpc", "copy")
TABLES: Final = ("block", "log", "basket", "mint_request", "mint_transition")
MAX_RANGE_BLOCKS: Final = 2_000  # the default of BSKT_MAX_LOG_RANGE_BLOCKS


# ---------------------------------------------------------------------------------------------------------------------
# The parts; each prints one line of JSON
# ---------------------------------------------------------------------------------------------------------------------
def sources(factory: bytes, forwarder: bytes) -> Sources:
    """What the follower believes on this chain."""
    return Sources(
        chain_id=CHAIN_ID,
        factory=factory,
        forwarder=forwarder,
        catalog=EventCatalog(load_abis(ROOT / "abi")),
        secret=SECRET,
    )


async def ours(given: argparse.Namespace) -> dict[str, Any]:
    """The follower, tick by tick."""
    calls: list[bytes] = []
    _count_calls(calls)
    collector.look_seldom()
    pool = await open_pool(given.dsn, Role.INDEXER)
    node = Node(
        [
            RpcEndpoint(
                "0", given.url, request_timeout_seconds=60, max_answer_bytes=32 * 1024 * 1024, observe=lambda *_: None
            )
        ]
    )
    believed = sources(bytes.fromhex(given.factory), bytes.fromhex(given.forwarder))
    start = await node.header_by_number(1)
    await pin_first_start(
        pool,
        Pin(
            chain_id=CHAIN_ID,
            genesis_hash=await node.genesis_hash(),
            factory_address=believed.factory,
            factory_code_hash=(await node.code_hash(believed.factory)) or bytes(32),
            forwarder_address=believed.forwarder,
            secret_check=secret_check_value(SECRET),
        ),
        start=Block(number=start.number, hash=start.hash, parent_hash=start.parent_hash, timestamp=start.timestamp),
        first_trigger_block_number=0,
    )
    follower = Follower(
        pool=pool,
        node=node,
        sources=believed,
        rules=Rules(policy=Policy(max_mint_wei=None), contest=True, first_trigger_block_number=0),
        trigger_finality=FinalityRule(tag="finalized"),
        complete_finality=FinalityRule(tag="finalized"),
        max_range_blocks=MAX_RANGE_BLOCKS,
    )
    calls.clear()
    ticks = 0
    measured = _Measured()
    while await follower.tick():
        ticks += 1
    result = measured.ended()
    await node.close()
    await pool.close()
    if given.bodies:
        Path(given.bodies).write_text("\n".join(body.decode() for body in calls))
    asked = [json.loads(body) for body in calls]
    return result | {
        "rpc_exchanges": len(calls),
        "rpc_calls": sum(len(question) if isinstance(question, list) else 1 for question in asked),
        "ticks": ticks,
    }


def _count_calls(calls: list[bytes]) -> None:
    """Remember each body that goes over the wire; the exchange itself is untouched."""
    post = HttpExchange.post

    async def remembering(self: HttpExchange, question: Any) -> Any:
        calls.append(json.dumps(question).encode())
        return await post(self, question)

    HttpExchange.post = remembering  # type: ignore[method-assign]


async def rpc(given: argparse.Namespace) -> dict[str, Any]:
    """The same exchanges, one after the other as fast as they come; nobody looks at the answers."""
    bodies = Path(given.bodies).read_text().splitlines()
    received = 0
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        measured = _Measured()
        for body in bodies:
            async with session.post(given.url, data=body, headers={"Content-Type": "application/json"}) as response:
                async for chunk in response.content.iter_any():
                    received += len(chunk)
        return measured.ended() | {"megabytes": received / 1e6}


async def copy(given: argparse.Namespace) -> dict[str, Any]:
    """What ``ours`` left in its tables, into empty ones: constraints, keys and indexes on, history not written again."""
    source = await asyncpg.connect(given.source)
    target = await asyncpg.connect(given.dsn)
    parts: dict[str, Path] = {}
    folder = Path(tempfile.mkdtemp(prefix="bskt-bench-"))
    try:
        for table in ("chain", *TABLES):
            parts[table] = folder / table
            await source.copy_from_table(table, output=parts[table], format="binary")
        await target.execute("ALTER TABLE mint_request DISABLE TRIGGER USER")
        await target.copy_to_table("chain", source=parts.pop("chain"), format="binary")
        await target.execute("CHECKPOINT")
        measured = _Measured()
        for table, file in parts.items():
            await target.copy_to_table(table, source=file, format="binary")
        return measured.ended()
    finally:
        shutil.rmtree(folder)
        await source.close()
        await target.close()


async def plain(given: argparse.Namespace) -> dict[str, Any]:
    """The way of every tutorial, with the same rows at its end."""
    from bench.plain import follow

    measured = _Measured()
    await follow(given.url, given.dsn, sources(bytes.fromhex(given.factory), bytes.fromhex(given.forwarder)))
    return measured.ended()


class _Measured:
    """Wall and processor time from here on, and the largest memory ever."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def ended(self) -> dict[str, Any]:
        return {
            "seconds": time.perf_counter() - self._wall,
            "cpu_seconds": time.process_time() - self._cpu,
            "peak_rss_mb": _peak_rss_mb(),
        }


def _peak_rss_mb() -> float:
    # Not getrusage's: that one begins with what the parent had at the fork.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------
def _cpu_seconds_of(pid: int) -> float:
    """Of a process, its ended children and its living ones."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        own, parent = int(folder.name), int(fields[1])
        if pid in {own, parent}:
            ticks = sum(map(int, fields[11:15] if own == pid else fields[11:13]))
            total += ticks / os.sysconf("SC_CLK_TCK")
    return total


async def _part(name: str, options: Sequence[str]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.follow", "--part", name, *options),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the part {name} failed")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


async def _run(profile: Profile, parts: Sequence[str], *, is_aged: bool) -> dict[str, dict[str, Any]]:
    folder = Path(tempfile.mkdtemp(prefix="bskt-bench-"))
    folder.chmod(0o755)
    results: dict[str, dict[str, Any]] = {}
    try:
        async with EmbeddedPostgres(folder / "postgres") as postgres, running(profile) as chain:
            for name in [*parts, *(["aged"] if is_aged else [])]:
                dsn = await _database(postgres.dsn, name)
                if name == "aged":
                    print("making history …", flush=True)
                    await fill(dsn)
                options = _options(chain, dsn, folder, source=_named(postgres.dsn, "ours"))
                before = _cpu_seconds_of(chain.pid), _cpu_seconds_of(_postmaster(folder))
                results[name] = await _part(name, options)
                results[name]["cpu_anvil"] = _cpu_seconds_of(chain.pid) - before[0]
                results[name]["cpu_postgres"] = _cpu_seconds_of(_postmaster(folder)) - before[1]
            for name in {"ours", "plain"} & set(parts):
                await _check(_named(postgres.dsn, name), profile)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return results


def _postmaster(folder: Path) -> int:
    return int(next(folder.glob("**/postmaster.pid")).read_text().splitlines()[0])


def _options(chain: BuiltChain, dsn: str, folder: Path, *, source: str) -> list[str]:
    return [
        *("--url", chain.url, "--factory", chain.factory.hex(), "--forwarder", chain.forwarder.hex()),
        *("--dsn", dsn, "--source", source, "--bodies", str(folder / "bodies")),
    ]


def _named(dsn: str, database: str) -> str:
    return dsn.rpartition("/")[0] + "/" + database


async def _database(dsn: str, name: str) -> str:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    await schema.apply(_named(dsn, name))
    return _named(dsn, name)


async def _check(dsn: str, profile: Profile) -> None:
    """A fast wrong answer is none."""
    connection = await asyncpg.connect(dsn)
    found = await connection.fetchrow(
        """
        SELECT (SELECT count(*) FROM mint_request WHERE state = 'confirmed' AND chain_status = 'finalized') AS requests,
            (SELECT count(*) FROM mint_transition) AS transitions, (SELECT count(*) FROM log) AS logs,
            (SELECT count(*) FROM basket) AS baskets
        """
    )
    await connection.close()
    expected = (profile.requests, 2 * profile.requests, profile.requests + profile.baskets, profile.baskets)
    if found is None or tuple(found) != expected:
        print(f"WRONG requests, transitions, logs, baskets: {expected} expected, {found} found")


def _print(profile: Profile, results: dict[str, dict[str, Any]]) -> None:
    print(f"\n{profile.name}: {profile.requests} requests of {profile.baskets} baskets")
    print(f"{'':8}{'seconds':>9}{'events/s':>10}{'CPU s':>8}{'Postgres':>9}{'anvil':>8}{'peak MB':>9}")
    for name, each in results.items():
        print(
            f"{name:8}{each['seconds']:9.2f}{profile.requests / each['seconds']:10.0f}{each['cpu_seconds']:8.2f}"
            f"{each['cpu_postgres']:9.2f}{each['cpu_anvil']:8.2f}{each['peak_rss_mb']:9.0f}"
        )
    if ours := results.get("ours"):
        print(f"RPC: {ours['rpc_calls']} calls in {ours['rpc_exchanges']} exchanges; {ours['ticks']} ticks")
        for name in ("plain", "rpc", "copy", "aged"):
            if name in results:
                print(f"speed against {name}: {results[name]['seconds'] / ours['seconds']:.2f}")


def main() -> None:
    """Run all parts, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="default")
    parser.add_argument("--aged", action="store_true", help="and once more in a database with years of history")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated: " + ", ".join(PARTS))
    for hidden in ("part", "url", "factory", "forwarder", "dsn", "source", "bodies"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        work = {"ours": ours, "aged": ours, "plain": plain, "rpc": rpc, "copy": copy}[given.part]
        print(json.dumps(asyncio.run(work(given))))
        return
    profile = PROFILES[given.profile]
    _print(profile, asyncio.run(_run(profile, given.parts.split(","), is_aged=given.aged)))


if __name__ == "__main__":
    main()
