"""Where histories happen: processes, each with an event loop, a database and a server of modelled nodes of its own."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import structlog
from hypothesis import HealthCheck, seed, settings
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import run_state_machine_as_test

import node.provider  # noqa: F401 - web3 raises the recursion limit at import, which Hypothesis must not see in a history
from datastore import schema
from datastore.connection import Role, open_pool
from service.embedded_postgres import EmbeddedPostgres
from tests.chain_model.machine import Arena, Histories, Tally
from tests.chain_model.profiles import ETHEREUM, Profile
from tests.chain_model.server import Server

SEQUENCES_A_SEED: Final = 250
"""Hypothesis remembers what it drew, and Postgres what was deleted: a new seed for each so many keeps both small."""

RESTARTS: Final = 5
RESTART_SEED: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What the histories of one seed did; ``failure`` is the first wrong one, as short as it could be made."""

    seed: int
    sequences: int
    tally: Tally
    failure: str | None


def explored(*, sequences: int, steps: int, first_seed: int, jobs: int, profile: Profile = ETHEREUM) -> Iterator[Part]:
    """Draw histories of a chain in several processes, and report each seed when it is done."""
    sizes = [min(SEQUENCES_A_SEED, sequences - done) for done in range(0, sequences, SEQUENCES_A_SEED)]
    with ProcessPoolExecutor(max_workers=jobs, mp_context=multiprocessing.get_context("spawn")) as workers:
        work = [
            workers.submit(_explored, size, steps, number, profile) for number, size in enumerate(sizes, first_seed)
        ]
        for done in as_completed(work):
            yield done.result()


def _explored(sequences: int, steps: int, seed_number: int, profile: Profile) -> Part:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    # As root, the server runs as another user, who must reach its files.
    folder = Path(tempfile.mkdtemp(prefix="bskt-model-"))
    folder.chmod(0o755)
    server = EmbeddedPostgres(folder / "postgres", durable=False)
    asyncio.run(server.start())
    failure = None
    try:
        asyncio.run(schema.apply(server.dsn))
        with arena(server.dsn, profile) as place:
            try:
                _explore_all(place, sequences=sequences, steps=steps, seed_number=seed_number)
            except Exception:  # noqa: BLE001 - whatever it is, it is the finding
                failure = traceback.format_exc()
            return Part(seed=seed_number, sequences=sequences, tally=place.tally, failure=failure)
    finally:
        asyncio.run(server.stop())
        shutil.rmtree(folder, ignore_errors=True)


def _explore_all(place: Arena, *, sequences: int, steps: int, seed_number: int) -> None:
    """Draw as many histories as were asked for.

    On a loaded machine an endpoint that is meant to answer may time out, and the same draws then lead elsewhere.
    Hypothesis gives up when it notices; no row was wrong, for a wrong one is raised as such, so the rest is drawn from
    another seed.
    """
    for restart in range(RESTARTS + 1):
        try:
            explore(
                place,
                sequences=sequences - place.tally.sequences,
                steps=steps,
                seed_number=seed_number + restart * RESTART_SEED,
            )
        except FlakyStrategyDefinition:
            if restart == RESTARTS:
                raise
        if place.tally.sequences >= sequences:
            return


@contextmanager
def arena(dsn: str, profile: Profile = ETHEREUM) -> Iterator[Arena]:
    """Open everything that outlives a history.  Each history empties the database."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def opened() -> Arena:
            owner_pool = await stack.enter_async_context(asyncpg.create_pool(dsn, min_size=1, max_size=1))
            tables = await owner_pool.fetch(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_version'"
            )
            return Arena(
                loop=runner.get_loop(),
                indexer_pool=await stack.enter_async_context(await open_pool(dsn, Role.INDEXER)),
                invocator_pool=await stack.enter_async_context(await open_pool(dsn, Role.INVOCATOR)),
                operator_pool=await stack.enter_async_context(await open_pool(dsn, Role.OPERATOR)),
                owner_pool=owner_pool,
                server=await stack.enter_async_context(Server()),
                tally=Tally(),
                tables=tuple(row["tablename"] for row in tables),
                profile=profile,
            )

        try:
            yield runner.run(opened())
        finally:
            runner.run(stack.aclose())


def explore(place: Arena, *, sequences: int, steps: int, seed_number: int) -> None:
    """Draw histories; the first wrong one is made as short as possible and raised."""

    @seed(seed_number)
    def drawn() -> Histories:
        return Histories(place)

    run_state_machine_as_test(
        drawn,  # type: ignore[arg-type]  # a factory will do, and only a function carries the seed
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
