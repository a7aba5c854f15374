"""Where histories happen: an event loop, pools on a database that has the schema, the server of the modelled nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import asyncpg
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

import node.provider  # noqa: F401 - web3 raises the recursion limit at import, which Hypothesis must not see in a history
from datastore.connection import Role, open_pool
from tests.chain_model.machine import Arena, Histories, Tally
from tests.chain_model.server import Server


@contextmanager
def arena(dsn: str) -> Iterator[Arena]:
    """Open everything that outlives a history.  Each history empties the database."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def opened() -> Arena:
            return Arena(
                loop=runner.get_loop(),
                indexer_pool=await stack.enter_async_context(await open_pool(dsn, Role.INDEXER)),
                invocator_pool=await stack.enter_async_context(await open_pool(dsn, Role.INVOCATOR)),
                owner_pool=await stack.enter_async_context(asyncpg.create_pool(dsn, min_size=1, max_size=1)),
                server=await stack.enter_async_context(Server()),
                tally=Tally(),
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
