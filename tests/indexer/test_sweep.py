"""The second sweep against endpoints that left something out, made something up, or do so now."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeAlias

import pytest

from datastore.connection import Pool
from datastore.errors import FinalityViolated
from datastore.rows import Kind
from indexer.follower import FinalityRule
from tests.chain_model.chain import Ask, CreateBasket, Transaction, digest, token_address, user
from tests.chain_model.daemon import Daemon, pin
from tests.chain_model.faults import Fault
from tests.chain_model.oracle import Oracle
from tests.chain_model.server import Server
from tests.chain_model.world import CHAIN_ID, World


@dataclass(slots=True, kw_only=True)
class Scene:
    world: World
    daemon: Daemon
    pool: Pool

    async def wrong(self) -> list[str]:
        world = self.world
        oracle = Oracle(chain_id=CHAIN_ID, blocks_by_hash=world.blocks_by_hash)
        async with self.pool.acquire() as connection:
            return await oracle.wrong(
                connection,
                tip=world.view.head,
                finalized=(world.finalized, world.finalized),
                trigger=world.finalized,
                exact_trigger=True,
                is_swept_clean=False,
            )

    async def found(self) -> list[tuple[str, str, bool]]:
        rows = await self.pool.fetch("SELECT kind, event, repaired FROM sweep_difference ORDER BY id")
        return [tuple(row) for row in rows]

    async def alarms(self) -> list[str]:
        return [row["kind"] for row in await self.pool.fetch("SELECT kind FROM alarm ORDER BY id")]

    async def states(self) -> list[str]:
        rows = await self.pool.fetch("SELECT state, chain_status FROM mint_request ORDER BY id")
        return [f"{row['state']} {row['chain_status']}" for row in rows]


def ask(name: str, *, ordinal: int = 0, amount: int = 10**18) -> Transaction:
    wish = Ask(
        ordinal=ordinal,
        form="token",
        requester=user(1),
        beneficiary=user(2),
        amount=amount,
        reference=name.encode().ljust(32, b"\0"),
    )
    return Transaction(hash=digest("tx", name), wishes=(wish,))


def create(name: str) -> Transaction:
    return Transaction(hash=digest("tx", name), wishes=(CreateBasket(name=b"Dollar", symbol=b"USD"),))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server() as opened:
        yield opened


def hiding(world: World, number: int) -> int:
    """The place of an endpoint that hides the logs of this block: some hashes, some endpoints."""
    block = world.view.head.at(number)
    assert block is not None
    return int(block.hash.hex()[-1], 16) % 3


Make: TypeAlias = Callable[[World, int], Awaitable[Scene]]


@pytest.fixture
async def make(indexer_pool: Pool, server: Server) -> AsyncIterator[Make]:
    """A world with so many endpoints, and a daemon beside it at its first start."""
    async with AsyncExitStack() as stack:

        async def made(world: World, endpoints: int) -> Scene:
            world.open_endpoints(endpoints, 0, Counter())
            server.endpoints = world.endpoints
            await pin(indexer_pool, world)
            daemon = Daemon(
                pool=indexer_pool,
                server=server,
                world=world,
                trigger=FinalityRule(tag="finalized"),
                max_range_blocks=4,
            )
            stack.push_async_callback(daemon.close)
            return Scene(world=world, daemon=daemon, pool=indexer_pool)

        yield made


def history() -> World:
    """A basket, and five requests in as many blocks; all of it is final."""
    world = World()
    world.mine([create("basket")])
    for number in range(5):
        world.mine([ask(f"bank-{number}")])
    world.mine([])
    world.become_final(100, 0)
    return world


async def test_what_is_right_is_swept_once_and_nothing_is_told(make: Make) -> None:
    scene = await make(history(), 2)
    await scene.daemon.follow()
    await scene.daemon.sweep_all()
    assert await scene.found() == []
    assert await scene.alarms() == []
    assert await scene.pool.fetchval("SELECT block_number FROM sweep") == scene.world.finalized
    assert not await scene.daemon.sweep.tick()
    # The other endpoint was asked for the logs, not the one that is followed.
    assert scene.world.endpoints[1].asked["eth_getLogs"] > 0


async def test_a_request_that_a_node_left_out_is_recorded_and_judged_and_a_person_is_told(make: Make) -> None:
    """Hard case 19."""
    scene = await make(history(), 2)
    scene.world.endpoints[0].fail(Fault.LOGS_CUT_AT_A_CAP, times=None, seed=1)
    await scene.daemon.follow()
    assert len(await scene.states()) < 5
    scene.world.heal()
    await scene.daemon.sweep_all()
    assert await scene.states() == ["confirmed finalized"] * 5
    assert await scene.wrong() == []
    assert {(kind, repaired) for kind, _, repaired in await scene.found()} == {("missing", True)}
    assert set(await scene.alarms()) == {"rows_repaired"}


async def test_a_basket_that_was_left_out_is_known_to_the_follower_from_the_next_block_on(make: Make) -> None:
    """Hard case 40: what the sweep adds is no news to the rows only."""
    scene = await make(history(), 2)
    await scene.daemon.follow()
    scene.world.endpoints[0].fail(Fault.LOGS_MISSING_IN_RECEIPTS_TOO, times=None, seed=1)
    while True:  # the endpoint hides the logs of some blocks
        scene.world.mine([create(f"second {scene.world.next_number()}")])
        if int(scene.world.view.head.hash.hex()[-1], 16) % 3 == 0:
            break
        scene.world.view.head = scene.world.view.head.parent or scene.world.genesis
    scene.world.become_final(100, 0)
    await scene.daemon.follow()
    assert await scene.pool.fetchval("SELECT count(*) FROM basket") == 1
    scene.world.heal()
    await scene.daemon.sweep_all()
    assert await scene.pool.fetchval("SELECT count(*) FROM basket") == 2
    scene.world.mine([ask("of the second", ordinal=1)])
    await scene.daemon.follow()
    assert await scene.wrong() == []


async def test_a_log_with_another_content_is_replaced_and_what_it_led_to_is_dropped(make: Make) -> None:
    """Hard case 20."""
    scene = await make(history(), 2)
    scene.world.endpoints[0].fail(Fault.LOGS_WITH_OTHER_CONTENT, times=2, seed=1)
    await scene.daemon.follow()
    before = await scene.pool.fetch("SELECT block_hash, log_index, tx_hash FROM log")
    assert await scene.wrong() != []
    scene.world.heal()
    await scene.daemon.sweep_all()
    assert await scene.wrong() == []
    kept = await scene.pool.fetch("SELECT stored->>'tx_hash' AS tx_hash FROM sweep_difference WHERE kind = 'different'")
    assert {row["tx_hash"] for row in kept} <= {"0x" + row["tx_hash"].hex() for row in before}
    assert kept
    dropped = [state for state in await scene.states() if state != "confirmed finalized"]
    assert set(dropped) <= {"dropped orphaned"}


async def test_an_endpoint_that_leaves_something_out_cannot_take_it_from_the_rows(make: Make) -> None:
    scene = await make(history(), 2)
    await scene.daemon.follow()
    scene.world.endpoints[1].fail(Fault.LOGS_MISSING_IN_RECEIPTS_TOO, times=None, seed=1)
    scene.world.endpoints[1].place = hiding(scene.world, 3)
    await scene.daemon.sweep_all()
    assert await scene.wrong() == []
    found = await scene.found()
    assert found
    assert not any(repaired for *_, repaired in found)
    assert await scene.alarms() == ["endpoints_disagree"]  # once an hour, however many blocks it hides
    assert await scene.pool.fetchval("SELECT block_number FROM sweep") == scene.world.finalized


async def test_a_single_endpoint_may_add_what_it_left_out_but_take_nothing_away(make: Make) -> None:
    scene = await make(history(), 1)
    endpoint = scene.world.endpoints[0]
    endpoint.fail(Fault.LOGS_CUT_AT_A_CAP, times=None, seed=3)
    await scene.daemon.follow()
    scene.world.heal()
    await scene.daemon.sweep_all()
    assert await scene.wrong() == []
    assert {(kind, repaired) for kind, _, repaired in await scene.found()} == {("missing", True)}
    endpoint.fail(Fault.LOGS_MISSING_IN_RECEIPTS_TOO, times=None, seed=1)
    endpoint.place = hiding(scene.world, 3)
    before = await scene.daemon.examiner.examine(0, scene.world.finalized)
    assert (before.first, before.last, before.differences) == (1, 2, ())  # what is beyond dispute comes first
    examined = await scene.daemon.examiner.examine(2, scene.world.finalized)
    assert [difference.kind for difference in examined.differences] == [Kind.EXTRA]
    assert examined.repair is None
    assert "there is no other to ask" in examined.sentence
    by_hand = await scene.daemon.examiner.examine(2, scene.world.finalized, by_hand=True)
    assert by_hand.repair is not None


async def test_a_chain_that_is_another_below_finality_stops_the_sweep_and_changes_nothing(make: Make) -> None:
    """Hard case 5."""
    scene = await make(history(), 1)
    await scene.daemon.follow()
    scene.world.floor = 0
    scene.world.reorganise(3, [[("ask_token", 1, 4)], [], [], []])
    scene.world.view.finalized = scene.world.view.head
    before = await scene.pool.fetch("SELECT * FROM log ORDER BY block_hash, log_index")
    with pytest.raises(FinalityViolated):
        await scene.daemon.sweep_all()
    assert await scene.pool.fetch("SELECT * FROM log ORDER BY block_hash, log_index") == before
    assert await scene.found() == []


async def test_the_sweep_leaves_the_node_to_a_follower_that_has_blocks_to_catch_up_with(make: Make) -> None:
    world = history()
    for _ in range(80):
        world.mine([])
    world.become_final(100, 0)
    scene = await make(world, 2)
    assert await scene.daemon.follower.tick()
    assert not await scene.daemon.sweep.tick()
    assert scene.world.endpoints[1].asked.total() == 0
    await scene.daemon.follow()
    await scene.daemon.sweep_all()
    assert await scene.pool.fetchval("SELECT block_number FROM sweep") == scene.world.finalized


async def test_nothing_but_a_difference_that_was_written_down_may_be_discarded(make: Make) -> None:
    scene = await make(history(), 1)
    await scene.daemon.follow()
    row = await scene.pool.fetchrow("SELECT block_hash, log_index FROM log LIMIT 1")
    assert row is not None
    with pytest.raises(Exception, match="only what is kept as a difference"):
        await scene.pool.execute("SELECT discard_log($1, $2, $3)", CHAIN_ID, row["block_hash"], row["log_index"])
    assert token_address(0) in {row["stablecoin"] for row in await scene.pool.fetch("SELECT stablecoin FROM basket")}
