"""What a look costs, and whether history makes it dearer: ``python -m bench.readings``.

``/readyz``, ``/status`` and ``/metrics`` of the daemon's own application, over its ASGI interface, on two databases in one
durable Postgres: one that was just pinned, and one with a million finished requests, their transitions and 300,000 alarms.
Both take turns, so that whatever else the machine does meets both.  Exit code 1: one of them costs more than three times
as much with history.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import asyncpg
from fastapi import FastAPI

from bench.aged import ALARMS, REQUESTS, fill
from datastore import schema, status, tally
from datastore.connection import Pool, Role, open_pool
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Block
from service import http
from service.embedded_postgres import EmbeddedPostgres

CHAIN_ID: Final = 31337
PATHS: Final = ("/readyz", "/status", "/metrics")
WORST_GROWTH: Final = 3.0


def application(pool: Pool) -> FastAPI:
    """The endpoints, as ``bskt run`` wires them, of a daemon that has no parts."""
    return http.application(
        chain_id=CHAIN_ID,
        read=lambda: status.snapshot(pool, CHAIN_ID),
        count=lambda: tally.read(pool, CHAIN_ID),
        last_turn_at={},
        halted={},
        clock=time.monotonic,
        look=lambda: status.attention(pool, CHAIN_ID),
        failing={},
    )


@asynccontextmanager
async def opened(postgres: EmbeddedPostgres, name: str, *, requests: int, alarms: int) -> AsyncIterator[FastAPI]:
    """An application over a database of its own."""
    server = await asyncpg.connect(postgres.dsn)
    await server.execute(f"CREATE DATABASE {name}")
    await server.close()
    dsn = postgres.dsn.rpartition("/")[0] + "/" + name
    await schema.apply(dsn)
    pin = Pin(
        chain_id=CHAIN_ID,
        genesis_hash=bytes(32),
        factory_address=bytes(20),
        factory_code_hash=bytes(32),
        forwarder_address=bytes(20),
        secret_check=b"bench",
    )
    start = Block(number=1, hash=bytes(32), parent_hash=bytes(32), timestamp=0)
    async with await open_pool(dsn, Role.INDEXER, max_size=1) as indexer:
        await pin_first_start(indexer, pin, start=start, first_trigger_block_number=0)
    if requests:
        await fill(dsn, requests=requests, logs=requests, alarms=alarms)
    async with await open_pool(dsn, Role.READER, max_size=1) as pool:
        yield application(pool)


async def asked(app: FastAPI, path: str) -> float:
    """Ask as a server would; the seconds until the answer was whole.

    Raises:
        RuntimeError: The answer is none of success.
    """
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 1),
        "client": ("127.0.0.1", 2),
    }
    begun = time.perf_counter()
    await app(scope, receive, send)
    seconds = time.perf_counter() - begun
    if sent[0]["status"] != HTTPStatus.OK:
        raise RuntimeError(f"{path}: {sent}")
    return seconds


async def measured(empty: FastAPI, aged: FastAPI, path: str, rounds: int) -> tuple[float, ...]:
    """The medians of both, and the first answer of the aged one; in milliseconds."""
    taken = [(await asked(empty, path), await asked(aged, path)) for _ in range(rounds)]
    return tuple(1e3 * each for each in (*(statistics.median(one) for one in zip(*taken, strict=True)), taken[0][1]))


async def run(given: argparse.Namespace) -> int:
    """Print the table; the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="bskt-bench-"))
    folder.chmod(0o755)  # as root the server runs as another user
    worst = 0.0
    try:
        async with (
            EmbeddedPostgres(folder / "postgres") as postgres,
            opened(postgres, "empty", requests=0, alarms=0) as empty,
            opened(postgres, "aged", requests=given.requests, alarms=given.alarms) as aged,
        ):
            print(f"{'':10} {'empty ms':>9} {'aged ms':>9} {'ratio':>6} {'first aged ms':>14}")
            for path in PATHS:
                before, after, first = await measured(empty, aged, path, given.rounds)
                worst = max(worst, after / before)
                print(f"{path:10} {before:9.2f} {after:9.2f} {after / before:6.2f} {first:14.1f}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if worst > WORST_GROWTH else 0


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--alarms", type=int, default=ALARMS)
    parser.add_argument("--rounds", type=int, default=200)
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
