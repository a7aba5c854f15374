"""``python -m tests.chain_model --sequences 20000 --steps 50 --seed N``: draw histories, and report what they found."""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import structlog

from datastore import schema
from service.embedded_postgres import EmbeddedPostgres
from tests.chain_model.arena import arena, explore
from tests.chain_model.machine import Arena

_SEQUENCES_A_SEED: Final = 500
"""Hypothesis remembers what it drew; a new seed for each so many keeps the memory bounded and the reports coming."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chain_model", description=__doc__)
    parser.add_argument("--sequences", type=int, default=500)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9))
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    # As root, the server runs as another user, who must reach its files.
    folder = Path(tempfile.mkdtemp(prefix="bskt-model-"))
    folder.chmod(0o755)
    server = EmbeddedPostgres(folder / "postgres", durable=False)
    asyncio.run(server.start())
    try:
        asyncio.run(schema.apply(server.dsn))
        with arena(server.dsn) as place:
            return _explored(place, sequences=asked.sequences, steps=asked.steps, first_seed=asked.seed)
    finally:
        asyncio.run(server.stop())
        shutil.rmtree(folder, ignore_errors=True)


def _explored(place: Arena, *, sequences: int, steps: int, first_seed: int) -> int:
    started = time.monotonic()
    for seed, done in enumerate(range(0, sequences, _SEQUENCES_A_SEED), first_seed):
        some = min(_SEQUENCES_A_SEED, sequences - done)
        print(f"seed {seed}: {some} sequences of {steps} steps", flush=True)  # noqa: T201 - the command's output
        try:
            explore(place, sequences=some, steps=steps, seed_number=seed)
        except BaseException:
            print(f"again: python -m tests.chain_model --sequences {some} --steps {steps} --seed {seed}")  # noqa: T201
            raise
        finally:
            print(_report(place, time.monotonic() - started), flush=True)  # noqa: T201
    return 0


def _report(place: Arena, seconds: float) -> str:
    tally = place.tally
    total = (
        f"sequences {tally.sequences}, operations {tally.operations.total()}, blocks {tally.blocks}, "
        f"requests {tally.requests}, seconds {seconds:.0f}"
    )
    lines = [
        total,
        *(f"  operation: {name:21} {count:8}" for name, count in sorted(tally.operations.items())),
        *(f"  killed: {name:24} {count:8}" for name, count in sorted(tally.kills.items())),
        *(f"  fault: {name:25} {count:8}" for name, count in sorted(tally.faults.items())),
        *(f"  trouble: {name:23} {count:8}" for name, count in sorted(tally.troubles.items())),
        *(f"  sweep: {name:25} {count:8}" for name, count in sorted(tally.differences.items())),
        *(f"  looks: {name:25} {count:8}" for name, count in sorted(tally.looks.items())),
        f"wrong rows {tally.wrong_rows}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
