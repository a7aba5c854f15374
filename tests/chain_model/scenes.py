"""Short histories, written by hand: a world, a daemon beside it, and what its rows are."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from datastore.connection import Pool
from indexer.follower import FinalityRule
from tests.chain_model.chain import Ask, CreateBasket, Transaction, digest, user
from tests.chain_model.daemon import Daemon, pin
from tests.chain_model.oracle import Oracle
from tests.chain_model.server import Server
from tests.chain_model.world import CHAIN_ID, World


@dataclass(slots=True, kw_only=True)
class Scene:
    world: World
    daemon: Daemon
    pool: Pool
    server: Server

    async def wrong(self, *, is_swept_clean: bool = False) -> list[str]:
        world = self.world
        oracle = Oracle(chain_id=CHAIN_ID, blocks_by_hash=world.blocks_by_hash)
        async with self.pool.acquire() as connection:
            return await oracle.wrong(
                connection,
                tip=world.view.head,
                finalized=(world.finalized, world.finalized),
                trigger=world.finalized,
                exact_trigger=True,
                is_swept_clean=is_swept_clean,
            )

    async def found(self) -> list[tuple[str, str, bool]]:
        rows = await self.pool.fetch("SELECT kind, event, repaired FROM sweep_difference ORDER BY id")
        return [tuple(row) for row in rows]

    async def alarms(self) -> list[str]:
        return [row["kind"] for row in await self.pool.fetch("SELECT kind FROM alarm ORDER BY id")]

    async def states(self) -> list[str]:
        rows = await self.pool.fetch("SELECT state, chain_status FROM mint_request ORDER BY id")
        return [f"{row['state']} {row['chain_status']}" for row in rows]


def ask(
    name: str, *, ordinal: int = 0, amount: int = 10**18, form: Literal["token", "factory"] = "token"
) -> Transaction:
    wish = Ask(
        ordinal=ordinal,
        form=form,
        requester=user(1),
        beneficiary=user(2),
        amount=amount,
        reference=name.encode().ljust(32, b"\0"),
    )
    return Transaction(hash=digest("tx", name), wishes=(wish,))


def create(name: str) -> Transaction:
    return Transaction(hash=digest("tx", name), wishes=(CreateBasket(name=b"Dollar", symbol=b"USD"),))


def history() -> World:
    """A basket, and five requests in as many blocks; all of it is final."""
    world = World()
    world.mine([create("basket")])
    for number in range(5):
        world.mine([ask(f"bank-{number}")])
    world.mine([])
    world.become_final(100, 0)
    return world


def hiding(world: World, number: int) -> int:
    """The place of an endpoint that hides the logs of this block: some hashes, some endpoints."""
    block = world.view.head.at(number)
    assert block is not None
    return int(block.hash.hex()[-1], 16) % 3


@asynccontextmanager
async def scene(
    pool: Pool, world: World, *, endpoints: int, reached: Callable[[str], None] = lambda _: None, start: int = 1
) -> AsyncIterator[Scene]:
    """Serve the world at so many endpoints, and begin with the first start of a daemon, at block ``start``."""
    async with Server() as server:
        world.open_endpoints(endpoints, 0, Counter())
        server.endpoints = world.endpoints
        await pin(pool, world, start=start)
        daemon = Daemon(
            pool=pool,
            server=server,
            world=world,
            trigger=FinalityRule(tag="finalized"),
            max_range_blocks=4,
            reached=reached,
        )
        try:
            yield Scene(world=world, daemon=daemon, pool=pool, server=server)
        finally:
            world.heal()
            await daemon.close()
