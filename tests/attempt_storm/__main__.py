"""``python -m tests.attempt_storm --attempts 100000 --seed N``: a storm of attempts, and what came of it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import structlog

from datastore import schema
from datastore.connection import Role, open_pool
from service.embedded_postgres import EmbeddedPostgres
from tests.attempt_storm.storm import Storm, Tally
from tests.attempt_storm.virtual_time import VirtualTime


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the command's output


async def storm(
    dsn: str, *, attempts: int, seed: int, workers: int, tell: Callable[[str], None] = lambda _: None
) -> Tally:
    time = await VirtualTime.install(dsn)
    try:
        async with (
            await open_pool(dsn, Role.INDEXER) as indexer,
            await open_pool(dsn, Role.INVOCATOR, max_size=workers + 1) as invocator,
        ):
            made = await Storm.brew(indexer, invocator, time, seed=seed, workers=workers)
            return await made.rage(attempts=attempts, tell=tell)
    finally:
        await time.close()


async def on_its_own(folder: Path, asked: argparse.Namespace) -> Tally:
    async with EmbeddedPostgres(folder / "postgres", durable=False) as server:
        await schema.apply(server.dsn)
        return await storm(server.dsn, attempts=asked.attempts, seed=asked.seed, workers=asked.workers, tell=say)


def report(tally: Tally) -> str:
    """A tally, for people."""
    lines = [
        f"requests, each completed by one mint   {tally.requests:8}",
        f"attempts                               {tally.attempts:8}",
        f"time-outs after acceptance             {tally.time_outs_after_acceptance:8}",
        f"resent after the nodes forgot          {tally.resends:8}",
        f"second deliveries refused on chain     {tally.second_deliveries_refused:8}",
        f"virtual days                           {tally.virtual_days:8.1f}",
        f"seconds                                {tally.seconds:8.0f}",
        *(f"fault: {name:30}  {count:8}" for name, count in sorted(tally.faults.items())),
        *(f"outcome: {name:28}  {count:8}" for name, count in sorted(tally.outcomes.items())),
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attempt_storm", description=__doc__)
    parser.add_argument("--attempts", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9))
    parser.add_argument("--workers", type=int, default=4)
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    say(f"seed {asked.seed}")
    folder = Path(tempfile.mkdtemp(prefix="bskt-storm-"))
    folder.chmod(0o755)  # as root, the server runs as another user
    try:
        tally = asyncio.run(on_its_own(folder, asked))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(report(tally))
    return 0


if __name__ == "__main__":
    sys.exit(main())
